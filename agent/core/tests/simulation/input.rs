//! The inputs of an agent, in a compact form. `translate.rs` makes the core's event when the agent receives one.

use crate::agent::{AgentEvent, KNOWS_ALL, OwnZnode, ReadPurpose};
use crate::haproxy::ServerReport;
use crate::mutation::Mutation;
use crate::translate::{configuration, reading};
use crate::world::{World, WorldEvent, letter, log};
use crate::zookeeper::{Answer, Client, Config, Key, Sync};
use std::time::Duration;
use warden_core::event::{AgentRecord, Event, Rule, Session, Znode, ZooKeeperEvent};
use warden_core::fact::Reading;
use warden_core::fixtures;
use warden_core::haproxy::ServerCommand;
use warden_core::types::SystemId;

#[derive(Clone, Copy, Debug)]
pub enum Input {
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
    Pg {
        whose: usize,
        writable: bool,
        timeline: u32,
        heartbeat: Option<u64>,
    },
    PgRefuses(usize),
    PgStarts(usize, Option<bool>),
    PgNoLogin(usize),
    PgGone(usize),
    PgSilent(usize),
    Patroni {
        writable: Option<bool>,
        primary: bool,
        seen: u64,
        failsafe: bool,
    },
    PatroniSilent,
    PatroniRefuses,
    Fence(usize, Rule, FenceResult),
    Released(bool),
    /// The Patroni of another member: whether its server takes writes, if it answers.
    PatroniOf(usize, Option<bool>),
    Haproxy([Option<ServerReport>; 3]),
    SessionLost(usize),
    Hold(bool),
    Routed(usize, ServerCommand, bool),
}

#[derive(Clone, Copy, Debug)]
pub enum FenceResult {
    Confirmed,
    Waiting,
    Withdrawn,
    Failed,
}

impl World {
    /// Sends a change of the tree to every agent with a session, each through its own server, which may lag.
    fn spread(&mut self, input: impl Fn(usize) -> Input) {
        for node in 0..self.setting.nodes {
            self.spread_to(node, &input);
        }
    }

    fn spread_to(&mut self, node: usize, input: &impl Fn(usize) -> Input) {
        let pause = self.random.between(1, 5);
        let agent = &mut self.nodes[node].agent;
        let Some(session) = agent.session else { return };
        if !agent.reaches {
            agent.missed = true;
            return;
        }
        let at = agent.delivered_until.max(self.now + agent.lag + pause);
        agent.delivered_until = at;
        let life = agent.life;
        self.at(at, WorldEvent::Agent(node, life, AgentEvent::Receive(at, input(session))));
    }

    pub fn key_changed(&mut self) {
        let key = self.zk.key;
        self.spread(|session| Input::Leader(session, key));
    }

    pub fn config_changed(&mut self) {
        let config = self.zk.config;
        self.spread(|session| Input::Config(session, config));
    }

    pub fn failover_changed(&mut self) {
        let failover = self.zk.failover;
        self.spread(|session| Input::Failover(session, failover));
    }

    pub fn sync_changed(&mut self) {
        let sync = self.zk.sync;
        self.spread(|session| Input::Sync(session, sync));
    }

    pub fn announce_to_all(&mut self, node: usize) {
        self.spread(|session| Input::Agent(session, node));
    }

    pub fn record_changed(&mut self, node: usize) {
        self.spread(|session| Input::Record(session, node));
    }

    /// The leader has written its position. Only its own agent uses that.
    pub fn status_written(&mut self, node: usize) {
        let now = self.now;
        self.spread_to(node, &|session| Input::Status(session, now));
    }

    /// Patroni took or released the alive lock of `node`, or the agent begins to watch it.
    pub fn lock_changed(&mut self, node: usize) {
        if !self.setting.alive_lock || !self.nodes[node].agent.up {
            return;
        }
        let free = !self.nodes[node].patroni.holds_lock();
        let pause = if free { self.random.between(1, 60) } else { self.random.between(1, 200) };
        self.agent_after(node, pause, AgentEvent::Receive(self.now, Input::Lock(free)));
    }

    pub fn receive(&mut self, node: usize, asked: u64, input: Input) {
        let lock_is_held = self.nodes[node].patroni.holds_lock();
        let agent = &mut self.nodes[node].agent;
        match input {
            // The event belongs to a session that is over.
            Input::Leader(session, _)
            | Input::Config(session, _)
            | Input::Failover(session, _)
            | Input::Sync(session, _)
            | Input::Status(session, _)
            | Input::Agent(session, _)
            | Input::Record(session, _)
            | Input::TreeRead(session)
                if agent.session != Some(session) =>
            {
                return;
            }
            // The agent reads the lock now: its state may have changed since the event.
            Input::Lock(free) if free == lock_is_held => return,
            // Patroni has answered meanwhile.
            Input::PatroniSilent if agent.question.take_if(|question| *question == asked).is_none() => return,
            Input::Barrier(..) => agent.knows |= 1,
            Input::TreeRead(_) => agent.knows |= 2,
            Input::Pg { whose, .. } | Input::PgStarts(whose, _) if whose == node => agent.knows |= 4,
            Input::Patroni { failsafe: true, .. } => agent.failsafe_reported_at = Some(self.now),
            Input::Patroni { failsafe: false, seen, .. } => agent.failsafe_denied = Some((self.now, seen)),
            _ => {}
        }
        let agent = &mut self.nodes[node].agent;
        if agent.knows == KNOWS_ALL && agent.informed_at == u64::MAX {
            agent.informed_at = self.now;
        }
        if self.mutation == Mutation::PlainForBarrier
            && let Input::Leader(session, key) = input
        {
            let answer = Answer { key, config: self.zk.config, sync: self.zk.sync, zxid: self.zk.zxid() };
            let event = self.event(node, Input::Barrier(answer, session));
            self.apply(node, asked, event);
        }
        if let Input::Pg { whose, writable: true, .. } = input
            && whose == node
            && asked >= self.nodes[node].pg.since
        {
            self.nodes[node].pg.seen.get_or_insert(self.now);
        }
        let event = self.event(node, input);
        self.take_in(node, asked, event);
    }

    pub fn connect(&mut self, node: usize) {
        if self.nodes[node].agent.session.is_some() {
            return;
        }
        if !self.reaches_zookeeper(Client::Agent(node)) {
            let pause = self.random.between(100, 2000);
            return self.agent_after(node, pause, AgentEvent::Connect);
        }
        let requested = self.nodes[node].agent.requested;
        let session = self.open_session(Client::Agent(node), requested);
        let agent = &mut self.nodes[node].agent;
        (agent.session, agent.session_at) = (Some(session), self.now);
        (agent.delivered_until, agent.missed) = (self.now, false);
        log!(self, "the agent of {} has a session", letter(node));
        let pause = self.random.between(2, 6);
        self.agent_after(node, pause, AgentEvent::FirstRead);
        let started = Event::ZooKeeper(ZooKeeperEvent::SessionStarted(Session {
            requested: Duration::from_millis(requested),
            negotiated: Duration::from_millis(self.zk.sessions[session].timeout),
            ..fixtures::session(i64::try_from(session).unwrap_or(0))
        }));
        self.take_in(node, self.now, started);
    }

    /// The first read in a session. A pass follows every second.
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
        self.receive(node, self.now, Input::Sync(session, self.zk.sync));
        self.receive(node, self.now, Input::Failover(session, self.zk.failover));
        self.receive(node, self.now, Input::TreeRead(session));
    }

    /// The tree, each part with its time. Without `members`, the members are left out: they never change.
    pub fn tree(&self, node: usize, key: Option<Key>, members: bool) -> Vec<(u64, Event)> {
        let now = self.now;
        let mut events = vec![
            (now, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Leader(reading(key))))),
            (now, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(configuration(self.zk.config, self.mutation))))),
            (now, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Initialize(Reading::Present(SystemId(1)))))),
        ];
        for other in 0..self.setting.nodes {
            if members {
                let record = fixtures::member_record(letter(other));
                events.push((now, fixtures::member_read(letter(other), Reading::Present(record))));
            }
            // An agent's znode is as old as its last write.
            let written = self.nodes[other].agent.znode.as_ref().map_or(now, |znode| znode.at);
            events.push((written, self.event(node, Input::Agent(0, other))));
            // An absent record is not reported: the read of the whole tree implies it.
            if self.zk.records[other].is_some() {
                events.push((now, self.event(node, Input::Record(0, other))));
            }
        }
        events
    }

    /// The agent reads the tree every second. It gives up its session if a read takes more than 2 s.
    pub fn pass(&mut self, node: usize) {
        let Some(session) = self.nodes[node].agent.session else { return };
        if !self.reaches_zookeeper(Client::Agent(node)) {
            return self.agent_after(node, 2000, AgentEvent::Drop("no answer within 2 s"));
        }
        if !self.zk.sessions[session].alive {
            return self.agent_after(node, 2, AgentEvent::Drop("session expired"));
        }
        self.zk.sessions[session].contact_at = self.now;
        if std::mem::take(&mut self.nodes[node].agent.missed) {
            self.read_tree(node, false);
        } else {
            let pause = self.random.between(1, 3);
            self.agent_after(node, pause, AgentEvent::Receive(self.now, Input::TreeRead(session)));
        }
        self.agent_after(node, 1000, AgentEvent::Pass);
    }

    pub fn drop_agents_session(&mut self, node: usize, why: &'static str) {
        if self.nodes[node].agent.session.is_some() {
            let pause = self.random.between(1, 5);
            self.agent_after(node, pause, AgentEvent::Drop(why));
        }
    }

    pub fn drop_session(&mut self, node: usize, why: &'static str) {
        let Some(session) = self.nodes[node].agent.session.take() else { return };
        log!(self, "the agent of {} has lost its session: {why}", letter(node));
        if self.reaches_zookeeper(Client::Agent(node)) {
            self.close_session(session);
        }
        let pause = self.random.between(5, 100);
        self.agent_after(node, pause, AgentEvent::Connect);
        self.take_in(
            node,
            self.now,
            Event::ZooKeeper(ZooKeeperEvent::SessionLost { reason: "lost", detail: String::new() }),
        );
    }

    pub fn announce(&mut self, node: usize, record: Box<AgentRecord>) {
        let Some(session) = self.nodes[node].agent.session else { return };
        if self.reaches_zookeeper(Client::Agent(node)) && self.zk.sessions[session].alive {
            self.zk.sessions[session].contact_at = self.now;
            self.nodes[node].agent.znode = Some(OwnZnode { session, record, at: self.now });
            self.announce_to_all(node);
        }
    }

    pub fn ask_barrier(&mut self, node: usize, purpose: ReadPurpose) {
        let pause = self.random.between(1, 2);
        self.agent_after(node, pause, AgentEvent::Served(self.now, purpose));
    }

    /// The barrier's write reaches ZooKeeper. The read after it returns when the agent's server has caught up.
    pub fn serve_barrier(&mut self, node: usize, asked: u64, purpose: ReadPurpose) {
        let agent = &self.nodes[node].agent;
        let lag = agent.lag;
        let session = agent.session.filter(|session| {
            self.reaches_zookeeper(Client::Agent(node)) && self.zk.sessions[*session].alive && lag < 1900
        });
        let stale = self.mutation == Mutation::PlainForBarrier;
        let key = if stale { self.zk.key_at(self.now.saturating_sub(lag)) } else { self.zk.key };
        let pause = self.random.between(1, 2) + if stale { 0 } else { lag };
        // A request fails together with its session. Without an answer it fails after 2 s.
        let failing = if self.nodes[node].agent.session.is_none() { 1 } else { 2000 };
        let answer = Answer { key, config: self.zk.config, sync: self.zk.sync, zxid: self.zk.transaction() };
        match (purpose, session) {
            (ReadPurpose::View, Some(session)) => {
                self.agent_after(node, pause, AgentEvent::Receive(asked, Input::Barrier(answer, session)));
            }
            (ReadPurpose::View, None) => self.agent_after(node, failing, AgentEvent::Receive(asked, Input::NoBarrier)),
            (ReadPurpose::Act(act), Some(_)) => {
                self.agent_after(node, pause, AgentEvent::Guard(asked, self.now, act, Some(answer)));
            }
            (ReadPurpose::Act(act), None) => {
                self.agent_after(node, failing, AgentEvent::Guard(asked, self.now, act, None))
            }
        }
    }
}
