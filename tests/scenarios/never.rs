//! What must never fence a leader: ZooKeeper restarted, away, electing; sessions lost; ttl changed; maintenance mode;
//! switchovers.

use anyhow::{Context, ensure};
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;
use tokio::time::sleep;
use warden_e2e::faults::Leader;
use warden_e2e::promise::kept;
use warden_e2e::stack::{AGENTS, Stack};
use warden_e2e::trial::Observed;
use warden_e2e::writers::Commit;
use warden_e2e::{fences, truth, wait};

/// Nobody may be fenced by what `fault` does, and nothing be lost.
async fn nobody_is_fenced<F>(stack: &Stack, fault: impl FnOnce() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let done = fault().await;
    let (_, report, lines, _) = observed.end(stack).await?;
    done?;
    eprintln!("      {report}");
    report.nothing_lost_and_no_two_primaries()?;
    // Observed::end has looked for fences of a leader. Here even one of somebody who leads no more would be strange:
    // its Patroni was well all the time.
    let fences = fences::carried_out(&lines);
    kept(fences.is_empty(), || format!("somebody was fenced: {fences:#?}"))
}

/// ZooKeeper restarted again and again, ttl changed, maintenance mode on and off.
pub(crate) async fn zookeeper_restarts_ttl_and_pause(stack: &Stack) -> anyhow::Result<()> {
    nobody_is_fenced(stack, || async {
        for _ in 0..3 {
            stack.container("zoo").restart().await?;
            sleep(Duration::from_secs(4)).await;
        }
        for (key, value) in [("ttl", "40"), ("ttl", "30"), ("pause", "true"), ("pause", "null")] {
            stack.configure(key, value).await?;
            sleep(Duration::from_secs(3)).await;
        }
        Ok(())
    })
    .await
}

/// Every connection to ZooKeeper reset, 20 times: each time the agents, which never take a session up again, have a new
/// one; Patroni goes on with its own.
pub(crate) async fn twenty_lost_sessions(stack: &Stack) -> anyhow::Result<()> {
    let zoo = stack.container("zoo").ip().await?;
    let begin = SystemTime::now();
    nobody_is_fenced(stack, || async {
        for round in 0..20_u64 {
            let mut resets = JoinSet::new();
            for service in ["pg-master", "warden-pg-master", "pg-slave", "warden-pg-slave", "warden-haproxy"] {
                let container = stack.container(service);
                // For a moment each packet to ZooKeeper is answered with RST.
                resets.spawn(async move { container.refuse(zoo, 2181, Duration::from_millis(150)).await });
            }
            while let Some(reset) = resets.join_next().await {
                reset??;
            }
            // Not in step with anybody's rounds.
            sleep(Duration::from_millis(700 + round * 61)).await;
        }
        Ok(())
    })
    .await?;
    let lines = fences::lines_since(stack, begin).await?;
    let sessions = lines.iter().filter(|line| line.text.contains("ZooKeeper session started")).count();
    ensure!(sessions >= 20, "the agents beside the nodes had only {sessions} new sessions: this test shows nothing");
    Ok(())
}

/// The three servers of an ensemble restarted, one after the other, each when the one before serves again.
pub(crate) async fn a_rolling_restart_of_the_ensemble(stack: &Stack) -> anyhow::Result<()> {
    nobody_is_fenced(stack, || async {
        for server in stack.zookeepers() {
            server.restart().await?;
            wait::until("it serves again", Duration::from_secs(180), || async {
                let health = server.inspect("{{ .State.Health.Status }}").await?;
                ensure!(health == "healthy", "{} is {health}", server.0);
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

/// Patroni's REST API answers no agent for longer than the lease, and then ZooKeeper is away for less than Patroni bears;
/// nobody writes, so that nothing else tells of Patroni's contact. Its HA loop has turned all the time.
pub(crate) async fn rest_is_silent_and_zookeeper_away(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let begin = SystemTime::now();
    let mut agents = Vec::new();
    for agent in AGENTS {
        agents.push(stack.container(agent).ip_in("default").await?);
    }
    leader.node.close(8008, &agents).await?;
    let outcome = async {
        sleep(Duration::from_secs(45)).await;
        let state = stack.status(&format!("warden-{}", leader.service), &[]).await?;
        let members = state["members"].as_array().context("no members[]")?;
        let own = members.iter().find(|one| one["name"] == leader.member).context("the leader is not shown")?;
        ensure!(own["patroni"]["answer"] == "silent", "Patroni is not silent: {}", own["patroni"]);
        stack.container("zoo").pause().await?;
        sleep(Duration::from_secs(8)).await;
        stack.container("zoo").unpause().await
    }
    .await;
    leader.node.open(8008, &agents).await?;
    outcome?;
    truth::all_well(stack).await?;
    ensure!(leader.leads(stack).await?, "{} leads no more", leader.member);
    let lines = fences::lines_since(stack, begin).await?;
    let fences = fences::carried_out(&lines);
    kept(fences.is_empty(), || format!("somebody was fenced: {fences:#?}"))
}

/// ZooKeeper away for longer than ttl in failsafe mode: Patroni goes on as long as every member agrees.
pub(crate) async fn zookeeper_is_away_in_failsafe_mode(stack: &Stack) -> anyhow::Result<()> {
    stack.configure("failsafe_mode", "true").await?;
    // Patroni has to have taken it in, and put down who is in it.
    wait::until("failsafe mode is on", Duration::from_secs(120), || async {
        let config = stack.patronictl(&["show-config", "my_cluster"]).await?;
        ensure!(config.contains("failsafe_mode: true"), "{config}");
        Ok(())
    })
    .await?;
    sleep(Duration::from_secs(12)).await;
    let zoo = stack.container("zoo");
    let outcome = nobody_is_fenced(stack, || async {
        zoo.pause().await?;
        sleep(Duration::from_secs(45)).await;
        zoo.unpause().await
    })
    .await;
    let reset = stack.configure("failsafe_mode", "null").await;
    outcome.and(reset)
}
