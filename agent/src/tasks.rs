//! Supervised tasks: one that ends by an error or a panic is reported as an event and started again.

use crate::watch::Events;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use warden_core::event::Event;

/// Pause before a failed task is started again; doubled with each failure in a row, with jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A task that ran at least this long before it failed starts over with the first pause.
const HEALTHY: Duration = Duration::from_secs(60);

/// Starts and restarts tasks until shutdown.
#[derive(Clone, Debug)]
pub struct Supervisor {
    tracker: TaskTracker,
    shutdown: CancellationToken,
    events: Events,
}

impl Supervisor {
    /// A supervisor that reports to `events` and stops everything on `shutdown`.
    pub fn new(events: Events, shutdown: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), shutdown, events }
    }

    /// Keeps the task that `make` makes running. It should end only when the agent shuts down.
    pub fn keep<F, T>(&self, task: &'static str, make: F)
    where
        F: Fn() -> T + Send + 'static,
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let Self { tracker: _, shutdown, events } = self.clone();
        self.tracker.spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                let started = tokio::time::Instant::now();
                // A task of its own, so that a panic ends it and not its supervisor.
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
                if started.elapsed() >= HEALTHY {
                    pause = FIRST_PAUSE;
                }
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        });
    }

    /// Waits, for at most `limit`, until every task has stopped. Shutdown has to have been asked for.
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
