//! A seeded simulation of two or three nodes around the real core.
//!
//! All other parts are models: ZooKeeper with its sessions, Patroni's HA loop, PostgreSQL, HAProxy, and the agents'
//! watchers and actors. Faults are random; a seed gives the same history each time. `checks.rs` has the promises that
//! every history keeps.
//!
//! `WARDEN_SIM_HISTORIES` sets the number of histories, and `WARDEN_SIM_FROM` the first seed. `WARDEN_SIM_SECONDS` ends
//! the run earlier. `WARDEN_SIM_SEED` prints the history of one seed, event by event.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test from end to end
#![allow(clippy::cast_possible_wrap)]

mod act;
mod agent;
mod checks;
mod excuses;
mod faults;
mod gate;
mod ha;
mod haproxy;
mod histories;
mod input;
mod liveness;
mod mutation;
mod patroni;
mod postgres;
mod random;
mod rest;
mod rightful;
mod routing;
mod translate;
mod world;
mod zookeeper;

use checks::Tally;
use faults::FaultKind;
use mutation::{MUTATIONS, Mutation};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use world::World;

/// A failure prints at most this many lines of its history.
const LOG_LINES_MAX: usize = 80;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.replace('_', "").parse().ok()
}

/// The log of the history of `seed`, up to the violation.
fn history_log(seed: u64, mutation: Mutation, fault_kinds: &'static [FaultKind], with_haproxy: bool) -> String {
    let mut world = World::new(seed, mutation, fault_kinds, true, with_haproxy);
    world.run();
    let log = world.log.take().unwrap();
    let from = log.len().saturating_sub(LOG_LINES_MAX);
    format!(
        "seed {seed} (WARDEN_SIM_SEED={seed} prints it again), the last of {} events:\n{}",
        log.len(),
        log[from..].join("\n")
    )
}

/// Runs the histories of these seeds on two threads, and begins none after `end`. Returns the lowest failed seed with
/// its violation, and the sums.
fn run_histories(
    seeds: Range<u64>,
    mutation: Mutation,
    fault_kinds: &'static [FaultKind],
    with_haproxy: bool,
    end: Option<Instant>,
) -> (Option<(u64, String)>, Tally) {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let found: Mutex<(Option<(u64, String)>, Tally)> = Mutex::new((None, Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || end.is_some_and(|end| Instant::now() >= end) {
                        break;
                    }
                    let mut world = World::new(seed, mutation, fault_kinds, false, with_haproxy);
                    world.run();
                    tally.add(&world.tally);
                    tally.histories += 1;
                    if let Some(violation) = world.violation {
                        stop.store(true, Ordering::Relaxed);
                        let mut found = found.lock().unwrap();
                        if found.0.as_ref().is_none_or(|(known, _)| seed < *known) {
                            found.0 = Some((seed, violation));
                        }
                    }
                }
                found.lock().unwrap().1.add(&tally);
            });
        }
    });
    found.into_inner().unwrap()
}

#[test]
fn nothing_happens_that_must_never_be() {
    check_histories(1, false);
}

/// With an HAProxy beside one of the nodes. New connections reach a server that does not lead only until the agent can
/// tell HAProxy. They wait no longer than with HAProxy's checks alone. No connection waits after the last fault.
#[test]
fn connections_go_to_the_leader_and_none_is_kept_waiting() {
    check_histories(8, true);
}

/// A machine on which fewer than one in this many histories run before `WARDEN_SIM_SECONDS` are over proves too little.
const LEAST_PART: u64 = 20;

/// Runs one in `part` of the histories that the environment asks for.
fn check_histories(part: u64, with_haproxy: bool) {
    if let Some(seed) = number("WARDEN_SIM_SEED") {
        let log = history_log(seed, Mutation::Sound, &[], with_haproxy);
        println!("{log}");
        assert!(!log.contains("VIOLATION"));
        return;
    }
    let histories = number("WARDEN_SIM_HISTORIES").unwrap_or(20_000) / part;
    let from = number("WARDEN_SIM_FROM").unwrap_or(0);
    let began = Instant::now();
    let end = number("WARDEN_SIM_SECONDS").map(|seconds| began + Duration::from_secs(seconds));
    let (violation, tally) = run_histories(from..from + histories, Mutation::Sound, &[], with_haproxy, end);
    if let Some((seed, violation)) = violation {
        panic!("{violation}\n{}", history_log(seed, Mutation::Sound, &[], with_haproxy));
    }
    let rate = tally.histories as f64 / began.elapsed().as_secs_f64();
    assert!(tally.histories * LEAST_PART >= histories, "too slow: {} of {histories} histories ran", tally.histories);
    println!("{} of {histories} histories, {rate:.0} a second\n{tally:#?}", tally.histories);
}

/// Each bug is found within this many histories. One needs three faults in the right order (`ForgetsOldTtl`).
const HISTORIES_PER_BUG: u64 = 2_000;

#[test]
fn each_bug_that_is_put_in_is_found() {
    let mut missed = Vec::new();
    // `WARDEN_SIM_MUTATION=NoMargin` selects one mutation.
    let only = std::env::var("WARDEN_SIM_MUTATION").unwrap_or_default();
    for (mutation, fault_kinds) in MUTATIONS.iter().filter(|(mutation, _)| format!("{mutation:?}").contains(&only)) {
        let with_haproxy = mutation.needs_haproxy();
        let (sound, _) = run_histories(0..HISTORIES_PER_BUG, Mutation::Sound, fault_kinds, with_haproxy, None);
        if let Some((seed, violation)) = sound {
            panic!(
                "without {mutation:?}: {violation}\n{}",
                history_log(seed, Mutation::Sound, fault_kinds, with_haproxy)
            );
        }
        match run_histories(0..HISTORIES_PER_BUG, *mutation, fault_kinds, with_haproxy, None) {
            (Some((seed, violation)), _) => println!("{mutation:?}: seed {seed}, {violation}"),
            (None, _) => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "not found in {HISTORIES_PER_BUG} histories each: {missed:?}");
}
