//! About ZooKeeper, the leader key, the configuration of the cluster, and the agents.

use super::*;

pub(super) fn about_zookeeper() -> Vec<Scenario> {
    let mut late = session(1);
    if let Event::ZooKeeper(ZooKeeperEvent::SessionStarted(session)) = &mut late {
        session.negotiated = Duration::from_secs(40);
    }
    let failed = Event::TaskFailed { task: "haproxy", error: "no such socket".to_string() };
    let mut over = Scenario::new("agent_task_failed", None, &["haproxy", "no such socket"]).wrong(failed.clone());
    over.now = 61_000;
    over.right = vec![(900, failed)];
    let mut unverified = Scenario::new("leader_unverified", None, &["could not be verified", "no answer within 2 s"]);
    unverified.now = 4100;
    unverified.wrong =
        vec![(4000, Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown("no answer within 2 s".to_string()))))];
    unverified.right = vec![(4000, verified(key("a", 1), 1, 4001))];
    vec![
        Scenario::new("zookeeper_lost", None, &["no ZooKeeper session for 0.1 s", "gone"])
            .both(lost())
            .right(session(2)),
        unverified,
        Scenario::new("znode_unreadable", None, &["znode sync", "not JSON"])
            .wrong(Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Sync(Reading::Unreadable(
                "it is not JSON".to_string(),
            )))))
            .right(sync(&["b"])),
        Scenario::new("tree_missing", None, &["nothing of cluster s", "chroot"])
            .wrong(barrier(Reading::Absent))
            .wrong(Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(Reading::Absent))))
            .wrong(Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Initialize(Reading::Absent))))
            .wrong(member("a", false))
            .wrong(member("b", false))
            .right(barrier(Reading::Absent)),
        Scenario::new("session_timeout_differs", None, &["40 s", "30 s", "tickTime"]).wrong(late).right(session(1)),
        over,
        Scenario::new("agent_name_taken", None, &["another agent runs as a", "10.0.0.5:8010"])
            .wrong(Event::ZooKeeper(ZooKeeperEvent::NameTaken { by: "10.0.0.5:8010".to_string() }))
            .right(agent_says("c", |_| {})),
    ]
}

pub(super) fn about_leadership() -> Vec<Scenario> {
    let mut silent_primary = Scenario::new("may_still_write", Some("b"), &["b took writes", "a leads since"]);
    silent_primary.now = 9000;
    silent_primary.wrong = vec![(1400, probe("b", writable()))];
    silent_primary.right = vec![(1400, probe("b", writable())), (8900, probe("b", standby(1)))];
    vec![
        Scenario::new("no_leader", None, &["no member holds the leader key"])
            .wrong(barrier(Reading::Absent))
            .right(barrier(key("b", 2))),
        Scenario::new("leader_not_writable", Some("a"), &["a holds the leader key", "in recovery"])
            .wrong(probe("a", standby(1)))
            .right(probe("a", writable())),
        Scenario::new("writable_without_leader_key", Some("b"), &["b is writable", "does not hold the leader key"])
            .wrong(probe("b", writable()))
            .right(probe("b", standby(1))),
        silent_primary,
        Scenario::new("several_writable", None, &["a and b take writes at once"])
            .both(probe("b", writable()))
            .wrong(probe("a", writable()))
            .right(probe("a", standby(1))),
        Scenario::new("address_shared", None, &["a and b", "a:5432", "connect_address"])
            .both(probe("b", writable()))
            .wrong(member_at("b", "a"))
            .right(member_at("b", "b")),
        Scenario::new("member_key_missing", Some("b"), &["b has no member key"])
            .wrong(member("b", false))
            .right(member("b", true)),
        Scenario::new("no_synchronous_standby", None, &["no standby is synchronous", "lose commits"])
            .wrong(sync(&[]))
            .right(sync(&["b"])),
        Scenario::new("paused", None, &["maintenance mode"])
            .wrong(config(|config| config.pause = true))
            .right(config(|_| {})),
        // 10 + 2 * 10 is exactly the ttl of 30: allowed.
        Scenario::new("timing_impossible", None, &["31 s", "ttl = 30 s"])
            .wrong(config(|config| config.loop_wait = Duration::from_secs(11)))
            .right(config(|_| {})),
    ]
}

pub(super) fn about_agents() -> Vec<Scenario> {
    let mut stale = Scenario::new("agent_stale", Some("b"), &["agent b has written nothing for 11 s"]).at(12_400);
    let other = || (12_000, router(&[("pg-a", Some("a"), true)]));
    stale.wrong = vec![(1400, peer(AliveLock::Alive)), other()];
    stale.right = vec![(2400, peer(AliveLock::Alive)), other()];
    vec![
        Scenario::new("agent_missing", Some("b"), &["no Warden agent answers for b"])
            .wrong(Event::ZooKeeper(ZooKeeperEvent::Agent { name: "b".into(), record: Reading::Absent }))
            .right(peer(AliveLock::Alive)),
        stale,
    ]
}
