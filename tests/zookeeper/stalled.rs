//! A server that stalls: its connections stay open, and no byte comes.

use crate::agent::{Agent, Names, record};
use crate::raw::Raw;
use crate::server::Server;
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use warden::client::zookeeper::{Barrier, Node};
use warden_e2e::wait::until;

const LONG: Duration = Duration::from_secs(60);

/// Fails for a client without time limits (the library waited 12 s and more), and for one that answers a barrier from
/// its memory.
pub async fn paused() -> anyhow::Result<()> {
    let server = Server::start("paused").await?;
    let (names, raw) = (Names::new("paused"), Raw::connect(server.address).await?);
    let said = |note: &str| record("10.0.0.1:8009", note);
    raw.set(&names.patroni("leader"), b"a").await?;
    let agent = Agent::spawn(names.settings(&[server.host()]));
    agent.handle.publish(said("before"));
    agent.sees(0, &Node::Agent(names.agent.clone()), Some(&said("before")), LONG).await?;
    agent.verified().await?;

    server.container.pause().await?;
    let (mark, paused) = (agent.mark(), Instant::now());
    // The request waits in the server's socket.
    agent.handle.publish(said("given up"));
    let mut longest = Duration::ZERO;
    while paused.elapsed() < Duration::from_secs(5) {
        let asked = Instant::now();
        let barrier = agent.handle.raw_barrier(Duration::from_millis(300)).await;
        longest = longest.max(asked.elapsed());
        ensure!(matches!(barrier, Barrier::Unknown { .. }), "a server that stalls has verified {barrier:?}");
        sleep(Duration::from_millis(50)).await;
    }
    ensure!(longest < Duration::from_secs(3), "a barrier with a limit of 300 ms took {longest:?}");
    agent.lost(mark, LONG).await?;
    let (_, lost) =
        agent.wait(mark, "the end", LONG, |update| format!("{update:?}").contains("Lost").then_some(())).await?;
    let noticed = lost.duration_since(paused);
    ensure!(noticed < Duration::from_secs(10), "the stall was noticed after {noticed:?}");

    agent.handle.publish(said("last"));
    let mark = agent.mark();
    server.container.unpause().await?;
    let session = agent.connected(mark, LONG).await?;
    until("the record that was published last", LONG, || async {
        let (data, stat) = raw.get(&names.agent()).await?.context("our znode is not there")?;
        ensure!(data == said("last") && stat.ephemeral_owner == session.id, "{}", String::from_utf8_lossy(&data));
        Ok(())
    })
    .await?;
    sleep(Duration::from_secs(2)).await;
    let (data, _) = raw.get(&names.agent()).await?.context("our znode is gone")?;
    ensure!(data == said("last"), "what was given up has won: {}", String::from_utf8_lossy(&data));
    ensure!(agent.verified().await?.0.is_some_and(|leader| leader.data == b"a"), "the barrier reads otherwise");
    agent.shutdown().await.map(drop)
}

/// Fails for a client that waits until its session is closed.
pub async fn shutdown_while_paused() -> anyhow::Result<()> {
    let server = Server::start("shutdown-paused").await?;
    // Once right at the start of the stall, and once after the client has noticed it.
    for noticed in [false, true] {
        let names = Names::new(if noticed { "noticed" } else { "unnoticed" });
        let agent = Agent::spawn(names.settings(&[server.host()]));
        agent.handle.publish(record("10.0.0.1:8009", ""));
        agent.connected(0, LONG).await?;
        agent.passes(1).await?;
        let mark = agent.mark();
        server.container.pause().await?;
        if noticed {
            agent.lost(mark, LONG).await?;
        }
        let took = agent.shutdown().await?;
        server.container.unpause().await?;
        ensure!(took < Duration::from_secs(5), "noticed: {noticed}, shutdown took {took:?}");
    }
    Ok(())
}
