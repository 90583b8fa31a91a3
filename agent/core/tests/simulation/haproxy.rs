//! An HAProxy beside one of the nodes: its servers, its checks, its table of holds, and the agent's commands.
//!
//! It follows Warden's template: `GET /primary` every second, or every 500 ms while a result is not settled, fall 2,
//! rise 2. Its checks undo the agent's commands as HAProxy 2.6 does. One good check ends `stopping`, and two raise a
//! server that is down. A hold expires 2 s after its last refresh. A twin gets the same checks and no commands, for
//! comparison.

use crate::act::number;
use crate::agent::{Act, AgentEvent, ReadPurpose};
use crate::input::Input;
use crate::mutation::Mutation;
use crate::postgres::State;
use crate::world::{World, WorldEvent, letter, log};
use crate::zookeeper::Answer;
use warden_core::event::{Event, ZooKeeperEvent};
use warden_core::haproxy::ServerCommand;
use warden_core::rules::route::Change;

/// The time between two checks of a server, in milliseconds like all times here.
pub const INTER: u64 = 1000;

/// The time between two checks while the last results differ.
const FAST_INTER: u64 = 500;

/// Number of failed checks that take a server down.
const FALL: u8 = 2;

/// Number of passed checks that raise a server.
pub const RISE: u8 = 2;

/// The health of a server whose checks all pass.
pub const HEALTH_MAX: u8 = RISE + FALL - 1;

/// A check without an answer fails after this time.
pub const CHECK_TIMEOUT: u64 = 2000;

/// HAProxy forgets a hold this long after its last refresh.
pub const HOLD_EXPIRY: u64 = 2000;

/// The time between two questions of the agent to HAProxy.
pub const POLL_INTERVAL: u64 = 400;

#[derive(Clone, Copy, Debug)]
pub enum ProxyEvent {
    /// HAProxy asks the Patroni of a node.
    Check(usize),
    /// The check of a node has a result.
    Result(usize, CheckResult),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    Primary,
    NoPrimary,
    NoAnswer,
}

/// A server with HAProxy's counter: it is down below [`RISE`].
#[derive(Clone, Copy, Debug)]
pub struct Server {
    pub health: u8,
    /// The agent has told HAProxy to drain it. Its next good check ends that.
    pub stopping: bool,
    pub result: CheckResult,
    /// It has client sessions.
    pub used: bool,
    /// When its checks last raised it.
    pub raised_at: u64,
    /// When the agent last raised it.
    pub commanded_up_at: u64,
}

impl Server {
    const fn new() -> Self {
        let result = CheckResult::NoPrimary;
        Self { health: 0, stopping: false, result, used: false, raised_at: 0, commanded_up_at: 0 }
    }

    pub const fn is_up(&self) -> bool {
        self.health >= RISE && !self.stopping
    }

    fn apply_check(&mut self, result: CheckResult, now: u64) {
        let was_up = self.is_up();
        self.result = result;
        if result == CheckResult::Primary {
            (self.health, self.stopping) = match self.health {
                health if health + 1 >= RISE => (HEALTH_MAX, false),
                health => (health + 1, self.stopping),
            };
        } else if self.health >= RISE {
            self.health -= 1;
            if self.health < RISE {
                // `on-marked-down shutdown-sessions`
                (self.health, self.used) = (0, false);
            }
        } else {
            self.health = 0;
        }
        if self.is_up() && !was_up {
            self.raised_at = now;
        }
    }
}

pub struct Haproxy {
    /// The node beside which it stands.
    pub beside: usize,
    pub servers: Vec<Server>,
    /// The twin: the servers by HAProxy's checks alone.
    pub checks_only: Vec<Server>,
    pub hold_until: u64,
    hold: bool,
    /// Since when new connections do not reach the primary although the agent could route to it.
    pub unrouted_since: Option<u64>,
    /// Since when new connections do not reach the primary although they would by HAProxy's checks alone.
    pub delayed_since: Option<u64>,
}

impl Haproxy {
    pub fn new(beside: usize, nodes: usize) -> Self {
        Self {
            beside,
            servers: vec![Server::new(); nodes],
            checks_only: vec![Server::new(); nodes],
            hold_until: 0,
            hold: false,
            unrouted_since: None,
            delayed_since: None,
        }
    }
}

/// HAProxy's answer to an agent about a server.
#[derive(Clone, Copy, Debug)]
pub struct ServerReport {
    pub up: bool,
    pub health: u8,
    pub stopping: bool,
    pub used: bool,
    pub result: CheckResult,
}

impl World {
    pub fn begin_haproxy(&mut self, beside: usize) {
        self.haproxy = Some(Haproxy::new(beside, self.setting.nodes));
        for node in 0..self.setting.nodes {
            let first = self.random.between(1, INTER);
            self.after(first, WorldEvent::Haproxy(ProxyEvent::Check(node)));
        }
    }

    /// The agent beside HAProxy begins to ask HAProxy and the other nodes' Patronis.
    pub fn begin_routing(&mut self, node: usize) {
        let first = self.random.between(1, 20);
        self.agent_after(node, first, AgentEvent::AskHaproxy(true));
        for other in (0..self.setting.nodes).filter(|other| *other != node) {
            self.agent_after(node, first, AgentEvent::AskPatroniOf(other));
        }
    }

    /// Whether the agent of `node` routes.
    pub fn routes(&self, node: usize) -> bool {
        self.haproxy.as_ref().is_some_and(|haproxy| haproxy.beside == node)
    }

    pub fn haproxy_event(&mut self, event: ProxyEvent) {
        match event {
            ProxyEvent::Check(node) => {
                let (result, takes) = self.check_result(node);
                self.after(takes, WorldEvent::Haproxy(ProxyEvent::Result(node, result)));
            }
            ProxyEvent::Result(node, result) => {
                let now = self.now;
                let Some(haproxy) = &mut self.haproxy else { return };
                let was_up = haproxy.servers[node].is_up();
                haproxy.servers[node].apply_check(result, now);
                haproxy.checks_only[node].apply_check(result, now);
                let server = haproxy.servers[node];
                if server.is_up() != was_up {
                    let to = if was_up { "down" } else { "up" };
                    log!(self, "HAProxy's checks mark {} {to}: {result:?}", letter(node));
                }
                let settled = server.health == HEALTH_MAX || server.health == 0;
                let pause = if settled { INTER } else { FAST_INTER };
                self.after(pause, WorldEvent::Haproxy(ProxyEvent::Check(node)));
            }
        }
    }

    /// `GET /primary`, and the time that it takes. Patroni answers from its last HA cycle, for ttl at most.
    fn check_result(&mut self, node: usize) -> (CheckResult, u64) {
        let Some(beside) = self.haproxy.as_ref().map(|haproxy| haproxy.beside) else {
            return (CheckResult::NoAnswer, 1);
        };
        let patroni = &self.nodes[node].patroni;
        if !self.reaches(beside, node) || (patroni.alive && !patroni.starting && !patroni.answers()) {
            return (CheckResult::NoAnswer, CHECK_TIMEOUT);
        }
        if !patroni.answers() {
            return (CheckResult::NoAnswer, 1);
        }
        let believes = self.zk.lost_at(node).is_some_and(|lost| patroni.cycle < lost && self.now < lost + patroni.ttl);
        let result = if self.zk.holds(node) || believes { CheckResult::Primary } else { CheckResult::NoPrimary };
        (result, self.random.between(1, 20))
    }

    /// The agent asks HAProxy's socket. `again`: it is the regular question, which repeats.
    pub fn ask_haproxy(&mut self, node: usize, again: bool) {
        let Some(haproxy) = &self.haproxy else { return };
        let mut reports = [None; 3];
        for (report, server) in reports.iter_mut().zip(&haproxy.servers) {
            let Server { health, stopping, used, result, .. } = *server;
            *report = Some(ServerReport { up: server.is_up(), health, stopping, used, result });
        }
        self.agent_after(node, 1, AgentEvent::Receive(self.now, Input::Haproxy(reports)));
        if again {
            self.agent_after(node, POLL_INTERVAL, AgentEvent::AskHaproxy(true));
        }
    }

    /// The agent asks the Patroni of another node if that node's agent does not report.
    pub fn ask_patroni_of(&mut self, node: usize, other: usize) {
        let agent = &self.nodes[node].agent;
        let told = warden_core::assess::its_agent_tells(&agent.view, &letter(other).into(), agent.moment(self.now));
        if !told {
            let patroni = &self.nodes[other].patroni;
            let (writable, takes) = if !self.reaches(node, other) || (patroni.alive && !patroni.answers()) {
                (None, 1000)
            } else if patroni.answers() {
                (Some(matches!(self.nodes[other].pg.state, State::TakesWrites)), self.random.between(1, 20))
            } else {
                (None, 2)
            };
            self.agent_after(node, takes, AgentEvent::Receive(self.now, Input::PatroniOf(other, writable)));
        }
        self.agent_after(node, 1000, AgentEvent::AskPatroniOf(other));
    }

    /// The agent asks HAProxy and all servers outside of its regular turn.
    pub fn ask_haproxy_and_members(&mut self, node: usize) {
        self.ask_haproxy(node, false);
        for other in 0..self.setting.nodes {
            self.ask_pg(node, other, false);
        }
    }

    /// The sessions with a server end, and the agent that routes notices.
    pub fn lose_session(&mut self, node: usize) {
        let Some(haproxy) = &mut self.haproxy else { return };
        let beside = haproxy.beside;
        (haproxy.servers[node].used, haproxy.checks_only[node].used) = (false, false);
        if self.reaches(beside, node) && !self.nodes[node].pg.paused {
            let pause = self.random.between(1, 3);
            self.agent_after(beside, pause, AgentEvent::Receive(self.now, Input::SessionLost(node)));
            self.agent_after(beside, pause + 1, AgentEvent::AskPg(node, false));
        }
    }

    pub fn begin_hold(&mut self, node: usize, on: bool) {
        if self.mutation == Mutation::OnlyRaises {
            return;
        }
        let until = match (on, self.mutation) {
            (true, Mutation::HoldsForever) => u64::MAX,
            (true, _) => self.now + HOLD_EXPIRY,
            (false, Mutation::HoldsForever) => return,
            (false, _) => self.now,
        };
        let Some(haproxy) = &mut self.haproxy else { return };
        haproxy.hold_until = until;
        if haproxy.hold == on {
            return;
        }
        haproxy.hold = on;
        log!(self, "agent of {}: hold {}", letter(node), if on { "begins" } else { "ends" });
        self.agent_after(node, 1, AgentEvent::Receive(self.now, Input::Hold(on)));
    }

    pub fn begin_server_command(&mut self, node: usize, change: Box<Change>) {
        log!(self, "agent of {}: {:?} {}, {}", letter(node), change.to, change.member, change.reason);
        let member = number(&change.member);
        if self.mutation == Mutation::OnlyRaises && change.to != ServerCommand::Up {
            return self.report_routed(node, member, change.to, true);
        }
        let Some(haproxy) = &mut self.haproxy else { return };
        let server = &mut haproxy.servers[member];
        match change.to {
            ServerCommand::Up => {
                (server.health, server.stopping, server.commanded_up_at) = (HEALTH_MAX, false, self.now);
            }
            ServerCommand::Drain => server.stopping = true,
            ServerCommand::Down => {
                // HAProxy drains the server while the agent waits for ZooKeeper's answer.
                server.stopping = true;
                let act = self.new_act(node, Act::Cut(change));
                return self.ask_barrier(node, ReadPurpose::Act(act));
            }
        }
        self.report_routed(node, member, change.to, true);
    }

    /// ZooKeeper has answered the barrier read that a `down` needs.
    pub fn guard_cut(&mut self, node: usize, act: usize, change: &Change, answer: Option<(Answer, usize)>) {
        let input = answer.map_or(Input::NoBarrier, |(answer, session)| Input::Barrier(answer, session));
        let Event::ZooKeeper(ZooKeeperEvent::Barrier(read)) = self.event(node, input) else { return };
        let member = number(&change.member);
        let may = change.condition.as_ref().is_some_and(|condition| condition.check(&read).is_ok());
        self.nodes[node].agent.acts[act] = None;
        if may {
            if self.zk.holds(member) && !self.mutation.skips_fence_guard() {
                self.fail(format!("(g) the sessions of {}, which holds the key, are cut", letter(member)));
            }
            if let Some(haproxy) = &mut self.haproxy {
                let server = &mut haproxy.servers[member];
                (server.health, server.stopping, server.used) = (0, false, false);
            }
        }
        self.report_routed(node, member, ServerCommand::Down, may);
    }

    fn report_routed(&mut self, node: usize, member: usize, to: ServerCommand, done: bool) {
        self.agent_after(node, 1, AgentEvent::Receive(self.now, Input::Routed(member, to, done)));
        self.agent_after(node, 1, AgentEvent::AskHaproxy(false));
    }
}
