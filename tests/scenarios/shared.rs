//! Two clusters behind one HAProxy. Clients of one cluster do not notice the other's faults.

use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use warden_e2e::agent_log::whole_log;
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::haproxies::Haproxy;
use warden_e2e::stack::{Flavor, NODES, Stack, wait_for_session};
use warden_e2e::trial::{self, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::wait;
use warden_e2e::writers::{Commit, Route};

/// The limit until writes get through the HAProxy.
const UP: Duration = Duration::from_secs(120);

/// The section for a cluster's writes, as in the built-in template. Its servers follow.
fn section(proxy: &str, port: u16) -> String {
    format!(
        "backend warden_hold_{proxy}
    stick-table type string len 16 size 16 expire 2s store gpc0
listen {proxy}
    bind *:{port}
    acl is_held str(writes),table_gpc0(warden_hold_{proxy}) gt 0
    acl nowhere be_conn_free({proxy}) eq -1
    tcp-request inspect-delay 5000ms
    tcp-request content lua.warden_wait_for {proxy} if is_held or nowhere
    tcp-request content reject if {{ var(txn.warden_waited) -m bool }}
    option httpchk GET /primary
    http-check expect status 200
    default-server inter 1s fastinter 500ms downinter 1s fall 2 rise 2 on-marked-down shutdown-sessions
    server wait 127.0.0.1:1 backup
"
    )
}

fn servers(hosts: &[(&str, String)]) -> String {
    hosts.iter().map(|(name, host)| format!("    server {name} {host}:5432 maxconn 100 check port 8008\n")).collect()
}

/// The primary of the second cluster is killed, and then the first cluster is switched over. Each time clients of the
/// other cluster lose no row and no session.
pub(crate) async fn clients_of_one_cluster_do_not_notice_a_fault_of_the_other(stack: &Stack) -> anyhow::Result<()> {
    let other = Stack::up(&format!("{}b", stack.project), Flavor::Single).await?;
    undone_by(share(stack, &other), other.down()).await
}

async fn share(stack: &Stack, other: &Stack) -> anyhow::Result<()> {
    let (ours, theirs) = (Leader::find(stack).await?, Leader::find(other).await?);
    let global = "global
    maxconn 2000
    log stdout format raw local0
    stats socket /run/haproxy/admin.sock mode 660 level admin
    set-var proc.warden_max_wait_ms int(5000)
    lua-load-per-thread /etc/haproxy/wait.lua
defaults
    mode tcp
    log global
    option tcplog
    timeout client 30m
    timeout server 30m
    timeout check 2s
    timeout connect 300ms
    retries 16
    option redispatch 1
    timeout queue 5s
";
    let by_name = NODES.map(|(node, _)| (node, node.to_owned()));
    let mut by_address = Vec::new();
    for (node, _) in NODES {
        by_address.push((node, other.container(node).ip_in("default").await?.to_string()));
    }
    let configuration =
        [global.to_owned(), section("ours", 5432), servers(&by_name), section("theirs", 5433), servers(&by_address)];
    let agent = "backends: {writes: [ours]}";
    let haproxy = Haproxy::start(stack, "shared", &configuration.concat(), &[5432, 5433], Some(agent)).await?;
    let second = haproxy.join(other, "shared", "backends: {writes: [theirs]}").await?;
    let (our_routes, their_routes) = (haproxy.through(0)?, haproxy.through(1)?);
    for port in &haproxy.ports {
        wait_for_session(*port, UP).await.context("through the HAProxy that both share")?;
    }
    let with = |routes: [Route; 2]| [Route::ALL.as_slice(), &routes].concat();
    let at_ours = Observed::start_on(stack, Commit::Synchronous, &with(our_routes)).await?;
    let at_theirs = Observed::start_on(other, Commit::Synchronous, &with(their_routes)).await?;
    sleep(Duration::from_secs(3)).await;
    through(other, Fault::Crash, &theirs, &at_theirs, their_routes).await?;
    let failed =
        |observed: &Observed, routes: [Route; 2]| routes.map(|route| observed.writers().story(route).errors).concat();
    let errors = failed(&at_ours, our_routes);
    ensure!(errors.is_empty(), "a crash elsewhere is felt: {errors:?}");
    let before = failed(&at_theirs, their_routes).len();
    through(stack, Fault::Switchover, &ours, &at_ours, our_routes).await?;
    let errors = failed(&at_theirs, their_routes);
    ensure!(errors.len() == before, "a switchover elsewhere is felt: {:?}", errors.get(before..));
    for agent in haproxy.agent.iter().chain([&second]) {
        let log = whole_log(agent).await?;
        ensure!(log.iter().any(|line| line.is("haproxy_server_set")), "{} set no server of HAProxy", agent.0);
        ensure!(!log.iter().any(|line| line.is("haproxy_server_set_failed")), "{}: {log:#?}", agent.0);
    }
    drop(second.stop(Duration::from_secs(5)).await);
    second.remove().await?;
    haproxy.remove().await?;
    // Only the agents of every stack are left.
    for (whose, stack, observed) in [("ours", stack, at_ours), ("theirs", other, at_theirs)] {
        let report = observed.end(stack).await?.report;
        eprintln!("      {whose}: {report}");
        report.nothing_lost_and_no_two_primaries()?;
    }
    Ok(())
}

/// Causes the fault, heals it, and waits for rows on these routes.
async fn through(
    stack: &Stack,
    fault: Fault,
    leader: &Leader,
    observed: &Observed,
    routes: [Route; 2],
) -> anyhow::Result<()> {
    trial::strike_and_heal(stack, fault, leader, sleep(fault.lingers())).await?;
    let since = Instant::now();
    wait::until("every client writes again", UP, || async {
        for route in routes {
            let rows = observed.writers().story(route).acks_since(since);
            ensure!(rows > 5, "{rows} rows on {route:?}");
        }
        Ok(())
    })
    .await
}
