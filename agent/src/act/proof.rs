//! Proof that our neighbour is gone, by looking at the world now and not at what is believed of it.
//!
//! A release stands on it: right before the leader key is deleted, nobody listens on PostgreSQL's unix socket, and the
//! alive lock is free. A socket file that is missing proves nothing alone ([`crate::watch::beside`]). Whatever cannot be
//! found out is no proof.

use crate::watch::alive_lock::{self, Held};
use crate::watch::beside::Beside;
pub use crate::watch::postgres::socket_path;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use warden_core::event::{AliveLock, ShutdownCheckpoint};
use warden_core::fact::Reading;

/// Two system calls on a local file system: what takes longer proves nothing any more.
const LIMIT: Duration = Duration::from_millis(200);

/// Where to look.
#[derive(Clone, Debug)]
pub struct Proof {
    /// The directory of PostgreSQL's unix socket, and its port.
    pub socket: Option<(PathBuf, u16)>,
    /// Where else PostgreSQL can be seen: its port, its data directory.
    pub beside: Option<Beside>,
    /// The alive lock.
    pub alive_lock: Option<PathBuf>,
    /// The file that was last seen locked.
    pub held: Held,
}

impl Proof {
    /// Looks: nobody listens on PostgreSQL's socket, and where `and_patroni` is wanted the alive lock is free. The
    /// error says what speaks against it, or is not known.
    pub async fn gone(&self, and_patroni: bool) -> Result<(), String> {
        let proof = self.clone();
        let looking = spawn_blocking(move || {
            // The lock first: a Patroni that lives may start its server at any time.
            if and_patroni {
                let path = proof.alive_lock.as_deref().ok_or("there is no alive lock")?;
                match alive_lock::look(path, &proof.held) {
                    AliveLock::Gone => {}
                    AliveLock::Alive => return Err("somebody holds the alive lock".to_owned()),
                    AliveLock::Unknown(why) => return Err(why),
                }
            }
            let (directory, port) = proof.socket.as_ref().ok_or("PostgreSQL's socket is not to be seen from here")?;
            look_at(&socket_path(directory, *port))
        });
        let looked = async {
            match looking.await.map_err(|error| format!("it could not be looked: {error}"))?? {
                Socket::Refuses => Ok(()),
                Socket::Missing(path) => {
                    let ended = match &self.beside {
                        Some(beside) => beside.has_ended().await,
                        None => Err("there is nowhere else to look".to_owned()),
                    };
                    let why = |why| format!("there is no socket {}, which alone proves nothing: {why}", path.display());
                    ended.map(drop).map_err(why)
                }
            }
        };
        let late = || Err(format!("the look took longer than {} ms", LIMIT.as_millis()));
        timeout(LIMIT, looked).await.unwrap_or_else(|_| late())
    }

    /// Where it matters: the control file says that the server was shut down with this record still. The error says what
    /// it says instead.
    pub async fn shut_down_with(&self, expected: Option<ShutdownCheckpoint>) -> Result<(), String> {
        let Some(expected) = expected else { return Ok(()) };
        let data_dir = self.beside.as_ref().and_then(|beside| beside.data_dir.as_ref());
        match data_dir.ok_or("PostgreSQL's control file is not to be seen from here")?.shutdown().await {
            Reading::Present(found) if found == expected => Ok(()),
            Reading::Present(found) => Err(format!("it was shut down again, with a record at {}", found.location)),
            Reading::Absent => Err("PostgreSQL's control file does not call it shut down".to_owned()),
            Reading::Unreadable(why) => Err(why),
        }
    }
}

/// How a server's socket was found.
enum Socket {
    /// No process listens, though the file is there: the kernel itself says so.
    Refuses,
    /// There is no such file.
    Missing(PathBuf),
}

fn look_at(path: &Path) -> Result<Socket, String> {
    // A directory that is not there is a volume that is not there, and says nothing of a socket in it.
    if let Some(directory) = path.parent().filter(|directory| !directory.is_dir()) {
        return Err(format!("{} is not there", directory.display()));
    }
    match UnixStream::connect(path) {
        Ok(_) => Err("somebody listens on PostgreSQL's socket".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Socket::Refuses),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Socket::Missing(path.to_owned())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::beside::tests::Neighbour;
    use std::os::unix::net::UnixListener;
    use std::process::{Child, Command};
    use warden_core::types::{Lsn, SystemId, Timeline};

    /// A server that listens, and a Patroni that holds the lock, like the real ones.
    fn neighbour(directory: &Path) -> (UnixListener, Child, Proof) {
        let lock = directory.join("patroni.alive");
        std::fs::write(&lock, "").unwrap();
        let patroni =
            Command::new("flock").args(["--no-fork", "--timeout", "5"]).arg(&lock).args(["sleep", "60"]).spawn();
        let held = Held::default();
        while alive_lock::look(&lock, &held) != AliveLock::Alive {
            std::thread::sleep(Duration::from_millis(5));
        }
        let listener = UnixListener::bind(socket_path(directory, 5432)).unwrap();
        let socket = Some((directory.to_owned(), 5432));
        let beside = Beside::at(None, Some(directory));
        let proof = Proof { socket, beside: Some(beside), alive_lock: Some(lock), held };
        (listener, patroni.unwrap(), proof)
    }

    #[tokio::test]
    async fn a_neighbour_is_proved_gone_only_when_both_its_server_and_its_patroni_are() {
        let directory = tempfile::tempdir().unwrap();
        let (listener, mut patroni, proof) = neighbour(directory.path());
        assert!(proof.gone(false).await.unwrap_err().contains("listens"));
        drop(listener);
        assert_eq!(proof.gone(false).await, Ok(()), "its server is down, which is enough for a handover");
        assert!(proof.gone(true).await.unwrap_err().contains("holds the alive lock"));
        patroni.kill().unwrap();
        patroni.wait().unwrap();
        assert_eq!(proof.gone(true).await, Ok(()));
        let listener = UnixListener::bind(directory.path().join("other")).unwrap();
        std::fs::rename(directory.path().join("other"), socket_path(directory.path(), 5432)).unwrap();
        assert!(proof.gone(true).await.is_err(), "a server that was started meanwhile is seen");
        drop(listener);
    }

    #[tokio::test]
    async fn a_socket_file_that_is_missing_is_no_proof_while_the_server_may_still_listen() {
        let mut neighbour = Neighbour::start();
        neighbour.beside.remember().await;
        let directory = tempfile::tempdir().unwrap();
        let socket = Some((directory.path().to_owned(), 5432));
        let listener = UnixListener::bind(socket_path(directory.path(), 5432)).unwrap();
        let proof = Proof { socket, beside: Some(neighbour.beside.clone()), alive_lock: None, held: Held::default() };
        // A cleaner of temporary files.
        std::fs::remove_file(socket_path(directory.path(), 5432)).unwrap();
        let why = proof.gone(false).await.unwrap_err();
        assert!(why.contains(".s.PGSQL.5432, which alone proves nothing: its port answers"), "{why}");
        drop(listener);
        neighbour.close_port();
        assert_eq!(proof.gone(false).await, Ok(()), "its port refuses, too");
        assert!(Proof { beside: None, ..proof }.gone(false).await.is_err());
    }

    #[tokio::test]
    async fn what_cannot_be_seen_is_no_proof() {
        let directory = tempfile::tempdir().unwrap();
        let (listener, mut patroni, proof) = neighbour(directory.path());
        drop(listener);
        patroni.kill().unwrap();
        patroni.wait().unwrap();
        let path = proof.alive_lock.clone().unwrap();
        // Another file in its place, free as it is, says nothing of the one that was held.
        std::fs::write(directory.path().join("new"), "").unwrap();
        std::fs::rename(directory.path().join("new"), &path).unwrap();
        assert!(proof.gone(true).await.is_err());
        let nowhere = Proof { socket: Some((directory.path().join("nowhere"), 5432)), ..proof.clone() };
        assert!(nowhere.gone(false).await.is_err());
        assert!(Proof { socket: None, ..proof.clone() }.gone(false).await.is_err());
        // There is no control file.
        let past = ShutdownCheckpoint { location: Lsn(1), timeline: Timeline(1), system_id: SystemId(1) };
        assert_eq!(proof.shut_down_with(None).await, Ok(()), "it is not asked for");
        assert!(proof.shut_down_with(Some(past)).await.unwrap_err().contains("pg_control"));
        assert!(Proof { beside: None, ..proof }.shut_down_with(Some(past)).await.is_err());
    }
}
