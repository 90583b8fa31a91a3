//! What the view amounts to: who leads and whether that is certain, and the truth about each member.
//!
//! Several sources speak about the same thing (our own probe, the member's agent, its Patroni). The rules
//! by which one of them is believed are here, and nowhere else.

use crate::event::{
    AliveLock, HaproxyAnswer, LeaderKey, PatroniAnswer, PatroniStatus, PostgresAnswer, Role, Server, State,
};
use crate::fact::{Fact, Reading, Source};
use crate::haproxy::Pool;
use crate::limits::{AGENT_LIMIT, PROBE_LIMIT, VERIFIED_LIMIT};
use crate::types::{AgentName, Lsn, MemberName, Moment, Timeline, seconds};
use crate::view::{self, Member, View};
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::{format, vec::Vec};
use core::time::Duration;

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader<'a> {
    /// The leader znode, as last read; `None` before the first read.
    pub reading: Option<&'a Reading<LeaderKey>>,
    /// How old that is.
    pub age: Option<Duration>,
    /// A linearizable read says so, recent enough for the one who asks.
    pub verified: bool,
    /// Why it is not verified.
    pub why_unverified: Option<String>,
}

impl<'a> Leader<'a> {
    /// The key, if there is one.
    pub fn key(&self) -> Option<&'a LeaderKey> {
        self.reading?.present()
    }

    /// The holder's name, if there is one.
    pub fn holder(&self) -> Option<&'a MemberName> {
        self.key().map(|key| &key.holder)
    }
}

/// Who leads, and whether a barrier read that was started at `asked` or later says so.
/// Without `asked`, one of the last [`VERIFIED_LIMIT`] will do.
pub fn leader(view: &View, now: Moment, asked: Option<Moment>) -> Leader<'_> {
    let earliest = asked.unwrap_or_else(|| now.minus(VERIFIED_LIMIT));
    let session = view.session().map(|session| session.id);
    let verification =
        view.verified.as_ref().filter(|known| session == Some(known.session) && known.started >= earliest);
    // Where nobody asked for a new one, news that an ordinary read brought since counts for more.
    let outdated = |known: &&view::Verification| {
        view.leader.as_ref().is_some_and(|read| read.at > known.started && read.value != known.leader)
    };
    if let Some(known) = verification.filter(|known| asked.is_some() || !outdated(known)) {
        let unreadable = known.leader.unreadable();
        return Leader {
            reading: Some(&known.leader),
            age: Some(now.since(known.started)),
            verified: unreadable.is_none(),
            why_unverified: unreadable.map(ToString::to_string),
        };
    }
    let why = match (&view.link, &view.barrier_failed) {
        (crate::view::Link::Never, _) => "no ZooKeeper session yet".to_string(),
        (crate::view::Link::Lost { detail, since }, _) => {
            format!("no ZooKeeper session for {}: {detail}", seconds(now.since(*since)))
        }
        (_, Some(failed)) if failed.at >= earliest => failed.value.clone(),
        _ => "no linearizable read has finished yet".to_string(),
    };
    Leader {
        reading: view.leader.as_ref().map(|fact| &fact.value),
        age: view.leader.as_ref().map(|fact| znode_age(view, fact, now)),
        verified: false,
        why_unverified: Some(why),
    }
}

/// The age of a fact from the tree: a later whole pass confirms it.
pub fn znode_age<T>(view: &View, fact: &Fact<T>, now: Moment) -> Duration {
    let confirmed = view.tree_read.map_or(fact.at, |pass| pass.max(fact.at));
    now.since(confirmed)
}

/// The truth about one member, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberTruth<'a> {
    /// Its name.
    pub name: &'a MemberName,
    /// Its role.
    pub role: Role,
    /// What its PostgreSQL is doing, in Patroni's words.
    pub state: State,
    /// Where its PostgreSQL is.
    pub host: Option<&'a str>,
    /// Where its PostgreSQL is.
    pub port: Option<u16>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// Bytes of WAL it still has to replay to be where the leader is; `None` for the leader.
    pub lag: Option<u64>,
    /// Takes writes; `None` where nobody knows.
    pub writable: Option<bool>,
    /// The answer of its PostgreSQL that is believed.
    pub postgres: Option<Fact<PostgresAnswer>>,
    /// How its Patroni answered us or its agent, if that is recent.
    pub patroni: Option<Fact<&'a PatroniAnswer>>,
    /// Its alive lock, from its own agent.
    pub alive_lock: Option<AliveLock>,
    /// Whether it has a member znode.
    pub has_znode: Option<bool>,
    /// Its agent and how long ago that last wrote.
    pub agent: Option<(&'a AgentName, Duration)>,
}

/// The truth about every member, by name.
pub fn members(view: &View, now: Moment) -> Vec<MemberTruth<'_>> {
    let holder = leader(view, now, None).holder().cloned();
    let top = holder.as_ref().and_then(|name| view.members.get(name).map(|member| (name, member)));
    let top = top.and_then(|(name, member)| postgres(view, name, member, now));
    let leaders = top.as_ref().and_then(|fact| fact.value.server()?.timeline);
    let top = position(top.as_ref());
    let top = top.or_else(|| view.cluster.status.as_ref().and_then(|status| status.value.present().copied()));
    view.members
        .iter()
        .map(|(name, member)| {
            let lag_behind = if holder.as_ref() == Some(name) { None } else { top };
            truth(view, name, member, lag_behind, leaders, now)
        })
        .collect()
}

fn truth<'a>(
    view: &'a View,
    name: &'a MemberName,
    member: &'a Member,
    top: Option<Lsn>,
    leaders: Option<Timeline>,
    now: Moment,
) -> MemberTruth<'a> {
    let postgres = postgres(view, name, member, now);
    let patroni = patroni_of(view, name, now);
    let status = patroni.as_ref().and_then(|fact| status(fact.value));
    let record = member.record.as_ref().and_then(|fact| fact.value.present());
    let place = record.or(member.last_record.as_ref());
    let writable = postgres.as_ref().and_then(|fact| fact.value.writable());
    let server = postgres.as_ref().and_then(|fact| fact.value.server());
    let timeline = server
        .and_then(|server| server.timeline)
        .or_else(|| status.and_then(|status| status.timeline))
        .or_else(|| record.and_then(|record| record.timeline));
    // Positions on two timelines cannot be compared.
    let one_timeline = timeline.is_none() || leaders.is_none() || timeline == leaders;
    let lag = match (top, position(postgres.as_ref())) {
        (Some(top), Some(at)) if writable == Some(false) && one_timeline => Some(top.0.saturating_sub(at.0)),
        _ => None,
    };
    MemberTruth {
        name,
        role: role(view, name, status, record.map(|record| record.role), postgres.as_ref()),
        state: state(patroni.is_some(), status, record.map(|record| record.state), postgres.as_ref()),
        host: place.and_then(|record| record.host.as_deref()),
        port: place.and_then(|record| record.port),
        timeline,
        lag,
        writable,
        patroni,
        alive_lock: alive_lock(view, name, now),
        has_znode: member.record.as_ref().map(|fact| fact.value != Reading::Absent),
        agent: agent_of(view, name).map(|(agent, fact)| (agent, now.since(fact.at))),
        postgres,
    }
}

/// The answer of a member's PostgreSQL that is believed.
///
/// The newest of those who asked it themselves and got a real answer; failing that what its Patroni just
/// heard from it; failing that the silence. A probe from afar that hears nothing does not outweigh an agent
/// that sits beside the server and hears it.
pub fn postgres(view: &View, name: &MemberName, member: &Member, now: Moment) -> Option<Fact<PostgresAnswer>> {
    let own = member.postgres.as_ref().filter(|fact| fact.age(now) <= PROBE_LIMIT).cloned();
    let agent = agent_of(view, name)
        .filter(|(agent, _)| **agent != view.identity.agent)
        .and_then(|(_, fact)| {
            let (answer, age) = fact.value.present()?.postgres.as_ref()?;
            let asked = fact.at.minus(*age);
            Some(Fact::new(answer.clone(), Source::Agent, asked))
        })
        .filter(|fact| fact.age(now) <= AGENT_LIMIT);
    // A refusal that reaches us from afar may be that of a firewall, or of whoever has the address now.
    let said = |fact: &Fact<PostgresAnswer>| match fact.value {
        PostgresAnswer::Writable(_) | PostgresAnswer::InRecovery(_) | PostgresAnswer::Gone(_) => true,
        PostgresAnswer::Refused(_) | PostgresAnswer::Starting(_) | PostgresAnswer::Stopping(_) => {
            fact.source != Source::Tcp
        }
        PostgresAnswer::Silent(_) | PostgresAnswer::Unknown(_) => false,
    };
    let direct = [&own, &agent].into_iter().flatten();
    let best = direct.filter(|fact| said(fact)).max_by_key(|fact| fact.at).cloned();
    best.or_else(|| heard_by_patroni(view, name, now)).or(own).or(agent)
}

/// The answer of a member's Patroni that is believed: ours or its own agent's, whichever is newer. That we hear nothing
/// does not outweigh an agent that sits beside it and hears it.
///
/// We ask only where its agent does not tell ([`its_agent_tells`]).
pub fn patroni_of<'a>(view: &'a View, name: &MemberName, now: Moment) -> Option<Fact<&'a PatroniAnswer>> {
    let own = view.members.get(name).and_then(|member| member.patroni.as_ref());
    let own = own.filter(|fact| fact.age(now) <= PROBE_LIMIT).map(|fact| Fact::new(&fact.value, fact.source, fact.at));
    let agent = patroni_by_agent(view, name).filter(|fact| fact.age(now) <= AGENT_LIMIT);
    match (own, agent) {
        (Some(own), Some(agent)) => {
            let only_it_hears = status(own.value).is_none() && status(agent.value).is_some();
            Some(if only_it_hears || agent.at > own.at { agent } else { own })
        }
        (own, agent) => own.or(agent),
    }
}

/// What the agent beside a member, unless that is us, says of its Patroni.
fn patroni_by_agent<'a>(view: &'a View, name: &MemberName) -> Option<Fact<&'a PatroniAnswer>> {
    if view.identity.member.as_ref() == Some(name) {
        return None;
    }
    let (_, fact) = agent_of(view, name)?;
    let (answer, age) = fact.value.present()?.patroni.as_ref()?;
    Some(Fact::new(&**answer, Source::Agent, fact.at.minus(*age)))
}

/// An agent's word on its Patroni is renewed by a question of our own from this age on, so that there is an answer when
/// it does not count any more.
const RENEWED: Duration = Duration::from_secs(4);

const _: () = assert!(RENEWED.as_secs() < AGENT_LIMIT.as_secs());

/// Whether a member's own agent tells what its Patroni says, and nothing has to be asked from here.
///
/// HAProxy's checks ask the Patronis of its servers from where it is: the agent beside it asks those, too, that new
/// writes may be sent to. What its checks cannot reach, the agent must not take for healthy because another reaches it.
pub fn its_agent_tells(view: &View, name: &MemberName, now: Moment) -> bool {
    let routed = view.haproxy.as_ref().is_some_and(|fact| match &fact.value {
        HaproxyAnswer::Servers(servers) => servers
            .iter()
            .any(|server| server.pool == Pool::Writes && server.up && server.member.as_ref() == Some(name)),
        HaproxyAnswer::Unusable(_) => false,
    });
    let leads = view.leader.as_ref().and_then(|fact| fact.value.present()).is_some_and(|key| key.holder == *name);
    let from_here = view.haproxy.is_some() && (routed || leads);
    !from_here && patroni_by_agent(view, name).is_some_and(|fact| fact.age(now) <= RENEWED)
}

/// What Patroni heard when it asked its PostgreSQL for us, or for its agent.
fn heard_by_patroni(view: &View, name: &MemberName, now: Moment) -> Option<Fact<PostgresAnswer>> {
    let fact = patroni_of(view, name, now)?;
    let status = status(fact.value)?;
    let server = Server {
        timeline: status.timeline,
        lsn: status.lsn,
        system_id: status.system_id,
        archiver: None,
        receives: None,
        heartbeat: None,
        superuser_slots: None,
    };
    let answer = if status.writable? { PostgresAnswer::Writable(server) } else { PostgresAnswer::InRecovery(server) };
    let source = if fact.source == Source::Agent { Source::Agent } else { Source::Patroni };
    Some(Fact::new(answer, source, fact.at))
}

const fn status(answer: &PatroniAnswer) -> Option<&PatroniStatus> {
    match answer {
        PatroniAnswer::Answering(status) => Some(status),
        PatroniAnswer::Refused(_) | PatroniAnswer::Silent(_) | PatroniAnswer::Unusable(_) => None,
    }
}

fn position(postgres: Option<&Fact<PostgresAnswer>>) -> Option<Lsn> {
    postgres?.value.server()?.lsn
}

fn role(
    view: &View,
    name: &MemberName,
    status: Option<&PatroniStatus>,
    recorded: Option<Role>,
    postgres: Option<&Fact<PostgresAnswer>>,
) -> Role {
    let said = status.map(|status| status.role).filter(|role| *role != Role::Unknown).or(recorded);
    let role = match (said, postgres.map(|fact| &fact.value)) {
        (Some(role), _) if role != Role::Unknown => role,
        (_, Some(PostgresAnswer::Writable(_))) => Role::Primary,
        (_, Some(PostgresAnswer::InRecovery(_))) => Role::Replica,
        _ => Role::Unknown,
    };
    // Patroni's member znode knows only "replica"; which of them is synchronous stands in `sync`.
    if role == Role::Replica && status.is_none() {
        let sync = view.cluster.sync.as_ref().and_then(|fact| fact.value.present());
        if let Some(sync) = sync.filter(|sync| sync.standbys.contains(name)) {
            return if sync.quorum > 0 { Role::QuorumStandby } else { Role::SyncStandby };
        }
    }
    role
}

fn state(
    asked: bool,
    status: Option<&PatroniStatus>,
    recorded: Option<State>,
    postgres: Option<&Fact<PostgresAnswer>>,
) -> State {
    let runs = postgres.is_some_and(|fact| fact.value.server().is_some());
    match (status, recorded) {
        (Some(status), _) => status.state,
        // The znode is Patroni's word from a time when it still answered: not to be repeated now.
        (None, _) if asked => {
            if runs {
                State::Running
            } else {
                State::Unknown
            }
        }
        (None, Some(state)) => state,
        (None, None) => State::Unknown,
    }
}

fn alive_lock(view: &View, name: &MemberName, now: Moment) -> Option<AliveLock> {
    if view.identity.member.as_ref() == Some(name) {
        return view.alive_lock.as_ref().map(|fact| fact.value.clone());
    }
    let (_, fact) = agent_of(view, name)?;
    fact.fresh(now, AGENT_LIMIT)?.present()?.alive_lock.clone()
}

/// The agent that stands beside `name`.
pub(crate) fn agent_of<'a>(
    view: &'a View,
    name: &MemberName,
) -> Option<(&'a AgentName, &'a Fact<Reading<crate::event::AgentRecord>>)> {
    view.agents.iter().find(|(_, fact)| fact.value.present().is_some_and(|agent| agent.member.as_ref() == Some(name)))
}

/// What is known of one HAProxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Router<'a> {
    /// The agent beside it.
    pub agent: &'a AgentName,
    /// What its runtime socket said.
    pub answer: &'a HaproxyAnswer,
    /// How long ago that was asked.
    pub age: Duration,
}

impl Router<'_> {
    /// The members that it sends new connections of this kind to.
    pub fn sends_to(&self, pool: Pool) -> BTreeSet<&MemberName> {
        match self.answer {
            HaproxyAnswer::Servers(servers) => {
                let writes = servers.iter().filter(|server| server.up && server.pool == pool);
                writes.filter_map(|server| server.member.as_ref()).collect()
            }
            HaproxyAnswer::Unusable(_) => BTreeSet::new(),
        }
    }
}

/// Every HAProxy that an agent stands beside.
pub fn routers(view: &View, now: Moment) -> Vec<Router<'_>> {
    let own = view.haproxy.as_ref().map(|fact| Router {
        agent: &view.identity.agent,
        answer: &fact.value,
        age: fact.age(now),
    });
    let others = view.agents.iter().filter(|(name, _)| **name != view.identity.agent).filter_map(|(agent, fact)| {
        let (answer, age) = fact.value.present()?.haproxy.as_ref()?;
        Some(Router { agent, answer, age: now.since(fact.at).saturating_add(*age) })
    });
    own.into_iter().chain(others).collect()
}

#[cfg(test)]
#[path = "assess_tests.rs"]
pub(crate) mod tests;
