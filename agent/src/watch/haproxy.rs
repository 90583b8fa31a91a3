//! HAProxy's servers, from its runtime ("stats") socket.
//!
//! One connection per question, as the socket's protocol has it. HAProxy knows its servers by name and by
//! the address it resolved; which *member* is at that address is settled here, by resolving the members'
//! names, because after containers come back with other addresses the names in HAProxy's configuration can
//! point at the wrong ones.

use super::{Closed, Events};
use crate::config::HaproxyConfig;
use crate::watch::members::Targets;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixStream, lookup_host};
use tokio::sync::watch as latest;
use tokio::time::{Instant, sleep_until, timeout};
use warden_core::event::{Event, HaproxyAnswer, HaproxyServer};
use warden_core::types::MemberName;

/// A question every second, and as long for an answer.
const PERIOD: Duration = Duration::from_secs(1);

/// The largest answer taken. A server makes a line of about 400 bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// All servers (type 4) of all proxies.
const QUESTION: &[u8] = b"show stat -1 4 -1\n";

/// Watches the local HAProxy until the agent shuts down.
pub async fn watch(config: HaproxyConfig, targets: latest::Receiver<Targets>, events: Events) -> Result<(), Closed> {
    let mut names = Names::default();
    loop {
        let asked = Instant::now();
        let at = events.clock.now();
        let answer = match timeout(PERIOD, ask(&config.socket)).await {
            Ok(Ok(text)) => {
                let targets = targets.borrow().clone();
                names.refresh(&targets).await;
                read_servers(&text, &config.backend, |address| names.member_at(address))
            }
            Ok(Err(error)) => HaproxyAnswer::Unusable(format!("{}: {error}", config.socket.display())),
            Err(_) => HaproxyAnswer::Unusable(format!("{}: no answer within 1 s", config.socket.display())),
        };
        events.send(at, Event::Haproxy(answer)).await?;
        sleep_until(asked + PERIOD).await;
    }
}

async fn ask(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(QUESTION).await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Which member is at which address. Names are resolved anew every few seconds.
#[derive(Default)]
struct Names {
    by_ip: BTreeMap<(IpAddr, u16), MemberName>,
    resolved: Option<(Targets, Instant)>,
}

impl Names {
    async fn refresh(&mut self, targets: &Targets) {
        const KEEP: Duration = Duration::from_secs(3);
        if self.resolved.as_ref().is_some_and(|(known, at)| known == targets && at.elapsed() < KEEP) {
            return;
        }
        self.by_ip.retain(|_, name| targets.contains_key(name));
        for (name, target) in targets {
            let Some((host, port)) = target.postgres.as_ref() else { continue };
            // A name that does not resolve now is where it last was, until another one is found there.
            if let Ok(Ok(addresses)) = timeout(PERIOD / 2, lookup_host((host.as_str(), *port))).await {
                let addresses: Vec<IpAddr> = addresses.map(|address| address.ip()).collect();
                if !addresses.is_empty() {
                    self.by_ip.retain(|_, known| known != name);
                }
                for address in addresses {
                    self.by_ip.insert((address, *port), name.clone());
                }
            }
        }
        self.resolved = Some((targets.clone(), Instant::now()));
    }

    fn member_at(&self, address: &str) -> Option<MemberName> {
        let (host, port) = address.rsplit_once(':')?;
        let key = (host.trim_matches(['[', ']']).parse().ok()?, port.parse().ok()?);
        self.by_ip.get(&key).cloned()
    }
}

/// Reads `show stat`: CSV whose first line, after `# `, names the columns (HAProxy's management guide, 9.1).
fn read_servers(text: &str, backend: &str, member_at: impl Fn(&str) -> Option<MemberName>) -> HaproxyAnswer {
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
        if proxy != backend {
            continue;
        }
        let address = get("addr").unwrap_or_default().to_owned();
        servers.push(HaproxyServer {
            name: name.to_owned(),
            member: member_at(&address),
            address,
            // "UP 1/2" is on its way down but still used; "DOWN 1/2" is on its way up and not used yet.
            up: status.starts_with("UP") || status == "no check",
            status: status.to_owned(),
            sessions: get("scur").and_then(|count| count.parse().ok()).unwrap_or(0),
        });
    }
    if servers.is_empty() {
        proxies.dedup();
        let known = proxies.join(", ");
        return HaproxyAnswer::Unusable(format!(
            "it has no servers in {backend:?} (only in: {known}); set haproxy.backend to the one that takes the writes"
        ));
    }
    HaproxyAnswer::Servers(servers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = include_str!("testdata/haproxy-show-stat.csv");

    #[test]
    fn the_servers_of_the_write_backend_are_read() {
        let answer = read_servers(STAT, "postgres", |address| {
            (address == "172.18.0.4:5432").then(|| MemberName::from("postgresql0"))
        });
        let HaproxyAnswer::Servers(servers) = answer else { panic!("{answer:?}") };
        let summary: Vec<_> =
            servers.iter().map(|s| (s.name.as_str(), s.up, s.member.as_ref().map(MemberName::as_str))).collect();
        assert_eq!(summary, [("pg-master", true, Some("postgresql0")), ("pg-slave", false, None)]);
    }

    #[test]
    fn a_backend_that_is_not_there_is_named_with_those_that_are() {
        let answer = read_servers(STAT, "writes", |_| None);
        let HaproxyAnswer::Unusable(why) = answer else { panic!("{answer:?}") };
        assert!(why.contains("\"writes\"") && why.contains("postgres") && why.contains("haproxy.backend"), "{why}");
    }

    #[test]
    fn nonsense_is_unusable_and_never_a_panic() {
        for text in ["", "\n", "Unknown command", "# a,b\n1", "# pxname,svname,status\npostgres", "#"] {
            assert!(matches!(read_servers(text, "postgres", |_| None), HaproxyAnswer::Unusable(_)), "{text:?}");
        }
    }
}
