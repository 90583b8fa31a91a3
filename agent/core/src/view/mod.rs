//! The view: the newest fact of each kind, with its source and age.
//!
//! [`View::apply`] is the only way in. Each group of events has a file here. They are: `zookeeper` (sessions, znodes,
//! barrier reads), `member` (answers of Patroni and PostgreSQL), `routing` (HAProxy, and reports of routing).
//!
//! The view draws no conclusions: [`crate::assess`] does. A fact that was requested earlier never replaces one that was
//! requested later. The view holds summaries only, because each request to the HTTP API clones it.

mod member;
mod routing;
mod zookeeper;

pub use member::Member;

use crate::event::{
    AgentRecord, AliveLock, ClusterConfig, Event, FailoverRequest, FenceOutcome, FenceReport, HaproxyAnswer, LeaderKey,
    LocalEvent, Observed, PatroniAnswer, Report, Session, Started, SyncState,
};
use crate::fact::{Fact, Reading, Source};
use crate::haproxy::RoutingMemory;
use crate::haproxy::file::HaproxyFileMemory;
use crate::leadership::Leadership;
use crate::types::{AgentName, Lsn, MemberName, Moment, SystemId, Timeline};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// The time that a member without a znode stays in the view after its last sign of life: twice the usual ttl.
///
/// A frozen Patroni loses its member znode while its PostgreSQL may still take writes. The view has to keep such a
/// member.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// The agent's identity. It is constant for the life of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Patroni's scope.
    pub scope: String,
    /// The agent's name.
    pub agent: AgentName,
    /// The local member; `None` beside HAProxy.
    pub member: Option<MemberName>,
    /// The agent's roles, `node` and `router`.
    pub roles: Vec<String>,
    /// The address of the agent's HTTP API, `host:port`.
    pub address: String,
    /// The agent's version.
    pub version: String,
    /// Whether an alive lock is configured.
    pub has_alive_lock: bool,
    /// ZooKeeper's tickTime. ZooKeeper keeps a silent session for up to two ticks beyond its timeout.
    pub tick_time: Duration,
    /// The requested session timeout before Patroni's configuration is read.
    pub session_timeout: Duration,
}

/// The connection to ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// No session yet.
    Never,
    /// Connected.
    Connected {
        /// The session.
        session: Session,
        /// When the session began.
        since: Moment,
    },
    /// The last session has ended.
    Lost {
        /// The error text.
        detail: String,
        /// When it was lost.
        since: Moment,
    },
}

/// A finished barrier read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// The leader znode.
    pub leader: Reading<LeaderKey>,
    /// Patroni's dynamic configuration, read behind the same barrier.
    pub config: Reading<ClusterConfig>,
    /// Patroni's `sync` znode, read behind the same barrier.
    pub sync: Reading<SyncState>,
    /// The transaction of the barrier write.
    pub zxid: crate::types::Zxid,
    /// The session of the read.
    pub session: crate::types::SessionId,
    /// When it was requested.
    pub started: Moment,
    /// When the answer arrived. The leader znode had this content at some moment between the two.
    pub finished: Moment,
}

/// The cluster's other znodes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)] // named after the znodes, see `event::Znode`
pub struct Cluster {
    pub config: Option<Fact<Reading<ClusterConfig>>>,
    pub sync: Option<Fact<Reading<SyncState>>>,
    pub status: Option<Fact<Reading<Lsn>>>,
    pub history: Option<Fact<Reading<Timeline>>>,
    pub failover: Option<Fact<Reading<FailoverRequest>>>,
    pub failsafe: Option<Fact<Reading<BTreeSet<MemberName>>>>,
    pub initialize: Option<Fact<Reading<SystemId>>>,
}

impl Cluster {
    /// Patroni's dynamic configuration; `None` if it was not read or cannot be parsed.
    pub fn config(&self) -> Option<&ClusterConfig> {
        self.config.as_ref()?.value.present()
    }
}

/// The view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The agent's identity.
    pub identity: Identity,
    /// The connection to ZooKeeper.
    pub link: Link,
    /// When the whole tree was last read, in the present session or in the last one. Older facts from the tree count as
    /// of then.
    pub tree_read: Option<Moment>,
    /// The last measured round trip of a read.
    pub latency: Option<Duration>,
    /// The leader znode, from the read that was requested last.
    pub leader: Option<Fact<Reading<LeaderKey>>>,
    /// When the view took over the present value of `leader`.
    pub leader_changed: Option<Moment>,
    /// The newest barrier read of the present session.
    pub verified: Option<Verification>,
    /// Why the newest barrier read failed, if it did.
    pub barrier_failed: Option<Fact<String>>,
    /// The cluster's other znodes.
    pub cluster: Cluster,
    /// The members, by name.
    pub members: BTreeMap<MemberName, Member>,
    /// The agents' znodes, by name, with the time of the write if it is known.
    pub agents: BTreeMap<AgentName, Fact<Reading<AgentRecord>>>,
    /// Agents from former sessions that the present one has not reported yet.
    pub agents_unconfirmed: BTreeSet<AgentName>,
    /// The local Patroni's alive lock.
    pub alive_lock: Option<Fact<AliveLock>>,
    /// The local HAProxy.
    pub haproxy: Option<Fact<HaproxyAnswer>>,
    /// The address of another agent that runs under this agent's name.
    pub name_taken: Option<Fact<String>>,
    /// The agent's failed tasks, each with its last error.
    pub failed_tasks: BTreeMap<&'static str, Fact<String>>,
    /// When a barrier read was last requested.
    pub verification_asked: Option<Moment>,
    /// The last write to the agent's own znode, and its time.
    pub announced: Option<(Box<AgentRecord>, Moment)>,
    /// The memory of the rules of leadership.
    pub leadership: Leadership,
    /// The memory of the routing rules.
    pub routing: RoutingMemory,
    /// The memory of the rule for HAProxy's configuration file.
    pub haproxy_file: HaproxyFileMemory,
}

impl View {
    /// The view of an agent that has just started: only its identity.
    pub fn new(identity: Identity) -> Self {
        let members = identity.member.iter().map(|name| (name.clone(), Member::default())).collect();
        Self {
            identity,
            link: Link::Never,
            tree_read: None,
            latency: None,
            leader: None,
            leader_changed: None,
            verified: None,
            barrier_failed: None,
            cluster: Cluster::default(),
            members,
            agents: BTreeMap::new(),
            agents_unconfirmed: BTreeSet::new(),
            alive_lock: None,
            haproxy: None,
            name_taken: None,
            failed_tasks: BTreeMap::new(),
            verification_asked: None,
            announced: None,
            leadership: Leadership::default(),
            routing: RoutingMemory::default(),
            haproxy_file: HaproxyFileMemory::default(),
        }
    }

    /// The present session; `None` while ZooKeeper is away.
    pub const fn session(&self) -> Option<&Session> {
        match &self.link {
            Link::Connected { session, .. } => Some(session),
            Link::Never | Link::Lost { .. } => None,
        }
    }

    /// Whether two members have the same address in their newest znodes. An answer from there may then be from either.
    pub fn at_one_address(&self, one: &MemberName, other: &MemberName) -> bool {
        let record = |name| self.members.get(name).and_then(|member| member.last_record.as_ref());
        let (Some(one), Some(other)) = (record(one), record(other)) else { return false };
        one.host.is_some() && (&one.host, one.port) == (&other.host, other.port)
    }

    /// Applies an event. `now` is the present moment, `observed.at` the moment of the question.
    pub fn apply(&mut self, observed: Observed, now: Moment) {
        let at = observed.at;
        self.leadership.note(&observed.event, at, now, self.identity.member.as_ref(), self.tree_read);
        match observed.event {
            Event::Tick => self.forget_departed(now),
            Event::ZooKeeper(event) => self.apply_zookeeper(event, at, now),
            Event::Member(name, event) => self.apply_member(name, event, at),
            Event::Local(LocalEvent::AliveLock(lock)) => {
                replace(&mut self.alive_lock, Fact::new(lock, Source::AliveLock, at));
            }
            // [`Leadership`] has noted them.
            Event::Local(LocalEvent::ShutDown(_) | LocalEvent::FenceSession(_) | LocalEvent::Remembered(_)) => {}
            Event::Haproxy(event) => self.apply_haproxy(event, at),
            Event::Report(report) => self.apply_report(report, at),
            Event::Started(started) => self.apply_started(started, at),
            Event::TaskFailed { task, error } => {
                self.failed_tasks.insert(task, Fact::new(error, Source::Own, at));
            }
        }
        self.note_lock(now);
    }

    /// Notes whether a free alive lock proves anything.
    fn note_lock(&mut self, now: Moment) {
        let Some(lock) = &self.alive_lock else { return };
        let member = self.identity.member.as_ref().and_then(|name| self.members.get(name));
        let patroni = member.and_then(|member| member.patroni.as_ref()).filter(|fact| {
            matches!(fact.value, PatroniAnswer::Answering(_)) && fact.age(now) <= crate::limits::PROBE_LIMIT
        });
        self.leadership.note_lock(lock, patroni.map(|fact| fact.at));
    }

    fn apply_report(&mut self, report: Report, at: Moment) {
        match report {
            // A confirmed fence proves it: the server refused a new session, or is in recovery.
            Report::Fence(FenceReport { member, outcome: FenceOutcome::Confirmed { .. }, .. }) => {
                self.members.entry(member).or_default().note_writable_since(Some(false), at);
            }
            Report::Routed(report) => self.note_routed(report, at),
            Report::Hold(report) => self.note_hold(report, at),
            Report::Rendered(report) => self.note_rendered(report, at),
            // [`Leadership`] has noted them.
            Report::Fence(_) | Report::Release(_) | Report::Nudged(_) | Report::Reconnected(_) => {}
        }
    }

    fn apply_started(&mut self, started: Started, at: Moment) {
        match started {
            Started::Verification => self.verification_asked = Some(at),
            Started::Announcement(record) => self.announced = Some((record, at)),
            Started::Render => self.haproxy_file.ordered = Some(at),
            Started::ProbeHaproxy => self.routing.probed = Some(at),
            Started::Route { server, to } => self.routing.note_command(server, to, at),
            Started::Hold { proxy, on: true } => {
                self.routing.hold_refreshed_at.insert(proxy, at);
            }
            Started::Hold { proxy, on: false } => {
                self.routing.hold_refreshed_at.remove(&proxy);
            }
            // [`Leadership`] has noted them.
            Started::Fence(_)
            | Started::CloseFence
            | Started::Keep(_)
            | Started::Probe
            | Started::Release
            | Started::Nudge
            | Started::Reconnect => {}
        }
    }

    fn forget_departed(&mut self, now: Moment) {
        let own = self.identity.member.clone();
        let agents = &self.agents;
        self.routing.session_lost_at.retain(|_, at| now.since(*at) <= FORGET_AFTER);
        self.routing.session_losses.retain(|_, (since, _)| now.since(*since) <= FORGET_AFTER);
        // An answer does not carry the member's name. A renamed member must not keep its old name alive.
        let place = |member: &Member| member.last_record.as_ref()?.postgres();
        let there = self
            .members
            .values()
            .filter(|member| member.record.as_ref().is_some_and(|record| record.value.present().is_some()));
        let taken: BTreeSet<(String, u16)> = there.filter_map(place).collect();
        self.members.retain(|name, member| {
            let has_znode = member.record.as_ref().is_none_or(|record| record.value != Reading::Absent);
            let has_agent = agents
                .values()
                .filter_map(|agent| agent.value.present())
                .any(|agent| agent.member.as_ref() == Some(name));
            // The same holds if the address is written otherwise: the Patroni there has another name.
            let is_anothers =
                member.patroni.as_ref().is_some_and(|fact| matches!(fact.value, PatroniAnswer::Anothers(_)));
            let replaced = is_anothers || place(member).is_some_and(|place| taken.contains(&place));
            let showed_life = !replaced && member.alive_at.is_some_and(|at| now.since(at) <= FORGET_AFTER);
            own.as_ref() == Some(name) || has_znode || has_agent || showed_life
        });
    }
}

/// Replaces `old` by `new`, unless `new` was requested earlier.
fn replace<T>(old: &mut Option<Fact<T>>, new: Fact<T>) {
    if old.as_ref().is_none_or(|old| old.at <= new.at) {
        *old = Some(new);
    }
}

#[cfg(test)]
pub(crate) mod tests;
