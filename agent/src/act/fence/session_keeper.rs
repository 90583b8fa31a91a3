//! Keeps a fence session with the local server open, and reports its state to the loop.

use super::Fencer;
use super::connect;
use super::session::{KeptSession, NotReady};
use std::future::pending;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use warden_core::event::{Event, FenceSession, LocalEvent};

/// The pause before the next attempt after a transient failure or the end of a session, before jitter. It is short, so
/// that a client that takes all slots or terminates our session does not keep the agent out for long.
const TRANSIENT_PAUSE: Duration = Duration::from_millis(100);

/// The pause after any other failure, before jitter. It doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const _: () = assert!(TRANSIENT_PAUSE.as_millis() < PAUSE_MIN.as_millis());
const _: () = assert!(PAUSE_MIN.as_millis() < PAUSE_MAX.as_millis());

/// A failed attempt is reported again after this long.
const FAILURE_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The fence session, and the attempts to open it.
pub struct SessionKeeper {
    /// The session, while it is open and no fence uses it.
    pub session: Option<KeptSession>,
    /// The last session ended by itself, and the server has refused new ones since because it shuts down.
    pub has_ended: bool,
    /// The attempt that is in progress.
    opening: Option<JoinHandle<Result<KeptSession, NotReady>>>,
    pause: Duration,
    /// The last report, and its time.
    reported: Option<(FenceSession, Instant)>,
}

/// A change of the session.
pub enum Change {
    /// The session has ended.
    Ended,
    /// An attempt to open a session has succeeded or failed.
    Opened(Result<KeptSession, NotReady>),
}

impl Default for SessionKeeper {
    fn default() -> Self {
        Self { session: None, has_ended: false, opening: None, pause: PAUSE_MIN, reported: None }
    }
}

impl Drop for SessionKeeper {
    fn drop(&mut self) {
        if let Some(opening) = &self.opening {
            opening.abort();
        }
    }
}

impl SessionKeeper {
    /// Waits for the session's end. Without a session, opens one after a pause if it is `wanted`. Cancellation-safe.
    pub async fn changes(&mut self, fencer: &Fencer, wanted: bool) -> Change {
        if let Some(session) = &mut self.session {
            session.ended().await;
            return Change::Ended;
        }
        let (Some((_, place)), Some(login)) = (&fencer.local, &fencer.login) else { return pending().await };
        let pause = self.pause;
        if self.opening.is_none() && !wanted {
            return pending().await;
        }
        let opening = self.opening.get_or_insert_with(|| {
            let (place, login) = (place.clone(), login.clone());
            tokio::spawn(async move {
                sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                connect::open(&place, &login).await
            })
        });
        let opened = opening
            .await
            .unwrap_or_else(|error| Err(NotReady::lasting(&format!("the attempt to open a session failed: {error}"))));
        self.opening = None;
        self.pause = next_pause(pause, opened.as_ref().err());
        Change::Opened(opened)
    }

    /// Reports the state of the fence session to the loop when it changes. A failed attempt is reported every second,
    /// because the server may have restarted since the last attempt.
    pub async fn report(&mut self, fencer: &Fencer, session: FenceSession) -> anyhow::Result<()> {
        let known = self.reported.as_ref().is_some_and(|(reported, at)| {
            *reported == session && (session == FenceSession::Ready || at.elapsed() < FAILURE_REPORT_INTERVAL)
        });
        if !known {
            fencer
                .events
                .send(fencer.events.clock.now(), Event::Local(LocalEvent::FenceSession(session.clone())))
                .await?;
            self.reported = Some((session, Instant::now()));
        }
        Ok(())
    }
}

/// The pause before the next attempt.
fn next_pause(pause: Duration, failed: Option<&NotReady>) -> Duration {
    match failed {
        None | Some(NotReady { is_transient: true, .. }) => TRANSIENT_PAUSE,
        Some(_) => (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transient_failure_is_retried_at_once_and_others_ever_later() {
        let failed = |is_transient| NotReady { is_transient, ..NotReady::lasting("") };
        let lasting = failed(false);
        let mut pause = next_pause(PAUSE_MAX, None);
        assert_eq!(pause, TRANSIENT_PAUSE, "the session was open, so the agent wants it back soon");
        for expected in [PAUSE_MIN, PAUSE_MIN * 2, PAUSE_MIN * 4] {
            pause = next_pause(pause, Some(&lasting));
            assert_eq!(pause, expected);
        }
        assert_eq!(next_pause(PAUSE_MAX, Some(&lasting)), PAUSE_MAX);
        assert_eq!(next_pause(PAUSE_MAX, Some(&failed(true))), TRANSIENT_PAUSE);
    }
}
