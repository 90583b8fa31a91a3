//! Routing of reads: which of HAProxy's servers take new ones.

use super::RoutePolicy;
use crate::assess::{self, MemberStatus};
use crate::event::{HaproxyServer, PatroniAnswer, State};
use crate::haproxy::{Check, Pool, ServerCommand};
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::OnceCell;
use core::time::Duration;

/// The command to a server for reads with its reason, if one is needed.
pub(super) fn judge<'a>(
    view: &'a View,
    policy: &RoutePolicy,
    (servers, server, up): (&[HaproxyServer], &HaproxyServer, bool),
    member: &MemberName,
    statuses: &OnceCell<Vec<MemberStatus<'a>>>,
    now: Moment,
) -> Option<(ServerCommand, String)> {
    let last = view.routing.last_commands.get(&server.id);
    let was_behind = last.is_some_and(|last| last.to == ServerCommand::Drain);
    // Most servers need none: HAProxy's checks decide about a server that they took out.
    if !up && !was_behind && !matches!(server.check, Check::Fails(_)) {
        return None;
    }
    let statuses = statuses.get_or_init(|| assess::members(view, now));
    let status = statuses.iter().find(|status| status.name == member)?;
    let waits = |why: String| up.then_some((ServerCommand::Drain, why));
    // Reads from a primary are never stale. HAProxy's checks decide whether this proxy wants it, as with `/read-only`.
    if status.writable == Some(true) {
        return None;
    }
    if view
        .members
        .get(member)
        .and_then(|member| member.last_record.as_ref())
        .is_some_and(|record| record.noloadbalance)
    {
        return waits(format!("{member} has the tag noloadbalance"));
    }
    // Without it, a proxy that has no other server would refuse reads that HAProxy's checks alone let through.
    let is_needed = || !policy.reads_fall_back && !has_another(view, policy, (servers, server), statuses, now);
    if is_cut_off(view, member, now) {
        return waits(format!("{member} does not stream any more")).filter(|_| !is_needed());
    }
    // Without the leader's position the lag is unknown. HAProxy's checks ask Patroni.
    let lag = status.lag?;
    let limit = if was_behind { policy.max_lag / 2 } else { policy.max_lag };
    if lag > limit {
        return waits(format!("{member} is more than {limit} bytes behind")).filter(|_| !is_needed());
    }
    // A check that is answered with no knows more than the lag.
    if !up && was_behind && !matches!(server.check, Check::Refuses(_)) {
        return Some((ServerCommand::Up, format!("{member} has caught up: {lag} bytes behind")));
    }
    // HAProxy's check fails without a usable answer, while the agent gets one. What it last said of the server counts:
    // the proxy may want no such replica.
    let Check::Fails(words) = &server.check else { return None };
    if view.routing.refused.contains(&server.id) {
        return None;
    }
    let patroni = assess::patroni_of(view, member, now)?;
    let streams = matches!(patroni.value, PatroniAnswer::Answering(status) if status.state == State::Streaming);
    // HAProxy's failing check would take it out again.
    ((!up || server.is_failing()) && streams && status.writable == Some(false)).then(|| {
        (
            ServerCommand::Up,
            format!("{member} streams, {lag} bytes behind, and HAProxy's check gets no usable answer: {words}"),
        )
    })
}

/// A replica that has not streamed for this long is cut off from its primary. A new primary ends all streams.
const STREAM_LOST_MIN: Duration = Duration::from_secs(10);

/// Whether a replica has streamed, and has not for [`STREAM_LOST_MIN`]: what it reads stands still.
fn is_cut_off(view: &View, member: &MemberName, now: Moment) -> bool {
    let since = view.routing.streamed.get(member).copied().flatten();
    since.is_some_and(|since| now.since(since) >= STREAM_LOST_MIN)
}

/// Whether the proxy of `server` has another server that takes reads, and is a primary or within the limit of lag.
fn has_another(
    view: &View,
    policy: &RoutePolicy,
    (servers, server): (&[HaproxyServer], &HaproxyServer),
    statuses: &[MemberStatus<'_>],
    now: Moment,
) -> bool {
    let is_fit = |other: &HaproxyServer| {
        if other.member.as_ref().is_some_and(|member| is_cut_off(view, member, now)) {
            return false;
        }
        let status = statuses.iter().find(|status| Some(status.name) == other.member.as_ref());
        status.is_none_or(|status| status.writable == Some(true) || status.lag.is_none_or(|lag| lag <= policy.max_lag))
    };
    let mut others = servers.iter().filter(|other| {
        other.pool == Pool::Reads && other.id.proxy == server.id.proxy && other.id != server.id && other.up
    });
    others.any(is_fit)
}
