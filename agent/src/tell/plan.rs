//! The plan in words, for `warden plan`: the actions that the agent would take now, those that it holds back, and why.

use warden_core::decide::decide;
use warden_core::event::PostgresAnswer;
use warden_core::evidence::presumed_writable;
use warden_core::limits::PROBE_LIMIT;
use warden_core::plan::{Action, LocalAction, Notice, Observation, Policy, ServersAction, Step};
use warden_core::types::{MemberName, Moment};
use warden_core::view::View;

/// One line for each action that the agent would take or holds back. An empty plan is one line, which begins with
/// `nothing`.
pub fn lines(view: &View, policy: &Policy, now: Moment) -> Vec<String> {
    let plan = decide(view, policy, now);
    let mut lines: Vec<String> = plan.steps.iter().filter_map(step).collect();
    lines.extend(plan.notices.iter().map(|told| notice(told, now)));
    if !lines.is_empty() {
        return lines;
    }
    let own = view.identity.member.as_ref();
    vec![match own {
        Some(own) if presumed_writable(view, own, now) => {
            format!("nothing: {own} takes writes, and no rule objects")
        }
        Some(own) => match unknown(view, own, now) {
            Some(why) => format!("nothing: the agent does not know whether {own} takes writes ({why})"),
            None => format!("nothing: {own} takes no writes"),
        },
        None if view.haproxy.is_some() => "nothing: HAProxy sends each connection to the right member".to_owned(),
        None => "nothing: this agent has no node role".to_owned(),
    }]
}

/// A step in words; `None` for routine steps and for questions.
fn step(step: &Step) -> Option<String> {
    let Step { action, reason } = step;
    Some(match action {
        Action::Fence(order) => format!("fence {} by rule {}: {reason}", order.member, order.rule.as_str()),
        Action::CloseFence(_) => format!("close a fence: {reason}"),
        Action::Release(_) => format!("release the leader key: {reason}"),
        Action::Local(LocalAction::Nudge) => format!("nudge Patroni: {reason}"),
        Action::Local(LocalAction::Reconnect) => format!("make the standby retry streaming: {reason}"),
        Action::Servers(ServersAction::Hold { proxy, on: true }) => {
            format!("hold new connections for writes by {proxy}: {reason}")
        }
        Action::Servers(ServersAction::Hold { proxy, on: false }) => {
            format!("end the hold of new connections for writes by {proxy}: {reason}")
        }
        Action::Servers(ServersAction::Route(change)) => {
            format!("set HAProxy server {} to {:?}: {reason}", change.server, change.to.as_str())
        }
        Action::Render(_) => format!("write HAProxy's configuration file: {reason}"),
        Action::ZooKeeper(_) | Action::Keep(_) | Action::Ask(_) => return None,
    })
}

/// An action that mode `observe` prevents, in words.
fn observed(observation: &Observation) -> String {
    let observed = "(fencing.mode is observe)";
    match observation {
        Observation::Fence(order) => {
            format!("would fence {observed} {} by rule {}: {}", order.member, order.rule.as_str(), order.reason)
        }
        Observation::Release(release) => format!("would release the leader key {observed}: {}", release.reason),
        Observation::Nudge(reason) => format!("would nudge Patroni {observed}: {reason}"),
        Observation::Reconnect(reason) => {
            format!("would make the standby retry streaming {observed}: {reason}")
        }
        Observation::Route(change) => {
            let (server, to, reason) = (&change.server, change.to.as_str(), &change.reason);
            format!("would set HAProxy server {server} to {to:?} (haproxy.mode or fencing.mode is observe): {reason}")
        }
    }
}

/// A notice in words.
fn notice(notice: &Notice, now: Moment) -> String {
    let seconds = |at: &Moment| at.since(now).as_secs_f64();
    match notice {
        Notice::Observed(observation) => observed(observation),
        Notice::FenceHeld(held) => {
            let why = held.obstacles.join("; ");
            format!("held back: a fence of {} by rule {}, because {why}", held.member, held.rule.as_str())
        }
        Notice::FenceOrdered(member, rule) => {
            format!("the agent has ordered a fence of {member} by rule {}", rule.as_str())
        }
        Notice::FencingLooksAgain(at) => {
            format!("the fence rules decide again in {:.1} s, or at the next event", seconds(at))
        }
        Notice::ReleaseProves { candidate: true } => {
            "release: the agent asks the candidate whether it has every commit".to_owned()
        }
        Notice::ReleaseProves { candidate: false } => "release: the agent proves the death of the leader".to_owned(),
        Notice::ReleaseHeld(why) => format!("held back: the release of the leader key, because {why}"),
        Notice::NudgedAgain(at) => format!("nudge Patroni again in {:.1} s", seconds(at)),
        Notice::HoldGoesOn => "keep holding new connections for writes".to_owned(),
        Notice::RenderLater(at) => {
            format!("write HAProxy's configuration file in {:.0} s, if its members stay the same", seconds(at))
        }
        Notice::FencingIsOff => "the agent does not ask the fence rules: fencing.mode is off".to_owned(),
        Notice::RoutingIsOff => "the agent does not ask the routing rules: haproxy.mode is off".to_owned(),
    }
}

/// The reason for which the agent does not know whether the member's server takes writes; `None` if it knows.
fn unknown(view: &View, member: &MemberName, now: Moment) -> Option<String> {
    let answer = view.members.get(member).and_then(|known| known.postgres.as_ref());
    match answer.and_then(|fact| fact.fresh(now, PROBE_LIMIT)) {
        None => Some("there is no recent answer".to_owned()),
        Some(PostgresAnswer::Silent(why) | PostgresAnswer::Unknown(why) | PostgresAnswer::Stopping(why)) => {
            Some(why.clone())
        }
        Some(_) => None,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
