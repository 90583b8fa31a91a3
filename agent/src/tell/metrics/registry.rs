//! The table of the metrics: handle, Prometheus type, name, labels, help, and the buckets of a histogram.
//!
//! The agent registers each row of the table and nothing else. Names, types and labels are an interface.
//! `agent/docs/reference/metrics.md` lists them, and `agent/tests/docs.rs` compares the two.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, Result,
};

/// One row of the table. `buckets` is empty for all types but the histograms.
struct Row {
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    buckets: &'static [f64],
}

/// A Prometheus type that can be made from a row.
trait Metric: Collector + Clone + 'static {
    fn of(row: &Row) -> Result<Self>;
}

impl Metric for IntCounterVec {
    fn of(row: &Row) -> Result<Self> {
        Self::new(Opts::new(row.name, row.help), row.labels)
    }
}

impl Metric for IntGaugeVec {
    fn of(row: &Row) -> Result<Self> {
        Self::new(Opts::new(row.name, row.help), row.labels)
    }
}

impl Metric for GaugeVec {
    fn of(row: &Row) -> Result<Self> {
        Self::new(Opts::new(row.name, row.help), row.labels)
    }
}

impl Metric for HistogramVec {
    fn of(row: &Row) -> Result<Self> {
        Self::new(HistogramOpts::new(row.name, row.help).buckets(row.buckets.to_vec()), row.labels)
    }
}

impl Metric for Histogram {
    fn of(row: &Row) -> Result<Self> {
        Self::with_opts(HistogramOpts::new(row.name, row.help).buckets(row.buckets.to_vec()))
    }
}

fn registered<M: Metric>(registry: &Registry, row: &Row) -> Result<M> {
    let metric = M::of(row)?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Makes the handles and their registration from one table, so that no metric can have one without the other.
macro_rules! table {
    ($(
        $handle:ident: $kind:ident = $name:literal, [$($label:literal),*], $help:literal $(, [$($bucket:literal),*])?;
    )*) => {
        /// The handles of all metrics, one for each row of the table.
        #[derive(Clone, Debug)]
        pub(super) struct Handles {
            $(pub(super) $handle: $kind,)*
        }

        impl Handles {
            /// Registers every row. It fails only if two rows have one name, which a test rules out.
            pub(super) fn registered(registry: &Registry) -> Result<Self> {
                Ok(Self {
                    $($handle: registered(registry, &Row {
                        name: $name,
                        labels: &[$($label),*],
                        help: $help,
                        buckets: &[$($($bucket),*)?],
                    })?,)*
                })
            }
        }
    };
}

table! {
    // Counted when an event happens.
    events: IntCounterVec = "warden_events_total", ["kind"],
        "Events that the loop processed, by kind.";
    sessions_lost: IntCounterVec = "warden_zookeeper_sessions_lost_total", ["reason"],
        "ZooKeeper sessions that ended, and failed attempts to open one, by reason.";
    barrier_reads: IntCounterVec = "warden_barrier_reads_total", ["result"],
        "Linearizable reads of the leader key, by result.";
    barrier_seconds: Histogram = "warden_barrier_seconds", [],
        "Duration of successful linearizable reads of the leader key.",
        [0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];
    leader_changes: IntCounterVec = "warden_leader_changes_total", ["holder"],
        "Changes of the holder of the leader key that this agent saw, by new holder.";
    task_failures: IntCounterVec = "warden_task_failures_total", ["task"],
        "Tasks of the agent that failed and were restarted.";
    fences: IntCounterVec = "warden_fences_total", ["rule", "outcome"],
        "Fences that this agent ordered, by rule and outcome.";
    fence_seconds: HistogramVec = "warden_fence_seconds", ["rule"],
        "Time from the order of a fence to its confirmation, by rule.",
        [0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0];
    releases: IntCounterVec = "warden_releases_total", ["outcome"],
        "Releases of the leader key that this agent ordered, by outcome.";
    nudges: IntCounterVec = "warden_nudges_total", ["outcome"],
        "Nudges of the local Patroni, by outcome.";
    reconnects: IntCounterVec = "warden_reconnects_total", ["outcome"],
        "Retries to stream that this agent ordered from the local standby, by outcome.";
    routes: IntCounterVec = "warden_route_changes_total", ["pool", "to", "outcome"],
        "Commands to HAProxy's servers, by pool, command and outcome.";
    route_seconds: HistogramVec = "warden_route_seconds", ["to"],
        "Time from the decision on a command to a server of HAProxy until HAProxy took it, by command.",
        [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0];
    holds: IntCounterVec = "warden_route_holds_total", ["outcome"],
        "Holds of new connections for writes that this agent ordered from HAProxy, by outcome.";
    hold_seconds: Histogram = "warden_route_hold_seconds", [],
        "Time for which HAProxy held new connections for writes.",
        [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

    // Set from the view for each scrape.
    fence_session: IntGaugeVec = "warden_fence_session_ready", [],
        "1 while a session with the local PostgreSQL is ready for a fence.";
    build_info: IntGaugeVec = "warden_build_info", ["version", "name", "scope"],
        "1, with the agent's version, name and scope.";
    zookeeper_connected: IntGaugeVec = "warden_zookeeper_connected", [],
        "1 while there is a ZooKeeper session.";
    zookeeper: GaugeVec = "warden_zookeeper_seconds", ["what"],
        "ZooKeeper: granted session timeout, round trip of a read, time since the last complete read.";
    leader: IntGaugeVec = "warden_leader", ["member"],
        "1 for the member that holds the leader key.";
    leader_verified: IntGaugeVec = "warden_leader_verified", [],
        "1 while a linearizable read of the last 3 s confirms the holder of the leader key.";
    writable: IntGaugeVec = "warden_member_writable", ["member"],
        "1 while a member takes writes, 0 while it does not; absent while unknown.";
    postgres: IntGaugeVec = "warden_member_postgres", ["member", "answer"],
        "1 for the answer of a member's PostgreSQL.";
    patroni: IntGaugeVec = "warden_member_patroni", ["member", "answer"],
        "1 for the answer of a member's Patroni.";
    role: IntGaugeVec = "warden_member_role", ["member", "role"],
        "1 for a member's role.";
    timeline: IntGaugeVec = "warden_member_timeline", ["member"],
        "A member's timeline.";
    lag: IntGaugeVec = "warden_member_lag_bytes", ["member"],
        "WAL that a standby still has to replay.";
    alive_lock: IntGaugeVec = "warden_member_alive_lock", ["member", "state"],
        "1 for the state of a member's alive lock.";
    agent_age: GaugeVec = "warden_agent_age_seconds", ["agent"],
        "Time since an agent last wrote its znode.";
    haproxy_up: IntGaugeVec = "warden_haproxy_server_up", ["agent", "proxy", "server", "member"],
        "1 while HAProxy sends new connections to the server.";
    haproxy_sessions: IntGaugeVec = "warden_haproxy_server_sessions", ["agent", "proxy", "server", "member"],
        "Sessions open through HAProxy.";
    warnings: IntGaugeVec = "warden_warnings", ["code"],
        "Warnings at present, by code.";
}
