//! The local postmaster as a process, where it is visible from here: signalled through a pidfd, which names one process
//! for as long as it is held and never another.
//!
//! A number in a file proves nothing: in another pid namespace it means somebody else. What proves a process to be the
//! postmaster is the kernel's word on who listens on the server's unix socket (SO_PEERCRED), in our own numbering; it
//! is 0 where that process cannot be seen from here. Asked before and after the pidfd is opened, it has to be the same.
//!
//! Who sees one postmaster may see others: of the same path in other containers, of other users. None of them counts.

use super::proof::socket_path;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// To connect to a unix socket is a system call, or there is no room in its queue.
const CONNECT: Duration = Duration::from_millis(100);

/// Between two looks for what is left of a server.
const LOOK: Duration = Duration::from_millis(5);

/// A process that is proved to be the postmaster of the server behind a unix socket.
#[derive(Debug)]
pub struct Postmaster {
    pid: Pid,
    fd: OwnedFd,
    /// Shared with all its children.
    home: Option<Home>,
}

/// Where a server's processes are at work, and as whom.
#[derive(Debug, PartialEq, Eq)]
struct Home {
    /// The working directory, which is the data directory.
    directory: PathBuf,
    /// The mount namespace that the path is of: in containers the same path is of many.
    mounts: PathBuf,
    /// The real uid.
    uid: u32,
}

impl Postmaster {
    /// Finds the postmaster that listens on port `port` in `directory`. `in_its_numbering` is its pid as the server
    /// itself tells it, where it has been asked. The error says why it is not certain who that is.
    pub async fn find(directory: &Path, port: u16, in_its_numbering: Option<u32>) -> Result<Self, String> {
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
            return Err(format!("it is {} that listens on {}", name.trim(), socket.display()));
        }
        if let Some(expected) = in_its_numbering {
            let own = innermost(&read("status")?);
            if own != Some(expected) {
                return Err(format!("process {own:?} listens, but the server calls its postmaster {expected}"));
            }
        }
        let home = home(&process).ok();
        // It was alive after the pidfd was opened, so the pidfd is its.
        if listener(&socket).await? != pid {
            return Err("another process listens meanwhile".to_owned());
        }
        Ok(Self { pid, fd, home })
    }

    /// Sends it a signal. The error says why that cannot be.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        pidfd_send_signal(&self.fd, signal).map_err(|error| format!("it cannot be signalled: {error}"))
    }

    /// Kills it, and its children with it: a backend that is stopped, or busy, would outlive it, and could finish what
    /// it is at and acknowledge it. The error says why that cannot be.
    pub fn kill(&self) -> Result<(), String> {
        let children = children(self.pid);
        // That this succeeds shows that it lived when they were found, so that they are its.
        self.signal(Signal::KILL)?;
        for child in children {
            // One that has ended needs none; what is left all the same is found by `leaves_nobody`.
            pidfd_send_signal(child, Signal::KILL).ok();
        }
        Ok(())
    }

    /// Waits until no process is left in the data directory: one that the kernel cannot end yet can outlive a killed
    /// postmaster. `false` if some are left after `limit`, or nobody can tell.
    pub async fn leaves_nobody(&self, limit: Duration) -> bool {
        let Some(home) = &self.home else { return false };
        let started = Instant::now();
        loop {
            if !somebody_is_left(home) {
                return true;
            }
            if started.elapsed() >= limit {
                return false;
            }
            sleep(LOOK).await;
        }
    }
}

/// Who listens on `socket`, in our own numbering.
async fn listener(socket: &Path) -> Result<Pid, String> {
    let connecting = timeout(CONNECT, UnixStream::connect(socket)).await;
    let stream = connecting
        .map_err(|_| "the socket does not answer".to_owned())?
        .map_err(|error| format!("{}: {error}", socket.display()))?;
    let peer = stream.peer_cred().map_err(|error| format!("{}: {error}", socket.display()))?;
    peer.pid().and_then(Pid::from_raw).ok_or_else(|| "its postmaster is not visible from here".to_owned())
}

/// The number of a process in the innermost pid namespace that it is in, from `/proc/<pid>/status`.
fn innermost(status: &str) -> Option<u32> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    numbers.split_whitespace().next_back()?.parse().ok()
}

/// A number from `/proc/<pid>/status`, the first of its line.
fn number(status: &str, name: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// Reads links only, and so waits for no file system, however stuck.
fn home(process: &Path) -> std::io::Result<Home> {
    let directory = std::fs::read_link(process.join("cwd"))?;
    let mounts = std::fs::read_link(process.join("ns/mnt"))?;
    let status = std::fs::read_to_string(process.join("status"))?;
    let uid = number(&status, "Uid:").ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(Home { directory, mounts, uid })
}

/// Every process that we can see, as its directory below `/proc`.
fn processes() -> std::io::Result<impl Iterator<Item = PathBuf>> {
    let is_number = |name: &std::ffi::OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let entries = std::fs::read_dir("/proc")?.flatten();
    Ok(entries.filter(move |entry| is_number(&entry.file_name())).map(|entry| entry.path()))
}

/// The children of a process. They are its only if it still lives afterwards.
fn children(parent: Pid) -> Vec<OwnedFd> {
    let Ok(processes) = processes() else { return Vec::new() };
    let parent = Some(parent.as_raw_nonzero().get().cast_unsigned());
    let is_child = |process: &Path| {
        std::fs::read_to_string(process.join("status")).is_ok_and(|status| number(&status, "PPid:") == parent)
    };
    let opened = |process: PathBuf| {
        let pid = Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?)?;
        let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The number may have become another's before the pidfd was opened.
        is_child(&process).then_some(fd)
    };
    processes.filter(|process| is_child(process)).filter_map(opened).collect()
}

/// Whether any process that we can see is at work where the server was. One that may not be looked at counts only if
/// it is a PostgreSQL's, of the same user: those of others cannot be this server's.
fn somebody_is_left(server: &Home) -> bool {
    let Ok(mut processes) = processes() else { return true };
    processes.any(|process| match home(&process) {
        Ok(home) => home == *server,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let read = |name| std::fs::read_to_string(process.join(name));
            read("comm").is_ok_and(|name| name.starts_with("postgres"))
                && read("status").is_ok_and(|status| number(&status, "Uid:") == Some(server.uid))
        }
        // It has ended.
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

    /// Not a test: what the children of the tests below do.
    #[test]
    #[ignore = "run by other tests, as a process of its own"]
    fn be_a_postmaster() {
        let Some(socket) = std::env::var_os(SOCKET) else { return };
        let _listener = UnixListener::bind(socket).unwrap();
        if std::env::var_os(BACKEND).is_some() {
            // Deaf to what a postmaster's end would tell it, as a backend that is busy is.
            let mut backend = Command::new("sleep").arg("60").spawn().unwrap();
            std::fs::write(BACKEND, backend.id().to_string()).unwrap();
            backend.wait().unwrap();
        }
        std::thread::sleep(Duration::from_secs(60));
    }

    /// A process called `name` that listens where a postmaster would, and ignores the signals `deaf_to`.
    fn process(directory: &Path, name: &str, deaf_to: &str) -> Child {
        started(&mut command(directory, name, deaf_to), directory)
    }

    fn command(directory: &Path, name: &str, deaf_to: &str) -> Command {
        let program = directory.join(name);
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program).unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("trap '' {deaf_to} USR1; exec \"$0\" \"$@\"")])
            .arg(&program)
            .args(["--ignored", "--exact", "act::postmaster::tests::be_a_postmaster"])
            .env(SOCKET, socket_path(directory, 5432))
            .current_dir(directory)
            .stdout(std::process::Stdio::null());
        command
    }

    fn started(command: &mut Command, directory: &Path) -> Child {
        let child = command.spawn().unwrap();
        // The file is there before anybody listens.
        while std::os::unix::net::UnixStream::connect(socket_path(directory, 5432)).is_err() {
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
        assert!(!found.leaves_nobody(Duration::from_millis(200)).await, "it is deaf to this one");
        found.signal(Signal::KILL).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        assert!(found.leaves_nobody(Duration::from_secs(5)).await);
        assert!(found.signal(Signal::KILL).is_err(), "the pidfd is of nobody else, whatever becomes of the number");
    }

    #[tokio::test]
    async fn a_killed_postmaster_takes_its_children_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = started(command(directory.path(), "postgres", "").env(BACKEND, "1"), directory.path());
        let found = Postmaster::find(directory.path(), 5432, Some(child.id())).await.unwrap();
        while !std::fs::read_to_string(directory.path().join(BACKEND)).is_ok_and(|pid| !pid.is_empty()) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!found.leaves_nobody(Duration::ZERO).await);
        found.kill().unwrap();
        child.wait().unwrap();
        assert!(found.leaves_nobody(Duration::from_secs(5)).await, "its child is left");
        assert!(found.kill().is_err(), "there is nobody any more, whatever becomes of the number");
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
        let alone = found.leaves_nobody(Duration::from_secs(5)).await;
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(alone, "who has the same path elsewhere does not count");
    }

    #[tokio::test]
    async fn a_process_that_is_not_proved_to_be_the_postmaster_is_not_signalled() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Postmaster::find(directory.path(), 5432, None).await.is_err(), "nobody listens");
        let mut child = process(directory.path(), "proxy", "");
        let why = Postmaster::find(directory.path(), 5432, Some(child.id())).await.unwrap_err();
        assert!(why.contains("proxy"), "{why}");
        child.kill().unwrap();
        child.wait().unwrap();
        std::fs::remove_file(socket_path(directory.path(), 5432)).unwrap();
        let mut child = process(directory.path(), "postgres", "");
        // As it would be if the server ran in a namespace of its own and another process listened in its place.
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
