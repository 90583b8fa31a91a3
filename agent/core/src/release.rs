//! When a leader key is given back before its time: its owner is proved dead, or its server is proved down in the
//! middle of a switchover.
//!
//! This is the only thing that Warden changes in Patroni's tree. It stands on proofs alone: the alive lock, and a unix
//! socket on which nobody listens. A time-out, an unreachable host, a name that does not resolve prove nothing.

use crate::event::{AliveLock, ClusterConfig};
use crate::fact::Reading;
use crate::fence::lock_proves_death;
use crate::types::{MemberName, Moment, SessionId, Zxid};
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
    /// What was believed, name and value, for the record.
    pub facts: Vec<(String, String)>,
}

/// What is to be done about the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing, as far as is known.
    Nothing,
    /// The local server has to be asked now: its death is not yet proved, and it looks like it.
    Probe,
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
    let candidate = if policy.handover { leaving(view, member) } else { None };
    if !dead && candidate.is_none() {
        return Due::Nothing;
    }
    if let Some(last) = &view.leadership.release {
        let next = last.at.plus(PAUSE);
        if now < next {
            return Due::At(next);
        }
    }
    match view.leadership.gone {
        // A Patroni that was still alive at the last look may have started its server since.
        Some(gone)
            if gone.probes >= 2
                && gone.last.since(gone.since) >= policy.after
                && now.since(gone.last) <= PROOF_LIMIT
                && (!dead || Some(gone.last) >= freed) => {}
        _ => {
            let next =
                view.leadership.probed.map_or(now, |probed| probed.plus(policy.after.max(Duration::from_millis(10))));
            return if now >= next { Due::Probe } else { Due::At(next) };
        }
    }
    let fact = |name: &str, value: &str| (name.to_string(), value.to_string());
    let mut facts = alloc::vec![
        fact("socket", "nobody listens"),
        fact("alive_lock", view.alive_lock.as_ref().map_or("unknown", |lock| lock.value.as_str())),
        fact("czxid", &format!("{:#x}", reign.czxid.0)),
    ];
    let (reason, handover_to) = if dead {
        (format!("Patroni (its alive lock) and PostgreSQL (its socket) of {member} are gone"), None)
    } else {
        let to = candidate.map_or_else(String::new, |name| name.to_string());
        facts.push(fact("candidate", &to));
        (format!("a switchover to {to} was asked for, and PostgreSQL of {member} is down"), Some(MemberName::from(to)))
    };
    let (czxid, owner) = (reign.czxid, reign.owner);
    Due::Release(Release { member: member.clone(), czxid, owner, reason, handover_to, facts })
}

/// The member that is to take over from us, if a switchover was asked for and that member has everything: it is the
/// synchronous standby, so that every commit that was acknowledged is there.
fn leaving(view: &View, member: &MemberName) -> Option<MemberName> {
    let request = view.cluster.failover.as_ref()?.value.present()?;
    if request.leader.as_ref() != Some(member) || request.scheduled {
        return None;
    }
    let sync = match view.cluster.sync.as_ref().map(|fact| &fact.value) {
        Some(Reading::Present(sync)) if sync.leader.as_ref() == Some(member) && sync.quorum == 0 => sync,
        _ => return None,
    };
    let candidate = match &request.candidate {
        Some(candidate) => candidate,
        None if sync.standbys.len() == 1 => sync.standbys.first()?,
        None => return None,
    };
    // As long as the server was never seen down, there is nothing to hurry.
    let down = view.members.get(member)?.postgres.as_ref().is_some_and(|fact| fact.value.turns_away());
    (down && sync.standbys.contains(candidate)).then(|| candidate.clone())
}

#[cfg(test)]
#[path = "release_tests.rs"]
mod tests;
