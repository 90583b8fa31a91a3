//! Deletes the leader key of the local member after proof that its Patroni and PostgreSQL are gone.

pub mod proof;

use super::entries::release_entry;
use super::records::Records;
use crate::client::zookeeper::{ExpectedKey, Handle as ZooKeeper, Released};
use crate::events::Events;
use jiff::Timestamp;
use proof::Proof;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;
use warden_core::event::{Event, FenceRecord, ReleaseReport, Report, Rule};
use warden_core::plan::Step;
use warden_core::rules::guard::KeyCondition;
use warden_core::rules::release::Release;
use warden_core::types::UnixMillis;

/// The time limit of the barrier read, and of the deletion.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// A proof is valid for this long: a few round trips to ZooKeeper. A Patroni that starts meanwhile takes longer to
/// create a leader key of its own.
const PROOF_LIFETIME: Duration = Duration::from_millis(500);

/// The actor's dependencies.
pub struct Releaser {
    /// For the barrier read and the deletion.
    pub zookeeper: ZooKeeper,
    /// For the proof right before the deletion.
    pub proof: Proof,
    /// For the fence record of a crashed leader, and the audit trail.
    pub records: Records,
    /// For the reports to the loop.
    pub events: Events,
    /// This agent's name, for the fence record.
    pub agent: String,
}

/// Carries out steps, one after the other, until the loop ends.
pub async fn run(steps: &mut mpsc::Receiver<Step<Box<Release>>>, releaser: &Releaser) -> anyhow::Result<()> {
    // The last entry of the audit trail. A release that the agent repeats is one entry.
    let mut last_entry: Option<(KeyCondition, String)> = None;
    while let Some(Step { action: release, reason: _ }) = steps.recv().await {
        let report = releaser.release(&release).await;
        releaser.audit(&release, &report, &mut last_entry);
        releaser.events.send(releaser.events.clock.now(), Event::Report(Report::Release(report))).await?;
    }
    Ok(())
}

impl Releaser {
    /// Adds the outcome of a release to the audit trail, unless the last entry is the same.
    fn audit(&self, release: &Release, report: &ReleaseReport, last_entry: &mut Option<(KeyCondition, String)>) {
        let outcome = match report {
            ReleaseReport::Done { took } => format!("done: after {} ms", took.as_millis()),
            ReleaseReport::Withdrawn(why) => format!("withdrawn: {why}"),
            ReleaseReport::Failed(why) => format!("failed: {why}"),
            ReleaseReport::Observed => "observed".to_owned(),
        };
        let entry = Some((release.condition.clone(), outcome.clone()));
        if *last_entry != entry {
            self.records.audit(release_entry(&self.agent, release, outcome).write());
            *last_entry = entry;
        }
    }

    /// Proves that the member is gone, writes the fence record, and deletes the leader key.
    ///
    /// The candidate's gate reads the record after the key is gone, so the agent writes the record first.
    async fn release(&self, release: &Release) -> ReleaseReport {
        let asked = Instant::now();
        let member = release.member.as_str();
        let reason = release.reason.as_str();
        let withdrawn = |why: String| {
            tracing::warn!(event = "release_withdrawn", member, reason, why, "leader key not released");
            ReleaseReport::Withdrawn(why)
        };
        let holds = match self.prove(release).await {
            Ok(holds) => holds,
            Err(why) => return withdrawn(why),
        };
        let record = self.record(release);
        let written = timeout(PROOF_LIFETIME, self.records.put_now(&self.zookeeper, record.clone())).await;
        if let Err(why) = written.unwrap_or_else(|_| Err("ZooKeeper did not answer in time".to_owned())) {
            tracing::warn!(
                event = "release_failed",
                member,
                why,
                "the agent could not write the fence record and does not release the leader key"
            );
            self.records.remove(release.member.clone());
            return ReleaseReport::Failed(why);
        }
        match self.zookeeper.release(holds, REQUEST_LIMIT).await {
            Released::Done => {
                let took = asked.elapsed();
                let took_ms = took.as_millis();
                tracing::warn!(event = "leader_key_released", member, reason, took_ms, "leader key released");
                // The record has to be newer than every read that shows the key as the member's own. No later read
                // does, so the agent writes the record again.
                self.records.put(record);
                ReleaseReport::Done { took }
            }
            Released::Changed(why) => {
                // The condition changed, so the record may be wrong.
                self.records.remove(release.member.clone());
                withdrawn(why)
            }
            Released::Failed(why) => {
                tracing::error!(event = "release_failed", member, why, "the agent could not release the leader key");
                ReleaseReport::Failed(why)
            }
        }
    }

    /// Proves that the member is gone.
    ///
    /// For a handover the control file and the socket come first. The barrier read follows. It may take long, so the
    /// last look comes after it: the socket, and after a crash the alive lock.
    async fn prove(&self, release: &Release) -> Result<ExpectedKey, String> {
        let crashed = release.handover_to.is_none();
        if !crashed {
            self.proof.shut_down_with(release.shut_down_with).await?;
            self.proof.gone(false).await?;
        }
        let read = self.zookeeper.barrier(REQUEST_LIMIT).await;
        release.condition.check(&read)?;
        let looked = Instant::now();
        self.proof.gone(crashed).await?;
        ExpectedKey::of(&release.condition, looked + PROOF_LIFETIME)
    }

    fn record(&self, release: &Release) -> FenceRecord {
        let now = UnixMillis(Timestamp::now().as_millisecond());
        FenceRecord {
            member: release.member.clone(),
            rule: Rule::Crashed,
            reason: release.reason.clone(),
            by: self.agent.clone(),
            ordered: now,
            confirmed: Some(now),
            facts: release.facts.clone(),
            written: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warden_core::rules::guard::KeyIs;
    use warden_core::types::{SessionId, Zxid};

    fn release() -> Release {
        let key = KeyIs::TheOneOf { member: "a".into(), czxid: Zxid(7), owner: SessionId(8) };
        Release {
            member: "a".into(),
            condition: KeyCondition { session: SessionId(9), key, sync: None },
            reason: "it is gone".to_owned(),
            handover_to: None,
            shut_down_with: None,
            facts: Vec::new(),
        }
    }

    fn releaser() -> (Releaser, mpsc::Receiver<warden_core::event::Observed>) {
        let (sender, reports) = mpsc::channel(8);
        let events = Events::new(sender, crate::clock::Clock::start());
        let releaser = Releaser {
            zookeeper: ZooKeeper::nowhere(),
            proof: Proof {
                socket: None,
                beside: None,
                alive_lock: None,
                last_locked: crate::client::alive_lock::LockedFile::default(),
            },
            records: Records::default(),
            events,
            agent: "a".to_owned(),
        };
        (releaser, reports)
    }

    #[tokio::test]
    async fn without_a_linearizable_read_no_key_is_released() {
        let (releaser, _events) = releaser();
        let ReleaseReport::Withdrawn(why) = releaser.release(&release()).await else { panic!() };
        assert!(why.contains("cannot be verified"), "{why}");
        let handover = Release { handover_to: Some("b".into()), ..release() };
        let ReleaseReport::Withdrawn(why) = releaser.release(&handover).await else { panic!() };
        assert!(why.contains("socket"), "the agent looks at the server before it asks ZooKeeper: {why}");
    }
}
