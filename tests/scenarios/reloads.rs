//! HAProxy is reloaded, hangs, or is restarted, and its servers move. The scenarios judge what the clients see, and
//! what HAProxy serves then.

use anyhow::{Context, ensure};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;
use warden_e2e::docker::{Container, docker};
use warden_e2e::faults::Leader;
use warden_e2e::haproxies::Haproxy;
use warden_e2e::stack::{NODES, Stack, wait_for_session};
use warden_e2e::trial::{Observation, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::writers::{Commit, Report, Route};
use warden_e2e::{truth, wait};

const ROUTER: &str = "warden-haproxy";

const THIRD: &str = "pg-third";

/// The limit until HAProxy serves a new member: a base backup, 2 s, and a margin for a busy machine.
const JOINED: Duration = Duration::from_secs(180);

/// The limit until HAProxy no longer serves a departed member. The agents forget it after a minute, and the file drops
/// it after another.
const LEFT: Duration = Duration::from_secs(300);

/// Starts a third member by hand, as a user would. It never leads and is never synchronous.
async fn join(stack: &Stack) -> anyhow::Result<Container> {
    tokio::fs::create_dir_all(stack.out()).await?;
    let second = tokio::fs::read_to_string(stack.root().join("compose/patroni/postgres1.yml")).await?;
    let third = second
        .replace("postgresql1", "postgresql2")
        .replace("pg-slave", THIRD)
        .replace("nofailover: false", "nofailover: true")
        .replace("nosync: false", "nosync: true");
    let file = stack.out().join("postgres2.yml");
    tokio::fs::write(&file, third).await?;
    let env = stack.root().join("compose/trial.env").display().to_string();
    let run = stack.run(THIRD).option("--hostname", THIRD).option("--network-alias", THIRD).option("--env-file", env);
    let run = run.mount(&file, "/postgres2.yml").option("--shm-size", "256m");
    run.start("warden/node:local", &["patroni", "/postgres2.yml"]).await
}

/// The servers in HAProxy's two pools, as the agent beside it sees them through the runtime socket. Servers in
/// maintenance or drain are left out: HAProxy does not delete the server of a departed member if it resolves its name.
async fn served(stack: &Stack) -> anyhow::Result<Vec<String>> {
    let state = stack.status(ROUTER, &[]).await?;
    let servers = state["haproxy"][0]["servers"].as_array().context("no servers[]")?;
    let out = |status: &str| status.starts_with("MAINT") || status.starts_with("DRAIN");
    let serves = servers.iter().filter(|server| !server["status"].as_str().is_some_and(out));
    Ok(serves.filter_map(|server| server["name"].as_str()).map(str::to_owned).collect())
}

async fn third_is_served(stack: &Stack, wanted: bool, limit: Duration) -> anyhow::Result<()> {
    wait::until("HAProxy serves the third member, or no longer", limit, || async {
        let servers = served(stack).await?;
        let times = servers.iter().filter(|name| *name == THIRD).count();
        ensure!(times == if wanted { 2 } else { 0 }, "HAProxy has {servers:?}");
        Ok(())
    })
    .await
}

/// Fails if a row failed, in a kept session or with a session for each row.
fn no_client_noticed(report: &Report) -> anyhow::Result<()> {
    for route in [Route::ProxyPerRow, Route::Proxy] {
        let story = report.stories.get(&route).context("no client wrote")?;
        ensure!(story.errors.is_empty(), "{} rows failed: {:?}", story.errors.len(), story.errors);
    }
    Ok(())
}

/// How long a replica and its agent are away. The agents write them off meanwhile.
const AWAY: Duration = Duration::from_secs(240);

/// The number of HAProxy's workers so far. Each reload adds one.
async fn workers(stack: &Stack) -> anyhow::Result<usize> {
    Ok(stack.container("haproxy").logs().await?.matches("New worker").count())
}

/// HAProxy's address for a server for reads, and the server's state.
async fn server_of(stack: &Stack, name: &str) -> anyhow::Result<(String, String)> {
    let state = stack.status(ROUTER, &[]).await?;
    let servers = state["haproxy"][0]["servers"].as_array().context("no servers[]")?.clone();
    let server = servers.iter().find(|server| server["name"] == name && server["pool"] == "reads");
    let server = server.with_context(|| format!("no {name} in {servers:?}"))?;
    let text = |key: &str| server[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {server}"));
    Ok((text("address")?, text("status")?))
}

async fn takes_reads(stack: &Stack, name: &str, address: IpAddr) -> anyhow::Result<()> {
    wait::until("it takes reads at its address", JOINED, || async {
        let (at, status) = server_of(stack, name).await?;
        ensure!(at == format!("{address}:5432") && status == "UP", "{name} is {status} at {at}, and not at {address}");
        Ok(())
    })
    .await
}

/// The third member gets the tag `noloadbalance`, and loses it again.
async fn takes_no_reads_while_tagged(stack: &Stack, third: &Container) -> anyhow::Result<()> {
    let file = stack.out().join("postgres2.yml");
    let untagged = tokio::fs::read_to_string(&file).await?;
    let tag = async |text: &str| {
        // The container sees this file, and would not see one that replaces it.
        tokio::fs::write(&file, text).await?;
        third.signal("HUP", "bin/patroni /postgres2.yml").await
    };
    tag(&untagged.replace("noloadbalance: false", "noloadbalance: true")).await?;
    wait::until("it takes no reads with the tag noloadbalance", JOINED, || async {
        let (_, status) = server_of(stack, THIRD).await?;
        ensure!(status != "UP", "it is {status}");
        Ok(())
    })
    .await?;
    tag(&untagged).await?;
    takes_reads(stack, THIRD, third.ip().await?).await.context("without the tag")
}

/// A member joins, moves and leaves. No session with the primary is cut, and HAProxy is never reloaded. The agent is
/// killed in the middle of its work. The third node gets another address, which HAProxy does not follow by itself. Then
/// it leaves. The replica and its agent stay away until they are written off, and come back.
pub(crate) async fn a_member_that_joins_moves_or_leaves_cuts_no_session(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let member = warden_e2e::stack::other(&leader.member);
    let replica = stack.node_of(member)?;
    let (service, _) = NODES.iter().find(|(_, name)| *name == member).context("no such member")?;
    let agent = stack.container(&format!("warden-{service}"));
    let (haproxy, router) = (stack.container("haproxy"), stack.container(ROUTER));
    let before = workers(stack).await?;
    // The replica is away for long. Commits that wait for it do not matter here.
    let observed = Observed::start(stack, Commit::Local).await?;
    let idle = wait_for_session(stack.ports.proxy, JOINED).await?;
    let backend: i32 = idle.query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
    let joined = async {
        let third = join(stack).await?;
        wait::until("its configuration names the third", JOINED, || async {
            let file = haproxy.exec(&["cat", "/etc/haproxy/haproxy.cfg"]).await?;
            ensure!(file.contains("server pg-third"), "it does not");
            Ok(())
        })
        .await?;
        router.kill().await?;
        Ok(third)
    };
    let third = undone_by(joined, router.start()).await?;
    let placeholder = stack.container("placeholder");
    let moved_and_left = async {
        third_is_served(stack, true, JOINED).await.context("after the agent was killed")?;
        takes_reads(stack, THIRD, third.ip().await?).await?;
        // Another container gets its address: Docker gives the lowest free one.
        let address = third.ip().await?;
        third.stop(Duration::from_secs(30)).await?;
        stack.run("placeholder").start("warden/haproxy:local", &["sleep", "1200"]).await?;
        third.start().await?;
        ensure!(third.ip().await? != address, "Docker gave it {address} again");
        takes_reads(stack, THIRD, third.ip().await?).await.context("after it has moved")?;
        takes_no_reads_while_tagged(stack, &third).await?;
        // All but the primary leave.
        third.stop(Duration::from_secs(30)).await?;
        let left = tokio::time::Instant::now();
        agent.stop(Duration::from_secs(30)).await?;
        replica.stop(Duration::from_secs(30)).await?;
        let gone = wait::until("only the primary is left in HAProxy", LEFT, || async {
            let servers = served(stack).await?;
            ensure!(servers.iter().all(|name| name == leader.service), "HAProxy has {servers:?}");
            Ok(())
        });
        let come_back = async {
            tokio::time::sleep_until(left + AWAY).await;
            replica.start().await?;
            agent.start().await
        };
        undone_by(gone, come_back).await?;
        takes_reads(stack, service, replica.ip().await?).await.context("after four minutes")
    };
    let remove = async {
        // A container may not have been started.
        for container in [stack.container(THIRD), placeholder] {
            drop(container.remove().await);
        }
        Ok(())
    };
    undone_by(moved_and_left, remove).await?;
    let now: i32 = idle.query_one("SELECT pg_backend_pid()", &[]).await.context("an idle session")?.get(0);
    ensure!(now == backend, "another session");
    let reloads = workers(stack).await? - before;
    ensure!(reloads == 0, "HAProxy was reloaded {reloads} times");
    let report = observed.end(stack).await?.report;
    report.nothing_lost_and_no_two_primaries()?;
    no_client_noticed(&report)
}

/// Ten reloads, one a second. No row fails, in a kept session or in new ones.
pub(crate) async fn ten_reloads_under_load_fail_no_row(stack: &Stack) -> anyhow::Result<()> {
    const RELOADS: usize = 10;
    let haproxy = stack.container("haproxy");
    let before = workers(stack).await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    for reload in 1..=RELOADS {
        // The signal comes as from an administrator, without the agent's knowledge.
        docker(&["kill", "--signal", "USR2", &haproxy.0]).await?;
        wait::until("another worker serves", Duration::from_secs(30), || async {
            let now = workers(stack).await?;
            ensure!(now >= before + reload, "{now} workers, {before} before");
            Ok(())
        })
        .await?;
        let rows = observed.writers().pulse().acknowledged(Route::ProxyPerRow);
        wait::until("rows through the new worker", Duration::from_secs(30), || async {
            let now = observed.writers().pulse().acknowledged(Route::ProxyPerRow);
            ensure!(now > rows + 5, "{} rows", now - rows);
            Ok(())
        })
        .await?;
    }
    let failed: Vec<_> = [Route::Proxy, Route::ProxyPerRow]
        .into_iter()
        .flat_map(|route| observed.writers().story(route).errors)
        .collect();
    ensure!(failed.is_empty(), "{} rows failed in {RELOADS} reloads: {failed:?}", failed.len());
    observed.end(stack).await?.report.nothing_lost_and_no_two_primaries()
}

/// HAProxy hangs for a while, is killed, and is restarted. The agent reports that, and writes go on at the primary.
pub(crate) async fn a_hung_haproxy_is_reported_and_writes_go_on_after_its_restart(stack: &Stack) -> anyhow::Result<()> {
    let haproxy = stack.container("haproxy");
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    haproxy.pause().await?;
    let noticed = wait::until("the agent reports that HAProxy hangs", Duration::from_secs(60), || async {
        let state = stack.status(ROUTER, &[]).await?;
        let codes: Vec<_> =
            state["warnings"].as_array().into_iter().flatten().filter_map(|one| one["code"].as_str()).collect();
        ensure!(codes.contains(&"haproxy_unusable"), "it warns of {codes:?}");
        Ok(())
    });
    undone_by(noticed, haproxy.unpause()).await?;
    wait_for_session(stack.ports.proxy, Duration::from_secs(60)).await.context("after it was thawed")?;
    haproxy.crash().await?;
    wait_for_session(stack.ports.proxy, Duration::from_secs(60)).await.context("after it was started again")?;
    let report = observed.end(stack).await?.report;
    report.nothing_lost_and_no_two_primaries()?;
    never_at_a_standby(&report)
}

fn never_at_a_standby(report: &Report) -> anyhow::Result<()> {
    for route in [Route::Proxy, Route::ProxyPerRow] {
        let errors = report.stories.get(&route).map(|story| story.errors.as_slice()).unwrap_or_default();
        let wrong = errors.iter().find(|error| error.why.contains("read-only"));
        ensure!(wrong.is_none(), "a write was sent to a standby: {wrong:?}");
    }
    Ok(())
}

/// Both nodes are stopped and come back in the other order, each with the other's address. HAProxy's names then point
/// to the wrong nodes until it resolves them again.
pub(crate) async fn writes_go_to_the_primary_after_the_nodes_swap_addresses(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let (first, second) = (stack.container(NODES[0].0), stack.container(NODES[1].0));
    let addresses = || async { anyhow::Ok((first.ip().await?, second.ip().await?)) };
    let before = addresses().await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let standby = if leader.node == first { &second } else { &first };
    standby.stop(Duration::from_secs(30)).await?;
    leader.node.stop(Duration::from_secs(30)).await?;
    // Docker gives the lowest free address.
    let number = |ip: IpAddr| ip.to_string().split('.').filter_map(|part| part.parse::<u32>().ok()).collect::<Vec<_>>();
    let order = if number(before.0) < number(before.1) { [&second, &first] } else { [&first, &second] };
    for node in order {
        node.start().await?;
        sleep(Duration::from_millis(200)).await;
    }
    let after = addresses().await?;
    ensure!(after == (before.1, before.0), "Docker gave them {after:?}, and not each other's: {before:?}");
    let Observation { led, report, .. } = observed.end(stack).await?;
    report.nothing_lost_and_no_two_primaries()?;
    never_at_a_standby(&report)?;
    let expected = stack.node_of(&led)?.ip().await?.to_string();
    let address = writes_go_to(stack.ports.proxy).await?;
    ensure!(address == expected, "writes go to {address}, and not to {led} at {expected}");
    Ok(())
}

/// The address of the server behind this port. Fails if the server takes no writes.
async fn writes_go_to(port: u16) -> anyhow::Result<String> {
    let client = wait_for_session(port, Duration::from_secs(30)).await?;
    let row = client.query_one("SELECT host(inet_server_addr()), pg_is_in_recovery()", &[]).await?;
    ensure!(!row.get::<_, bool>(1), "writes are sent to a standby");
    Ok(row.get(0))
}

/// The template of a second HAProxy is broken, and later mended. Meanwhile HAProxy keeps its file, and the agent
/// reports the error. Then HAProxy takes the new file. Both HAProxys follow a switchover in between.
pub(crate) async fn a_broken_template_is_reported_and_routing_goes_on(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    tokio::fs::create_dir_all(stack.out()).await?;
    let file = stack.out().join("haproxy.cfg.j2");
    let template = tokio::fs::read_to_string(stack.root().join("agent/templates/haproxy.cfg.j2")).await?;
    tokio::fs::write(&file, &template).await?;
    let haproxy = Haproxy::start_rendered(stack, "haproxy2", &file).await?;
    let judged = async {
        let outcome = broken_and_mended(stack, &leader, &haproxy, &file, &template).await;
        let agent = haproxy.agent.as_ref().context("there is no agent")?;
        let logs = agent.logs().await.unwrap_or_default();
        outcome.with_context(|| logs)
    };
    undone_by(judged, haproxy.remove()).await?;
    truth::all_well(stack).await.map(drop)
}

async fn broken_and_mended(
    stack: &Stack,
    leader: &Leader,
    haproxy: &Haproxy,
    file: &Path,
    template: &str,
) -> anyhow::Result<()> {
    let port = *haproxy.ports.first().context("no port")?;
    let warns = |wanted: bool| async move {
        wait::until("the agent warns of its template, or no longer", Duration::from_secs(90), || async {
            let warnings = haproxy.warnings().await?;
            let warning = warnings.iter().find(|(code, _)| code == "haproxy_config_failed");
            let said = warning.is_some_and(|(_, message)| message.contains("line "));
            ensure!(said == wanted && warning.is_some() == wanted, "it warns of {warnings:?}");
            Ok(())
        })
        .await
    };
    ensure!(writes_go_to(port).await? == leader.node.ip().await?.to_string(), "writes do not go to {}", leader.member);
    tokio::fs::write(file, format!("{template}{{{{ no_such_variable }}}}\n")).await?;
    warns(true).await?;
    let led = stack.switchover(&leader.member).await?;
    let address = stack.node_of(&led)?.ip().await?.to_string();
    for port in [port, stack.ports.proxy] {
        ensure!(writes_go_to(port).await? == address, "writes do not go to {led} at {address}");
    }
    tokio::fs::write(file, format!("{template}# mended\n")).await?;
    warns(false).await?;
    let text = haproxy.container.exec(&["cat", "/etc/haproxy/haproxy.cfg"]).await?;
    ensure!(text.ends_with("# mended\n"), "it was not taken: {text}");
    ensure!(writes_go_to(port).await? == address, "after the reload writes do not go to {led} at {address}");
    Ok(())
}
