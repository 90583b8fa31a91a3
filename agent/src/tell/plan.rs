//! The plan in words: what the rules of leadership and of routing would do now, what they hold back, and why.

use warden_core::event::PostgresAnswer;
use warden_core::evidence::presumed_writable;
use warden_core::limits::PROBE_LIMIT;
use warden_core::plan::{Fencing, Policy};
use warden_core::rules::fence::{self};
use warden_core::rules::{layout, nudge, reconnect, release, route};
use warden_core::types::{MemberName, Moment};
use warden_core::view::View;

/// One line for each thing that would be done or is held back; a single one where there is nothing.
pub fn lines(view: &View, policy: &Policy, now: Moment) -> Vec<String> {
    let mut lines = Vec::new();
    let verdict = fence::judge(view, now);
    let would = match policy.fencing {
        Fencing::Enforce => "fence",
        Fencing::Observe => "would fence (fencing.mode is observe)",
        Fencing::Off => "would fence (fencing.mode is off)",
    };
    for order in &verdict.orders {
        lines.push(format!("{would} {} by rule {}: {}", order.member, order.rule.as_str(), order.reason));
    }
    for held in &verdict.held {
        let why = held.obstacles.join("; ");
        lines.push(format!("held back: a fence of {} by rule {}, because {why}", held.member, held.rule.as_str()));
    }
    if let Some(at) = verdict.look_again {
        lines.push(format!(
            "the rules of fencing look again in {:.1} s, if nothing happens before",
            at.since(now).as_secs_f64()
        ));
    }
    // What is only observed is not released or nudged either.
    let observe = policy.fencing == Fencing::Observe;
    let observed = if observe { " (fencing.mode is observe)" } else { "" };
    match release::judge(view, &policy.release, now) {
        release::Due::Nothing => {}
        release::Due::Probe { others: true } => {
            lines.push("release: the candidate is being asked whether it has everything".to_owned());
        }
        release::Due::Probe { others: false } | release::Due::At(_) => {
            lines.push("release: the leader's death is being proved".to_owned());
        }
        release::Due::Release(release) => {
            lines.push(format!(
                "{}release the leader key{observed}: {}",
                if observe { "would " } else { "" },
                release.reason
            ));
        }
    }
    match nudge::judge(view, now) {
        nudge::Due::Nudge(reason) if policy.nudge => {
            lines.push(format!("{}nudge Patroni{observed}: {reason}", if observe { "would " } else { "" }));
        }
        nudge::Due::Later(at) if policy.nudge => {
            lines.push(format!("nudge Patroni again in {:.1} s", at.since(now).as_secs_f64()));
        }
        _ => {}
    }
    if let (reconnect::Due::Reconnect(reason), true) = (reconnect::judge(view, now), policy.nudge) {
        let would = if observe { "would " } else { "" };
        lines.push(format!("{would}tell the standby to try again to stream{observed}: {reason}"));
    }
    routing(view, policy, now, &mut lines);
    if lines.is_empty() {
        let own = view.identity.member.as_ref();
        let writes = own.is_some_and(|own| presumed_writable(view, own));
        lines.push(match own {
            Some(own) if writes => format!("nothing: {own} takes writes, and nothing speaks against it"),
            Some(own) => match unknown(view, own, now) {
                Some(why) => format!("nothing: it is not known whether {own} takes writes ({why})"),
                None => format!("nothing: {own} takes no writes"),
            },
            None if view.haproxy.is_some() => "nothing: HAProxy sends everybody where they belong".to_owned(),
            None => "nothing: this agent stands beside no node".to_owned(),
        });
    }
    lines
}

/// What HAProxy would be told, and whether its configuration would be written anew.
fn routing(view: &View, policy: &Policy, now: Moment, lines: &mut Vec<String>) {
    let (would, why) = match policy.routing {
        Fencing::Enforce => ("", ""),
        Fencing::Observe => ("would ", " (haproxy.mode or fencing.mode is observe)"),
        Fencing::Off => ("would ", " (haproxy.mode is off)"),
    };
    let routing = route::judge(view, &policy.route, now);
    if policy.routing == Fencing::Enforce {
        match (routing.hold, view.routing.held) {
            (Some((true, reason)), _) => lines.push(format!("hold new connections for writes: {reason}")),
            (Some((false, reason)), _) => lines.push(format!("let new connections for writes go on: {reason}")),
            (None, Some(_)) => lines.push("go on holding new connections for writes".to_owned()),
            (None, None) => {}
        }
    }
    for change in routing.changes {
        let (pool, to) = (change.pool.as_str(), change.to.as_str());
        lines.push(format!("{would}tell HAProxy's server {pool}/{} {to:?}{why}: {}", change.server, change.reason));
    }
    match layout::judge(view, now) {
        Ok((_, reason)) => lines.push(format!("{would}write HAProxy's configuration anew{why}: {reason}")),
        Err(Some(at)) => lines.push(format!(
            "{would}write HAProxy's configuration anew in {:.0} s{why}, if its members stay as they are",
            at.since(now).as_secs_f64()
        )),
        Err(None) => {}
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
