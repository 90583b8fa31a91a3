//! About a member: its Patroni, its PostgreSQL.

use super::*;

pub(super) fn about_patroni() -> Vec<Scenario> {
    let unknown_lock = AliveLock::Unknown("it was replaced".to_string());
    vec![
        Scenario::new("patroni_silent", Some("b"), &["Patroni of b", "silent", "no answer within 1 s"])
            .wrong(silent_patroni("b"))
            .right(answering("b", |_| {})),
        Scenario::new("patroni_refused", Some("b"), &["Patroni of b refuses", "connection refused"])
            .wrong(patroni("b", PatroniAnswer::Refused("connection refused".to_string())))
            .right(answering("b", |_| {})),
        Scenario::new("patroni_unusable", Some("b"), &["Patroni of b", "scope other"])
            .wrong(patroni("b", PatroniAnswer::Unusable("it is of scope other".to_string())))
            .right(answering("b", |_| {})),
        Scenario::new("patroni_loop_late", Some("a"), &["Patroni of a answers", "HA loop does not turn"])
            .wrong(Event::Member("a".into(), MemberEvent::Liveness { turns: false }))
            .right(Event::Member("a".into(), MemberEvent::Liveness { turns: true })),
        Scenario::new("failsafe_active", Some("a"), &["a continues without ZooKeeper", "failsafe"])
            .wrong(answering("a", |status| status.failsafe_active = true))
            .right(answering("a", |_| {})),
        Scenario::new("alive_lock_free", Some("b"), &["Patroni of b", "does not hold the alive lock", "flock"])
            .wrong(peer(AliveLock::Gone))
            .right(peer(AliveLock::Alive)),
        Scenario::new("alive_lock_unknown", Some("b"), &["alive lock of b", "it was replaced"])
            .wrong(peer(unknown_lock.clone()))
            .right(peer(AliveLock::Gone)),
    ]
}

pub(super) fn about_postgres() -> Vec<Scenario> {
    vec![
        // While Patroni answers, its report on PostgreSQL counts.
        Scenario::new("postgres_silent", Some("b"), &["PostgreSQL of b is silent", "no answer within 1 s"])
            .both(silent_patroni("b"))
            .wrong(probe("b", PostgresAnswer::Silent("no answer within 1 s".to_string())))
            .right(probe("b", standby(1))),
        Scenario::new("postgres_refused", Some("b"), &["PostgreSQL of b refuses connections", "starting up"])
            .both(silent_patroni("b"))
            .wrong(probe("b", PostgresAnswer::Refused("the database system is starting up".to_string())))
            .right(probe("b", standby(1))),
        Scenario::new("postgres_unknown", Some("b"), &["Warden cannot ask PostgreSQL of b", "password"])
            .wrong(probe("b", PostgresAnswer::Unknown("password authentication failed".to_string())))
            .right(probe("b", standby(1))),
        // 3 for Patroni, 2 for the local agent, 2 for remote ones.
        Scenario::new("reserved_connections_low", Some("a"), &["a reserves 6", "superuser_reserved_connections to 7"])
            .wrong(probe("a", keeping(6, 2)))
            .right(probe("a", keeping(7, 2))),
        Scenario::new("system_identifier_differs", Some("b"), &["b has system identifier 8", "the cluster has 7"])
            .wrong(probe("b", identified(8)))
            .right(probe("b", identified(7))),
        Scenario::new("timeline_differs", Some("b"), &["b is on timeline 1", "the leader on 2"])
            .both(probe("a", PostgresAnswer::Writable(server(2, 100))))
            .wrong(probe("b", standby(1)))
            .right(probe("b", standby(2))),
        Scenario::new("control_file_unreadable", Some("a"), &["a: no handover", "pg_control: Permission denied"])
            .both(Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Sync(Reading::Absent))))
            .wrong(Event::Local(LocalEvent::ShutDown(Reading::Unreadable("pg_control: Permission denied".to_string()))))
            .right(Event::Local(LocalEvent::ShutDown(Reading::Absent))),
        (0..reconnect::RECONNECT_COUNT_MAX)
            .fold(
                Scenario::new("standby_not_streaming", Some("a"), &["b takes writes", "a receives no WAL", "5 times"]),
                |scenario, _| scenario.both(Event::Started(Started::Reconnect)),
            )
            .both(leader_znode(key("b", 2)))
            .both(probe("b", writable()))
            .wrong(probe("a", receiving(false)))
            .right(probe("a", receiving(true))),
        Scenario::new("archiver_failing", Some("a"), &["archive_command of a fails", "000000010000000000000009"])
            .wrong(probe("a", archiving(Some("000000010000000000000009"))))
            .right(probe("a", archiving(None))),
    ]
}
