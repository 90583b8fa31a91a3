//! What can be seen of the server beside us without a session: its port, its data directory.
//!
//! A socket file that is missing proves nothing alone: a cleaner of temporary files removes it, and the server goes on
//! over TCP. It proves an end together with one of two things, each of which must have been there while the server let
//! us in, so that a look at a wrong place proves nothing:
//!
//! - its port, which now refuses. Where the port never answered from here (`listen_addresses`, another network
//!   namespace) a refusal is no news;
//! - its `postmaster.pid`, which is now gone. The postmaster removes it as the last thing it does, and ends by itself
//!   within a minute where it is removed by hand. The process number in it is of no use to us: it belongs to the
//!   server's pid namespace. A file that is still there proves nothing: a killed postmaster leaves it behind.

use super::data_dir::DataDir;
use crate::config::NodeConfig;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// A port of this machine or its neighbour answers at once, or says nothing.
const LIMIT: Duration = Duration::from_millis(500);

/// Where else than at its socket the server can be seen. Copies share what was seen.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// Where it listens besides its socket.
    pub tcp: Option<(String, u16)>,
    /// Its data directory, where that is shared with us.
    pub data_dir: Option<DataDir>,
    /// Whether it matters with which record it was shut down: for a handover.
    pub tells_shutdown: bool,
    seen: Arc<Seen>,
}

/// What was there when the server last let us in.
#[derive(Debug, Default)]
struct Seen {
    port: AtomicBool,
    pid_file: AtomicBool,
}

/// How a port answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Port {
    /// Something listens.
    Answers,
    /// Nothing listens, at any address of its host.
    Refuses,
    /// Neither is certain: why.
    Unknown(String),
}

impl Beside {
    /// As the configuration has it.
    pub fn new(node: &NodeConfig, tells_shutdown: bool) -> Self {
        let tcp = Some((node.host.clone(), node.port));
        Self { tells_shutdown, ..Self::at(tcp, node.data_dir.as_deref()) }
    }

    /// At this port, with this data directory.
    pub(crate) fn at(tcp: Option<(String, u16)>, data_dir: Option<&Path>) -> Self {
        Self { tcp, data_dir: data_dir.map(DataDir::new), ..Self::default() }
    }

    /// The data directory, where the record of a shutdown matters.
    pub(super) fn shutdown(&self) -> Option<&DataDir> {
        self.data_dir.as_ref().filter(|_| self.tells_shutdown)
    }

    /// To be called when the server has just let us in by its socket.
    pub(crate) async fn remember(&self) {
        let pid_file = async {
            match &self.data_dir {
                Some(data_dir) => data_dir.has_pid_file().await == Ok(true),
                None => false,
            }
        };
        let (port, pid_file) = tokio::join!(self.port(), pid_file);
        self.seen.port.store(port == Port::Answers, Ordering::Relaxed);
        self.seen.pid_file.store(pid_file, Ordering::Relaxed);
    }

    /// Whether nothing listens on its socket, of which the file is missing: the proof, or why there is none.
    pub(crate) async fn has_ended(&self) -> Result<&'static str, String> {
        let pid_file = match &self.data_dir {
            _ if !self.seen.pid_file.load(Ordering::Relaxed) => {
                "its postmaster.pid was never seen (node.data_dir)".to_owned()
            }
            Some(data_dir) => match data_dir.has_pid_file().await {
                Ok(false) => return Ok("its postmaster.pid is gone"),
                Ok(true) => "its postmaster.pid is there".to_owned(),
                Err(why) => why,
            },
            None => "node.data_dir is not set".to_owned(),
        };
        let port = match self.port().await {
            Port::Refuses if self.seen.port.load(Ordering::Relaxed) => return Ok("its port refuses connections"),
            Port::Refuses => "its port never answered from here".to_owned(),
            Port::Answers => "its port answers".to_owned(),
            Port::Unknown(why) => why,
        };
        Err(format!("{port}, and {pid_file}"))
    }

    /// How its port answers.
    pub(super) async fn port(&self) -> Port {
        let Some((host, port)) = &self.tcp else { return Port::Unknown("its port is not known".to_owned()) };
        let place = format!("{host}:{port}");
        let unknown = |why: &str| Port::Unknown(format!("its port {place} does not answer ({why})"));
        let looked = async {
            let addresses = lookup_host((host.as_str(), *port)).await.map_err(|error| error.to_string())?;
            let mut refused = false;
            for address in addresses {
                match TcpStream::connect(address).await {
                    Ok(_) => return Ok(Port::Answers),
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => refused = true,
                    Err(error) => return Err(error.to_string()),
                }
            }
            if refused { Ok(Port::Refuses) } else { Err("its name has no address".to_owned()) }
        };
        match timeout(LIMIT, looked).await {
            Ok(Ok(seen)) => seen,
            Ok(Err(why)) => unknown(&why),
            Err(_) => unknown("silent"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::control_file::tests::{SHUT_DOWN, write};
    use super::*;
    use std::net::TcpListener;

    /// A server's port and data directory.
    pub(crate) struct Neighbour {
        pub(crate) beside: Beside,
        port: Option<TcpListener>,
        directory: tempfile::TempDir,
    }

    impl Neighbour {
        pub(crate) fn start() -> Self {
            let port = TcpListener::bind("127.0.0.1:0").unwrap();
            let directory = tempfile::tempdir().unwrap();
            write(directory.path(), SHUT_DOWN);
            std::fs::write(directory.path().join("postmaster.pid"), "1\n").unwrap();
            let tcp = ("127.0.0.1".to_owned(), port.local_addr().unwrap().port());
            let beside = Beside::at(Some(tcp), Some(directory.path()));
            Self { beside, port: Some(port), directory }
        }

        pub(crate) fn close_port(&mut self) {
            self.port = None;
            let (host, port) = self.beside.tcp.clone().unwrap();
            // A process that another test starts in this very moment has the listener open until it executes.
            while std::net::TcpStream::connect((host.as_str(), port)).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }

        fn pid_file(&self) -> std::path::PathBuf {
            self.directory.path().join("postmaster.pid")
        }
    }

    #[tokio::test]
    async fn a_port_that_refuses_or_a_pid_file_that_is_gone_proves_the_end_of_what_was_seen() {
        let mut neighbour = Neighbour::start();
        neighbour.beside.remember().await;
        let why = neighbour.beside.has_ended().await.unwrap_err();
        assert_eq!(why, "its port answers, and its postmaster.pid is there");
        neighbour.close_port();
        assert_eq!(neighbour.beside.has_ended().await, Ok("its port refuses connections"));

        let neighbour = Neighbour::start();
        neighbour.beside.remember().await;
        std::fs::remove_file(neighbour.pid_file()).unwrap();
        assert_eq!(neighbour.beside.clone().has_ended().await, Ok("its postmaster.pid is gone"));
    }

    #[tokio::test]
    async fn what_was_not_there_while_the_server_ran_proves_nothing_by_its_absence() {
        // Neither was looked at.
        let mut neighbour = Neighbour::start();
        neighbour.close_port();
        std::fs::remove_file(neighbour.pid_file()).unwrap();
        let why = neighbour.beside.has_ended().await.unwrap_err();
        assert!(why.contains("never answered") && why.contains("never seen"), "{why}");
        // Both were looked at in a wrong place.
        neighbour.beside.remember().await;
        assert!(neighbour.beside.has_ended().await.is_err());
    }

    #[tokio::test]
    async fn a_data_directory_that_is_not_there_any_more_proves_nothing() {
        let neighbour = Neighbour::start();
        neighbour.beside.remember().await;
        let path = neighbour.directory.path();
        std::fs::remove_file(neighbour.pid_file()).unwrap();
        std::fs::remove_dir_all(path.join("global")).unwrap();
        let why = neighbour.beside.has_ended().await.unwrap_err();
        assert!(why.contains("global/pg_control: No such file"), "{why}");
        assert!(Path::new(path).exists());
    }

    #[tokio::test]
    async fn a_port_that_does_not_answer_is_told_with_its_place() {
        let beside = Beside::at(Some(("no-such-host.invalid".to_owned(), 5432)), None);
        let Port::Unknown(why) = beside.port().await else { panic!() };
        assert!(why.contains("no-such-host.invalid:5432"), "{why}");
    }
}
