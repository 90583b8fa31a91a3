//! The leader changes because somebody wants it to: switchovers and restarts. Nothing may be lost, and nobody fenced
//! who leads.

use anyhow::{Context, ensure};
use std::time::SystemTime;
use warden_e2e::stack::Stack;
use warden_e2e::watching::{Watching, writable_was_true};
use warden_e2e::writers::{Commit, Writers};
use warden_e2e::{fences, trial, truth};

async fn leader(stack: &Stack) -> anyhow::Result<String> {
    Ok(truth::all_well(stack).await?.leader.context("no leader")?.0)
}

pub(crate) async fn switchover_there_and_back(stack: &Stack) -> anyhow::Result<()> {
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

/// Without a synchronous standby: what the clients were told is on the candidate because its LSN says so.
pub(crate) async fn switchover_there_and_back_asynchronously(stack: &Stack) -> anyhow::Result<()> {
    trial::synchronous(stack, false).await?;
    let outcome = asynchronous_switchovers(stack).await;
    // The stack is used again.
    trial::synchronous(stack, true).await?;
    outcome
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

/// Fails if a row was lost, a leader was fenced, or no key was handed over since `begin`. Now and then Patroni itself is
/// faster.
async fn handed_over(stack: &Stack, writers: Writers, begin: SystemTime) -> anyhow::Result<()> {
    let report = writers.stop(stack).await?;
    report.nothing_lost_and_no_two_primaries()?;
    eprintln!("      {report}");
    let lines = fences::lines_since(stack, begin).await?;
    fences::none_of_a_leader(stack, &lines).await?;
    let released = lines.iter().any(|line| line.text.contains("leader key released"));
    ensure!(released, "in neither of two switchovers was the key handed over");
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
