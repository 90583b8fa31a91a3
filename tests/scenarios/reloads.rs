//! HAProxy reloaded, hanging, started again, and its servers moved: what the clients see, and what is served then.

use anyhow::{Context, ensure};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use tokio::time::sleep;
use warden_e2e::docker::{Container, docker, run};
use warden_e2e::faults::Leader;
use warden_e2e::stack::{NODES, Stack, wait_for_session};
use warden_e2e::trial::Observed;
use warden_e2e::writers::{Commit, Report, Route};
use warden_e2e::{truth, wait};

const ROUTER: &str = "warden-haproxy";

const THIRD: &str = "pg-third";

/// Until a member that has come is served: a base backup, 2 s, and what a busy machine adds.
const JOINED: Duration = Duration::from_secs(180);

/// Until one that has left is served no more: it is forgotten after a minute, and written off after another.
const LEFT: Duration = Duration::from_secs(300);

/// A third member, whose Patroni is started by hand as a user would. It neither leads nor is synchronous.
async fn join(stack: &Stack) -> anyhow::Result<Container> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no top")?;
    let directory = root.join("tests/out").join(&stack.project);
    tokio::fs::create_dir_all(&directory).await?;
    let second = tokio::fs::read_to_string(root.join("compose/patroni/postgres1.yml")).await?;
    let third = second
        .replace("postgresql1", "postgresql2")
        .replace("pg-slave", THIRD)
        .replace("nofailover: false", "nofailover: true")
        .replace("nosync: false", "nosync: true");
    let file = directory.join("postgres2.yml");
    tokio::fs::write(&file, third).await?;
    let container = stack.container(THIRD);
    let (mount, network) = (format!("{}:/postgres2.yml:ro", file.display()), stack.network("default"));
    let (label, env) = (format!("com.docker.compose.project={}", stack.project), root.join("compose/trial.env"));
    docker(&[
        "run",
        "-d",
        "--name",
        &container.0,
        "--hostname",
        THIRD,
        "--network",
        &network,
        "--network-alias",
        THIRD,
        "--env-file",
        &env.to_string_lossy(),
        "--label",
        &label,
        "-v",
        &mount,
        "--shm-size",
        "256m",
        "warden/node:local",
        "patroni",
        "/postgres2.yml",
    ])
    .await?;
    Ok(container)
}

/// The servers that HAProxy has in its two pools, as the agent beside it sees them by its runtime socket.
async fn served(stack: &Stack) -> anyhow::Result<Vec<String>> {
    let state = stack.status(ROUTER, &[]).await?;
    let servers = state["haproxy"][0]["servers"].as_array().context("no servers[]")?;
    Ok(servers.iter().filter_map(|server| server["name"].as_str()).map(str::to_owned).collect())
}

async fn third_is_served(stack: &Stack, wanted: bool, limit: Duration) -> anyhow::Result<()> {
    wait::until("the third member is served, or no more", limit, || async {
        let servers = served(stack).await?;
        let times = servers.iter().filter(|name| *name == THIRD).count();
        ensure!(times == if wanted { 2 } else { 0 }, "HAProxy has {servers:?}");
        Ok(())
    })
    .await
}

/// Fails if a row failed: clients that connect for each row notice nothing, and a session that is kept goes on in the old
/// worker.
fn nobody_noticed(report: &Report) -> anyhow::Result<()> {
    for route in [Route::ProxyAnew, Route::Proxy] {
        let story = report.stories.get(&route).context("nobody wrote")?;
        ensure!(story.errors.is_empty(), "{} rows failed: {:?}", story.errors.len(), story.errors);
    }
    Ok(())
}

/// Everything that takes the hand from the agent in the middle of its work, and what it does when it is back: its file was
/// put in place, HAProxy's master hangs, and the agent dies. Then the member leaves, and is written off.
pub(crate) async fn a_third_node_joins_and_leaves(stack: &Stack) -> anyhow::Result<()> {
    let (haproxy, router) = (stack.container("haproxy"), stack.container(ROUTER));
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let master = haproxy.pid().await?.to_string();
    run("kill", &["-STOP", &master]).await?;
    let third = join(stack).await;
    let written = wait::until("its configuration names the third", JOINED, || async {
        let file = haproxy.exec(&["cat", "/etc/haproxy/haproxy.cfg"]).await?;
        ensure!(file.contains("server pg-third"), "it does not");
        Ok(())
    })
    .await;
    let killed = router.kill().await;
    run("kill", &["-CONT", &master]).await?;
    router.start().await?;
    third?;
    written?;
    killed?;
    let outcome = async {
        third_is_served(stack, true, JOINED).await.context("after the agent was killed")?;
        stack.container(THIRD).stop(Duration::from_secs(30)).await?;
        third_is_served(stack, false, LEFT).await
    }
    .await;
    docker(&["rm", "-f", "-v", &stack.container(THIRD).0]).await?;
    outcome?;
    let (_, report, _, _) = observed.end(stack).await?;
    report.nothing_lost_and_no_two_primaries()?;
    nobody_noticed(&report)
}

/// Ten reloads, one a second: not one row fails, in a session that is kept or in new ones.
pub(crate) async fn ten_reloads_under_load(stack: &Stack) -> anyhow::Result<()> {
    const RELOADS: usize = 10;
    let haproxy = stack.container("haproxy");
    let workers = || async { anyhow::Ok(haproxy.logs().await?.matches("New worker").count()) };
    let before = workers().await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    for reload in 1..=RELOADS {
        // As an administrator would, and without the agent's knowledge.
        docker(&["kill", "--signal", "USR2", &haproxy.0]).await?;
        wait::until("another worker serves", Duration::from_secs(30), || async {
            let now = workers().await?;
            ensure!(now >= before + reload, "{now} workers, {before} before");
            Ok(())
        })
        .await?;
        let rows = observed.writers().pulse().acknowledged(Route::ProxyAnew);
        wait::until("rows through the new worker", Duration::from_secs(30), || async {
            let now = observed.writers().pulse().acknowledged(Route::ProxyAnew);
            ensure!(now > rows + 5, "{} rows", now - rows);
            Ok(())
        })
        .await?;
    }
    let failed: Vec<_> =
        [Route::Proxy, Route::ProxyAnew].into_iter().flat_map(|route| observed.writers().story(route).errors).collect();
    ensure!(failed.is_empty(), "{} rows failed in {RELOADS} reloads: {failed:?}", failed.len());
    let (_, report, _, _) = observed.end(stack).await?;
    report.nothing_lost_and_no_two_primaries()
}

/// It hangs for a while, is killed and started again: the agent says so, and writes go on where they did.
pub(crate) async fn haproxy_hangs_and_is_started_again(stack: &Stack) -> anyhow::Result<()> {
    let haproxy = stack.container("haproxy");
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    haproxy.pause().await?;
    let noticed = wait::until("the agent says that it hangs", Duration::from_secs(60), || async {
        let state = stack.status(ROUTER, &[]).await?;
        let codes: Vec<_> =
            state["warnings"].as_array().into_iter().flatten().filter_map(|one| one["code"].as_str()).collect();
        ensure!(codes.contains(&"haproxy_unusable"), "it warns of {codes:?}");
        Ok(())
    })
    .await;
    haproxy.unpause().await?;
    noticed?;
    wait_for_session(stack.ports.proxy, Duration::from_secs(60)).await.context("after it was thawed")?;
    haproxy.crash().await?;
    wait_for_session(stack.ports.proxy, Duration::from_secs(60)).await.context("after it was started again")?;
    let (_, report, _, _) = observed.end(stack).await?;
    report.nothing_lost_and_no_two_primaries()?;
    never_at_a_standby(&report)
}

fn never_at_a_standby(report: &Report) -> anyhow::Result<()> {
    for route in [Route::Proxy, Route::ProxyAnew] {
        let errors = report.stories.get(&route).map(|story| story.errors.as_slice()).unwrap_or_default();
        let wrong = errors.iter().find(|error| error.why.contains("read-only"));
        ensure!(wrong.is_none(), "a write was sent to a standby: {wrong:?}");
    }
    Ok(())
}

/// Both nodes are stopped, and come back in the other order, each with the other's address: HAProxy's names stand for
/// the other one then, until it has resolved them anew.
pub(crate) async fn the_nodes_swap_their_addresses(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let (first, second) = (stack.container(NODES[0].0), stack.container(NODES[1].0));
    let addresses = || async { anyhow::Ok((first.ip().await?, second.ip().await?)) };
    let before = addresses().await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    let standby = if leader.node == first { &second } else { &first };
    standby.stop(Duration::from_secs(30)).await?;
    leader.node.stop(Duration::from_secs(30)).await?;
    // Docker gives the lowest address that is free.
    let number = |ip: IpAddr| ip.to_string().split('.').filter_map(|part| part.parse::<u32>().ok()).collect::<Vec<_>>();
    let order = if number(before.0) < number(before.1) { [&second, &first] } else { [&first, &second] };
    for node in order {
        node.start().await?;
        sleep(Duration::from_millis(200)).await;
    }
    let after = addresses().await?;
    ensure!(after == (before.1, before.0), "Docker gave them {after:?}, and not each other's: {before:?}");
    let (led, report, _, _) = observed.end(stack).await?;
    report.nothing_lost_and_no_two_primaries()?;
    never_at_a_standby(&report)?;
    let expected = stack.node_of(&led)?.ip().await?.to_string();
    let address = writes_go_to(stack.ports.proxy).await?;
    ensure!(address == expected, "writes go to {address}, and not to {led} at {expected}");
    Ok(())
}

const SECOND: &str = "haproxy2";

/// A second HAProxy with an agent and a template of its own; the port on this machine where it takes writes.
async fn second_haproxy(stack: &Stack, root: &Path, template: &Path) -> anyhow::Result<u16> {
    let config = tokio::fs::read_to_string(root.join("compose/warden/haproxy.yml")).await?;
    let config = config
        .replace("name: haproxy\n", &format!("name: {SECOND}\n"))
        .replace("warden-haproxy:8010", &format!("warden-{SECOND}:8010"))
        .replace("  resolvers:", "  template: /etc/warden/haproxy.cfg.j2\n  resolvers:");
    let file = template.with_file_name("haproxy2.yml");
    tokio::fs::write(&file, config).await?;
    let at = |path: &Path, to: &str| format!("{}:{to}:ro", path.display());
    let (label, network) = (format!("com.docker.compose.project={}", stack.project), stack.network("default"));
    let volume = |name: &str| format!("{}_{SECOND}-{name}", stack.project);
    let (conf, sockets) = (format!("{}:/etc/haproxy", volume("conf")), format!("{}:/run/haproxy", volume("run")));
    for name in ["conf", "run"] {
        docker(&["volume", "create", "--label", &label, &volume(name)]).await?;
    }
    let common = ["run", "-d", "--network", &network, "--label", &label, "-v", &conf, "-v", &sockets];
    let begin = "cp -n /usr/local/etc/haproxy/* /etc/haproxy/ && \
                 exec haproxy -W -db -S /run/haproxy/master.sock,mode,660 -f /etc/haproxy/haproxy.cfg";
    let own = at(&root.join("compose/haproxy"), "/usr/local/etc/haproxy");
    let proxy = stack.container(SECOND);
    let args = ["--name", &proxy.0, "-p", "127.0.0.1::5432", "-v", &own, "warden/haproxy:local", "sh", "-c", begin];
    docker(&[common.as_slice(), &args].concat()).await?;
    let agent = stack.container(&format!("warden-{SECOND}"));
    let (file, patroni) =
        (at(&file, "/etc/warden/warden.yml"), at(&root.join("compose/patroni/postgres0.yml"), "/postgres0.yml"));
    let (template, env) = (at(template, "/etc/warden/haproxy.cfg.j2"), root.join("compose/trial.env"));
    let (host, env) = (format!("warden-{SECOND}"), env.to_string_lossy());
    let args = [
        "--name",
        &agent.0,
        "--hostname",
        &host,
        "--env-file",
        &env,
        "-v",
        &file,
        "-v",
        &patroni,
        "-v",
        &template,
        "warden/warden:local",
    ];
    docker(&[common.as_slice(), &args].concat()).await?;
    let port = docker(&["port", &proxy.0, "5432"]).await?;
    let port = port.trim().rsplit_once(':').context("no port")?.1;
    port.parse().with_context(|| format!("{port:?} is no port"))
}

/// The primary's name as clients of this port find it, if it takes writes.
async fn writes_go_to(port: u16) -> anyhow::Result<String> {
    let client = wait_for_session(port, Duration::from_secs(30)).await?;
    let row = client.query_one("SELECT host(inet_server_addr()), pg_is_in_recovery()", &[]).await?;
    ensure!(!row.get::<_, bool>(1), "writes are sent to a standby");
    Ok(row.get(0))
}

/// Its template is broken, and mended: it goes on with the file that it has, says so, and takes the new one then. A
/// switchover in between is followed by both.
pub(crate) async fn a_second_haproxy_with_a_template_of_its_own(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no top")?;
    let directory = root.join("tests/out").join(&stack.project);
    tokio::fs::create_dir_all(&directory).await?;
    let file = directory.join("haproxy.cfg.j2");
    let template = tokio::fs::read_to_string(root.join("agent/templates/haproxy.cfg.j2")).await?;
    tokio::fs::write(&file, &template).await?;
    let (proxy, agent) = (stack.container(SECOND), stack.container(&format!("warden-{SECOND}")));
    let warns = |wanted: bool| {
        let agent = &agent;
        async move {
            wait::until("it says what is wrong with its template, or no more", Duration::from_secs(90), || async {
                let state = agent.exec(&["warden", "status", "-f", "json"]).await?;
                let said = state.contains("haproxy_config_failed");
                ensure!(said == wanted && (!wanted || state.contains("line ")), "it says {state}");
                Ok(())
            })
            .await
        }
    };
    let outcome = async {
        let port = second_haproxy(stack, root, &file).await?;
        ensure!(writes_go_to(port).await? == leader.node.ip().await?.to_string(), "writes go astray");
        tokio::fs::write(&file, format!("{template}{{{{ nobody }}}}\n")).await?;
        warns(true).await?;
        let led = stack.switchover(&leader.member).await?;
        let address = stack.node_of(&led)?.ip().await?.to_string();
        for port in [port, stack.ports.proxy] {
            ensure!(writes_go_to(port).await? == address, "writes do not go to {led} at {address}");
        }
        tokio::fs::write(&file, format!("{template}# mended\n")).await?;
        warns(false).await?;
        let text = proxy.exec(&["cat", "/etc/haproxy/haproxy.cfg"]).await?;
        ensure!(text.ends_with("# mended\n"), "it was not taken: {text}");
        ensure!(writes_go_to(port).await? == address, "after the reload writes do not go to {led} at {address}");
        anyhow::Ok(())
    }
    .await;
    let logs = agent.logs().await.unwrap_or_default();
    // Its znode goes with it.
    drop(agent.stop(Duration::from_secs(5)).await);
    docker(&["rm", "-f", "-v", &agent.0, &proxy.0]).await?;
    outcome.with_context(|| logs)?;
    truth::all_well(stack).await.map(drop)
}
