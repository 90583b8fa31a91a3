//! The answers of a Patroni, a PostgreSQL and the alive lock.

use crate::types::{Lsn, MemberName, Moment, SystemId, Timeline};
use alloc::string::String;

/// A member's role. `master` (Patroni 3.x) and `primary` (4.x) are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The leader, which takes writes.
    Primary,
    /// The leader of a standby cluster.
    StandbyLeader,
    /// An asynchronous standby.
    Replica,
    /// A synchronous standby.
    SyncStandby,
    /// A standby in quorum commit: commits wait for some of them.
    QuorumStandby,
    /// A former primary that Patroni demoted.
    Demoted,
    /// A member without a data directory.
    Uninitialized,
    /// Unknown to Warden, or not reported.
    Unknown,
}

impl Role {
    /// All roles, for the parser.
    pub const ALL: [Self; 8] = [
        Self::Primary,
        Self::StandbyLeader,
        Self::Replica,
        Self::SyncStandby,
        Self::QuorumStandby,
        Self::Demoted,
        Self::Uninitialized,
        Self::Unknown,
    ];

    /// The name in output and in JSON.
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

    /// Whether a member in this role is a standby of the cluster's leader.
    pub const fn follows(self) -> bool {
        matches!(self, Self::Replica | Self::SyncStandby | Self::QuorumStandby)
    }

    /// Whether a member in this role leads its cluster.
    pub const fn leads(self) -> bool {
        matches!(self, Self::Primary | Self::StandbyLeader)
    }
}

/// PostgreSQL's state as Patroni reports it (`PostgresqlState` in Patroni, plus the replication states).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // each variant names its state
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
    /// Patroni's text, which Warden shows unchanged.
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

    /// All states, for the parser.
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

    /// The state with Patroni's text `text`; [`State::Unknown`] for any other text.
    pub fn from_patroni(text: &str) -> Self {
        Self::ALL.into_iter().find(|state| state.as_str() == text).unwrap_or(Self::Unknown)
    }
}

/// How a Patroni answered. Refused, silent and answering are three separate facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatroniAnswer {
    /// It answered `GET /health`.
    Answering(PatroniStatus),
    /// Its host refused the connection: the port has no listener.
    Refused(String),
    /// The question timed out, or its host cannot be reached.
    Silent(String),
    /// Warden cannot use its answer: not JSON, a TLS error, or the Patroni of another cluster.
    Unusable(String),
    /// The Patroni of another member of the cluster answered. The text names that member.
    Anothers(String),
}

/// The content of Patroni's `GET /health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatroniStatus {
    /// PostgreSQL's state.
    pub state: State,
    /// The member's role.
    pub role: Role,
    /// Whether PostgreSQL is out of recovery, by a query that Patroni made for this request. `None` if Patroni could
    /// not query it.
    pub writable: Option<bool>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// The position up to which the primary has written, or the standby has replayed.
    pub lsn: Option<Lsn>,
    /// The server's system identifier.
    pub system_id: Option<SystemId>,
    /// Maintenance mode, as this Patroni reports it.
    pub pause: bool,
    /// Failsafe mode is active: the leader continues without ZooKeeper.
    pub failsafe_active: bool,
    /// The leader key is absent, as this Patroni reports it.
    pub cluster_unlocked: bool,
    /// Patroni's last contact with ZooKeeper, converted to the agent's clock at the arrival of the answer.
    pub dcs_last_seen: Option<Moment>,
    /// The member's name as its Patroni knows it.
    pub name: Option<MemberName>,
    /// Its tag `nosync`: Patroni never makes it a synchronous standby.
    pub nosync: bool,
    /// Patroni's version.
    pub version: Option<String>,
}

/// How a PostgreSQL answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostgresAnswer {
    /// Out of recovery: it takes writes.
    Writable(Server),
    /// In recovery: it refuses writes.
    InRecovery(Server),
    /// Its port or socket has no listener.
    Refused(String),
    /// It accepts no session yet: it is starting, in crash recovery, or a standby before consistency. A former primary
    /// takes writes once it is up.
    Starting(Starting),
    /// It refuses sessions because it is shutting down. In a smart shutdown, open sessions continue to write, without a
    /// time limit.
    Stopping(String),
    /// Its unix socket has no listener: the postmaster has ended. Never reported over TCP, where another host may
    /// answer at the address.
    Gone(String),
    /// The question timed out, or its host cannot be reached.
    Silent(String),
    /// It answers, but rejects the agent's login (authentication, too many connections). Its role is unknown.
    Unknown(String),
}

impl PostgresAnswer {
    /// The name in output and in JSON.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Writable(_) => "writable",
            Self::InRecovery(_) => "in_recovery",
            Self::Refused(_) | Self::Stopping(_) | Self::Gone(_) => "refused",
            Self::Starting(_) => "starting",
            Self::Silent(_) => "silent",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Whether the server takes writes in new sessions, if the answer shows it. An answer during shutdown does not: in
    /// a smart shutdown open sessions may write for a long time.
    pub const fn writable_for_new_sessions(&self) -> Option<bool> {
        match self {
            Self::Writable(_) => Some(true),
            Self::InRecovery(_) | Self::Refused(_) | Self::Starting(_) | Self::Gone(_) => Some(false),
            Self::Stopping(_) | Self::Silent(_) | Self::Unknown(_) => None,
        }
    }

    /// Whether the server takes writes, if the answer shows it.
    ///
    /// A refusal shows nothing. In a smart shutdown open sessions continue, and a backend may outlive a killed
    /// postmaster for as long as its statement lasts.
    pub const fn writable(&self) -> Option<bool> {
        match self {
            Self::Writable(_) => Some(true),
            Self::InRecovery(_) => Some(false),
            Self::Refused(_)
            | Self::Starting(_)
            | Self::Stopping(_)
            | Self::Gone(_)
            | Self::Silent(_)
            | Self::Unknown(_) => None,
        }
    }

    /// `Some(true)` if the answer proves that the server takes writes, `Some(false)` if it proves a standby.
    pub const fn writable_or_standby(&self) -> Option<bool> {
        match self {
            Self::Starting(Starting { standby: Some(true), .. }) => Some(false),
            answer => answer.writable(),
        }
    }

    /// Whether the server refuses sessions, or its port has no listener.
    pub const fn refuses_sessions(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Starting(_) | Self::Stopping(_) | Self::Gone(_))
    }

    /// The server's data, if the agent had a session.
    pub const fn server(&self) -> Option<&Server> {
        match self {
            Self::Writable(server) | Self::InRecovery(server) => Some(server),
            Self::Refused(_)
            | Self::Starting(_)
            | Self::Stopping(_)
            | Self::Gone(_)
            | Self::Silent(_)
            | Self::Unknown(_) => None,
        }
    }

    /// The reason why the agent had no session.
    pub fn detail(&self) -> Option<&str> {
        match self {
            Self::Writable(_) | Self::InRecovery(_) => None,
            Self::Refused(why) | Self::Stopping(why) | Self::Gone(why) | Self::Silent(why) | Self::Unknown(why) => {
                Some(why)
            }
            Self::Starting(Starting { why, .. }) => Some(why),
        }
    }
}

/// A server that accepts no session yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Starting {
    /// The server's error message.
    pub why: String,
    /// Whether it is a standby, as its own agent reads in its data directory (`standby.signal`, `recovery.signal`, the
    /// control file). `None` if its agent has not looked: the server's message does not tell.
    pub standby: Option<bool>,
}

/// The data that a PostgreSQL server reports about itself.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Server {
    /// Its timeline. In recovery: the timeline that it receives, or that of its last restartpoint if it has received
    /// none.
    pub timeline: Option<Timeline>,
    /// The position up to which the primary has written, or the standby has replayed.
    pub lsn: Option<Lsn>,
    /// Its system identifier.
    pub system_id: Option<SystemId>,
    /// Its archiver; `None` if archiving is off or the data is missing.
    pub archiver: Option<Archiver>,
    /// In recovery, whether a walreceiver runs; `None` if unknown. Agent records do not carry it.
    pub receives: Option<bool>,
    /// When Patroni's session `Patroni heartbeat` last began a query. It begins one in each round of Patroni's HA loop,
    /// also while ZooKeeper is away. `None` if the agent cannot see it. Agent records do not carry it.
    pub heartbeat: Option<Moment>,
    /// The connections that it reserves for superusers; `None` if unknown. Agent records do not carry it.
    pub superuser_slots: Option<SuperuserSlots>,
}

/// The connections that a server reserves for superusers, and the number of remote agents that need one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperuserSlots {
    /// `superuser_reserved_connections`.
    pub reserved: u32,
    /// Remote agents that have a superuser session with it now.
    pub agents: u32,
}

/// `pg_stat_archiver`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Archiver {
    /// Segments archived since the statistics were reset.
    pub archived: i64,
    /// Failures since the statistics were reset.
    pub failed: i64,
    /// The segment that fails now: the last attempt failed, and no segment has been archived since.
    pub failing: Option<String>,
}

/// The state of the local Patroni's alive lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AliveLock {
    /// A process holds it.
    Alive,
    /// It is free: the process that held it has ended.
    Gone,
    /// Not configured, missing, or replaced. The text gives the reason.
    Unknown(String),
}

impl AliveLock {
    /// The name in output and in JSON.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Gone => "gone",
            Self::Unknown(_) => "unknown",
        }
    }
}
