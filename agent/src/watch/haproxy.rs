//! HAProxy's servers, from its runtime ("stats") socket.
//!
//! HAProxy knows its servers by name and by the address it resolved; which *member* is at that address is settled here,
//! by resolving the members' names, because after containers come back with other addresses the names in HAProxy's
//! configuration can point at the wrong ones.

use super::{Closed, Events};
use crate::config::HaproxyConfig;
use crate::haproxy::ask;
use crate::watch::members::Targets;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::sync::{Notify, watch as latest};
use tokio::time::{Instant, sleep_until, timeout};
use warden_core::event::{Event, HaproxyAnswer, HaproxyServer};
use warden_core::haproxy::Pool;
use warden_core::types::MemberName;

/// A question every second, and as long for an answer.
const PERIOD: Duration = Duration::from_secs(1);

/// Between two looks while a server for writes is held: a good check of HAProxy's undoes a hold, and whoever connects
/// then meets a server that shuts down,
const GUARD: Duration = Duration::from_millis(5);

/// for this long: a shutdown that takes longer is looked at like everything else.
const GUARDED: Duration = Duration::from_secs(5);

/// What is the same as before is told this often all the same while a server is guarded.
const TOLD: Duration = Duration::from_millis(20);

/// All servers (type 4) of all proxies.
const QUESTION: &str = "show stat -1 4 -1";

/// Watches the local HAProxy until the agent shuts down. `probe` asks out of turn.
pub async fn watch(
    config: HaproxyConfig,
    targets: latest::Receiver<Targets>,
    probe: Arc<Notify>,
    events: Events,
) -> Result<(), Closed> {
    let mut names = Names::default();
    let mut told: Option<(HaproxyAnswer, Instant)> = None;
    let mut held_since: Option<Instant> = None;
    let mut wanted = true;
    loop {
        let asked = Instant::now();
        let at = events.clock.now();
        let answer = match ask(&config.socket, QUESTION, PERIOD).await {
            Ok(text) => {
                let targets = targets.borrow().clone();
                names.refresh(&targets).await;
                read_servers(&text, &config, |address| names.member_at(address))
            }
            Err(error) => HaproxyAnswer::Unusable(format!("{}: {error}", config.socket.display())),
        };
        held_since = if is_one_held(&answer) { held_since.or(Some(asked)) } else { None };
        let guarded = held_since.is_some_and(|since| since.elapsed() < GUARDED);
        let news = told.as_ref().is_none_or(|(known, at)| *known != answer || asked.duration_since(*at) >= TOLD);
        if news || wanted {
            events.send(at, Event::Haproxy(answer.clone())).await?;
            told = Some((answer, asked));
        }
        wanted = tokio::select! {
            () = sleep_until(asked + if guarded { GUARD } else { PERIOD }) => false,
            () = probe.notified() => true,
        };
    }
}

/// Whether a server for writes takes no new connections and keeps those that it has.
fn is_one_held(answer: &HaproxyAnswer) -> bool {
    let HaproxyAnswer::Servers(servers) = answer else { return false };
    servers.iter().any(|server| server.pool == Pool::Writes && server.status.starts_with("NOLB"))
}

/// The addresses behind a name, now.
pub async fn resolve(host: &str, port: u16) -> Option<Vec<IpAddr>> {
    let found = timeout(PERIOD / 2, lookup_host((host, port))).await.ok()?.ok()?;
    let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
    (!found.is_empty()).then_some(found)
}

/// `host:port` as HAProxy writes it.
pub fn split_address(address: &str) -> Option<(IpAddr, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).parse().ok()?, port.parse().ok()?))
}

/// Which members are at which address. Names are resolved anew every few seconds.
#[derive(Default)]
struct Names {
    by_ip: BTreeMap<(IpAddr, u16), BTreeSet<MemberName>>,
    resolved: Option<(Targets, Instant)>,
}

impl Names {
    async fn refresh(&mut self, targets: &Targets) {
        const KEEP: Duration = Duration::from_secs(3);
        if self.resolved.as_ref().is_some_and(|(known, at)| known == targets && at.elapsed() < KEEP) {
            return;
        }
        for known in self.by_ip.values_mut() {
            known.retain(|name| targets.contains_key(name));
        }
        for (name, target) in targets {
            let Some((host, port)) = target.postgres.as_ref() else { continue };
            // A name that does not resolve now is where it last was, until another one is found there.
            if let Some(addresses) = resolve(host, *port).await {
                for known in self.by_ip.values_mut() {
                    known.remove(name);
                }
                for address in addresses {
                    self.by_ip.entry((address, *port)).or_default().insert(name.clone());
                }
            }
        }
        self.by_ip.retain(|_, known| !known.is_empty());
        self.resolved = Some((targets.clone(), Instant::now()));
    }

    /// The member at an address; `None` also where more than one claims it: what holds for one would hit the other.
    fn member_at(&self, address: &str) -> Option<MemberName> {
        let known = self.by_ip.get(&split_address(address)?)?;
        known.first().filter(|_| known.len() == 1).cloned()
    }
}

/// Reads `show stat`: CSV whose first line, after `# `, names the columns (HAProxy's management guide, 9.1).
///
/// A backup server without a check is none of ours: it is what new connections wait on while no other is up.
fn read_servers(text: &str, config: &HaproxyConfig, member_at: impl Fn(&str) -> Option<MemberName>) -> HaproxyAnswer {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let Some(header) = lines.next().and_then(|line| line.strip_prefix("# ")) else {
        return HaproxyAnswer::Unusable("its answer to `show stat` is not a table".to_owned());
    };
    let columns: BTreeMap<&str, usize> = header.split(',').enumerate().map(|(index, name)| (name, index)).collect();
    let mut proxies = Vec::new();
    let mut servers = Vec::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let get = |name: &str| columns.get(name).and_then(|index| fields.get(*index)).copied();
        let (Some(proxy), Some(name), Some(status)) = (get("pxname"), get("svname"), get("status")) else {
            return HaproxyAnswer::Unusable("its answer to `show stat` lacks pxname, svname or status".to_owned());
        };
        proxies.push(proxy);
        let pool = if proxy == config.backend {
            Pool::Writes
        } else if config.read_backend.as_deref() == Some(proxy) {
            Pool::Reads
        } else {
            continue;
        };
        if status == "no check" && get("bck") == Some("1") {
            continue;
        }
        let address = get("addr").unwrap_or_default().to_owned();
        servers.push(HaproxyServer {
            pool,
            name: name.to_owned(),
            member: member_at(&address),
            address,
            // "UP 1/2" is on its way down but still used; "DOWN 1/2" is on its way up and not used yet.
            up: status.starts_with("UP") || status == "no check",
            status: status.to_owned(),
            sessions: get("scur").and_then(|count| count.parse().ok()).unwrap_or(0),
        });
    }
    let none_in = |pool: Pool| !servers.iter().any(|server| server.pool == pool);
    proxies.dedup();
    let known = proxies.join(", ");
    if none_in(Pool::Writes) {
        let backend = &config.backend;
        return HaproxyAnswer::Unusable(format!(
            "it has no servers in {backend:?} (only in: {known}); set haproxy.backend to the one that takes the writes"
        ));
    }
    if let (Some(backend), true) = (&config.read_backend, none_in(Pool::Reads)) {
        return HaproxyAnswer::Unusable(format!(
            "it has no servers in {backend:?} (only in: {known}); set haproxy.read_backend to the one for reads"
        ));
    }
    HaproxyAnswer::Servers(servers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::members;

    const STAT: &str = include_str!("testdata/haproxy-show-stat.csv");

    fn config(backend: &str, read_backend: Option<&str>) -> HaproxyConfig {
        HaproxyConfig {
            backend: backend.to_owned(),
            read_backend: read_backend.map(str::to_owned),
            ..HaproxyConfig::nowhere()
        }
    }

    #[test]
    fn the_servers_of_the_write_backend_are_read() {
        let answer = read_servers(STAT, &config("postgres", None), |address| {
            (address == "172.18.0.4:5432").then(|| MemberName::from("postgresql0"))
        });
        let HaproxyAnswer::Servers(servers) = answer else { panic!("{answer:?}") };
        let summary: Vec<_> =
            servers.iter().map(|s| (s.name.as_str(), s.up, s.member.as_ref().map(MemberName::as_str))).collect();
        assert_eq!(summary, [("pg-master", true, Some("postgresql0")), ("pg-slave", false, None)]);
    }

    #[test]
    fn a_backend_that_is_not_there_is_named_with_those_that_are() {
        let answer = read_servers(STAT, &config("writes", None), |_| None);
        let HaproxyAnswer::Unusable(why) = answer else { panic!("{answer:?}") };
        assert!(why.contains("\"writes\"") && why.contains("postgres") && why.contains("haproxy.backend"), "{why}");
    }

    #[test]
    fn what_connections_wait_on_is_no_server() {
        let waits = "postgres,wait,0,0,0,0,,0,0,0,,0,,0,0,0,0,no check,1,0,1";
        let HaproxyAnswer::Servers(servers) =
            read_servers(&format!("{STAT}{waits}\n"), &config("postgres", None), |_| None)
        else {
            panic!()
        };
        assert_eq!(servers.iter().map(|server| server.name.as_str()).collect::<Vec<_>>(), ["pg-master", "pg-slave"]);
    }

    #[test]
    fn the_servers_for_reads_are_read_too_and_have_to_be_there() {
        let reads = STAT.replace("postgres,pg-slave", "replicas,pg-slave");
        let HaproxyAnswer::Servers(servers) = read_servers(&reads, &config("postgres", Some("replicas")), |_| None)
        else {
            panic!()
        };
        let pools: Vec<_> = servers.iter().map(|server| (server.name.as_str(), server.pool)).collect();
        assert_eq!(pools, [("pg-master", Pool::Writes), ("pg-slave", Pool::Reads)]);
        let answer = read_servers(STAT, &config("postgres", Some("replicas")), |_| None);
        let HaproxyAnswer::Unusable(why) = answer else { panic!("{answer:?}") };
        assert!(why.contains("\"replicas\"") && why.contains("haproxy.read_backend"), "{why}");
    }

    #[tokio::test]
    async fn an_address_that_two_members_claim_is_neithers() {
        let target = |port| members::Target { postgres: Some(("127.0.0.1".to_owned(), port)), ..Default::default() };
        let mut names = Names::default();
        let mut targets = Targets::from([("a".into(), target(5432)), ("b".into(), target(5433))]);
        names.refresh(&targets).await;
        assert_eq!(names.member_at("127.0.0.1:5432"), Some("a".into()));
        targets.insert("z".into(), target(5432));
        names.refresh(&targets).await;
        assert_eq!(names.member_at("127.0.0.1:5432"), None);
        assert_eq!(names.member_at("127.0.0.1:5433"), Some("b".into()));
        targets.remove(&MemberName::from("z"));
        names.refresh(&targets).await;
        assert_eq!(names.member_at("127.0.0.1:5432"), Some("a".into()));
    }

    #[test]
    fn nonsense_is_unusable_and_never_a_panic() {
        for text in ["", "\n", "Unknown command", "# a,b\n1", "# pxname,svname,status\npostgres", "#"] {
            assert!(
                matches!(read_servers(text, &config("postgres", None), |_| None), HaproxyAnswer::Unusable(_)),
                "{text:?}"
            );
        }
    }
}
