//! `tests/bench`: how soon agents see a change of the leader znode, and their cost while nothing happens.
//!
//! The change is a write to the real leader znode of a real cluster. It writes the same holder again, so that Patroni
//! has nothing to do and the znode gets a new mzxid. The agent reports when it first saw the change (`leader.seen_at`),
//! by the clock that this machine shares with its containers.

// serde_json returns null for a missing index. The code indexes nothing else.
#![allow(clippy::indexing_slicing)]

use anyhow::{Context, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::time::{sleep, timeout};
use warden_e2e::history::LEADER;
use warden_e2e::stack::{self, AGENTS, Flavor, Stack};
use warden_e2e::undo::undone_by;
use warden_e2e::{truth, wait};
use zookeeper_async::{Acl, CreateMode, WatchedEvent, ZooKeeper};

/// The benchmark's compose project.
const PROJECT: &str = "wardenbench";

/// The time between a change and the question about it. A question makes the agent read, and the agent must not see the
/// change because of that.
const BEFORE_ASKING: Duration = Duration::from_millis(300);

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        stack::remove_stale(PROJECT).await?;
        println!("bringing up a stack");
        let measured = async { measure(&Stack::up(PROJECT, Flavor::Single).await?).await };
        undone_by(measured, stack::remove_stale(PROJECT)).await
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
    println!("\nidle for {} s", idle.as_secs());
    cost(stack, idle, |_| 0.3, Some(15.0)).await?;
    crowded(stack, setting("WARDEN_BENCH_MEMBERS", 48)?, idle.min(Duration::from_secs(60))).await
}

/// A program that answers for members that exist only as znodes. Each Patroni reports that it starts its server, which
/// refuses connections.
const CROWD: &str = "import socketserver as s,http.server as h,json,threading as t,sys
class H(h.BaseHTTPRequestHandler):
    protocol_version='HTTP/1.1'
    def do_GET(self):
        name='crowd%d'%(self.server.server_address[1]-7000)
        patroni={'version':'4.1.5','scope':'my_cluster','name':name}
        b=json.dumps({'state':'starting','role':'replica','patroni':patroni}).encode()
        self.send_response(200 if self.path=='/liveness' else 503)
        self.send_header('Content-Length',str(len(b)))
        self.end_headers()
        self.wfile.write(b)
    def log_message(self,*a): pass
for n in range(int(sys.argv[1])):
    t.Thread(target=h.ThreadingHTTPServer(('',7000+n),H).serve_forever).start()
";

/// Measures the cost with many more members. Their znodes are real, and their servers refuse connections.
async fn crowded(stack: &Stack, members: u64, time: Duration) -> anyhow::Result<()> {
    println!("\n{members} more members, whose PostgreSQL refuses, for {} s", time.as_secs());
    let run = stack.run("crowd").option("--entrypoint", "python3");
    let container = run.start("warden/node:local", &["-c", CROWD, &members.to_string()]).await?;
    let address = container.ip().await?;
    let zoo = format!("{}:2181", stack.container("zoo").ip().await?);
    let connecting = ZooKeeper::connect(&zoo, Duration::from_secs(30), |_: WatchedEvent| {});
    let zk = timeout(Duration::from_secs(5), connecting).await.context("ZooKeeper does not answer")??;
    for member in 0..members {
        let (postgres, api) = (6000 + member, 7000 + member);
        let znode = format!(
            r#"{{"conn_url":"postgres://{address}:{postgres}/postgres","api_url":"http://{address}:{api}/patroni","state":"starting","role":"replica","version":"4.1.5"}}"#
        );
        let path = format!("/service/my_cluster/members/crowd{member}");
        // The znodes go with the session.
        zk.create(&path, znode.into_bytes(), Acl::open_unsafe().clone(), CreateMode::Ephemeral).await?;
    }
    // HAProxy has them all by then, and every agent asks them.
    wait::until("HAProxy has a server for each", Duration::from_secs(120), || async {
        let state = stack.status(ROUTER, &[]).await?;
        let servers = state["haproxy"][0]["servers"].as_array().map_or(0, Vec::len);
        ensure!(servers as u64 == 2 * (members + 2), "it has {servers}");
        Ok(())
    })
    .await?;
    sleep(Duration::from_secs(10)).await;
    // The aims are for 50 members.
    cost(stack, time, |agent| if agent == ROUTER { 5.0 } else { 3.0 }, None).await
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
        // The pauses differ from the agents' rounds of a second.
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
        let aim = verdict(ms(0.99), 50.0);
        println!("{agent:18} {:8.1} {:8.1} {:8.1}   aim p99 <= 50 ms: {aim}", ms(0.5), ms(0.99), ms(1.0));
    }
    Ok(())
}

/// The value that the share `share` of all values does not exceed (nearest rank); zero without values.
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

/// How long a process's threads have run on a CPU, in the scheduler's nanoseconds. The ticks of `/proc/<pid>/stat` are
/// sampled and too coarse for bursts of microseconds. A thread that has ended no longer counts.
fn on_cpu(pid: u32) -> anyhow::Result<Duration> {
    let mut sum = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().context("no time")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(sum))
}

/// The agent beside HAProxy.
const ROUTER: &str = "warden-haproxy";

/// Whether a value meets its aim, for people.
fn verdict(value: f64, aim: f64) -> &'static str {
    if value <= aim { "met" } else { "MISSED" }
}

/// Prints each agent's cost over `idle` with its aims: `share_max` of a core in percent, and `memory_max` in MiB.
async fn cost(
    stack: &Stack,
    idle: Duration,
    share_max: impl Fn(&str) -> f64,
    memory_max: Option<f64>,
) -> anyhow::Result<()> {
    let mut pids = BTreeMap::new();
    for agent in AGENTS {
        pids.insert(agent, stack.container(agent).pid().await?);
    }
    let mut before = BTreeMap::new();
    for (agent, pid) in &pids {
        before.insert(*agent, on_cpu(*pid)?);
    }
    sleep(idle).await;
    println!("{:18} {:>12} {:>12} {:>12}", "agent", "memory MiB", "peak MiB", "% of a core");
    for (agent, pid) in &pids {
        let spent = on_cpu(*pid)?.saturating_sub(before.get(agent).copied().unwrap_or_default());
        let share = spent.as_secs_f64() / idle.as_secs_f64() * 100.0;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let mib = |key: &str| -> anyhow::Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
        };
        let (memory, peak, most) = (mib("VmRSS:")?, mib("VmHWM:")?, share_max(agent));
        print!("{agent:18} {memory:12.1} {peak:12.1} {share:12.2}   aim <= {most} %: {}", verdict(share, most));
        if let Some(most) = memory_max {
            print!(", <= {most} MiB: {}", verdict(memory, most));
        }
        println!();
    }
    Ok(())
}
