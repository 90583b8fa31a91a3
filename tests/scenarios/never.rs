//! Events that must never fence a leader: ZooKeeper restarted, away or electing; lost sessions; another ttl;
//! maintenance mode; switchovers.

use anyhow::{Context, ensure};
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;
use tokio::time::sleep;
use warden_e2e::faults::Leader;
use warden_e2e::promise::kept;
use warden_e2e::stack::{AGENTS, Stack};
use warden_e2e::trial::{Observation, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::writers::Commit;
use warden_e2e::{agent_log, fences, truth, wait};

/// `fault` may fence no member and lose no row.
async fn no_member_is_fenced<F>(stack: &Stack, fault: impl FnOnce() -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let done = fault().await;
    let Observation { report, lines, .. } = observed.end(stack).await?;
    done?;
    eprintln!("      {report}");
    report.nothing_lost_and_no_two_primaries()?;
    // Observed::end has looked for fences of a leader. Here even the fence of another member would be wrong, because
    // its Patroni was well all the time.
    let fences = fences::carried_out(&lines);
    kept(fences.is_empty(), || format!("a member was fenced: {fences:#?}"))
}

/// ZooKeeper restarts again and again, ttl changes, and maintenance mode goes on and off.
pub(crate) async fn restarts_of_zookeeper_a_new_ttl_and_pause_fence_no_member(stack: &Stack) -> anyhow::Result<()> {
    no_member_is_fenced(stack, || async {
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

/// Every connection to ZooKeeper is reset, 20 times. The agents never resume a session, and have a new one each time.
/// Patroni keeps its own session.
pub(crate) async fn twenty_lost_sessions_fence_no_member(stack: &Stack) -> anyhow::Result<()> {
    let zoo = stack.container("zoo").ip().await?;
    let begin = SystemTime::now();
    no_member_is_fenced(stack, || async {
        for round in 0..20_u64 {
            let mut resets = JoinSet::new();
            for service in ["pg-master", "warden-pg-master", "pg-slave", "warden-pg-slave", "warden-haproxy"] {
                let container = stack.container(service);
                // For a moment the kernel answers each packet to ZooKeeper with RST.
                resets.spawn(async move { container.refuse(zoo, 2181, Duration::from_millis(150)).await });
            }
            while let Some(reset) = resets.join_next().await {
                reset??;
            }
            // The pauses differ from every program's rounds.
            sleep(Duration::from_millis(700 + round * 61)).await;
        }
        Ok(())
    })
    .await?;
    let lines = agent_log::lines_since(stack, begin).await?;
    let sessions = lines.iter().filter(|line| line.is("session_started")).count();
    ensure!(sessions >= 20, "the agents beside the nodes had only {sessions} new sessions: this test shows nothing");
    Ok(())
}

/// The three servers of an ensemble restart one after the other, each after the one before serves again.
pub(crate) async fn a_rolling_restart_of_the_ensemble_fences_no_member(stack: &Stack) -> anyhow::Result<()> {
    no_member_is_fenced(stack, || async {
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

/// Patroni's REST API answers no agent for longer than the lease. Then ZooKeeper is away for a time that Patroni bears.
/// No client writes, so that nothing else shows Patroni's contact. Its HA loop turns all the time.
pub(crate) async fn a_silent_rest_api_and_then_zookeeper_away_fence_no_member(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let begin = SystemTime::now();
    let mut agents = Vec::new();
    for agent in AGENTS {
        agents.push(stack.container(agent).ip_in("default").await?);
    }
    leader.node.close(8008, &agents).await?;
    let silent = async {
        sleep(Duration::from_secs(45)).await;
        let state = stack.status(&format!("warden-{}", leader.service), &[]).await?;
        let members = state["members"].as_array().context("no members[]")?;
        let own = members.iter().find(|one| one["name"] == leader.member).context("the leader is not shown")?;
        ensure!(own["patroni"]["answer"] == "silent", "Patroni is not silent: {}", own["patroni"]);
        stack.container("zoo").pause().await?;
        sleep(Duration::from_secs(8)).await;
        stack.container("zoo").unpause().await
    };
    undone_by(silent, leader.node.open(8008, &agents)).await?;
    truth::all_well(stack).await?;
    ensure!(leader.leads(stack).await?, "{} does not lead any more", leader.member);
    let lines = agent_log::lines_since(stack, begin).await?;
    let fences = fences::carried_out(&lines);
    kept(fences.is_empty(), || format!("a member was fenced: {fences:#?}"))
}

/// ZooKeeper is away for longer than ttl in failsafe mode. Patroni goes on as long as every member agrees.
pub(crate) async fn zookeeper_away_in_failsafe_mode_fences_no_member(stack: &Stack) -> anyhow::Result<()> {
    stack.configure("failsafe_mode", "true").await?;
    // By then Patroni must have read the setting and written down the members in failsafe mode.
    wait::until("failsafe mode is on", Duration::from_secs(120), || async {
        let config = stack.patronictl(&["show-config", "my_cluster"]).await?;
        ensure!(config.contains("failsafe_mode: true"), "{config}");
        Ok(())
    })
    .await?;
    sleep(Duration::from_secs(12)).await;
    let zoo = stack.container("zoo");
    let away = no_member_is_fenced(stack, || async {
        zoo.pause().await?;
        sleep(Duration::from_secs(45)).await;
        zoo.unpause().await
    });
    undone_by(away, stack.configure("failsafe_mode", "null")).await
}
