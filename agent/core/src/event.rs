//! Everything that can happen: a closed enum, produced by `watch/`, applied to the view.
//!
//! These are Warden's own types. Patroni's JSON, znodes and HAProxy's text are turned into them in
//! `watch/`, where a value nobody has heard of becomes `Unknown` rather than an error.

pub use crate::haproxy::{HaproxyAnswer, HaproxyServer};

use crate::fact::{Reading, Source};
use crate::haproxy::{HoldReport, Pool, RouteReport, Wish};
use crate::layout::{RenderReport, Rendered};
use crate::types::{AgentName, Lsn, MemberName, Moment, SessionId, SystemId, Timeline, UnixMillis, Zxid};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
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
    /// A fence record in ZooKeeper, `/warden/<scope>/fences/<member>`.
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
        /// It worked, or why it did not.
        outcome: Result<(), String>,
    },
    /// What became of telling the local standby to try again to stream.
    Reconnected {
        /// It was told, or why it was not.
        outcome: Result<(), String>,
    },
    /// What became of a change of HAProxy's servers.
    Routed(RouteReport),
    /// What became of holding new connections for writes.
    Hold(HoldReport),
    /// HAProxy's configuration file was read: what it was made of. Unreadable: it is not ours.
    Layout(Reading<Rendered>),
    /// What became of an attempt to write it anew.
    Rendered(RenderReport),
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

/// A znode of Patroni's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Znode {
    /// `leader`.
    Leader(Reading<LeaderKey>),
    /// `config`.
    Config(Reading<ClusterConfig>),
    /// `sync`.
    Sync(Reading<SyncState>),
    /// `status`: the leader's position when it last wrote it.
    Status(Reading<Lsn>),
    /// `history`: the timeline that the last entry ended.
    History(Reading<Timeline>),
    /// `failover`: a switchover or failover was asked for.
    Failover(Reading<FailoverRequest>),
    /// `failsafe`: the members that a leader without ZooKeeper would ask.
    Failsafe(Reading<BTreeSet<MemberName>>),
    /// `initialize`: the cluster's system identifier; empty while it is being bootstrapped.
    Initialize(Reading<SystemId>),
    /// `members/<name>`.
    Member(MemberName, Reading<MemberRecord>),
}

/// The leader znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderKey {
    /// Who holds it.
    pub holder: MemberName,
    /// The transaction that created it.
    pub czxid: Zxid,
    /// The transaction that last changed it.
    pub mzxid: Zxid,
    /// The session that owns it.
    pub owner: SessionId,
    /// When it was created, by ZooKeeper's clock.
    pub created: UnixMillis,
}

/// How a barrier read ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// The leader znode as it was at some moment between `Observed::at` and `finished`.
    Verified {
        /// What it said.
        leader: Reading<LeaderKey>,
        /// Patroni's dynamic configuration, read behind the same barrier: whether the cluster is paused has to be as
        /// certain as who leads it.
        config: Reading<ClusterConfig>,
        /// In which session.
        session: SessionId,
        /// When the answer was there.
        finished: Moment,
    },
    /// Nothing is known; the text says why.
    Unknown(String),
}

/// Patroni's dynamic configuration, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Lease of the leader key.
    pub ttl: Duration,
    /// Longest pause between two runs of Patroni's HA loop.
    pub loop_wait: Duration,
    /// How long Patroni retries ZooKeeper and PostgreSQL before it demotes.
    pub retry_timeout: Duration,
    /// Maintenance mode: Patroni holds still, and so does Warden.
    pub pause: bool,
    /// The leader may go on without ZooKeeper while all members answer it.
    pub failsafe_mode: bool,
    /// Commits wait for a standby.
    pub synchronous_mode: bool,
    /// The whole cluster follows another one.
    pub standby_cluster: bool,
}

/// The last record of a server that was shut down cleanly, as its control file names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownCheckpoint {
    /// Where it begins: every commit is before it.
    pub location: Lsn,
    /// Of the server.
    pub timeline: Timeline,
    /// Of the server.
    pub system_id: SystemId,
}

/// The `sync` znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncState {
    /// The leader that wrote it.
    pub leader: Option<MemberName>,
    /// The synchronous (or quorum) standbys.
    pub standbys: BTreeSet<MemberName>,
    /// Quorum commit: how many of the standbys have to confirm; 0 for plain synchronous mode.
    pub quorum: u32,
}

/// The `failover` znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverRequest {
    /// The leader to leave; absent for a failover without one.
    pub leader: Option<MemberName>,
    /// The member to go to; absent where any will do.
    pub candidate: Option<MemberName>,
    /// Scheduled for later.
    pub scheduled: bool,
}

/// A member's own znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    /// PostgreSQL's host, from `conn_url`.
    pub host: Option<String>,
    /// PostgreSQL's port, from `conn_url`.
    pub port: Option<u16>,
    /// Patroni's REST API, without path, from `api_url`.
    pub api: Option<String>,
    /// What Patroni last wrote there.
    pub role: Role,
    /// What Patroni last wrote there.
    pub state: State,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// Its position.
    pub lsn: Option<Lsn>,
    /// Patroni's version.
    pub version: Option<String>,
}

impl MemberRecord {
    /// Where its PostgreSQL answers: host and port.
    pub fn postgres(&self) -> Option<(String, u16)> {
        self.host.clone().zip(self.port)
    }
}

/// A member's role. `master` (Patroni 3.x) and `primary` (4.x) are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Leads a cluster that follows another one.
    StandbyLeader,
    /// Follows, asynchronously.
    Replica,
    /// Follows; commits wait for it.
    SyncStandby,
    /// Follows; one of those of which commits wait for some.
    QuorumStandby,
    /// Was primary and has been taken out of it.
    Demoted,
    /// Has no data directory yet.
    Uninitialized,
    /// Not said, or not understood.
    Unknown,
}

impl Role {
    /// The name shown to people and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::StandbyLeader => "standby_leader",
            Self::Replica => "replica",
            Self::SyncStandby => "sync_standby",
            Self::QuorumStandby => "quorum_standby",
            Self::Demoted => "demoted",
            Self::Uninitialized => "uninitialized",
            Self::Unknown => "unknown",
        }
    }

    /// Whether a member in this role leads its cluster.
    pub const fn leads(self) -> bool {
        matches!(self, Self::Primary | Self::StandbyLeader)
    }
}

/// What Patroni says its PostgreSQL is doing (`PostgresqlState` in Patroni, plus the replication states).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // each says what it is
pub enum State {
    Initializing,
    InitFailed,
    CustomBootstrap,
    CustomBootstrapFailed,
    CreatingReplica,
    Running,
    Streaming,
    InArchiveRecovery,
    Starting,
    BootstrapStarting,
    StartFailed,
    Restarting,
    RestartFailed,
    Stopping,
    Stopped,
    StopFailed,
    Crashed,
    Unknown,
}

impl State {
    /// Patroni's own words, which are also what is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing new cluster",
            Self::InitFailed => "initdb failed",
            Self::CustomBootstrap => "running custom bootstrap script",
            Self::CustomBootstrapFailed => "custom bootstrap failed",
            Self::CreatingReplica => "creating replica",
            Self::Running => "running",
            Self::Streaming => "streaming",
            Self::InArchiveRecovery => "in archive recovery",
            Self::Starting => "starting",
            Self::BootstrapStarting => "starting after custom bootstrap",
            Self::StartFailed => "start failed",
            Self::Restarting => "restarting",
            Self::RestartFailed => "restart failed",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::StopFailed => "stop failed",
            Self::Crashed => "crashed",
            Self::Unknown => "unknown",
        }
    }

    /// Every state, so that text can be looked up.
    pub const ALL: [Self; 18] = [
        Self::Initializing,
        Self::InitFailed,
        Self::CustomBootstrap,
        Self::CustomBootstrapFailed,
        Self::CreatingReplica,
        Self::Running,
        Self::Streaming,
        Self::InArchiveRecovery,
        Self::Starting,
        Self::BootstrapStarting,
        Self::StartFailed,
        Self::Restarting,
        Self::RestartFailed,
        Self::Stopping,
        Self::Stopped,
        Self::StopFailed,
        Self::Crashed,
        Self::Unknown,
    ];

    /// The state that Patroni calls `text`; [`State::Unknown`] for anything else.
    pub fn from_patroni(text: &str) -> Self {
        Self::ALL.into_iter().find(|state| state.as_str() == text).unwrap_or(Self::Unknown)
    }
}

/// How a Patroni answered. Refused, silent and answering are three different facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatroniAnswer {
    /// It answered, with this.
    Answering(PatroniStatus),
    /// Its host answered that nobody listens.
    Refused(String),
    /// No answer within the limit, or no way to its host.
    Silent(String),
    /// It answered something that cannot be used (not JSON, TLS trouble, another cluster's Patroni).
    Unusable(String),
}

/// What `GET /patroni` said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniStatus {
    /// PostgreSQL's state.
    pub state: State,
    /// The member's role.
    pub role: Role,
    /// From a query that PostgreSQL answered for this very request: out of recovery or not.
    /// `None` where Patroni could not ask it.
    pub writable: Option<bool>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// Written (primary) or replayed (standby) up to here.
    pub lsn: Option<Lsn>,
    /// The server's system identifier.
    pub system_id: Option<SystemId>,
    /// Maintenance mode, as this Patroni sees it.
    pub pause: bool,
    /// The leader goes on without ZooKeeper.
    pub failsafe_active: bool,
    /// No leader key, as this Patroni sees it.
    pub cluster_unlocked: bool,
    /// Whether the HA loop turns, from `GET /liveness`; `None` where that was not answered.
    pub loop_turns: Option<bool>,
    /// Patroni's last contact with ZooKeeper, turned into our clock when the answer was there.
    pub dcs_last_seen: Option<Moment>,
    /// The member's name as its Patroni knows it.
    pub name: Option<MemberName>,
    /// Tagged so that it never becomes synchronous.
    pub nosync: bool,
    /// Patroni's version.
    pub version: Option<String>,
}

/// How a PostgreSQL answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresAnswer {
    /// Out of recovery: takes writes.
    Writable(Server),
    /// In recovery: refuses writes.
    InRecovery(Server),
    /// Nobody listens, or the server turns every session away and has none yet (starting up, recovering).
    Refused(String),
    /// It turns sessions away because it is shutting down: in a smart shutdown open ones go on, and write, for as long
    /// as they like.
    Stopping(String),
    /// Nobody listens on its unix socket, which is the socket that it had: the postmaster is gone. Never said of a
    /// server that is asked over TCP, where another host may answer in its place.
    Gone(String),
    /// No answer within the limit, or no way to its host.
    Silent(String),
    /// It answers, but not to us (authentication, too many connections): nothing is known.
    Unknown(String),
}

impl PostgresAnswer {
    /// The name shown to people and in JSON.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Writable(_) => "writable",
            Self::InRecovery(_) => "in_recovery",
            Self::Refused(_) | Self::Stopping(_) | Self::Gone(_) => "refused",
            Self::Silent(_) => "silent",
            Self::Unknown(_) => "unknown",
        }
    }

    /// It turns sessions away, or nobody listens.
    pub const fn turns_away(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Stopping(_) | Self::Gone(_))
    }

    /// What the server told, if it did.
    pub const fn server(&self) -> Option<&Server> {
        match self {
            Self::Writable(server) | Self::InRecovery(server) => Some(server),
            Self::Refused(_) | Self::Stopping(_) | Self::Gone(_) | Self::Silent(_) | Self::Unknown(_) => None,
        }
    }

    /// Why it told nothing, if it did not.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Writable(_) | Self::InRecovery(_) => None,
            Self::Refused(why) | Self::Stopping(why) | Self::Gone(why) | Self::Silent(why) | Self::Unknown(why) => {
                Some(why)
            }
        }
    }
}

/// What a PostgreSQL server tells about itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Server {
    /// Its timeline; in recovery the one that it receives, and where it has received none that of its last restartpoint.
    pub timeline: Option<Timeline>,
    /// Written (primary) or replayed (standby) up to here.
    pub lsn: Option<Lsn>,
    /// Its system identifier.
    pub system_id: Option<SystemId>,
    /// Its archiver; `None` where it archives nothing or did not say.
    pub archiver: Option<Archiver>,
    /// In recovery, whether a walreceiver runs; `None` where it did not say. Agents do not tell each other.
    pub receives: Option<bool>,
}

/// `pg_stat_archiver`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Archiver {
    /// Segments archived since the statistics were reset.
    pub archived: i64,
    /// Failures since then.
    pub failed: i64,
    /// The segment that fails now: the last attempt failed, and nothing has been archived since.
    pub failing: Option<String>,
}

/// What the alive lock says about the local Patroni.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AliveLock {
    /// Somebody holds it.
    Alive,
    /// Nobody holds it: the process that held it is gone.
    Gone,
    /// Not configured, no such file, replaced; the text says which.
    Unknown(String),
}

impl AliveLock {
    /// The name shown to people and in JSON.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Gone => "gone",
            Self::Unknown(_) => "unknown",
        }
    }
}

/// What an agent says of itself and of its neighbour in its znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its version.
    pub version: String,
    /// Its roles, `node` and `router`.
    pub roles: Vec<String>,
    /// Where its HTTP API answers, `host:port`.
    pub address: String,
    /// The member it stands beside.
    pub member: Option<MemberName>,
    /// Whom it takes for the leader.
    pub leader: Option<MemberName>,
    /// Its neighbour's PostgreSQL, and how old that was when it wrote it.
    pub postgres: Option<(PostgresAnswer, Duration)>,
    /// Its neighbour's alive lock.
    pub alive_lock: Option<AliveLock>,
    /// Its neighbour's HAProxy, and how old that was when it wrote it.
    pub haproxy: Option<(HaproxyAnswer, Duration)>,
}
