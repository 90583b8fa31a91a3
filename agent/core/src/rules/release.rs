//! When a leader key is given back before its time: its owner is proved dead, or its server is proved down in the
//! middle of a switchover.
//!
//! This is the only thing that Warden changes in Patroni's tree. It stands on proofs alone: the alive lock, a unix
//! socket on which no process listens, the control file of a server that was shut down. A time-out, an unreachable host
//! and a name that does not resolve prove nothing.

use crate::event::{AliveLock, PostgresAnswer, Rule, ShutdownCheckpoint, SyncState};
use crate::evidence::{can_be_promoted, lock_proves_death, verified};
use crate::fact::Reading;
use crate::leadership::Reign;
use crate::limits::PROBE_LIMIT;
use crate::rules::guard::{KeyCondition, KeyIs, SyncNames};
use crate::types::{Lsn, MemberName, Moment, SessionId, seconds};
use crate::view::View;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::{format, vec, vec::Vec};
use core::time::Duration;

/// What the operator allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleasePolicy {
    /// A crashed leader's key is released.
    pub enabled: bool,
    /// Where no synchronous standby can take over, too: rows that were acknowledged may be lost. The key is left for this
    /// long for the old node to come back. `None`: never.
    pub asynchronous: Option<Duration>,
    /// The key of a leader that is to be left, and whose server is down, is released.
    pub handover: bool,
    /// A crashed leader's socket has to be found without a listener twice, this far apart.
    pub after: Duration,
    /// Patroni is process 1 of a container: the kernel ends its backends with it. Otherwise it has to be seen that
    /// none is left, which the release does right before it acts.
    pub patroni_is_pid_1: bool,
}

/// A release of the leader key, now.
///
/// Right before it acts a barrier read has to meet the condition; and *behind* that read, which may have taken its time,
/// the socket has to be without a listener still, and the alive lock free still unless it is a handover: Patroni may have
/// been started meanwhile (simulation, seed 7694).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Our member, which holds the key.
    pub member: MemberName,
    /// The key, and in synchronous mode the standbys that can take over.
    pub condition: KeyCondition,
    /// Why, in words.
    pub reason: String,
    /// In the middle of a switchover, to this member.
    pub handover_to: Option<MemberName>,
    /// The control file has to name this record still, right before the release acts: the server was shut down with it.
    pub shut_down_with: Option<ShutdownCheckpoint>,
    /// What was believed, name and value, for the record.
    pub facts: Vec<(String, String)>,
}

/// What is to be done about the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing, as far as is known.
    Nothing,
    /// The local server has to be asked now: its death is not yet proved, and it looks like it.
    Probe {
        /// The others' too: the candidate is not yet seen to have everything.
        others: bool,
    },
    /// Nothing before this moment.
    At(Moment),
    /// It would be released but for this; and judged again at that moment, if one is named.
    Held(String, Option<Moment>),
    /// Release it.
    Release(Release),
}

/// How old the last look at the socket may be on which a release stands: a Patroni that lives may start its server
/// again at any time.
const PROOF_LIMIT: Duration = Duration::from_millis(200);

/// A failed release is not tried again sooner than this.
const PAUSE: Duration = Duration::from_millis(500);

/// In a switchover the end of the server is looked for this often: clients wait for it.
const HANDOVER_LOOK: Duration = Duration::from_millis(10);

/// Judges whether the key that our member holds is to be released.
pub fn judge(view: &View, policy: &ReleasePolicy, now: Moment) -> Due {
    let Some((member, reign)) = view.identity.member.as_ref().zip(view.leadership.reign.as_ref()) else {
        return Due::Nothing;
    };
    let Some(session) = view.session().map(|session| session.id) else { return Due::Nothing };
    if view.cluster.config().is_none_or(|config| config.pause) {
        return Due::Nothing;
    }
    let case = Case { view, member, reign, session, now };
    let dead = policy.enabled && reign.lock_was_held && lock_proves_death(view, member, now);
    let due = if dead {
        case.crashed(policy)
    } else if policy.handover {
        case.handed_over()
    } else {
        Due::Nothing
    };
    let due = match due {
        Due::Nothing if policy.enabled && case.may_be_dead() => {
            let why = "has never answered Warden, so that its free alive lock does not prove its death";
            Due::Held(format!("Patroni of {member} {why}"), None)
        }
        due => due,
    };
    let next = view.leadership.release.as_ref().map(|last| last.at.plus(PAUSE)).filter(|next| now < *next);
    match (due, next) {
        (Due::Nothing, _) => Due::Nothing,
        (_, Some(next)) => Due::At(next),
        (due, None) => due,
    }
}

/// The key that is judged.
struct Case<'a> {
    view: &'a View,
    member: &'a MemberName,
    reign: &'a Reign,
    session: SessionId,
    now: Moment,
}

impl Case<'_> {
    /// Its alive lock is free and its server takes no session; but Patroni never answered, so nothing shows whose lock it was.
    fn may_be_dead(&self) -> bool {
        let free = self.view.alive_lock.as_ref().is_some_and(|fact| fact.value == AliveLock::Gone);
        let Some(known) = self.view.members.get(self.member) else { return false };
        let shut = known.postgres.as_ref().is_some_and(|fact| fact.value.turns_away());
        free && !self.view.leadership.has_answered && shut
    }

    /// Patroni is dead. Its server has to be proved gone in two looks, and a candidate has to be there that has every
    /// acknowledged row, unless the operator trades rows for time.
    fn crashed(&self, policy: &ReleasePolicy) -> Due {
        let Self { view, member, now, .. } = *self;
        if verified(view, now).is_none() {
            // The next barrier read is under way, and tells who is synchronous.
            return self.look(policy.after.max(HANDOVER_LOOK), false);
        }
        let freed = view.alive_lock.as_ref().filter(|fact| fact.value == AliveLock::Gone).map(|fact| fact.at);
        let gone = view.leadership.gone.filter(|gone| {
            gone.probes >= 2
                && gone.last.since(gone.since) >= policy.after
                && now.since(gone.last) <= PROOF_LIMIT
                // A Patroni that was still alive at the last look may have started its server since.
                && Some(gone.last) >= freed
        });
        let sync = match (self.synchronous(), policy.asynchronous) {
            (Some(sync), _) => Some(sync),
            (None, None) => {
                let why = "no synchronous standby can take over, and release.asynchronous is never";
                return Due::Held(why.to_string(), None);
            }
            (None, Some(_)) if self.candidates().is_empty() => {
                return Due::Held("no other member is known to be able to take over".to_string(), None);
            }
            (None, Some(left)) => {
                let since = view.leadership.gone.map(|gone| gone.since).max(freed).unwrap_or(now);
                if now < since.plus(left) {
                    let why = format!("the key is left for {} for {member} to come back", seconds(left));
                    return Due::Held(why, Some(since.plus(left)));
                }
                None
            }
        };
        if gone.is_none() {
            return self.look(policy.after.max(HANDOVER_LOOK), false);
        }
        let reason = format!("Patroni (its alive lock) and PostgreSQL (its socket) of {member} are gone");
        let mode = if sync.is_some() { "synchronous" } else { "asynchronous" };
        let facts = vec![("commits".to_string(), mode.to_string())];
        self.release(reason, sync, None, None, facts)
    }

    /// A switchover away from us was asked for. Its clean shutdown is proved in one look, by the control file and the
    /// socket; where the control file cannot be read, in two.
    fn handed_over(&self) -> Due {
        let Self { view, member, now, .. } = *self;
        let Some(leaving) = leaving(view, member) else { return Due::Nothing };
        let shut_down = shut_down_with(view);
        let looks = if shut_down.is_some() { 1 } else { 2 };
        let gone = view.leadership.gone.is_some_and(|gone| gone.probes >= looks && now.since(gone.last) <= PROOF_LIMIT);
        if !gone {
            return self.look(HANDOVER_LOOK, false);
        }
        let candidate = leaving.candidate;
        let mut facts = vec![("candidate".to_string(), candidate.to_string())];
        if !leaving.synchronous {
            // Without our last record in the control file there is nothing to ask the candidate for.
            let Some(past) = shut_down else { return Due::Nothing };
            let Some(far) = came_past(view, &candidate, past, now) else { return self.look(HANDOVER_LOOK, true) };
            facts.push(("shutdown_checkpoint".to_string(), past.location.to_string()));
            facts.push(("candidate_lsn".to_string(), far.to_string()));
        }
        let reason = format!("a switchover to {candidate} was asked for, and PostgreSQL of {member} is down");
        self.release(reason, None, Some(candidate), shut_down, facts)
    }

    /// The local server is asked out of turn, this often.
    fn look(&self, pause: Duration, others: bool) -> Due {
        let next = self.view.leadership.probed.map_or(self.now, |probed| probed.plus(pause));
        if self.now >= next { Due::Probe { others } } else { Due::At(next) }
    }

    /// Synchronous, by the last linearizable read: Patroni's `sync` znode names our member as the leader, and standbys of
    /// which at least one answers in recovery.
    fn synchronous(&self) -> Option<SyncNames> {
        let sync = verified(self.view, self.now)?.sync.present()?;
        if sync.leader.as_ref() != Some(self.member) {
            return None;
        }
        let one_of: BTreeSet<_> = self.candidates().into_iter().filter(|name| sync.standbys.contains(name)).collect();
        (!one_of.is_empty()).then(|| SyncNames { leader: self.member.clone(), one_of })
    }

    /// Members that can be promoted now, and that the operator has not fenced.
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
    ) -> Due {
        let (czxid, owner, member) = (self.reign.czxid, self.reign.owner, self.member.clone());
        let lock = self.view.alive_lock.as_ref().map_or("unknown", |lock| lock.value.as_str());
        let mut facts = vec![
            ("socket".to_string(), "no process listens".to_string()),
            ("alive_lock".to_string(), lock.to_string()),
            ("czxid".to_string(), format!("{:#x}", czxid.0)),
        ];
        facts.extend(more);
        let key = KeyIs::TheOneOf { member: member.clone(), czxid, owner };
        let condition = KeyCondition { session: self.session, key, sync };
        Due::Release(Release { member, condition, reason, handover_to, shut_down_with, facts })
    }
}

/// A switchover away from us that was asked for.
struct Leaving {
    candidate: MemberName,
    /// No commit was acknowledged without it. Otherwise it has to be seen past our server's last record.
    synchronous: bool,
}

/// The member that is to take over from us, if a switchover was asked for and our server was seen to go down.
fn leaving(view: &View, member: &MemberName) -> Option<Leaving> {
    let request = view.cluster.failover.as_ref()?.value.present()?;
    if request.leader.as_ref() != Some(member) || request.scheduled {
        return None;
    }
    // As long as the server was never seen to go down, there is nothing to hurry.
    if !view.members.get(member)?.postgres.as_ref()?.value.turns_away() {
        return None;
    }
    let sync = match &view.cluster.sync.as_ref()?.value {
        Reading::Present(sync) if sync.leader.as_ref() == Some(member) => Some(sync),
        // No standby is synchronous, and none has to be.
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
    // Patroni lets no other member take over; and one that the operator fenced would be stopped as soon as it took writes.
    if sync.is_some_and(|sync| !sync.standbys.contains(candidate)) || fenced_by_operator(view, candidate) {
        return None;
    }
    let synchronous = sync.is_some_and(|sync| sync.quorum == 0);
    Some(Leaving { candidate: candidate.clone(), synchronous })
}

fn fenced_by_operator(view: &View, member: &MemberName) -> bool {
    let record = view.leadership.records.get(member).and_then(|record| record.value.present());
    record.is_some_and(|record| record.rule == Rule::Operator)
}

/// The last record of our server, if it is gone, was shut down cleanly, and is the cluster's.
fn shut_down_with(view: &View) -> Option<ShutdownCheckpoint> {
    let checkpoint = *view.leadership.shutdown.as_ref()?.value.present()?;
    let cluster = view.cluster.initialize.as_ref()?.value.present()?;
    (checkpoint.system_id == *cluster).then_some(checkpoint)
}

/// How far the candidate has replayed, if that is past our last record, `past`. It is on our timeline: what it has, it has
/// from us. What it has only received counts when it is replayed, a moment later, and before it is promoted anyway.
fn came_past(view: &View, candidate: &MemberName, past: ShutdownCheckpoint, now: Moment) -> Option<Lsn> {
    let answer = view.members.get(candidate)?.postgres.as_ref()?.fresh(now, PROBE_LIMIT)?;
    let PostgresAnswer::InRecovery(server) = answer else { return None };
    let far = server.lsn?;
    let same = server.system_id == Some(past.system_id) && server.timeline == Some(past.timeline);
    (same && far > past.location).then_some(far)
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
