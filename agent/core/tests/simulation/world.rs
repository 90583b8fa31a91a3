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
use crate::zookeeper::ZooKeeper;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that happens, to a node's process in its present life.
#[derive(Clone, Copy, Debug)]
pub enum Happening {
    Fault(usize),
    Heal(usize),
    Expiry(usize),
    Patroni(usize, u32, PatroniEvent),
    Pg(usize, u32, PgEvent),
    Agent(usize, u32, AgentEvent),
}

/// A node: the three processes that belong together.
pub struct Node {
    pub pg: Postgres,
    pub patroni: Patroni,
    pub agent: Agent,
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
        let setting = Setting {
            nodes: if chance.percent(75) { 2 } else { 3 },
            length: [60, 60, 75, 90, 120, 180][chance.below(6)] * 1000,
            alive_lock: chance.percent(60),
        };
        let mut world = Self {
            now: 0,
            zk: ZooKeeper::new(&mut chance),
            nodes: Vec::new(),
            faults: Vec::new(),
            mutation,
            palette,
            violation: None,
            log: told.then(Vec::new),
            tally: crate::checks::Tally::default(),
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
                patroni: Patroni::new(),
                agent: Agent::new(node, &world.setting, 0),
                unlicensed_since: None,
            });
        }
        tell!(world, "{:?}, {:?}, mutation: {:?}", world.setting, world.zk.config, world.mutation);
        for node in 0..world.setting.nodes {
            world.begin_patroni(node);
        }
        world.create_key(0);
        for node in 0..world.setting.nodes {
            world.begin_agent(node);
        }
        world.plan_faults();
        world
    }

    /// Lives the history through, or to the first thing that must not be.
    pub fn run(&mut self) {
        while let Some(Reverse((at, _, slot))) = self.queue.pop() {
            if at > self.setting.length || self.violation.is_some() {
                break;
            }
            self.now = at;
            self.free.push(slot);
            match self.slots[slot] {
                Happening::Fault(fault) => self.strike(fault),
                Happening::Heal(fault) => self.heal(fault),
                Happening::Expiry(session) => self.expiry(session),
                Happening::Patroni(node, life, event) => self.patroni_event(node, life, event),
                Happening::Pg(node, life, event) => self.pg_event(node, life, event),
                Happening::Agent(node, life, event) => self.agent_event(node, life, event),
            }
            self.check();
        }
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

    /// Another node than this one, by chance.
    pub fn another(&mut self, node: usize) -> usize {
        (node + 1 + self.chance.below(self.setting.nodes - 1)) % self.setting.nodes
    }
}
