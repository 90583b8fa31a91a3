//! Writes samples of the formats of Warden 0.1 with its own code; README.md beside it says how.
#![allow(clippy::unwrap_used)]
use std::path::Path;
use std::time::Duration;
use warden::clock::Clock;
use warden::tell::state;
use warden_core::decide::Fencing;
use warden_core::event::*;
use warden_core::fact::{Reading, Source};
use warden_core::haproxy::Pool;
use warden_core::types::{Lsn, MemberName, SessionId, SystemId, Timeline, UnixMillis, Zxid};
use warden_core::view::{Identity, View};

const ID: u64 = 7_711_696_653_903_761_442;

fn server() -> Server {
    Server {
        timeline: Some(Timeline(3)),
        lsn: Some(Lsn(0x16_B374_D848)),
        system_id: Some(SystemId(ID)),
        archiver: Some(Archiver { archived: 41, failed: 2, failing: Some("000000030000001600000071".to_owned()) }),
        receives: None,
    }
}

fn haproxy() -> HaproxyAnswer {
    let server = |pool, name: &str, member: Option<&str>, status: &str, up, sessions| HaproxyServer {
        pool,
        name: name.to_owned(),
        address: "10.0.0.2:5432".to_owned(),
        member: member.map(MemberName::from),
        status: status.to_owned(),
        up,
        sessions,
    };
    HaproxyAnswer::Servers(vec![
        server(Pool::Writes, "postgresql0", Some("postgresql0"), "UP", true, 7),
        server(Pool::Reads, "other", None, "DOWN", false, 0),
    ])
}

fn agent() -> AgentRecord {
    AgentRecord {
        version: "0.1.0".to_owned(),
        roles: vec!["node".to_owned(), "router".to_owned()],
        address: "warden-a:8010".to_owned(),
        member: Some("postgresql0".into()),
        leader: Some("postgresql0".into()),
        postgres: Some((PostgresAnswer::Writable(server()), Duration::from_millis(12))),
        alive_lock: Some(AliveLock::Alive),
        haproxy: Some((haproxy(), Duration::from_millis(34))),
    }
}

fn troubled() -> AgentRecord {
    AgentRecord {
        leader: None,
        postgres: Some((PostgresAnswer::Silent("no answer within 1 s".to_owned()), Duration::from_millis(1200))),
        alive_lock: Some(AliveLock::Unknown("Permission denied".to_owned())),
        haproxy: Some((HaproxyAnswer::Unusable("connection refused".to_owned()), Duration::from_millis(400))),
        ..agent()
    }
}

fn fence() -> FenceRecord {
    FenceRecord {
        member: "postgresql0".into(),
        rule: Rule::Superseded,
        reason: "postgresql1 holds the leader key".to_owned(),
        by: "postgresql0".to_owned(),
        ordered: UnixMillis(1_795_800_000_000),
        confirmed: Some(UnixMillis(1_795_800_000_250)),
        facts: vec![("czxid".to_owned(), "0x1f".to_owned()), ("leader".to_owned(), "postgresql1".to_owned())],
        written: None,
    }
}

fn ordered() -> FenceRecord {
    FenceRecord {
        rule: Rule::Operator,
        reason: "disk is failing".to_owned(),
        by: "operator".to_owned(),
        confirmed: None,
        facts: Vec::new(),
        ..fence()
    }
}

fn entry() -> warden::audit::Entry {
    let mut entry = warden::audit::Entry::new("postgresql0", "fence", "postgresql0", "postgresql1 holds the leader key");
    entry.at_ms = 1_795_800_000_250;
    entry.rule = Some("superseded".to_owned());
    entry.outcome = "confirmed by fast shutdown after 0.250 s".to_owned();
    entry.facts = [("czxid".to_owned(), "0x1f".to_owned())].into();
    entry
}

fn state() -> state::State {
    let clock = Clock::start();
    let mut view = View::new(Identity {
        scope: "my_cluster".to_owned(),
        agent: "postgresql1".into(),
        member: Some("postgresql1".into()),
        roles: vec!["node".to_owned(), "router".to_owned()],
        address: "warden-b:8010".to_owned(),
        version: "0.1.0".to_owned(),
        has_alive_lock: true,
        session_timeout: Duration::from_secs(30),
    });
    let session = Session {
        id: SessionId(1),
        server: "zoo:2181 (10.0.0.9)".to_owned(),
        requested: Duration::from_secs(30),
        negotiated: Duration::from_secs(30),
    };
    let key = LeaderKey {
        holder: "postgresql0".into(),
        czxid: Zxid(31),
        mzxid: Zxid(32),
        owner: SessionId(2),
        created: UnixMillis(1_795_800_000_000),
    };
    let status = PatroniStatus {
        state: State::Streaming,
        role: Role::Replica,
        writable: Some(false),
        timeline: Some(Timeline(3)),
        lsn: Some(Lsn(0x16_B374_D840)),
        system_id: Some(SystemId(ID)),
        pause: false,
        failsafe_active: false,
        cluster_unlocked: false,
        loop_turns: Some(true),
        dcs_last_seen: None,
        name: None,
        nosync: false,
        version: Some("4.1.5".to_owned()),
    };
    let member = |host: &str, role, state| MemberRecord {
        host: Some(host.to_owned()),
        port: Some(5432),
        api: None,
        role,
        state,
        timeline: None,
        lsn: None,
        version: None,
    };
    let config = ClusterConfig {
        ttl: Duration::from_secs(30),
        loop_wait: Duration::from_secs(10),
        retry_timeout: Duration::from_secs(10),
        pause: false,
        failsafe_mode: false,
        synchronous_mode: true,
        standby_cluster: false,
    };
    let postgres =
        |member: &str, via, answer| Event::Postgres { member: MemberName::from(member), via, answer };
    let written = Some((Zxid(33), UnixMillis(1_795_800_000_260)));
    let events = [
        Event::SessionStarted(session),
        Event::Znode(Znode::Initialize(Reading::Present(SystemId(ID)))),
        Event::Znode(Znode::Config(Reading::Present(config))),
        Event::Znode(Znode::Member("postgresql0".into(), Reading::Present(member("10.0.0.2", Role::Primary, State::Running)))),
        Event::Znode(Znode::Member("postgresql1".into(), Reading::Present(member("10.0.0.3", Role::Replica, State::Streaming)))),
        Event::Znode(Znode::Leader(Reading::Present(key))),
        Event::TreeRead { latency: Duration::from_millis(1) },
        Event::Patroni { member: "postgresql1".into(), answer: PatroniAnswer::Answering(status) },
        postgres("postgresql0", Source::Tcp, PostgresAnswer::Writable(server())),
        postgres("postgresql1", Source::Socket, PostgresAnswer::InRecovery(Server { lsn: Some(Lsn(0x16_B374_D840)), archiver: None, ..server() })),
        Event::AliveLock(AliveLock::Alive),
        Event::Haproxy(haproxy()),
        Event::Agent { name: "postgresql0".into(), record: Reading::Present(agent()) },
        Event::FenceRecord {
            member: "postgresql0".into(),
            record: Reading::Present(FenceRecord { written, ..ordered() }),
        },
    ];
    for event in events {
        view.apply(Observed { at: clock.now(), event }, clock.now());
    }
    let mut state = state::state(&view, &clock, clock.now(), state::Observer::Agent(Fencing::Enforce));
    // The only values of this run.
    state.at = "2026-11-27T17:20:00.300Z".to_owned();
    state.leader.seen_at = Some("2026-11-27T17:20:00.001002Z".to_owned());
    state
}

#[test]
fn write() {
    let to = std::env::var("FORMATS_OUT").unwrap();
    let put = |name: &str, data: Vec<u8>| std::fs::write(Path::new(&to).join(name), [data, b"\n".to_vec()].concat()).unwrap();
    put("agent.json", warden::record::write(&agent()));
    put("agent-troubled.json", warden::record::write(&troubled()));
    put("fence.json", warden::fence_record::write(&fence()));
    put("fence-ordered.json", warden::fence_record::write(&ordered()));
    put("audit.json", entry().write());
    put("state.json", serde_json::to_vec(&state()).unwrap());
}
