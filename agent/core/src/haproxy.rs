//! What is known of an HAProxy, and what it can be told.

pub mod file;

use crate::types::{MemberName, Moment};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// How HAProxy's runtime socket answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HaproxyAnswer {
    /// The servers of the pools that we look after.
    Servers(Vec<HaproxyServer>),
    /// No answer that can be used; the text says why.
    Unusable(String),
}

/// What connections a proxy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// To the primary.
    Writes,
    /// To streaming replicas.
    Reads,
}

impl Pool {
    /// The name shown to people and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Reads => "reads",
        }
    }
}

/// A server of one of HAProxy's pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HaproxyServer {
    /// What its proxy takes.
    pub pool: Pool,
    /// Its name in HAProxy's configuration.
    pub name: String,
    /// `host:port` as HAProxy has resolved it.
    pub address: String,
    /// The member at that address; `None` if no member is there.
    pub member: Option<MemberName>,
    /// HAProxy's word: UP, DOWN, NOLB, MAINT, ...
    pub status: String,
    /// Takes new connections.
    pub up: bool,
    /// Sessions open now.
    pub sessions: u64,
}

impl HaproxyServer {
    /// It takes new connections, and its checks have begun to fail: "UP 1/2".
    pub fn is_failing(&self) -> bool {
        self.up && self.status.contains('/')
    }

    /// A person has taken it out of service (`MAINT`, `DRAIN`): that is theirs.
    pub fn is_in_maintenance(&self) -> bool {
        self.status.starts_with("MAINT") || self.status.starts_with("DRAIN")
    }
}

/// What a server is told at HAProxy's runtime socket. HAProxy's own checks go on, and take over when we are away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// To take new connections (`health up`).
    Up,
    /// To take no new ones; open ones go on (`health stopping`). HAProxy's next good check takes it back.
    Wait,
    /// To take none, and open ones are cut (`health down`, `shutdown sessions`).
    Out,
}

impl Wish {
    /// The name shown to people, in JSON and as a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Wait => "wait",
            Self::Out => "out",
        }
    }
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteReport {
    /// In which pool.
    pub pool: Pool,
    /// The server, by its name in HAProxy.
    pub server: String,
    /// The member at its address.
    pub member: MemberName,
    /// What it was to be told.
    pub to: Wish,
    /// How that went.
    pub outcome: RouteOutcome,
}

/// How a change went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteOutcome {
    /// HAProxy took it.
    Done {
        /// From the order.
        took: Duration,
    },
    /// It was not to be done any more; the text says why.
    Withdrawn(String),
    /// HAProxy did not take it; the text says why.
    Failed(String),
    /// It was only said (mode `observe`).
    Observed,
}

/// What became of holding new connections for writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldReport {
    /// They wait, whatever HAProxy's checks say of its servers.
    Begun,
    /// They go on.
    Ended {
        /// Since they began to wait.
        after: Duration,
    },
    /// HAProxy cannot, or did not; the text says why.
    Failed(String),
}

/// What the rules of routing have to remember.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Routing {
    /// When our session with a member's PostgreSQL last ended by itself.
    pub broke: BTreeMap<MemberName, Moment>,
    /// How often it did since the first moment of the present while; see [`Routing::note_broke`].
    pub alarms: BTreeMap<MemberName, (Moment, u32)>,
    /// Since when no member takes writes through HAProxy that could.
    pub unrouted_since: Option<Moment>,
    /// Since when whoever connects for writes would be sent astray, or nowhere.
    pub astray_since: Option<Moment>,
    /// When HAProxy was last told to hold new connections for writes; `None` once it was told to let them go.
    pub held: Option<Moment>,
    /// What each server was told last, and when.
    pub told: BTreeMap<(Pool, String), (Wish, Moment)>,
    /// Why the last change failed, by server.
    pub failing: BTreeMap<(Pool, String), (String, Moment)>,
    /// When HAProxy and the members were last asked out of turn.
    pub probed: Option<Moment>,
}

/// In so long
const WHILE: Duration = Duration::from_secs(2);

/// no more than so many ends of a session are a sign: whoever ends our sessions again and again must not keep everybody
/// from a server that is well. Before it stops, it is two.
const ALARMS: u32 = 4;

impl Routing {
    /// Our session with a member's PostgreSQL ended by itself.
    pub fn note_broke(&mut self, member: MemberName, at: Moment) {
        let (since, count) =
            self.alarms.get(&member).copied().filter(|(since, _)| at.since(*since) < WHILE).unwrap_or((at, 0));
        self.alarms.insert(member.clone(), (since, count.saturating_add(1)));
        if count < ALARMS {
            self.broke.insert(member, at);
        }
    }
}
