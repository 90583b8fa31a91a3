//! Finding a server: hosts with every kind of fault, and session timeouts on which the library spins.

use crate::agent::{Agent, Names, record};
use crate::raw::Raw;
use crate::relay::{Deaf, Greeting, Relay};
use crate::server::{Server, unused_address};
use anyhow::{Context, ensure};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::sleep;
use warden::client::zookeeper::{EndReason, Update};

const LONG: Duration = Duration::from_secs(60);

/// How long the attempts at a host are counted.
const WATCHED: Duration = Duration::from_secs(3);

/// More connections than this within [`WATCHED`] are a storm. With full jitter there are 4 to 7 epochs in that time, of
/// up to three connections each: the probe, the library's, and the library's next before it reports the first. Without
/// Warden's client the library made 8,000.
const ATTEMPTS: usize = 40;

/// More CPU time than this within [`WATCHED`] is a busy loop. Measured: 0.6 to 1.7 s with one, 0 to 30 ms without.
const CPU: Duration = Duration::from_millis(300);

/// Fails for a client that connects through the library alone, whose loop has no pause.
pub async fn nothing_reachable() -> anyhow::Result<()> {
    // The connection is refused: the port was free a moment ago.
    let refused = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let unused = unused_address(Server::shared().await?.address)?;
    let deaf = Deaf::start().await?;
    let hosts = [refused.to_string(), unused.to_string(), deaf.host()];
    let agent = Agent::spawn(Names::new("nothing").settings(&hosts));
    let used = cpu_time_over(WATCHED).await?;
    let (reason, detail) = agent.lost(0, LONG).await?;
    ensure!(reason == EndReason::Unreachable, "{reason:?}: {detail}");
    ensure!(hosts.iter().all(|host| detail.contains(host.as_str())), "it names each host: {detail}");
    let attempts = agent.count(0, |update| matches!(update, Update::Lost { .. }));
    ensure!(attempts < ATTEMPTS, "{attempts} attempts");
    ensure!(used < CPU, "{used:?} of CPU time");
    Ok(())
}

/// Fails for a client that waits until the library is connected. The library reconnects without a pause and without a
/// report.
pub async fn closed_at_once() -> anyhow::Result<()> {
    not_stormed("closed", Greeting::Close).await
}

/// Fails for a client that probes with an empty connection.
pub async fn closed_when_asked() -> anyhow::Result<()> {
    not_stormed("asked", Greeting::CloseWhenAsked).await
}

/// Fails for a client that leaves the connection to the library once the server has answered its own probe.
pub async fn gone_after_the_probe() -> anyhow::Result<()> {
    not_stormed("after-probe", Greeting::CloseThenRefuse).await
}

/// Fails for a client that waits until the library understands the answer.
pub async fn gibberish() -> anyhow::Result<()> {
    not_stormed("gibberish", Greeting::Gibberish).await
}

/// Fails for a client that connects without a time limit. It reports nothing at all.
pub async fn silent() -> anyhow::Result<()> {
    not_stormed("silent", Greeting::Hold).await
}

async fn not_stormed(scope: &str, greeting: Greeting) -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let relay = Relay::start(server.address).await?;
    relay.greet(greeting);
    let agent = Agent::spawn(Names::new(scope).settings(&[relay.host()]));
    let used = cpu_time_over(WATCHED).await?;
    let attempts = relay.accepted();
    ensure!(attempts > 0, "no client connected");
    ensure!(attempts < ATTEMPTS, "{attempts} connections in {WATCHED:?}");
    ensure!(used < CPU, "{used:?} of CPU time in {WATCHED:?}");
    agent.lost(0, LONG).await?;
    // When the host is well again, the client uses it.
    relay.greet(Greeting::Forward);
    agent.connected(0, LONG).await?;
    Ok(())
}

/// The CPU time of this process during this wait, over all threads.
async fn cpu_time_over(span: Duration) -> anyhow::Result<Duration> {
    let before = cpu_time()?;
    sleep(span).await;
    Ok(cpu_time()? - before)
}

/// proc(5): fields 14 and 15 of `stat`, user and system time, in hundredths of a second.
fn cpu_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = stat.rsplit_once(')').context("/proc/self/stat")?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

/// Fails for a client that gives the library the whole list. One name that does not resolve fails the whole list, and a
/// first host that drops packets blocks it. (Docker's port forwarding accepts and closes connections for a container
/// that is down.)
pub async fn bad_hosts_beside_a_good_one() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (deaf, closes) = (Deaf::start().await?, Relay::start(server.address).await?);
    closes.greet(Greeting::Close);
    for _ in 0..6 {
        let unused = unused_address(server.address)?.to_string();
        let unresolvable = "no-such-host.invalid:2181".to_owned();
        let hosts = [unused, deaf.host(), closes.host(), unresolvable, server.host()];
        let agent = Agent::spawn(Names::new("bad-hosts").settings(&hosts));
        // On a busy machine even the good host may be too slow for a probe. The next attempt finds it.
        let session = agent.connected(0, LONG).await?;
        ensure!(session.server.contains(&server.host()), "connected to {}", session.server);
        agent.shutdown().await?;
    }
    Ok(())
}

/// Fails for a client that passes the timeout on. The library takes it as a reason to reconnect forever.
pub async fn short_timeout() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let relay = Relay::start(server.address).await?;
    let mut settings = Names::new("short-timeout").settings(&[relay.host()]);
    settings.session_timeout = Duration::from_millis(500);
    let agent = Agent::spawn(settings);
    let session = agent.connected(0, LONG).await?;
    ensure!(session.requested == Duration::from_millis(500), "{session:?}");
    ensure!(session.negotiated == Duration::from_secs(4), "the server's shortest is two ticks: {session:?}");
    sleep(WATCHED).await;
    let lost = agent.count(0, |update| matches!(update, Update::Lost { .. }));
    ensure!(lost == 0, "the session did not last:\n{}", agent.told(0));
    // The probe and the connection.
    ensure!(relay.accepted() <= 2, "{} connections", relay.accepted());
    agent.shutdown().await.map(drop)
}

/// Fails for a client that assumes the timeout that it asked for.
pub async fn session_timeout() -> anyhow::Result<()> {
    let server = Server::shared().await?;
    let (names, raw) = (Names::new("session-timeout"), Raw::connect(server.address).await?);
    let mut settings = names.settings(&[server.host()]);
    settings.session_timeout = Duration::from_secs(60);
    let agent = Agent::spawn(settings);
    agent.handle.publish(record("10.0.0.1:8009", ""));
    let first = agent.connected(0, LONG).await?;
    ensure!(first.requested == Duration::from_secs(60), "{first:?}");
    ensure!(first.negotiated == Duration::from_secs(40), "the server's longest is 20 ticks: {first:?}");
    agent.passes(1).await?;

    let mark = agent.mark();
    agent.handle.set_session_timeout(Duration::from_secs(8));
    let (reason, _) = agent.lost(mark, LONG).await?;
    ensure!(reason == EndReason::SettingsChanged, "{reason:?}");
    let second = agent.connected(mark, LONG).await?;
    ensure!(second.id != first.id && second.negotiated == Duration::from_secs(8), "{second:?}");
    agent.passes(1).await?;
    let (_, stat) = raw.get(&names.agent()).await?.context("our znode is not there")?;
    ensure!(stat.ephemeral_owner == second.id, "our znode is still the old session's");

    // An unchanged timeout changes nothing.
    let mark = agent.mark();
    agent.handle.set_session_timeout(Duration::from_secs(8));
    agent.passes(2).await?;
    let ended = agent.count(mark, |update| matches!(update, Update::Lost { .. }));
    ensure!(ended == 0, "{}", agent.told(mark));
    agent.shutdown().await.map(drop)
}
