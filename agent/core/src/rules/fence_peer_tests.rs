//! The rules peer and operator, and the content of every order.

use super::lease::frozen_and_cut;
use super::*;

/// `a` leads on timeline 2, and `b` still takes writes on timeline 1.
fn an_old_primary() -> Scene {
    leading()
        .with("barrier", 20_000, verified(key("a", 9), 1, 20_001))
        .with("postgres", 20_000, takes_writes("a", 2))
        .with("old", 20_000, takes_writes("b", 1))
}

fn fenced(member: &str) -> Event {
    let outcome = FenceOutcome::Confirmed { by: "fast", took: Duration::from_millis(20) };
    Event::Report(Report::Fence(FenceReport { member: member.into(), rule: Rule::Peer, outcome }))
}

pub(super) fn agent_of_b(at_version: &str) -> Event {
    let version = at_version.to_string();
    fixtures::agent_read("b", AgentRecord { version, ..fixtures::agent_record(Some("b")) })
}

/// All conditions are met, or its own agent gets its time.
fn peer_fences() -> Vec<Case> {
    let p = an_old_primary;
    vec![
        ("all of it", p(), 20_050, Fences("b", Rule::Peer)),
        (
            "its agent has not written for long",
            p().with("agent", 15_000, agent_of_b("1")),
            20_050,
            Fences("b", Rule::Peer),
        ),
        ("its agent gets three seconds", p().with("agent", 19_900, agent_of_b("1")), 20_050, Waits(23_000)),
        (
            "it was fenced already, and takes writes again: its agent gets half a second",
            p().with("agent", 19_900, agent_of_b("1")).with("record", 19_000, confirmed_record("b", Rule::Superseded)),
            20_050,
            Waits(20_500),
        ),
        (
            "a fence was only begun: three seconds",
            p().with("agent", 19_900, agent_of_b("1")).with("record", 19_000, fence_record("b", Rule::Superseded)),
            20_050,
            Waits(23_000),
        ),
        (
            "its agent is late",
            p().with("old", 17_000, takes_writes("b", 1))
                .with("old 2", 20_000, takes_writes("b", 1))
                .with("term", 16_900, leader(key("a", 9)))
                .with("agent", 19_900, agent_of_b("1")),
            20_050,
            Fences("b", Rule::Peer),
        ),
    ]
}

/// Another member leads, or the sighting is not newer than the fence.
fn peer_does_not_fence() -> Vec<Case> {
    let p = an_old_primary;
    vec![
        // Each condition removed in turn.
        (
            "another leads",
            p().with("barrier", 20_000, verified(key("c", 9), 1, 20_001)).with("postgres", 20_000, follows("a")),
            20_050,
            Nothing,
        ),
        (
            "only a plain read says that we lead",
            p().without("barrier").with("plain", 20_000, leader(key("a", 9))),
            20_050,
            Nothing,
        ),
        ("old", p(), 23_001, Nothing),
        ("it was seen before it was fenced", p().with("fenced", 20_030, fenced("b")), 20_050, Nothing),
        (
            "it was seen again behind its fence",
            p().with("fenced", 20_030, fenced("b")).with("again", 20_040, takes_writes("b", 1)),
            20_050,
            Fences("b", Rule::Peer),
        ),
        (
            "a person asked for it, too: one fence",
            p().with("record", 15_000, fence_record("b", Rule::Operator)),
            20_050,
            Fences("b", Rule::Operator),
        ),
    ]
}

/// The old primary was not seen to take writes on an older timeline, or an obstacle exists.
fn peer_needs_an_old_primary() -> Vec<Case> {
    let p = an_old_primary;
    vec![
        ("it refuses", p().with("old", 20_000, refuses("b")), 20_050, Nothing),
        ("it follows", p().with("old", 20_000, follows("b")), 20_050, Nothing),
        ("it is silent", p().with("old", 20_000, probe("b", PostgresAnswer::Silent("x".to_string()))), 20_050, Nothing),
        ("only its agent says that it takes writes", p().without("old"), 20_050, Nothing),
        ("it was seen too long ago", p().with("old", 16_000, takes_writes("b", 1)), 20_050, Nothing),
        ("the same timeline", p().with("old", 20_000, takes_writes("b", 2)), 20_050, Nothing),
        ("a newer timeline", p().with("old", 20_000, takes_writes("b", 3)), 20_050, Nothing),
        (
            "another database",
            p().with(
                "old",
                20_000,
                probe("b", PostgresAnswer::Writable(Server { system_id: Some(SystemId(8)), ..at_timeline(1, 5) })),
            ),
            20_050,
            Nothing,
        ),
        (
            "an unknown database",
            p().with("old", 20_000, probe("b", PostgresAnswer::Writable(at_timeline(1, 5)))),
            20_050,
            Nothing,
        ),
        ("our own server takes no writes", p().with("postgres", 20_000, follows("a")), 20_050, Nothing),
        (
            "paused",
            p().with("barrier", 20_000, verified_with(key("a", 9), config(paused_config), 1, 20_001)),
            20_050,
            Holds(Rule::Peer, "maintenance"),
        ),
        (
            "the configuration cannot be read",
            p().with("barrier", 20_000, verified_with(key("a", 9), Reading::Unreadable("x".to_string()), 1, 20_001)),
            20_050,
            Holds(Rule::Peer, "cannot be parsed"),
        ),
        (
            "it is our own server under another name",
            p().with("member b", 5, member("b", "host-a")),
            20_050,
            Holds(Rule::Peer, "renamed"),
        ),
    ]
}

#[test]
fn an_old_primary_without_an_agent_is_fenced_by_the_new_leaders() {
    for (name, scene, now, expected) in
        [peer_fences(), peer_does_not_fence(), peer_needs_an_old_primary()].into_iter().flatten()
    {
        check(name, &scene, now, &expected);
    }
}

#[test]
fn the_operators_order_fences_also_against_the_key() {
    let asked = |member| leading().with("record", 9_900, fence_record(member, Rule::Operator));
    let cases = [
        ("the local member, though it leads", asked("a"), Fences("a", Rule::Operator)),
        ("in pause", asked("a").with("config 2", 9_950, config_znode(paused_config)), Fences("a", Rule::Operator)),
        ("without ZooKeeper", asked("a").with("lost", 10_010, lost()), Fences("a", Rule::Operator)),
        ("it takes no writes", asked("a").with("postgres 2", 10_010, follows("a")), Nothing),
        (
            "taken back",
            asked("a").with(
                "record 2",
                10_010,
                Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member: "a".into(), record: Reading::Absent }),
            ),
            Nothing,
        ),
        ("a record by another rule", leading().with("record", 9_900, fence_record("a", Rule::Superseded)), Nothing),
        (
            "a record that cannot be read",
            leading().with(
                "record",
                9_900,
                Event::ZooKeeper(ZooKeeperEvent::FenceRecord {
                    member: "a".into(),
                    record: Reading::Unreadable("x".to_string()),
                }),
            ),
            Nothing,
        ),
        (
            "another that has no agent, while we lead",
            asked("b").with("old", 10_000, takes_writes("b", 1)).with("postgres", 10_000, takes_writes("a", 1)),
            Fences("b", Rule::Operator),
        ),
        (
            "another that has an agent",
            asked("b").with("old", 10_000, takes_writes("b", 1)).with("agent", 9_000, agent_of_b("1")),
            Nothing,
        ),
        (
            "another, while we do not lead",
            asked("b")
                .with("old", 10_000, takes_writes("b", 1))
                .with("barrier", 10_000, verified(key("b", 1), 1, 10_001))
                .with("postgres", 10_000, follows("a")),
            Nothing,
        ),
    ];
    for (name, scene, expected) in cases {
        check(name, &scene, 10_050, &expected);
    }
}

#[test]
fn an_order_carries_the_guard_of_its_rule_and_says_why() {
    let first = |scene: &Scene, now| judge(&scene.view(), ms(now)).orders.remove(0);
    let order = first(&superseded(), 20_050);
    let not_ours = KeyCondition { session: SessionId(1), key: KeyIs::NotOf("a".into()), sync: None };
    assert_eq!(order.guard, Guard::Key(not_ours.clone()));
    assert!(order.reason.contains("b holds the leader key") && order.reason.contains("0x2"), "{}", order.reason);
    assert!(order.facts.contains(&("postgres".to_string(), "writable".to_string())), "{:?}", order.facts);
    let order = first(&orphaned(), 20_050);
    assert_eq!(order.guard, Guard::Key(not_ours));
    assert!(order.reason.contains("alive lock"), "{}", order.reason);
    let order = first(&frozen_and_cut(), 34_100);
    let away = guard::LeaseCondition { contact: Some(ms(9000)), beat: None, ground: crate::evidence::Ground::Silence };
    assert_eq!(order.guard, Guard::NoContact(away));
    assert!(order.reason.contains("lease"), "{}", order.reason);
    let order = first(&an_old_primary(), 20_050);
    let ours = KeyIs::TheOneOf { member: "a".into(), czxid: Zxid(9), owner: SessionId(7) };
    let condition = KeyCondition { session: SessionId(1), key: ours, sync: None };
    assert_eq!(order.guard, Guard::KeyAndTimeline(condition, Timeline(2)));
    assert!(order.reason.contains("timeline 1") && order.reason.contains("timeline 2"), "{}", order.reason);
    let order = first(&leading().with("record", 9_900, fence_record("a", Rule::Operator)), 10_050);
    // Unchanged: each fence records it again.
    assert_eq!(order.guard, Guard::Asked { by: "operator".to_string() });
    assert_eq!(order.reason, "maintenance");
}
