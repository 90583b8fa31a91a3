//! No two writable primaries, judged by what clients were told: Patroni frozen, killed, cut off, the whole node paused.

use anyhow::{Context, ensure};
use std::net::IpAddr;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use warden_e2e::docker::Container;
use warden_e2e::stack::{Stack, other};
use warden_e2e::watching::Watching;
use warden_e2e::writers::{Commit, Report, Route, Writers};
use warden_e2e::{truth, wait};

/// What a scenario is about: who led, in which containers.
struct Old {
    member: String,
    node: Container,
    agent: Container,
    /// Matches its Patroni's command line.
    patroni: &'static str,
}

async fn old(stack: &Stack) -> anyhow::Result<Old> {
    let member = truth::all_well(stack).await?.leader.context("no leader")?.0;
    let (node, patroni) = if member == "postgresql0" {
        ("pg-master", "patroni /postgres0.yml")
    } else {
        ("pg-slave", "patroni /postgres1.yml")
    };
    let agent = stack.container(&format!("warden-{node}"));
    Ok(Old { member, node: stack.container(node), agent, patroni })
}

impl Old {
    /// The agent's log lines of fences that were confirmed since `from` lines.
    async fn fences(&self) -> anyhow::Result<Vec<String>> {
        let log = self.agent.logs().await?;
        Ok(log.lines().filter(|line| line.contains("act::fence: fenced")).map(str::to_owned).collect())
    }

    /// Waits until another member takes writes.
    async fn replaced(&self, stack: &Stack, limit: Duration) -> anyhow::Result<()> {
        let new = other(&self.member);
        wait::until("the other one takes writes", limit, || async {
            let now = truth::truth(stack).await?;
            ensure!(now.servers.get(new).is_some_and(|server| server.writable), "{now:?}");
            Ok(())
        })
        .await
    }
}

/// The end of each scenario: all is well again, what was claimed as verified was so, and the fence is closed.
async fn end(stack: &Stack, writers: Writers, watching: Watching) -> anyhow::Result<Report> {
    let truth = truth::all_well(stack).await?;
    watching.judge(stack).await?;
    let state = stack.status("warden-haproxy", &[]).await?;
    ensure!(state["fences"].as_array().is_some_and(Vec::is_empty), "a fence still stands: {}", state["fences"]);
    let report = writers.stop(stack).await?;
    eprintln!("      {report}");
    drop(truth);
    Ok(report)
}

/// SIGSTOP: without a fence both would take writes until SIGCONT.
pub(crate) async fn patroni_is_frozen(stack: &Stack) -> anyhow::Result<()> {
    let old = old(stack).await?;
    let before = old.fences().await?.len();
    // Commits that do not wait for the standby: a second primary would show at once.
    let writers = Writers::start(stack, Commit::Local).await?;
    let watching = Watching::start(stack);
    old.node.signal("STOP", old.patroni).await?;
    let replaced = old.replaced(stack, Duration::from_secs(90)).await;
    sleep(Duration::from_secs(3)).await;
    old.node.signal("CONT", old.patroni).await?;
    replaced?;
    let report = end(stack, writers, watching).await?;
    report.nothing_lost_and_no_two_primaries()?;
    let fences = old.fences().await?;
    ensure!(fences.len() > before, "nobody was fenced");
    Ok(())
}

/// SIGKILL of everything in the node: the key is released, and the standby does not wait for ttl.
pub(crate) async fn the_primary_is_killed(stack: &Stack) -> anyhow::Result<()> {
    let old = old(stack).await?;
    let writers = Writers::start(stack, Commit::Synchronous).await?;
    let watching = Watching::start(stack);
    let killed = Instant::now();
    old.node.kill().await?;
    old.replaced(stack, Duration::from_secs(90)).await?;
    let log = old.agent.logs().await?;
    ensure!(log.contains("leader key released"), "the key was not released, and expired after {:?}", killed.elapsed());
    truth::until_every_agent_says(stack, "the dead one is shown as dead", Duration::from_secs(30), |state| {
        let members = state["members"].as_array().context("no members[]")?;
        let dead = members.iter().find(|member| member["name"] == old.member).context("it is not shown")?;
        ensure!(dead["writable"] != true, "it is called writable");
        Ok(())
    })
    .await?;
    old.node.start().await?;
    end(stack, writers, watching).await?.nothing_lost_and_no_two_primaries()
}

/// SIGKILL of the postmaster under a living Patroni: it is brought back where it was, without a failover.
pub(crate) async fn the_postmaster_is_killed(stack: &Stack) -> anyhow::Result<()> {
    let old = old(stack).await?;
    let writers = Writers::start(stack, Commit::Synchronous).await?;
    let watching = Watching::start(stack);
    let postmaster = "kill -9 $(head -n1 /var/lib/postgresql/data/*/postmaster.pid)";
    old.node.exec(&["bash", "-c", postmaster]).await?;
    let report = end(stack, writers, watching).await?;
    report.nothing_lost_and_no_two_primaries()?;
    let log = old.agent.logs().await?;
    ensure!(
        log.contains("Patroni nudged") && log.contains("is gone while its Patroni lives"),
        "Patroni was not nudged"
    );
    let led = truth::all_well(stack).await?.leader.context("no leader")?.0;
    ensure!(led == old.member, "{} took over although Patroni lived", led);
    Ok(())
}

/// docker pause of the node past the failover: the fence lies in its socket when it wakes.
pub(crate) async fn the_node_is_paused_past_the_failover(stack: &Stack) -> anyhow::Result<()> {
    let old = old(stack).await?;
    let writers = Writers::start(stack, Commit::Local).await?;
    let watching = Watching::start(stack);
    old.node.pause().await?;
    let replaced = old.replaced(stack, Duration::from_secs(90)).await;
    sleep(Duration::from_secs(12)).await;
    old.node.unpause().await?;
    replaced?;
    let report = end(stack, writers, watching).await?;
    // What it acknowledged between waking and obeying is lost, and is little.
    ensure!(report.lost.len() <= 100, "{} rows were acknowledged on waking: {report}", report.lost.len());
    ensure!(report.dual <= Duration::from_secs(60), "{report}");
    Ok(())
}

/// The node and its agent lose ZooKeeper while Patroni is frozen: only the lease is left to go by.
pub(crate) async fn frozen_and_cut_off(stack: &Stack) -> anyhow::Result<()> {
    let old = old(stack).await?;
    let writers = Writers::start(stack, Commit::Local).await?;
    let watching = Watching::start(stack);
    let zoo: Vec<IpAddr> = vec![stack.container("zoo").ip().await?];
    old.node.signal("STOP", old.patroni).await?;
    old.node.cut(&zoo).await?;
    old.agent.cut(&zoo).await?;
    let replaced = old.replaced(stack, Duration::from_secs(90)).await;
    sleep(Duration::from_secs(3)).await;
    old.agent.heal(&zoo).await?;
    old.node.heal(&zoo).await?;
    old.node.signal("CONT", old.patroni).await?;
    replaced?;
    let report = end(stack, writers, watching).await?;
    report.nothing_lost_and_no_two_primaries()?;
    ensure!(old.fences().await?.iter().any(|line| line.contains("rule=\"lease\"")), "not fenced by its lease");
    Ok(())
}

/// The agent beside the primary is gone, then Patroni is frozen: the gate, or the new leader's agent, stops the old one.
pub(crate) async fn the_agent_is_dead_and_patroni_frozen(stack: &Stack) -> anyhow::Result<()> {
    let old = old(stack).await?;
    let writers = Writers::start(stack, Commit::Local).await?;
    let watching = Watching::start(stack);
    old.agent.kill().await?;
    old.node.signal("STOP", old.patroni).await?;
    let replaced = old.replaced(stack, Duration::from_secs(90)).await;
    sleep(Duration::from_secs(8)).await;
    old.node.signal("CONT", old.patroni).await?;
    old.agent.start().await?;
    replaced?;
    let report = end(stack, writers, watching).await?;
    report.nothing_lost_and_no_two_primaries()?;
    let proxy = report.stories.get(&Route::Proxy).context("no story")?;
    ensure!(!proxy.acks.is_empty(), "nothing through the proxy");
    Ok(())
}

/// What must never fence: ZooKeeper restarted again and again, sessions lost, ttl changed, pause on and off.
pub(crate) async fn nobody_is_fenced_who_leads(stack: &Stack) -> anyhow::Result<()> {
    let old = old(stack).await?;
    let writers = Writers::start(stack, Commit::Synchronous).await?;
    let watching = Watching::start(stack);
    let zoo = stack.container("zoo");
    let before = fenced_so_far(stack).await?;
    for _ in 0..3 {
        zoo.restart().await?;
        sleep(Duration::from_secs(4)).await;
    }
    for (key, value) in [("ttl", "40"), ("ttl", "30"), ("pause", "true"), ("pause", "null")] {
        stack.patronictl(&["edit-config", "my_cluster", "--force", "-s", &format!("{key}={value}")]).await?;
        sleep(Duration::from_secs(3)).await;
    }
    let report = end(stack, writers, watching).await?;
    report.nothing_lost_and_no_two_primaries()?;
    // The stack may have seen other scenarios before.
    ensure!(fenced_so_far(stack).await? == before, "somebody was fenced");
    let now = truth::all_well(stack).await?.leader.context("no leader")?.0;
    ensure!(now == old.member, "{now} took over");
    Ok(())
}

/// How many fences the nodes' agents have carried out, by their logs.
async fn fenced_so_far(stack: &Stack) -> anyhow::Result<usize> {
    let mut count = 0;
    for agent in ["warden-pg-master", "warden-pg-slave"] {
        let log = stack.container(agent).logs().await?;
        count += log.lines().filter(|line| line.contains("act::fence: fenced")).count();
    }
    Ok(count)
}

/// A person fences the leader and takes it back.
pub(crate) async fn fenced_by_hand(stack: &Stack) -> anyhow::Result<()> {
    let old = old(stack).await?;
    let agent = stack.container("warden-pg-master");
    let plan = agent.exec(&["warden", "plan"]).await?;
    ensure!(plan.starts_with("nothing: "), "a healthy cluster has a plan: {plan}");
    agent.exec(&["warden", "fence", &old.member, "--reason", "a test"]).await?;
    truth::until_every_agent_says(stack, "it is fenced", Duration::from_secs(60), |state| {
        let fence = state["fences"].as_array().into_iter().flatten().find(|fence| fence["member"] == old.member);
        let fence = fence.context("there is no fence")?;
        ensure!(
            fence["rule"] == "operator" && fence["reason"].as_str().is_some_and(|why| why.contains("a test")),
            "{fence}"
        );
        let members = state["members"].as_array().context("no members[]")?;
        let shown = members.iter().find(|member| member["name"] == old.member).context("it is not shown")?;
        ensure!(shown["writable"] != true, "it is writable");
        Ok(())
    })
    .await?;
    agent.exec(&["warden", "unfence", &old.member]).await?;
    truth::all_well(stack).await?;
    Ok(())
}
