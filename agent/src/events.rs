//! The bounded queue of events to the loop, and the clock that dates them.

use crate::clock::Clock;
use tokio::sync::mpsc;
use warden_core::event::{Event, Observed};
use warden_core::types::Moment;

/// The sending end of the queue to the loop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Observed>,
    /// The agent's clock.
    pub clock: Clock,
}

/// The loop has ended, because the agent is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("the agent is shutting down")]
pub struct Closed;

impl Events {
    /// A queue to the loop that has the receiver of `sender`.
    pub const fn new(sender: mpsc::Sender<Observed>, clock: Clock) -> Self {
        Self { sender, clock }
    }

    /// Sends an event, and waits while the queue is full. `at` is the time of the question.
    pub async fn send(&self, at: Moment, event: Event) -> Result<(), Closed> {
        self.sender.send(Observed { at, event }).await.map_err(|_| Closed)
    }

    /// Sends an event from a thread outside of the runtime, and blocks while the queue is full.
    pub fn send_blocking(&self, at: Moment, event: Event) -> Result<(), Closed> {
        self.sender.blocking_send(Observed { at, event }).map_err(|_| Closed)
    }
}
