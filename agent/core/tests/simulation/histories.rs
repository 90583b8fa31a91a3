//! Exact histories, each with a test whose name states the promise.
//!
//! The faults have exact times. The rest is random: the phase of the HA loop at a fault, the time that an answer takes.
//! Each history therefore runs with several seeds. The general run has the same faults at random times.

use crate::faults::{Fault, FaultKind};
use crate::mutation::Mutation;
use crate::random::Random;
use crate::world::{Setting, World, WorldEvent};
use crate::zookeeper::{Config, ZooKeeper};
use std::fmt::Write;
use warden_core::event::Rule;

/// Histories that today's core fails. Their tests print the failure and pass. A test says so when its history passes
/// again; then its entry has to go.
const AWAITS_CORE: &[&str] = &[];

/// Each history runs with this many seeds.
const SEEDS_PER_HISTORY: u64 = 40;

/// A failure prints at most this many lines of its history.
const LOG_LINES_MAX: usize = 30;

/// `A` leads when a history begins, and `B` is its standby.
const A: usize = 0;
const B: usize = 1;
const C: usize = 2;

/// A history. Times are in milliseconds.
pub struct History {
    nodes: usize,
    /// ttl, loop_wait, retry_timeout, in seconds.
    times: [u64; 3],
    failsafe: bool,
    gate: bool,
    alive_lock: bool,
    heartbeat: bool,
    /// The beginning, the kind, the node, and the length of each fault.
    faults: &'static [(u64, FaultKind, usize, u64)],
    /// The time at which all faults end.
    length: u64,
    /// No rule may fence these members.
    never_fenced: &'static [usize],
    /// These rules fence no member.
    never: &'static [Rule],
    /// Two nodes never acknowledge writes, not even with an excuse.
    strict: bool,
    /// No gate refuses a promotion.
    never_refused: bool,
    /// This member leads in the end.
    leads: Option<usize>,
}

const BASE: History = History {
    nodes: 2,
    times: [30, 10, 10],
    failsafe: false,
    gate: true,
    alive_lock: true,
    heartbeat: true,
    faults: &[],
    length: 160_000,
    never_fenced: &[],
    never: &[],
    strict: false,
    never_refused: false,
    leads: None,
};

/// Longer than any of these histories.
const ALWAYS: u64 = 1_000_000;

impl History {
    fn begin(&self, seed: u64, log: bool) -> World {
        let mut random = Random::new(seed);
        let mut zk = ZooKeeper::new(&mut random);
        let [ttl, loop_wait, retry_timeout] = self.times.map(|seconds| seconds * 1000);
        zk.config = Config { ttl, loop_wait, retry_timeout, pause: false, failsafe: self.failsafe };
        let setting = Setting {
            nodes: self.nodes,
            length: self.length,
            alive_lock: self.alive_lock,
            gate: self.gate,
            heartbeat: self.heartbeat,
            data_directory: true,
            idle: random.percent(50),
        };
        let mut world = World::begin(random, setting, zk, Mutation::Sound, &[], log);
        for (number, (at, kind, node, lasts)) in self.faults.iter().copied().enumerate() {
            world.faults.push(Fault { kind, node, lasts, until: at + lasts });
            world.at(at, WorldEvent::Fault(number));
            world.at(at + lasts, WorldEvent::Heal(number));
        }
        world.at(self.length, WorldEvent::Healed);
        world
    }

    /// The violation of this history, if there is one.
    fn wrong(&self, world: &World) -> Option<String> {
        if let Some(violation) = &world.violation {
            return Some(violation.clone());
        }
        if let Some(node) = self.never_fenced.iter().find(|node| world.fenced[**node] > 0) {
            return Some(format!("{} was fenced", crate::world::letter(*node)));
        }
        if let Some(rule) = self.never.iter().find(|rule| world.tally.fences.contains_key(rule)) {
            return Some(format!("a server was fenced by {rule:?}"));
        }
        if let Some((excuse, took)) = world.tally.excused.iter().next().filter(|_| self.strict) {
            return Some(format!("two nodes acknowledged writes for {took} ms ({excuse})"));
        }
        if self.never_refused && world.tally.refused_promotions > 0 {
            return Some("a gate refused".to_owned());
        }
        let leader = world.zk.key.map(|key| key.node);
        (self.leads.is_some() && self.leads != leader).then(|| format!("{leader:?} leads in the end"))
    }

    fn run(&self, seed: u64, log: bool) -> (World, Option<String>) {
        let mut world = self.begin(seed, log);
        world.run();
        let wrong = self.wrong(&world);
        (world, wrong)
    }

    fn check(&self, name: &str) {
        let failed: Vec<(u64, String)> = (0..SEEDS_PER_HISTORY)
            .filter_map(|seed| self.run(seed, false).1.map(|violation| (seed, violation)))
            .collect();
        let awaits = AWAITS_CORE.contains(&name);
        let Some((seed, violation)) = failed.first() else {
            return if awaits {
                println!("{name} holds now: take it out of AWAITS_CORE");
            };
        };
        let (world, _) = self.run(*seed, true);
        let log = world.log.unwrap_or_default();
        let lines = log[log.len().saturating_sub(LOG_LINES_MAX)..].join("\n");
        let mut text = String::new();
        let _ = write!(
            text,
            "{name}: {} of {SEEDS_PER_HISTORY} seeds fail, seed {seed} first: {violation}\n{lines}",
            failed.len()
        );
        if !awaits {
            panic!("{text}");
        }
        println!("AWAITS CORE {text}\n");
    }
}

macro_rules! histories {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $value:expr),* $(,)? })*) => {
        $($(#[$doc])* #[test] fn $name() {
            History { $($field: $value,)* ..BASE }.check(stringify!($name));
        })*
    };
}

histories! {
    nothing_happens_where_nothing_happens {
        never_fenced: &[A, B], strict: true, never_refused: true, leads: Some(A), length: 60_000,
    }
    a_silent_rest_api_never_fences_the_rightful_leader {
        faults: &[(5000, FaultKind::HungRest, A, ALWAYS), (60_000, FaultKind::ZooKeeperDown, A, 8000)],
        never_fenced: &[A], leads: Some(A),
    }
    a_rest_api_that_falls_silent_while_zookeeper_is_away_fences_no_leader {
        times: [20, 10, 5],
        faults: &[(60_000, FaultKind::ZooKeeperDown, A, 11_000), (60_200, FaultKind::HungRest, A, 40_000)],
    }
    a_patroni_that_answers_liveness_alone_is_not_away {
        faults: &[(5000, FaultKind::OnlyLiveness, A, ALWAYS), (60_000, FaultKind::CutAgent, A, 60_000)],
        never_fenced: &[A], leads: Some(A),
    }
    a_rest_api_that_never_spoke_never_fences_the_rightful_leader {
        faults: &[
            (1000, FaultKind::HungRest, A, ALWAYS), (20_000, FaultKind::RestartAgent, A, 0),
            (60_000, FaultKind::ZooKeeperDown, A, 8000),
        ],
        never_fenced: &[A], leads: Some(A),
    }
    a_key_that_blinks_while_the_rest_api_is_silent_is_no_orphan {
        faults: &[(5000, FaultKind::HungRest, A, ALWAYS), (80_000, FaultKind::Ttl(40_000), A, 0)],
        never: &[Rule::Orphaned, Rule::Lease],
    }
    a_key_that_blinks_is_no_orphan_where_no_heartbeat_can_be_seen {
        heartbeat: false,
        faults: &[(5000, FaultKind::OnlyLiveness, A, ALWAYS), (80_000, FaultKind::Ttl(40_000), A, 0)],
        never: &[Rule::Orphaned, Rule::Lease],
    }
    rest_silent_then_frozen_then_cut_off_leaves_one_primary {
        faults: &[
            (5000, FaultKind::HungRest, A, ALWAYS), (70_000, FaultKind::FreezePatroni, A, ALWAYS),
            (78_000, FaultKind::IsolateNode, A, ALWAYS),
        ],
        strict: true, leads: Some(B),
    }
    rest_silent_then_frozen_then_cut_off_leaves_one_primary_without_a_heartbeat_or_a_gate {
        heartbeat: false, gate: false, alive_lock: false,
        faults: &[
            (5000, FaultKind::HungRest, A, ALWAYS), (70_000, FaultKind::FreezePatroni, A, ALWAYS),
            (78_000, FaultKind::IsolateNode, A, ALWAYS),
        ],
        strict: true, leads: Some(B),
    }
    a_key_kept_by_a_restart_of_zookeeper_proves_no_living_patroni {
        gate: false,
        faults: &[
            (5000, FaultKind::HungRest, A, ALWAYS), (70_000, FaultKind::FreezePatroni, A, ALWAYS),
            (75_000, FaultKind::ZooKeeperDown, A, 10_000), (95_000, FaultKind::IsolateNode, A, ALWAYS),
        ],
        strict: true, leads: Some(B),
    }
    /// The heartbeat is as late as the stamp: the contract takes it for a loop that turns.
    a_heartbeat_of_a_patroni_frozen_inside_get_cluster_proves_no_contact {
        gate: false, alive_lock: false,
        faults: &[
            (20_000, FaultKind::FreezeReading, A, 20_000), (34_000, FaultKind::IsolateNode, A, ALWAYS),
            (42_500, FaultKind::KillPatroni, A, ALWAYS),
        ],
        strict: true, leads: Some(B),
    }
    a_patroni_frozen_inside_get_cluster_proves_no_contact_when_it_thaws {
        gate: false, alive_lock: false, heartbeat: false,
        faults: &[
            (20_000, FaultKind::FreezeReading, A, 20_000), (34_000, FaultKind::IsolateNode, A, ALWAYS),
            (42_500, FaultKind::KillPatroni, A, ALWAYS),
        ],
        strict: true, leads: Some(B),
    }
    a_stuck_ha_loop_is_no_reason_to_fence_while_zookeeper_answers {
        faults: &[(20_000, FaultKind::StuckLoop, A, 90_000)],
        never_fenced: &[A], leads: Some(A),
    }
    a_stuck_ha_loop_that_is_cut_off_leaves_one_primary {
        gate: false,
        faults: &[(20_000, FaultKind::StuckLoop, A, ALWAYS), (60_000, FaultKind::IsolateNode, A, ALWAYS)],
        strict: true, leads: Some(B),
    }
    a_stuck_ha_loop_that_is_cut_off_at_once_leaves_one_primary {
        gate: false,
        faults: &[(30_000, FaultKind::StuckLoop, A, ALWAYS), (31_000, FaultKind::IsolateNode, A, ALWAYS)],
        strict: true, leads: Some(B),
    }
    a_stuck_ha_loop_after_an_agents_restart_leaves_one_primary {
        gate: false,
        faults: &[
            (20_000, FaultKind::StuckLoop, A, ALWAYS), (22_000, FaultKind::RestartAgent, A, 0),
            (60_000, FaultKind::IsolateNode, A, ALWAYS),
        ],
        strict: true, leads: Some(B),
    }
    an_agent_restarted_during_a_freeze_still_fences {
        gate: false,
        faults: &[
            (20_000, FaultKind::FreezePatroni, A, ALWAYS), (25_000, FaultKind::RestartAgent, A, 0),
            (30_000, FaultKind::IsolateNode, A, ALWAYS),
        ],
        strict: true, leads: Some(B),
    }
    an_agent_restarted_during_a_freeze_still_fences_without_a_heartbeat {
        gate: false, heartbeat: false, alive_lock: false,
        faults: &[
            (20_000, FaultKind::FreezePatroni, A, ALWAYS), (25_000, FaultKind::RestartAgent, A, 0),
            (30_000, FaultKind::IsolateNode, A, ALWAYS),
        ],
        strict: true, leads: Some(B),
    }
    with_ttl_90_zookeeper_may_be_away_for_as_long_as_patroni_bears {
        times: [90, 30, 30],
        faults: &[(5000, FaultKind::HungRest, A, ALWAYS), (80_000, FaultKind::ZooKeeperDown, A, 27_000)],
        never_fenced: &[A], leads: Some(A),
    }
    with_ttl_90_a_frozen_patroni_that_is_cut_off_leaves_one_primary {
        times: [90, 30, 30], gate: false,
        faults: &[(60_000, FaultKind::KillPatroni, A, ALWAYS), (60_500, FaultKind::IsolateNode, A, ALWAYS)],
        strict: true, leads: Some(B),
    }
    with_ttl_20_zookeeper_may_be_away_for_as_long_as_patroni_bears {
        times: [20, 10, 5],
        faults: &[(5000, FaultKind::HungRest, A, ALWAYS), (80_000, FaultKind::ZooKeeperDown, A, 4800)],
        never_fenced: &[A], leads: Some(A),
    }
    with_ttl_20_an_answering_patroni_is_not_fenced_while_zookeeper_is_away {
        times: [20, 10, 5],
        faults: &[(80_000, FaultKind::ZooKeeperDown, A, 4800)],
        never_fenced: &[A], leads: Some(A),
    }
    failsafe_mode_holds_while_the_rest_api_is_silent {
        failsafe: true,
        faults: &[(5000, FaultKind::HungRest, A, ALWAYS), (60_000, FaultKind::ZooKeeperDown, A, 80_000)],
        never_fenced: &[A], leads: Some(A),
    }
    a_heartbeat_that_was_not_seen_yet_withdraws_a_fence_by_lease {
        times: [20, 10, 5], failsafe: true, alive_lock: false,
        faults: &[
            (32_300, FaultKind::OnlyLiveness, A, 90_000), (34_400, FaultKind::RestartAgent, A, 0),
            (36_400, FaultKind::ZooKeeperDown, A, 80_000), (38_700, FaultKind::FreezePatroni, A, 14_000),
        ],
    }
    failsafe_mode_holds_while_the_rest_api_is_silent_and_no_heartbeat_can_be_seen {
        failsafe: true, heartbeat: false,
        faults: &[(5000, FaultKind::HungRest, A, ALWAYS), (60_000, FaultKind::ZooKeeperDown, A, 80_000)],
        never_fenced: &[A], leads: Some(A),
    }
    crash_recovery_under_a_living_patroni_costs_no_leader {
        faults: &[(20_000, FaultKind::CrashPostgres(25_000), A, 0)],
        never_fenced: &[A, B], strict: true, leads: Some(A),
    }
    crash_recovery_under_a_frozen_patroni_leaves_one_primary {
        faults: &[(20_000, FaultKind::FreezePatroni, A, 120_000), (25_000, FaultKind::CrashPostgres(45_000), A, 0)],
        strict: true,
    }
    crash_recovery_under_a_frozen_patroni_leaves_one_primary_without_a_gate {
        gate: false,
        faults: &[(20_000, FaultKind::FreezePatroni, A, 120_000), (25_000, FaultKind::CrashPostgres(45_000), A, 0)],
        strict: true, leads: Some(B),
    }
    crash_recovery_under_a_dead_patroni_leaves_one_primary_without_a_gate {
        gate: false,
        faults: &[(20_000, FaultKind::KillPatroni, A, 120_000), (20_100, FaultKind::CrashPostgres(45_000), A, 0)],
        strict: true,
    }
    crash_recovery_under_a_dead_patroni_leaves_one_primary {
        faults: &[(20_000, FaultKind::KillPatroni, A, 120_000), (20_100, FaultKind::CrashPostgres(45_000), A, 0)],
        strict: true,
    }
    crash_recovery_that_ends_within_the_gates_time_leaves_one_primary {
        faults: &[(20_000, FaultKind::FreezePatroni, A, 120_000), (25_000, FaultKind::CrashPostgres(33_000), A, 0)],
        strict: true,
    }
    an_ordinary_demotion_is_neither_fenced_nor_waited_for {
        times: [30, 10, 5],
        faults: &[(20_000, FaultKind::CutPatroni, A, 100_000)],
        never_fenced: &[A, B], strict: true, never_refused: true, leads: Some(B),
    }
    logins_refused_between_nodes_refuse_no_switchover {
        faults: &[
            (1000, FaultKind::LoginsRefused, A, ALWAYS), (1000, FaultKind::LoginsRefused, B, ALWAYS),
            (40_000, FaultKind::Switchover, A, 0),
        ],
        never_refused: true, leads: Some(B),
    }
    logins_refused_between_nodes_refuse_no_failover {
        nodes: 3,
        faults: &[
            (1000, FaultKind::LoginsRefused, A, ALWAYS), (1000, FaultKind::LoginsRefused, B, ALWAYS),
            (1000, FaultKind::LoginsRefused, C, ALWAYS), (40_000, FaultKind::KillNode, A, 60_000),
        ],
        never_refused: true, leads: Some(B),
    }
    a_standby_in_crash_recovery_refuses_no_promotion {
        faults: &[
            (10_000, FaultKind::CutAgent, B, ALWAYS), (59_000, FaultKind::CrashPostgres(25_000), B, 0),
            (60_000, FaultKind::KillPostmaster, A, 0),
        ],
        never_refused: true, leads: Some(A),
    }
    a_candidate_that_lost_the_key_in_the_gate_is_never_promoted {
        faults: &[(10_000, FaultKind::PauseInHook, B, 70_000), (20_000, FaultKind::KillNode, A, 5000)],
        strict: true, leads: Some(A),
    }
    /// Seed 45374 found it: the agent's view is late.
    an_operators_fence_that_is_taken_back_refuses_no_promotion {
        faults: &[
            (5000, FaultKind::Lag(70), A, 100_000), (9650, FaultKind::FreezePatroni, A, 550),
            (10_100, FaultKind::Operator, A, 1370),
            (49_650, FaultKind::FreezePatroni, A, 550), (50_100, FaultKind::Operator, A, 1400),
        ],
    }
    /// Seed 507131 found it: the lock is free, and only the heartbeat shows that Patroni lives.
    a_patroni_that_was_started_again_without_flock_is_not_dead_because_its_api_hangs {
        times: [20, 10, 5], failsafe: true,
        faults: &[
            (15_000, FaultKind::OnlyLiveness, A, ALWAYS), (16_000, FaultKind::WithoutFlock, A, 0),
            (50_000, FaultKind::ZooKeeperDown, A, 12_000),
        ],
        never: &[Rule::Lease],
    }
    a_record_of_an_older_term_lets_no_promotion_pass {
        faults: &[
            (5000, FaultKind::KillAgent, A, 100_000), (6000, FaultKind::OldRecord, A, 0),
            (20_000, FaultKind::PauseNode, A, 70_000),
        ],
        leads: Some(B),
    }
    no_key_is_released_while_no_standby_is_synchronous {
        faults: &[(10_000, FaultKind::KillNode, B, ALWAYS), (60_000, FaultKind::KillNode, A, 20_000)],
        strict: true, leads: Some(A),
    }
    no_key_is_released_while_the_synchronous_standby_recovers_from_a_crash {
        faults: &[
            (15_000, FaultKind::CutAgent, A, 27_000), (16_000, FaultKind::CrashPostgres(40_000), B, 0),
            (17_000, FaultKind::KillPatroni, A, 60_000),
        ],
        strict: true,
    }
    /// If packets vanish, the lease may end before Patroni gives up.
    a_czxid_that_comes_back_costs_no_leader {
        faults: &[(20_000, FaultKind::ZooKeeperDown, A, 50_000)],
        never: &[Rule::Superseded, Rule::Orphaned, Rule::Peer], strict: true, never_refused: true, leads: Some(A),
    }
    a_fence_of_a_term_whose_czxid_comes_back_is_over {
        faults: &[
            (20_000, FaultKind::ZooKeeperDown, A, 50_000), (20_500, FaultKind::FreezePatroni, A, 45_000),
            (110_000, FaultKind::PauseNode, A, 45_000),
        ],
        leads: Some(B),
    }
}
