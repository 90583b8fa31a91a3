use super::*;
use crate::assess::tests::{agent_on_patroni, patroni, probe, status};
use crate::event::{
    Event, FailoverRequest, LocalEvent, PatroniStatus, PostgresAnswer, Started, SyncState, Znode, ZooKeeperEvent,
};
use crate::fact::Reading;
use crate::rules::fence::tests::{Scene, answers, config_znode, fence_record, leading, paused_config, takes_writes};
use crate::view::tests::{after, key, leader, lost, ms, verified};
use alloc::string::ToString;
use alloc::vec::Vec;

fn gone() -> Event {
    probe("a", PostgresAnswer::Gone("no process listens".to_string()))
}

fn sync(standbys: &[&str]) -> Event {
    let standbys = standbys.iter().map(|name| MemberName::from(*name)).collect();
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Sync(Reading::Present(SyncState {
        leader: Some("a".into()),
        standbys,
        quorum: 0,
    }))))
}

fn standby(change: impl Fn(&mut PatroniStatus)) -> Event {
    let mut status = status(Role::Replica, Some(false));
    status.state = State::Streaming;
    change(&mut status);
    patroni("b", PatroniAnswer::Answering(status))
}

fn switching() -> Event {
    let request = FailoverRequest { leader: Some("a".into()), candidate: None, scheduled: false };
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Failover(Reading::Present(request))))
}

/// The postmaster of `a`, the leader, was killed, and its Patroni lives.
fn crashed() -> Scene {
    leading().with("gone 1", 10_100, gone()).with("gone 2", 10_200, gone())
}

/// `a` leads, `b` streams and is not synchronous yet.
fn unprotected() -> Scene {
    leading().with("sync", 8, sync(&[])).with("standby", 10_000, standby(|_| {}))
}

fn check(name: &str, scene: &Scene, now: u64, reason: Option<&str>) {
    match (judge(&scene.view(), ms(now)), reason) {
        (Verdict::Nudge(told), Some(reason)) => assert!(told.contains(reason), "{name}: {told}"),
        (due, None) => assert_eq!(due, Verdict::NoReason, "{name}"),
        (due, Some(_)) => panic!("{name}: {due:?}"),
    }
}

#[test]
fn a_standby_that_streams_by_its_agents_report_is_a_reason_as_well() {
    let mut streams = status(Role::Replica, Some(false));
    streams.state = State::Streaming;
    let by_agent = agent_on_patroni("b", PatroniAnswer::Answering(streams), 500);
    let scene = leading().with("sync", 8, sync(&[])).with("standby", 10_000, by_agent);
    check("by its agent", &scene, 10_300, Some("streams and is not synchronous yet"));
}

#[test]
fn a_server_that_is_gone_under_a_living_patroni_is_a_reason() {
    let silent = || patroni("a", PatroniAnswer::Silent("x".to_string()));
    let yes = Some("is gone while its Patroni lives");
    let c = crashed;
    let cases = [
        ("all of it", c(), yes),
        (
            "the lock is not configured",
            c().with("lock", 9_000, Event::Local(LocalEvent::AliveLock(AliveLock::Unknown("x".to_string())))),
            yes,
        ),
        // Each condition removed in turn.
        ("gone only once", c().without("gone 2"), None),
        ("up again", c().with("up", 10_210, takes_writes("a", 1)), None),
        ("starting up", c().with("up", 10_210, probe("a", PostgresAnswer::Refused("x".to_string()))), None),
        ("its Patroni is silent", c().with("silent", 10_210, silent()), None),
        ("its Patroni was not asked lately", c().without("patroni 2").with("patroni", 7_000, answers(|_| {})), None),
        ("its Patroni is dead", c().with("lock", 10_210, Event::Local(LocalEvent::AliveLock(AliveLock::Gone))), None),
        ("another leads", c().with("other", 10_210, leader(key("b", 2))), None),
        ("no member leads", c().with("other", 10_210, leader(Reading::Absent)), None),
        ("we never led", c().with("barrier", 10_000, verified(key("b", 1), 1, 10_001)), None),
        ("paused", c().with("config 2", 10_100, config_znode(paused_config)), None),
        (
            "the configuration cannot be read",
            c().with(
                "config 2",
                10_100,
                Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(Reading::Unreadable("x".to_string())))),
            ),
            None,
        ),
        ("no session", c().with("lost", 10_210, lost()), None),
        ("a switchover is under way", c().with("failover", 10_050, switching()), None),
        ("a person fenced it", c().with("fence", 9_900, fence_record("a", Rule::Operator)), None),
        ("the record of a former fence is still there", c().with("fence", 9_900, fence_record("a", Rule::Lease)), yes),
        ("a person fenced another", c().with("fence", 9_900, fence_record("b", Rule::Operator)), yes),
    ];
    for (name, scene, expected) in cases {
        check(name, &scene, 10_250, expected);
    }
}

#[test]
fn a_standby_that_streams_and_is_not_synchronous_is_a_reason() {
    let yes = Some("b streams and is not synchronous yet");
    let u = unprotected;
    let cases = [
        ("all of it", u(), yes),
        // Each condition removed in turn.
        (
            "asynchronous",
            u().with("barrier", 10_000, leader(key("a", 1))).with(
                "config",
                2,
                config_znode(|c| c.synchronous_mode = false),
            ),
            None,
        ),
        ("one is synchronous", u().with("sync", 8, sync(&["b"])), None),
        ("the sync znode is not there", u().without("sync"), None),
        ("the standby does not stream yet", u().with("standby", 10_000, standby(|s| s.state = State::Running)), None),
        ("the standby must not be synchronous", u().with("standby", 10_000, standby(|s| s.nosync = true)), None),
        (
            "the standby is synchronous already",
            u().with("standby", 10_000, standby(|s| s.role = Role::SyncStandby)),
            None,
        ),
        ("nothing new is known of the standby", u().with("standby", 7_000, standby(|_| {})), None),
        ("there is no standby", u().without("standby"), None),
        (
            "our server takes no writes",
            u().without("postgres").with("patroni", 10_000, answers(|s| s.writable = Some(false))),
            None,
        ),
        (
            "our Patroni is silent",
            u().with("patroni", 10_000, patroni("a", PatroniAnswer::Silent("x".to_string()))),
            None,
        ),
        ("another leads", u().with("barrier", 10_000, verified(key("b", 1), 1, 10_001)), None),
        ("paused", u().with("config 2", 10_100, config_znode(paused_config)), None),
        ("no session", u().with("lost", 10_210, lost()), None),
        ("a switchover is under way", u().with("failover", 10_050, switching()), None),
    ];
    for (name, scene, expected) in cases {
        check(name, &scene, 10_250, expected);
    }
}

#[test]
fn nudges_are_a_second_apart_and_bounded() {
    let nudged_and = |other: Option<(u64, Event)>, times: &[u64], now: u64| {
        let mut events: Vec<(u64, Event)> = [(10_500, gone())].into();
        events.extend(times.iter().map(|at| (*at, Event::Started(Started::Nudge))));
        events.extend(other);
        events.extend([(now - 20, answers(|_| {})), (now - 10, gone()), (now - 5, gone())]);
        let mut view = leading().view();
        for (at, event) in events {
            crate::step::take_in(&mut view, crate::event::Observed { at: ms(at), event }, ms(at));
        }
        judge(&view, ms(now))
    };
    let nudged = |times: &[u64], now: u64| nudged_and(None, times, now);
    let is_nudge = |due| matches!(due, Verdict::Nudge(_));
    assert_eq!(nudged(&[11_000], 11_999), Verdict::Later(ms(12_000)));
    assert!(is_nudge(nudged(&[11_000], 12_000)));
    let fifteen: Vec<u64> = (11..26).map(|second| second * 1000).collect();
    assert!(is_nudge(nudged(&fifteen[..14], 26_000)));
    assert_eq!(nudged(&fifteen, 26_000), Verdict::Later(ms(55_000)), "enough for one reason");
    assert!(is_nudge(nudged(&fifteen, 55_000)), "after a while it is another reason");
    let sixteen: Vec<u64> = fifteen.iter().copied().chain([55_000]).collect();
    assert!(is_nudge(nudged(&sixteen, 56_000)), "and counted from one again");
    let up = |at| Some((at, takes_writes("a", 1)));
    assert_eq!(nudged_and(up(25_500), &fifteen, 26_000), Verdict::Later(ms(55_000)), "it dies again and again");
    assert!(is_nudge(nudged_and(up(26_000), &fifteen, 32_000)), "another death");
    assert_eq!(judge(&after([]), ms(0)), Verdict::NoReason);
}
