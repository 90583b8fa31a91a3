//! The agent beside a node: the real core, with models of its watchers and actors.
//!
//! It asks its PostgreSQL, its Patroni and the other servers every second. Watches report changes of the tree. It gives
//! up its session at the first doubt. Its inputs go through `View::apply`, and its actions come from `decide`.

use crate::input::Input;
use crate::mutation::Mutation;
use crate::postgres::State;
use crate::world::{Setting, World, WorldEvent, letter, log};
use crate::zookeeper::{Answer, Client, TICK};
use std::time::Duration;
use warden_core::decide::decide;
use warden_core::event::{AgentRecord, Event, LocalEvent, Observed, TermMemory};
use warden_core::fixtures;
use warden_core::plan::{Action, Ask, LocalAction, Policy, ServersAction, ZooKeeperAction};
use warden_core::rules::fence::Order;
use warden_core::rules::release::Release;
use warden_core::rules::route::Change;
use warden_core::types::Moment;
use warden_core::view::{Identity, View};

#[derive(Clone, Copy, Debug)]
pub enum AgentEvent {
    /// The agent asks the PostgreSQL of a node. `true`: it is the regular question, which repeats.
    AskPg(usize, bool),
    AskPatroni,
    /// The agent that routes asks the Patroni of another node.
    AskPatroniOf(usize),
    /// The agent asks HAProxy. `true`: it is the regular question, which repeats.
    AskHaproxy(bool),
    AskLiveness,
    /// The agent reads the whole tree.
    Pass,
    Tick,
    /// The agent decides again without a new event.
    Wake(u64),
    Connect,
    /// The agent gives up its session.
    Drop(&'static str),
    FirstRead,
    Receive(u64, Input),
    /// ZooKeeper serves a barrier read: the time of the request, and its purpose.
    Served(u64, ReadPurpose),
    /// The result of a barrier read for an act: the time of the request, the time of the result, the act, and the
    /// result.
    Guard(u64, u64, usize, Option<Answer>),
    /// Patroni answers the last question before a fence by lease.
    LastAnswer(usize),
    LastAnswerLimit(usize),
    ActFence(usize),
}

/// The purpose of a barrier read.
#[derive(Clone, Copy, Debug)]
pub enum ReadPurpose {
    View,
    Act(usize),
}

/// An action that waits for its guard.
#[derive(Clone, Debug)]
pub enum Act {
    Fence(Box<Order>),
    Release(Box<Release>),
    /// Cuts the sessions with one of HAProxy's servers.
    Cut(Box<Change>),
}

/// The agent's own znode.
pub struct OwnZnode {
    pub session: usize,
    pub record: Box<AgentRecord>,
    /// When the agent wrote it.
    pub at: u64,
}

pub struct Agent {
    pub view: View,
    pub policy: Policy,
    pub up: bool,
    pub paused: bool,
    /// The agent cannot reach ZooKeeper.
    pub cut: bool,
    pub life: u32,
    /// The world's time at the start of the agent's clock.
    pub born: u64,
    pub session: Option<usize>,
    pub requested: u64,
    /// The delay of the agent's ZooKeeper server.
    pub lag: u64,
    pub lag_ended: u64,
    /// Events arrive in order: no later event arrives before this time.
    pub delivered_until: u64,
    /// The tree changed while the agent was cut off. The next pass finds the change.
    pub missed: bool,
    pub znode: Option<OwnZnode>,
    pub acts: Vec<Option<Act>>,
    /// Since when the agent is informed: it has a session, a barrier read, the tree, and an answer of its server.
    /// `u64::MAX` while it is not, after a start or a pause.
    pub informed_at: u64,
    pub knows: u8,
    pub reaches: bool,
    /// Since when ZooKeeper can be reached, or cannot.
    pub reach_since: u64,
    /// When its newest session began.
    pub session_at: u64,
    /// The agent was cut off in maintenance mode, as far as it can know.
    pub cut_in_pause: bool,
    /// The last contact that its Patroni reported, by the wall clock, and the time at which the agent places it.
    pub stamp: Option<(i64, u64)>,
    /// The end of the last stall. A stall is too short to be an excuse for the rule `lease`.
    pub stalled: u64,
    /// When its Patroni last reported that failsafe mode is active.
    pub failsafe_reported_at: Option<u64>,
    /// When its Patroni last reported that failsafe mode is not active, and its newest contact with ZooKeeper in that
    /// report.
    pub failsafe_denied: Option<(u64, u64)>,
    /// The agent's file about its member's term.
    pub disk: Option<TermMemory>,
    /// Since when the agent runs unpaused, or does not.
    pub since: u64,
    /// The time of its unanswered question to a frozen Patroni.
    pub question: Option<u64>,
    /// The rules' reasons to hold back, as last logged.
    obstacles: String,
    wake_at: u64,
    backlog: Vec<AgentEvent>,
}

pub const KNOWS_ALL: u8 = 0b111;

/// An agent's clock starts this long before the agent.
const CLOCK_ORIGIN_MS: u64 = 1_000_000;

impl Agent {
    pub fn new(node: usize, setting: &Setting, born: u64) -> Self {
        let name = letter(node);
        let identity = Identity {
            agent: name.into(),
            member: Some(name.into()),
            has_alive_lock: setting.alive_lock,
            tick_time: Duration::from_millis(TICK),
            ..fixtures::identity()
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
            delivered_until: 0,
            missed: false,
            znode: None,
            acts: Vec::new(),
            informed_at: u64::MAX,
            knows: 0,
            reaches: true,
            reach_since: 0,
            session_at: 0,
            cut_in_pause: false,
            stamp: None,
            stalled: 0,
            failsafe_reported_at: None,
            failsafe_denied: None,
            disk: None,
            since: born,
            question: None,
            obstacles: "[]".to_owned(),
            wake_at: 0,
            backlog: Vec::new(),
        }
    }

    /// A time of the world, on the agent's clock.
    pub fn moment(&self, at: u64) -> Moment {
        Moment::from_millis(CLOCK_ORIGIN_MS + at - self.born)
    }

    /// A time of the agent's clock, in the world.
    fn time(&self, moment: Moment) -> u64 {
        (self.born + u64::try_from(moment.since_origin().as_millis()).unwrap()).saturating_sub(CLOCK_ORIGIN_MS)
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
            self.apply(node, self.now, Event::Local(LocalEvent::Remembered(disk)));
        }
        let first = self.random.between(1, 30);
        self.agent_after(node, first, AgentEvent::Connect);
        let first = self.random.between(1, 20);
        for other in 0..self.setting.nodes {
            self.agent_after(node, first, AgentEvent::AskPg(other, true));
        }
        self.agent_after(node, first, AgentEvent::AskPatroni);
        self.agent_after(node, first, AgentEvent::AskLiveness);
        self.agent_after(node, 500, AgentEvent::Tick);
        self.lock_changed(node);
        if self.routes(node) {
            self.begin_routing(node);
        }
    }

    pub fn stop_agent(&mut self, node: usize) {
        log!(self, "the agent of {} stops", letter(node));
        let agent = &mut self.nodes[node].agent;
        (agent.up, agent.life, agent.since) = (false, agent.life + 1, self.now);
        (agent.paused, agent.session) = (false, None);
        agent.backlog.clear();
    }

    pub fn pause_agent(&mut self, node: usize) {
        let agent = &mut self.nodes[node].agent;
        if agent.up && !agent.paused {
            (agent.paused, agent.since) = (true, self.now);
            log!(self, "the agent of {} is paused", letter(node));
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
        log!(self, "the agent of {} goes on", letter(node));
    }

    pub fn agent_after(&mut self, node: usize, pause: u64, event: AgentEvent) {
        let life = self.nodes[node].agent.life;
        self.after(pause, WorldEvent::Agent(node, life, event));
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
            AgentEvent::AskPatroniOf(other) => self.ask_patroni_of(node, other),
            AgentEvent::AskHaproxy(again) => self.ask_haproxy(node, again),
            AgentEvent::AskLiveness => self.ask_liveness(node),
            AgentEvent::Pass => self.pass(node),
            AgentEvent::Tick => {
                self.agent_after(node, 1000, AgentEvent::Tick);
                self.take_in(node, self.now, Event::Tick);
            }
            AgentEvent::Wake(at) => {
                if at == self.nodes[node].agent.wake_at {
                    self.nodes[node].agent.wake_at = u64::MAX;
                    self.decide(node);
                }
            }
            AgentEvent::Connect => self.connect(node),
            AgentEvent::Drop(why) => self.drop_session(node, why),
            AgentEvent::FirstRead => self.first_read(node),
            AgentEvent::Receive(asked, input) => self.receive(node, asked, input),
            AgentEvent::Served(asked, purpose) => self.serve_barrier(node, asked, purpose),
            AgentEvent::Guard(asked, verified_at, act, answer) => self.guard(node, asked, verified_at, act, answer),
            AgentEvent::LastAnswer(act) => self.last_answer(node, act),
            AgentEvent::LastAnswerLimit(act) => self.last_answer_limit(node, act),
            AgentEvent::ActFence(act) => self.act_fence(node, act, None),
        }
    }

    /// Applies an event, plans, and begins the actions.
    pub fn take_in(&mut self, node: usize, asked: u64, event: Event) {
        self.apply(node, asked, event);
        self.decide(node);
    }

    pub fn apply(&mut self, node: usize, asked: u64, event: Event) {
        let agent = &mut self.nodes[node].agent;
        let (at, now) = (agent.moment(asked), agent.moment(self.now));
        warden_core::step::take_in(&mut agent.view, Observed { at, event }, now);
    }

    fn decide(&mut self, node: usize) {
        let agent = &self.nodes[node].agent;
        let now = agent.moment(self.now);
        let altered = if self.mutation == Mutation::Sound { None } else { self.mutation.view(&agent.view, now) };
        let plan = decide(altered.as_ref().unwrap_or(&agent.view), &agent.policy, now);
        if self.log.is_some() {
            let verdict =
                warden_core::rules::fence::judge(altered.as_ref().unwrap_or(&self.nodes[node].agent.view), now);
            let held = format!("{:?}", verdict.held);
            if held != self.nodes[node].agent.obstacles {
                log!(self, "agent of {}: held back: {held}", letter(node));
                self.nodes[node].agent.obstacles = held;
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
            self.at(wake, WorldEvent::Agent(node, life, AgentEvent::Wake(wake)));
        }
    }

    fn begin_action(&mut self, node: usize, action: Action) {
        match &action {
            Action::Fence(order) if self.mutation == Mutation::WithoutRule(order.rule) => return,
            Action::ZooKeeper(ZooKeeperAction::UseSessionTimeout(timeout)) => {
                self.nodes[node].agent.requested = u64::try_from(timeout.as_millis()).unwrap_or(0);
                return self.drop_session(node, "the agent wants another timeout");
            }
            _ => {}
        }
        if let Some(started) = action.started() {
            self.apply(node, self.now, Event::Started(started));
        }
        match action {
            Action::ZooKeeper(ZooKeeperAction::Verify) => self.ask_barrier(node, ReadPurpose::View),
            Action::ZooKeeper(ZooKeeperAction::Announce(record)) => self.announce(node, record),
            Action::Fence(order) => self.begin_fence(node, order),
            Action::Release(release) => {
                log!(self, "agent of {}: release, {}", letter(node), release.reason);
                let act = self.new_act(node, Act::Release(release));
                self.ask_barrier(node, ReadPurpose::Act(act));
            }
            Action::CloseFence(_) => {
                if self.reaches_zookeeper(Client::Agent(node)) {
                    self.record_fence(node, None);
                }
            }
            Action::Ask(Ask::Local | Ask::LocalAndOthers) => self.ask_pg(node, node, false),
            Action::Local(LocalAction::Nudge) => {
                if self.nodes[node].patroni.answers() {
                    self.wake_patroni(node, 20);
                }
            }
            Action::Keep(memory) => self.nodes[node].agent.disk = Some(memory),
            Action::Ask(Ask::HaproxyAndMembers) => self.ask_haproxy_and_members(node),
            Action::Servers(ServersAction::Hold { on, .. }) => self.begin_hold(node, on),
            Action::Servers(ServersAction::Route(change)) => self.begin_server_command(node, change),
            Action::ZooKeeper(ZooKeeperAction::UseSessionTimeout(_))
            | Action::Local(LocalAction::Reconnect)
            | Action::Render(_) => {}
        }
    }

    pub fn new_act(&mut self, node: usize, act: Act) -> usize {
        let acts = &mut self.nodes[node].agent.acts;
        acts.push(Some(act));
        acts.len() - 1
    }

    /// The server's answer depends on who asks.
    pub fn ask_pg(&mut self, node: usize, other: usize, again: bool) {
        let pg = &self.nodes[other].pg;
        let (input, takes) = if pg.paused || !self.reaches(node, other) {
            (Input::PgSilent(other), 1000)
        } else {
            // An agent reads the heartbeat of its own server only.
            let heartbeat = pg.heartbeat.filter(|_| other == node && self.setting.heartbeat);
            let input = match pg.state {
                State::TakesWrites | State::Follows if !pg.logins_refused || other == node => {
                    let writable = pg.state == State::TakesWrites;
                    Input::Pg { whose: other, writable, timeline: pg.timeline, heartbeat }
                }
                State::TakesWrites | State::Follows => Input::PgNoLogin(other),
                State::Starting { standby } => {
                    let looked = other == node && self.setting.data_directory;
                    Input::PgStarts(other, looked.then_some(standby))
                }
                State::Down if other == node => Input::PgGone(other),
                State::Down => Input::PgRefuses(other),
            };
            (input, self.random.between(1, 5))
        };
        self.agent_after(node, takes, AgentEvent::Receive(self.now, input));
        if again {
            self.agent_after(node, 1000, AgentEvent::AskPg(other, true));
        }
    }
}
