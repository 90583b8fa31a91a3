//! Views for the tests of what is told: made of events, as the loop makes them.

use std::time::Duration;
use warden_core::event::{
    AgentRecord, Barrier, ClusterConfig, Event, FenceRecord, HaproxyAnswer, HaproxyServer, LeaderKey, MemberRecord,
    Observed, PatroniAnswer, PatroniStatus, PostgresAnswer, Role, Rule, Server, Session, State, Znode,
};
use warden_core::fact::{Reading, Source};
use warden_core::haproxy::Pool;
use warden_core::types::{Lsn, Moment, SessionId, Timeline, UnixMillis, Zxid};
use warden_core::view::{Identity, View};

pub(super) fn ms(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

pub(crate) fn identity(roles: &[&str]) -> Identity {
    Identity {
        scope: "my_cluster".to_owned(),
        agent: "a".into(),
        member: roles.contains(&"node").then(|| "a".into()),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        address: "warden-a:8010".to_owned(),
        version: "0.1.0".to_owned(),
        tick_time: Duration::from_secs(2),
        has_alive_lock: false,
        session_timeout: Duration::from_secs(30),
    }
}

pub(super) fn apply(view: &mut View, at: u64, event: Event) {
    warden_core::step::take_in(view, Observed { at: ms(at), event }, ms(at));
}

pub(super) fn session(id: i64) -> Event {
    let timeout = Duration::from_secs(30);
    let server = "zoo:2181".to_owned();
    Event::SessionStarted(Session { id: SessionId(id), server, requested: timeout, negotiated: timeout })
}

pub(super) fn lost(reason: &'static str) -> Event {
    Event::SessionLost { reason, detail: "the connection is gone".to_owned() }
}

pub(super) fn key(holder: &str, zxid: i64) -> Reading<LeaderKey> {
    Reading::Present(LeaderKey {
        holder: holder.into(),
        czxid: Zxid(zxid),
        mzxid: Zxid(zxid),
        owner: SessionId(7),
        created: UnixMillis(0),
    })
}

pub(super) fn leader(reading: Reading<LeaderKey>) -> Event {
    Event::Znode(Znode::Leader(reading))
}

/// A barrier read of session 1 that took 2 ms.
pub(super) fn verified(leader: Reading<LeaderKey>, at: u64) -> Event {
    let config = ClusterConfig {
        ttl: Duration::from_secs(30),
        loop_wait: Duration::from_secs(10),
        retry_timeout: Duration::from_secs(10),
        pause: false,
        failsafe_mode: false,
        synchronous_mode: false,
        standby_cluster: false,
    };
    let config = Reading::Present(config);
    Event::Barrier(Barrier::Verified {
        leader,
        config,
        sync: Reading::Absent,
        zxid: Zxid(1),
        session: SessionId(1),
        finished: ms(at + 2),
    })
}

pub(super) fn member(name: &str, there: bool) -> Event {
    let record = MemberRecord {
        host: Some(name.to_owned()),
        port: Some(5432),
        api: None,
        role: Role::Replica,
        state: State::Running,
        timeline: None,
        lsn: None,
        version: None,
    };
    Event::Znode(Znode::Member(name.into(), if there { Reading::Present(record) } else { Reading::Absent }))
}

pub(super) fn agent(name: &str) -> Event {
    let record = AgentRecord {
        held: None,
        version: "0.1.0".to_owned(),
        roles: vec!["node".to_owned()],
        address: "x:8010".to_owned(),
        member: Some(name.into()),
        leader: None,
        postgres: None,
        patroni: None,
        alive_lock: None,
        haproxy: None,
    };
    Event::Agent { name: name.into(), record: Reading::Present(record) }
}

pub(super) fn router(name: &str, answer: HaproxyAnswer) -> Event {
    let Event::Agent { name, record: Reading::Present(record) } = agent(name) else { unreachable!() };
    let record = AgentRecord { member: None, haproxy: Some((answer, Duration::ZERO)), ..record };
    Event::Agent { name, record: Reading::Present(record) }
}

pub(super) fn servers(servers: &[(&str, bool, u64)]) -> HaproxyAnswer {
    let servers = servers.iter().map(|(member, up, sessions)| HaproxyServer {
        pool: Pool::Writes,
        name: format!("pg-{member}"),
        address: "10.0.0.1:5432".to_owned(),
        member: Some((*member).into()),
        status: if *up { "UP" } else { "DOWN" }.to_owned(),
        up: *up,
        sessions: *sessions,
    });
    HaproxyAnswer::Servers(servers.collect())
}

pub(super) fn patroni(member: &str, role: Role) -> Event {
    let status = PatroniStatus {
        state: State::Running,
        role,
        writable: None,
        timeline: None,
        lsn: None,
        system_id: None,
        pause: false,
        failsafe_active: false,
        cluster_unlocked: false,
        dcs_last_seen: None,
        name: None,
        nosync: false,
        version: None,
    };
    Event::Patroni { member: member.into(), answer: PatroniAnswer::Answering(status) }
}

/// The fence record of a member, confirmed.
pub(super) fn fence_record(member: &str, rule: Rule) -> Event {
    let record = FenceRecord {
        member: member.into(),
        rule,
        reason: "b holds the leader key".to_owned(),
        by: "a".to_owned(),
        ordered: UnixMillis(1_000),
        confirmed: Some(UnixMillis(2_000)),
        facts: vec![],
        written: Some((Zxid(9), UnixMillis(2_100))),
    };
    Event::FenceRecord { member: member.into(), record: Reading::Present(record) }
}

pub(super) fn postgres(member: &str, answer: PostgresAnswer) -> Event {
    Event::Postgres { member: member.into(), via: Source::Tcp, answer }
}

pub(super) fn server(lsn: u64) -> Server {
    Server { timeline: Some(Timeline(3)), lsn: Some(Lsn(lsn)), ..Server::default() }
}

/// Two nodes, a leads; we stand beside a. Everybody has answered at 1000.
pub(super) fn healthy() -> View {
    let mut view = View::new(identity(&["node"]));
    for (at, event) in [
        (1, session(1)),
        (2, leader(key("a", 1))),
        (2, member("a", true)),
        (2, member("b", true)),
        (2, agent("b")),
        (3, Event::TreeRead { latency: Duration::from_millis(1) }),
        (1000, verified(key("a", 1), 1000)),
        (1000, patroni("a", Role::Primary)),
        (1000, patroni("b", Role::SyncStandby)),
        (1000, postgres("a", PostgresAnswer::Writable(server(500)))),
        (1000, postgres("b", PostgresAnswer::InRecovery(server(400)))),
    ] {
        apply(&mut view, at, event);
    }
    view
}
