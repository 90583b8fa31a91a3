//! Reads HAProxy's answer to `show stat` as servers.

use crate::client::haproxy::{StatRow, table};
use crate::config::HaproxyConfig;
use std::collections::BTreeMap;
use warden_core::event::{HaproxyAnswer, HaproxyServer};
use warden_core::haproxy::{Check, Pool, ServerId};
use warden_core::types::MemberName;

/// All frontends, backends and servers (types 1, 2 and 4) of all proxies.
pub const QUESTION: &str = "show stat -1 7 -1";

/// Reads the answer. `member_at` finds the member at an address.
///
/// It skips a backup server without a check: new connections wait on it while no other server is up.
pub fn read(text: &str, config: &HaproxyConfig, member_at: impl Fn(&str) -> Option<MemberName>) -> HaproxyAnswer {
    let rows = match table(text) {
        Ok(rows) => rows,
        Err(why) => return HaproxyAnswer::Unusable(why),
    };
    let mut proxies = Vec::new();
    let mut servers = Vec::new();
    // By proxy: connections that wait for any of its servers.
    let mut waiting: BTreeMap<&str, u64> = BTreeMap::new();
    for row in rows {
        let (Some(proxy), Some(name), Some(status)) = (row.get("pxname"), row.get("svname"), row.get("status")) else {
            return HaproxyAnswer::Unusable("its answer to `show stat` lacks pxname, svname or status".to_owned());
        };
        if name == "FRONTEND" {
            continue;
        }
        if name == "BACKEND" {
            waiting.insert(proxy, row.number("qcur"));
            continue;
        }
        proxies.push(proxy);
        let Some(pool) = config.pool_of(proxy) else { continue };
        if status == "no check" && row.get("bck") == Some("1") {
            continue;
        }
        let address = row.get("addr").unwrap_or_default().to_owned();
        servers.push(HaproxyServer {
            pool,
            id: ServerId { proxy: proxy.to_owned(), name: name.to_owned() },
            member: member_at(&address),
            address,
            // HAProxy still uses a server that is "UP 1/2", and does not yet use one that is "DOWN 1/2".
            up: status.starts_with("UP") || status == "no check",
            status: status.to_owned(),
            sessions: row.number("scur"),
            check: check(&row),
            tracks: row.get("tracked").map(str::to_owned),
            throttled: row.get("throttle").is_some(),
            queued: row.number("qcur"),
            limit: row.get("slim").and_then(|limit| limit.parse().ok()),
            agent_check: None,
        });
    }
    for server in servers.iter_mut().filter(|server| server.up) {
        server.queued += waiting.get(server.id.proxy.as_str()).copied().unwrap_or(0);
    }
    proxies.dedup();
    let known = proxies.join(", ");
    for (pool, key) in [(Pool::Writes, config.writes_key()), (Pool::Reads, config.reads_key())] {
        for backend in config.proxies_of(pool) {
            if !servers.iter().any(|server| server.id.proxy == *backend) {
                let purpose = if pool == Pool::Writes { "takes the writes" } else { "is for reads" };
                return HaproxyAnswer::Unusable(format!(
                    "it has no servers in {backend:?} (only in: {known}); set {key} to the one that {purpose}"
                ));
            }
        }
    }
    HaproxyAnswer::Servers(servers)
}

/// The result of the last check (HAProxy's management guide, 9.1, `check_status`). A star marks a check in progress.
fn check(row: &StatRow<'_>) -> Check {
    let Some(status) = row.get("check_status") else { return Check::None };
    let status = status.trim_start_matches("* ");
    let words = || {
        let code = row.get("check_code").map_or_else(String::new, |code| format!(" {code}"));
        let said = row.get("last_chk").or_else(|| row.get("check_desc"));
        let said = said.map_or_else(String::new, |said| format!(": {}", said.chars().take(80).collect::<String>()));
        format!("{status}{code}{said}")
    };
    match status {
        "L4OK" | "L6OK" | "L7OK" | "L7OKC" => Check::Passes,
        "L7STS" => Check::Refuses(words()),
        "L4TOUT" | "L4CON" | "L6TOUT" | "L6RSP" | "L7TOUT" | "L7RSP" => Check::Fails(words()),
        // No check yet (INI), or another result (SOCKERR, external checks).
        _ => Check::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = include_str!("../../../testdata/haproxy-show-stat.csv");

    fn config(backend: &str, read_backend: Option<&str>) -> HaproxyConfig {
        HaproxyConfig {
            writes: vec![backend.to_owned()],
            reads: read_backend.into_iter().map(str::to_owned).collect(),
            ..HaproxyConfig::nowhere()
        }
    }

    #[test]
    fn the_servers_of_the_write_backend_are_read() {
        let answer = read(STAT, &config("postgres", None), |address| {
            (address == "172.18.0.4:5432").then(|| MemberName::from("postgresql0"))
        });
        let HaproxyAnswer::Servers(servers) = answer else { panic!("{answer:?}") };
        let summary: Vec<_> =
            servers.iter().map(|s| (s.id.name.as_str(), s.up, s.member.as_ref().map(MemberName::as_str))).collect();
        assert_eq!(summary, [("pg-master", true, Some("postgresql0")), ("pg-slave", false, None)]);
    }

    #[test]
    fn a_missing_backend_is_named_together_with_those_that_exist() {
        let answer = read(STAT, &config("writes", None), |_| None);
        let HaproxyAnswer::Unusable(why) = answer else { panic!("{answer:?}") };
        assert!(why.contains("\"writes\"") && why.contains("postgres") && why.contains("haproxy.backend"), "{why}");
    }

    #[test]
    fn the_backup_server_on_which_connections_wait_is_skipped() {
        let waits = "postgres,wait,0,0,0,0,,0,0,0,,0,,0,0,0,0,no check,1,0,1";
        let HaproxyAnswer::Servers(servers) = read(&format!("{STAT}{waits}\n"), &config("postgres", None), |_| None)
        else {
            panic!()
        };
        assert_eq!(servers.iter().map(|server| server.id.name.as_str()).collect::<Vec<_>>(), ["pg-master", "pg-slave"]);
    }

    #[test]
    fn the_servers_for_reads_are_read_too_and_must_exist() {
        let reads = STAT.replace("postgres,pg-slave", "replicas,pg-slave");
        let HaproxyAnswer::Servers(servers) = read(&reads, &config("postgres", Some("replicas")), |_| None) else {
            panic!()
        };
        let pools: Vec<_> = servers.iter().map(|server| (server.id.name.as_str(), server.pool)).collect();
        assert_eq!(pools, [("pg-master", Pool::Writes), ("pg-slave", Pool::Reads)]);
        let answer = read(STAT, &config("postgres", Some("replicas")), |_| None);
        let HaproxyAnswer::Unusable(why) = answer else { panic!("{answer:?}") };
        assert!(why.contains("\"replicas\"") && why.contains("haproxy.read_backend"), "{why}");
    }

    #[test]
    fn nonsense_is_unusable_and_never_a_panic() {
        for text in ["", "\n", "Unknown command", "# a,b\n1", "# pxname,svname,status\npostgres", "#"] {
            assert!(matches!(read(text, &config("postgres", None), |_| None), HaproxyAnswer::Unusable(_)), "{text:?}");
        }
    }
}
