//! Opens sessions with a server that may be stopped, and classifies each failed attempt.

use super::session::{CONNECT_LIMIT, KeptSession, NotReady};
use crate::client::beside::Beside;
use crate::client::io_cause;
use crate::client::postgres::{self, Place};
use crate::config::Superuser;
use std::io;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use warden_core::event::PostgresAnswer;
use warden_core::types::{SystemId, Timeline};

/// A server is silent if it neither opens nor refuses a session for this long.
pub const SILENCE_LIMIT: Duration = Duration::from_millis(700);

/// The longest pause between two attempts while all connection slots are taken, before jitter. A slot may be free for a
/// moment only, and other clients compete for it.
const SLOT_PAUSE: Duration = Duration::from_millis(20);

/// The server to stop.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// The server's address.
    pub place: &'a Place,
    /// The superuser.
    pub login: &'a Superuser,
    /// The fence applies only to a server on an older timeline than this.
    pub older_than: Option<Timeline>,
    /// The server is starting, and its agent knows that it is no standby. Otherwise a starting server gets no signal.
    pub starting: bool,
    /// The fence session ended by itself, and the server has refused new ones since because it shuts down. A fast
    /// shutdown ends every session, a smart one none.
    pub session_ended: bool,
    /// Further evidence about the local server.
    pub beside: Option<&'a Beside>,
    /// The time limit for opening a session with it.
    pub connect_limit: Duration,
}

impl<'a> Server<'a> {
    /// A server of which only the address is known.
    pub const fn at(place: &'a Place, login: &'a Superuser) -> Self {
        Self {
            place,
            login,
            older_than: None,
            starting: false,
            session_ended: false,
            beside: None,
            connect_limit: CONNECT_LIMIT,
        }
    }
}

/// A session that has just been opened.
pub type NewSession = (Client, postgres::Driver);

/// Why the agent could not open a session.
#[derive(Debug)]
pub enum ConnectError {
    /// The server refuses all sessions, or no process listens.
    Refused(Refusal),
    /// The server refuses this session (for example for a wrong password). It may accept others.
    AuthFailed(String),
    /// All connection slots are taken, those reserved for superusers too; or the session was terminated before it was
    /// ready. A retry may succeed.
    TooManyConnections(String),
    /// The connection was reset. The server may be ending at this moment; the next attempt shows it.
    Reset,
    /// The server did not answer in time, or its name does not resolve.
    Silent,
}

/// Why a server refuses all sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No process listens.
    NoListener,
    /// The socket file is missing. That proves nothing alone: a cleaner of temporary files may have removed it.
    NoSocket,
    /// The server is starting or recovering.
    Starting,
    /// The server is shutting down. Open sessions outlast a smart shutdown for any time.
    Stopping,
}

/// Tries once to open a session.
pub async fn try_connect(place: &Place, login: &Superuser, limit: Duration) -> Result<NewSession, ConnectError> {
    let mut config = postgres::client_config(place, login);
    config.application_name("warden-fence");
    let error = match timeout(limit, postgres::connect(&config, place.sslmode(login))).await {
        Ok(Ok(session)) => return Ok(session),
        Ok(Err(error)) => error,
        Err(_) => return Err(ConnectError::Silent),
    };
    if postgres::broke_off(&error) {
        return Err(ConnectError::Reset);
    }
    let cause = io_cause(&error).map(io::Error::kind);
    if cause == Some(io::ErrorKind::NotFound) {
        return Err(ConnectError::Refused(Refusal::NoSocket));
    }
    let is_io = cause.is_some_and(|kind| kind != io::ErrorKind::PermissionDenied);
    Err(match postgres::answer_of_error(&error) {
        PostgresAnswer::Starting(_) => ConnectError::Refused(Refusal::Starting),
        PostgresAnswer::Refused(_) => ConnectError::Refused(Refusal::NoListener),
        PostgresAnswer::Stopping(_) => ConnectError::Refused(Refusal::Stopping),
        PostgresAnswer::Gone(_) => ConnectError::Refused(Refusal::NoListener),
        PostgresAnswer::Unknown(why) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => {
            ConnectError::TooManyConnections(why)
        }
        // For example a stopped container's name, which does not resolve. No server has refused the login.
        PostgresAnswer::Unknown(_) if is_io => ConnectError::Silent,
        PostgresAnswer::Unknown(why) => ConnectError::AuthFailed(why),
        _ => ConnectError::Silent,
    })
}

/// Tries until the server has a free connection slot, or until `until`.
async fn connect_until(server: &Server<'_>, until: Instant) -> Result<NewSession, ConnectError> {
    loop {
        match try_connect(server.place, server.login, server.connect_limit).await {
            Err(ConnectError::TooManyConnections(_)) if Instant::now() < until => slot_pause().await,
            found => return found,
        }
    }
}

/// Waits before the next attempt, with jitter.
pub async fn slot_pause() {
    sleep(SLOT_PAUSE.mul_f64(rand::random_range(0.5..1.0))).await;
}

/// Opens a session that is ready for a fence. The agent retries transient failures until `until`.
pub async fn open_session(server: &Server<'_>, until: Instant) -> Result<KeptSession, ConnectError> {
    loop {
        let session = connect_until(server, until).await?;
        match KeptSession::ready(session).await {
            Ok(ready) => return Ok(ready),
            Err(NotReady { is_transient: true, .. }) if Instant::now() < until => slot_pause().await,
            Err(NotReady { why, is_transient: true, .. }) => return Err(ConnectError::TooManyConnections(why)),
            Err(NotReady { why, .. }) => return Err(ConnectError::AuthFailed(why)),
        }
    }
}

/// Tries once to open the fence session.
pub async fn open(place: &Place, login: &Superuser) -> Result<KeptSession, NotReady> {
    let lasting = NotReady::lasting;
    let ending = |why: &str| NotReady { by_shutdown: true, ..lasting(why) };
    Err(match try_connect(place, login, CONNECT_LIMIT).await {
        Ok(session) => return KeptSession::ready(session).await,
        Err(ConnectError::Refused(Refusal::NoListener)) => ending("no process listens"),
        Err(ConnectError::Refused(Refusal::Stopping)) => ending("the server shuts down"),
        Err(ConnectError::Refused(Refusal::NoSocket)) => lasting("the server's socket file is missing"),
        Err(ConnectError::Refused(Refusal::Starting)) => lasting("the server does not accept sessions yet"),
        Err(ConnectError::AuthFailed(why)) => lasting(&why),
        Err(ConnectError::TooManyConnections(why)) => NotReady { is_transient: true, ..lasting(&why) },
        Err(ConnectError::Reset) => ending("the server reset the connection"),
        Err(ConnectError::Silent) => lasting(&format!("no session within {} s", CONNECT_LIMIT.as_secs())),
    })
}

/// Whether the server is in recovery, and its system identifier. `None` if the server does not answer in time.
pub async fn identify(session: NewSession) -> Option<(bool, SystemId)> {
    let question =
        "SELECT pg_catalog.pg_is_in_recovery(), (SELECT system_identifier FROM pg_catalog.pg_control_system())";
    // PostgreSQL shows this unsigned number as a signed one.
    let id = |text: &str| Some(SystemId(text.parse::<i64>().ok()?.cast_unsigned()));
    ask(session, question, |row| Some((row.get(0)? == "t", id(row.get(1)?)?))).await
}

/// Asks one question on a new session, and ends it. `None` without an answer in time, or one that `read` can use.
pub async fn ask<T>(
    (client, driver): NewSession,
    question: &str,
    read: impl Fn(&SimpleQueryRow) -> Option<T>,
) -> Option<T> {
    let asked = async {
        tokio::select! {
            answer = client.simple_query(question) => answer.ok(),
            () = driver => None,
        }
    };
    let messages = timeout(SILENCE_LIMIT, asked).await.ok().flatten()?;
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => read(row),
        _ => None,
    })
}
