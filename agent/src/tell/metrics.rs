//! Prometheus metrics. Names and labels are an interface; the README lists them.
//!
//! What the view knows is set as gauges when `/metrics` is asked for, so that nothing can be forgotten in
//! between; what happens is counted when it happens.

use prometheus::core::Collector;
use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::time::Duration;
use warden_core::assess;
use warden_core::event::{
    Barrier, Event, FenceOutcome, FenceReport, FenceSession, PatroniAnswer, PostgresAnswer, ReleaseReport, Role,
};
use warden_core::haproxy::{HoldReport, RouteOutcome, RouteReport};
use warden_core::types::Moment;
use warden_core::view::View;
use warden_core::warn;

/// All metrics of one agent.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    events: IntCounterVec,
    sessions_lost: IntCounterVec,
    barrier_reads: IntCounterVec,
    barrier_seconds: Histogram,
    leader_changes: IntCounterVec,
    task_failures: IntCounterVec,
    fences: IntCounterVec,
    fence_seconds: HistogramVec,
    releases: IntCounterVec,
    nudges: IntCounterVec,
    reconnects: IntCounterVec,
    routes: IntCounterVec,
    route_seconds: HistogramVec,
    holds: IntCounterVec,
    hold_seconds: Histogram,
    fence_session: IntGaugeVec,
    build_info: IntGaugeVec,
    zookeeper_connected: IntGaugeVec,
    zookeeper: GaugeVec,
    leader: IntGaugeVec,
    leader_verified: IntGaugeVec,
    writable: IntGaugeVec,
    postgres: IntGaugeVec,
    patroni: IntGaugeVec,
    role: IntGaugeVec,
    timeline: IntGaugeVec,
    lag: IntGaugeVec,
    alive_lock: IntGaugeVec,
    agent_age: GaugeVec,
    haproxy_up: IntGaugeVec,
    haproxy_sessions: IntGaugeVec,
    warnings: IntGaugeVec,
}

const POSTGRES_ANSWERS: [&str; 6] = ["writable", "in_recovery", "starting", "refused", "silent", "unknown"];
const PATRONI_ANSWERS: [&str; 5] = ["answering", "refused", "silent", "unusable", "unknown"];
const LOCK_STATES: [&str; 3] = ["alive", "gone", "unknown"];

impl Metrics {
    /// Registers everything. Fails only if two metrics had one name, which a test rules out.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let barrier_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "warden_barrier_seconds",
                "Duration of linearizable reads of the leader key that succeeded.",
            )
            .buckets(vec![0.000_5, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0]),
        )?;
        let metrics = Self {
            events: counter(r, "warden_events_total", "Events taken in, by kind.", &["kind"])?,
            sessions_lost: counter(
                r,
                "warden_zookeeper_sessions_lost_total",
                "ZooKeeper sessions that ended, and attempts to get one that failed, by reason.",
                &["reason"],
            )?,
            barrier_reads: counter(
                r,
                "warden_barrier_reads_total",
                "Linearizable reads of the leader key, by result (verified, unknown).",
                &["result"],
            )?,
            barrier_seconds: registered(r, barrier_seconds)?,
            leader_changes: counter(
                r,
                "warden_leader_changes_total",
                "Changes of the holder of the leader key seen, by new holder (or nobody, or unreadable).",
                &["holder"],
            )?,
            task_failures: counter(
                r,
                "warden_task_failures_total",
                "Tasks of the agent that failed and were started again.",
                &["task"],
            )?,
            fences: counter(
                r,
                "warden_fences_total",
                "Fences that were ordered, by rule and by what came of them.",
                &["rule", "outcome"],
            )?,
            fence_seconds: registered(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "warden_fence_seconds",
                        "From the order of a fence to its confirmation, by rule.",
                    )
                    .buckets(vec![0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0]),
                    &["rule"],
                )?,
            )?,
            releases: counter(
                r,
                "warden_releases_total",
                "Releases of the leader key that were ordered, by what came of them.",
                &["outcome"],
            )?,
            nudges: counter(
                r,
                "warden_nudges_total",
                "Nudges of the local Patroni, by what came of them.",
                &["outcome"],
            )?,
            reconnects: counter(
                r,
                "warden_reconnects_total",
                "How often the local standby was told to try again to stream, by what came of it.",
                &["outcome"],
            )?,
            routes: counter(
                r,
                "warden_route_changes_total",
                "What HAProxy's servers were told, by pool, by what, and by what came of it.",
                &["pool", "to", "outcome"],
            )?,
            route_seconds: registered(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "warden_route_seconds",
                        "From the order to tell a server of HAProxy's something until it was told, by what.",
                    )
                    .buckets(vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0]),
                    &["to"],
                )?,
            )?,
            holds: counter(
                r,
                "warden_route_holds_total",
                "How often HAProxy was told to hold new connections for writes, by what came of it.",
                &["outcome"],
            )?,
            hold_seconds: registered(
                r,
                Histogram::with_opts(
                    HistogramOpts::new("warden_route_hold_seconds", "How long new connections for writes were held.")
                        .buckets(vec![0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]),
                )?,
            )?,
            fence_session: gauge(
                r,
                "warden_fence_session_ready",
                "1 while a session with the local PostgreSQL is ready for a fence.",
                &[],
            )?,
            build_info: gauge(
                r,
                "warden_build_info",
                "1, with the agent's version, name and scope.",
                &["version", "name", "scope"],
            )?,
            zookeeper_connected: gauge(r, "warden_zookeeper_connected", "1 while there is a ZooKeeper session.", &[])?,
            zookeeper: registered(
                r,
                GaugeVec::new(
                    Opts::new(
                        "warden_zookeeper_seconds",
                        "ZooKeeper: negotiated session timeout, latency of a read, time since the last whole read of the tree.",
                    ),
                    &["what"],
                )?,
            )?,
            leader: gauge(r, "warden_leader", "1 for the member that holds the leader key.", &["member"])?,
            leader_verified: gauge(
                r,
                "warden_leader_verified",
                "1 while a linearizable read of the last 3 s says who leads.",
                &[],
            )?,
            writable: gauge(
                r,
                "warden_member_writable",
                "1 while a member takes writes, 0 while it does not; absent while unknown.",
                &["member"],
            )?,
            postgres: gauge(
                r,
                "warden_member_postgres",
                "1 for the way a member's PostgreSQL answers.",
                &["member", "answer"],
            )?,
            patroni: gauge(
                r,
                "warden_member_patroni",
                "1 for the way a member's Patroni answers.",
                &["member", "answer"],
            )?,
            role: gauge(r, "warden_member_role", "1 for a member's role.", &["member", "role"])?,
            timeline: gauge(r, "warden_member_timeline", "A member's timeline.", &["member"])?,
            lag: gauge(r, "warden_member_lag_bytes", "WAL that a standby still has to replay.", &["member"])?,
            alive_lock: gauge(
                r,
                "warden_member_alive_lock",
                "1 for the state of a member's alive lock.",
                &["member", "state"],
            )?,
            agent_age: registered(
                r,
                GaugeVec::new(
                    Opts::new("warden_agent_age_seconds", "Time since an agent last wrote its znode."),
                    &["agent"],
                )?,
            )?,
            haproxy_up: gauge(
                r,
                "warden_haproxy_server_up",
                "1 while HAProxy sends new connections to the server.",
                &["agent", "server", "member"],
            )?,
            haproxy_sessions: gauge(
                r,
                "warden_haproxy_server_sessions",
                "Sessions open through HAProxy.",
                &["agent", "server", "member"],
            )?,
            warnings: gauge(r, "warden_warnings", "Warnings at present, by code.", &["code"])?,
            registry,
        };
        Ok(metrics)
    }

    /// Counts an event.
    pub fn count(&self, event: &Event, at: Moment) {
        self.events.with_label_values(&[kind(event)]).inc();
        match event {
            Event::SessionLost { reason, .. } => self.sessions_lost.with_label_values(&[reason]).inc(),
            Event::Barrier(Barrier::Verified { finished, .. }) => {
                self.barrier_reads.with_label_values(&["verified"]).inc();
                self.barrier_seconds.observe(finished.since(at).as_secs_f64());
            }
            Event::Barrier(Barrier::Unknown(_)) => self.barrier_reads.with_label_values(&["unknown"]).inc(),
            Event::Fence(FenceReport { rule, outcome, .. }) => {
                self.fences.with_label_values(&[rule.as_str(), outcome.as_str()]).inc();
                if let FenceOutcome::Confirmed { took, .. } = outcome {
                    self.fence_seconds.with_label_values(&[rule.as_str()]).observe(took.as_secs_f64());
                }
            }
            Event::Routed(RouteReport { pool, to, outcome, .. }) => {
                let outcome_name = match outcome {
                    RouteOutcome::Done { took } => {
                        self.route_seconds.with_label_values(&[to.as_str()]).observe(took.as_secs_f64());
                        "done"
                    }
                    RouteOutcome::Withdrawn(_) => "withdrawn",
                    RouteOutcome::Failed(_) => "failed",
                    RouteOutcome::Observed => "observed",
                };
                self.routes.with_label_values(&[pool.as_str(), to.as_str(), outcome_name]).inc();
            }
            Event::Hold(HoldReport::Begun) => self.holds.with_label_values(&["done"]).inc(),
            Event::Hold(HoldReport::Failed(_)) => self.holds.with_label_values(&["failed"]).inc(),
            Event::Hold(HoldReport::Ended { after }) => self.hold_seconds.observe(after.as_secs_f64()),
            Event::Release(report) => {
                let outcome = match report {
                    ReleaseReport::Done { .. } => "done",
                    ReleaseReport::Withdrawn(_) => "withdrawn",
                    ReleaseReport::Failed(_) => "failed",
                    ReleaseReport::Observed => "observed",
                };
                self.releases.with_label_values(&[outcome]).inc();
            }
            Event::Nudged { outcome } => {
                self.nudges.with_label_values(&[outcome.as_str()]).inc();
            }
            Event::Reconnected { outcome } => {
                self.reconnects.with_label_values(&[outcome.as_str()]).inc();
            }
            Event::TaskFailed { task, .. } => self.task_failures.with_label_values(&[task]).inc(),
            _ => {}
        }
    }

    /// Counts a change of the leader key.
    pub fn count_leader_change(&self, holder: &str) {
        self.leader_changes.with_label_values(&[holder]).inc();
    }

    /// Everything in Prometheus's text format, with the gauges as `view` has them at `now`.
    pub fn render(&self, view: &View, now: Moment) -> Result<Vec<u8>, prometheus::Error> {
        self.set_gauges(view, now);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }

    fn set_gauges(&self, view: &View, now: Moment) {
        for gauge in [
            &self.leader,
            &self.writable,
            &self.postgres,
            &self.patroni,
            &self.role,
            &self.timeline,
            &self.lag,
            &self.alive_lock,
            &self.haproxy_up,
            &self.haproxy_sessions,
        ] {
            // Members come and go: what is not set again below is gone.
            gauge.reset();
        }
        self.agent_age.reset();
        self.zookeeper.reset();
        let identity = &view.identity;
        let labels = [identity.version.as_str(), identity.agent.as_str(), identity.scope.as_str()];
        self.build_info.with_label_values(&labels).set(1);
        self.set_zookeeper(view, now);
        if let Some(session) = &view.leadership.fence_session {
            let ready = session.value == FenceSession::Ready;
            self.fence_session.with_label_values::<&str>(&[]).set(i64::from(ready));
        }
        let leader = assess::leader(view, now, None);
        self.leader_verified.with_label_values::<&str>(&[]).set(i64::from(leader.verified));
        for member in assess::members(view, now) {
            let name = member.name.as_str();
            self.leader.with_label_values(&[name]).set(i64::from(leader.holder() == Some(member.name)));
            let postgres = member.postgres.as_ref().map_or("unknown", |fact| PostgresAnswer::as_str(&fact.value));
            one_of(&self.postgres, name, &POSTGRES_ANSWERS, postgres);
            one_of(
                &self.patroni,
                name,
                &PATRONI_ANSWERS,
                member.patroni.as_ref().map_or("unknown", |fact| patroni(fact.value)),
            );
            one_of(&self.role, name, &Role::ALL.map(Role::as_str), member.role.as_str());
            if let Some(lock) = &member.alive_lock {
                one_of(&self.alive_lock, name, &LOCK_STATES, lock.as_str());
            }
            if let Some(writable) = member.writable {
                self.writable.with_label_values(&[name]).set(i64::from(writable));
            }
            if let Some(timeline) = member.timeline {
                self.timeline.with_label_values(&[name]).set(i64::from(timeline.0));
            }
            if let Some(lag) = member.lag {
                self.lag.with_label_values(&[name]).set(i64::try_from(lag).unwrap_or(i64::MAX));
            }
        }
        for (name, fact) in &view.agents {
            self.agent_age.with_label_values(&[name.as_str()]).set(fact.age(now).as_secs_f64());
        }
        self.set_haproxy(view, now);
        let warnings = warn::warnings(view, now, None);
        for (code, _) in warn::CODES {
            let count = warnings.iter().filter(|warning| warning.code == *code).count();
            self.warnings.with_label_values(&[*code]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    fn set_zookeeper(&self, view: &View, now: Moment) {
        let session = view.session();
        self.zookeeper_connected.with_label_values::<&str>(&[]).set(i64::from(session.is_some()));
        let set = |what: &str, duration: Option<Duration>| {
            if let Some(duration) = duration {
                self.zookeeper.with_label_values(&[what]).set(duration.as_secs_f64());
            }
        };
        set("session_timeout", session.map(|session| session.negotiated));
        set("latency", view.latency);
        set("last_contact", view.tree_read.map(|at| now.since(at)));
    }

    /// Of its own HAProxy only: every agent is scraped for what it stands beside.
    fn set_haproxy(&self, view: &View, now: Moment) {
        for router in assess::routers(view, now).iter().filter(|router| *router.agent == view.identity.agent) {
            let warden_core::event::HaproxyAnswer::Servers(servers) = router.answer else { continue };
            for server in servers {
                let member = server.member.as_ref().map_or("", |member| member.as_str());
                let labels = [router.agent.as_str(), server.name.as_str(), member];
                self.haproxy_up.with_label_values(&labels).set(i64::from(server.up));
                self.haproxy_sessions
                    .with_label_values(&labels)
                    .set(i64::try_from(server.sessions).unwrap_or(i64::MAX));
            }
        }
    }
}

fn registered<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn counter(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauge(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

/// One series per possible value, 1 for the present one: states can then be drawn and alerted on.
fn one_of(gauge: &IntGaugeVec, member: &str, values: &[&str], present: &str) {
    for value in values {
        gauge.with_label_values(&[member, *value]).set(i64::from(*value == present));
    }
}

const fn patroni(answer: &PatroniAnswer) -> &'static str {
    match answer {
        PatroniAnswer::Answering(_) => "answering",
        PatroniAnswer::Refused(_) => "refused",
        PatroniAnswer::Silent(_) => "silent",
        PatroniAnswer::Unusable(_) => "unusable",
    }
}

const fn kind(event: &Event) -> &'static str {
    match event {
        Event::Tick => "tick",
        Event::SessionStarted(_) => "session_started",
        Event::SessionLost { .. } => "session_lost",
        Event::TreeRead { .. } => "tree_read",
        Event::Znode(_) => "znode",
        Event::Barrier(_) => "barrier",
        Event::Agent { .. } => "agent",
        Event::NameTaken { .. } => "name_taken",
        Event::Patroni { .. } => "patroni",
        Event::Liveness { .. } => "liveness",
        Event::Postgres { .. } => "postgres",
        Event::ShutDown(_) => "shut_down",
        Event::AliveLock(_) => "alive_lock",
        Event::Haproxy(_) => "haproxy",
        Event::FenceSession(_) => "fence_session",
        Event::Fence(_) => "fence",
        Event::FenceRecord { .. } => "fence_record",
        Event::Release(_) => "release",
        Event::Nudged { .. } => "nudged",
        Event::Reconnected { .. } => "reconnected",
        Event::SessionBroke { .. } => "session_broke",
        Event::Routed(_) => "routed",
        Event::Hold(_) => "hold",
        Event::Layout(_) => "layout",
        Event::Rendered(_) => "rendered",
        Event::Remembered(_) => "remembered",
        Event::GateChecked { .. } => "gate_checked",
        Event::Started(_) => "started",
        Event::TaskFailed { .. } => "task_failed",
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
