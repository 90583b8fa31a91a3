//! The leader changes or should: switchover, crash, restart, and a frozen Patroni. The agents only watch as
//! yet; what is asked of them is the truth, and of the stack that they do not disturb it.

use anyhow::{Context, ensure};
use std::time::Duration;
use warden_e2e::stack::Stack;
use warden_e2e::truth;
use warden_e2e::watching::{Watching, writable_was_true};
use warden_e2e::writers::{Commit, Route, Writers};

async fn leader(stack: &Stack) -> anyhow::Result<String> {
    Ok(truth::all_well(stack).await?.leader.context("no leader")?.0)
}

pub(crate) async fn switchover_there_and_back(stack: &Stack) -> anyhow::Result<()> {
    let first = leader(stack).await?;
    let writers = Writers::start(stack, Commit::Synchronous).await?;
    let watching = Watching::start(stack);
    let second = stack.switchover(&first).await?;
    ensure!(leader(stack).await? == second, "the switchover did not last");
    let third = stack.switchover(&second).await?;
    ensure!(leader(stack).await? == third && third == first, "not back at {first}");
    let samples = watching.judge(stack).await?;
    for agent in warden_e2e::stack::AGENTS {
        for holder in [&first, &second] {
            let knew = samples
                .iter()
                .any(|sample| sample.agent == agent && sample.verified() && sample.holder() == Some(holder));
            ensure!(knew, "{agent} never knew that {holder} leads");
        }
    }
    let report = writers.stop(stack).await?;
    report.nothing_lost_and_no_two_primaries()?;
    eprintln!("      {report}");
    Ok(())
}

/// The node of the primary is killed. Nobody releases its key as yet: the standby takes over after ttl.
pub(crate) async fn a_killed_primary(stack: &Stack) -> anyhow::Result<()> {
    let old = leader(stack).await?;
    let node = stack.node_of(&old)?;
    let writers = Writers::start(stack, Commit::Synchronous).await?;
    let watching = Watching::start(stack);
    node.kill().await?;
    let agent = if old == "postgresql0" { "warden-pg-master" } else { "warden-pg-slave" };
    truth::until_every_agent_says(stack, "the other one leads", Duration::from_secs(90), |state| {
        ensure!(state["leader"]["verified"] == true && state["leader"]["name"] == warden_e2e::stack::other(&old));
        let members = state["members"].as_array().context("no members[]")?;
        let dead = members.iter().find(|member| member["name"] == *old).context("the dead member is not shown")?;
        ensure!(dead["writable"] != true, "the dead member is called writable");
        let about_it = state["warnings"].as_array().into_iter().flatten().any(|warning| warning["member"] == *old);
        ensure!(about_it, "nobody is warned of the dead member");
        Ok(())
    })
    .await?;
    // The lock went with the process, in another container.
    let state = stack.status(agent, &[]).await?;
    let members = state["members"].as_array().context("no members[]")?;
    let own = members.iter().find(|member| member["name"] == *old).context("the dead member is not shown")?;
    ensure!(own["alive_lock"] == "gone", "the alive lock of a killed Patroni is {}", own["alive_lock"]);
    node.start().await?;
    truth::all_well(stack).await?;
    let samples = watching.judge(stack).await?;
    let report = writers.stop(stack).await?;
    writable_was_true(&samples, &report)?;
    report.nothing_lost_and_no_two_primaries()?;
    eprintln!("      {report}");
    Ok(())
}

pub(crate) async fn patroni_is_restarted_on_either_node(stack: &Stack) -> anyhow::Result<()> {
    let old = leader(stack).await?;
    let writers = Writers::start(stack, Commit::Synchronous).await?;
    let watching = Watching::start(stack);
    for member in [warden_e2e::stack::other(&old), &old] {
        // Patroni is the container's process: it stops its PostgreSQL and starts it again.
        stack.node_of(member)?.restart().await?;
        truth::all_well(stack).await.with_context(|| format!("after a restart of {member}"))?;
    }
    let samples = watching.judge(stack).await?;
    let report = writers.stop(stack).await?;
    writable_was_true(&samples, &report)?;
    report.nothing_lost_and_no_two_primaries()?;
    eprintln!("      {report}");
    Ok(())
}

/// The split brain that Warden is made against, seen: Patroni on the primary is frozen, its key expires, the
/// standby is promoted, and both take writes. As yet the agents can only say so, and have to.
pub(crate) async fn a_frozen_patroni_is_seen_with_both_primaries(stack: &Stack) -> anyhow::Result<()> {
    let old = leader(stack).await?;
    let node = stack.node_of(&old)?;
    let file = if old == "postgresql0" { "patroni /postgres0.yml" } else { "patroni /postgres1.yml" };
    let writers = Writers::start(stack, Commit::Local).await?;
    let watching = Watching::start(stack);
    node.signal("STOP", file).await?;
    let seen = truth::until_every_agent_says(stack, "both take writes", Duration::from_secs(90), |state| {
        ensure!(state["leader"]["verified"] == true && state["leader"]["name"] == warden_e2e::stack::other(&old));
        let codes: Vec<(&str, &str)> = state["warnings"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|warning| {
                (warning["code"].as_str().unwrap_or_default(), warning["member"].as_str().unwrap_or_default())
            })
            .collect();
        for expected in [("several_writable", ""), ("writable_without_leader_key", &old), ("patroni_silent", &old)] {
            ensure!(codes.contains(&expected), "no {expected:?} among {codes:?}");
        }
        Ok(())
    })
    .await;
    node.signal("CONT", file).await?;
    seen?;
    truth::all_well(stack).await?;
    let samples = watching.judge(stack).await?;
    let report = writers.stop(stack).await?;
    writable_was_true(&samples, &report)?;
    // The witnesses agree with what the agents said.
    ensure!(!report.dual.is_zero(), "the clients saw no two primaries: {report}");
    ensure!(!report.lost.is_empty(), "nothing was lost although two took writes: {report}");
    let proxy = report.stories.get(&Route::Proxy).context("no story")?;
    ensure!(proxy.acks.last().is_some(), "nothing through the proxy");
    eprintln!("      {report}");
    Ok(())
}
