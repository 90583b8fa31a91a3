//! A trial: a healthy stack, writers on it, a fault, its healing, and what the clients saw of it.

use crate::faults::{Fault, Leader};
use crate::fences::{self, Line};
use crate::promise::kept;
use crate::stack::Stack;
use crate::watching::{Sample, Watching};
use crate::writers::{Commit, Report, Route, Writers};
use crate::{history, truth, wait};
use anyhow::{Context, bail, ensure};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::sleep;

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Who led before.
    pub leader: Leader,
    /// Who led afterwards.
    pub led: String,
    /// When it began.
    pub struck: Instant,
    /// The same by the wall clock, as logs have it.
    pub struck_at: SystemTime,
    /// When it was healed.
    pub healed: Instant,
    /// What the clients saw.
    pub report: Report,
    /// What the agents logged meanwhile.
    pub lines: Vec<Line>,
    /// What the agents answered meanwhile.
    pub samples: Vec<Sample>,
}

impl Outcome {
    /// The fences that were carried out.
    pub fn fences(&self) -> Vec<&Line> {
        fences::carried_out(&self.lines)
    }

    /// Fails if nothing was logged that contains `text`.
    pub fn logged(&self, text: &str) -> anyhow::Result<()> {
        ensure!(self.lines.iter().any(|line| line.text.contains(text)), "no agent logged {text:?}");
        Ok(())
    }

    /// Fails if nobody was fenced by `rule`.
    pub fn fenced_by(&self, rule: &str) -> anyhow::Result<()> {
        let by: Vec<_> = self.fences().iter().filter_map(|fence| fence.field("rule")).map(str::to_owned).collect();
        ensure!(by.iter().any(|known| known == rule), "not fenced by the rule {rule}, but by {by:?}");
        Ok(())
    }

    /// Fails if nobody was fenced. Which rule comes first, with another leader or with none, is a matter of milliseconds;
    /// so it is whether the gate of the other comes before every agent.
    pub async fn somebody_fenced(&self, stack: &Stack) -> anyhow::Result<()> {
        if self.fences().is_empty() { self.audited(stack, |_| true).await } else { Ok(()) }
    }

    /// Waits until the audit trail says that one of these rules stopped whoever led: what the gate did is written down
    /// by a process of its own.
    pub async fn audited(&self, stack: &Stack, wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let member = &self.leader.member;
        let done = wait::until("it is in the audit trail", Duration::from_secs(60), || async {
            let audited = fences::audited(stack, member, self.struck_at).await?;
            ensure!(audited.iter().any(|rule| wanted(rule)), "it has {audited:?} of {member}");
            Ok(())
        });
        if let Err(error) = done.await {
            let reigns = history::reigns(stack.zookeepers().first().context("no ZooKeeper")?).await?;
            let said: Vec<_> = self.lines.iter().filter(|line| line.text.contains("fence")).collect();
            bail!("{error:#}; struck at {:?}; reigns: {reigns:#?}; the agents said: {said:#?}", self.struck_at);
        }
        Ok(())
    }

    /// How the agent beside whoever led stopped it, in its own words, and when; fails if it did not.
    pub fn fenced_how(&self) -> anyhow::Result<(&str, SystemTime)> {
        let agent = format!("warden-{}", self.leader.service);
        let mut fences = self.fences().into_iter();
        // Only the first stops a server that takes writes.
        let fence = fences.find(|fence| fence.agent == agent && fence.field("member") == Some(&self.leader.member));
        let fence = fence.with_context(|| format!("{agent} fenced nobody: {:?}", self.fences()))?;
        Ok((fence.field("by").context("it does not say how")?, fence.at))
    }

    /// Fails if anybody was fenced at all.
    pub fn nobody_fenced(&self) -> anyhow::Result<()> {
        let fences = self.fences();
        kept(fences.is_empty(), || format!("somebody was fenced: {fences:#?}"))
    }
}

/// Something under observation: writers, agents asked, logs noted. Made before a fault, ended when it is healed.
pub struct Observed {
    since: SystemTime,
    writers: Writers,
    watching: Watching,
}

impl Observed {
    /// Begins.
    pub async fn start(stack: &Stack, commit: Commit) -> anyhow::Result<Self> {
        Self::start_on(stack, commit, &Route::ALL).await
    }

    /// The same with writers on these routes, and not only on those that every stack has.
    pub async fn start_on(stack: &Stack, commit: Commit, routes: &[Route]) -> anyhow::Result<Self> {
        let writers = Writers::start_on(stack, commit, routes).await?;
        // A fault that struck while the writers begin would be judged by nobody.
        Ok(Self { since: SystemTime::now(), writers, watching: Watching::start(stack) })
    }

    /// The writers at work.
    pub const fn writers(&self) -> &Writers {
        &self.writers
    }

    /// Waits until all is well again; fails if an agent claimed as verified what was not so, if a leader was fenced, or
    /// if a fence is not closed. The report is for the caller to judge.
    pub async fn end(self, stack: &Stack) -> anyhow::Result<(String, Report, Vec<Line>, Vec<Sample>)> {
        let Self { since, writers, watching } = self;
        let led = truth::all_well(stack).await?.leader.context("no leader")?.0;
        let samples = watching.judge(stack).await?;
        wait::until("every fence is closed", Duration::from_secs(120), || async {
            let state = stack.status("warden-haproxy", &[]).await?;
            ensure!(state["fences"].as_array().is_some_and(Vec::is_empty), "one stands: {}", state["fences"]);
            Ok(())
        })
        .await?;
        let report = writers.stop(stack).await?;
        let lines = fences::lines_since(stack, since).await?;
        fences::none_of_a_leader(stack, &lines).await?;
        Ok((led, report, lines, samples))
    }
}

/// Does `fault` to the leader of `stack` while writers write, heals it also if nobody takes over, and waits until all
/// is well.
pub async fn run(stack: &Stack, fault: Fault, commit: Commit) -> anyhow::Result<Outcome> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, commit).await?;
    // Some rows on each route.
    sleep(Duration::from_secs(2)).await;
    let outcome = with(stack, fault, leader, observed).await?;
    eprintln!("      {fault}: {}", outcome.report);
    Ok(outcome)
}

/// The same with writers that are at work already.
pub async fn with(stack: &Stack, fault: Fault, leader: Leader, observed: Observed) -> anyhow::Result<Outcome> {
    with_healing_after(stack, fault, leader, observed, sleep(fault.lingers())).await
}

/// The same, healed when the other has taken over, where one is to, and `lingers` is over.
pub async fn with_healing_after(
    stack: &Stack,
    fault: Fault,
    leader: Leader,
    observed: Observed,
    lingers: impl Future<Output = ()>,
) -> anyhow::Result<Outcome> {
    let (struck, struck_at) = (Instant::now(), SystemTime::now());
    let stricken = fault.strike(stack, &leader).await.with_context(|| format!("{fault} could not be done"));
    let replaced = if stricken.is_ok() && fault.replaces() { leader.replaced(stack).await } else { Ok(()) };
    lingers.await;
    let healed = fault.heal(stack, &leader).await.with_context(|| format!("{fault} could not be healed"));
    let healed_at = Instant::now();
    stricken?;
    healed?;
    replaced?;
    let (led, report, lines, samples) = observed.end(stack).await?;
    Ok(Outcome { leader, led, struck, struck_at, healed: healed_at, report, lines, samples })
}

/// Sets the cluster's mode, and waits until the standby is what it should be.
pub async fn synchronous(stack: &Stack, on: bool) -> anyhow::Result<()> {
    stack.configure("synchronous_mode", if on { "true" } else { "false" }).await?;
    wait::until("the standby is as it should be", truth::SETTLE, || async {
        let state = stack.status("warden-haproxy", &[]).await?;
        let members = state["members"].as_array().context("no members[]")?;
        let wanted = if on { "sync_standby" } else { "replica" };
        ensure!(members.iter().any(|member| member["role"] == wanted), "nobody is {wanted}: {}", state["members"]);
        Ok(())
    })
    .await
}
