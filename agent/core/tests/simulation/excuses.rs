//! The excuses for two writers: why the agents could not prevent them, and for how long at most.
//!
//! The bounds are in milliseconds.

use crate::world::{Node, World};

/// From the loss of ZooKeeper to the fence, if the lease is over already. The last barrier read counts for 3 s, and the
/// last question to Patroni takes 2 s. A new session, or an order repeated in it, takes no longer.
pub const CUT_OFF_GRACE: u64 = 3300 + 2000;

/// Two stalls in that time, and the questions to Patroni that the agent has to repeat after them.
const STALLS_GRACE: u64 = 2 * 2000 + 1500 + 1100;

/// Before a fence by lease, the agent waits this long for a last answer of Patroni.
const LAST_ANSWER_MAX: u64 = 1000;

/// After its start or its waking, an agent knows all facts within a second, or a fence by lease is under way.
const STARTUP_GRACE: u64 = LAST_ANSWER_MAX + REACTION_MAX;

/// For a lease, an agent that has started has to see for itself that Patroni is silent: 5 s, and one question.
const SILENCE_GRACE: u64 = 6500;

/// An agent sees within a second that a server begins to take writes.
pub const WRITES_UNSEEN_MAX: u64 = 1300;

/// A server that comes out of crash recovery is seen within 40 ms, and fenced.
const RECOVERED_GRACE: u64 = 150;

/// A queued fence, or the one under way, is done this long after a server is unpaused.
const UNPAUSED_GRACE: u64 = 80;

/// A fence that failed is tried again after this time. No statement can wait in front of a server that starts.
const FENCE_RETRIED: u64 = 500;

/// A Patroni that is unpaused together with its server finds out by itself, if no member holds the key.
const UNPAUSED_PATRONI_GRACE: u64 = 2000;

/// From the loss of the key to the end of the fence. The promotion of a successor takes at least as long.
const REACTION_MAX: u64 = 80;

/// The agent verifies the configuration every 2 s.
pub const PAUSE_GRACE: u64 = 4000;

/// A peer fences after the agent's znode is old (5 s), a probe (1 s), and its turn (3 s).
const PEER_FENCE_MAX: u64 = 9500;

/// A cut-off Patroni whose loop turns stops its server in its next cycle. Added to `loop_wait` and `retry_timeout`: the
/// time in which packets vanish, and a stop.
const NEXT_CYCLE_MAX: u64 = 8000 + 5000;

/// Patroni is not away while its heartbeat is at most this much older than `loop_wait` and `retry_timeout`.
pub const HEARTBEAT_AGE_MAX: u64 = 5000;

const _: () = assert!(UNPAUSED_GRACE <= REACTION_MAX && REACTION_MAX < RECOVERED_GRACE);
const _: () = assert!(RECOVERED_GRACE < WRITES_UNSEEN_MAX && WRITES_UNSEEN_MAX < CUT_OFF_GRACE);

/// The excuse of [`CUT_OFF_GRACE`].
const CONNECTION_CHANGED: &str = "its agent was cut off, or connected again, 5.3 s ago at most";

const _: () = assert!(CUT_OFF_GRACE == 5300, "`CONNECTION_CHANGED` names it");

impl World {
    /// Every other writer has just been unpaused. `node` may have gone on rightly: they could not take over before.
    pub fn unpaused_beside(&self, node: usize) -> Option<&'static str> {
        let writers = self.nodes.iter().enumerate().filter(|(other, known)| *other != node && known.pg.acknowledges());
        let mut others = writers.map(|(_, known)| self.now < known.pg.unpaused_at.saturating_add(UNPAUSED_GRACE));
        let unpaused = others.next()? && others.all(|unpaused| unpaused);
        unpaused.then_some("the other writer was unpaused 80 ms ago at most")
    }

    /// Whether `since` is less than `bound` ago.
    fn recently(&self, since: u64, bound: u64) -> bool {
        self.now < since.saturating_add(bound)
    }

    /// The reason why the agent of `node`, which takes writes without the key, has not stopped the server yet.
    pub fn excuse(&self, node: usize) -> Option<&'static str> {
        let agent = &self.nodes[node].agent;
        if self.zk.config.pause || self.recently(self.zk.unpaused_at, PAUSE_GRACE) {
            return Some("maintenance mode, or 4 s after it");
        }
        if self.gate_could_see(node) {
            return None;
        }
        let stalls = self.now <= agent.stalled || self.recently(agent.stalled, 1000);
        if stalls && agent.reaches {
            return Some("its agent stalls for 2 s repeatedly");
        }
        if !agent.up || (agent.paused && !stalls) {
            return (!self.peer_is_late(node)).then_some("its agent does not run; the leader's agent has 9.5 s");
        }
        let informed = agent.informed_at.saturating_add(if agent.reaches { STARTUP_GRACE } else { SILENCE_GRACE });
        if self.now < informed {
            return Some("its agent has just started");
        }
        self.excuse_by_recent_change(node).or_else(|| self.excuse_by_failsafe(node)).or_else(|| {
            if agent.reaches { self.excuse_of_connected_agent(node) } else { self.excuse_of_cut_off_agent(node) }
        })
    }

    fn excuse_by_recent_change(&self, node: usize) -> Option<&'static str> {
        let known = &self.nodes[node];
        // A cut-off agent has only the lease, and asks Patroni once more.
        let last_answer = if known.agent.reaches { 0 } else { LAST_ANSWER_MAX };
        let unseen = match known.pg.seen {
            // The agent, or the gate, asks the server all the time. `histories.rs` checks that the gate waits.
            None if known.pg.recovered && !self.recently(known.pg.unpaused_at, WRITES_UNSEEN_MAX) => {
                self.recently(known.pg.since, RECOVERED_GRACE + last_answer)
            }
            None => self.recently(known.pg.since.max(known.pg.unpaused_at), WRITES_UNSEEN_MAX),
            Some(seen) => self.recently(seen, REACTION_MAX + if known.pg.recovered { last_answer } else { 0 }),
        };
        if unseen {
            return Some("its agent had not yet seen it take writes, for 1.3 s at most");
        }
        if self.recently(known.pg.unpaused_at, UNPAUSED_GRACE) {
            return Some("it was unpaused 80 ms ago at most");
        }
        if known.pg.recovered && self.recently(known.pg.unpaused_at, FENCE_RETRIED + REACTION_MAX) {
            return Some("it was paused in crash recovery, and the fence that failed then is tried again after 0.5 s");
        }
        let unpaused = |other: &Node| {
            other.pg.acknowledges()
                && other.patroni.loop_turns()
                && self.recently(other.pg.unpaused_at, UNPAUSED_PATRONI_GRACE)
        };
        let no_other = self.zk.key.is_none_or(|key| self.recently(key.at, REACTION_MAX));
        if no_other && self.nodes.iter().any(unpaused) {
            return Some(
                "no other held the key, and a Patroni that was unpaused 2 s ago at most has not run a cycle yet",
            );
        }
        let lost = self.zk.lost_at(node).is_some_and(|lost| self.recently(lost, REACTION_MAX));
        lost.then_some("it lost the key 80 ms ago at most")
    }

    fn excuse_by_failsafe(&self, node: usize) -> Option<&'static str> {
        let Node { agent, patroni, .. } = &self.nodes[node];
        let lingers =
            agent.failsafe_reported_at.map(|reported| reported + self.zk.config.ttl.max(30_000) + CUT_OFF_GRACE);
        if lingers.is_some_and(|until| self.now < until) {
            return Some("failsafe mode was active until recently");
        }
        if agent.cut_in_pause {
            return Some("its agent was cut off in maintenance mode");
        }
        (self.now < patroni.failsafe_until).then_some("failsafe mode: its Patroni goes on")
    }

    fn excuse_of_connected_agent(&self, node: usize) -> Option<&'static str> {
        let agent = &self.nodes[node].agent;
        if self.connection_changed_recently(node) {
            return Some(CONNECTION_CHANGED);
        }
        // It asks for another timeout after a change of ttl, and sees the key again in the new session only.
        if agent.session.is_some() && self.recently(agent.session_at, REACTION_MAX) {
            return Some("its agent's session began 80 ms ago at most");
        }
        (agent.lag > 0 || self.recently(agent.lag_ended, 5000)).then_some("its agent's ZooKeeper server lags")
    }

    fn excuse_of_cut_off_agent(&self, node: usize) -> Option<&'static str> {
        let Node { agent, patroni, .. } = &self.nodes[node];
        let config = patroni.known;
        let cycle = config.loop_wait + config.retry_timeout;
        let turning = agent.reach_since.max(patroni.since).max(patroni.loop_since);
        if patroni.loop_turns() && self.recently(turning, cycle + NEXT_CYCLE_MAX) {
            return Some("its agent is cut off and its Patroni turns: that one's next cycle");
        }
        if self.lease_is_uncovered(node) {
            return Some("the lease does not cover a ttl this small, or above 20 ticks, or so small in failsafe mode");
        }
        // The heartbeat counts for as long as in any round. No agent can know that the answer in it is an old one.
        if patroni.stale_read && self.recently(patroni.seen, cycle + HEARTBEAT_AGE_MAX + CUT_OFF_GRACE) {
            return Some("its agent is cut off, and its Patroni froze inside get_cluster and hangs since its thaw");
        }
        // The agent may know an older configuration.
        let off_unseen = self.zk.failsafe_off_at.is_some_and(|at| at + 20 >= agent.reach_since);
        if (self.zk.config.failsafe || off_unseen) && !self.failsafe_is_known(node) {
            return Some("failsafe mode: neither a heartbeat nor a denial, and no dead Patroni");
        }
        if self.connection_changed_recently(node) {
            return Some(CONNECTION_CHANGED);
        }
        if self.zk.lowered_at.is_some_and(|at| at + 20 >= agent.reach_since) {
            return Some("ttl was lowered while its agent was cut off");
        }
        if !patroni.turns() && self.recently(patroni.since, SILENCE_GRACE + 1100) {
            return Some("its agent is cut off, and its Patroni answered 7.6 s ago at most");
        }
        // Only the lock shows that Patroni was started again, and whose session its contact prolongs.
        let owner = self.zk.keys.iter().rev().find_map(|(_, key)| key.filter(|key| key.node == node));
        let restarted = owner.is_some_and(|key| patroni.session != Some(key.owner));
        if restarted && !self.setting.alive_lock {
            return Some("no alive lock: its Patroni was started again unseen before its agent was cut off");
        }
        // The agent cannot know that Patroni gave its key up before it died. It waits for the end of the lease.
        let early = self.zk.given_up[node].is_some() && self.zk.given_up[node] == self.zk.lost_at(node);
        let lease = early && self.zk.lost_at(node).is_some_and(|lost| self.recently(lost, 40_000 + CUT_OFF_GRACE));
        lease.then_some("its agent is cut off, and its Patroni gave the key up before it died")
    }

    /// Whether the agent of `node` lost ZooKeeper, or reached it again, a short time ago.
    fn connection_changed_recently(&self, node: usize) -> bool {
        let agent = &self.nodes[node].agent;
        let stalled = if agent.stalled >= agent.reach_since { STALLS_GRACE } else { 0 };
        self.recently(agent.reach_since, CUT_OFF_GRACE + stalled)
    }

    /// The leader's gate passed although it reached this server, which took writes. It had to fence the server first.
    fn gate_could_see(&self, node: usize) -> bool {
        let Some(leader) = self.zk.key.map(|key| key.node).filter(|leader| *leader != node) else { return false };
        let old = &self.nodes[node];
        let Some(passed) = self.nodes[leader].patroni.passed_at.filter(|_| self.nodes[leader].pg.acknowledges()) else {
            return false;
        };
        let reach = self.nodes[leader].agent.reach_since.max(old.agent.reach_since).max(old.pg.logins_refused_since);
        let since = old.pg.since.max(old.pg.unpaused_at).max(reach).max(old.agent.lag_ended);
        self.reaches(leader, node)
            && !old.pg.logins_refused
            && since + 7000 < passed
            && self.nodes[leader].pg.since > passed
    }

    /// The HA loop counts as turning for longer than Patroni's session lives.
    fn lease_is_uncovered(&self, node: usize) -> bool {
        let patroni = &self.nodes[node].patroni;
        let known = patroni.known;
        // In failsafe mode vanished packets add 8 s. The agent may know a newer configuration than a frozen Patroni.
        let vanished = if known.failsafe || self.zk.config.failsafe { 8000 } else { 0 };
        let bound = known.loop_wait + known.retry_timeout + HEARTBEAT_AGE_MAX + vanished;
        let timeout = patroni.ttl.min(40_000);
        // A Patroni that is cut off or frozen finishes its cycle at most.
        let since = patroni.cycle.max(patroni.seen);
        bound + 5000 > timeout && patroni.alive && self.now < since + bound + CUT_OFF_GRACE
    }

    /// The cut-off agent of `node` knows that the HA loop does not turn, or is not in failsafe mode.
    fn failsafe_is_known(&self, node: usize) -> bool {
        let known = &self.nodes[node];
        let dead = !known.patroni.alive && self.setting.alive_lock;
        let beats = self.setting.heartbeat && known.pg.heartbeat.is_some();
        let denied = known.agent.failsafe_denied.is_some_and(|(reported, seen)| {
            // The agent may know a newer configuration than a frozen Patroni.
            reported + known.patroni.ttl.min(self.zk.config.ttl) > known.agent.reach_since + 1000
                && reported.saturating_sub(seen) <= known.patroni.known.loop_wait
        });
        dead || beats || denied
    }

    /// The leader's agent has had enough time to fence a node whose own agent does not run.
    fn peer_is_late(&self, node: usize) -> bool {
        let Some(leader) = self.zk.key.map(|key| key.node) else { return false };
        let (peer, old) = (&self.nodes[leader], &self.nodes[node]);
        let agent = &peer.agent;
        let fit = agent.up && !agent.paused && agent.reaches && agent.lag == 0 && agent.session.is_some();
        if leader == node
            || !fit
            || !self.reaches(leader, node)
            || old.pg.logins_refused
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
            old.pg.logins_refused_since,
            old.agent.since,
            // The node may have been out of reach.
            old.agent.reach_since,
            self.zk.since,
            self.zk.key.map_or(0, |key| key.at),
        ];
        since.into_iter().max().is_some_and(|since| self.now > since.saturating_add(PEER_FENCE_MAX))
    }
}
