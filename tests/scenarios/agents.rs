//! Agents killed, stopped and frozen, and members removed and added.

use anyhow::{Context, ensure};
use std::time::Duration;
use warden_e2e::stack::{AGENTS, NODES, Stack};
use warden_e2e::undo::undone_by;
use warden_e2e::watching::Watching;
use warden_e2e::{docker, truth, wait};

/// SIGKILL, and Docker restarts the agent. Its earlier session still lives, and the agent has to own its znode again.
pub(crate) async fn a_killed_agent_gets_its_znode_back_and_a_missing_one_is_reported(
    stack: &Stack,
) -> anyhow::Result<()> {
    let watching = Watching::start(stack);
    for agent in AGENTS {
        stack.container(agent).crash().await?;
        truth::all_well(stack).await.with_context(|| format!("after {agent} was killed"))?;
        let restarts = stack.container(agent).inspect("{{ .RestartCount }}").await?;
        ensure!(restarts != "0", "{agent} was not restarted");
    }
    // The others report an agent that stays away.
    stack.container("warden-pg-slave").kill().await?;
    wait::until("the others report it", Duration::from_secs(240), || async {
        for agent in ["warden-pg-master", "warden-haproxy"] {
            let state = stack.status(agent, &[]).await?;
            let warned = state["warnings"].as_array().into_iter().flatten().any(|warning| {
                warning["member"] == "postgresql1"
                    && (warning["code"] == "agent_missing" || warning["code"] == "agent_stale")
            });
            ensure!(warned, "{agent} does not report it: {:#}", state["warnings"]);
        }
        Ok(())
    })
    .await?;
    stack.container("warden-pg-slave").start().await?;
    truth::all_well(stack).await?;
    watching.judge(stack).await?;
    Ok(())
}

/// If the local agent does not answer, `warden status` asks another agent, or observes by itself.
pub(crate) async fn warden_status_answers_without_the_local_agent(stack: &Stack) -> anyhow::Result<()> {
    let truth = truth::all_well(stack).await?;
    for agent in AGENTS {
        let state = stack.status(agent, &["--direct"]).await?;
        ensure!(state["source"] == "direct", "--direct asked an agent");
        // The agent beside HAProxy has no superuser. It relies on Patroni, which reports the same.
        truth::compare(&state, &truth).with_context(|| format!("direct, from {agent}: {state:#}"))?;
        let known = state["agents"].as_array().map_or(0, Vec::len);
        ensure!(known == AGENTS.len(), "direct, from {agent}, {known} agents are known: {}", state["agents"]);
        let proxies = state["haproxy"].as_array().map_or(0, Vec::len);
        ensure!(proxies == 1, "direct, from {agent}, {proxies} HAProxys are known");
        let warnings = state["warnings"].as_array().context("no warnings[]")?;
        ensure!(warnings.is_empty(), "direct, from {agent}: {warnings:?}");
    }
    // A frozen agent's port accepts connections, and it answers none. `docker exec` still works.
    let frozen = stack.container("warden-pg-master");
    let pid = frozen.pid().await?.to_string();
    docker::run("kill", &["-STOP", &pid]).await?;
    let asked =
        async { stack.status("warden-pg-master", &[]).await.context("no status while the local agent is frozen") };
    let state = undone_by(asked, async { docker::run("kill", &["-CONT", &pid]).await.map(drop) }).await?;
    ensure!(state["source"] == "agent" && state["agent"]["name"] != "postgresql0", "answered by {}", state["agent"]);
    truth::compare(&state, &truth)?;
    for format in ["pretty", "yaml", "tsv"] {
        let text = stack.container("warden-haproxy").exec(&["warden", "status", "-f", format]).await?;
        ensure!(text.contains("postgresql0") && text.contains("postgresql1"), "{format}: {text}");
        ensure!(!text.contains('\u{1b}'), "{format} has colors although no terminal is there");
        if format == "pretty" {
            let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
            ensure!(widest <= 80, "{widest} columns: {text}");
        }
    }
    truth::all_well(stack).await?;
    Ok(())
}

/// Docker kills an agent that takes longer to stop, and the exit code shows it. (An agent usually takes 2 s at most.
/// The test asks that it does not wait for a server that does not answer.)
const PROMPTLY: Duration = Duration::from_secs(10);

/// SIGTERM: the agent stops promptly, with exit code 0. Its znode is gone long before its session would have expired.
pub(crate) async fn agents_stop_promptly_and_cleanly(stack: &Stack) -> anyhow::Result<()> {
    for (agent, name) in [("warden-pg-master", "postgresql0"), ("warden-haproxy", "haproxy")] {
        let container = stack.container(agent);
        container.stop(PROMPTLY).await?;
        let code = container.inspect("{{ .State.ExitCode }}").await?;
        ensure!(code == "0", "{agent} ended with {code}: {}", container.logs().await?);
        wait::until("its znode is gone", Duration::from_secs(15), || async {
            let state = stack.status("warden-pg-slave", &[]).await?;
            let listed = state["agents"].as_array().into_iter().flatten().any(|agent| agent["name"] == name);
            ensure!(!listed, "{name} has stopped and is still listed: {:#}", state["agents"]);
            Ok(())
        })
        .await?;
        container.start().await?;
    }
    // An agent also stops while ZooKeeper hangs.
    let zoo = stack.container("zoo");
    let container = stack.container("warden-pg-master");
    wait::until("the agent is back", Duration::from_secs(120), || async {
        stack.status("warden-pg-master", &[]).await.map(drop)
    })
    .await?;
    zoo.pause().await?;
    undone_by(container.stop(PROMPTLY), zoo.unpause()).await?;
    let code = container.inspect("{{ .State.ExitCode }}").await?;
    ensure!(code == "0", "with ZooKeeper paused it ended with {code}");
    container.start().await?;
    truth::all_well(stack).await?;
    Ok(())
}

/// A member leaves with its agent for good, and comes back.
pub(crate) async fn a_removed_member_is_forgotten_and_known_again_when_it_returns(stack: &Stack) -> anyhow::Result<()> {
    let before = truth::all_well(stack).await?;
    let (leader, _) = before.leader.context("no leader")?;
    let (node, standby) = *NODES.iter().find(|(_, member)| *member != leader).context("no standby")?;
    let gone = [node.to_owned(), format!("warden-{node}")].map(|service| stack.container(&service));
    for container in &gone {
        container.stop(Duration::from_secs(30)).await?;
        docker::docker(&["rm", &container.0]).await?;
    }
    let rest = AGENTS.into_iter().filter(|agent| *agent != format!("warden-{node}"));
    let rest: Vec<&str> = rest.collect();
    wait::until("the member is forgotten", Duration::from_secs(400), || async {
        for agent in &rest {
            let state = stack.status(agent, &[]).await?;
            let names: Vec<&str> = state["members"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|member| member["name"].as_str())
                .collect();
            ensure!(names == [leader.as_str()], "{agent} knows {names:?}");
            ensure!(state["leader"]["verified"] == true && state["leader"]["name"] == leader, "{}", state["leader"]);
            ensure!(!state.to_string().contains(standby), "{standby} is still mentioned: {state:#}");
        }
        Ok(())
    })
    .await?;
    stack.compose_up().await?;
    truth::all_well(stack).await?;
    Ok(())
}
