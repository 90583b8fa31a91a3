//! Stops a server step by step, and verifies each step before the next.
//!
//! If the agent sees the postmaster as a process, it signals it: fast shutdown, immediate shutdown, kill. Otherwise a
//! superuser session orders the server to signal its own postmaster: fast, then immediate. A server in fast shutdown
//! refuses open and new sessions within some 20 ms and does not wait for clients.
//!
//! A silent server (paused, stopped, out of IO) gets the same statement at once. It waits in the server's socket and is
//! the first thing that the server executes when it wakes. The statement has a deadline on the server's own clock, so
//! that one that is obsolete does nothing.

use super::connect::{ConnectError, Refusal, Server, identify, open_session, slot_pause, try_connect};
use super::postmaster::Postmaster;
use super::session::{KeptSession, ON_LEADER_TIMELINE, ORDER_EXPIRED, RECOVERY_CHECK_LIMIT};
use super::verify::{STEP_LIMIT, ServerState, follow_shutdown, settled, verify, verify_after};
use crate::client::postgres::Place;
use rustix::process::Signal;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use warden_core::decide::FENCE_LOST_AFTER;
use warden_core::event::FenceOutcome;

/// One fence waits for a free connection slot for at most this long.
const SLOT_WAIT_MAX: Duration = Duration::from_secs(3);

/// One fence waits for a starting server for at most this long.
const START_WAIT_MAX: Duration = Duration::from_secs(8);

const _: () = assert!(SLOT_WAIT_MAX.as_millis() + 2 * STEP_LIMIT.as_millis() < FENCE_LOST_AFTER.as_millis());
const _: () = assert!(START_WAIT_MAX.as_millis() + 2 * STEP_LIMIT.as_millis() < FENCE_LOST_AFTER.as_millis());

/// Stops the server, until it refuses a new session or is in recovery.
///
/// `session` is the fence session, if one is open. It is returned if it is still open: an order may wait in it.
pub async fn stop(server: &Server<'_>, mut session: Option<KeptSession>) -> (FenceOutcome, Option<KeptSession>) {
    let started = Instant::now();
    session = session.filter(|session| !session.is_over());
    if let Some(outcome) = by_process(server, &mut session, started).await {
        return (outcome, session.filter(|session| !session.is_over()));
    }
    by_session(server, session, started).await
}

/// Stops the server by signals. `None` if the agent does not see the postmaster, or if the signals did not help.
async fn by_process(server: &Server<'_>, session: &mut Option<KeptSession>, started: Instant) -> Option<FenceOutcome> {
    // Only the server itself can compare its timeline.
    let (Place::Socket(directory, port), None) = (server.place, server.older_than) else { return None };
    let known = session.as_ref().map(KeptSession::postmaster);
    let postmaster = match Postmaster::find(directory, *port, known).await {
        Ok(postmaster) => postmaster,
        Err(why) => {
            tracing::debug!(why, "the agent cannot signal the postmaster");
            return None;
        }
    };
    // A signal stops a standby as well, so the agent asks first.
    let in_recovery = match session {
        Some(session) => session.is_in_recovery().await,
        None => match try_connect(server.place, server.login, RECOVERY_CHECK_LIMIT).await {
            Ok(new) => identify(new).await.is_some_and(|(in_recovery, _)| in_recovery),
            // The server may be a standby.
            Err(ConnectError::Refused(Refusal::Starting)) if !server.starting => return None,
            Err(_) => false,
        },
    };
    if in_recovery {
        return Some(FenceOutcome::Confirmed { by: "recovery", took: started.elapsed() });
    }
    let steps = [
        (Signal::INT, "fast shutdown by signal"),
        (Signal::QUIT, "immediate shutdown by signal"),
        (Signal::KILL, "killed"),
    ];
    for (signal, by) in steps {
        let kill = signal == Signal::KILL;
        let signaled = if kill { postmaster.kill() } else { postmaster.signal(signal) };
        if let Err(why) = signaled {
            tracing::warn!(event = "postmaster_signal_failed", why, by, "the agent could not signal the postmaster");
            return None;
        }
        if kill && !postmaster.ends_with_children(STEP_LIMIT).await {
            let why = "the agent killed the server, but not all of its processes have ended";
            return Some(FenceOutcome::Failed(why.to_owned()));
        }
        // Without a fence session, only the end of the server is evidence.
        let state = if session.is_some() { verify(server).await } else { follow_shutdown(server).await };
        if state == ServerState::Silent {
            continue;
        }
        if let Ok(outcome) = settled(server, state, by, started, session).await {
            return Some(outcome);
        }
    }
    None
}

/// Stops the server by a statement in a superuser session: fast shutdown, then immediate.
async fn by_session(
    server: &Server<'_>,
    session: Option<KeptSession>,
    started: Instant,
) -> (FenceOutcome, Option<KeptSession>) {
    let mut orders = SessionOrders { server, session, started };
    let mut problem = String::new();
    for (signal, by) in [("INT", "fast shutdown"), ("QUIT", "immediate shutdown")] {
        match orders.step(signal, by).await {
            Ok(outcome) => return (outcome, orders.session.filter(|session| !session.is_over())),
            Err(why) => problem = why,
        }
    }
    (FenceOutcome::Failed(problem), orders.session)
}

/// The orders of one fence to a server, in a superuser session.
struct SessionOrders<'a> {
    server: &'a Server<'a>,
    session: Option<KeptSession>,
    started: Instant,
}

impl SessionOrders<'_> {
    /// Orders one shutdown and verifies it. The error says why another step is needed.
    async fn step(&mut self, signal: &str, by: &'static str) -> Result<FenceOutcome, String> {
        if let Some(outcome) = self.open().await? {
            return Ok(outcome);
        }
        let has_order = self.session.as_ref().is_some_and(KeptSession::has_order);
        if has_order && verify(self.server).await == ServerState::Silent {
            return Ok(FenceOutcome::Waiting);
        }
        match self.order(signal, by).await {
            // The server's clock was set forward since the agent read it.
            Err(why) if why.contains(ORDER_EXPIRED) => {
                let Some(session) = &mut self.session else { return Err(why) };
                session.measure().await.map_err(|failed| format!("{by}: {}", failed.why))?;
                self.order(signal, by).await
            }
            outcome => outcome,
        }
    }

    /// Opens a session if none is open. The outcome, if the server needs no order.
    async fn open(&mut self) -> Result<Option<FenceOutcome>, String> {
        if self.session.take_if(|session| session.is_over()).is_none() && self.session.is_some() {
            return Ok(None);
        }
        let confirmed = |by| FenceOutcome::Confirmed { by, took: self.started.elapsed() };
        loop {
            match open_session(self.server, self.started + SLOT_WAIT_MAX).await {
                Ok(ready) => {
                    self.session = Some(ready);
                    return Ok(None);
                }
                Err(ConnectError::Refused(Refusal::NoListener)) => return Ok(Some(confirmed("refused already"))),
                Err(ConnectError::Refused(Refusal::NoSocket)) => {
                    let state = ServerState::Refusing(Refusal::NoSocket);
                    return settled(self.server, state, "refused already", self.started, &mut None).await.map(Some);
                }
                // The agent takes the first session that the starting server accepts.
                Err(ConnectError::Refused(Refusal::Starting)) if self.started.elapsed() < START_WAIT_MAX => {
                    slot_pause().await;
                }
                Err(ConnectError::Refused(Refusal::Starting)) => return Ok(Some(FenceOutcome::Waiting)),
                Err(ConnectError::Refused(Refusal::Stopping)) => {
                    let state = follow_shutdown(self.server).await;
                    return settled(self.server, state, "shutting down already", self.started, &mut None)
                        .await
                        .map(Some);
                }
                Err(ConnectError::AuthFailed(why) | ConnectError::TooManyConnections(why)) => return Err(why),
                Err(ConnectError::Reset) => return Err("the server reset the connection".to_owned()),
                Err(ConnectError::Silent) => {
                    return Err("the server is silent, and there was no fence session".to_owned());
                }
            }
        }
    }

    /// Sends the order in the session, and verifies it. The error says why it is not settled.
    async fn order(&mut self, signal: &str, by: &'static str) -> Result<FenceOutcome, String> {
        let Some(session) = &mut self.session else { return Err("there is no session".to_owned()) };
        // The server is not silent, so no earlier order waits.
        session.answered();
        let sent = session.order_shutdown(signal, self.server.older_than);
        let (acknowledges, acknowledged) = oneshot::channel();
        let state = tokio::select! {
            state = verify_after(self.server, async { drop(acknowledged.await) }) => Ok(state),
            why = refusal(sent, acknowledges) => Err(why),
        };
        let settled = match state {
            Ok(state) => settled(self.server, state, by, self.started, &mut self.session).await,
            Err(why) if why.contains(ON_LEADER_TIMELINE) => return Ok(FenceOutcome::Withdrawn(why)),
            Err(why) if why.contains(ORDER_EXPIRED) => Err(why),
            // The server may have obeyed all the same: its shutdown interrupts the statement that ordered it.
            Err(why) => {
                let state = verify(self.server).await;
                let outcome = settled(self.server, state, by, self.started, &mut self.session).await;
                outcome.map_err(|_| format!("{by}: {why}"))
            }
        };
        if let (Err(_), Some(session)) = (&settled, &mut self.session) {
            session.answered();
        }
        settled
    }
}

/// The server's refusal of an order. If the server obeys, this drops `acknowledges` and never ends.
async fn refusal(sent: JoinHandle<Result<(), String>>, acknowledges: oneshot::Sender<()>) -> String {
    if let Ok(Err(why)) = sent.await {
        return why;
    }
    drop(acknowledges);
    std::future::pending().await
}

/// The outcome of an order that waited in a silent server's socket, after its session has ended. `None` if unknown.
pub async fn after_waking(server: &Server<'_>, since: Instant) -> Option<FenceOutcome> {
    let confirmed = |by| Some(FenceOutcome::Confirmed { by, took: since.elapsed() });
    let stopped = "fast shutdown on waking";
    match (follow_shutdown(server).await, server.beside) {
        (ServerState::Refusing(Refusal::NoListener | Refusal::Stopping), _) => confirmed(stopped),
        (ServerState::InRecovery, _) => confirmed("recovery"),
        (ServerState::Refusing(Refusal::NoSocket), Some(beside)) if beside.has_ended().await.is_ok() => {
            confirmed(stopped)
        }
        // A starting server takes writes later. A missing socket file proves nothing alone.
        _ => None,
    }
}

#[cfg(test)]
#[path = "ladder_tests.rs"]
mod tests;
