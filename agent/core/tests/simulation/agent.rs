//! The agent beside a node: the real core, with senses and hands of straw around it.
//!
//! It asks its PostgreSQL and its Patroni every second, the other servers too, hears of the tree by watches, and loses
//! its session with its first doubt. What it hears goes through `View::apply`, what it does is what `decide` says.

use crate::hear::Heard;
use crate::mutation::Mutation;
use crate::postgres::State;
use crate::world::{Happening, Setting, World, letter, tell};
use crate::zookeeper::{Answer, Client, TICK};
use std::time::Duration;
use warden_core::decide::decide;
use warden_core::event::{AgentRecord, Event, Observed, TermMemory};
use warden_core::plan::{Action, Policy};
use warden_core::rules::fence::Order;
use warden_core::rules::release::Release;
use warden_core::types::Moment;
use warden_core::view::{Identity, View};

#[derive(Clone, Copy, Debug)]
pub enum AgentEvent {
    /// It asks a node's PostgreSQL; the second says whether that is its turn, to be repeated.
    AskPg(usize, bool),
    AskPatroni,
    AskLiveness,
    /// A whole pass over the tree.
    Pass,
    Tick,
    /// It decides again although nothing happened.
    Wake(u64),
    Connect,
    /// Its session is no longer to be trusted.
    Drop(&'static str),
    FirstRead,
    Hear(u64, Heard),
    /// A barrier read is served by ZooKeeper: when it was asked for, and what it is for.
    Served(u64, For),
    /// What a barrier read for an act said: when it was asked for, when it was so, and what.
    Guard(u64, u64, usize, Option<Answer>),
    /// The question to Patroni right before a fence by lease is answered, or is not.
    LastWord(usize),
    NoLastWord(usize),
    ActFence(usize),
}

/// What a barrier read is for.
#[derive(Clone, Copy, Debug)]
pub enum For {
    View,
    Act(usize),
}

/// What is being done.
#[derive(Clone, Debug)]
pub enum Act {
    Fence(Box<Order>),
    Release(Box<Release>),
}

/// Its own znode.
pub struct OwnZnode {
    pub session: usize,
    pub record: Box<AgentRecord>,
    /// When it was written.
    pub at: u64,
}

pub struct Agent {
    pub view: View,
    pub policy: Policy,
    pub up: bool,
    pub paused: bool,
    /// Cut off from ZooKeeper.
    pub cut: bool,
    pub life: u32,
    /// Its clock begins here.
    pub born: u64,
    pub session: Option<usize>,
    pub requested: u64,
    /// Its ZooKeeper server is so far behind.
    pub lag: u64,
    pub lag_ended: u64,
    /// What was written later is not heard earlier.
    pub heard_until: u64,
    /// Something changed while it was cut off: the next pass finds it.
    pub missed: bool,
    pub znode: Option<OwnZnode>,
    pub acts: Vec<Option<Act>>,
    /// When it last began to know: since its start or its waking it has a session, has verified, seen the tree and
    /// its server. In the future as long as it does not.
    pub informed_at: u64,
    pub knows: u8,
    pub reaches: bool,
    /// Since when ZooKeeper can be reached, or cannot.
    pub reach_since: u64,
    /// It was cut off while the cluster was paused, as far as it can know.
    pub cut_in_pause: bool,
    /// What its Patroni told of its last contact, by the wall clock, and when that was.
    pub stamp: Option<(i64, u64)>,
    /// When its last stall was over: too short a pause to be an excuse for the lease rule.
    pub stalled: u64,
    /// When its Patroni last told that failsafe mode is active.
    pub failsafe_heard: Option<u64>,
    /// When it last told that it is not, and its newest contact with ZooKeeper by its own word then.
    pub inactive_heard: Option<(u64, u64)>,
    /// What it keeps on disk of its member's term.
    pub disk: Option<TermMemory>,
    /// Since when it runs and is not paused, or is not.
    pub since: u64,
    /// When it asked a frozen Patroni what is not answered yet.
    pub question: Option<u64>,
    /// What its rules held back when it was last told.
    held: String,
    wake_at: u64,
    backlog: Vec<AgentEvent>,
}

pub const KNOWS_ALL: u8 = 0b111;

/// An agent's clock begins so long before the agent, in milliseconds.
const ORIGIN: u64 = 1_000_000;

impl Agent {
    pub fn new(node: usize, setting: &Setting, born: u64) -> Self {
        let name = letter(node);
        let identity = Identity {
            scope: "sim".to_owned(),
            agent: name.into(),
            member: Some(name.into()),
            roles: vec!["node".to_owned()],
            address: format!("{name}:8010"),
            version: "0".to_owned(),
            has_alive_lock: setting.alive_lock,
            session_timeout: Duration::from_secs(30),
            tick_time: Duration::from_millis(TICK),
        };
        let mut policy = Policy { nudge: true, ..Policy::default() };
        policy.release.enabled = true;
        policy.release.handover = true;
        policy.release.patroni_is_pid_1 = true;
        Self {
            view: View::new(identity),
            policy,
            up: true,
            paused: false,
            cut: false,
            life: 0,
            born,
            session: None,
            requested: 30_000,
            lag: 0,
            lag_ended: 0,
            heard_until: 0,
            missed: false,
            znode: None,
            acts: Vec::new(),
            informed_at: u64::MAX,
            knows: 0,
            reaches: true,
            reach_since: 0,
            cut_in_pause: false,
            stamp: None,
            stalled: 0,
            failsafe_heard: None,
            inactive_heard: None,
            disk: None,
            since: born,
            question: None,
            held: "[]".to_owned(),
            wake_at: 0,
            backlog: Vec::new(),
        }
    }

    /// A time of the world on its clock.
    pub fn moment(&self, at: u64) -> Moment {
        Moment::from_millis(ORIGIN + at - self.born)
    }

    /// And back.
    fn time(&self, moment: Moment) -> u64 {
        (self.born + u64::try_from(moment.since_origin().as_millis()).unwrap()).saturating_sub(ORIGIN)
    }
}

impl World {
    pub fn begin_agent(&mut self, node: usize) {
        let old = &mut self.nodes[node].agent;
        let (life, cut, lag, reaches, reach_since) = (old.life + 1, old.cut, old.lag, old.reaches, old.reach_since);
        let (znode, disk) = (old.znode.take(), old.disk.take());
        let new = Agent::new(node, &self.setting, self.now);
        self.nodes[node].agent = Agent { life, cut, lag, reaches, reach_since, znode, disk, ..new };
        if let Some(disk) = self.nodes[node].agent.disk.clone() {
            self.apply(node, self.now, Event::Remembered(disk));
        }
        let first = self.chance.between(1, 30);
        self.agent_after(node, first, AgentEvent::Connect);
        let first = self.chance.between(1, 20);
        for other in 0..self.setting.nodes {
            self.agent_after(node, first, AgentEvent::AskPg(other, true));
        }
        self.agent_after(node, first, AgentEvent::AskPatroni);
        self.agent_after(node, first, AgentEvent::AskLiveness);
        self.agent_after(node, 500, AgentEvent::Tick);
        self.lock_changed(node);
    }

    pub fn stop_agent(&mut self, node: usize) {
        tell!(self, "the agent of {} stops", letter(node));
        let agent = &mut self.nodes[node].agent;
        (agent.up, agent.life, agent.since) = (false, agent.life + 1, self.now);
        (agent.paused, agent.session) = (false, None);
        agent.backlog.clear();
    }

    pub fn pause_agent(&mut self, node: usize) {
        let agent = &mut self.nodes[node].agent;
        if agent.up && !agent.paused {
            (agent.paused, agent.since) = (true, self.now);
            tell!(self, "the agent of {} is paused", letter(node));
        }
    }

    pub fn unpause_agent(&mut self, node: usize) {
        let agent = &mut self.nodes[node].agent;
        if !agent.paused {
            return;
        }
        (agent.paused, agent.since) = (false, self.now);
        if self.now > agent.stalled {
            (agent.informed_at, agent.knows) = (u64::MAX, 0);
        }
        for event in std::mem::take(&mut agent.backlog) {
            self.agent_after(node, 0, event);
        }
        tell!(self, "the agent of {} goes on", letter(node));
    }

    pub fn agent_after(&mut self, node: usize, pause: u64, event: AgentEvent) {
        let life = self.nodes[node].agent.life;
        self.after(pause, Happening::Agent(node, life, event));
    }

    pub fn agent_event(&mut self, node: usize, life: u32, event: AgentEvent) {
        let agent = &mut self.nodes[node].agent;
        if !agent.up || agent.life != life {
            return;
        }
        if agent.paused {
            agent.backlog.push(event);
            return;
        }
        match event {
            AgentEvent::AskPg(other, again) => self.ask_pg(node, other, again),
            AgentEvent::AskPatroni => self.ask_patroni(node),
            AgentEvent::AskLiveness => self.ask_liveness(node),
            AgentEvent::Pass => self.pass(node),
            AgentEvent::Tick => {
                self.agent_after(node, 1000, AgentEvent::Tick);
                self.take_in(node, self.now, Event::Tick);
            }
            AgentEvent::Wake(at) => {
                if at == self.nodes[node].agent.wake_at {
                    self.nodes[node].agent.wake_at = u64::MAX;
                    self.think(node);
                }
            }
            AgentEvent::Connect => self.connect(node),
            AgentEvent::Drop(why) => self.drop_session(node, why),
            AgentEvent::FirstRead => self.first_read(node),
            AgentEvent::Hear(asked, heard) => self.hear(node, asked, heard),
            AgentEvent::Served(asked, what_for) => self.serve_barrier(node, asked, what_for),
            AgentEvent::Guard(asked, so_at, act, answer) => self.guard(node, asked, so_at, act, answer),
            AgentEvent::LastWord(act) => self.last_word(node, act),
            AgentEvent::NoLastWord(act) => self.no_last_word(node, act),
            AgentEvent::ActFence(act) => self.act_fence(node, act, None),
        }
    }

    /// Something is taken in, and a plan made and begun.
    pub fn take_in(&mut self, node: usize, asked: u64, event: Event) {
        self.apply(node, asked, event);
        self.think(node);
    }

    pub fn apply(&mut self, node: usize, asked: u64, event: Event) {
        let agent = &mut self.nodes[node].agent;
        let (at, now) = (agent.moment(asked), agent.moment(self.now));
        warden_core::step::take_in(&mut agent.view, Observed { at, event }, now);
    }

    fn think(&mut self, node: usize) {
        let agent = &self.nodes[node].agent;
        let now = agent.moment(self.now);
        let altered = if self.mutation == Mutation::Sound { None } else { self.mutation.view(&agent.view, now) };
        let plan = decide(altered.as_ref().unwrap_or(&agent.view), &agent.policy, now);
        if self.log.is_some() {
            let verdict =
                warden_core::rules::fence::judge(altered.as_ref().unwrap_or(&self.nodes[node].agent.view), now);
            let held = format!("{:?}", verdict.held);
            if held != self.nodes[node].agent.held {
                tell!(self, "agent of {}: held back: {held}", letter(node));
                self.nodes[node].agent.held = held;
            }
        }
        for step in plan.steps {
            self.begin_action(node, step.action);
        }
        let wake = self.nodes[node].agent.time(plan.wake).max(self.now + 1);
        let agent = &mut self.nodes[node].agent;
        if wake < agent.wake_at || agent.wake_at <= self.now {
            agent.wake_at = wake;
            let life = agent.life;
            self.at(wake, Happening::Agent(node, life, AgentEvent::Wake(wake)));
        }
    }

    fn begin_action(&mut self, node: usize, action: Action) {
        match &action {
            Action::Fence(order) if self.mutation == Mutation::WithoutRule(order.rule) => return,
            Action::UseSessionTimeout(timeout) => {
                self.nodes[node].agent.requested = u64::try_from(timeout.as_millis()).unwrap_or(0);
                return self.drop_session(node, "another timeout is wanted");
            }
            _ => {}
        }
        if let Some(started) = action.started() {
            self.apply(node, self.now, Event::Started(started));
        }
        match action {
            Action::Verify => self.ask_barrier(node, For::View),
            Action::Announce(record) => self.announce(node, record),
            Action::Fence(order) => self.begin_fence(node, order),
            Action::Release(release) => {
                tell!(self, "agent of {}: release, {}", letter(node), release.reason);
                let act = self.new_act(node, Act::Release(release));
                self.ask_barrier(node, For::Act(act));
            }
            Action::CloseFence(_) => {
                if self.reaches_zookeeper(Client::Agent(node)) {
                    self.record_fence(node, None);
                }
            }
            Action::Probe { .. } => self.ask_pg(node, node, false),
            Action::Nudge => {
                if self.nodes[node].patroni.answers() {
                    self.wake_patroni(node, 20);
                }
            }
            // No HAProxy is simulated.
            Action::Keep(memory) => self.nodes[node].agent.disk = Some(memory),
            Action::ObserveFence(_)
            | Action::ObserveRelease(_)
            | Action::ObserveNudge
            | Action::ObserveReconnect
            | Action::UseSessionTimeout(_)
            | Action::Reconnect
            | Action::Look
            | Action::Render(_)
            | Action::Hold { .. }
            | Action::Route(_)
            | Action::ObserveRoute(_) => {}
        }
    }

    pub fn new_act(&mut self, node: usize, act: Act) -> usize {
        let acts = &mut self.nodes[node].agent.acts;
        acts.push(Some(act));
        acts.len() - 1
    }

    /// What a server answers to whom.
    fn ask_pg(&mut self, node: usize, other: usize, again: bool) {
        let pg = &self.nodes[other].pg;
        let (heard, takes) = if pg.paused || !self.reaches(node, other) {
            (Heard::PgSilent(other), 1000)
        } else {
            // An agent reads the heartbeat of its own server only.
            let heartbeat = pg.heartbeat.filter(|_| other == node && self.setting.heartbeat);
            let heard = match pg.state {
                State::TakesWrites | State::Follows if !pg.locked || other == node => {
                    let writable = pg.state == State::TakesWrites;
                    Heard::Pg { whose: other, writable, timeline: pg.timeline, heartbeat }
                }
                State::TakesWrites | State::Follows => Heard::PgLocked(other),
                State::Starting { standby } => {
                    let looked = other == node && self.setting.data_directory;
                    Heard::PgStarts(other, looked.then_some(standby))
                }
                State::Down if other == node => Heard::PgGone(other),
                State::Down => Heard::PgRefuses(other),
            };
            (heard, self.chance.between(1, 5))
        };
        self.agent_after(node, takes, AgentEvent::Hear(self.now, heard));
        if again {
            self.agent_after(node, 1000, AgentEvent::AskPg(other, true));
        }
    }
}
