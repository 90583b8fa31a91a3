//! What stands in ZooKeeper: Patroni's znodes, and those of the agents.

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

/// The leader's name in a reading, for log lines: the holder, `nobody` or `unreadable`.
pub fn holder_text(reading: &Reading<LeaderKey>) -> &str {
    match reading {
        Reading::Present(key) => key.holder.as_str(),
        Reading::Absent => "nobody",
        Reading::Unreadable(_) => "unreadable",
    }
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
        /// Patroni's `sync` znode, read behind the same barrier: a release stands on who is synchronous.
        sync: Reading<SyncState>,
        /// In which session.
        session: SessionId,
        /// The transaction of the write that made the barrier: everything committed up to it is in what was read.
        zxid: Zxid,
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
    /// Its neighbour's Patroni, and how old that was when it wrote it; `None` from agents that do not say it. Without
    /// the member's name and the contact with ZooKeeper, which are not carried.
    pub patroni: Option<(Box<PatroniAnswer>, Duration)>,
    /// Its neighbour's alive lock.
    pub alive_lock: Option<AliveLock>,
    /// Its neighbour's HAProxy, and how old that was when it wrote it.
    pub haproxy: Option<(HaproxyAnswer, Duration)>,
    /// The newest linearizable read in which its member held the leader key; `None` if there was none in its life.
    pub held: Option<Zxid>,
}
