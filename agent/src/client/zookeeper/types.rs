//! The client's own types: its reports, znodes as they were read, and the arguments and results of requests.

use std::time::{Duration, Instant};
use warden_core::rules::guard::{KeyCondition, KeyIs};

/// A report of the client. `at` is the time of the request.
#[derive(Debug)]
pub enum Update {
    /// A session began.
    Connected {
        /// The server, `name:port (address)`.
        server: String,
        /// The session's id.
        session: i64,
        /// The timeout that the agent requested.
        requested: Duration,
        /// The timeout that the server granted.
        negotiated: Duration,
        /// When the connection was there.
        at: Instant,
    },
    /// The session is over, or the client could not open one.
    Lost {
        /// The cause, as a metric label.
        reason: EndReason,
        /// The cause, for people.
        detail: String,
        /// When the epoch ended.
        at: Instant,
    },
    /// A znode: once in each epoch, and each time it has changed.
    Znode {
        /// The znode's kind and name.
        node: Node,
        /// Its content; `None` if it does not exist.
        value: Option<Znode>,
        /// When it was read or, for an agent's znode at the start of an epoch, when it was written.
        at: Instant,
    },
    /// The client has read the whole tree.
    Synced {
        /// When the pass began.
        at: Instant,
        /// The round trip of its first read.
        latency: Duration,
    },
    /// Another agent uses this agent's name.
    NameTaken {
        /// The other agent's address.
        by: String,
        /// When the agent found it.
        at: Instant,
    },
}

/// The znodes that the client watches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // named after Patroni's znodes
pub enum Node {
    Leader,
    Config,
    Sync,
    Status,
    History,
    Failover,
    Failsafe,
    Initialize,
    Member(String),
    /// In Warden's tree: another agent, or this one.
    Agent(String),
    /// In Warden's tree: a member's fence record.
    Fence(String),
}

/// A znode as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// Its data.
    pub data: Vec<u8>,
    /// The transaction that created it.
    pub czxid: i64,
    /// The transaction that last changed it.
    pub mzxid: i64,
    /// Number of changes since it was created.
    pub version: i32,
    /// The session that owns it; 0 if it is not ephemeral.
    pub owner: i64,
    /// When it was created, milliseconds since 1970 by ZooKeeper's clock.
    pub ctime_ms: i64,
    /// When it was last changed, milliseconds since 1970 by ZooKeeper's clock.
    pub mtime_ms: i64,
}

/// The result of a linearizable read of the leader znode.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant)] // one at a time, on its way from the epoch to the caller
pub enum Barrier {
    /// The znodes had this content at one moment between `started` and `finished`.
    Verified {
        /// The leader znode; `None` if it does not exist.
        leader: Option<Znode>,
        /// Patroni's dynamic configuration, read together with it.
        config: Option<Znode>,
        /// Patroni's `sync` znode, read together with it.
        sync: Option<Znode>,
        /// The transaction of the write that made the barrier.
        zxid: i64,
        /// The session of the read.
        session: i64,
        /// When the caller requested it.
        started: Instant,
        /// When the answer arrived.
        finished: Instant,
    },
    /// Nothing is known.
    Unknown {
        /// The cause.
        why: String,
    },
}

/// Why an epoch ended, or did not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // see `metric_label`
pub enum EndReason {
    Unresolvable,
    Unreachable,
    ConnectTimeout,
    AuthFailed,
    ChrootMissing,
    Disconnected,
    RequestTimeout,
    RequestFailed,
    SettingsChanged,
    Crashed,
    Shutdown,
}

impl EndReason {
    /// A stable metric label.
    pub const fn metric_label(self) -> &'static str {
        match self {
            Self::Unresolvable => "unresolvable",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::AuthFailed => "auth_failed",
            Self::ChrootMissing => "chroot_missing",
            Self::Disconnected => "disconnected",
            Self::RequestTimeout => "request_timeout",
            Self::RequestFailed => "request_failed",
            Self::SettingsChanged => "settings_changed",
            Self::Crashed => "crashed",
            Self::Shutdown => "shutdown",
        }
    }

    /// Whether the connection still works when an epoch ends for this reason.
    pub(super) const fn leaves_connection_usable(self) -> bool {
        matches!(self, Self::SettingsChanged | Self::Shutdown | Self::AuthFailed | Self::ChrootMissing)
    }
}

/// The end of an epoch: its reason, and a detail for people.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) reason: EndReason,
    pub(super) detail: String,
}

impl End {
    pub(super) fn new(reason: EndReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// The state that the leader znode must have for the agent to delete it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedKey {
    /// The holder's name.
    pub holder: String,
    /// The transaction that created it.
    pub czxid: i64,
    /// The session that owns it.
    pub owner: i64,
    /// The agent's session of the barrier read. In another session the read proves nothing.
    pub session: i64,
    /// The agent deletes nothing after this: its proof may be out of date.
    pub not_after: Instant,
}

impl ExpectedKey {
    /// The state that `condition` demands, valid until `not_after`. The error says what the condition lacks.
    pub fn of(condition: &KeyCondition, not_after: Instant) -> Result<Self, String> {
        let KeyIs::TheOneOf { member, czxid, owner } = &condition.key else {
            return Err("the condition names no key".to_owned());
        };
        let session = condition.session.0;
        Ok(Self { holder: member.to_string(), czxid: czxid.0, owner: owner.0, session, not_after })
    }
}

/// The present state that a write of a record requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Any record, or none.
    Anything,
    /// No record.
    Nothing,
    /// A record of this version.
    Version(i32),
}

/// The znodes that [`super::Handle::replace`] may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A member's fence record in the tree of Warden 0.1.
    OldFence(String),
    /// The mark that several clusters use that tree.
    OldShared,
    /// A member's fence record in the present tree.
    Fence(String),
    /// A copied entry of the present audit trail, by its name.
    Audit(String),
    /// The upgrade's own state.
    Upgrade,
}

/// The result of a release of the leader key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// The agent deleted the key.
    Done,
    /// The key no longer had the demanded state; the text describes it.
    Changed(String),
    /// The agent could not read or delete the key; the text says why.
    Failed(String),
}
