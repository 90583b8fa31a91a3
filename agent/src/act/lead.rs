//! Releases the leader key of a dead neighbour, wakes a living one, and asks the local PostgreSQL out of turn.

use crate::fence_record;
use crate::watch::Events;
use crate::watch::patroni::PatroniClient;
use crate::watch::zookeeper::{Handle as ZooKeeper, Holds, Released};
use jiff::Timestamp;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use warden_core::decide::{Action, Step};
use warden_core::event::{Event, FenceRecord, ReleaseReport, Rule};
use warden_core::release::Release;
use warden_core::types::UnixMillis;

/// A release is three round trips to ZooKeeper: whatever takes this long is in trouble.
const RELEASE: Duration = Duration::from_secs(2);

/// What the actor needs.
pub struct Lead {
    /// For the release.
    pub zookeeper: ZooKeeper,
    /// For the nudge.
    pub client: PatroniClient,
    /// Where the local Patroni answers.
    pub api: Option<String>,
    /// Asks the local PostgreSQL out of turn.
    pub probe: Arc<Notify>,
    /// For what came of it.
    pub events: Events,
    /// Our own name, for the record.
    pub agent: String,
}

/// Carries out steps, one after the other, until the loop is gone.
pub async fn run(steps: &mut mpsc::Receiver<Step>, lead: &Lead) -> anyhow::Result<()> {
    while let Some(Step { action, reason }) = steps.recv().await {
        match action {
            Action::Probe => lead.probe.notify_one(),
            Action::Release(release) => {
                let report = lead.release(&release).await;
                lead.events.send(lead.events.clock.now(), Event::Release(report)).await?;
            }
            Action::Nudge => {
                let outcome = match &lead.api {
                    Some(api) => lead.client.nudge(api).await,
                    None => Err("there is no local Patroni".to_owned()),
                };
                match &outcome {
                    Ok(()) => tracing::info!(reason, "Patroni nudged"),
                    Err(why) => tracing::warn!(reason, why, "Patroni could not be nudged"),
                }
                lead.events.send(lead.events.clock.now(), Event::Nudged { outcome }).await?;
            }
            // `Actors::hand_over` sends nothing else here.
            other => tracing::error!(action = ?other, "this actor does not do such things"),
        }
    }
    Ok(())
}

impl Lead {
    async fn release(&self, release: &Release) -> ReleaseReport {
        let asked = Instant::now();
        let holds = Holds { holder: release.member.to_string(), czxid: release.czxid.0, owner: release.owner.0 };
        // The record is read by the candidate's gate, so it is there before the key is not.
        let now = UnixMillis(Timestamp::now().as_millisecond());
        let record = FenceRecord {
            member: release.member.clone(),
            rule: Rule::Crashed,
            reason: release.reason.clone(),
            by: self.agent.clone(),
            ordered: now,
            confirmed: Some(now),
            facts: release.facts.clone(),
        };
        let written = self.zookeeper.fence_record(release.member.as_str(), Some(fence_record::write(&record)), RELEASE);
        if let Err(why) = written.await {
            tracing::warn!(why, "the fence record could not be written; the key is not released");
            return ReleaseReport::Failed(why);
        }
        let member = release.member.as_str();
        let (czxid, reason) = (format!("{:#x}", release.czxid.0), release.reason.as_str());
        match self.zookeeper.release(holds, RELEASE).await {
            Released::Done => {
                let took = asked.elapsed();
                tracing::warn!(member, czxid, reason, took_ms = took.as_millis(), "leader key released");
                ReleaseReport::Done { took }
            }
            Released::Changed(why) => {
                tracing::warn!(member, czxid, why, "leader key not released: it is not what it was");
                ReleaseReport::Withdrawn(why)
            }
            Released::Failed(why) => {
                tracing::error!(member, czxid, why, "the leader key could not be released");
                ReleaseReport::Failed(why)
            }
        }
    }
}
