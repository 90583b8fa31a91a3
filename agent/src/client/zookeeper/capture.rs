//! Captures from the library's log: the session's id, the granted timeout, and a repeated connection attempt.
//!
//! The agent needs id and timeout to know how long a leader key lives. No function of zookeeper-async 5.0 returns
//! them, but it logs the server's answer to the connection request. It also does not tell its listeners that a
//! connection failed before the session began. It connects again, at once and forever: 8,000 connections in 2 s, as
//! measured with a peer that accepts and closes.
//!
//! Each epoch has its own thread, so a subscriber for that thread sees exactly the lines of its session. The subscriber
//! also keeps them out of the agent's log, because one contains the session's password. Tests against real servers fail
//! if the lines change.

use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber};

/// The library logs this when it begins to connect, and not for its attempts within.
const CONNECTING_LINE: &str = "Establishing Zk connection";

/// The server's answer to the connection request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) session: i64,
    pub(super) timeout: Duration,
}

/// Captures the lines of this thread from [`Capture::start`] until it is dropped.
pub(super) struct Capture {
    captured: Arc<Captured>,
    _default_until_dropped: DefaultGuard,
}

impl Capture {
    /// Starts on the present thread.
    pub(super) fn start() -> Self {
        let captured = Arc::new(Captured::default());
        let guard = tracing::subscriber::set_default(Listener(Arc::clone(&captured)));
        Self { captured, _default_until_dropped: guard }
    }

    /// The newest answer, if the library has logged one.
    pub(super) fn granted(&self) -> Option<Granted> {
        *self.captured.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the library connects for the second time.
    pub(super) async fn connects_again(&self) {
        self.captured.again.notified().await;
    }
}

/// The content of the lines so far.
#[derive(Default)]
struct Captured {
    granted: Mutex<Option<Granted>>,
    /// How often the library began to connect.
    connects: AtomicUsize,
    /// Notified from the second time on.
    again: Notify,
}

struct Listener(Arc<Captured>);

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
        if line == CONNECTING_LINE && self.0.connects.fetch_add(1, Ordering::Relaxed) > 0 {
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
        let line = "Connected: ConnectResponse { protocol_version: 0, timeout: 40000, session_id: -42, passwd: [1], \
                    read_only: false }";
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
