//! Scenarios: for each warning one fault that raises it, and the same situation without the fault, which does not.

mod cluster;
mod fences;
mod haproxy;
mod members;

use super::{CODES, Warning, warnings};
use crate::assess::tests::{patroni, probe, server, status};
use crate::event::{
    AgentRecord, AliveLock, Archiver, Barrier, ClusterConfig, Event, FenceOutcome, FenceRecord, FenceReport,
    FenceSession, HaproxyAnswer, HaproxyEvent, HaproxyServer, LeaderKey, LocalEvent, MemberEvent, MemberRecord,
    PatroniAnswer, PatroniStatus, PostgresAnswer, Report, Role, Rule, Server, Started, SuperuserSlots, SyncState,
    Znode, ZooKeeperEvent,
};
use crate::fact::Reading;
use crate::fixtures;
use crate::haproxy::{Pool, ServerId};
use crate::rules::reconnect;
use crate::types::{MemberName, Moment, SystemId, Timeline, UnixMillis};
use crate::view::View;
use crate::view::tests::{
    after, cluster_config, key, leader as leader_znode, lost, ms, session, verified, verified_with,
};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use alloc::{vec, vec::Vec};
use core::time::Duration;
use proptest::prelude::*;

type Told = (u64, Event);

fn config(change: impl Fn(&mut ClusterConfig)) -> Event {
    let mut config = fixtures::cluster_config();
    change(&mut config);
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(Reading::Present(config))))
}

fn sync(standbys: &[&str]) -> Event {
    let standbys = standbys.iter().map(|name| MemberName::from(*name)).collect();
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Sync(Reading::Present(SyncState {
        leader: Some("a".into()),
        standbys,
        quorum: 0,
    }))))
}

fn member(name: &str, there: bool) -> Event {
    if there {
        member_at(name, name)
    } else {
        Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Member(name.into(), Reading::Absent)))
    }
}

fn member_at(name: &str, host: &str) -> Event {
    let record = MemberRecord { timeline: Some(Timeline(1)), ..fixtures::member_record(host) };
    fixtures::member_read(name, Reading::Present(record))
}

fn agent_says(name: &str, change: impl Fn(&mut AgentRecord)) -> Event {
    let mut record = AgentRecord { leader: Some("a".into()), ..fixtures::agent_record(None) };
    change(&mut record);
    fixtures::agent_read(name, record)
}

/// The agent beside b.
fn peer(lock: AliveLock) -> Event {
    agent_says("b", move |record| {
        record.member = Some("b".into());
        record.alive_lock = Some(lock.clone());
    })
}

/// The agent `r`, beside an HAProxy with these servers: name, member, up.
fn router(servers: &[(&str, Option<&str>, bool)]) -> Event {
    let servers = servers.iter().map(|(name, member, up)| HaproxyServer {
        id: ServerId { proxy: "writes".to_string(), name: (*name).to_string() },
        member: member.map(MemberName::from),
        ..fixtures::haproxy_server("", *up)
    });
    router_says(HaproxyAnswer::Servers(servers.collect()))
}

fn router_says(answer: HaproxyAnswer) -> Event {
    agent_says("r", move |record| record.haproxy = Some((answer.clone(), Duration::ZERO)))
}

fn answering(member: &str, change: impl Fn(&mut PatroniStatus)) -> Event {
    let leads = member == "a";
    let mut status = status(if leads { Role::Primary } else { Role::SyncStandby }, Some(leads));
    change(&mut status);
    patroni(member, PatroniAnswer::Answering(status))
}

fn silent_patroni(member: &str) -> Event {
    patroni(member, PatroniAnswer::Silent("no answer within 1 s".to_string()))
}

fn identified(id: u64) -> PostgresAnswer {
    PostgresAnswer::InRecovery(Server { system_id: Some(SystemId(id)), ..server(1, 100) })
}

fn receiving(receives: bool) -> PostgresAnswer {
    PostgresAnswer::InRecovery(Server { receives: Some(receives), ..server(1, 100) })
}

fn archiving(failing: Option<&str>) -> PostgresAnswer {
    let archiver = Archiver { archived: 3, failed: 9, failing: failing.map(ToString::to_string) };
    PostgresAnswer::Writable(Server { archiver: Some(archiver), ..server(1, 100) })
}

fn writable_with(heartbeat: Option<Moment>) -> PostgresAnswer {
    PostgresAnswer::Writable(Server { heartbeat, ..server(1, 100) })
}

fn keeping(reserved: u32, agents: u32) -> PostgresAnswer {
    let superuser_slots = Some(SuperuserSlots { reserved, agents });
    PostgresAnswer::Writable(Server { superuser_slots, ..server(1, 100) })
}

fn writable() -> PostgresAnswer {
    PostgresAnswer::Writable(server(1, 100))
}

fn standby(timeline: u32) -> PostgresAnswer {
    PostgresAnswer::InRecovery(server(timeline, 100))
}

fn barrier(leader: Reading<LeaderKey>) -> Event {
    verified(leader, 1, 1401)
}

/// Two nodes: a leads, and b is its synchronous standby. The local member is a. A second agent stands beside b, a third
/// beside HAProxy. All have answered at 1000.
fn healthy() -> Vec<Told> {
    vec![
        (1, session(1)),
        (2, leader_znode(key("a", 1))),
        (2, config(|_| {})),
        (2, sync(&["b"])),
        (2, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Initialize(Reading::Present(SystemId(7)))))),
        (2, member("a", true)),
        (2, member("b", true)),
        (2, peer(AliveLock::Alive)),
        (2, router(&[("pg-a", Some("a"), true), ("pg-b", Some("b"), false)])),
        (3, Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) })),
        (4, verified(key("a", 1), 1, 5)),
        (1000, Event::Local(LocalEvent::AliveLock(AliveLock::Alive))),
        (1000, answering("a", |_| {})),
        (1000, answering("b", |_| {})),
        (1000, probe("a", writable())),
        (1000, probe("b", standby(1))),
    ]
}

/// A fault, and the same situation without it.
struct Scenario {
    code: &'static str,
    /// The member of the warning.
    member: Option<&'static str>,
    /// Parts of the text.
    words: &'static [&'static str],
    /// The events of the fault, on top of the healthy cluster.
    wrong: Vec<Told>,
    /// The events without the fault.
    right: Vec<Told>,
    /// The moment of the check.
    now: u64,
}

impl Scenario {
    fn new(code: &'static str, member: Option<&'static str>, words: &'static [&'static str]) -> Self {
        Self { code, member, words, wrong: vec![], right: vec![], now: 1500 }
    }

    fn wrong(mut self, event: Event) -> Self {
        self.wrong.push((1400, event));
        self
    }

    fn right(mut self, event: Event) -> Self {
        self.right.push((1400, event));
        self
    }

    /// Adds an event to both cases.
    fn both(self, event: Event) -> Self {
        self.wrong(event.clone()).right(event)
    }

    /// Adds an event to both cases, at this moment.
    fn later(mut self, at: u64, event: Event) -> Self {
        self.wrong.push((at, event.clone()));
        self.right.push((at, event));
        self
    }

    fn at(mut self, now: u64) -> Self {
        self.now = now;
        self
    }

    fn warnings(&self, events: &[Told]) -> Vec<Warning> {
        let view = after(healthy().into_iter().chain(events.iter().cloned()));
        warnings(&view, ms(self.now), None)
    }
}

fn scenarios() -> Vec<Scenario> {
    let cluster = [cluster::about_zookeeper(), cluster::about_leadership(), cluster::about_agents()];
    let members = [members::about_patroni(), members::about_postgres()];
    let fences = [
        fences::about_fence_records(),
        fences::about_failed_fences(),
        fences::about_held_fences(),
        fences::about_the_fence_session(),
        fences::about_the_gate_and_the_lease(),
    ];
    let haproxy = [haproxy::about_haproxy(), haproxy::about_checks_and_limits()];
    cluster.into_iter().chain(members).chain(fences).chain(haproxy).flatten().collect()
}

fn known_codes() -> BTreeSet<&'static str> {
    CODES.iter().map(|(code, _)| *code).collect()
}

#[test]
fn a_healthy_cluster_of_two_has_no_warnings() {
    assert_eq!(warnings(&after(healthy()), ms(1500), None), []);
}

#[test]
fn each_fault_raises_its_warning_about_its_member() {
    for scenario in scenarios() {
        let code = scenario.code;
        let raised = scenario.warnings(&scenario.wrong);
        let Some(warning) = raised.iter().find(|warning| warning.code == code) else {
            panic!("{code} is not raised, but {raised:?}");
        };
        assert_eq!(warning.member.as_ref().map(MemberName::as_str), scenario.member, "{code}");
        for words in scenario.words {
            assert!(warning.message.contains(words), "{code}: {words:?} is not in {:?}", warning.message);
        }
    }
}

#[test]
fn a_situation_in_order_raises_no_warning() {
    for scenario in scenarios() {
        let raised = scenario.warnings(&scenario.right);
        assert!(raised.iter().all(|warning| warning.code != scenario.code), "{}: {raised:?}", scenario.code);
    }
}

#[test]
fn every_code_has_a_scenario_and_every_warning_a_code() {
    let scenarios = scenarios();
    let covered: BTreeSet<&str> = scenarios.iter().map(|scenario| scenario.code).collect();
    assert_eq!(covered, known_codes());
    assert_eq!(CODES.len(), covered.len(), "a code is listed twice");
    for scenario in &scenarios {
        for warning in scenario.warnings(&scenario.wrong) {
            assert!(known_codes().contains(warning.code), "{warning:?}");
        }
    }
}

#[test]
fn before_the_first_session_the_missing_zookeeper_is_the_only_warning() {
    let raised = warnings(&after([]), ms(100), None);
    assert_eq!(raised.len(), 1, "{raised:?}");
    assert_eq!((raised[0].code, raised[0].message.as_str()), ("zookeeper_lost", "no ZooKeeper session yet"));
}

/// The key may be another member's, so the server would have to be fenced. The warning says that it is not.
#[test]
fn an_unreadable_key_raises_no_accusation_and_no_fence() {
    let torn = || Reading::Unreadable("torn".to_string());
    let events = healthy().into_iter().chain([(1400, barrier(torn())), (1400, leader_znode(torn()))]);
    let raised = warnings(&after(events), ms(1500), None);
    let codes: BTreeSet<&str> = raised.iter().map(|warning| warning.code).collect();
    assert_eq!(codes, BTreeSet::from(["fence_held", "leader_unverified", "znode_unreadable"]), "{raised:?}");
    let held = raised.iter().find(|warning| warning.code == "fence_held").unwrap();
    assert_eq!(held.message, "a would be fenced (superseded), but the leader key cannot be parsed: torn");
}

#[test]
fn a_leader_without_a_configured_alive_lock_gets_no_warning_about_it() {
    let unknown = Event::Local(LocalEvent::AliveLock(AliveLock::Unknown("not configured".to_string())));
    let mut view = after(healthy().into_iter().chain([(1400, unknown)]));
    let codes = |view: &View| warnings(view, ms(1500), None).iter().map(|warning| warning.code).collect::<Vec<_>>();
    assert_eq!(codes(&view), ["alive_lock_unknown"]);
    view.identity.has_alive_lock = false;
    assert_eq!(codes(&view), [""; 0]);
}

/// An old report on the old primary and a fresh one on the new primary do not prove two, in any order of arrival.
#[test]
fn a_handover_is_not_two_primaries() {
    let codes = |events: Vec<Told>| -> BTreeSet<&'static str> {
        warnings(&after(events), ms(4000), None).iter().map(|warning| warning.code).collect()
    };
    let start = [(1, session(1)), (2, verified(key("a", 1), 1, 3))];
    let seen = |events: &[Told]| codes(start.iter().chain(events).cloned().collect());
    let change = || leader_znode(key("b", 2));
    // `a` was last seen before `b` took the key, and `b` is seen writable only afterwards.
    let told = seen(&[(2000, probe("a", writable())), (2500, change()), (3000, probe("b", writable()))]);
    assert!(!told.contains("several_writable") && !told.contains("writable_without_leader_key"), "{told:?}");
    // `a` is seen writable once more.
    let again = [(2500, change()), (3000, probe("b", writable())), (3500, probe("a", writable()))];
    let told = seen(&[[(2000, probe("a", writable()))].as_slice(), &again].concat());
    assert!(told.contains("several_writable") && told.contains("writable_without_leader_key"), "{told:?}");
    // It was in recovery in between, so its earlier state does not count.
    let told = seen(&[
        (2500, probe("b", writable())),
        (2700, probe("a", writable())),
        (3000, probe("b", standby(1))),
        (3500, probe("b", writable())),
    ]);
    assert!(!told.contains("several_writable"), "{told:?}");
}

/// At an address of two members, one server answers for both.
#[test]
fn one_server_at_the_address_of_two_members_is_not_two_primaries() {
    let codes = |events: &[Told]| -> Vec<&'static str> {
        let view = after(healthy().into_iter().chain(events.iter().cloned()));
        warnings(&view, ms(1500), None).iter().map(|warning| warning.code).collect()
    };
    let both_write = (1400, probe("b", writable()));
    let at_a = [both_write.clone(), (1400, member_at("b", "a")), (1450, probe("a", writable()))];
    assert_eq!(codes(&at_a), ["address_shared"]);
    let told = codes(&[both_write, (1450, probe("a", writable()))]);
    assert!(told.contains(&"several_writable") && told.contains(&"writable_without_leader_key"), "{told:?}");
}

#[test]
fn impossible_times_in_the_configuration_are_a_warning_however_large_they_are() {
    let endless = config(|config| config.retry_timeout = Duration::MAX);
    let raised = warnings(&after(healthy().into_iter().chain([(1400, endless)])), ms(1500), None);
    assert_eq!(raised.iter().map(|warning| warning.code).collect::<Vec<_>>(), ["timing_impossible"]);
}

proptest! {
    /// Any mixture of faults: no panic, known codes, a non-empty text each, members that are in the view.
    #[test]
    fn any_mixture_of_faults_is_reported_in_known_codes(
        picked in proptest::collection::vec((0_usize..64, any::<bool>()), 0..12),
        now in 0_u64..100_000,
    ) {
        let scenarios: Box<[Scenario]> = scenarios().into();
        let events = picked.iter().flat_map(|(index, wrong)| {
            let scenario = &scenarios[index % scenarios.len()];
            if *wrong { scenario.wrong.clone() } else { scenario.right.clone() }
        });
        let view = after(healthy().into_iter().chain(events));
        for warning in warnings(&view, ms(now), None) {
            prop_assert!(known_codes().contains(warning.code), "{:?}", warning);
            prop_assert!(!warning.message.is_empty());
            prop_assert!(warning.member.is_none_or(|name| view.members.contains_key(&name)));
        }
    }
}
