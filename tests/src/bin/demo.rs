//! `compose/demo`: a fault on the stack of `compose/up` while writers write, and what they saw.

use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tokio::time::{MissedTickBehavior, interval, sleep};
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::fences;
use warden_e2e::stack::{NODES, Stack};
use warden_e2e::trial::{self, Observed, Outcome};
use warden_e2e::writers::{Commit, Pulse, Route};

/// The faults that can be shown.
const SHOWN: [Fault; 5] = [Fault::Freeze, Fault::Crash, Fault::Postmaster, Fault::Pause, Fault::Switchover];

/// The pause between two lines.
const LINE: Duration = Duration::from_secs(1);

/// The demonstration prints lines for at least this long. By then HAProxy has noticed the fault if it ever does.
const LEAST: Duration = Duration::from_secs(12);

/// It goes on until this many consecutive lines show writes through the proxy, to one node only.
const QUIET: usize = 5;

fn main() -> anyhow::Result<()> {
    let name = std::env::args().nth(1).context("usage: warden-demo FAULT")?;
    let fault = Fault::named(&name)?;
    ensure!(SHOWN.contains(&fault), "{name} is not one of {}", SHOWN.map(Fault::name).join(", "));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(demonstrate(fault))
}

async fn demonstrate(fault: Fault) -> anyhow::Result<()> {
    let stack = Stack::running()?;
    println!("  waiting until the cluster is whole");
    let leader = Leader::find(&stack).await.context("is the stack up? compose/up")?;
    // Where the old primary takes further writes, commits that do not wait for the standby show that at once.
    let goes_on = matches!(fault, Fault::Freeze | Fault::Pause);
    let observed = Observed::start(&stack, if goes_on { Commit::Local } else { Commit::Synchronous }).await?;
    println!("  writers at work: through the proxy, and straight at each node; {} leads\n", leader.member);
    println!("            rows acknowledged in this second");
    println!("            pg-master  pg-slave   proxy");
    let pulse = observed.writers().pulse();
    let progress = tokio::spawn(progress(pulse, Instant::now()));
    sleep(Duration::from_millis(3100)).await;
    println!("    {}", fault.what());
    let outcome = trial::with(&stack, fault, leader, observed).await;
    progress.abort();
    tell(&outcome?);
    Ok(())
}

async fn progress(pulse: Pulse, begun: Instant) {
    let routes = [Route::Node(NODES[0].0), Route::Node(NODES[1].0), Route::Proxy];
    let mut before = routes.map(|route| pulse.acknowledged(route));
    let mut tick = interval(LINE);
    // A line covers the second before it, also after a late one.
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick.tick().await;
    // Once all has been well for a while, only waiting is left.
    let mut quiet = 0;
    while begun.elapsed() < LEAST || quiet < QUIET {
        tick.tick().await;
        let now = routes.map(|route| pulse.acknowledged(route));
        let [master, slave, proxy] = [0, 1, 2]
            .map(|nth: usize| now.get(nth).copied().unwrap_or_default() - before.get(nth).copied().unwrap_or_default());
        let both = if master > 0 && slave > 0 { "   both take writes" } else { "" };
        println!("    {:5.1} s {master:9} {slave:9} {proxy:7}{both}", begun.elapsed().as_secs_f64());
        before = now;
        quiet = if proxy > 0 && both.is_empty() { quiet + 1 } else { 0 };
    }
    println!("      ...  and so on, until the cluster is whole again");
}

fn tell(outcome: &Outcome) {
    let report = &outcome.report;
    let straight = report.without_a_primary().map_or(Duration::ZERO, |(outage, _)| outage);
    println!();
    println!("  longest outage, straight at the nodes   {:8.2} s", straight.as_secs_f64());
    println!("  longest outage, through HAProxy         {:8.2} s", report.outage(Route::ProxyPerRow).as_secs_f64());
    println!("  two primaries for                       {:8.2} s", report.dual.as_secs_f64());
    println!("  acknowledged rows, and lost of them     {:8} {:8}", report.acknowledged(), report.lost.len());
    println!("  led before, leads now                   {}, {}", outcome.leader.member, outcome.led);
    let deeds = fences::deeds(&outcome.lines);
    println!("\n  what Warden did");
    for deed in &deeds {
        println!("    {deed}");
    }
    if deeds.is_empty() {
        println!("    nothing");
    }
}
