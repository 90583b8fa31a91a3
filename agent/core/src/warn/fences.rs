//! About fences, and the rules that could not fence here.

use super::List;
use crate::assess::MemberStatus;
use crate::decide::{FENCE_LOST_AFTER, FENCE_RETRY_PAUSE};
use crate::event::FenceSession;
use crate::evidence;
use crate::fact::Reading;
use crate::limits::PROBE_LIMIT;
use crate::rules::fence;
use crate::types::{MemberName, Moment, seconds};
use crate::view::View;
use alloc::format;
use core::time::Duration;

/// A failed fence is shown for this long. The agent orders it again within this time while the rule asks for it.
const FENCE_FAILURE_SHOWN_FOR: Duration = Duration::from_secs(15);

const _: () =
    assert!(FENCE_LOST_AFTER.as_millis() + FENCE_RETRY_PAUSE.as_millis() < FENCE_FAILURE_SHOWN_FOR.as_millis());

pub(super) fn all(view: &View, members: &[MemberStatus<'_>], now: Moment, list: &mut List) {
    for (member, fact) in &view.leadership.records {
        match &fact.value {
            Reading::Present(record) => {
                // The agent leaves a server in recovery running.
                let as_it_is = members.iter().any(|status| status.name == member && status.writable == Some(false));
                let state = match record.confirmed {
                    Some(_) => "is fenced",
                    None if as_it_is => "is fenced and runs in recovery",
                    None => "is being fenced, NOT confirmed yet",
                };
                let (rule, reason) = (record.rule.as_str(), &record.reason);
                list.about("fenced", member, format!("{member} {state} ({rule}): {reason}"));
            }
            Reading::Unreadable(why) => {
                let name = format!("fences/{member}");
                list.about_one("znode_unreadable", &name, format!("znode {name} cannot be parsed: {why}"));
            }
            Reading::Absent => {}
        }
    }
    for (member, ordered) in &view.leadership.ordered {
        // If the rule no longer asks for it, the agent does not try again. The server may even lead by now.
        if let Some((why, rule, at)) = &ordered.failing
            && now.since(*at) <= FENCE_FAILURE_SHOWN_FOR
            && evidence::presumed_writable(view, member, now)
        {
            let rule = rule.as_str();
            let text = format!("{member} may still take writes: the fence ({rule}) failed: {why}; stop its PostgreSQL");
            list.about("fence_failed", member, text);
        }
    }
    for held in fence::judge(view, now).held {
        let (member, rule) = (&held.member, held.rule.as_str());
        let why = held.obstacles.join("; ");
        list.about("fence_held", member, format!("{member} would be fenced ({rule}), but {why}"));
    }
    let Some(own) = &view.identity.member else { return };
    lease(view, own, now, list);
    let memory = &view.leadership;
    let answers = view.members.get(own).and_then(|member| member.postgres.as_ref()?.fresh(now, PROBE_LIMIT));
    // A restarted server answers before the new session is open.
    let lasting = memory.fence_session_lost.is_some_and(|since| now.since(since) > PROBE_LIMIT);
    if let (Some(FenceSession::Lost(why)), Some(_), true) =
        (memory.fence_session.as_ref().map(|fact| &fact.value), answers, lasting)
    {
        let text = format!("the agent has no session to fence {own} with, so a fence would be slower: {why}");
        list.about("fence_session_lost", own, text);
    }
}

/// The warning waits for this long: the watcher of the heartbeat may just have begun.
const HEARTBEAT_GRACE: Duration = Duration::from_secs(30);

/// The gaps of the rule `lease`.
fn lease(view: &View, own: &MemberName, now: Moment, list: &mut List) {
    let memory = &view.leadership;
    let (Some(config), Some(term)) = (view.cluster.config(), &memory.term) else { return };
    let lease = memory.patroni_timeout(config.ttl).unwrap_or(config.ttl).saturating_sub(evidence::LEASE_MARGIN);
    let limit = evidence::progress_limit(config);
    // Patroni corrects an impossible timing. The warning `timing_impossible` reports that.
    let possible = config.loop_wait.saturating_add(config.retry_timeout.saturating_mul(2)) <= config.ttl;
    if possible && limit > lease {
        list.about(
            "lease_uncovered",
            own,
            format!(
                "the lease of {own} may end {} before the agent finds its answering Patroni stuck: loop_wait + \
                 retry_timeout + 5 s ({}) is more than the session timeout less 5 s ({}). Raise ttl (up to 20 x \
                 tickTime), or lower loop_wait or retry_timeout",
                seconds(limit.saturating_sub(lease)),
                seconds(limit),
                seconds(lease)
            ),
        );
    }
    let since = view.members.get(own).and_then(|member| member.writable_since).map(|since| since.max(term.since));
    let long = since.is_some_and(|since| now.since(since) >= HEARTBEAT_GRACE);
    if long && !config.pause && !evidence::heartbeat_can_be_had(view, now) {
        list.about(
            "heartbeat_unknown",
            own,
            format!(
                "the agent cannot see Patroni's session \"Patroni heartbeat\" in PostgreSQL of {own} (track_activities \
                 is off, Patroni is older than 4.0, or no superuser is configured). Without ZooKeeper, the lease rule \
                 may stop a leader whose REST API is stuck"
            ),
        );
    }
}
