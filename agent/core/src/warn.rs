//! What a person should know: warnings in plain words, each with a code that does not change.
//!
//! A warning states a fact that is wrong or unknown, never a guess. Codes are an interface: they are
//! listed in [`CODES`], documented in the README, and used as metric labels.

mod haproxy;
mod members;

use crate::assess::{self, Leader, MemberTruth};
use crate::event::FenceSession;
use crate::evidence;
use crate::fact::Reading;
use crate::limits::PROBE_LIMIT;
use crate::rules::fence;
use crate::types::seconds;
use crate::types::{MemberName, Moment};
use crate::view::{Link, View};
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::{format, vec::Vec};
use core::time::Duration;

/// Something a person should know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// One of [`CODES`].
    pub code: &'static str,
    /// The member it is about, if it is about one.
    pub member: Option<MemberName>,
    /// What else it is about, where there can be several of its code: a znode, a task, an agent.
    /// With code and member it says which warning this is; the words change while it lasts.
    pub subject: Option<String>,
    /// In plain words.
    pub message: String,
}

/// Every code, with what it means. The order is that of the README.
pub const CODES: &[(&str, &str)] = &[
    ("zookeeper_lost", "this agent has no ZooKeeper session; what it shows of the tree is as last read"),
    ("leader_unverified", "ZooKeeper is connected, but a linearizable read failed"),
    ("znode_unreadable", "a znode is there but cannot be understood"),
    ("tree_missing", "ZooKeeper has nothing of this cluster"),
    ("no_leader", "nobody holds the leader key"),
    ("leader_not_writable", "the holder of the leader key takes no writes"),
    ("writable_without_leader_key", "a member takes writes but does not hold the leader key"),
    ("may_still_write", "a member took writes when it was last heard, and nothing shows that it has stopped"),
    ("several_writable", "more than one member takes writes"),
    ("address_shared", "more than one member has the same address in its znode"),
    ("member_key_missing", "a member has no znode"),
    ("patroni_silent", "a member's Patroni does not answer"),
    ("patroni_refused", "nobody listens on the port of a member's Patroni"),
    ("patroni_unusable", "a member's Patroni answers something that cannot be used"),
    ("patroni_loop_late", "a member's Patroni answers but its HA loop does not turn"),
    ("failsafe_active", "the leader goes on without ZooKeeper (failsafe mode)"),
    ("postgres_silent", "a member's PostgreSQL does not answer"),
    ("postgres_refused", "a member's PostgreSQL refuses connections"),
    ("postgres_unknown", "Warden cannot ask a member's PostgreSQL"),
    ("reserved_connections_low", "PostgreSQL keeps too few connections for superusers: Patroni may not get in"),
    ("system_identifier_differs", "a member's PostgreSQL does not belong to this cluster"),
    ("timeline_differs", "a standby is not on the leader's timeline"),
    ("standby_not_streaming", "a standby receives no WAL although its leader takes writes"),
    ("archiver_failing", "a member's archive_command fails"),
    ("no_synchronous_standby", "synchronous mode without a synchronous standby: a crash now can lose commits"),
    ("alive_lock_free", "Patroni answers but does not hold the alive lock"),
    ("alive_lock_unknown", "the alive lock cannot be read"),
    ("control_file_unreadable", "PostgreSQL's control file cannot be read: no handover in asynchronous mode"),
    ("fenced", "a member is fenced"),
    ("fence_failed", "a server that must take no writes could not be stopped"),
    ("fence_held", "a rule would fence a member, and something unknown keeps it from doing so"),
    ("gate_cannot_ask", "the gate could not log in to a member's PostgreSQL"),
    ("lease_uncovered", "Patroni's timing leaves a gap in which the lease rule does not act"),
    ("heartbeat_unknown", "Patroni's heartbeat session cannot be seen: the lease rule has only its REST API to go by"),
    ("fence_session_lost", "there is no warm session to fence the local PostgreSQL with"),
    ("paused", "the cluster is in maintenance mode"),
    ("timing_impossible", "loop_wait + 2 * retry_timeout is more than ttl"),
    ("session_timeout_differs", "ZooKeeper grants another session timeout than Patroni's ttl"),
    ("agent_missing", "no agent answers for a member"),
    ("agent_stale", "an agent's znode is there but is not written any more"),
    ("agent_task_failed", "a task of this agent failed and was started again"),
    ("agent_name_taken", "another agent runs under this agent's name"),
    ("haproxy_unusable", "HAProxy's runtime socket does not answer"),
    ("haproxy_no_server", "HAProxy has no server for writes"),
    ("haproxy_wrong_server", "HAProxy sends writes to a member that is not the leader"),
    ("haproxy_disobeys", "HAProxy does not do as it is told"),
    ("haproxy_config_not_ours", "HAProxy's configuration file was not written by Warden, or was edited by hand"),
    ("haproxy_config_failed", "HAProxy's configuration could not be written anew"),
    ("haproxy_unknown_address", "HAProxy sends writes to an address that is no member's"),
];

/// An agent that has not written its znode for this long is called stale: five of its rounds.
const STALE_AGENT: Duration = Duration::from_secs(10);

/// A failed task is mentioned for this long.
const RECENT_FAILURE: Duration = Duration::from_secs(60);

/// All warnings, those about the whole cluster first, then by member.
pub fn warnings(view: &View, now: Moment, asked: Option<Moment>) -> Vec<Warning> {
    let mut list = List(Vec::new());
    let leader = assess::leader(view, now, asked);
    let truths = assess::members(view, now);
    zookeeper(view, &leader, now, &mut list);
    cluster(view, &leader, &truths, &mut list);
    fences(view, &truths, now, &mut list);
    members::each(view, &leader, &truths, now, &mut list);
    members::our_own(view, now, &mut list);
    haproxy::all(view, &leader, now, &mut list);
    list.0
}

struct List(Vec<Warning>);

impl List {
    fn about_all(&mut self, code: &'static str, message: String) {
        self.0.push(Warning { code, member: None, subject: None, message });
    }

    fn about_one(&mut self, code: &'static str, subject: &str, message: String) {
        self.0.push(Warning { code, member: None, subject: Some(subject.to_string()), message });
    }

    fn about(&mut self, code: &'static str, member: &MemberName, message: String) {
        self.0.push(Warning { code, member: Some(member.clone()), subject: None, message });
    }
}

fn zookeeper(view: &View, leader: &Leader<'_>, now: Moment, list: &mut List) {
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
                        "ZooKeeper grants a session timeout of {} where Patroni's ttl is {}: the leader key lives \
                         for the former; bring ttl between 2 and 20 times ZooKeeper's tickTime",
                        seconds(session.negotiated),
                        seconds(session.requested)
                    ),
                );
            }
        }
    }
    for (task, failure) in &view.failed_tasks {
        if failure.age(now) <= RECENT_FAILURE {
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

fn cluster(view: &View, leader: &Leader<'_>, members: &[MemberTruth<'_>], list: &mut List) {
    for (name, why) in unreadable(view) {
        list.about_one("znode_unreadable", &name, format!("znode {name} cannot be understood: {why}"));
    }
    if view.session().is_some() && view.tree_read.is_some() && nothing_there(view) {
        let scope = &view.identity.scope;
        let text = format!(
            "ZooKeeper has nothing of cluster {scope}: wrong scope, namespace or chroot here, or its data is lost"
        );
        list.about_all("tree_missing", text);
    }
    if view.session().is_some() && leader.reading == Some(&Reading::Absent) {
        list.about_all("no_leader", "nobody holds the leader key".to_string());
    }
    for (place, names) in shared(members) {
        let names = names.join(" and ");
        list.about_one(
            "address_shared",
            &place,
            format!(
                "{names} have the same address, {place}: whose server is asked there is not known; one was renamed, or its \
                 connect_address copied"
            ),
        );
    }
    let writable = writable_at_once(view, members);
    if writable.len() > 1 {
        list.about_all("several_writable", format!("{} take writes at once", writable.join(" and ")));
    }
    let Some(config) = view.cluster.config() else { return };
    if config.pause {
        list.about_all("paused", "the cluster is in maintenance mode: Patroni and Warden hold still".to_string());
    }
    // Saturating: anybody who may write the znode chooses these numbers.
    let needed = config.loop_wait.saturating_add(config.retry_timeout.saturating_mul(2));
    if needed > config.ttl {
        list.about_all(
            "timing_impossible",
            format!(
                "loop_wait + 2 * retry_timeout = {} is more than ttl = {}: raise ttl or lower the others",
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
    if config.synchronous_mode && unprotected && members.len() > 1 {
        list.about_all(
            "no_synchronous_standby",
            "no standby is synchronous: a crash of the primary now can lose commits".to_string(),
        );
    }
}

fn unreadable(view: &View) -> impl Iterator<Item = (String, &str)> {
    fn of<'a, T>(name: &str, fact: Option<&'a crate::fact::Fact<Reading<T>>>) -> Option<(String, &'a str)> {
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

/// A fence that failed and is wanted still has been tried again within this.
const FENCE_TRIED: Duration = Duration::from_secs(15);

fn fences(view: &View, members: &[MemberTruth<'_>], now: Moment, list: &mut List) {
    for (member, fact) in &view.leadership.records {
        match &fact.value {
            Reading::Present(record) => {
                // What a person wants fenced and takes no writes anyway is left as it is.
                let as_it_is = members.iter().any(|truth| truth.name == member && truth.writable == Some(false));
                let state = match record.confirmed {
                    Some(_) => "is fenced",
                    None if as_it_is => "is fenced, for it is in recovery",
                    None => "is being fenced, NOT confirmed yet",
                };
                let (rule, reason) = (record.rule.as_str(), &record.reason);
                list.about("fenced", member, format!("{member} {state} ({rule}): {reason}"));
            }
            Reading::Unreadable(why) => {
                let name = format!("fences/{member}");
                list.about_one("znode_unreadable", &name, format!("znode {name} cannot be understood: {why}"));
            }
            Reading::Absent => {}
        }
    }
    for (member, ordered) in &view.leadership.ordered {
        // What failed and is wanted no more (the server may even lead by now) is not tried again, and is no news.
        if let Some((why, rule, at)) = &ordered.failing
            && now.since(*at) <= FENCE_TRIED
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
    // Just started again it answers before there is a new session.
    let lasting = memory.fence_session_lost.is_some_and(|since| now.since(since) > PROBE_LIMIT);
    if let (Some(FenceSession::Lost(why)), Some(_), true) =
        (memory.fence_session.as_ref().map(|fact| &fact.value), answers, lasting)
    {
        let text = format!("no session is ready to fence {own} with, so a fence would be slower: {why}");
        list.about("fence_session_lost", own, text);
    }
}

/// The heartbeat of a leader is looked for this long before it is missed: its watcher has just begun.
const HEARTBEAT_MISSED: Duration = Duration::from_secs(30);

/// What the rule `lease` cannot do here.
fn lease(view: &View, own: &MemberName, now: Moment, list: &mut List) {
    let memory = &view.leadership;
    let (Some(config), Some(reign)) = (view.cluster.config(), &memory.reign) else { return };
    let lease = memory.patroni_timeout(config.ttl).unwrap_or(config.ttl).saturating_sub(evidence::MARGIN);
    let limit = evidence::progress_limit(config);
    // Patroni corrects a timing that is impossible, and that is a warning of its own.
    let possible = config.loop_wait.saturating_add(config.retry_timeout.saturating_mul(2)) <= config.ttl;
    if possible && limit > lease {
        list.about(
            "lease_uncovered",
            own,
            format!(
                "while Patroni of {own} answers, its lease may be over {} before it counts as stuck: loop_wait + \
                 retry_timeout + 5 s ({}) is more than the session timeout less 5 s ({}); raise ttl (up to 20 x tickTime) \
                 or lower loop_wait or retry_timeout",
                seconds(limit.saturating_sub(lease)),
                seconds(limit),
                seconds(lease)
            ),
        );
    }
    let since = view.members.get(own).and_then(|member| member.writable_since).map(|since| since.max(reign.since));
    let long = since.is_some_and(|since| now.since(since) >= HEARTBEAT_MISSED);
    if long && !config.pause && !evidence::heartbeat_can_be_had(view, now) {
        list.about(
            "heartbeat_unknown",
            own,
            format!(
                "Patroni's session \"Patroni heartbeat\" cannot be seen in PostgreSQL of {own} (track_activities off, a \
                 Patroni before 4.0, or no superuser): without ZooKeeper the lease may end a leader whose REST API is stuck"
            ),
        );
    }
}

/// Not one of the znodes that every cluster has.
fn nothing_there(view: &View) -> bool {
    fn absent<T: PartialEq>(fact: Option<&crate::fact::Fact<Reading<T>>>) -> bool {
        fact.is_none_or(|fact| fact.value == Reading::Absent)
    }
    let cluster = &view.cluster;
    absent(view.leader.as_ref())
        && absent(cluster.config.as_ref())
        && absent(cluster.initialize.as_ref())
        && view.members.values().all(|member| absent(member.record.as_ref()))
}

/// Members of which at least two were writable at one and the same moment, as far as it was seen.
///
/// That both were seen writable lately does not do: the one may have ended before the other began.
fn writable_at_once<'a>(view: &View, members: &[MemberTruth<'a>]) -> Vec<&'a str> {
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

/// Addresses that more than one member has, and those members.
fn shared<'a>(members: &[MemberTruth<'a>]) -> Vec<(String, Vec<&'a str>)> {
    let mut by_place: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for member in members {
        if let (Some(host), Some(port)) = (member.host, member.port) {
            by_place.entry(format!("{host}:{port}")).or_default().push(member.name.as_str());
        }
    }
    by_place.into_iter().filter(|(_, names)| names.len() > 1).collect()
}

#[cfg(test)]
#[path = "warn_tests.rs"]
mod tests;
