//! What an agent hears, in small; it becomes the core's event only when it is taken in.

use crate::agent::{AgentEvent, For, KNOWS_ALL, OwnZnode};
use crate::mutation::Mutation;
use crate::translate::{configuration, reading};
use crate::world::{Happening, World, letter, tell};
use crate::zookeeper::{Answer, Client, Config, Key, Sync};
use std::time::Duration;
use warden_core::event::{AgentRecord, Event, MemberRecord, Role, Rule, Session, State, Znode};
use warden_core::fact::Reading;
use warden_core::types::{SessionId, SystemId};

#[derive(Clone, Copy, Debug)]
pub enum Heard {
    Leader(usize, Option<Key>),
    Config(usize, Config),
    Failover(usize, Option<(usize, usize)>),
    Status(usize, u64),
    Agent(usize, usize),
    Record(usize, usize),
    TreeRead(usize),
    Barrier(Answer, usize),
    NoBarrier,
    Lock(bool),
    Sync(usize, Sync),
    Liveness(bool),
    Pg { whose: usize, writable: bool, timeline: u32, heartbeat: Option<u64> },
    PgRefuses(usize),
    PgStarts(usize, Option<bool>),
    PgLocked(usize),
    PgGone(usize),
    PgSilent(usize),
    Patroni { writable: Option<bool>, primary: bool, seen: u64, failsafe: bool },
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

    pub fn sync_changed(&mut self) {
        let sync = self.zk.sync;
        self.spread(|session| Heard::Sync(session, sync));
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
            | Heard::Sync(session, _)
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
            Heard::Pg { whose, .. } | Heard::PgStarts(whose, _) if whose == node => agent.knows |= 4,
            Heard::Patroni { failsafe: true, .. } => agent.failsafe_heard = Some(self.now),
            Heard::Patroni { failsafe: false, seen, .. } => agent.inactive_heard = Some((self.now, seen)),
            _ => {}
        }
        let agent = &mut self.nodes[node].agent;
        if agent.knows == KNOWS_ALL && agent.informed_at == u64::MAX {
            agent.informed_at = self.now;
        }
        if self.mutation == Mutation::PlainForBarrier
            && let Heard::Leader(session, key) = heard
        {
            let answer = Answer { key, config: self.zk.config, sync: self.zk.sync, zxid: self.zk.zxid() };
            let event = self.event(node, Heard::Barrier(answer, session));
            self.apply(node, asked, event);
        }
        if let Heard::Pg { whose, writable: true, .. } = heard
            && whose == node
            && asked >= self.nodes[node].pg.since
        {
            self.nodes[node].pg.seen.get_or_insert(self.now);
        }
        let event = self.event(node, heard);
        self.take_in(node, asked, event);
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
        for (at, event) in self.tree(node, key, first) {
            self.apply(node, at, event);
        }
        self.hear(node, self.now, Heard::Sync(session, self.zk.sync));
        self.hear(node, self.now, Heard::Failover(session, self.zk.failover));
        self.hear(node, self.now, Heard::TreeRead(session));
    }

    /// What is in the tree, and of when that is. Only what changed is news later on, and the members never do.
    pub fn tree(&self, node: usize, key: Option<Key>, members: bool) -> Vec<(u64, Event)> {
        let now = self.now;
        let mut events = vec![
            (now, Event::Znode(Znode::Leader(reading(key)))),
            (now, Event::Znode(Znode::Config(configuration(self.zk.config, self.mutation)))),
            (now, Event::Znode(Znode::Initialize(Reading::Present(SystemId(1))))),
        ];
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
            if members {
                events.push((now, Event::Znode(Znode::Member(letter(other).into(), Reading::Present(record)))));
            }
            // An agent's znode is as old as what it says.
            let written = self.nodes[other].agent.znode.as_ref().map_or(now, |znode| znode.at);
            events.push((written, self.event(node, Heard::Agent(0, other))));
            // What is not there is not mentioned: it goes with the whole read.
            if self.zk.records[other].is_some() {
                events.push((now, self.event(node, Heard::Record(0, other))));
            }
        }
        events
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
            self.nodes[node].agent.znode = Some(OwnZnode { session, record, at: self.now });
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
        let answer = Answer { key, config: self.zk.config, sync: self.zk.sync, zxid: self.zk.transaction() };
        match (what_for, session) {
            (For::View, Some(session)) => {
                self.agent_after(node, pause, AgentEvent::Hear(asked, Heard::Barrier(answer, session)));
            }
            (For::View, None) => self.agent_after(node, failing, AgentEvent::Hear(asked, Heard::NoBarrier)),
            (For::Act(act), Some(_)) => {
                self.agent_after(node, pause, AgentEvent::Guard(asked, self.now, act, Some(answer)));
            }
            (For::Act(act), None) => self.agent_after(node, failing, AgentEvent::Guard(asked, self.now, act, None)),
        }
    }
}
