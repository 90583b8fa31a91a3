//! ZooKeeper: sessions that expire, the leader key, linearizable reads, and followers that lag.
//!
//! The model keeps the key's whole history, so that a read through a lagging follower sees the past. A session expires
//! at the first tick after its timeout. No session expires while the ensemble is down, and each has its full timeout
//! again when it is back.

use crate::random::Random;
use crate::world::{World, WorldEvent, letter, log};
use warden_core::event::Rule;

/// ZooKeeper expires sessions in buckets of this size (tickTime), in milliseconds.
pub const TICK: u64 = 2000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub node: usize,
    pub czxid: i64,
    pub owner: usize,
    /// When Patroni created it.
    pub at: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub ttl: u64,
    pub loop_wait: u64,
    pub retry_timeout: u64,
    pub pause: bool,
    pub failsafe: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Patroni(usize),
    Agent(usize),
}

#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub client: Client,
    pub timeout: u64,
    pub contact_at: u64,
    pub alive: bool,
}

/// A fence record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub rule: Rule,
    /// The transaction that wrote it.
    pub mzxid: i64,
    pub at: u64,
}

/// The znode `sync`: the leader that wrote it, and its synchronous standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Sync {
    pub leader: Option<usize>,
    pub standby: Option<usize>,
}

/// The result of a barrier read.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub key: Option<Key>,
    pub config: Config,
    pub sync: Sync,
    /// The barrier's own transaction.
    pub zxid: i64,
}

pub struct ZooKeeper {
    pub up: bool,
    /// Since when it is up, or is not.
    pub since: u64,
    pub config: Config,
    /// Since when the cluster has not been in maintenance mode; `u64::MAX` while it is.
    pub unpaused_at: u64,
    pub key: Option<Key>,
    pub keys: Vec<(u64, Option<Key>)>,
    pub sessions: Vec<Session>,
    /// The switchover that the operator asked for: from, to.
    pub failover: Option<(usize, usize)>,
    /// When ttl was last lowered.
    pub lowered_at: Option<u64>,
    /// When failsafe mode was last turned off.
    pub failsafe_off_at: Option<u64>,
    pub records: [Option<Record>; 3],
    pub sync: Sync,
    /// The newest timeline, as `history` names it.
    pub timeline: u32,
    /// Packets vanish during an outage: a client does not notice that its connection is gone.
    pub silent: bool,
    /// When each node's Patroni last gave its key up by itself.
    pub given_up: [Option<u64>; 3],
    zxid: i64,
}

impl ZooKeeper {
    pub fn new(random: &mut Random) -> Self {
        let (ttl, loop_wait, retry_timeout) = match random.below(20) {
            0..8 => (20_000, 10_000, 5000),
            8..14 => (30_000, 10_000, 10_000),
            14..17 => (30_000, 10_000, 5000),
            17..19 => (20_000, 5000, 5000),
            _ => (90_000, 30_000, 30_000),
        };
        let config = Config { ttl, loop_wait, retry_timeout, pause: false, failsafe: random.percent(30) };
        Self {
            up: true,
            since: 0,
            config,
            unpaused_at: 0,
            key: None,
            keys: vec![(0, None)],
            sessions: Vec::new(),
            failover: None,
            lowered_at: None,
            failsafe_off_at: None,
            records: [None; 3],
            sync: Sync::default(),
            timeline: 1,
            silent: false,
            given_up: [None; 3],
            zxid: 100,
        }
    }

    /// The next transaction.
    pub fn transaction(&mut self) -> i64 {
        self.zxid += 1;
        self.zxid
    }

    /// The newest transaction.
    pub fn zxid(&self) -> i64 {
        self.zxid
    }

    /// The holder before the present one, or the last holder.
    pub fn holder_before(&self) -> Option<usize> {
        let now = self.key.map(|key| key.czxid);
        let mut held = self.keys.iter().rev().filter_map(|(_, key)| *key);
        held.find(|key| Some(key.czxid) != now).map(|key| key.node)
    }

    /// The key as it was at `at`.
    pub fn key_at(&self, at: u64) -> Option<Key> {
        let then = self.keys.iter().rev().find(|(since, _)| *since <= at);
        then.and_then(|(_, key)| *key)
    }

    /// When `node` last lost the key.
    pub fn lost_at(&self, node: usize) -> Option<u64> {
        let held = self.keys.iter().rposition(|(_, key)| key.is_some_and(|key| key.node == node))?;
        self.keys.get(held + 1).map(|(at, _)| *at)
    }

    pub fn holds(&self, node: usize) -> bool {
        self.key.is_some_and(|key| key.node == node)
    }
}

impl World {
    pub fn reaches_zookeeper(&self, client: Client) -> bool {
        self.zk.up
            && match client {
                Client::Patroni(node) => !self.nodes[node].patroni.cut,
                Client::Agent(node) => !self.nodes[node].agent.cut,
            }
    }

    /// Opens a session, and returns its number.
    pub fn open_session(&mut self, client: Client, timeout: u64) -> usize {
        // The server grants between 2 and 20 ticks.
        let timeout = timeout.clamp(2 * TICK, 20 * TICK);
        self.zk.sessions.push(Session { client, timeout, contact_at: self.now, alive: true });
        let number = self.zk.sessions.len() - 1;
        self.expect_expiry(number);
        number
    }

    pub fn close_session(&mut self, number: usize) {
        if std::mem::replace(&mut self.zk.sessions[number].alive, false) {
            self.end_of_session(number);
        }
    }

    fn expect_expiry(&mut self, number: usize) {
        let session = self.zk.sessions[number];
        let due = (session.contact_at + session.timeout).next_multiple_of(TICK);
        self.at(due, WorldEvent::Expiry(number));
    }

    pub fn expiry(&mut self, number: usize) {
        let session = self.zk.sessions[number];
        if !session.alive || !self.zk.up {
            return;
        }
        if session.contact_at + session.timeout > self.now {
            return self.expect_expiry(number);
        }
        log!(self, "ZooKeeper: the session of {:?} expires", session.client);
        self.zk.sessions[number].alive = false;
        self.end_of_session(number);
    }

    fn end_of_session(&mut self, number: usize) {
        if self.zk.key.is_some_and(|key| key.owner == number) {
            self.delete_key();
        }
        if let Client::Agent(node) = self.zk.sessions[number].client
            && self.nodes[node].agent.znode.as_ref().is_some_and(|znode| znode.session == number)
        {
            self.nodes[node].agent.znode = None;
            self.announce_to_all(node);
        }
    }

    pub fn delete_key(&mut self) {
        let Some(key) = self.zk.key.take() else { return };
        log!(self, "ZooKeeper: the leader key of {} is gone", letter(key.node));
        self.zk.keys.push((self.now, None));
        self.key_changed();
        for node in 0..self.setting.nodes {
            let pause = self.random.between(1, 5);
            self.wake_patroni(node, pause);
        }
    }

    pub fn create_key(&mut self, node: usize) {
        let Some(owner) = self.nodes[node].patroni.session else { return };
        let key = Key { node, czxid: self.zk.transaction(), owner, at: self.now };
        log!(self, "ZooKeeper: {} takes the leader key (czxid {:#x})", letter(node), key.czxid);
        self.zk.key = Some(key);
        self.zk.keys.push((self.now, Some(key)));
        self.key_changed();
        if self.zk.failover.take().is_some() {
            self.failover_changed();
        }
    }

    pub fn zookeeper_down(&mut self) {
        log!(self, "ZooKeeper goes down");
        (self.zk.up, self.zk.since, self.zk.silent) = (false, self.now, self.random.percent(30));
        for node in 0..self.setting.nodes {
            // Half of the connections are reset at once, and the others fall silent.
            if self.random.percent(50) {
                self.drop_agents_session(node, "connection reset");
            }
            self.note_reach(node);
        }
    }

    pub fn zookeeper_up(&mut self) {
        log!(self, "ZooKeeper comes up; every session has its full timeout again");
        (self.zk.up, self.zk.since) = (true, self.now);
        for number in 0..self.zk.sessions.len() {
            if self.zk.sessions[number].alive {
                self.zk.sessions[number].contact_at = self.now;
                self.expect_expiry(number);
            }
        }
        for node in 0..self.setting.nodes {
            self.note_reach(node);
        }
    }

    pub fn configure(&mut self, change: impl Fn(&mut Config)) {
        if !self.zk.up {
            return;
        }
        let before = self.zk.config;
        change(&mut self.zk.config);
        if before.pause != self.zk.config.pause {
            self.zk.unpaused_at = if self.zk.config.pause { u64::MAX } else { self.now };
        }
        if self.zk.config.ttl < before.ttl {
            self.zk.lowered_at = Some(self.now);
        }
        if before.failsafe && !self.zk.config.failsafe {
            self.zk.failsafe_off_at = Some(self.now);
        }
        log!(self, "configuration: {:?}", self.zk.config);
        self.config_changed();
        for node in 0..self.setting.nodes {
            let pause = self.random.between(1, 5);
            self.wake_patroni(node, pause);
        }
    }
}
