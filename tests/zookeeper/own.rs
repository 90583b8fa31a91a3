//! The agent's own znodes: kept, taken over, protected, and gone with the agent.

use crate::agent::{Agent, Names, digest as credentials, record};
use crate::raw::Raw;
use crate::relay::{Deaf, Greeting, Relay};
use crate::server::{Server, unused_address};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use warden::client::zookeeper::{self, EndReason, Node, Reports, Update};
use warden::clock::Clock;
use warden::secret::Secret;
use warden_e2e::wait::until;
use zookeeper_async::ZkError;

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);

/// The limit for a shutdown in any state of the network.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Fails for a client that takes an abandoned write for one that was not made. The old session's write is held back on
/// the way, and overwrites the record that the new session has published since.
pub async fn late_write() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("late"), Raw::connect(server.address).await?);
    let relay = Relay::start(server.address).await?;
    let said = |note: &str| record("10.0.0.1:8009", note);
    let agent = Agent::spawn(names.settings(&[relay.host()]));
    agent.handle.publish(said("first"));
    agent.sees(0, &Node::Agent(names.agent.clone()), Some(&said("first")), LONG).await?;

    let mark = agent.mark();
    relay.hold();
    agent.handle.publish(said("given up"));
    agent.lost(mark, LONG).await?;
    agent.handle.publish(said("last"));
    let second = agent.connected(mark, LONG).await?;
    let published = until("the last record", LONG, || async {
        let (data, stat) = raw.get(&names.agent()).await?.context("our znode is not there")?;
        ensure!(data == said("last") && stat.ephemeral_owner == second.id, "{}", String::from_utf8_lossy(&data));
        Ok(stat)
    })
    .await?;

    relay.release();
    until("the late write", LONG, || async {
        let (_, stat) = raw.get(&names.agent()).await?.context("our znode is not there")?;
        ensure!(stat.mzxid > published.mzxid, "it never came: this test shows nothing");
        Ok(())
    })
    .await?;
    until("the last record again", SOON, || async {
        let (data, _) = raw.get(&names.agent()).await?.context("our znode is not there")?;
        ensure!(data == said("last"), "our znode says {}", String::from_utf8_lossy(&data));
        Ok(())
    })
    .await?;
    agent.shutdown().await.map(drop)
}

/// Fails for a client that writes its znode once in each session.
pub async fn removed() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("removed"), Raw::connect(server.address).await?);
    let agent = Agent::spawn(names.settings(&[server.host()]));
    let own = record("10.0.0.1:8009", "here");
    agent.handle.publish(own.clone());
    agent.sees(0, &Node::Agent(names.agent.clone()), Some(&own), LONG).await?;
    let mark = agent.mark();
    raw.delete(&names.agent()).await?;
    agent.sees(mark, &Node::Agent(names.agent.clone()), None, SOON).await?;
    agent.sees(mark, &Node::Agent(names.agent.clone()), Some(&own), SOON).await?;
    agent.shutdown().await.map(drop)
}

/// Fails for a client that takes `NodeExists` for its own, and for one that always takes over.
pub async fn name_taken() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("taken"), Raw::connect(server.address).await?);
    let (ours, theirs) = (record("10.0.0.1:8009", ""), record("10.0.0.2:8009", ""));
    let first = Agent::spawn(names.settings(&[server.host()]));
    first.handle.publish(theirs.clone());
    first.sees(0, &Node::Agent(names.agent.clone()), Some(&theirs), LONG).await?;
    let (_, before) = raw.get(&names.agent()).await?.context("the first one's znode is not there")?;

    let second = Agent::spawn(names.settings(&[server.host()]));
    second.handle.publish(ours.clone());
    let taken = |update: &Update| match update {
        Update::NameTaken { by, .. } => Some(by.clone()),
        _ => None,
    };
    let (by, _) = second.wait(0, "that the name is taken", LONG, taken).await?;
    ensure!(by == "10.0.0.2:8009", "taken by {by}");
    second.passes(2).await?;
    let (data, after) = raw.get(&names.agent()).await?.context("the first one's znode is gone")?;
    ensure!(data == theirs && after.mzxid == before.mzxid, "the first one's znode was touched: {after:?}");

    // The name is free again. The next record goes there.
    first.shutdown().await?;
    let mark = second.mark();
    second.handle.publish(ours.clone());
    second.sees(mark, &Node::Agent(names.agent.clone()), Some(&ours), SOON).await?;
    second.shutdown().await.map(drop)
}

/// Fails for a client that dates a record by the time at which it found it. With each new session the last record of a
/// frozen agent would be fresh again.
pub async fn old_word() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("oldword"), Raw::connect(server.address).await?);
    let other = format!("{}/agents/frozen", names.own());
    raw.create_ephemeral(&other, &record("10.0.0.2:8009", "last word")).await?;
    let silence = Duration::from_secs(8);
    tokio::time::sleep(silence).await;
    let agent = Agent::spawn(names.settings(&[server.host()]));
    let dated = |update: &Update| match update {
        Update::Znode { node: Node::Agent(name), value: Some(_), at } if name == "frozen" => Some(at.elapsed()),
        _ => None,
    };
    let (age, _) = agent.wait(0, "the agent's word", LONG, dated).await?;
    ensure!(age >= silence && age < silence + LONG, "a word of {silence:?} ago is {age:?} old");
    // Reports from now on are news.
    let mark = agent.mark();
    raw.set(&other, &record("10.0.0.2:8009", "thawed")).await?;
    let (age, _) = agent.wait(mark, "the agent's new word", SOON, dated).await?;
    ensure!(age < silence, "a new word is {age:?} old");
    agent.shutdown().await?;
    raw.close().await
}

/// Fails for a client that waits until its earlier session expires, up to 40 s.
pub async fn former_life() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("former"), Raw::connect(server.address).await?);
    raw.create_ephemeral(&names.agent(), &record("10.0.0.1:8009", "killed")).await?;
    let own = record("10.0.0.1:8009", "alive");
    let agent = Agent::spawn(names.settings(&[server.host()]));
    agent.handle.publish(own.clone());
    let session = agent.connected(0, LONG).await?;
    until("our own znode in the new session", SOON, || async {
        let (data, stat) = raw.get(&names.agent()).await?.context("it is not there")?;
        ensure!(data == own && stat.ephemeral_owner == session.id, "{stat:?}");
        Ok(())
    })
    .await?;
    let taken = agent.count(0, |update| matches!(update, Update::NameTaken { .. }));
    ensure!(taken == 0, "our former life counts as another agent");
    agent.shutdown().await?;
    raw.close().await
}

/// Fails for a client that only drops the library's client. The session goes on until it expires.
pub async fn shutdown() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("shutdown"), Raw::connect(server.address).await?);
    let mut settings = names.settings(&[server.host()]);
    settings.session_timeout = Duration::from_secs(40);
    let agent = Agent::spawn(settings);
    let own = record("10.0.0.1:8009", "");
    agent.handle.publish(own.clone());
    agent.sees(0, &Node::Agent(names.agent.clone()), Some(&own), LONG).await?;
    let started = Instant::now();
    let took = agent.shutdown().await?;
    ensure!(took < SHUTDOWN, "shutdown took {took:?}");
    while raw.get(&names.agent()).await?.is_some() {
        ensure!(started.elapsed() < SHUTDOWN, "our znode outlives us");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// Fails for a client whose shutdown waits for the end of its session, for a name server's answer, or for a reader of
/// its reports.
pub async fn shutdown_in_bad_times() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let names = Names::new("bad-times");
    let relay = Relay::start(server.address).await?;
    let hangs = Agent::spawn(names.settings(&[relay.host()]));
    hangs.connected(0, LONG).await?;
    relay.hold();
    relay.greet(Greeting::Hold);
    sleep(Duration::from_millis(300)).await;
    let took = hangs.shutdown().await?;
    ensure!(took < SHUTDOWN, "on a connection that hangs: {took:?}");

    let (unused, deaf) = (unused_address(server.address)?.to_string(), Deaf::start().await?);
    for host in [unused, deaf.host(), relay.host(), "no-such-host.invalid:2181".to_owned(), "127.0.0.1:1".to_owned()] {
        for after in [50, 700] {
            let agent = Agent::spawn(names.settings(std::slice::from_ref(&host)));
            sleep(Duration::from_millis(after)).await;
            let took = agent.shutdown().await?;
            ensure!(took < SHUTDOWN, "{host} after {after} ms: {took:?}");
        }
    }

    for host in [server.host(), "127.0.0.1:1".to_owned()] {
        let (updates, _without_a_reader) = mpsc::channel(1);
        let handle =
            zookeeper::spawn(names.settings(std::slice::from_ref(&host)), Clock::start(), Reports::Raw(updates));
        // Long enough for a second report, which finds the queue full.
        sleep(Duration::from_millis(1500)).await;
        timeout(SHUTDOWN, handle.shutdown()).await.with_context(|| format!("{host}, without a reader"))?;
    }
    Ok(())
}

/// Fails for a client that authenticates only once, because the library does not repeat it after a reconnect. Fails for
/// a client whose own znodes are open to every client.
pub async fn digest() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, credential) = (Names::new("digest"), "patroni:secret");
    let (stranger, patroni) =
        (Raw::connect(server.address).await?, Raw::authenticated(server.address, credential).await?);
    let relay = Relay::start(server.address).await?;
    let leader = names.patroni("leader");
    patroni.set(&leader, b"a").await?;
    ensure!(stranger.get(&leader).await.is_err(), "the leader znode is not protected: this test shows nothing");

    let mut settings = names.settings(&[relay.host()]);
    settings.auth = credentials(credential);
    let agent = Agent::spawn(settings);
    agent.sees(0, &Node::Leader, Some(b"a"), LONG).await?;

    let mark = agent.mark();
    relay.cut();
    let second = agent.connected(mark, SOON).await?;
    agent.sees(mark, &Node::Leader, Some(b"a"), SOON).await?;
    let own = record("10.0.0.1:8009", "");
    agent.handle.publish(own.clone());
    agent.sees(mark, &Node::Agent(names.agent.clone()), Some(&own), SOON).await?;
    let (read, session) = agent.verified().await?;
    ensure!(read.is_some_and(|znode| znode.data == b"a") && session == second.id, "the barrier reads otherwise");

    for path in [names.agent(), names.barrier()] {
        let refused = stranger.try_set(&path, b"forged").await?;
        ensure!(matches!(refused, Err(ZkError::NoAuth)), "{path}: a stranger's write gives {refused:?}");
        let acl = patroni.acl(&path).await?;
        ensure!(acl.iter().all(|entry| entry.scheme == "digest"), "{path}: {acl:?}");
    }
    agent.shutdown().await.map(drop)
}

/// Fails for a client that reports "no such znode", a lost connection or nothing. It fails also for one that leaves a
/// session behind at every attempt.
pub async fn wrong_credentials() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let names = Names::new("wrong");
    let patroni = Raw::authenticated(server.address, "patroni:secret").await?;
    patroni.set(&names.patroni("leader"), b"a").await?;
    let no_such_scheme = vec![("no-such-scheme".to_owned(), Secret::new("x"))];
    for auth in [credentials("patroni:wrong"), Vec::new(), no_such_scheme.clone()] {
        let relay = Relay::start(server.address).await?;
        let mut settings = names.settings(&[relay.host()]);
        settings.auth = auth.clone();
        let agent = Agent::spawn(settings);
        let (reason, detail) = agent.lost(0, LONG).await?;
        ensure!(reason == EndReason::AuthFailed, "{auth:?}: {reason:?}: {detail}");
        ensure!(detail.contains("zookeeper.auth"), "{auth:?}: the remedy is not named: {detail}");
        sleep(Duration::from_secs(2)).await;
        ensure!(relay.accepted() < 20, "{} connections", relay.accepted());
        agent.shutdown().await?;
        // The server itself closes the connection for an unknown scheme, and the session can only expire.
        let left = auth != no_such_scheme && relay.session()?.end(server.address).await.is_ok();
        ensure!(!left, "{auth:?}: a session is left behind");
    }
    Ok(())
}

/// Fails for a client whose protection of its own tree keeps the next cluster's agents out of `/warden`.
pub async fn two_credentials() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let root = Names::new("/warden-of-two").scope;
    for cluster in ["one", "two"] {
        let names = Names::new(cluster);
        let mut settings = names.settings(&[server.host()]);
        settings.auth = credentials(&format!("{cluster}:secret"));
        settings.own = format!("{root}/{cluster}");
        let agent = Agent::spawn(settings);
        let own = record("10.0.0.1:8009", cluster);
        agent.handle.publish(own.clone());
        let seen = agent.sees(0, &Node::Agent(names.agent.clone()), Some(&own), LONG).await;
        seen.with_context(|| format!("cluster {cluster} has no znode"))?;
        let stranger = Raw::authenticated(server.address, "stranger:secret").await?;
        for path in [format!("{root}/{cluster}"), format!("{root}/{cluster}/agents/agent")] {
            let refused = stranger.try_set(&path, b"forged").await?;
            ensure!(matches!(refused, Err(ZkError::NoAuth)), "{path}: a stranger's write gives {refused:?}");
        }
        agent.shutdown().await?;
    }
    Ok(())
}
