use super::*;
use crate::tell::fixtures::{
    agent, apply, healthy, identity, key, lost, member, ms, patroni, postgres, servers, session, verified,
};
use std::collections::BTreeSet;
use std::time::Duration;
use warden_core::event::{
    AliveLock, Barrier, FenceOutcome, FenceReport, FenceSession, HaproxyAnswer, HaproxyEvent, LocalEvent, Outcome,
    PostgresAnswer, ReleaseReport, Report, Role, Rule, ZooKeeperEvent,
};
use warden_core::fact::Reading;
use warden_core::warn;

/// The series of a scrape, without help and types.
fn scraped(metrics: &Metrics, view: &View, now: u64) -> BTreeSet<String> {
    let text = String::from_utf8(metrics.render(view, ms(now)).unwrap()).unwrap();
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// The series whose text begins with `prefix`.
fn series<'a>(scraped: &'a BTreeSet<String>, prefix: &str) -> Vec<&'a str> {
    scraped.iter().filter(|line| line.starts_with(prefix)).map(String::as_str).collect()
}

#[test]
fn every_metric_has_its_own_name_the_project_prefix_and_a_help_text() {
    let metrics = Metrics::new().unwrap();
    metrics.count_leader_change("a");
    metrics.render(&healthy(), ms(1500)).unwrap();
    let families = metrics.registry.gather();
    assert!(families.len() > 10);
    for family in families {
        assert!(family.name().starts_with("warden_"), "{}", family.name());
        assert!(family.help().ends_with('.'), "{}", family.name());
    }
}

#[test]
fn a_healthy_cluster_has_these_series() {
    let all = scraped(&Metrics::new().unwrap(), &healthy(), 1500);
    for expected in [
        r#"warden_build_info{name="a",scope="my_cluster",version="0.1.0"} 1"#,
        "warden_zookeeper_connected 1",
        r#"warden_zookeeper_seconds{what="session_timeout"} 30"#,
        r#"warden_zookeeper_seconds{what="latency"} 0.001"#,
        "warden_leader_verified 1",
        r#"warden_leader{member="a"} 1"#,
        r#"warden_leader{member="b"} 0"#,
        r#"warden_member_writable{member="a"} 1"#,
        r#"warden_member_writable{member="b"} 0"#,
        r#"warden_member_timeline{member="b"} 3"#,
        r#"warden_member_lag_bytes{member="b"} 100"#,
    ] {
        assert!(all.contains(expected), "{expected} is not in {all:#?}");
    }
    assert_eq!(series(&all, r#"warden_member_lag_bytes{member="a""#), [""; 0], "the leader has no lag");
}

#[test]
fn each_state_has_a_series_and_only_the_present_one_is_1() {
    let all = scraped(&Metrics::new().unwrap(), &healthy(), 1500);
    assert_eq!(
        series(&all, r#"warden_member_postgres{answer="#)
            .into_iter()
            .filter(|line| line.contains(r#""b""#))
            .collect::<Vec<_>>(),
        [
            r#"warden_member_postgres{answer="in_recovery",member="b"} 1"#,
            r#"warden_member_postgres{answer="refused",member="b"} 0"#,
            r#"warden_member_postgres{answer="silent",member="b"} 0"#,
            r#"warden_member_postgres{answer="starting",member="b"} 0"#,
            r#"warden_member_postgres{answer="unknown",member="b"} 0"#,
            r#"warden_member_postgres{answer="writable",member="b"} 0"#,
        ]
    );
    for (prefix, states) in [("warden_member_patroni{", 5), ("warden_member_role{", 8)] {
        for name in ["a", "b"] {
            let of: Vec<&str> =
                series(&all, prefix).into_iter().filter(|line| line.contains(&format!("member=\"{name}\""))).collect();
            let ones = of.iter().filter(|line| line.ends_with(" 1")).count();
            assert_eq!((of.len(), ones), (states, 1), "{of:?}");
        }
    }
}

#[test]
fn a_state_that_is_over_is_0() {
    let metrics = Metrics::new().unwrap();
    let mut view = healthy();
    scraped(&metrics, &view, 1500);
    apply(&mut view, 1600, postgres("b", PostgresAnswer::Refused("x".to_owned())));
    let all = scraped(&metrics, &view, 1700);
    assert!(all.contains(r#"warden_member_postgres{answer="refused",member="b"} 1"#));
    assert!(all.contains(r#"warden_member_postgres{answer="in_recovery",member="b"} 0"#));
}

#[test]
fn writable_is_absent_while_it_is_unknown() {
    let metrics = Metrics::new().unwrap();
    let view = healthy();
    assert_eq!(series(&scraped(&metrics, &view, 1500), "warden_member_writable").len(), 2);
    // The last answers are too old now, so 1 and 0 would both be a guess.
    let later = scraped(&metrics, &view, 60_000);
    assert_eq!(series(&later, "warden_member_writable"), [""; 0]);
    assert!(later.contains(r#"warden_member_postgres{answer="unknown",member="a"} 1"#));
    assert!(later.contains("warden_leader_verified 0"));
}

#[test]
fn a_member_that_has_left_has_no_series() {
    let metrics = Metrics::new().unwrap();
    let mut view = healthy();
    let about_b = |all: &BTreeSet<String>| all.iter().filter(|line| line.contains(r#""b""#)).count();
    assert!(about_b(&scraped(&metrics, &view, 1500)) > 10);
    apply(&mut view, 2000, member("b", false));
    apply(&mut view, 2000, Event::ZooKeeper(ZooKeeperEvent::Agent { name: "b".into(), record: Reading::Absent }));
    apply(&mut view, 100_000, Event::Tick);
    let all = scraped(&metrics, &view, 100_000);
    assert_eq!(about_b(&all), 0, "{all:#?}");
    assert!(!series(&all, r#"warden_leader{member="a""#).is_empty());
}

#[test]
fn without_a_session_there_is_no_timeout_and_the_last_contact_ages() {
    let mut view = healthy();
    apply(&mut view, 1600, lost("disconnected"));
    let all = scraped(&Metrics::new().unwrap(), &view, 1700);
    assert!(all.contains("warden_zookeeper_connected 0"));
    assert!(all.contains("warden_leader_verified 0"));
    assert_eq!(series(&all, r#"warden_zookeeper_seconds{what="session_timeout""#), [""; 0]);
    assert!(all.contains(r#"warden_zookeeper_seconds{what="last_contact"} 1.697"#));
}

#[test]
fn every_warning_code_has_a_series_so_that_an_alert_rule_can_name_it() {
    let mut view = healthy();
    apply(&mut view, 1400, postgres("b", PostgresAnswer::Refused("x".to_owned())));
    let all = scraped(&Metrics::new().unwrap(), &view, 1500);
    for (code, _) in warn::CODES {
        let expected = i32::from(*code == "postgres_refused");
        assert!(all.contains(&format!("warden_warnings{{code=\"{code}\"}} {expected}")), "{code}");
    }
}

#[test]
fn events_are_counted_by_kind_and_reason() {
    let metrics = Metrics::new().unwrap();
    for (at, event) in [
        (1, session(1)),
        (2, lost("disconnected")),
        (3, lost("disconnected")),
        (4, lost("unreachable")),
        (5, verified(key("a", 1), 5)),
        (6, Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown("x".to_owned())))),
        (7, Event::TaskFailed { task: "http", error: "x".to_owned() }),
        (8, patroni("a", Role::Primary)),
        (9, agent("b")),
    ] {
        metrics.count(&event, ms(at));
    }
    metrics.count_leader_change("nobody");
    let all = scraped(&metrics, &View::new(identity(&["node"])), 10);
    for expected in [
        r#"warden_events_total{kind="session_lost"} 3"#,
        r#"warden_events_total{kind="agent"} 1"#,
        r#"warden_zookeeper_sessions_lost_total{reason="disconnected"} 2"#,
        r#"warden_zookeeper_sessions_lost_total{reason="unreachable"} 1"#,
        r#"warden_barrier_reads_total{result="verified"} 1"#,
        r#"warden_barrier_reads_total{result="unknown"} 1"#,
        "warden_barrier_seconds_sum 0.002",
        r#"warden_task_failures_total{task="http"} 1"#,
        r#"warden_leader_changes_total{holder="nobody"} 1"#,
    ] {
        assert!(all.contains(expected), "{expected} is not in {all:#?}");
    }
}

#[test]
fn actions_are_counted_by_outcome() {
    let metrics = Metrics::new().unwrap();
    let fence = |rule, outcome| Event::Report(Report::Fence(FenceReport { member: "a".into(), rule, outcome }));
    let confirmed = |ms| FenceOutcome::Confirmed { by: "fast shutdown", took: Duration::from_millis(ms) };
    for event in [
        fence(Rule::Superseded, confirmed(21)),
        fence(Rule::Superseded, confirmed(24)),
        fence(Rule::Lease, FenceOutcome::Waiting),
        fence(Rule::Lease, FenceOutcome::Withdrawn("x".to_owned())),
        fence(Rule::Peer, FenceOutcome::Failed("x".to_owned())),
        fence(Rule::Orphaned, FenceOutcome::Observed),
        Event::Report(Report::Release(ReleaseReport::Done { took: Duration::from_millis(5) })),
        Event::Report(Report::Release(ReleaseReport::Withdrawn("x".to_owned()))),
        Event::Report(Report::Release(ReleaseReport::Failed("x".to_owned()))),
        Event::Report(Report::Nudged(Outcome::Done)),
        Event::Report(Report::Nudged(Outcome::Done)),
        Event::Report(Report::Nudged(Outcome::Failed("x".to_owned()))),
        Event::Report(Report::Reconnected(Outcome::Done)),
        Event::Report(Report::Reconnected(Outcome::Failed("x".to_owned()))),
    ] {
        metrics.count(&event, ms(1));
    }
    let all = scraped(&metrics, &healthy(), 1500);
    for expected in [
        r#"warden_fences_total{outcome="confirmed",rule="superseded"} 2"#,
        r#"warden_fences_total{outcome="waiting",rule="lease"} 1"#,
        r#"warden_fences_total{outcome="withdrawn",rule="lease"} 1"#,
        r#"warden_fences_total{outcome="failed",rule="peer"} 1"#,
        r#"warden_fences_total{outcome="observed",rule="orphaned"} 1"#,
        r#"warden_fence_seconds_count{rule="superseded"} 2"#,
        r#"warden_fence_seconds_sum{rule="superseded"} 0.045"#,
        r#"warden_releases_total{outcome="done"} 1"#,
        r#"warden_releases_total{outcome="withdrawn"} 1"#,
        r#"warden_releases_total{outcome="failed"} 1"#,
        r#"warden_nudges_total{outcome="done"} 2"#,
        r#"warden_nudges_total{outcome="failed"} 1"#,
        r#"warden_reconnects_total{outcome="done"} 1"#,
        r#"warden_reconnects_total{outcome="failed"} 1"#,
    ] {
        assert!(all.contains(expected), "{expected} is not in {all:#?}");
    }
    assert_eq!(
        series(&all, r#"warden_fence_seconds_count{rule="lease"}"#),
        [""; 0],
        "only a confirmed fence has a time"
    );
}

#[test]
fn the_fence_session_has_a_series_after_the_first_attempt() {
    let metrics = Metrics::new().unwrap();
    let mut view = healthy();
    let ready = |view: &View| {
        let all = scraped(&metrics, view, 1500);
        series(&all, "warden_fence_session_ready").into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(ready(&view), [""; 0]);
    apply(&mut view, 1400, Event::Local(LocalEvent::FenceSession(FenceSession::Ready)));
    assert_eq!(ready(&view), ["warden_fence_session_ready 1"]);
    apply(&mut view, 1450, Event::Local(LocalEvent::FenceSession(FenceSession::Lost("x".to_owned()))));
    assert_eq!(ready(&view), ["warden_fence_session_ready 0"]);
}

#[test]
fn the_alive_lock_has_series_only_if_an_agent_sees_it() {
    let metrics = Metrics::new().unwrap();
    let mut view = healthy();
    assert_eq!(series(&scraped(&metrics, &view, 1500), "warden_member_alive_lock"), [""; 0]);
    apply(&mut view, 1400, Event::Local(LocalEvent::AliveLock(AliveLock::Gone)));
    let all = scraped(&metrics, &view, 1500);
    assert_eq!(
        series(&all, "warden_member_alive_lock"),
        [
            r#"warden_member_alive_lock{member="a",state="alive"} 0"#,
            r#"warden_member_alive_lock{member="a",state="gone"} 1"#,
            r#"warden_member_alive_lock{member="a",state="unknown"} 0"#,
        ]
    );
}

#[test]
fn an_agent_has_series_of_the_local_haproxy_only() {
    let metrics = Metrics::new().unwrap();
    let mut view = healthy();
    apply(&mut view, 1000, Event::Haproxy(HaproxyEvent::Answered(servers(&[("a", true, 12), ("b", false, 0)]))));
    apply(&mut view, 1000, crate::tell::fixtures::router("r", servers(&[("a", true, 99)])));
    let all = scraped(&metrics, &view, 1500);
    assert_eq!(
        series(&all, "warden_haproxy_server"),
        [
            r#"warden_haproxy_server_sessions{agent="a",member="a",proxy="writes",server="pg-a"} 12"#,
            r#"warden_haproxy_server_sessions{agent="a",member="b",proxy="writes",server="pg-b"} 0"#,
            r#"warden_haproxy_server_up{agent="a",member="a",proxy="writes",server="pg-a"} 1"#,
            r#"warden_haproxy_server_up{agent="a",member="b",proxy="writes",server="pg-b"} 0"#,
        ]
    );
    apply(&mut view, 1600, Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Unusable("x".to_owned()))));
    assert_eq!(series(&scraped(&metrics, &view, 1700), "warden_haproxy_server"), [""; 0]);
}

#[test]
fn a_name_cannot_break_out_of_its_label() {
    let mut view = healthy();
    apply(&mut view, 1000, member("c\"} 1\nwarden_leader_verified 1", true));
    let all = scraped(&Metrics::new().unwrap(), &view, 60_000);
    assert_eq!(series(&all, "warden_leader_verified"), ["warden_leader_verified 0"]);
}
