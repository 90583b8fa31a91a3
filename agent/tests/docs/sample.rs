//! A view in which every fact that the agent can tell is present at least once.

use std::time::Duration;
use warden::clock::Clock;
use warden_core::event::{
    AgentRecord, AliveLock, Archiver, Event, FenceRecord, FenceSession, HaproxyAnswer, HaproxyEvent, LocalEvent,
    MemberEvent, Observed, PatroniAnswer, PatroniStatus, PostgresAnswer, Role, Rule, Server, State, ZooKeeperEvent,
};
use warden_core::fact::{Reading, Source};
use warden_core::fixtures;
use warden_core::types::{Lsn, MemberName, SystemId, Timeline, UnixMillis};
use warden_core::view::{Identity, View};

/// An event that raises a warning.
pub fn failed() -> Event {
    Event::TaskFailed { task: "http", error: "for a test".to_owned() }
}

/// A fence record with a value in every field.
pub fn fence() -> FenceRecord {
    FenceRecord {
        member: "b".into(),
        rule: Rule::Superseded,
        reason: "a holds the leader key".to_owned(),
        by: "b".to_owned(),
        ordered: UnixMillis(0),
        confirmed: Some(UnixMillis(1)),
        facts: vec![("leader".to_owned(), "a".to_owned())],
        written: None,
    }
}

/// The view, and the clock that dates its facts.
pub fn sample() -> (Clock, View) {
    let clock = Clock::start();
    let mut view = View::new(identity());
    let key = fixtures::leader_key("b", 1);
    let agent = AgentRecord { leader: Some("b".into()), ..fixtures::agent_record(Some("b")) };
    let postgres = |member: &str, answer| {
        Event::Member(MemberName::from(member), MemberEvent::Postgres { via: Source::Socket, answer })
    };
    let events = [
        fixtures::session_started(1),
        fixtures::leader_read(Reading::Present(key)),
        Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) }),
        Event::Member("a".into(), MemberEvent::Patroni(PatroniAnswer::Answering(patroni()))),
        postgres("a", PostgresAnswer::InRecovery(server())),
        postgres("b", PostgresAnswer::Writable(server())),
        Event::Local(LocalEvent::AliveLock(AliveLock::Alive)),
        Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(vec![fixtures::haproxy_server("b", true)]))),
        fixtures::agent_read("b", agent),
        Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member: "b".into(), record: Reading::Present(fence()) }),
        Event::Local(LocalEvent::FenceSession(FenceSession::Ready)),
        // Raises a warning.
        failed(),
    ];
    for event in events {
        warden_core::step::take_in(&mut view, Observed { at: clock.now(), event }, clock.now());
    }
    (clock, view)
}

fn identity() -> Identity {
    Identity { roles: vec!["node".to_owned(), "router".to_owned()], ..fixtures::identity() }
}

fn patroni() -> PatroniStatus {
    PatroniStatus {
        state: State::Streaming,
        system_id: Some(SystemId(1)),
        version: Some("4".to_owned()),
        ..fixtures::patroni_status(Role::Replica, Some(false))
    }
}

fn server() -> Server {
    Server {
        timeline: Some(Timeline(1)),
        lsn: Some(Lsn(1)),
        system_id: Some(SystemId(1)),
        archiver: Some(Archiver::default()),
        receives: None,
        heartbeat: None,
        superuser_slots: None,
    }
}
