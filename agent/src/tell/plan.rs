//! The plan in words, for `warden plan`: what would be done now, what is held back, and why.

use warden_core::decide::decide;
use warden_core::event::PostgresAnswer;
use warden_core::evidence::presumed_writable;
use warden_core::limits::PROBE_LIMIT;
use warden_core::plan::{Action, Note, Policy, Step};
use warden_core::types::{MemberName, Mode, Moment};
use warden_core::view::View;

/// One line for each thing that would be done or is held back; a single one where there is nothing.
pub fn lines(view: &View, policy: &Policy, now: Moment) -> Vec<String> {
    let plan = decide(view, policy, now);
    let mut lines: Vec<String> = plan.steps.iter().filter_map(|step| done(step, policy)).collect();
    lines.extend(plan.notes.iter().map(|note| not_done(note, now)));
    if !lines.is_empty() {
        return lines;
    }
    let own = view.identity.member.as_ref();
    vec![match own {
        Some(own) if presumed_writable(view, own, now) => {
            format!("nothing: {own} takes writes, and nothing speaks against it")
        }
        Some(own) => match unknown(view, own, now) {
            Some(why) => format!("nothing: it is not known whether {own} takes writes ({why})"),
            None => format!("nothing: {own} takes no writes"),
        },
        None if view.haproxy.is_some() => "nothing: HAProxy sends everybody where they belong".to_owned(),
        None => "nothing: this agent stands beside no node".to_owned(),
    }]
}

/// A step in words; `None` for what is done all the time, and for questions.
fn done(step: &Step, policy: &Policy) -> Option<String> {
    let Step { action, reason } = step;
    let observed = "(fencing.mode is observe)";
    Some(match action {
        Action::Fence(order) => format!("fence {} by rule {}: {reason}", order.member, order.rule.as_str()),
        Action::ObserveFence(order) => {
            format!("would fence {observed} {} by rule {}: {reason}", order.member, order.rule.as_str())
        }
        Action::CloseFence(_) => format!("close a fence: {reason}"),
        Action::Release(_) => format!("release the leader key: {reason}"),
        Action::ObserveRelease(_) => format!("would release the leader key {observed}: {reason}"),
        Action::Nudge => format!("nudge Patroni: {reason}"),
        Action::ObserveNudge => format!("would nudge Patroni {observed}: {reason}"),
        Action::Reconnect => format!("tell the standby to try again to stream: {reason}"),
        Action::ObserveReconnect => format!("would tell the standby to try again to stream {observed}: {reason}"),
        Action::Hold { on: true } => format!("hold new connections for writes: {reason}"),
        Action::Hold { on: false } => format!("let new connections for writes go on: {reason}"),
        Action::Route(change) | Action::ObserveRoute(change) => {
            let (would, why) = match policy.routing {
                Mode::Observe => ("would ", " (haproxy.mode or fencing.mode is observe)"),
                Mode::Enforce | Mode::Off => ("", ""),
            };
            let (pool, to) = (change.pool.as_str(), change.to.as_str());
            format!("{would}tell HAProxy's server {pool}/{} {to:?}{why}: {reason}", change.server)
        }
        Action::Render(_) => format!("write HAProxy's configuration anew: {reason}"),
        Action::Verify
        | Action::Announce(_)
        | Action::UseSessionTimeout(_)
        | Action::Keep(_)
        | Action::Probe { .. }
        | Action::Look => return None,
    })
}

fn not_done(note: &Note, now: Moment) -> String {
    let seconds = |at: &Moment| at.since(now).as_secs_f64();
    match note {
        Note::FenceHeld(held) => {
            let why = held.obstacles.join("; ");
            format!("held back: a fence of {} by rule {}, because {why}", held.member, held.rule.as_str())
        }
        Note::FenceOrdered(member, rule) => format!("a fence of {member} by rule {} is ordered", rule.as_str()),
        Note::FencingLooksAgain(at) => {
            format!("the rules of fencing look again in {:.1} s, if nothing happens before", seconds(at))
        }
        Note::ReleaseProves { candidate: true } => {
            "release: the candidate is being asked whether it has everything".to_owned()
        }
        Note::ReleaseProves { candidate: false } => "release: the leader's death is being proved".to_owned(),
        Note::ReleaseHeld(why) => format!("held back: the release of the leader key, because {why}"),
        Note::NudgedAgain(at) => format!("nudge Patroni again in {:.1} s", seconds(at)),
        Note::HoldGoesOn => "go on holding new connections for writes".to_owned(),
        Note::RenderLater(at) => {
            format!("write HAProxy's configuration anew in {:.0} s, if its members stay as they are", seconds(at))
        }
        Note::FencingIsOff => "the rules of fencing are not asked: fencing.mode is off".to_owned(),
        Note::RoutingIsOff => "the rules of routing are not asked: haproxy.mode is off".to_owned(),
    }
}

/// Why it is not known whether the member's server takes writes, if it is not.
fn unknown(view: &View, member: &MemberName, now: Moment) -> Option<String> {
    let answer = view.members.get(member).and_then(|known| known.postgres.as_ref());
    match answer.and_then(|fact| fact.fresh(now, PROBE_LIMIT)) {
        None => Some("it has not been asked lately".to_owned()),
        Some(PostgresAnswer::Silent(why) | PostgresAnswer::Unknown(why) | PostgresAnswer::Stopping(why)) => {
            Some(why.clone())
        }
        Some(_) => None,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
