//! Verifies after each step of a fence that the server takes no writes any more.
//!
//! A server in recovery takes none. Otherwise the evidence is a new session that the server refuses, together with the
//! end of the session that gave the order.

use super::connect::{ConnectError, Refusal, SILENCE_LIMIT, Server, identify, try_connect};
use super::session::{CONNECT_LIMIT, KeptSession};
use crate::config::{SslMode, Superuser};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use warden_core::event::FenceOutcome;

/// The server has to refuse a new session within this time after each step.
pub const STEP_LIMIT: Duration = Duration::from_millis(1500);

/// The pause between two attempts to connect.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(4);

/// The first attempt waits for the order's acknowledgment, for at most this long: each attempt costs the server a
/// process, and so does the order.
const ACKNOWLEDGE_LIMIT: Duration = Duration::from_millis(25);

/// The agent logs in at this interval, because a standby says only in a session that it is in recovery. The other
/// attempts end before authentication: a server that shuts down refuses them there.
const LOGIN_INTERVAL: Duration = Duration::from_millis(100);

/// The server's state, as a new session shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerState {
    /// It refuses all sessions.
    Refusing(Refusal),
    /// It is in recovery.
    InRecovery,
    /// It does not answer.
    Silent,
    /// It accepts sessions.
    Accepting,
}

/// Connects again and again until the server refuses, is silent or is in recovery, for at most [`STEP_LIMIT`].
pub async fn verify(server: &Server<'_>) -> ServerState {
    verify_after(server, std::future::ready(())).await
}

/// The same, after `acknowledged` or [`ACKNOWLEDGE_LIMIT`].
pub async fn verify_after(server: &Server<'_>, acknowledged: impl Future<Output = ()>) -> ServerState {
    drop(timeout(ACKNOWLEDGE_LIMIT, acknowledged).await);
    // A refusal needs neither a password nor TLS, and each costs both sides milliseconds.
    let without_login = Superuser { password: None, sslmode: SslMode::Disable, ..server.login.clone() };
    // A server that is slow to open a session is as slow to refuse one.
    let silence_limit = if server.connect_limit > CONNECT_LIMIT { server.connect_limit } else { SILENCE_LIMIT };
    let started = Instant::now();
    let mut last_login = started;
    while started.elapsed() < STEP_LIMIT {
        let logs_in = last_login.elapsed() >= LOGIN_INTERVAL;
        let login = if logs_in { server.login } else { &without_login };
        match try_connect(server.place, login, silence_limit).await {
            Err(ConnectError::AuthFailed(_) | ConnectError::TooManyConnections(_) | ConnectError::Reset) => {}
            Err(ConnectError::Refused(refusal)) => return ServerState::Refusing(refusal),
            Err(ConnectError::Silent) => return ServerState::Silent,
            Ok(session) => {
                if identify(session).await.is_some_and(|(in_recovery, _)| in_recovery) {
                    return ServerState::InRecovery;
                }
            }
        }
        if logs_in {
            last_login = Instant::now();
        }
        sleep(ATTEMPT_PAUSE).await;
    }
    ServerState::Accepting
}

/// Follows a server that is shutting down, for at most [`STEP_LIMIT`], until it does anything else than that.
pub async fn follow_shutdown(server: &Server<'_>) -> ServerState {
    let started = Instant::now();
    loop {
        let state = verify(server).await;
        if state != ServerState::Refusing(Refusal::Stopping) || started.elapsed() >= STEP_LIMIT {
            return state;
        }
        sleep(ATTEMPT_PAUSE * 4).await;
    }
}

/// The outcome of a step. `session` is the one that gave the order. The error says why another step is needed.
pub async fn settled(
    server: &Server<'_>,
    state: ServerState,
    by: &'static str,
    started: Instant,
    session: &mut Option<KeptSession>,
) -> Result<FenceOutcome, String> {
    let confirmed = |by| FenceOutcome::Confirmed { by, took: started.elapsed() };
    match state {
        ServerState::InRecovery => Ok(confirmed("recovery")),
        ServerState::Refusing(Refusal::NoListener) => Ok(confirmed(by)),
        ServerState::Refusing(Refusal::NoSocket) => {
            // Only the end of the session that gave the order is evidence. Any client may have terminated another one.
            let ended = match session {
                Some(session) => session.ends_within(STEP_LIMIT).await,
                None => false,
            };
            let found = match server.beside {
                _ if ended => return Ok(confirmed(by)),
                Some(beside) => beside.has_ended().await,
                None => Err("the agent has no other evidence".to_owned()),
            };
            let remedy = "restart PostgreSQL: the agent cannot stop a server through a socket that is not there";
            let why = |why| format!("the socket file is missing, which proves nothing alone, and {why}; {remedy}");
            found.map(|_| confirmed(by)).map_err(why)
        }
        ServerState::Refusing(Refusal::Starting) => Err(format!("{by}: the server is starting again")),
        ServerState::Refusing(Refusal::Stopping) => {
            // Open sessions may outlast a smart shutdown. The end of the fence session shows a fast one.
            let ended = match session {
                Some(session) => session.ends_within(STEP_LIMIT).await,
                None => server.session_ended,
            };
            if ended {
                Ok(confirmed(by))
            } else {
                Err(format!("{by}: the server shuts down, and open sessions may continue"))
            }
        }
        // The order waits in the server's socket as long as the session lasts.
        ServerState::Silent if session.is_some() => Ok(FenceOutcome::Waiting),
        ServerState::Silent => Err("the server is silent, and there was no fence session".to_owned()),
        ServerState::Accepting => {
            Err(format!("{by}: the server still accepts sessions after {} ms", STEP_LIMIT.as_millis()))
        }
    }
}
