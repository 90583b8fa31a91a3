//! The receiver of the client's reports.

use super::{End, EndReason, Update, decode};
use crate::events::Events;
use tokio::sync::mpsc;

/// The receiver of the client's reports.
#[derive(Clone, Debug)]
pub enum Reports {
    /// The loop, which gets core's events. The epoch's thread decodes the znodes.
    Events(Events),
    /// A queue of raw updates: for the gate, and for tests of the client.
    Raw(mpsc::Sender<Update>),
}

impl Reports {
    /// Reports an update, and waits while the queue is full. Fails if the receiver is closed: the agent is shutting
    /// down.
    pub(super) async fn send(&self, update: Update) -> Result<(), End> {
        let sent = match self {
            Self::Events(events) => {
                let observed = decode::observed(update, &events.clock);
                events.send(observed.at, observed.event).await.is_ok()
            }
            Self::Raw(updates) => updates.send(update).await.is_ok(),
        };
        if sent { Ok(()) } else { Err(End::new(EndReason::Shutdown, "the agent is shutting down")) }
    }
}
