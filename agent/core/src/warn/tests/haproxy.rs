//! About HAProxy: its answers, its configuration file, its checks and limits. a leads, b is a standby.

use super::*;
use crate::haproxy::file::RenderReport;
use crate::haproxy::{Check, HoldOutcome, HoldReport, RouteOutcome, RouteReport, ServerCommand, ServerId};

fn server(member: &str, status: &str) -> HaproxyServer {
    HaproxyServer {
        pool: Pool::Writes,
        id: ServerId { proxy: "writes".to_string(), name: String::from("pg-") + member },
        address: String::from(if member == "a" { "10.0.0.1:5432" } else { "10.0.0.2:5432" }),
        member: Some(MemberName::from(member)),
        status: status.to_string(),
        up: status.starts_with("UP") || status == "no check",
        ..HaproxyServer::default()
    }
}

fn servers(a: HaproxyServer) -> HaproxyAnswer {
    HaproxyAnswer::Servers(vec![a, server("b", "DOWN")])
}

fn a_is(status: &str, change: impl Fn(&mut HaproxyServer)) -> HaproxyAnswer {
    let mut a = server("a", status);
    change(&mut a);
    servers(a)
}

/// A healthy cluster whose local HAProxy gives this answer, once a second for a quarter of a minute.
fn for_long(answer: &HaproxyAnswer) -> Vec<Told> {
    let second = |second: u64| {
        let at = second * 1000 + 100;
        [
            (at, verified(key("a", 1), 1, at + 1)),
            (at + 2, probe("a", writable())),
            (at + 2, probe("b", standby(1))),
            (at + 3, answering("a", |_| {})),
            (at + 3, answering("b", |_| {})),
            (at + 4, Event::Haproxy(HaproxyEvent::Answered(answer.clone()))),
        ]
    };
    (1..=14).flat_map(second).collect()
}

fn lasting(
    code: &'static str,
    words: &'static [&'static str],
    wrong: &HaproxyAnswer,
    right: &HaproxyAnswer,
) -> Scenario {
    let mut scenario = Scenario::new(code, None, words).at(14_500);
    (scenario.wrong, scenario.right) = (for_long(wrong), for_long(right));
    scenario
}

pub(super) fn about_checks_and_limits() -> Vec<Scenario> {
    let tracks = |other: &str| {
        let tracked = HaproxyServer {
            id: ServerId { proxy: "checks".to_string(), name: "pg-a".to_string() },
            ..server("a", "UP")
        };
        HaproxyAnswer::Servers(vec![HaproxyServer { tracks: Some(other.to_string()), ..server("a", "UP") }, tracked])
    };
    let checked = |check: Check| a_is("UP 1/2", |a| a.check = check.clone());
    let b_is =
        |check: Check| HaproxyAnswer::Servers(vec![server("a", "UP"), HaproxyServer { check, ..server("b", "DOWN") }]);
    let held = |outcome| Event::Report(Report::Hold(HoldReport { proxy: "writes".to_string(), outcome }));
    vec![
        Scenario::new(
            "haproxy_tracking",
            None,
            &["writes/pg-a", "tracks other/pg-a", "name other in haproxy.backends.writes"],
        )
        .wrong(router_says(tracks("other/pg-a")))
        .right(router_says(tracks("checks/pg-a"))),
        Scenario::new("haproxy_unchecked", None, &["does not check writes/pg-b", "GET /primary"])
            .wrong(router_says(HaproxyAnswer::Servers(vec![server("a", "UP"), server("b", "no check")])))
            .right(router_says(servers(server("a", "UP")))),
        Scenario::new("haproxy_unresolved", None, &["cannot resolve the name of writes/pg-a", "resolvers"])
            .wrong(router_says(a_is("MAINT (resolution)", |_| {})))
            .right(router_says(a_is("MAINT", |_| {}))),
        Scenario::new("haproxy_agent_check", None, &["writes/pg-a", "agent-check answers \"maint\"", "ready up"])
            .wrong(router_says(a_is("MAINT", |a| a.agent_check = Some("maint".to_string()))))
            .right(router_says(a_is("MAINT", |a| a.agent_check = Some("up ready".to_string())))),
        Scenario::new("haproxy_leader_in_maintenance", None, &["writes/pg-a", "set server writes/pg-a state ready"])
            .wrong(router_says(a_is("DRAIN", |_| {})))
            .right(router_says(servers(server("a", "DOWN")))),
        lasting(
            "haproxy_checks_contradict",
            &["writes/pg-a", "L7RSP: invalid response", "check-ssl"],
            &checked(Check::Fails("L7RSP: invalid response".to_string())),
            &checked(Check::Passes),
        ),
        lasting(
            "haproxy_checks_cannot_tell",
            &["writes/pg-b", "cannot tell a primary", "httpchk GET /primary"],
            &b_is(Check::Passes),
            &b_is(Check::Refuses("L7STS 503".to_string())),
        ),
        lasting(
            "haproxy_slowstart",
            &["writes/pg-a", "Remove slowstart"],
            &a_is("UP", |a| a.throttled = true),
            &a_is("UP", |_| {}),
        ),
        lasting(
            "haproxy_queue",
            &["writes/pg-a (7 when last seen)", "its limit of 100 sessions", "haproxy.server_maxconn"],
            &a_is("UP", |a| (a.queued, a.limit) = (7, Some(100))),
            &a_is("UP", |a| a.limit = Some(100)),
        ),
        Scenario::new("haproxy_full", None, &["frontend main", "all of its 100 connections", "haproxy.maxconn"])
            .wrong(Event::Haproxy(HaproxyEvent::FrontendsFull([("main".to_string(), 100)].into())))
            .right(Event::Haproxy(HaproxyEvent::FrontendsFull([].into()))),
        Scenario::new(
            "haproxy_cannot_hold",
            None,
            &["by writes", "No such table", "warden_hold_writes", "warden_wait_for"],
        )
        .wrong(held(HoldOutcome::Failed("No such table".to_string())))
        .right(held(HoldOutcome::Failed("No such table".to_string())))
        .right(held(HoldOutcome::Begun)),
    ]
}

pub(super) fn about_haproxy() -> Vec<Scenario> {
    let unusable = || router_says(HaproxyAnswer::Unusable("connection refused".to_string()));
    vec![
        Scenario::new("haproxy_disobeys", None, &["writes/pg-a", "Permission denied"])
            .wrong(routed(RouteOutcome::Failed("Permission denied".to_string())))
            .right(routed(RouteOutcome::Done { took: Duration::from_millis(1) })),
        Scenario::new("haproxy_config_not_ours", None, &["members come or go", "edited by hand"])
            .wrong(Event::Haproxy(HaproxyEvent::File(Reading::Unreadable(
                "haproxy.cfg: it was edited by hand".to_string(),
            ))))
            .right(Event::Haproxy(HaproxyEvent::File(Reading::Absent))),
        Scenario::new("haproxy_config_failed", None, &["could not rewrite", "no space left"])
            .wrong(Event::Report(Report::Rendered(RenderReport::Failed("no space left on device".to_string()))))
            .right(Event::Report(Report::Rendered(RenderReport::Done { reloaded: true }))),
        Scenario::new("haproxy_unusable", None, &["HAProxy beside r", "connection refused"])
            .wrong(unusable())
            .right(router(&[("pg-a", Some("a"), true)])),
        Scenario::new("haproxy_no_server", None, &["HAProxy beside r has no server for writes"])
            .wrong(router(&[("pg-a", Some("a"), false), ("pg-b", Some("b"), false)]))
            .right(router(&[("pg-a", Some("a"), true), ("pg-b", Some("b"), false)])),
        Scenario::new("haproxy_wrong_server", Some("b"), &["HAProxy beside r sends writes to b", "a is the leader"])
            .wrong(router(&[("pg-a", Some("a"), true), ("pg-b", Some("b"), true)]))
            .right(router(&[("pg-a", Some("a"), true), ("pg-b", Some("b"), false)])),
        Scenario::new("haproxy_unknown_address", None, &["HAProxy beside r", "pg-x at 10.0.0.1:5432", "no member's"])
            .wrong(router(&[("pg-a", Some("a"), true), ("pg-x", None, true)]))
            .right(router(&[("pg-a", Some("a"), true), ("pg-x", None, false)])),
    ]
}

/// The outcome of a command to HAProxy's server of a.
fn routed(outcome: RouteOutcome) -> Event {
    let (pool, name, to) = (Pool::Writes, "pg-a".to_string(), ServerCommand::Up);
    let server = ServerId { proxy: "writes".to_string(), name };
    Event::Report(Report::Routed(RouteReport { pool, server, member: "a".into(), to, outcome }))
}
