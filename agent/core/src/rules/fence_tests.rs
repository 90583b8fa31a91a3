use super::*;
use crate::assess::tests::{patroni, probe, server as at_timeline, status};
use crate::event::{
    AgentRecord, Barrier, Event, FenceOutcome, FenceRecord, FenceReport, LocalEvent, Observed, Report, ZooKeeperEvent,
};
use crate::event::{AliveLock, PatroniAnswer, PatroniStatus, Role, Session, Znode};
use crate::fixtures;
use crate::types::{SessionId, SystemId, UnixMillis, Zxid};
use crate::view::tests::{after, cluster_config, identity, key, leader, lost, ms, session, verified, verified_with};
use alloc::collections::BTreeMap;

/// A history of named parts. A scenario names only its differences.
#[derive(Clone)]
pub(crate) struct Scene(BTreeMap<&'static str, (u64, Event)>);

impl Scene {
    pub(crate) fn new<const N: usize>(parts: [(&'static str, u64, Event); N]) -> Self {
        Self(parts.into_iter().map(|(name, at, event)| (name, (at, event))).collect())
    }

    /// Adds this part, or replaces the one of that name.
    pub(crate) fn with(mut self, name: &'static str, at: u64, event: Event) -> Self {
        self.0.insert(name, (at, event));
        self
    }

    /// Removes this part.
    pub(crate) fn without(mut self, name: &'static str) -> Self {
        assert!(self.0.remove(name).is_some(), "there is no {name} to leave out");
        self
    }

    pub(crate) fn view(&self) -> View {
        let mut parts: Vec<(u64, Event)> = self.0.values().cloned().collect();
        parts.sort_by_key(|(at, _)| *at);
        after(parts)
    }
}

/// The expected verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Says {
    Fences(&'static str, Rule),
    /// The obstacle contains this.
    Holds(Rule, &'static str),
    Nothing,
    /// No order, and the rules judge again at this moment.
    Waits(u64),
}

use Says::{Fences, Holds, Nothing, Waits};

/// Name, scene, moment in milliseconds, verdict.
type Case = (&'static str, Scene, u64, Says);

fn check(name: &str, scene: &Scene, now: u64, expected: &Says) {
    let verdict = judge(&scene.view(), ms(now));
    let orders: Vec<(&str, Rule)> = verdict.orders.iter().map(|order| (order.member.as_str(), order.rule)).collect();
    match expected {
        Fences(member, rule) => {
            assert_eq!(orders, [(*member, *rule)], "{name}: {verdict:?}");
            assert!(verdict.held.is_empty(), "{name}: {verdict:?}");
        }
        Holds(rule, obstacle) => {
            assert_eq!(orders, [], "{name}");
            let told: Vec<&HeldFence> = verdict.held.iter().filter(|held| held.rule == *rule).collect();
            let [held] = told[..] else { panic!("{name}: {verdict:?}") };
            assert_eq!(held.obstacles.len(), 1, "{name}: one condition is missing, one obstacle is told: {held:?}");
            assert!(held.obstacles[0].contains(obstacle), "{name}: {held:?}");
        }
        Nothing => assert_eq!((&orders[..], &verdict.held[..]), (&[][..], &[][..]), "{name}: {verdict:?}"),
        Waits(at) => {
            assert_eq!((&orders[..], &verdict.held[..]), (&[][..], &[][..]), "{name}: {verdict:?}");
            assert_eq!(verdict.look_again, Some(ms(*at)), "{name}");
        }
    }
}

pub(crate) fn config(change: impl Fn(&mut ClusterConfig)) -> Reading<ClusterConfig> {
    let mut config = cluster_config();
    change(&mut config);
    Reading::Present(config)
}

pub(crate) fn config_znode(change: impl Fn(&mut ClusterConfig)) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(config(change))))
}

pub(crate) fn initialize(id: u64) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Initialize(Reading::Present(SystemId(id)))))
}

pub(crate) fn member(name: &str, host: &str) -> Event {
    fixtures::member_read(name, Reading::Present(fixtures::member_record(host)))
}

pub(crate) fn answers(change: impl Fn(&mut PatroniStatus)) -> Event {
    let mut status = status(Role::Primary, Some(true));
    status.name = Some("a".into());
    change(&mut status);
    patroni("a", PatroniAnswer::Answering(status))
}

fn silent() -> Event {
    patroni("a", PatroniAnswer::Silent("no answer within 1 s".to_string()))
}

pub(crate) fn takes_writes(name: &str, timeline: u32) -> Event {
    probe(name, PostgresAnswer::Writable(Server { system_id: Some(SystemId(7)), ..at_timeline(timeline, 5) }))
}

fn follows(name: &str) -> Event {
    probe(name, PostgresAnswer::InRecovery(Server { system_id: Some(SystemId(7)), ..at_timeline(1, 5) }))
}

fn stopping(name: &str) -> Event {
    probe(name, PostgresAnswer::Stopping("the database system is shutting down".to_string()))
}

fn refuses(name: &str) -> Event {
    probe(name, PostgresAnswer::Refused("the database system is starting up".to_string()))
}

pub(crate) fn paused_config(config: &mut ClusterConfig) {
    config.pause = true;
}

/// `a`, the local member, leads a healthy cluster of two, as of 10 s.
pub(crate) fn leading() -> Scene {
    Scene::new([
        ("session", 1, session(1)),
        ("config", 2, config_znode(|_| {})),
        ("initialize", 3, initialize(7)),
        ("member a", 4, member("a", "host-a")),
        ("member b", 5, member("b", "host-b")),
        ("tree", 6, Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) })),
        // It has answered all along, so its reported last contact counts.
        ("patroni 1", 6_500, answers(|status| status.writable = None)),
        ("patroni 2", 8_400, answers(|status| status.writable = None)),
        ("patroni", 10_000, answers(|status| status.dcs_last_seen = Some(ms(9000)))),
        ("postgres", 10_000, takes_writes("a", 1)),
        ("barrier", 10_000, verified(key("a", 1), 1, 10_001)),
    ])
}

/// Another member holds the key, and the local server takes writes.
fn superseded() -> Scene {
    leading().with("barrier", 20_000, verified(key("b", 2), 1, 20_001)).with("postgres", 20_000, takes_writes("a", 1))
}

/// No member holds the key, and the local Patroni is dead.
fn orphaned() -> Scene {
    leading()
        .with("held", 10_001, Event::Local(LocalEvent::AliveLock(AliveLock::Alive)))
        .with("lock", 19_990, Event::Local(LocalEvent::AliveLock(AliveLock::Gone)))
        .with("refused", 19_995, patroni("a", PatroniAnswer::Refused("x".to_string())))
        .with("postgres", 20_000, takes_writes("a", 1))
        .with("barrier", 20_000, verified(Reading::Absent, 1, 20_001))
}

pub(crate) fn fence_record(member: &str, rule: Rule) -> Event {
    record_of(member, rule, None)
}

pub(crate) fn confirmed_record(member: &str, rule: Rule) -> Event {
    record_of(member, rule, Some(UnixMillis(1)))
}

pub(crate) fn record_of(member: &str, rule: Rule, confirmed: Option<UnixMillis>) -> Event {
    let record = FenceRecord {
        reason: "maintenance".to_string(),
        by: "operator".to_string(),
        confirmed,
        written: Some((Zxid(9), UnixMillis(0))),
        ..fixtures::fence_record(member, rule)
    };
    Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member: member.into(), record: Reading::Present(record) })
}

/// All conditions are met.
fn superseded_fences() -> Vec<(&'static str, Scene, Says)> {
    let with_config = |config| verified_with(key("b", 2), config, 1, 20_001);
    let s = superseded;
    vec![
        ("all of it", s(), Fences("a", Rule::Superseded)),
        ("its Patroni is away", s().with("silence", 19_000, silent()), Fences("a", Rule::Superseded)),
        ("its Patroni is alive and well", s().with("patroni", 19_900, answers(|_| {})), Fences("a", Rule::Superseded)),
        (
            "silence keeps it writable",
            s().with("postgres 2", 20_010, probe("a", PostgresAnswer::Silent("x".to_string()))),
            Fences("a", Rule::Superseded),
        ),
        (
            "a smart shutdown lets open sessions go on",
            s().with("postgres 2", 20_010, stopping("a")),
            Fences("a", Rule::Superseded),
        ),
        (
            "the key was re-created by the other",
            s().with("barrier 2", 20_005, verified(key("b", 3), 1, 20_006)),
            Fences("a", Rule::Superseded),
        ),
        (
            "a standby cluster's config alone is no reason against it",
            s().with("barrier", 20_000, with_config(config(|c| c.standby_cluster = true))),
            Fences("a", Rule::Superseded),
        ),
    ]
}

/// The server does not take writes, or no certain read shows another leader.
fn superseded_does_not_apply() -> Vec<(&'static str, Scene, Says)> {
    let s = superseded;
    vec![
        // Each condition removed in turn.
        ("in recovery", s().with("postgres", 20_000, follows("a")), Nothing),
        ("starting up", s().with("postgres", 20_000, refuses("a")), Nothing),
        ("gone", s().with("postgres", 20_000, probe("a", PostgresAnswer::Gone("x".to_string()))), Nothing),
        ("never seen", s().without("postgres").without("patroni"), Nothing),
        ("a fence was confirmed since", s().with("fence", 20_010, fenced("a")), Nothing),
        ("the key is ours", s().with("barrier", 20_000, verified(key("a", 1), 1, 20_001)), Nothing),
        ("the key is ours, re-created", s().with("barrier", 20_000, verified(key("a", 2), 1, 20_001)), Nothing),
        (
            "no member holds it, and Patroni lives",
            s().with("barrier", 20_000, verified(Reading::Absent, 1, 20_001)),
            Nothing,
        ),
        ("a plain read alone", s().without("barrier").with("plain", 20_000, leader(key("b", 2))), Nothing),
        (
            "a stale plain read before a barrier that says ours",
            s().with("barrier", 20_000, verified(key("a", 1), 1, 20_001)).with("plain", 19_999, leader(key("b", 2))),
            Nothing,
        ),
        (
            "a plain read against the key that is ours",
            s().with("barrier", 20_000, verified(key("a", 1), 1, 20_001)).with("plain", 20_020, leader(key("b", 2))),
            Nothing,
        ),
        ("later news against the barrier read", s().with("plain", 20_020, leader(key("a", 3))), Nothing),
        (
            "the barrier read failed",
            s().without("barrier").with(
                "unknown",
                20_000,
                Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown("no answer".to_string()))),
            ),
            Nothing,
        ),
        ("a barrier read of the session before", s().with("session 2", 20_010, session(2)), Nothing),
        ("the session is lost", s().with("lost", 20_010, lost()), Nothing),
    ]
}

/// An obstacle in the key or in Patroni.
fn superseded_is_held() -> Vec<(&'static str, Scene, Says)> {
    let unreadable = || Reading::Unreadable("not JSON".to_string());
    let with_config = |config| verified_with(key("b", 2), config, 1, 20_001);
    let s = superseded;
    vec![
        (
            "the key cannot be read",
            s().with("barrier", 20_000, verified(Reading::Unreadable("torn".to_string()), 1, 20_001)),
            Holds(Rule::Superseded, "cannot be parsed"),
        ),
        (
            "paused",
            s().with("barrier", 20_000, with_config(config(paused_config))),
            Holds(Rule::Superseded, "maintenance mode"),
        ),
        (
            "paused, though a later plain read says no more",
            s().with("barrier", 20_000, with_config(config(paused_config))).with(
                "plain config",
                20_010,
                config_znode(|_| {}),
            ),
            Holds(Rule::Superseded, "maintenance mode"),
        ),
        (
            "the configuration cannot be read",
            s().with("barrier", 20_000, with_config(unreadable())),
            Holds(Rule::Superseded, "cannot be parsed"),
        ),
        (
            "there is no configuration",
            s().with("barrier", 20_000, with_config(Reading::Absent)),
            Holds(Rule::Superseded, "is absent"),
        ),
        (
            "failsafe active",
            s().with("patroni", 19_900, answers(|status| status.failsafe_active = true)),
            Holds(Rule::Superseded, "failsafe"),
        ),
        (
            "failsafe lingers while Patroni is silent",
            s().with("patroni", 10_000, answers(|status| status.failsafe_active = true)).with(
                "silence",
                11_000,
                silent(),
            ),
            Holds(Rule::Superseded, "failsafe"),
        ),
        (
            "failsafe was over",
            s().with("patroni", 10_000, answers(|status| status.failsafe_active = true)).with(
                "patroni 2",
                19_000,
                answers(|_| {}),
            ),
            Fences("a", Rule::Superseded),
        ),
    ]
}

/// An obstacle in the identity of the server or of the holder.
fn superseded_is_held_by_identity() -> Vec<(&'static str, Scene, Says)> {
    let s = superseded;
    vec![
        ("another database", s().with("initialize", 3, initialize(8)), Holds(Rule::Superseded, "another database")),
        ("the cluster's identifier is not known", s().without("initialize"), Holds(Rule::Superseded, "initialize")),
        (
            "the cluster is being bootstrapped",
            s().with("initialize", 3, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Initialize(Reading::Absent)))),
            Holds(Rule::Superseded, "initialize"),
        ),
        (
            "the server's identifier is not known",
            s().with("postgres", 20_000, probe("a", PostgresAnswer::Writable(Server::default()))),
            Holds(Rule::Superseded, "its system identifier is not known"),
        ),
        ("the holder is no member", s().without("member b"), Holds(Rule::Superseded, "not among the members")),
        (
            "the holder has our address",
            s().with("member b", 5, member("b", "host-a")),
            Holds(Rule::Superseded, "renamed"),
        ),
        (
            "the local Patroni has another name",
            s().with("patroni", 19_000, answers(|status| status.name = Some("b".into()))),
            Holds(Rule::Superseded, "name is b"),
        ),
    ]
}

#[test]
fn a_server_that_takes_writes_while_another_leads_is_fenced_by_superseded() {
    for (name, scene, expected) in
        [superseded_fences(), superseded_does_not_apply(), superseded_is_held(), superseded_is_held_by_identity()]
            .into_iter()
            .flatten()
    {
        check(name, &scene, 20_050, &expected);
    }
}

fn fenced(member: &str) -> Event {
    let outcome = FenceOutcome::Confirmed { by: "fast", took: Duration::from_millis(20) };
    Event::Report(Report::Fence(FenceReport { member: member.into(), rule: Rule::Superseded, outcome }))
}

#[test]
fn an_agent_without_facts_fences_no_server() {
    check("only just started", &Scene::new([]), 60_000, &Nothing);
    let fresh = Scene::new([("session", 1, session(1)), ("barrier", 2, verified(key("b", 2), 1, 3))]);
    check("it never saw the server", &fresh, 10, &Nothing);
    let fresh = fresh.with("postgres", 4, takes_writes("a", 1));
    let verdict = judge(&fresh.view(), ms(10));
    assert!(verdict.orders.is_empty() && verdict.held.len() == 1, "it never saw the tree: {verdict:?}");
    let router = View::new(crate::view::Identity { member: None, ..identity() });
    assert_eq!(judge(&router, ms(60_000)), Verdict::default(), "beside HAProxy there is no server to fence");
}

#[test]
fn a_verification_is_good_for_three_seconds() {
    check("just", &superseded(), 23_000, &Fences("a", Rule::Superseded));
    check("no more", &superseded(), 23_001, &Nothing);
    check(
        "it counts from the question",
        &superseded().with("barrier", 20_000, verified(key("b", 2), 1, 22_900)),
        23_001,
        &Nothing,
    );
}

#[test]
fn failsafe_lingers_for_ttl() {
    let scene = superseded().with("patroni", 10_000, answers(|status| status.failsafe_active = true));
    let at = |at: u64| scene.clone().with("barrier", at, verified(key("b", 2), 1, at + 1));
    check("just", &at(39_000), 40_000, &Holds(Rule::Superseded, "failsafe"));
    check("no more", &at(39_000), 40_001, &Fences("a", Rule::Superseded));
}

/// Without an alive lock, and Patroni has been silent for five seconds.
fn orphaned_silently() -> Scene {
    orphaned()
        .without("lock")
        .without("refused")
        .without("held")
        .with("silence", 15_000, silent())
        .with("still silent", 19_900, silent())
        .with("absent", 18_900, verified(Reading::Absent, 1, 18_901))
        .with("b follows", 19_500, follows("b"))
}

/// Patroni is dead by its lock, or silent.
fn orphaned_orphaned_silently() -> Vec<Case> {
    let o = orphaned;
    vec![
        ("its Patroni is dead", o(), 20_050, Fences("a", Rule::Orphaned)),
        ("its Patroni has been silent for five seconds", orphaned_silently(), 20_050, Fences("a", Rule::Orphaned)),
        (
            "the key has been absent for less than a second: a living Patroni takes it again",
            orphaned_silently().with("absent", 19_100, verified(Reading::Absent, 1, 19_101)),
            20_050,
            Waits(20_100),
        ),
        (
            "no other member could take over",
            orphaned_silently().without("b follows"),
            20_050,
            Holds(Rule::Orphaned, "take over"),
        ),
        (
            "its Patroni has never answered in this agent's life",
            orphaned_silently().without("patroni").without("patroni 1").without("patroni 2"),
            20_050,
            Nothing,
        ),
        (
            "it refuses for as long",
            orphaned_silently().with("still silent", 19_900, patroni("a", PatroniAnswer::Refused("x".to_string()))),
            20_050,
            Fences("a", Rule::Orphaned),
        ),
        (
            "it is known by silence when it will be so",
            orphaned_silently().with("silence", 15_060, silent()),
            20_050,
            Waits(20_060),
        ),
        (
            "a slow Patroni misses a question or two",
            orphaned_silently().with("silence", 18_000, silent()),
            20_050,
            Waits(23_000),
        ),
    ]
}

/// Patroni is not proved to be away.
fn orphaned_needs_an_away_patroni() -> Vec<Case> {
    let o = orphaned;
    vec![
        ("it answers", o().without("lock").with("refused", 19_995, answers(|_| {})), 20_050, Nothing),
        // The simulation found a suspended agent that trusted the lock, which had been taken again meanwhile.
        ("it answered after the lock was free", o().with("answers", 19_996, answers(|_| {})), 20_050, Nothing),
        (
            "it was started again without the lock, and misses an answer",
            o().with("answers", 19_996, answers(|_| {})).with("missed", 19_998, silent()),
            20_050,
            Nothing,
        ),
        ("it answered before", o().with("refused", 19_985, answers(|_| {})), 20_050, Fences("a", Rule::Orphaned)),
        ("the agent has not asked it for long: it was suspended", o().without("refused"), 20_050, Nothing),
        (
            "it answers nonsense",
            orphaned_silently().with("still silent", 19_900, patroni("a", PatroniAnswer::Unusable("x".to_string()))),
            20_050,
            Nothing,
        ),
        ("it answered again", orphaned_silently().with("patroni", 19_950, answers(|_| {})), 20_050, Nothing),
        ("the agent has not asked it lately", orphaned_silently().without("still silent"), 20_050, Nothing),
        (
            "it was never asked",
            orphaned_silently().without("silence").without("still silent").without("patroni").without("patroni 2"),
            20_050,
            Nothing,
        ),
        ("the lock was never seen held", o().without("held"), 20_050, Nothing),
        (
            "the lock was held, but by whom? Patroni did not answer",
            o().without("patroni").without("patroni 2"),
            20_050,
            Nothing,
        ),
        (
            "the lock cannot be read",
            o().with("lock", 19_990, Event::Local(LocalEvent::AliveLock(AliveLock::Unknown("x".to_string())))),
            20_050,
            Nothing,
        ),
        (
            "the lock is held again",
            o().with("lock 2", 20_010, Event::Local(LocalEvent::AliveLock(AliveLock::Alive))),
            20_050,
            Nothing,
        ),
    ]
}

/// The key is not proved to be absent, or an obstacle exists.
fn orphaned_does_not_fence() -> Vec<Case> {
    let o = orphaned;
    vec![
        ("the key is ours", o().with("barrier", 20_000, verified(key("a", 1), 1, 20_001)), 20_050, Nothing),
        (
            "the key is ours again, with another czxid",
            o().with("barrier", 20_000, verified(key("a", 2), 1, 20_001)),
            20_050,
            Nothing,
        ),
        (
            "only a plain read says so",
            o().with("barrier", 19_000, verified(key("a", 1), 1, 19_001)).with(
                "plain",
                20_000,
                leader(Reading::Absent),
            ),
            20_050,
            Nothing,
        ),
        ("old", o(), 23_001, Nothing),
        ("in recovery", o().with("postgres", 20_000, follows("a")), 20_050, Nothing),
        (
            "paused",
            o().with("barrier", 20_000, verified_with(Reading::Absent, config(paused_config), 1, 20_001)),
            20_050,
            Holds(Rule::Orphaned, "maintenance"),
        ),
        (
            "the configuration cannot be read",
            o().with(
                "barrier",
                20_000,
                verified_with(Reading::Absent, Reading::Unreadable("x".to_string()), 1, 20_001),
            ),
            20_050,
            Holds(Rule::Orphaned, "cannot be parsed"),
        ),
        (
            "failsafe was active",
            o().with("patroni", 10_000, answers(|status| status.failsafe_active = true)),
            20_050,
            Holds(Rule::Orphaned, "failsafe"),
        ),
        (
            "another database",
            o().with("initialize", 3, initialize(8)),
            20_050,
            Holds(Rule::Orphaned, "another database"),
        ),
        (
            "the cluster's identifier is not known",
            o().without("initialize"),
            20_050,
            Holds(Rule::Orphaned, "initialize"),
        ),
        (
            "the server's identifier is not known",
            o().with("postgres", 20_000, probe("a", PostgresAnswer::Writable(Server::default()))),
            20_050,
            Holds(Rule::Orphaned, "is not known"),
        ),
        (
            "the local Patroni had another name",
            o().with("patroni", 10_000, answers(|status| status.name = Some("A".into()))),
            20_050,
            Holds(Rule::Orphaned, "name is A"),
        ),
    ]
}

#[test]
fn a_server_without_a_leader_and_without_patroni_is_fenced_by_orphaned() {
    for (name, scene, now, expected) in
        [orphaned_orphaned_silently(), orphaned_needs_an_away_patroni(), orphaned_does_not_fence()]
            .into_iter()
            .flatten()
    {
        check(name, &scene, now, &expected);
    }
}

#[path = "fence_lease_tests.rs"]
mod lease;
#[path = "fence_peer_tests.rs"]
mod peer;
#[path = "fence_properties.rs"]
mod properties;
#[path = "fence_silence_tests.rs"]
mod silence;
