//! What the library knows and only logs: the session's id and the timeout that the server granted.
//!
//! Both decide how long a leader key lives, and zookeeper-async 5.0 has no way to ask for them; it does log
//! the server's answer to the connection request. Each epoch has a thread of its own, so a subscriber that
//! is the default on that thread sees exactly this session's lines. It also keeps them out of our log: that
//! line holds the session's password. A test against a real server fails should the line ever change.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber};

/// The server's answer to the connection request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) session: i64,
    pub(super) timeout: Duration,
}

/// Listens on this thread from [`Capture::start`] until it is dropped.
pub(super) struct Capture {
    granted: Arc<Mutex<Option<Granted>>>,
    _default_until_dropped: DefaultGuard,
}

impl Capture {
    /// Starts to listen on the present thread.
    pub(super) fn start() -> Self {
        let granted = Arc::new(Mutex::new(None));
        let guard = tracing::subscriber::set_default(Listener(Arc::clone(&granted)));
        Self { granted, _default_until_dropped: guard }
    }

    /// The newest answer, if there was one.
    pub(super) fn granted(&self) -> Option<Granted> {
        *self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Listener(Arc<Mutex<Option<Granted>>>);

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
        if let Some(granted) = message.0.as_deref().and_then(read) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(granted);
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
