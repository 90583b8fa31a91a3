//! What `tests/run --all` adds: each fault in asynchronous and in synchronous mode, and the churn.

use crate::fencing::{few_on_waking, frozen_without_a_socket_file};
use crate::{LIMIT, Scenario};
use anyhow::Context;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::sleep;
use warden_e2e::faults::Fault;
use warden_e2e::promise::kept;
use warden_e2e::stack::{Flavor, NODES, Stack};
use warden_e2e::trial::{self, Observed};
use warden_e2e::writers::Commit;
use warden_e2e::{fences, history};

/// All of them.
pub(crate) fn scenarios() -> anyhow::Result<Vec<Scenario>> {
    let minutes = setting("WARDEN_CHURN_MINUTES")?.unwrap_or(30);
    let seed = match setting("WARDEN_CHURN_SEED")? {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let mut scenarios = vec![Scenario {
        name: "long::churn".to_owned(),
        flavor: Flavor::Single,
        limit: LIMIT + Duration::from_secs(minutes * 60 * 2),
        run: Box::new(move |stack| Box::pin(async move { churn(&stack, minutes, seed).await })),
    }];
    scenarios.push(Scenario {
        name: "long::frozen_without_a_socket_file".to_owned(),
        flavor: Flavor::Single,
        limit: LIMIT,
        run: Box::new(|stack| Box::pin(async move { frozen_without_a_socket_file(&stack).await })),
    });
    // Those on the same kind of stack one after the other.
    let mut faults = Fault::ALL;
    faults.sort_by_key(|fault| fault.flavor() != Flavor::Single);
    for fault in faults {
        for synchronous in [false, true] {
            scenarios.push(Scenario {
                name: format!("long::{fault}_{}", if synchronous { "synchronous" } else { "asynchronous" }),
                flavor: fault.flavor(),
                limit: LIMIT,
                run: Box::new(move |stack| Box::pin(async move { in_mode(&stack, fault, synchronous).await })),
            });
        }
    }
    Ok(scenarios)
}

fn setting(name: &str) -> anyhow::Result<Option<u64>> {
    match std::env::var(name) {
        Ok(text) => Ok(Some(text.parse().with_context(|| format!("{name} is {text:?} and not a number"))?)),
        Err(_) => Ok(None),
    }
}

/// A fault in one of the cluster's two modes.
async fn in_mode(stack: &Stack, fault: Fault, synchronous: bool) -> anyhow::Result<()> {
    trial::synchronous(stack, synchronous).await?;
    let commit = if synchronous { Commit::Synchronous } else { Commit::Local };
    let outcome = trial::run(stack, fault, commit).await;
    // The stack is used again.
    trial::synchronous(stack, true).await?;
    let outcome = outcome?;
    match fault {
        Fault::Pause => few_on_waking(&outcome),
        // A primary that dies takes with it what only it had: that is what asynchronous means.
        // One that comes back before its key is over has lost nothing: nobody may take it away before.
        Fault::Restart if !synchronous && outcome.led == outcome.leader.member => {
            outcome.report.nothing_lost_and_no_two_primaries()
        }
        Fault::Crash | Fault::Restart if !synchronous => outcome.report.no_two_primaries(),
        _ => outcome.report.nothing_lost_and_no_two_primaries(),
    }?;
    // Without an agent beside it the old primary is stopped by the gate, which says so in Patroni's log.
    if fault.wants_a_fence() && fault != Fault::FreezeAlone { outcome.somebody_fenced(stack).await } else { Ok(()) }
}

/// What the churn does to a stack, one after the other.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Fault(Fault),
    RestartZookeeper,
    /// For less than ttl.
    PauseZookeeper(Duration),
    CrashAgent(&'static str),
    /// Maintenance mode for a while.
    Maintenance(Duration),
    /// ttl, and back.
    Ttl,
    Quiet(Duration),
}

/// Faults and what must never fence, at random, for `minutes`; whoever is fenced must not have led.
async fn churn(stack: &Stack, minutes: u64, seed: u64) -> anyhow::Result<()> {
    eprintln!("      WARDEN_CHURN_SEED={seed} WARDEN_CHURN_MINUTES={minutes}");
    let (begun, mut dice) = (Instant::now(), Dice(seed));
    let (mut turns, mut fenced) = (0, 0);
    while begun.elapsed() < Duration::from_secs(minutes * 60) {
        let turn = dice.turn();
        turns += 1;
        let done = take(stack, turn).await.with_context(|| {
            format!("turn {turns}, {turn:?}, after {:.0?}; WARDEN_CHURN_SEED={seed}", begun.elapsed())
        })?;
        fenced += done;
    }
    let zoo = stack.zookeepers().into_iter().next().context("no ZooKeeper")?;
    let reigns = history::reigns(&zoo).await?.len();
    eprintln!(
        "      churn: {turns} turns in {:.0?}, {reigns} reigns, {fenced} fences, none of a leader",
        begun.elapsed()
    );
    Ok(())
}

/// Takes a turn; how many were fenced. `Observed::end` fails if one of them led.
async fn take(stack: &Stack, turn: Turn) -> anyhow::Result<usize> {
    eprintln!("      {turn:?}");
    if let Turn::Fault(fault) = turn {
        // In synchronous mode nothing may be lost, but for what a node acknowledges on waking. Where the old primary
        // goes on, commits do not wait for the standby: a second primary shows at once.
        let commit = if fault.wants_a_fence() { Commit::Local } else { Commit::Synchronous };
        let outcome = trial::run(stack, fault, commit).await?;
        if fault == Fault::Pause {
            few_on_waking(&outcome)?;
        } else {
            outcome.report.nothing_lost_and_no_two_primaries()?;
        }
        return Ok(outcome.fences().len());
    }
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let zoo = stack.container("zoo");
    match turn {
        Turn::Fault(_) => {}
        Turn::RestartZookeeper => zoo.restart().await?,
        Turn::PauseZookeeper(time) => {
            zoo.pause().await?;
            sleep(time).await;
            zoo.unpause().await?;
        }
        Turn::CrashAgent(agent) => stack.container(agent).crash().await?,
        Turn::Maintenance(time) => {
            stack.configure("pause", "true").await?;
            sleep(time).await;
            stack.configure("pause", "null").await?;
        }
        Turn::Ttl => {
            stack.configure("ttl", "40").await?;
            sleep(Duration::from_secs(3)).await;
            stack.configure("ttl", "30").await?;
        }
        Turn::Quiet(time) => sleep(time).await,
    }
    let (_, report, lines, _) = observed.end(stack).await?;
    eprintln!("      {report}");
    report.nothing_lost_and_no_two_primaries()?;
    let fences = fences::carried_out(&lines);
    kept(fences.is_empty(), || format!("somebody was fenced: {fences:#?}"))?;
    Ok(0)
}

/// xorshift64*: enough for turns, and the same ones for the same seed on every machine.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        let mut x = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15).max(1);
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }

    fn turn(&mut self) -> Turn {
        let faults: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| fault.flavor() == Flavor::Single).collect();
        let seconds = |n| Duration::from_secs(n);
        match self.below(20) {
            0..=8 => {
                let nth = usize::try_from(self.below(faults.len() as u64)).unwrap_or(0);
                Turn::Fault(faults.get(nth).copied().unwrap_or(Fault::Freeze))
            }
            9..=10 => Turn::Fault(Fault::Switchover),
            11..=12 => Turn::RestartZookeeper,
            13..=14 => Turn::PauseZookeeper(seconds(1 + self.below(20))),
            15..=16 => {
                let (node, _) = NODES[usize::from(self.below(2) == 1)];
                Turn::CrashAgent(if node == "pg-master" { "warden-pg-master" } else { "warden-pg-slave" })
            }
            17 => Turn::Maintenance(seconds(2 + self.below(15))),
            18 => Turn::Ttl,
            _ => Turn::Quiet(seconds(1 + self.below(5))),
        }
    }
}
