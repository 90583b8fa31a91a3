//! The scenarios that `tests/run --all` adds: each fault in asynchronous and in synchronous mode, and the churn.

use crate::fencing::{a_missing_socket_file_is_never_taken_for_a_stopped_server, few_on_waking};
use crate::{LIMIT, Running, Scenario, far, shapes, shared};
use anyhow::Context;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::time::sleep;
use warden_e2e::faults::Fault;
use warden_e2e::promise::kept;
use warden_e2e::stack::{Flavor, NODES, Stack};
use warden_e2e::trial::{self, Observation, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::writers::Commit;
use warden_e2e::{fences, history};

/// All long scenarios.
pub(crate) fn scenarios() -> anyhow::Result<Vec<Scenario>> {
    let minutes = setting("WARDEN_CHURN_MINUTES")?.unwrap_or(30);
    let seed = match setting("WARDEN_CHURN_SEED")? {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let mut scenarios = vec![Scenario {
        name: "long::churn_breaks_no_promise".to_owned(),
        flavor: Flavor::Single,
        limit: LIMIT + Duration::from_secs(minutes * 60 * 2),
        run: Box::new(move |stack| Box::pin(async move { churn(&stack, minutes, seed).await })),
    }];
    scenarios.push(long("a_missing_socket_file_is_never_taken_for_a_stopped_server", Flavor::Single, |stack| {
        Box::pin(async move { a_missing_socket_file_is_never_taken_for_a_stopped_server(&stack).await })
    }));
    scenarios.push(long("clients_of_one_cluster_do_not_notice_a_fault_of_the_other", Flavor::Single, |stack| {
        Box::pin(async move { shared::clients_of_one_cluster_do_not_notice_a_fault_of_the_other(&stack).await })
    }));
    scenarios.push(long("a_router_two_hundred_milliseconds_away_turns_no_client_away", Flavor::Single, |stack| {
        Box::pin(async move { far::a_router_two_hundred_milliseconds_away_turns_no_client_away(&stack).await })
    }));
    scenarios.extend(of_shapes());
    // Faults on the same kind of stack come one after the other.
    let mut faults = Fault::ALL;
    faults.sort_by_key(|fault| fault.flavor() != Flavor::Single);
    for fault in faults {
        for synchronous in [false, true] {
            let how = if synchronous { "synchronously" } else { "asynchronously" };
            scenarios.push(long(&format!("{fault}_breaks_no_promise_{how}"), fault.flavor(), move |stack| {
                Box::pin(async move { in_mode(&stack, fault, synchronous).await })
            }));
        }
    }
    Ok(scenarios)
}

/// A comparison for each shape.
fn of_shapes() -> impl Iterator<Item = Scenario> {
    let shapes = [
        ("pooler_and_direct", &shapes::POOLER_AND_DIRECT),
        ("pooler_and_direct_paused", &shapes::POOLER_AND_PAUSE),
        ("frontends_resolvers", &shapes::FRONTENDS_RESOLVERS),
        ("agent_check", &shapes::AGENT_CHECK),
        ("slow_agent_check", &shapes::SLOW_AGENT_CHECK),
        ("a_persons_maintenance", &shapes::PERSONS_MAINTENANCE),
        ("slowstart_and_queue", &shapes::SLOWSTART_AND_QUEUE),
        ("pgsql_check", &shapes::PGSQL_CHECK),
        ("tracking", &shapes::TRACKING),
        ("tracked", &shapes::TRACKED),
        ("checks_that_fail", &shapes::CHECKS_THAT_FAIL),
    ];
    shapes.into_iter().map(|(name, shape)| {
        long(&format!("no_client_is_worse_off_with_{name}"), shape.flavor, move |stack| {
            Box::pin(async move { shapes::compared(&stack, shape).await })
        })
    })
}

/// A long scenario with the usual limit.
fn long(name: &str, flavor: Flavor, run: impl Fn(Arc<Stack>) -> Running + Send + Sync + 'static) -> Scenario {
    Scenario { name: format!("long::{name}"), flavor, limit: LIMIT, run: Box::new(run) }
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
    // Other scenarios use the stack again.
    let outcome = undone_by(trial::run(stack, fault, commit), trial::synchronous(stack, true)).await?;
    match fault {
        Fault::Pause => few_on_waking(&outcome),
        // In asynchronous mode a dead primary loses the rows that only it had. A primary that comes back before its key
        // expires has lost none, because no member may take the key before.
        Fault::Restart if !synchronous && outcome.led == outcome.leader.member => {
            outcome.report.nothing_lost_and_no_two_primaries()
        }
        Fault::Crash | Fault::Restart if !synchronous => outcome.report.no_two_primaries(),
        _ => outcome.report.nothing_lost_and_no_two_primaries(),
    }?;
    // Without its agent the old primary is stopped by the gate, which logs that in Patroni's log.
    if fault.wants_a_fence() && fault != Fault::FreezeAlone { outcome.a_member_was_fenced(stack).await } else { Ok(()) }
}

/// The steps of the churn, one after the other.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Fault(Fault),
    RestartZookeeper,
    /// The pause is shorter than ttl.
    PauseZookeeper(Duration),
    CrashAgent(&'static str),
    /// Maintenance mode for this long.
    Maintenance(Duration),
    /// Another ttl, and the old one again.
    Ttl,
    Quiet(Duration),
}

/// Random faults, and events that must never fence a member, for `minutes`. No fenced member may have led.
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
    let terms = history::leader_terms(&zoo).await?.len();
    eprintln!(
        "      churn: {turns} turns in {:.0?}, {terms} terms, {fenced} fences, none of a leader",
        begun.elapsed()
    );
    Ok(())
}

/// Takes a turn. Returns how many members were fenced. `Observed::end` fails if one of them led.
async fn take(stack: &Stack, turn: Turn) -> anyhow::Result<usize> {
    eprintln!("      {turn:?}");
    if let Turn::Fault(fault) = turn {
        // In synchronous mode no row may be lost, except those that a node acknowledges when it wakes. If the old
        // primary takes further writes, commits do not wait for the standby, so that a second primary shows at once.
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
    let Observation { report, lines, .. } = observed.end(stack).await?;
    eprintln!("      {report}");
    report.nothing_lost_and_no_two_primaries()?;
    let fences = fences::carried_out(&lines);
    kept(fences.is_empty(), || format!("a member was fenced: {fences:#?}"))?;
    Ok(0)
}

/// xorshift64*. The same seed gives the same turns on every machine.
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
