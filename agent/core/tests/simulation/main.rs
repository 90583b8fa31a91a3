//! A seeded simulation of two or three nodes around the real core.
//!
//! Everything that is not `warden_core` is a model: ZooKeeper with its sessions, Patroni's HA loop, PostgreSQL, the
//! agents' senses and hands. Faults strike by chance; a seed gives the same history each time. The histories are
//! checked for what must never be (`checks.rs`). `WARDEN_SIM_HISTORIES` says how many are lived through, from seed
//! `WARDEN_SIM_FROM` on; `WARDEN_SIM_SEED` which single one is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test from end to end
#![allow(clippy::cast_possible_wrap)]

mod act;
mod agent;
mod chance;
mod checks;
mod faults;
mod gate;
mod ha;
mod hear;
mod histories;
mod liveness;
mod mutation;
mod patroni;
mod postgres;
mod rest;
mod rightful;
mod translate;
mod world;
mod zookeeper;

use checks::Tally;
use faults::What;
use mutation::{MUTATIONS, Mutation};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;
use world::World;

/// How many lines of a history that went wrong are shown.
const LINES: usize = 80;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.replace('_', "").parse().ok()
}

/// The history of `seed` in words, to the violation.
fn tell(seed: u64, mutation: Mutation, palette: &'static [What]) -> String {
    let mut world = World::new(seed, mutation, palette, true);
    world.run();
    let log = world.log.take().unwrap();
    let from = log.len().saturating_sub(LINES);
    format!(
        "seed {seed} (WARDEN_SIM_SEED={seed} tells it again), the last of {} events:\n{}",
        log.len(),
        log[from..].join("\n")
    )
}

/// Lives through the histories of these seeds on two threads; the first seed whose history went wrong, and what
/// happened in all.
fn live(seeds: Range<u64>, mutation: Mutation, palette: &'static [What]) -> (Option<(u64, String)>, Tally) {
    let (next, stop) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let found: Mutex<(Option<(u64, String)>, Tally)> = Mutex::new((None, Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let mut world = World::new(seed, mutation, palette, false);
                    world.run();
                    tally.add(&world.tally);
                    if let Some(what) = world.violation {
                        stop.store(true, Ordering::Relaxed);
                        let mut found = found.lock().unwrap();
                        if found.0.as_ref().is_none_or(|(known, _)| seed < *known) {
                            found.0 = Some((seed, what));
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
    if let Some(seed) = number("WARDEN_SIM_SEED") {
        let told = tell(seed, Mutation::Sound, &[]);
        println!("{told}");
        assert!(!told.contains("VIOLATION"));
        return;
    }
    let histories = number("WARDEN_SIM_HISTORIES").unwrap_or(20_000);
    let from = number("WARDEN_SIM_FROM").unwrap_or(0);
    let began = Instant::now();
    let (violation, tally) = live(from..from + histories, Mutation::Sound, &[]);
    if let Some((seed, what)) = violation {
        panic!("{what}\n{}", tell(seed, Mutation::Sound, &[]));
    }
    let rate = histories as f64 / began.elapsed().as_secs_f64();
    println!("{histories} histories, {rate:.0} a second\n{tally:#?}");
}

/// In so many histories each bug has to be found. One takes three faults in the right order (`ForgetsOldTtl`).
const BOUND: u64 = 2_000;

#[test]
fn each_bug_that_is_put_in_is_found() {
    let mut missed = Vec::new();
    // One of them alone: `WARDEN_SIM_MUTATION=NoMargin`.
    let only = std::env::var("WARDEN_SIM_MUTATION").unwrap_or_default();
    for (mutation, palette) in MUTATIONS.iter().filter(|(mutation, _)| format!("{mutation:?}").contains(&only)) {
        let (sound, _) = live(0..BOUND, Mutation::Sound, palette);
        if let Some((seed, what)) = sound {
            panic!("without {mutation:?}: {what}\n{}", tell(seed, Mutation::Sound, palette));
        }
        match live(0..BOUND, *mutation, palette) {
            (Some((seed, what)), _) => println!("{mutation:?}: seed {seed}, {what}"),
            (None, _) => missed.push(mutation),
        }
    }
    assert!(missed.is_empty(), "not found in {BOUND} histories each: {missed:?}");
}
