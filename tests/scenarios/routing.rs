//! Clients follow the primary through HAProxy: those that keep a session, and those that connect for each row.

use anyhow::{Context, ensure};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use warden_e2e::agent_log::{self, Line};
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::stack::{NODES, Stack, session, session_as, session_within, wait_for_session};
use warden_e2e::trial::{self, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::writers::{Commit, Report, Route};
use warden_e2e::{haproxies, truth, wait};

/// The limit for an outage beyond PostgreSQL's own. It suits a busy machine, and is short against half a minute:
/// HAProxy's checks alone, or a frozen Patroni without Warden, cost that much.
const SOON: Duration = Duration::from_secs(10);

const ROUTER: &str = "warden-haproxy";

/// Fails if HAProxy turned away a client that connected for each row. Rows in flight at the fault may fail.
fn no_client_was_turned_away(report: &Report, faults: usize) -> anyhow::Result<()> {
    no_client_was_turned_away_on(report, Route::ProxyPerRow, faults)
}

/// The same on another route.
pub(crate) fn no_client_was_turned_away_on(report: &Report, route: Route, faults: usize) -> anyhow::Result<()> {
    let story = report.stories.get(&route).context("no client connected for each row")?;
    let in_flight = story.errors.len();
    ensure!(in_flight <= faults * 3, "{in_flight} rows failed in {faults} faults: {:?}", story.errors);
    let refused =
        story.errors.iter().find(|failure| failure.why.contains("refused") || failure.why.contains("read-only"));
    ensure!(refused.is_none(), "turned away, or sent to a standby: {refused:?}");
    Ok(())
}

/// Fails if the proxy's clients waited much longer than PostgreSQL needed.
fn soon_after_postgres(report: &Report) -> anyhow::Result<()> {
    soon(report, Route::Proxy)?;
    soon(report, Route::ProxyPerRow)
}

/// Fails if the clients on this route waited much longer than PostgreSQL needed.
pub(crate) fn soon(report: &Report, route: Route) -> anyhow::Result<()> {
    let own = report.without_a_primary().map_or(Duration::ZERO, |(outage, _)| outage);
    let outage = report.outage(route);
    ensure!(outage < own + SOON, "{outage:?} without a row where PostgreSQL took {own:?}: {report}");
    Ok(())
}

/// The whole log of the agent beside HAProxy.
async fn router_log(stack: &Stack) -> anyhow::Result<Vec<Line>> {
    agent_log::whole_log(&stack.container(ROUTER)).await
}

/// How often the agent changed HAProxy's configuration file, or tried to.
fn files_written(log: &[Line]) -> usize {
    let writes = ["haproxy_file_written", "haproxy_reloaded", "haproxy_file_failed"];
    log.iter().filter(|line| line.event().is_some_and(|event| writes.contains(&event))).count()
}

/// Switchover there and back. New connections wait, and go on at the new primary, without a reload.
pub(crate) async fn a_switchover_is_followed(stack: &Stack) -> anyhow::Result<()> {
    let written = files_written(&router_log(stack).await?);
    for _ in 0..2 {
        let outcome = trial::run(stack, Fault::Switchover, Commit::Synchronous).await?;
        outcome.report.nothing_lost_and_no_two_primaries()?;
        no_client_was_turned_away(&outcome.report, 1)?;
        soon_after_postgres(&outcome.report)?;
    }
    let log = router_log(stack).await?;
    ensure!(files_written(&log) == written, "HAProxy's configuration was changed for a switchover");
    for to in ["drain", "up"] {
        let set = log.iter().any(|line| line.is("haproxy_server_set") && line.field("to") == Some(to));
        ensure!(set, "{ROUTER} never set a server of HAProxy to {to:?}");
    }
    // Each node led and was stopped. By then its clients had to wait already. A busy machine may sometimes be too slow
    // for that, and then the hook waits for no client.
    let mut ended = false;
    for (node, _) in NODES {
        let log = stack.container(node).logs().await?;
        ended |= log.contains("warden before-stop: ended");
        ensure!(log.contains("warden before-stop: "), "Patroni's hook in {node} said nothing");
    }
    ensure!(ended, "Patroni's hooks ended no session");
    Ok(())
}

/// Docker's name server, in each container.
const NAME_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// The agent beside HAProxy loses its name server, and its sessions end. That says nothing about the servers: they are
/// healthy, and HAProxy reaches them. Nor does it delay a switchover.
pub(crate) async fn a_dead_name_server_costs_no_write(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let router = stack.container(ROUTER);
    router.cut(&[NAME_SERVER]).await?;
    let without = async {
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
            WHERE application_name = 'warden' AND client_addr IS NOT NULL";
        session(stack.node_port(leader.service)).await?.batch_execute(end).await?;
        // Older answers no longer count by then.
        sleep(Duration::from_secs(12)).await;
        let rows = || observed.writers().pulse().acknowledged(Route::ProxyPerRow);
        let before = rows();
        sleep(Duration::from_secs(3)).await;
        ensure!(rows() > before, "no client that connects now has written a row for 3 s");
        let state = stack.status(ROUTER, &[]).await?;
        let told = format!("{}", state["warnings"]);
        ensure!(told.contains("cannot be resolved"), "it does not say what is wrong: {told}");
        stack.switchover(&leader.member).await?;
        leader.replaced(stack).await
    };
    undone_by(without, router.heal(&[NAME_SERVER])).await?;
    let report = observed.end(stack).await?.report;
    eprintln!("      a dead name server: {report}");
    report.nothing_lost_and_no_two_primaries()?;
    no_client_was_turned_away(&report, 1)?;
    soon_after_postgres(&report)
}

/// HAProxy's answer at its runtime socket.
async fn ask_haproxy(stack: &Stack, command: &str) -> anyhow::Result<String> {
    haproxies::ask(&format!("{}_haproxy-run", stack.project), command).await
}

/// The number of clients that log in at once.
const TOGETHER: usize = 10;

/// Opens `count` sessions with the primary through HAProxy, of an ordinary user, all at once. The error says how many
/// were refused.
async fn sessions(stack: &Stack, count: usize) -> anyhow::Result<Vec<Client>> {
    let port = stack.ports.proxy;
    let (mut open, mut refused) = (Vec::new(), Vec::new());
    // Logins are slow on a busy machine. The test asks for room, not for speed.
    for _ in 0..count.div_ceil(TOGETHER) {
        let few = TOGETHER.min(count - open.len() - refused.len());
        let opening: JoinSet<_> = (0..few).map(|_| session_within(port, "crowd", Duration::from_secs(60))).collect();
        for outcome in opening.join_all().await {
            match outcome {
                Ok(client) => open.push(client),
                Err(error) => refused.push(format!("{error:#}")),
            }
        }
    }
    ensure!(refused.is_empty(), "{} of {count} were refused: {:?}", refused.len(), refused.first());
    Ok(open)
}

/// A server's free slots are available through HAProxy, too. HAProxy's limit follows max_connections without a reload.
/// With a lower limit the agent warns of the queue.
pub(crate) async fn a_hundred_and_fifty_clients_find_room(stack: &Stack) -> anyhow::Result<()> {
    const KEY: &str = "postgresql.parameters.max_connections";
    let leader = Leader::find(stack).await?;
    let make = "DROP ROLE IF EXISTS crowd; CREATE ROLE crowd LOGIN PASSWORD 'crowd'";
    session(stack.node_port(leader.service)).await?.batch_execute(make).await?;
    let before = stack.container("haproxy").logs().await?.matches("New worker").count();
    let limit = |wanted: &'static str| async move {
        wait::until("HAProxy's limit is PostgreSQL's", Duration::from_secs(60), || async {
            let stat = ask_haproxy(stack, "show stat postgres 4 -1").await?;
            let of_servers = stat.lines().filter(|line| line.starts_with("postgres,pg-"));
            let limits: Vec<&str> = of_servers.filter_map(|line| line.split(',').nth(6)).collect();
            ensure!(limits.len() == 2 && limits.iter().all(|limit| *limit == wanted), "it is {limits:?}");
            Ok(())
        })
        .await
    };
    let crowded = async {
        stack.configure(KEY, "300").await?;
        stack.patronictl(&["restart", "my_cluster", "--force"]).await?;
        truth::all_well(stack).await?;
        limit("290").await?;
        let open = sessions(stack, 150).await?;
        // An operator lowers the limit. The next client waits, and the agent warns of that.
        let server = format!("postgres/{}", Leader::find(stack).await?.service);
        ask_haproxy(stack, &format!("set maxconn server {server} 100")).await?;
        let waits = session_as(stack.ports.proxy, "crowd");
        let (refused, said) = tokio::join!(
            timeout(SOON, waits),
            wait::until("the agent warns of the queue", Duration::from_secs(30), || async {
                let state = stack.status(ROUTER, &[]).await?;
                let warnings = state["warnings"].as_array().context("no warnings[]")?.clone();
                let queue = warnings.iter().find(|warning| warning["code"] == "haproxy_queue");
                let message = queue.with_context(|| format!("it warns of {warnings:?}"))?["message"].to_string();
                ensure!(message.contains("limit of 100 sessions"), "it says {message}");
                Ok(())
            })
        );
        said?;
        ensure!(refused.is_ok_and(|session| session.is_err()), "it found room where there is none");
        ask_haproxy(stack, &format!("set maxconn server {server} 300")).await?;
        drop(sessions(stack, 1).await.context("there is room again")?);
        drop(open);
        Ok(())
    };
    let reset = async {
        stack.configure(KEY, "null").await?;
        stack.patronictl(&["restart", "my_cluster", "--force"]).await.map(drop)
    };
    undone_by(crowded, reset).await?;
    truth::all_well(stack).await?;
    limit("90").await?;
    let reloads = stack.container("haproxy").logs().await?.matches("New worker").count() - before;
    ensure!(reloads == 0, "HAProxy was reloaded {reloads} times");
    Ok(())
}

/// The primary's node is killed.
pub(crate) async fn a_crash_is_followed(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Crash, Commit::Synchronous).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    no_client_was_turned_away(&outcome.report, 1)?;
    soon_after_postgres(&outcome.report)
}

/// HAProxy's checks ask Patroni, which hangs. Its server takes writes while it holds the key, and HAProxy goes on
/// sending them there. Then the other server takes them.
pub(crate) async fn a_frozen_patroni_is_not_felt(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Freeze, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    no_client_was_turned_away(&outcome.report, 1)?;
    soon_after_postgres(&outcome.report)
}

/// HAProxy's own checks take over when its agent is gone. The agent's last commands do not stay in force forever.
pub(crate) async fn haproxy_goes_on_without_its_agent(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let router = stack.container(ROUTER);
    router.kill().await?;
    let followed = async {
        stack.switchover(&leader.member).await?;
        wait::until("writes go on through the proxy", Duration::from_secs(60), || async {
            let before = observed.writers().story(Route::ProxyPerRow).acks.len();
            sleep(Duration::from_secs(1)).await;
            ensure!(observed.writers().story(Route::ProxyPerRow).acks.len() > before + 5, "they do not");
            Ok(())
        })
        .await
    };
    undone_by(followed, router.start()).await?;
    observed.end(stack).await?.report.nothing_lost_and_no_two_primaries()
}

/// A replica whose replay stands still takes no new reads. Its open sessions go on. The primary takes the other reads.
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
    // The brackets keep the command from matching itself.
    let replay = "kill -STOP $(pgrep -f '[p]ostgres: .*startup')";
    standby.exec(&["bash", "-c", replay]).await?;
    let fallen_back = async {
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
        // The standby still serves its open session.
        let row = timeout(SOON, long.query_one("SELECT host(inet_server_addr()), pg_is_in_recovery()", &[])).await??;
        ensure!(row.get::<_, String>(0) == standby_ip.to_string() && row.get::<_, bool>(1), "the long read was moved");
        Ok(())
    };
    let go_on = replay.replace("STOP", "CONT");
    undone_by(fallen_back, async { standby.exec(&["bash", "-c", &go_on]).await.map(drop) }).await?;
    reads_at(standby_ip, "reads go to the standby again").await?;
    session(stack.node_port(leader.service)).await?.batch_execute("DROP TABLE ballast").await?;
    truth::all_well(stack).await.map(drop)
}

/// The agent does not overwrite an edited configuration. It warns, and routing goes on.
pub(crate) async fn an_edited_configuration_is_left_alone(stack: &Stack) -> anyhow::Result<()> {
    // This comes before the warning, because the search for the leader waits until all is well.
    let leader = Leader::find(stack).await?;
    let haproxy = stack.container("haproxy");
    let haproxy = &haproxy;
    let edit = |script: &'static str| async move {
        haproxy.exec(&["sh", "-c", script]).await.map(drop).context("the file could not be edited")
    };
    let warns = |wanted: bool| async move {
        wait::until("the warning is raised, or cleared", Duration::from_secs(60), || async {
            let state = stack.status(ROUTER, &[]).await?;
            let mut codes = state["warnings"].as_array().into_iter().flatten().map(|warning| &warning["code"]);
            let said = codes.any(|code| code.as_str() == Some("haproxy_config_not_ours"));
            ensure!(said == wanted, "it warns: {}", state["warnings"]);
            Ok(())
        })
        .await
    };
    edit("cp /etc/haproxy/haproxy.cfg /etc/haproxy/kept && echo '# mine' >> /etc/haproxy/haproxy.cfg").await?;
    let edited = async {
        warns(true).await?;
        let began = Instant::now();
        stack.switchover(&leader.member).await?;
        wait_for_session(stack.ports.proxy, SOON).await?.execute("CREATE TABLE IF NOT EXISTS edited ()", &[]).await?;
        eprintln!("      a write through the proxy {:.1?} after a switchover was asked for", began.elapsed());
        Ok(())
    };
    undone_by(edited, edit("mv /etc/haproxy/kept /etc/haproxy/haproxy.cfg")).await?;
    warns(false).await?;
    truth::all_well(stack).await.map(drop)
}
