//! The checks of the routing. (g) New connections for writes reach a server that does not lead. (h) They wait longer
//! than with HAProxy's checks alone. (i) They do not reach the primary although the agent can know it.

use crate::excuses::{CUT_OFF_GRACE, PAUSE_GRACE, WRITES_UNSEEN_MAX};
use crate::haproxy::{CHECK_TIMEOUT, HOLD_EXPIRY, Haproxy, INTER, POLL_INTERVAL, Server};
use crate::world::{World, letter};
use warden_core::event::Rule;

/// An agent that knows of another holder has told HAProxy within this time, in milliseconds like all times here.
const COMMAND_DELAY_MAX: u64 = 150;

/// A primary gets new connections within this time. The agent asks every member twice a second during a long outage.
const RAISE_DELAY_MAX: u64 = 700;

/// The agent has seen and undone a server that HAProxy's checks raised within this time.
const RAISE_UNDONE_MAX: u64 = POLL_INTERVAL + 200;

/// New connections wait at most this much longer than with HAProxy's checks alone: a hold expires, two checks pass, and
/// the agent finds out.
const EXTRA_DELAY_MAX: u64 = HOLD_EXPIRY + 2 * INTER + RAISE_UNDONE_MAX;

impl World {
    /// Runs after each event.
    pub fn check_routing(&mut self) {
        let Some(mut haproxy) = self.haproxy.take() else { return };
        let hold = self.now < haproxy.hold_until;
        if !hold {
            for server in &mut haproxy.servers {
                server.used |= server.is_up();
            }
            if let Some(violation) = self.misrouted(&haproxy) {
                self.fail(violation);
            }
        }
        // Connections cannot reach a server that HAProxy cannot reach, and must not reach one that the operator has
        // fenced.
        let barred = |node: usize| self.zk.records[node].is_some_and(|record| record.rule == Rule::Operator);
        let serves =
            |node: &usize| self.nodes[*node].pg.acknowledges() && self.reaches(haproxy.beside, *node) && !barred(*node);
        let leader = self.zk.key.map(|key| key.node).filter(serves);
        let only_leader_is_up = |servers: &[Server]| {
            leader.is_some_and(|leader| {
                servers.iter().enumerate().all(|(node, server)| server.is_up() == (node == leader))
            })
        };
        let unrouted = hold || leader.is_some_and(|leader| !haproxy.servers[leader].is_up());
        if let Some(leader) = leader.filter(|leader| unrouted && self.could_route_to(haproxy.beside, *leader)) {
            let since = *haproxy.unrouted_since.get_or_insert(self.now);
            if self.now - since > RAISE_DELAY_MAX {
                let leader = letter(leader);
                self.fail(format!(
                    "(i) {leader} leads, takes writes, and gets no connections for {RAISE_DELAY_MAX} ms"
                ));
            }
        } else {
            haproxy.unrouted_since = None;
        }
        if only_leader_is_up(&haproxy.checks_only) && unrouted {
            let since = *haproxy.delayed_since.get_or_insert(self.now);
            if self.now - since > EXTRA_DELAY_MAX {
                let leader = letter(leader.unwrap_or_default());
                self.fail(format!(
                    "(h) for {EXTRA_DELAY_MAX} ms, HAProxy's checks alone would have routed writes to {leader}"
                ));
            }
        } else {
            haproxy.delayed_since = None;
        }
        self.haproxy = Some(haproxy);
    }

    /// Whether the agent that routes has known for long enough that writes can go to `leader`.
    fn could_route_to(&self, beside: usize, leader: usize) -> bool {
        let (agent, pg) = (&self.nodes[beside].agent, &self.nodes[leader].pg);
        let Some(key) = self.zk.key else { return false };
        let since = [key.at, pg.since, pg.unpaused_at, agent.informed_at, agent.lag_ended];
        let for_long = since.iter().all(|since| self.now > since.saturating_add(WRITES_UNSEEN_MAX));
        let reached = self.reaches(beside, leader) && (beside == leader || !pg.logins_refused);
        for_long && reached && self.is_informed(beside)
    }

    /// Whether an agent runs and has reached ZooKeeper for long enough.
    fn is_informed(&self, node: usize) -> bool {
        let agent = &self.nodes[node].agent;
        let runs = agent.up && !agent.paused && agent.since + WRITES_UNSEEN_MAX < self.now;
        let calm = agent.lag == 0 && self.now > agent.stalled.saturating_add(1000);
        runs && calm && agent.session.is_some() && agent.reaches && agent.reach_since + CUT_OFF_GRACE < self.now
    }

    /// A server gets new connections although another one leads, and no excuse applies.
    fn misrouted(&self, haproxy: &Haproxy) -> Option<String> {
        let key = self.zk.key?;
        let agent = &self.nodes[haproxy.beside].agent;
        let recently = |since: u64, bound: u64| self.now < since.saturating_add(bound);
        let (wrong, server) =
            haproxy.servers.iter().enumerate().find(|(node, server)| *node != key.node && server.is_up())?;
        // In maintenance mode operators move servers.
        if self.zk.config.pause || recently(self.zk.unpaused_at, PAUSE_GRACE) {
            return None;
        }
        let informed = self.is_informed(haproxy.beside)
            && !recently(key.at, COMMAND_DELAY_MAX)
            && !recently(agent.informed_at, WRITES_UNSEEN_MAX)
            && !recently(agent.lag_ended, 2500);
        // HAProxy's checks alone route there too, or take down what an uninformed agent raised.
        let by_checks =
            haproxy.checks_only[wrong].is_up() || recently(server.commanded_up_at, 2 * (INTER + CHECK_TIMEOUT));
        if recently(server.raised_at, RAISE_UNDONE_MAX) || (!informed && by_checks) {
            return None;
        }
        let (wrong, leader) = (letter(wrong), letter(key.node));
        Some(format!("(g) new connections for writes reach {wrong}, and {leader} has held the key since {}", key.at))
    }

    /// The part of the routing that does not yet follow the leader.
    pub fn unrouted(&self, leader: usize) -> Option<String> {
        let haproxy = self.haproxy.as_ref()?;
        if self.now < haproxy.hold_until {
            return Some("new connections for writes wait".to_owned());
        }
        let wrong = haproxy.servers.iter().enumerate().find(|(node, server)| server.is_up() != (*node == leader))?;
        let takes = if wrong.1.is_up() { "takes" } else { "takes no" };
        Some(format!("{} {takes} new connections for writes", letter(wrong.0)))
    }
}
