//! The reconnect: when the agent makes the local standby stream again, because the leader is back and the standby has
//! not tried since.
//!
//! A standby that lost its primary tries at once, fails, and tries again after `wal_retrieve_retry_interval`. The
//! default is 5 s. Until then a returned synchronous primary confirms no commit. Or Patroni removes the standby from
//! the synchronous ones, and a crash would lose commits. A reload of the configuration ends the wait. It activates no
//! other change: Patroni itself reloads after each write to the files.

use crate::event::PostgresAnswer;
use crate::limits::PROBE_LIMIT;
use crate::types::Moment;
use crate::view::View;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// The shortest interval between two reconnects.
pub const RECONNECT_INTERVAL_MIN: Duration = Duration::from_millis(500);

/// The largest number of reconnects until the standby has streamed. More would not help it.
pub const RECONNECT_COUNT_MAX: u32 = 5;

/// The shortest interval between two immediate questions to the local server.
const PROBE_INTERVAL_MIN: Duration = Duration::from_millis(50);

const _: () = assert!(PROBE_INTERVAL_MIN.as_millis() < RECONNECT_INTERVAL_MIN.as_millis());

/// The verdict on a reconnect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No reason for a reconnect.
    NoReason,
    /// Ask the local server now: its last answer is from before the leader's return.
    Ask,
    /// Nothing is due before this moment.
    Later(Moment),
    /// Make the local standby connect again. The text gives the reason.
    Reconnect(String),
}

/// Judges whether to reconnect the local standby.
pub fn judge(view: &View, now: Moment) -> Verdict {
    let Some((back, reason)) = back(view) else { return Verdict::NoReason };
    let Some(answered) = receives_nothing(view, now) else { return Verdict::NoReason };
    let tries = view.leadership.reconnects;
    if tries.is_some_and(|tries| tries.count >= RECONNECT_COUNT_MAX) {
        return Verdict::NoReason;
    }
    if answered <= back {
        let next = view.leadership.probed.map_or(now, |probed| probed.plus(PROBE_INTERVAL_MIN));
        return if now >= next { Verdict::Ask } else { Verdict::Later(next) };
    }
    match tries {
        Some(tries) if now < tries.last.plus(RECONNECT_INTERVAL_MIN) => {
            Verdict::Later(tries.last.plus(RECONNECT_INTERVAL_MIN))
        }
        _ => Verdict::Reconnect(reason),
    }
}

/// Why the agent makes no further attempt although the standby receives nothing; `None` if attempts remain.
pub fn attempts_exhausted(view: &View, now: Moment) -> Option<String> {
    let (_, reason) = back(view)?;
    receives_nothing(view, now)?;
    let often_enough = view.leadership.reconnects.is_some_and(|tries| tries.count >= RECONNECT_COUNT_MAX);
    often_enough.then(|| format!("{reason}, and the agent has reconnected it {RECONNECT_COUNT_MAX} times"))
}

/// When the local standby last reported that it receives no WAL.
fn receives_nothing(view: &View, now: Moment) -> Option<Moment> {
    let fact = view.members.get(view.identity.member.as_ref()?)?.postgres.as_ref()?;
    let PostgresAnswer::InRecovery(server) = fact.fresh(now, PROBE_LIMIT)? else { return None };
    (server.receives == Some(false)).then_some(fact.at)
}

/// Since when the leader, another member, is known to take writes again, with the reason as text.
fn back(view: &View) -> Option<(Moment, String)> {
    let own = view.identity.member.as_ref()?;
    view.session()?;
    if view.cluster.config()?.pause {
        return None;
    }
    let leader = &view.leader.as_ref()?.value.present().filter(|key| key.holder != *own)?.holder;
    let known = view.members.get(leader)?;
    let writes_since = known.writable_since?;
    // A lost session may be the first sign of its end.
    let broke = view.routing.session_lost_at.get(leader).copied();
    let answered = known.postgres.as_ref().filter(|fact| matches!(fact.value, PostgresAnswer::Writable(_)));
    let back = [Some(writes_since), answered.map(|fact| fact.at)].into_iter().flatten().find(|at| broke < Some(*at))?;
    Some((back, format!("{leader} takes writes, and {own} receives no WAL")))
}

#[cfg(test)]
#[path = "reconnect_tests.rs"]
mod tests;
