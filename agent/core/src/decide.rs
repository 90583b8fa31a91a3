//! The decision: a pure function from the view to a plan.
//!
//! The plan verifies the leader, announces the agent, and keeps the session timeout equal to Patroni's ttl. The rules
//! that act on the cluster are in [`crate::rules`]. This module only decides when the agent orders their verdicts, and
//! when again.

use crate::announce::announcement;
use crate::event::{FenceOutcome, PostgresAnswer, Rule};
use crate::evidence;
use crate::leadership::NUDGE_EPISODE_GAP;
use crate::limits::PROBE_LIMIT;
use crate::plan::{
    Action, Ask, Due, LocalAction, Notice, Observation, Plan, Policy, ServersAction, Step, ZooKeeperAction,
};
use crate::rules::route::Hold;
use crate::rules::{fence, haproxy_file, nudge, reconnect, release, route};
use crate::types::{MemberName, Mode, Moment};
use crate::view::{Link, View};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

/// A barrier read without an answer after this time is lost. The client limits the read to 2 s.
const VERIFICATION_LOST_AFTER: Duration = Duration::from_secs(3);

/// The pause after a failed barrier read.
const VERIFICATION_PAUSE: Duration = Duration::from_millis(500);

/// The agent takes over a new ttl after this time. Patroni's nodes do it within moments.
const TTL_SETTLE_TIME: Duration = Duration::from_secs(5);

/// A fence without a report after this time is lost. Its own ladder takes less.
pub const FENCE_LOST_AFTER: Duration = Duration::from_secs(12);

/// The pause after a failed fence.
pub(crate) const FENCE_RETRY_PAUSE: Duration = Duration::from_millis(500);

/// The interval at which a shutdown statement in front of a silent server is renewed.
pub const FENCE_RENEWAL_INTERVAL: Duration = Duration::from_secs(5);

/// A shutdown statement that waits in front of a silent server is valid for this long. One valid statement always waits
/// there, and an obsolete one soon expires.
pub const FENCE_ORDER_LIFETIME: Duration = Duration::from_secs(12);

const _: () = assert!(FENCE_ORDER_LIFETIME.as_secs() > FENCE_RENEWAL_INTERVAL.as_secs() * 2);

/// The pause after the removal of a fence record.
const CLOSE_RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The interval at which mode `observe` repeats an action while its reason lasts.
const OBSERVED_REPEAT_INTERVAL: Duration = Duration::from_secs(60);

/// The interval of questions to a starting server that must not take writes unnoticed.
const START_PROBE_INTERVAL: Duration = Duration::from_millis(40);

/// Decides. Total: any view, any policy, any moment. Only this function applies the modes `enforce`, `observe` and
/// `off`.
pub fn decide(view: &View, policy: &Policy, now: Moment) -> Plan {
    let mut plan = Plan { steps: Vec::new(), notices: Vec::new(), wake: now.plus(policy.verify_every) };
    if let Link::Connected { session, .. } = &view.link {
        if let Some(due) = session_timeout(view, session.requested, now) {
            plan.consider(due, now);
        }
        plan.consider(verification(view, policy, now), now);
        plan.consider(announcement(view, policy, now), now);
    }
    if let Some(memory) = view.leadership.to_keep().filter(|memory| view.leadership.kept.as_ref() != Some(memory)) {
        plan.step(Action::Keep(memory), "a restart of the agent must not lose it");
    }
    fencing(view, policy, now, &mut plan);
    // These have configuration keys of their own. Mode `observe` of the fence rules counts here too.
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
    let reported = view.leadership.nudges.is_some_and(|nudges| now.since(nudges.last) < NUDGE_EPISODE_GAP);
    match (nudge::judge(view, now), observe) {
        (nudge::Verdict::NoReason, _) => {}
        (nudge::Verdict::Nudge(reason), false) => plan.step(Action::Local(LocalAction::Nudge), reason),
        // `observe` reports it once for each episode.
        (nudge::Verdict::Nudge(reason), _) if !reported => plan.observe(Observation::Nudge(reason)),
        (nudge::Verdict::Nudge(_), _) => {}
        (nudge::Verdict::Later(at), _) => {
            plan.notices.push(Notice::NudgedAgain(at));
            plan.consider(Due::At(at), now);
        }
    }
}

fn reconnecting(view: &View, observe: bool, now: Moment, plan: &mut Plan) {
    let reported = view.leadership.reconnects.is_some_and(|tries| now.since(tries.last) < NUDGE_EPISODE_GAP);
    match (reconnect::judge(view, now), observe) {
        (reconnect::Verdict::NoReason, _) => {}
        (reconnect::Verdict::Reconnect(reason), false) => plan.step(Action::Local(LocalAction::Reconnect), reason),
        (reconnect::Verdict::Reconnect(reason), _) if !reported => plan.observe(Observation::Reconnect(reason)),
        (reconnect::Verdict::Reconnect(_), _) => {}
        (reconnect::Verdict::Ask, _) => {
            plan.step(Action::Ask(Ask::Local), "the agent has to know whether the standby receives WAL");
        }
        (reconnect::Verdict::Later(at), _) => plan.consider(Due::At(at), now),
    }
}

fn routing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    if policy.routing == Mode::Off {
        if view.haproxy.is_some() {
            plan.notices.push(Notice::RoutingIsOff);
        }
        return;
    }
    let enforce = policy.routing == Mode::Enforce;
    let routing = route::judge(view, &policy.route, now);
    if let Some(at) = routing.again {
        plan.consider(Due::At(at), now);
    }
    let (begin, end): (Vec<_>, Vec<_>) = routing.holds.into_iter().filter(|_| enforce).partition(|hold| hold.on);
    if begin.is_empty() && end.is_empty() && !view.routing.hold_refreshed_at.is_empty() {
        plan.notices.push(Notice::HoldGoesOn);
    }
    // The hold begins before the first change, and ends after the last.
    for Hold { proxy, on, reason } in begin {
        plan.step(Action::Servers(ServersAction::Hold { proxy, on }), reason);
    }
    for change in routing.changes {
        let change = Box::new(change);
        if enforce {
            let reason = change.reason.clone();
            plan.step(Action::Servers(ServersAction::Route(change)), reason);
            continue;
        }
        let last = view.routing.last_commands.get(&change.server);
        if last.is_none_or(|last| last.to != change.to || now.since(last.at) >= OBSERVED_REPEAT_INTERVAL) {
            plan.observe(Observation::Route(change));
        }
    }
    for Hold { proxy, on, reason } in end {
        plan.step(Action::Servers(ServersAction::Hold { proxy, on }), reason);
    }
    // Mode `observe` does not write the file. The watcher reads it in mode `enforce` only.
    if !enforce {
        return;
    }
    match haproxy_file::judge(view, now) {
        Ok((backends, reason)) => plan.step(Action::Render(backends), reason),
        Err(Some(at)) => {
            plan.notices.push(Notice::RenderLater(at));
            plan.consider(Due::At(at), now);
        }
        Err(None) => {}
    }
    if routing.probe {
        plan.step(
            Action::Ask(Ask::HaproxyAndMembers),
            "no server for writes is up and writable, or one is about to stop",
        );
    }
}

fn fencing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    if policy.fencing == Mode::Off {
        plan.notices.push(Notice::FencingIsOff);
        return;
    }
    let verdict = fence::judge(view, now);
    if let Some(at) = verdict.look_again {
        plan.notices.push(Notice::FencingLooksAgain(at));
        plan.consider(Due::At(at), now);
    }
    plan.notices.extend(verdict.held.into_iter().map(Notice::FenceHeld));
    for order in verdict.orders {
        let next = next_fence(view, &order.member, policy, now);
        if now < next {
            plan.notices.push(Notice::FenceOrdered(order.member, order.rule));
            plan.consider(Due::At(next), now);
            continue;
        }
        let (reason, order) = (order.reason.clone(), Box::new(order));
        if policy.fencing == Mode::Enforce {
            plan.step(Action::Fence(order), reason);
        } else {
            plan.observe(Observation::Fence(order));
        }
    }
    if verdict.watch_start {
        let next = view.leadership.probed.map_or(now, |probed| probed.plus(START_PROBE_INTERVAL));
        if now >= next {
            plan.step(Action::Ask(Ask::Local), "the server starts, and must not take writes unnoticed");
            plan.consider(Due::At(now.plus(START_PROBE_INTERVAL)), now);
        } else {
            plan.consider(Due::At(next), now);
        }
    }
    if let Some(step) = closing(view, now) {
        plan.steps.push(step);
    }
}

/// The earliest moment at which a fence of `member` may be ordered.
fn next_fence(view: &View, member: &MemberName, policy: &Policy, now: Moment) -> Moment {
    let Some(ordered) = view.leadership.ordered.get(member) else { return now };
    if policy.fencing == Mode::Observe {
        return ordered.at.plus(OBSERVED_REPEAT_INTERVAL);
    }
    match &ordered.outcome {
        None => ordered.at.plus(FENCE_LOST_AFTER),
        Some((FenceOutcome::Observed, _, _)) => ordered.at.plus(OBSERVED_REPEAT_INTERVAL),
        // The server resumed and takes writes. The queued statement was lost with its session (simulation, seed
        // 713982).
        Some((FenceOutcome::Waiting, _, at)) if writable_since(view, member, *at) => now,
        Some((FenceOutcome::Waiting, _, _)) => ordered.at.plus(FENCE_RENEWAL_INTERVAL),
        // The rule asks again only if the server takes writes again.
        Some((FenceOutcome::Confirmed { .. }, _, _)) => now,
        Some((FenceOutcome::Failed(_) | FenceOutcome::Withdrawn(_), _, at)) => at.plus(FENCE_RETRY_PAUSE),
    }
}

/// Whether the member's server was asked after `at` and takes writes.
fn writable_since(view: &View, member: &MemberName, at: Moment) -> bool {
    let answer = view.members.get(member).and_then(|known| known.postgres.as_ref());
    answer.is_some_and(|answer| answer.at > at && matches!(answer.value, PostgresAnswer::Writable(_)))
}

/// The removal of the local member's fence record. It is due when the server is in recovery, or when a read later than
/// the record shows the key as the member's. The operator's records stay.
fn closing(view: &View, now: Moment) -> Option<Step> {
    let own = view.identity.member.as_ref()?;
    if view.leadership.closed.is_some_and(|at| now.since(at) < CLOSE_RETRY_PAUSE) {
        return None;
    }
    let record = view.leadership.records.get(own)?.value.present().filter(|record| record.rule != Rule::Operator)?;
    let known = evidence::verified(view, now)?;
    let holds = known.leader.present().is_some_and(|key| key.holder == *own);
    let earlier = record.written.is_some_and(|(written, _)| written < known.zxid);
    // A release writes the record right before it deletes the key, so that record stays.
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
        release::Verdict::Nothing => {}
        release::Verdict::Probe { others } => {
            let reason = if others {
                "the candidate has to prove that it has every commit"
            } else {
                "the end of the local server has to be proved"
            };
            plan.notices.push(Notice::ReleaseProves { candidate: others });
            plan.step(Action::Ask(if others { Ask::LocalAndOthers } else { Ask::Local }), reason);
        }
        release::Verdict::At(at) => {
            plan.notices.push(Notice::ReleaseProves { candidate: false });
            plan.consider(Due::At(at), now);
        }
        release::Verdict::Held(why, at) => {
            plan.notices.push(Notice::ReleaseHeld(why));
            if let Some(at) = at {
                plan.consider(Due::At(at), now);
            }
        }
        release::Verdict::Release(release) if !observe => {
            let reason = release.reason.clone();
            plan.step(Action::Release(Box::new(release)), reason);
        }
        release::Verdict::Release(release) => {
            let last = view.leadership.release.as_ref();
            if last.is_none_or(|last| now.since(last.at) >= OBSERVED_REPEAT_INTERVAL) {
                plan.observe(Observation::Release(Box::new(release)));
            }
        }
    }
}

/// A change of the session timeout to Patroni's ttl: ZooKeeper then grants the agent the same timeout as Patroni.
///
/// After a change of ttl every Patroni begins a new session, and the leader's key ends with its old one. The agent
/// keeps its session until then, to see the result (simulation, seed 303891).
fn session_timeout(view: &View, requested: Duration, now: Moment) -> Option<Due> {
    let ttl = view.cluster.config().map(|config| config.ttl).filter(|ttl| *ttl != requested)?;
    if let Some(at) = view.leadership.ttl_changed.map(|at| at.plus(TTL_SETTLE_TIME)).filter(|at| now < *at) {
        return Some(Due::At(at));
    }
    let reason = format!("ttl in Patroni's configuration is {} s", ttl.as_secs());
    Some(Due::Now(
        Step { action: Action::ZooKeeper(ZooKeeperAction::UseSessionTimeout(ttl)), reason },
        now.plus(TTL_SETTLE_TIME),
    ))
}

fn verification(view: &View, policy: &Policy, now: Moment) -> Due {
    let verify = |reason: &str| {
        let step = Step { action: Action::ZooKeeper(ZooKeeperAction::Verify), reason: reason.to_string() };
        Due::Now(step, now.plus(VERIFICATION_LOST_AFTER))
    };
    let finished = view.verified.as_ref().map(|known| known.started);
    let failed = view.barrier_failed.as_ref().map(|failed| failed.at);
    let Some(asked) = view.verification_asked else { return verify("new session") };
    let answered = finished.max(failed).is_some_and(|at| at >= asked);
    if !answered {
        let lost = asked.plus(VERIFICATION_LOST_AFTER);
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
