use super::*;
use crate::tell::state::{
    About, Agent, Answer, Cluster, Fence, Haproxy, Leader, Member, MemberAgent, Server, State, Warning, ZooKeeper,
};
use proptest::prelude::*;

fn answer(answer: &str) -> Answer {
    Answer { answer: answer.to_owned(), detail: None, source: None, age_ms: Some(3), version: None }
}

fn member(name: &str, leads: bool) -> Member {
    Member {
        name: name.to_owned(),
        role: if leads { "primary" } else { "sync_standby" }.to_owned(),
        state: if leads { "running" } else { "streaming" }.to_owned(),
        host: Some(name.to_owned()),
        port: Some(5432),
        timeline: Some(3),
        lsn: Some("0/5000148".to_owned()),
        lag_bytes: (!leads).then_some(0),
        writable: Some(leads),
        system_identifier: None,
        postgres: answer(if leads { "writable" } else { "in_recovery" }),
        patroni: answer("answering"),
        alive_lock: Some("alive".to_owned()),
        has_znode: Some(true),
        agent: Some(MemberAgent { age_ms: if leads { 0 } else { 1234 }, version: None }),
    }
}

fn agent(name: &str, age_ms: u64) -> Agent {
    let (address, version) = (format!("warden-{name}:8010"), "0.1.0".to_owned());
    Agent { name: name.to_owned(), roles: vec![], address, version, age_ms }
}

fn server(name: &str, status: &str, sessions: u64) -> Server {
    let address = "10.0.0.1:5432".to_owned();
    let (pool, member) = ("writes".to_owned(), Some(name.to_owned()));
    Server {
        pool,
        proxy: "postgres".to_owned(),
        name: name.to_owned(),
        address,
        member,
        status: status.to_owned(),
        sessions,
    }
}

fn healthy() -> State {
    State {
        scope: "my_cluster".to_owned(),
        source: "agent".to_owned(),
        agent: Some(About {
            name: "pg-master".to_owned(),
            roles: vec![],
            version: "0.1.0".to_owned(),
            fencing_mode: "enforce".to_owned(),
        }),
        at: "2025-11-24T11:11:42.123Z".to_owned(),
        leader: Leader {
            name: Some("pg-master".to_owned()),
            verified: true,
            why_unverified: None,
            since: Some("2025-11-24T10:11:42.000Z".to_owned()),
            czxid: Some(0x1_0000_0012),
            mzxid: Some(0x1_0000_0012),
            session: Some("0x100000123450001".to_owned()),
            age_ms: Some(2),
            seen_at: None,
        },
        members: vec![member("pg-master", true), member("pg-slave", false)],
        fences: Vec::new(),
        cluster: Cluster {
            system_identifier: None,
            ttl: Some(30),
            loop_wait: Some(10),
            retry_timeout: Some(10),
            pause: Some(false),
            synchronous_mode: Some(true),
            failsafe_mode: Some(false),
        },
        zookeeper: ZooKeeper {
            connected: true,
            server: Some("zoo:2181 (172.18.0.2)".to_owned()),
            session: Some("0x100000123450001".to_owned()),
            timeout_ms: Some(30_000),
            latency_ms: Some(0.612),
            last_contact_ms: Some(400),
            detail: None,
        },
        agents: vec![agent("haproxy", 900), agent("pg-master", 0), agent("pg-slave", 1234)],
        haproxy: vec![Haproxy {
            agent: "haproxy".to_owned(),
            age_ms: 900,
            detail: None,
            servers: vec![
                server("pg-master", "UP", 12),
                server("pg-slave", "DOWN", 0),
                Server { pool: "reads".to_owned(), ..server("pg-master", "DOWN", 0) },
                Server { pool: "reads".to_owned(), ..server("pg-slave", "UP", 7) },
            ],
            writes_to: vec!["pg-master".to_owned()],
            reads_from: vec!["pg-slave".to_owned()],
        }],
        warnings: vec![],
    }
}

fn warning(message: &str) -> Warning {
    Warning { code: "postgres_silent".to_owned(), member: None, message: message.to_owned() }
}

fn fence(member: &str, confirmed: bool) -> Fence {
    let now = "2025-11-24T11:10:07.250Z".to_owned();
    Fence {
        member: member.to_owned(),
        rule: "superseded".to_owned(),
        reason: "pg-slave holds the leader key (czxid 0x1000000c8), and pg-master takes writes".to_owned(),
        by: member.to_owned(),
        ordered: Some(now.clone()),
        confirmed: confirmed.then_some(now),
        written: None,
        zxid: None,
    }
}

/// After a failover. An agent has stopped the old primary, whose Patroni is still frozen.
fn fenced() -> State {
    let mut state = healthy();
    state.leader.name = Some("pg-slave".to_owned());
    state.members = vec![
        Member { writable: Some(false), postgres: answer("refused"), ..member("pg-master", false) },
        member("pg-slave", true),
    ];
    state.fences = vec![fence("pg-master", true)];
    state
}

fn unverified() -> State {
    let mut state = healthy();
    state.leader.verified = false;
    state.leader.why_unverified = Some("no linearizable answer from ZooKeeper within 1000 ms".to_owned());
    state
}

fn unknown() -> State {
    let mut state = unverified();
    state.leader = Leader { name: None, since: None, czxid: None, mzxid: None, session: None, ..state.leader };
    state.zookeeper.connected = false;
    state.zookeeper.detail = Some(
        "zoo1:2181: failed to lookup address information: Name or service not known; zoo2:2181: connection refused"
            .to_owned(),
    );
    state
}

fn no_leader() -> State {
    let mut state = healthy();
    state.leader = Leader { name: None, since: None, czxid: None, mzxid: None, session: None, ..state.leader };
    state.members[0] = Member { role: "demoted".to_owned(), writable: Some(false), ..member("pg-master", false) };
    state
}

/// Every text is as long as it can be.
fn crowded() -> State {
    let mut state = unverified();
    let long = |index: usize| format!("postgresql-cluster-of-the-accounting-department-{index}");
    state.scope = "s".repeat(100);
    state.members = (0..9)
        .map(|index| Member {
            role: "standby_leader".to_owned(),
            state: "starting after custom bootstrap".to_owned(),
            timeline: Some(u32::MAX),
            lag_bytes: Some(u64::MAX),
            writable: None,
            agent: Some(MemberAgent { age_ms: 7_199_000, version: None }),
            ..member(&long(index), false)
        })
        .collect();
    state.leader.name = Some(long(0));
    state.agents = (0..9).map(|index| agent(&long(index), 7_199_000)).collect();
    let servers = (0..9).map(|index| server(&long(index), "UP", u64::MAX)).collect();
    state.haproxy = vec![Haproxy {
        agent: long(1),
        age_ms: 1,
        detail: None,
        servers,
        writes_to: (0..9).map(long).collect(),
        reads_from: Vec::new(),
    }];
    state.fences = vec![
        Fence { reason: "a reason of many words ".repeat(20), by: long(1), ..fence(&long(0), false) },
        Fence { reason: "x".repeat(500), ordered: None, ..fence(&long(2), true) },
    ];
    state.warnings = vec![warning(&"a message of many words ".repeat(20)), warning(&"x".repeat(500)), warning("")];
    state
}

fn haproxy_away() -> State {
    let mut state = healthy();
    let why = "connecting to /var/run/haproxy/admin.sock: No such file or directory (os error 2)";
    state.haproxy[0] = Haproxy { detail: Some(why.to_owned()), servers: vec![], ..state.haproxy[0].clone() };
    state
}

fn hostile() -> State {
    const EVIL: &str = "a\x1b[2J\r\n\tb\u{9b}31m\u{202e}c\u{200b}\u{7f}";
    let mut state = unverified();
    state.scope = EVIL.to_owned();
    state.at = EVIL.to_owned();
    state.leader.name = Some(EVIL.to_owned());
    state.leader.why_unverified = Some(EVIL.to_owned());
    state.leader.since = Some(EVIL.to_owned());
    let evil = || EVIL.to_owned();
    let answer = || Answer { answer: EVIL.to_owned(), ..answer("") };
    let member = member(EVIL, true);
    state.members = vec![Member { role: evil(), state: evil(), postgres: answer(), patroni: answer(), ..member }];
    state.agents = vec![agent(EVIL, 1)];
    state.haproxy[0].servers = vec![server(EVIL, EVIL, 1)];
    state.haproxy[0].writes_to = vec![evil()];
    state.zookeeper.server = Some(evil());
    let (ordered, rule) = (Some(evil()), evil());
    state.fences = vec![Fence { member: evil(), rule, reason: evil(), by: evil(), ordered, ..fence("x", false) }];
    state.warnings = vec![warning(EVIL)];
    state
}

fn pictures() -> Vec<(&'static str, State)> {
    vec![
        ("healthy", healthy()),
        ("leader not verified", unverified()),
        ("leader unknown", unknown()),
        ("no leader", no_leader()),
        ("crowded", crowded()),
        ("HAProxy away", haproxy_away()),
        ("fenced", fenced()),
        ("hostile", hostile()),
    ]
}

/// A line as a terminal shows it, without our own escape codes.
fn shown(line: &str) -> String {
    [RED, GREEN, YELLOW, BOLD, RESET].iter().fold(line.to_owned(), |line, code| line.replace(code, ""))
}

#[test]
fn a_healthy_cluster_of_two_looks_like_this() {
    let expected = "\
Cluster    my_cluster, 2025-11-24 11:11:42 UTC, seen by agent pg-master
Leader     pg-master, verified, since 2025-11-24 10:11:42 UTC (60 min), czxid
           0x100000012

  Member    Role         State     TL Lag Writable Patroni   Agent
* pg-master primary      running    3   - yes      answering 0.0 s
  pg-slave  sync_standby streaming  3 0 B no       answering 1.2 s

ZooKeeper  zoo:2181 (172.18.0.2), session 0x100000123450001, timeout 30 s, read
           0.6 ms
Agents     haproxy 0.9 s, pg-master 0.0 s, pg-slave 1.2 s
HAProxy    haproxy: writes go to pg-master (pg-master UP, 12 sessions; pg-slave
           DOWN, 0 sessions), reads to pg-slave (pg-master DOWN, 0 sessions;
           pg-slave UP, 7 sessions)
Warnings   none
";
    assert_eq!(render(&healthy(), false), expected);
}

#[test]
fn a_warning_is_shown_with_its_code() {
    let mut state = healthy();
    state.warnings = vec![warning("PostgreSQL of pg-slave does not answer"), warning(&["x"; 60].join(" "))];
    let expected = format!(
        "Warnings\n  ! PostgreSQL of pg-slave does not answer [postgres_silent]\n  ! {}\n    {} [postgres_silent]\n",
        ["x"; 38].join(" "),
        ["x"; 22].join(" "),
    );
    let text = render(&state, false);
    assert!(text.ends_with(&expected), "{text}");
}

#[test]
fn a_fence_is_shown_with_its_rule_its_reason_and_its_confirmation() {
    let told = |state: &State| {
        let text = render(state, false);
        let lines =
            text.lines().skip_while(|line| !line.starts_with("Fence")).take_while(|line| *line != "Warnings   none");
        lines.collect::<Vec<_>>().join("\n")
    };
    let expected = "\
Fence      pg-master: superseded, confirmed, ordered 11:10:07 by pg-master:
           pg-slave holds the leader key (czxid 0x1000000c8), and pg-master
           takes writes";
    assert_eq!(told(&fenced()), expected);
    let mut state = fenced();
    state.fences = vec![Fence {
        member: "pg-slave".to_owned(),
        rule: "peer".to_owned(),
        reason: "why".to_owned(),
        ..fence("pg-master", false)
    }];
    assert_eq!(told(&state), "Fence      pg-slave: peer, NOT confirmed, ordered 11:10:07 by pg-master: why");
    assert!(render(&state, true).contains(&format!("{RED}Fence ")), "a fence that is not confirmed is red");
    // The operator fences a standby. The agents have nothing to do, which is no emergency.
    state.members[1].postgres.answer = "in_recovery".to_owned();
    assert!(told(&state).starts_with("Fence      pg-slave: peer, confirmed: in recovery, ordered"), "{}", told(&state));
    assert!(render(&state, true).contains(&format!("{YELLOW}Fence ")), "{}", render(&state, true));
    state.members[1].postgres.answer = "writable".to_owned();
    state.fences[0].ordered = Some("2025-11-23T11:10:07.250Z".to_owned());
    assert!(told(&state).contains("ordered 2025-11-23 11:10:07 by"), "of another day: {}", told(&state));
    state.fences[0].ordered = None;
    assert!(told(&state).contains("ordered by pg-master: why"), "{}", told(&state));
    assert_eq!(told(&healthy()), "", "without a fence there is no line");
}

#[test]
fn no_line_is_longer_than_80_columns() {
    for (name, state) in pictures() {
        for color in [false, true] {
            for line in render(&state, color).lines().map(shown) {
                assert!(line.chars().count() <= 80, "{name}: {} columns: {line}", line.chars().count());
            }
        }
    }
}

#[test]
fn without_color_there_is_no_escape_code_and_nothing_else_that_steers_the_terminal() {
    for (name, state) in pictures() {
        let text = render(&state, false) + &tsv(&state).replace('\t', " ");
        for c in text.chars().filter(|c| *c != '\n') {
            assert!(!c.is_control() && !('\u{200b}'..='\u{202e}').contains(&c), "{name}: {c:?} in {text:?}");
        }
    }
}

#[test]
fn with_color_the_text_is_the_same_and_no_line_colors_the_next_one() {
    for (name, state) in pictures() {
        let colored = render(&state, true);
        assert_eq!(shown(&colored), render(&state, false), "{name}");
        assert!(colored.contains(RESET), "{name}: nothing is colored");
        for line in colored.lines() {
            let starts = line.matches('\x1b').count() - line.matches(RESET).count();
            assert_eq!(line.matches(RESET).count(), starts, "{name}: {line:?}");
            let after_reset = line.rsplit_once(RESET).map_or(line, |(_, rest)| rest);
            assert!(!after_reset.contains('\x1b'), "{name}: {line:?} colors the next line");
        }
    }
}

#[test]
fn the_line_of_an_unverified_leader_says_why() {
    let line = |state: &State| {
        let text = render(state, false);
        let lines = text.lines().skip(1).take_while(|line| !line.is_empty());
        lines.map(str::trim).collect::<Vec<_>>().join(" ")
    };
    assert!(line(&unverified()).starts_with(
        "Leader     pg-master as last read, NOT verified: no linearizable answer from ZooKeeper within 1000 ms"
    ));
    assert_eq!(line(&unknown()), "Leader     unknown: no linearizable answer from ZooKeeper within 1000 ms");
    assert_eq!(line(&no_leader()), "Leader     none, verified");
}

#[test]
fn only_the_leader_has_a_star() {
    let starred = |state: &State| render(state, false).lines().filter(|line| line.starts_with('*')).count();
    assert_eq!((starred(&healthy()), starred(&no_leader())), (1, 0));
}

#[test]
fn a_second_writable_member_is_red_and_a_healthy_standby_is_not_colored() {
    let mut state = healthy();
    let row =
        |state: &State| render(state, true).lines().find(|line| shown(line).contains("  pg-slave ")).map(str::to_owned);
    assert_eq!(row(&state).unwrap(), shown(&row(&state).unwrap()));
    state.members[1].writable = Some(true);
    assert!(row(&state).unwrap().starts_with(RED));
}

#[test]
fn long_names_that_differ_only_in_their_end_stay_apart() {
    let text = render(&crowded(), false);
    let names: std::collections::BTreeSet<&str> = text
        .lines()
        .skip_while(|line| !line.trim_start().starts_with("Member"))
        .skip(1)
        .take(9)
        .filter_map(|line| line.trim_start_matches(['*', ' ']).split(' ').next())
        .collect();
    assert_eq!(names.len(), 9, "{text}");
}

#[test]
fn a_name_uses_the_columns_that_the_others_leave() {
    let mut state = healthy();
    state.members[1].name = "postgresql-0.west.local".to_owned();
    assert!(render(&state, false).contains("  postgresql-0.west.local "));
}

#[test]
fn every_row_of_the_tsv_has_the_columns_of_its_header() {
    for (name, state) in pictures() {
        let text = tsv(&state);
        let columns = |line: &str| line.split('\t').count();
        let header = text.lines().next().unwrap();
        assert_eq!(columns(header), 10);
        assert_eq!(text.lines().count(), 1 + state.members.len(), "{name}: {text:?}");
        for row in text.lines() {
            assert_eq!(columns(row), columns(header), "{name}: {row:?}");
            assert!(row.split('\t').all(|field| !field.is_empty()), "{name}: {row:?}");
        }
    }
}

#[test]
fn the_tsv_of_a_healthy_cluster_looks_like_this() {
    let expected = "\
member\trole\tstate\ttimeline\tlag_bytes\twritable\tpatroni\tpostgres\tleader\tverified
pg-master\tprimary\trunning\t3\t-\ttrue\tanswering\twritable\ttrue\ttrue
pg-slave\tsync_standby\tstreaming\t3\t0\tfalse\tanswering\tin_recovery\tfalse\ttrue
";
    assert_eq!(tsv(&healthy()), expected);
}

proptest! {
    /// Wrapping keeps every character that is not a space, in order, and the width.
    #[test]
    fn a_broken_line_loses_no_character(text in "[a-z ]{0,60}", width in 1_usize..20) {
        let lines = wrap(&text, width);
        prop_assert!(lines.iter().all(|line| line.chars().count() <= width), "{:?}", lines);
        prop_assert_eq!(lines.concat().replace(' ', ""), text.replace(' ', ""));
    }
}
