//! Scenes of the routing rule: HAProxy has a server for a and one for b, and a leads.

use super::*;
use crate::assess::tests::{agent, patroni, probe, server as at, status};
use crate::event::{Event, HaproxyEvent, MemberEvent, PostgresAnswer, Report, Rule, Started, State};
use crate::fixtures;
use crate::haproxy::{Check, RouteOutcome, RouteReport};
use crate::rules::fence::tests::{Scene, paused_config, record_of};
use crate::types::SessionId;
use crate::view::tests::{cluster_config, key, leader, lost, ms, session, verified, verified_with};
use alloc::string::ToString;
use alloc::vec;

const NOW: u64 = 10_000;

fn server(pool: Pool, member: &str, status: &str, sessions: u64) -> HaproxyServer {
    let proxy = if pool == Pool::Writes { "writes" } else { "reads" };
    HaproxyServer {
        pool,
        id: id(proxy, &format!("pg-{member}")),
        address: format!("10.0.0.{}:5432", member.len()),
        member: Some(member.into()),
        status: status.to_string(),
        up: status.starts_with("UP") || status == "no check",
        sessions,
        ..HaproxyServer::default()
    }
}

fn id(proxy: &str, name: &str) -> ServerId {
    ServerId { proxy: proxy.to_string(), name: name.to_string() }
}

fn servers(a: &str, b: &str) -> Event {
    let servers = vec![server(Pool::Writes, "a", a, 5), server(Pool::Writes, "b", b, 0)];
    Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(servers)))
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

/// The normal state.
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

fn told(scene: &Scene) -> Vec<(String, ServerCommand)> {
    let routing = judge(&scene.view(), &RoutePolicy::default(), ms(NOW));
    routing.changes.into_iter().map(|change| (change.server.name, change.to)).collect()
}

fn broke(member: &str) -> Event {
    Event::Member(member.into(), MemberEvent::SessionBroke)
}

fn hangs(member: &str) -> Event {
    patroni(member, PatroniAnswer::Silent("no answer within 1 s".to_string()))
}

fn silent(member: &str) -> Event {
    probe(member, PostgresAnswer::Silent("no answer within 1 s".to_string()))
}

fn said(server: &str, to: ServerCommand) -> Event {
    Event::Started(Started::Route { server: id("writes", server), to })
}

fn report(outcome: RouteOutcome) -> Event {
    let (pool, server, to) = (Pool::Writes, id("writes", "pg-a"), ServerCommand::Drain);
    Event::Report(Report::Routed(RouteReport { pool, server, member: "a".into(), to, outcome }))
}

/// Name, scene, commands.
type Case = (&'static str, Scene, &'static [(&'static str, ServerCommand)]);

/// One leader, and signs that it stops.
fn one_leader() -> Vec<Case> {
    let refused = || PostgresAnswer::Refused("the database system is shutting down".to_string());
    let unknown = || PostgresAnswer::Unknown("password authentication failed".to_string());
    let writes = || PostgresAnswer::Writable(at(1, 1000));
    vec![
        ("all is well", well(), &[]),
        // The first sign.
        ("its session broke off", well().with("broke", 9_991, broke("a")), &[("pg-a", ServerCommand::Drain)]),
        ("and is there again", well().with("broke", 9_850, broke("a")), &[]),
        // A server ends the agent's sessions before it stops. A session that was opened since proves nothing.
        (
            "and answered once more",
            well().with("broke", 9_900, broke("a")).with("a", 9_949, writable("a")),
            &[("pg-a", ServerCommand::Drain)],
        ),
        ("a wrong sign", well().with("broke", 9_900, broke("a")).with("a", 9_950, writable("a")), &[]),
        ("it refuses", well().with("a", 9_991, probe("a", refused())), &[("pg-a", ServerCommand::Drain)]),
        ("its agent says so", well().with("agent", 9_995, agent("a", refused(), 1)), &[("pg-a", ServerCommand::Drain)]),
        ("its agent said so before", well().with("agent", 9_895, agent("a", refused(), 100)), &[]),
        ("it is slow, or hangs, and its Patroni answers", well().with("a", 9_991, silent("a")), &[]),
        (
            "it is silent",
            well().with("a", 9_991, silent("a")).with("patroni a", 9_900, hangs("a")),
            &[("pg-a", ServerCommand::Drain)],
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
            &[("pg-a", ServerCommand::Drain)],
        ),
        (
            "only its agent can say",
            well().without("a").with("agent", 9_995, agent("a", refused(), 1)),
            &[("pg-a", ServerCommand::Drain)],
        ),
        ("it is in recovery", well().with("a", 9_991, standby("a")), &[("pg-a", ServerCommand::Drain)]),
        ("no source can tell", well().with("a", 9_991, probe("a", unknown())), &[]),
        // An old report does not count.
        ("nothing is heard of it", well().without("a"), &[]),
    ]
}

/// A new leader, no leader, and servers that Warden does not command.
fn leader_changes() -> Vec<Case> {
    let refused = || PostgresAnswer::Refused("the database system is shutting down".to_string());
    let up_b = || well().with("haproxy", 9_950, servers("DOWN", "UP"));
    vec![
        // A new leader.
        ("another holds the key", moved(), &[("pg-a", ServerCommand::Down)]),
        (
            "and takes writes",
            moved().with("b", 9_995, writable("b")),
            &[("pg-b", ServerCommand::Up), ("pg-a", ServerCommand::Down)],
        ),
        (
            "routed already",
            moved().with("b", 9_995, writable("b")).with("haproxy", 9_996, servers("DOWN", "UP")),
            &[("pg-a", ServerCommand::Down)],
        ),
        ("the leader is taken for down", up_b(), &[("pg-a", ServerCommand::Up), ("pg-b", ServerCommand::Down)]),
        (
            "the leader is about to be taken for down",
            well().with("haproxy", 9_950, servers("UP 1/2", "DOWN")),
            &[("pg-a", ServerCommand::Up)],
        ),
        // No member holds it: a writable server may be about to take it.
        ("no member leads", well().with("key", 9_990, verified(Reading::Absent, 1, 9_992)), &[]),
        (
            "no member leads, and it refuses",
            well().with("key", 9_990, verified(Reading::Absent, 1, 9_992)).with("a", 9_991, probe("a", refused())),
            &[("pg-a", ServerCommand::Drain)],
        ),
        // In maintenance mode no session is cut.
        (
            "paused",
            well().with("key", 9_990, verified_with(key("b", 2), paused(), 1, 9_992)),
            &[("pg-a", ServerCommand::Drain)],
        ),
        // A server that the operator took out of service stays so.
        ("in maintenance", well().with("haproxy", 9_950, servers("MAINT", "DOWN")), &[]),
        ("drained", well().with("haproxy", 9_950, servers("DRAIN", "DOWN")), &[]),
        // An ordinary read in the session of the barrier read is no older than it. It cuts no session.
        (
            "a new leader that no barrier read has confirmed yet",
            well().with("news", 9_995, leader(key("b", 2))).with("b", 9_996, writable("b")),
            &[("pg-b", ServerCommand::Up)],
        ),
        // An ordinary read to the contrary is no proof, but enough to do nothing.
        ("contradicted", moved().with("news", 9_995, leader(key("a", 3))).with("b", 9_995, writable("b")), &[]),
        ("no answer of HAProxy's", well().with("haproxy", 9_950, unusable()).with("broke", 9_991, broke("a")), &[]),
        ("an old answer of HAProxy's", well().with("haproxy", 6_900, servers("DOWN", "UP")), &[]),
    ]
}

#[test]
fn who_takes_new_connections() {
    for (name, scene, expected) in one_leader().into_iter().chain(leader_changes()) {
        let expected: Vec<(String, ServerCommand)> =
            expected.iter().map(|(server, to)| (server.to_string(), *to)).collect();
        assert_eq!(told(&scene), expected, "{name}");
    }
}

fn paused() -> Reading<crate::event::ClusterConfig> {
    let mut config = cluster_config();
    paused_config(&mut config);
    Reading::Present(config)
}

fn unusable() -> Event {
    Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Unusable("no answer within 1 s".to_string())))
}

#[test]
fn without_zookeeper_no_session_is_cut_and_the_only_primary_goes_up() {
    let away = || well().with("lost", 9_991, lost());
    let moved =
        || away().with("a", 9_995, silent("a")).with("patroni a", 9_900, hangs("a")).with("b", 9_995, writable("b"));
    let wait = [("pg-a".to_string(), ServerCommand::Drain)];
    assert_eq!(told(&away()), []);
    assert_eq!(
        told(&moved().with("patroni b", 9_995, answering("b", Role::Replica))),
        wait,
        "its Patroni knows nothing"
    );
    let led = moved().with("patroni b", 9_995, answering("b", Role::Primary));
    assert_eq!(told(&led), [wait[0].clone(), ("pg-b".to_string(), ServerCommand::Up)]);
    let both = led.with("a", 9_995, writable("a"));
    assert_eq!(told(&both), [], "two primaries: which one is right is not known");
    let drained = |check: Check| {
        let mut a = server(Pool::Writes, "a", "NOLB", 5);
        a.check = check;
        let answer = Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(vec![a])));
        away().with("a", 9_995, writable("a")).with("patroni a", 9_990, hangs("a")).with("haproxy", 9_950, answer)
    };
    let up = [("pg-a".to_string(), ServerCommand::Up)];
    assert_eq!(told(&drained(Check::Passes)), up, "its Patroni hangs, and has told HAProxy's last check");
    assert_eq!(told(&drained(Check::Fails("timeout".to_string()))), []);
    let denies = drained(Check::Passes).with("patroni a", 9_995, answering("a", Role::Replica));
    assert_eq!(told(&denies), [], "its Patroni has changed its mind since the check");
    let elsewhere = well().with("lost", 9_991, lost()).with("haproxy", 9_950, servers("UP", "UP"));
    let stands = [("pg-b".to_string(), ServerCommand::Drain)];
    assert_eq!(told(&elsewhere), stands, "no writes for a standby that HAProxy's checks took in, and no cut");
}

#[test]
fn sessions_are_cut_only_in_the_zookeeper_session_that_showed_the_leader() {
    let changes = judge(&moved().view(), &RoutePolicy::default(), ms(NOW)).changes;
    let condition = KeyCondition { session: SessionId(1), key: KeyIs::OfAnotherThan("a".into()), sync: None };
    assert_eq!(changes[0].condition, Some(condition));
    assert_eq!((changes[0].address.as_str(), changes[0].member.as_str()), ("10.0.0.1:5432", "a"));
    // Sessions from before the server went down.
    let left = moved().with("haproxy", 9_995, servers("DOWN", "DOWN"));
    assert_eq!(told(&left), [("pg-a".to_string(), ServerCommand::Down)]);
    let none = vec![server(Pool::Writes, "a", "DOWN", 0), server(Pool::Writes, "b", "DOWN", 0)];
    assert_eq!(
        told(&moved().with("haproxy", 9_995, Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(none))))),
        []
    );
}

#[test]
fn a_command_counts_as_done_until_the_next_answer_and_is_repeated_after_a_pause() {
    let goes = || well().with("broke", 9_900, broke("a")).with("a", 9_890, writable("a"));
    let wait = [("pg-a".to_string(), ServerCommand::Drain)];
    assert_eq!(told(&goes()), wait);
    assert_eq!(told(&goes().with("told", 9_960, said("pg-a", ServerCommand::Drain))), []);
    // At the next answer it still takes connections.
    let looked = |when| {
        goes().with("told", when, said("pg-a", ServerCommand::Drain)).with("haproxy", 9_998, servers("UP", "DOWN"))
    };
    assert_eq!(told(&looked(9_997)), [], "not without a pause");
    assert_eq!(told(&looked(9_995)), wait);
    let refused = RouteOutcome::Failed("Permission denied".to_string());
    let refused = |when| looked(when).with("refused", when + 1, report(refused.clone()));
    assert_eq!(told(&refused(9_760)), [], "only after a while");
    assert_eq!(told(&refused(9_740)), wait);
    // A wrong sign: the server goes up at once, before HAProxy's next answer.
    let false_alarm = goes().with("told", 9_960, said("pg-a", ServerCommand::Drain)).with("a", 9_970, writable("a"));
    assert_eq!(told(&false_alarm), [("pg-a".to_string(), ServerCommand::Up)]);
}

/// A session of a paused node does not end: HAProxy would log a cut every 250 ms for as long.
#[test]
fn sessions_that_do_not_end_are_cut_again_at_longer_and_longer_intervals() {
    let cut = [("pg-a".to_string(), ServerCommand::Down)];
    let cuts = |first: u64, last: u64, a: &str| {
        let told = [("first", first), ("last", last)];
        let moved = moved().with("haproxy", 9_995, servers(a, "DOWN"));
        told.iter().fold(moved, |scene, (name, at)| scene.with(name, *at, said("pg-a", ServerCommand::Down)))
    };
    assert_eq!(told(&cuts(9_740, 9_740, "DOWN")), cut);
    assert_eq!(told(&cuts(9_760, 9_760, "DOWN")), []);
    // Once it has lasted for 400 ms, the next pause is as long.
    assert_eq!(told(&cuts(9_300, 9_700, "DOWN")), []);
    assert_eq!(told(&cuts(9_100, 9_500, "DOWN")), cut);
    // A server that HAProxy has put up again takes new sessions.
    assert_eq!(told(&cuts(9_300, 9_700, "UP")), cut);
}

/// A new connection during a change must not reach the server that stops, also if HAProxy's checks accept it.
#[test]
fn new_connections_are_held_while_a_server_goes_or_none_takes_writes() {
    let held = |scene: &Scene, now| {
        let holds = judge(&scene.view(), &RoutePolicy::default(), ms(now)).holds;
        holds.into_iter().next().map(|hold| (hold.on, hold.reason))
    };
    let told = |on| Event::Started(Started::Hold { proxy: "writes".to_string(), on });
    let on = |scene: &Scene, now| held(scene, now).map(|(on, _)| on);
    assert_eq!(held(&well(), NOW), None);
    assert_eq!(held(&well().with("unusable", 9_996, unusable()), NOW), None, "no source can tell");
    let goes = || well().with("broke", 9_991, broke("a"));
    assert_eq!(held(&goes(), NOW), Some((true, "a: the agent's session with it was lost".to_string())));
    assert_eq!(on(&goes().with("hold", 9_992, told(true)), NOW), None, "it is held");
    assert_eq!(on(&goes().with("hold", 9_499, told(true)), NOW), Some(true), "HAProxy would forget it");
    assert_eq!(on(&goes().with("looked", 9_995, servers("NOLB", "DOWN")), NOW), Some(true), "none is up");
    assert_eq!(on(&well().with("looked", 9_995, servers("DOWN", "DOWN")), NOW), None, "a is only to be raised");
    // HAProxy's checks have set it up again, or have not set it down yet.
    assert_eq!(on(&moved(), NOW), Some(true));
    let led = || moved().with("b", 9_993, writable("b")).with("hold", 9_992, told(true));
    assert_eq!(on(&led().with("looked", 9_995, servers("UP", "UP")), NOW), None, "still held: a is up, too");
    let over = led().with("looked", 9_995, servers("DOWN", "UP"));
    assert_eq!(held(&over, NOW), Some((false, "writes reach a primary".to_string())));
    // A server in maintenance belongs to the operator.
    assert_eq!(on(&well().with("looked", 9_995, servers("UP", "MAINT")), NOW), None);
    // Not forever.
    let long = || goes().with("hold", 9_992, told(true)).with("looked", 9_995, servers("DOWN", "DOWN"));
    let all_down = || long().with("looked again", 39_980, servers("DOWN", "DOWN"));
    assert_eq!(on(&all_down(), 39_990), Some(true));
    assert_eq!(held(&all_down(), 39_992), Some((false, "the hold has reached its limit".to_string())));
    let let_go = || all_down().with("let go", 39_992, told(false));
    assert_eq!(on(&let_go(), 39_993), None);
    // A new holder is not promoted yet, while HAProxy's check trusts its Patroni.
    let taken = let_go().with("b", 39_993, standby("b")).with("taken", 39_994, leader(key("b", 2)));
    assert_eq!(on(&taken.with("raised", 39_996, servers("DOWN", "UP")), 39_997), Some(true));
}

/// If HAProxy's checks may know more than this agent, no connection is held.
#[test]
fn no_connection_is_held_because_the_agent_knows_little() {
    let hold = |scene: &Scene| judge(&scene.view(), &RoutePolicy::default(), ms(NOW)).holds;
    // The key is as it was before ZooKeeper went away.
    let moved_since = || {
        well()
            .with("lost", 9_991, lost())
            .with("b", 9_993, writable("b"))
            .with("patroni b", 9_993, answering("b", Role::Primary))
            .with("haproxy", 9_996, servers("DOWN", "UP"))
    };
    assert_eq!(hold(&moved_since()), []);
    // The agent has just started, and knows no member.
    let unknown = vec![HaproxyServer { member: None, ..server(Pool::Writes, "a", "UP", 0) }];
    assert_eq!(
        hold(&Scene::new([(
            "haproxy",
            9_950,
            Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(unknown)))
        )])),
        []
    );
}

/// A client that keeps terminating the agent's sessions must not block traffic to a healthy server.
#[test]
fn false_alarms_are_believed_only_a_few_times_in_a_while() {
    let believed = |alarms: u64| {
        let mut routing = crate::haproxy::RoutingMemory::default();
        (0..alarms).for_each(|nth| routing.note_session_loss("a".into(), ms(1000 + 10 * nth)));
        routing.session_lost_at.get(&MemberName::from("a")).copied()
    };
    assert_eq!(believed(4), Some(ms(1030)));
    assert_eq!(believed(200), Some(ms(1030)));
    assert_eq!(believed(201), Some(ms(3000)), "after two seconds the next few count again");
    assert_eq!(believed(400), Some(ms(3030)));
}

#[test]
fn haproxy_and_the_members_are_asked_more_often_while_no_server_takes_writes() {
    let look = |scene: &Scene, now| {
        let routing = judge(&scene.view(), &RoutePolicy::default(), ms(now));
        (routing.probe, routing.again)
    };
    assert_eq!(look(&well(), NOW), (false, Some(ms(12_991))), "ZooKeeper counts as away from then on");
    // `after` applies each event at its own moment.
    let lost = || well().with("broke", 9_970, broke("a"));
    assert_eq!(look(&lost(), NOW), (true, Some(ms(NOW + 20))));
    let probed = lost().with("looked", 9_990, Event::Started(Started::ProbeHaproxy));
    assert_eq!(look(&probed, NOW), (false, Some(ms(10_010))));
    // The agent asks more often about a primary whose Patroni hangs, because HAProxy's checks are about to take it out.
    assert_eq!(look(&well().with("patroni a", 9_900, hangs("a")), NOW), (true, Some(ms(NOW + 150))));
    let mut view = lost().view();
    assert_eq!(view.routing.unrouted_since.get("writes"), Some(&ms(9_970)));
    view.routing.unrouted_since.insert("writes".to_string(), ms(NOW));
    let routing = judge(&view, &RoutePolicy::default(), ms(NOW + 31_000));
    assert_eq!(routing.again, Some(ms(NOW + 31_500)), "not in a hurry for ever");
}

/// Three kinds of maintenance. The agent leaves an operator's and an unresolved name's alone. An agent-check ends its
/// own.
#[test]
fn the_source_of_a_maintenance_decides_whether_the_agent_commands_the_server() {
    let a = |status: &str, agent_check: Option<&str>, tracks: Option<&str>| {
        let a = HaproxyServer {
            agent_check: agent_check.map(ToString::to_string),
            tracks: tracks.map(ToString::to_string),
            ..server(Pool::Writes, "a", status, 0)
        };
        let servers = HaproxyAnswer::Servers(vec![a, server(Pool::Writes, "b", "DOWN", 0)]);
        well().with("haproxy", 9_950, Event::Haproxy(HaproxyEvent::Answered(servers)))
    };
    let up = [("pg-a".to_string(), ServerCommand::Up)];
    for (status, agent_check, tracks) in [
        ("MAINT", None, None),
        ("DRAIN", None, None),
        ("MAINT", Some("up 50%"), None),
        ("MAINT (resolution)", None, None),
        ("MAINT (via checks/pg-a)", None, Some("checks/pg-a")),
        ("DOWN", None, Some("checks/pg-a")),
        ("MAINT", Some("maint"), None),
        ("DRAIN (agent)", Some("drain"), None),
    ] {
        assert_eq!(told(&a(status, agent_check, tracks)), [], "{status} {agent_check:?} {tracks:?}");
    }
    for status in ["MAINT", "DRAIN (agent)"] {
        let changes = judge(&a(status, Some("ready up"), None).view(), &RoutePolicy::default(), ms(NOW)).changes;
        assert_eq!((changes.len(), changes[0].to, changes[0].ready), (1, ServerCommand::Up, true), "{status}");
    }
    assert_eq!(told(&a("DOWN", Some("maint"), None)), up, "it is not out of service");
    assert!(!judge(&a("DOWN", None, None).view(), &RoutePolicy::default(), ms(NOW)).changes[0].ready);
}

/// A problem of one proxy is no reason to hold connections of another, or to ask more often.
#[test]
fn every_proxy_is_judged_alone() {
    let in_proxy = |proxy: &str, member: &str, status: &str| HaproxyServer {
        id: id(proxy, &format!("pg-{member}")),
        ..server(Pool::Writes, member, status, 0)
    };
    let scene = |servers: Vec<HaproxyServer>| {
        well().with("haproxy", 9_950, Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(servers))))
    };
    let judged = |scene: Scene| judge(&scene.view(), &RoutePolicy::default(), ms(NOW));
    // The checks of one proxy cannot tell a primary.
    let one = judged(scene(vec![
        in_proxy("pooled", "a", "UP"),
        in_proxy("pooled", "b", "DOWN"),
        in_proxy("direct", "a", "UP"),
        in_proxy("direct", "b", "UP"),
    ]));
    let holds: Vec<_> = one.holds.iter().map(|hold| (hold.proxy.as_str(), hold.on)).collect();
    assert_eq!(holds, [("direct", true)]);
    let changes: Vec<_> = one.changes.iter().map(|change| (change.server.to_string(), change.to)).collect();
    assert_eq!(changes, [("direct/pg-b".to_string(), ServerCommand::Down)]);
    assert!(!one.probe, "writes have somewhere to go in both");
    // A primary that stops affects both.
    let both = vec![in_proxy("pooled", "a", "UP"), in_proxy("direct", "a", "UP")];
    let goes = judged(scene(both).with("broke", 9_991, broke("a")));
    assert_eq!((goes.holds.len(), goes.changes.len(), goes.probe), (2, 2, true));
    // If the agent must not command the primary's server, or the proxy only tracks, faster questions would not help.
    let follows = |proxy: &str, member: &str| HaproxyServer {
        tracks: Some(format!("pooled/pg-{member}")),
        ..in_proxy(proxy, member, "DOWN")
    };
    let quiet = judged(scene(vec![
        in_proxy("pooled", "a", "MAINT"),
        in_proxy("pooled", "b", "DOWN"),
        follows("direct", "a"),
        follows("direct", "b"),
    ]));
    assert_eq!((quiet.holds, quiet.changes, quiet.probe), (vec![], vec![], false));
}

#[test]
fn reads_go_to_no_replica_that_is_not_to_have_any_and_to_one_that_haproxy_cannot_ask() {
    let mib = 1 << 20;
    let fell = || Event::Started(Started::Route { server: id("reads", "pg-b"), to: ServerCommand::Drain });
    let caught_up = || reading("NOLB", 0).with("fell", 9_000, fell());
    assert_eq!(told(&caught_up()), [("pg-b".to_string(), ServerCommand::Up)]);
    let tagged = |scene: Scene| scene.with("record", 2, tagged_noloadbalance("b"));
    assert_eq!(told(&tagged(caught_up())), [], "a former primary, say");
    assert_eq!(told(&tagged(reading("UP", 0))), [("pg-b".to_string(), ServerCommand::Drain)]);
    // A check without a usable answer, and one with a refusal.
    let streams = |check: Check, lag: u64| {
        let reads =
            vec![server(Pool::Writes, "a", "UP", 1), HaproxyServer { check, ..server(Pool::Reads, "b", "DOWN", 0) }];
        let mut status = status(Role::Replica, Some(false));
        status.state = crate::event::State::Streaming;
        reading("DOWN", lag)
            .with("haproxy", 9_950, Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(reads))))
            .with("patroni b", 9_900, patroni("b", PatroniAnswer::Answering(status)))
    };
    let cannot = || Check::Fails("L7RSP".to_string());
    assert_eq!(told(&streams(cannot(), 0)), [("pg-b".to_string(), ServerCommand::Up)]);
    let flaps = HaproxyServer { check: cannot(), ..server(Pool::Reads, "b", "UP 1/2", 4) };
    let flaps =
        Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(vec![server(Pool::Writes, "a", "UP", 1), flaps])));
    assert_eq!(
        told(&streams(cannot(), 0).with("haproxy", 9_950, flaps)),
        [("pg-b".to_string(), ServerCommand::Up)],
        "before it is cut"
    );
    let said_no =
        streams(cannot(), 0).with("check", 9_800, replicas(&[("b", "DOWN", Check::Refuses("503".to_string()))]));
    assert_eq!(told(&said_no), [], "an asynchronous replica in a proxy whose check is `/sync`, say");
    assert_eq!(told(&streams(cannot(), 17 * mib)), []);
    assert_eq!(told(&streams(Check::Refuses("L7STS 503".to_string()), 0)), []);
    assert_eq!(told(&streams(cannot(), 0).with("patroni b", 9_900, hangs("b"))), []);
}

fn tagged_noloadbalance(member: &str) -> Event {
    let state = crate::event::State::Streaming;
    let record = crate::event::MemberRecord { state, noloadbalance: true, ..fixtures::member_record(member) };
    fixtures::member_read(member, Reading::Present(record))
}

fn reading(status: &str, lag: u64) -> Scene {
    let reads = vec![
        server(Pool::Writes, "a", "UP", 1),
        server(Pool::Reads, "a", "DOWN", 0),
        server(Pool::Reads, "b", status, 3),
    ];
    well()
        .with("haproxy", 9_950, Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(reads))))
        .with("a", 9_900, probe("a", PostgresAnswer::Writable(at(1, 100 << 20))))
        .with("b", 9_900, probe("b", PostgresAnswer::InRecovery(at(1, (100 << 20) - lag))))
}

fn replicas(servers: &[(&str, &str, Check)]) -> Event {
    let of = |(member, status, check): &(&str, &str, Check)| HaproxyServer {
        check: check.clone(),
        ..server(Pool::Reads, member, status, 0)
    };
    let all = [server(Pool::Writes, "a", "UP", 1)].into_iter().chain(servers.iter().map(of)).collect();
    Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(all)))
}

#[test]
fn without_a_fallback_the_last_server_for_reads_goes_on() {
    let judged = |scene: &Scene, reads_fall_back: bool| -> Vec<(String, ServerCommand)> {
        let policy = RoutePolicy { reads_fall_back, ..RoutePolicy::default() };
        judge(&scene.view(), &policy, ms(NOW))
            .changes
            .into_iter()
            .map(|change| (change.server.name, change.to))
            .collect()
    };
    let behind = || reading("UP", 17 << 20);
    let drain = vec![("pg-b".to_string(), ServerCommand::Drain)];
    let none: Vec<(String, ServerCommand)> = vec![];
    assert_eq!(judged(&behind(), true), drain, "reads go on to the primary");
    assert_eq!(judged(&behind(), false), none, "no other server takes reads");
    let beside =
        |status| behind().with("haproxy", 9_950, replicas(&[("a", status, Check::None), ("b", "UP", Check::None)]));
    assert_eq!(judged(&beside("UP"), false), drain, "the primary takes them too, as with /read-only");
    assert_eq!(judged(&beside("DOWN"), false), none);
    assert_eq!(judged(&beside("UP"), true), drain, "the primary is left alone");
}

/// It refuses the agent's sessions, and its own agent is cut off from ZooKeeper (found by the simulation).
#[test]
fn a_patroni_outranks_an_older_record_of_its_members_agent() {
    let unseen = || probe("a", PostgresAnswer::Unknown("no pg_hba.conf entry".to_string()));
    let recovers = || agent("a", PostgresAnswer::InRecovery(at(1, 1000)), 0);
    let scene = |patroni_at: u64| {
        let scene = well().with("a", 9_900, unseen()).with("agent a", 9_000, recovers());
        scene.with("patroni a", patroni_at, answering("a", Role::Primary)).with(
            "haproxy",
            9_950,
            servers("DOWN", "DOWN"),
        )
    };
    assert_eq!(told(&scene(9_900)), [("pg-a".to_string(), ServerCommand::Up)]);
    assert_eq!(told(&scene(8_900)), [], "its agent has reported since");
}

/// Patroni starts the leader again, and the agent beside it stops it again.
#[test]
fn a_member_that_the_operator_has_fenced_gets_no_writes() {
    let fenced = |rule| well().with("fence", 9_000, record_of("a", rule, None));
    assert_eq!(told(&fenced(Rule::Operator)), [("pg-a".to_string(), ServerCommand::Drain)]);
    assert_eq!(told(&fenced(Rule::Operator).with("haproxy", 9_950, servers("NOLB", "DOWN"))), []);
    assert_eq!(told(&fenced(Rule::Lease)), [], "an old fence of another rule is over");
    // Without ZooKeeper the operator may have taken the fence back, and HAProxy's checks know more (seed 80174).
    let away = |haproxy: &str| {
        let scene =
            fenced(Rule::Operator).with("lost", 9_991, lost()).with("patroni a", 9_995, answering("a", Role::Primary));
        scene.with("haproxy", 9_950, servers(haproxy, "DOWN"))
    };
    assert_eq!(told(&away("UP")), []);
    assert_eq!(told(&away("NOLB")), [("pg-a".to_string(), ServerCommand::Up)]);
}

/// No command of the table leads to a state in which the table has the contrary: the agent would send both in turns, as
/// fast as it can (simulation, seed 60954).
#[test]
fn no_command_to_a_server_is_undone_by_the_next() {
    use HaproxyState::{Down, DownInUse, Up, UpFailing};
    let holders = [
        Holder::Itself,
        Holder::ItselfUnconfirmed,
        Holder::Another,
        Holder::AnotherInPause,
        Holder::Absent,
        Holder::OnlyPrimary,
    ];
    for holder in holders {
        for reported in [Reported::Writable, Reported::NotWritable, Reported::Nothing] {
            let raised = [Down, DownInUse, UpFailing]
                .into_iter()
                .any(|has| command(holder, reported, has) == Some(ServerCommand::Up));
            let taken_out = [Up, UpFailing]
                .into_iter()
                .any(|has| matches!(command(holder, reported, has), Some(ServerCommand::Drain | ServerCommand::Down)));
            assert!(!(raised && taken_out), "{holder:?}, {reported:?}");
        }
    }
}

#[test]
fn a_replica_that_has_not_streamed_for_a_while_takes_no_new_reads() {
    let says = |state| {
        let mut status = status(Role::Replica, Some(false));
        status.state = state;
        patroni("b", PatroniAnswer::Answering(status))
    };
    let streams = |lost_at: u64| {
        let scene = reading("UP", 0).with("patroni b 1", 100, says(State::Streaming));
        scene.with("patroni b 2", lost_at, says(State::Running)).without("patroni b").with(
            "haproxy 1",
            9,
            servers("UP", "DOWN"),
        )
    };
    let drain = vec![("pg-b".to_string(), ServerCommand::Drain)];
    let lasting = |lost_at: u64| streams(lost_at).with("patroni b 3", 9_900, says(State::Running));
    assert_eq!(told(&lasting(200)), [], "not yet");
    let judged = |scene: &Scene, fall_back| {
        let policy = RoutePolicy { reads_fall_back: fall_back, ..RoutePolicy::default() };
        judge(&scene.view(), &policy, ms(NOW + 1000))
            .changes
            .into_iter()
            .map(|c| (c.server.name, c.to))
            .collect::<Vec<_>>()
    };
    assert_eq!(judged(&lasting(200), true), drain);
    assert_eq!(judged(&lasting(200), false), [], "no other server takes reads");
    let again = lasting(200).with("patroni b 4", 9_950, says(State::Streaming));
    assert_eq!(judged(&again, true), []);
    let never = lasting(200).without("patroni b 1");
    assert_eq!(judged(&never, true), [], "an older Patroni never says so");
}

#[test]
fn a_server_without_a_check_gets_no_commands() {
    let unchecked = vec![server(Pool::Writes, "a", "no check", 1), server(Pool::Writes, "b", "no check", 1)];
    let scene =
        moved().with("haproxy", 9_950, Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(unchecked))));
    assert_eq!(told(&scene), []);
}

#[test]
fn replicas_that_fall_back_take_no_new_reads_until_they_have_caught_up_well() {
    let fell = || Event::Started(Started::Route { server: id("reads", "pg-b"), to: ServerCommand::Drain });
    let mib = 1 << 20;
    let wait = [("pg-b".to_string(), ServerCommand::Drain)];
    let up = [("pg-b".to_string(), ServerCommand::Up)];
    assert_eq!(told(&reading("UP", 16 * mib)), []);
    assert_eq!(told(&reading("UP", 16 * mib + 1)), wait);
    let fallen = |status, lag| reading(status, lag).with("fell", 9_000, fell());
    assert_eq!(told(&fallen("NOLB", 16 * mib)), []);
    assert_eq!(told(&fallen("UP", 9 * mib)), wait, "HAProxy's check let it in again before it had caught up");
    assert_eq!(told(&fallen("NOLB", 8 * mib)), up);
    let refused = |scene: Scene| scene.with("haproxy", 9_950, replicas(&[("b", "DOWN", Check::Refuses("503".into()))]));
    assert_eq!(told(&refused(fallen("NOLB", 0))), [], "HAProxy's check is answered with no: it is not ours to raise");
    assert_eq!(told(&reading("DOWN", 0)), [], "what HAProxy's checks took out is theirs");
    // Without the leader's position the lag is unknown.
    assert_eq!(told(&reading("UP", 50 * mib).without("a").with("patroni a", 1, answering("b", Role::Replica))), []);
    // A replica that was promoted; its reads go on.
    let promoted = reading("UP", 0).with("key", 9_990, verified(key("b", 2), 1, 9_992)).with("b", 9_995, writable("b"));
    assert_eq!(told(&promoted), [("pg-a".to_string(), ServerCommand::Down)]);
}

#[test]
fn a_rejected_command_is_remembered_until_haproxy_obeys() {
    let failed = well().with("failed", 9_960, report(RouteOutcome::Failed("Permission denied".to_string())));
    assert_eq!(failed.view().routing.failing.len(), 1);
    let done = RouteOutcome::Done { took: Duration::from_millis(1) };
    assert_eq!(failed.with("done", 9_970, report(done)).view().routing.failing.len(), 0);
}
