//! What should be done, as a pure function of what is believed.
//!
//! The plan verifies, announces and keeps the session timeout equal to Patroni's ttl. The rules that act on the
//! world are modules beside this one ([`crate::rules::fence`], [`crate::rules::release`], [`crate::rules::nudge`], [`crate::rules::reconnect`],
//! [`crate::rules::route`], [`crate::rules::layout`]); what is in here is only when what they say is ordered, and when again.

use crate::announce::announcement;
use crate::event::{FenceOutcome, PostgresAnswer, Rule};
use crate::evidence;
use crate::leadership::EPISODE;
use crate::limits::PROBE_LIMIT;
use crate::plan::{Action, Due, Note, Plan, Policy, Step};
use crate::rules::{fence, layout, nudge, reconnect, release, route};
use crate::types::{MemberName, Mode, Moment};
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

/// A server that starts, and must not take writes unseen, is asked this often.
const WATCH_START: Duration = Duration::from_millis(40);

/// Decides. Total: any view, any policy, any moment. Whether a rule is obeyed, observed or not asked is decided here and
/// nowhere else.
pub fn decide(view: &View, policy: &Policy, now: Moment) -> Plan {
    let mut plan = Plan { steps: Vec::new(), notes: Vec::new(), wake: now.plus(policy.verify_every) };
    if let Link::Connected { session, .. } = &view.link {
        if let Some(due) = session_timeout(view, session.requested, now) {
            plan.consider(due, now);
        }
        plan.consider(verification(view, policy, now), now);
        plan.consider(announcement(view, policy, now), now);
    }
    if let Some(memory) = view.leadership.to_keep().filter(|memory| view.leadership.kept.as_ref() != Some(memory)) {
        plan.step(Action::Keep(memory), "a restart of the agent must not forget it");
    }
    fencing(view, policy, now, &mut plan);
    // Switched by keys of their own; what is only observed is not released or nudged either.
    let observe = policy.fencing == Mode::Observe;
    releasing(view, policy, observe, now, &mut plan);
    if policy.nudge {
        nudging(view, observe, now, &mut plan);
        reconnecting(view, observe, now, &mut plan);
    }
    routing(view, policy, now, &mut plan);
    plan
}

fn nudging(view: &View, observe: bool, now: Moment, plan: &mut Plan) {
    let said = view.leadership.nudges.is_some_and(|nudges| now.since(nudges.last) < EPISODE);
    match (nudge::judge(view, now), observe) {
        (nudge::Due::NoReason, _) => {}
        (nudge::Due::Nudge(reason), false) => plan.step(Action::Nudge, reason),
        // Once for each episode.
        (nudge::Due::Nudge(reason), _) if !said => plan.step(Action::ObserveNudge, reason),
        (nudge::Due::Nudge(_), _) => {}
        (nudge::Due::Later(at), _) => {
            plan.notes.push(Note::NudgedAgain(at));
            plan.consider(Due::At(at), now);
        }
    }
}

fn reconnecting(view: &View, observe: bool, now: Moment, plan: &mut Plan) {
    let said = view.leadership.reconnects.is_some_and(|tries| now.since(tries.last) < EPISODE);
    match (reconnect::judge(view, now), observe) {
        (reconnect::Due::NoReason, _) => {}
        (reconnect::Due::Reconnect(reason), false) => plan.step(Action::Reconnect, reason),
        (reconnect::Due::Reconnect(reason), _) if !said => plan.step(Action::ObserveReconnect, reason),
        (reconnect::Due::Reconnect(_), _) => {}
        (reconnect::Due::Ask, _) => {
            plan.step(Action::Probe { others: false }, "whether it receives WAL is to be known");
        }
        (reconnect::Due::Later(at), _) => plan.consider(Due::At(at), now),
    }
}

fn routing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    if policy.routing == Mode::Off {
        if view.haproxy.is_some() {
            plan.notes.push(Note::RoutingIsOff);
        }
        return;
    }
    let enforce = policy.routing == Mode::Enforce;
    let routing = route::judge(view, &policy.route, now);
    if let Some(at) = routing.again {
        plan.consider(Due::At(at), now);
    }
    let mut hold = routing.hold.filter(|_| enforce);
    if hold.is_none() && view.routing.held.is_some() {
        plan.notes.push(Note::HoldGoesOn);
    }
    // They wait before anything is changed, and go on when all of it is.
    if let Some((_, reason)) = hold.take_if(|(on, _)| *on) {
        plan.step(Action::Hold { on: true }, reason);
    }
    for change in routing.changes {
        let (reason, change) = (change.reason.clone(), Box::new(change));
        if enforce {
            plan.step(Action::Route(change), reason);
            continue;
        }
        let told = view.routing.told.get(&(change.pool, change.server.clone()));
        if told.is_none_or(|(told, at)| *told != change.to || now.since(*at) >= OBSERVED_AGAIN) {
            plan.step(Action::ObserveRoute(change), reason);
        }
    }
    if let Some((_, reason)) = hold {
        plan.step(Action::Hold { on: false }, reason);
    }
    // What is only observed is not written either; the file is read once the agent enforces.
    if !enforce {
        return;
    }
    match layout::judge(view, now) {
        Ok((layout, reason)) => plan.step(Action::Render(layout), reason),
        Err(Some(at)) => {
            plan.notes.push(Note::RenderLater(at));
            plan.consider(Due::At(at), now);
        }
        Err(None) => {}
    }
    if routing.look {
        plan.step(Action::Look, "writes have nowhere to go, or are about to");
    }
}

fn fencing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    if policy.fencing == Mode::Off {
        plan.notes.push(Note::FencingIsOff);
        return;
    }
    let verdict = fence::judge(view, now);
    if let Some(at) = verdict.look_again {
        plan.notes.push(Note::FencingLooksAgain(at));
        plan.consider(Due::At(at), now);
    }
    plan.notes.extend(verdict.held.into_iter().map(Note::FenceHeld));
    for order in verdict.orders {
        let next = next_fence(view, &order.member, policy, now);
        if now < next {
            plan.notes.push(Note::FenceOrdered(order.member, order.rule));
            plan.consider(Due::At(next), now);
            continue;
        }
        let reason = order.reason.clone();
        let order = Box::new(order);
        plan.step(
            if policy.fencing == Mode::Enforce { Action::Fence(order) } else { Action::ObserveFence(order) },
            reason,
        );
    }
    if verdict.watch_start {
        let next = view.leadership.probed.map_or(now, |probed| probed.plus(WATCH_START));
        if now >= next {
            plan.step(Action::Probe { others: false }, "it starts, and must not take writes unseen");
            plan.consider(Due::At(now.plus(WATCH_START)), now);
        } else {
            plan.consider(Due::At(next), now);
        }
    }
    if let Some(step) = closing(view, now) {
        plan.steps.push(step);
    }
}

/// When a fence of `member` may be ordered, at the earliest.
fn next_fence(view: &View, member: &MemberName, policy: &Policy, now: Moment) -> Moment {
    let Some(ordered) = view.leadership.ordered.get(member) else { return now };
    if policy.fencing == Mode::Observe {
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

/// Our own fence is over when the server is in recovery, or our member holds the key again by a later read than the
/// record: what the record says was so before. What the operator asked for stays.
fn closing(view: &View, now: Moment) -> Option<Step> {
    let own = view.identity.member.as_ref()?;
    if view.leadership.closed.is_some_and(|at| now.since(at) < CLOSE_PAUSE) {
        return None;
    }
    let record = view.leadership.records.get(own)?.value.present().filter(|record| record.rule != Rule::Operator)?;
    let known = evidence::verified(view, now)?;
    let holds = known.leader.present().is_some_and(|key| key.holder == *own);
    let earlier = record.written.is_some_and(|(written, _)| written < known.zxid);
    // A release writes the record right before it deletes the key.
    let releasing = view.leadership.release.as_ref().is_some_and(|release| release.outcome.is_none());
    let answer = view.members.get(own)?.postgres.as_ref().and_then(|fact| fact.fresh(now, PROBE_LIMIT));
    let reason = match answer {
        _ if holds && earlier && !releasing => format!("{own} holds the leader key"),
        Some(PostgresAnswer::InRecovery(_)) => format!("{own} is in recovery"),
        _ => return None,
    };
    let reason = format!("{reason}: the fence by rule {} is over", record.rule.as_str());
    Some(Step { action: Action::CloseFence(own.clone()), reason })
}

fn releasing(view: &View, policy: &Policy, observe: bool, now: Moment, plan: &mut Plan) {
    match release::judge(view, &policy.release, now) {
        release::Due::Nothing => {}
        release::Due::Probe { others } => {
            let reason =
                if others { "a candidate is to be seen to have everything" } else { "its death is to be proved" };
            plan.notes.push(Note::ReleaseProves { candidate: others });
            plan.step(Action::Probe { others }, reason);
        }
        release::Due::At(at) => {
            plan.notes.push(Note::ReleaseProves { candidate: false });
            plan.consider(Due::At(at), now);
        }
        release::Due::Held(why, at) => {
            plan.notes.push(Note::ReleaseHeld(why));
            if let Some(at) = at {
                plan.consider(Due::At(at), now);
            }
        }
        release::Due::Release(release) if !observe => {
            let reason = release.reason.clone();
            plan.step(Action::Release(Box::new(release)), reason);
        }
        release::Due::Release(release) => {
            let last = view.leadership.release.as_ref();
            if last.is_none_or(|last| now.since(last.at) >= OBSERVED_AGAIN) {
                let reason = release.reason.clone();
                plan.step(Action::ObserveRelease(Box::new(release)), reason);
            }
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
