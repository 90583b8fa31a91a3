//! Whether the agents act rightly: a fence, a release, and a promotion that the gate refuses or lets pass.

use crate::act::ORDER_LIFETIME;
use crate::excuses::HEARTBEAT_AGE_MAX;
use crate::gate::{GATE_WAIT, Hook, holds_key};
use crate::postgres::{Postgres, State};
use crate::world::{World, letter, log};
use std::time::Duration;
use warden_core::event::Rule;
use warden_core::rules::gate::{LEASE_OVER_AFTER, Picture, Verdict};

/// A cycle begins within a second after a thaw, and the agent sees it within another. An order takes up to 2 s.
const LOOP_SEEN_MAX: u64 = 4500;

/// The gate asks again within this time, and its own fence takes some of it.
const GATE_ROUND_MAX: u64 = 200;

/// An agent's report of its server is at most this old: its znode counts for 5 s, its answer for 1 s.
const REPORT_AGE_MAX: u64 = 7000;

impl World {
    /// An agent fences `node`. `verified_at` is the time at which the guard's condition was true; `None` without a
    /// guard. `waited`: the statement waited in front of a paused server. It cannot be withdrawn, and is valid for
    /// [`ORDER_LIFETIME`].
    pub fn check_fence(&mut self, node: usize, by: usize, rule: Rule, verified_at: Option<u64>, waited: bool) {
        *self.tally.fences.entry(rule).or_default() += 1;
        self.fenced[node] += 1;
        log!(self, "PostgreSQL of {} is fenced by the agent of {} ({rule:?})", letter(node), letter(by));
        if self.zk.config.pause && rule != Rule::Operator && verified_at.is_some() && !waited {
            self.fail(format!("(b) {} is fenced by {rule:?} in maintenance mode", letter(node)));
        }
        if matches!(rule, Rule::Superseded | Rule::Orphaned | Rule::Lease)
            && !waited
            && let Some(why) = self.rightful_writer(node, rule)
        {
            self.fail(format!("(b) {} is fenced by {rule:?} {why}", letter(node)));
        }
        let Some(key) = self.zk.key.filter(|key| key.node == node) else { return };
        let patroni = &self.nodes[node].patroni;
        let rightful = match rule {
            Rule::Operator => false,
            // The server may get the key between the guard's read and the signal. No agent can exclude that.
            _ if verified_at.is_some_and(|verified_at| key.at >= verified_at) => false,
            // A statement that waited cannot be withdrawn, and is valid for a while.
            Rule::Lease if waited => self.loop_is_seen(node, ORDER_LIFETIME + 2500),
            Rule::Lease => self.loop_is_seen(node, LOOP_SEEN_MAX),
            _ => patroni.turns(),
        };
        if rightful {
            let why = if rule == Rule::Lease { "and its HA loop is seen to turn" } else { "" };
            self.fail(format!("(b) {} is fenced by {rule:?} although it leads {why}", letter(node)));
        } else if rule == Rule::Lease && patroni.loop_turns() {
            *self.tally.unprovable.entry("no heartbeat, and REST is stuck").or_default() += 1;
        }
    }

    /// The agent of `node` can see that the HA loop turns: by the heartbeat, or else by an answer.
    fn loop_is_seen(&self, node: usize, after: u64) -> bool {
        let known = &self.nodes[node];
        let patroni = &known.patroni;
        let settled = self.now - patroni.since.max(patroni.loop_since) > after;
        let age = known.pg.heartbeat.map(|began| self.now - began).filter(|_| self.setting.heartbeat);
        // The agent asks once a second, and repeats its order until the server has stopped.
        let heartbeat = age.is_some_and(|age| age <= self.progress_limit(node))
            && self.now - known.pg.beats_since > 1500
            && !known.pg.paused;
        let answers = patroni.answers()
            && self.now - patroni.rest_since > 2500
            && self.reported_contact_age_max(node) < self.progress_limit(node);
        // A server that its Patroni stops itself loses nothing.
        settled && patroni.loop_turns() && !patroni.demoting && (heartbeat || answers)
    }

    /// The maximal age of the contact that Patroni reports: in whole seconds, by a clock that may have jumped.
    fn reported_contact_age_max(&self, node: usize) -> u64 {
        let patroni = &self.nodes[node].patroni;
        self.now - patroni.seen + 1000 + patroni.clock.unsigned_abs()
    }

    /// A longer cycle of the HA loop counts as hung.
    pub fn progress_limit(&self, node: usize) -> u64 {
        // The agent may know a newer configuration than Patroni.
        let limit = |config: crate::zookeeper::Config| config.loop_wait + config.retry_timeout + HEARTBEAT_AGE_MAX;
        limit(self.nodes[node].patroni.known).min(limit(self.zk.config))
    }

    /// The reason why this server goes on rightly, as far as its agent can know.
    fn rightful_writer(&self, node: usize, rule: Rule) -> Option<&'static str> {
        let known = &self.nodes[node];
        let patroni = &known.patroni;
        // If another member leads and takes writes, failsafe mode was granted before a freeze, and is over.
        let replaced = self.zk.key.is_some_and(|key| key.node != node && self.nodes[key.node].pg.acknowledges());
        if patroni.loop_turns() && !replaced && self.now < patroni.failsafe_until {
            let active = known.agent.failsafe_reported_at.is_some_and(|reported| self.now - reported < 19_000);
            // Without a heartbeat, only an answer from before the outage proves that failsafe mode is inactive.
            let inactive = known.agent.failsafe_denied.map_or(0, |(denied, _)| denied) + patroni.known.ttl
                >= known.agent.reach_since;
            // If another member holds the key by a linearizable read, only Patroni's own report keeps the server.
            let seen = rule == Rule::Lease && (self.loop_is_seen(node, LOOP_SEEN_MAX) || !inactive);
            if active || seen {
                return Some("in failsafe mode");
            }
        }
        let settled = self.now - patroni.since.max(patroni.rest_since).max(patroni.loop_since) > 2500;
        // Patroni reports that it lost contact: its cycle takes longer than allowed, as when packets vanish.
        let lost = rule == Rule::Lease && self.reported_contact_age_max(node) >= self.progress_limit(node);
        // A stuck loop is no reason while ZooKeeper answers.
        let turns = rule == Rule::Orphaned || patroni.loop_turns();
        let answers = turns && settled && patroni.answers() && !lost && !patroni.demoting;
        (matches!(rule, Rule::Orphaned | Rule::Lease) && answers).then_some("although its Patroni answers")
    }

    /// Checks the verdict of the gate of `node`.
    pub fn check_gate(&mut self, node: usize, hook: &Hook, picture: Option<&Picture>, verdict: &Verdict) {
        let Some(picture) = picture else { return };
        let ran = self.now - hook.began;
        let just_unpaused = self.now - self.nodes[node].pg.unpaused_at < GATE_WAIT + 1000;
        match verdict {
            Verdict::Wait(_)
                if holds_key(picture) && ran > GATE_WAIT + 1000 && !just_unpaused && self.zk.holds(node) =>
            {
                self.fail(format!("(e) the gate keeps {} waiting for {ran} ms", letter(node)));
            }
            Verdict::Wait(_) => {}
            Verdict::Pass if !picture.paused => self.check_passing(node, picture),
            Verdict::Pass => {}
            Verdict::Refuse(_) => {
                self.tally.refused_promotions += 1;
                // The gate's findings are a round old. Without its data directory, a starting server may be a primary.
                let may_write = |pg: &Postgres| match pg.state {
                    State::TakesWrites | State::Starting { standby: false } => true,
                    State::Starting { standby: true } => {
                        !self.setting.data_directory && self.now - pg.since < REPORT_AGE_MAX
                    }
                    State::Down => self.now - pg.since < GATE_ROUND_MAX,
                    State::Follows => false,
                };
                let writes = self.nodes.iter().enumerate().any(|(other, known)| other != node && may_write(&known.pg));
                let operator = self.zk.records[node].is_some_and(|record| record.rule == Rule::Operator);
                if self.zk.holds(node) && !writes && !operator {
                    self.fail(format!("(e) the gate of {} refuses, and no other takes writes", letter(node)));
                }
            }
        }
    }

    /// A server that may still take writes has had its time, or is proved stopped.
    fn check_passing(&mut self, node: usize, picture: &Picture) {
        if !holds_key(picture) {
            return self.fail(format!("(e) the gate of {} passes without the key", letter(node)));
        }
        // A read is as old as its question.
        let age = Duration::from_millis(self.zk.key.map_or(0, |key| self.now - key.at + 100));
        let held_last = self.zk.holder_before();
        for other in (0..self.setting.nodes).filter(|other| *other != node && Some(*other) == held_last) {
            let pg = &self.nodes[other].pg;
            let silent = pg.paused || !self.reaches(node, other);
            let recorded =
                self.zk.records[other].is_some_and(|record| record.at + 1000 >= self.zk.lost_at(other).unwrap_or(0));
            let new = self.now - pg.since < REPORT_AGE_MAX;
            if silent && pg.state == State::TakesWrites && !recorded && !new && age < LEASE_OVER_AFTER {
                self.fail(format!("(e) the gate of {} does not wait for {}", letter(node), letter(other)));
            }
        }
    }

    /// An agent releases the key that `node` holds.
    pub fn check_release(&mut self, node: usize, handover: bool) {
        log!(
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
            self.fail(format!("(c) the key of {} is released although its PostgreSQL is up", letter(node)));
        }
        if !handover && self.nodes[node].patroni.alive {
            self.fail(format!("(c) the key of {} is released although its Patroni lives", letter(node)));
        }
        // Otherwise acknowledged rows may be lost. The last report of the standby's own agent counts for a while.
        let follows = |other: usize| {
            let pg = &self.nodes[other].pg;
            pg.state == State::Follows || self.now - pg.since < REPORT_AGE_MAX
        };
        let synchronous = self.zk.sync.leader == Some(node) && self.zk.sync.standby.is_some_and(follows);
        if !handover && !synchronous {
            self.fail(format!("(c) the key of {} is released although no standby is synchronous", letter(node)));
        }
        if handover && self.zk.failover.is_none_or(|(from, _)| from != node) {
            self.fail(format!("(c) the key of {} is handed over although no switchover is under way", letter(node)));
        }
    }
}
