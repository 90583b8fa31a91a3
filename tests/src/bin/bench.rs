//! `tests/bench`: how soon agents see a change of the leader znode, and what they cost while nothing happens.
//!
//! The change is a write to the real leader znode of a real cluster: the same holder again, so that Patroni has
//! nothing to do and the znode's mzxid is new. When an agent first saw it is its own word (`leader.seen_at`), on
//! the clock that this machine shares with its containers.

// serde_json answers null where an index leads nowhere; nothing else is indexed in here.
#![allow(clippy::indexing_slicing)]

use anyhow::{Context, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{sleep, timeout};
use warden_e2e::history::LEADER;
use warden_e2e::stack::{self, AGENTS, Flavor, Stack};
use warden_e2e::truth;
use zookeeper_async::{WatchedEvent, ZooKeeper};

/// Of the benchmark's own compose project.
const PROJECT: &str = "wardenbench";

/// Between a change and the question for it. Asking makes the agent read: it must not see the change by that.
const BEFORE_ASKING: Duration = Duration::from_millis(300);

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        stack::remove_stale(PROJECT).await?;
        println!("bringing up a stack");
        let outcome = match Stack::up(PROJECT, Flavor::Single).await {
            Ok(stack) => measure(&stack).await,
            Err(error) => Err(error),
        };
        stack::remove_stale(PROJECT).await?;
        outcome
    })
}

fn setting(name: &str, default: u64) -> anyhow::Result<u64> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is {text:?} and not a number")),
        Err(_) => Ok(default),
    }
}

async fn measure(stack: &Stack) -> anyhow::Result<()> {
    let changes = setting("WARDEN_BENCH_CHANGES", 200)?;
    let idle = Duration::from_secs(setting("WARDEN_BENCH_IDLE", 300)?);
    truth::all_well(stack).await?;
    seen(stack, changes).await?;
    truth::all_well(stack).await?;
    cost(stack, idle).await
}

async fn seen(stack: &Stack, changes: u64) -> anyhow::Result<()> {
    let zoo = format!("{}:2181", stack.container("zoo").ip().await?);
    let connecting = ZooKeeper::connect(&zoo, Duration::from_secs(30), |_: WatchedEvent| {});
    let zk = timeout(Duration::from_secs(5), connecting).await.context("ZooKeeper does not answer")??;
    let http = reqwest::Client::builder().timeout(Duration::from_secs(4)).no_proxy().build()?;
    let mut agents: BTreeMap<&str, (IpAddr, Vec<Duration>)> = BTreeMap::new();
    for agent in AGENTS {
        agents.insert(agent, (stack.container(agent).ip().await?, Vec::new()));
    }
    for change in 0..changes {
        // Not in step with the agents' own rounds of a second.
        sleep(Duration::from_millis(change * 37 % 500)).await;
        let (holder, _) = zk.get_data(LEADER, false).await?;
        let before = SystemTime::now();
        let stat = zk.set_data(LEADER, holder, None).await?;
        sleep(BEFORE_ASKING).await;
        for (agent, (address, delays)) in &mut agents {
            let state: Value = http.get(format!("http://{address}:8010/api/v1/state")).send().await?.json().await?;
            let mzxid = state["leader"]["mzxid"].as_i64();
            ensure!(mzxid == Some(stat.mzxid), "{agent} does not know the change {}: {}", stat.mzxid, state["leader"]);
            let at = state["leader"]["seen_at"].as_str().context("no seen_at")?;
            delays.push(parse(at)?.duration_since(before).unwrap_or_default());
        }
    }
    println!("\nchange of the leader znode -> seen, from before the write is sent; {changes} changes, milliseconds");
    println!("{:18} {:>8} {:>8} {:>8}", "agent", "p50", "p99", "slowest");
    for (agent, (_, delays)) in &mut agents {
        delays.sort_unstable();
        let ms = |share: f64| quantile(delays, share).as_secs_f64() * 1000.0;
        println!("{agent:18} {:8.1} {:8.1} {:8.1}", ms(0.5), ms(0.99), ms(1.0));
    }
    println!("aim: p99 <= 50 ms");
    Ok(())
}

/// The value that `share` of all are not above (nearest rank); zero of none.
fn quantile(sorted: &[Duration], share: f64) -> Duration {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // small and positive
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied().unwrap_or_default()
}

/// RFC 3339 in UTC with a fraction, as the API writes it.
fn parse(text: &str) -> anyhow::Result<SystemTime> {
    let at: jiff::Timestamp = text.parse().with_context(|| format!("{text:?} is no time"))?;
    Ok(UNIX_EPOCH + Duration::from_micros(u64::try_from(at.as_microsecond())?))
}

/// How long a process's threads have been on a CPU, in the scheduler's nanoseconds: the ticks of `/proc/<pid>/stat`
/// are sampled, and too coarse for bursts of microseconds. A thread that has ended takes its share with it.
fn on_cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().context("no time")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

async fn cost(stack: &Stack, idle: Duration) -> anyhow::Result<()> {
    println!("\nidle for {} s", idle.as_secs());
    let mut pids = BTreeMap::new();
    for agent in AGENTS {
        pids.insert(agent, stack.container(agent).pid().await?);
    }
    let mut before = BTreeMap::new();
    for (agent, pid) in &pids {
        before.insert(*agent, on_cpu(*pid)?);
    }
    sleep(idle).await;
    println!("{:18} {:>12} {:>12} {:>10}", "agent", "memory MiB", "peak MiB", "% of a core");
    for (agent, pid) in &pids {
        let spent = on_cpu(*pid)?.saturating_sub(before.get(agent).copied().unwrap_or_default());
        let share = spent.as_secs_f64() / idle.as_secs_f64() * 100.0;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |key: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
        };
        println!("{agent:18} {:12.1} {:12.1} {share:10.2}", mib("VmRSS:")?, mib("VmHWM:")?);
    }
    println!("aim: <= 15 MiB, <= 0.3 % of a core");
    Ok(())
}
