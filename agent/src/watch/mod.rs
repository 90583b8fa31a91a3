//! Turns the world into events: ZooKeeper, each member's Patroni and PostgreSQL, the local alive lock, HAProxy.
//!
//! Wire types stay in here; what leaves is [`warden_core::event`]. Every question has a time limit, and an
//! answer is as old as its question. Nothing in here decides anything.

pub mod alive_lock;
pub mod beside;
mod control_file;
pub mod data_dir;
pub mod gate_check;
pub mod haproxy;
mod heartbeat;
pub mod members;
mod names;
pub mod patroni;
pub mod postgres;
mod question;
#[cfg(test)]
pub(crate) mod real_postgres;
mod session;
pub mod tls;
pub mod znodes;
pub mod zookeeper;

use crate::clock::Clock;
use std::io;
use tokio::sync::mpsc;
use warden_core::event::{Event, Observed};
use warden_core::types::Moment;

/// Where the watchers put what they saw: a bounded queue to the loop, and the clock to date it by.
#[derive(Clone, Debug)]
pub struct Events {
    sender: mpsc::Sender<Observed>,
    /// The agent's clock.
    pub clock: Clock,
}

/// The loop is gone: the agent is shutting down.
#[derive(Debug, thiserror::Error)]
#[error("the agent is shutting down")]
pub struct Closed;

impl Events {
    /// Events for the loop that holds the other end of `sender`.
    pub const fn new(sender: mpsc::Sender<Observed>, clock: Clock) -> Self {
        Self { sender, clock }
    }

    /// Hands over an event that was asked for at `at`; waits while the queue is full.
    pub async fn send(&self, at: Moment, event: Event) -> Result<(), Closed> {
        self.sender.send(Observed { at, event }).await.map_err(|_| Closed)
    }

    /// The same from a thread outside the runtime.
    pub fn send_blocking(&self, at: Moment, event: Event) -> Result<(), Closed> {
        self.sender.blocking_send(Observed { at, event }).map_err(|_| Closed)
    }
}

/// The IO error at the bottom of `error`, if there is one.
pub(crate) fn io_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = current.source();
    }
    None
}

/// The innermost message of `error`: "Connection refused" rather than "error sending request".
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
