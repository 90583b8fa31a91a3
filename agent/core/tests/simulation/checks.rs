//! What must never be, and what excuses it.
//!
//! (a) Two nodes acknowledge writes at the same instant. (b) A rightful leader is fenced. (c) A key is released whose
//! owner lives. (d) A node goes on taking writes without the key, without its Patroni, and without an excuse. (e) A
//! promotion is refused, or kept waiting, for no reason. (f) The faults are over and things do not come right
//! (`liveness.rs`).
//!
//! An excuse names why the agents could not prevent it, and how long it lasts at most: those are the bounds.

use crate::postgres::State;
use crate::world::{Node, World, letter, tell};
use crate::zookeeper::Client;
use std::collections::BTreeMap;
use warden_core::event::Rule;

/// From losing ZooKeeper to the lease's fence, where the lease is over already: the last barrier read counts for 3 s.
/// As long for a new session, and for an order that fell between two sessions to be repeated. Right before the fence
/// Patroni has 2 s for a last word.
const CUT: u64 = 3300 + 2000;

/// Two stalls in that time, and the questions to Patroni that have to be asked again behind them.
const STALL: u64 = 2 * 2000 + 1500 + 1100;

/// A silent Patroni is left this long for a last word, before a fence by lease.
const LAST_WORD: u64 = 1000;

/// After its start (or waking) an agent knows everything after a second, or has a fence by lease under way,
const INFORMED: u64 = LAST_WORD + REACTION;

/// but for a lease it has to see for itself that its Patroni is silent: 5 s, and one question.
const SILENCE: u64 = 6500;

/// A server that begins to take writes is seen to do so within the second.
const UNSEEN: u64 = 1300;

/// One that comes out of crash recovery is seen within 40 ms, and fenced.
const RECOVERED: u64 = 150;

/// After unpausing: a fence in front of it is done by then, or the one under way.
const WOKEN: u64 = 80;

/// No member holds the key, and its Patroni wakes with it: that one finds out by itself.
const WOKEN_PATRONI: u64 = 2000;

/// From losing the key to the end of the fence. A successor needs at least as long to be promoted.
const REACTION: u64 = 80;

/// The configuration is verified every 2 s.
const PAUSED: u64 = 4000;

/// A peer's fence comes after the agent's znode is old (5 s), a probe (1 s), its turn (3 s).
const PEER: u64 = 9500;

/// Without the key, and nobody else to take it: fenced within this.
const UNLICENSED: u64 = 3600;

/// A cut-off Patroni that turns finds out in its next cycle, and stops its server: beside `loop_wait` and
/// `retry_timeout`, the time in which packets vanish, and a stop.
const NEXT_CYCLE: u64 = 8000 + 5000;

/// Patroni is not away as long as its heartbeat is no older than this beside `loop_wait` and `retry_timeout`.
pub const HEARTBEAT: u64 = 5000;

/// What happened, over many histories.
#[derive(Default, Clone, Debug)]
pub struct Tally {
    pub fences: BTreeMap<Rule, u64>,
    pub releases: u64,
    pub handovers: u64,
    pub refused_promotions: u64,
    /// The longest time from the last fault to when all was well, in milliseconds.
    pub settled: u64,
    /// Milliseconds of two primaries, the most in one history, by excuse.
    pub excused: BTreeMap<&'static str, u64>,
    /// Leaders that were fenced because nothing could tell their agent that they turned, by reason.
    pub unprovable: BTreeMap<&'static str, u64>,
    dual: Option<(u64, &'static str)>,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        for (rule, count) in &other.fences {
            *self.fences.entry(*rule).or_default() += count;
        }
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
    pub fn object(&mut self, what: String) {
        if self.violation.is_none() {
            tell!(self, "VIOLATION: {what}");
            self.violation = Some(what);
        }
    }

    /// After each event.
    pub fn check(&mut self) {
        let writers = self.nodes.iter().filter(|node| node.pg.acknowledges()).count();
        for node in 0..self.setting.nodes {
            if self.nodes[node].pg.acknowledges() && !self.zk.holds(node) {
                self.without_the_key(node, writers);
            } else {
                self.nodes[node].unlicensed_since = None;
            }
        }
        if writers < 2 {
            self.tally.dual = None;
        }
    }

    /// `node` takes writes and does not hold the key.
    fn without_the_key(&mut self, node: usize, writers: usize) {
        let excuse = self.excuse(node).or_else(|| self.woken_beside(node));
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
                None => self.object(format!("(a) two nodes acknowledge writes, {} without the key", letter(node))),
            }
        }
        let known = &self.nodes[node];
        // Where no other can take over, an orphan may go on.
        let candidate = self.nodes.iter().enumerate().any(|(other, known)| {
            let seen = self.reaches(node, other) && !known.pg.locked && !known.pg.paused;
            other != node && seen && known.patroni.turns() && known.pg.state == State::Follows
        });
        // An agent that was started since, and sees no heartbeat, cannot know that its Patroni ever answered.
        let knows = self.setting.heartbeat || known.agent.born <= known.patroni.since;
        let away = candidate && knows && !known.patroni.turns() && self.now - known.patroni.since > 7000;
        if excuse.is_some()
            || !away
            || !known.agent.reaches
            || self.now - known.agent.since < 9000
            || self.now - known.agent.reach_since < 9000
        {
            self.nodes[node].unlicensed_since = None;
            return;
        }
        let since = *self.nodes[node].unlicensed_since.get_or_insert(self.now);
        if self.now - since > UNLICENSED {
            self.object(format!("(d) {} goes on taking writes without the key and without Patroni", letter(node)));
        }
    }

    /// Every other that takes writes, too, has just been unpaused: `node` may have gone on for good reason, because no other
    /// could take over as long as they were not.
    fn woken_beside(&self, node: usize) -> Option<&'static str> {
        let writers = self.nodes.iter().enumerate().filter(|(other, known)| *other != node && known.pg.acknowledges());
        let mut others = writers.map(|(_, known)| self.now < known.pg.unpaused_at.saturating_add(WOKEN));
        let woken = others.next()? && others.all(|woken| woken);
        woken.then_some("the other one was unpaused 80 ms ago at most")
    }

    /// Why the agent of `node`, which takes writes without the key, has not stopped it yet.
    fn excuse(&self, node: usize) -> Option<&'static str> {
        let known = &self.nodes[node];
        let agent = &known.agent;
        let recently = |since: u64, bound: u64| self.now < since.saturating_add(bound);
        if self.zk.config.pause || recently(self.zk.unpaused_at, PAUSED) {
            return Some("maintenance mode, or 4 s after it");
        }
        if self.gate_could_see(node) {
            return None;
        }
        let stalls = self.now <= agent.stalled || recently(agent.stalled, 1000);
        if stalls && agent.reaches {
            return Some("its agent stalls, for 2 s again and again");
        }
        if !agent.up || (agent.paused && !stalls) {
            return if self.peer_is_late(node) {
                None
            } else {
                Some("its agent does not run, the leader's gets 9.5 s")
            };
        }
        let informed = agent.informed_at.saturating_add(if agent.reaches { INFORMED } else { SILENCE });
        if self.now < informed {
            return Some("its agent has just begun");
        }
        // Where only the lease is left, Patroni has a last word.
        let word = if agent.reaches { 0 } else { LAST_WORD };
        let seen = match known.pg.seen {
            // Its agent, or the gate, looks at it all the time (that the gate waits is `histories.rs`'s to check).
            None if known.pg.recovered && !recently(known.pg.unpaused_at, UNSEEN) => {
                recently(known.pg.since, RECOVERED + word)
            }
            None => recently(known.pg.since.max(known.pg.unpaused_at), UNSEEN),
            Some(seen) => recently(seen, REACTION + if known.pg.recovered { word } else { 0 }),
        };
        if seen {
            return Some("nobody had seen it take writes yet, for 1.3 s at most");
        }
        if recently(known.pg.unpaused_at, WOKEN) {
            return Some("it was unpaused 80 ms ago at most");
        }
        let woken = |other: &Node| {
            other.pg.acknowledges() && other.patroni.loop_turns() && recently(other.pg.unpaused_at, WOKEN_PATRONI)
        };
        let no_other = self.zk.key.is_none_or(|key| recently(key.at, REACTION));
        if no_other && self.nodes.iter().any(woken) {
            return Some("no other held the key, and a Patroni that was unpaused 2 s ago at most has not looked yet");
        }
        if self.zk.lost_at(node).is_some_and(|lost| recently(lost, REACTION)) {
            return Some("it lost the key 80 ms ago at most");
        }
        let lingers = agent.failsafe_heard.map(|heard| heard + self.zk.config.ttl.max(30_000) + CUT);
        if lingers.is_some_and(|until| self.now < until) {
            return Some("failsafe mode lingers");
        }
        if agent.cut_in_pause {
            return Some("its agent was cut off in maintenance mode");
        }
        if self.now < known.patroni.failsafe_until {
            return Some("failsafe mode: its Patroni goes on");
        }
        let config = known.patroni.known;
        let cycle = config.loop_wait + config.retry_timeout;
        let turning = agent.reach_since.max(known.patroni.since).max(known.patroni.loop_since);
        if !agent.reaches && known.patroni.loop_turns() && recently(turning, cycle + NEXT_CYCLE) {
            return Some("its agent is cut off and its Patroni turns: that one's next cycle");
        }
        if !agent.reaches && self.lease_is_uncovered(node) {
            return Some("the lease does not cover a ttl this small, or above 20 ticks, or so small in failsafe mode");
        }
        if !agent.reaches && self.zk.config.failsafe && !self.failsafe_is_known(node) {
            return Some("failsafe mode: neither a heartbeat nor a denial, and no dead Patroni");
        }
        let stalled = if agent.stalled >= agent.reach_since { STALL } else { 0 };
        if recently(agent.reach_since, CUT + stalled) {
            return Some("its agent was cut off, or connected again, 3.3 s ago at most");
        }
        if !agent.reaches && self.zk.lowered_at.is_some_and(|at| at + 20 >= agent.reach_since) {
            return Some("ttl was lowered while its agent was cut off");
        }
        if !agent.reaches {
            if !known.patroni.turns() && recently(known.patroni.since, SILENCE + 1100) {
                return Some("its agent is cut off, and its Patroni answered 7.6 s ago at most");
            }
            // Nothing tells that it was started again, and whose session its contact prolongs, but the lock.
            let owner = self.zk.keys.iter().rev().find_map(|(_, key)| key.filter(|key| key.node == node));
            let restarted = owner.is_some_and(|key| known.patroni.session != Some(key.owner));
            if restarted && !self.setting.alive_lock {
                return Some("no alive lock: its Patroni was started again unseen before its agent was cut off");
            }
            // A Patroni that gave its key up and died: the agent cannot know, and waits for the end of the lease.
            let early = self.zk.given_up[node].is_some() && self.zk.given_up[node] == self.zk.lost_at(node);
            let lease = early && self.zk.lost_at(node).is_some_and(|lost| recently(lost, 40_000 + CUT));
            return lease.then_some("its agent is cut off, and its Patroni gave the key up before it died");
        }
        if agent.lag > 0 || recently(agent.lag_ended, 5000) {
            return Some("its agent's ZooKeeper server lags");
        }
        None
    }

    /// The gate of the leader let it pass although this server took writes, within reach: it had to be fenced first.
    fn gate_could_see(&self, node: usize) -> bool {
        let Some(leader) = self.zk.key.map(|key| key.node).filter(|leader| *leader != node) else { return false };
        let old = &self.nodes[node];
        let Some(passed) = self.nodes[leader].patroni.passed_at.filter(|_| self.nodes[leader].pg.acknowledges()) else {
            return false;
        };
        let reach = self.nodes[leader].agent.reach_since.max(old.agent.reach_since).max(old.pg.locked_since);
        let since = old.pg.since.max(old.pg.unpaused_at).max(reach).max(old.agent.lag_ended);
        self.reaches(leader, node) && !old.pg.locked && since + 7000 < passed && self.nodes[leader].pg.since > passed
    }

    /// Patroni's HA loop counts as turning for longer than its session lives.
    fn lease_is_uncovered(&self, node: usize) -> bool {
        let patroni = &self.nodes[node].patroni;
        let known = patroni.known;
        // In failsafe mode vanished packets are borne for another 8 s.
        // Its agent may know a newer configuration than a frozen Patroni.
        let vanished = if known.failsafe || self.zk.config.failsafe { 8000 } else { 0 };
        let bound = known.loop_wait + known.retry_timeout + HEARTBEAT + vanished;
        let timeout = patroni.ttl.min(40_000);
        // Cut off or frozen, it goes on with its cycle at most.
        let since = patroni.cycle.max(patroni.seen);
        bound + 5000 > timeout && patroni.alive && self.now < since + bound + CUT
    }

    /// The agent of `node`, which is cut off, can tell that its Patroni's HA loop does not turn, or is not in failsafe mode.
    fn failsafe_is_known(&self, node: usize) -> bool {
        let known = &self.nodes[node];
        let dead = !known.patroni.alive && self.setting.alive_lock;
        let beats = self.setting.heartbeat && known.pg.heartbeat.is_some();
        let denied = known.agent.inactive_heard.is_some_and(|(heard, seen)| {
            heard + known.patroni.ttl > known.agent.reach_since + 1000
                && heard.saturating_sub(seen) <= known.patroni.known.loop_wait
        });
        dead || beats || denied
    }

    /// The leader's agent has had its time to fence a node whose own agent does not run.
    fn peer_is_late(&self, node: usize) -> bool {
        let Some(leader) = self.zk.key.map(|key| key.node) else { return false };
        let (peer, old) = (&self.nodes[leader], &self.nodes[node]);
        let agent = &peer.agent;
        let fit = agent.up && !agent.paused && agent.reaches && agent.lag == 0 && agent.session.is_some();
        if leader == node
            || !fit
            || !self.reaches(leader, node)
            || old.pg.locked
            || !peer.pg.acknowledges()
            || peer.pg.timeline <= old.pg.timeline
        {
            return false;
        }
        let since = [
            agent.informed_at,
            agent.reach_since,
            agent.lag_ended,
            peer.pg.since,
            peer.pg.unpaused_at,
            old.pg.since,
            old.pg.unpaused_at,
            old.pg.locked_since,
            old.agent.since,
            // It may have been out of reach.
            old.agent.reach_since,
            self.zk.since,
            self.zk.key.map_or(0, |key| key.at),
        ];
        since.into_iter().max().is_some_and(|since| self.now > since.saturating_add(PEER))
    }

    /// Which node can be reached is noted when that may have changed.
    pub fn note_reach(&mut self, node: usize) {
        let reaches = self.reaches_zookeeper(Client::Agent(node));
        let paused = self.zk.config.pause || self.now < self.zk.unpaused_at.saturating_add(PAUSED);
        let agent = &mut self.nodes[node].agent;
        if agent.reaches != reaches {
            (agent.reaches, agent.reach_since, agent.cut_in_pause) = (reaches, self.now, paused && !reaches);
        }
    }
}
