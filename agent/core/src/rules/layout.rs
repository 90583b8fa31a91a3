//! Which servers HAProxy's configuration has to name, and when it is written anew.
//!
//! A reload costs: old workers linger, checks begin anew. So it is done only for what the runtime socket cannot do,
//! another set of members or other addresses, and not for one that is away for a moment.

use crate::event::MemberRecord;
use crate::evidence;
use crate::fact::Reading;
use crate::haproxy::file::{Layout, Place, Rendered};
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use core::time::Duration;

/// A member that has come, or that has moved, is written down after this: Patroni writes its znode in pieces.
const COMES: Duration = Duration::from_secs(2);

/// A member that is gone is left in for this long. Its znode goes with each lost session, and comes back; and HAProxy's
/// checks know that it is down.
const GOES: Duration = Duration::from_secs(60);

/// What failed is tried again after this: a template, or a disk, is mended by people.
pub const AGAIN: Duration = Duration::from_secs(30);

/// A rendering of which nothing is heard for this long is ordered again.
const LOST: Duration = Duration::from_secs(60);

/// The members as ZooKeeper has them, if that is known.
pub fn wanted(view: &View, now: Moment) -> Option<Layout> {
    evidence::contact(view, now)?;
    view.tree_read?;
    let place = |member: &MemberName, record: &MemberRecord| {
        let (host, port, api) = (record.host.clone()?, record.port?, record.api.clone()?);
        Some(Place { member: member.clone(), host, port, api })
    };
    let places = view.members.iter().filter_map(|(name, member)| place(name, member.last_record.as_ref()?));
    Some(places.collect())
}

/// Notes what HAProxy's configuration should be made of, where that is known, and since when.
pub fn remember(view: &mut View, now: Moment) {
    if view.drawing.rendered.is_none() {
        return;
    }
    let Some(wanted) = wanted(view, now) else { return };
    if view.drawing.wanted.as_ref().is_none_or(|(known, _)| *known != wanted) {
        view.drawing.wanted = Some((wanted, now));
    }
}

/// What the file has to be made of now, and why; or when it may have to be.
pub fn judge(view: &View, now: Moment) -> Result<(Layout, String), Option<Moment>> {
    let drawing = &view.drawing;
    let (Some(reading), Some((wanted, since))) = (&drawing.rendered, &drawing.wanted) else { return Err(None) };
    let (layout, current) = match reading {
        Reading::Present(Rendered { layout, current }) => (layout.as_slice(), *current),
        Reading::Absent => ([].as_slice(), false),
        // What is not ours is not overwritten.
        Reading::Unreadable(_) => return Err(None),
    };
    // A cluster without members is one that we do not see.
    if wanted.is_empty() || (wanted.as_slice() == layout && current) {
        return Err(None);
    }
    let names = |places: &[Place]| places.iter().map(|place| place.member.clone()).collect::<BTreeSet<_>>();
    let (has, wants) = (names(layout), names(wanted));
    let goes = has.difference(&wants).next();
    let settled = since.plus(if goes.is_some() { GOES } else { COMES });
    let retried = drawing.failed.as_ref().map(|(_, at)| at.plus(AGAIN));
    let ordered = drawing.ordered.map(|at| at.plus(LOST));
    let due = [Some(settled), retried, ordered].into_iter().flatten().max().unwrap_or(now);
    if now < due {
        return Err(Some(due));
    }
    let reason = match (goes, wants.difference(&has).next()) {
        _ if *reading == Reading::Absent => "there is no file".to_string(),
        (Some(gone), _) => alloc::format!("{gone} is no member any more"),
        (None, Some(new)) => alloc::format!("{new} is a member now"),
        _ if wanted.as_slice() != layout => "a member has another address".to_string(),
        _ => "the template has changed, or HAProxy does not serve what is written".to_string(),
    };
    Ok((wanted.clone(), reason))
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
