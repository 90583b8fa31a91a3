//! When Patroni is woken before its next round, for something that this round would do anyway.
//!
//! A nudge is a `PATCH /config` that changes nothing: Patroni writes nothing and wakes up. It is made at
//! most once a second and a bounded number of times for one reason, and never in maintenance mode.

use crate::assess;
use crate::event::{AliveLock, PatroniAnswer, Role, Rule, State};
use crate::leadership::EPISODE;
use crate::limits::PROBE_LIMIT;
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// At most one in this time.
pub const EVERY: Duration = Duration::from_secs(1);

/// At most so many for one reason. Patroni's own round comes every `loop_wait`, usually 10 s.
pub const MOST: u32 = 15;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    /// There is no reason for a nudge.
    NoReason,
    /// There is, but not before this moment.
    Later(Moment),
    /// Nudge the local Patroni; the text says why.
    Nudge(String),
}

/// Judges whether the local Patroni is to be woken.
pub fn judge(view: &View, now: Moment) -> Due {
    let Some(reason) = reason(view, now) else { return Due::NoReason };
    match view.leadership.nudges {
        Some(nudges) if now.since(nudges.last) >= EPISODE => Due::Nudge(reason),
        Some(nudges) if nudges.count >= MOST => Due::Later(nudges.last.plus(EPISODE)),
        Some(nudges) if now < nudges.last.plus(EVERY) => Due::Later(nudges.last.plus(EVERY)),
        _ => Due::Nudge(reason),
    }
}

fn reason(view: &View, now: Moment) -> Option<String> {
    let member = view.identity.member.as_ref()?;
    let config = view.cluster.config()?;
    if config.pause || view.leadership.reign.is_none() || view.session().is_none() {
        return None;
    }
    let own = view.members.get(member)?;
    let answer = own.patroni.as_ref()?.fresh(now, PROBE_LIMIT)?;
    if !matches!(answer, PatroniAnswer::Answering(_)) {
        return None;
    }
    // The server is down because a person wants it so.
    let fenced = view.leadership.records.get(member).and_then(|fact| fact.value.present());
    if fenced.is_some_and(|record| record.rule == Rule::Operator) {
        return None;
    }
    // A switchover is Patroni's own business: it stopped the server itself.
    let switching = view.cluster.failover.as_ref().is_some_and(|fact| fact.value.present().is_some());
    let dead = view.alive_lock.as_ref().is_some_and(|lock| lock.value == AliveLock::Gone);
    if view.leadership.gone.is_some_and(|gone| gone.probes >= 2) && !switching && !dead {
        return Some(format!("PostgreSQL of {member} is gone while its Patroni lives"));
    }
    if config.synchronous_mode && own.writable_since.is_some() && !switching {
        let sync = view.cluster.sync.as_ref()?.value.present()?;
        if sync.standbys.is_empty() {
            let streaming = streaming(view, member, now)?;
            return Some(format!("{streaming} streams and is not synchronous yet: a crash now could lose commits"));
        }
    }
    None
}

/// A member that streams, and could be synchronous.
fn streaming<'a>(view: &'a View, own: &MemberName, now: Moment) -> Option<&'a MemberName> {
    let streams = |name: &&MemberName| {
        let answer = assess::patroni_of(view, name, now).map(|fact| fact.value);
        *name != own
            && matches!(answer, Some(PatroniAnswer::Answering(status))
                if status.state == State::Streaming && status.role == Role::Replica && !status.nosync)
    };
    view.members.keys().find(streams)
}

#[cfg(test)]
#[path = "nudge_tests.rs"]
mod tests;
