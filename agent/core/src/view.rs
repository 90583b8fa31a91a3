//! What is believed: the newest fact of each kind, with its source and age.
//!
//! [`View::apply`] is the only way in. It keeps what was said and when; it draws no conclusions: those are
//! [`crate::assess`]'s. A fact is never replaced by one that was asked for earlier.

use crate::event::{
    AgentRecord, AliveLock, Barrier, ClusterConfig, Event, FailoverRequest, FenceOutcome, FenceReport, HaproxyAnswer,
    LeaderKey, MemberRecord, Observed, PatroniAnswer, PatroniStatus, PostgresAnswer, Session, Started, SyncState,
    Znode,
};
use crate::fact::{Fact, Reading, Source};
use crate::haproxy::file::{Drawing, RenderReport};
use crate::haproxy::{RouteOutcome, RouteReport, Routing};
use crate::leadership::{Leadership, Read};
use crate::types::{AgentName, Lsn, MemberName, Moment, SystemId, Timeline};
use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// How long a member without a znode stays in the view after its last sign of life.
///
/// A frozen Patroni loses its member znode while its PostgreSQL may go on taking writes: forgetting the
/// member at once would hide the very thing that has to be seen. Twice the usual ttl.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// Who we are; fixed for the life of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Patroni's scope.
    pub scope: String,
    /// Our own name.
    pub agent: AgentName,
    /// The member we stand beside, if any.
    pub member: Option<MemberName>,
    /// Our roles, `node` and `router`.
    pub roles: Vec<String>,
    /// Where our HTTP API answers, `host:port`.
    pub address: String,
    /// Our version.
    pub version: String,
    /// Whether an alive lock is configured.
    pub has_alive_lock: bool,
    /// ZooKeeper's tickTime: a session that is not heard may live for up to two of them beyond its timeout.
    pub tick_time: Duration,
    /// The timeout asked of ZooKeeper until Patroni's configuration has been read.
    pub session_timeout: Duration,
}

/// The connection to ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// No session yet.
    Never,
    /// In this session since `since`.
    Connected {
        /// The session.
        session: Session,
        /// When it began.
        since: Moment,
    },
    /// The last session is over.
    Lost {
        /// For people.
        detail: String,
        /// When it was lost.
        since: Moment,
    },
}

/// A finished barrier read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verification {
    /// What the leader znode said.
    pub leader: Reading<LeaderKey>,
    /// What Patroni's dynamic configuration said behind the same barrier.
    pub config: Reading<ClusterConfig>,
    /// What Patroni's `sync` znode said behind the same barrier.
    pub sync: Reading<SyncState>,
    /// The transaction of the write that made the barrier.
    pub zxid: crate::types::Zxid,
    /// The session it was read in.
    pub session: crate::types::SessionId,
    /// When it was asked for.
    pub started: Moment,
    /// When the answer was there: the leader was so at some moment between the two.
    pub finished: Moment,
}

/// What is believed of one member.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Member {
    /// Its znode.
    pub record: Option<Fact<Reading<MemberRecord>>>,
    /// The newest znode that could be read: where to find it when the znode is gone.
    pub last_record: Option<MemberRecord>,
    /// How its Patroni answered us last.
    pub patroni: Option<Fact<PatroniAnswer>>,
    /// Since when its Patroni has not been answering, if it is not.
    pub patroni_away_since: Option<Moment>,
    /// What its Patroni last answered to `GET /liveness`: whether its HA loop turns.
    pub loop_turns: Option<Fact<bool>>,
    /// How its PostgreSQL answered us last.
    pub postgres: Option<Fact<PostgresAnswer>>,
    /// The system identifier that its PostgreSQL last told.
    pub system_id: Option<SystemId>,
    /// Since when its PostgreSQL has been seen writable, by whomever, and never otherwise in between.
    pub writable_since: Option<Moment>,
    /// Whether the gate could log in to its server, when that was last tried; the error says why it could not.
    pub gate_checked: Option<Fact<Result<(), String>>>,
    /// The last word on whether it takes writes, by its server, its agent or its Patroni, and when that was. A refusal is no
    /// word: a server that was writable and starts again takes writes when it is up.
    pub last_word: Option<(Moment, bool)>,
    /// When anything of it last showed life.
    pub alive_at: Option<Moment>,
}

impl Member {
    /// Keeps [`Member::last_word`].
    fn note_word(&mut self, word: Option<bool>, at: Moment) {
        if let Some(writes) = word
            && self.last_word.is_none_or(|(known, _)| known <= at)
        {
            self.last_word = Some((at, writes));
        }
    }

    /// Keeps [`Member::writable_since`] with an answer of its PostgreSQL: `None` where that says nothing.
    fn note_writable(&mut self, writable: Option<bool>, at: Moment) {
        match writable {
            Some(true) => self.writable_since = Some(self.writable_since.map_or(at, |since| since.min(at))),
            Some(false) => self.writable_since = None,
            None => {}
        }
    }

    /// Its Patroni answered its own agent at `at`. What that agent heard from PostgreSQL itself counts for more than
    /// what Patroni heard, and what was asked later than this, too.
    fn note_patroni_by_agent(
        &mut self,
        status: &PatroniStatus,
        postgres: Option<&(PostgresAnswer, Duration)>,
        at: Moment,
    ) {
        self.alive_at = self.alive_at.max(Some(at));
        let is_said = postgres.is_some_and(|(answer, _)| answer.takes_sessions().is_some());
        if !is_said && self.writable_since.is_none_or(|since| since <= at) {
            self.note_writable(status.writable, at);
        }
    }
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
    /// Patroni's dynamic configuration, where it could be read.
    pub fn config(&self) -> Option<&ClusterConfig> {
        self.config.as_ref()?.value.present()
    }
}

/// Everything believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Who we are.
    pub identity: Identity,
    /// The connection to ZooKeeper.
    pub link: Link,
    /// When the tree was last read as a whole, in the present session or, when it is lost, in the last one;
    /// older facts from it are as of then.
    pub tree_read: Option<Moment>,
    /// Round trip of a read, as last measured.
    pub latency: Option<Duration>,
    /// The leader znode, from whichever read was asked for last.
    pub leader: Option<Fact<Reading<LeaderKey>>>,
    /// When the view took the present value of `leader`.
    pub leader_changed: Option<Moment>,
    /// The newest barrier read of the present session.
    pub verified: Option<Verification>,
    /// Why the newest barrier read failed, if it did.
    pub barrier_failed: Option<Fact<String>>,
    /// The cluster's other znodes.
    pub cluster: Cluster,
    /// The members, by name.
    pub members: BTreeMap<MemberName, Member>,
    /// The agents' znodes, by name. Each is dated by when it was written, as far as that is known.
    pub agents: BTreeMap<AgentName, Fact<Reading<AgentRecord>>>,
    /// Agents known from former sessions that the present one has not mentioned yet.
    pub agents_unconfirmed: BTreeSet<AgentName>,
    /// The local Patroni's alive lock.
    pub alive_lock: Option<Fact<AliveLock>>,
    /// The local HAProxy.
    pub haproxy: Option<Fact<HaproxyAnswer>>,
    /// Another agent runs under our name, at this address.
    pub name_taken: Option<Fact<String>>,
    /// Our own tasks that failed, each with its last error.
    pub failed_tasks: BTreeMap<&'static str, Fact<String>>,
    /// When a barrier read was last asked for.
    pub verification_asked: Option<Moment>,
    /// What was last written to our own znode, and when.
    pub announced: Option<(Box<AgentRecord>, Moment)>,
    /// What the rules of leadership have to remember.
    pub leadership: Leadership,
    /// What the rules of routing have to remember.
    pub routing: Routing,
    /// What HAProxy's configuration is made of, and should be.
    pub drawing: Drawing,
}

impl View {
    /// The view of an agent that has just started: it knows who it is and nothing else.
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
            routing: Routing::default(),
            drawing: Drawing::default(),
        }
    }

    /// The present session, if there is one.
    pub const fn session(&self) -> Option<&Session> {
        match &self.link {
            Link::Connected { session, .. } => Some(session),
            Link::Never | Link::Lost { .. } => None,
        }
    }

    /// Whether two members have the same address in their newest znodes: what answers there may be either.
    pub fn at_one_address(&self, one: &MemberName, other: &MemberName) -> bool {
        let record = |name| self.members.get(name).and_then(|member| member.last_record.as_ref());
        let (Some(one), Some(other)) = (record(one), record(other)) else { return false };
        one.host.is_some() && (&one.host, one.port) == (&other.host, other.port)
    }

    /// Takes in something that happened. `now` is when it is taken in, `observed.at` when it was asked for.
    pub fn apply(&mut self, observed: Observed, now: Moment) {
        let at = observed.at;
        self.leadership.note(&observed.event, at, now, self.identity.member.as_ref(), self.tree_read);
        self.take_in(observed, now);
        self.note_lock(now);
    }

    /// Whether the alive lock can be relied on.
    fn note_lock(&mut self, now: Moment) {
        let Some(lock) = &self.alive_lock else { return };
        let member = self.identity.member.as_ref().and_then(|name| self.members.get(name));
        let patroni = member.and_then(|member| member.patroni.as_ref()).filter(|fact| {
            matches!(fact.value, PatroniAnswer::Answering(_)) && fact.age(now) <= crate::limits::PROBE_LIMIT
        });
        self.leadership.note_lock(lock, patroni.map(|fact| fact.at));
    }

    fn take_in(&mut self, observed: Observed, now: Moment) {
        let at = observed.at;
        match observed.event {
            Event::Tick => {
                self.forget_the_departed(now);
            }
            Event::SessionStarted(session) => {
                self.link = Link::Connected { session, since: at };
                self.tree_read = None;
                self.agents_unconfirmed = self.agents.keys().cloned().collect();
                self.verified = None;
                self.barrier_failed = None;
                self.verification_asked = None;
                self.name_taken = None;
                self.announced = None;
            }
            Event::SessionLost { detail, .. } => {
                // Further failures to connect do not make the loss any younger.
                let since = if let Link::Lost { since, .. } = self.link { since } else { at };
                self.link = Link::Lost { detail, since };
                self.verified = None;
                self.verification_asked = None;
            }
            Event::TreeRead { latency } => {
                self.latency = Some(latency);
                self.tree_read = Some(at);
                self.settle_the_absent(at);
            }
            Event::Znode(znode) => self.apply_znode(znode, at, now),
            Event::Barrier(barrier) => self.apply_barrier(barrier, at, now),
            Event::Agent { name, record } => match record {
                Reading::Absent => {
                    self.agents.remove(&name);
                }
                record => {
                    self.agents_unconfirmed.remove(&name);
                    // A node with an agent is a member, even while its Patroni has no session.
                    if let Some(known) = record.present()
                        && let Some(member) = known.member.clone()
                    {
                        let member = self.members.entry(member).or_default();
                        if let Some((answer, age)) = &known.postgres {
                            let asked = at.minus(*age);
                            member.note_writable(answer.takes_sessions(), asked);
                            member.note_word(answer.says(), asked);
                        }
                        // Our own Patroni's answers came here by themselves.
                        if let Some((answer, age)) = &known.patroni
                            && let PatroniAnswer::Answering(status) = &**answer
                            && name != self.identity.agent
                        {
                            member.note_patroni_by_agent(status, known.postgres.as_ref(), at.minus(*age));
                        }
                    }
                    self.agents.insert(name, Fact::new(record, Source::ZooKeeper, at));
                }
            },
            Event::NameTaken { by } => self.name_taken = Some(Fact::new(by, Source::ZooKeeper, at)),
            Event::Patroni { member, answer } => {
                let member = self.members.entry(member).or_default();
                match &answer {
                    PatroniAnswer::Answering(status) => {
                        member.alive_at = Some(at);
                        member.patroni_away_since = None;
                        member.note_writable(status.writable, at);
                        member.note_word(status.writable, at);
                    }
                    // Something answers.
                    PatroniAnswer::Unusable(_) => member.patroni_away_since = None,
                    PatroniAnswer::Silent(_) | PatroniAnswer::Refused(_) => {
                        member.patroni_away_since.get_or_insert(at);
                    }
                }
                replace(&mut member.patroni, Fact::new(answer, Source::Patroni, at));
            }
            Event::Postgres { member, via, answer } => {
                let member = self.members.entry(member).or_default();
                if let Some(server) = answer.server() {
                    member.alive_at = Some(at);
                    member.system_id = server.system_id.or(member.system_id);
                }
                member.note_writable(answer.takes_sessions(), at);
                member.note_word(answer.says(), at);
                replace(&mut member.postgres, Fact::new(answer, via, at));
            }
            Event::Liveness { member, turns } => {
                let member = self.members.entry(member).or_default();
                replace(&mut member.loop_turns, Fact::new(turns, Source::Patroni, at));
            }
            Event::GateChecked { member, outcome } => {
                let member = self.members.entry(member).or_default();
                replace(&mut member.gate_checked, Fact::new(outcome, Source::Tcp, at));
            }
            Event::SessionBroke { member } => self.routing.note_broke(member, at),
            Event::Routed(report) => self.note_routed(report, at),
            Event::Layout(reading) => self.drawing.rendered = Some(reading),
            Event::Rendered(report) => {
                self.drawing.ordered = None;
                self.drawing.failed = match report {
                    RenderReport::Done => None,
                    RenderReport::Failed(why) => Some((why, at)),
                };
            }
            Event::Started(Started::Render) => self.drawing.ordered = Some(at),
            Event::Started(Started::Look) => self.routing.probed = Some(at),
            Event::Started(Started::Route { pool, server, to }) => {
                self.routing.told.insert((pool, server), (to, at));
            }
            Event::Started(Started::Hold { on }) => self.routing.held = on.then_some(at),
            Event::AliveLock(lock) => replace(&mut self.alive_lock, Fact::new(lock, Source::AliveLock, at)),
            Event::Haproxy(answer) => replace(&mut self.haproxy, Fact::new(answer, Source::Haproxy, at)),
            Event::TaskFailed { task, error } => {
                self.failed_tasks.insert(task, Fact::new(error, Source::Own, at));
            }
            Event::Started(Started::Verification) => self.verification_asked = Some(at),
            Event::Started(Started::Announcement(record)) => self.announced = Some((record, at)),
            // A confirmed fence is a proof: a new session was refused, or the server is in recovery.
            Event::Fence(FenceReport { member, outcome: FenceOutcome::Confirmed { .. }, .. }) => {
                self.members.entry(member).or_default().note_writable(Some(false), at);
            }
            // The rest is leadership's alone.
            Event::FenceSession(_)
            | Event::Fence(_)
            | Event::FenceRecord { .. }
            | Event::ShutDown(_)
            | Event::Release(_)
            | Event::Nudged { .. }
            | Event::Reconnected { .. }
            | Event::Hold(_)
            | Event::Remembered(_)
            | Event::Started(_) => {}
        }
    }

    fn note_routed(&mut self, report: RouteReport, at: Moment) {
        let server = (report.pool, report.server);
        match report.outcome {
            RouteOutcome::Done { .. } | RouteOutcome::Observed | RouteOutcome::Withdrawn(_) => {
                self.routing.failing.remove(&server);
            }
            RouteOutcome::Failed(why) => {
                self.routing.failing.insert(server, (why, at));
            }
        }
    }

    fn apply_znode(&mut self, znode: Znode, at: Moment, now: Moment) {
        let source = Source::ZooKeeper;
        match znode {
            Znode::Leader(reading) => self.take_leader(Fact::new(reading, source, at), now),
            Znode::Config(reading) => self.take_config(Fact::new(reading, source, at)),
            Znode::Sync(reading) => replace(&mut self.cluster.sync, Fact::new(reading, source, at)),
            Znode::Status(reading) => replace(&mut self.cluster.status, Fact::new(reading, source, at)),
            Znode::History(reading) => replace(&mut self.cluster.history, Fact::new(reading, source, at)),
            Znode::Failover(reading) => replace(&mut self.cluster.failover, Fact::new(reading, source, at)),
            Znode::Failsafe(reading) => replace(&mut self.cluster.failsafe, Fact::new(reading, source, at)),
            Znode::Initialize(reading) => replace(&mut self.cluster.initialize, Fact::new(reading, source, at)),
            Znode::Member(name, reading) => {
                let member = self.members.entry(name).or_default();
                if let Some(record) = reading.present() {
                    member.alive_at = Some(at);
                    member.last_record = Some(record.clone());
                }
                replace(&mut member.record, Fact::new(reading, source, at));
            }
        }
    }

    fn apply_barrier(&mut self, barrier: Barrier, at: Moment, now: Moment) {
        match barrier {
            Barrier::Verified { leader, config, sync, session, zxid, finished } => {
                // A result that crossed a change of session proves nothing in the new one.
                if self.session().is_none_or(|current| current.id != session) {
                    return;
                }
                self.take_leader(Fact::new(leader.clone(), Source::Barrier, at), now);
                self.take_config(Fact::new(config.clone(), Source::Barrier, at));
                let grace = self.identity.tick_time.saturating_mul(2).saturating_add(Duration::from_secs(1));
                let connected = if let Link::Connected { since, .. } = self.link { since } else { at };
                let read = Read { leader: &leader, started: at, finished, zxid, connected, grace };
                self.leadership.note_read(&read, self.identity.member.as_ref());
                if self.verified.as_ref().is_none_or(|known| known.started <= at) {
                    self.verified = Some(Verification { leader, config, sync, session, zxid, started: at, finished });
                    self.barrier_failed = None;
                }
            }
            Barrier::Unknown(why) => replace(&mut self.barrier_failed, Fact::new(why, Source::Barrier, at)),
        }
    }

    fn take_config(&mut self, fact: Fact<Reading<ClusterConfig>>) {
        if let Some(config) = fact.value.present()
            && self.cluster.config.as_ref().is_none_or(|known| known.at <= fact.at)
        {
            self.leadership.note_ttl(config.ttl, fact.at);
        }
        replace(&mut self.cluster.config, fact);
    }

    fn take_leader(&mut self, fact: Fact<Reading<LeaderKey>>, now: Moment) {
        let same = self.leader.as_ref().is_some_and(|known| known.value == fact.value);
        let newer = self.leader.as_ref().is_none_or(|known| known.at <= fact.at);
        if newer {
            self.leadership.note_key(&fact.value, fact.at, self.identity.member.as_ref());
            self.leader = Some(fact);
            if !same {
                self.leader_changed = Some(now);
            }
        }
    }

    /// A whole pass has been read: members and agents that a former session knew and this one did not
    /// mention are gone.
    fn settle_the_absent(&mut self, at: Moment) {
        let Link::Connected { since, .. } = &self.link else { return };
        let since = *since;
        for member in self.members.values_mut() {
            if member.record.as_ref().is_none_or(|record| record.at < since) {
                member.record = Some(Fact::new(Reading::Absent, Source::ZooKeeper, at));
            }
        }
        for gone in core::mem::take(&mut self.agents_unconfirmed) {
            self.agents.remove(&gone);
        }
        // A fence that was taken back between two sessions.
        self.leadership.records.retain(|_, record| record.at >= since);
    }

    fn forget_the_departed(&mut self, now: Moment) {
        let own = self.identity.member.clone();
        let agents = &self.agents;
        self.routing.broke.retain(|_, at| now.since(*at) <= FORGET_AFTER);
        self.routing.alarms.retain(|_, (since, _)| now.since(*since) <= FORGET_AFTER);
        // A server tells nobody by which name it was asked: one that was renamed does not keep its old name alive.
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
            let replaced = place(member).is_some_and(|place| taken.contains(&place));
            let showed_life = !replaced && member.alive_at.is_some_and(|at| now.since(at) <= FORGET_AFTER);
            own.as_ref() == Some(name) || has_znode || has_agent || showed_life
        });
    }
}

/// Puts `new` in place of `old` unless it was asked for earlier.
fn replace<T>(old: &mut Option<Fact<T>>, new: Fact<T>) {
    if old.as_ref().is_none_or(|old| old.at <= new.at) {
        *old = Some(new);
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
pub(crate) mod tests;
