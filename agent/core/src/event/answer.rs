//! What those that are asked answer: a Patroni, a PostgreSQL, the alive lock.

use crate::types::{Lsn, MemberName, Moment, SystemId, Timeline};
use alloc::string::String;

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
    /// Every role, so that text can be looked up.
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

    /// Whether a member in this role follows another server.
    pub const fn follows(self) -> bool {
        matches!(self, Self::Replica | Self::SyncStandby | Self::QuorumStandby)
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

/// What `GET /health` said.
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
    /// Nobody listens.
    Refused(String),
    /// It lets no session in yet: it is starting, in crash recovery, or a standby that is not consistent yet. One that
    /// was the primary takes writes when that is over.
    Starting(Starting),
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
            Self::Starting(_) => "starting",
            Self::Silent(_) => "silent",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Whether the server takes writes in sessions yet to come, if the answer says anything of that. One that is shutting
    /// down says nothing: a smart shutdown may be a long time of writing.
    pub const fn takes_sessions(&self) -> Option<bool> {
        match self {
            Self::Writable(_) => Some(true),
            Self::InRecovery(_) | Self::Refused(_) | Self::Starting(_) | Self::Gone(_) => Some(false),
            Self::Stopping(_) | Self::Silent(_) | Self::Unknown(_) => None,
        }
    }

    /// Whether the server takes writes, if the answer says anything of that.
    ///
    /// A refusal does not: in a smart shutdown open sessions go on, and a backend can outlive a killed postmaster for as
    /// long as its statement lasts.
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

    /// Whether the answer says for certain that the server takes writes, or is a standby.
    pub const fn says(&self) -> Option<bool> {
        match self {
            Self::Starting(Starting { standby: Some(true), .. }) => Some(false),
            answer => answer.writable(),
        }
    }

    /// It turns sessions away, or nobody listens.
    pub const fn turns_away(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Starting(_) | Self::Stopping(_) | Self::Gone(_))
    }

    /// What the server told, if it did.
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

    /// Why it told nothing, if it did not.
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

/// A server that lets no session in yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Starting {
    /// Its own words.
    pub why: String,
    /// Whether it is a standby: what its own agent read in its data directory (`standby.signal`, `recovery.signal`, the
    /// control file). `None` where nobody looked: the server's own words do not tell.
    pub standby: Option<bool>,
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
    /// When Patroni's session `Patroni heartbeat` last began a query, which it does in each round of its HA loop, also
    /// while ZooKeeper is away. `None` where that cannot be seen. Agents do not tell each other.
    pub heartbeat: Option<Moment>,
    /// The connections that it keeps for superusers; `None` where it did not say. Agents do not tell each other.
    pub superuser_slots: Option<SuperuserSlots>,
}

/// The connections that a server keeps for superusers, and how many agents elsewhere need one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperuserSlots {
    /// `superuser_reserved_connections`.
    pub reserved: u32,
    /// Agents elsewhere that have a superuser's session with it now.
    pub agents: u32,
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
