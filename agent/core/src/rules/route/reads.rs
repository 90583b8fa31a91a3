//! Routing of reads: which of HAProxy's servers take new ones.

use super::RoutePolicy;
use crate::assess::{self, MemberStatus};
use crate::event::{HaproxyServer, PatroniAnswer, State};
use crate::haproxy::{Check, ServerCommand};
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::OnceCell;

/// The command to a server for reads with its reason, if one is needed.
pub(super) fn judge<'a>(
    view: &'a View,
    policy: &RoutePolicy,
    (server, up): (&HaproxyServer, bool),
    member: &MemberName,
    statuses: &OnceCell<Vec<MemberStatus<'a>>>,
    now: Moment,
) -> Option<(ServerCommand, String)> {
    let last = view.routing.last_commands.get(&server.id);
    let was_behind = last.is_some_and(|(command, _)| *command == ServerCommand::Drain);
    // Most servers need none: HAProxy's checks decide about a server that they took out.
    if !up && !was_behind && !matches!(server.check, Check::Fails(_)) {
        return None;
    }
    let statuses = statuses.get_or_init(|| assess::members(view, now));
    let status = statuses.iter().find(|status| status.name == member)?;
    let waits = |why: String| up.then_some((ServerCommand::Drain, why));
    if status.writable == Some(true) {
        return waits(format!("{member} takes writes"));
    }
    if view
        .members
        .get(member)
        .and_then(|member| member.last_record.as_ref())
        .is_some_and(|record| record.noloadbalance)
    {
        return waits(format!("{member} has the tag noloadbalance"));
    }
    // Without the leader's position the lag is unknown. HAProxy's checks ask Patroni.
    let lag = status.lag?;
    let limit = if was_behind { policy.max_lag / 2 } else { policy.max_lag };
    if lag > limit {
        return waits(format!("{member} is more than {limit} bytes behind"));
    }
    if !up && was_behind {
        return Some((ServerCommand::Up, format!("{member} has caught up: {lag} bytes behind")));
    }
    // HAProxy's check fails without a usable answer, while the agent gets one.
    let Check::Fails(words) = &server.check else { return None };
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
