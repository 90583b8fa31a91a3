//! The nudge: when the agent wakes the local Patroni before its next round, for an action that this round would take
//! anyway.
//!
//! A nudge is a `PATCH /config` that changes nothing: Patroni writes nothing and begins a round. The agent nudges at
//! most once a second, a bounded number of times for one reason, and never in maintenance mode.

use crate::assess;
use crate::event::{AliveLock, PatroniAnswer, Role, Rule, State};
use crate::leadership::NUDGE_EPISODE_GAP;
use crate::limits::PROBE_LIMIT;
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// The shortest interval between two nudges.
pub const NUDGE_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// The largest number of nudges for one reason. Patroni's own round comes every `loop_wait`, usually 10 s.
pub const NUDGE_COUNT_MAX: u32 = 15;

const _: () = assert!(NUDGE_INTERVAL_MIN.as_millis() < NUDGE_EPISODE_GAP.as_millis());

/// The verdict on a nudge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// No reason for a nudge.
    NoReason,
    /// A reason exists, but the next nudge is not due before this moment.
    Later(Moment),
    /// Nudge the local Patroni. The text gives the reason.
    Nudge(String),
}

/// Judges whether to nudge the local Patroni.
pub fn judge(view: &View, now: Moment) -> Verdict {
    let Some(reason) = reason(view, now) else { return Verdict::NoReason };
    match view.leadership.nudges {
        Some(nudges) if now.since(nudges.last) >= NUDGE_EPISODE_GAP => Verdict::Nudge(reason),
        Some(nudges) if nudges.count >= NUDGE_COUNT_MAX => Verdict::Later(nudges.last.plus(NUDGE_EPISODE_GAP)),
        Some(nudges) if now < nudges.last.plus(NUDGE_INTERVAL_MIN) => {
            Verdict::Later(nudges.last.plus(NUDGE_INTERVAL_MIN))
        }
        _ => Verdict::Nudge(reason),
    }
}

fn reason(view: &View, now: Moment) -> Option<String> {
    let member = view.identity.member.as_ref()?;
    let config = view.cluster.config()?;
    if config.pause || view.leadership.term.is_none() || view.session().is_none() {
        return None;
    }
    let own = view.members.get(member)?;
    let answer = own.patroni.as_ref()?.fresh(now, PROBE_LIMIT)?;
    if !matches!(answer, PatroniAnswer::Answering(_)) {
        return None;
    }
    // The operator wants the server down.
    let fenced = view.leadership.records.get(member).and_then(|fact| fact.value.present());
    if fenced.is_some_and(|record| record.rule == Rule::Operator) {
        return None;
    }
    // In a switchover Patroni stops the server itself.
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

/// A member that streams and can become synchronous.
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
