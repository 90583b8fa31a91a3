//! The members in HAProxy's configuration file, and when the agent rewrites it.
//!
//! The agent adds, removes and moves members at HAProxy's runtime socket, if HAProxy can do that; other changes need a
//! reload. A reload has a cost: old workers linger, checks restart, and old sessions end after a time. So the agent
//! ignores a short absence of a member, and never reloads twice in short succession.

use crate::event::MemberRecord;
use crate::evidence;
use crate::fact::Reading;
use crate::haproxy::file::{Backends, MemberAddress, Rendered};
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// The time after which a new or moved member is written. Patroni writes its znode in pieces.
const MEMBER_JOIN_DEBOUNCE: Duration = Duration::from_secs(2);

/// The time that an absent member stays in the file. Its znode goes with each lost session, and returns. HAProxy's
/// checks mark it down meanwhile.
const MEMBER_LEAVE_DEBOUNCE: Duration = Duration::from_secs(60);

/// The shortest interval between two reloads.
const RELOAD_INTERVAL_MIN: Duration = Duration::from_secs(10);

/// The pause after a failed rewrite. The operator has to repair the template or the disk first.
pub const RENDER_RETRY_PAUSE: Duration = Duration::from_secs(30);

/// A rewrite without a report after this time is ordered again.
const RENDER_LOST_AFTER: Duration = Duration::from_secs(60);

const _: () = assert!(MEMBER_JOIN_DEBOUNCE.as_millis() < MEMBER_LEAVE_DEBOUNCE.as_millis());

/// Patroni's default, until its dynamic configuration is known.
const MAX_CONNECTIONS_DEFAULT: u32 = 100;

/// The wanted content of the file by ZooKeeper's members; `None` if they are not known.
pub fn wanted(view: &View, now: Moment) -> Option<Backends> {
    evidence::contact(view, now)?;
    view.tree_read?;
    let place = |member: &MemberName, record: &MemberRecord| {
        let (host, port, api) = (record.host.clone()?, record.port?, record.api.clone()?);
        Some(MemberAddress { member: member.clone(), host, port, api })
    };
    let places = view.members.iter().filter_map(|(name, member)| place(name, member.last_record.as_ref()?));
    // An unreadable configuration is no reason to change the file.
    let written = match &view.haproxy_file.rendered {
        Some(Reading::Present(Rendered { backends, .. })) => backends.max_connections,
        _ => MAX_CONNECTIONS_DEFAULT,
    };
    let max_connections = view.cluster.config().map_or(written, |config| config.max_connections);
    Some(Backends { places: places.collect(), max_connections })
}

/// Notes the wanted content, and since when it has been the same.
pub fn remember(view: &mut View, now: Moment) {
    if view.haproxy_file.rendered.is_none() {
        return;
    }
    let Some(wanted) = wanted(view, now) else { return };
    if view.haproxy_file.wanted.as_ref().is_none_or(|(known, _)| *known != wanted) {
        view.haproxy_file.wanted = Some((wanted, now));
    }
}

/// The content to write now, with the reason. Otherwise the moment at which a rewrite may be due.
pub fn judge(view: &View, now: Moment) -> Result<(Backends, String), Option<Moment>> {
    let memory = &view.haproxy_file;
    let (Some(reading), Some((wanted, since))) = (&memory.rendered, &memory.wanted) else { return Err(None) };
    let (backends, current) = match reading {
        Reading::Present(Rendered { backends, current, .. }) => (Some(backends), *current),
        Reading::Absent => (None, false),
        // The agent does not overwrite a file that Warden did not write.
        Reading::Unreadable(_) => return Err(None),
    };
    // An empty cluster means that the agent does not see it.
    if wanted.places.is_empty() || (Some(wanted) == backends && current) {
        return Err(None);
    }
    let names = |places: &[MemberAddress]| places.iter().map(|place| place.member.clone()).collect::<BTreeSet<_>>();
    let places = backends.map_or([].as_slice(), |backends| backends.places.as_slice());
    let (has, wants) = (names(places), names(&wanted.places));
    let goes = has.difference(&wants).next();
    // Absent members stay for a while. New or moved members do not wait for that.
    let gone = places.iter().filter(|place| !wants.contains(&place.member)).cloned();
    let mut together: Vec<MemberAddress> = wanted.places.iter().cloned().chain(gone).collect();
    together.sort_unstable();
    let together = Backends { places: together, max_connections: wanted.max_connections };
    let stays = goes.is_some() && now < since.plus(MEMBER_LEAVE_DEBOUNCE);
    if stays && Some(&together) == backends && current {
        return Err(Some(since.plus(MEMBER_LEAVE_DEBOUNCE)));
    }
    let (wanted, goes) = if stays { (&together, None) } else { (wanted, goes) };
    let settled = since.plus(if goes.is_some() { MEMBER_LEAVE_DEBOUNCE } else { MEMBER_JOIN_DEBOUNCE });
    let retried = memory.failed.as_ref().map(|(_, at)| at.plus(RENDER_RETRY_PAUSE));
    let ordered = memory.ordered.map(|at| at.plus(RENDER_LOST_AFTER));
    let reloaded = memory.reloaded.map(|at| at.plus(RELOAD_INTERVAL_MIN));
    let due = [Some(settled), retried, ordered, reloaded].into_iter().flatten().max().unwrap_or(now);
    if now < due {
        return Err(Some(due));
    }
    let reason = match (goes, wants.difference(&has).next()) {
        _ if *reading == Reading::Absent => "there is no file".to_string(),
        (Some(gone), _) => alloc::format!("{gone} has left the cluster"),
        (None, Some(new)) => alloc::format!("{new} has joined the cluster"),
        _ if wanted.places != places => "a member has another address".to_string(),
        _ if Some(wanted) != backends => alloc::format!("max_connections is {} now", wanted.max_connections),
        _ => "the template has changed, or HAProxy does not serve the file".to_string(),
    };
    Ok((wanted.clone(), reason))
}

#[cfg(test)]
#[path = "haproxy_file_tests.rs"]
mod tests;
