//! What should be done, as a pure function of what is believed.
//!
//! The plan verifies, announces and keeps the session timeout equal to Patroni's ttl. The rules that act on the
//! world are modules beside this one ([`crate::rules::fence`], [`crate::rules::release`], [`crate::rules::nudge`], [`crate::rules::reconnect`],
//! [`crate::rules::route`], [`crate::rules::layout`]); what is in here is only when what they say is ordered, and when again.

use crate::announce::announcement;
use crate::event::{FenceOutcome, PostgresAnswer, Rule};
use crate::evidence;
use crate::limits::PROBE_LIMIT;
use crate::plan::{Action, Due, Fencing, Plan, Policy, Step};
use crate::rules::{fence, layout, nudge, reconnect, release, route};
use crate::types::{MemberName, Moment};
use crate::view::{Link, View};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

/// A barrier read that has not come back after this long is not coming: the read itself is limited to 2 s.
const VERIFICATION_LOST: Duration = Duration::from_secs(3);

/// A failed barrier read is not repeated sooner than this.
const VERIFICATION_PAUSE: Duration = Duration::from_millis(500);

/// A new ttl is taken over after this: Patroni's nodes do it within moments.
const TTL_SETTLES: Duration = Duration::from_secs(5);

/// A fence that is under way is not ordered again sooner than this: its own ladder takes less.
const FENCE_LOST: Duration = Duration::from_secs(12);

/// A fence that did not work is ordered again after this.
const FENCE_PAUSE: Duration = Duration::from_millis(500);

/// A fence that waits in front of a silent server is renewed this often; each is good for twice as long, so that
/// one that is no longer wanted is soon none.
pub const FENCE_RENEWED: Duration = Duration::from_secs(5);

/// A record that was removed is looked for again after this.
const CLOSE_PAUSE: Duration = Duration::from_secs(2);

/// What would be fenced is said this often while the reason lasts.
const OBSERVED_AGAIN: Duration = Duration::from_secs(60);

/// Decides. Total: any view, any policy, any moment.
pub fn decide(view: &View, policy: &Policy, now: Moment) -> Plan {
    let mut plan = Plan { steps: Vec::new(), wake: now.plus(policy.verify_every) };
    if let Link::Connected { session, .. } = &view.link {
        if let Some(due) = session_timeout(view, session.requested, now) {
            plan.consider(due, now);
        }
        plan.consider(verification(view, policy, now), now);
        plan.consider(announcement(view, policy, now), now);
    }
    fencing(view, policy, now, &mut plan);
    releasing(view, policy, now, &mut plan);
    if policy.nudge {
        match nudge::judge(view, now) {
            nudge::Due::Nudge(reason) => plan.steps.push(Step { action: Action::Nudge, reason }),
            nudge::Due::Later(at) => plan.consider(Due::At(at), now),
            nudge::Due::NoReason => {}
        }
        match reconnect::judge(view, now) {
            reconnect::Due::Reconnect(reason) => plan.steps.push(Step { action: Action::Reconnect, reason }),
            reconnect::Due::Ask => {
                let reason = "whether it receives WAL is to be known".to_string();
                plan.steps.push(Step { action: Action::Probe { others: false }, reason });
            }
            reconnect::Due::Later(at) => plan.consider(Due::At(at), now),
            reconnect::Due::NoReason => {}
        }
    }
    routing(view, policy, now, &mut plan);
    plan
}

fn routing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    if policy.routing == Fencing::Off {
        return;
    }
    let routing = route::judge(view, &policy.route, now);
    if let Some(at) = routing.again {
        plan.consider(Due::At(at), now);
    }
    let mut hold = routing.hold.filter(|_| policy.routing == Fencing::Enforce);
    // They wait before anything is changed, and go on when all of it is.
    if let Some((_, reason)) = hold.take_if(|(on, _)| *on) {
        plan.steps.push(Step { action: Action::Hold { on: true }, reason });
    }
    for change in routing.changes {
        let (reason, change) = (change.reason.clone(), Box::new(change));
        if policy.routing == Fencing::Enforce {
            plan.steps.push(Step { action: Action::Route(change), reason });
            continue;
        }
        let told = view.routing.told.get(&(change.pool, change.server.clone()));
        if told.is_none_or(|(told, at)| *told != change.to || now.since(*at) >= OBSERVED_AGAIN) {
            plan.steps.push(Step { action: Action::ObserveRoute(change), reason });
        }
    }
    if let Some((_, reason)) = hold {
        plan.steps.push(Step { action: Action::Hold { on: false }, reason });
    }
    // What is only observed is not written either; the file is read once the agent enforces.
    if policy.routing == Fencing::Enforce {
        match layout::judge(view, now) {
            Ok((layout, reason)) => plan.steps.push(Step { action: Action::Render(layout), reason }),
            Err(Some(at)) => plan.consider(Due::At(at), now),
            Err(None) => {}
        }
    }
    if routing.look && policy.routing == Fencing::Enforce {
        let reason = "writes have nowhere to go, or are about to".to_string();
        plan.steps.push(Step { action: Action::Look, reason });
    }
}

fn fencing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    if policy.fencing == Fencing::Off {
        return;
    }
    let verdict = fence::judge(view, now);
    if let Some(at) = verdict.look_again {
        plan.consider(Due::At(at), now);
    }
    for order in verdict.orders {
        let next = next_fence(view, &order.member, policy, now);
        if now < next {
            plan.consider(Due::At(next), now);
            continue;
        }
        let reason = order.reason.clone();
        let order = Box::new(order);
        let action =
            if policy.fencing == Fencing::Enforce { Action::Fence(order) } else { Action::ObserveFence(order) };
        plan.steps.push(Step { action, reason });
    }
    if let Some(step) = closing(view, now) {
        plan.steps.push(step);
    }
}

/// When a fence of `member` may be ordered, at the earliest.
fn next_fence(view: &View, member: &MemberName, policy: &Policy, now: Moment) -> Moment {
    let Some(ordered) = view.leadership.ordered.get(member) else { return now };
    if policy.fencing == Fencing::Observe {
        return ordered.at.plus(OBSERVED_AGAIN);
    }
    match &ordered.outcome {
        None => ordered.at.plus(FENCE_LOST),
        Some((FenceOutcome::Observed, _, _)) => ordered.at.plus(OBSERVED_AGAIN),
        // It woke and takes writes: what waited in front of it was lost, with the session that it lay in (simulation,
        // seed 713982).
        Some((FenceOutcome::Waiting, _, at)) if writable_since(view, member, *at) => now,
        Some((FenceOutcome::Waiting, _, _)) => ordered.at.plus(FENCE_RENEWED),
        // It takes writes again, or the rule would not ask for it.
        Some((FenceOutcome::Confirmed { .. }, _, _)) => now,
        Some((FenceOutcome::Failed(_) | FenceOutcome::Withdrawn(_), _, at)) => at.plus(FENCE_PAUSE),
    }
}

/// Whether the member's server was asked after `at` and takes writes.
fn writable_since(view: &View, member: &MemberName, at: Moment) -> bool {
    let answer = view.members.get(member).and_then(|known| known.postgres.as_ref());
    answer.is_some_and(|answer| answer.at > at && matches!(answer.value, PostgresAnswer::Writable(_)))
}

/// Our own fence is over when the server is in recovery or leads again; what a person asked for stays.
fn closing(view: &View, now: Moment) -> Option<Step> {
    let own = view.identity.member.as_ref()?;
    if view.leadership.closed.is_some_and(|at| now.since(at) < CLOSE_PAUSE) {
        return None;
    }
    let record = view.leadership.records.get(own)?.value.present().filter(|record| record.rule != Rule::Operator)?;
    let known = evidence::verified(view, now)?;
    let postgres = view.members.get(own)?.postgres.as_ref()?.fresh(now, PROBE_LIMIT)?;
    let reason = match (postgres, known.leader.present()) {
        (PostgresAnswer::InRecovery(_), _) => format!("{own} is in recovery"),
        (PostgresAnswer::Writable(_), Some(key)) if key.holder == *own => format!("{own} leads"),
        _ => return None,
    };
    let reason = format!("{reason}: the fence by rule {} is over", record.rule.as_str());
    Some(Step { action: Action::CloseFence(own.clone()), reason })
}

fn releasing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    match release::judge(view, &policy.release, now) {
        release::Due::Nothing => {}
        release::Due::Probe { others } => {
            let reason =
                if others { "a candidate is to be seen to have everything" } else { "its death is to be proved" };
            plan.steps.push(Step { action: Action::Probe { others }, reason: reason.to_string() });
        }
        release::Due::At(at) => plan.consider(Due::At(at), now),
        release::Due::Release(release) => {
            let reason = release.reason.clone();
            plan.steps.push(Step { action: Action::Release(Box::new(release)), reason });
        }
    }
}

/// The session timeout is Patroni's ttl, so that what the server grants us is what it grants Patroni.
///
/// A change has every Patroni begin a new session, and the leader's key goes with its old one: until that is over, we
/// have to see what comes of it (simulation, seed 303891).
fn session_timeout(view: &View, requested: Duration, now: Moment) -> Option<Due> {
    let ttl = view.cluster.config().map(|config| config.ttl).filter(|ttl| *ttl != requested)?;
    if let Some(at) = view.leadership.ttl_changed.map(|at| at.plus(TTL_SETTLES)).filter(|at| now < *at) {
        return Some(Due::At(at));
    }
    let reason = format!("ttl in Patroni's configuration is {} s", ttl.as_secs());
    Some(Due::Now(Step { action: Action::UseSessionTimeout(ttl), reason }, now.plus(TTL_SETTLES)))
}

fn verification(view: &View, policy: &Policy, now: Moment) -> Due {
    let verify = |reason: &str| {
        let step = Step { action: Action::Verify, reason: reason.to_string() };
        Due::Now(step, now.plus(VERIFICATION_LOST))
    };
    let finished = view.verified.as_ref().map(|known| known.started);
    let failed = view.barrier_failed.as_ref().map(|failed| failed.at);
    let Some(asked) = view.verification_asked else { return verify("new session") };
    let answered = finished.max(failed).is_some_and(|at| at >= asked);
    if !answered {
        let lost = asked.plus(VERIFICATION_LOST);
        return if now >= lost { verify("no answer to the last attempt") } else { Due::At(lost) };
    }
    if failed > finished {
        let next = asked.plus(VERIFICATION_PAUSE);
        return if now >= next { verify("the last attempt failed") } else { Due::At(next) };
    }
    let changed = match (&view.verified, &view.leader) {
        (Some(known), Some(leader)) => leader.at > known.started && leader.value != known.leader,
        _ => false,
    };
    if changed {
        return verify("the leader key changed");
    }
    let next = asked.plus(policy.verify_every);
    if now >= next { verify("periodic") } else { Due::At(next) }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
