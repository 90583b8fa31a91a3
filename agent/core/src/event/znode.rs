//! The content of ZooKeeper: Patroni's znodes, and those of the agents.

use super::{AliveLock, HaproxyAnswer, PatroniAnswer, PostgresAnswer, Role, State};
use crate::fact::Reading;
use crate::types::{Lsn, MemberName, Moment, SessionId, SystemId, Timeline, UnixMillis, Zxid};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// A znode of Patroni's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Znode {
    /// `leader`.
    Leader(Reading<LeaderKey>),
    /// `config`.
    Config(Reading<ClusterConfig>),
    /// `sync`.
    Sync(Reading<SyncState>),
    /// `status`: the leader's position at its last update.
    Status(Reading<Lsn>),
    /// `history`: the timeline that ended with the last entry.
    History(Reading<Timeline>),
    /// `failover`: the request for a switchover or failover.
    Failover(Reading<FailoverRequest>),
    /// `failsafe`: the members that the leader asks while ZooKeeper is away.
    Failsafe(Reading<BTreeSet<MemberName>>),
    /// `initialize`: the cluster's system identifier. The znode is empty during the bootstrap.
    Initialize(Reading<SystemId>),
    /// `members/<name>`.
    Member(MemberName, Reading<MemberRecord>),
}

/// The leader znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderKey {
    /// The holder.
    pub holder: MemberName,
    /// The transaction that created it.
    pub czxid: Zxid,
    /// The transaction that last changed it.
    pub mzxid: Zxid,
    /// The session that owns it.
    pub owner: SessionId,
    /// The creation time by ZooKeeper's clock.
    pub created: UnixMillis,
}

/// The leader's name in a reading, for log lines: the holder, `nobody` or `unreadable`.
pub fn holder_text(reading: &Reading<LeaderKey>) -> &str {
    match reading {
        Reading::Present(key) => key.holder.as_str(),
        Reading::Absent => "nobody",
        Reading::Unreadable(_) => "unreadable",
    }
}

/// The result of a barrier read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// The leader znode as it was at some moment between `Observed::at` and `finished`.
    Verified {
        /// The leader key.
        leader: Reading<LeaderKey>,
        /// Patroni's dynamic configuration, read behind the same barrier. The pause has to be as certain as the leader.
        config: Reading<ClusterConfig>,
        /// Patroni's `sync` znode, read behind the same barrier. A release depends on the synchronous standbys.
        sync: Reading<SyncState>,
        /// The session of the read.
        session: SessionId,
        /// The transaction of the barrier write. The read includes every transaction up to it.
        zxid: Zxid,
        /// When the answer arrived.
        finished: Moment,
    },
    /// The read failed. The text gives the reason.
    Unknown(String),
}

/// The keys of Patroni's dynamic configuration that Warden uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// The lease of the leader key.
    pub ttl: Duration,
    /// The longest pause between two rounds of Patroni's HA loop.
    pub loop_wait: Duration,
    /// How long Patroni retries ZooKeeper and PostgreSQL before it demotes the server.
    pub retry_timeout: Duration,
    /// Maintenance mode. Patroni does not fail over, and Warden does not act.
    pub pause: bool,
    /// The leader may continue without ZooKeeper while all members answer it.
    pub failsafe_mode: bool,
    /// Commits wait for a standby.
    pub synchronous_mode: bool,
    /// The cluster is a standby cluster.
    pub standby_cluster: bool,
    /// PostgreSQL's `max_connections`, for all members.
    pub max_connections: u32,
}

/// The shutdown checkpoint of a server that was shut down cleanly, from its control file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownCheckpoint {
    /// The record's position. Every commit is before it.
    pub location: Lsn,
    /// The server's.
    pub timeline: Timeline,
    /// The server's.
    pub system_id: SystemId,
}

/// The `sync` znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncState {
    /// The leader that wrote the znode.
    pub leader: Option<MemberName>,
    /// The synchronous (or quorum) standbys.
    pub standbys: BTreeSet<MemberName>,
    /// Quorum commit: the number of standbys that have to confirm. 0 in plain synchronous mode.
    pub quorum: u32,
}

/// The `failover` znode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailoverRequest {
    /// The present leader; `None` for a failover without one.
    pub leader: Option<MemberName>,
    /// The candidate; `None` if Patroni chooses.
    pub candidate: Option<MemberName>,
    /// The request is scheduled for a later time.
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
    /// As Patroni last wrote it.
    pub role: Role,
    /// As Patroni last wrote it.
    pub state: State,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// Its position.
    pub lsn: Option<Lsn>,
    /// Patroni's version.
    pub version: Option<String>,
    /// Its tag `noloadbalance`: it takes no reads.
    pub noloadbalance: bool,
}

impl MemberRecord {
    /// The address of its PostgreSQL: host and port.
    pub fn postgres(&self) -> Option<(String, u16)> {
        self.host.clone().zip(self.port)
    }
}

/// The content of an agent's znode: the agent and its local node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its version.
    pub version: String,
    /// Its roles, `node` and `router`.
    pub roles: Vec<String>,
    /// The address of its HTTP API, `host:port`.
    pub address: String,
    /// The local member.
    pub member: Option<MemberName>,
    /// The leader in its view.
    pub leader: Option<MemberName>,
    /// The answer of its local PostgreSQL, and the answer's age at the write.
    pub postgres: Option<(PostgresAnswer, Duration)>,
    /// The answer of its local Patroni, and the answer's age at the write. `None` from agents that do not report it.
    /// The record does not carry the member's name and the contact with ZooKeeper.
    pub patroni: Option<(Box<PatroniAnswer>, Duration)>,
    /// The alive lock of its local Patroni.
    pub alive_lock: Option<AliveLock>,
    /// The answer of its local HAProxy, and the answer's age at the write.
    pub haproxy: Option<(HaproxyAnswer, Duration)>,
    /// The newest linearizable read in which its member held the leader key; `None` if there was none since the agent's
    /// start.
    pub held: Option<Zxid>,
}
