//! Connections and sessions that end, which the library hides.

use crate::agent::{Agent, Names, record};
use crate::raw::Raw;
use crate::relay::{Greeting, Relay};
use crate::server::Server;
use anyhow::{Context, ensure};
use std::time::Duration;
use tokio::time::sleep;
use warden::client::zookeeper::Node;
use warden_e2e::wait::until;

/// The limit until the client reports a change that happened without a connection. It takes seconds; the machine may be
/// busy.
const SOON: Duration = Duration::from_secs(30);

const LONG: Duration = Duration::from_secs(60);

/// Fails for a client that lets the library reconnect. The session survives, every watch is silently lost, and the
/// client reports nothing.
pub async fn cut() -> anyhow::Result<()> {
    broken("cut", Relay::cut).await
}

/// The same, for a connection that ends by a reset.
pub async fn reset() -> anyhow::Result<()> {
    broken("reset", Relay::reset).await
}

async fn broken(scope: &str, hurt: fn(&Relay)) -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw, relay) =
        (Names::new(scope), Raw::connect(server.address).await?, Relay::start(server.address).await?);
    let (leader, config) = (names.patroni("leader"), names.patroni("config"));
    let (stays, goes, comes) = (names.patroni("members/a"), names.patroni("members/b"), names.patroni("members/c"));
    for (path, data) in [(&leader, "a"), (&config, "1"), (&stays, "a1"), (&goes, "b1")] {
        raw.set(path, data.as_bytes()).await?;
    }
    let agent = Agent::spawn(names.settings(&[relay.host()]));
    let first = agent.connected(0, LONG).await?;
    agent.handle.publish(record("10.0.0.1:8009", "first"));
    agent.sees(0, &Node::Agent(names.agent.clone()), Some(&record("10.0.0.1:8009", "first")), LONG).await?;
    agent.passes(1).await?;

    let mark = agent.mark();
    relay.greet(Greeting::Refuse);
    hurt(&relay);
    raw.set(&leader, b"b").await?;
    raw.set(&config, b"2").await?;
    raw.set(&comes, b"c1").await?;
    raw.delete(&goes).await?;
    sleep(Duration::from_millis(300)).await;
    let (_, stat) = raw.get(&names.agent()).await?.context("the old session is over")?;
    ensure!(stat.ephemeral_owner == first.id, "this test is about a session that survives on the server");
    relay.greet(Greeting::Forward);

    agent.lost(mark, LONG).await?;
    let second = agent.connected(mark, SOON).await?;
    ensure!(second.id != first.id, "a new connection in the old session, without its watches");
    let member = |name: &str| Node::Member(name.to_owned());
    agent.sees(mark, &Node::Leader, Some(b"b"), SOON).await?;
    agent.sees(mark, &Node::Config, Some(b"2"), SOON).await?;
    agent.sees(mark, &member("c"), Some(b"c1"), SOON).await?;
    agent.sees(mark, &member("a"), Some(b"a1"), SOON).await?;
    let gone = agent.count(mark, |update| format!("{update:?}").contains("Member(\"b\"), value: Some"));
    ensure!(gone == 0, "a member that is gone was reported:\n{}", agent.told(mark));

    // The watches are armed again afterwards.
    let mark = agent.mark();
    raw.set(&leader, b"c").await?;
    raw.set(&config, b"3").await?;
    raw.set(&goes, b"b2").await?;
    raw.delete(&comes).await?;
    agent.sees(mark, &Node::Leader, Some(b"c"), SOON).await?;
    agent.sees(mark, &Node::Config, Some(b"3"), SOON).await?;
    agent.sees(mark, &member("b"), Some(b"b2"), SOON).await?;
    agent.sees(mark, &member("c"), None, SOON).await?;
    raw.delete(&leader).await?;
    agent.sees(mark, &Node::Leader, None, SOON).await?;
    agent.shutdown().await.map(drop)
}

/// Fails for a client that lets the library reconnect. The library reports `Connected` again, and the ephemeral znode
/// is gone for good.
pub async fn expired() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw, relay) =
        (Names::new("expired"), Raw::connect(server.address).await?, Relay::start(server.address).await?);
    let own = record("10.0.0.1:8009", "here");
    let agent = Agent::spawn(names.settings(&[relay.host()]));
    agent.handle.publish(own.clone());
    let first = agent.connected(0, LONG).await?;
    agent.sees(0, &Node::Agent(names.agent.clone()), Some(&own), LONG).await?;

    let session = relay.session()?;
    ensure!(session.id == first.id, "reported {:x}, granted {:x}", first.id, session.id);
    let mark = agent.mark();
    // Meanwhile the library must not get its session back. Otherwise the test would close this connection.
    relay.greet(Greeting::Refuse);
    session.end(server.address).await?;
    relay.greet(Greeting::Forward);

    agent.lost(mark, SOON).await?;
    let second = agent.connected(mark, SOON).await?;
    ensure!(second.id != first.id, "the session that is over is reported as alive");
    until("our own znode with the new owner", SOON, || async {
        let (data, stat) = raw.get(&names.agent()).await?.context("it is not there")?;
        ensure!(stat.ephemeral_owner == second.id && data == own, "{stat:?}");
        Ok(())
    })
    .await?;
    agent.shutdown().await.map(drop)
}

/// The same by time. The connection hangs until the server has expired the session. A client without time limits on
/// requests notices nothing for two thirds of the session timeout, and then reports nothing.
pub async fn hung() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw, relay) =
        (Names::new("hung"), Raw::connect(server.address).await?, Relay::start(server.address).await?);
    let own = record("10.0.0.1:8009", "here");
    let mut settings = names.settings(&[relay.host()]);
    settings.session_timeout = Duration::from_secs(4);
    let agent = Agent::spawn(settings);
    agent.handle.publish(own.clone());
    let first = agent.connected(0, LONG).await?;
    agent.sees(0, &Node::Agent(names.agent.clone()), Some(&own), LONG).await?;

    let mark = agent.mark();
    relay.greet(Greeting::Hold);
    relay.hold();
    agent.lost(mark, LONG).await?;
    until("the server gives the session up", LONG, || async {
        ensure!(raw.get(&names.agent()).await?.is_none(), "our znode is still there");
        Ok(())
    })
    .await?;
    ensure!(agent.connected(mark, Duration::ZERO).await.is_err(), "a session through a connection that hangs");

    relay.greet(Greeting::Forward);
    let second = agent.connected(mark, LONG).await?;
    ensure!(second.id != first.id, "the session that is over is reported as alive");
    agent.sees(mark, &Node::Agent(names.agent.clone()), Some(&own), SOON).await?;
    let (_, stat) = raw.get(&names.agent()).await?.context("our znode is not there")?;
    ensure!(stat.ephemeral_owner == second.id, "{stat:?}");
    agent.shutdown().await.map(drop)
}
