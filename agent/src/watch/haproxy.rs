//! HAProxy's servers, from its runtime ("stats") socket.
//!
//! HAProxy knows a server by its name and its resolved address. The agent finds the *member* at that address, by
//! resolving the members' names. Restarted containers can have other addresses, so the server names in HAProxy's
//! configuration may point at the wrong members.

use super::agent_check::AgentChecks;
use crate::client::haproxy::around::{self, Around};
use crate::client::haproxy::{ask, split_address, stat};
use crate::client::names::Names;
use crate::config::HaproxyConfig;
use crate::events::{Closed, Events};
use crate::targets::Targets;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch as latest};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use warden_core::event::{Event, HaproxyAnswer, HaproxyEvent};
use warden_core::haproxy::{OutOfService, Pool};
use warden_core::types::MemberName;

/// The limit for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// HAProxy repeats a failed check after this (`fastinter` in the template). The second failure takes the server out and
/// cuts its sessions.
const CHECK_REPEAT_INTERVAL: Duration = Duration::from_millis(500);

/// Between two looks. It is less than [`CHECK_REPEAT_INTERVAL`]: if the Patroni of a healthy primary was killed, the
/// agent raises the server before the second check fails.
const LOOK_INTERVAL: Duration = Duration::from_millis(400);

const _: () = assert!(LOOK_INTERVAL.as_millis() < CHECK_REPEAT_INTERVAL.as_millis());

/// The first look waits this long for the addresses of the members.
const FIRST_LOOK_UP_LIMIT: Duration = Duration::from_millis(500);

/// Between two looks while HAProxy cannot resolve the name of a server for writes. As soon as it can, it uses the
/// server without a check. A standby would then get writes until its first check fails.
const LOOK_INTERVAL_UNRESOLVED: Duration = Duration::from_millis(20);

/// Between two looks if the name has not resolved for [`UNRESOLVED_LATE_AFTER`]. A server may be away for days.
const LOOK_INTERVAL_UNRESOLVED_LATE: Duration = Duration::from_millis(100);

/// [`LOOK_INTERVAL_UNRESOLVED_LATE`] applies after this time.
const UNRESOLVED_LATE_AFTER: Duration = Duration::from_secs(60);

/// Between two looks while a server for writes drains. A passed check ends the drain, and new connections then reach a
/// server that shuts down.
const LOOK_INTERVAL_DRAIN: Duration = Duration::from_millis(5);

/// [`LOOK_INTERVAL_DRAIN`] applies for this long. A shutdown may take longer.
const DRAIN_WATCH_MAX: Duration = Duration::from_secs(5);

/// Between two looks at HAProxy's other proxies.
const SURROUNDINGS_INTERVAL: Duration = Duration::from_secs(2);

/// The agent repeats an unchanged answer after this, so that frequent looks do not flood the loop.
const REPEAT_INTERVAL: Duration = Duration::from_millis(20);

const _: () = assert!(LOOK_INTERVAL_DRAIN.as_millis() < REPEAT_INTERVAL.as_millis());

/// An address is valid for this long. Then the agent resolves the name again.
const ADDRESS_AGE_MAX: Duration = Duration::from_secs(3);

/// Watches the local HAProxy until the agent shuts down. `probe` makes it ask at once.
pub async fn watch(
    config: HaproxyConfig,
    targets: latest::Receiver<Targets>,
    probe: Arc<Notify>,
    events: Events,
) -> Result<(), Closed> {
    let mut addresses = MemberAddresses::new();
    let mut agent_checks = AgentChecks::default();
    let mut reported: Option<(HaproxyAnswer, Instant)> = None;
    let mut draining_since: Option<Instant> = None;
    let mut unresolved_since: Option<Instant> = None;
    let mut around = Surroundings::default();
    let mut probed = true;
    loop {
        let asked = Instant::now();
        let at = events.clock.now();
        let answer = match ask(&config.socket, stat::QUESTION, ANSWER_LIMIT).await {
            Ok(text) => {
                let targets = targets.borrow().clone();
                addresses.refresh(&targets).await;
                let mut answer = stat::read(&text, &config, |address| addresses.member_at(address));
                if let Some(full) = around.look(&text, &config, &addresses) {
                    events.send(at, Event::Haproxy(HaproxyEvent::FrontendsFull(full))).await?;
                }
                if let HaproxyAnswer::Servers(servers) = &mut answer {
                    agent_checks.fill_in(&config.socket, servers);
                }
                answer
            }
            Err(error) => HaproxyAnswer::Unusable(without_answer(&config.socket, &error)),
        };
        draining_since = if is_one_draining(&answer) { draining_since.or(Some(asked)) } else { None };
        let watch_drain = draining_since.is_some_and(|since| since.elapsed() < DRAIN_WATCH_MAX);
        let due = reported
            .as_ref()
            .is_none_or(|(known, at)| *known != answer || asked.duration_since(*at) >= REPEAT_INTERVAL);
        if due || probed {
            events.send(at, Event::Haproxy(HaproxyEvent::Answered(answer.clone()))).await?;
            reported = Some((answer, asked));
        }
        let unresolved = reported.as_ref().is_some_and(|(answer, _)| is_one_unresolved(answer));
        unresolved_since = if unresolved { unresolved_since.or(Some(asked)) } else { None };
        let pause = match unresolved_since {
            _ if watch_drain => LOOK_INTERVAL_DRAIN,
            Some(since) if since.elapsed() < UNRESOLVED_LATE_AFTER => LOOK_INTERVAL_UNRESOLVED,
            Some(_) => LOOK_INTERVAL_UNRESOLVED_LATE,
            None => LOOK_INTERVAL,
        };
        probed = tokio::select! {
            () = sleep_until(asked + pause) => false,
            () = probe.notified() => true,
        };
    }
}

/// What the watcher has reported of HAProxy's other proxies.
#[derive(Default)]
struct Surroundings {
    looked: Option<Instant>,
    not_steered: BTreeSet<String>,
}

impl Surroundings {
    /// Returns the frontends that are full, if there are any. Logs the proxies that no key names, at each change.
    fn look(
        &mut self,
        text: &str,
        config: &HaproxyConfig,
        addresses: &MemberAddresses,
    ) -> Option<BTreeMap<String, u64>> {
        if self.looked.is_some_and(|at| at.elapsed() < SURROUNDINGS_INTERVAL) {
            return None;
        }
        self.looked = Some(Instant::now());
        let Around { full, not_steered } = around::read(text, config, |address| addresses.member_at(address).is_some());
        if not_steered != self.not_steered && !not_steered.is_empty() {
            let proxies = not_steered.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            tracing::warn!(
                event = "haproxy_not_steered",
                proxies,
                "HAProxy has servers at members' addresses in proxies that no key names: HAProxy's checks alone route \
                 there. To have the agent route too, name each of them in haproxy.backends (writes or reads)"
            );
        }
        self.not_steered = not_steered;
        (!full.is_empty()).then_some(full)
    }
}

/// Why HAProxy's socket does not answer, and the remedy.
fn without_answer(socket: &Path, error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => {
            "; HAProxy has to run, with `stats socket PATH mode 660 level admin` in its global section, and the path \
             has to be the same one here (haproxy.socket)"
        }
        io::ErrorKind::PermissionDenied => "; Warden's user has to be in the socket's group (`stats socket ... group`)",
        _ => "",
    };
    format!("{}: {error}{remedy}", socket.display())
}

/// Whether a server for writes drains: it takes no new connections and keeps its present ones.
fn is_one_draining(answer: &HaproxyAnswer) -> bool {
    let HaproxyAnswer::Servers(servers) = answer else { return false };
    servers.iter().any(|server| server.pool == Pool::Writes && server.status.starts_with("NOLB"))
}

/// Whether a server for writes is out of service because its name does not resolve.
fn is_one_unresolved(answer: &HaproxyAnswer) -> bool {
    let HaproxyAnswer::Servers(servers) = answer else { return false };
    servers
        .iter()
        .any(|server| server.pool == Pool::Writes && server.out_of_service() == Some(OutOfService::Unresolved))
}

/// The addresses of the members. Tasks of their own resolve the names every few seconds, so that a slow or dead name
/// server delays nothing.
struct MemberAddresses {
    names: Names,
    known: BTreeMap<MemberName, Vec<IpAddr>>,
    targets: Targets,
    resolved: Option<Instant>,
    under_way: JoinSet<(MemberName, Option<Vec<IpAddr>>)>,
}

impl MemberAddresses {
    fn new() -> Self {
        Self {
            names: Names::forgetful(),
            known: BTreeMap::new(),
            targets: Targets::new(),
            resolved: None,
            under_way: JoinSet::new(),
        }
    }

    /// Takes the results of the look-ups, and starts new ones if they are due. Waits only if no address is known, for
    /// at most [`FIRST_LOOK_UP_LIMIT`].
    async fn refresh(&mut self, targets: &Targets) {
        while let Some(found) = self.under_way.try_join_next() {
            self.accept(found);
        }
        let changed = self.targets != *targets;
        if changed {
            self.known.retain(|name, _| {
                let host = |targets: &Targets| targets.get(name).and_then(|target| target.postgres.clone());
                host(targets).is_some() && host(targets) == host(&self.targets)
            });
            self.targets.clone_from(targets);
        }
        if !self.under_way.is_empty() || (!changed && self.resolved.is_some_and(|at| at.elapsed() < ADDRESS_AGE_MAX)) {
            return;
        }
        let first = self.known.is_empty();
        self.resolved = Some(Instant::now());
        for (name, target) in targets {
            let Some((host, _)) = target.postgres.clone() else { continue };
            let (names, name) = (self.names.clone(), name.clone());
            self.under_way.spawn(async move {
                let found = names.addresses(&host).await.ok();
                (name, found.map(|found| found.into_iter().map(|address| address.ip()).collect()))
            });
        }
        if first {
            while let Ok(Some(found)) = timeout(FIRST_LOOK_UP_LIMIT, self.under_way.join_next()).await {
                self.accept(found);
            }
        }
    }

    /// Stores the result of a look-up. A name that does not resolve keeps its last addresses.
    fn accept(&mut self, found: Result<(MemberName, Option<Vec<IpAddr>>), JoinError>) {
        let Ok((name, Some(addresses))) = found else { return };
        if self.targets.contains_key(&name) && !addresses.is_empty() {
            self.known.insert(name, addresses);
        }
    }

    /// The member at an address, with any port: a pooler may stand in front of its server. The port decides if several
    /// members share the host. `None` if more than one is left, because an action would hit the wrong one.
    fn member_at(&self, address: &str) -> Option<MemberName> {
        let (ip, port) = split_address(address)?;
        let there: Vec<&MemberName> =
            self.known.iter().filter(|(_, addresses)| addresses.contains(&ip)).map(|(name, _)| name).collect();
        let at_port = |name: &&&MemberName| {
            self.targets
                .get(**name)
                .and_then(|target| target.postgres.as_ref())
                .is_some_and(|(_, known)| *known == port)
        };
        match there.as_slice() {
            [only] => Some((*only).clone()),
            several => {
                let mut exact = several.iter().filter(at_port);
                exact.next().filter(|_| exact.next().is_none()).map(|name| (*name).clone())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Target;

    #[tokio::test]
    async fn a_missing_socket_is_named_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("admin.sock");
        let told = without_answer(&socket, &ask(&socket, "help", ANSWER_LIMIT).await.unwrap_err());
        assert!(told.contains("admin.sock: ") && told.contains("stats socket PATH mode 660 level admin"), "{told}");
    }

    fn target(host: &str, port: u16) -> Target {
        Target { postgres: Some((host.to_owned(), port)), ..Target::default() }
    }

    /// Resolves until no look-up is in progress.
    async fn settled(addresses: &mut MemberAddresses, targets: &Targets) {
        addresses.refresh(targets).await;
        while let Some(found) = addresses.under_way.join_next().await {
            addresses.accept(found);
        }
    }

    #[tokio::test]
    async fn a_server_belongs_to_the_only_member_at_its_host_with_any_port() {
        let mut addresses = MemberAddresses::new();
        let mut targets = Targets::from([("a".into(), target("127.0.0.1", 5432))]);
        settled(&mut addresses, &targets).await;
        assert_eq!(addresses.member_at("127.0.0.1:6432"), Some("a".into()), "a pooler");
        assert_eq!(addresses.member_at("127.0.0.2:5432"), None);
        // The ports distinguish two members on one host.
        targets.insert("b".into(), target("127.0.0.1", 5433));
        settled(&mut addresses, &targets).await;
        assert_eq!(addresses.member_at("127.0.0.1:5432"), Some("a".into()));
        assert_eq!(addresses.member_at("127.0.0.1:5433"), Some("b".into()));
        assert_eq!(addresses.member_at("127.0.0.1:6432"), None, "whose is it?");
        // Two members with one address.
        targets.insert("z".into(), target("127.0.0.1", 5432));
        settled(&mut addresses, &targets).await;
        assert_eq!(addresses.member_at("127.0.0.1:5432"), None);
        assert_eq!(addresses.member_at("127.0.0.1:5433"), Some("b".into()));
        targets.remove(&MemberName::from("z"));
        settled(&mut addresses, &targets).await;
        assert_eq!(addresses.member_at("127.0.0.1:5432"), Some("a".into()));
        // The member has moved, and its new address is not known yet.
        targets.insert("b".into(), target("nowhere.invalid", 5432));
        settled(&mut addresses, &targets).await;
        assert_eq!(addresses.member_at("127.0.0.1:5433"), Some("a".into()));
    }

    #[tokio::test]
    async fn a_slow_name_server_delays_no_look() {
        let mut addresses = MemberAddresses::new();
        let targets = Targets::from([("a".into(), target("127.0.0.1", 5432))]);
        settled(&mut addresses, &targets).await;
        addresses.under_way.spawn(std::future::pending());
        let started = Instant::now();
        for _ in 0..100 {
            addresses.refresh(&targets).await;
        }
        assert!(started.elapsed() < Duration::from_millis(100), "{:?}", started.elapsed());
        assert_eq!(addresses.member_at("127.0.0.1:5432"), Some("a".into()));
    }
}
