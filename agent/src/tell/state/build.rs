//! Builds the state from the view.

use super::schema::{
    About, Agent, Answer, Cluster, Fence, Haproxy, Leader, Member, MemberAgent, Server, State, Warning, ZooKeeper,
};
use crate::clock::{Clock, millis};
use jiff::Timestamp;
use warden_core::assess::{self, MemberStatus, Router};
use warden_core::event::{FenceRecord, HaproxyAnswer, LeaderKey, PatroniAnswer};
use warden_core::fact::Reading;
use warden_core::haproxy::Pool;
use warden_core::limits::PROBE_LIMIT;
use warden_core::types::{Mode, Moment, UnixMillis};
use warden_core::view::{Link, View};
use warden_core::warn;

/// The origin of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observer {
    /// A running agent with its `fencing.mode`.
    Agent(Mode),
    /// A command that asks ZooKeeper, Patroni and PostgreSQL itself.
    Direct,
}

/// The state as `view` has it now, for a request that arrived at `asked`. A linearizable read from before `asked` does
/// not verify the leader.
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
        members: assess::members(view, now).iter().map(|status| member(view, status, now)).collect(),
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

fn member(view: &View, status: &MemberStatus<'_>, now: Moment) -> Member {
    let server = status.postgres.as_ref().and_then(|fact| fact.value.server());
    let own = view.identity.member.as_ref() == Some(status.name);
    let agent = if own {
        Some(MemberAgent { age_ms: 0, version: Some(view.identity.version.clone()) })
    } else {
        status.agent.map(|(name, age)| MemberAgent {
            age_ms: millis(age),
            version: view.agents.get(name).and_then(|fact| fact.value.present()).map(|record| record.version.clone()),
        })
    };
    Member {
        name: status.name.to_string(),
        role: status.role.as_str().to_owned(),
        state: status.state.as_str().to_owned(),
        host: status.host.map(str::to_owned),
        port: status.port,
        timeline: status.timeline.map(|timeline| timeline.0),
        lsn: server.and_then(|server| server.lsn).map(|lsn| lsn.to_string()),
        lag_bytes: status.lag,
        writable: status.writable,
        system_identifier: server.and_then(|server| server.system_id).map(|id| id.to_string()),
        postgres: postgres(status, now),
        patroni: patroni(status, now),
        alive_lock: status.alive_lock.as_ref().map(|lock| lock.as_str().to_owned()),
        has_znode: status.has_znode,
        agent,
    }
}

fn postgres(status: &MemberStatus<'_>, now: Moment) -> Answer {
    match &status.postgres {
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

fn patroni(status: &MemberStatus<'_>, now: Moment) -> Answer {
    let Some(fact) = &status.patroni else { return not_asked() };
    let (answer, detail, version) = match fact.value {
        PatroniAnswer::Answering(answer) => ("answering", None, answer.version.clone()),
        PatroniAnswer::Refused(why) => ("refused", Some(why.clone()), None),
        PatroniAnswer::Silent(why) => ("silent", Some(why.clone()), None),
        PatroniAnswer::Unusable(why) | PatroniAnswer::Anothers(why) => ("unusable", Some(why.clone()), None),
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
    let detail = format!("no agent has asked in the last {} s", PROBE_LIMIT.as_secs());
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
                proxy: server.id.proxy.clone(),
                name: server.id.name.clone(),
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

fn wall(millis: UnixMillis) -> Option<String> {
    Timestamp::from_millisecond(millis.0).ok().map(rfc3339)
}

fn rfc3339(at: Timestamp) -> String {
    format!("{at:.3}")
}
