//! A trial: a healthy stack, writers on it, a fault, its healing, and what the clients saw.

use crate::agent_log::{self, Line};
use crate::faults::{Fault, Leader};
use crate::fences;
use crate::promise::kept;
use crate::stack::Stack;
use crate::undo::undone_by;
use crate::watching::{Sample, Watching};
use crate::writers::{Commit, Report, Route, Writers};
use crate::{history, truth, wait};
use anyhow::{Context, bail, ensure};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::sleep;

/// The outcome of a trial.
#[derive(Debug)]
pub struct Outcome {
    /// The leader before the fault.
    pub leader: Leader,
    /// The member that led afterwards.
    pub led: String,
    /// When the fault began.
    pub struck: Instant,
    /// The same, by the wall clock, as logs have it.
    pub struck_at: SystemTime,
    /// When the fault was healed.
    pub healed: Instant,
    /// The clients' rows, failures and outages.
    pub report: Report,
    /// The lines of the agents' logs meanwhile.
    pub lines: Vec<Line>,
    /// The agents' answers meanwhile.
    pub samples: Vec<Sample>,
}

impl Outcome {
    /// The confirmed fences.
    pub fn fences(&self) -> Vec<&Line> {
        fences::carried_out(&self.lines)
    }

    /// Fails if no agent logged this event.
    pub fn logged(&self, event: &str) -> anyhow::Result<()> {
        ensure!(self.lines.iter().any(|line| line.is(event)), "no agent logged {event:?}");
        Ok(())
    }

    /// Fails unless an agent fenced a member by `rule`.
    pub fn fenced_by(&self, rule: &str) -> anyhow::Result<()> {
        let by: Vec<_> = self.fences().iter().filter_map(|fence| fence.field("rule")).map(str::to_owned).collect();
        ensure!(by.iter().any(|known| known == rule), "not fenced by the rule {rule}, but by {by:?}");
        Ok(())
    }

    /// Fails unless an agent or the gate fenced a member. Whether an agent's rule for another leader or for none comes
    /// first is a matter of milliseconds. So is whether the other member's gate comes before every agent.
    pub async fn a_member_was_fenced(&self, stack: &Stack) -> anyhow::Result<()> {
        if self.fences().is_empty() { self.audited(stack, |_| true).await } else { Ok(()) }
    }

    /// Waits until the audit trail shows that one of these rules stopped the old leader. A process of its own writes
    /// down the gate's fences.
    pub async fn audited(&self, stack: &Stack, wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let member = &self.leader.member;
        let done = wait::until("the audit trail has the fence", Duration::from_secs(60), || async {
            let audited = fences::audited(stack, member, self.struck_at).await?;
            ensure!(audited.iter().any(|rule| wanted(rule)), "it has {audited:?} of {member}");
            Ok(())
        });
        if let Err(error) = done.await {
            let terms = history::leader_terms(stack.zookeepers().first().context("no ZooKeeper")?).await?;
            let said: Vec<_> =
                self.lines.iter().filter(|line| line.event().is_some_and(|event| event.contains("fence"))).collect();
            bail!("{error:#}; struck at {:?}; terms: {terms:#?}; the agents logged: {said:#?}", self.struck_at);
        }
        Ok(())
    }

    /// How the agent beside the old leader stopped it (the field `by`), and when. Fails if that agent did not.
    pub fn fenced_how(&self) -> anyhow::Result<(&str, SystemTime)> {
        let agent = format!("warden-{}", self.leader.service);
        let mut fences = self.fences().into_iter();
        // Only the first fence stops a server that takes writes.
        let fence = fences.find(|fence| fence.service == agent && fence.field("member") == Some(&self.leader.member));
        let fence = fence.with_context(|| format!("{agent} fenced no server: {:?}", self.fences()))?;
        Ok((fence.field("by").context("it does not say how")?, fence.at))
    }

    /// Fails if an agent fenced a member.
    pub fn no_member_was_fenced(&self) -> anyhow::Result<()> {
        let fences = self.fences();
        kept(fences.is_empty(), || format!("a member was fenced: {fences:#?}"))
    }
}

/// A stack under observation: writers write, agents are asked, and logs are noted. It starts before a fault and ends
/// when the fault is healed.
pub struct Observed {
    since: SystemTime,
    writers: Writers,
    watching: Watching,
}

impl Observed {
    /// Starts the observation.
    pub async fn start(stack: &Stack, commit: Commit) -> anyhow::Result<Self> {
        Self::start_on(stack, commit, &Route::ALL).await
    }

    /// The same with writers on these routes, and not only on those of every stack.
    pub async fn start_on(stack: &Stack, commit: Commit, routes: &[Route]) -> anyhow::Result<Self> {
        let writers = Writers::start_on(stack, commit, routes).await?;
        // The observation begins after the writers do, so that a fault never falls between the two.
        Ok(Self { since: SystemTime::now(), writers, watching: Watching::start(stack) })
    }

    /// The writers at work.
    pub const fn writers(&self) -> &Writers {
        &self.writers
    }

    /// Waits until all is well again. Fails if an agent claimed something verified that was not true, if a leader was
    /// fenced, or if a fence is not closed. The caller judges the report.
    pub async fn end(self, stack: &Stack) -> anyhow::Result<Observation> {
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
        let lines = agent_log::lines_since(stack, since).await?;
        fences::none_of_a_leader(stack, &lines).await?;
        Ok(Observation { led, report, lines, samples })
    }
}

/// All observations from the start until all was well again.
#[derive(Debug)]
pub struct Observation {
    /// The member that leads in the end.
    pub led: String,
    /// The clients' rows, failures and outages.
    pub report: Report,
    /// The lines of the agents' logs.
    pub lines: Vec<Line>,
    /// The agents' answers.
    pub samples: Vec<Sample>,
}

/// Causes `fault` at the leader of `stack` while writers write. Heals it, also if no member takes over, and waits until
/// all is well.
pub async fn run(stack: &Stack, fault: Fault, commit: Commit) -> anyhow::Result<Outcome> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, commit).await?;
    // Each route has some rows by then.
    sleep(Duration::from_secs(2)).await;
    let outcome = with(stack, fault, leader, observed).await?;
    eprintln!("      {fault}: {}", outcome.report);
    Ok(outcome)
}

/// The same with writers that already write.
pub async fn with(stack: &Stack, fault: Fault, leader: Leader, observed: Observed) -> anyhow::Result<Outcome> {
    with_healing_after(stack, fault, leader, observed, sleep(fault.lingers())).await
}

/// The same. The fault is healed when the other member has taken over (where it should) and `lingers` is over.
pub async fn with_healing_after(
    stack: &Stack,
    fault: Fault,
    leader: Leader,
    observed: Observed,
    lingers: impl Future<Output = ()>,
) -> anyhow::Result<Outcome> {
    let (struck, struck_at) = (Instant::now(), SystemTime::now());
    strike_and_heal(stack, fault, &leader, lingers).await?;
    let healed = Instant::now();
    let Observation { led, report, lines, samples } = observed.end(stack).await?;
    Ok(Outcome { leader, led, struck, struck_at, healed, report, lines, samples })
}

/// Causes `fault` at the leader, waits until the other member has taken over (where it should), and then for `lingers`.
/// Then heals it, also if no member has taken over.
pub async fn strike_and_heal(
    stack: &Stack,
    fault: Fault,
    leader: &Leader,
    lingers: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let strike = async {
        fault.strike(stack, leader).await.with_context(|| format!("{fault} could not be done"))?;
        if fault.replaces() { leader.replaced(stack).await } else { Ok(()) }
    };
    let heal = async {
        lingers.await;
        fault.heal(stack, leader).await.with_context(|| format!("{fault} could not be healed"))
    };
    undone_by(strike, heal).await
}

/// Sets the cluster's mode, and waits until the standby has the role of that mode.
pub async fn synchronous(stack: &Stack, on: bool) -> anyhow::Result<()> {
    stack.configure("synchronous_mode", if on { "true" } else { "false" }).await?;
    wait::until("the standby has its role", truth::SETTLE, || async {
        let state = stack.status("warden-haproxy", &[]).await?;
        let members = state["members"].as_array().context("no members[]")?;
        let wanted = if on { "sync_standby" } else { "replica" };
        ensure!(members.iter().any(|member| member["role"] == wanted), "no member is {wanted}: {}", state["members"]);
        Ok(())
    })
    .await
}
