//! Faults: what they are, when they strike, and how they heal.

use crate::patroni::Rest;
use crate::postgres::State;
use crate::world::{Happening, World, letter, tell};
use warden_core::event::Rule;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    FreezePatroni,
    KillPatroni,
    RestartPatroni,
    KillPostmaster,
    KillNode,
    PauseNode,
    PauseNodeWithAgent,
    PausePostgres,
    PauseAgent,
    /// The agent gets no time for two seconds, again and again, 1.5 s in between.
    DrowsyAgent,
    RestartAgent,
    KillAgent,
    CutNode,
    CutAgent,
    CutPatroni,
    ZooKeeperDown,
    Maintenance,
    Ttl(u64),
    Failsafe,
    Lag(u64),
    /// Patroni is started again by hand, without flock.
    WithoutFlock,
    /// The wall clock is set, by so many milliseconds.
    ClockStep(i64),
    SlowRest,
    HungRest,
    Switchover,
    Operator,
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub what: What,
    pub node: usize,
    pub lasts: u64,
    pub until: u64,
}

impl World {
    /// A few faults, most of them on one node, some close to each other, as trouble comes.
    pub fn plan_faults(&mut self) {
        let count = 1 + self.chance.below(5);
        let unlucky = if self.chance.percent(80) { 0 } else { self.chance.below(self.setting.nodes) };
        let mut at = self.chance.between(2500, 15_000);
        let mut last = 0;
        for number in 0..count {
            let what = self.any_fault();
            let node = if self.chance.percent(75) { unlucky } else { self.chance.below(self.setting.nodes) };
            let lasts = match self.chance.below(4) {
                0 => self.chance.between(100, 3000),
                1 => self.chance.between(3000, 15_000),
                2 => self.chance.between(15_000, 40_000),
                _ => self.chance.between(20_000, 90_000),
            };
            self.faults.push(Fault { what, node, lasts, until: at + lasts });
            self.at(at, Happening::Fault(number));
            if what != What::DrowsyAgent {
                self.at(at + lasts, Happening::Heal(number));
            }
            last = last.max(at + lasts);
            at += match self.chance.below(3) {
                0 => self.chance.between(0, 200),
                1 => self.chance.between(200, 6000),
                _ => self.chance.between(3000, self.setting.length / 3),
            };
        }
        // After the last one the longest session and the longest lingering are waited for, and no longer.
        self.setting.length = self.setting.length.min(last + 50_000);
    }

    fn any_fault(&mut self) -> What {
        if !self.palette.is_empty() {
            return self.palette[self.chance.below(self.palette.len())];
        }
        match self.chance.below(106) {
            0..18 => What::FreezePatroni,
            18..28 => What::KillPatroni,
            28..31 => What::RestartPatroni,
            31..37 => What::KillPostmaster,
            37..43 => What::KillNode,
            43..50 => What::PauseNode,
            50..53 => What::PauseNodeWithAgent,
            53..55 => What::PausePostgres,
            55..57 => What::PauseAgent,
            57..60 => What::RestartAgent,
            60..64 => What::KillAgent,
            64..69 => What::CutNode,
            69..74 => What::CutAgent,
            74..77 => What::CutPatroni,
            77..82 => What::ZooKeeperDown,
            82..84 => What::Maintenance,
            84..87 => What::Ttl([20_000, 30_000, 40_000][self.chance.below(3)]),
            87..89 => What::Failsafe,
            89..92 => What::Lag(self.chance.between(50, 1500)),
            92..94 => What::SlowRest,
            94..96 => What::HungRest,
            96..99 => What::Switchover,
            99..100 => What::Operator,
            100..101 => What::WithoutFlock,
            101..103 => What::DrowsyAgent,
            _ => What::ClockStep([-4000, -1500, 3000, 60_000][self.chance.below(4)]),
        }
    }

    pub fn strike(&mut self, number: usize) {
        let Fault { what, node, lasts, .. } = self.faults[number];
        tell!(self, "--- {what:?} of {} for {lasts} ms", letter(node));
        match what {
            What::FreezePatroni => self.freeze_patroni(node),
            What::KillPatroni => self.kill_patroni(node),
            What::RestartPatroni => {
                self.kill_patroni(node);
                self.begin_patroni(node);
            }
            What::WithoutFlock => {
                self.kill_patroni(node);
                self.begin_patroni(node);
                self.nodes[node].patroni.flock = false;
                self.lock_changed(node);
            }
            What::ClockStep(by) => self.nodes[node].patroni.clock += by,
            What::KillPostmaster => self.kill_pg(node),
            What::KillNode => {
                self.kill_patroni(node);
                self.kill_pg(node);
            }
            What::PauseNode | What::PauseNodeWithAgent => {
                self.freeze_patroni(node);
                self.pause_pg(node);
                if what == What::PauseNodeWithAgent {
                    self.pause_agent(node);
                }
            }
            What::PausePostgres => self.pause_pg(node),
            What::PauseAgent => self.pause_agent(node),
            What::DrowsyAgent => {
                let agent = &mut self.nodes[node].agent;
                if agent.up && !agent.paused {
                    agent.stalled = self.now + 2000;
                    self.pause_agent(node);
                    self.after(2000, Happening::Heal(number));
                }
            }
            What::RestartAgent => {
                self.stop_agent(node);
                self.begin_agent(node);
            }
            What::KillAgent => self.stop_agent(node),
            What::CutNode => self.cut(node, true, true),
            What::CutAgent => self.cut(node, true, false),
            What::CutPatroni => self.cut(node, false, true),
            What::ZooKeeperDown => self.zookeeper_down(),
            What::Maintenance => self.configure(|config| config.pause = true),
            What::Ttl(ttl) => self.configure(|config| config.ttl = ttl),
            What::Failsafe => self.configure(|config| config.failsafe = !config.failsafe),
            What::Lag(lag) => self.nodes[node].agent.lag = lag,
            What::SlowRest => self.rest(node, Rest::Slow),
            What::HungRest => self.rest(node, Rest::Hung),
            What::Switchover => self.switchover(),
            What::Operator => self.record_fence(node, Some(Rule::Operator)),
        }
    }

    pub fn heal(&mut self, number: usize) {
        let Fault { what, node, until, .. } = self.faults[number];
        tell!(self, "--- end of {what:?} of {}", letter(node));
        match what {
            What::FreezePatroni => self.thaw_patroni(node),
            What::KillPatroni | What::KillNode => {
                if !self.nodes[node].patroni.alive {
                    self.begin_patroni(node);
                }
            }
            What::PauseNode | What::PauseNodeWithAgent => {
                self.unpause_pg(node);
                self.thaw_patroni(node);
                if what == What::PauseNodeWithAgent {
                    self.unpause_agent(node);
                }
            }
            What::PausePostgres => self.unpause_pg(node),
            What::PauseAgent => self.unpause_agent(node),
            What::DrowsyAgent => {
                self.unpause_agent(node);
                if self.now < until {
                    self.after(1500, Happening::Fault(number));
                }
            }
            What::KillAgent => {
                if !self.nodes[node].agent.up {
                    self.begin_agent(node);
                }
            }
            What::CutNode | What::CutAgent | What::CutPatroni => self.cut(node, false, false),
            What::ZooKeeperDown => self.zookeeper_up(),
            What::Maintenance => self.configure(|config| config.pause = false),
            What::Failsafe => self.configure(|config| config.failsafe = !config.failsafe),
            What::Lag(_) => {
                let agent = &mut self.nodes[node].agent;
                (agent.lag, agent.lag_ended) = (0, self.now);
            }
            What::SlowRest | What::HungRest => self.rest(node, Rest::Answers),
            What::Operator => {
                if self.zk.records[node].is_some_and(|record| record.rule == Rule::Operator) {
                    self.zk.records[node] = None;
                    self.record_changed(node);
                }
            }
            What::WithoutFlock
            | What::ClockStep(_)
            | What::RestartPatroni
            | What::KillPostmaster
            | What::RestartAgent
            | What::Ttl(_)
            | What::Switchover => {}
        }
    }

    fn rest(&mut self, node: usize, rest: Rest) {
        let patroni = &mut self.nodes[node].patroni;
        (patroni.rest, patroni.rest_since) = (rest, self.now);
    }

    fn cut(&mut self, node: usize, agent: bool, patroni: bool) {
        let known = &mut self.nodes[node];
        (known.agent.cut, known.patroni.cut) = (agent, patroni);
        self.note_reach(node);
    }

    /// Somebody asks for a switchover to a standby that follows.
    fn switchover(&mut self) {
        let Some(key) = self.zk.key.filter(|_| self.zk.up) else { return };
        let to = self.another(key.node);
        if self.nodes[to].pg.state != State::Follows || !self.nodes[to].patroni.turns() {
            return;
        }
        self.zk.failover = Some((key.node, to));
        self.failover_changed();
        self.wake_patroni(key.node, 5);
    }
}
