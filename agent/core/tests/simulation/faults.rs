//! Faults: their kinds, when they begin, and how they heal.

use crate::patroni::Rest;
use crate::postgres::State;
use crate::world::{World, WorldEvent, letter, log};
use crate::zookeeper::Record;
use warden_core::event::Rule;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    FreezePatroni,
    KillPatroni,
    RestartPatroni,
    KillPostmaster,
    KillNode,
    PauseNode,
    PauseNodeWithAgent,
    /// The node is paused when its next `pre_promote` begins.
    PauseInHook,
    PausePostgres,
    PauseAgent,
    /// The agent is paused for 2 s repeatedly, with 1.5 s in between.
    StallAgent,
    RestartAgent,
    KillAgent,
    CutNode,
    /// The node is cut off from ZooKeeper and from the other nodes.
    IsolateNode,
    CutAgent,
    CutPatroni,
    ZooKeeperDown,
    Maintenance,
    Ttl(u64),
    Failsafe,
    Lag(u64),
    /// An operator starts Patroni again without flock.
    WithoutFlock,
    /// The wall clock jumps by this many milliseconds.
    ClockStep(i64),
    SlowRest,
    HungRest,
    /// REST requests that query PostgreSQL hang; `/liveness` answers.
    OnlyLiveness,
    /// Patroni freezes inside its next `get_cluster()`, after ZooKeeper's answer.
    FreezeReading,
    /// The HA loop hangs; the REST API and the session go on.
    StuckLoop,
    /// A backend is killed. The crash recovery takes this many milliseconds.
    CrashPostgres(u64),
    /// The server refuses sessions from other nodes.
    LoginsRefused,
    /// A fence record is left over from an older term.
    OldRecord,
    Switchover,
    Operator,
}

#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub kind: FaultKind,
    pub node: usize,
    pub lasts: u64,
    pub until: u64,
}

/// Faults for the contract "proof and silence", which only their combination tests.
const PROOF_AND_SILENCE: &[FaultKind] = &[
    FaultKind::HungRest,
    FaultKind::HungRest,
    FaultKind::OnlyLiveness,
    FaultKind::FreezePatroni,
    FaultKind::FreezePatroni,
    FaultKind::FreezeReading,
    FaultKind::StuckLoop,
    FaultKind::KillPatroni,
    FaultKind::RestartAgent,
    FaultKind::ZooKeeperDown,
    FaultKind::ZooKeeperDown,
    FaultKind::IsolateNode,
    FaultKind::CutNode,
    FaultKind::CutAgent,
    FaultKind::Failsafe,
    FaultKind::Ttl(20_000),
    FaultKind::Ttl(40_000),
    FaultKind::CrashPostgres(4000),
    FaultKind::CrashPostgres(25_000),
    FaultKind::LoginsRefused,
    FaultKind::Switchover,
];

impl World {
    /// Plans a few faults, most of them on one node, some close to each other.
    pub fn plan_faults(&mut self) {
        self.focused = self.random.percent(40);
        let count = 1 + self.random.below(if self.focused { 6 } else { 5 });
        let unlucky = if self.random.percent(80) { 0 } else { self.random.below(self.setting.nodes) };
        let mut at = self.random.between(2500, 15_000);
        let mut last = 0;
        for number in 0..count {
            let kind = self.random_fault();
            let node = if self.random.percent(75) { unlucky } else { self.random.below(self.setting.nodes) };
            let lasts = match self.random.below(4) {
                0 => self.random.between(100, 3000),
                1 => self.random.between(3000, 15_000),
                2 => self.random.between(15_000, 40_000),
                _ => self.random.between(20_000, 90_000),
            };
            self.faults.push(Fault { kind, node, lasts, until: at + lasts });
            self.at(at, WorldEvent::Fault(number));
            if kind != FaultKind::StallAgent {
                self.at(at + lasts, WorldEvent::Heal(number));
            }
            last = last.max(at + lasts);
            at += match self.random.below(3) {
                0 => self.random.between(0, 200),
                1 => self.random.between(200, 6000),
                _ => self.random.between(3000, self.setting.length / 3),
            };
        }
        // The history ends after the longest session and the longest failsafe time that follow the last fault.
        self.setting.length = self.setting.length.min(last + 50_000);
    }

    fn random_fault(&mut self) -> FaultKind {
        if !self.fault_kinds.is_empty() {
            return self.fault_kinds[self.random.below(self.fault_kinds.len())];
        }
        if self.focused {
            return PROOF_AND_SILENCE[self.random.below(PROOF_AND_SILENCE.len())];
        }
        match self.random.below(124) {
            0..18 => FaultKind::FreezePatroni,
            18..28 => FaultKind::KillPatroni,
            28..31 => FaultKind::RestartPatroni,
            31..37 => FaultKind::KillPostmaster,
            37..43 => FaultKind::KillNode,
            43..50 => FaultKind::PauseNode,
            50..52 => FaultKind::PauseNodeWithAgent,
            52..53 => FaultKind::PauseInHook,
            53..55 => FaultKind::PausePostgres,
            55..57 => FaultKind::PauseAgent,
            57..60 => FaultKind::RestartAgent,
            60..64 => FaultKind::KillAgent,
            64..67 => FaultKind::CutNode,
            67..69 => FaultKind::IsolateNode,
            69..74 => FaultKind::CutAgent,
            74..77 => FaultKind::CutPatroni,
            77..82 => FaultKind::ZooKeeperDown,
            82..84 => FaultKind::Maintenance,
            84..87 => FaultKind::Ttl([20_000, 30_000, 40_000][self.random.below(3)]),
            87..89 => FaultKind::Failsafe,
            89..92 => FaultKind::Lag(self.random.between(50, 1500)),
            92..94 => FaultKind::SlowRest,
            94..96 => FaultKind::HungRest,
            96..99 => FaultKind::Switchover,
            99..100 => FaultKind::Operator,
            100..101 => FaultKind::WithoutFlock,
            101..103 => FaultKind::StallAgent,
            103..106 => FaultKind::OnlyLiveness,
            106..109 => FaultKind::FreezeReading,
            109..113 => FaultKind::StuckLoop,
            113..118 => FaultKind::CrashPostgres(self.random.between(300, 25_000)),
            118..120 => FaultKind::LoginsRefused,
            120..121 => FaultKind::OldRecord,
            _ => FaultKind::ClockStep([-4000, -1500, 3000, 60_000][self.random.below(4)]),
        }
    }

    pub fn inject(&mut self, number: usize) {
        if self.healed.is_some() {
            return;
        }
        let Fault { kind, node, lasts, .. } = self.faults[number];
        log!(self, "--- {kind:?} of {} for {lasts} ms", letter(node));
        match kind {
            FaultKind::FreezePatroni => self.freeze_patroni(node),
            FaultKind::KillPatroni => self.kill_patroni(node),
            FaultKind::RestartPatroni | FaultKind::WithoutFlock if self.nodes[node].paused => {}
            FaultKind::RestartPatroni => self.restart_patroni(node),
            FaultKind::WithoutFlock => {
                self.restart_patroni(node);
                self.nodes[node].patroni.flock = false;
                self.lock_changed(node);
            }
            FaultKind::ClockStep(by) => self.nodes[node].patroni.clock += by,
            FaultKind::KillPostmaster => self.kill_pg(node),
            FaultKind::KillNode => {
                self.nodes[node].paused = false;
                self.kill_patroni(node);
                self.kill_pg(node);
            }
            FaultKind::PauseNode => self.pause_node(node),
            FaultKind::PauseNodeWithAgent => {
                self.pause_node(node);
                self.pause_agent(node);
            }
            FaultKind::PauseInHook => self.nodes[node].patroni.to_pause = true,
            FaultKind::PausePostgres => self.pause_pg(node),
            FaultKind::PauseAgent => self.pause_agent(node),
            FaultKind::StallAgent => self.stall_agent(node, number),
            FaultKind::RestartAgent => {
                self.stop_agent(node);
                self.begin_agent(node);
            }
            FaultKind::KillAgent => self.stop_agent(node),
            FaultKind::CutNode => self.cut(node, true, true),
            FaultKind::IsolateNode => {
                self.nodes[node].isolated = true;
                self.cut(node, true, true);
            }
            FaultKind::CutAgent => self.cut(node, true, false),
            FaultKind::CutPatroni => self.cut(node, false, true),
            FaultKind::ZooKeeperDown => self.zookeeper_down(),
            FaultKind::Maintenance => self.configure(|config| config.pause = true),
            FaultKind::Ttl(ttl) => self.set_ttl(ttl),
            FaultKind::Failsafe => self.configure(|config| config.failsafe = !config.failsafe),
            FaultKind::Lag(lag) => self.nodes[node].agent.lag = lag,
            FaultKind::SlowRest => self.rest(node, Rest::Slow),
            FaultKind::HungRest => self.rest(node, Rest::Hung),
            FaultKind::OnlyLiveness => self.rest(node, Rest::OnlyLiveness),
            FaultKind::FreezeReading => self.nodes[node].patroni.to_freeze = self.nodes[node].patroni.turns(),
            FaultKind::StuckLoop => self.stick_loop(node),
            FaultKind::CrashPostgres(takes) => self.crash_pg(node, takes),
            FaultKind::LoginsRefused => self.refuse_logins(node, true),
            FaultKind::OldRecord => self.leave_old_record(node),
            FaultKind::Switchover => self.switchover(),
            FaultKind::Operator => self.record_fence(node, Some(Rule::Operator)),
        }
    }

    fn restart_patroni(&mut self, node: usize) {
        self.kill_patroni(node);
        self.begin_patroni(node);
    }

    fn pause_node(&mut self, node: usize) {
        self.freeze_patroni(node);
        self.pause_pg(node);
        self.nodes[node].paused = true;
    }

    /// The agent is paused for 2 s. `fault` is the fault that ends the pause.
    fn stall_agent(&mut self, node: usize, fault: usize) {
        let agent = &mut self.nodes[node].agent;
        if agent.up && !agent.paused {
            agent.stalled = self.now + 2000;
            self.pause_agent(node);
            self.after(2000, WorldEvent::Heal(fault));
        }
    }

    fn set_ttl(&mut self, ttl: u64) {
        self.configure(|config| {
            config.ttl = ttl;
            // Patroni's own rule: loop_wait + 2 * retry_timeout <= ttl.
            config.loop_wait = config.loop_wait.min(ttl / 2);
            config.retry_timeout = config.retry_timeout.min((ttl - config.loop_wait) / 2);
        });
    }

    fn leave_old_record(&mut self, node: usize) {
        if self.zk.up && self.zk.records[node].is_none() {
            self.zk.records[node] = Some(Record { rule: Rule::Superseded, mzxid: 1, at: 0 });
            self.record_changed(node);
        }
    }

    pub fn heal(&mut self, number: usize) {
        if self.healed.is_some() {
            return;
        }
        let Fault { kind, node, until, .. } = self.faults[number];
        log!(self, "--- end of {kind:?} of {}", letter(node));
        match kind {
            FaultKind::FreezePatroni | FaultKind::FreezeReading => {
                self.nodes[node].patroni.to_freeze = false;
                if !self.nodes[node].paused {
                    self.thaw_patroni(node);
                }
            }
            FaultKind::StuckLoop => self.unstick_loop(node),
            FaultKind::LoginsRefused => self.refuse_logins(node, false),
            FaultKind::KillPatroni | FaultKind::KillNode => {
                if !self.nodes[node].patroni.alive && !self.nodes[node].paused {
                    self.begin_patroni(node);
                }
            }
            FaultKind::PauseNode | FaultKind::PauseNodeWithAgent | FaultKind::PauseInHook => {
                self.nodes[node].patroni.to_pause = false;
                let died = std::mem::take(&mut self.nodes[node].paused) && !self.nodes[node].patroni.alive;
                self.unpause_pg(node);
                self.thaw_patroni(node);
                if died {
                    self.begin_patroni(node);
                }
                if kind == FaultKind::PauseNodeWithAgent {
                    self.unpause_agent(node);
                }
            }
            FaultKind::PausePostgres => self.unpause_pg(node),
            FaultKind::PauseAgent => self.unpause_agent(node),
            FaultKind::StallAgent => {
                self.unpause_agent(node);
                if self.now < until {
                    self.after(1500, WorldEvent::Fault(number));
                }
            }
            FaultKind::KillAgent => {
                if !self.nodes[node].agent.up {
                    self.begin_agent(node);
                }
            }
            FaultKind::CutNode | FaultKind::IsolateNode | FaultKind::CutAgent | FaultKind::CutPatroni => {
                self.cut(node, false, false)
            }
            FaultKind::ZooKeeperDown => self.zookeeper_up(),
            FaultKind::Maintenance => self.configure(|config| config.pause = false),
            FaultKind::Failsafe => self.configure(|config| config.failsafe = !config.failsafe),
            FaultKind::Lag(_) => {
                let agent = &mut self.nodes[node].agent;
                (agent.lag, agent.lag_ended) = (0, self.now);
            }
            FaultKind::SlowRest | FaultKind::HungRest | FaultKind::OnlyLiveness => self.rest(node, Rest::Answers),
            FaultKind::Operator => self.unfence(node),
            FaultKind::WithoutFlock
            | FaultKind::ClockStep(_)
            | FaultKind::RestartPatroni
            | FaultKind::KillPostmaster
            | FaultKind::CrashPostgres(_)
            | FaultKind::OldRecord
            | FaultKind::RestartAgent
            | FaultKind::Ttl(_)
            | FaultKind::Switchover => {}
        }
    }

    /// The operator lifts the fence.
    pub fn unfence(&mut self, node: usize) {
        if self.zk.records[node].is_some_and(|record| record.rule == Rule::Operator) {
            self.zk.records[node] = None;
            self.record_changed(node);
        }
    }

    pub fn refuse_logins(&mut self, node: usize, logins_refused: bool) {
        let pg = &mut self.nodes[node].pg;
        (pg.logins_refused, pg.logins_refused_since) = (logins_refused, self.now);
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

    /// The operator asks for a switchover to a standby that follows.
    fn switchover(&mut self) {
        let Some(key) = self.zk.key.filter(|_| self.zk.up) else { return };
        // Patroni accepts only the synchronous standby.
        let Some(to) = self.zk.sync.standby.filter(|to| *to != key.node) else { return };
        if self.nodes[to].pg.state != State::Follows || !self.nodes[to].patroni.turns() {
            return;
        }
        self.zk.failover = Some((key.node, to));
        self.failover_changed();
        self.wake_patroni(key.node, 5);
    }
}
