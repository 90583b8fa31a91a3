//! Values of core's types for tests: of core itself, of its simulation, and of the crates that stand on it (feature
//! `testing`). Each type is spelled out here once; a test changes the fields that it is about, so that a new field is
//! one edit.

use crate::event::{
    AgentRecord, ClusterConfig, Event, FenceRecord, HaproxyServer, LeaderKey, MemberEvent, MemberRecord, Observed,
    PatroniAnswer, PatroniStatus, PostgresAnswer, Role, Rule, Server, Session, State, Znode, ZooKeeperEvent,
};
use crate::fact::{Reading, Source};
use crate::haproxy::{Pool, ServerId};
use crate::types::{Lsn, MemberName, Moment, SessionId, Timeline, UnixMillis, Zxid};
use crate::view::{Identity, View};
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;
use core::time::Duration;

/// A moment, in milliseconds since the agent started.
pub const fn ms(ms: u64) -> Moment {
    Moment::from_millis(ms)
}

/// The agent `a` beside the member `a`, with an alive lock.
pub fn identity() -> Identity {
    Identity {
        scope: "s".to_string(),
        agent: "a".into(),
        member: Some("a".into()),
        roles: vec!["node".to_string()],
        address: "warden-a:8010".to_string(),
        version: "0.1.0".to_string(),
        has_alive_lock: true,
        tick_time: Duration::from_secs(2),
        session_timeout: Duration::from_secs(30),
    }
}

/// A session with a timeout of 30 s.
pub fn session(id: i64) -> Session {
    Session {
        id: SessionId(id),
        server: "zoo:2181".to_string(),
        requested: Duration::from_secs(30),
        negotiated: Duration::from_secs(30),
    }
}

/// The key that `holder` created with the transaction `zxid`, in session 7.
pub fn leader_key(holder: &str, zxid: i64) -> LeaderKey {
    LeaderKey {
        holder: holder.into(),
        czxid: Zxid(zxid),
        mzxid: Zxid(zxid),
        owner: SessionId(7),
        created: UnixMillis(0),
    }
}

/// Patroni's configuration as our compose file has it.
pub const fn cluster_config() -> ClusterConfig {
    ClusterConfig {
        ttl: Duration::from_secs(30),
        loop_wait: Duration::from_secs(10),
        retry_timeout: Duration::from_secs(10),
        pause: false,
        failsafe_mode: false,
        synchronous_mode: true,
        standby_cluster: false,
        max_connections: 100,
    }
}

/// The znode of a running replica at `host`, port 5432, whose timeline is not known.
pub fn member_record(host: &str) -> MemberRecord {
    MemberRecord {
        host: Some(host.to_string()),
        port: Some(5432),
        api: None,
        role: Role::Replica,
        state: State::Running,
        timeline: None,
        lsn: None,
        version: None,
        noloadbalance: false,
    }
}

/// The znode of an agent beside `member`, which saw nothing yet.
pub fn agent_record(member: Option<&str>) -> AgentRecord {
    AgentRecord {
        held: None,
        version: "0.1.0".to_string(),
        roles: vec!["node".to_string()],
        address: "x:8010".to_string(),
        member: member.map(MemberName::from),
        leader: None,
        postgres: None,
        patroni: None,
        alive_lock: None,
        haproxy: None,
    }
}

/// The answer of a running Patroni.
pub const fn patroni_status(role: Role, writable: Option<bool>) -> PatroniStatus {
    PatroniStatus {
        state: State::Running,
        role,
        writable,
        timeline: Some(Timeline(1)),
        lsn: Some(Lsn(5)),
        system_id: None,
        pause: false,
        failsafe_active: false,
        cluster_unlocked: false,
        dcs_last_seen: None,
        name: None,
        nosync: false,
        version: None,
    }
}

/// A PostgreSQL that is known by timeline and position alone.
pub fn server(timeline: u32, lsn: u64) -> Server {
    Server { timeline: Some(Timeline(timeline)), lsn: Some(Lsn(lsn)), ..Server::default() }
}

/// A server of HAProxy in the proxy `writes`, called `pg-<member>`, with one session.
pub fn haproxy_server(member: &str, up: bool) -> HaproxyServer {
    HaproxyServer {
        pool: Pool::Writes,
        id: ServerId { proxy: "writes".to_string(), name: ["pg-", member].concat() },
        address: "10.0.0.1:5432".to_string(),
        member: Some(member.into()),
        status: if up { "UP" } else { "DOWN" }.to_string(),
        up,
        sessions: 1,
        ..HaproxyServer::default()
    }
}

/// The confirmed fence record of `member`, as agent `a` wrote it.
pub fn fence_record(member: &str, rule: Rule) -> FenceRecord {
    FenceRecord {
        member: member.into(),
        rule,
        reason: "b holds the leader key".to_string(),
        by: "a".to_string(),
        ordered: UnixMillis(1_000),
        confirmed: Some(UnixMillis(2_000)),
        facts: Vec::new(),
        written: Some((Zxid(9), UnixMillis(2_100))),
    }
}

/// The event that a session began.
pub fn session_started(id: i64) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::SessionStarted(session(id)))
}

/// The event that the leader znode was read.
pub fn leader_read(reading: Reading<LeaderKey>) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Leader(reading)))
}

/// The event that a member's znode was read.
pub fn member_read(name: &str, reading: Reading<MemberRecord>) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Member(name.into(), reading)))
}

/// The event that an agent's znode was read.
pub fn agent_read(name: &str, record: AgentRecord) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Agent { name: name.into(), record: Reading::Present(record) })
}

/// The event that a member's Patroni answered.
pub fn patroni(member: &str, answer: PatroniAnswer) -> Event {
    Event::Member(member.into(), MemberEvent::Patroni(answer))
}

/// The event that a member's PostgreSQL answered over TCP.
pub fn postgres(member: &str, answer: PostgresAnswer) -> Event {
    Event::Member(member.into(), MemberEvent::Postgres { via: Source::Tcp, answer })
}

/// Takes in an event that is as old as the millisecond in which it is taken in.
pub fn apply(view: &mut View, at: u64, event: Event) {
    crate::step::take_in(view, Observed { at: ms(at), event }, ms(at));
}
