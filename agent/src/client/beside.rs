//! Signs of the local server that need no session: its port and its data directory.
//!
//! A missing socket file alone proves nothing. A cleaner of temporary files may remove it, and the server goes on over
//! TCP. The missing file proves the end of the server together with one of two signs. The agent must have seen the sign
//! while the server accepted a session, so that a look at a wrong place proves nothing:
//!
//! - The server's port now refuses connections. The refusal proves nothing if the port never answered the agent
//!   (`listen_addresses`, another network namespace).
//! - The server's `postmaster.pid` is now missing. The postmaster removes it last, and ends within a minute if an
//!   operator removes it. The agent does not use the process number in it, which belongs to the server's pid namespace.
//!   A present file proves nothing: a killed postmaster leaves it behind.

use super::data_dir::DataDir;
use crate::config::NodeConfig;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// The limit for one look at the port. A port of the local node answers at once or not at all.
const PORT_LIMIT: Duration = Duration::from_millis(500);

/// The signs of the local server other than its socket. Clones share what the agent has seen.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// The host and port on which it listens.
    pub tcp: Option<(String, u16)>,
    /// Its data directory, if the agent can read it.
    pub data_dir: Option<DataDir>,
    /// Whether the agent reports the record of a shutdown, for a handover.
    pub tells_shutdown: bool,
    seen: Arc<Seen>,
}

/// The signs that were present when the server last accepted a session of the agent.
#[derive(Debug, Default)]
struct Seen {
    port: AtomicBool,
    pid_file: AtomicBool,
}

/// The answer of a port.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// A process listens.
    Answers,
    /// No process listens, at any address of its host.
    Refuses,
    /// Neither is certain; the text says why.
    Unknown(String),
}

impl Beside {
    /// The signs of the configured node.
    pub fn new(node: &NodeConfig, tells_shutdown: bool) -> Self {
        let tcp = Some((node.host.clone(), node.port));
        Self { tells_shutdown, ..Self::at(tcp, node.data_dir.as_deref()) }
    }

    /// At this port, with this data directory.
    pub(crate) fn at(tcp: Option<(String, u16)>, data_dir: Option<&Path>) -> Self {
        Self { tcp, data_dir: data_dir.map(DataDir::new), ..Self::default() }
    }

    /// The data directory, if the agent reports the record of a shutdown.
    pub(crate) fn shutdown(&self) -> Option<&DataDir> {
        self.data_dir.as_ref().filter(|_| self.tells_shutdown)
    }

    /// Remembers which signs are present. Call it when the server has just accepted a session by its socket.
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

    /// Whether the server has ended, if its socket file is missing. Returns the proof, or why there is none.
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

    /// Asks the port.
    pub(crate) async fn port(&self) -> Port {
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
        match timeout(PORT_LIMIT, looked).await {
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
    pub(crate) struct LocalServer {
        pub(crate) beside: Beside,
        port: Option<TcpListener>,
        directory: tempfile::TempDir,
    }

    impl LocalServer {
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
            // A child that another test has just forked has the listener open until its exec.
            while std::net::TcpStream::connect((host.as_str(), port)).is_ok() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }

        fn pid_file(&self) -> std::path::PathBuf {
            self.directory.path().join("postmaster.pid")
        }
    }

    #[tokio::test]
    async fn a_refusing_port_or_a_missing_pid_file_proves_the_end_of_a_server_that_was_seen() {
        let mut server = LocalServer::start();
        server.beside.remember().await;
        let why = server.beside.has_ended().await.unwrap_err();
        assert_eq!(why, "its port answers, and its postmaster.pid is there");
        server.close_port();
        assert_eq!(server.beside.has_ended().await, Ok("its port refuses connections"));

        let server = LocalServer::start();
        server.beside.remember().await;
        std::fs::remove_file(server.pid_file()).unwrap();
        assert_eq!(server.beside.clone().has_ended().await, Ok("its postmaster.pid is gone"));
    }

    #[tokio::test]
    async fn a_sign_that_was_never_seen_proves_nothing_by_its_absence() {
        // The agent has looked at neither.
        let mut server = LocalServer::start();
        server.close_port();
        std::fs::remove_file(server.pid_file()).unwrap();
        let why = server.beside.has_ended().await.unwrap_err();
        assert!(why.contains("never answered") && why.contains("never seen"), "{why}");
        // The agent has looked at both in a wrong place.
        server.beside.remember().await;
        assert!(server.beside.has_ended().await.is_err());
    }

    #[tokio::test]
    async fn a_missing_data_directory_proves_nothing() {
        let server = LocalServer::start();
        server.beside.remember().await;
        let path = server.directory.path();
        std::fs::remove_file(server.pid_file()).unwrap();
        std::fs::remove_dir_all(path.join("global")).unwrap();
        let why = server.beside.has_ended().await.unwrap_err();
        assert!(why.contains("global/pg_control: No such file"), "{why}");
        assert!(Path::new(path).exists());
    }

    #[tokio::test]
    async fn a_port_that_does_not_answer_is_reported_with_its_address() {
        let beside = Beside::at(Some(("no-such-host.invalid".to_owned(), 5432)), None);
        let Port::Unknown(why) = beside.port().await else { panic!() };
        assert!(why.contains("no-such-host.invalid:5432"), "{why}");
    }
}
