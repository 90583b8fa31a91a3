use super::*;
use crate::assess::tests::{patroni, probe, server, status};
use crate::event::{
    AgentRecord, AliveLock, Archiver, Barrier, ClusterConfig, Event, FenceOutcome, FenceRecord, FenceReport,
    HaproxyAnswer, HaproxyServer, LeaderKey, MemberRecord, PatroniAnswer, PatroniStatus, PostgresAnswer, Role, Rule,
    Server, Started, State, SuperuserSlots, SyncState, Znode,
};
use crate::haproxy::file::RenderReport;
use crate::haproxy::{Pool, RouteOutcome, RouteReport, Wish};
use crate::rules::reconnect;
use crate::types::{SystemId, Timeline, UnixMillis};
use crate::view::tests::{
    after, cluster_config, key, leader as leader_znode, lost, ms, session, verified, verified_with,
};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec;
use proptest::prelude::*;

type Told = (u64, Event);

fn config(change: impl Fn(&mut ClusterConfig)) -> Event {
    let mut config = ClusterConfig {
        ttl: Duration::from_secs(30),
        loop_wait: Duration::from_secs(10),
        retry_timeout: Duration::from_secs(10),
        pause: false,
        failsafe_mode: false,
        synchronous_mode: true,
        standby_cluster: false,
    };
    change(&mut config);
    Event::Znode(Znode::Config(Reading::Present(config)))
}

fn sync(standbys: &[&str]) -> Event {
    let standbys = standbys.iter().map(|name| MemberName::from(*name)).collect();
    Event::Znode(Znode::Sync(Reading::Present(SyncState { leader: Some("a".into()), standbys, quorum: 0 })))
}

fn member(name: &str, there: bool) -> Event {
    if there { member_at(name, name) } else { Event::Znode(Znode::Member(name.into(), Reading::Absent)) }
}

fn member_at(name: &str, host: &str) -> Event {
    let record = MemberRecord {
        host: Some(host.to_string()),
        port: Some(5432),
        api: None,
        role: Role::Replica,
        state: State::Running,
        timeline: Some(Timeline(1)),
        lsn: None,
        version: None,
    };
    Event::Znode(Znode::Member(name.into(), Reading::Present(record)))
}

fn agent_says(name: &str, change: impl Fn(&mut AgentRecord)) -> Event {
    let mut record = AgentRecord {
        held: None,
        version: "0.1.0".to_string(),
        roles: vec!["node".to_string()],
        address: "x:8010".to_string(),
        member: None,
        leader: Some("a".into()),
        postgres: None,
        patroni: None,
        alive_lock: None,
        haproxy: None,
    };
    change(&mut record);
    Event::Agent { name: name.into(), record: Reading::Present(record) }
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
        pool: Pool::Writes,
        name: (*name).to_string(),
        address: "10.0.0.9:5432".to_string(),
        member: member.map(MemberName::from),
        status: if *up { "UP" } else { "DOWN" }.to_string(),
        up: *up,
        sessions: 1,
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

/// Two nodes, a leads, b is its synchronous standby; we stand beside a, another agent beside b, a third
/// beside HAProxy. Everybody has answered at 1000.
fn healthy() -> Vec<Told> {
    vec![
        (1, session(1)),
        (2, leader_znode(key("a", 1))),
        (2, config(|_| {})),
        (2, sync(&["b"])),
        (2, Event::Znode(Znode::Initialize(Reading::Present(SystemId(7))))),
        (2, member("a", true)),
        (2, member("b", true)),
        (2, peer(AliveLock::Alive)),
        (2, router(&[("pg-a", Some("a"), true), ("pg-b", Some("b"), false)])),
        (3, Event::TreeRead { latency: Duration::from_millis(1) }),
        (4, verified(key("a", 1), 1, 5)),
        (1000, Event::AliveLock(AliveLock::Alive)),
        (1000, answering("a", |_| {})),
        (1000, answering("b", |_| {})),
        (1000, probe("a", writable())),
        (1000, probe("b", standby(1))),
    ]
}

/// A way in which one thing can be wrong, next to the same thing as it should be.
struct Scenario {
    code: &'static str,
    /// Whom the warning is about.
    member: Option<&'static str>,
    /// What a person has to find in its words.
    words: &'static [&'static str],
    /// What happens to the healthy cluster.
    wrong: Vec<Told>,
    /// What happens instead when this is in order.
    right: Vec<Told>,
    /// When we look.
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

    /// A part of the picture in both cases.
    fn both(self, event: Event) -> Self {
        self.wrong(event.clone()).right(event)
    }

    /// A part of the picture in both cases, at this moment.
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

fn about_zookeeper() -> Vec<Scenario> {
    let mut late = session(1);
    if let Event::SessionStarted(session) = &mut late {
        session.negotiated = Duration::from_secs(40);
    }
    let failed = Event::TaskFailed { task: "haproxy", error: "no such socket".to_string() };
    let mut over = Scenario::new("agent_task_failed", None, &["haproxy", "no such socket"]).wrong(failed.clone());
    over.now = 61_000;
    over.right = vec![(900, failed)];
    let mut unverified = Scenario::new("leader_unverified", None, &["could not be verified", "no answer within 2 s"]);
    unverified.now = 4100;
    unverified.wrong = vec![(4000, Event::Barrier(Barrier::Unknown("no answer within 2 s".to_string())))];
    unverified.right = vec![(4000, verified(key("a", 1), 1, 4001))];
    vec![
        Scenario::new("zookeeper_lost", None, &["no ZooKeeper session for 0.1 s", "gone"])
            .both(lost())
            .right(session(2)),
        unverified,
        Scenario::new("znode_unreadable", None, &["znode sync", "not JSON"])
            .wrong(Event::Znode(Znode::Sync(Reading::Unreadable("it is not JSON".to_string()))))
            .right(sync(&["b"])),
        Scenario::new("tree_missing", None, &["nothing of cluster s", "chroot"])
            .wrong(barrier(Reading::Absent))
            .wrong(Event::Znode(Znode::Config(Reading::Absent)))
            .wrong(Event::Znode(Znode::Initialize(Reading::Absent)))
            .wrong(member("a", false))
            .wrong(member("b", false))
            .right(barrier(Reading::Absent)),
        Scenario::new("session_timeout_differs", None, &["40 s", "30 s", "tickTime"]).wrong(late).right(session(1)),
        over,
        Scenario::new("agent_name_taken", None, &["another agent runs as a", "10.0.0.5:8010"])
            .wrong(Event::NameTaken { by: "10.0.0.5:8010".to_string() })
            .right(agent_says("c", |_| {})),
    ]
}

fn about_leadership() -> Vec<Scenario> {
    let mut silent_primary = Scenario::new("may_still_write", Some("b"), &["b took writes", "a leads since"]);
    silent_primary.now = 9000;
    silent_primary.wrong = vec![(1400, probe("b", writable()))];
    silent_primary.right = vec![(1400, probe("b", writable())), (8900, probe("b", standby(1)))];
    vec![
        Scenario::new("no_leader", None, &["nobody holds the leader key"])
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

fn about_patroni() -> Vec<Scenario> {
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
            .wrong(Event::Liveness { member: "a".into(), turns: false })
            .right(Event::Liveness { member: "a".into(), turns: true }),
        Scenario::new("failsafe_active", Some("a"), &["a goes on without ZooKeeper", "failsafe"])
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

fn about_postgres() -> Vec<Scenario> {
    vec![
        // While Patroni answers, what it hears from its PostgreSQL is believed.
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
        // 3 for Patroni, 2 for us, 2 for others.
        Scenario::new("reserved_connections_low", Some("a"), &["a keeps 6", "superuser_reserved_connections to 7"])
            .wrong(probe("a", keeping(6, 2)))
            .right(probe("a", keeping(7, 2))),
        Scenario::new("system_identifier_differs", Some("b"), &["b has system identifier 8", "the cluster has 7"])
            .wrong(probe("b", identified(8)))
            .right(probe("b", identified(7))),
        Scenario::new("timeline_differs", Some("b"), &["b is on timeline 1", "the leader on 2"])
            .both(probe("a", PostgresAnswer::Writable(server(2, 100))))
            .wrong(probe("b", standby(1)))
            .right(probe("b", standby(2))),
        Scenario::new("haproxy_disobeys", None, &["writes/pg-a", "Permission denied"])
            .wrong(routed(RouteOutcome::Failed("Permission denied".to_string())))
            .right(routed(RouteOutcome::Done { took: Duration::from_millis(1) })),
        Scenario::new("haproxy_config_not_ours", None, &["members come or go", "edited by hand"])
            .wrong(Event::Layout(Reading::Unreadable("haproxy.cfg: it was edited by hand".to_string())))
            .right(Event::Layout(Reading::Absent)),
        Scenario::new("haproxy_config_failed", None, &["written anew", "no space left"])
            .wrong(Event::Rendered(RenderReport::Failed("no space left on device".to_string())))
            .right(Event::Rendered(RenderReport::Done)),
        Scenario::new("control_file_unreadable", Some("a"), &["a: no handover", "pg_control: Permission denied"])
            .both(Event::Znode(Znode::Sync(Reading::Absent)))
            .wrong(Event::ShutDown(Reading::Unreadable("pg_control: Permission denied".to_string())))
            .right(Event::ShutDown(Reading::Absent)),
        (0..reconnect::MOST)
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

/// What became of telling HAProxy's server of a something.
fn routed(outcome: RouteOutcome) -> Event {
    let (pool, server, to) = (Pool::Writes, "pg-a".to_string(), Wish::Up);
    Event::Routed(RouteReport { pool, server, member: "a".into(), to, outcome })
}

/// The fence record of b.
fn fence_record(confirmed: Option<i64>) -> Event {
    let record = FenceRecord {
        member: "b".into(),
        rule: Rule::Superseded,
        reason: "a holds the leader key".to_string(),
        by: "b".to_string(),
        ordered: UnixMillis(5),
        confirmed: confirmed.map(UnixMillis),
        facts: vec![],
        written: None,
    };
    Event::FenceRecord { member: "b".into(), record: Reading::Present(record) }
}

fn no_fence_record() -> Event {
    Event::FenceRecord { member: "b".into(), record: Reading::Absent }
}

/// What became of a fence of a.
fn fence(outcome: FenceOutcome) -> Event {
    Event::Fence(FenceReport { member: "a".into(), rule: Rule::Orphaned, outcome })
}

fn about_fences() -> Vec<Scenario> {
    let garbled = Reading::Unreadable("it is not a fence record".to_string());
    let confirmed = FenceOutcome::Confirmed { by: "fast shutdown", took: Duration::from_millis(20) };
    let mut paused = cluster_config();
    paused.pause = true;
    let superseded = |config| verified_with(key("b", 2), Reading::Present(config), 1, 1401);
    let lost = || Event::FenceSession(FenceSession::Lost("password authentication failed".to_string()));
    // For a moment while it comes up it is nobody's business; while the server is down there can be none.
    let mut cold = Scenario::new("fence_session_lost", Some("a"), &["fence a with", "slower", "password"]).at(4500);
    cold.wrong = vec![(1400, lost()), (4000, probe("a", writable()))];
    cold.right = vec![(4400, lost()), (4000, probe("a", writable()))];
    // What failed long ago and was not tried again is wanted no more.
    let failed = || fence(FenceOutcome::Failed("no route to host".to_string()));
    let mut tried = Scenario::new("fence_failed", Some("a"), &[]).at(17_000);
    tried.wrong = vec![(16_000, failed())];
    tried.right = vec![(1400, failed()), (16_800, probe("a", writable()))];
    let mut down = Scenario::new("fence_session_lost", Some("a"), &[]).at(4500);
    down.wrong = cold.wrong.clone();
    down.right = vec![(1400, lost()), (4000, probe("a", PostgresAnswer::Refused("it is shut down".to_string())))];
    // It was started again: what was in the way before says nothing of it, and the first attempt since begins the time.
    let refused = || probe("a", PostgresAnswer::Gone("nobody listens on its socket".to_string()));
    let nobody = || Event::FenceSession(FenceSession::Lost("nobody listens".to_string()));
    let mut again = Scenario::new("fence_session_lost", Some("a"), &["slower: password"]).at(9200);
    let back = |at| vec![(1500, refused()), (1600, nobody()), (2000, probe("a", writable())), (at, lost())];
    (again.wrong, again.right) = (back(5000), back(6500));
    let answers = |scenario: &mut Vec<Told>| scenario.push((9000, probe("a", writable())));
    answers(&mut again.wrong);
    answers(&mut again.right);
    let mut old = Scenario::new("fence_session_lost", Some("a"), &[]).at(9200);
    old.wrong = again.wrong.clone();
    old.right =
        vec![(1500, refused()), (1600, nobody()), (2000, probe("a", writable())), (9000, probe("a", writable()))];
    let checked = |outcome: Result<(), String>| Event::GateChecked { member: "b".into(), outcome };
    let refused = || checked(Err("no pg_hba.conf entry for host (28000)".to_string()));
    let beats = |heartbeat| probe("a", writable_with(heartbeat));
    let mut blind = Scenario::new("heartbeat_unknown", Some("a"), &["Patroni heartbeat", "lease"]).at(40_500);
    blind.wrong = vec![(40_000, beats(None))];
    blind.right = vec![(40_000, beats(Some(ms(39_000))))];
    vec![
        blind,
        Scenario::new("gate_cannot_ask", Some("b"), &["pg_hba.conf entry", "warden gate --check"])
            .wrong(refused())
            .right(checked(Ok(()))),
        Scenario::new("lease_uncovered", Some("a"), &["raise ttl", "loop_wait", "5.0 s"])
            .wrong(config(|config| {
                config.ttl = Duration::from_secs(20);
                config.retry_timeout = Duration::from_secs(5);
            }))
            .right(config(|_| {})),
        Scenario::new("fenced", Some("b"), &["b is being fenced, NOT confirmed yet (superseded)", "a holds"])
            .both(probe("b", writable()))
            .wrong(fence_record(None))
            .right(no_fence_record()),
        Scenario::new("fenced", Some("b"), &["b is fenced, for it is in recovery (superseded): a holds"])
            .wrong(fence_record(None))
            .right(no_fence_record()),
        Scenario::new("fenced", Some("b"), &["b is fenced (superseded): a holds the leader key"])
            .both(fence_record(None))
            .wrong(fence_record(Some(7)))
            .right(no_fence_record()),
        Scenario::new("znode_unreadable", None, &["znode fences/b", "not a fence record"])
            .wrong(Event::FenceRecord { member: "b".into(), record: garbled })
            .right(fence_record(Some(7))),
        Scenario::new("fence_failed", Some("a"), &["a may still take writes", "orphaned", "no route", "stop its"])
            .wrong(fence(FenceOutcome::Failed("no route to host".to_string())))
            .right(fence(confirmed)),
        tried,
        // The next attempt is under way: the last one's failure stands until it is known how this one ends.
        Scenario::new("fence_failed", Some("a"), &["no route", "stop its"])
            .wrong(failed())
            .right(fence(FenceOutcome::Waiting))
            .both(Event::Started(Started::Fence("a".into()))),
        // It failed, and the server has been seen in recovery since: it may not take writes any more.
        Scenario::new("fence_failed", Some("a"), &[])
            .wrong(fence(FenceOutcome::Failed("no route to host".to_string())))
            .right(fence(FenceOutcome::Failed("no route to host".to_string())))
            .right(probe("a", standby(1))),
        Scenario::new("fence_held", Some("a"), &["a would be fenced (superseded), but", "maintenance mode"])
            .wrong(superseded(paused))
            .right(barrier(key("a", 2))),
        Scenario::new("fence_held", Some("a"), &["its system identifier is not known"])
            .wrong(superseded(cluster_config()))
            .right(superseded(cluster_config()))
            .right(probe("a", PostgresAnswer::Writable(Server { system_id: Some(SystemId(7)), ..server(1, 100) }))),
        cold,
        down,
        again,
        old,
        Scenario::new("fence_session_lost", Some("a"), &[])
            .both(lost())
            .right(Event::FenceSession(FenceSession::Ready))
            .later(4000, probe("a", writable()))
            .at(4500),
    ]
}

fn about_agents_and_haproxy() -> Vec<Scenario> {
    let unusable = || router_says(HaproxyAnswer::Unusable("connection refused".to_string()));
    let mut stale = Scenario::new("agent_stale", Some("b"), &["agent b has written nothing for 11 s"]).at(12_400);
    let other = || (12_000, router(&[("pg-a", Some("a"), true)]));
    stale.wrong = vec![(1400, peer(AliveLock::Alive)), other()];
    stale.right = vec![(2400, peer(AliveLock::Alive)), other()];
    vec![
        Scenario::new("agent_missing", Some("b"), &["no Warden agent answers for b"])
            .wrong(Event::Agent { name: "b".into(), record: Reading::Absent })
            .right(peer(AliveLock::Alive)),
        stale,
        Scenario::new("haproxy_unusable", None, &["HAProxy beside r", "connection refused"])
            .wrong(unusable())
            .right(router(&[("pg-a", Some("a"), true)])),
        Scenario::new("haproxy_no_server", None, &["HAProxy beside r has no server for writes"])
            .wrong(router(&[("pg-a", Some("a"), false), ("pg-b", Some("b"), false)]))
            .right(router(&[("pg-a", Some("a"), true), ("pg-b", Some("b"), false)])),
        Scenario::new("haproxy_wrong_server", Some("b"), &["HAProxy beside r sends writes to b", "a is the leader"])
            .wrong(router(&[("pg-a", Some("a"), true), ("pg-b", Some("b"), true)]))
            .right(router(&[("pg-a", Some("a"), true), ("pg-b", Some("b"), false)])),
        Scenario::new("haproxy_unknown_address", None, &["HAProxy beside r", "pg-x at 10.0.0.9:5432", "no member's"])
            .wrong(router(&[("pg-a", Some("a"), true), ("pg-x", None, true)]))
            .right(router(&[("pg-a", Some("a"), true), ("pg-x", None, false)])),
    ]
}

fn scenarios() -> Vec<Scenario> {
    let ours = [about_zookeeper(), about_leadership(), about_fences(), about_agents_and_haproxy()];
    let theirs = [about_patroni(), about_postgres()];
    ours.into_iter().chain(theirs).flatten().collect()
}

fn known_codes() -> BTreeSet<&'static str> {
    CODES.iter().map(|(code, _)| *code).collect()
}

#[test]
fn a_healthy_cluster_of_two_has_no_warnings() {
    assert_eq!(warnings(&after(healthy()), ms(1500), None), []);
}

#[test]
fn what_is_wrong_is_said_of_whom_it_concerns_in_plain_words() {
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
fn what_is_in_order_is_not_warned_of() {
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
fn before_the_first_session_the_missing_zookeeper_is_all_there_is_to_say() {
    let raised = warnings(&after([]), ms(100), None);
    assert_eq!(raised.len(), 1, "{raised:?}");
    assert_eq!((raised[0].code, raised[0].message.as_str()), ("zookeeper_lost", "no ZooKeeper session yet"));
}

/// It may be somebody else's, so a server that takes writes would have to be fenced; that it is not is said.
#[test]
fn a_key_that_cannot_be_read_accuses_nobody_and_fences_nobody() {
    let torn = || Reading::Unreadable("torn".to_string());
    let events = healthy().into_iter().chain([(1400, barrier(torn())), (1400, leader_znode(torn()))]);
    let raised = warnings(&after(events), ms(1500), None);
    let codes: BTreeSet<&str> = raised.iter().map(|warning| warning.code).collect();
    assert_eq!(codes, BTreeSet::from(["fence_held", "leader_unverified", "znode_unreadable"]), "{raised:?}");
    let held = raised.iter().find(|warning| warning.code == "fence_held").unwrap();
    assert_eq!(held.message, "a would be fenced (superseded), but the leader key cannot be understood: torn");
}

#[test]
fn a_leader_without_a_configured_alive_lock_is_not_nagged_about_it() {
    let unknown = Event::AliveLock(AliveLock::Unknown("not configured".to_string()));
    let mut view = after(healthy().into_iter().chain([(1400, unknown)]));
    let codes = |view: &View| warnings(view, ms(1500), None).iter().map(|warning| warning.code).collect::<Vec<_>>();
    assert_eq!(codes(&view), ["alive_lock_unknown"]);
    view.identity.has_alive_lock = false;
    assert_eq!(codes(&view), [""; 0]);
}

/// Old news of the old primary and fresh news of the new one are no proof of two, in whatever order they come.
#[test]
fn a_handover_is_not_two_primaries() {
    let codes = |events: Vec<Told>| -> BTreeSet<&'static str> {
        warnings(&after(events), ms(4000), None).iter().map(|warning| warning.code).collect()
    };
    let start = [(1, session(1)), (2, verified(key("a", 1), 1, 3))];
    let seen = |events: &[Told]| codes(start.iter().chain(events).cloned().collect());
    let change = || leader_znode(key("b", 2));
    // `a` was last seen before the key went to `b`, and `b` is seen writable only afterwards.
    let told = seen(&[(2000, probe("a", writable())), (2500, change()), (3000, probe("b", writable()))]);
    assert!(!told.contains("several_writable") && !told.contains("writable_without_leader_key"), "{told:?}");
    // `a` is seen writable once more.
    let again = [(2500, change()), (3000, probe("b", writable())), (3500, probe("a", writable()))];
    let told = seen(&[[(2000, probe("a", writable()))].as_slice(), &again].concat());
    assert!(told.contains("several_writable") && told.contains("writable_without_leader_key"), "{told:?}");
    // It was in recovery in between: what it was before does not count.
    let told = seen(&[
        (2500, probe("b", writable())),
        (2700, probe("a", writable())),
        (3000, probe("b", standby(1))),
        (3500, probe("b", writable())),
    ]);
    assert!(!told.contains("several_writable"), "{told:?}");
}

/// Asked at an address that two members have, one server answers for both.
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
    /// Whatever goes wrong together: no panic, known codes, a sentence each, members that are in the view.
    #[test]
    fn any_mixture_of_faults_is_told_in_known_codes(
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
