use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use warden_core::event::{Role, ZooKeeperEvent};

/// A capture of a real cluster (Patroni 4.1.5): `== path`, the data, then the stat as zkCli prints it.
const CAPTURE: &str = include_str!("../../../testdata/znodes.txt");

fn captured() -> BTreeMap<String, Raw> {
    let mut znodes = BTreeMap::new();
    for part in CAPTURE.split("== ").skip(1) {
        let mut lines = part.lines();
        let path = lines.next().unwrap().trim_start_matches("/service/my_cluster/").to_owned();
        let data = lines.next().unwrap().as_bytes().to_vec();
        let stat: BTreeMap<&str, &str> = lines.filter_map(|line| line.split_once(" = ")).collect();
        let hex =
            |key: &str| stat.get(key).map_or(0, |text| i64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap());
        let raw = Raw {
            data,
            czxid: hex("cZxid"),
            mzxid: hex("mZxid"),
            version: 0,
            owner: hex("ephemeralOwner"),
            ctime_ms: 0,
            mtime_ms: 0,
        };
        znodes.insert(path, raw);
    }
    znodes
}

fn raw(text: &str) -> Raw {
    Raw { data: text.as_bytes().to_vec(), czxid: 1, mzxid: 1, version: 0, owner: 0, ctime_ms: 0, mtime_ms: 0 }
}

#[test]
fn the_znodes_of_a_real_cluster_are_read() {
    let znodes = captured();
    let get = |path: &str| znodes.get(path);
    let key = leader(get("leader"));
    let key = key.present().unwrap();
    assert_eq!(
        (key.holder.as_str(), key.czxid, key.owner),
        ("postgresql0", Zxid(0x4b), SessionId(0x0100_001e_7630_0003))
    );
    let config = json(get("config"), config);
    let config = config.present().unwrap();
    assert_eq!((config.ttl, config.synchronous_mode, config.pause), (Duration::from_secs(30), true, false));
    let sync = json(get("sync"), sync);
    assert!(sync.present().unwrap().standbys.contains(&MemberName::from("postgresql1")));
    assert_eq!(json(get("status"), status), Reading::Present(Lsn(68_734_048)));
    assert_eq!(history(get("history")), Reading::Present(Timeline(2)));
    assert_eq!(initialize(get("initialize")), Reading::Present(SystemId(7_711_171_149_834_993_696)));
    let member = json(get("members/postgresql0"), member);
    let member = member.present().unwrap();
    assert_eq!((member.host.as_deref(), member.port), (Some("pg-master"), Some(5432)));
    assert_eq!(member.api.as_deref(), Some("http://pg-master:8008"));
    assert_eq!((member.role, member.state, member.timeline), (Role::Primary, State::Running, Some(Timeline(3))));
}

#[test]
fn connection_urls_of_every_kind_are_split() {
    let cases = [
        ("postgres://pg-master:5432/postgres", Some(("pg-master", 5432))),
        ("postgresql://u:p@10.0.0.1:6432/db?x=y", Some(("10.0.0.1", 6432))),
        ("postgres://host/db", Some(("host", 5432))),
        ("postgres://[fe80::1]:5433/db", Some(("fe80::1", 5433))),
        ("postgres://host:0/db", None),
        ("postgres://:5432/db", None),
        ("http://host:5432", None),
    ];
    for (url, expected) in cases {
        assert_eq!(split_conn_url(url).ok(), expected.map(|(host, port)| (host.to_owned(), port)), "{url}");
    }
}

/// Any writer of a member's znode controls these texts, and the agent writes them to HAProxy's configuration.
#[test]
fn a_host_that_is_neither_an_address_nor_a_name_makes_the_znode_unreadable() {
    let good = r#"{"conn_url": "postgres://db-1.example_net:5432/postgres", "api_url": "https://[::1]:8008/patroni"}"#;
    let record = json(Some(&raw(good)), member).present().cloned().unwrap();
    assert_eq!((record.host.as_deref(), record.api.as_deref()), (Some("db-1.example_net"), Some("https://[::1]:8008")));
    let conn_urls = [
        r"postgres://10.9.9.9\n    server evil 10.9.9.9:5432 check\n#:5432/postgres",
        "postgres://10.9.9.9 backup:5432/postgres",
        "postgres://${HOME}:5432/postgres",
        "postgres://%[env(PATH)]:5432/postgres",
        r#"postgres://a\"b:5432/postgres"#,
        "postgres://[fe80::1%eth0]:5432/postgres",
        "postgres://[::1]x:5432/postgres",
        "postgres://h\u{f6}st:5432/postgres",
    ];
    for url in conn_urls {
        let text = format!(r#"{{"conn_url": "{url}", "api_url": "http://a:8008/patroni"}}"#);
        let why = json(Some(&raw(&text)), member).unreadable().unwrap_or_default().to_owned();
        assert!(why.contains("conn_url") && !why.contains('\n'), "{url}: {why}");
    }
    for url in
        [r"http://10.9.9.9\n:8008/patroni", "http://a b:8008/patroni", "gopher://a:8008", "http://u@a:8008", "http://"]
    {
        let text = format!(r#"{{"conn_url": "postgres://a:5432/postgres", "api_url": "{url}"}}"#);
        let why = json(Some(&raw(&text)), member).unreadable().unwrap_or_default().to_owned();
        assert!(why.contains("api_url"), "{url}: {why}");
    }
}

proptest! {
    #[test]
    fn a_host_is_always_a_single_word(text in ".{0,40}") {
        if let Ok((host, _)) = split_conn_url(&format!("postgres://{text}/postgres")) {
            prop_assert!(host.chars().all(|c| c.is_ascii_alphanumeric() || "-._:".contains(c)), "{host:?}");
        }
    }
}

#[test]
fn an_invalid_configuration_is_unreadable_and_the_reason_names_the_key() {
    for (text, key) in
        [("{\"ttl\": \"soon\"}", "ttl"), ("{\"pause\": \"perhaps\"}", "pause"), ("[]", "object"), ("{", "JSON")]
    {
        let reading = json(Some(&raw(text)), config);
        assert!(reading.unreadable().unwrap().contains(key), "{text}: {reading:?}");
    }
}

#[test]
fn numbers_and_flags_are_read_in_all_forms_that_patroni_accepts() {
    let reading = json(
        Some(&raw(r#"{"ttl": "20", "pause": "on", "synchronous_mode": "quorum", "failsafe_mode": null}"#)),
        config,
    );
    let config = reading.present().unwrap();
    assert_eq!(config.ttl, Duration::from_secs(20));
    assert!(config.pause && config.synchronous_mode && !config.failsafe_mode);
}

#[test]
fn a_missing_znode_is_absent_and_an_empty_leader_znode_is_unreadable() {
    assert_eq!(leader(None), Reading::Absent);
    assert!(leader(Some(&raw(""))).unreadable().is_some());
    assert_eq!(initialize(Some(&raw(""))), Reading::Absent);
    assert_eq!(failover(Some(&raw("{}"))), Reading::Absent);
    assert_eq!(history(Some(&raw("[]"))), Reading::Absent);
}

/// A record of `a` in the place of `b` says nothing about either member.
#[test]
fn a_fence_record_in_the_place_of_another_member_is_unreadable() {
    let text = r#"{"member":"a","rule":"operator","reason":"","by":"operator","ordered_ms":1,"confirmed_ms":2}"#;
    let read = |name: &str| match znode(Node::Fence(name.to_owned()), Some(&raw(text))) {
        Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member, record }) => (member.to_string(), record),
        other => panic!("{other:?}"),
    };
    let (member, record) = read("a");
    assert!(member == "a" && record.present().is_some_and(|record| record.written.is_some()), "{record:?}");
    let (member, record) = read("b");
    assert!(member == "b" && record.unreadable().is_some_and(|why| why.contains("unfence b")), "{record:?}");
}

/// Patroni takes a tag as Python does.
#[test]
fn a_tag_is_set_if_python_takes_its_value_for_true() {
    let tagged = |value: &str| {
        let text = format!(r#"{{"conn_url":"postgres://h:5432/postgres","tags":{{"noloadbalance":{value}}}}}"#);
        match znode(Node::Member("a".to_owned()), Some(&raw(&text))) {
            Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Member(_, Reading::Present(record)))) => record.noloadbalance,
            other => panic!("{other:?}"),
        }
    };
    let values = ["true", "1", "\"yes\"", "\"false\"", "false", "0", "\"\"", "null", "[]", "{}"];
    assert_eq!(values.map(tagged), [true, true, true, true, false, false, false, false, false, false]);
}

proptest! {
    #[test]
    fn no_bytes_in_any_znode_cause_a_panic(data in proptest::collection::vec(any::<u8>(), 0..200), name in ".{0,20}") {
        let raw = Raw { data, czxid: 1, mzxid: 1, version: 0, owner: 0, ctime_ms: i64::MIN, mtime_ms: i64::MAX };
        for node in [
            Node::Leader, Node::Config, Node::Sync, Node::Status, Node::History, Node::Failover, Node::Failsafe,
            Node::Initialize, Node::Member(name.clone()), Node::Agent(name.clone()),
            Node::Fence(name.clone()),
        ] {
            znode(node, Some(&raw));
        }
    }

    #[test]
    fn a_truncated_znode_is_unreadable(cut in 1_usize..400) {
        for (path, whole) in captured() {
            if path == "leader" || path == "initialize" || path == "history" || cut >= whole.data.len() {
                continue;
            }
            let torn = Raw { data: whole.data[..cut].to_vec(), ..whole };
            prop_assert!(json(Some(&torn), |_| Ok(())).unreadable().is_some(), "{} cut at {}", path, cut);
        }
    }
}
