//! Releases the leader key of a dead neighbour, wakes a living one, has the local standby try again to stream, and asks
//! the local PostgreSQL out of turn.

use super::proof::Proof;
use super::records::Records;
use super::unpaused;
use crate::audit::Entry;
use crate::config::Superuser;
use crate::tell::metrics::Metrics;
use crate::watch::Events;
use crate::watch::members::Probes;
use crate::watch::patroni::PatroniClient;
use crate::watch::postgres::{self, Place};
use crate::watch::root_cause;
use crate::watch::zookeeper::{Barrier, Handle as ZooKeeper, Holds, Released};
use jiff::Timestamp;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;
use warden_core::event::{Event, FenceRecord, ReleaseReport, Rule};
use warden_core::leadership::EPISODE;
use warden_core::plan::{Action, Step};
use warden_core::rules::release::Release;
use warden_core::types::{UnixMillis, Zxid};

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
    /// It is only said what would be done.
    pub observe: bool,
    /// For what would have been done.
    pub metrics: Metrics,
}

/// Carries out steps, one after the other, until the loop is gone.
pub async fn run(steps: &mut mpsc::Receiver<Step>, lead: &Lead) -> anyhow::Result<()> {
    // What was last said of a release, and when last of a nudge that would have been made: once for each key and
    // outcome, and once for each episode.
    let mut said: Option<(Zxid, String)> = None;
    let mut nudged: Option<Instant> = None;
    let mut reconnected: Option<Instant> = None;
    while let Some(Step { action, reason }) = steps.recv().await {
        match action {
            Action::Probe { others } => {
                lead.probes.own.notify_one();
                if others {
                    // Whoever is being asked at this moment will tell soon enough.
                    lead.probes.others.notify_waiters();
                }
            }
            Action::Release(release) if lead.observe => {
                let news = Some((release.czxid, release.reason.clone()));
                if said != news {
                    let (member, reason) = (release.member.as_str(), release.reason.as_str());
                    tracing::warn!(member, reason, "the leader key would be released (fencing.mode is observe)");
                    lead.metrics.count_observed_release();
                    let entry = Entry { outcome: "observed".to_owned(), ..lead.entry(&release) };
                    lead.records.audit(entry.write());
                    said = news;
                }
            }
            Action::Nudge if lead.observe => {
                if nudged.is_none_or(|at: Instant| at.elapsed() >= EPISODE) {
                    tracing::warn!(reason, "Patroni would be nudged (fencing.mode is observe)");
                    lead.metrics.count_observed_nudge();
                }
                nudged = Some(Instant::now());
            }
            Action::Release(release) => {
                let report = lead.release(&release).await;
                let outcome = match &report {
                    ReleaseReport::Done { took } => format!("done: after {} ms", took.as_millis()),
                    ReleaseReport::Withdrawn(why) => format!("withdrawn: {why}"),
                    ReleaseReport::Failed(why) => format!("failed: {why}"),
                };
                // One that is tried again and again is one entry, until something else comes of it.
                let news = Some((release.czxid, outcome.clone()));
                if said != news {
                    lead.records.audit(Entry { outcome, ..lead.entry(&release) }.write());
                    said = news;
                }
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
            Action::Reconnect if lead.observe => {
                if reconnected.is_none_or(|at: Instant| at.elapsed() >= EPISODE) {
                    tracing::warn!(reason, "the standby would be told to try again (fencing.mode is observe)");
                    lead.metrics.count_observed_reconnect();
                }
                reconnected = Some(Instant::now());
            }
            Action::Reconnect => {
                let outcome = timeout(RELOAD, lead.reconnect()).await;
                let outcome = outcome.unwrap_or_else(|_| Err("no answer within 1 s".to_owned()));
                match &outcome {
                    Ok(true) => tracing::info!(reason, "standby told to try again to stream"),
                    Ok(false) => tracing::debug!(reason, "the standby has tried again by itself"),
                    Err(why) => tracing::warn!(reason, why, "the standby could not be told to try again to stream"),
                }
                // Whether it streams then.
                lead.probes.own.notify_one();
                let outcome = outcome.map(drop);
                lead.events.send(lead.events.clock.now(), Event::Reconnected { outcome }).await?;
            }
            // `Actors::hand_over` sends nothing else here.
            other => tracing::error!(action = ?other, "this actor does not do such things"),
        }
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

    /// In this order: a barrier read; behind it, because it may have taken its time, a look at the world; the record;
    /// the key.
    async fn release(&self, release: &Release) -> ReleaseReport {
        let asked = Instant::now();
        let member = release.member.as_str();
        let (czxid, reason) = (format!("{:#x}", release.czxid.0), release.reason.as_str());
        let withdrawn = |why: String| {
            tracing::warn!(member, czxid, reason, why, "leader key not released");
            ReleaseReport::Withdrawn(why)
        };
        let session = match still_held(release, self.zookeeper.barrier(BARRIER).await) {
            Ok(session) => session,
            Err(why) => return withdrawn(why),
        };
        let looked = Instant::now();
        if let Err(why) = self.proof.gone(release.handover_to.is_none()).await {
            return withdrawn(why);
        }
        if let Err(why) = self.proof.shut_down_with(release.shut_down_with).await {
            return withdrawn(why);
        }
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
            written: None,
        };
        let written = timeout(PROVED, self.records.put_now(&self.zookeeper, record)).await;
        if let Err(why) = written.unwrap_or_else(|_| Err("ZooKeeper is too slow".to_owned())) {
            tracing::warn!(member, why, "the fence record could not be written; the key is not released");
            self.records.remove(release.member.clone());
            return ReleaseReport::Failed(why);
        }
        let holds = Holds {
            holder: release.member.to_string(),
            czxid: release.czxid.0,
            owner: release.owner.0,
            session,
            not_after: looked + PROVED,
        };
        match self.zookeeper.release(holds, BARRIER).await {
            Released::Done => {
                let took = asked.elapsed();
                tracing::warn!(member, czxid, reason, took_ms = took.as_millis(), "leader key released");
                ReleaseReport::Done { took }
            }
            Released::Changed(why) => {
                // What it says was so, but may not be any more.
                self.records.remove(release.member.clone());
                withdrawn(why)
            }
            Released::Failed(why) => {
                tracing::error!(member, czxid, why, "the leader key could not be released");
                ReleaseReport::Failed(why)
            }
        }
    }
}

/// The session in which a barrier read says that the key is still the one to be released, and that the cluster is not
/// paused. The error says what it is instead.
fn still_held(release: &Release, read: Barrier) -> Result<i64, String> {
    let (leader, session) = unpaused(read)?;
    let Some(found) = leader else { return Err("nobody holds the leader key".to_owned()) };
    let same = found.data == release.member.as_str().as_bytes()
        && (found.czxid, found.owner) == (release.czxid.0, release.owner.0);
    same.then_some(session).ok_or_else(|| {
        let holder = String::from_utf8_lossy(&found.data).into_owned();
        format!("{holder} holds the leader key, with czxid {:#x}", found.czxid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::zookeeper::Znode;
    use warden_core::types::SessionId;

    fn znode(data: &str, czxid: i64, owner: i64) -> Option<Znode> {
        let data = data.as_bytes().to_vec();
        Some(Znode { data, czxid, mzxid: czxid, version: 0, owner, ctime_ms: 0, mtime_ms: 0 })
    }

    fn release() -> Release {
        Release {
            member: "a".into(),
            czxid: Zxid(7),
            owner: SessionId(8),
            reason: "it is gone".to_owned(),
            handover_to: None,
            shut_down_with: None,
            facts: Vec::new(),
        }
    }

    #[tokio::test]
    async fn where_it_is_only_observed_the_key_is_not_even_looked_at_and_it_is_said_once() {
        let (sender, mut events) = mpsc::channel(8);
        let (updates, _) = mpsc::channel(8);
        let (steps_in, mut steps) = mpsc::channel(8);
        let settings = crate::watch::zookeeper::Settings::nowhere();
        let clock = crate::clock::Clock::start();
        let metrics = Metrics::new().unwrap();
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
            events: Events::new(sender, clock),
            agent: "a".to_owned(),
            observe: true,
            metrics: metrics.clone(),
        };
        for action in [Action::Release(Box::new(release())), Action::Release(Box::new(release())), Action::Nudge] {
            steps_in.send(Step { action, reason: String::new() }).await.unwrap();
        }
        drop(steps_in);
        run(&mut steps, &lead).await.unwrap();
        assert!(events.try_recv().is_err(), "nothing came of it, because nothing was done");
        let view = warden_core::view::View::new(crate::tell::fixtures::identity(&["node"]));
        let text = String::from_utf8(metrics.render(&view, clock.now()).unwrap()).unwrap();
        for line in ["warden_releases_total{outcome=\"observed\"} 1", "warden_nudges_total{outcome=\"observed\"} 1"] {
            assert!(text.contains(line), "{line} is not in {text}");
        }
    }

    fn verdict(leader: Option<Znode>, config: Option<Znode>) -> Result<i64, String> {
        let now = Instant::now();
        still_held(
            &release(),
            Barrier::Verified { leader, config, sync: None, zxid: 1, session: 9, started: now, finished: now },
        )
    }

    #[test]
    fn only_the_very_key_that_was_judged_is_released_and_never_in_maintenance_mode() {
        let config = || znode("{}", 1, 0);
        assert_eq!(verdict(znode("a", 7, 8), config()), Ok(9));
        // Created anew by the same member, by another session, another's, gone.
        for leader in [znode("a", 17, 8), znode("a", 7, 18), znode("b", 7, 8), None] {
            assert!(verdict(leader.clone(), config()).is_err(), "{leader:?}");
        }
        for config in [znode(r#"{"pause": true}"#, 1, 0), znode("{", 1, 0), None] {
            assert!(verdict(znode("a", 7, 8), config.clone()).is_err(), "{config:?}");
        }
    }
}
