//! The promises that every history keeps, checked after each event.
//!
//! The violations: (a) Two nodes acknowledge writes at the same instant. (b) A rightful leader is fenced. (c) An agent
//! releases a key whose owner lives. (d) A node takes writes without the key, without its Patroni, and without an
//! excuse. (e) A gate refuses a promotion, or delays it, for no reason. (f) The cluster does not recover after the last
//! fault (`liveness.rs`). `routing.rs` has (g) to (i), and `excuses.rs` the excuses for (a) and (d).

use crate::excuses::PAUSE_GRACE;
use crate::postgres::State;
use crate::world::{World, letter, log};
use crate::zookeeper::Client;
use std::collections::BTreeMap;
use warden_core::event::Rule;

/// A node without the key is fenced within this time, in milliseconds, if another node can take the key.
const KEYLESS_WRITES_MAX: u64 = 3600;

/// Sums and maxima over many histories.
#[derive(Default, Clone, Debug)]
pub struct Tally {
    /// The number of histories.
    pub histories: u64,
    pub fences: BTreeMap<Rule, u64>,
    pub releases: u64,
    pub handovers: u64,
    pub refused_promotions: u64,
    /// The longest time from the last fault to a settled cluster, in milliseconds.
    pub settled: u64,
    /// By excuse: the longest time with two primaries in one history, in milliseconds.
    pub excused: BTreeMap<&'static str, u64>,
    /// By reason: the number of fenced leaders whose agent had no proof that the HA loop turned.
    pub unprovable: BTreeMap<&'static str, u64>,
    dual: Option<(u64, &'static str)>,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        for (rule, count) in &other.fences {
            *self.fences.entry(*rule).or_default() += count;
        }
        self.histories += other.histories;
        self.releases += other.releases;
        self.handovers += other.handovers;
        self.refused_promotions += other.refused_promotions;
        self.settled = self.settled.max(other.settled);
        for (reason, count) in &other.unprovable {
            *self.unprovable.entry(reason).or_default() += count;
        }
        for (excuse, most) in &other.excused {
            let known = self.excused.entry(excuse).or_default();
            *known = (*known).max(*most);
        }
    }
}

impl World {
    pub fn fail(&mut self, violation: String) {
        if self.violation.is_none() {
            log!(self, "VIOLATION: {violation}");
            self.violation = Some(violation);
        }
    }

    /// Runs after each event.
    pub fn check(&mut self) {
        let writers = self.nodes.iter().filter(|node| node.pg.acknowledges()).count();
        for node in 0..self.setting.nodes {
            if self.nodes[node].pg.acknowledges() && !self.zk.holds(node) {
                self.check_keyless_writer(node, writers);
            } else {
                self.nodes[node].keyless_since = None;
            }
        }
        if writers < 2 {
            self.tally.dual = None;
        }
    }

    /// `node` takes writes and does not hold the key.
    fn check_keyless_writer(&mut self, node: usize, writers: usize) {
        let excuse = self.excuse(node).or_else(|| self.unpaused_beside(node));
        if writers > 1 {
            match excuse {
                Some(excuse) => {
                    let since = match self.tally.dual {
                        Some((since, known)) if known == excuse => since,
                        _ => self.now,
                    };
                    self.tally.dual = Some((since, excuse));
                    let most = self.tally.excused.entry(excuse).or_default();
                    *most = (*most).max(self.now - since);
                }
                None => self.fail(format!("(a) two nodes acknowledge writes, {} without the key", letter(node))),
            }
        }
        let known = &self.nodes[node];
        // An orphan may go on if no other node can take over.
        let candidate = self.nodes.iter().enumerate().any(|(other, known)| {
            let seen = self.reaches(node, other) && !known.pg.logins_refused && !known.pg.paused;
            other != node && seen && known.patroni.turns() && known.pg.state == State::Follows
        });
        // An agent without a heartbeat that started later cannot know that its Patroni ever answered.
        let answer_known = self.setting.heartbeat || known.agent.born <= known.patroni.since;
        let away = candidate && answer_known && !known.patroni.turns() && self.now - known.patroni.since > 7000;
        if excuse.is_some()
            || !away
            || !known.agent.reaches
            || self.now - known.agent.since < 9000
            || self.now - known.agent.reach_since < 9000
        {
            self.nodes[node].keyless_since = None;
            return;
        }
        let since = *self.nodes[node].keyless_since.get_or_insert(self.now);
        if self.now - since > KEYLESS_WRITES_MAX {
            self.fail(format!("(d) {} goes on taking writes without the key and without Patroni", letter(node)));
        }
    }

    /// Notes whether the agent reaches ZooKeeper. Callers call it after each change that may alter that.
    pub fn note_reach(&mut self, node: usize) {
        let reaches = self.reaches_zookeeper(Client::Agent(node));
        let paused = self.zk.config.pause || self.now < self.zk.unpaused_at.saturating_add(PAUSE_GRACE);
        let agent = &mut self.nodes[node].agent;
        if agent.reaches != reaches {
            (agent.reaches, agent.reach_since, agent.cut_in_pause) = (reaches, self.now, paused && !reaches);
        }
    }
}
