//! Ended epochs leave nothing behind, and servers that come back are used again.

use crate::agent::{Agent, Names};
use crate::raw::Raw;
use crate::relay::Relay;
use crate::server::{Network, Server};
use anyhow::ensure;
use std::time::{Duration, Instant};
use warden::client::zookeeper::Node;
use warden_e2e::wait::until;

const LONG: Duration = Duration::from_secs(60);

/// Fails for a client that only drops the library's client. Its tasks, its connection and its session go on.
pub async fn ten_breaks() -> anyhow::Result<()> {
    let server = Server::start("breaks").await?;
    let relay = Relay::start(server.address).await?;
    let mut settings = Names::new("breaks").settings(&[relay.host()]);
    settings.session_timeout = Duration::from_secs(4);
    let agent = Agent::spawn(settings);
    agent.connected(0, LONG).await?;
    agent.passes(2).await?;
    let before = held(&server, &relay).await?;
    ensure!(before.open == 1 && before.sessions == 1, "{before:?}");

    for round in 0..10 {
        let mark = agent.mark();
        if round % 2 == 0 {
            relay.cut()
        } else {
            relay.reset()
        }
        agent.connected(mark, LONG).await?;
        agent.passes(1).await?;
    }
    // A session without its connection can only end by its timeout, which is due by now.
    until("as much is held as before", LONG, || async {
        let after = held(&server, &relay).await?;
        ensure!(after == before, "before: {before:?}, after: {after:?}");
        Ok(())
    })
    .await?;
    agent.shutdown().await?;
    until("nothing is held after shutdown", LONG, || async {
        let after = held(&server, &relay).await?;
        ensure!(after.open == 0 && after.sessions == 0 && after.threads < before.threads, "{after:?}");
        Ok(())
    })
    .await
}

#[derive(Debug, PartialEq, Eq)]
struct Held {
    /// Connections through the relay.
    open: usize,
    /// The server's connections, including the one of this question.
    alive: i64,
    sessions: i64,
    threads: usize,
}

async fn held(server: &Server, relay: &Relay) -> anyhow::Result<Held> {
    Ok(Held {
        open: relay.open(),
        alive: server.gauge("zk_num_alive_connections").await?,
        sessions: server.gauge("zk_global_sessions").await?,
        threads: std::fs::read_dir("/proc/self/task")?.count(),
    })
}

/// Fails for a client that backs off too far, or that comes back without its watches.
pub async fn restarted() -> anyhow::Result<()> {
    away("restarted", |server| async move {
        server.container.restart().await?;
        Ok(server)
    })
    .await
}

/// The same after a crash and a pause.
pub async fn killed_and_started() -> anyhow::Result<()> {
    away("killed", |server| async move {
        server.container.kill().await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        server.container.start().await?;
        Ok(server)
    })
    .await
}

async fn away<F>(tag: &str, fault: impl FnOnce(Server) -> F) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<Server>>,
{
    // The network is its own. Otherwise another test's server could get the address meanwhile.
    let network = Network::create(tag).await?;
    let server = Server::start_with(tag, &network.0, &[]).await?;
    let (names, raw) = (Names::new(tag), Raw::connect(server.address).await?);
    raw.set(&names.patroni("leader"), b"a").await?;
    raw.set(&names.patroni("members/a"), b"a1").await?;
    let agent = Agent::spawn(names.settings(&[server.host()]));
    agent.sees(0, &Node::Leader, Some(b"a"), LONG).await?;
    agent.passes(1).await?;
    drop(raw);

    let mark = agent.mark();
    let server = fault(server).await?;
    server.up().await?;
    let up = Instant::now();
    let raw = Raw::connect(server.address).await?;
    raw.set(&names.patroni("leader"), b"b").await?;
    raw.delete(&names.patroni("members/a")).await?;
    raw.set(&names.patroni("members/b"), b"b1").await?;

    agent.lost(mark, LONG).await?;
    let session = agent.connected(mark, LONG).await?;
    let back = session.at.saturating_duration_since(up);
    // The longest pause is 5 s. A client that backs off without a bound has reached longer ones by now.
    ensure!(back < Duration::from_secs(20), "back after {back:?}");
    let mark_of_reconnect = mark;
    agent.sees(mark_of_reconnect, &Node::Leader, Some(b"b"), LONG).await?;
    agent.sees(mark_of_reconnect, &Node::Member("b".to_owned()), Some(b"b1"), LONG).await?;
    agent.passes(1).await?;
    // The watches report it as well.
    let mark = agent.mark();
    raw.set(&names.patroni("leader"), b"c").await?;
    agent.sees(mark, &Node::Leader, Some(b"c"), LONG).await?;
    agent.shutdown().await.map(drop)
}
