//! Clients follow the primary, through HAProxy: what those see that keep a session, and those that connect for each row.

use anyhow::{Context, ensure};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::stack::{NODES, Stack, session, wait_for_session};
use warden_e2e::trial::{self, Observed};
use warden_e2e::writers::{Commit, Report, Route};
use warden_e2e::{truth, wait};

/// Long enough on a busy machine, and short against what HAProxy's checks alone take, or a frozen Patroni costs without
/// somebody who knows better: half a minute.
const SOON: Duration = Duration::from_secs(10);

const ROUTER: &str = "warden-haproxy";

/// Fails if a client that connected for each row was turned away by HAProxy. What was in flight at the fault breaks off.
fn nobody_was_turned_away(report: &Report, faults: usize) -> anyhow::Result<()> {
    let story = report.stories.get(&Route::ProxyAnew).context("nobody connected anew")?;
    let in_flight = story.errors.len();
    ensure!(in_flight <= faults * 3, "{in_flight} rows failed in {faults} faults: {:?}", story.errors);
    let refused =
        story.errors.iter().find(|failure| failure.why.contains("refused") || failure.why.contains("read-only"));
    ensure!(refused.is_none(), "turned away, or sent to a standby: {refused:?}");
    Ok(())
}

/// How much longer the proxy's clients waited than PostgreSQL needed.
fn soon_after_postgres(report: &Report) -> anyhow::Result<()> {
    let own = report.nobody_writable().map_or(Duration::ZERO, |(outage, _)| outage);
    for route in [Route::Proxy, Route::ProxyAnew] {
        let outage = report.outage(route);
        ensure!(outage < own + SOON, "{outage:?} without a row where PostgreSQL took {own:?}: {report}");
    }
    Ok(())
}

async fn router_log(stack: &Stack) -> anyhow::Result<String> {
    stack.container(ROUTER).logs().await
}

/// Switchover there and back: new connections wait, and go on at the new primary; nothing is reloaded for that.
pub(crate) async fn a_switchover_is_followed(stack: &Stack) -> anyhow::Result<()> {
    let reloads = router_log(stack).await?.matches("written anew").count();
    for _ in 0..2 {
        let outcome = trial::run(stack, Fault::Switchover, Commit::Synchronous).await?;
        outcome.report.nothing_lost_and_no_two_primaries()?;
        nobody_was_turned_away(&outcome.report, 1)?;
        soon_after_postgres(&outcome.report)?;
    }
    let log = router_log(stack).await?;
    ensure!(log.matches("written anew").count() == reloads, "HAProxy was reloaded for a switchover");
    for what in ["to=\"wait\"", "to=\"up\""] {
        ensure!(log.contains(what), "{ROUTER} never told HAProxy {what}");
    }
    // Each led, and was stopped: by then its clients had to wait already. A machine that is busy may be too slow for that
    // now and then, and then the hook waits for nobody.
    let mut ended = false;
    for (node, _) in NODES {
        let log = stack.container(node).logs().await?;
        ended |= log.contains("warden before-stop: ended");
        ensure!(log.contains("warden before-stop: "), "Patroni's hook in {node} said nothing");
    }
    ensure!(ended, "Patroni's hooks ended no session");
    Ok(())
}

/// Docker's, in each container.
const NAME_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// The agent beside HAProxy has no name server any more and its sessions end: that says nothing of the servers, which
/// are healthy and which HAProxy reaches.
pub(crate) async fn a_dead_name_server_costs_no_write(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let router = stack.container(ROUTER);
    router.cut(&[NAME_SERVER]).await?;
    let outcome = async {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
            WHERE application_name = 'warden' AND client_addr IS NOT NULL";
        session(stack.node_port(leader.service)).await?.batch_execute(end).await?;
        // Until what it heard before counts no more.
        sleep(Duration::from_secs(12)).await;
        let rows = || observed.writers().pulse().acknowledged(Route::ProxyAnew);
        let before = rows();
        sleep(Duration::from_secs(3)).await;
        ensure!(rows() > before, "no client that connects now has written a row for 3 s");
        let state = stack.status(ROUTER, &[]).await?;
        let told = format!("{}", state["warnings"]);
        ensure!(told.contains("cannot be resolved"), "it does not say what is wrong: {told}");
        Ok(())
    }
    .await;
    router.heal(&[NAME_SERVER]).await?;
    outcome?;
    let (_, report, _, _) = observed.end(stack).await?;
    report.nothing_lost_and_no_two_primaries()?;
    nobody_was_turned_away(&report, 0)?;
    soon_after_postgres(&report)
}

/// The primary's node is killed.
pub(crate) async fn a_crash_is_followed(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Crash, Commit::Synchronous).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    nobody_was_turned_away(&outcome.report, 1)?;
    soon_after_postgres(&outcome.report)
}

/// HAProxy's checks ask Patroni, which hangs; its server takes writes for as long as the key is its own, and HAProxy goes
/// on sending them there. Then it goes on at the other.
pub(crate) async fn a_frozen_patroni_is_not_felt(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Freeze, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    nobody_was_turned_away(&outcome.report, 1)?;
    soon_after_postgres(&outcome.report)
}

/// HAProxy's own checks take over when its agent is gone, and what the agent told it last is not for ever.
pub(crate) async fn haproxy_goes_on_without_its_agent(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let router = stack.container(ROUTER);
    router.kill().await?;
    let second = stack.switchover(&leader.member).await;
    let followed = wait::until("writes go on through the proxy", Duration::from_secs(60), || async {
        let before = observed.writers().story(Route::ProxyAnew).acks.len();
        sleep(Duration::from_secs(1)).await;
        ensure!(observed.writers().story(Route::ProxyAnew).acks.len() > before + 5, "they do not");
        Ok(())
    })
    .await;
    router.start().await?;
    second?;
    followed?;
    let (_, report, _, _) = observed.end(stack).await?;
    report.nothing_lost_and_no_two_primaries()
}

/// A replica whose replay stands still takes no new reads; those that it has go on; the primary takes the others.
pub(crate) async fn a_replica_that_falls_back_takes_no_new_reads(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let standby = stack.node_of(warden_e2e::stack::other(&leader.member))?;
    let (primary_ip, standby_ip) = (stack.container(leader.service).ip().await?, standby.ip().await?);
    let server = || async {
        let client = wait_for_session(stack.ports.reads, SOON).await?;
        let address: String = client.query_one("SELECT host(inet_server_addr())", &[]).await?.get(0);
        anyhow::Ok((client, address))
    };
    let reads_at = |ip: std::net::IpAddr, what: &'static str| async move {
        wait::until(what, Duration::from_secs(60), || async {
            let (_, address) = server().await?;
            ensure!(address == ip.to_string(), "reads go to {address}");
            Ok(())
        })
        .await
    };
    reads_at(standby_ip, "reads go to the standby").await?;
    let (long, _) = server().await?;
    // The brackets keep it from finding itself.
    let replay = "kill -STOP $(pgrep -f '[p]ostgres: .*startup')";
    standby.exec(&["bash", "-c", replay]).await?;
    let fell = async {
        let writer = session(stack.node_port(leader.service)).await?;
        writer
            .batch_execute(
                "SET synchronous_commit = local; CREATE TABLE IF NOT EXISTS ballast (t text); \
                               ALTER TABLE ballast ALTER t SET STORAGE EXTERNAL",
            )
            .await?;
        writer
            .batch_execute("INSERT INTO ballast SELECT repeat(md5(i::text), 100) FROM generate_series(1, 20000) i")
            .await?;
        reads_at(primary_ip, "reads go to the primary").await?;
        // The session that was there before is still served by the standby.
        let row = timeout(SOON, long.query_one("SELECT host(inet_server_addr()), pg_is_in_recovery()", &[])).await??;
        ensure!(row.get::<_, String>(0) == standby_ip.to_string() && row.get::<_, bool>(1), "the long read was moved");
        anyhow::Ok(())
    }
    .await;
    standby.exec(&["bash", "-c", &replay.replace("STOP", "CONT")]).await?;
    fell?;
    reads_at(standby_ip, "reads go to the standby again").await?;
    session(stack.node_port(leader.service)).await?.batch_execute("DROP TABLE ballast").await?;
    truth::all_well(stack).await.map(drop)
}

/// A configuration that somebody edited is not overwritten; it is said, and routing goes on.
pub(crate) async fn an_edited_configuration_is_left_alone(stack: &Stack) -> anyhow::Result<()> {
    // Before it warns: whoever looks for the leader waits until all is well.
    let leader = Leader::find(stack).await?;
    let haproxy = stack.container("haproxy");
    let haproxy = &haproxy;
    let edit = |script: &'static str| async move {
        haproxy.exec(&["sh", "-c", script]).await.map(drop).context("the file could not be edited")
    };
    let warns = |wanted: bool| async move {
        wait::until("the warning comes, or goes", Duration::from_secs(60), || async {
            let state = stack.status(ROUTER, &[]).await?;
            let mut codes = state["warnings"].as_array().into_iter().flatten().map(|warning| &warning["code"]);
            let said = codes.any(|code| code.as_str() == Some("haproxy_config_not_ours"));
            ensure!(said == wanted, "it warns: {}", state["warnings"]);
            Ok(())
        })
        .await
    };
    edit("cp /etc/haproxy/haproxy.cfg /etc/haproxy/kept && echo '# mine' >> /etc/haproxy/haproxy.cfg").await?;
    let outcome = async {
        warns(true).await?;
        let began = Instant::now();
        stack.switchover(&leader.member).await?;
        wait_for_session(stack.ports.proxy, SOON).await?.execute("CREATE TABLE IF NOT EXISTS edited ()", &[]).await?;
        eprintln!("      a write through the proxy {:.1?} after a switchover was asked for", began.elapsed());
        anyhow::Ok(())
    }
    .await;
    edit("mv /etc/haproxy/kept /etc/haproxy/haproxy.cfg").await?;
    outcome?;
    warns(false).await?;
    truth::all_well(stack).await.map(drop)
}
