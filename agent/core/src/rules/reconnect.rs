//! When a standby is told to try again: the server that it is to stream from is there, and it has not looked since.
//!
//! A standby that lost its primary tries at once, fails, and tries again after `wal_retrieve_retry_interval` (5 s unless
//! set otherwise). Until then a synchronous primary that came back confirms no commit, or Patroni takes the standby out
//! of the synchronous ones, and a crash would lose commits. A reload ends that wait and changes nothing that Patroni,
//! which reloads whenever it has written something, has not reloaded itself.

use crate::event::PostgresAnswer;
use crate::limits::PROBE_LIMIT;
use crate::types::Moment;
use crate::view::View;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// At most one in this time.
pub const EVERY: Duration = Duration::from_millis(500);

/// At most so many until it has streamed: one that cannot is not helped by that.
pub const MOST: u32 = 5;

/// The local server is asked out of turn at most this often.
const ASK: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// There is no reason.
    NoReason,
    /// The local server is to be asked now: what it said last was before the leader was there.
    Ask,
    /// Nothing before this moment.
    Later(Moment),
    /// Tell the local server to try again; the text says why.
    Reconnect(String),
}

/// Judges whether the local standby is to be told to try again.
pub fn judge(view: &View, now: Moment) -> Due {
    let Some((back, reason)) = back(view) else { return Due::NoReason };
    let Some(answered) = receives_nothing(view, now) else { return Due::NoReason };
    let tries = view.leadership.reconnects;
    if tries.is_some_and(|tries| tries.count >= MOST) {
        return Due::NoReason;
    }
    if answered <= back {
        let next = view.leadership.probed.map_or(now, |probed| probed.plus(ASK));
        return if now >= next { Due::Ask } else { Due::Later(next) };
    }
    match tries {
        Some(tries) if now < tries.last.plus(EVERY) => Due::Later(tries.last.plus(EVERY)),
        _ => Due::Reconnect(reason),
    }
}

/// Why the local standby is left alone although it receives nothing: it was told often enough.
pub fn in_vain(view: &View, now: Moment) -> Option<String> {
    let (_, reason) = back(view)?;
    receives_nothing(view, now)?;
    let often_enough = view.leadership.reconnects.is_some_and(|tries| tries.count >= MOST);
    often_enough.then(|| format!("{reason}, and was told {MOST} times to try again"))
}

/// When the local server, in recovery, last said that it receives no WAL.
fn receives_nothing(view: &View, now: Moment) -> Option<Moment> {
    let fact = view.members.get(view.identity.member.as_ref()?)?.postgres.as_ref()?;
    let PostgresAnswer::InRecovery(server) = fact.fresh(now, PROBE_LIMIT)? else { return None };
    (server.receives == Some(false)).then_some(fact.at)
}

/// Since when the leader, another member, is known to take writes again, and that in words.
fn back(view: &View) -> Option<(Moment, String)> {
    let own = view.identity.member.as_ref()?;
    view.session()?;
    if view.cluster.config()?.pause {
        return None;
    }
    let leader = &view.leader.as_ref()?.value.present().filter(|key| key.holder != *own)?.holder;
    let known = view.members.get(leader)?;
    let writes_since = known.writable_since?;
    // That our session with it ended may be the first that is heard of its end.
    let broke = view.routing.broke.get(leader).copied();
    let answered = known.postgres.as_ref().filter(|fact| matches!(fact.value, PostgresAnswer::Writable(_)));
    let back = [Some(writes_since), answered.map(|fact| fact.at)].into_iter().flatten().find(|at| broke < Some(*at))?;
    Some((back, format!("{leader} takes writes, and {own} receives no WAL")))
}

#[cfg(test)]
#[path = "reconnect_tests.rs"]
mod tests;
