//! Views for the tests of `tell/`, made of events as the loop makes them.

use std::time::Duration;
use warden_core::event::{
    AgentRecord, Barrier, ClusterConfig, Event, HaproxyAnswer, HaproxyServer, LeaderKey, PatroniAnswer, PatroniStatus,
    PostgresAnswer, Role, Rule, Server, ZooKeeperEvent,
};
use warden_core::fact::Reading;
use warden_core::fixtures;
pub(super) use warden_core::fixtures::{apply, leader_read as leader, ms, postgres, session_started as session};
use warden_core::types::{SessionId, Zxid};
use warden_core::view::{Identity, View};

pub(crate) fn identity(roles: &[&str]) -> Identity {
    Identity {
        scope: "my_cluster".to_owned(),
        member: roles.contains(&"node").then(|| "a".into()),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        has_alive_lock: false,
        ..fixtures::identity()
    }
}

pub(super) fn lost(reason: &'static str) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::SessionLost { reason, detail: "the connection is gone".to_owned() })
}

pub(super) fn key(holder: &str, zxid: i64) -> Reading<LeaderKey> {
    Reading::Present(fixtures::leader_key(holder, zxid))
}

/// A barrier read of session 1 that took 2 ms.
pub(super) fn verified(leader: Reading<LeaderKey>, at: u64) -> Event {
    let config = ClusterConfig { synchronous_mode: false, ..fixtures::cluster_config() };
    Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Verified {
        leader,
        config: Reading::Present(config),
        sync: Reading::Absent,
        zxid: Zxid(1),
        session: SessionId(1),
        finished: ms(at + 2),
    }))
}

pub(super) fn member(name: &str, there: bool) -> Event {
    fixtures::member_read(name, if there { Reading::Present(fixtures::member_record(name)) } else { Reading::Absent })
}

pub(super) fn agent(name: &str) -> Event {
    fixtures::agent_read(name, fixtures::agent_record(Some(name)))
}

pub(super) fn router(name: &str, answer: HaproxyAnswer) -> Event {
    let record = AgentRecord { haproxy: Some((answer, Duration::ZERO)), ..fixtures::agent_record(None) };
    fixtures::agent_read(name, record)
}

pub(super) fn servers(servers: &[(&str, bool, u64)]) -> HaproxyAnswer {
    let servers = servers
        .iter()
        .map(|(member, up, sessions)| HaproxyServer { sessions: *sessions, ..fixtures::haproxy_server(member, *up) });
    HaproxyAnswer::Servers(servers.collect())
}

pub(super) fn patroni(member: &str, role: Role) -> Event {
    let status = PatroniStatus { timeline: None, lsn: None, ..fixtures::patroni_status(role, None) };
    fixtures::patroni(member, PatroniAnswer::Answering(status))
}

/// The fence record of a member, confirmed.
pub(super) fn fence_record(member: &str, rule: Rule) -> Event {
    let record = Reading::Present(fixtures::fence_record(member, rule));
    Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member: member.into(), record })
}

pub(super) fn server(lsn: u64) -> Server {
    fixtures::server(3, lsn)
}

/// Two members, of which `a` leads. The agent is beside `a`, and every server has answered at 1000 ms.
pub(super) fn healthy() -> View {
    let mut view = View::new(identity(&["node"]));
    for (at, event) in [
        (1, session(1)),
        (2, leader(key("a", 1))),
        (2, member("a", true)),
        (2, member("b", true)),
        (2, agent("b")),
        (3, Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) })),
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
