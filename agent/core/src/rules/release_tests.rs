use super::*;
use crate::assess::tests::{probe, server as at_timeline};
use crate::event::{
    Event, FailoverRequest, LocalEvent, PostgresAnswer, ReleaseReport, Report, Server, Starting, SyncState, Znode,
    ZooKeeperEvent,
};
use crate::rules::fence::tests::{
    Scene, answers, config_znode, fence_record, leading, member, paused_config, takes_writes,
};
use crate::types::{SystemId, Timeline, Zxid};
use crate::view::tests::{barrier, cluster_config, key, leader, lost, ms, session, verified};

fn policy() -> ReleasePolicy {
    ReleasePolicy {
        enabled: true,
        asynchronous: None,
        handover: true,
        after: Duration::from_millis(50),
        patroni_is_pid_1: true,
    }
}

fn lock(lock: AliveLock) -> Event {
    Event::Local(LocalEvent::AliveLock(lock))
}

fn gone() -> Event {
    probe("a", PostgresAnswer::Gone("no process listens".to_string()))
}

fn stopping() -> Event {
    probe("a", PostgresAnswer::Stopping("the database system is shutting down".to_string()))
}

fn failover(leader: Option<&str>, candidate: Option<&str>, scheduled: bool) -> Event {
    let request =
        FailoverRequest { leader: leader.map(MemberName::from), candidate: candidate.map(MemberName::from), scheduled };
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Failover(Reading::Present(request))))
}

fn sync_state(leader: &str, standbys: &[&str], quorum: u32) -> Reading<SyncState> {
    let standbys = standbys.iter().map(|name| MemberName::from(*name)).collect();
    Reading::Present(SyncState { leader: Some(leader.into()), standbys, quorum })
}

fn sync(leader: &str, standbys: &[&str], quorum: u32) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Sync(sync_state(leader, standbys, quorum))))
}

/// A barrier read with this content of the znode `sync`.
fn read(key: Reading<crate::event::LeaderKey>, sync: Reading<SyncState>, at: u64) -> Event {
    barrier(key, Reading::Present(cluster_config()), sync, 1, at)
}

fn follows(name: &str) -> Event {
    probe(name, PostgresAnswer::InRecovery(Server { system_id: Some(SystemId(7)), ..at_timeline(1, 5) }))
}

/// `a`, the local member, led, and its node's Patroni and PostgreSQL were killed. Their end is proved at 10,160 ms.
fn crashed() -> Scene {
    leading()
        .with("barrier", 10_000, read(key("a", 1), sync_state("a", &["b"], 0), 10_001))
        .with("b follows", 9_990, follows("b"))
        .with("held", 10_001, lock(AliveLock::Alive))
        .with("freed", 10_060, lock(AliveLock::Gone))
        .with("gone 1", 10_110, gone())
        .with("gone 2", 10_160, gone())
}

/// A switchover from `a` to `b`, the synchronous standby. The server of `a` is down.
fn switching() -> Scene {
    leading()
        .with("barrier", 10_000, read(key("a", 1), sync_state("a", &["b"], 0), 10_001))
        .with("b follows", 9_990, follows("b"))
        .with("held", 10_001, lock(AliveLock::Alive))
        .with("sync", 8, sync("a", &["b"], 0))
        .with("failover", 10_010, failover(Some("a"), Some("b"), false))
        .with("gone 1", 10_110, gone())
        .with("gone 2", 10_160, gone())
}

/// The local server was shut down with a checkpoint at `location` of timeline 1.
fn shut_down(location: u64, system_id: u64) -> Event {
    Event::Local(LocalEvent::ShutDown(Reading::Present(ShutdownCheckpoint {
        location: Lsn(location),
        timeline: Timeline(1),
        system_id: SystemId(system_id),
    })))
}

/// The candidate has replayed this far.
fn replayed(timeline: u32, lsn: u64) -> Event {
    let server = Server { system_id: Some(SystemId(7)), ..at_timeline(timeline, lsn) };
    probe("b", PostgresAnswer::InRecovery(server))
}

/// As [`switching`], in asynchronous mode: the candidate has replayed all WAL of the local server.
fn switching_asynchronously() -> Scene {
    switching()
        .with("config 2", 10_000, config_znode(|config| config.synchronous_mode = false))
        .with("sync", 8, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Sync(Reading::Absent))))
        .with("shut down", 10_109, shut_down(500, 7))
        .with("replayed", 10_150, replayed(1, 501))
}

#[derive(Debug, PartialEq, Eq)]
enum Says {
    Releases,
    /// The reason contains this.
    Holds(&'static str),
    HandsOverTo(&'static str),
    Probes,
    AsksTheCandidate,
    Nothing,
    Waits(u64),
}

use Says::{AsksTheCandidate, HandsOverTo, Holds, Nothing, Probes, Releases, Waits};

fn says(scene: &Scene, policy: &ReleasePolicy, now: u64) -> Verdict {
    judge(&scene.view(), policy, ms(now))
}

fn check(name: &str, scene: &Scene, now: u64, expected: &Says) {
    check_with(name, scene, &policy(), now, expected);
}

fn check_with(name: &str, scene: &Scene, policy: &ReleasePolicy, now: u64, expected: &Says) {
    let due = says(scene, policy, now);
    match (&due, expected) {
        (Verdict::Nothing, Nothing)
        | (Verdict::Probe { others: false }, Probes)
        | (Verdict::Probe { others: true }, AsksTheCandidate) => {}
        (Verdict::Held(why, _), Holds(expected)) => assert!(why.contains(expected), "{name}: {why}"),
        (Verdict::At(at), Waits(expected)) => assert_eq!(*at, ms(*expected), "{name}"),
        (Verdict::Release(release), Releases) => assert_eq!(release.handover_to, None, "{name}"),
        (Verdict::Release(release), HandsOverTo(to)) => assert_eq!(release.handover_to, Some((*to).into()), "{name}"),
        _ => panic!("{name}: {due:?} and not {expected:?}"),
    }
}

#[test]
fn the_key_of_a_leader_that_is_proved_dead_is_released() {
    let silent = || probe("a", PostgresAnswer::Silent("x".to_string()));
    let refused = || probe("a", PostgresAnswer::Refused("starting up".to_string()));
    let c = crashed;
    let cases = [
        ("all of it", c(), Releases),
        (
            "known by a plain read alone: who is synchronous is not known",
            c().without("barrier").with("plain", 10_000, leader(key("a", 1))),
            Probes,
        ),
        (
            "the cluster has failsafe mode",
            c().with("config 2", 10_000, config_znode(|c| c.failsafe_mode = true)),
            Releases,
        ),
        // Each condition removed in turn.
        ("another leads", c().with("barrier", 10_000, verified(key("b", 1), 1, 10_001)), Nothing),
        ("no member leads", c().with("plain", 10_165, leader(Reading::Absent)), Nothing),
        ("the lock is held", c().without("freed"), Nothing),
        ("the lock cannot be read", c().with("freed", 10_060, lock(AliveLock::Unknown("x".to_string()))), Nothing),
        ("the lock was not seen held in this term", c().with("key again", 10_065, leader(key("a", 2))), Nothing),
        (
            "the lock was held, but Patroni did not answer",
            c().without("patroni 1").without("patroni 2").without("patroni"),
            Holds("has never answered"),
        ),
        ("Patroni answered after the lock was free", c().with("answers", 10_165, answers(|_| {})), Nothing),
        (
            "the agent has not asked Patroni for long: it was suspended",
            c().without("patroni 2").with("patroni", 7_000, answers(|_| {})),
            Nothing,
        ),
        ("the lock is held again", c().with("again", 10_165, lock(AliveLock::Alive)), Nothing),
        ("paused", c().with("config 2", 10_000, config_znode(paused_config)), Nothing),
        (
            "the configuration cannot be read",
            c().with("barrier", 10_000, leader(key("a", 1))).with(
                "config 2",
                10_000,
                Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(Reading::Unreadable("x".to_string())))),
            ),
            Nothing,
        ),
        ("no session", c().with("lost", 10_165, lost()), Nothing),
        ("the server is up", c().with("gone 2", 10_160, takes_writes("a", 1)), Probes),
        ("the server turns sessions away", c().with("gone 2", 10_160, refused()), Probes),
        ("the server is silent", c().with("gone 2", 10_160, silent()), Probes),
        ("the agent has not asked the server", c().without("gone 1").without("gone 2"), Probes),
        ("gone only once", c().without("gone 1"), Probes),
        ("gone twice, but not in a row", c().with("between", 10_130, silent()), Probes),
        ("gone twice, but at once", c().with("gone 1", 10_120, gone()), Probes),
    ];
    for (name, scene, expected) in cases {
        check(name, &scene, 10_170, &expected);
    }
    let off = ReleasePolicy { enabled: false, ..policy() };
    assert_eq!(says(&crashed(), &off, 10_170), Verdict::Nothing, "not allowed");
    assert_eq!(
        judge(&View::new(crate::view::Identity { member: None, ..crate::view::tests::identity() }), &policy(), ms(9)),
        Verdict::Nothing
    );
}

#[test]
fn the_key_of_a_leader_that_is_left_is_handed_over() {
    let s = switching;
    let cases = [
        ("all of it", s(), HandsOverTo("b")),
        (
            "to any member, and there is one synchronous standby",
            s().with("failover", 10_010, failover(Some("a"), None, false)),
            HandsOverTo("b"),
        ),
        ("Patroni died meanwhile", s().with("freed", 10_060, lock(AliveLock::Gone)), Releases),
        // Each condition removed in turn.
        ("a restart, a shutdown: no failover key", s().without("failover"), Nothing),
        (
            "the failover key is gone",
            s().with("done", 10_165, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Failover(Reading::Absent)))),
            Nothing,
        ),
        (
            "the failover key cannot be read",
            s().with(
                "failover",
                10_010,
                Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Failover(Reading::Unreadable("x".to_string())))),
            ),
            Nothing,
        ),
        ("another is to be left", s().with("failover", 10_010, failover(Some("b"), Some("a"), false)), Nothing),
        ("the request names no leader", s().with("failover", 10_010, failover(None, Some("b"), false)), Nothing),
        ("it is for later", s().with("failover", 10_010, failover(Some("a"), Some("b"), true)), Nothing),
        ("the candidate is not synchronous", s().with("sync", 8, sync("a", &["c"], 0)), Nothing),
        ("it is not known who is synchronous", s().without("sync"), Nothing),
        (
            "no member is synchronous",
            s().with("sync", 8, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Sync(Reading::Absent)))),
            Nothing,
        ),
        ("a person has fenced the candidate", s().with("record", 9, fence_record("b", Rule::Operator)), Nothing),
        ("it was fenced once, by a rule", s().with("record", 9, fence_record("b", Rule::Superseded)), HandsOverTo("b")),
        ("quorum commit", s().with("sync", 8, sync("a", &["b"], 1)), Nothing),
        ("the sync znode is another leader's", s().with("sync", 8, sync("b", &["b"], 0)), Nothing),
        (
            "to any member of two",
            s().with("failover", 10_010, failover(Some("a"), None, false)).with("sync", 8, sync("a", &["b", "c"], 0)),
            Nothing,
        ),
        ("paused", s().with("config 2", 10_000, config_znode(paused_config)), Nothing),
        ("we do not lead", s().with("barrier", 10_000, verified(key("b", 1), 1, 10_001)), Nothing),
        ("the server is up", s().without("gone 1").without("gone 2"), Nothing),
        ("the server was down and is up", s().with("up", 10_165, takes_writes("a", 1)), Nothing),
        ("gone only once, and no control file", s().without("gone 1"), Probes),
        (
            "one look is enough, by the control file",
            s().without("gone 1").with("shut down", 10_159, shut_down(500, 7)),
            HandsOverTo("b"),
        ),
        (
            "the control file is of another database",
            s().without("gone 1").with("shut down", 10_159, shut_down(500, 8)),
            Probes,
        ),
    ];
    for (name, scene, expected) in cases {
        check(name, &scene, 10_170, &expected);
    }
    let off = ReleasePolicy { handover: false, ..policy() };
    assert_eq!(says(&switching(), &off, 10_170), Verdict::Nothing, "not allowed");
}

#[test]
fn without_synchronous_standbys_the_candidate_has_to_be_seen_past_the_shutdown_checkpoint() {
    let s = switching_asynchronously;
    let no_leader = || {
        Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Sync(Reading::Present(SyncState {
            leader: None,
            standbys: [].into(),
            quorum: 0,
        }))))
    };
    let cases = [
        ("all of it", s(), HandsOverTo("b")),
        ("the sync znode exists and names no member", s().with("sync", 8, no_leader()), HandsOverTo("b")),
        ("to any member of one", s().with("failover", 10_010, failover(Some("a"), None, false)), HandsOverTo("b")),
        (
            "to any member of two",
            s().with("failover", 10_010, failover(Some("a"), None, false)).with("member c", 5, member("c", "host-c")),
            Nothing,
        ),
        // The agent has to ask the candidate.
        ("it has not replayed all", s().with("replayed", 10_150, replayed(1, 500)), AsksTheCandidate),
        ("it is on another timeline", s().with("replayed", 10_150, replayed(2, 900)), AsksTheCandidate),
        ("the agent has not asked it", s().without("replayed"), AsksTheCandidate),
        ("the agent has not asked it lately", s().with("replayed", 7_000, replayed(1, 501)), AsksTheCandidate),
        ("it takes writes", s().with("replayed", 10_150, takes_writes("b", 1)), AsksTheCandidate),
        // A question to the candidate would not help.
        ("the control file was not read", s().without("shut down"), Nothing),
        (
            "it was not shut down cleanly",
            s().with("shut down", 10_109, Event::Local(LocalEvent::ShutDown(Reading::Absent))),
            Nothing,
        ),
        (
            "the control file cannot be read",
            s().with("shut down", 10_109, Event::Local(LocalEvent::ShutDown(Reading::Unreadable("x".to_string())))),
            Nothing,
        ),
        ("it is another database", s().with("shut down", 10_109, shut_down(500, 8)), Nothing),
        ("the control file is of an earlier time", s().with("shut down", 9_000, shut_down(500, 7)), Nothing),
        ("a standby has to be synchronous", s().with("config 2", 10_000, config_znode(|_| {})), Nothing),
        ("a person has fenced it", s().with("record", 9, fence_record("b", Rule::Operator)), Nothing),
        // The rest is as in synchronous mode.
        ("a restart, a shutdown: no failover key", s().without("failover"), Nothing),
        (
            "paused",
            s().with("config 2", 10_000, config_znode(|c| (c.pause, c.synchronous_mode) = (true, false))),
            Nothing,
        ),
        ("one look is enough, by the control file", s().without("gone 1"), HandsOverTo("b")),
        ("none is not", s().without("gone 1").without("gone 2").with("stopping", 10_160, stopping()), Probes),
    ];
    for (name, scene, expected) in cases {
        check(name, &scene, 10_170, &expected);
    }
    let quorum = s().with("config 2", 10_000, config_znode(|_| {})).with("sync", 8, sync("a", &["b", "c"], 1));
    check("quorum commit, and the candidate has all", &quorum, 10_170, &HandsOverTo("b"));
    check("it does not count in the quorum", &quorum.with("sync", 8, sync("a", &["c"], 1)), 10_170, &Nothing);
    let Verdict::Release(release) = says(&s(), &policy(), 10_170) else { panic!() };
    assert_eq!(release.shut_down_with.map(|past| past.location), Some(Lsn(500)));
    for fact in [("shutdown_checkpoint", "0/1F4"), ("candidate_lsn", "0/1F5")] {
        assert!(release.facts.contains(&(fact.0.to_string(), fact.1.to_string())), "{:?}", release.facts);
    }
}

/// Columns: content of the znode `sync`, report on `b`, time that the operator leaves the key, verdict.
#[test]
fn a_release_costs_no_row_that_was_acknowledged_unless_the_operator_trades_rows_for_time() {
    let s = sync_state;
    let no_leader = || Reading::Present(SyncState { leader: None, standbys: [].into(), quorum: 0 });
    let behind = || probe("b", PostgresAnswer::Refused("x".to_string()));
    let agent = crate::assess::tests::agent("b", PostgresAnswer::InRecovery(at_timeline(1, 5)), 0);
    let starts = || PostgresAnswer::Starting(Starting { why: "x".to_string(), standby: Some(true) });
    let starting = || crate::assess::tests::agent("b", starts(), 0);
    let cases = [
        ("b is synchronous and answers", s("a", &["b"], 0), follows("b"), None, Releases),
        ("quorum commit", s("a", &["b", "c"], 1), follows("b"), None, Releases),
        ("b is synchronous, says its own agent", s("a", &["b"], 0), agent, None, Releases),
        ("b is synchronous and down for maintenance", s("a", &["b"], 0), behind(), None, Holds("never")),
        ("b is synchronous and still starts", s("a", &["b"], 0), starting(), None, Holds("never")),
        ("b still starts, as we see ourselves", s("a", &["b"], 0), probe("b", starts()), None, Holds("never")),
        ("the only candidate still starts", Reading::Absent, starting(), Some(0), Holds("take over")),
        ("b is not synchronous", s("a", &["c"], 0), follows("b"), None, Holds("never")),
        ("the sync znode is another leader's", s("b", &["b"], 0), follows("b"), None, Holds("never")),
        ("no standby is synchronous", no_leader(), follows("b"), None, Holds("never")),
        ("there is no sync znode", Reading::Absent, follows("b"), None, Holds("never")),
        ("it cannot be read", Reading::Unreadable("x".to_string()), follows("b"), None, Holds("never")),
        ("the operator leaves no time", Reading::Absent, follows("b"), Some(0), Releases),
        ("the operator leaves a minute", Reading::Absent, follows("b"), Some(60), Holds("stays for 60 s")),
        ("no other member could take over", Reading::Absent, behind(), Some(0), Holds("take over")),
        ("b takes writes itself", Reading::Absent, takes_writes("b", 1), Some(0), Holds("take over")),
    ];
    for (name, sync, b, asynchronous, expected) in cases {
        let scene = crashed().with("barrier", 10_000, read(key("a", 1), sync, 10_001)).with("b follows", 9_990, b);
        let policy = ReleasePolicy { asynchronous: asynchronous.map(Duration::from_secs), ..policy() };
        check_with(name, &scene, &policy, 10_170, &expected);
    }
    let fenced = crashed().with("record", 9_000, fence_record("b", Rule::Operator));
    check("a person has fenced the only candidate", &fenced, 10_170, &Holds("never"));
}

/// A server that had ended and was started since must not lose its key (found by the simulation).
#[test]
fn a_release_stands_on_a_fresh_look_at_the_socket_and_on_one_after_patronis_death() {
    for scene in [crashed(), switching()] {
        assert!(matches!(says(&scene, &policy(), 10_360), Verdict::Release(_)), "just fresh enough");
        check("old", &scene, 10_361, &Probes);
    }
    let before = crashed().with("freed", 10_170, lock(AliveLock::Gone));
    check("Patroni lived when the socket was last looked at", &before, 10_175, &Probes);
    check("and was dead", &before.with("gone 3", 10_180, gone()), 10_185, &Releases);
}

#[test]
fn a_release_names_the_key_that_was_seen_and_says_why() {
    let Verdict::Release(release) = says(&crashed(), &policy(), 10_170) else { panic!() };
    let key = KeyIs::TheOneOf { member: "a".into(), czxid: Zxid(1), owner: SessionId(7) };
    let sync = SyncNames { leader: "a".into(), one_of: ["b".into()].into() };
    assert_eq!(release.condition, KeyCondition { session: SessionId(1), key, sync: Some(sync) });
    assert!(release.reason.contains("alive lock") && release.reason.contains("socket"), "{}", release.reason);
    let Verdict::Release(release) = says(&switching(), &policy(), 10_170) else { panic!() };
    assert!(release.reason.contains("switchover to b"), "{}", release.reason);
    assert!(release.facts.contains(&("candidate".to_string(), "b".to_string())), "{:?}", release.facts);
}

#[test]
fn the_socket_is_asked_again_after_a_while_and_a_failed_release_is_repeated_later() {
    use crate::event::Started;
    let probed = crashed().without("gone 1").without("gone 2").with("probed", 10_065, Event::Started(Started::Probe));
    check("a probe is under way", &probed, 10_114, &Waits(10_115));
    check("it came to nothing", &probed, 10_115, &Probes);
    let once = probed.with("gone 1", 10_066, gone());
    check("the second one in its time", &once, 10_100, &Waits(10_115));
    check("is made", &once, 10_115, &Probes);
    let released = crashed().with("released", 10_171, Event::Started(Started::Release));
    check("not twice", &released, 10_172, &Waits(10_671));
    let failed =
        released.with("failed", 10_180, Event::Report(Report::Release(ReleaseReport::Failed("x".to_string()))));
    let failed = failed.with("gone 3", 10_660, gone());
    check("and again later", &failed, 10_671, &Releases);
}

#[test]
fn an_agent_that_only_just_started_releases_nothing() {
    let restarted = Scene::new([
        ("session", 1, session(1)),
        ("config 2", 10_000, config_znode(|_| {})),
        ("barrier", 3, verified(key("a", 1), 1, 4)),
        ("freed", 4, lock(AliveLock::Gone)),
        ("gone 1", 10, gone()),
        ("gone 2", 100, gone()),
    ]);
    check("it never saw the lock held", &restarted, 200, &Holds("has never answered"));
    let lives = restarted.with("held", 1, lock(AliveLock::Alive)).with("patroni", 2, answers(|_| {}));
    check("nor in this term", &lives.with("barrier 2", 5, verified(key("a", 2), 1, 6)), 200, &Nothing);
}
