//! The cluster recovers by itself within a stated time after the last fault.
//!
//! One node takes writes and holds the key. All others follow it, on its timeline. A synchronous standby is named.
//! Every fence is closed.

use crate::patroni::Rest;
use crate::postgres::State;
use crate::world::{World, WorldEvent, letter, log};

/// The time between two checks, in milliseconds like all times here.
const SETTLED_CHECK_INTERVAL: u64 = 500;

/// Added to Patroni's own times: the longest crash recovery, a start, a queued fence, and the gate.
const SETTLE_TIME_BASE: u64 = 25_000 + 3000 + 10_000 + 15_000;

impl World {
    pub fn heal_all(&mut self) {
        log!(self, "--- all faults end");
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
            self.refuse_logins(node, false);
            self.unfence(node);
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
        self.after(SETTLED_CHECK_INTERVAL, WorldEvent::Settled);
    }

    /// A session ends, a Patroni skips the race for ttl, and the HA loop needs some cycles.
    fn bound(&self) -> u64 {
        let config = self.zk.config;
        2 * config.ttl + 3 * config.loop_wait + SETTLE_TIME_BASE
    }

    pub fn check_settled(&mut self) {
        let took = self.now - self.healed.unwrap_or(0);
        let Some(missing) = self.unsettled() else {
            log!(self, "the cluster has recovered after {took} ms");
            self.tally.settled = self.tally.settled.max(took);
            self.over = true;
            return;
        };
        if took > self.bound() {
            return self.fail(format!("(f) {took} ms after the last fault {missing}"));
        }
        self.after(SETTLED_CHECK_INTERVAL, WorldEvent::Settled);
    }

    /// The first condition that is not yet met.
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
        fenced.map(|node| format!("the fence of {} is not closed", letter(node))).or_else(|| self.unrouted(key.node))
    }
}
