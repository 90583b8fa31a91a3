//! What an agent hears, in small; it becomes the core's event only when it is taken in.

use crate::agent::{AgentEvent, For, KNOWS_ALL, OwnZnode};
use crate::mutation::Mutation;
use crate::world::{Happening, World, letter, tell};
use crate::zookeeper::{Client, Config, Key};
use std::time::Duration;
use warden_core::event::{
    AgentRecord, AliveLock, Barrier, ClusterConfig, Event, FailoverRequest, FenceOutcome, FenceRecord, FenceReport,
    LeaderKey, MemberRecord, PatroniAnswer, PatroniStatus, PostgresAnswer, ReleaseReport, Role, Rule, Server, Session,
    State, SyncState, Znode,
};
use warden_core::fact::{Reading, Source};
use warden_core::types::{Lsn, MemberName, SessionId, SystemId, Timeline, UnixMillis, Zxid};

#[derive(Clone, Copy, Debug)]
pub enum Heard {
    Leader(usize, Option<Key>),
    Config(usize, Config),
    Failover(usize, Option<(usize, usize)>),
    Status(usize, u64),
    Agent(usize, usize),
    Record(usize, usize),
    TreeRead(usize),
    Barrier(Option<Key>, Config, usize),
    NoBarrier,
    Lock(bool),
    Pg(usize, bool, u32),
    PgRefuses(usize),
    PgGone(usize),
    PgSilent(usize),
    Patroni { writable: Option<bool>, seen: u64, failsafe: bool },
    PatroniSilent,
    PatroniRefuses,
    Fence(usize, Rule, FenceSaid),
    Released(bool),
}

#[derive(Clone, Copy, Debug)]
pub enum FenceSaid {
    Confirmed,
    Waiting,
    Withdrawn,
    Failed,
}

pub fn reading(key: Option<Key>) -> Reading<LeaderKey> {
    key.map_or(Reading::Absent, |key| {
        Reading::Present(LeaderKey {
            holder: letter(key.node).into(),
            czxid: Zxid(key.czxid),
            mzxid: Zxid(key.czxid),
            owner: SessionId(i64::try_from(key.owner).unwrap_or(0)),
            created: UnixMillis(0),
        })
    })
}

fn configuration(config: Config, mutation: Mutation) -> Reading<ClusterConfig> {
    Reading::Present(ClusterConfig {
        ttl: Duration::from_millis(config.ttl),
        loop_wait: Duration::from_millis(config.loop_wait),
        retry_timeout: Duration::from_millis(config.retry_timeout),
        pause: config.pause && mutation != Mutation::IgnoresPause,
        failsafe_mode: config.failsafe,
        synchronous_mode: true,
        standby_cluster: false,
    })
}

impl World {
    /// Tells every agent with a session what changed in the tree, each through its own, perhaps lagging, server.
    fn spread(&mut self, what: impl Fn(usize) -> Heard) {
        for node in 0..self.setting.nodes {
            self.spread_to(node, &what);
        }
    }

    fn spread_to(&mut self, node: usize, what: &impl Fn(usize) -> Heard) {
        let pause = self.chance.between(1, 5);
        let agent = &mut self.nodes[node].agent;
        let Some(session) = agent.session else { return };
        if !agent.reaches {
            agent.missed = true;
            return;
        }
        let at = agent.heard_until.max(self.now + agent.lag + pause);
        agent.heard_until = at;
        let life = agent.life;
        self.at(at, Happening::Agent(node, life, AgentEvent::Hear(at, what(session))));
    }

    pub fn key_changed(&mut self) {
        let key = self.zk.key;
        self.spread(|session| Heard::Leader(session, key));
    }

    pub fn config_changed(&mut self) {
        let config = self.zk.config;
        self.spread(|session| Heard::Config(session, config));
    }

    pub fn failover_changed(&mut self) {
        let failover = self.zk.failover;
        self.spread(|session| Heard::Failover(session, failover));
    }

    pub fn announce_to_all(&mut self, node: usize) {
        self.spread(|session| Heard::Agent(session, node));
    }

    pub fn record_changed(&mut self, node: usize) {
        self.spread(|session| Heard::Record(session, node));
    }

    /// The leader wrote its position; only its own agent makes anything of that.
    pub fn status_written(&mut self, node: usize) {
        let now = self.now;
        self.spread_to(node, &|session| Heard::Status(session, now));
    }

    /// The alive lock of `node` was taken or let go; or somebody begins to look at it.
    pub fn lock_changed(&mut self, node: usize) {
        if !self.setting.alive_lock || !self.nodes[node].agent.up {
            return;
        }
        let free = !self.nodes[node].patroni.holds_lock();
        let pause = if free { self.chance.between(1, 60) } else { self.chance.between(1, 200) };
        self.agent_after(node, pause, AgentEvent::Hear(self.now, Heard::Lock(free)));
    }

    pub fn hear(&mut self, node: usize, asked: u64, heard: Heard) {
        let held = self.nodes[node].patroni.holds_lock();
        let agent = &mut self.nodes[node].agent;
        match heard {
            // Of a session that is over.
            Heard::Leader(session, _)
            | Heard::Config(session, _)
            | Heard::Failover(session, _)
            | Heard::Status(session, _)
            | Heard::Agent(session, _)
            | Heard::Record(session, _)
            | Heard::TreeRead(session)
                if agent.session != Some(session) =>
            {
                return;
            }
            // The lock was looked at when this is taken in, not when it changed: it may have changed again.
            Heard::Lock(free) if free == held => return,
            // It was answered meanwhile.
            Heard::PatroniSilent if agent.question.take_if(|question| *question == asked).is_none() => return,
            Heard::Barrier(..) => agent.knows |= 1,
            Heard::TreeRead(_) => agent.knows |= 2,
            Heard::Pg(whose, ..) if whose == node => agent.knows |= 4,
            Heard::Patroni { failsafe: true, .. } => agent.failsafe_heard = Some(self.now),
            _ => {}
        }
        let agent = &mut self.nodes[node].agent;
        if agent.knows == KNOWS_ALL && agent.informed_at == u64::MAX {
            agent.informed_at = self.now;
        }
        if let Heard::Failover(_, Some((from, to))) = heard {
            let standbys = [MemberName::from(letter(to))].into();
            let sync = SyncState { leader: Some(letter(from).into()), standbys, quorum: 0 };
            self.apply(node, asked, Event::Znode(Znode::Sync(Reading::Present(sync))));
        }
        if self.mutation == Mutation::PlainForBarrier
            && let Heard::Leader(session, key) = heard
        {
            let event = self.event(node, Heard::Barrier(key, self.zk.config, session));
            self.apply(node, asked, event);
        }
        if let Heard::Pg(whose, true, _) = heard
            && whose == node
            && asked >= self.nodes[node].pg.since
        {
            self.nodes[node].pg.seen.get_or_insert(self.now);
        }
        let event = self.event(node, heard);
        self.take_in(node, asked, event);
    }

    fn event(&self, node: usize, heard: Heard) -> Event {
        let postgres = |whose: usize, answer| Event::Postgres {
            member: letter(whose).into(),
            via: if whose == node { Source::Socket } else { Source::Tcp },
            answer,
        };
        let patroni = |answer| Event::Patroni { member: letter(node).into(), answer };
        match heard {
            Heard::Leader(_, key) => Event::Znode(Znode::Leader(reading(key))),
            Heard::Config(_, config) => Event::Znode(Znode::Config(configuration(config, self.mutation))),
            Heard::Failover(_, request) => {
                Event::Znode(Znode::Failover(request.map_or(Reading::Absent, |(from, to)| {
                    let (leader, candidate) = (Some(letter(from).into()), Some(letter(to).into()));
                    Reading::Present(FailoverRequest { leader, candidate, scheduled: false })
                })))
            }
            Heard::Status(_, position) => Event::Znode(Znode::Status(Reading::Present(Lsn(position)))),
            Heard::Agent(_, whose) => Event::Agent {
                name: letter(whose).into(),
                record: self.nodes[whose]
                    .agent
                    .znode
                    .as_ref()
                    .map_or(Reading::Absent, |znode| Reading::Present((*znode.record).clone())),
            },
            Heard::Record(_, whose) => {
                let member = MemberName::from(letter(whose));
                let record = self.zk.records[whose].map_or(Reading::Absent, |record| {
                    Reading::Present(FenceRecord {
                        member: member.clone(),
                        rule: record.rule,
                        reason: String::new(),
                        by: String::new(),
                        ordered: UnixMillis(0),
                        // What the rules do is recorded when it is done, what a person wants at once.
                        confirmed: (record.rule != Rule::Operator).then_some(UnixMillis(0)),
                        facts: Vec::new(),
                        written: None,
                    })
                });
                Event::FenceRecord { member, record }
            }
            Heard::TreeRead(_) => Event::TreeRead { latency: Duration::from_millis(1) },
            Heard::Barrier(key, config, session) => Event::Barrier(Barrier::Verified {
                leader: reading(key),
                config: configuration(config, self.mutation),
                sync: Reading::Absent,
                zxid: Zxid(0),
                session: SessionId(i64::try_from(session).unwrap_or(0)),
                finished: self.nodes[node].agent.moment(self.now),
            }),
            Heard::NoBarrier => Event::Barrier(Barrier::Unknown(String::new())),
            Heard::Lock(free) => Event::AliveLock(if free { AliveLock::Gone } else { AliveLock::Alive }),
            Heard::Pg(whose, writable, timeline) => {
                let server = Server {
                    timeline: Some(Timeline(timeline)),
                    lsn: None,
                    system_id: Some(SystemId(1)),
                    archiver: None,
                    receives: None,
                    heartbeat: None,
                    superuser_slots: None,
                };
                postgres(
                    whose,
                    if writable { PostgresAnswer::Writable(server) } else { PostgresAnswer::InRecovery(server) },
                )
            }
            Heard::PgRefuses(whose) => postgres(whose, PostgresAnswer::Refused(String::new())),
            Heard::PgGone(whose) => postgres(whose, PostgresAnswer::Gone(String::new())),
            Heard::PgSilent(whose) => postgres(whose, PostgresAnswer::Silent(String::new())),
            Heard::Patroni { writable, seen, failsafe } => patroni(PatroniAnswer::Answering(PatroniStatus {
                state: State::Running,
                role: if writable == Some(true) { Role::Primary } else { Role::Replica },
                writable,
                timeline: None,
                lsn: None,
                system_id: None,
                pause: false,
                failsafe_active: failsafe,
                cluster_unlocked: false,
                dcs_last_seen: Some(self.nodes[node].agent.moment(seen)),
                name: Some(letter(node).into()),
                nosync: false,
                version: None,
            })),
            Heard::PatroniSilent => patroni(PatroniAnswer::Silent(String::new())),
            Heard::PatroniRefuses => patroni(PatroniAnswer::Refused(String::new())),
            Heard::Fence(whose, rule, said) => {
                let outcome = match said {
                    FenceSaid::Confirmed => FenceOutcome::Confirmed { by: "fast", took: Duration::from_millis(30) },
                    FenceSaid::Waiting => FenceOutcome::Waiting,
                    FenceSaid::Withdrawn => FenceOutcome::Withdrawn(String::new()),
                    FenceSaid::Failed => FenceOutcome::Failed(String::new()),
                };
                Event::Fence(FenceReport { member: letter(whose).into(), rule, outcome })
            }
            Heard::Released(done) => Event::Release(if done {
                ReleaseReport::Done { took: Duration::from_millis(5) }
            } else {
                ReleaseReport::Withdrawn(String::new())
            }),
        }
    }

    pub fn connect(&mut self, node: usize) {
        if self.nodes[node].agent.session.is_some() {
            return;
        }
        if !self.reaches_zookeeper(Client::Agent(node)) {
            let pause = self.chance.between(100, 2000);
            return self.agent_after(node, pause, AgentEvent::Connect);
        }
        let requested = self.nodes[node].agent.requested;
        let session = self.open_session(Client::Agent(node), requested);
        let agent = &mut self.nodes[node].agent;
        agent.session = Some(session);
        (agent.heard_until, agent.missed) = (self.now, false);
        tell!(self, "the agent of {} has a session", letter(node));
        let pause = self.chance.between(2, 6);
        self.agent_after(node, pause, AgentEvent::FirstRead);
        let started = Event::SessionStarted(Session {
            id: SessionId(i64::try_from(session).unwrap_or(0)),
            server: String::new(),
            requested: Duration::from_millis(requested),
            negotiated: Duration::from_millis(self.zk.sessions[session].timeout),
        });
        self.take_in(node, self.now, started);
    }

    /// The first read in a session, and then one every second.
    pub fn first_read(&mut self, node: usize) {
        self.read_tree(node, true);
        self.agent_after(node, 1000, AgentEvent::Pass);
    }

    /// The whole tree, through a server that may lag.
    fn read_tree(&mut self, node: usize, first: bool) {
        let agent = &self.nodes[node].agent;
        let Some(session) = agent.session else { return };
        let key = self.zk.key_at(self.now.saturating_sub(agent.lag));
        let now = self.now;
        self.apply(node, now, Event::Znode(Znode::Leader(reading(key))));
        self.apply(node, now, Event::Znode(Znode::Config(configuration(self.zk.config, self.mutation))));
        self.apply(node, now, Event::Znode(Znode::Initialize(Reading::Present(SystemId(1)))));
        for other in 0..self.setting.nodes {
            let record = MemberRecord {
                host: Some(letter(other).to_owned()),
                port: Some(5432),
                api: None,
                role: Role::Replica,
                state: State::Running,
                timeline: None,
                lsn: None,
                version: None,
            };
            // Only what changed is news later on, and these never do.
            if first {
                self.apply(node, now, Event::Znode(Znode::Member(letter(other).into(), Reading::Present(record))));
            }
            let agents = self.event(node, Heard::Agent(session, other));
            self.apply(node, now, agents);
            // What is not there is not mentioned: it goes with the whole read.
            if self.zk.records[other].is_some() {
                let record = self.event(node, Heard::Record(session, other));
                self.apply(node, now, record);
            }
        }
        self.hear(node, now, Heard::Failover(session, self.zk.failover));
        self.hear(node, now, Heard::TreeRead(session));
    }

    /// Every second the whole tree is read again; what cannot be read within 2 s ends the session.
    pub fn pass(&mut self, node: usize) {
        let Some(session) = self.nodes[node].agent.session else { return };
        if !self.reaches_zookeeper(Client::Agent(node)) {
            return self.agent_after(node, 2000, AgentEvent::Drop("no answer within 2 s"));
        }
        if !self.zk.sessions[session].alive {
            return self.agent_after(node, 2, AgentEvent::Drop("session expired"));
        }
        self.zk.sessions[session].heard = self.now;
        if std::mem::take(&mut self.nodes[node].agent.missed) {
            self.read_tree(node, false);
        } else {
            let pause = self.chance.between(1, 3);
            self.agent_after(node, pause, AgentEvent::Hear(self.now, Heard::TreeRead(session)));
        }
        self.agent_after(node, 1000, AgentEvent::Pass);
    }

    pub fn drop_agents_session(&mut self, node: usize, why: &'static str) {
        if self.nodes[node].agent.session.is_some() {
            let pause = self.chance.between(1, 5);
            self.agent_after(node, pause, AgentEvent::Drop(why));
        }
    }

    pub fn drop_session(&mut self, node: usize, why: &'static str) {
        let Some(session) = self.nodes[node].agent.session.take() else { return };
        tell!(self, "the agent of {} has lost its session: {why}", letter(node));
        if self.reaches_zookeeper(Client::Agent(node)) {
            self.close_session(session);
        }
        let pause = self.chance.between(5, 100);
        self.agent_after(node, pause, AgentEvent::Connect);
        self.take_in(node, self.now, Event::SessionLost { reason: "lost", detail: String::new() });
    }

    pub fn announce(&mut self, node: usize, record: Box<AgentRecord>) {
        let Some(session) = self.nodes[node].agent.session else { return };
        if self.reaches_zookeeper(Client::Agent(node)) && self.zk.sessions[session].alive {
            self.zk.sessions[session].heard = self.now;
            self.nodes[node].agent.znode = Some(OwnZnode { session, record });
            self.announce_to_all(node);
        }
    }

    pub fn ask_barrier(&mut self, node: usize, what_for: For) {
        let pause = self.chance.between(1, 2);
        self.agent_after(node, pause, AgentEvent::Served(self.now, what_for));
    }

    /// The barrier's write reaches ZooKeeper; the read behind it answers once the agent's server has caught up.
    pub fn serve_barrier(&mut self, node: usize, asked: u64, what_for: For) {
        let agent = &self.nodes[node].agent;
        let lag = agent.lag;
        let session = agent.session.filter(|session| {
            self.reaches_zookeeper(Client::Agent(node)) && self.zk.sessions[*session].alive && lag < 1900
        });
        let stale = self.mutation == Mutation::PlainForBarrier;
        let key = if stale { self.zk.key_at(self.now.saturating_sub(lag)) } else { self.zk.key };
        let pause = self.chance.between(1, 2) + if stale { 0 } else { lag };
        // What was asked in a session that has ended fails with it; what is asked of nobody takes its time.
        let failing = if self.nodes[node].agent.session.is_none() { 1 } else { 2000 };
        let config = self.zk.config;
        match (what_for, session) {
            (For::View, Some(session)) => {
                self.agent_after(node, pause, AgentEvent::Hear(asked, Heard::Barrier(key, config, session)));
            }
            (For::View, None) => self.agent_after(node, failing, AgentEvent::Hear(asked, Heard::NoBarrier)),
            (For::Act(act), Some(_)) => {
                let answer = AgentEvent::Guard(asked, self.now, act, Some((key, config)));
                self.agent_after(node, pause, answer);
            }
            (For::Act(act), None) => self.agent_after(node, failing, AgentEvent::Guard(asked, self.now, act, None)),
        }
    }
}
