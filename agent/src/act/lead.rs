//! Releases the leader key of a dead neighbour, wakes a living one, has the local standby try again to stream, and asks
//! the local PostgreSQL out of turn.

use super::proof::Proof;
use super::records::Records;
use crate::audit::Entry;
use crate::config::Superuser;
use crate::watch::Events;
use crate::watch::members::Probes;
use crate::watch::patroni::PatroniClient;
use crate::watch::postgres::{self, Place};
use crate::watch::root_cause;
use crate::watch::znodes;
use crate::watch::zookeeper::{Handle as ZooKeeper, Holds, Released};
use jiff::Timestamp;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;
use warden_core::event::{Event, FenceRecord, Outcome, ReleaseReport, Rule};
use warden_core::plan::{Action, Step};
use warden_core::rules::guard::{KeyCondition, KeyIs};
use warden_core::rules::release::Release;
use warden_core::types::UnixMillis;

/// How long the barrier read may take, and the deletion.
const BARRIER: Duration = Duration::from_secs(2);

/// What was looked at is good for this long: a few round trips to ZooKeeper. A Patroni that is started meanwhile takes
/// longer to create a key of its own.
const PROVED: Duration = Duration::from_millis(500);

/// How long telling the local standby may take, with the login.
const RELOAD: Duration = Duration::from_secs(1);

/// Ends the pause of a standby that waits for its next attempt to connect; looks right before whether there is one to end.
const TRY_AGAIN: &str = "SELECT pg_catalog.pg_reload_conf() \
    WHERE pg_catalog.pg_is_in_recovery() AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver)";

/// What the actor needs.
pub struct Lead {
    /// For the release.
    pub zookeeper: ZooKeeper,
    /// For the look right before acting.
    pub proof: Proof,
    /// For the record of a crashed leader.
    pub records: Records,
    /// For the nudge.
    pub client: PatroniClient,
    /// Where the local Patroni answers.
    pub api: Option<String>,
    /// Where the local PostgreSQL is, and how to log in.
    pub local: Option<(Place, Superuser)>,
    /// Asks PostgreSQL out of turn.
    pub probes: Probes,
    /// For what came of it.
    pub events: Events,
    /// Our own name, for the record.
    pub agent: String,
}

/// Carries out steps, one after the other, until the loop is gone.
pub async fn run(steps: &mut mpsc::Receiver<Step>, lead: &Lead) -> anyhow::Result<()> {
    // The entry of the audit trail that was written last for a release: one that is tried again and again is one entry.
    let mut said: Option<(KeyCondition, String)> = None;
    while let Some(Step { action, reason }) = steps.recv().await {
        let event = match action {
            Action::Probe { others } => {
                lead.probes.own.notify_one();
                if others {
                    // A member that is being asked at this moment tells soon enough.
                    lead.probes.others.notify_waiters();
                }
                continue;
            }
            Action::Release(release) => {
                let report = lead.release(&release).await;
                lead.audit(&release, &report, &mut said);
                Event::Release(report)
            }
            Action::ObserveRelease(release) => {
                let member = release.member.as_str();
                tracing::warn!(member, reason, "the leader key would be released (fencing.mode is observe)");
                lead.audit(&release, &ReleaseReport::Observed, &mut said);
                Event::Release(ReleaseReport::Observed)
            }
            Action::Nudge => Event::Nudged { outcome: lead.nudge(&reason).await },
            Action::ObserveNudge => {
                tracing::warn!(reason, "Patroni would be nudged (fencing.mode is observe)");
                Event::Nudged { outcome: Outcome::Observed }
            }
            Action::Reconnect => {
                let outcome = lead.tell_to_reconnect(&reason).await;
                // Whether it streams then.
                lead.probes.own.notify_one();
                Event::Reconnected { outcome }
            }
            Action::ObserveReconnect => {
                tracing::warn!(reason, "the standby would be told to try again (fencing.mode is observe)");
                Event::Reconnected { outcome: Outcome::Observed }
            }
            // `Actors::hand_over` sends nothing else here.
            other => {
                tracing::error!(action = ?other, "this actor does not do such things");
                continue;
            }
        };
        lead.events.send(lead.events.clock.now(), event).await?;
    }
    Ok(())
}

impl Lead {
    /// The entry of the audit trail for a release.
    fn entry(&self, release: &Release) -> Entry {
        let action = if release.handover_to.is_some() { "handover" } else { "release" };
        Entry {
            rule: Some(action.to_owned()),
            facts: release.facts.iter().cloned().collect(),
            ..Entry::new(&self.agent, action, release.member.as_str(), &release.reason)
        }
    }

    /// Whether the local standby was told to try again: not where it has by itself.
    async fn reconnect(&self) -> Result<bool, String> {
        let (place, login) = self.local.as_ref().ok_or("there is no local PostgreSQL")?;
        let session = postgres::connect(&postgres::client_config(place, login), place.sslmode(login)).await;
        let (client, driver) = session.map_err(|error| root_cause(&error))?;
        tokio::select! {
            told = client.simple_query(TRY_AGAIN) => {
                let told = told.map_err(|error| root_cause(&error))?;
                Ok(told.iter().any(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_))))
            }
            () = driver => Err("the session ended".to_owned()),
        }
    }

    /// Adds what became of a release to the audit trail, unless it is the same as before.
    fn audit(&self, release: &Release, report: &ReleaseReport, said: &mut Option<(KeyCondition, String)>) {
        let outcome = match report {
            ReleaseReport::Done { took } => format!("done: after {} ms", took.as_millis()),
            ReleaseReport::Withdrawn(why) => format!("withdrawn: {why}"),
            ReleaseReport::Failed(why) => format!("failed: {why}"),
            ReleaseReport::Observed => "observed".to_owned(),
        };
        let news = Some((release.condition.clone(), outcome.clone()));
        if *said != news {
            self.records.audit(Entry { outcome, ..self.entry(release) }.write());
            *said = news;
        }
    }

    async fn nudge(&self, reason: &str) -> Outcome {
        let nudged = match &self.api {
            Some(api) => self.client.nudge(api).await,
            None => Err("there is no local Patroni".to_owned()),
        };
        match nudged {
            Ok(()) => {
                tracing::info!(reason, "Patroni nudged");
                Outcome::Done
            }
            Err(why) => {
                tracing::warn!(reason, why, "Patroni could not be nudged");
                Outcome::Failed(why)
            }
        }
    }

    async fn tell_to_reconnect(&self, reason: &str) -> Outcome {
        let told = timeout(RELOAD, self.reconnect()).await.unwrap_or_else(|_| Err("no answer within 1 s".to_owned()));
        match told {
            Ok(true) => tracing::info!(reason, "standby told to try again to stream"),
            Ok(false) => tracing::debug!(reason, "the standby has tried again by itself"),
            Err(why) => {
                tracing::warn!(reason, why, "the standby could not be told to try again to stream");
                return Outcome::Failed(why);
            }
        }
        Outcome::Done
    }

    /// Looks, reads behind a barrier, looks again, writes the record, deletes the key.
    ///
    /// The last look comes behind the barrier, which may have taken its time. The record is read by the candidate's gate,
    /// so it is there before the key is not.
    async fn release(&self, release: &Release) -> ReleaseReport {
        let asked = Instant::now();
        let member = release.member.as_str();
        let reason = release.reason.as_str();
        let withdrawn = |why: String| {
            tracing::warn!(member, reason, why, "leader key not released");
            ReleaseReport::Withdrawn(why)
        };
        let holds = match self.proved(release).await {
            Ok(proved) => proved,
            Err(why) => return withdrawn(why),
        };
        let record = self.record(release);
        let written = timeout(PROVED, self.records.put_now(&self.zookeeper, record.clone())).await;
        if let Err(why) = written.unwrap_or_else(|_| Err("ZooKeeper is too slow".to_owned())) {
            tracing::warn!(member, why, "the fence record could not be written; the key is not released");
            self.records.remove(release.member.clone());
            return ReleaseReport::Failed(why);
        }
        match self.zookeeper.release(holds, BARRIER).await {
            Released::Done => {
                let took = asked.elapsed();
                tracing::warn!(member, reason, took_ms = took.as_millis(), "leader key released");
                // Once more, now that no read can show the key as its own any more: a record counts if it is later than
                // each of those.
                self.records.put(record);
                ReleaseReport::Done { took }
            }
            Released::Changed(why) => {
                // What it says was so, but may not be any more.
                self.records.remove(release.member.clone());
                withdrawn(why)
            }
            Released::Failed(why) => {
                tracing::error!(member, why, "the leader key could not be released");
                ReleaseReport::Failed(why)
            }
        }
    }

    /// What a release stands on, in this order: the control file and the socket of a server that was shut down; the barrier;
    /// socket and alive lock.
    async fn proved(&self, release: &Release) -> Result<Holds, String> {
        let crashed = release.handover_to.is_none();
        if !crashed {
            self.proof.shut_down_with(release.shut_down_with).await?;
            self.proof.gone(false).await?;
        }
        let read = znodes::read(self.zookeeper.barrier(BARRIER).await, &self.events.clock);
        release.condition.check(&read)?;
        let looked = Instant::now();
        self.proof.gone(crashed).await?;
        let KeyIs::TheOneOf { member, czxid, owner } = &release.condition.key else {
            return Err("it names no key".to_owned());
        };
        let session = release.condition.session.0;
        Ok(Holds { holder: member.to_string(), czxid: czxid.0, owner: owner.0, session, not_after: looked + PROVED })
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

    fn lead() -> (Lead, mpsc::Receiver<warden_core::event::Observed>) {
        let (sender, events) = mpsc::channel(8);
        let (updates, _) = mpsc::channel(8);
        let settings = crate::watch::zookeeper::Settings::nowhere();
        let lead = Lead {
            zookeeper: crate::watch::zookeeper::spawn(settings, updates),
            proof: Proof {
                socket: None,
                beside: None,
                alive_lock: None,
                held: crate::watch::alive_lock::Held::default(),
            },
            records: Records::default(),
            client: PatroniClient::new(&crate::config::PatroniConfig::default(), "s").unwrap(),
            api: None,
            local: None,
            probes: Probes::default(),
            events: Events::new(sender, crate::clock::Clock::start()),
            agent: "a".to_owned(),
        };
        (lead, events)
    }

    #[tokio::test]
    async fn what_is_only_observed_is_an_event_like_any_other_and_nothing_is_looked_at() {
        let (lead, mut events) = lead();
        let (steps_in, mut steps) = mpsc::channel(8);
        let observed = [Action::ObserveRelease(Box::new(release())), Action::ObserveNudge, Action::ObserveReconnect];
        for action in observed {
            steps_in.send(Step { action, reason: String::new() }).await.unwrap();
        }
        drop(steps_in);
        run(&mut steps, &lead).await.unwrap();
        let mut heard = Vec::new();
        while let Ok(observed) = events.try_recv() {
            heard.push(observed.event);
        }
        let expected = [
            Event::Release(ReleaseReport::Observed),
            Event::Nudged { outcome: Outcome::Observed },
            Event::Reconnected { outcome: Outcome::Observed },
        ];
        assert_eq!(heard, expected);
    }

    #[tokio::test]
    async fn without_a_linearizable_read_no_key_is_released() {
        let (lead, _events) = lead();
        let ReleaseReport::Withdrawn(why) = lead.release(&release()).await else { panic!() };
        assert!(why.contains("cannot be verified"), "{why}");
        let handover = Release { handover_to: Some("b".into()), ..release() };
        let ReleaseReport::Withdrawn(why) = lead.release(&handover).await else { panic!() };
        assert!(why.contains("socket"), "the server is looked at before ZooKeeper is asked: {why}");
    }
}
