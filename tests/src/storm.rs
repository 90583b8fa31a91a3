//! A storm: more clients than a server has slots for, coming and going, while every session is terminated. The
//! superuser session of a fence has to get through. A crowd: superusers that leave no slot free. There a fence needs
//! another way.

use crate::faults::Leader;
use crate::stack::{Stack, session, session_as};
use crate::wait;
use anyhow::{Context, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// PostgreSQL has 97 slots for ordinary users.
const CLIENTS: u64 = 120;

/// The clients are ordinary users. Their password is their name.
const USER: &str = "writer";

/// Clients at work. Dropping this ends them.
#[derive(Debug)]
pub struct Storm {
    refused: Arc<AtomicU64>,
    _clients: JoinSet<()>,
}

impl Storm {
    /// Clients connect to the server of a node, stay for some seconds, and connect again. Writers must have started
    /// before, because they create the user.
    pub fn start(stack: &Stack, service: &str) -> Self {
        let port = stack.node_port(service);
        let refused = Arc::new(AtomicU64::new(0));
        let mut clients = JoinSet::new();
        for nth in 0..CLIENTS {
            clients.spawn(client(port, nth, Arc::clone(&refused)));
        }
        Self { refused, _clients: clients }
    }

    /// Waits until no slot is free.
    pub async fn until_full(&self) -> anyhow::Result<()> {
        wait::until("the server refuses clients for want of room", Duration::from_secs(120), || async {
            let refused = self.refused.load(Ordering::Relaxed);
            ensure!(refused >= 20, "{refused} were refused");
            Ok(())
        })
        .await
    }
}

async fn client(port: u16, nth: u64, refused: Arc<AtomicU64>) {
    // The clients do not start all at once. The test wants a server without a free slot, not an overloaded machine.
    sleep(Duration::from_millis(nth * 25)).await;
    loop {
        match session_as(port, USER).await {
            Ok(session) => {
                // The sleep ends early when the session is terminated.
                let stay = Duration::from_millis(3000 + nth * 37 % 2000);
                drop(
                    timeout(stay, async {
                        while !session.is_closed() {
                            sleep(Duration::from_millis(200)).await;
                        }
                    })
                    .await,
                );
            }
            Err(_) => {
                refused.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(500 + nth * 13 % 500)).await;
            }
        }
    }
}

/// `pg_terminate_backend` of every client session of a node's server: the agents', Patroni's, the writers'.
pub async fn terminate_all_sessions(stack: &Stack, service: &str) -> anyhow::Result<()> {
    let port = stack.node_port(service);
    // In a storm even a superuser may need a second attempt.
    let client = wait::until("a superuser's session", Duration::from_secs(60), || session(port)).await?;
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
    let terminated =
        timeout(Duration::from_secs(60), client.query_one(terminate, &[])).await.context("no answer")??;
    let terminated: i64 = terminated.get(0);
    ensure!(terminated > 0, "no session was terminated");
    Ok(())
}

/// Superusers that take every slot of a server, including the reserved ones, until the server is stopped or this is
/// dropped. They terminate every session that an agent has for a fence, and take its slot.
#[derive(Debug)]
pub struct Crowd {
    _keeper: JoinSet<()>,
}

impl Crowd {
    /// The superusers connect to the server of a node, and stay.
    pub fn start(stack: &Stack, service: &str) -> Self {
        let mut keeper = JoinSet::new();
        keeper.spawn(take_all_room(stack.node_port(service)));
        Self { _keeper: keeper }
    }
}

async fn take_all_room(port: u16) {
    let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'warden-fence'";
    let mut held: Vec<Client> = Vec::new();
    // Only a stop of the server ends these sessions. It needs free slots when it comes back.
    while !held.iter().any(Client::is_closed) {
        match session(port).await {
            Ok(new) => held.push(new),
            // No slot is free for now.
            Err(_) => sleep(Duration::from_millis(20)).await,
        }
        if let Some(first) = held.first() {
            drop(timeout(Duration::from_secs(3), first.simple_query(terminate)).await);
        }
    }
}

/// Waits until the agent beside the leader has its fence session again, according to its metrics.
pub async fn until_ready_to_fence(stack: &Stack, leader: &Leader) -> anyhow::Result<()> {
    until_session(stack, leader, true).await
}

/// Waits until the agent reports that it cannot have one.
pub async fn until_without_session(stack: &Stack, leader: &Leader) -> anyhow::Result<()> {
    until_session(stack, leader, false).await
}

async fn until_session(stack: &Stack, leader: &Leader, wanted: bool) -> anyhow::Result<()> {
    let agent = leader.agent.clone();
    let url = format!("http://{}:8010/metrics", agent.ip().await?);
    let http = reqwest::Client::builder().timeout(Duration::from_secs(5)).no_proxy().build()?;
    let (has, value) = if wanted { ("has its session again", " 1") } else { ("has no session", " 0") };
    let what = format!("the agent of {} {has} on {}", leader.member, stack.project);
    wait::until(&what, Duration::from_secs(120), || async {
        let text = http.get(&url).send().await?.text().await?;
        let ready =
            text.lines().find(|line| line.starts_with("warden_fence_session_ready")).context("no such metric")?;
        ensure!(ready.ends_with(value), "{ready}");
        Ok(())
    })
    .await
}
