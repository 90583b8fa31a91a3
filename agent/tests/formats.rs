//! Golden files of Warden's own formats: an agent reads what every earlier version wrote.
//!
//! `agent/testdata/formats/<version>/` holds one file for each sample, and a README that says how each was made.
//! Today's parsers read all of them, and the tests compare the values. Today's writers have to write exactly the files
//! of the newest folder. `UPDATE_FORMATS=1` rewrites that folder, so that no format changes by accident.

// clippy.toml allows these in tests; the helpers here are outside of them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use warden::act::upgrade::{self, Store};
use warden::client::term_memory;
use warden::client::zookeeper::{Folder, Place, Trees, Znode};
use warden::tell::picture;
use warden::tell::state::{
    About, Agent, Answer, Cluster, Fence, Haproxy, Leader, Member, MemberAgent, Server, State, Warning, ZooKeeper,
};
use warden::znode::audit::Entry;
use warden::znode::{agent as record, fence as fence_record};
use warden_core::event::{
    AgentRecord, AliveLock, Archiver, FenceRecord, HaproxyAnswer, HaproxyServer, PatroniAnswer, PatroniStatus,
    PostgresAnswer, Role, Rule, Server as PostgresServer, Starting, State as PatroniState, TermMemory,
};
use warden_core::evidence::Standing;
use warden_core::haproxy::{Pool, ServerId};
use warden_core::rules::gate::{Key, Other, Picture};
use warden_core::types::{Lsn, MemberName, SystemId, Timeline, UnixMillis, Zxid};

/// Every version with a folder, the oldest first, and the files that it has.
const VERSIONS: [(&str, &[&str]); 2] = [
    ("0.1", &["agent-troubled.json", "agent.json", "audit.json", "fence-ordered.json", "fence.json", "state.json"]),
    (
        NEWEST,
        &[
            "agent-troubled.json",
            "agent.json",
            "audit.json",
            "fence-copied.json",
            "fence-ordered.json",
            "fence.json",
            "gate.json",
            "state.json",
            "term.json",
            "upgrade.json",
        ],
    ),
];

/// The folder of the version in work.
const NEWEST: &str = "0.2";

const SYSTEM_ID: u64 = 7_711_696_653_903_761_442;
const ORDERED: UnixMillis = UnixMillis(1_795_800_000_000);
const CONFIRMED: UnixMillis = UnixMillis(1_795_800_000_250);

/// The boot that `term.json` names: every machine has another.
const BOOT_ID: &str = "00000000-0000-4000-8000-000000000000";

fn folder(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/formats").join(version)
}

fn updates() -> bool {
    std::env::var_os("UPDATE_FORMATS").is_some()
}

/// A golden file, without its final line end.
fn golden(version: &str, file: &str) -> Vec<u8> {
    let path = folder(version).join(file);
    let data = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    data.strip_suffix(b"\n").unwrap_or_else(|| panic!("{}: the line end is missing", path.display())).to_vec()
}

/// Fails unless the file of the newest folder equals `data`. With `UPDATE_FORMATS` it writes the file.
fn assert_written(file: &str, data: &[u8]) {
    if updates() {
        return std::fs::write(folder(NEWEST).join(file), [data, b"\n"].concat()).unwrap();
    }
    let (expected, written) = (golden(NEWEST, file), String::from_utf8_lossy(data));
    assert!(
        expected == data,
        "the format of {NEWEST}/{file} has changed.\nthe file has {}\nwritten is  {written}\nOlder agents have to \
         read the new format. UPDATE_FORMATS=1 rewrites the file.",
        String::from_utf8_lossy(&expected)
    );
}

#[test]
fn every_version_has_every_file_and_the_newest_folder_is_of_this_version() {
    assert!(env!("CARGO_PKG_VERSION").starts_with(&format!("{NEWEST}.")), "this version needs a folder of its own");
    let versions: BTreeSet<String> = names(&folder(""));
    assert_eq!(versions, VERSIONS.iter().map(|(version, _)| (*version).to_owned()).collect(), "folders");
    for (version, files) in VERSIONS.iter().filter(|(version, _)| !updates() || *version != NEWEST) {
        let found = names(&folder(version)).into_iter().filter(|name| name.ends_with(".json"));
        assert_eq!(found.collect::<BTreeSet<_>>(), files.iter().map(|file| (*file).to_owned()).collect(), "{version}");
        assert!(folder(version).join("README.md").exists(), "{version}: the README has to say how each file was made");
    }
}

fn names(directory: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

// The agent's record.

fn server() -> PostgresServer {
    PostgresServer {
        timeline: Some(Timeline(3)),
        lsn: Some(Lsn(0x16_B374_D848)),
        system_id: Some(SystemId(SYSTEM_ID)),
        archiver: Some(Archiver { archived: 41, failed: 2, failing: Some("000000030000001600000071".to_owned()) }),
        receives: None,
        heartbeat: None,
        superuser_slots: None,
    }
}

/// HAProxy's two servers, in these proxies.
fn haproxy(writes: &str, reads: &str) -> Vec<HaproxyServer> {
    vec![
        HaproxyServer {
            pool: Pool::Writes,
            id: ServerId { proxy: writes.to_owned(), name: "postgresql0".to_owned() },
            address: "10.0.0.2:5432".to_owned(),
            member: Some("postgresql0".into()),
            status: "UP".to_owned(),
            up: true,
            sessions: 7,
            ..HaproxyServer::default()
        },
        HaproxyServer {
            pool: Pool::Reads,
            id: ServerId { proxy: reads.to_owned(), name: "other".to_owned() },
            address: "10.0.0.2:5432".to_owned(),
            status: "DOWN".to_owned(),
            ..HaproxyServer::default()
        },
    ]
}

/// Every field has a value.
fn agent() -> AgentRecord {
    let mut servers = haproxy("postgres_write", "postgres_read");
    servers[1].tracks = Some("postgres_write/postgresql0".to_owned());
    servers[1].agent_check = Some("down".to_owned());
    AgentRecord {
        version: "0.2.0".to_owned(),
        roles: vec!["node".to_owned(), "router".to_owned()],
        address: "warden-a:8010".to_owned(),
        member: Some("postgresql0".into()),
        leader: Some("postgresql0".into()),
        postgres: Some((PostgresAnswer::Writable(server()), Duration::from_millis(12))),
        patroni: Some((
            Box::new(PatroniAnswer::Answering(PatroniStatus {
                state: PatroniState::Running,
                role: Role::Primary,
                writable: Some(true),
                timeline: Some(Timeline(3)),
                lsn: Some(Lsn(0x16_B374_D848)),
                system_id: Some(SystemId(SYSTEM_ID)),
                pause: true,
                failsafe_active: true,
                cluster_unlocked: true,
                dcs_last_seen: None,
                name: None,
                nosync: true,
                version: Some("4.1.5".to_owned()),
            })),
            Duration::from_millis(5),
        )),
        alive_lock: Some(AliveLock::Alive),
        haproxy: Some((HaproxyAnswer::Servers(servers), Duration::from_millis(34))),
        held: Some(Zxid(0x1f)),
    }
}

/// The record of 0.1 has no Patroni, no `held_zxid` and no proxies.
fn agent_of_0_1() -> AgentRecord {
    AgentRecord {
        version: "0.1.0".to_owned(),
        patroni: None,
        held: None,
        haproxy: Some((HaproxyAnswer::Servers(haproxy("", "")), Duration::from_millis(34))),
        ..agent()
    }
}

fn troubled(agent: AgentRecord, postgres: PostgresAnswer) -> AgentRecord {
    AgentRecord {
        leader: None,
        postgres: Some((postgres, Duration::from_millis(1200))),
        patroni: agent
            .patroni
            .is_some()
            .then(|| (Box::new(PatroniAnswer::Silent("no answer within 1 s".to_owned())), Duration::from_millis(1000))),
        alive_lock: Some(AliveLock::Unknown("Permission denied".to_owned())),
        haproxy: Some((HaproxyAnswer::Unusable("connection refused".to_owned()), Duration::from_millis(400))),
        ..agent
    }
}

#[test]
fn agent_records_of_every_version_are_read() {
    let starts = Starting { why: "the database system is starting up".to_owned(), standby: Some(true) };
    let troubled_now = troubled(agent(), PostgresAnswer::Starting(starts));
    assert_written("agent.json", &record::write(&agent()));
    assert_written("agent-troubled.json", &record::write(&troubled_now));
    let silent = PostgresAnswer::Silent("no answer within 1 s".to_owned());
    for (version, file, expected) in [
        ("0.1", "agent.json", agent_of_0_1()),
        ("0.1", "agent-troubled.json", troubled(agent_of_0_1(), silent)),
        ("0.2", "agent.json", agent()),
        ("0.2", "agent-troubled.json", troubled_now),
    ] {
        assert_eq!(record::parse(&golden(version, file)), Ok(expected), "{version}/{file}");
    }
}

// Fence records.

fn fence() -> FenceRecord {
    FenceRecord {
        member: "postgresql0".into(),
        rule: Rule::Superseded,
        reason: "postgresql1 holds the leader key".to_owned(),
        by: "postgresql0".to_owned(),
        ordered: ORDERED,
        confirmed: Some(CONFIRMED),
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

#[test]
fn fence_records_of_every_version_are_read() {
    assert_written("fence.json", &fence_record::write(&fence()));
    assert_written("fence-ordered.json", &fence_record::write(&ordered()));
    for (version, _) in VERSIONS {
        for (file, expected) in [("fence.json", fence()), ("fence-ordered.json", ordered())] {
            let found = fence_record::parse_of(&"postgresql0".into(), &golden(version, file));
            assert_eq!(found, Ok(expected), "{version}/{file}");
        }
    }
}

// The audit trail.

#[test]
fn audit_entries_of_every_version_are_read() {
    let entry = Entry {
        at_ms: CONFIRMED.0,
        agent: "postgresql0".to_owned(),
        action: "fence".to_owned(),
        member: "postgresql0".to_owned(),
        rule: Some("superseded".to_owned()),
        reason: "postgresql1 holds the leader key".to_owned(),
        by: "postgresql0".to_owned(),
        outcome: "confirmed by fast shutdown after 0.250 s".to_owned(),
        facts: [("czxid".to_owned(), "0x1f".to_owned())].into(),
    };
    assert_written("audit.json", &entry.write());
    for (version, _) in VERSIONS {
        assert_eq!(Entry::parse(&golden(version, "audit.json")), Ok(entry.clone()), "{version}");
    }
}

// The state.

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn state_member() -> Member {
    Member {
        name: "postgresql0".to_owned(),
        role: "primary".to_owned(),
        state: "running".to_owned(),
        host: some("10.0.0.2"),
        port: Some(5432),
        timeline: Some(3),
        lsn: some("16/B374D848"),
        lag_bytes: Some(8),
        writable: Some(true),
        system_identifier: Some(SYSTEM_ID.to_string()),
        postgres: Answer {
            answer: "writable".to_owned(),
            detail: some("a detail"),
            source: some("tcp"),
            age_ms: Some(12),
            version: None,
        },
        patroni: Answer {
            answer: "answering".to_owned(),
            detail: None,
            source: some("agent"),
            age_ms: Some(5),
            version: some("4.1.5"),
        },
        alive_lock: some("alive"),
        has_znode: Some(true),
        agent: Some(MemberAgent { age_ms: 900, version: some("0.2.0") }),
    }
}

fn state_haproxy() -> Haproxy {
    Haproxy {
        agent: "postgresql1".to_owned(),
        age_ms: 34,
        detail: some("a detail"),
        servers: vec![Server {
            pool: "writes".to_owned(),
            proxy: "postgres_write".to_owned(),
            name: "postgresql0".to_owned(),
            address: "10.0.0.2:5432".to_owned(),
            member: some("postgresql0"),
            status: "UP".to_owned(),
            sessions: 7,
        }],
        writes_to: vec!["postgresql0".to_owned()],
        reads_from: vec!["postgresql1".to_owned()],
    }
}

/// Every field has a value.
fn state() -> State {
    State {
        scope: "my_cluster".to_owned(),
        source: "agent".to_owned(),
        agent: Some(About {
            name: "postgresql1".to_owned(),
            roles: vec!["node".to_owned(), "router".to_owned()],
            version: "0.2.0".to_owned(),
            fencing_mode: "enforce".to_owned(),
        }),
        at: "2026-11-27T17:20:00.300Z".to_owned(),
        leader: Leader {
            name: some("postgresql0"),
            verified: true,
            why_unverified: some("a reason"),
            since: some("2026-11-27T17:20:00.000Z"),
            czxid: Some(31),
            mzxid: Some(32),
            session: some("0x2"),
            age_ms: Some(2),
            seen_at: some("2026-11-27T17:20:00.001002Z"),
        },
        members: vec![state_member()],
        cluster: Cluster {
            system_identifier: Some(SYSTEM_ID.to_string()),
            ttl: Some(30),
            loop_wait: Some(10),
            retry_timeout: Some(10),
            pause: Some(false),
            synchronous_mode: Some(true),
            failsafe_mode: Some(false),
        },
        zookeeper: ZooKeeper {
            connected: true,
            server: some("zoo:2181 (10.0.0.9)"),
            session: some("0x1"),
            timeout_ms: Some(30_000),
            latency_ms: Some(1.5),
            last_contact_ms: Some(3),
            detail: some("a detail"),
        },
        agents: vec![Agent {
            name: "postgresql1".to_owned(),
            roles: vec!["node".to_owned()],
            address: "warden-b:8010".to_owned(),
            version: "0.2.0".to_owned(),
            age_ms: 900,
        }],
        haproxy: vec![state_haproxy()],
        fences: vec![Fence {
            member: "postgresql0".to_owned(),
            rule: "operator".to_owned(),
            reason: "disk is failing".to_owned(),
            by: "operator".to_owned(),
            ordered: some("2026-11-27T17:20:00.000Z"),
            confirmed: some("2026-11-27T17:20:00.250Z"),
            written: some("2026-11-27T17:20:00.260Z"),
            zxid: Some(33),
        }],
        warnings: vec![Warning {
            code: "fenced".to_owned(),
            member: some("postgresql0"),
            message: "a message".to_owned(),
        }],
    }
}

fn read_state(version: &str) -> State {
    serde_json::from_slice(&golden(version, "state.json")).unwrap_or_else(|error| panic!("{version}: {error}"))
}

#[test]
fn states_of_every_version_are_read() {
    assert_written("state.json", &serde_json::to_vec(&state()).unwrap());
    assert_eq!(read_state("0.2"), state());

    let state = read_state("0.1");
    assert_eq!((state.scope.as_str(), state.source.as_str()), ("my_cluster", "agent"));
    let about = state.agent.unwrap();
    assert_eq!((about.name.as_str(), about.version.as_str()), ("postgresql1", "0.1.0"));
    assert_eq!((about.roles.len(), about.fencing_mode.as_str()), (2, "enforce"));
    assert_eq!((state.leader.name, state.leader.verified), (some("postgresql0"), false));
    assert_eq!((state.leader.czxid, state.leader.mzxid, state.leader.session), (Some(31), Some(32), some("0x2")));
    assert_eq!(state.leader.since, some("2026-11-27T17:20:00.000Z"));
    let [primary, standby] = state.members.as_slice() else { panic!("{:?}", state.members) };
    assert_eq!((primary.name.as_str(), primary.role.as_str()), ("postgresql0", "primary"));
    assert_eq!((primary.host.clone(), primary.port, primary.writable), (some("10.0.0.2"), Some(5432), Some(true)));
    assert_eq!((primary.timeline, primary.lsn.clone()), (Some(3), some("16/B374D848")));
    assert_eq!((primary.postgres.answer.as_str(), primary.postgres.source.clone()), ("writable", some("tcp")));
    assert_eq!((primary.patroni.answer.as_str(), primary.alive_lock.clone()), ("unknown", some("alive")));
    assert_eq!((standby.state.as_str(), standby.writable, standby.lag_bytes), ("streaming", Some(false), Some(8)));
    assert_eq!((standby.patroni.answer.as_str(), standby.patroni.version.clone()), ("answering", some("4.1.5")));
    assert_eq!((state.cluster.ttl, state.cluster.synchronous_mode), (Some(30), Some(true)));
    assert_eq!((state.zookeeper.connected, state.zookeeper.latency_ms), (true, Some(1.0)));
    let agents: Vec<_> = state.agents.iter().map(|agent| (agent.name.as_str(), agent.address.as_str())).collect();
    assert_eq!(agents, [("postgresql0", "warden-a:8010"), ("postgresql1", "warden-b:8010")]);
    let haproxy = &state.haproxy[0];
    assert_eq!(
        (haproxy.agent.as_str(), haproxy.writes_to.as_slice()),
        ("postgresql1", &["postgresql0".to_owned()][..])
    );
    let servers: Vec<_> = haproxy.servers.iter().map(|server| (server.pool.as_str(), server.proxy.as_str())).collect();
    assert_eq!(servers, [("writes", ""), ("reads", "")], "0.1 does not say the proxy");
    let [fence] = state.fences.as_slice() else { panic!("{:?}", state.fences) };
    assert_eq!((fence.member.as_str(), fence.rule.as_str(), fence.zxid), ("postgresql0", "operator", Some(33)));
    assert_eq!((fence.confirmed.clone(), fence.written.clone()), (None, some("2026-11-27T17:20:00.260Z")));
    let codes: Vec<_> = state.warnings.iter().map(|warning| warning.code.as_str()).collect();
    assert_eq!(codes, ["leader_unverified", "fenced", "archiver_failing"]);
}

// The gate's picture. The hook's version may differ from the agent's.

#[test]
fn the_picture_for_the_gate_is_read() {
    let other = |name: &str, standing| Other {
        name: name.into(),
        place: Some(("10.0.0.2".to_owned(), 5432)),
        standing,
        last_holder: Some(true),
        recorded: true,
    };
    let picture = Picture {
        own: "postgresql1".into(),
        key: Key::Own(Duration::from_millis(1500)),
        paused: true,
        fenced_by_operator: some("disk is failing"),
        system_id: Some(SystemId(SYSTEM_ID)),
        others: vec![
            other("postgresql0", Standing::WasWritable),
            other("postgresql2", Standing::Standby("its own agent".to_owned())),
            other("postgresql3", Standing::Writable),
            Other { place: None, last_holder: None, recorded: false, ..other("postgresql4", Standing::Unknown) },
        ],
    };
    assert_written("gate.json", &serde_json::to_vec(&picture::write(&picture)).unwrap());
    assert_eq!(picture::read(serde_json::from_slice(&golden("0.2", "gate.json")).unwrap()), picture);
}

// The agent's memory on disk.

#[tokio::test]
async fn the_memory_of_a_term_is_read() {
    let (directory, file) = (tempfile::tempdir().unwrap(), "term.json");
    let memory = TermMemory { czxid: Zxid(0x1f), answered: true, lock_was_held: false };
    let here = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let move_to = |data: Vec<u8>, from: &str, to: &str| String::from_utf8(data).unwrap().replace(from, to).into_bytes();

    term_memory::write(directory.path(), &memory).await.unwrap();
    let written = std::fs::read(directory.path().join(file)).unwrap();
    assert_written(file, &move_to(written, here.trim(), BOOT_ID));

    let kept = directory.path().join(file);
    std::fs::write(&kept, golden("0.2", file)).unwrap();
    assert_eq!(term_memory::read(directory.path()).await, Ok(None), "of another boot");
    std::fs::write(&kept, move_to(golden("0.2", file), BOOT_ID, here.trim())).unwrap();
    assert_eq!(term_memory::read(directory.path()).await, Ok(Some(memory)));
}

// The upgrade from 0.1.

/// Two trees that never change. The store lists each write.
struct Recorded {
    trees: Trees,
    writes: Mutex<Vec<(Place, Option<Vec<u8>>)>>,
    reads: AtomicUsize,
    read_again: Notify,
}

impl Store for Recorded {
    async fn read(&self) -> Result<Trees, String> {
        if self.reads.fetch_add(1, Ordering::SeqCst) > 0 {
            self.read_again.notify_one();
            return std::future::pending().await;
        }
        Ok(self.trees.clone())
    }

    async fn read_audit(&self, names: Vec<String>) -> Result<Vec<(String, Vec<u8>)>, String> {
        Ok(names.into_iter().map(|name| (name, golden("0.1", "audit.json"))).collect())
    }

    async fn replace(&self, place: Place, data: Option<Vec<u8>>, _: Option<Znode>) -> Result<bool, String> {
        self.writes.lock().unwrap().push((place, data));
        Ok(true)
    }
}

/// The writes of one round of today's upgrade on these trees.
async fn written(trees: Trees) -> BTreeMap<String, Option<Vec<u8>>> {
    let store =
        Recorded { trees, writes: Mutex::default(), reads: AtomicUsize::default(), read_again: Notify::default() };
    tokio::select! {
        ended = upgrade::run(&store) => panic!("{ended:?}"),
        () = store.read_again.notified() => {}
    }
    store.writes.into_inner().unwrap().into_iter().map(|(place, data)| (format!("{place:?}"), data)).collect()
}

fn znode(mzxid: i64, data: Vec<u8>) -> Znode {
    Znode { data, czxid: mzxid, mzxid, version: 0, owner: 0, ctime_ms: 0, mtime_ms: CONFIRMED.0 }
}

/// The tree of 0.1 with an agent, a fence and an audit entry of 0.1, beside these fences of ours.
fn trees(ours: &[(&str, Znode)]) -> Trees {
    let records = |records: &[(&str, Znode)]| {
        records.iter().map(|(member, znode)| ((*member).to_owned(), znode.clone())).collect::<BTreeMap<_, _>>()
    };
    let theirs = [("postgresql0", znode(31, golden("0.1", "fence.json")))];
    Trees {
        old: Some("/warden/my_cluster".to_owned()),
        agents: vec![golden("0.1", "agent.json")],
        old_fences: Folder { czxid: Some(2), records: records(&theirs) },
        audit: vec!["e-0000000003".to_owned()],
        cluster: Some(znode(1, SYSTEM_ID.to_string().into_bytes())),
        fences: Folder { czxid: Some(3), records: records(ours) },
        ..Trees::default()
    }
}

#[tokio::test]
async fn a_fence_record_of_0_1_is_copied_and_the_copy_is_read() {
    let file = "fence-copied.json";
    let copied = written(trees(&[])).await;
    assert_written(file, copied[r#"Fence("postgresql0")"#].as_ref().unwrap());
    let expected = FenceRecord { written: Some((Zxid(31), CONFIRMED)), ..fence() };
    assert_eq!(fence_record::parse_of(&MemberName::from("postgresql0"), &golden("0.2", file)), Ok(expected));
}

#[tokio::test]
async fn the_notes_of_the_upgrade_are_read() {
    let file = "upgrade.json";
    let copied = written(trees(&[])).await[r#"Fence("postgresql0")"#].clone().unwrap();
    let same = trees(&[("postgresql0", znode(40, copied))]);
    let first = written(same.clone()).await;
    assert_eq!(first[r#"Audit("0.1-0000000003")"#], Some(golden("0.1", "audit.json")));
    assert_written(file, first["Upgrade"].as_ref().unwrap());

    // An agent that reads all of the notes has nothing to write.
    let noted = |ours: Trees| Trees { state: Some(znode(50, golden("0.2", file))), ..ours };
    assert_eq!(written(noted(same.clone())).await, BTreeMap::new());
    // The notes turn the absence of a record into a removal. Without them the agent would copy it again.
    let removed = written(noted(trees(&[]))).await;
    assert_eq!(removed, [(r#"OldFence("postgresql0")"#.to_owned(), None)].into());
}
