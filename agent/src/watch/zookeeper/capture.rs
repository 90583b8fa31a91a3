//! What the library knows and only logs: the session's id, the timeout that the server granted, and that it
//! connects once more.
//!
//! Id and timeout decide how long a leader key lives, and zookeeper-async 5.0 has no way to ask for them; it
//! does log the server's answer to the connection request. Nor does it tell its listeners that a connection
//! came to nothing before there was a session: it connects again, at once, for ever (measured on a peer that
//! accepts and closes: 8,000 connections in 2 s). Each epoch has a thread of its own, so a subscriber that is
//! the default on that thread sees exactly this session's lines. It also keeps them out of our log: one holds
//! the session's password. Tests against real servers fail should the lines ever change.

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber};

/// What the library says when it begins to connect, and does not say of the attempts within.
const CONNECTS: &str = "Establishing Zk connection";

/// The server's answer to the connection request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) session: i64,
    pub(super) timeout: Duration,
}

/// Listens on this thread from [`Capture::start`] until it is dropped.
pub(super) struct Capture {
    heard: Arc<Heard>,
    _default_until_dropped: DefaultGuard,
}

impl Capture {
    /// Starts to listen on the present thread.
    pub(super) fn start() -> Self {
        let heard = Arc::new(Heard::default());
        let guard = tracing::subscriber::set_default(Listener(Arc::clone(&heard)));
        Self { heard, _default_until_dropped: guard }
    }

    /// The newest answer, if there was one.
    pub(super) fn granted(&self) -> Option<Granted> {
        *self.heard.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the library connects for the second time.
    pub(super) async fn connects_again(&self) {
        self.heard.again.notified().await;
    }
}

/// What the lines have said so far.
#[derive(Default)]
struct Heard {
    granted: Mutex<Option<Granted>>,
    /// How often the library began to connect.
    connects: AtomicUsize,
    /// It was more than once.
    again: Notify,
}

struct Listener(Arc<Heard>);

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("zookeeper_async")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(None);
        event.record(&mut message);
        let Some(line) = message.0 else { return };
        if line == CONNECTS && self.0.connects.fetch_add(1, Ordering::Relaxed) > 0 {
            self.0.again.notify_one();
        }
        if let Some(granted) = read(&line) {
            *self.0.granted.lock().unwrap_or_else(PoisonError::into_inner) = Some(granted);
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

struct Message(Option<String>);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

/// Reads `Connected: ConnectResponse { …, timeout: 30000, session_id: 72057…, … }`.
fn read(line: &str) -> Option<Granted> {
    let fields = line.strip_prefix("Connected: ConnectResponse {")?;
    let number = |name: &str| -> Option<i64> {
        let (_, rest) = fields.split_once(&format!(" {name}: "))?;
        rest.split([',', ' ', '}']).next()?.parse().ok()
    };
    let timeout = u64::try_from(number("timeout")?).ok().map(Duration::from_millis)?;
    Some(Granted { session: number("session_id")?, timeout })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_the_connection_request_is_read_from_its_line() {
        let line = "Connected: ConnectResponse { protocol_version: 0, timeout: 40000, session_id: -42, passwd: [1], read_only: false }";
        assert_eq!(read(line), Some(Granted { session: -42, timeout: Duration::from_secs(40) }));
    }

    #[test]
    fn other_lines_say_nothing() {
        for line in
            ["Establishing Zk connection", "Connected: ", "Connected: ConnectResponse { timeout: x, session_id: 1 }"]
        {
            assert_eq!(read(line), None, "{line}");
        }
    }
}
