//! When all faults are over, everything has to come right, within a stated time and by itself.
//!
//! One node takes writes and holds the key; each other follows it, on its timeline; a synchronous standby is named; every
//! fence is closed.

use crate::patroni::Rest;
use crate::postgres::State;
use crate::world::{Happening, World, letter, tell};

/// So often it is looked whether all is well.
const LOOK: u64 = 500;

/// Beside Patroni's own times: the longest crash recovery, a start, a fence that waits, the gate.
const LONGEST: u64 = 25_000 + 3000 + 10_000 + 15_000;

impl World {
    pub fn all_heals(&mut self) {
        tell!(self, "--- all faults are over");
        self.healed = Some(self.now);
        if !self.zk.up {
            self.zookeeper_up();
        }
        if self.zk.config.pause {
            self.configure(|config| config.pause = false);
        }
        for node in 0..self.setting.nodes {
            self.cut(node, false, false);
            self.rest(node, Rest::Answers);
            self.lock_out(node, false);
            self.take_back(node);
            let agent = &mut self.nodes[node].agent;
            if agent.lag > 0 {
                (agent.lag, agent.lag_ended) = (0, self.now);
            }
            if !agent.up {
                self.begin_agent(node);
            }
            self.unpause_agent(node);
            self.unpause_pg(node);
            let patroni = &mut self.nodes[node].patroni;
            (patroni.to_freeze, patroni.to_pause) = (false, false);
            self.thaw_patroni(node);
            self.unstick_loop(node);
            if !self.nodes[node].patroni.alive {
                self.begin_patroni(node);
            }
        }
        self.after(LOOK, Happening::Settled);
    }

    /// A session has to end, a race is skipped for ttl, and some cycles of the HA loop.
    fn bound(&self) -> u64 {
        let config = self.zk.config;
        2 * config.ttl + 3 * config.loop_wait + LONGEST
    }

    pub fn has_it_settled(&mut self) {
        let took = self.now - self.healed.unwrap_or(0);
        let Some(what) = self.unsettled() else {
            tell!(self, "all is well after {took} ms");
            self.tally.settled = self.tally.settled.max(took);
            self.over = true;
            return;
        };
        if took > self.bound() {
            return self.object(format!("(f) {took} ms after the last fault {what}"));
        }
        self.after(LOOK, Happening::Settled);
    }

    /// What is not yet well.
    fn unsettled(&self) -> Option<String> {
        let Some(key) = self.zk.key else { return Some("no node holds the leader key".to_owned()) };
        let leader = &self.nodes[key.node].pg;
        if !leader.acknowledges() {
            return Some(format!("{} leads and takes no writes ({:?})", letter(key.node), leader.state));
        }
        for (node, known) in self.nodes.iter().enumerate().filter(|(node, _)| *node != key.node) {
            if known.pg.state != State::Follows || known.pg.timeline != leader.timeline {
                return Some(format!("{} does not follow ({:?})", letter(node), known.pg.state));
            }
        }
        if self.zk.sync.leader != Some(key.node) || self.zk.sync.standby.is_none() {
            return Some("no standby is synchronous".to_owned());
        }
        let fenced = (0..self.setting.nodes).find(|node| self.zk.records[*node].is_some());
        fenced.map(|node| format!("the fence of {} is not closed", letter(node)))
    }
}
