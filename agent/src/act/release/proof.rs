//! Proof that the local Patroni and PostgreSQL are gone, from the operating system and not from the view.
//!
//! Right before the agent deletes the leader key, no process listens on PostgreSQL's unix socket, and the alive lock is
//! free. A missing socket file proves nothing alone ([`crate::client::beside`]). Unknown is no proof.

use crate::client::alive_lock::{self, LockedFile};
use crate::client::beside::Beside;
use crate::client::postgres::socket_path;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use warden_core::event::{AliveLock, ShutdownCheckpoint};
use warden_core::fact::Reading;

/// The time limit of a look: two system calls on a local file system. A later answer proves nothing.
const LOOK_LIMIT: Duration = Duration::from_millis(200);

/// The places where the agent looks.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The directory of PostgreSQL's unix socket, and its port.
    pub socket: Option<(PathBuf, u16)>,
    /// Further evidence about PostgreSQL: its port, its data directory.
    pub beside: Option<Beside>,
    /// The path of the alive lock.
    pub alive_lock: Option<PathBuf>,
    /// The file that the agent last saw locked.
    pub last_locked: LockedFile,
}

impl Proof {
    /// Checks that no process listens on PostgreSQL's socket and, with `and_patroni`, that the alive lock is free. The
    /// error names the contrary or missing evidence.
    pub async fn gone(&self, and_patroni: bool) -> Result<(), String> {
        let proof = self.clone();
        let looking = spawn_blocking(move || {
            // The lock comes first: a live Patroni may start its server at any time.
            if and_patroni {
                let path = proof.alive_lock.as_deref().ok_or("no alive lock is configured")?;
                match alive_lock::look(path, &proof.last_locked) {
                    AliveLock::Gone => {}
                    AliveLock::Alive => return Err("a process holds the alive lock".to_owned()),
                    AliveLock::Unknown(why) => return Err(why),
                }
            }
            let (directory, port) = proof.socket.as_ref().ok_or("the agent does not see PostgreSQL's socket")?;
            look_at(&socket_path(directory, *port))
        });
        let looked = async {
            match looking.await.map_err(|error| format!("the look failed: {error}"))?? {
                Socket::Refuses => Ok(()),
                Socket::Missing(path) => {
                    let ended = match &self.beside {
                        Some(beside) => beside.has_ended().await,
                        None => Err("the agent has no other evidence".to_owned()),
                    };
                    let why = |why| format!("there is no socket {}, which alone proves nothing: {why}", path.display());
                    ended.map(drop).map_err(why)
                }
            }
        };
        let late = || Err(format!("the look took longer than {} ms", LOOK_LIMIT.as_millis()));
        timeout(LOOK_LIMIT, looked).await.unwrap_or_else(|_| late())
    }

    /// Checks that the control file still says that the server was shut down with this checkpoint. `None` passes. The
    /// error says what the control file says.
    pub async fn shut_down_with(&self, expected: Option<ShutdownCheckpoint>) -> Result<(), String> {
        let Some(expected) = expected else { return Ok(()) };
        let data_dir = self.beside.as_ref().and_then(|beside| beside.data_dir.as_ref());
        match data_dir.ok_or("the agent does not see PostgreSQL's control file")?.shutdown().await {
            Reading::Present(found) if found == expected => Ok(()),
            Reading::Present(found) => {
                Err(format!("PostgreSQL was shut down again, with a checkpoint at {}", found.location))
            }
            Reading::Absent => Err("PostgreSQL's control file does not say that the server was shut down".to_owned()),
            Reading::Unreadable(why) => Err(why),
        }
    }
}

/// The state of a server's socket.
enum Socket {
    /// The file exists and no process listens, as the kernel says.
    Refuses,
    /// The file does not exist.
    Missing(PathBuf),
}

fn look_at(path: &Path) -> Result<Socket, String> {
    // Without the directory a volume may not be mounted, so the missing socket proves nothing.
    if let Some(directory) = path.parent().filter(|directory| !directory.is_dir()) {
        return Err(format!("{} does not exist", directory.display()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err("a process listens on PostgreSQL's socket".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Socket::Refuses),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Socket::Missing(path.to_owned())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::beside::tests::LocalServer;
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command};
    use warden_core::types::{Lsn, SystemId, Timeline};

    /// A server that listens, and a Patroni that holds the lock.
    fn local_node(directory: &Path) -> (UnixListener, Child, Proof) {
        let lock = directory.join("patroni.alive");
        std::fs::write(&lock, "").unwrap();
        let patroni =
            Command::new("flock").args(["--no-fork", "--timeout", "5"]).arg(&lock).args(["sleep", "60"]).spawn();
        let last_locked = LockedFile::default();
        while alive_lock::look(&lock, &last_locked) != AliveLock::Alive {
            std::thread::sleep(Duration::from_millis(5));
        }
        let listener = UnixListener::bind(socket_path(directory, 5432)).unwrap();
        let socket = Some((directory.to_owned(), 5432));
        let beside = Beside::at(None, Some(directory));
        let proof = Proof { socket, beside: Some(beside), alive_lock: Some(lock), last_locked };
        (listener, patroni.unwrap(), proof)
    }

    #[tokio::test]
    async fn a_node_is_proved_gone_only_if_both_its_server_and_its_patroni_are() {
        let directory = tempfile::tempdir().unwrap();
        let (listener, mut patroni, proof) = local_node(directory.path());
        assert!(proof.gone(false).await.unwrap_err().contains("listens"));
        drop(listener);
        assert_eq!(proof.gone(false).await, Ok(()), "the server is down, which is enough for a handover");
        assert!(proof.gone(true).await.unwrap_err().contains("holds the alive lock"));
        patroni.kill().unwrap();
        patroni.wait().unwrap();
        assert_eq!(proof.gone(true).await, Ok(()));
        let listener = UnixListener::bind(directory.path().join("other")).unwrap();
        std::fs::rename(directory.path().join("other"), socket_path(directory.path(), 5432)).unwrap();
        assert!(proof.gone(true).await.is_err(), "the agent sees a server that was started meanwhile");
        drop(listener);
    }

    #[tokio::test]
    async fn a_missing_socket_file_is_no_proof_while_the_server_may_still_listen() {
        let mut local_node = LocalServer::start();
        local_node.beside.remember().await;
        let directory = tempfile::tempdir().unwrap();
        let socket = Some((directory.path().to_owned(), 5432));
        let listener = UnixListener::bind(socket_path(directory.path(), 5432)).unwrap();
        let proof = Proof {
            socket,
            beside: Some(local_node.beside.clone()),
            alive_lock: None,
            last_locked: LockedFile::default(),
        };
        // As a cleaner of temporary files does.
        std::fs::remove_file(socket_path(directory.path(), 5432)).unwrap();
        let why = proof.gone(false).await.unwrap_err();
        assert!(why.contains(".s.PGSQL.5432, which alone proves nothing: its port answers"), "{why}");
        drop(listener);
        local_node.close_port();
        assert_eq!(proof.gone(false).await, Ok(()), "the port refuses, too");
        assert!(Proof { beside: None, ..proof }.gone(false).await.is_err());
    }

    #[tokio::test]
    async fn missing_evidence_is_no_proof() {
        let directory = tempfile::tempdir().unwrap();
        let (listener, mut patroni, proof) = local_node(directory.path());
        drop(listener);
        patroni.kill().unwrap();
        patroni.wait().unwrap();
        let path = proof.alive_lock.clone().unwrap();
        // Another file in its place is free, and proves nothing about the one that was locked.
        std::fs::write(directory.path().join("new"), "").unwrap();
        std::fs::rename(directory.path().join("new"), &path).unwrap();
        assert!(proof.gone(true).await.is_err());
        let nowhere = Proof { socket: Some((directory.path().join("nowhere"), 5432)), ..proof.clone() };
        assert!(nowhere.gone(false).await.is_err());
        assert!(Proof { socket: None, ..proof.clone() }.gone(false).await.is_err());
        // The data directory has no control file.
        let past = ShutdownCheckpoint { location: Lsn(1), timeline: Timeline(1), system_id: SystemId(1) };
        assert_eq!(proof.shut_down_with(None).await, Ok(()), "no checkpoint is expected");
        assert!(proof.shut_down_with(Some(past)).await.unwrap_err().contains("pg_control"));
        assert!(Proof { beside: None, ..proof }.shut_down_with(Some(past)).await.is_err());
    }
}
