//! The local postmaster as a process, where it is visible from here: signalled through a pidfd, which names one process
//! for as long as it is held and never another.
//!
//! A number in a file proves nothing: in another pid namespace it means somebody else. What proves a process to be the
//! postmaster is the kernel's word on who listens on the server's unix socket (SO_PEERCRED), in our own numbering; it
//! is 0 where that process cannot be seen from here. Asked before and after the pidfd is opened, it has to be the same.

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
    fd: OwnedFd,
    /// Its working directory, the data directory, which it shares with all its children.
    data: Option<PathBuf>,
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
        let data = std::fs::read_link(process.join("cwd")).ok();
        // It was alive after the pidfd was opened, so the pidfd is its.
        if listener(&socket).await? != pid {
            return Err("another process listens meanwhile".to_owned());
        }
        Ok(Self { fd, data })
    }

    /// Sends it a signal. The error says why that cannot be.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        pidfd_send_signal(&self.fd, signal).map_err(|error| format!("it cannot be signalled: {error}"))
    }

    /// Waits until no process is left in the data directory: backends can outlive a killed postmaster by what they are
    /// at. `false` if some are left after `limit`, or nobody can tell.
    pub async fn leaves_nobody(&self, limit: Duration) -> bool {
        let Some(data) = &self.data else { return false };
        let started = Instant::now();
        loop {
            if !somebody_works_in(data) {
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

/// Whether any process that we can see has `directory` for its working directory. One that may not be looked at counts
/// only if it is a PostgreSQL's.
fn somebody_works_in(directory: &Path) -> bool {
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let pids = processes
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())));
    pids.map(|entry| entry.path()).any(|process| match std::fs::read_link(process.join("cwd")) {
        Ok(cwd) => cwd == directory,
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            std::fs::read_to_string(process.join("comm")).is_ok_and(|name| name.starts_with("postgres"))
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

    /// Not a test: what the children of the tests below do.
    #[test]
    #[ignore = "run by other tests, as a process of its own"]
    fn be_a_postmaster() {
        let Some(socket) = std::env::var_os(SOCKET) else { return };
        let _listener = UnixListener::bind(socket).unwrap();
        std::thread::sleep(Duration::from_secs(60));
    }

    /// A process called `name` that listens where a postmaster would, and ignores the signals `deaf_to`.
    fn process(directory: &Path, name: &str, deaf_to: &str) -> Child {
        let program = directory.join(name);
        std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program).unwrap();
        let socket = socket_path(directory, 5432);
        let child = Command::new("sh")
            .args(["-c", &format!("trap '' {deaf_to} USR1; exec \"$0\" \"$@\"")])
            .arg(&program)
            .args(["--ignored", "--exact", "act::postmaster::tests::be_a_postmaster"])
            .env(SOCKET, &socket)
            .current_dir(directory)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while !socket.exists() {
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
    fn the_number_in_the_innermost_namespace_is_the_last() {
        assert_eq!(innermost("Name:\tpostgres\nNSpid:\t4711\t23\nVmPeak:\t1\n"), Some(23));
        assert_eq!(innermost("NSpid:\t4711\n"), Some(4711));
        assert_eq!(innermost("Name:\tpostgres\n"), None);
    }
}
