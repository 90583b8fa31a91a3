//! The writability of a member's server: whether it takes writes, by the newest report.

use crate::assess;
use crate::event::{PatroniAnswer, PostgresAnswer, Starting};
use crate::limits::{AGENT_LIMIT, PROBE_LIMIT};
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

/// Questions asked up to this long after a lost session do not count: a server that is about to stop may answer
/// once more. A wrong sign delays new connections by little more than this.
const SESSION_LOST_GRACE: Duration = Duration::from_millis(50);

/// The limit of a question to a server, and so the age of the question once a server counts as silent.
const SILENT_QUESTION_LIMIT: Duration = Duration::from_secs(1);

/// The newest report of whether a member's server takes writes.
pub(super) struct Writability {
    pub writable: bool,
    at: Moment,
    pub why: String,
}

impl Writability {
    /// It takes no writes.
    pub(super) fn not(at: Moment, why: &str) -> Self {
        Self { writable: false, at, why: why.to_string() }
    }
}

/// The writability of a member's server by the newest report: this agent's, its own agent's, or a lost session. `None`
/// if unknown.
///
/// This agent asks from HAProxy's host: HAProxy cannot reach a server that this agent cannot reach. A reachable server
/// stops counting as writable as soon as its own agent reports the contrary.
pub(super) fn writability(view: &View, member: &MemberName, now: Moment) -> Option<Writability> {
    let known = view.members.get(member);
    let answer = known.and_then(|known| known.postgres.as_ref());
    let lost = view.routing.session_lost_at.get(member).filter(|at| now.since(**at) <= PROBE_LIMIT);
    // A later answer outranks the lost session.
    if let Some(at) = lost.filter(|at| answer.is_none_or(|answer| answer.at < at.plus(SESSION_LOST_GRACE))) {
        return Some(Writability { writable: false, at: *at, why: "the agent's session with it was lost".to_string() });
    }
    // A slow server has not stopped. New connections may go there as long as its Patroni answers this agent.
    let answers = known
        .and_then(|known| known.patroni.as_ref())
        .is_some_and(|fact| matches!(fact.value, PatroniAnswer::Answering(_)) && fact.age(now) <= PROBE_LIMIT);
    let own = answer.filter(|fact| fact.age(now) <= PROBE_LIMIT);
    let own = own.filter(|fact| {
        !matches!(fact.value, PostgresAnswer::Silent(_))
            || (!answers && any_source_answers(view, fact.at.minus(SILENT_QUESTION_LIMIT)))
    });
    let own = own.and_then(|fact| from_answer(&fact.value, fact.at, "it"));
    let agent = assess::agent_of(view, member).and_then(|(_, fact)| {
        let (answer, age) = fact.value.present()?.postgres.as_ref()?;
        let at = fact.at.minus(*age);
        let recent = now.since(at) <= AGENT_LIMIT && !matches!(answer, PostgresAnswer::Silent(_));
        if recent { from_answer(answer, at, "its agent reports that it") } else { None }
    });
    match (own, agent) {
        (Some(own), Some(agent)) if own.writable && !agent.writable && agent.at > own.at => Some(agent),
        // A member's agent that is cut off from ZooKeeper leaves an old record (simulation, seed 106296).
        (None, Some(agent)) if !agent.writable => Some(by_patroni_since(view, member, agent.at, now).unwrap_or(agent)),
        (own, agent) => own.or(agent),
    }
}

/// The report of a member's Patroni to this agent that the server takes writes, if it is newer than `since`.
fn by_patroni_since(view: &View, member: &MemberName, since: Moment, now: Moment) -> Option<Writability> {
    let fact = view.members.get(member)?.patroni.as_ref()?;
    let PatroniAnswer::Answering(status) = fact.fresh(now, PROBE_LIMIT)? else { return None };
    let writable = status.writable == Some(true) && fact.at > since;
    writable.then(|| Writability { writable, at: fact.at, why: "its Patroni reports that it takes writes".to_string() })
}

/// Whether any member, or ZooKeeper, has answered a question since then. If not, this agent may be cut off, and the
/// local HAProxy may not be.
fn any_source_answers(view: &View, since: Moment) -> bool {
    let member_does = view.members.values().any(|member| {
        let patroni = member.patroni.as_ref().filter(|fact| !matches!(fact.value, PatroniAnswer::Silent(_)));
        let postgres = member.postgres.as_ref().filter(|fact| !matches!(fact.value, PostgresAnswer::Silent(_)));
        patroni.map(|fact| fact.at) >= Some(since) || postgres.map(|fact| fact.at) >= Some(since)
    });
    member_does || view.verified.as_ref().is_some_and(|read| read.started >= since)
}

fn from_answer(answer: &PostgresAnswer, at: Moment, who: &str) -> Option<Writability> {
    let (writable, why) = match answer {
        PostgresAnswer::Writable(_) => (true, format!("{who} takes writes")),
        PostgresAnswer::InRecovery(_) => (false, format!("{who} is in recovery")),
        PostgresAnswer::Refused(why)
        | PostgresAnswer::Starting(Starting { why, .. })
        | PostgresAnswer::Stopping(why)
        | PostgresAnswer::Gone(why) => (false, format!("{who} refuses sessions: {why}")),
        PostgresAnswer::Silent(why) => (false, format!("{who} is silent: {why}")),
        PostgresAnswer::Unknown(_) => return None,
    };
    Some(Writability { writable, at, why })
}
