//! The leader changes on request: switchovers and restarts. No row may be lost, and no leader fenced.

use anyhow::{Context, ensure};
use std::time::SystemTime;
use warden_e2e::stack::Stack;
use warden_e2e::undo::undone_by;
use warden_e2e::watching::{Watching, writable_was_true};
use warden_e2e::writers::{Commit, Writers};
use warden_e2e::{agent_log, fences, trial, truth};

async fn leader(stack: &Stack) -> anyhow::Result<String> {
    Ok(truth::all_well(stack).await?.leader.context("no leader")?.0)
}

pub(crate) async fn a_switchover_hands_the_key_over_and_loses_no_row(stack: &Stack) -> anyhow::Result<()> {
    let begin = SystemTime::now();
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
    handed_over(stack, writers, begin).await
}

/// Without a synchronous standby. The candidate has all acknowledged rows because its LSN shows so.
pub(crate) async fn an_asynchronous_switchover_hands_the_key_over_and_loses_no_row(
    stack: &Stack,
) -> anyhow::Result<()> {
    trial::synchronous(stack, false).await?;
    // Other scenarios use the stack again.
    undone_by(asynchronous_switchovers(stack), trial::synchronous(stack, true)).await
}

async fn asynchronous_switchovers(stack: &Stack) -> anyhow::Result<()> {
    let begin = SystemTime::now();
    let first = leader(stack).await?;
    let writers = Writers::start(stack, Commit::Local).await?;
    let second = stack.switchover(&first).await?;
    ensure!(leader(stack).await? == second, "the switchover did not last");
    stack.switchover(&second).await?;
    ensure!(leader(stack).await? == first, "not back at {first}");
    handed_over(stack, writers, begin).await
}

/// Fails if a row was lost, a leader was fenced, or no key was handed over since `begin`. One of two is enough, because
/// Patroni itself is sometimes faster.
async fn handed_over(stack: &Stack, writers: Writers, begin: SystemTime) -> anyhow::Result<()> {
    let report = writers.stop(stack).await?;
    report.nothing_lost_and_no_two_primaries()?;
    eprintln!("      {report}");
    let lines = agent_log::lines_since(stack, begin).await?;
    fences::none_of_a_leader(stack, &lines).await?;
    let released = lines.iter().any(|line| line.is("leader_key_released"));
    ensure!(released, "in neither of two switchovers was the key handed over");
    Ok(())
}

pub(crate) async fn a_restart_of_patroni_on_either_node_loses_no_row(stack: &Stack) -> anyhow::Result<()> {
    let old = leader(stack).await?;
    let writers = Writers::start(stack, Commit::Synchronous).await?;
    let watching = Watching::start(stack);
    for member in [warden_e2e::stack::other(&old), &old] {
        // Patroni is the container's process. It stops its PostgreSQL and starts it again.
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
