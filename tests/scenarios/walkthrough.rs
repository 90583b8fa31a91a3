//! The walkthrough of the stack, in its own order, with the clients' tools only.

use anyhow::{Context, ensure};
use std::time::Duration;
use tokio_postgres::Client;
use warden_e2e::docker;
use warden_e2e::stack::{NODES, Stack, wait_for_session};
use warden_e2e::{truth, wait};

/// The limit for each step. A step usually takes seconds; a busy machine needs longer.
const LIMIT: Duration = Duration::from_secs(120);

pub(crate) async fn the_stack_passes_the_walkthrough(stack: &Stack) -> anyhow::Result<()> {
    let truth = truth::all_well(stack).await?;
    let (leader, _) = truth.leader.context("no leader")?;
    let (primary, _) = *NODES.iter().find(|(_, member)| *member == leader).context("an unknown leader")?;
    let (secondary, standby) = *NODES.iter().find(|(_, member)| *member != leader).context("no other node")?;

    everything_is_up(stack, &leader, secondary, standby).await?;
    prometheus_scrapes_every_target(stack).await?;
    let on_primary = rows_reach_the_secondary(stack, primary, secondary).await?;
    let before = traffic_goes_to_the_primary_only(stack, primary, secondary).await?;
    writing_goes_on_without_it(stack, secondary, &on_primary, before).await?;

    // And it comes back.
    stack.container(secondary).start().await?;
    truth::all_well(stack).await?;

    // `compose/up` run again changes nothing and is quick.
    let ids = container_ids(stack).await?;
    stack.compose_up().await?;
    ensure!(container_ids(stack).await? == ids, "a second compose/up created other containers");
    Ok(())
}

/// 1. Everything is up, and the logs show the secondary as one.
async fn everything_is_up(stack: &Stack, leader: &str, secondary: &str, standby: &str) -> anyhow::Result<()> {
    for service in ["zoo", "pg-master", "pg-slave", "haproxy", "warden-pg-master", "warden-pg-slave", "warden-haproxy"]
    {
        // A busy machine can make a health check late.
        wait::until("it is healthy", LIMIT, || async {
            let health = stack.container(service).inspect("{{ .State.Health.Status }}").await?;
            ensure!(health == "healthy", "{service} is {health}");
            Ok(())
        })
        .await?;
    }
    let log = stack.container(secondary).logs().await?;
    let line = format!("I am ({standby}), a secondary, and following a leader ({leader})");
    wait::until("the secondary's log says so", LIMIT, || async {
        let log = stack.container(secondary).logs().await?;
        ensure!(log.contains(&line), "no {line:?} in the log");
        Ok(())
    })
    .await
    .with_context(|| log.lines().rev().take(5).collect::<Vec<_>>().join("\n"))?;
    Ok(())
}

/// Prometheus has the metrics of every target.
async fn prometheus_scrapes_every_target(stack: &Stack) -> anyhow::Result<()> {
    wait::until("Prometheus scrapes every target", LIMIT, || async {
        let url = format!("http://127.0.0.1:{}/api/v1/query?query=up", stack.ports.prometheus);
        let answer: serde_json::Value = reqwest::get(&url).await?.error_for_status()?.json().await?;
        let targets = answer["data"]["result"].as_array().context("no result")?;
        let up = targets.iter().filter(|target| target["value"][1] == "1").count();
        ensure!(up == 5 && targets.len() == 5, "{up} of {} are up, and there should be 5: {answer}", targets.len());
        Ok(())
    })
    .await?;
    Ok(())
}

/// 2. A client connects to both nodes. 3. A table is made and filled on the primary; the rows show up on the secondary.
/// 4. The secondary refuses writes. Returns the client of the primary.
async fn rows_reach_the_secondary(stack: &Stack, primary: &str, secondary: &str) -> anyhow::Result<Client> {
    let on_primary = wait_for_session(stack.node_port(primary), LIMIT).await.context("the primary")?;
    let on_secondary = wait_for_session(stack.node_port(secondary), LIMIT).await.context("the secondary")?;

    on_primary.batch_execute("DROP TABLE IF EXISTS walk; CREATE TABLE walk (id int PRIMARY KEY, what text)").await?;
    on_primary.batch_execute("INSERT INTO walk SELECT i, 'row ' || i FROM generate_series(1, 100) i").await?;
    wait::until("the rows show up on the secondary", LIMIT, || async {
        let count: i64 = on_secondary.query_one("SELECT count(*) FROM walk", &[]).await?.get(0);
        ensure!(count == 100, "{count} rows");
        Ok(())
    })
    .await?;

    let refused = on_secondary.execute("INSERT INTO walk VALUES (0, 'no')", &[]).await;
    let why = refused.err().context("the secondary took a write")?;
    let code = why.code().map(|code| code.code().to_owned());
    ensure!(code.as_deref() == Some("25006"), "refused for another reason than being read-only: {why}");
    Ok(on_primary)
}

/// 5. HAProxy's log and its statistics show traffic going to the primary only. Returns the secondary's sessions so far.
async fn traffic_goes_to_the_primary_only(stack: &Stack, primary: &str, secondary: &str) -> anyhow::Result<u64> {
    let through_proxy = wait_for_session(stack.ports.proxy, LIMIT).await?;
    let address: String = through_proxy.query_one("SELECT host(inet_server_addr())", &[]).await?.get(0);
    ensure!(address == stack.container(primary).ip().await?.to_string(), "the proxy leads to {address}");
    through_proxy.execute("INSERT INTO walk VALUES (101, 'through the proxy')", &[]).await?;
    drop(through_proxy);
    wait::until("HAProxy's log shows the session", LIMIT, || async {
        let log = stack.container("haproxy").logs().await?;
        ensure!(log.contains(&format!("postgres/{primary}")), "no session to {primary} in the log");
        Ok(())
    })
    .await?;
    let (up, down) = (stats(stack, primary).await?, stats(stack, secondary).await?);
    ensure!(up.status == "UP" && up.sessions > 0, "{primary}: {up:?}");
    ensure!(down.status == "DOWN", "{secondary}: {down:?}");
    Ok(down.sessions)
}

/// 6. The secondary's container is killed: HAProxy notices, and writing through the proxy goes on.
async fn writing_goes_on_without_it(
    stack: &Stack,
    secondary: &str,
    on_primary: &Client,
    before: u64,
) -> anyhow::Result<()> {
    stack.container(secondary).kill().await?;
    wait::until("HAProxy's log shows the secondary going away", LIMIT, || async {
        let log = stack.container("haproxy").logs().await?;
        let gone = |line: &&str| {
            line.contains(&format!("Health check for server postgres/{secondary} failed")) && line.contains("Layer4")
        };
        ensure!(log.lines().any(|line| gone(&line)), "HAProxy's log says nothing of {secondary}");
        Ok(())
    })
    .await?;
    let through_proxy = wait_for_session(stack.ports.proxy, LIMIT).await?;
    // In synchronous mode the first commit waits until Patroni has given up the lost standby.
    let insert = through_proxy.execute("INSERT INTO walk VALUES (102, 'without a secondary')", &[]);
    tokio::time::timeout(LIMIT, insert).await.context("no write without a secondary")??;
    let count: i64 = on_primary.query_one("SELECT count(*) FROM walk WHERE id > 100", &[]).await?.get(0);
    ensure!(count == 2, "{count} of the proxy's 2 rows are in the primary");
    let sessions = stats(stack, secondary).await?.sessions;
    ensure!(sessions == before, "HAProxy sent {} sessions to the secondary", sessions - before);
    Ok(())
}

async fn container_ids(stack: &Stack) -> anyhow::Result<Vec<String>> {
    let filter = format!("label=com.docker.compose.project={}", stack.project);
    let mut ids: Vec<String> =
        docker::docker(&["ps", "-q", "--no-trunc", "--filter", &filter]).await?.lines().map(str::to_owned).collect();
    ids.sort();
    Ok(ids)
}

#[derive(Debug)]
struct Stats {
    status: String,
    sessions: u64,
}

/// A server's line of HAProxy's statistics page, as a browser gets it (`;csv`).
async fn stats(stack: &Stack, server: &str) -> anyhow::Result<Stats> {
    let url = format!("http://127.0.0.1:{}/;csv", stack.ports.stats);
    let text = reqwest::get(&url).await?.error_for_status()?.text().await?;
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().context("an empty page")?.trim_start_matches("# ").split(',').collect();
    let fields: Vec<&str> = lines
        .map(|line| line.split(',').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&"postgres") && fields.get(1) == Some(&server))
        .with_context(|| format!("{server} is not on the page"))?;
    let get = |name: &str| header.iter().position(|known| *known == name).and_then(|at| fields.get(at)).copied();
    let status = get("status").context("no status")?.split(' ').next().unwrap_or_default().to_owned();
    Ok(Stats { status, sessions: get("stot").context("no stot")?.parse()? })
}
