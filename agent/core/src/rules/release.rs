//! When a leader key is given back before its time: its owner is proved dead, or its server is proved down in the
//! middle of a switchover.
//!
//! This is the only thing that Warden changes in Patroni's tree. It stands on proofs alone: the alive lock, a unix
//! socket on which nobody listens, and of a server that is left in asynchronous mode its control file. A time-out, an unreachable host, a name that does not resolve prove nothing.

use crate::event::{AliveLock, ClusterConfig, PostgresAnswer, Rule, ShutdownCheckpoint, SyncState};
use crate::evidence::lock_proves_death;
use crate::fact::Reading;
use crate::limits::PROBE_LIMIT;
use crate::types::{Lsn, MemberName, Moment, SessionId, Zxid};
use crate::view::View;
use alloc::string::{String, ToString};
use alloc::{format, vec::Vec};
use core::time::Duration;

/// What the operator allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleasePolicy {
    /// A crashed leader's key is released.
    pub enabled: bool,
    /// The key of a leader that is to be left, and whose server is down, is released.
    pub handover: bool,
    /// The socket has to be found without a listener twice, this far apart.
    pub after: Duration,
    /// Patroni is process 1 of a container: the kernel ends its backends with it. Otherwise it has to be seen that
    /// none is left, which the release does right before it acts.
    pub patroni_is_pid_1: bool,
}

/// A release of the leader key, now.
///
/// Right before it acts a barrier read has to say that the key is still this one; and *behind* that read, which may
/// have taken its time, the socket has to be without a listener still, and the alive lock free still unless it is a
/// handover: Patroni may have been started meanwhile (simulation, seed 7694).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    /// Our member, which holds the key.
    pub member: MemberName,
    /// The transaction that created the key.
    pub czxid: Zxid,
    /// The session that owns it.
    pub owner: SessionId,
    /// Why, in words.
    pub reason: String,
    /// In the middle of a switchover, to this member.
    pub handover_to: Option<MemberName>,
    /// That member has everything because it has come past this: the control file has to name it still, right before
    /// the release acts.
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
    /// Release it.
    Release(Release),
}

/// How old the last look at the socket may be on which a release stands: a Patroni that lives may start its server
/// again at any time.
const PROOF_LIMIT: Duration = Duration::from_millis(200);

/// A failed release is not tried again sooner than this.
const PAUSE: Duration = Duration::from_millis(500);

/// Judges whether the key that our member holds is to be released.
pub fn judge(view: &View, policy: &ReleasePolicy, now: Moment) -> Due {
    let Some((member, reign)) = view.identity.member.as_ref().zip(view.leadership.reign.as_ref()) else {
        return Due::Nothing;
    };
    let config = view.cluster.config();
    if view.session().is_none() || config.is_none_or(|config: &ClusterConfig| config.pause) {
        return Due::Nothing;
    }
    let freed = view.alive_lock.as_ref().filter(|fact| fact.value == AliveLock::Gone).map(|fact| fact.at);
    let dead = policy.enabled && reign.lock_was_held && lock_proves_death(view, member, now);
    let leaving = if policy.handover { leaving(view, member, now) } else { None };
    if !dead && leaving.is_none() {
        return Due::Nothing;
    }
    if let Some(last) = &view.leadership.release {
        let next = last.at.plus(PAUSE);
        if now < next {
            return Due::At(next);
        }
    }
    let is_gone = view.leadership.gone.is_some_and(|gone| {
        gone.probes >= 2
            && gone.last.since(gone.since) >= policy.after
            && now.since(gone.last) <= PROOF_LIMIT
            // A Patroni that was still alive at the last look may have started its server since.
            && (!dead || Some(gone.last) >= freed)
    });
    let others = !dead && leaving.as_ref().is_some_and(|leaving| leaving.has_everything.is_none());
    if !is_gone || others {
        let next =
            view.leadership.probed.map_or(now, |probed| probed.plus(policy.after.max(Duration::from_millis(10))));
        return if now >= next { Due::Probe { others } } else { Due::At(next) };
    }
    let fact = |name: &str, value: &str| (name.to_string(), value.to_string());
    let mut facts = alloc::vec![
        fact("socket", "nobody listens"),
        fact("alive_lock", view.alive_lock.as_ref().map_or("unknown", |lock| lock.value.as_str())),
        fact("czxid", &format!("{:#x}", reign.czxid.0)),
    ];
    let (member, czxid, owner) = (member.clone(), reign.czxid, reign.owner);
    let Some(Leaving { candidate, has_everything: Some(proof) }) = leaving.filter(|_| !dead) else {
        let reason = format!("Patroni (its alive lock) and PostgreSQL (its socket) of {member} are gone");
        return Due::Release(Release { member, czxid, owner, reason, handover_to: None, shut_down_with: None, facts });
    };
    facts.push(fact("candidate", candidate.as_str()));
    let reason = format!("a switchover to {candidate} was asked for, and PostgreSQL of {member} is down");
    let shut_down_with = match proof {
        Everything::Synchronous => None,
        Everything::CameAs { far, past } => {
            facts.push(fact("shutdown_checkpoint", &past.location.to_string()));
            facts.push(fact("candidate_lsn", &far.to_string()));
            Some(past)
        }
    };
    Due::Release(Release { member, czxid, owner, reason, handover_to: Some(candidate), shut_down_with, facts })
}

/// A switchover away from us that was asked for.
struct Leaving {
    candidate: MemberName,
    /// Why the candidate has every commit that we acknowledged, as far as that is known.
    has_everything: Option<Everything>,
}

/// Why a candidate has everything.
enum Everything {
    /// No commit was acknowledged without it.
    Synchronous,
    /// It has replayed our WAL as far as this, past the last record of our server.
    CameAs { far: Lsn, past: ShutdownCheckpoint },
}

/// The member that is to take over from us, if a switchover was asked for and our server was seen down.
fn leaving(view: &View, member: &MemberName, now: Moment) -> Option<Leaving> {
    let request = view.cluster.failover.as_ref()?.value.present()?;
    if request.leader.as_ref() != Some(member) || request.scheduled {
        return None;
    }
    // As long as the server was never seen down, there is nothing to hurry.
    if !view.members.get(member)?.postgres.as_ref()?.value.turns_away() {
        return None;
    }
    let sync = match &view.cluster.sync.as_ref()?.value {
        Reading::Present(sync) if sync.leader.as_ref() == Some(member) => Some(sync),
        // Nobody is synchronous, and nobody has to be.
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
    // Patroni lets nobody else take over.
    if sync.is_some_and(|sync| !sync.standbys.contains(candidate)) {
        return None;
    }
    // It would be stopped as soon as it took writes.
    let fenced = view.leadership.records.get(candidate).and_then(|record| record.value.present());
    if fenced.is_some_and(|record| record.rule == Rule::Operator) {
        return None;
    }
    let has_everything = match sync {
        Some(sync) if sync.quorum == 0 => Some(Everything::Synchronous),
        // Without our last record in the control file there is nothing to ask the candidate for.
        _ => came_past(view, candidate, shut_down_with(view)?, now),
    };
    Some(Leaving { candidate: candidate.clone(), has_everything })
}

/// The last record of our server, if it is gone, was shut down cleanly, and is the cluster's.
fn shut_down_with(view: &View) -> Option<ShutdownCheckpoint> {
    let checkpoint = *view.leadership.shutdown.as_ref()?.value.present()?;
    let cluster = view.cluster.initialize.as_ref()?.value.present()?;
    (checkpoint.system_id == *cluster).then_some(checkpoint)
}

/// Whether the candidate has replayed our last record, `past`. It is on our timeline: what it has, it has from us. What it has
/// only received counts when it is replayed, a moment later, and before it is promoted anyway.
fn came_past(view: &View, candidate: &MemberName, past: ShutdownCheckpoint, now: Moment) -> Option<Everything> {
    let answer = view.members.get(candidate)?.postgres.as_ref()?.fresh(now, PROBE_LIMIT)?;
    let PostgresAnswer::InRecovery(server) = answer else { return None };
    let far = server.lsn?;
    let same = server.system_id == Some(past.system_id) && server.timeline == Some(past.timeline);
    (same && far > past.location).then_some(Everything::CameAs { far, past })
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
