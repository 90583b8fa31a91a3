//! A fact: a value with its source and its time.
//!
//! `at` is the moment of the question, not of the answer: a slow answer is an old answer. A rule that uses a fact
//! states the age that it accepts.

use crate::types::Moment;
use alloc::string::String;
use core::fmt;
use core::time::Duration;

/// The source of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// An ordinary read from ZooKeeper. It may be stale if the ZooKeeper server lags.
    ZooKeeper,
    /// A linearizable read: the agent writes its barrier znode, then reads in the same session.
    Barrier,
    /// Patroni's REST API.
    Patroni,
    /// PostgreSQL, by its unix socket.
    Socket,
    /// PostgreSQL, over TCP.
    Tcp,
    /// Another agent, through its znode.
    Agent,
    /// HAProxy's runtime socket.
    Haproxy,
    /// The file that Patroni locks for its lifetime.
    AliveLock,
    /// This agent itself.
    Own,
}

impl Source {
    /// The name in output and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ZooKeeper => "zookeeper",
            Self::Barrier => "barrier",
            Self::Patroni => "patroni",
            Self::Socket => "socket",
            Self::Tcp => "tcp",
            Self::Agent => "agent",
            Self::Haproxy => "haproxy",
            Self::AliveLock => "alive_lock",
            Self::Own => "own",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A value with its source and its moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact<T> {
    /// The value.
    pub value: T,
    /// The source.
    pub source: Source,
    /// The moment of the question.
    pub at: Moment,
}

impl<T> Fact<T> {
    /// A fact from `source`, with the question asked at `at`.
    pub const fn new(value: T, source: Source, at: Moment) -> Self {
        Self { value, source, at }
    }

    /// The time since the question.
    pub const fn age(&self, now: Moment) -> Duration {
        now.since(self.at)
    }

    /// The value, unless it is older than `limit`.
    pub fn fresh(&self, now: Moment, limit: Duration) -> Option<&T> {
        (self.age(now) <= limit).then_some(&self.value)
    }

    /// The same fact for a part of the value.
    pub fn map<U>(&self, part: impl FnOnce(&T) -> U) -> Fact<U> {
        Fact::new(part(&self.value), self.source, self.at)
    }
}

/// The content of a znode.
///
/// `Unreadable` is separate from `Absent`: an absent leader key permits destructive actions, an unknown one does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<T> {
    /// The znode does not exist.
    Absent,
    /// The znode's value.
    Present(T),
    /// The znode exists, and Warden cannot parse it. The text gives the reason.
    Unreadable(String),
}

impl<T> Reading<T> {
    /// The value, if the znode exists and can be parsed.
    pub const fn present(&self) -> Option<&T> {
        match self {
            Self::Present(value) => Some(value),
            Self::Absent | Self::Unreadable(_) => None,
        }
    }

    /// The reason why the znode cannot be parsed.
    pub fn unreadable(&self) -> Option<&str> {
        match self {
            Self::Unreadable(why) => Some(why),
            Self::Absent | Self::Present(_) => None,
        }
    }
}
