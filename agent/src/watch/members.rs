//! A pair of watchers (Patroni, PostgreSQL) for each member.
//!
//! The loop knows the members from ZooKeeper and publishes them as [`Targets`]. This task starts, replaces and stops
//! the watchers accordingly.

use super::{patroni, postgres};
use crate::client::beside::Beside;
use crate::client::patroni::PatroniClient;
use crate::client::postgres::Place;
use crate::config::{Config, NodeConfig, Superuser};
use crate::events::{Closed, Events};
use crate::targets::{Probes, Target, Targets};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch as latest;
use tokio::task::JoinSet;
use warden_core::types::MemberName;

/// Before this task restarts a watcher that ended.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// The watchers of one member, and the addresses for which this task started them.
type Watchers = (Target, JoinSet<Result<(), Closed>>);

/// The local node.
#[derive(Clone, Debug)]
pub struct Local {
    /// Its configuration.
    pub node: NodeConfig,
    /// The signs of its server that need no session.
    pub beside: Beside,
}

impl Local {
    /// The configured node; `None` if the agent has no node beside it.
    pub fn of(config: &Config) -> Option<Self> {
        let node = config.node.clone()?;
        let beside = Beside::new(&node, config.release.handover);
        Some(Self { node, beside })
    }
}

/// The logins to PostgreSQL.
#[derive(Clone, Debug, Default)]
pub struct Logins {
    /// For the local server: the superuser.
    pub own: Option<Superuser>,
    /// For all other servers: an ordinary role if one is configured, otherwise the superuser.
    pub others: Option<Superuser>,
}

impl Logins {
    /// The configured logins.
    pub fn of(config: &Config) -> Self {
        let own = config.superuser.clone();
        Self { others: config.watch.clone().or_else(|| own.clone()), own }
    }
}

/// Keeps a pair of watchers for each member until the agent shuts down.
pub async fn watch(
    local: Option<Local>,
    logins: Logins,
    client: PatroniClient,
    mut targets: latest::Receiver<Targets>,
    probes: Probes,
    events: Events,
) -> anyhow::Result<()> {
    let mut running: BTreeMap<MemberName, Watchers> = BTreeMap::new();
    loop {
        let mut wanted = targets.borrow_and_update().clone();
        if let Some(Local { node, .. }) = &local {
            // The agent asks the local member at its configured address, also if ZooKeeper does not know the member.
            let postgres = Some((node.host.clone(), node.port));
            let target = Target { api: Some(node.api.clone()), postgres, its_agent_tells: false };
            wanted.insert(MemberName::from(node.member.as_str()), target);
        }
        running.retain(|name, (target, _)| wanted.get(name).is_some_and(|wanted| wanted.is_at_the_same_place(target)));
        for (name, target) in wanted {
            running.entry(name.clone()).or_insert_with(|| {
                let local = local.as_ref().filter(|local| local.node.member == name.as_str());
                let tasks = start(&name, &target, local, &logins, &client, &targets, &probes, &events);
                (target, tasks)
            });
        }
        if let Some(failure) = wait(&mut running, &mut targets).await? {
            running.remove(&failure);
            // The next round starts it again. The pause keeps a watcher that fails at once from spinning.
            tokio::time::sleep(RESTART_PAUSE).await;
        }
    }
}

#[expect(clippy::too_many_arguments)] // the arguments of two watchers
fn start(
    name: &MemberName,
    target: &Target,
    local: Option<&Local>,
    logins: &Logins,
    client: &PatroniClient,
    targets: &latest::Receiver<Targets>,
    probes: &Probes,
    events: &Events,
) -> JoinSet<Result<(), Closed>> {
    let mut tasks = JoinSet::new();
    if let Some(api) = &target.api {
        let (member, api, targets) = (name.clone(), api.clone(), targets.clone());
        let watched = patroni::Watched { member, api, is_local: local.is_some(), targets };
        tasks.spawn(patroni::watch(watched, client.clone(), events.clone()));
    }
    let place = match (local, target.postgres.clone()) {
        (Some(local), _) => Some(Place::beside(&local.node)),
        (None, postgres) => postgres.map(|(host, port)| Place::Tcp(host, port)),
    };
    let login = if local.is_some() { &logins.own } else { &logins.others };
    if let (Some(place), Some(login)) = (place, login) {
        let beside = local.map(|local| local.beside.clone());
        let probe = Arc::clone(if local.is_some() { &probes.own } else { &probes.others });
        tasks.spawn(postgres::watch(name.clone(), place, beside, login.clone(), probe, events.clone()));
    }
    tasks
}

/// Waits until the targets change or a watcher ends. Returns the member whose watcher ended.
async fn wait(
    running: &mut BTreeMap<MemberName, Watchers>,
    targets: &mut latest::Receiver<Targets>,
) -> anyhow::Result<Option<MemberName>> {
    let any_end = std::future::poll_fn(|context| {
        for (name, (_, tasks)) in running.iter_mut() {
            if let std::task::Poll::Ready(Some(end)) = tasks.poll_join_next(context) {
                return std::task::Poll::Ready((name.clone(), end));
            }
        }
        std::task::Poll::Pending
    });
    tokio::select! {
        changed = targets.changed() => {
            changed.map_err(|_| Closed)?;
            Ok(None)
        }
        (name, end) = any_end => match end {
            Ok(Ok(())) => Ok(Some(name)),
            Ok(Err(closed)) => Err(closed.into()),
            Err(error) => {
                tracing::error!(
                    event = "member_watcher_failed",
                    member = %name,
                    %error,
                    "the watcher of this member failed; the agent restarts it"
                );
                Ok(Some(name))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::postgres::real::login;
    use crate::clock::Clock;
    use crate::config::PatroniConfig;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    /// The user in the startup message of the first client.
    async fn user(listener: TcpListener) -> String {
        let (mut client, _) = listener.accept().await.unwrap();
        let length = client.read_u32().await.unwrap();
        let mut startup = vec![0; length as usize - 4];
        client.read_exact(&mut startup).await.unwrap();
        // After the version of the protocol: names and values, each ended by a zero byte.
        let fields: Vec<&str> =
            startup[4..].split(|byte| *byte == 0).map(|text| str::from_utf8(text).unwrap()).collect();
        fields.chunks(2).find(|pair| pair[0] == "user").unwrap()[1].to_owned()
    }

    #[tokio::test]
    async fn the_superuser_asks_the_local_server_and_the_configured_role_asks_the_others() {
        let (own, other) =
            (TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap());
        let place = |listener: &TcpListener| ("127.0.0.1".to_owned(), listener.local_addr().unwrap().port());
        let (host, port) = place(&own);
        let node = NodeConfig {
            member: "a".to_owned(),
            api: "http://127.0.0.1:9".to_owned(),
            host,
            port,
            socket_dir: None,
            data_dir: None,
            alive_lock: None,
        };
        let local = Local { beside: Beside::new(&node, false), node };
        let logins = Logins { own: Some(login("super", "postgres")), others: Some(login("plain", "postgres")) };
        let target = Target { api: None, postgres: Some(place(&other)), its_agent_tells: false };
        let (_targets, targets) = latest::channel(Targets::from([("b".into(), target)]));
        let (sender, _events) = mpsc::channel(64);
        let events = Events::new(sender, Clock::start());
        let client = PatroniClient::new(&PatroniConfig::default(), "s").unwrap();
        let watching = tokio::spawn(watch(Some(local), logins, client, targets, Probes::default(), events));
        let asked = tokio::time::timeout(Duration::from_secs(10), async { tokio::join!(user(own), user(other)) });
        assert_eq!(asked.await.unwrap(), ("super".to_owned(), "plain".to_owned()));
        watching.abort();
    }
}
