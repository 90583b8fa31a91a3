//! The README documents every name that others may rely on, and none that does not exist.
//!
//! The names come from the code: from its tables, its answers, or its source where there is no other way to
//! list them. Each is compared with the first column of a table in the README.

// clippy.toml allows these in tests; the helpers here are outside of them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use warden::clock::Clock;
use warden::config::Config;
use warden::tell::metrics::Metrics;
use warden::tell::state;
use warden_core::event::{
    AgentRecord, AliveLock, Archiver, Barrier, Event, FenceOutcome, FenceRecord, FenceReport, FenceSession,
    HaproxyAnswer, HaproxyServer, LeaderKey, Observed, Outcome, PatroniAnswer, PatroniStatus, PostgresAnswer,
    ReleaseReport, Role, Rule, Server, Session, State, Znode,
};
use warden_core::fact::{Reading, Source};
use warden_core::haproxy::{HoldReport, Pool, RouteOutcome, RouteReport, Wish};
use warden_core::types::Mode;
use warden_core::types::{Lsn, MemberName, SessionId, SystemId, Timeline, UnixMillis, Zxid};
use warden_core::view::{Identity, View};
use warden_core::warn::CODES;

const README: &str = include_str!("../../README.md");

/// The rows of the table below `heading`: the code span in the first cell, and the other cells.
fn table(heading: &str) -> Vec<(String, Vec<String>)> {
    let mut lines = README.lines().skip_while(|line| *line != heading);
    assert!(lines.next().is_some(), "the README has no heading {heading:?}");
    let rows = lines.take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with('|')).skip(2);
    let table: Vec<_> = rows
        .map(|line| {
            let cells: Vec<String> =
                line.trim().trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
            assert!(cells.len() > 1 && cells.iter().all(|cell| !cell.is_empty()), "an empty cell in {line:?}");
            let name =
                cells[0].split('`').nth(1).unwrap_or_else(|| panic!("no code span in the first cell of {line:?}"));
            (name.to_owned(), cells[1..].to_vec())
        })
        .collect();
    assert!(!table.is_empty(), "there is no table below {heading:?}");
    table
}

/// The table below `heading` lists each of `names` once and nothing else.
fn assert_documented(heading: &str, names: &BTreeSet<String>) {
    assert!(!names.is_empty(), "the code has no names for {heading:?}: this test looks in the wrong place");
    let listed: Vec<String> = table(heading).into_iter().map(|(name, _)| name).collect();
    let documented: BTreeSet<String> = listed.iter().cloned().collect();
    let missing: Vec<_> = names.difference(&documented).collect();
    let invented: Vec<_> = documented.difference(names).collect();
    assert!(missing.is_empty(), "{heading}: the README does not have {missing:?}");
    assert!(invented.is_empty(), "{heading}: the README has {invented:?}, which the code does not");
    assert_eq!(listed.len(), documented.len(), "{heading}: something is listed twice in {listed:?}");
}

fn source(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The string literals of a source that are nothing but `prefix` and more of [a-zA-Z_].
fn literals(source: &str, prefix: &str) -> BTreeSet<String> {
    let quoted = source.split('"').filter(|text| text.len() > prefix.len() && text.starts_with(prefix));
    quoted.filter(|text| text.chars().all(|c| c.is_ascii_alphabetic() || c == '_')).map(str::to_owned).collect()
}

fn every_source(directory: &Path, all: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            every_source(&path, all);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

fn warden(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_warden")).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_warning_code_is_documented_in_the_order_of_the_code() {
    let documented: Vec<String> = table("### Warning codes").into_iter().map(|(code, _)| code).collect();
    let codes: Vec<&str> = CODES.iter().map(|(code, _)| *code).collect();
    assert_eq!(documented, codes);
}

#[test]
fn every_metric_is_documented_with_its_type() {
    assert_documented("### Metrics", &literals(&source("tell/metrics.rs"), "warden_"));

    let (clock, view) = sample();
    let metrics = Metrics::new().unwrap();
    let lost = Event::SessionLost { reason: "disconnected", detail: String::new() };
    let took = Duration::from_millis(20);
    let fenced = FenceOutcome::Confirmed { by: "fast shutdown", took };
    let acts = [
        Event::Fence(FenceReport { member: "b".into(), rule: Rule::Superseded, outcome: fenced }),
        Event::Release(ReleaseReport::Done { took }),
        Event::Nudged { outcome: Outcome::Done },
        Event::Reconnected { outcome: Outcome::Done },
        Event::Hold(HoldReport::Begun),
        Event::Hold(HoldReport::Ended { after: took }),
        Event::Routed(RouteReport {
            pool: Pool::Writes,
            server: "pg-a".to_owned(),
            member: "a".into(),
            to: Wish::Up,
            outcome: RouteOutcome::Done { took },
        }),
    ];
    for event in [Event::Tick, lost, Event::Barrier(Barrier::Unknown(String::new())), failed()].iter().chain(&acts) {
        metrics.count(event, clock.now());
    }
    metrics.count_leader_change("b");
    let text = String::from_utf8(metrics.render(&view, clock.now()).unwrap()).unwrap();
    let types: BTreeMap<&str, &str> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let rows = table("### Metrics");
    assert_eq!(types.len(), rows.len(), "a metric was not exercised here: {:?}", types.keys());
    for (name, cells) in rows {
        assert_eq!(types.get(name.as_str()), Some(&cells[0].as_str()), "the type of {name}");
    }
}

#[test]
fn every_subcommand_is_documented_with_all_its_options() {
    let (_, help) = warden(&["--help"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names: BTreeSet<String> =
        commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).map(str::to_owned).collect();
    assert_documented("### Subcommands", &names.iter().map(|name| format!("warden {name}")).collect());
    for name in &names {
        let (_, help) = warden(&[name, "--help"]);
        let options = help.split([' ', ',', '\n', '=', '[', ']']).filter(|word| word.starts_with("--"));
        for option in options {
            assert!(README.contains(&format!("`{option}")), "{option} of `warden {name}` is not in the README");
        }
    }
}

/// The keys that the YAML reader names when it meets one that it does not know.
fn keys_of(section: Option<&str>) -> Option<BTreeSet<String>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("warden.yml");
    let yaml = section.map_or_else(|| "no_such_key: 1\n".to_owned(), |name| format!("{name}: {{no_such_key: 1}}\n"));
    std::fs::write(&path, yaml).unwrap();
    let problem = Config::load(&path).unwrap_err().problem;
    let (_, expected) = problem.split_once("unknown field `no_such_key`, expected one of ")?;
    let expected = expected.split(" at line ").next()?;
    Some(expected.split(", ").map(str::to_owned).collect())
}

#[test]
fn every_configuration_key_is_documented() {
    let mut keys = BTreeSet::new();
    for key in keys_of(None).expect("an unknown key at the top is an error that lists the known ones") {
        match keys_of(Some(&key)) {
            Some(section) => keys.extend(section.into_iter().map(|inner| format!("{key}.{inner}"))),
            None => drop(keys.insert(key)),
        }
    }
    assert_documented("### Configuration keys", &keys);
}

#[test]
fn every_exit_code_is_documented() {
    let cli = source("cli/mod.rs");
    let constants = cli.lines().filter_map(|line| line.strip_prefix("pub const ")?.split_once(": u8 = "));
    let mut codes: BTreeSet<String> = constants.map(|(_, value)| value.trim_end_matches(';').to_owned()).collect();
    assert!(codes.contains(&warden::cli::NO_ANSWER.to_string()), "{codes:?}");
    let (wrong_command_line, _) = warden(&["--no-such-option"]);
    codes.insert(wrong_command_line.unwrap().to_string());
    assert_documented("### Exit codes", &codes);
}

#[test]
fn every_http_path_is_documented_with_its_method() {
    let http = source("tell/http.rs");
    let routes = http.split(".route(\"").skip(1).map(|rest| {
        let (path, rest) = rest.split_once("\", ").unwrap();
        format!("{} {path}", rest.split('(').next().unwrap().to_uppercase())
    });
    assert_documented("### HTTP API", &routes.collect());
}

#[test]
fn every_environment_variable_of_wardens_own_is_documented() {
    let mut all = String::new();
    every_source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    assert_documented("### Environment variables", &literals(&all, "WARDEN_"));
}

#[test]
fn every_field_of_the_state_is_documented() {
    let (clock, view) = sample();
    let state = state::state(&view, &clock, clock.now(), state::Observer::Agent(Mode::Enforce));
    let mut fields = BTreeSet::new();
    flatten("", &serde_json::to_value(&state).unwrap(), &mut fields);
    assert_documented("### State", &fields);
}

/// The paths of all leaves: `leader.name`, `members[].postgres.answer`, `agents[].roles`.
fn flatten(path: &str, value: &serde_json::Value, fields: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{dot}{key}"), value, fields);
            }
        }
        serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
            items.iter().for_each(|item| flatten(&format!("{path}[]"), item, fields));
        }
        _ => drop(fields.insert(path.to_owned())),
    }
}

fn failed() -> Event {
    Event::TaskFailed { task: "http", error: "for a test".to_owned() }
}

fn fence() -> FenceRecord {
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

/// The README shows a fence record, in its section on ZooKeeper.
#[test]
fn the_fence_record_that_is_shown_has_the_fields_of_a_fence_record() {
    let section = README.split("## In ZooKeeper").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let shown = section.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    let parsed: Vec<FenceRecord> = shown.filter_map(|json| warden::fence_record::parse(json.as_bytes()).ok()).collect();
    let [record] = parsed.as_slice() else { panic!("not one fence record, but {}", parsed.len()) };
    let fields = |record: &FenceRecord| {
        let value: serde_json::Value = serde_json::from_slice(&warden::fence_record::write(record)).unwrap();
        value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>()
    };
    assert!(record.confirmed.is_some() && !record.facts.is_empty(), "every field is shown with a value");
    assert_eq!(fields(record), fields(&fence()));
}

/// Every rule by which something is done has its row, and so has its switch.
#[test]
fn every_rule_is_documented() {
    let fences = Rule::ALL.into_iter().filter(|rule| *rule != Rule::Crashed).map(|rule| rule.as_str().to_owned());
    let others = ["release", "handover", "nudge", "reconnect", "gate", "routing"].map(str::to_owned);
    assert_documented("## What it does about it", &fences.chain(others).collect());
}

/// A view in which everything that can be told is there at least once.
fn sample() -> (Clock, View) {
    let clock = Clock::start();
    let mut view = View::new(Identity {
        scope: "s".to_owned(),
        agent: "a".into(),
        member: Some("a".into()),
        roles: vec!["node".to_owned(), "router".to_owned()],
        address: "a:8010".to_owned(),
        version: "0".to_owned(),
        tick_time: Duration::from_secs(2),
        has_alive_lock: true,
        session_timeout: Duration::from_secs(30),
    });
    let server = Server {
        timeline: Some(Timeline(1)),
        lsn: Some(Lsn(1)),
        system_id: Some(SystemId(1)),
        archiver: Some(Archiver::default()),
        receives: None,
        heartbeat: None,
        superuser_slots: None,
    };
    let session = Session {
        id: SessionId(1),
        server: "zoo:2181 (10.0.0.1)".to_owned(),
        requested: Duration::from_secs(30),
        negotiated: Duration::from_secs(30),
    };
    let key =
        LeaderKey { holder: "b".into(), czxid: Zxid(1), mzxid: Zxid(1), owner: SessionId(2), created: UnixMillis(0) };
    let status = PatroniStatus {
        state: State::Streaming,
        role: Role::Replica,
        writable: Some(false),
        timeline: Some(Timeline(1)),
        lsn: Some(Lsn(1)),
        system_id: Some(SystemId(1)),
        pause: false,
        failsafe_active: false,
        cluster_unlocked: false,
        dcs_last_seen: None,
        name: None,
        nosync: false,
        version: Some("4".to_owned()),
    };
    let haproxy = HaproxyServer {
        pool: Pool::Writes,
        name: "b".to_owned(),
        address: "10.0.0.2:5432".to_owned(),
        member: Some("b".into()),
        status: "UP".to_owned(),
        up: true,
        sessions: 1,
    };
    let record = AgentRecord {
        held: None,
        version: "0".to_owned(),
        roles: vec!["node".to_owned()],
        address: "b:8010".to_owned(),
        member: Some("b".into()),
        leader: Some("b".into()),
        postgres: None,
        patroni: None,
        alive_lock: None,
        haproxy: None,
    };
    let postgres =
        |member: &str, answer| Event::Postgres { member: MemberName::from(member), via: Source::Socket, answer };
    let events = [
        Event::SessionStarted(session),
        Event::Znode(Znode::Leader(Reading::Present(key))),
        Event::TreeRead { latency: Duration::from_millis(1) },
        Event::Patroni { member: "a".into(), answer: PatroniAnswer::Answering(status) },
        postgres("a", PostgresAnswer::InRecovery(server.clone())),
        postgres("b", PostgresAnswer::Writable(server)),
        Event::AliveLock(AliveLock::Alive),
        Event::Haproxy(HaproxyAnswer::Servers(vec![haproxy])),
        Event::Agent { name: "b".into(), record: Reading::Present(record) },
        Event::FenceRecord { member: "b".into(), record: Reading::Present(fence()) },
        Event::FenceSession(FenceSession::Ready),
        // So that there is a warning to be told.
        failed(),
    ];
    for event in events {
        warden_core::step::take_in(&mut view, Observed { at: clock.now(), event }, clock.now());
    }
    (clock, view)
}
