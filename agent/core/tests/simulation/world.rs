//! The world: its clock, its queue of events, and everything that stands in it.
//!
//! Time is milliseconds. Nothing happens but by an event from the queue, and nothing is random but by the history's
//! own chance, so that a seed gives the same history each time.

use crate::agent::{Agent, AgentEvent};
use crate::chance::Chance;
use crate::faults::{Fault, What};
use crate::mutation::Mutation;
use crate::patroni::{Patroni, PatroniEvent};
use crate::postgres::{PgEvent, Postgres};
use crate::zookeeper::{Sync, ZooKeeper};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that happens, to a node's process in its present life.
#[derive(Clone, Copy, Debug)]
pub enum Happening {
    Fault(usize),
    Heal(usize),
    Expiry(usize),
    Patroni(usize, u32, PatroniEvent),
    /// The pre_promote hook of a node looks again; the second is its run.
    Hook(usize, u32),
    /// All faults are over; from now on everything has to come right.
    Healed,
    /// Has it?
    Settled,
    Pg(usize, u32, PgEvent),
    Agent(usize, u32, AgentEvent),
}

/// A node: the three processes that belong together.
pub struct Node {
    pub pg: Postgres,
    pub patroni: Patroni,
    pub agent: Agent,
    /// Its container is paused: no signal wakes what is in it, and nothing is started there.
    pub paused: bool,
    /// Nothing of it can be reached from other nodes, nor they from it.
    pub isolated: bool,
    /// Since when it takes writes without the key and without an excuse.
    pub unlicensed_since: Option<u64>,
}

/// What differs from one history to the next, besides the faults.
#[derive(Clone, Debug)]
pub struct Setting {
    pub nodes: usize,
    pub length: u64,
    /// The agents know Patroni's alive lock.
    pub alive_lock: bool,
    /// `pre_promote` is `warden gate`.
    pub gate: bool,
    /// The agents see Patroni's heartbeat (`track_activities`).
    pub heartbeat: bool,
    /// The agents see their server's data directory.
    pub data_directory: bool,
    /// Nothing is written, so that Patroni has nothing to write into `status`.
    pub idle: bool,
}

impl Setting {
    fn by(chance: &mut Chance) -> Self {
        Self {
            nodes: if chance.percent(75) { 2 } else { 3 },
            length: [60, 60, 75, 90, 120, 180][chance.below(6)] * 1000,
            alive_lock: chance.percent(60),
            gate: chance.percent(70),
            heartbeat: chance.percent(85),
            data_directory: chance.percent(90),
            idle: chance.percent(50),
        }
    }
}

pub struct World {
    pub now: u64,
    pub chance: Chance,
    pub setting: Setting,
    pub zk: ZooKeeper,
    pub nodes: Vec<Node>,
    pub faults: Vec<Fault>,
    pub mutation: Mutation,
    /// The faults that there are; all of them if it is empty.
    pub palette: &'static [What],
    pub violation: Option<String>,
    /// Told only when a history is looked at again.
    pub log: Option<Vec<String>>,
    pub tally: crate::checks::Tally,
    /// When all faults were over.
    pub healed: Option<u64>,
    /// Faults are those of the contract "proof and silence".
    pub focused: bool,
    pub over: bool,
    /// How often each node was fenced.
    pub fenced: [u64; 3],
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    slots: Vec<Happening>,
    free: Vec<usize>,
    sequence: u64,
}

/// Tells what happens, in words, if somebody listens.
macro_rules! tell {
    ($world:expr, $($arg:tt)*) => {
        if let Some(log) = &mut $world.log {
            let now = $world.now;
            log.push(format!("{:>3}.{:03} {}", now / 1000, now % 1000, format_args!($($arg)*)));
        }
    };
}
pub(crate) use tell;

/// The letter by which a node goes.
pub fn letter(node: usize) -> &'static str {
    ["a", "b", "c"][node]
}

impl World {
    pub fn new(seed: u64, mutation: Mutation, palette: &'static [What], told: bool) -> Self {
        let mut chance = Chance::new(seed);
        let mut setting = Setting::by(&mut chance);
        if !palette.is_empty() {
            // The gate hides many a bug of the agents.
            setting.gate = chance.percent(25);
        }
        let mut zk = ZooKeeper::new(&mut chance);
        if !palette.is_empty() {
            // The lease has to cover it, or the excuse hides what is looked for.
            (zk.config.ttl, zk.config.loop_wait, zk.config.retry_timeout) = (30_000, 10_000, 5000);
        }
        let mut world = Self::begin(chance, setting, zk, mutation, palette, told);
        world.plan_faults();
        world.at(world.setting.length, Happening::Healed);
        world
    }

    /// A world in which nothing has happened yet.
    pub fn begin(
        chance: Chance,
        setting: Setting,
        zk: ZooKeeper,
        mutation: Mutation,
        palette: &'static [What],
        told: bool,
    ) -> Self {
        let mut world = Self {
            now: 0,
            zk,
            nodes: Vec::new(),
            faults: Vec::new(),
            mutation,
            palette,
            violation: None,
            log: told.then(Vec::new),
            tally: crate::checks::Tally::default(),
            healed: None,
            focused: false,
            over: false,
            fenced: [0; 3],
            queue: BinaryHeap::with_capacity(64),
            slots: Vec::with_capacity(64),
            free: Vec::new(),
            sequence: 0,
            chance,
            setting,
        };
        for node in 0..world.setting.nodes {
            world.nodes.push(Node {
                pg: Postgres::new(node == 0),
                patroni: Patroni::new(world.zk.config),
                agent: Agent::new(node, &world.setting, 0),
                paused: false,
                isolated: false,
                unlicensed_since: None,
            });
        }
        tell!(world, "{:?}, {:?}, mutation: {:?}", world.setting, world.zk.config, world.mutation);
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

    /// Lives the history through, or to the first thing that must not be.
    pub fn run(&mut self) {
        while let Some(Reverse((at, _, slot))) = self.queue.pop() {
            if self.over || self.violation.is_some() {
                break;
            }
            self.now = at;
            self.free.push(slot);
            match self.slots[slot] {
                Happening::Fault(fault) => self.strike(fault),
                Happening::Heal(fault) => self.heal(fault),
                Happening::Expiry(session) => self.expiry(session),
                Happening::Patroni(node, life, event) => self.patroni_event(node, life, event),
                Happening::Hook(node, run) => self.hook_looks(node, run),
                Happening::Healed => self.all_heals(),
                Happening::Settled => self.has_it_settled(),
                Happening::Pg(node, life, event) => self.pg_event(node, life, event),
                Happening::Agent(node, life, event) => self.agent_event(node, life, event),
            }
            self.check();
        }
    }

    /// Whether one node reaches another.
    pub fn reaches(&self, from: usize, to: usize) -> bool {
        from == to || !(self.nodes[from].isolated || self.nodes[to].isolated)
    }

    pub fn at(&mut self, at: u64, happening: Happening) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(happening);
            self.slots.len() - 1
        });
        self.slots[slot] = happening;
        self.sequence += 1;
        self.queue.push(Reverse((at.max(self.now), self.sequence, slot)));
    }

    pub fn after(&mut self, pause: u64, happening: Happening) {
        self.at(self.now + pause, happening);
    }
}
