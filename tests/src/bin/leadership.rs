//! `tests/bench leadership`: many runs of each fault, with Warden and without it on the same stack, and how long
//! clients waited. Each run is a line of JSON in `tests/out/leadership.jsonl`, written as soon as the run is done.

// serde_json returns null for a missing index. The code indexes nothing else.
#![allow(clippy::indexing_slicing)]

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::measure::{
    FIGURES, File, between, figures, gate, key_gone, on_a_new_stack_if_it_fails, shut_down, table,
};
use warden_e2e::stack::{self, Flavor, NODES, Stack, session};
use warden_e2e::trial::{self, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::writers::Commit;
use warden_e2e::{history, truth};

/// The benchmark's compose project, unless `WARDEN_TEST_PREFIX` names another.
const PROJECT: &str = "wardenbench";

const MEASURED: [Fault; 5] = [Fault::Freeze, Fault::Crash, Fault::Switchover, Fault::Postmaster, Fault::Pause];

/// The file in `tests/out`.
const OUT: &str = "leadership.jsonl";

fn main() -> anyhow::Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut given = |option: &str| {
        let before = arguments.len();
        arguments.retain(|argument| argument != option);
        arguments.len() < before
    };
    let go_on = given("--continue");
    let sides: &'static [bool] = match (given("--with"), given("--without")) {
        (true, false) => &[true],
        (false, true) => &[false],
        _ => &[true, false],
    };
    let faults: Vec<Fault> = match arguments.as_slice() {
        [] => MEASURED.to_vec(),
        names => names.iter().map(|name| Fault::named(name)).collect::<anyhow::Result<_>>()?,
    };
    for fault in &faults {
        ensure!(MEASURED.contains(fault), "{fault} is not one of {}", MEASURED.map(Fault::name).join(", "));
    }
    let runs = match std::env::var("WARDEN_BENCH_RUNS") {
        Ok(text) => text.parse().with_context(|| format!("WARDEN_BENCH_RUNS is {text:?} and not a number"))?,
        Err(_) => 30,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let project = std::env::var("WARDEN_TEST_PREFIX").unwrap_or_else(|_| PROJECT.to_owned()) + "-l";
        stack::remove_stale(&project).await?;
        let file = File::open(OUT, go_on)?;
        let bench = Bench { project: project.clone(), file, sides, stack: None, mode: None };
        undone_by(bench.all(&faults, runs), stack::remove_stale(&project)).await?;
        // Other runs may have added lines meanwhile.
        let file = File::open(OUT, true)?;
        for figure in FIGURES.iter().filter(|figure| faults.contains(&figure.fault)) {
            print!("{}", table(figure, &file.lines));
        }
        Ok(())
    })
}

struct Bench {
    project: String,
    file: File,
    /// With Warden, without it, or both.
    sides: &'static [bool],
    stack: Option<Stack>,
    /// Whether its agents enforce.
    mode: Option<bool>,
}

impl Bench {
    async fn all(mut self, faults: &[Fault], runs: usize) -> anyhow::Result<()> {
        for fault in faults {
            // The two sides alternate in turns of ten, so that a busier machine affects both.
            for upto in (0..runs).step_by(10).map(|from| (from + 10).min(runs)) {
                for with in self.sides {
                    while self.done(*fault, *with) < upto {
                        self.next(*fault, *with, runs).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn done(&self, fault: Fault, with: bool) -> usize {
        self.file.lines.iter().filter(|line| line["fault"] == fault.name() && line["with"] == with).count()
    }

    /// Does one more run. A run that fails is done again on a new stack.
    async fn next(&mut self, fault: Fault, with: bool, runs: usize) -> anyhow::Result<()> {
        let side = if with { "with" } else { "without" };
        let what = format!("{fault} {side} {}/{runs}", self.done(fault, with) + 1);
        let project = self.project.clone();
        let run = async || {
            let line = self.run(fault, with).await;
            if line.is_err() {
                self.stack = None;
            }
            line
        };
        let (mut line, took) = on_a_new_stack_if_it_fails(&project, &what, run).await?;
        line["fault"] = json!(fault.name());
        line["with"] = json!(with);
        println!("{what}, {took:.0?}: {}", line["figures"]);
        self.file.add(line)
    }

    async fn run(&mut self, fault: Fault, with: bool) -> anyhow::Result<Value> {
        let stack = match &self.stack {
            Some(stack) => stack.clone(),
            None => {
                let stack = Stack::up(&self.project, Flavor::Single).await?;
                self.mode = None;
                self.stack.insert(stack).clone()
            }
        };
        if self.mode != Some(with) {
            truth::all_well(&stack).await?;
            stack.mode(if with { "enforce" } else { "observe" }).await?;
            self.mode = Some(with);
            // An agent that has just started fences only a server that it has seen take writes.
            truth::all_well(&stack).await?;
            sleep(Duration::from_secs(5)).await;
        }
        let goes_on = matches!(fault, Fault::Freeze | Fault::Pause);
        let leader = Leader::find(&stack).await?;
        let commit = if goes_on { Commit::Local } else { Commit::Synchronous };
        let observed = Observed::start(&stack, commit).await?;
        sleep(Duration::from_secs(2)).await;
        let synchronous =
            (fault == Fault::Switchover).then(|| tokio::spawn(synchronous(stack.clone(), leader.service)));
        let outcome = trial::with(&stack, fault, leader, observed).await?;
        let synchronous = match synchronous {
            Some(watching) => found(watching).await?,
            None => None,
        };
        let zoo = stack.zookeepers().into_iter().next().context("no ZooKeeper")?;
        let terms = history::leader_terms(&zoo).await?;
        let mut line = figures(&outcome, fault, &terms, synchronous);
        if fault == Fault::Switchover {
            let ended = shut_down(&outcome.leader.node, outcome.struck_at).await?;
            if let (Some(ended), Some(gone)) = (ended, key_gone(&outcome, &terms)) {
                line["figures"]["shut_down_to_key_gone_ms"] = json!(between(ended, gone));
            }
            if with {
                line["figures"]["gate_ms"] = json!(gate(&stack.node_of(&outcome.led)?).await?);
            }
        }
        Ok(line)
    }
}

async fn found(watching: JoinHandle<Option<Instant>>) -> anyhow::Result<Option<Instant>> {
    Ok(timeout(Duration::from_secs(120), watching).await.context("no synchronous standby after the switchover")??)
}

/// When the node that does not lead now leads and has a synchronous standby.
async fn synchronous(stack: Stack, leads: &'static str) -> Option<Instant> {
    let (node, _) = NODES.into_iter().find(|(node, _)| *node != leads)?;
    let question = "SELECT count(*) FROM pg_stat_replication \
                    WHERE sync_state IN ('sync', 'quorum') AND NOT pg_is_in_recovery()";
    let mut client = None;
    loop {
        sleep(Duration::from_millis(50)).await;
        if client.is_none() {
            client = session(stack.node_port(node)).await.ok();
        }
        let Some(open) = &client else { continue };
        match timeout(Duration::from_secs(2), open.query_one(question, &[])).await {
            Ok(Ok(row)) if row.get::<_, i64>(0) > 0 => return Some(Instant::now()),
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => client = None,
        }
    }
}
