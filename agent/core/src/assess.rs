//! The view summarized for readers: the leader and its verification, and the status of each member.
//!
//! Several sources report the same fact: the agent's own question, the member's agent, its Patroni. The rules that
//! choose between them stand here only.

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

/// The leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader<'a> {
    /// The leader znode as last read; `None` before the first read.
    pub reading: Option<&'a Reading<LeaderKey>>,
    /// The age of that read.
    pub age: Option<Duration>,
    /// A linearizable read that is recent enough for the caller shows it.
    pub verified: bool,
    /// The reason why it is not verified.
    pub why_unverified: Option<String>,
}

impl<'a> Leader<'a> {
    /// The key, if a member holds it.
    pub fn key(&self) -> Option<&'a LeaderKey> {
        self.reading?.present()
    }

    /// The holder's name, if a member holds the key.
    pub fn holder(&self) -> Option<&'a MemberName> {
        self.key().map(|key| &key.holder)
    }
}

/// The leader, and whether a barrier read that started at `asked` or later verifies it. Without `asked`, a read within
/// the last [`VERIFIED_LIMIT`] suffices.
pub fn leader(view: &View, now: Moment, asked: Option<Moment>) -> Leader<'_> {
    let earliest = asked.unwrap_or_else(|| now.minus(VERIFIED_LIMIT));
    let session = view.session().map(|session| session.id);
    let verification =
        view.verified.as_ref().filter(|known| session == Some(known.session) && known.started >= earliest);
    // Without `asked`, a later ordinary read outranks the barrier read.
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

/// The age of a fact from the tree. A later read of the whole tree confirms the fact.
pub fn znode_age<T>(view: &View, fact: &Fact<T>, now: Moment) -> Duration {
    let confirmed = view.tree_read.map_or(fact.at, |pass| pass.max(fact.at));
    now.since(confirmed)
}

/// The status of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus<'a> {
    /// Its name.
    pub name: &'a MemberName,
    /// Its role.
    pub role: Role,
    /// Its PostgreSQL's state, in Patroni's terms.
    pub state: State,
    /// Its PostgreSQL's address.
    pub host: Option<&'a str>,
    /// Its PostgreSQL's address.
    pub port: Option<u16>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// The bytes of WAL between its position and the leader's; `None` for the leader.
    pub lag: Option<u64>,
    /// Whether it takes writes; `None` if unknown.
    pub writable: Option<bool>,
    /// The accepted answer of its PostgreSQL.
    pub postgres: Option<Fact<PostgresAnswer>>,
    /// The recent answer of its Patroni to this agent or to its own.
    pub patroni: Option<Fact<&'a PatroniAnswer>>,
    /// Its alive lock, as its own agent reports it.
    pub alive_lock: Option<AliveLock>,
    /// Whether it has a member znode.
    pub has_znode: Option<bool>,
    /// Its agent, and the time since that agent's last write.
    pub agent: Option<(&'a AgentName, Duration)>,
}

/// The status of every member, by name.
pub fn members(view: &View, now: Moment) -> Vec<MemberStatus<'_>> {
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
            member_status(view, name, member, lag_behind, leaders, now)
        })
        .collect()
}

fn member_status<'a>(
    view: &'a View,
    name: &'a MemberName,
    member: &'a Member,
    top: Option<Lsn>,
    leaders: Option<Timeline>,
    now: Moment,
) -> MemberStatus<'a> {
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
    // Positions on different timelines cannot be compared.
    let one_timeline = timeline.is_none() || leaders.is_none() || timeline == leaders;
    let lag = match (top, position(postgres.as_ref())) {
        (Some(top), Some(at)) if writable == Some(false) && one_timeline => Some(top.0.saturating_sub(at.0)),
        _ => None,
    };
    MemberStatus {
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

/// The accepted answer of a member's PostgreSQL, by rank:
/// - The newest real answer to this agent or to the member's own agent.
/// - The state that its Patroni has just read from it.
/// - The silence. A silent server over TCP does not outrank the report of its own agent.
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
    // A refusal over TCP may come from a firewall, or from a new owner of the address.
    let is_answer = |fact: &Fact<PostgresAnswer>| match fact.value {
        PostgresAnswer::Writable(_) | PostgresAnswer::InRecovery(_) | PostgresAnswer::Gone(_) => true,
        PostgresAnswer::Refused(_) | PostgresAnswer::Starting(_) | PostgresAnswer::Stopping(_) => {
            fact.source != Source::Tcp
        }
        PostgresAnswer::Silent(_) | PostgresAnswer::Unknown(_) => false,
    };
    let direct = [&own, &agent].into_iter().flatten();
    let best = direct.filter(|fact| is_answer(fact)).max_by_key(|fact| fact.at).cloned();
    best.or_else(|| answer_by_patroni(view, name, now)).or(own).or(agent)
}

/// The accepted answer of a member's Patroni: to this agent or to its own agent, the newer one. Silence to this agent
/// does not outrank an answer to its own agent.
///
/// This agent asks only if the member's agent does not report it ([`its_agent_tells`]).
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

/// The answer of a member's Patroni to the member's own agent, unless that is this agent.
fn patroni_by_agent<'a>(view: &'a View, name: &MemberName) -> Option<Fact<&'a PatroniAnswer>> {
    if view.identity.member.as_ref() == Some(name) {
        return None;
    }
    let (_, fact) = agent_of(view, name)?;
    let (answer, age) = fact.value.present()?.patroni.as_ref()?;
    Some(Fact::new(&**answer, Source::Agent, fact.at.minus(*age)))
}

/// From this age of an agent's report on, this agent asks the Patroni itself. Its answer then arrives before the report
/// is too old.
const AGENT_ANSWER_RENEWED_AFTER: Duration = Duration::from_secs(4);

const _: () = assert!(AGENT_ANSWER_RENEWED_AFTER.as_secs() < AGENT_LIMIT.as_secs());

/// Whether a member's own agent reports its Patroni, so that this agent need not ask.
///
/// HAProxy's checks ask the Patronis from HAProxy's host. The agent there asks the members that may get new writes
/// itself. A Patroni that only a remote agent reaches must not count as healthy for HAProxy.
pub fn its_agent_tells(view: &View, name: &MemberName, now: Moment) -> bool {
    let routed = view.haproxy.as_ref().is_some_and(|fact| match &fact.value {
        HaproxyAnswer::Servers(servers) => servers
            .iter()
            .any(|server| server.pool == Pool::Writes && server.up && server.member.as_ref() == Some(name)),
        HaproxyAnswer::Unusable(_) => false,
    });
    let leads = view.leader.as_ref().and_then(|fact| fact.value.present()).is_some_and(|key| key.holder == *name);
    let from_here = view.haproxy.is_some() && (routed || leads);
    !from_here && patroni_by_agent(view, name).is_some_and(|fact| fact.age(now) <= AGENT_ANSWER_RENEWED_AFTER)
}

/// The state of a member's PostgreSQL as its Patroni read it for this agent or for its own.
fn answer_by_patroni(view: &View, name: &MemberName, now: Moment) -> Option<Fact<PostgresAnswer>> {
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
        PatroniAnswer::Refused(_)
        | PatroniAnswer::Silent(_)
        | PatroniAnswer::Unusable(_)
        | PatroniAnswer::Anothers(_) => None,
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
    let reported = status.map(|status| status.role).filter(|role| *role != Role::Unknown).or(recorded);
    let role = match (reported, postgres.map(|fact| &fact.value)) {
        (Some(role), _) if role != Role::Unknown => role,
        (_, Some(PostgresAnswer::Writable(_))) => Role::Primary,
        (_, Some(PostgresAnswer::InRecovery(_))) => Role::Replica,
        _ => Role::Unknown,
    };
    // Patroni's member znode only says "replica". The znode `sync` names the synchronous ones.
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
        // The znode is from a time when Patroni still answered, so its state is obsolete.
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

/// The agent beside the member `name`.
pub(crate) fn agent_of<'a>(
    view: &'a View,
    name: &MemberName,
) -> Option<(&'a AgentName, &'a Fact<Reading<crate::event::AgentRecord>>)> {
    view.agents.iter().find(|(_, fact)| fact.value.present().is_some_and(|agent| agent.member.as_ref() == Some(name)))
}

/// One HAProxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Router<'a> {
    /// The agent beside it.
    pub agent: &'a AgentName,
    /// The answer of its runtime socket.
    pub answer: &'a HaproxyAnswer,
    /// The time since the question.
    pub age: Duration,
}

impl Router<'_> {
    /// The members to which it sends new connections of this pool.
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

/// Every HAProxy with an agent beside it.
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
