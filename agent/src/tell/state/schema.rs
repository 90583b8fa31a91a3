//! The schema of the state. `age_ms` counts from the question of the agent, and not from the answer, in milliseconds.

use serde::{Deserialize, Serialize};
use warden_core::haproxy::Pool;

/// The cluster as one observer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Patroni's scope.
    pub scope: String,
    /// `agent`: from a running agent; `direct`: the command asked ZooKeeper and Patroni itself.
    pub source: String,
    /// The agent that answers; null for `direct`.
    pub agent: Option<About>,
    /// The time of this answer, RFC 3339.
    pub at: String,
    /// The leader.
    pub leader: Leader,
    /// The members, by name.
    pub members: Vec<Member>,
    /// Cluster-wide settings, as in Patroni's dynamic configuration.
    pub cluster: Cluster,
    /// The connection to ZooKeeper.
    pub zookeeper: ZooKeeper,
    /// Every agent that has a znode, and the agent that answers.
    pub agents: Vec<Agent>,
    /// The HAProxy of every router agent.
    pub haproxy: Vec<Haproxy>,
    /// The fences that exist, confirmed or not.
    #[serde(default)]
    pub fences: Vec<Fence>,
    /// The warnings, by code.
    pub warnings: Vec<Warning>,
}

/// A fence: the znode `fences/<member>` in Warden's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The fenced member.
    pub member: String,
    /// `superseded`, `orphaned`, `lease`, `peer`, `operator`, `crashed`.
    pub rule: String,
    /// The reason, as text.
    pub reason: String,
    /// The agent that ordered it, or `operator`.
    pub by: String,
    /// The time of the order by the clock of its agent, RFC 3339.
    pub ordered: Option<String>,
    /// The time at which the agent confirmed that the server takes no writes; null until then.
    pub confirmed: Option<String>,
    /// The time of the last write, by ZooKeeper's clock, RFC 3339.
    #[serde(default)]
    pub written: Option<String>,
    /// The ZooKeeper transaction of the last write.
    #[serde(default)]
    pub zxid: Option<i64>,
}

/// The agent that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // named after what they are
pub struct About {
    pub name: String,
    pub roles: Vec<String>,
    pub version: String,
    /// `enforce`, `observe`, `off`; empty from older agents.
    #[serde(default)]
    pub fencing_mode: String,
}

/// The leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The holder of the leader key; null if there is no holder, or it is unknown.
    pub name: Option<String>,
    /// A linearizable read that started after the request arrived confirms the holder.
    pub verified: bool,
    /// The reason, if the leader is not verified.
    pub why_unverified: Option<String>,
    /// The time at which the key was created, by ZooKeeper's clock, RFC 3339.
    pub since: Option<String>,
    /// The transaction that created the key.
    pub czxid: Option<i64>,
    /// The transaction that last changed the key.
    pub mzxid: Option<i64>,
    /// The ZooKeeper session that owns the key.
    pub session: Option<String>,
    /// Age of the read.
    pub age_ms: Option<u64>,
    /// The time at which this observer first saw the present key, RFC 3339 with microseconds.
    pub seen_at: Option<String>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // some names need no comment
pub struct Member {
    pub name: String,
    /// `primary`, `standby_leader`, `replica`, `sync_standby`, `quorum_standby`, `demoted`, `uninitialized`, `unknown`.
    pub role: String,
    /// Patroni's name of the state: `running`, `streaming`, `stopped`, `creating replica`, ...
    pub state: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub timeline: Option<u32>,
    /// The LSN up to which the primary has written, or the standby has replayed.
    pub lsn: Option<String>,
    /// Bytes of WAL that the standby has to replay to reach the leader; null for the leader.
    pub lag_bytes: Option<u64>,
    /// The server takes writes; null if that is unknown.
    pub writable: Option<bool>,
    pub system_identifier: Option<String>,
    pub postgres: Answer,
    pub patroni: Answer,
    /// `alive`, `gone`, `unknown`; null if no lock is configured, or no agent can see it.
    pub alive_lock: Option<String>,
    /// Patroni's member znode exists.
    pub has_znode: Option<bool>,
    pub agent: Option<MemberAgent>,
}

/// The answer of a PostgreSQL or a Patroni.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// PostgreSQL: `writable`, `in_recovery`, `refused`, `silent`, `unknown`. Patroni: `answering`, `refused`,
    /// `silent`, `unusable`, `unknown`.
    pub answer: String,
    /// Details, as text.
    pub detail: Option<String>,
    /// The source: `socket`, `tcp`, `agent`, `patroni`.
    pub source: Option<String>,
    /// Age of the answer.
    pub age_ms: Option<u64>,
    /// The version of the software, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The agent beside a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAgent {
    /// Time since it last wrote its znode; 0 for the agent that answers.
    pub age_ms: u64,
    /// Its version.
    pub version: Option<String>,
}

/// Cluster-wide settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // named after Patroni's settings
pub struct Cluster {
    pub system_identifier: Option<String>,
    pub ttl: Option<u64>,
    pub loop_wait: Option<u64>,
    pub retry_timeout: Option<u64>,
    pub pause: Option<bool>,
    pub synchronous_mode: Option<bool>,
    pub failsafe_mode: Option<bool>,
}

/// The connection to ZooKeeper.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZooKeeper {
    /// The observer has a session now.
    pub connected: bool,
    /// The server, `name:port (address)`.
    pub server: Option<String>,
    /// The session's id.
    pub session: Option<String>,
    /// The session timeout that ZooKeeper granted.
    pub timeout_ms: Option<u64>,
    /// Round trip of a read.
    pub latency_ms: Option<f64>,
    /// Time since the last complete read of Patroni's tree.
    pub last_contact_ms: Option<u64>,
    /// The reason, if there is no session.
    pub detail: Option<String>,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // named after what they are
pub struct Agent {
    pub name: String,
    pub roles: Vec<String>,
    pub address: String,
    pub version: String,
    pub age_ms: u64,
}

/// An HAProxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Haproxy {
    /// The agent beside it.
    pub agent: String,
    /// Age of the answer.
    pub age_ms: u64,
    /// The reason, if the servers are unknown.
    pub detail: Option<String>,
    /// The servers of its pools.
    pub servers: Vec<Server>,
    /// The members to which it sends new connections for writes.
    pub writes_to: Vec<String>,
    /// The members to which it sends new connections for reads.
    #[serde(default)]
    pub reads_from: Vec<String>,
}

/// A server of one of HAProxy's pools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // named after HAProxy's columns
pub struct Server {
    /// `writes` or `reads`.
    #[serde(default = "writes")]
    pub pool: String,
    /// The backend or listen section of the server; empty from agents that report one for each pool.
    #[serde(default)]
    pub proxy: String,
    pub name: String,
    pub address: String,
    /// The member at that address.
    pub member: Option<String>,
    pub status: String,
    pub sessions: u64,
}

/// The pool in reports of agents that route writes only.
fn writes() -> String {
    Pool::Writes.as_str().to_owned()
}

/// A warning for the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// The stable code; `agent/docs/reference/warnings.md` lists them.
    pub code: String,
    /// The member that the warning is about, if there is one.
    pub member: Option<String>,
    /// The warning, as text.
    pub message: String,
}
