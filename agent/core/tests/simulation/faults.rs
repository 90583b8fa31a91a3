//! Faults: what they are, when they strike, and how they heal.

use crate::patroni::Rest;
use crate::postgres::State;
use crate::world::{Happening, World, letter, tell};
use crate::zookeeper::Record;
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
    /// It is paused when its next `pre_promote` begins.
    PauseInHook,
    PausePostgres,
    PauseAgent,
    /// The agent gets no time for two seconds, again and again, 1.5 s in between.
    DrowsyAgent,
    RestartAgent,
    KillAgent,
    CutNode,
    /// Cut off from ZooKeeper and from the other nodes.
    IsolateNode,
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
    /// What asks PostgreSQL hangs in the REST API; `/liveness` answers.
    OnlyLiveness,
    /// Patroni is frozen inside its next `get_cluster()`, behind ZooKeeper's answer.
    FreezeReading,
    /// The HA loop hangs; REST and session go on.
    StuckLoop,
    /// A backend is killed: crash recovery, for so long.
    CrashPostgres(u64),
    /// The server lets no session in from other nodes.
    LoginsRefused,
    /// A fence record that was left behind in an older term.
    OldRecord,
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

/// Faults that only together try what the contract "proof and silence" says.
const PROOF_AND_SILENCE: &[What] = &[
    What::HungRest,
    What::HungRest,
    What::OnlyLiveness,
    What::FreezePatroni,
    What::FreezePatroni,
    What::FreezeReading,
    What::StuckLoop,
    What::KillPatroni,
    What::RestartAgent,
    What::ZooKeeperDown,
    What::ZooKeeperDown,
    What::IsolateNode,
    What::CutNode,
    What::CutAgent,
    What::Failsafe,
    What::Ttl(20_000),
    What::Ttl(40_000),
    What::CrashPostgres(4000),
    What::CrashPostgres(25_000),
    What::LoginsRefused,
    What::Switchover,
];

impl World {
    /// A few faults, most of them on one node, some close to each other, as trouble comes.
    pub fn plan_faults(&mut self) {
        self.focused = self.chance.percent(40);
        let count = 1 + self.chance.below(if self.focused { 6 } else { 5 });
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
        if self.focused {
            return PROOF_AND_SILENCE[self.chance.below(PROOF_AND_SILENCE.len())];
        }
        match self.chance.below(124) {
            0..18 => What::FreezePatroni,
            18..28 => What::KillPatroni,
            28..31 => What::RestartPatroni,
            31..37 => What::KillPostmaster,
            37..43 => What::KillNode,
            43..50 => What::PauseNode,
            50..52 => What::PauseNodeWithAgent,
            52..53 => What::PauseInHook,
            53..55 => What::PausePostgres,
            55..57 => What::PauseAgent,
            57..60 => What::RestartAgent,
            60..64 => What::KillAgent,
            64..67 => What::CutNode,
            67..69 => What::IsolateNode,
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
            103..106 => What::OnlyLiveness,
            106..109 => What::FreezeReading,
            109..113 => What::StuckLoop,
            113..118 => What::CrashPostgres(self.chance.between(300, 25_000)),
            118..120 => What::LoginsRefused,
            120..121 => What::OldRecord,
            _ => What::ClockStep([-4000, -1500, 3000, 60_000][self.chance.below(4)]),
        }
    }

    pub fn strike(&mut self, number: usize) {
        if self.healed.is_some() {
            return;
        }
        let Fault { what, node, lasts, .. } = self.faults[number];
        tell!(self, "--- {what:?} of {} for {lasts} ms", letter(node));
        match what {
            What::FreezePatroni => self.freeze_patroni(node),
            What::KillPatroni => self.kill_patroni(node),
            What::RestartPatroni | What::WithoutFlock if self.nodes[node].paused => {}
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
                self.nodes[node].paused = false;
                self.kill_patroni(node);
                self.kill_pg(node);
            }
            What::PauseNode | What::PauseNodeWithAgent => {
                self.freeze_patroni(node);
                self.pause_pg(node);
                self.nodes[node].paused = true;
                if what == What::PauseNodeWithAgent {
                    self.pause_agent(node);
                }
            }
            What::PauseInHook => self.nodes[node].patroni.to_pause = true,
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
            What::IsolateNode => {
                self.nodes[node].isolated = true;
                self.cut(node, true, true);
            }
            What::CutAgent => self.cut(node, true, false),
            What::CutPatroni => self.cut(node, false, true),
            What::ZooKeeperDown => self.zookeeper_down(),
            What::Maintenance => self.configure(|config| config.pause = true),
            What::Ttl(ttl) => self.configure(|config| {
                config.ttl = ttl;
                // Patroni's own rule: loop_wait + 2 * retry_timeout <= ttl.
                config.loop_wait = config.loop_wait.min(ttl / 2);
                config.retry_timeout = config.retry_timeout.min((ttl - config.loop_wait) / 2);
            }),
            What::Failsafe => self.configure(|config| config.failsafe = !config.failsafe),
            What::Lag(lag) => self.nodes[node].agent.lag = lag,
            What::SlowRest => self.rest(node, Rest::Slow),
            What::HungRest => self.rest(node, Rest::Hung),
            What::OnlyLiveness => self.rest(node, Rest::OnlyLiveness),
            What::FreezeReading => self.nodes[node].patroni.to_freeze = self.nodes[node].patroni.turns(),
            What::StuckLoop => self.stick_loop(node),
            What::CrashPostgres(takes) => self.crash_pg(node, takes),
            What::LoginsRefused => self.lock_out(node, true),
            What::OldRecord => {
                if self.zk.up && self.zk.records[node].is_none() {
                    self.zk.records[node] = Some(Record { rule: Rule::Superseded, mzxid: 1, at: 0 });
                    self.record_changed(node);
                }
            }
            What::Switchover => self.switchover(),
            What::Operator => self.record_fence(node, Some(Rule::Operator)),
        }
    }

    pub fn heal(&mut self, number: usize) {
        if self.healed.is_some() {
            return;
        }
        let Fault { what, node, until, .. } = self.faults[number];
        tell!(self, "--- end of {what:?} of {}", letter(node));
        match what {
            What::FreezePatroni | What::FreezeReading => {
                self.nodes[node].patroni.to_freeze = false;
                if !self.nodes[node].paused {
                    self.thaw_patroni(node);
                }
            }
            What::StuckLoop => self.unstick_loop(node),
            What::LoginsRefused => self.lock_out(node, false),
            What::KillPatroni | What::KillNode => {
                if !self.nodes[node].patroni.alive && !self.nodes[node].paused {
                    self.begin_patroni(node);
                }
            }
            What::PauseNode | What::PauseNodeWithAgent | What::PauseInHook => {
                self.nodes[node].patroni.to_pause = false;
                let died = std::mem::take(&mut self.nodes[node].paused) && !self.nodes[node].patroni.alive;
                self.unpause_pg(node);
                self.thaw_patroni(node);
                if died {
                    self.begin_patroni(node);
                }
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
            What::CutNode | What::IsolateNode | What::CutAgent | What::CutPatroni => self.cut(node, false, false),
            What::ZooKeeperDown => self.zookeeper_up(),
            What::Maintenance => self.configure(|config| config.pause = false),
            What::Failsafe => self.configure(|config| config.failsafe = !config.failsafe),
            What::Lag(_) => {
                let agent = &mut self.nodes[node].agent;
                (agent.lag, agent.lag_ended) = (0, self.now);
            }
            What::SlowRest | What::HungRest | What::OnlyLiveness => self.rest(node, Rest::Answers),
            What::Operator => self.take_back(node),
            What::WithoutFlock
            | What::ClockStep(_)
            | What::RestartPatroni
            | What::KillPostmaster
            | What::CrashPostgres(_)
            | What::OldRecord
            | What::RestartAgent
            | What::Ttl(_)
            | What::Switchover => {}
        }
    }

    /// A person takes the fence back.
    pub fn take_back(&mut self, node: usize) {
        if self.zk.records[node].is_some_and(|record| record.rule == Rule::Operator) {
            self.zk.records[node] = None;
            self.record_changed(node);
        }
    }

    pub fn lock_out(&mut self, node: usize, locked: bool) {
        let pg = &mut self.nodes[node].pg;
        (pg.locked, pg.locked_since) = (locked, self.now);
    }

    pub fn rest(&mut self, node: usize, rest: Rest) {
        let patroni = &mut self.nodes[node].patroni;
        (patroni.rest, patroni.rest_since) = (rest, self.now);
    }

    pub fn cut(&mut self, node: usize, agent: bool, patroni: bool) {
        let known = &mut self.nodes[node];
        (known.agent.cut, known.patroni.cut) = (agent, patroni);
        known.isolated &= agent;
        self.note_reach(node);
    }

    /// Somebody asks for a switchover to a standby that follows.
    fn switchover(&mut self) {
        let Some(key) = self.zk.key.filter(|_| self.zk.up) else { return };
        // Patroni takes none but the synchronous standby.
        let Some(to) = self.zk.sync.standby.filter(|to| *to != key.node) else { return };
        if self.nodes[to].pg.state != State::Follows || !self.nodes[to].patroni.turns() {
            return;
        }
        self.zk.failover = Some((key.node, to));
        self.failover_changed();
        self.wake_patroni(key.node, 5);
    }
}
