//! A fact: something believed, where it came from, and when it was true.
//!
//! `at` is the moment at which the question was *asked*, not the one at which the answer came: a slow
//! answer is an old answer. Whatever decides on a fact has to say how old it may be.

use crate::types::Moment;
use alloc::string::String;
use core::fmt;
use core::time::Duration;

/// Where a fact comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// An ordinary read from ZooKeeper: may be stale when the server we are connected to lags.
    ZooKeeper,
    /// A linearizable read: own barrier znode written, then read in the same session.
    Barrier,
    /// Patroni's REST API.
    Patroni,
    /// PostgreSQL, through its unix socket.
    Socket,
    /// PostgreSQL, over TCP.
    Tcp,
    /// Another agent, through its znode.
    Agent,
    /// HAProxy's runtime socket.
    Haproxy,
    /// The file that Patroni holds locked while it lives.
    AliveLock,
    /// This agent itself.
    Own,
}

impl Source {
    /// The name shown to people and in JSON.
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

/// Something believed, with its source and its moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact<T> {
    /// What is believed.
    pub value: T,
    /// Who said so.
    pub source: Source,
    /// When it was asked for.
    pub at: Moment,
}

impl<T> Fact<T> {
    /// A fact from `source`, asked for at `at`.
    pub const fn new(value: T, source: Source, at: Moment) -> Self {
        Self { value, source, at }
    }

    /// How old it is.
    pub const fn age(&self, now: Moment) -> Duration {
        now.since(self.at)
    }

    /// The value, unless it is older than `limit`.
    pub fn fresh(&self, now: Moment, limit: Duration) -> Option<&T> {
        (self.age(now) <= limit).then_some(&self.value)
    }

    /// The same fact about a part of the value.
    pub fn map<U>(&self, part: impl FnOnce(&T) -> U) -> Fact<U> {
        Fact::new(part(&self.value), self.source, self.at)
    }
}

/// What a znode said: nothing there, something readable, or something that makes no sense.
///
/// `Unreadable` is kept apart from `Absent` because "no leader" destroys and "unknown" does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading<T> {
    /// There is no such znode.
    Absent,
    /// Its value.
    Present(T),
    /// It is there, but cannot be understood; the text says why.
    Unreadable(String),
}

impl<T> Reading<T> {
    /// The value, if there is one.
    pub const fn present(&self) -> Option<&T> {
        match self {
            Self::Present(value) => Some(value),
            Self::Absent | Self::Unreadable(_) => None,
        }
    }

    /// Why it cannot be understood, if so.
    pub fn unreadable(&self) -> Option<&str> {
        match self {
            Self::Unreadable(why) => Some(why),
            Self::Absent | Self::Present(_) => None,
        }
    }
}
