//! The client for PostgreSQL: its address, a session, the question, and the meaning of errors.

mod heartbeat;
mod question;
#[cfg(test)]
pub(crate) mod real;
mod session;

pub(crate) use heartbeat::Heartbeat;
pub(crate) use question::{keep_newest_timeline, question, read_answer};
pub(crate) use session::{Driver, client_config, connect, is_about_the_login};

use crate::client::{io_cause, root_cause};
use crate::config::{NodeConfig, SslMode, Superuser};
use std::io;
use std::path::{Path, PathBuf};
use tokio_postgres::error::SqlState;
use warden_core::event::{PostgresAnswer, Starting};
use warden_core::fact::Source;

/// The `application_name` of the agent's sessions other than its fence sessions.
pub(crate) const SESSIONS: &str = "warden";

/// The address of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The directory of its unix socket, and its port.
    Socket(PathBuf, u16),
    /// Its host and port.
    Tcp(String, u16),
}

impl Place {
    /// The local server: its socket if the agent can reach it, otherwise host and port.
    pub fn beside(node: &NodeConfig) -> Self {
        match &node.socket_dir {
            Some(directory) => Self::Socket(directory.clone(), node.port),
            None => Self::Tcp(node.host.clone(), node.port),
        }
    }

    /// The source of facts from this address.
    pub const fn source(&self) -> Source {
        match self {
            Self::Socket(..) => Source::Socket,
            Self::Tcp(..) => Source::Tcp,
        }
    }

    /// The TLS mode. PostgreSQL has no TLS on its socket, and libpq ignores `sslmode` there.
    pub(crate) const fn sslmode(&self, login: &Superuser) -> SslMode {
        match self {
            Self::Socket(..) => SslMode::Disable,
            Self::Tcp(..) => login.sslmode,
        }
    }
}

/// The path of a server's unix socket.
pub fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// Whether the server accepted a connection and then broke it off, as a server that is just ending does.
pub(crate) fn broke_off(error: &tokio_postgres::Error) -> bool {
    let kind = io_cause(error).map(io::Error::kind);
    let broken = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof];
    error.is_closed() || kind.is_some_and(|kind| broken.contains(&kind))
}

/// The meaning of a refusal with 57P03. Its text is in the server's language, so an unknown text may be a shutdown.
fn refusal(text: &str) -> PostgresAnswer {
    // No text tells a standby from a primary. From PostgreSQL 15 on, a primary in crash recovery is also "not yet
    // accepting connections".
    let not_open = ["starting up", "in recovery mode", "accepting connections"];
    if not_open.iter().any(|words| text.contains(words)) {
        PostgresAnswer::Starting(Starting { why: text.to_owned(), standby: None })
    } else {
        PostgresAnswer::Stopping(text.to_owned())
    }
}

/// The meaning of a failed connection or a failed question for the server.
pub(crate) fn answer_of_error(error: &tokio_postgres::Error) -> PostgresAnswer {
    if let Some(db) = error.as_db_error() {
        // 57P03: starting up, shutting down, in crash recovery. The server accepts no session.
        return match db.code() {
            &SqlState::CANNOT_CONNECT_NOW => refusal(db.message()),
            _ => PostgresAnswer::Unknown(format!("{} ({})", db.message(), db.code().code())),
        };
    }
    match io_cause(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => PostgresAnswer::Refused("no process listens".to_owned()),
        Some(io::ErrorKind::NotFound) => PostgresAnswer::Refused("there is no socket".to_owned()),
        Some(io::ErrorKind::PermissionDenied) => {
            PostgresAnswer::Unknown("the agent's user may not use the socket".to_owned())
        }
        Some(kind) if is_of_the_network(kind) => PostgresAnswer::Silent(root_cause(error)),
        // For example a name that does not resolve.
        _ => PostgresAnswer::Unknown(root_cause(error)),
    }
}

/// Whether the network between the agent and the host failed, in either direction.
const fn is_of_the_network(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown, NetworkUnreachable, NotConnected,
        TimedOut, UnexpectedEof,
    };
    matches!(
        kind,
        TimedOut
            | HostUnreachable
            | NetworkUnreachable
            | NetworkDown
            | ConnectionReset
            | ConnectionAborted
            | NotConnected
            | BrokenPipe
            | UnexpectedEof
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_shuts_down_has_not_stopped_and_one_that_starts_may_be_a_primary() {
        for (text, stopping) in [
            ("the database system is starting up", false),
            ("the database system is in recovery mode", false),
            ("the database system is not yet accepting connections", false),
            ("the database system is not accepting connections", false),
            ("the database system is shutting down", true),
            // In another language, the text may mean either.
            ("das Datenbanksystem startet", true),
        ] {
            let answer = refusal(text);
            assert_eq!(matches!(answer, PostgresAnswer::Stopping(_)), stopping, "{text}");
            assert_eq!(answer.writable_or_standby(), None, "{text}");
        }
    }
}
