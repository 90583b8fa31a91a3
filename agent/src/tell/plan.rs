//! The plan in words: what the rules of leadership would do now, what they hold back, and why.

use warden_core::assess::PROBE_LIMIT;
use warden_core::decide::{Fencing, Policy};
use warden_core::event::PostgresAnswer;
use warden_core::fence::{self, presumed_writable};
use warden_core::types::{MemberName, Moment};
use warden_core::view::View;
use warden_core::{nudge, release};

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
    if lines.is_empty() {
        let own = view.identity.member.as_ref();
        let writes = own.is_some_and(|own| presumed_writable(view, own));
        lines.push(match own {
            Some(own) if writes => format!("nothing: {own} takes writes, and nothing speaks against it"),
            Some(own) => match unknown(view, own, now) {
                Some(why) => format!("nothing: it is not known whether {own} takes writes ({why})"),
                None => format!("nothing: {own} takes no writes"),
            },
            None => "nothing: this agent stands beside no node".to_owned(),
        });
    }
    lines
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
