//! Supervised tasks. The supervisor reports a task that ends as an event, and starts it again.

use crate::events::Events;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warden_core::event::Event;

/// The first pause before a restart, with jitter. It doubles with each failure in a row, up to [`RESTART_PAUSE_MAX`].
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause before a restart.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);

/// The pause returns to [`RESTART_PAUSE_MIN`] if the task ran this long before it failed.
const HEALTHY_RUN_MIN: Duration = Duration::from_secs(60);

const _: () = assert!(RESTART_PAUSE_MIN.as_millis() < RESTART_PAUSE_MAX.as_millis());

/// Starts and restarts tasks until shutdown.
#[derive(Clone, Debug)]
pub struct Supervisor {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    events: Events,
}

impl Supervisor {
    /// A supervisor that reports to `events` and stops all tasks on `shutdown`.
    pub fn new(events: Events, shutdown: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), shutdown, events }
    }

    /// Keeps the task that `make` returns running. The task should end only when the agent shuts down.
    pub fn keep<F, T>(&self, task: &'static str, make: F)
    where
        F: Fn() -> T + Send + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let Self { tracker: _, shutdown, events } = self.clone();
        self.tracker.spawn(async move {
            let mut pause = RESTART_PAUSE_MIN;
            loop {
                let started = tokio::time::Instant::now();
                // A task of its own, so that a panic does not end the supervisor.
                let mut running = tokio::spawn(make());
                let error = tokio::select! {
                    () = shutdown.cancelled() => {
                        running.abort();
                        return;
                    }
                    end = &mut running => match end {
                        Ok(Ok(())) => "it ended".to_owned(),
                        Ok(Err(error)) => format!("{error:#}"),
                        Err(error) => format!("{error}"),
                    },
                };
                if events.send(events.clock.now(), Event::TaskFailed { task, error }).await.is_err() {
                    return;
                }
                if started.elapsed() >= HEALTHY_RUN_MIN {
                    pause = RESTART_PAUSE_MIN;
                }
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
                }
                pause = (pause * 2).min(RESTART_PAUSE_MAX);
            }
        });
    }

    /// Waits until every task has stopped, for at most `limit`. Returns `false` if the limit has passed. Call it after
    /// the shutdown was requested.
    pub async fn stopped(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::mpsc;

    #[tokio::test]
    async fn a_task_that_fails_or_panics_is_reported_and_started_again() {
        let (sender, mut events) = mpsc::channel(8);
        let shutdown = CancellationToken::new();
        let supervisor = Supervisor::new(Events::new(sender, Clock::start()), shutdown.clone());
        let runs = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&runs);
        supervisor.keep("flaky", move || {
            let run = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                match run {
                    0 => anyhow::bail!("no luck"),
                    1 => panic!("worse"),
                    _ => std::future::pending().await,
                }
            }
        });
        for expected in ["no luck", "panicked"] {
            match events.recv().await.unwrap().event {
                Event::TaskFailed { task: "flaky", error } => assert!(error.contains(expected), "{error}"),
                other => panic!("{other:?}"),
            }
        }
        while runs.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        shutdown.cancel();
        assert!(supervisor.stopped(Duration::from_secs(1)).await);
    }
}
