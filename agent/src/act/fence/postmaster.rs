//! The local postmaster as a process, if the agent sees it. The agent signals it through a pidfd, which never names
//! another process.
//!
//! A pid in a file proves nothing: in another pid namespace it names another process. The kernel proves which process
//! listens on the server's unix socket (SO_PEERCRED). It gives the pid in the agent's own namespace, or 0 for a process
//! that is not visible there. The agent asks before and after it opens the pidfd, and both answers must be the same.
//!
//! The agent may also see postmasters in other containers with the same path, or of other users. None of them counts.

use crate::client::postgres::socket_path;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// The time limit for connecting to the unix socket. It is one system call, unless the socket's queue is full.
const CONNECT_LIMIT: Duration = Duration::from_millis(100);

/// The pause between two looks for remaining processes.
const PROCESS_CHECK_PAUSE: Duration = Duration::from_millis(5);

/// A process that is proved to be the postmaster of the server behind a unix socket.
#[derive(Debug)]
pub struct Postmaster {
    pid: Pid,
    fd: OwnedFd,
    /// The same for all its children. `None` if the agent cannot read it.
    home: Option<Home>,
}

/// The properties that a server's processes share, and no other process has.
#[derive(Debug, PartialEq, Eq)]
struct Home {
    /// The working directory: the data directory.
    directory: PathBuf,
    /// The mount namespace. Other containers may have the same path.
    mounts: PathBuf,
    /// The real uid.
    uid: u32,
}

impl Postmaster {
    /// Finds the postmaster that listens on port `port` in `directory`. `pid_in_server` is its pid by the server's own
    /// answer, if the agent asked. The error says why the process is not proved to be the postmaster.
    pub async fn find(directory: &Path, port: u16, pid_in_server: Option<u32>) -> Result<Self, String> {
        let socket = socket_path(directory, port);
        let pid = listener(&socket).await?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| format!("no pidfd of {pid:?}: {error}"))?;
        let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
        let read = |name: &str| {
            let path = process.join(name);
            std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let name = read("comm")?;
        if !name.starts_with("postgres") && !name.starts_with("postmaster") {
            return Err(format!("{} listens on {}, which is no postmaster", name.trim(), socket.display()));
        }
        if let Some(expected) = pid_in_server {
            let own = innermost(&read("status")?);
            if own != Some(expected) {
                return Err(format!("process {own:?} listens, but the server calls its postmaster {expected}"));
            }
        }
        let home = home(&process).ok();
        // The process was alive after the pidfd was opened, so the pidfd names it.
        if listener(&socket).await? != pid {
            return Err("another process listens on the socket now".to_owned());
        }
        Ok(Self { pid, fd, home })
    }

    /// Sends a signal. The error is the system call's.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        pidfd_send_signal(&self.fd, signal).map_err(|error| format!("the agent cannot signal the postmaster: {error}"))
    }

    /// Kills the postmaster and its children. A stopped or busy backend would outlive it, and could still acknowledge a
    /// commit. The error is the system call's.
    pub fn kill(&self) -> Result<(), String> {
        let children = children(self.pid);
        // If this succeeds, the postmaster was alive when the agent found the children, so they are its own.
        self.signal(Signal::KILL)?;
        for child in children {
            // An error means that the child has ended. `ends_with_children` finds the remaining ones.
            pidfd_send_signal(child, Signal::KILL).ok();
        }
        Ok(())
    }

    /// Waits until no process is left in the data directory. A child in uninterruptible sleep can outlive a killed
    /// postmaster. `false` if processes are left after `limit`, or if the agent cannot tell.
    pub async fn ends_with_children(&self, limit: Duration) -> bool {
        let Some(home) = &self.home else { return false };
        let started = Instant::now();
        loop {
            if !process_is_left(home) {
                return true;
            }
            if started.elapsed() >= limit {
                return false;
            }
            sleep(PROCESS_CHECK_PAUSE).await;
        }
    }
}

/// The pid of the process that listens on `socket`, in the agent's own pid namespace.
async fn listener(socket: &Path) -> Result<Pid, String> {
    let connecting = timeout(CONNECT_LIMIT, UnixStream::connect(socket)).await;
    let stream = connecting
        .map_err(|_| "PostgreSQL's socket does not answer".to_owned())?
        .map_err(|error| format!("{}: {error}", socket.display()))?;
    let peer = stream.peer_cred().map_err(|error| format!("{}: {error}", socket.display()))?;
    peer.pid().and_then(Pid::from_raw).ok_or_else(|| "the postmaster is not visible to the agent".to_owned())
}

/// The pid of a process in its innermost pid namespace, from `/proc/<pid>/status`.
fn innermost(status: &str) -> Option<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().next_back()?.parse().ok()
}

/// A number from `/proc/<pid>/status`, the first of its line.
fn number(status: &str, name: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Reads links only, so that a file system that hangs does not block the agent.
fn home(process: &Path) -> std::io::Result<Home> {
    let directory = std::fs::read_link(process.join("cwd"))?;
    let mounts = std::fs::read_link(process.join("ns/mnt"))?;
    let status = std::fs::read_to_string(process.join("status"))?;
    let uid = number(&status, "Uid:").ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(Home { directory, mounts, uid })
}

/// The processes that the agent sees, each as its directory below `/proc`.
fn processes() -> std::io::Result<impl Iterator<Item = PathBuf>> {
    let is_number = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let entries = std::fs::read_dir("/proc")?.flatten();
    Ok(entries.filter(move |entry| is_number(&entry.file_name())).map(|entry| entry.path()))
}

/// The children of a process. The result is proved only if the parent is still alive afterwards.
fn children(parent: Pid) -> Vec<OwnedFd> {
    let Ok(processes) = processes() else { return Vec::new() };
    let parent = Some(parent.as_raw_nonzero().get().cast_unsigned());
    let is_child = |process: &Path| {
        std::fs::read_to_string(process.join("status")).is_ok_and(|status| number(&status, "PPid:") == parent)
    };
    let opened = |process: PathBuf| {
        let pid = Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The kernel may have reused the pid before the pidfd was opened.
        is_child(&process).then_some(fd)
    };
    processes.filter(|process| is_child(process)).filter_map(opened).collect()
}

/// Whether a visible process belongs to this server. One that the agent must not read counts only if it is PostgreSQL's
/// and of the same user.
fn process_is_left(server: &Home) -> bool {
    let Ok(mut processes) = processes() else { return true };
    processes.any(|process| match home(&process) {
        Ok(home) => home == *server,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let read = |name| std::fs::read_to_string(process.join(name));
            read("comm").is_ok_and(|name| name.starts_with("postgres"))
                && read("status").is_ok_and(|status| number(&status, "Uid:") == Some(server.uid))
        }
        // The process has ended.
        Err(_) => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command};

    const SOCKET: &str = "TEST_POSTMASTER_SOCKET";
    const BACKEND: &str = "TEST_POSTMASTER_BACKEND";

    /// Not a test: the child processes of the tests below run this.
    #[test]
    #[ignore = "run by other tests, as a process of its own"]
    fn be_a_postmaster() {
        let Some(socket) = std::env::var_os(SOCKET) else { return };
        let _listener = UnixListener::bind(socket).unwrap();
        if std::env::var_os(BACKEND).is_some() {
            // Like a busy backend, it does not notice the end of its postmaster.
            let mut backend = Command::new("sleep").arg("60").spawn().unwrap();
            std::fs::write(BACKEND, backend.id().to_string()).unwrap();
            backend.wait().unwrap();
        }
        std::thread::sleep(Duration::from_secs(60));
    }

    /// A process called `name` that listens on the socket of a postmaster, and ignores the signals `ignored`.
    fn process(directory: &Path, name: &str, ignored: &str) -> Child {
        started(&mut command(directory, name, ignored), directory)
    }

    fn command(directory: &Path, name: &str, ignored: &str) -> Command {
        let program = directory.join(name);
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program).unwrap();
        let here = module_path!().trim_start_matches("warden::");
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("trap '' {ignored} USR1; exec \"$0\" \"$@\"")])
            .arg(&program)
            .args(["--ignored", "--exact", &format!("{here}::be_a_postmaster")])
            .env(SOCKET, socket_path(directory, 5432))
            .current_dir(directory)
            .stdout(std::process::Stdio::null());
        command
    }

    fn started(command: &mut Command, directory: &Path) -> Child {
        let child = command.spawn().unwrap();
        // The socket file exists before the process listens.
        let begun = Instant::now();
        while std::os::unix::net::UnixStream::connect(socket_path(directory, 5432)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the process does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }

    #[tokio::test]
    async fn the_process_that_listens_on_the_socket_is_found_and_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = process(directory.path(), "postgres", "INT");
        let found = Postmaster::find(directory.path(), 5432, Some(child.id())).await.unwrap();
        found.signal(Signal::INT).unwrap();
        assert!(!found.ends_with_children(Duration::from_millis(200)).await, "the process ignores this signal");
        found.signal(Signal::KILL).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(found.ends_with_children(Duration::from_secs(5)).await);
        assert!(
            found.signal(Signal::KILL).is_err(),
            "the pidfd names no other process, even if the kernel reuses the pid"
        );
    }

    #[tokio::test]
    async fn a_killed_postmaster_takes_its_children_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = started(command(directory.path(), "postgres", "").env(BACKEND, "1"), directory.path());
        let found = Postmaster::find(directory.path(), 5432, Some(child.id())).await.unwrap();
        while !std::fs::read_to_string(directory.path().join(BACKEND)).is_ok_and(|pid| !pid.is_empty()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!found.ends_with_children(Duration::ZERO).await);
        found.kill().unwrap();
        child.wait().unwrap();
        assert!(found.ends_with_children(Duration::from_secs(5)).await, "no child is left");
        assert!(found.kill().is_err(), "the process is gone, even if the kernel reuses the pid");
    }

    #[tokio::test]
    async fn the_same_path_of_another_mount_namespace_is_another_server() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = ["--mount", "sh", "-c", "touch there; exec sleep 60"];
        let user = if rustix::process::getuid().is_root() { [].as_slice() } else { &["--map-root-user"] };
        let other = Command::new("unshare").args(user).args(elsewhere).current_dir(directory.path()).spawn();
        let Ok(mut other) = other else { return eprintln!("not tested: there is no unshare") };
        while !directory.path().join("there").exists() {
            if other.try_wait().unwrap().is_some() {
                return eprintln!("not tested: no mount namespace can be made here");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut child = process(directory.path(), "postgres", "");
        let found = Postmaster::find(directory.path(), 5432, Some(child.id())).await.unwrap();
        found.kill().unwrap();
        child.wait().unwrap();
        let alone = found.ends_with_children(Duration::from_secs(5)).await;
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(alone, "a process with the same path in another mount namespace does not count");
    }

    #[tokio::test]
    async fn a_process_that_is_not_proved_to_be_the_postmaster_is_not_signalled() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Postmaster::find(directory.path(), 5432, None).await.is_err(), "no process listens");
        let mut child = process(directory.path(), "proxy", "");
        let why = Postmaster::find(directory.path(), 5432, Some(child.id())).await.unwrap_err();
        assert!(why.contains("proxy"), "{why}");
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_file(socket_path(directory.path(), 5432)).unwrap();
        let mut child = process(directory.path(), "postgres", "");
        // As if the server ran in its own pid namespace and another process listened on its socket.
        let why = Postmaster::find(directory.path(), 5432, Some(child.id() + 1)).await.unwrap_err();
        assert!(why.contains("the server calls its postmaster"), "{why}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn numbers_are_the_first_of_their_line() {
        let status = "Name:\tpostgres\nPid:\t23\nPPid:\t1\nUid:\t999\t998\t998\t998\n";
        assert_eq!(
            (number(status, "PPid:"), number(status, "Uid:"), number(status, "Gid:")),
            (Some(1), Some(999), None)
        );
    }

    #[test]
    fn the_number_in_the_innermost_namespace_is_the_last() {
        assert_eq!(innermost("Name:\tpostgres\nNSpid:\t4711\t23\nVmPeak:\t1\n"), Some(23));
        assert_eq!(innermost("NSpid:\t4711\n"), Some(4711));
        assert_eq!(innermost("Name:\tpostgres\n"), None);
    }
}
