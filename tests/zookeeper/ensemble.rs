//! Three servers. One is cut off from the others but not from the client. A plain read there is stale, which a single
//! server cannot show.

use crate::agent::{Agent, Names};
use crate::raw::Raw;
use crate::server::{Network, Server, named};
use anyhow::{Context, ensure};
use std::net::SocketAddr;
use std::time::Duration;
use warden::client::zookeeper::{Barrier, Node};
use warden_e2e::docker::docker;
use warden_e2e::wait::until;

const LONG: Duration = Duration::from_secs(60);

/// Fails for a barrier that is a plain read. It verifies a leader that was replaced long before.
pub async fn cut_off() -> anyhow::Result<()> {
    let network = Network::create("ensemble").await?;
    let servers = start(&network).await?;
    let follower = follower(&servers).await?;
    let (names, other) = (Names::new("ensemble"), servers.iter().find(|server| server.address != follower.address));
    let other = other.context("there are three")?;
    let raw = Raw::connect(other.address).await?;
    raw.set(&names.patroni("leader"), b"old").await?;

    let agent = Agent::spawn(names.settings(&[follower.host()]));
    agent.sees(0, &Node::Leader, Some(b"old"), LONG).await?;
    let (read, _) = agent.verified().await?;
    ensure!(read.is_some_and(|leader| leader.data == b"old"), "the barrier reads otherwise");
    let there = Raw::connect(follower.address).await?;

    follower.container.unplug(&network.0).await?;
    raw.set(&names.patroni("leader"), b"new").await?;
    let (stale, _) = there.get(&names.patroni("leader")).await?.context("no leader")?;
    ensure!(stale == b"old", "a plain read is not stale: this test shows nothing");
    for _ in 0..3 {
        let barrier = agent.handle.raw_barrier(Duration::from_millis(500)).await;
        ensure!(matches!(barrier, Barrier::Unknown { .. }), "a server that is cut off has verified {barrier:?}");
    }
    let (stale, _) = there.get(&names.patroni("leader")).await?.context("no leader")?;
    ensure!(stale == b"old", "a plain read was no longer stale: this test shows nothing");

    // With a second server the client finds the true leader.
    agent.shutdown().await?;
    let agent = Agent::spawn(names.settings(&[follower.host(), other.host()]));
    until("a verified leader", LONG, || async {
        let barrier = agent.handle.raw_barrier(Duration::from_secs(1)).await;
        let Barrier::Verified { leader: Some(leader), .. } = barrier else { anyhow::bail!("{barrier:?}") };
        ensure!(leader.data == b"new", "verified {leader:?}");
        Ok(())
    })
    .await?;
    agent.shutdown().await.map(drop)
}

/// Three servers that reach each other in `network`. The client reaches them in Docker's own network.
async fn start(network: &Network) -> anyhow::Result<Vec<Server>> {
    let tags = ["e1", "e2", "e3"];
    let members: Vec<String> =
        (1..).zip(tags).map(|(id, tag)| format!("server.{id}={}:2888:3888", named(tag))).collect();
    let mut servers = Vec::new();
    for (id, tag) in (1..).zip(tags) {
        // A server that is cut off serves its last state for 20 ticks, 40 s, before it notices. That is long enough on
        // any machine.
        let env =
            [format!("ZOO_MY_ID={id}"), format!("ZOO_SERVERS={}", members.join(" ")), "ZOO_SYNC_LIMIT=20".to_owned()];
        let mut server = Server::launch(tag, &network.0, &env).await?;
        docker(&["network", "connect", "bridge", &server.container.0]).await?;
        server.address = SocketAddr::new(server.container.ip_in("bridge").await?, server.address.port());
        servers.push(server);
    }
    for server in &servers {
        server.up().await?;
    }
    Ok(servers)
}

async fn follower(servers: &[Server]) -> anyhow::Result<&Server> {
    for server in servers {
        if server.word("srvr").await?.contains("Mode: follower") {
            return Ok(server);
        }
    }
    anyhow::bail!("an ensemble without a follower")
}
