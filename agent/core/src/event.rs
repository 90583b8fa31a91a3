//! Everything that can happen: a closed enum, produced by `watch/`, applied to the view.
//!
//! These are Warden's own types. Patroni's JSON, znodes and HAProxy's text are turned into them in
//! `watch/`, where a value nobody has heard of becomes `Unknown` rather than an error.

mod answer;
mod znode;

pub use crate::haproxy::{HaproxyAnswer, HaproxyServer};
pub use answer::{
    AliveLock, Archiver, PatroniAnswer, PatroniStatus, PostgresAnswer, Role, Server, Starting, State, SuperuserSlots,
};
pub use znode::{
    AgentRecord, Barrier, ClusterConfig, FailoverRequest, LeaderKey, MemberRecord, ShutdownCheckpoint, SyncState,
    Znode, holder_text,
};

use crate::fact::{Reading, Source};
use crate::haproxy::file::{RenderReport, Rendered};
use crate::haproxy::{HoldReport, Pool, RouteReport, Wish};
use crate::types::{AgentName, MemberName, Moment, SessionId, UnixMillis, Zxid};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// Something that happened, and when it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// When the question was asked (an answer is as old as its question).
    pub at: Moment,
    /// What happened.
    pub event: Event,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// A ZooKeeper session began.
    SessionStarted(Session),
    /// The ZooKeeper session is gone, or can no longer be trusted.
    SessionLost {
        /// Short, from a closed set, used as a metric label.
        reason: &'static str,
        /// For people.
        detail: String,
    },
    /// One whole pass over the tree: everything read before is confirmed as of `at`.
    TreeRead {
        /// Round trip of one read.
        latency: Duration,
    },
    /// A znode of Patroni's tree was read.
    Znode(Znode),
    /// A linearizable read of the leader znode ended.
    Barrier(Barrier),
    /// Another agent's znode (or our own, read back).
    Agent {
        /// Whose.
        name: AgentName,
        /// What it says.
        record: Reading<AgentRecord>,
    },
    /// Another agent runs under our name, at this address.
    NameTaken {
        /// The other's address.
        by: String,
    },
    /// A member's Patroni was asked.
    Patroni {
        /// Which member's.
        member: MemberName,
        /// What it answered.
        answer: PatroniAnswer,
    },
    /// A member's Patroni answered `GET /liveness`: its HA loop turns, or it is late.
    Liveness {
        /// Which member's.
        member: MemberName,
        /// The loop turns (200), or is late (503).
        turns: bool,
    },
    /// A member's PostgreSQL was asked.
    Postgres {
        /// Which member's.
        member: MemberName,
        /// By the socket or over TCP.
        via: Source,
        /// What it answered.
        answer: PostgresAnswer,
    },
    /// A session with a member's PostgreSQL ended by itself: the first sign that the server goes, or that somebody ended
    /// the session.
    SessionBroke {
        /// Which member's.
        member: MemberName,
    },
    /// The control file of the local PostgreSQL was read while nobody listened on its socket: what it was shut down
    /// with. Absent: it was not shut down cleanly. It is read when a session begins, too, to see that it can be: a
    /// server that runs was not shut down.
    ShutDown(Reading<ShutdownCheckpoint>),
    /// What the alive lock of the local Patroni says.
    AliveLock(AliveLock),
    /// HAProxy's runtime socket was asked.
    Haproxy(HaproxyAnswer),
    /// The session that is kept ready to fence the local PostgreSQL with.
    FenceSession(FenceSession),
    /// What became of a fence that was ordered.
    Fence(FenceReport),
    /// A fence record in ZooKeeper, `fences/<member>` in Warden's tree.
    FenceRecord {
        /// Whose fence.
        member: MemberName,
        /// What it says.
        record: Reading<FenceRecord>,
    },
    /// What became of a release that was ordered.
    Release(ReleaseReport),
    /// What became of a nudge.
    Nudged {
        /// How it went.
        outcome: Outcome,
    },
    /// What became of telling the local standby to try again to stream.
    Reconnected {
        /// How it went.
        outcome: Outcome,
    },
    /// What became of a change of HAProxy's servers.
    Routed(RouteReport),
    /// What became of holding new connections for writes.
    Hold(HoldReport),
    /// HAProxy's configuration file was read: what it was made of. Unreadable: it is not ours.
    Layout(Reading<Rendered>),
    /// What became of an attempt to write it anew.
    Rendered(RenderReport),
    /// What was kept on disk of the term in which the agent last ran; read once, at the start.
    Remembered(TermMemory),
    /// Whether the gate could ask a member: its login was tried anew, as `warden gate` would.
    GateChecked {
        /// Which member.
        member: MemberName,
        /// It could, or why it could not.
        outcome: Result<(), String>,
    },
    /// An action was started.
    Started(Started),
    /// One of the agent's own tasks failed; it is started again.
    TaskFailed {
        /// Which.
        task: &'static str,
        /// Why.
        error: String,
    },
}

/// What an agent keeps on disk of its member's term, so that a restart of the agent does not forget it. It counts only in
/// the same term and the same boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TermMemory {
    /// The transaction that created the leader key of that term.
    pub czxid: Zxid,
    /// Patroni answered in that term.
    pub answered: bool,
    /// The alive lock was seen held, while Patroni answered, in that term.
    pub lock_was_held: bool,
}

/// An action whose start the view has to remember, so that it is not started again at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// A barrier read was asked for.
    Verification,
    /// This was handed over to be written to our own znode.
    Announcement(Box<AgentRecord>),
    /// A fence was ordered.
    Fence(MemberName),
    /// Our own fence record was removed.
    CloseFence,
    /// This was handed over to be kept on disk.
    Keep(TermMemory),
    /// The local PostgreSQL was asked out of turn.
    Probe,
    /// HAProxy and the members were asked out of turn.
    Look,
    /// HAProxy's configuration is written anew.
    Render,
    /// HAProxy was told to hold new connections for writes, or to let them go on.
    Hold {
        /// To hold them.
        on: bool,
    },
    /// A change of HAProxy's servers was ordered.
    Route {
        /// In which pool.
        pool: Pool,
        /// The server, by its name in HAProxy.
        server: String,
        /// What it is told.
        to: Wish,
    },
    /// A release was ordered.
    Release,
    /// A nudge was ordered.
    Nudge,
    /// The local standby is told to try again to stream.
    Reconnect,
}

/// The session that is kept ready to fence the local PostgreSQL with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceSession {
    /// Warm: a fence needs no more than one statement on it.
    Ready,
    /// Not there; the text says why. A fence has to connect first.
    Lost(String),
}

/// What became of a fence that was ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceReport {
    /// Whose fence.
    pub member: MemberName,
    /// By which rule.
    pub rule: Rule,
    /// How it went.
    pub outcome: FenceOutcome,
}

/// How a fence went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceOutcome {
    /// A new session was refused, or the server is in recovery.
    Confirmed {
        /// Which step of the ladder did it.
        by: &'static str,
        /// From the order to the confirmation.
        took: Duration,
    },
    /// The order stands in front of a server that is silent: the first thing it does when it wakes.
    Waiting,
    /// Looked at again right before acting, it was no longer right; the text says what had changed.
    Withdrawn(String),
    /// It did not work; the text says why. It is ordered again while the reason lasts.
    Failed(String),
    /// It was only said what would have been done.
    Observed,
}

impl FenceOutcome {
    /// The name in metrics and in the audit trail.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Confirmed { .. } => "confirmed",
            Self::Waiting => "waiting",
            Self::Withdrawn(_) => "withdrawn",
            Self::Failed(_) => "failed",
            Self::Observed => "observed",
        }
    }
}

/// A fence record in ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceRecord {
    /// Whose fence.
    pub member: MemberName,
    /// By which rule.
    pub rule: Rule,
    /// Why, in words.
    pub reason: String,
    /// Who ordered it: an agent's name, or `operator`.
    pub by: String,
    /// When it was ordered, by the clock of who ordered it.
    pub ordered: UnixMillis,
    /// When it was confirmed; `None` while it is not.
    pub confirmed: Option<UnixMillis>,
    /// What was believed when it was ordered, name and value.
    pub facts: Vec<(String, String)>,
    /// The transaction that wrote it, and when that was by ZooKeeper's clock; `None` where it was not read from there.
    pub written: Option<(Zxid, UnixMillis)>,
}

/// Why a server is fenced. The names are shown to people and used as metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Another member holds the leader key.
    Superseded,
    /// Nobody holds it, and Patroni is away.
    Orphaned,
    /// ZooKeeper and Patroni are away, and the key may soon be somebody else's.
    Lease,
    /// We lead, and an old primary still takes writes.
    Peer,
    /// A person asked for it.
    Operator,
    /// The server and its Patroni are proved gone: what is left to record of a crashed leader.
    Crashed,
}

impl Rule {
    /// Every rule, so that text can be looked up.
    pub const ALL: [Self; 6] =
        [Self::Superseded, Self::Orphaned, Self::Lease, Self::Peer, Self::Operator, Self::Crashed];

    /// The name shown to people and in JSON.
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

/// What became of a release that was ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseReport {
    /// The leader key is deleted.
    Done {
        /// From the order to the deletion.
        took: Duration,
    },
    /// Looked at again right before acting, it was no longer right; the text says what had changed.
    Withdrawn(String),
    /// It did not work; the text says why.
    Failed(String),
    /// It was only said what would have been done.
    Observed,
}

/// How something small went that was to be done once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It worked.
    Done,
    /// It did not; the text says why.
    Failed(String),
    /// It was only said what would have been done.
    Observed,
}

impl Outcome {
    /// The name in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Observed => "observed",
        }
    }
}

/// A ZooKeeper session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The server it is connected to, name and address.
    pub server: String,
    /// The timeout we asked for (Patroni's ttl).
    pub requested: Duration,
    /// The timeout the server granted.
    pub negotiated: Duration,
}
