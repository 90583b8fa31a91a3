//! Whether what is done is right: a fence, a release, a promotion that is refused or let pass.

use crate::checks::HEARTBEAT;
use crate::gate::{GATE_WAIT, Hook, holds_key};
use crate::postgres::{Postgres, State};
use crate::world::{World, letter, tell};
use std::time::Duration;
use warden_core::event::Rule;
use warden_core::rules::gate::{LEASE_IS_OVER, Picture, Verdict};

/// After a thaw a cycle begins within a second, and is seen within another; an order is under way for 2 s.
const SEEN_TO_TURN: u64 = 4500;

/// The gate asks again after this, and a fence of its own takes its time.
const ROUND: u64 = 200;

/// What an agent said of its server is as old as this, at most: its znode counts for 5 s, its answer for 1 s.
const SAID: u64 = 7000;

impl World {
    /// A fence is carried out on `node`. `so_at` is when its guard was known to be so; `None` where there is none.
    /// One that waited in front of a paused server cannot be taken back, and is good for ten seconds.
    pub fn strike_fence(&mut self, node: usize, by: usize, rule: Rule, so_at: Option<u64>, waited: bool) {
        *self.tally.fences.entry(rule).or_default() += 1;
        self.fenced[node] += 1;
        tell!(self, "PostgreSQL of {} is fenced by the agent of {} ({rule:?})", letter(node), letter(by));
        if self.zk.config.pause && rule != Rule::Operator && so_at.is_some() && !waited {
            self.object(format!("(b) {} is fenced by {rule:?} in maintenance mode", letter(node)));
        }
        if matches!(rule, Rule::Superseded | Rule::Orphaned | Rule::Lease)
            && !waited
            && let Some(why) = self.goes_on(node, rule)
        {
            self.object(format!("(b) {} is fenced by {rule:?} {why}", letter(node)));
        }
        let Some(key) = self.zk.key.filter(|key| key.node == node) else { return };
        let patroni = &self.nodes[node].patroni;
        let rightful = match rule {
            Rule::Operator => false,
            // Between the guard's read and the signal the key may have become its own: that cannot be excluded.
            _ if so_at.is_some_and(|so_at| key.at >= so_at) => false,
            // One that waited in front of a paused server cannot be taken back, and is good for ten seconds.
            Rule::Lease if waited => self.is_seen_to_turn(node, 12_500),
            Rule::Lease => self.is_seen_to_turn(node, SEEN_TO_TURN),
            _ => patroni.turns(),
        };
        if rightful {
            let why = if rule == Rule::Lease { "and its HA loop is seen to turn" } else { "" };
            self.object(format!("(b) {} is fenced by {rule:?} although it leads {why}", letter(node)));
        } else if rule == Rule::Lease && patroni.loop_turns() {
            *self.tally.unprovable.entry("no heartbeat, and REST is stuck").or_default() += 1;
        }
    }

    /// The agent of `node` can see that the HA loop turns: by the heartbeat, or else by an answer.
    fn is_seen_to_turn(&self, node: usize, after: u64) -> bool {
        let known = &self.nodes[node];
        let patroni = &known.patroni;
        let settled = self.now - patroni.since.max(patroni.loop_since) > after;
        let age = known.pg.heartbeat.map(|began| self.now - began).filter(|_| self.setting.heartbeat);
        // The agent looks once a second, and again until the server has it stopped.
        let heartbeat = age.is_some_and(|age| age <= self.progress_limit(node))
            && self.now - known.pg.beats_since > 1500
            && !known.pg.paused;
        let answers = patroni.answers()
            && self.now - patroni.rest_since > 2500
            && self.word_of_contact(node) < self.progress_limit(node);
        // One that its Patroni stops itself loses nothing.
        settled && patroni.loop_turns() && !patroni.demoting && (heartbeat || answers)
    }

    /// So old its contact is by its own word, in whole seconds of a clock that may have been set, at most.
    fn word_of_contact(&self, node: usize) -> u64 {
        let patroni = &self.nodes[node].patroni;
        self.now - patroni.seen + 1000 + patroni.clock.unsigned_abs()
    }

    /// A cycle of the HA loop that takes longer counts as hung.
    pub fn progress_limit(&self, node: usize) -> u64 {
        // Its agent may know a newer configuration than Patroni itself.
        let limit = |config: crate::zookeeper::Config| config.loop_wait + config.retry_timeout + HEARTBEAT;
        limit(self.nodes[node].patroni.known).min(limit(self.zk.config))
    }

    /// Why this server goes on for good reason, as its agent can know.
    fn goes_on(&self, node: usize, rule: Rule) -> Option<&'static str> {
        let known = &self.nodes[node];
        let patroni = &known.patroni;
        // Where another one leads and takes writes already, it was granted before a freeze, and is over.
        let replaced = self.zk.key.is_some_and(|key| key.node != node && self.nodes[key.node].pg.acknowledges());
        if patroni.loop_turns() && !replaced && self.now < patroni.failsafe_until {
            let heard = known.agent.failsafe_heard.is_some_and(|heard| self.now - heard < 19_000);
            // Where the heartbeat cannot be had, only an answer from before the outage tells.
            let inactive =
                known.agent.inactive_heard.map_or(0, |(heard, _)| heard) + patroni.known.ttl >= known.agent.reach_since;
            // Where another holds the key, by a linearizable read, only its own word keeps it.
            let seen = rule == Rule::Lease && (self.is_seen_to_turn(node, SEEN_TO_TURN) || !inactive);
            if heard || seen {
                return Some("in failsafe mode");
            }
        }
        let settled = self.now - patroni.since.max(patroni.rest_since).max(patroni.loop_since) > 2500;
        // By its own word it lost contact: its cycle takes longer than it may, as where packets vanish.
        let lost = rule == Rule::Lease && self.word_of_contact(node) >= self.progress_limit(node);
        // While ZooKeeper answers, a loop that is stuck is no reason.
        let turns = rule == Rule::Orphaned || patroni.loop_turns();
        let answers = turns && settled && patroni.answers() && !lost && !patroni.demoting;
        (matches!(rule, Rule::Orphaned | Rule::Lease) && answers).then_some("although its Patroni answers")
    }

    /// What the gate of `node` says.
    pub fn check_gate(&mut self, node: usize, hook: &Hook, picture: Option<&Picture>, said: &Verdict) {
        let Some(picture) = picture else { return };
        let ran = self.now - hook.began;
        let woke = self.now - self.nodes[node].pg.unpaused_at < GATE_WAIT + 1000;
        match said {
            Verdict::Wait(_) if holds_key(picture) && ran > GATE_WAIT + 1000 && !woke && self.zk.holds(node) => {
                self.object(format!("(e) the gate keeps {} waiting for {ran} ms", letter(node)));
            }
            Verdict::Wait(_) => {}
            Verdict::Pass if !picture.paused => self.check_passing(node, picture),
            Verdict::Pass => {}
            Verdict::Refuse(_) => {
                self.tally.refused_promotions += 1;
                // What was found is a round old; and where its data directory cannot be seen, one that starts may be anything.
                let may_write = |pg: &Postgres| match pg.state {
                    State::TakesWrites | State::Starting { standby: false } => true,
                    State::Starting { standby: true } => !self.setting.data_directory && self.now - pg.since < SAID,
                    State::Down => self.now - pg.since < ROUND,
                    State::Follows => false,
                };
                let writes = self.nodes.iter().enumerate().any(|(other, known)| other != node && may_write(&known.pg));
                let operator = self.zk.records[node].is_some_and(|record| record.rule == Rule::Operator);
                if self.zk.holds(node) && !writes && !operator {
                    self.object(format!("(e) the gate of {} refuses, and no other takes writes", letter(node)));
                }
            }
        }
    }

    /// Who may still take writes has to have had its time, or to be proved stopped.
    fn check_passing(&mut self, node: usize, picture: &Picture) {
        if !holds_key(picture) {
            return self.object(format!("(e) the gate of {} lets it pass without the key", letter(node)));
        }
        let age = Duration::from_millis(self.zk.key.map_or(0, |key| self.now - key.at + 100)); // what is read is as old as its question
        let held_last = self.zk.holder_before();
        for other in (0..self.setting.nodes).filter(|other| *other != node && Some(*other) == held_last) {
            let pg = &self.nodes[other].pg;
            let silent = pg.paused || !self.reaches(node, other);
            let recorded =
                self.zk.records[other].is_some_and(|record| record.at + 1000 >= self.zk.lost_at(other).unwrap_or(0));
            let new = self.now - pg.since < SAID;
            if silent && pg.state == State::TakesWrites && !recorded && !new && age < LEASE_IS_OVER {
                self.object(format!("(e) the gate of {} does not wait for {}", letter(node), letter(other)));
            }
        }
    }

    /// The key that `node` holds is released.
    pub fn check_release(&mut self, node: usize, handover: bool) {
        tell!(
            self,
            "the agent of {} releases the leader key{}",
            letter(node),
            if handover { " (handover)" } else { "" }
        );
        if handover {
            self.tally.handovers += 1;
        } else {
            self.tally.releases += 1;
        }
        if self.nodes[node].pg.state != State::Down {
            self.object(format!("(c) the key of {} is released although its PostgreSQL is up", letter(node)));
        }
        if !handover && self.nodes[node].patroni.alive {
            self.object(format!("(c) the key of {} is released although its Patroni lives", letter(node)));
        }
        // Otherwise rows that were acknowledged may be lost. What its own agent last said of it counts for a while.
        let follows = |other: usize| {
            let pg = &self.nodes[other].pg;
            pg.state == State::Follows || self.now - pg.since < SAID
        };
        let synchronous = self.zk.sync.leader == Some(node) && self.zk.sync.standby.is_some_and(follows);
        if !handover && !synchronous {
            self.object(format!("(c) the key of {} is released although no standby is synchronous", letter(node)));
        }
        if handover && self.zk.failover.is_none_or(|(from, _)| from != node) {
            self.object(format!("(c) the key of {} is handed over although no switchover is under way", letter(node)));
        }
    }
}
