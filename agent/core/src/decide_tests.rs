use super::*;
use crate::announce::own_record;
use crate::assess::tests::{patroni, probe, record, server, status};
use crate::event::{
    AgentRecord, AliveLock, Archiver, Barrier, ClusterConfig, Event, HaproxyAnswer, HaproxyEvent, HaproxyServer,
    LocalEvent, Observed, PatroniAnswer, PatroniStatus, Role, Server, Started, State, Znode, ZooKeeperEvent,
    holder_text,
};
use crate::fact::Reading;
use crate::fixtures;
use crate::haproxy::ServerCommand;
use crate::haproxy::file::{Backends, Rendered};
use crate::types::Lsn;
use crate::view::tests::{after, identity, key, leader, lost, ms, session, verified};
use alloc::vec;
use proptest::prelude::*;

type Told = (u64, Event);

fn asked() -> Event {
    Event::Started(Started::Verification)
}

fn failed() -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown("no answer".to_string())))
}

fn config(ttl: u64) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(Reading::Present(ClusterConfig {
        ttl: Duration::from_secs(ttl),
        ..fixtures::cluster_config()
    }))))
}

fn haproxy(up: bool, sessions: u64) -> Event {
    Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(vec![HaproxyServer {
        sessions,
        ..fixtures::haproxy_server("a", up)
    }])))
}

fn archiving(archived: i64, failing: Option<&str>) -> PostgresAnswer {
    let archiver = Archiver { archived, failed: archived / 2, failing: failing.map(ToString::to_string) };
    PostgresAnswer::Writable(Server { archiver: Some(archiver), ..server(1, 5) })
}

fn planned(view: &View, now: u64) -> Plan {
    decide(view, &Policy::default(), ms(now))
}

/// The reason of the plan's verification, if it has one.
fn verifies(plan: &Plan) -> Option<&str> {
    plan.steps
        .iter()
        .find(|step| step.action == Action::ZooKeeper(ZooKeeperAction::Verify))
        .map(|step| step.reason.as_str())
}

/// The plan's announcement with its reason, if it has one.
fn announces(plan: &Plan) -> Option<(&AgentRecord, &str)> {
    plan.steps.iter().find_map(|step| match &step.action {
        Action::ZooKeeper(ZooKeeperAction::Announce(record)) => Some((&**record, step.reason.as_str())),
        _ => None,
    })
}

/// The view after the actors' queues have taken the whole plan, as in the loop.
fn handed_over(view: &View, plan: &Plan, now: Moment) -> View {
    let mut view = view.clone();
    for step in &plan.steps {
        let Some(started) = step.action.started() else { continue };
        crate::step::take_in(&mut view, Observed { at: now, event: Event::Started(started) }, now);
    }
    view
}

/// A session with a verification and an announcement at `at`.
fn settled(before: impl IntoIterator<Item = Told>, at: u64) -> View {
    let start = [(1, session(1)), (2, leader(key("a", 1)))];
    let done = [(at, asked()), (at, verified(key("a", 1), 1, at + 1))];
    let view = after(start.into_iter().chain(before).chain(done));
    let plan = planned(&view, at);
    handed_over(&view, &plan, ms(at))
}

/// New sessions, the period, and failed reads.
fn verified_in_time() -> Vec<(&'static str, Vec<Told>, u64, Option<&'static str>)> {
    let start = || (10, session(1));
    let done = || vec![start(), (100, asked()), (100, verified(key("a", 1), 1, 105))];
    let with = |mut events: Vec<Told>, more: Vec<Told>| {
        events.extend(more);
        events
    };
    vec![
        ("at once in a new session", vec![start()], 10, Some("new session")),
        (
            "at once in the session after the last",
            with(done(), vec![(150, lost()), (160, session(2))]),
            160,
            Some("new session"),
        ),
        ("not while one is under way", vec![start(), (100, asked())], 3099, None),
        (
            "again when it does not come back",
            vec![start(), (100, asked())],
            3100,
            Some("no answer to the last attempt"),
        ),
        ("not before the period is over", done(), 2099, None),
        ("every 2 s", done(), 2100, Some("periodic")),
        ("not twice in the period", with(done(), vec![(2100, asked())]), 2101, None),
        ("not at once after a failure", vec![start(), (100, asked()), (100, failed())], 599, None),
        (
            "500 ms after a failure",
            vec![start(), (100, asked()), (100, failed())],
            600,
            Some("the last attempt failed"),
        ),
        (
            "in its period once it has succeeded again",
            vec![start(), (100, asked()), (100, failed()), (600, asked()), (600, verified(key("a", 1), 1, 601))],
            2599,
            None,
        ),
    ]
}

/// Changes of the leader key.
fn verified_after_a_change() -> Vec<(&'static str, Vec<Told>, u64, Option<&'static str>)> {
    let start = || (10, session(1));
    let done = || vec![start(), (100, asked()), (100, verified(key("a", 1), 1, 105))];
    let with = |mut events: Vec<Told>, more: Vec<Told>| {
        events.extend(more);
        events
    };
    vec![
        (
            "at once when another holds the key",
            with(done(), vec![(200, leader(key("b", 2)))]),
            200,
            Some("the leader key changed"),
        ),
        (
            "at once when the same member created the key again",
            with(done(), vec![(200, leader(key("a", 2)))]),
            200,
            Some("the leader key changed"),
        ),
        (
            "at once when no member holds the key",
            with(done(), vec![(200, leader(Reading::Absent))]),
            200,
            Some("the leader key changed"),
        ),
        ("not when the key was read again as it was", with(done(), vec![(200, leader(key("a", 1)))]), 200, None),
        ("not when the other reading is the older one", with(done(), vec![(99, leader(key("b", 2)))]), 200, None),
        (
            "once for one change",
            with(done(), vec![(200, leader(key("b", 2))), (200, asked()), (200, verified(key("b", 2), 1, 201))]),
            300,
            None,
        ),
        (
            "not twice for a change while its verification is under way",
            with(done(), vec![(200, leader(key("b", 2))), (200, asked())]),
            300,
            None,
        ),
    ]
}

#[test]
fn the_leader_is_verified_when_it_has_to_be_and_not_more_often() {
    for (name, events, now, expected) in verified_in_time().into_iter().chain(verified_after_a_change()) {
        assert_eq!(verifies(&planned(&after(events), now)), expected, "{name}");
    }
}

#[test]
fn a_verification_that_is_lost_is_repeated_after_3_s_however_rare_the_periodic_ones_are() {
    let policy = Policy { verify_every: Duration::from_secs(60), ..Policy::default() };
    let view = after([(10, session(1)), (100, asked())]);
    assert_eq!(verifies(&decide(&view, &policy, ms(3100))), Some("no answer to the last attempt"));
}

#[test]
fn without_a_session_there_is_nothing_to_do() {
    let never = after([(5, config(20)), (6, probe("a", archiving(1, None)))]);
    let gone = after([(1, session(1)), (2, config(20)), (3, leader(key("b", 1))), (4, lost())]);
    for view in [never, gone] {
        assert_eq!(planned(&view, 100_000).steps, []);
    }
}

#[test]
fn an_agents_facts_are_announced_in_a_new_session() {
    let events = [
        (10, session(1)),
        (20, leader(key("b", 1))),
        (30, probe("a", archiving(1, None))),
        (40, Event::Local(LocalEvent::AliveLock(AliveLock::Alive))),
        (50, haproxy(true, 3)),
    ];
    let plan = planned(&after(events), 100);
    let (record, reason) = announces(&plan).unwrap();
    assert_eq!(reason, "new session");
    assert_eq!((record.address.as_str(), record.version.as_str()), ("warden-a:8010", "0.1.0"));
    assert_eq!((&record.member, &record.leader), (&Some("a".into()), &Some("b".into())));
    assert_eq!(record.postgres, Some((archiving(1, None), Duration::from_millis(70))), "as old as the question");
    assert_eq!(record.alive_lock, Some(AliveLock::Alive));
    assert_eq!(record.haproxy.as_ref().unwrap().1, Duration::from_millis(50));
}

#[test]
fn a_server_of_a_member_that_has_left_is_not_announced() {
    let rendered = |left: &[&str]| {
        let id = |name: &&str| crate::haproxy::ServerId { proxy: "writes".to_string(), name: (*name).to_string() };
        Event::Haproxy(HaproxyEvent::File(Reading::Present(Rendered {
            backends: Backends { places: vec![], max_connections: 100 },
            left: left.iter().map(id).collect(),
            current: true,
        })))
    };
    let announced = |left: &[&str]| {
        let plan = planned(&after([(10, session(1)), (40, rendered(left)), (50, haproxy(true, 3))]), 100);
        announces(&plan).unwrap().0.haproxy.clone().unwrap().0
    };
    assert!(matches!(announced(&[]), HaproxyAnswer::Servers(servers) if servers.len() == 1));
    assert_eq!(announced(&["pg-a"]), HaproxyAnswer::Servers(vec![]));
}

#[test]
fn a_session_that_follows_another_is_announced_in_too() {
    let mut view = settled([], 1000);
    for (at, event) in [(1100, lost()), (1200, session(2))] {
        crate::step::take_in(&mut view, Observed { at: ms(at), event }, ms(at));
    }
    assert_eq!(announces(&planned(&view, 1200)).map(|(_, reason)| reason), Some("new session"));
}

#[test]
fn an_announcement_is_repeated_every_2_s() {
    let view = settled([], 1000);
    assert_eq!(announces(&planned(&view, 2999)), None);
    assert_eq!(announces(&planned(&view, 3000)).map(|(_, reason)| reason), Some("periodic"));
}

#[test]
fn the_probe_of_another_member_is_not_announced_as_our_own() {
    let plan = planned(&after([(10, session(1)), (20, probe("b", archiving(1, None)))]), 20);
    assert_eq!(announces(&plan).unwrap().0.postgres, None);
}

/// Columns: events before the announcement, events after it, whether they cause a write.
#[test]
fn what_matters_is_announced_within_100_ms_and_what_always_changes_waits() {
    let writable = |lsn| probe("a", PostgresAnswer::Writable(server(1, lsn)));
    let patroni_says = |change: fn(&mut PatroniStatus)| {
        let mut status = status(Role::Replica, Some(false));
        change(&mut status);
        patroni("a", PatroniAnswer::Answering(status))
    };
    let silent = |why: &str| patroni("a", PatroniAnswer::Silent(why.to_string()));
    let cases = [
        ("Patroni's new position", patroni_says(|_| {}), patroni_says(|status| status.lsn = Some(Lsn(6))), false),
        ("its contact", patroni_says(|_| {}), patroni_says(|status| status.dcs_last_seen = Some(ms(900))), false),
        ("a Patroni that is silent for longer", silent("1 s"), silent("2 s"), false),
        ("a Patroni that falls silent", patroni_says(|_| {}), silent("1 s"), true),
        ("it streams", patroni_says(|_| {}), patroni_says(|status| status.state = State::Streaming), true),
        ("it is synchronous", patroni_says(|_| {}), patroni_says(|status| status.role = Role::SyncStandby), true),
        ("it takes writes", patroni_says(|_| {}), patroni_says(|status| status.writable = Some(true)), true),
        ("another's Patroni", silent("1 s"), patroni("b", PatroniAnswer::Silent("x".to_string())), false),
        ("a new position", writable(5), writable(6), false),
        (
            "a standby's new position",
            probe("a", PostgresAnswer::InRecovery(server(1, 5))),
            probe("a", PostgresAnswer::InRecovery(server(1, 6))),
            false,
        ),
        ("the age of an answer", writable(5), writable(5), false),
        ("one more archived segment", probe("a", archiving(1, None)), probe("a", archiving(2, None)), false),
        ("one more session", haproxy(true, 3), haproxy(true, 4), false),
        ("another's PostgreSQL", writable(5), probe("b", PostgresAnswer::Silent("x".to_string())), false),
        ("a failing archiver", probe("a", archiving(1, None)), probe("a", archiving(1, Some("0001"))), true),
        ("a timeline", writable(5), probe("a", PostgresAnswer::Writable(server(2, 5))), true),
        ("no longer writable", writable(5), probe("a", PostgresAnswer::InRecovery(server(1, 5))), true),
        ("silence", writable(5), probe("a", PostgresAnswer::Silent("x".to_string())), true),
        (
            "a freed lock",
            Event::Local(LocalEvent::AliveLock(AliveLock::Alive)),
            Event::Local(LocalEvent::AliveLock(AliveLock::Gone)),
            true,
        ),
        ("a server that goes down", haproxy(true, 3), haproxy(false, 3), true),
        ("another leader", leader(key("a", 1)), leader(key("b", 2)), true),
        ("the same leader with a new key", leader(key("a", 1)), leader(key("a", 2)), false),
    ];
    for (name, before, change, expected) in cases {
        let mut view = settled([(900, before)], 1000);
        crate::step::take_in(&mut view, Observed { at: ms(1010), event: change }, ms(1010));
        let early = planned(&view, 1099);
        assert_eq!(announces(&early), None, "{name}: a burst costs one write");
        let later = planned(&view, 1100);
        assert_eq!(announces(&later).map(|(_, reason)| reason), expected.then_some("something changed"), "{name}");
        if expected {
            assert!(early.wake <= ms(1100), "{name}: the wake moment alone has to suffice");
        }
    }
}

#[test]
fn the_session_timeout_follows_patronis_ttl() {
    let wanted = |events: Vec<Told>| {
        let plan = planned(&after(events), 100);
        plan.steps.into_iter().find_map(|step| match step.action {
            Action::ZooKeeper(ZooKeeperAction::UseSessionTimeout(timeout)) => Some((timeout.as_secs(), step.reason)),
            _ => None,
        })
    };
    // `session` asks for 30 s.
    assert_eq!(wanted(vec![(1, session(1))]), None, "ttl is not known yet");
    assert_eq!(wanted(vec![(1, session(1)), (2, config(30))]), None);
    let unreadable = Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(Reading::Unreadable("torn".to_string()))));
    assert_eq!(wanted(vec![(1, session(1)), (2, unreadable)]), None);
    let (timeout, reason) = wanted(vec![(1, session(1)), (2, config(20))]).unwrap();
    assert_eq!(timeout, 20);
    assert!(reason.contains("ttl") && reason.contains("20 s"), "{reason}");
}

#[test]
fn a_changed_ttl_is_taken_over_when_patronis_nodes_have_done_so() {
    let view = after([(1, session(1)), (2, config(30)), (1000, config(20))]);
    let asks = |now| {
        let plan = planned(&view, now);
        plan.steps.iter().any(|step| matches!(step.action, Action::ZooKeeper(ZooKeeperAction::UseSessionTimeout(_))))
    };
    assert_eq!((asks(1001), asks(5999), asks(6000)), (false, false, true));
}

#[test]
fn a_server_that_grants_another_timeout_is_not_asked_again_and_again() {
    let mut granted = session(1);
    if let Event::ZooKeeper(ZooKeeperEvent::SessionStarted(session)) = &mut granted {
        session.negotiated = Duration::from_secs(40);
    }
    let plan = planned(&after([(1, granted), (2, config(30))]), 100);
    assert!(
        plan.steps.iter().all(|step| !matches!(step.action, Action::ZooKeeper(ZooKeeperAction::UseSessionTimeout(_)))),
        "{plan:?}"
    );
}

#[test]
fn the_holder_in_a_log_line_is_a_name_or_says_that_there_is_none() {
    assert_eq!(holder_text(&key("a", 1)), "a");
    assert_eq!(holder_text(&Reading::Absent), "nobody");
    assert_eq!(holder_text(&Reading::Unreadable("torn".to_string())), "unreadable");
}

fn reading() -> impl Strategy<Value = Reading<crate::event::LeaderKey>> {
    prop_oneof![
        (prop_oneof!["a", "b"], 1_i64..4).prop_map(|(holder, zxid)| key(&holder, zxid)),
        Just(Reading::Absent),
        Just(Reading::Unreadable("torn".to_string())),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (1_i64..4).prop_map(session),
        1 => Just(lost()),
        3 => (reading(), 1_i64..4, 0_u64..9000).prop_map(|(leader, id, at)| verified(leader, id, at)),
        2 => Just(failed()),
        3 => Just(asked()),
        3 => reading().prop_map(leader),
        1 => Just(Event::Tick),
        1 => Just(Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::MAX })),
        1 => prop_oneof![Just(0), 1_u64..60, Just(u64::MAX)].prop_map(config),
        1 => Just(record("b", Role::Replica)),
        1 => Just(patroni("a", PatroniAnswer::Refused("x".to_string()))),
        2 => (0_u64..3, any::<bool>()).prop_map(|(lsn, writable)| {
            let server = Server { lsn: Some(Lsn(lsn)), ..Server::default() };
            probe("a", if writable { PostgresAnswer::Writable(server) } else { PostgresAnswer::InRecovery(server) })
        }),
        1 => (any::<bool>(), 0_u64..9).prop_map(|(up, sessions)| haproxy(up, sessions)),
        1 => prop_oneof![Just(AliveLock::Alive), Just(AliveLock::Gone)]
            .prop_map(|lock| Event::Local(LocalEvent::AliveLock(lock))),
        2 => Just(Event::Started(Started::Announcement(Box::new(own_record(&View::new(identity()), ms(0)))))),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    (100_u64..9000, 100_u64..9000).prop_map(|(verify, announce)| Policy {
        verify_every: Duration::from_millis(verify),
        announce_every: Duration::from_millis(announce),
        ..Policy::default()
    })
}

proptest! {
    /// Arbitrary events in any order, and a `now` that may lie before all of them.
    #[test]
    fn any_view_gets_a_plan_always_the_same_and_without_a_session_none_that_needs_one(
        events in proptest::collection::vec((0_u64..9000, event()), 0..40),
        policy in policy(),
        now in prop_oneof![Just(0_u64), 0_u64..10_000, Just(u64::MAX)],
    ) {
        let view = after(events.clone());
        let plan = decide(&view, &policy, ms(now));
        prop_assert_eq!(&plan, &decide(&after(events), &policy, ms(now)));
        prop_assert!(plan.wake >= ms(now), "wakes in the past: {:?}", plan.wake);
        if view.session().is_none() {
            // HAProxy still gets commands, but no session is cut.
            let zookeeper = |step: &Step| match &step.action {
                Action::Ask(Ask::HaproxyAndMembers) | Action::Render(_) => false,
                Action::Servers(ServersAction::Hold { .. }) => false,
                Action::Servers(ServersAction::Route(change)) => change.to == ServerCommand::Down,
                _ => true,
            };
            let observed = |notice: &Notice| match notice {
                Notice::Observed(Observation::Route(change)) => change.to == ServerCommand::Down,
                Notice::Observed(_) => true,
                _ => false,
            };
            prop_assert!(!plan.steps.iter().any(zookeeper), "{:?}", plan.steps);
            prop_assert!(!plan.notices.iter().any(observed), "{:?}", plan.notices);
        }
    }

    /// No step becomes due between a decision and its wake moment.
    #[test]
    fn no_step_becomes_due_before_the_wake_moment(
        events in proptest::collection::vec((0_u64..5000, event()), 0..40),
        policy in policy(),
        now in 5000_u64..9000,
        between in 0.0..1.0_f64,
    ) {
        let mut ordered = events;
        ordered.sort_by_key(|(at, _)| *at);
        let view = after(ordered);
        let plan = decide(&view, &policy, ms(now));
        let view = handed_over(&view, &plan, ms(now));
        let asleep = plan.wake.since(ms(now));
        let at = ms(now).plus(asleep.mul_f64(between));
        if at < plan.wake {
            let missed = decide(&view, &policy, at);
            let waits = |step: &&Step| {
                !matches!(step.action, Action::ZooKeeper(ZooKeeperAction::UseSessionTimeout(_)))
            };
            let due = missed.steps.iter().filter(waits).count();
            prop_assert_eq!(due, 0, "due at {:?}, asleep until {:?}: {:?}", at, plan.wake, missed.steps);
        }
    }
}

#[path = "decide_acts_tests.rs"]
mod acts;
