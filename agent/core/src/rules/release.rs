//! The release: when the agent deletes the leader key before its session expires. Its owner is proved dead, or its
//! server is proved down in a switchover.
//!
//! This is Warden's only change in Patroni's tree. It needs proofs: the alive lock, a unix socket without a listener,
//! the control file of a server that was shut down. A timeout, an unreachable host and an unresolved name prove
//! nothing.

use crate::event::{AliveLock, PostgresAnswer, Rule, ShutdownCheckpoint, SyncState};
use crate::evidence::{can_be_promoted, lock_proves_death, verified};
use crate::fact::Reading;
use crate::leadership::LeaderTerm;
use crate::limits::PROBE_LIMIT;
use crate::rules::guard::{KeyCondition, KeyIs, SyncNames};
use crate::types::{Lsn, MemberName, Moment, SessionId, seconds};
use crate::view::View;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::{format, vec, vec::Vec};
use core::time::Duration;

/// The operator's policy of releases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleasePolicy {
    /// Release a crashed leader's key.
    pub enabled: bool,
    /// Release also if no synchronous standby can take over: acknowledged rows may be lost. The key stays for this
    /// time, so that the old node can come back. `None`: never.
    pub asynchronous: Option<Duration>,
    /// In a switchover, release the key once the old server is down.
    pub handover: bool,
    /// The shortest time between the two looks that prove a crashed leader's socket without a listener.
    pub after: Duration,
    /// Patroni is process 1 of a container, so the kernel ends its backends with it. Otherwise the release checks right
    /// before it acts that no backend is left.
    pub patroni_is_pid_1: bool,
}

/// An order to release the leader key now.
///
/// Right before it acts, the actor checks the condition on a barrier read. *After* that read, which may be slow, the
/// socket still has to be without a listener. Except in a handover the alive lock still has to be free: Patroni may
/// have been started meanwhile (simulation, seed 7694).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// The local member, which holds the key.
    pub member: MemberName,
    /// The key and, in synchronous mode, the standbys that can take over.
    pub condition: KeyCondition,
    /// The reason.
    pub reason: String,
    /// In a switchover: the candidate.
    pub handover_to: Option<MemberName>,
    /// The shutdown checkpoint that the control file still has to name right before the act.
    pub shut_down_with: Option<ShutdownCheckpoint>,
    /// The facts, name and value, for the record.
    pub facts: Vec<(String, String)>,
}

/// The verdict on a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No reason for a release.
    Nothing,
    /// Ask the local server now: its end is likely and not yet proved.
    Probe {
        /// Ask the others too: the candidate has not yet proved that it has every commit.
        others: bool,
    },
    /// Nothing is due before this moment.
    At(Moment),
    /// This obstacle prevents the release. The rule judges again at the moment, if there is one.
    Held(String, Option<Moment>),
    /// Release the key.
    Release(Release),
}

/// The maximal age of the last look at the socket. A living Patroni may start its server at any time.
const SOCKET_PROOF_AGE_MAX: Duration = Duration::from_millis(200);

/// The pause after a failed release.
const RELEASE_RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The interval of looks at the socket in a switchover: clients wait for it.
const HANDOVER_PROBE_INTERVAL: Duration = Duration::from_millis(10);

const _: () = assert!(HANDOVER_PROBE_INTERVAL.as_millis() < SOCKET_PROOF_AGE_MAX.as_millis());

/// Judges whether to release the local member's key.
pub fn judge(view: &View, policy: &ReleasePolicy, now: Moment) -> Verdict {
    let Some((member, term)) = view.identity.member.as_ref().zip(view.leadership.term.as_ref()) else {
        return Verdict::Nothing;
    };
    let Some(session) = view.session().map(|session| session.id) else { return Verdict::Nothing };
    if view.cluster.config().is_none_or(|config| config.pause) {
        return Verdict::Nothing;
    }
    let case = Case { view, member, term, session, now };
    let dead = policy.enabled && term.lock_was_held && lock_proves_death(view, member, now);
    let due = if dead {
        case.crashed(policy)
    } else if policy.handover {
        case.handed_over()
    } else {
        Verdict::Nothing
    };
    let due = match due {
        Verdict::Nothing if policy.enabled && case.may_be_dead() => {
            let why = "has never answered Warden, so its free alive lock does not prove its death";
            Verdict::Held(format!("Patroni of {member} {why}"), None)
        }
        due => due,
    };
    let next =
        view.leadership.release.as_ref().map(|last| last.at.plus(RELEASE_RETRY_PAUSE)).filter(|next| now < *next);
    match (due, next) {
        (Verdict::Nothing, _) => Verdict::Nothing,
        (_, Some(next)) => Verdict::At(next),
        (due, None) => due,
    }
}

/// The key to judge.
struct Case<'a> {
    view: &'a View,
    member: &'a MemberName,
    term: &'a LeaderTerm,
    session: SessionId,
    now: Moment,
}

impl Case<'_> {
    /// Whether the alive lock is free and the server refuses sessions, while Patroni never answered. The agent then
    /// does not know whose lock it was.
    fn may_be_dead(&self) -> bool {
        let free = self.view.alive_lock.as_ref().is_some_and(|fact| fact.value == AliveLock::Gone);
        let Some(known) = self.view.members.get(self.member) else { return false };
        let refuses = known.postgres.as_ref().is_some_and(|fact| fact.value.refuses_sessions());
        free && !self.view.leadership.has_answered && refuses
    }

    /// Patroni is dead. Two looks have to prove that its server has ended. A candidate with every acknowledged row is
    /// needed, unless the operator accepts the loss of rows.
    fn crashed(&self, policy: &ReleasePolicy) -> Verdict {
        let Self { view, member, now, .. } = *self;
        if verified(view, now).is_none() {
            // The next barrier read is under way and shows the synchronous standbys.
            return self.probe(policy.after.max(HANDOVER_PROBE_INTERVAL), false);
        }
        let freed = view.alive_lock.as_ref().filter(|fact| fact.value == AliveLock::Gone).map(|fact| fact.at);
        let gone = view.leadership.gone.filter(|gone| {
            gone.probes >= 2
                && gone.last.since(gone.since) >= policy.after
                && now.since(gone.last) <= SOCKET_PROOF_AGE_MAX
                // A Patroni that was alive at the last look may have started its server since.
                && Some(gone.last) >= freed
        });
        let sync = match (self.synchronous(), policy.asynchronous) {
            (Some(sync), _) => Some(sync),
            (None, None) => {
                let why = "no synchronous standby can take over, and release.asynchronous is never";
                return Verdict::Held(why.to_string(), None);
            }
            (None, Some(_)) if self.candidates().is_empty() => {
                return Verdict::Held("no other member is known to be able to take over".to_string(), None);
            }
            (None, Some(left)) => {
                let since = view.leadership.gone.map(|gone| gone.since).max(freed).unwrap_or(now);
                if now < since.plus(left) {
                    let why = format!("the key stays for {}, so that {member} can come back", seconds(left));
                    return Verdict::Held(why, Some(since.plus(left)));
                }
                None
            }
        };
        if gone.is_none() {
            return self.probe(policy.after.max(HANDOVER_PROBE_INTERVAL), false);
        }
        let reason = format!("Patroni (its alive lock) and PostgreSQL (its socket) of {member} are gone");
        let mode = if sync.is_some() { "synchronous" } else { "asynchronous" };
        let facts = vec![("commits".to_string(), mode.to_string())];
        self.release(reason, sync, None, None, facts)
    }

    /// The operator asked for a switchover away from the local member. One look proves the clean shutdown, by the
    /// control file and the socket. Without a readable control file it takes two.
    fn handed_over(&self) -> Verdict {
        let Self { view, member, now, .. } = *self;
        let Some(switchover) = requested_switchover(view, member) else { return Verdict::Nothing };
        let shut_down = shut_down_with(view);
        let looks = if shut_down.is_some() { 1 } else { 2 };
        let gone = view
            .leadership
            .gone
            .is_some_and(|gone| gone.probes >= looks && now.since(gone.last) <= SOCKET_PROOF_AGE_MAX);
        if !gone {
            return self.probe(HANDOVER_PROBE_INTERVAL, false);
        }
        let candidate = switchover.candidate;
        let mut facts = vec![("candidate".to_string(), candidate.to_string())];
        if !switchover.synchronous {
            // Without the shutdown checkpoint there is no position to compare the candidate with.
            let Some(checkpoint) = shut_down else { return Verdict::Nothing };
            let Some(position) = candidate_position(view, &candidate, checkpoint, now) else {
                return self.probe(HANDOVER_PROBE_INTERVAL, true);
            };
            facts.push(("shutdown_checkpoint".to_string(), checkpoint.location.to_string()));
            facts.push(("candidate_lsn".to_string(), position.to_string()));
        }
        let reason = format!("a switchover to {candidate} was asked for, and PostgreSQL of {member} is down");
        self.release(reason, None, Some(candidate), shut_down, facts)
    }

    /// Asks the local server at once, at this interval.
    fn probe(&self, pause: Duration, others: bool) -> Verdict {
        let next = self.view.leadership.probed.map_or(self.now, |probed| probed.plus(pause));
        if self.now >= next { Verdict::Probe { others } } else { Verdict::At(next) }
    }

    /// The synchronous standbys that can take over, by the last linearizable read. Patroni's znode `sync` names the
    /// local member as the leader, and at least one of its standbys answers in recovery.
    fn synchronous(&self) -> Option<SyncNames> {
        let sync = verified(self.view, self.now)?.sync.present()?;
        if sync.leader.as_ref() != Some(self.member) {
            return None;
        }
        let one_of: BTreeSet<_> = self.candidates().into_iter().filter(|name| sync.standbys.contains(name)).collect();
        (!one_of.is_empty()).then(|| SyncNames { leader: self.member.clone(), one_of })
    }

    /// The members that can be promoted now, without those that the operator fenced.
    fn candidates(&self) -> BTreeSet<MemberName> {
        let can = |name: &&MemberName| {
            *name != self.member && can_be_promoted(self.view, name, self.now) && !fenced_by_operator(self.view, name)
        };
        self.view.members.keys().filter(can).cloned().collect()
    }

    fn release(
        &self,
        reason: String,
        sync: Option<SyncNames>,
        handover_to: Option<MemberName>,
        shut_down_with: Option<ShutdownCheckpoint>,
        more: Vec<(String, String)>,
    ) -> Verdict {
        let (czxid, owner, member) = (self.term.czxid, self.term.owner, self.member.clone());
        let lock = self.view.alive_lock.as_ref().map_or("unknown", |lock| lock.value.as_str());
        let mut facts = vec![
            ("socket".to_string(), "no process listens".to_string()),
            ("alive_lock".to_string(), lock.to_string()),
            ("czxid".to_string(), format!("{:#x}", czxid.0)),
        ];
        facts.extend(more);
        let key = KeyIs::TheOneOf { member: member.clone(), czxid, owner };
        let condition = KeyCondition { session: self.session, key, sync };
        Verdict::Release(Release { member, condition, reason, handover_to, shut_down_with, facts })
    }
}

/// The request for a switchover away from the local member.
struct Switchover {
    candidate: MemberName,
    /// No commit was acknowledged without it. Otherwise it has to be past the server's shutdown checkpoint.
    synchronous: bool,
}

/// The candidate, if a switchover was asked for and the agent has seen the local server go down.
fn requested_switchover(view: &View, member: &MemberName) -> Option<Switchover> {
    let request = view.cluster.failover.as_ref()?.value.present()?;
    if request.leader.as_ref() != Some(member) || request.scheduled {
        return None;
    }
    // A server that has not gone down needs no release.
    if !view.members.get(member)?.postgres.as_ref()?.value.refuses_sessions() {
        return None;
    }
    let sync = match &view.cluster.sync.as_ref()?.value {
        Reading::Present(sync) if sync.leader.as_ref() == Some(member) => Some(sync),
        // No standby is synchronous, and none needs to be.
        Reading::Present(SyncState { leader: None, .. }) | Reading::Absent
            if view.cluster.config().is_some_and(|config| !config.synchronous_mode) =>
        {
            None
        }
        _ => return None,
    };
    let candidate = match (&request.candidate, sync) {
        (Some(candidate), _) => candidate,
        (None, Some(sync)) if sync.standbys.len() == 1 => sync.standbys.first()?,
        (None, None) => {
            let mut others = view.members.iter().filter(|(name, known)| *name != member && known.last_record.is_some());
            match (others.next(), others.next()) {
                (Some((only, _)), None) => only,
                _ => return None,
            }
        }
        (None, Some(_)) => return None,
    };
    // Patroni lets no other member take over. A member that the operator fenced would be stopped at its first write.
    if sync.is_some_and(|sync| !sync.standbys.contains(candidate)) || fenced_by_operator(view, candidate) {
        return None;
    }
    let synchronous = sync.is_some_and(|sync| sync.quorum == 0);
    Some(Switchover { candidate: candidate.clone(), synchronous })
}

fn fenced_by_operator(view: &View, member: &MemberName) -> bool {
    let record = view.leadership.records.get(member).and_then(|record| record.value.present());
    record.is_some_and(|record| record.rule == Rule::Operator)
}

/// The shutdown checkpoint of the local server, if it has ended cleanly and is of the cluster.
fn shut_down_with(view: &View) -> Option<ShutdownCheckpoint> {
    let checkpoint = *view.leadership.shutdown.as_ref()?.value.present()?;
    let cluster = view.cluster.initialize.as_ref()?.value.present()?;
    (checkpoint.system_id == *cluster).then_some(checkpoint)
}

/// The candidate's replay position, if it is past the shutdown `checkpoint`. The candidate is on the same
/// timeline, so its WAL is from the local server. Received WAL counts once it is replayed, which is before the
/// promotion.
fn candidate_position(view: &View, candidate: &MemberName, checkpoint: ShutdownCheckpoint, now: Moment) -> Option<Lsn> {
    let answer = view.members.get(candidate)?.postgres.as_ref()?.fresh(now, PROBE_LIMIT)?;
    let PostgresAnswer::InRecovery(server) = answer else { return None };
    let position = server.lsn?;
    let same = server.system_id == Some(checkpoint.system_id) && server.timeline == Some(checkpoint.timeline);
    (same && position > checkpoint.location).then_some(position)
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
