//! The rule lease: without ZooKeeper and without Patroni.

use super::*;

/// The local Patroni has been frozen since 10 s, and ZooKeeper is away since 20 s. The lease was good until 39 s.
pub(super) fn frozen_and_cut() -> Scene {
    leading()
        .with("silence", 10_500, silent())
        .with("barrier", 19_000, verified(key("a", 1), 1, 19_001))
        .with("lost", 20_000, lost())
        .with("still silent", 34_000, silent())
        .with("postgres", 34_000, takes_writes("a", 1))
}

/// The end of the lease.
fn lease_ends() -> Vec<Case> {
    let l = frozen_and_cut;
    let granted = |seconds| {
        Event::ZooKeeper(ZooKeeperEvent::SessionStarted(Session {
            negotiated: Duration::from_secs(seconds),
            ..fixtures::session(1)
        }))
    };
    vec![
        ("five seconds before the lease is over", l(), 34_000, Fences("a", Rule::Lease)),
        ("not before", l(), 33_999, Waits(34_000)),
        (
            "a session that has just ended is about to be had again: found by the simulation",
            l().with("barrier", 34_100, verified(key("a", 1), 1, 34_101)).with("lost", 34_500, lost()).with(
                "still silent",
                36_900,
                silent(),
            ),
            37_100,
            Waits(37_101),
        ),
        (
            "ZooKeeper was not reached for long enough",
            l().with("barrier", 34_100, verified(key("a", 1), 1, 34_101)).with("lost", 34_500, lost()).with(
                "still silent",
                36_900,
                silent(),
            ),
            37_101,
            Fences("a", Rule::Lease),
        ),
        (
            "counted from what its Patroni last told",
            l().with("patroni", 10_000, answers(|status| status.dcs_last_seen = Some(ms(7000)))),
            32_000,
            Fences("a", Rule::Lease),
        ),
        ("the server grants less than ttl", l().with("session", 1, granted(20)), 33_999, Fences("a", Rule::Lease)),
    ]
}

/// The lease after a change of ttl.
fn ttl_changes() -> Vec<Case> {
    let l = frozen_and_cut;
    let granted = |seconds| {
        Event::ZooKeeper(ZooKeeperEvent::SessionStarted(Session {
            negotiated: Duration::from_secs(seconds),
            ..fixtures::session(1)
        }))
    };
    vec![
        (
            "ttl was raised, and Patroni has not been in contact since: found by the simulation",
            l().with("config", 2, config_znode(|c| c.ttl = Duration::from_secs(20)))
                .with("config 2", 9_500, config_znode(|_| {}))
                .with("still silent", 24_000, silent())
                .with("postgres", 24_000, takes_writes("a", 1)),
            24_000,
            Fences("a", Rule::Lease),
        ),
        (
            "ttl was raised twice",
            l().with("config", 2, config_znode(|c| c.ttl = Duration::from_secs(20)))
                .with("config 2", 9_500, config_znode(|c| c.ttl = Duration::from_secs(25)))
                .with("config 3", 9_600, config_znode(|_| {}))
                .with("still silent", 24_000, silent())
                .with("postgres", 24_000, takes_writes("a", 1)),
            24_000,
            Fences("a", Rule::Lease),
        ),
        (
            "ttl was raised, and Patroni has been in contact since",
            l().with("config", 2, config_znode(|c| c.ttl = Duration::from_secs(20))).with(
                "config 2",
                8_500,
                config_znode(|_| {}),
            ),
            33_999,
            Waits(34_000),
        ),
        ("the server grants more than ttl", l().with("session", 1, granted(40)), 33_999, Waits(34_000)),
        (
            "ttl was lowered",
            l().with("config 2", 19_500, config_znode(|c| c.ttl = Duration::from_secs(20))),
            33_999,
            Fences("a", Rule::Lease),
        ),
    ]
}

/// The signs that Patroni is away.
fn patroni_is_away() -> Vec<Case> {
    let l = frozen_and_cut;
    vec![
        (
            "the key was read as ours later than that",
            l().with("barrier", 19_000, verified(key("a", 1), 1, 19_001)).with("patroni", 10_000, answers(|_| {})),
            34_500,
            Fences("a", Rule::Lease),
        ),
        (
            "the lock says that Patroni is dead",
            l().with("held", 10_001, Event::Local(LocalEvent::AliveLock(AliveLock::Alive)))
                .with("lock", 10_200, Event::Local(LocalEvent::AliveLock(AliveLock::Gone)))
                .without("silence")
                .with("still silent", 33_900, patroni("a", PatroniAnswer::Refused("x".to_string()))),
            34_000,
            Fences("a", Rule::Lease),
        ),
        ("a barrier read of ours that is old is no contact", l().without("lost"), 34_000, Fences("a", Rule::Lease)),
        (
            "silence of the server changes nothing",
            l().with("postgres 2", 34_000, probe("a", PostgresAnswer::Silent("x".to_string()))),
            34_500,
            Fences("a", Rule::Lease),
        ),
    ]
}

/// Each condition removed in turn.
fn lease_does_not_fence() -> Vec<Case> {
    let l = frozen_and_cut;
    vec![
        // Each condition removed in turn.
        ("in recovery", l().with("postgres", 34_000, follows("a")), 34_500, Nothing),
        ("its Patroni answers", l().with("still silent", 34_000, answers(|_| {})), 34_500, Nothing),
        (
            "its Patroni has not been silent for long",
            l().without("silence").with("silence 2", 33_000, silent()),
            34_500,
            Waits(38_000),
        ),
        (
            "ZooKeeper is back and says ours",
            l().with("session 2", 34_100, session(2)).with("barrier 2", 34_200, verified(key("a", 1), 2, 34_201)),
            34_500,
            Nothing,
        ),
        (
            "ZooKeeper is back with the same session and says ours",
            l().with("session 2", 34_100, session(1)).with("barrier 2", 34_200, verified(key("a", 1), 1, 34_201)),
            34_500,
            Nothing,
        ),
        (
            "last known paused",
            l().with("config 2", 19_500, config_znode(paused_config)),
            34_500,
            Holds(Rule::Lease, "maintenance"),
        ),
        (
            "failsafe was active",
            l().with(
                "patroni",
                10_000,
                answers(|status| {
                    status.failsafe_active = true;
                    status.dcs_last_seen = Some(ms(9000));
                }),
            ),
            34_500,
            Holds(Rule::Lease, "failsafe"),
        ),
        ("another database", l().with("initialize", 3, initialize(8)), 34_500, Holds(Rule::Lease, "another database")),
        ("the cluster's identifier is not known", l().without("initialize"), 34_500, Holds(Rule::Lease, "initialize")),
    ]
}

#[test]
fn without_zookeeper_and_without_patroni_the_server_is_fenced_before_its_lease_is_over() {
    for (name, scene, now, expected) in
        [lease_ends(), ttl_changes(), patroni_is_away(), lease_does_not_fence()].into_iter().flatten()
    {
        check(name, &scene, now, &expected);
    }
}

#[test]
fn a_lease_of_unknown_length_is_held() {
    for (name, config) in [("gone", Reading::Absent), ("torn", Reading::Unreadable("torn".to_string()))] {
        let scene =
            frozen_and_cut().with("config 2", 19_500, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(config))));
        let verdict = judge(&scene.view(), ms(34_500));
        assert!(verdict.orders.is_empty() && verdict.held.len() == 1, "{name}: {verdict:?}");
    }
}

#[test]
fn a_lease_with_an_unknown_end_is_held_and_reported() {
    let unknown = frozen_and_cut().without("barrier").with("patroni", 10_000, answers(|_| {})).with(
        "barrier b",
        9000,
        verified(key("b", 1), 1, 9001),
    );
    check("never ours, and no contact", &unknown, 34_500, &Holds(Rule::Lease, "end of its lease"));
    let no_session = frozen_and_cut().without("session").without("barrier").without("lost");
    check("no session was ever granted", &no_session, 34_500, &Holds(Rule::Lease, "end of its lease"));
}

#[test]
fn a_znode_that_only_its_own_patroni_writes_prolongs_its_lease() {
    let l = || frozen_and_cut().with("silent all the time", 41_000, silent()).with("term", 7, leader(key("a", 1)));
    let pass = |at| (at, Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) }));
    let (at, tree) = pass(17_000);
    let seen = l().with("tree 2", at, tree.clone()).with("member", 17_500, member("a", "host-c"));
    check("its member znode changed after a whole pass", &seen, 41_999, &Waits(42_000));
    check("and for no longer", &seen, 42_000, &Fences("a", Rule::Lease));
    let status = || Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Status(Reading::Present(crate::types::Lsn(9)))));
    let seen = l().with("tree 2", at, tree.clone()).with("status", 17_500, status());
    check("the leader's position", &seen, 41_999, &Waits(42_000));
    let first = l().with("tree", 6, Event::Tick).with("status", 17_500, status());
    check("the first sight of it is of any age", &first, 34_000, &Fences("a", Rule::Lease));
    let others = l().with("tree 2", at, tree).with("member", 17_500, member("b", "host-c"));
    check("another member's", &others, 34_000, &Fences("a", Rule::Lease));
}

#[test]
fn a_plain_read_that_contradicts_the_barrier_read_does_not_make_it_a_lease() {
    // ZooKeeper answers, and Patroni's REST API has been silent for longer than the lease. A follower's stale read must
    // not count as a lost contact.
    let scene = frozen_and_cut().without("lost").with("barrier", 34_400, verified(key("a", 1), 1, 34_401));
    check("the key is ours", &scene, 34_500, &Nothing);
    for stale in [Reading::Absent, key("b", 2), key("a", 3), Reading::Unreadable("torn".to_string())] {
        let scene = scene.clone().with("plain", 34_450, leader(stale));
        check("contradicted", &scene, 34_500, &Waits(37_401));
        let unanswered = scene.with("still silent 2", 37_000, silent());
        check("and no barrier read since", &unanswered, 37_401, &Fences("a", Rule::Lease));
    }
}

/// Patroni was killed, restarted with a session of its own, and then frozen. The key still belongs to the old session
/// (found by the simulation).
#[test]
fn a_patroni_that_was_started_again_does_not_prolong_its_predecessors_session() {
    let again = || answers(|status| status.dcs_last_seen = Some(ms(12_000)));
    let led = || frozen_and_cut().with("led", 7, leader(key("a", 1)));
    let scene = || {
        led().with("bridge", 11_500, answers(|_| {})).with("again", 12_100, again()).with("silence", 12_500, silent())
    };
    check("it was only silent", &scene().with("before", 11_000, silent()), 34_500, &Waits(37_000));
    let refused = || patroni("a", PatroniAnswer::Refused("x".to_string()));
    check("its port had no listener", &scene().with("before", 11_000, refused()), 34_500, &Fences("a", Rule::Lease));
    let locked = scene().with("held", 10_001, Event::Local(LocalEvent::AliveLock(AliveLock::Alive)));
    check("it held the lock all the time", &locked.clone().with("before", 11_000, refused()), 34_500, &Waits(37_000));
    let freed = locked.with("freed", 11_000, Event::Local(LocalEvent::AliveLock(AliveLock::Gone)));
    let held_again = freed.with("held again", 11_200, Event::Local(LocalEvent::AliveLock(AliveLock::Alive)));
    check("the lock was free", &held_again, 34_500, &Fences("a", Rule::Lease));
    let term = held_again.with("term", 11_500, leader(key("a", 2)));
    let term = term.with("barrier", 19_000, verified(key("a", 2), 1, 19_001));
    check("it has taken the key again", &term, 34_500, &Waits(37_000));
}
