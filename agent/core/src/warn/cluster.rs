//! About ZooKeeper, this agent, and the cluster as a whole.

use super::{FAILURE_SHOWN_FOR, List};
use crate::assess::{Leader, MemberStatus};
use crate::fact::{Fact, Reading};
use crate::types::{MemberName, Moment, seconds};
use crate::view::{Link, View};
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::{format, vec::Vec};

pub(super) fn zookeeper(view: &View, leader: &Leader<'_>, now: Moment, list: &mut List) {
    match &view.link {
        Link::Never => list.about_all("zookeeper_lost", "no ZooKeeper session yet".to_string()),
        Link::Lost { detail, since } => list
            .about_all("zookeeper_lost", format!("no ZooKeeper session for {}: {detail}", seconds(now.since(*since)))),
        Link::Connected { session, .. } => {
            if let (false, Some(why)) = (leader.verified, &leader.why_unverified) {
                list.about_all("leader_unverified", format!("the leader could not be verified: {why}"));
            }
            if session.negotiated != session.requested {
                list.about_all(
                    "session_timeout_differs",
                    format!(
                        "ZooKeeper grants a session timeout of {}, and Patroni's ttl is {}. The leader key lives for \
                         the granted timeout. Set ttl between 2 and 20 times ZooKeeper's tickTime",
                        seconds(session.negotiated),
                        seconds(session.requested)
                    ),
                );
            }
        }
    }
    for (task, failure) in &view.failed_tasks {
        if failure.age(now) <= FAILURE_SHOWN_FOR {
            list.about_one("agent_task_failed", task, format!("task {task} of this agent failed: {}", failure.value));
        }
    }
    if let Some(taken) = &view.name_taken {
        list.about_all(
            "agent_name_taken",
            format!("another agent runs as {} at {}: give one of them another name", view.identity.agent, taken.value),
        );
    }
}

pub(super) fn cluster(view: &View, leader: &Leader<'_>, members: &[MemberStatus<'_>], list: &mut List) {
    for (name, why) in unreadable(view) {
        list.about_one("znode_unreadable", &name, format!("znode {name} cannot be parsed: {why}"));
    }
    if view.session().is_some() && view.tree_read.is_some() && nothing_there(view) {
        let scope = &view.identity.scope;
        let text = format!(
            "ZooKeeper has nothing of cluster {scope}: scope, namespace or chroot is wrong here, or its data is lost"
        );
        list.about_all("tree_missing", text);
    }
    if view.session().is_some() && leader.reading == Some(&Reading::Absent) {
        list.about_all("no_leader", "no member holds the leader key".to_string());
    }
    for (place, names) in shared(members) {
        let names = names.join(" and ");
        list.about_one(
            "address_shared",
            &place,
            format!(
                "{names} have the same address, {place}, so Warden does not know whose server answers there. A member \
                 was renamed, or its connect_address was copied"
            ),
        );
    }
    let writable = writable_at_once(view, members);
    if writable.len() > 1 {
        list.about_all("several_writable", format!("{} take writes at once", writable.join(" and ")));
    }
    let Some(config) = view.cluster.config() else { return };
    if config.pause {
        list.about_all(
            "paused",
            "the cluster is in maintenance mode: Patroni does not fail over, and Warden does not \
         act"
            .to_string(),
        );
    }
    // Saturating: the numbers come from a znode and may be of any size.
    let needed = config.loop_wait.saturating_add(config.retry_timeout.saturating_mul(2));
    if needed > config.ttl {
        list.about_all(
            "timing_impossible",
            format!(
                "loop_wait + 2 * retry_timeout = {} is more than ttl = {}: raise ttl, or lower loop_wait or \
                 retry_timeout",
                seconds(needed),
                seconds(config.ttl)
            ),
        );
    }
    let sync = view.cluster.sync.as_ref().map(|fact| &fact.value);
    let unprotected = match sync {
        Some(Reading::Present(sync)) => sync.standbys.is_empty(),
        Some(Reading::Absent) => true,
        Some(Reading::Unreadable(_)) | None => false,
    };
    if config.synchronous_mode && unprotected {
        list.about_all(
            "no_synchronous_standby",
            "no standby is synchronous: a crash of the primary now can lose commits".to_string(),
        );
    }
}

fn unreadable(view: &View) -> impl Iterator<Item = (String, &str)> {
    fn of<'a, T>(name: &str, fact: Option<&'a Fact<Reading<T>>>) -> Option<(String, &'a str)> {
        fact.and_then(|fact| fact.value.unreadable()).map(|why| (name.to_string(), why))
    }
    let cluster = &view.cluster;
    let fixed = [
        of("leader", view.leader.as_ref()),
        of("config", cluster.config.as_ref()),
        of("sync", cluster.sync.as_ref()),
        of("status", cluster.status.as_ref()),
        of("history", cluster.history.as_ref()),
        of("failover", cluster.failover.as_ref()),
        of("failsafe", cluster.failsafe.as_ref()),
        of("initialize", cluster.initialize.as_ref()),
    ];
    let members =
        view.members.iter().filter_map(|(name, member)| of(&format!("members/{name}"), member.record.as_ref()));
    let agents = view.agents.iter().filter_map(|(name, fact)| of(&format!("agents/{name}"), Some(fact)));
    fixed.into_iter().flatten().chain(members).chain(agents)
}

/// Whether all znodes are absent that every cluster has.
fn nothing_there(view: &View) -> bool {
    fn absent<T: PartialEq>(fact: Option<&Fact<Reading<T>>>) -> bool {
        fact.is_none_or(|fact| fact.value == Reading::Absent)
    }
    let cluster = &view.cluster;
    absent(view.leader.as_ref())
        && absent(cluster.config.as_ref())
        && absent(cluster.initialize.as_ref())
        && view.members.values().all(|member| absent(member.record.as_ref()))
}

/// The members of which at least two were seen writable at the same moment.
///
/// Two recent sightings do not suffice: one server may have stopped before the other began.
fn writable_at_once<'a>(view: &View, members: &[MemberStatus<'a>]) -> Vec<&'a str> {
    let seen = members.iter().filter(|member| member.writable == Some(true)).filter_map(|member| {
        let (from, last) = (view.members.get(member.name)?.writable_since?, member.postgres.as_ref()?.at);
        Some((member.name, from, last))
    });
    let seen: Vec<(&MemberName, Moment, Moment)> = seen.collect();
    let with_another = |(name, from, last): &(&'a MemberName, Moment, Moment)| {
        let overlaps = seen.iter().any(|(other, began, ended)| {
            other != name && !view.at_one_address(name, other) && from <= ended && began <= last
        });
        overlaps.then_some(name.as_str())
    };
    seen.iter().filter_map(with_another).collect()
}

/// The addresses that more than one member has, with these members.
fn shared<'a>(members: &[MemberStatus<'a>]) -> Vec<(String, Vec<&'a str>)> {
    let mut by_place: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for member in members {
        if let (Some(host), Some(port)) = (member.host, member.port) {
            by_place.entry(format!("{host}:{port}")).or_default().push(member.name.as_str());
        }
    }
    by_place.into_iter().filter(|(_, names)| names.len() > 1).collect()
}
