use super::*;
use crate::assess::tests::status;
use crate::event::{Event, Role, ZooKeeperEvent};
use crate::view::tests::{barrier, cluster_config, key, ms};

const SESSION: i64 = 1;

fn config(pause: bool) -> Reading<ClusterConfig> {
    Reading::Present(ClusterConfig { pause, ..cluster_config() })
}

fn sync(leader: Option<&str>, standbys: &[&str]) -> Reading<SyncState> {
    let standbys = standbys.iter().map(|name| MemberName::from(*name)).collect();
    Reading::Present(SyncState { leader: leader.map(MemberName::from), standbys, quorum: 0 })
}

fn read(leader: Reading<LeaderKey>) -> Barrier {
    read_with(leader, config(false), sync(Some("a"), &["b"]), SESSION)
}

fn read_with(
    leader: Reading<LeaderKey>,
    config: Reading<ClusterConfig>,
    sync: Reading<SyncState>,
    session: i64,
) -> Barrier {
    match barrier(leader, config, sync, session, 10) {
        Event::ZooKeeper(ZooKeeperEvent::Barrier(read)) => read,
        other => panic!("{other:?}"),
    }
}

fn condition(key: KeyIs) -> KeyCondition {
    KeyCondition { session: SessionId(SESSION), key, sync: None }
}

fn unreadable<T>() -> Reading<T> {
    Reading::Unreadable("torn".to_string())
}

/// The three kinds of conditions, each beside a read that meets it.
fn conditions() -> [(KeyCondition, Barrier); 3] {
    let ours = KeyIs::TheOneOf { member: "a".into(), czxid: Zxid(5), owner: SessionId(7) };
    [
        (condition(KeyIs::NotOf("a".into())), read(key("b", 5))),
        (condition(ours), read(key("a", 5))),
        (condition(KeyIs::OfAnotherThan("a".into())), read(key("b", 5))),
    ]
}

#[test]
fn an_unchanged_situation_permits_the_act() {
    for (condition, read) in conditions() {
        assert_eq!(condition.check(&read), Ok(()), "{condition:?}");
    }
    assert_eq!(condition(KeyIs::NotOf("a".into())).check(&read(Reading::Absent)), Ok(()), "no member holds it");
}

/// The same for a fence, a release and a cut of sessions. When each had a check of its own, none covered all of this.
#[test]
fn no_condition_permits_an_act_on_unknown_facts_in_maintenance_mode_or_in_another_session() {
    for (condition, good) in conditions() {
        let Barrier::Verified { leader, .. } = good else { panic!() };
        let none = || sync(None, &[]);
        for (read, words) in [
            (read(unreadable()), "cannot be parsed"),
            (read_with(leader.clone(), config(true), none(), SESSION), "maintenance mode"),
            (read_with(leader.clone(), Reading::Absent, none(), SESSION), "absent"),
            (read_with(leader.clone(), unreadable(), none(), SESSION), "cannot be parsed"),
            (read_with(leader.clone(), config(false), none(), 2), "session has changed"),
            (Barrier::Unknown("late".to_string()), "late"),
        ] {
            let why = condition.check(&read).expect_err("it must not act");
            assert!(why.contains(words), "{condition:?}, {read:?}: {why}");
        }
    }
}

#[test]
fn a_changed_key_refuses() {
    let [(not_ours, _), (ours, _), (anothers, _)] = conditions();
    let other_owner = |reading| match reading {
        Reading::Present(key) => Reading::Present(LeaderKey { owner: SessionId(8), ..key }),
        other => other,
    };
    for (condition, leader, words) in [
        (&not_ours, key("a", 5), "a holds the leader key again"),
        (&ours, key("a", 6), "czxid 0x6"),
        (&ours, other_owner(key("a", 5)), "czxid 0x5"),
        (&ours, key("b", 5), "b holds"),
        (&ours, Reading::Absent, "no member holds"),
        (&anothers, key("a", 5), "a holds"),
        (&anothers, Reading::Absent, "no member holds"),
    ] {
        let why = condition.check(&read(leader.clone())).expect_err("it must not act");
        assert!(why.contains(words), "{condition:?}, {leader:?}: {why}");
    }
}

#[test]
fn a_release_in_synchronous_mode_asks_the_sync_znode_once_more() {
    let names = SyncNames { leader: "a".into(), one_of: ["b".into(), "c".into()].into() };
    let [_, (ours, _), _] = conditions();
    let condition = KeyCondition { sync: Some(names), ..ours };
    let check = |sync| condition.check(&read_with(key("a", 5), config(false), sync, SESSION));
    assert_eq!(check(sync(Some("a"), &["b"])), Ok(()));
    assert_eq!(check(sync(Some("a"), &["c", "d"])), Ok(()), "one of them is enough");
    for (sync, words) in [
        (sync(Some("a"), &["d"]), "no standby"),
        (sync(Some("a"), &[]), "no standby"),
        (sync(Some("b"), &["b"]), "not the leader"),
        (sync(None, &["b"]), "not the leader"),
        (Reading::Absent, "cannot be read"),
        (unreadable(), "cannot be read"),
    ] {
        let why = check(sync.clone()).expect_err("it must not act");
        assert!(why.contains(words), "{sync:?}: {why}");
    }
}

fn answering(seen: u64, failsafe_active: bool) -> PatroniAnswer {
    let mut status = status(Role::Primary, Some(true));
    (status.dcs_last_seen, status.failsafe_active) = (Some(ms(seen)), failsafe_active);
    PatroniAnswer::Answering(status)
}

/// Columns: the facts at the order, Patroni's answer now, and the expected objection.
#[test]
fn a_fence_by_lease_is_withdrawn_by_something_new_and_never_by_time() {
    let silent = LeaseCondition { contact: Some(ms(9000)), beat: Some(ms(8000)), ground: Ground::Silence };
    let stuck = LeaseCondition { contact: Some(ms(9000)), beat: Some(ms(8000)), ground: Ground::ReportedContact };
    let standing_still = LeaseCondition { contact: Some(ms(9000)), beat: Some(ms(8000)), ground: Ground::Heartbeat };
    let late = || Barrier::Unknown("late".to_string());
    for (away, answer, words) in [
        (silent, PatroniAnswer::Silent("x".to_string()), None),
        (silent, PatroniAnswer::Refused("x".to_string()), None),
        (silent, PatroniAnswer::Unusable("x".to_string()), Some("unusable answer")),
        (silent, answering(9000, false), Some("answers")),
        (stuck, PatroniAnswer::Silent("x".to_string()), None),
        (stuck, answering(9000, false), None),
        (standing_still, PatroniAnswer::Silent("x".to_string()), None),
        (standing_still, PatroniAnswer::Unusable("x".to_string()), None),
        (standing_still, answering(9000, false), Some("answers")),
        // The same second, converted a moment later.
        (stuck, answering(9400, false), None),
        (stuck, answering(10_000, false), Some("contact")),
        (stuck, answering(9000, true), Some("failsafe")),
    ] {
        match (away.check(&late(), &answer, Some(ms(8000))), words) {
            (Ok(()), None) => {}
            (Err(why), Some(words)) if why.contains(words) => {}
            (verdict, _) => panic!("{away:?}, {answer:?}: {verdict:?}"),
        }
        let why = away.check(&late(), &answer, Some(ms(9500))).expect_err("its HA loop has turned");
        assert!(why.contains("new round"), "{why}");
        let why = away.check(&read(key("a", 5)), &answer, None).expect_err("ZooKeeper answers");
        assert!(why.contains("answers again"), "{why}");
    }
}
