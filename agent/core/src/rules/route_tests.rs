//! The rules of routing, told as scenes: HAProxy has a server for a and one for b, a leads.

use super::*;
use crate::assess::tests::{agent, patroni, probe, server as at, status};
use crate::event::{Event, Started};
use crate::haproxy::{RouteOutcome, RouteReport};
use crate::rules::fence::tests::{Scene, paused_config};
use crate::types::SessionId;
use crate::view::tests::{cluster_config, key, leader, lost, ms, session, verified, verified_with};
use alloc::vec;

const NOW: u64 = 10_000;

fn server(pool: Pool, member: &str, status: &str, sessions: u64) -> HaproxyServer {
    HaproxyServer {
        pool,
        name: format!("pg-{member}"),
        address: format!("10.0.0.{}:5432", member.len()),
        member: Some(member.into()),
        status: status.to_string(),
        up: status.starts_with("UP"),
        sessions,
    }
}

fn servers(a: &str, b: &str) -> Event {
    let servers = vec![server(Pool::Writes, "a", a, 5), server(Pool::Writes, "b", b, 0)];
    Event::Haproxy(HaproxyAnswer::Servers(servers))
}

fn writable(member: &str) -> Event {
    probe(member, PostgresAnswer::Writable(at(1, 1000)))
}

fn standby(member: &str) -> Event {
    probe(member, PostgresAnswer::InRecovery(at(1, 1000)))
}

fn answering(member: &str, role: Role) -> Event {
    patroni(member, PatroniAnswer::Answering(status(role, Some(role == Role::Primary))))
}

/// All is well.
fn well() -> Scene {
    Scene::new([
        ("session", 1, session(1)),
        ("key", 9_990, verified(key("a", 1), 1, 9_992)),
        ("a", 9_900, writable("a")),
        ("b", 9_900, standby("b")),
        ("patroni a", 9_900, answering("a", Role::Primary)),
        ("patroni b", 9_900, answering("b", Role::Replica)),
        ("haproxy", 9_950, servers("UP", "DOWN")),
    ])
}

/// b holds the key.
fn moved() -> Scene {
    well().with("key", 9_990, verified(key("b", 2), 1, 9_992))
}

fn told(scene: &Scene) -> Vec<(String, Wish)> {
    let routing = judge(&scene.view(), &RoutePolicy::default(), ms(NOW));
    routing.changes.into_iter().map(|change| (change.server, change.to)).collect()
}

fn broke(member: &str) -> Event {
    Event::SessionBroke { member: member.into() }
}

fn hangs(member: &str) -> Event {
    patroni(member, PatroniAnswer::Silent("no answer within 1 s".to_string()))
}

fn silent(member: &str) -> Event {
    probe(member, PostgresAnswer::Silent("no answer within 1 s".to_string()))
}

fn said(server: &str, to: Wish) -> Event {
    Event::Started(Started::Route { pool: Pool::Writes, server: server.to_string(), to })
}

fn report(outcome: RouteOutcome) -> Event {
    let (pool, server, to) = (Pool::Writes, "pg-a".to_string(), Wish::Wait);
    Event::Routed(RouteReport { pool, server, member: "a".into(), to, outcome })
}

#[test]
fn who_takes_new_connections() {
    let refused = || PostgresAnswer::Refused("the database system is shutting down".to_string());
    let unknown = || PostgresAnswer::Unknown("password authentication failed".to_string());
    let writes = || PostgresAnswer::Writable(at(1, 1000));
    let up_b = || well().with("haproxy", 9_950, servers("DOWN", "UP"));
    type Case = (&'static str, Scene, &'static [(&'static str, Wish)]);
    let cases: &[Case] = &[
        ("all is well", well(), &[]),
        // The first sign.
        ("its session broke off", well().with("broke", 9_991, broke("a")), &[("pg-a", Wish::Wait)]),
        ("and is there again", well().with("broke", 9_850, broke("a")), &[]),
        // Before a server stops, our sessions with it are ended, and one that was opened since tells nothing.
        (
            "and answered once more",
            well().with("broke", 9_900, broke("a")).with("a", 9_949, writable("a")),
            &[("pg-a", Wish::Wait)],
        ),
        ("a false alarm", well().with("broke", 9_900, broke("a")).with("a", 9_950, writable("a")), &[]),
        ("it refuses", well().with("a", 9_991, probe("a", refused())), &[("pg-a", Wish::Wait)]),
        ("its agent says so", well().with("agent", 9_995, agent("a", refused(), 1)), &[("pg-a", Wish::Wait)]),
        ("its agent said so before", well().with("agent", 9_895, agent("a", refused(), 100)), &[]),
        ("it is slow, or hangs, and its Patroni answers", well().with("a", 9_991, silent("a")), &[]),
        (
            "it is silent",
            well().with("a", 9_991, silent("a")).with("patroni a", 9_900, hangs("a")),
            &[("pg-a", Wish::Wait)],
        ),
        (
            "all are silent: it may be us who are cut off",
            well()
                .with("key", 8_980, verified(key("a", 1), 1, 8_982))
                .with("a", 9_991, silent("a"))
                .with("b", 9_991, silent("b"))
                .with("patroni a", 9_900, hangs("a"))
                .with("patroni b", 9_900, hangs("b")),
            &[],
        ),
        (
            "we cannot reach it, its agent can",
            well().with("a", 9_980, probe("a", refused())).with("agent", 9_995, agent("a", writes(), 1)),
            &[("pg-a", Wish::Wait)],
        ),
        (
            "only its agent can say",
            well().without("a").with("agent", 9_995, agent("a", refused(), 1)),
            &[("pg-a", Wish::Wait)],
        ),
        ("it is in recovery", well().with("a", 9_991, standby("a")), &[("pg-a", Wish::Wait)]),
        ("nobody can say", well().with("a", 9_991, probe("a", unknown())), &[]),
        // What was seen too long ago says nothing.
        ("nothing is heard of it", well().without("a"), &[]),
        // A new leader.
        ("another holds the key", moved(), &[("pg-a", Wish::Out)]),
        ("and takes writes", moved().with("b", 9_995, writable("b")), &[("pg-b", Wish::Up), ("pg-a", Wish::Out)]),
        (
            "routed already",
            moved().with("b", 9_995, writable("b")).with("haproxy", 9_996, servers("DOWN", "UP")),
            &[("pg-a", Wish::Out)],
        ),
        ("the leader is taken for down", up_b(), &[("pg-a", Wish::Up), ("pg-b", Wish::Out)]),
        (
            "the leader is about to be taken for down",
            well().with("haproxy", 9_950, servers("UP 1/2", "DOWN")),
            &[("pg-a", Wish::Up)],
        ),
        // Nobody holds it: whoever takes writes may be about to take it, too.
        ("nobody leads", well().with("key", 9_990, verified(Reading::Absent, 1, 9_992)), &[]),
        (
            "nobody leads, and it refuses",
            well().with("key", 9_990, verified(Reading::Absent, 1, 9_992)).with("a", 9_991, probe("a", refused())),
            &[("pg-a", Wish::Wait)],
        ),
        // In maintenance mode nobody is cut.
        ("paused", well().with("key", 9_990, verified_with(key("b", 2), paused(), 1, 9_992)), &[("pg-a", Wish::Wait)]),
        // What a person took out of service stays so.
        ("in maintenance", well().with("haproxy", 9_950, servers("MAINT", "DOWN")), &[]),
        ("drained", well().with("haproxy", 9_950, servers("DRAIN", "DOWN")), &[]),
        // An ordinary read that says otherwise is no proof, and enough to do nothing.
        ("contradicted", moved().with("news", 9_995, leader(key("a", 3))).with("b", 9_995, writable("b")), &[]),
        ("no answer of HAProxy's", well().with("haproxy", 9_950, unusable()).with("broke", 9_991, broke("a")), &[]),
        ("an old answer of HAProxy's", well().with("haproxy", 6_900, servers("DOWN", "UP")), &[]),
    ];
    for (name, scene, expected) in cases {
        let expected: Vec<(String, Wish)> = expected.iter().map(|(server, to)| (server.to_string(), *to)).collect();
        assert_eq!(told(scene), expected, "{name}");
    }
}

fn paused() -> Reading<crate::event::ClusterConfig> {
    let mut config = cluster_config();
    paused_config(&mut config);
    Reading::Present(config)
}

fn unusable() -> Event {
    Event::Haproxy(HaproxyAnswer::Unusable("no answer within 1 s".to_string()))
}

#[test]
fn without_zookeeper_nobody_is_cut_and_the_only_primary_is_raised() {
    let away = || well().with("lost", 9_991, lost());
    let moved =
        || away().with("a", 9_995, silent("a")).with("patroni a", 9_900, hangs("a")).with("b", 9_995, writable("b"));
    let wait = [("pg-a".to_string(), Wish::Wait)];
    assert_eq!(told(&away()), []);
    assert_eq!(
        told(&moved().with("patroni b", 9_995, answering("b", Role::Replica))),
        wait,
        "its Patroni knows nothing"
    );
    let led = moved().with("patroni b", 9_995, answering("b", Role::Primary));
    assert_eq!(told(&led), [wait[0].clone(), ("pg-b".to_string(), Wish::Up)]);
    let both = led.with("a", 9_995, writable("a"));
    assert_eq!(told(&both), [], "two primaries: which one is right is not known");
    let elsewhere = well().with("lost", 9_991, lost()).with("haproxy", 9_950, servers("UP", "UP"));
    let stands = [("pg-b".to_string(), Wish::Wait)];
    assert_eq!(told(&elsewhere), stands, "no writes for a standby that HAProxy's checks took in, and no cut");
}

#[test]
fn sessions_are_cut_only_in_the_session_in_which_it_was_read_who_leads() {
    let changes = judge(&moved().view(), &RoutePolicy::default(), ms(NOW)).changes;
    let condition = KeyCondition { session: SessionId(1), key: KeyIs::OfAnotherThan("a".into()), sync: None };
    assert_eq!(changes[0].condition, Some(condition));
    assert_eq!((changes[0].address.as_str(), changes[0].member.as_str()), ("10.0.0.1:5432", "a"));
    // Sessions that outlived its being down.
    let left = moved().with("haproxy", 9_995, servers("DOWN", "DOWN"));
    assert_eq!(told(&left), [("pg-a".to_string(), Wish::Out)]);
    let none = vec![server(Pool::Writes, "a", "DOWN", 0), server(Pool::Writes, "b", "DOWN", 0)];
    assert_eq!(told(&moved().with("haproxy", 9_995, Event::Haproxy(HaproxyAnswer::Servers(none)))), []);
}

#[test]
fn what_was_told_is_believed_until_the_next_look_and_told_again_only_after_a_while() {
    let goes = || well().with("broke", 9_900, broke("a")).with("a", 9_890, writable("a"));
    let wait = [("pg-a".to_string(), Wish::Wait)];
    assert_eq!(told(&goes()), wait);
    assert_eq!(told(&goes().with("told", 9_960, said("pg-a", Wish::Wait))), []);
    // A look later it still takes connections.
    let looked =
        |when| goes().with("told", when, said("pg-a", Wish::Wait)).with("haproxy", 9_998, servers("UP", "DOWN"));
    assert_eq!(told(&looked(9_997)), [], "not without a pause");
    assert_eq!(told(&looked(9_995)), wait);
    let refused = RouteOutcome::Failed("Permission denied".to_string());
    let refused = |when| looked(when).with("refused", when + 1, report(refused.clone()));
    assert_eq!(told(&refused(9_760)), [], "only after a while");
    assert_eq!(told(&refused(9_740)), wait);
    // A false alarm: it goes on at once, without a look in between.
    let false_alarm = goes().with("told", 9_960, said("pg-a", Wish::Wait)).with("a", 9_970, writable("a"));
    assert_eq!(told(&false_alarm), [("pg-a".to_string(), Wish::Up)]);
}

/// Whoever connects in the middle of a change must not be sent to the server that goes, whatever HAProxy's checks say.
#[test]
fn new_connections_are_held_while_a_server_goes_or_none_takes_writes() {
    let held = |scene: &Scene, now| judge(&scene.view(), &RoutePolicy::default(), ms(now)).hold;
    let told = |on| Event::Started(Started::Hold { on });
    let on = |scene: &Scene, now| held(scene, now).map(|(on, _)| on);
    assert_eq!(held(&well(), NOW), None);
    assert_eq!(held(&well().with("unusable", 9_996, unusable()), NOW), None, "nobody can say");
    let goes = || well().with("broke", 9_991, broke("a"));
    assert_eq!(held(&goes(), NOW), Some((true, "a: our session with it broke off".to_string())));
    assert_eq!(on(&goes().with("hold", 9_992, told(true)), NOW), None, "it is held");
    assert_eq!(on(&goes().with("hold", 9_499, told(true)), NOW), Some(true), "HAProxy would forget it");
    assert_eq!(on(&goes().with("looked", 9_995, servers("NOLB", "DOWN")), NOW), Some(true), "none is up");
    assert_eq!(on(&well().with("looked", 9_995, servers("DOWN", "DOWN")), NOW), None, "a is only to be raised");
    // HAProxy's checks have raised it again, or have not taken it out yet.
    assert_eq!(on(&moved(), NOW), Some(true));
    let led = || moved().with("b", 9_993, writable("b")).with("hold", 9_992, told(true));
    assert_eq!(on(&led().with("looked", 9_995, servers("UP", "UP")), NOW), None, "still held: a is up, too");
    let over = led().with("looked", 9_995, servers("DOWN", "UP"));
    assert_eq!(held(&over, NOW), Some((false, "writes have somewhere to go".to_string())));
    // A server that somebody took out of service is theirs.
    assert_eq!(on(&well().with("looked", 9_995, servers("UP", "MAINT")), NOW), None);
    // Not for ever.
    let long = || goes().with("hold", 9_992, told(true)).with("looked", 9_995, servers("DOWN", "DOWN"));
    let all_down = || long().with("looked again", 39_980, servers("DOWN", "DOWN"));
    assert_eq!(on(&all_down(), 39_990), Some(true));
    assert_eq!(held(&all_down(), 39_992), Some((false, "they have waited long enough".to_string())));
    let let_go = || all_down().with("let go", 39_992, told(false));
    assert_eq!(on(&let_go(), 39_993), None);
    // A new holder is not promoted yet, and HAProxy's check believes its Patroni.
    let taken = let_go().with("b", 39_993, standby("b")).with("taken", 39_994, leader(key("b", 2)));
    assert_eq!(on(&taken.with("raised", 39_996, servers("DOWN", "UP")), 39_997), Some(true));
}

/// Where HAProxy's checks may know what we do not, nobody is held because of us.
#[test]
fn nobody_is_held_because_we_know_little() {
    let hold = |scene: &Scene| judge(&scene.view(), &RoutePolicy::default(), ms(NOW)).hold;
    // The key is as it was when we still had ZooKeeper.
    let moved_since = || {
        well()
            .with("lost", 9_991, lost())
            .with("b", 9_993, writable("b"))
            .with("patroni b", 9_993, answering("b", Role::Primary))
            .with("haproxy", 9_996, servers("DOWN", "UP"))
    };
    assert_eq!(hold(&moved_since()), None);
    // We have just started, and know of no member.
    let unknown = vec![HaproxyServer { member: None, ..server(Pool::Writes, "a", "UP", 0) }];
    assert_eq!(hold(&Scene::new([("haproxy", 9_950, Event::Haproxy(HaproxyAnswer::Servers(unknown)))])), None);
}

/// Whoever ends our sessions again and again must not keep everybody from a server that is well.
#[test]
fn false_alarms_are_believed_only_a_few_times_in_a_while() {
    let believed = |alarms: u64| {
        let mut routing = crate::haproxy::Routing::default();
        (0..alarms).for_each(|nth| routing.note_broke("a".into(), ms(1000 + 10 * nth)));
        routing.broke.get(&MemberName::from("a")).copied()
    };
    assert_eq!(believed(4), Some(ms(1030)));
    assert_eq!(believed(200), Some(ms(1030)));
    assert_eq!(believed(201), Some(ms(3000)), "after two seconds the next few count again");
    assert_eq!(believed(400), Some(ms(3030)));
}

#[test]
fn everybody_is_asked_out_of_turn_as_long_as_writes_have_nowhere_to_go() {
    let look = |scene: &Scene, now| {
        let routing = judge(&scene.view(), &RoutePolicy::default(), ms(now));
        (routing.look, routing.again)
    };
    assert_eq!(look(&well(), NOW), (false, Some(ms(12_991))), "ZooKeeper counts as away from then on");
    // `after` applies each event at its own moment.
    let lost = || well().with("broke", 9_970, broke("a"));
    assert_eq!(look(&lost(), NOW), (true, Some(ms(NOW + 20))));
    let probed = lost().with("looked", 9_990, Event::Started(Started::Look));
    assert_eq!(look(&probed, NOW), (false, Some(ms(10_010))));
    // A primary whose Patroni hangs is watched, so that HAProxy's checks do not take it out.
    assert_eq!(look(&well().with("patroni a", 9_900, hangs("a")), NOW), (true, Some(ms(NOW + 150))));
    let mut view = lost().view();
    assert_eq!(view.routing.unrouted_since, Some(ms(9_970)));
    view.routing.unrouted_since = Some(ms(NOW));
    let routing = judge(&view, &RoutePolicy::default(), ms(NOW + 31_000));
    assert_eq!(routing.again, Some(ms(NOW + 31_500)), "not in a hurry for ever");
}

fn reading(status: &str, lag: u64) -> Scene {
    let reads = vec![
        server(Pool::Writes, "a", "UP", 1),
        server(Pool::Reads, "a", "DOWN", 0),
        server(Pool::Reads, "b", status, 3),
    ];
    well()
        .with("haproxy", 9_950, Event::Haproxy(HaproxyAnswer::Servers(reads)))
        .with("a", 9_900, probe("a", PostgresAnswer::Writable(at(1, 100 << 20))))
        .with("b", 9_900, probe("b", PostgresAnswer::InRecovery(at(1, (100 << 20) - lag))))
}

#[test]
fn replicas_that_fall_back_take_no_new_reads_until_they_have_caught_up_well() {
    let fell = || Event::Started(Started::Route { pool: Pool::Reads, server: "pg-b".to_string(), to: Wish::Wait });
    let mib = 1 << 20;
    let wait = [("pg-b".to_string(), Wish::Wait)];
    let up = [("pg-b".to_string(), Wish::Up)];
    assert_eq!(told(&reading("UP", 16 * mib)), []);
    assert_eq!(told(&reading("UP", 16 * mib + 1)), wait);
    let fallen = |status, lag| reading(status, lag).with("fell", 9_000, fell());
    assert_eq!(told(&fallen("NOLB", 16 * mib)), []);
    assert_eq!(told(&fallen("UP", 9 * mib)), wait, "HAProxy's check let it in again before it had caught up");
    assert_eq!(told(&fallen("NOLB", 8 * mib)), up);
    assert_eq!(told(&reading("DOWN", 0)), [], "what HAProxy's checks took out is theirs");
    // Where the leader's position is not known, nor is the lag.
    assert_eq!(told(&reading("UP", 50 * mib).without("a").with("patroni a", 1, answering("b", Role::Replica))), []);
    // A replica that was promoted; its reads go on.
    let promoted = reading("UP", 0).with("key", 9_990, verified(key("b", 2), 1, 9_992)).with("b", 9_995, writable("b"));
    assert_eq!(told(&promoted), [("pg-b".to_string(), Wish::Wait), ("pg-a".to_string(), Wish::Out)]);
}

#[test]
fn what_haproxy_refuses_is_remembered_until_it_obeys() {
    let failed = well().with("failed", 9_960, report(RouteOutcome::Failed("Permission denied".to_string())));
    assert_eq!(failed.view().routing.failing.len(), 1);
    let done = RouteOutcome::Done { took: Duration::from_millis(1) };
    assert_eq!(failed.with("done", 9_970, report(done)).view().routing.failing.len(), 0);
}
