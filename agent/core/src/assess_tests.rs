use super::*;
use crate::event::{AgentRecord, Barrier, Event, HaproxyEvent, MemberRecord, SyncState, Znode, ZooKeeperEvent};
use crate::fixtures;
pub(crate) use crate::fixtures::{patroni, patroni_status as status, postgres as probe, server};
use crate::view::tests::{after, key, leader as leader_znode, lost, ms, session, verified};
use alloc::vec;
use proptest::prelude::*;

pub(crate) fn agent(member: &str, answer: PostgresAnswer, age: u64) -> Event {
    let postgres = Some((answer, Duration::from_millis(age)));
    fixtures::agent_read(member, AgentRecord { postgres, ..fixtures::agent_record(Some(member)) })
}

pub(crate) fn record(member: &str, role: Role) -> Event {
    let record = MemberRecord { role, timeline: Some(Timeline(9)), ..fixtures::member_record("h") };
    fixtures::member_read(member, Reading::Present(record))
}

fn truth_of(view: &View, name: &str, now: u64) -> MemberStatus<'static> {
    // Leaked, so that a test can keep the reference.
    let view: &'static View = alloc::boxed::Box::leak(alloc::boxed::Box::new(view.clone()));
    members(view, ms(now)).into_iter().find(|member_status| member_status.name.as_str() == name).unwrap()
}

#[test]
fn only_a_barrier_read_started_after_the_request_verifies() {
    let view = after([(10, session(1)), (100, verified(key("a", 1), 1, 105))]);
    assert!(leader(&view, ms(200), Some(ms(100))).verified);
    let stale = leader(&view, ms(200), Some(ms(101)));
    assert!(!stale.verified, "the read may have been answered before the request came in");
    assert_eq!(stale.holder().unwrap().as_str(), "a");
    assert!(stale.why_unverified.is_some());
}

#[test]
fn an_ordinary_read_never_verifies() {
    let view = after([(10, session(1)), (100, leader_znode(key("a", 1)))]);
    assert!(!leader(&view, ms(100), None).verified);
}

#[test]
fn a_failed_barrier_read_says_why() {
    let view = after([
        (10, session(1)),
        (100, Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown("no answer within 1 s".to_string())))),
    ]);
    let told = leader(&view, ms(150), Some(ms(100)));
    assert!(!told.verified);
    assert_eq!(told.why_unverified.as_deref(), Some("no answer within 1 s"));
}

#[test]
fn without_a_session_nothing_is_verified_and_the_loss_is_the_reason() {
    let view = after([(10, session(1)), (20, verified(key("a", 1), 1, 21)), (30, lost())]);
    let told = leader(&view, ms(31), None);
    assert!(!told.verified && told.why_unverified.unwrap().contains("gone"));
}

#[test]
fn a_key_that_cannot_be_read_is_not_a_verified_leader() {
    let view = after([(10, session(1)), (20, verified(Reading::Unreadable("torn".to_string()), 1, 21))]);
    let told = leader(&view, ms(25), Some(ms(20)));
    assert_eq!((told.verified, told.holder()), (false, None));
}

/// Which report about a member's PostgreSQL counts. Columns: event, time of the question, expected result.
#[test]
fn the_best_witness_is_believed() {
    let writable = || PostgresAnswer::Writable(server(2, 10));
    let standby = || PostgresAnswer::InRecovery(server(2, 10));
    let refused = || PostgresAnswer::Refused("x".to_string());
    let silent = || PostgresAnswer::Silent("x".to_string());
    let heard = |writable| patroni("b", PatroniAnswer::Answering(status(Role::Primary, writable)));
    let start = || (1, session(1));
    let cases = [
        ("own probe", vec![start(), (1000, probe("b", writable()))], 1500, Some(true)),
        ("own probe, too old", vec![start(), (1000, probe("b", writable()))], 5000, None),
        ("a refusal says nothing of open sessions", vec![start(), (1000, probe("b", refused()))], 1500, None),
        ("silence is unknown", vec![start(), (1000, probe("b", silent()))], 1500, None),
        (
            "the agent beside it outweighs our silence",
            vec![start(), (900, agent("b", writable(), 0)), (1000, probe("b", silent()))],
            1500,
            Some(true),
        ),
        (
            "the newer of two answers",
            vec![start(), (900, agent("b", writable(), 0)), (1000, probe("b", standby()))],
            1500,
            Some(false),
        ),
        (
            "an agent's old news is old",
            vec![start(), (1000, agent("b", writable(), 800)), (500, probe("b", standby()))],
            1500,
            Some(false),
        ),
        ("an agent that stopped writing", vec![start(), (1000, agent("b", writable(), 0))], 7000, None),
        (
            "Patroni just heard from it",
            vec![start(), (1000, heard(Some(true))), (1000, probe("b", silent()))],
            1500,
            Some(true),
        ),
        ("Patroni could not ask it", vec![start(), (1000, heard(None))], 1500, None),
        (
            "a refusal from afar does not outweigh what Patroni heard",
            vec![start(), (1000, heard(Some(true))), (1100, probe("b", refused()))],
            1500,
            Some(true),
        ),
        (
            "nor what the agent beside it says",
            vec![start(), (900, agent("b", writable(), 0)), (1100, probe("b", refused()))],
            1500,
            Some(true),
        ),
        (
            "what that agent is refused outweighs what Patroni heard before",
            vec![start(), (900, heard(Some(true))), (1100, agent("b", refused(), 0))],
            1500,
            None,
        ),
    ];
    for (name, events, now, expected) in cases {
        let view = after(events);
        assert_eq!(truth_of(&view, "b", now).writable, expected, "{name}");
    }
}

#[test]
fn a_member_that_does_not_answer_is_not_called_running_because_its_znode_says_so() {
    let silent = || patroni("b", PatroniAnswer::Silent("x".to_string()));
    let view = after([(1, session(1)), (2, record("b", Role::Primary)), (1000, silent())]);
    assert_eq!(truth_of(&view, "b", 1500).state, State::Unknown);
    let view = after([
        (1, session(1)),
        (2, record("b", Role::Primary)),
        (1000, silent()),
        (1000, probe("b", PostgresAnswer::Writable(server(1, 1)))),
    ]);
    assert_eq!(truth_of(&view, "b", 1500).state, State::Running);
}

#[test]
fn the_lag_of_a_standby_is_its_distance_from_the_leader() {
    let view = after([
        (1, session(1)),
        (2, leader_znode(key("a", 1))),
        (1000, probe("a", PostgresAnswer::Writable(server(1, 1000)))),
        (1000, probe("b", PostgresAnswer::InRecovery(server(1, 400)))),
    ]);
    assert_eq!(truth_of(&view, "b", 1500).lag, Some(600));
    assert_eq!(truth_of(&view, "a", 1500).lag, None);
}

#[test]
fn on_another_timeline_there_is_no_distance() {
    let view = after([
        (1, session(1)),
        (2, leader_znode(key("a", 1))),
        (1000, probe("a", PostgresAnswer::Writable(server(5, 1000)))),
        (1000, probe("b", PostgresAnswer::InRecovery(server(4, 1400)))),
    ]);
    assert_eq!(truth_of(&view, "b", 1500).lag, None);
}

#[test]
fn which_replica_is_synchronous_stands_in_the_sync_znode_when_patroni_does_not_answer() {
    let sync = SyncState { leader: Some("a".into()), standbys: [MemberName::from("b")].into(), quorum: 0 };
    let view = after([
        (1, session(1)),
        (2, record("b", Role::Replica)),
        (3, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Sync(Reading::Present(sync))))),
    ]);
    assert_eq!(truth_of(&view, "b", 10).role, Role::SyncStandby);
}

proptest! {
    /// With any times and order of events, verified means a barrier read that started in time in this session.
    #[test]
    fn verified_is_never_claimed_without_a_barrier_read_in_time(
        steps in proptest::collection::vec((0_u64..5000, 0_u8..5, 1_i64..4), 0..40),
        asked in 0_u64..5000,
    ) {
        let mut ordered = steps.clone();
        ordered.sort_unstable();
        let mut current = None;
        let mut proof = false;
        let events: Vec<(u64, Event)> = ordered.iter().map(|(at, what, id)| {
            let event = match what {
                0 => { current = Some(*id); proof = false; session(*id) }
                1 => { current = None; proof = false; lost() }
                2 => { if current == Some(*id) && *at >= asked { proof = true; } verified(key("a", 1), *id, *at) }
                3 => leader_znode(key("b", 2)),
                _ => Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown("x".to_string()))),
            };
            (*at, event)
        }).collect();
        let view = after(events);
        prop_assert_eq!(leader(&view, ms(5000), Some(ms(asked))).verified, proof);
    }
}

/// A report of the agent beside `member` on its Patroni, with the report's age.
pub(crate) fn agent_on_patroni(member: &str, answer: PatroniAnswer, age: u64) -> Event {
    let Event::ZooKeeper(ZooKeeperEvent::Agent { name, record: Reading::Present(record) }) =
        agent(member, PostgresAnswer::Silent("x".into()), 0)
    else {
        unreachable!()
    };
    let patroni = Some((alloc::boxed::Box::new(answer), Duration::from_millis(age)));
    Event::ZooKeeper(ZooKeeperEvent::Agent {
        name,
        record: Reading::Present(AgentRecord { postgres: None, patroni, ..record }),
    })
}

#[test]
fn the_newest_report_on_a_patroni_counts_but_silence_never_outranks_its_own_agent() {
    let answering = || PatroniAnswer::Answering(status(Role::Replica, Some(false)));
    let silent = || PatroniAnswer::Silent("x".to_string());
    let cases = [
        ("only ours", vec![(9_000, patroni("b", answering()))], Some((Source::Patroni, true))),
        ("only its agent's", vec![(9_000, agent_on_patroni("b", answering(), 500))], Some((Source::Agent, true))),
        (
            "its agent's is newer",
            vec![(8_000, patroni("b", answering())), (9_000, agent_on_patroni("b", silent(), 500))],
            Some((Source::Agent, false)),
        ),
        (
            "ours is newer",
            vec![(9_600, patroni("b", answering())), (9_000, agent_on_patroni("b", silent(), 500))],
            Some((Source::Patroni, true)),
        ),
        (
            "we hear nothing, its agent does",
            vec![(9_600, patroni("b", silent())), (9_000, agent_on_patroni("b", answering(), 500))],
            Some((Source::Agent, true)),
        ),
        ("ours is old", vec![(6_000, patroni("b", answering()))], None),
        ("its agent's is old", vec![(5_400, agent_on_patroni("b", answering(), 500))], None),
        (
            "of the local member only our own answer counts",
            vec![(9_000, agent_on_patroni("a", answering(), 500))],
            None,
        ),
    ];
    for (name, events, expected) in cases {
        let view = after([(10, session(1))].into_iter().chain(events));
        let about = if name.contains("local member") { "a" } else { "b" };
        let found = patroni_of(&view, &about.into(), ms(10_000));
        let found = found.map(|fact| (fact.source, matches!(fact.value, PatroniAnswer::Answering(_))));
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn another_patroni_is_asked_where_its_agent_is_not_fresh_or_does_not_say_and_where_haproxy_sends_writes() {
    let answering = || PatroniAnswer::Answering(status(Role::Replica, Some(false)));
    let haproxy = |up: bool, pool| {
        let server = crate::haproxy::HaproxyServer {
            pool,
            id: crate::haproxy::ServerId { proxy: "writes".to_string(), name: "pg".to_string() },
            address: "10.0.0.1:5432".to_string(),
            member: Some("b".into()),
            status: "UP".to_string(),
            up,
            sessions: 0,
            ..crate::haproxy::HaproxyServer::default()
        };
        Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(vec![server])))
    };
    let told = || (9_000, agent_on_patroni("b", answering(), 500));
    for (name, events, tells) in [
        ("fresh", vec![told()], true),
        ("soon not fresh", vec![(6_400, agent_on_patroni("b", answering(), 500))], false),
        ("an older agent", vec![(9_000, agent("b", PostgresAnswer::Silent("x".into()), 0))], false),
        ("no agent", vec![(9_000, record("b", Role::Replica))], false),
        (
            "it is silent, and its agent says so",
            vec![(9_000, agent_on_patroni("b", PatroniAnswer::Silent("x".into()), 500))],
            true,
        ),
        ("the leader, beside no HAProxy", vec![told(), (9_000, leader_znode(key("b", 1)))], true),
        (
            "the leader, beside HAProxy",
            vec![told(), (9_000, leader_znode(key("b", 1))), (9_000, haproxy(false, Pool::Writes))],
            false,
        ),
        ("HAProxy has it up for writes", vec![told(), (9_000, haproxy(true, Pool::Writes))], false),
        ("HAProxy has it up for reads", vec![told(), (9_000, haproxy(true, Pool::Reads))], true),
        ("HAProxy has it down", vec![told(), (9_000, haproxy(false, Pool::Writes))], true),
    ] {
        let view = after([(10, session(1))].into_iter().chain(events));
        assert_eq!(its_agent_tells(&view, &"b".into(), ms(10_000)), tells, "{name}");
    }
    let own = after([(10, session(1)), (9_000, agent_on_patroni("a", answering(), 500))]);
    assert!(!its_agent_tells(&own, &"a".into(), ms(10_000)), "the local member is always asked");
}

#[test]
fn an_agents_report_on_its_patroni_keeps_the_member_and_shows_whether_it_takes_writes() {
    let says = |writable| PatroniAnswer::Answering(status(Role::Primary, writable));
    let view = after([(10, session(1)), (9_000, agent_on_patroni("b", says(Some(true)), 500))]);
    let member = &view.members[&"b".into()];
    assert_eq!((member.alive_at, member.writable_since), (Some(ms(8_500)), Some(ms(8_500))));
    assert_eq!(truth_of(&view, "b", 9_100).writable, Some(true));
    let cases = [
        ("what Patroni heard later", (9_500, agent_on_patroni("b", says(Some(false)), 100)), None),
        ("what Patroni heard before", (9_500, agent_on_patroni("b", says(Some(false)), 1_500)), Some(ms(8_500))),
        ("PostgreSQL did not answer it", (9_500, agent_on_patroni("b", says(None), 100)), Some(ms(8_500))),
    ];
    for (name, event, expected) in cases {
        let first = (9_000, agent_on_patroni("b", says(Some(true)), 500));
        let view = after([(10, session(1)), first, event]);
        assert_eq!(view.members[&"b".into()].writable_since, expected, "{name}");
    }
}
