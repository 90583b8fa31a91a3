//! The state as JSON: what `/api/v1/state` answers and `warden status -f json` prints.
//!
//! An interface: fields are added, never renamed or given another meaning. What is not known is `null`,
//! never a guess. `age_ms` is the time since the *question* was asked. The README documents every field.

use crate::clock::Clock;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use warden_core::assess::{self, MemberTruth, Router};
use warden_core::event::{AliveLock, FenceRecord, HaproxyAnswer, LeaderKey, PatroniAnswer};
use warden_core::fact::Reading;
use warden_core::haproxy::Pool;
use warden_core::limits::PROBE_LIMIT;
use warden_core::types::{Mode, Moment, UnixMillis};
use warden_core::view::{Link, View};
use warden_core::warn;

/// The cluster as one observer sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Patroni's scope.
    pub scope: String,
    /// `agent`: from a running agent; `direct`: the command asked ZooKeeper and Patroni itself.
    pub source: String,
    /// Who answers; null for `direct`.
    pub agent: Option<About>,
    /// When, RFC 3339.
    pub at: String,
    /// Who leads.
    pub leader: Leader,
    /// The members, by name.
    pub members: Vec<Member>,
    /// Cluster-wide settings, as in Patroni's dynamic configuration.
    pub cluster: Cluster,
    /// The connection to ZooKeeper.
    pub zookeeper: ZooKeeper,
    /// Every agent that has a znode, and the one that answers.
    pub agents: Vec<Agent>,
    /// Every HAProxy that an agent stands beside.
    pub haproxy: Vec<Haproxy>,
    /// The fences that stand, confirmed or not.
    #[serde(default)]
    pub fences: Vec<Fence>,
    /// What a person should know.
    pub warnings: Vec<Warning>,
}

/// A fence that stands: `fences/<member>` in Warden's tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Whose.
    pub member: String,
    /// `superseded`, `orphaned`, `lease`, `peer`, `operator`, `crashed`.
    pub rule: String,
    /// Why, in words.
    pub reason: String,
    /// Which agent, or who, ordered it.
    pub by: String,
    /// When, RFC 3339, by the clock of who ordered it.
    pub ordered: Option<String>,
    /// When it was confirmed that the server takes no writes; null while it is not.
    pub confirmed: Option<String>,
    /// When it was written, by ZooKeeper's clock, RFC 3339.
    #[serde(default)]
    pub written: Option<String>,
    /// The transaction that wrote it.
    #[serde(default)]
    pub zxid: Option<i64>,
}

/// Which agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // named after what they are
pub struct About {
    pub name: String,
    pub roles: Vec<String>,
    pub version: String,
    /// `enforce`, `observe`, `off`. An agent of an older version does not say.
    #[serde(default)]
    pub fencing_mode: String,
}

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observer {
    /// A running agent, and what it makes of the rules of fencing.
    Agent(Mode),
    /// A command, by itself.
    Direct,
}

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leader {
    /// The holder of the leader key; null where nobody holds it or nobody knows.
    pub name: Option<String>,
    /// A linearizable read that was started after the request arrived says so.
    pub verified: bool,
    /// Why not, if not.
    pub why_unverified: Option<String>,
    /// When the key was created, by ZooKeeper's clock, RFC 3339.
    pub since: Option<String>,
    /// The transaction that created the key.
    pub czxid: Option<i64>,
    /// The transaction that last changed the key.
    pub mzxid: Option<i64>,
    /// The ZooKeeper session that owns the key.
    pub session: Option<String>,
    /// Age of the read.
    pub age_ms: Option<u64>,
    /// When this observer first saw the key as it is now, RFC 3339 with microseconds.
    pub seen_at: Option<String>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // where the name says it
pub struct Member {
    pub name: String,
    /// `primary`, `standby_leader`, `replica`, `sync_standby`, `quorum_standby`, `demoted`, `uninitialized`, `unknown`.
    pub role: String,
    /// In Patroni's words: `running`, `streaming`, `stopped`, `creating replica`, ...
    pub state: String,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub timeline: Option<u32>,
    /// Written (primary) or replayed (standby) up to here.
    pub lsn: Option<String>,
    /// Bytes of WAL still to replay to be where the leader is; null for the leader.
    pub lag_bytes: Option<u64>,
    /// Takes writes; null where nobody knows.
    pub writable: Option<bool>,
    pub system_identifier: Option<String>,
    pub postgres: Answer,
    pub patroni: Answer,
    /// `alive`, `gone`, `unknown`; null where no lock is configured or nobody can see it.
    pub alive_lock: Option<String>,
    /// Whether Patroni's member znode is there.
    pub has_znode: Option<bool>,
    pub agent: Option<MemberAgent>,
}

/// How a neighbour answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// PostgreSQL: `writable`, `in_recovery`, `refused`, `silent`, `unknown`.
    /// Patroni: `answering`, `refused`, `silent`, `unusable`, `unknown`.
    pub answer: String,
    /// More about it, in words.
    pub detail: Option<String>,
    /// Who said so: `socket`, `tcp`, `agent`, `patroni`.
    pub source: Option<String>,
    /// Age of the answer.
    pub age_ms: Option<u64>,
    /// The software's version, where it told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// The agent beside a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberAgent {
    /// Time since it last wrote its znode (the answering agent's own: 0).
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
    /// In a session now.
    pub connected: bool,
    /// The server, `name:port (address)`.
    pub server: Option<String>,
    /// The session's id.
    pub session: Option<String>,
    /// The timeout that was granted.
    pub timeout_ms: Option<u64>,
    /// Round trip of a read.
    pub latency_ms: Option<f64>,
    /// Time since the tree was last read as a whole.
    pub last_contact_ms: Option<u64>,
    /// Why there is no session.
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
    /// Why nothing is known, if so.
    pub detail: Option<String>,
    /// The servers of its pools.
    pub servers: Vec<Server>,
    /// The members that it sends new connections for writes to.
    pub writes_to: Vec<String>,
    /// The members that it sends new connections for reads to.
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
    pub name: String,
    pub address: String,
    /// The member at that address.
    pub member: Option<String>,
    pub status: String,
    pub sessions: u64,
}

/// Of agents that knew of no reads.
fn writes() -> String {
    Pool::Writes.as_str().to_owned()
}

/// What a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warning {
    /// Stable; the README lists them.
    pub code: String,
    /// The member it is about, if it is about one.
    pub member: Option<String>,
    /// In plain words.
    pub message: String,
}

/// The state as `view` has it now, for a request that came in at `asked`.
pub fn state(view: &View, clock: &Clock, asked: Moment, observer: Observer) -> State {
    let now = clock.now();
    let identity = &view.identity;
    let is_agent = observer != Observer::Direct;
    State {
        scope: identity.scope.clone(),
        source: if is_agent { "agent" } else { "direct" }.to_owned(),
        agent: match observer {
            Observer::Agent(fencing) => Some(About {
                name: identity.agent.to_string(),
                roles: identity.roles.clone(),
                version: identity.version.clone(),
                fencing_mode: fencing.as_str().to_owned(),
            }),
            Observer::Direct => None,
        },
        at: rfc3339(clock.wall(now)),
        leader: leader(view, clock, now, asked),
        members: assess::members(view, now).iter().map(|truth| member(view, truth, now)).collect(),
        cluster: cluster(view),
        zookeeper: zookeeper(view, now),
        agents: agents(view, now, is_agent),
        haproxy: assess::routers(view, now).iter().map(haproxy).collect(),
        fences: fences(view),
        warnings: warn::warnings(view, now, Some(asked))
            .into_iter()
            .map(|warning| Warning {
                code: warning.code.to_owned(),
                member: warning.member.map(|name| name.to_string()),
                message: warning.message,
            })
            .collect(),
    }
}

fn leader(view: &View, clock: &Clock, now: Moment, asked: Moment) -> Leader {
    let leader = assess::leader(view, now, Some(asked));
    let key: Option<&LeaderKey> = leader.key();
    Leader {
        name: key.map(|key| key.holder.to_string()),
        verified: leader.verified,
        since: key.and_then(|key| wall(key.created)),
        czxid: key.map(|key| key.czxid.0),
        mzxid: key.map(|key| key.mzxid.0),
        session: key.map(|key| key.owner.to_string()),
        age_ms: leader.age.map(millis),
        seen_at: view.leader_changed.map(|at| format!("{:.6}", clock.wall(at))),
        why_unverified: leader.why_unverified,
    }
}

fn member(view: &View, truth: &MemberTruth<'_>, now: Moment) -> Member {
    let server = truth.postgres.as_ref().and_then(|fact| fact.value.server());
    let own = view.identity.member.as_ref() == Some(truth.name);
    let agent = if own {
        Some(MemberAgent { age_ms: 0, version: Some(view.identity.version.clone()) })
    } else {
        truth.agent.map(|(name, age)| MemberAgent {
            age_ms: millis(age),
            version: view.agents.get(name).and_then(|fact| fact.value.present()).map(|record| record.version.clone()),
        })
    };
    Member {
        name: truth.name.to_string(),
        role: truth.role.as_str().to_owned(),
        state: truth.state.as_str().to_owned(),
        host: truth.host.map(str::to_owned),
        port: truth.port,
        timeline: truth.timeline.map(|timeline| timeline.0),
        lsn: server.and_then(|server| server.lsn).map(|lsn| lsn.to_string()),
        lag_bytes: truth.lag,
        writable: truth.writable,
        system_identifier: server.and_then(|server| server.system_id).map(|id| id.to_string()),
        postgres: postgres(truth, now),
        patroni: patroni(truth, now),
        alive_lock: truth.alive_lock.as_ref().map(|lock| lock.as_str().to_owned()),
        has_znode: truth.has_znode,
        agent,
    }
}

fn postgres(truth: &MemberTruth<'_>, now: Moment) -> Answer {
    match &truth.postgres {
        Some(fact) => Answer {
            answer: fact.value.as_str().to_owned(),
            detail: fact.value.detail().map(str::to_owned),
            source: Some(fact.source.as_str().to_owned()),
            age_ms: Some(millis(fact.age(now))),
            version: None,
        },
        None => not_asked(),
    }
}

fn patroni(truth: &MemberTruth<'_>, now: Moment) -> Answer {
    let Some(fact) = &truth.patroni else { return not_asked() };
    let (answer, detail, version) = match fact.value {
        PatroniAnswer::Answering(status) => ("answering", None, status.version.clone()),
        PatroniAnswer::Refused(why) => ("refused", Some(why.clone()), None),
        PatroniAnswer::Silent(why) => ("silent", Some(why.clone()), None),
        PatroniAnswer::Unusable(why) => ("unusable", Some(why.clone()), None),
    };
    Answer {
        answer: answer.to_owned(),
        detail,
        source: Some(fact.source.as_str().to_owned()),
        age_ms: Some(millis(fact.age(now))),
        version,
    }
}

fn not_asked() -> Answer {
    let detail = format!("nobody has asked in the last {} s", PROBE_LIMIT.as_secs());
    Answer { answer: "unknown".to_owned(), detail: Some(detail), source: None, age_ms: None, version: None }
}

fn cluster(view: &View) -> Cluster {
    let config = view.cluster.config();
    let id = view.cluster.initialize.as_ref().and_then(|fact| fact.value.present());
    Cluster {
        system_identifier: id.map(ToString::to_string),
        ttl: config.map(|config| config.ttl.as_secs()),
        loop_wait: config.map(|config| config.loop_wait.as_secs()),
        retry_timeout: config.map(|config| config.retry_timeout.as_secs()),
        pause: config.map(|config| config.pause),
        synchronous_mode: config.map(|config| config.synchronous_mode),
        failsafe_mode: config.map(|config| config.failsafe_mode),
    }
}

fn zookeeper(view: &View, now: Moment) -> ZooKeeper {
    let session = view.session();
    ZooKeeper {
        connected: session.is_some(),
        server: session.map(|session| session.server.clone()),
        session: session.map(|session| session.id.to_string()),
        timeout_ms: session.map(|session| millis(session.negotiated)),
        latency_ms: view.latency.map(|latency| (latency.as_secs_f64() * 1e6).round() / 1e3),
        last_contact_ms: view.tree_read.map(|at| millis(now.since(at))),
        detail: match &view.link {
            Link::Never => Some("no session yet".to_owned()),
            Link::Lost { detail, .. } => Some(detail.clone()),
            Link::Connected { .. } => None,
        },
    }
}

fn agents(view: &View, now: Moment, is_agent: bool) -> Vec<Agent> {
    let identity = &view.identity;
    let own = is_agent.then(|| Agent {
        name: identity.agent.to_string(),
        roles: identity.roles.clone(),
        address: identity.address.clone(),
        version: identity.version.clone(),
        age_ms: 0,
    });
    let others = view.agents.iter().filter(|(name, _)| !is_agent || **name != identity.agent).map(|(name, fact)| {
        let record = match &fact.value {
            Reading::Present(record) => Some(record),
            Reading::Absent | Reading::Unreadable(_) => None,
        };
        Agent {
            name: name.to_string(),
            roles: record.map(|record| record.roles.clone()).unwrap_or_default(),
            address: record.map(|record| record.address.clone()).unwrap_or_default(),
            version: record.map(|record| record.version.clone()).unwrap_or_default(),
            age_ms: millis(now.since(fact.at)),
        }
    });
    let mut agents: Vec<Agent> = own.into_iter().chain(others).collect();
    agents.sort_by(|a, b| a.name.cmp(&b.name));
    agents
}

fn fences(view: &View) -> Vec<Fence> {
    let records = view.leadership.records.values().filter_map(|fact| fact.value.present());
    let fence = |record: &FenceRecord| Fence {
        member: record.member.to_string(),
        rule: record.rule.as_str().to_owned(),
        reason: record.reason.clone(),
        by: record.by.clone(),
        ordered: wall(record.ordered),
        confirmed: record.confirmed.and_then(wall),
        written: record.written.and_then(|(_, at)| wall(at)),
        zxid: record.written.map(|(zxid, _)| zxid.0),
    };
    records.map(fence).collect()
}

fn haproxy(router: &Router<'_>) -> Haproxy {
    let (servers, detail) = match router.answer {
        HaproxyAnswer::Servers(servers) => (servers.as_slice(), None),
        HaproxyAnswer::Unusable(why) => ([].as_slice(), Some(why.clone())),
    };
    Haproxy {
        agent: router.agent.to_string(),
        age_ms: millis(router.age),
        detail,
        servers: servers
            .iter()
            .map(|server| Server {
                pool: server.pool.as_str().to_owned(),
                name: server.name.clone(),
                address: server.address.clone(),
                member: server.member.as_ref().map(ToString::to_string),
                status: server.status.clone(),
                sessions: server.sessions,
            })
            .collect(),
        writes_to: router.sends_to(Pool::Writes).into_iter().map(ToString::to_string).collect(),
        reads_from: router.sends_to(Pool::Reads).into_iter().map(ToString::to_string).collect(),
    }
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn wall(millis: UnixMillis) -> Option<String> {
    Timestamp::from_millisecond(millis.0).ok().map(rfc3339)
}

fn rfc3339(at: Timestamp) -> String {
    format!("{at:.3}")
}

/// The text of an alive lock that is not known, for logs.
pub fn lock_detail(lock: &AliveLock) -> &str {
    match lock {
        AliveLock::Unknown(why) => why,
        AliveLock::Alive | AliveLock::Gone => lock.as_str(),
    }
}
