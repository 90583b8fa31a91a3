//! Evidence: what the rules stand on, and what proves what.
//!
//! Whether a linearizable read may be stood on, whether ZooKeeper answers, whether a server may be taking writes, and
//! whether its Patroni is away. A rule that destroys takes these from here, so that no two rules differ in what they
//! take for proof.

use crate::event::{AliveLock, PatroniAnswer};
use crate::limits::{BARRIER_LIMIT, PROBE_LIMIT};
use crate::types::{MemberName, Moment, seconds};
use crate::view::{Link, Verification, View};
use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

/// Patroni has to be silent for this long to count as away: five questions in a row. A frozen one has been silent
/// for much longer when its key expires; a slow one misses a question or two.
pub const AWAY: Duration = Duration::from_secs(5);

/// Last seen out of recovery, and nothing since proved otherwise: silence keeps it so.
pub fn presumed_writable(view: &View, member: &MemberName) -> bool {
    view.members.get(member).is_some_and(|known| known.writable_since.is_some())
}

/// The newest barrier read, if a rule may stand on it: of this session, recent, and with no later news against it.
pub fn verified(view: &View, now: Moment) -> Option<&Verification> {
    let known = contact(view, now)?;
    let contradicted = view.leader.as_ref().is_some_and(|read| read.at > known.started && read.value != known.leader);
    (!contradicted).then_some(known)
}

/// The newest barrier read, if it is of this session and recent, whatever other news there is: ZooKeeper answers.
pub fn contact(view: &View, now: Moment) -> Option<&Verification> {
    let known = view.verified.as_ref()?;
    let current = view.session().is_some_and(|session| session.id == known.session);
    (current && now.since(known.started) <= BARRIER_LIMIT).then_some(known)
}

/// When ZooKeeper counts as away: a session that has just begun is about to be verified, and one that has just ended,
/// because another timeout is wanted or for a hiccup, is about to be had again (simulation, seed 202774). `None` if
/// there never was a linearizable read and there is no session.
pub fn out_of_contact_at(view: &View) -> Option<Moment> {
    let begun = if let Link::Connected { since, .. } = view.link { Some(since) } else { None };
    view.leadership.read_at.max(begun).map(|newest| newest.plus(BARRIER_LIMIT).plus(Duration::from_millis(1)))
}

/// Whether our neighbour's Patroni is away.
pub enum Away {
    /// It answers, or it is not known.
    No,
    /// It has been silent, but not yet for long enough: it will have been at this moment.
    Soon(Moment),
    /// It is; the text says how that is known.
    Yes(String),
}

/// Dead by its lock, or silent for [`AWAY`].
pub fn patroni_away(view: &View, own: &MemberName, now: Moment) -> Away {
    if lock_proves_death(view, own, now) {
        return Away::Yes("its Patroni is dead (the alive lock is free)".to_string());
    }
    let Some(member) = view.members.get(own) else { return Away::No };
    let silent = matches!(
        member.patroni.as_ref().and_then(|fact| fact.fresh(now, PROBE_LIMIT)),
        Some(PatroniAnswer::Silent(_) | PatroniAnswer::Refused(_))
    );
    match member.patroni_away_since {
        Some(since) if silent && now.since(since) >= AWAY => {
            Away::Yes(format!("its Patroni has not answered for {}", seconds(now.since(since))))
        }
        Some(since) if silent => Away::Soon(since.plus(AWAY)),
        _ => Away::No,
    }
}

/// The lock is free and was held by this Patroni before: the process is gone.
///
/// The lock is only reported when it changes, so that it is not known how old that is. Who has been asking Patroni
/// all the time is awake, and if it had answered since, the lock would not be relied on any more.
pub fn lock_proves_death(view: &View, own: &MemberName, now: Moment) -> bool {
    let free = view.alive_lock.as_ref().is_some_and(|fact| fact.value == AliveLock::Gone);
    let patroni = view.members.get(own).and_then(|member| member.patroni.as_ref());
    let awake = patroni.is_some_and(|fact| fact.age(now) <= PROBE_LIMIT);
    free && awake && view.leadership.lock_was_ever_held
}
