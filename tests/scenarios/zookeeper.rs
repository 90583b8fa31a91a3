//! ZooKeeper is restarted, paused or killed, or one of three servers is cut off. No row is lost, no agent calls unknown
//! facts verified, and afterwards every agent knows the cluster again.

use anyhow::{Context, bail, ensure};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use warden_e2e::history::LEADER;
use warden_e2e::stack::{AGENTS, Stack, other};
use warden_e2e::watching::{Sample, Watching, writable_was_true};
use warden_e2e::writers::{Commit, Route, Writers};
use warden_e2e::{truth, wait};
use zookeeper_async::{WatchedEvent, ZooKeeper};

/// Answers to questions after this time from the beginning of a fault are about the fault.
const INTO_THE_FAULT: Duration = Duration::from_millis(100);

/// By then every agent warns that it has lost ZooKeeper. On an idle machine each notices within 5 s.
const NOTICED: Duration = Duration::from_secs(20);

pub(crate) async fn zookeeper_restarted_costs_no_row(stack: &Stack) -> anyhow::Result<()> {
    undisturbed(stack, || async { stack.container("zoo").restart().await }).await
}

pub(crate) async fn zookeeper_killed_and_started_costs_no_row(stack: &Stack) -> anyhow::Result<()> {
    let zoo = stack.container("zoo");
    undisturbed(stack, || async {
        zoo.kill().await?;
        sleep(Duration::from_secs(3)).await;
        zoo.start().await
    })
    .await
}

pub(crate) async fn zookeeper_paused_for_less_than_ttl_costs_no_row(stack: &Stack) -> anyhow::Result<()> {
    undisturbed(stack, || async { paused(stack, Duration::from_secs(8)).await.map(drop) }).await
}

/// How often a Patroni gave up its leadership because it did not reach ZooKeeper within `retry_timeout`.
async fn demotions(stack: &Stack) -> anyhow::Result<usize> {
    let mut count = 0;
    for node in ["pg-master", "pg-slave"] {
        count += stack.container(node).logs().await?.matches("demoting self because DCS is not accessible").count();
    }
    Ok(count)
}

/// A fault of ZooKeeper that ends within ttl costs no row, and the leader stays. On a slow machine ZooKeeper may need
/// longer than `retry_timeout` to serve again. Then its Patroni demotes the primary, as it would without Warden. This
/// function tells the two apart.
async fn undisturbed<F>(stack: &Stack, fault: impl FnOnce() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let before = truth::all_well(stack).await?;
    let demoted_before = demotions(stack).await?;
    let writers = Writers::start(stack, Commit::Synchronous).await?;
    let watching = Watching::start(stack);
    fault().await?;
    let after = truth::all_well(stack).await?;
    let samples = watching.judge(stack).await?;
    let report = writers.stop(stack).await?;
    writable_was_true(&samples, &report)?;
    report.nothing_lost_and_no_two_primaries()?;
    if before.leader.as_ref().map(|(name, _)| name) != after.leader.as_ref().map(|(name, _)| name) {
        ensure!(demotions(stack).await? > demoted_before, "{before:?} became {after:?}");
        eprintln!("      Patroni demoted its server by itself: ZooKeeper was away for longer than retry_timeout");
    }
    eprintln!("      {report}");
    Ok(())
}

/// Pauses ZooKeeper for `duration`. Returns the agents' answers meanwhile. No answer may be called verified.
async fn paused(stack: &Stack, duration: Duration) -> anyhow::Result<Vec<Sample>> {
    let zoo = stack.container("zoo");
    let watching = Watching::start(stack);
    zoo.pause().await?;
    let from = std::time::SystemTime::now() + INTO_THE_FAULT;
    sleep(duration).await;
    let said: Vec<Sample> = watching.so_far().into_iter().filter(|sample| sample.asked >= from).collect();
    zoo.unpause().await?;
    for agent in AGENTS {
        ensure!(said.iter().any(|sample| sample.agent == agent), "{agent} said nothing while ZooKeeper was paused");
    }
    if let Some(sample) = said.iter().find(|sample| sample.verified()) {
        bail!("{} called its leader verified while ZooKeeper was paused: {}", sample.agent, sample.state["leader"]);
    }
    let late = said.iter().filter(|sample| sample.asked >= from + NOTICED);
    for sample in late {
        let told = sample.warnings();
        ensure!(told.contains(&"zookeeper_lost"), "{} does not warn of ZooKeeper: {told:?}", sample.agent);
    }
    Ok(said)
}

/// Without failsafe mode Patroni demotes the primary. The agents must report that no member takes writes, and that they
/// do not know the leader.
pub(crate) async fn zookeeper_paused_past_ttl_leaves_no_member_called_writable(stack: &Stack) -> anyhow::Result<()> {
    truth::all_well(stack).await?;
    let writers = Writers::start(stack, Commit::Synchronous).await?;
    let said = paused(stack, Duration::from_secs(45)).await?;
    for agent in AGENTS {
        let last = said.iter().rfind(|sample| sample.agent == agent).context("nothing said")?;
        for member in ["postgresql0", "postgresql1"] {
            ensure!(
                last.writable(member) != Some(true),
                "{agent} still calls {member} writable after 45 s: {:#}",
                last.state
            );
        }
    }
    truth::all_well(stack).await?;
    let report = writers.stop(stack).await?;
    report.nothing_lost_and_no_two_primaries()?;
    ensure!(
        report.stories.get(&Route::Proxy).is_some_and(|story| !story.errors.is_empty()),
        "no primary was demoted: {report}"
    );
    eprintln!("      {report}");
    Ok(())
}

/// One of three servers is cut off from the others while its clients still reach it. Until it notices, it serves its
/// last state, and a plain read of it is stale. An agent that depends on it must not call that verified.
pub(crate) async fn a_stalled_follower_is_not_believed(stack: &Stack) -> anyhow::Result<()> {
    make_zoo3_a_follower(stack).await?;
    let before = truth::all_well(stack).await?;
    let (old, _) = before.leader.context("no leader")?;
    let zoo3 = stack.container("zoo3");
    let address = zoo3.ip_in("default").await?;
    let stale = timeout(
        Duration::from_secs(30),
        ZooKeeper::connect(&format!("{address}:2181"), Duration::from_secs(30), |_: WatchedEvent| {}),
    )
    .await
    .context("zoo3 does not answer")??;
    let watching = Watching::start(stack);
    let mut peers = Vec::new();
    for server in ["zoo", "zoo2"] {
        peers.push(stack.container(server).ip_in("quorum").await?);
    }
    zoo3.cut(&peers).await?;
    // A follower without its leader gives up after syncLimit * tickTime = 40 s. The leader of the cluster has to change
    // before.
    let cut = Instant::now();
    let new = stack.switchover(&old).await?;
    let changed = std::time::SystemTime::now();
    let read = timeout(Duration::from_secs(10), stale.get_data(LEADER, false)).await;
    let read = String::from_utf8(read.context("zoo3 answers no plain read")??.0)?;
    ensure!(
        read == old && new == other(&old),
        "a plain read of zoo3 is not stale after {:?}: {read}, now {new}",
        cut.elapsed()
    );
    // Each answer waits in vain for a linearizable read. A few of them take a while.
    sleep(Duration::from_secs(10)).await;
    let meanwhile: Vec<Sample> = watching.so_far().into_iter().filter(|sample| sample.asked >= changed).collect();
    let depends = |sample: &&Sample| sample.agent == "warden-haproxy";
    ensure!(meanwhile.iter().filter(depends).count() >= 2, "the agent that depends on zoo3 said too little");
    for sample in meanwhile.iter().filter(depends) {
        ensure!(!sample.verified(), "stale and called verified: {}", sample.state["leader"]);
        ensure!(!sample.warnings().is_empty(), "unverified without a warning: {:#}", sample.state);
    }
    let others_know =
        meanwhile.iter().any(|sample| !depends(&sample) && sample.verified() && sample.holder() == Some(&new));
    ensure!(others_know, "the agents that talk to the quorum do not know {new}");
    zoo3.heal(&peers).await?;
    truth::all_well(stack).await?;
    watching.judge(stack).await?;
    Ok(())
}

/// Makes zoo3 a follower. The loss of the ensemble's leader would cause an election, and the test needs a follower that
/// is behind.
async fn make_zoo3_a_follower(stack: &Stack) -> anyhow::Result<()> {
    wait::until("zoo3 follows", Duration::from_secs(240), || async {
        let ask = "exec 3<>/dev/tcp/127.0.0.1/2181; printf srvr >&3; timeout 2 cat <&3";
        let said = stack.container("zoo3").exec(&["bash", "-c", ask]).await?;
        if said.contains("Mode: leader") {
            stack.container("zoo3").restart().await?;
        }
        ensure!(said.contains("Mode: follower"), "{said}");
        Ok(())
    })
    .await
}
