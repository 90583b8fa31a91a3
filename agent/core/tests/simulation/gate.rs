//! `pre_promote`: `warden gate`, which Patroni runs after it has taken the key and before it promotes.
//!
//! Patroni sets no limit; its session and its HA loop go on meanwhile. Without the key the next cycle ends the hook, at
//! no cost. A no is taken in by the next cycle that holds the key: that one gives it back, and skips the race for ttl.
//! The hook is a process of its own, so it also runs while Patroni is frozen.
//!
//! TODO: `stand_in` takes the place of `warden_core::rules::gate` until that is there; its table is the contract's.

use crate::mutation::Mutation;
use crate::patroni::PatroniEvent;
use crate::postgres::{PgEvent, State};
use crate::world::{Happening, World, letter, tell};
use crate::zookeeper::Client;
use warden_core::event::Rule;

/// `gate.wait_s`.
pub const GATE_WAIT: u64 = 15_000;

/// One that may have been the last to take writes, and says nothing, is waited for so long after the key was created.
pub const LAST_HOLDER_WAIT: u64 = 5000;

/// As long the gate gives Patroni to cancel it, where another holds the key.
const CANCEL_WAIT: u64 = 5000;

/// What one question over TCP shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    Refused,
    InRecovery,
    Writable,
    Starting,
    Silent,
    NoLogin,
}

/// What is known of another member.
#[derive(Clone, Copy, Debug)]
pub struct Other {
    pub sight: Sight,
    /// Its own agent, fresh, says that it is a standby or starts as one; or that it is none.
    pub standby: Option<bool>,
    pub held_last: bool,
    /// Seen writable in this run of the gate.
    pub was_writable: bool,
    /// A record of its fence or release is younger than its last time with the key.
    pub recorded: bool,
}

/// What the gate knows.
#[derive(Clone, Debug)]
pub struct Known {
    /// Whether we hold the key, by a linearizable read; `None` where there was none.
    pub ours: Option<bool>,
    /// Another holds it.
    pub anothers: bool,
    /// How long it has not been ours.
    pub lost_for: u64,
    pub key_age: u64,
    pub runs_for: u64,
    pub others: [Option<Other>; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    Pass,
    Refuse,
    Wait,
}

/// A run of the hook.
#[derive(Clone, Debug)]
pub struct Hook {
    began: u64,
    was_writable: [bool; 3],
    lost_since: Option<u64>,
}

fn stand_in(known: &Known) -> Say {
    if known.ours == Some(false) {
        return if known.anothers && known.lost_for >= CANCEL_WAIT { Say::Refuse } else { Say::Wait };
    }
    let over = known.runs_for >= GATE_WAIT;
    let judge = |other: &Other| match other.sight {
        Sight::Refused | Sight::InRecovery => Say::Pass,
        Sight::Writable if over => Say::Refuse,
        Sight::Starting if other.standby == Some(true) => Say::Pass,
        Sight::Starting if other.standby == Some(false) || other.held_last || other.was_writable => {
            if over {
                Say::Refuse
            } else {
                Say::Wait
            }
        }
        Sight::Starting => Say::Pass,
        Sight::Writable => Say::Wait,
        Sight::Silent | Sight::NoLogin if other.standby == Some(true) || other.recorded || over => Say::Pass,
        Sight::Silent | Sight::NoLogin if other.was_writable => Say::Wait,
        Sight::Silent | Sight::NoLogin if other.held_last && known.key_age < LAST_HOLDER_WAIT => Say::Wait,
        Sight::Silent | Sight::NoLogin => Say::Pass,
    };
    let said: Vec<Say> = known.others.iter().flatten().map(judge).collect();
    match () {
        () if said.contains(&Say::Refuse) => Say::Refuse,
        () if said.contains(&Say::Wait) => Say::Wait,
        () => Say::Pass,
    }
}

impl World {
    pub fn begin_hook(&mut self, node: usize) {
        let known = &mut self.nodes[node];
        let patroni = &mut known.patroni;
        if patroni.hook.is_some() || known.pg.promoting {
            return;
        }
        patroni.hooks += 1;
        let pausing = std::mem::take(&mut patroni.to_pause);
        patroni.hook = Some(Hook { began: self.now, was_writable: [false; 3], lost_since: None });
        let run = patroni.hooks;
        if pausing {
            self.freeze_patroni(node);
            self.pause_pg(node);
        }
        let pause = self.chance.between(10, 40);
        self.after(pause, Happening::Hook(node, run));
    }

    /// Patroni's loop cancels it, at no cost.
    pub fn cancel_hook(&mut self, node: usize) {
        if self.nodes[node].patroni.hook.take().is_some() {
            tell!(self, "Patroni of {} cancels pre_promote: the key is gone", letter(node));
        }
    }

    pub fn hook_looks(&mut self, node: usize, run: u32) {
        let patroni = &self.nodes[node].patroni;
        if patroni.hooks != run || patroni.hook.is_none() {
            return;
        }
        // The whole node is paused, or its server.
        if self.nodes[node].pg.paused {
            return self.after(100, Happening::Hook(node, run));
        }
        let known = self.gates_knowledge(node);
        let said = match self.mutation {
            Mutation::GatePassesAlways => Say::Pass,
            Mutation::GateRefusesStandby if known.others.iter().flatten().any(|o| o.sight == Sight::InRecovery) => {
                Say::Refuse
            }
            _ => stand_in(&known),
        };
        if known.ours != Some(false) && said != Say::Pass {
            for other in 0..self.setting.nodes {
                if known.others[other].is_some_and(|known| known.sight == Sight::Writable) {
                    self.gate_fences(node, other);
                }
            }
        }
        self.check_gate(node, &known, said);
        match said {
            Say::Wait => self.after(100, Happening::Hook(node, run)),
            Say::Pass => {
                tell!(self, "the gate of {} lets it pass after {} ms", letter(node), known.runs_for);
                let patroni = &mut self.nodes[node].patroni;
                (patroni.hook, patroni.passed_at) = (None, Some(self.now));
                let (life, pause) = (self.nodes[node].patroni.life, self.chance.between(1, 10));
                self.after(pause, Happening::Patroni(node, life, PatroniEvent::Promote));
            }
            Say::Refuse => {
                tell!(self, "the gate of {} says no: {known:?}", letter(node));
                let patroni = &mut self.nodes[node].patroni;
                (patroni.hook, patroni.said_no) = (None, true);
                self.wake_patroni(node, 20);
            }
        }
    }

    fn gates_knowledge(&mut self, node: usize) -> Known {
        let reads = self.reaches_zookeeper(Client::Agent(node));
        let ours = reads.then(|| self.zk.holds(node));
        let held_last = self.zk.holder_before();
        let mut others = [None; 3];
        for other in (0..self.setting.nodes).filter(|other| *other != node) {
            let pg = &self.nodes[other].pg;
            let sight = match pg.state {
                _ if pg.paused || !self.reaches(node, other) => Sight::Silent,
                State::Down => Sight::Refused,
                State::Starting { .. } => Sight::Starting,
                _ if pg.locked => Sight::NoLogin,
                State::TakesWrites => Sight::Writable,
                State::Follows => Sight::InRecovery,
            };
            let agent = &self.nodes[other].agent;
            let fresh = self.reaches(node, other) && agent.up && !agent.paused && agent.znode.is_some() && !pg.paused;
            let looked = fresh && self.setting.data_directory;
            let standby = match pg.state {
                State::Follows if fresh => Some(true),
                State::TakesWrites if fresh => Some(false),
                State::Starting { standby } if looked => Some(standby),
                _ => None,
            };
            let counts = self.mutation == Mutation::OldRecordCounts;
            let lost_at = self.zk.lost_at(other).unwrap_or(0);
            let held = self.zk.holds(other);
            let recorded =
                self.zk.records[other].is_some_and(|record| counts || (!held && record.at + 1000 >= lost_at));
            let hook = self.nodes[node].patroni.hook.as_mut().unwrap();
            hook.was_writable[other] |= sight == Sight::Writable;
            let was_writable = hook.was_writable[other];
            others[other] = Some(Other { sight, standby, held_last: held_last == Some(other), was_writable, recorded });
        }
        let hook = self.nodes[node].patroni.hook.as_mut().unwrap();
        hook.lost_since = if ours == Some(false) { hook.lost_since.or(Some(self.now)) } else { None };
        Known {
            ours,
            anothers: reads && self.zk.key.is_some_and(|key| key.node != node),
            lost_for: hook.lost_since.map_or(0, |since| self.now - since),
            key_age: self.zk.key.map_or(0, |key| self.now - key.at),
            runs_for: self.now - hook.began,
            others,
        }
    }

    /// It stops a server that takes writes beside the candidate.
    fn gate_fences(&mut self, node: usize, other: usize) {
        let pg = &self.nodes[other].pg;
        if pg.paused || pg.locked || pg.state != State::TakesWrites {
            return;
        }
        let life = pg.life;
        tell!(self, "the gate of {} fences {}", letter(node), letter(other));
        self.strike_fence(other, node, Rule::Peer, Some(self.now), false);
        let pause = self.chance.between(20, 50);
        self.after(pause, Happening::Pg(other, life, PgEvent::FencedByGate));
    }
}
