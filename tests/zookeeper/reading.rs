//! Reads: by watches that do not pile up, below a chroot, linearizable, and of any content.

use crate::agent::{Agent, Names, record};
use crate::raw::Raw;
use crate::server::Server;
use anyhow::{Context, ensure};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio::time::sleep;
use warden::client::zookeeper::{EndReason, Node, Update};
use warden_e2e::agent_log::field;

const LONG: Duration = Duration::from_secs(60);

/// Fails for a client that arms watches by the library's `*_w` methods. Each pass adds a closure, and each closure
/// reports the next change.
pub async fn watches_do_not_pile_up() -> anyhow::Result<()> {
    let server = Server::start("watches").await?;
    let (names, raw) = (Names::new("watches"), Raw::connect(server.address).await?);
    let leader = names.patroni("leader");
    for name in ["leader", "members/a", "members/b", "config"] {
        raw.set(&names.patroni(name), b"0").await?;
    }
    let agent = Agent::spawn(names.settings(&[server.host()]));
    agent.handle.publish(record("10.0.0.1:8009", ""));
    agent.passes(3).await?;
    let armed = server.gauge("zk_watch_count").await?;
    ensure!(armed >= 10, "{armed} watches on more znodes");

    agent.passes(4).await?;
    let later = server.gauge("zk_watch_count").await?;
    ensure!(later == armed, "{armed} watches, and after four more passes {later}");

    let mark = agent.mark();
    for change in 1..=10 {
        let data = change.to_string().into_bytes();
        raw.set(&leader, &data).await?;
        agent.sees(mark, &Node::Leader, Some(&data), LONG).await?;
    }
    agent.passes(2).await?;
    let reports = agent.count(mark, |update| matches!(update, Update::Znode { node: Node::Leader, .. }));
    ensure!(reports == 10, "10 changes made {reports} reports:\n{}", agent.told(mark));
    let other = agent.count(mark, |update| matches!(update, Update::Znode { .. })) - reports;
    ensure!(other == 0, "{other} reports of znodes that have not changed:\n{}", agent.told(mark));
    let later = server.gauge("zk_watch_count").await?;
    ensure!(later == armed, "{armed} watches, and after ten changes {later}");
    agent.shutdown().await.map(drop)
}

/// Fails for a client that only polls, and for one that takes a missing chroot for an empty tree.
pub async fn chroot() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let raw = Raw::connect(server.address).await?;
    let mut names = Names::new("chroot");
    names.chroot = format!("/apps/{}", names.scope);
    let agent = Agent::spawn(names.settings(&[server.host()]));
    let (reason, detail) = agent.lost(0, LONG).await?;
    ensure!(reason == EndReason::ChrootMissing && detail.contains(&names.chroot), "{reason:?}: {detail}");
    sleep(Duration::from_secs(1)).await;
    ensure!(raw.get(&names.chroot).await?.is_none(), "a client has created the missing chroot");

    raw.set(&names.patroni("leader"), b"0").await?;
    agent.sees(0, &Node::Leader, Some(b"0"), LONG).await?;
    agent.handle.publish(record("10.0.0.1:8009", ""));
    agent.sees(0, &Node::Agent(names.agent.clone()), Some(&record("10.0.0.1:8009", "")), LONG).await?;
    let (read, _) = agent.verified().await?;
    ensure!(read.is_some_and(|leader| leader.data == b"0"), "the barrier reads otherwise");
    for path in [names.agent(), names.barrier()] {
        ensure!(raw.get(&path).await?.is_some(), "{path} is not there");
    }

    // A busy machine gets three chances. To pass one by luck is practically impossible.
    let mut slow = 0;
    while let Err(error) = by_watches(&agent, &raw, &names).await {
        slow += 1;
        ensure!(slow < 3, "{error:#}");
    }
    agent.shutdown().await.map(drop)
}

/// Fails if the client sees changes only in its pass every second, which needs 500 ms on average.
async fn by_watches(agent: &Agent, raw: &Raw, names: &Names) -> anyhow::Result<()> {
    let mut latencies = Vec::new();
    for change in 1..=20_u32 {
        let data = change.to_string().into_bytes();
        let mark = agent.mark();
        let started = Instant::now();
        raw.set(&names.patroni("leader"), &data).await?;
        let seen = agent.sees(mark, &Node::Leader, Some(&data), LONG).await?;
        latencies.push(seen.duration_since(started));
        sleep(Duration::from_millis(u64::from(change) * 7)).await;
    }
    let fast = latencies.iter().filter(|latency| **latency < Duration::from_millis(350)).count();
    ensure!(fast >= 15, "only {fast} of 20 changes were seen within 350 ms: {latencies:?}");
    Ok(())
}

/// Fails for a barrier that answers from the watches' data. (`ensemble` shows that it is more than a plain read: a
/// single server's reads are never stale.)
pub async fn barrier() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("barrier"), Raw::connect(server.address).await?);
    let leader = names.patroni("leader");
    let agent = Agent::spawn(names.settings(&[server.host()]));
    let session = agent.connected(0, LONG).await?;
    let (none, _) = agent.verified().await?;
    ensure!(none.is_none(), "a leader that is not there was verified");
    for round in 0..100 {
        let data = format!("leader-{round}").into_bytes();
        raw.set(&leader, &data).await?;
        let asked = Instant::now();
        let (read, of) = agent.verified().await?;
        let read = read.context("no leader")?;
        ensure!(read.data == data, "round {round}: verified {:?}", String::from_utf8_lossy(&read.data));
        ensure!(of == session.id, "read in another session");
        let (_, stat) = raw.get(&leader).await?.context("no leader")?;
        ensure!(read.czxid == stat.czxid && read.mzxid == stat.mzxid && read.version == stat.version, "{read:?}");
        ensure!(asked.elapsed() < Duration::from_secs(5), "a barrier took {:?}", asked.elapsed());
    }
    raw.delete(&leader).await?;
    let (none, _) = agent.verified().await?;
    ensure!(none.is_none(), "a leader that is gone was verified");
    agent.shutdown().await.map(drop)
}

/// Fails for a barrier that touches Patroni's leader znode, and for a client that creates missing znodes.
pub async fn never_written() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("never"), Raw::connect(server.address).await?);
    // `members`, `sync`, `failover` and others are missing. No client may create them.
    for name in ["leader", "config", "status"] {
        raw.set(&names.patroni(name), b"0").await?;
    }
    let before = raw.dump(&names.tree()).await?;
    ensure!(before.len() == 4, "{before:?}");
    let agent = Agent::spawn(names.settings(&[server.host()]));
    agent.handle.publish(record("10.0.0.1:8009", ""));
    agent.passes(2).await?;
    for _ in 0..10 {
        agent.verified().await?;
    }
    ensure!(raw.get(&names.barrier()).await?.is_some(), "the barrier znode is not where it should be");
    ensure!(!names.barrier().starts_with(&names.tree()), "{} is in Patroni's tree", names.barrier());
    agent.shutdown().await?;
    let after = raw.dump(&names.tree()).await?;
    ensure!(after == before, "before: {before:#?}\nafter: {after:#?}");
    Ok(())
}

/// Fails for a client that takes znodes for text, and for one whose IO task ends with a panic.
pub async fn hostile_content() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("hostile"), Raw::connect(server.address).await?);
    let agent = Agent::spawn(names.settings(&[server.host()]));
    let first = agent.connected(0, LONG).await?;
    let big = vec![b'x'; 500_000];
    let contents: [&[u8]; 5] = [b"\xff\xfe\x00\x80", b"", &big, b"{\"", b"in order again"];
    for node in [Node::Leader, Node::Config, Node::Sync, Node::Member("m".to_owned())] {
        for data in contents {
            let name = match &node {
                Node::Member(name) => format!("members/{name}"),
                fixed => format!("{fixed:?}").to_lowercase(),
            };
            let mark = agent.mark();
            raw.set(&names.patroni(&name), data).await?;
            agent.sees(mark, &node, Some(data), LONG).await?;
        }
    }

    let long = "n".repeat(1000);
    let odd = ["ünïcödé", "a b", " ", "%2f..%00", "..a", "-", "members", "leader", "\u{202e}txt", "'\"`$(x)", &long];
    let mark = agent.mark();
    for name in odd {
        raw.set(&names.patroni(&format!("members/{name}")), name.as_bytes()).await?;
    }
    for name in odd {
        agent.sees(mark, &Node::Member(name.to_owned()), Some(name.as_bytes()), LONG).await?;
    }
    // The client reads nothing below a member.
    raw.set(&names.patroni("members/m/below/it"), b"x").await?;

    let mark = agent.mark();
    raw.set(&names.patroni("leader"), b"alive").await?;
    agent.sees(mark, &Node::Leader, Some(b"alive"), LONG).await?;
    let (_, session) = agent.verified().await?;
    let lost = agent.count(0, |update| matches!(update, Update::Lost { .. }));
    ensure!(lost == 0 && session == first.id, "the session did not last:\n{}", agent.told(0));
    agent.shutdown().await.map(drop)
}

/// Fails for a client that reads every member, and for one that leaves some out without a report.
pub async fn too_many_members() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("too-many"), Raw::connect(server.address).await?);
    for member in 0..300 {
        raw.set(&names.patroni(&format!("members/m{member:03}")), b"x").await?;
    }
    let agent = Agent::spawn(names.settings(&[server.host()]));
    agent.passes(3).await?;
    let read = agent.members(0);
    let expected: BTreeSet<String> = (0..256).map(|member| format!("m{member:03}")).collect();
    ensure!(read == expected, "{} members were read: {read:?}", read.len());
    let complaints = crate::log::lines(&names.scope);
    let said = complaints
        .iter()
        .filter(|line| field(line, "event") == Some("znodes_too_many") && field(line, "count") == Some("300"))
        .filter(|line| line.contains(" ERROR "))
        .count();
    ensure!(said == 1, "once, and not at every pass: {complaints:?}");

    let mark = agent.mark();
    raw.set(&names.patroni("leader"), b"alive").await?;
    agent.sees(mark, &Node::Leader, Some(b"alive"), LONG).await?;
    let lost = agent.count(0, |update| matches!(update, Update::Lost { .. }));
    ensure!(lost == 0, "{}", agent.told(0));
    // A member of the list goes, and another moves up.
    raw.delete(&names.patroni("members/m000")).await?;
    agent.sees(mark, &Node::Member("m000".to_owned()), None, LONG).await?;
    agent.sees(mark, &Node::Member("m256".to_owned()), Some(b"x"), LONG).await?;
    agent.shutdown().await.map(drop)
}
