//! Which members there are to be asked, and a pair of watchers (Patroni, PostgreSQL) for each.
//!
//! The loop knows the members from ZooKeeper and publishes them as [`Targets`]; this task starts, replaces
//! and stops the watchers accordingly.

use super::beside::Beside;
use super::patroni::{self, PatroniClient};
use super::postgres::{self, Place};
use super::{Closed, Events};
use crate::config::{Config, NodeConfig, Superuser};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, watch as latest};
use tokio::task::JoinSet;
use warden_core::assess;
use warden_core::types::{MemberName, Moment};
use warden_core::view::View;

/// More members than this are not asked, loudly: each costs two questions a second.
const MAX_MEMBERS: usize = 64;

/// Where a member answers.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Target {
    /// Base address of its REST API.
    pub api: Option<String>,
    /// Its PostgreSQL over TCP.
    pub postgres: Option<(String, u16)>,
    /// Its own agent tells what its Patroni says, and that is enough here: nothing is asked of it.
    pub its_agent_tells: bool,
}

impl Target {
    /// Whether the watchers of one do for the other.
    fn is_at_the_same_place(&self, other: &Self) -> bool {
        let Self { api, postgres, its_agent_tells: _ } = self;
        (api, postgres) == (&other.api, &other.postgres)
    }
}

/// All members, by name.
pub type Targets = BTreeMap<MemberName, Target>;

/// The members of the view, as they are to be asked now: the Patroni of one whose own agent tells what it says is not.
pub fn targets_beside_agents(view: &View, now: Moment) -> Targets {
    let mut targets = targets(view);
    for (name, target) in &mut targets {
        target.its_agent_tells = assess::its_agent_tells(view, name, now);
    }
    targets
}

/// The members of the view, as they are to be asked by one that asks all of them.
pub fn targets(view: &View) -> Targets {
    let known = view.members.iter().filter_map(|(name, member)| {
        let record = member.last_record.as_ref()?;
        let (api, postgres) = (record.api.clone(), record.postgres());
        Some((name.clone(), Target { api, postgres, its_agent_tells: false }))
    });
    known.take(MAX_MEMBERS).collect()
}

/// The watchers of one member, and what they were started for.
type Watchers = (Target, JoinSet<Result<(), Closed>>);

/// Asks PostgreSQL out of turn.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// Our neighbour's.
    pub own: Arc<Notify>,
    /// Those of all the others that are waiting for their turn.
    pub others: Arc<Notify>,
    /// The local HAProxy.
    pub haproxy: Arc<Notify>,
}

/// Our neighbour.
#[derive(Clone, Debug)]
pub struct Local {
    /// As the configuration has it.
    pub node: NodeConfig,
    /// Where its server can be seen without a session.
    pub beside: Beside,
}

impl Local {
    /// As the configuration has it.
    pub fn of(config: &Config) -> Option<Self> {
        let node = config.node.clone()?;
        let beside = Beside::new(&node, config.release.handover);
        Some(Self { node, beside })
    }
}

/// How to log in to PostgreSQL.
#[derive(Clone, Debug, Default)]
pub struct Logins {
    /// To our neighbour's: the superuser's.
    pub own: Option<Superuser>,
    /// To all others: an ordinary role's, where one is configured.
    pub others: Option<Superuser>,
}

impl Logins {
    /// As the configuration has it.
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
            // The local member is asked where the configuration says, whether ZooKeeper knows it or not.
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
            // Started anew in the next round; the pause keeps a watcher that fails at once from spinning.
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}

#[expect(clippy::too_many_arguments)] // all that two watchers stand on, named once
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

/// Waits until the targets change or a watcher ends; names the member whose watcher ended by a panic.
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
                tracing::error!(member = %name, %error, "a watcher of this member failed; it is started again");
                Ok(Some(name))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::config::PatroniConfig;
    use crate::watch::real_postgres::login;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    /// As whom the first client wants in.
    async fn user(listener: TcpListener) -> String {
        let (mut client, _) = listener.accept().await.unwrap();
        let length = client.read_u32().await.unwrap();
        let mut startup = vec![0; length as usize - 4];
        client.read_exact(&mut startup).await.unwrap();
        // Behind the protocol's version: names and values, each with a zero behind it.
        let fields: Vec<&str> =
            startup[4..].split(|byte| *byte == 0).map(|text| str::from_utf8(text).unwrap()).collect();
        fields.chunks(2).find(|pair| pair[0] == "user").unwrap()[1].to_owned()
    }

    #[tokio::test]
    async fn our_own_server_is_asked_by_the_superuser_and_the_others_by_the_role_for_that() {
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
        let asked =
            tokio::time::timeout(std::time::Duration::from_secs(10), async { tokio::join!(user(own), user(other)) });
        assert_eq!(asked.await.unwrap(), ("super".to_owned(), "plain".to_owned()));
        watching.abort();
    }
}
