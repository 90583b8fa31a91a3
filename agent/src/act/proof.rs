//! Proof that our neighbour is gone, by looking at the world now and not at what is believed of it.
//!
//! A release stands on it: right before the leader key is deleted, nobody listens on PostgreSQL's unix socket, and the
//! alive lock is free. Whatever cannot be found out is no proof.

use crate::watch::alive_lock::{self, Held};
use crate::watch::control_file;
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
    /// The data directory of PostgreSQL.
    pub data_dir: Option<PathBuf>,
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
            nobody_listens(directory, *port)
        });
        match timeout(LIMIT, looking).await {
            Ok(Ok(looked)) => looked,
            Ok(Err(error)) => Err(format!("it could not be looked: {error}")),
            Err(_) => Err(format!("the look took longer than {} ms", LIMIT.as_millis())),
        }
    }

    /// Where it matters: the control file says that the server was shut down with this record still. The error says what
    /// it says instead.
    pub async fn shut_down_with(&self, expected: Option<ShutdownCheckpoint>) -> Result<(), String> {
        let Some(expected) = expected else { return Ok(()) };
        let data_dir = self.data_dir.as_deref().ok_or("PostgreSQL's control file is not to be seen from here")?;
        match control_file::read(data_dir).await {
            Reading::Present(found) if found == expected => Ok(()),
            Reading::Present(found) => Err(format!("it was shut down again, with a record at {}", found.location)),
            Reading::Absent => Err("PostgreSQL's control file does not call it shut down".to_owned()),
            Reading::Unreadable(why) => Err(why),
        }
    }
}

/// The path of a server's unix socket.
pub fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

fn nobody_listens(directory: &Path, port: u16) -> Result<(), String> {
    let path = socket_path(directory, port);
    // A directory that is not there is a volume that is not there, and says nothing of a socket in it.
    if !directory.is_dir() {
        return Err(format!("{} is not there", directory.display()));
    }
    match UnixStream::connect(&path) {
        Ok(_) => Err("somebody listens on PostgreSQL's socket".to_owned()),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let proof = Proof { socket, data_dir: Some(directory.to_owned()), alive_lock: Some(lock), held };
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
        assert!(Proof { data_dir: None, ..proof }.shut_down_with(Some(past)).await.is_err());
    }
}
