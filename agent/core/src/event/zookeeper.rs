//! Events from ZooKeeper: sessions, reads of Patroni's tree, reads of Warden's own tree.

use super::{AgentRecord, Barrier, Znode};
use crate::fact::Reading;
use crate::types::{AgentName, MemberName, SessionId, UnixMillis, Zxid};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// An event from the ZooKeeper client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZooKeeperEvent {
    /// A session began.
    SessionStarted(Session),
    /// The session ended, or the agent no longer trusts it.
    SessionLost {
        /// One of a closed set of short texts; a metric label.
        reason: &'static str,
        /// The error text.
        detail: String,
    },
    /// The agent read the whole tree. The pass confirms every earlier read as of the event's moment.
    TreeRead {
        /// Round trip of one read.
        latency: Duration,
    },
    /// A znode of Patroni's tree was read.
    Znode(Znode),
    /// A linearizable read of the leader znode ended.
    Barrier(Barrier),
    /// An agent's znode, also the agent's own.
    Agent {
        /// The agent's name.
        name: AgentName,
        /// Its contents.
        record: Reading<AgentRecord>,
    },
    /// Another agent runs under this agent's name.
    NameTaken {
        /// The other agent's address.
        by: String,
    },
    /// A fence record in ZooKeeper, `fences/<member>` in Warden's tree.
    FenceRecord {
        /// The member with the fenced server.
        member: MemberName,
        /// Its contents.
        record: Reading<FenceRecord>,
    },
}

/// A ZooKeeper session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The ZooKeeper server, name and address.
    pub server: String,
    /// The requested timeout (Patroni's ttl).
    pub requested: Duration,
    /// The granted timeout.
    pub negotiated: Duration,
}

/// A fence record in ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceRecord {
    /// The member with the fenced server.
    pub member: MemberName,
    /// The rule that ordered it.
    pub rule: Rule,
    /// The reason.
    pub reason: String,
    /// The source of the order: an agent's name, or `operator`.
    pub by: String,
    /// When it was ordered, by the clock of the source.
    pub ordered: UnixMillis,
    /// When it was confirmed; `None` while it is not.
    pub confirmed: Option<UnixMillis>,
    /// The facts at the time of the order, name and value.
    pub facts: Vec<(String, String)>,
    /// The transaction that wrote the record, and its time by ZooKeeper's clock; `None` if the record was not read from
    /// ZooKeeper.
    pub written: Option<(Zxid, UnixMillis)>,
}

/// The rules that fence. Their names are shown in output, and are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Another member holds the leader key.
    Superseded,
    /// The leader key is absent, and Patroni is away.
    Orphaned,
    /// ZooKeeper and Patroni are away, and the lease of the leader key ends.
    Lease,
    /// The local member leads, and an old primary still takes writes.
    Peer,
    /// The operator asked for it.
    Operator,
    /// The server and its Patroni have provably ended: the record of a release.
    Crashed,
}

impl Rule {
    /// All rules, for the parser.
    pub const ALL: [Self; 6] =
        [Self::Superseded, Self::Orphaned, Self::Lease, Self::Peer, Self::Operator, Self::Crashed];

    /// The name in output and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Orphaned => "orphaned",
            Self::Lease => "lease",
            Self::Peer => "peer",
            Self::Operator => "operator",
            Self::Crashed => "crashed",
        }
    }
}
