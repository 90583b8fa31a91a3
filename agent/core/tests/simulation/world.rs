//! The world: its clock, its queue of events, and all its parts.
//!
//! Times are in milliseconds. Everything happens by an event from the queue, and all randomness comes from the
//! history's seed. A seed gives the same history each time.

use crate::agent::{Agent, AgentEvent};
use crate::faults::{Fault, FaultKind};
use crate::haproxy::{Haproxy, ProxyEvent};
use crate::mutation::Mutation;
use crate::patroni::{Patroni, PatroniEvent};
use crate::postgres::{PgEvent, Postgres};
use crate::random::Random;
use crate::zookeeper::{Sync, ZooKeeper};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// An event of the world. An event of a process carries the life of that process.
#[derive(Clone, Copy, Debug)]
pub enum WorldEvent {
    Fault(usize),
    Heal(usize),
    Expiry(usize),
    Patroni(usize, u32, PatroniEvent),
    /// The hook `pre_promote` of a node asks again; the second is its run.
    Hook(usize, u32),
    /// All faults end. From now on the cluster has to recover.
    Healed,
    /// Checks whether the cluster has recovered.
    Settled,
    Pg(usize, u32, PgEvent),
    Agent(usize, u32, AgentEvent),
    Haproxy(ProxyEvent),
}

/// A node: the three processes that belong together.
pub struct Node {
    pub pg: Postgres,
    pub patroni: Patroni,
    pub agent: Agent,
    /// Its container is paused: no signal wakes its processes, and no process starts there.
    pub paused: bool,
    /// The node and the other nodes cannot reach each other.
    pub isolated: bool,
    /// Since when it takes writes without the key and without an excuse.
    pub keyless_since: Option<u64>,
}

/// The differences between histories, besides the faults.
#[derive(Clone, Debug)]
pub struct Setting {
    pub nodes: usize,
    pub length: u64,
    /// The agents watch Patroni's alive lock.
    pub alive_lock: bool,
    /// `pre_promote` is `warden gate`.
    pub gate: bool,
    /// The agents see Patroni's heartbeat (`track_activities`).
    pub heartbeat: bool,
    /// The agents see their server's data directory.
    pub data_directory: bool,
    /// No client writes, so that Patroni has no new position for `status`.
    pub idle: bool,
}

impl Setting {
    fn any(random: &mut Random) -> Self {
        Self {
            nodes: if random.percent(75) { 2 } else { 3 },
            length: [60, 60, 75, 90, 120, 180][random.below(6)] * 1000,
            alive_lock: random.percent(60),
            gate: random.percent(70),
            heartbeat: random.percent(85),
            data_directory: random.percent(90),
            idle: random.percent(50),
        }
    }
}

pub struct World {
    pub now: u64,
    pub random: Random,
    pub setting: Setting,
    pub zk: ZooKeeper,
    pub nodes: Vec<Node>,
    pub faults: Vec<Fault>,
    /// Present in the histories about routing.
    pub haproxy: Option<Haproxy>,
    pub mutation: Mutation,
    /// The kinds of faults; empty for all.
    pub fault_kinds: &'static [FaultKind],
    pub violation: Option<String>,
    /// Present only when a history is printed.
    pub log: Option<Vec<String>>,
    pub tally: crate::checks::Tally,
    /// When all faults ended.
    pub healed: Option<u64>,
    /// The faults are those of the contract "proof and silence".
    pub focused: bool,
    pub over: bool,
    /// The number of fences of each node.
    pub fenced: [u64; 3],
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<WorldEvent>,
    free: Vec<usize>,
    sequence: u64,
}

/// Logs an event if the history is printed.
macro_rules! log {
    ($world:expr, $($arg:tt)*) => {
        if let Some(log) = &mut $world.log {
            let now = $world.now;
            log.push(format!("{:>3}.{:03} {}", now / 1000, now % 1000, format_args!($($arg)*)));
        }
    };
}
pub(crate) use log;

/// The name of a node.
pub fn letter(node: usize) -> &'static str {
    ["a", "b", "c"][node]
}

/// A history has some ten thousand events. One with this many has stopped the clock, or never settles.
const EVENTS_MAX: u64 = 3_000_000;

impl World {
    pub fn new(
        seed: u64,
        mutation: Mutation,
        fault_kinds: &'static [FaultKind],
        with_log: bool,
        with_haproxy: bool,
    ) -> Self {
        let mut random = Random::new(seed);
        let mut setting = Setting::any(&mut random);
        if !fault_kinds.is_empty() {
            // The gate hides many bugs of the agents.
            setting.gate = random.percent(25);
        }
        let mut zk = ZooKeeper::new(&mut random);
        if !fault_kinds.is_empty() {
            // The lease has to cover the ttl, or its excuse hides the bug.
            (zk.config.ttl, zk.config.loop_wait, zk.config.retry_timeout) = (30_000, 10_000, 5000);
        }
        let mut world = Self::begin(random, setting, zk, mutation, fault_kinds, with_log);
        world.plan_faults();
        if with_haproxy {
            let beside = world.random.below(world.setting.nodes);
            world.begin_haproxy(beside);
            world.begin_routing(beside);
        }
        world.at(world.setting.length, WorldEvent::Healed);
        world
    }

    /// A world without events yet.
    pub fn begin(
        random: Random,
        setting: Setting,
        zk: ZooKeeper,
        mutation: Mutation,
        fault_kinds: &'static [FaultKind],
        with_log: bool,
    ) -> Self {
        let mut world = Self {
            now: 0,
            zk,
            nodes: Vec::new(),
            faults: Vec::new(),
            haproxy: None,
            mutation,
            fault_kinds,
            violation: None,
            log: with_log.then(Vec::new),
            tally: crate::checks::Tally::default(),
            healed: None,
            focused: false,
            over: false,
            fenced: [0; 3],
            queue: BinaryHeap::with_capacity(64),
            slots: Vec::with_capacity(64),
            free: Vec::new(),
            sequence: 0,
            random,
            setting,
        };
        for node in 0..world.setting.nodes {
            world.nodes.push(Node {
                pg: Postgres::new(node == 0),
                patroni: Patroni::new(world.zk.config),
                agent: Agent::new(node, &world.setting, 0),
                paused: false,
                isolated: false,
                keyless_since: None,
            });
        }
        log!(world, "{:?}, {:?}, mutation: {:?}", world.setting, world.zk.config, world.mutation);
        for node in 0..world.setting.nodes {
            world.begin_patroni(node);
        }
        world.create_key(0);
        world.zk.sync = Sync { leader: Some(0), standby: Some(1) };
        for node in 0..world.setting.nodes {
            world.begin_agent(node);
        }
        world
    }

    /// Runs the history to its end, or to the first violation.
    pub fn run(&mut self) {
        let mut events = 0;
        while let Some(Reverse((at, _, slot))) = self.queue.pop() {
            events += 1;
            if events > EVENTS_MAX {
                self.fail(format!("the history does not end: {EVENTS_MAX} events, the clock at {} ms", self.now));
            }
            if self.over || self.violation.is_some() {
                break;
            }
            self.now = at;
            self.free.push(slot);
            match self.slots[slot] {
                WorldEvent::Fault(fault) => self.inject(fault),
                WorldEvent::Heal(fault) => self.heal(fault),
                WorldEvent::Expiry(session) => self.expiry(session),
                WorldEvent::Patroni(node, life, event) => self.patroni_event(node, life, event),
                WorldEvent::Hook(node, run) => self.hook_round(node, run),
                WorldEvent::Healed => self.heal_all(),
                WorldEvent::Settled => self.check_settled(),
                WorldEvent::Pg(node, life, event) => self.pg_event(node, life, event),
                WorldEvent::Agent(node, life, event) => self.agent_event(node, life, event),
                WorldEvent::Haproxy(event) => self.haproxy_event(event),
            }
            self.check();
            self.check_routing();
        }
    }

    /// Whether one node reaches another.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        from == to || !(self.nodes[from].isolated || self.nodes[to].isolated)
    }

    pub fn at(&mut self, at: u64, event: WorldEvent) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(event);
            self.slots.len() - 1
        });
        self.slots[slot] = event;
        self.sequence += 1;
        self.queue.push(Reverse((at.max(self.now), self.sequence, slot)));
    }

    pub fn after(&mut self, pause: u64, event: WorldEvent) {
        self.at(self.now + pause, event);
    }
}
