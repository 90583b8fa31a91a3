//! The true state of the cluster, from PostgreSQL by SQL and from ZooKeeper's log, and whether every agent reports the
//! same.

use crate::stack::{AGENTS, NODES, Stack, session};
use crate::{history, wait};
use anyhow::{Context, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the agents may take to report the truth once the cluster itself is well again.
pub const SETTLE: Duration = Duration::from_secs(300);

/// A server as it reports itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    /// Out of recovery.
    pub writable: bool,
    /// Its timeline (the one it receives, in recovery).
    pub timeline: Option<u64>,
}

/// The true state of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    /// The holder of the leader key, and the transaction that created it.
    pub leader: Option<(String, i64)>,
    /// The members whose PostgreSQL answers, by name.
    pub servers: BTreeMap<&'static str, Server>,
}

/// The truth now.
pub async fn truth(stack: &Stack) -> anyhow::Result<Truth> {
    let zoo = stack.zookeepers().into_iter().next().context("no ZooKeeper")?;
    let terms = history::leader_terms(&zoo).await?;
    let leader = terms.last().filter(|term| term.until.is_none()).map(|term| (term.holder.clone(), term.czxid));
    let mut servers = BTreeMap::new();
    for (node, member) in NODES {
        if let Ok(server) = server(stack.node_port(node)).await {
            servers.insert(member, server);
        }
    }
    Ok(Truth { leader, servers })
}

async fn server(port: u16) -> anyhow::Result<Server> {
    let client = session(port).await?;
    let question = "SELECT pg_is_in_recovery(), \
        CASE WHEN pg_is_in_recovery() THEN (SELECT received_tli FROM pg_stat_wal_receiver) \
        ELSE ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int END";
    let row = tokio::time::timeout(Duration::from_secs(3), client.query_one(question, &[])).await??;
    let in_recovery: bool = row.get(0);
    let timeline: Option<i32> = row.get(1);
    Ok(Server { writable: !in_recovery, timeline: timeline.and_then(|timeline| u64::try_from(timeline).ok()) })
}

/// Waits until the cluster is whole: a writable leader, and the other member in recovery on its timeline. Every agent
/// must report exactly that as verified and without a warning, in `warden status -f json`.
pub async fn all_well(stack: &Stack) -> anyhow::Result<Truth> {
    wait::until("the cluster is whole and every agent says so", SETTLE, || async {
        let truth = truth(stack).await?;
        let (leader, _) = truth.leader.as_ref().context("no member holds the leader key")?;
        ensure!(truth.servers.len() == NODES.len(), "not every server answers: {truth:?}");
        for (member, server) in &truth.servers {
            ensure!(server.writable == (member == leader), "{member} is not what it should be: {truth:?}");
        }
        agree(stack, &truth).await?;
        for agent in AGENTS {
            let state = stack.status(agent, &[]).await?;
            let warnings = state["warnings"].as_array().context("no warnings[]")?;
            ensure!(warnings.is_empty(), "{agent} warns: {warnings:?}");
            let known = state["agents"].as_array().map_or(0, Vec::len);
            ensure!(known == AGENTS.len(), "{agent} knows {known} agents");
            let writes = &state["haproxy"][0]["writes_to"];
            ensure!(*writes == serde_json::json!([leader]), "{agent} says that HAProxy writes to {writes}");
            for member in state["members"].as_array().into_iter().flatten() {
                ensure!(member["alive_lock"] == "alive", "{agent} says of a lock: {member}");
                let lag = member["lag_bytes"].as_u64();
                ensure!((member["name"] == *leader) == lag.is_none(), "{agent} says of the lag: {member}");
            }
        }
        Ok(truth)
    })
    .await
}

/// Fails unless every agent that runs reports the same as `truth`.
pub async fn agree(stack: &Stack, truth: &Truth) -> anyhow::Result<()> {
    for agent in AGENTS {
        if stack.container(agent).runs().await? {
            let state = stack.status(agent, &[]).await?;
            ensure!(state["source"] == "agent", "{agent} did not answer itself: {}", state["source"]);
            compare(&state, truth).with_context(|| format!("{agent} says {state:#}"))?;
        }
    }
    Ok(())
}

/// Fails unless a state reports the same as `truth`.
pub fn compare(state: &Value, truth: &Truth) -> anyhow::Result<()> {
    ensure!(state["leader"]["verified"] == true, "not verified: {}", state["leader"]);
    let named = state["leader"]["name"].as_str().map(str::to_owned).zip(state["leader"]["czxid"].as_i64());
    ensure!(named == truth.leader, "the leader is {:?} and not {named:?}", truth.leader);
    let members = state["members"].as_array().context("no members[]")?;
    for (name, server) in &truth.servers {
        let Some(member) = members.iter().find(|member| member["name"] == *name) else { bail!("{name} is missing") };
        ensure!(member["writable"] == server.writable, "{name} is {server:?} and not writable: {}", member["writable"]);
        ensure!(
            member["timeline"].as_u64() == server.timeline,
            "{name} is on timeline {:?} and not {}",
            server.timeline,
            member["timeline"]
        );
        let leads = truth.leader.as_ref().is_some_and(|(leader, _)| leader == name);
        let role = member["role"].as_str().unwrap_or_default();
        let fits = if leads { role == "primary" } else { role == "sync_standby" || role == "replica" };
        ensure!(fits, "{name} is called {role}");
        let state = member["state"].as_str().unwrap_or_default();
        ensure!(state == if leads { "running" } else { "streaming" }, "{name} is called {state}");
    }
    for member in members.iter().filter(|member| member["writable"] == true) {
        let name = member["name"].as_str().unwrap_or_default();
        ensure!(truth.servers.get(name).is_some_and(|server| server.writable), "{name} is called writable");
    }
    Ok(())
}

/// Waits until every agent's status satisfies `check`. It is for the agents' reports *during* a fault.
pub async fn until_every_agent_says(
    stack: &Stack,
    what: &str,
    limit: Duration,
    check: impl Fn(&Value) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    wait::until(what, limit, || async {
        for agent in AGENTS {
            let state = stack.status(agent, &[]).await?;
            check(&state).with_context(|| format!("{agent} says {state:#}"))?;
        }
        Ok(())
    })
    .await
}
