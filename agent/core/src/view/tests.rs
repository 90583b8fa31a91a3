use super::*;
use crate::event::{
    Barrier, LeaderKey, MemberEvent, MemberRecord, PatroniAnswer, PostgresAnswer, Znode, ZooKeeperEvent,
};
use crate::fixtures;
pub(crate) use crate::fixtures::{cluster_config, identity, leader_read as leader, ms, session_started as session};
use crate::types::{SessionId, Zxid};
use alloc::string::ToString;
use proptest::prelude::*;

pub(crate) fn key(holder: &str, zxid: i64) -> Reading<LeaderKey> {
    Reading::Present(fixtures::leader_key(holder, zxid))
}

pub(crate) fn lost() -> Event {
    Event::ZooKeeper(ZooKeeperEvent::SessionLost { reason: "disconnected", detail: "gone".to_string() })
}

pub(crate) fn verified(leader: Reading<LeaderKey>, session: i64, finished: u64) -> Event {
    verified_with(leader, Reading::Present(cluster_config()), session, finished)
}

/// A barrier read with this configuration and leader key.
pub(crate) fn verified_with(
    leader: Reading<LeaderKey>,
    config: Reading<ClusterConfig>,
    session: i64,
    finished: u64,
) -> Event {
    barrier(leader, config, Reading::Absent, session, finished)
}

/// A barrier read with this content. Its transaction is the millisecond in which it ended, so that later reads have
/// later ones.
pub(crate) fn barrier(
    leader: Reading<LeaderKey>,
    config: Reading<ClusterConfig>,
    sync: Reading<SyncState>,
    session: i64,
    finished: u64,
) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Verified {
        leader,
        config,
        sync,
        zxid: Zxid(i64::try_from(finished).unwrap()),
        session: SessionId(session),
        finished: ms(finished),
    }))
}

pub(crate) fn failed_barrier() -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown("no answer".to_string())))
}

/// Applies events. Each has one millisecond for its question and its arrival.
pub(crate) fn after(events: impl IntoIterator<Item = (u64, Event)>) -> View {
    let mut view = View::new(identity());
    for (at, event) in events {
        crate::step::take_in(&mut view, Observed { at: ms(at), event }, ms(at));
    }
    view
}

fn record() -> MemberRecord {
    fixtures::member_record("b")
}

fn member(name: &str, present: bool) -> Event {
    let reading = if present { Reading::Present(record()) } else { Reading::Absent };
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Member(name.into(), reading)))
}

#[test]
fn an_answer_to_an_older_question_does_not_replace_a_newer_one() {
    let view = after([(10, session(1)), (20, verified(key("new", 2), 1, 21)), (15, leader(key("old", 1)))]);
    assert_eq!(view.leader.unwrap().value, key("new", 2));
}

#[test]
fn a_barrier_read_of_a_former_session_proves_nothing() {
    let view = after([(10, session(1)), (20, lost()), (30, session(2)), (15, verified(key("a", 1), 1, 16))]);
    assert_eq!(view.verified, None);
    assert_eq!(view.leader, None);
}

#[test]
fn a_verification_does_not_outlive_its_session() {
    let view = after([(10, session(1)), (20, verified(key("a", 1), 1, 21)), (30, lost())]);
    assert_eq!(view.verified, None);
    assert!(view.leader.is_some(), "what was last read is still shown, as unverified");
}

#[test]
fn the_moment_of_a_change_is_kept_while_the_value_stays() {
    let view = after([
        (10, session(1)),
        (20, leader(key("a", 1))),
        (30, leader(key("a", 1))),
        (40, verified(key("a", 1), 1, 41)),
    ]);
    assert_eq!(view.leader_changed, Some(ms(20)));
}

#[test]
fn a_key_created_again_by_the_same_member_is_a_change() {
    let view = after([(10, session(1)), (20, leader(key("a", 1))), (30, leader(key("a", 2)))]);
    assert_eq!(view.leader_changed, Some(ms(30)));
}

#[test]
fn members_that_a_new_session_does_not_mention_have_no_znode() {
    let view = after([
        (10, session(1)),
        (11, member("b", true)),
        (20, lost()),
        (30, session(2)),
        (31, member("c", true)),
        (32, Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) })),
    ]);
    assert_eq!(view.members[&"b".into()].record.as_ref().unwrap().value, Reading::Absent);
    assert!(view.members[&"c".into()].record.as_ref().unwrap().value.present().is_some());
}

#[test]
fn a_fence_that_was_taken_back_between_two_sessions_is_over() {
    use crate::rules::fence::tests::fence_record;
    let record = || fence_record("a", crate::event::Rule::Operator);
    let stands = |events: &[(u64, Event)]| !after(events.iter().cloned()).leadership.records.is_empty();
    let read = || Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) });
    let before = [(1, session(1)), (2, record()), (3, read()), (10, lost()), (20, session(2))];
    assert!(stands(&before), "nothing is known yet");
    assert!(!stands(&[&before[..], &[(25, read())]].concat()));
    assert!(stands(&[&before[..], &[(22, record()), (25, read())]].concat()));
}

#[test]
fn an_agent_that_a_new_session_finds_stays_however_old_its_report_is() {
    let agent = |name: &str| {
        Event::ZooKeeper(ZooKeeperEvent::Agent { name: name.into(), record: Reading::Unreadable("x".to_string()) })
    };
    let view = after([
        (10, session(1)),
        (11, agent("frozen")),
        (11, agent("gone")),
        (2000, session(2)),
        // Its time is that of the write.
        (11, agent("frozen")),
        (2001, Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) })),
    ]);
    assert_eq!(view.agents.keys().map(AgentName::as_str).collect::<Vec<_>>(), ["frozen"]);
}

#[test]
fn a_member_is_forgotten_only_when_nothing_of_it_is_left() {
    let gone = [(10, session(1)), (11, member("b", true)), (20, member("b", false)), (60_000, Event::Tick)];
    assert!(after(gone.clone()).members.contains_key(&"b".into()), "too early");
    let later = gone.into_iter().chain([(90_000, Event::Tick)]);
    assert!(!after(later).members.contains_key(&"b".into()));
    let answers = PostgresAnswer::Writable(crate::event::Server::default());
    let alive = [
        (10, session(1)),
        (11, member("b", true)),
        (20, member("b", false)),
        (80_000, Event::Member("b".into(), MemberEvent::Postgres { via: Source::Tcp, answer: answers })),
        (90_000, Event::Tick),
    ];
    assert!(after(alive).members.contains_key(&"b".into()), "a frozen Patroni's PostgreSQL has to stay in sight");
}

#[test]
fn a_member_that_was_renamed_is_not_kept_by_the_server_that_both_names_stand_for() {
    use crate::rules::fence::tests::member as at;
    let answers = |name: &str| {
        Event::Member(
            name.into(),
            MemberEvent::Postgres {
                via: Source::Tcp,
                answer: PostgresAnswer::Writable(crate::event::Server::default()),
            },
        )
    };
    let view = |new: &str| {
        after([
            (10, session(1)),
            (11, at("old", "host-a")),
            (12, at("new", new)),
            (20, member("old", false)),
            (80_000, answers("old")),
            (80_000, answers("new")),
            (81_000, Event::Tick),
        ])
    };
    let names = |view: &View| view.members.keys().map(|name| name.as_str().to_string()).collect::<Vec<_>>();
    assert_eq!(names(&view("host-a")), ["a", "new"]);
    assert_eq!(names(&view("host-b")), ["a", "new", "old"]);
    // The same address, written otherwise: the Patroni there has another name.
    let anothers = Event::Member("old".into(), MemberEvent::Patroni(PatroniAnswer::Anothers(String::new())));
    let mut view = view("10.0.0.1");
    view.apply(Observed { at: ms(81_500), event: anothers }, ms(81_500));
    view.apply(Observed { at: ms(82_000), event: Event::Tick }, ms(82_000));
    assert_eq!(names(&view), ["a", "new"]);
}

#[test]
fn our_own_member_is_never_forgotten() {
    assert!(after([(10_000_000, Event::Tick)]).members.contains_key(&"a".into()));
}

#[test]
fn the_time_since_which_patroni_is_away_starts_with_its_first_missing_answer() {
    let silent = || Event::Member("a".into(), MemberEvent::Patroni(PatroniAnswer::Silent("x".to_string())));
    let refused = Event::Member("a".into(), MemberEvent::Patroni(PatroniAnswer::Refused("x".to_string())));
    let view = after([(10, silent()), (20, refused), (30, silent())]);
    assert_eq!(view.members[&"a".into()].patroni_away_since, Some(ms(10)));
}

proptest! {
    /// The answer to the latest question counts, in any order of arrival.
    #[test]
    fn the_newest_question_wins_in_any_order(ats in proptest::collection::vec(0_u64..1000, 1..20)) {
        let events = ats.iter().map(|at| (*at, leader(key("x", i64::try_from(*at).unwrap()))));
        let view = after(events);
        let newest = i64::try_from(*ats.iter().max().unwrap()).unwrap();
        prop_assert_eq!(view.leader.unwrap().value, key("x", newest));
    }
}
