//! Warnings in plain text, each with a stable code.
//!
//! A warning states a fact that is wrong or unknown, never a guess. The codes are an interface: listed in [`CODES`],
//! documented in `agent/docs/reference/warnings.md`, and used as metric labels.

mod cluster;
mod fences;
mod haproxy;
mod members;

use crate::assess;
use crate::plan::ANNOUNCE_INTERVAL;
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// A warning.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Warning {
    /// One of [`CODES`].
    pub code: &'static str,
    /// The member, if the warning is about one.
    pub member: Option<MemberName>,
    /// The znode, task or agent, if several can have this code. Code, member and subject identify a warning; its text
    /// may change.
    pub subject: Option<String>,
    /// The text.
    pub message: String,
}

/// Every code with its meaning. `reference/warnings.md` is generated from it.
pub const CODES: &[(&str, &str)] = &[
    ("zookeeper_lost", "This agent has no ZooKeeper session; its view of the tree is as last read."),
    ("leader_unverified", "ZooKeeper is connected, but a linearizable read failed."),
    ("znode_unreadable", "A znode is present but cannot be parsed."),
    ("tree_missing", "ZooKeeper has no znode of this cluster."),
    ("no_leader", "No member holds the leader key."),
    ("leader_not_writable", "The holder of the leader key takes no writes."),
    ("writable_without_leader_key", "A member takes writes but does not hold the leader key."),
    ("may_still_write", "A member took writes when last heard, another leads since, and its stop is not proved."),
    ("several_writable", "More than one member takes writes."),
    ("address_shared", "More than one member has the same address in its znode."),
    ("member_key_missing", "A member is alive but has no znode."),
    ("patroni_silent", "A member's Patroni does not answer."),
    ("patroni_refused", "A member's Patroni refuses connections: its port has no listener."),
    ("patroni_unusable", "A member's Patroni sends an answer that Warden cannot use."),
    ("patroni_loop_late", "A member's Patroni answers but its HA loop makes no progress."),
    ("failsafe_active", "The leader continues without ZooKeeper (failsafe mode)."),
    ("postgres_silent", "A member's PostgreSQL does not answer."),
    ("postgres_refused", "A member's PostgreSQL refuses connections."),
    ("postgres_unknown", "Warden cannot ask a member's PostgreSQL."),
    ("reserved_connections_low", "PostgreSQL reserves too few connections for superusers."),
    ("system_identifier_differs", "A member's PostgreSQL does not belong to this cluster."),
    ("timeline_differs", "A standby is not on the leader's timeline."),
    ("standby_not_streaming", "A standby receives no WAL although its leader takes writes."),
    ("archiver_failing", "A member's `archive_command` fails."),
    ("no_synchronous_standby", "Synchronous mode has no synchronous standby: a crash now can lose commits."),
    ("alive_lock_free", "Patroni answers but does not hold the alive lock."),
    ("alive_lock_unknown", "The agent cannot read the alive lock."),
    ("control_file_unreadable", "The agent cannot read PostgreSQL's control file: no handover in asynchronous mode."),
    ("fenced", "A member is fenced, or is about to be."),
    ("fence_failed", "A server that must take no writes could not be stopped."),
    ("fence_held", "A rule would fence a member, and an unknown fact or maintenance mode prevents it."),
    ("gate_cannot_ask", "The agent could not log in to a member as the gate would."),
    ("lease_uncovered", "Patroni's timing leaves a gap in which the lease rule does not act."),
    ("heartbeat_unknown", "The agent cannot see Patroni's session `Patroni heartbeat` on the leader."),
    ("fence_session_lost", "For 3 s the agent could open no session to fence a PostgreSQL that answers."),
    ("paused", "The cluster is in maintenance mode."),
    ("timing_impossible", "`loop_wait + 2 * retry_timeout` is more than ttl."),
    ("session_timeout_differs", "ZooKeeper grants another session timeout than Patroni's ttl."),
    ("agent_missing", "No agent answers for a member."),
    ("agent_stale", "An agent's znode is present but no longer written."),
    ("agent_task_failed", "A task of this agent failed and was restarted."),
    ("agent_name_taken", "Another agent runs under this agent's name."),
    ("haproxy_unusable", "HAProxy's runtime socket does not answer."),
    ("haproxy_no_server", "HAProxy has no server for writes: new connections wait."),
    ("haproxy_wrong_server", "HAProxy sends writes to a member that is not the leader."),
    ("haproxy_disobeys", "HAProxy does not carry out the agent's commands."),
    ("haproxy_config_not_ours", "HAProxy's configuration file was not written by Warden, or was edited by hand."),
    ("haproxy_config_failed", "The agent could not replace HAProxy's configuration."),
    ("haproxy_unknown_address", "HAProxy sends writes to a host that belongs to no member, or to more than one."),
    ("haproxy_unchecked", "HAProxy does not check a server, so Warden sends it no commands."),
    ("haproxy_tracking", "HAProxy's server follows another one (`track`) and takes no commands."),
    ("haproxy_unresolved", "HAProxy cannot resolve a server's name."),
    ("haproxy_agent_check", "HAProxy's agent-check keeps the leader's server out of service."),
    ("haproxy_leader_in_maintenance", "An operator put the leader's server into maintenance in HAProxy: writes wait."),
    ("haproxy_checks_cannot_tell", "HAProxy's checks accept a standby for writes: they cannot recognize a primary."),
    ("haproxy_checks_contradict", "HAProxy's checks fail for a healthy primary."),
    ("haproxy_slowstart", "HAProxy gives the new primary only a part of its connections at first."),
    ("haproxy_queue", "Connections wait, or waited in the last minute, for a server's limit in HAProxy."),
    ("haproxy_full", "A frontend of HAProxy has, or had in the last minute, all of its connections in use."),
    ("haproxy_cannot_hold", "HAProxy could not hold new connections while the primary changed."),
];

/// An agent that has not written its znode for this long is stale: five of its rounds.
const AGENT_STALE_AFTER: Duration = Duration::from_secs(10);

const _: () = assert!(AGENT_STALE_AFTER.as_secs() == 5 * ANNOUNCE_INTERVAL.as_secs());

/// A failure of a task or of a command to HAProxy is shown for this long.
const FAILURE_SHOWN_FOR: Duration = Duration::from_secs(60);

/// All warnings: first those about the whole cluster, then those about each member, then HAProxy.
pub fn warnings(view: &View, now: Moment, asked: Option<Moment>) -> Vec<Warning> {
    let mut list = List(Vec::new());
    let leader = assess::leader(view, now, asked);
    let statuses = assess::members(view, now);
    cluster::zookeeper(view, &leader, now, &mut list);
    cluster::cluster(view, &leader, &statuses, &mut list);
    fences::all(view, &statuses, now, &mut list);
    members::each(view, &leader, &statuses, now, &mut list);
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

#[cfg(test)]
mod tests;
