//! Two other ways to let HAProxy follow the primary, in front of the same nodes as the stack's own HAProxy. All three
//! see one fault at the same moment. The first has HAProxy's checks alone, in the configuration with which such stacks
//! usually begin. The second renders a file when the leader znode changes, and reloads HAProxy.
//!
//! The second stands for confd and similar programs, at their best. It reads the leader key ten times a second, loses
//! no change, and reloads at once. Its file names only the leader, so that no check has to find the leader first. While
//! no member holds the key it leaves the file unchanged.

use crate::docker::{self, Container};
use crate::history::LEADER;
use crate::stack::{NODES, Stack, free_ports};
use crate::wait;
use crate::writers::Route;
use anyhow::{Context, ensure};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use zookeeper_async::{WatchedEvent, ZkError, ZooKeeper};

/// The service that follows by its checks alone, as in the containers' names.
pub const CHECKS: &str = "haproxy-checks";

/// The service that is reloaded.
pub const RELOADED: &str = "haproxy-reloaded";

/// The pause between two reads of the leader key.
const LOOK: Duration = Duration::from_millis(100);

/// HAProxy takes 9 s to drop a server, and longer if it has to wait for each check's time limit.
const SETTLE: Duration = Duration::from_secs(120);

const CONFIGURATION: &str = "\
global
    maxconn 100

defaults
    log global
    mode tcp
    retries 2
    timeout client 30m
    timeout connect 4s
    timeout server 30m
    timeout check 5s

listen stats
    mode http
    bind *:7000
    stats enable
    stats uri /

listen postgres
    bind *:5432
    option httpchk
    http-check expect status 200
    default-server inter 3s fall 3 rise 2 on-marked-down shutdown-sessions
";

/// A reload without this line refuses connections for a moment, so all such setups have it.
const HAND_OVER: &str = "    stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners\n";

fn server(node: &str) -> String {
    format!("    server {node} {node}:5432 maxconn 100 check port 8008\n")
}

/// The configuration with both nodes. The checks find the primary.
fn with_both() -> String {
    CONFIGURATION.to_owned() + &NODES.map(|(node, _)| server(node)).concat()
}

/// The configuration with the leader's node only.
fn with_only(node: &str) -> String {
    CONFIGURATION.replace("    maxconn 100\n\n", &format!("    maxconn 100\n{HAND_OVER}\n")) + &server(node)
}

/// Both HAProxys beside a stack. Their containers belong to the stack's project and go with it.
#[derive(Debug)]
pub struct Rivals {
    checks: Rival,
    reloaded: Rival,
    /// `haproxy.cfg` of the one that is reloaded.
    file: PathBuf,
    zookeeper: String,
    /// The task that renders and reloads.
    following: JoinHandle<()>,
}

#[derive(Debug)]
struct Rival {
    container: Container,
    port: u16,
}

impl Rivals {
    /// Starts them beside a healthy stack. `leads` is its leader's node.
    pub async fn start(stack: &Stack, leads: &str) -> anyhow::Result<Self> {
        let directory = stack.out();
        let [checks, reloaded] = free_ports()?;
        let checks = Rival::start(stack, CHECKS, checks, &directory, &with_both()).await?;
        let reloaded = Rival::start(stack, RELOADED, reloaded, &directory, &with_only(leads)).await?;
        let file = directory.join(RELOADED).join("haproxy.cfg");
        let zookeeper = format!("{}:2181", stack.container("zoo").ip().await?);
        let pid = reloaded.container.pid().await?;
        let following = tokio::spawn(follow(zookeeper.clone(), file.clone(), leads.to_owned(), pid));
        Ok(Self { checks, reloaded, file, zookeeper, following })
    }

    /// The routes through the one that follows by its checks: in one session, and with a session for each row.
    pub const fn through_checks(&self) -> [Route; 2] {
        self.checks.routes()
    }

    /// The same through the one that is reloaded.
    pub const fn through_reloaded(&self) -> [Route; 2] {
        self.reloaded.routes()
    }

    /// Restarts both. They resolve the nodes' names only at the start, and a node that comes back may have another
    /// address.
    pub async fn restart(&mut self, leads: &str) -> anyhow::Result<()> {
        self.following.abort();
        tokio::fs::write(&self.file, with_only(leads)).await?;
        self.checks.container.restart().await?;
        self.reloaded.container.restart().await?;
        let pid = self.reloaded.container.pid().await?;
        self.following = tokio::spawn(follow(self.zookeeper.clone(), self.file.clone(), leads.to_owned(), pid));
        Ok(())
    }

    /// Waits until both have the node `leads` up, and no other.
    pub async fn settled(&self, leads: &str) -> anyhow::Result<()> {
        let http = reqwest::Client::builder().timeout(Duration::from_secs(4)).no_proxy().build()?;
        for rival in [&self.checks, &self.reloaded] {
            let address = rival.container.ip().await?;
            wait::until("the other HAProxys have found the primary", SETTLE, || async {
                let servers = servers(&http, address).await?;
                let right = |(node, state): &(String, String)| state == if node == leads { "UP" } else { "DOWN" };
                let well = servers.iter().any(|(node, _)| node == leads) && servers.iter().all(right);
                ensure!(well, "{} has {servers:?}, and {leads} leads", rival.container.0);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}

impl Drop for Rivals {
    fn drop(&mut self) {
        self.following.abort();
    }
}

impl Rival {
    async fn start(
        stack: &Stack,
        service: &str,
        port: u16,
        directory: &Path,
        configuration: &str,
    ) -> anyhow::Result<Self> {
        let directory = directory.join(service);
        tokio::fs::create_dir_all(&directory).await?;
        tokio::fs::write(directory.join("haproxy.cfg"), configuration).await?;
        let run = stack.run(service).option("--hostname", service).option("--publish", format!("{port}:5432"));
        let run = run.mount(&directory, "/etc/haproxy").option("--memory", "128m");
        let container = run.start("warden/haproxy:local", &[]).await?;
        Ok(Self { container, port })
    }

    const fn routes(&self) -> [Route; 2] {
        let port = self.port;
        [Route::Beside { port, per_row: false }, Route::Beside { port, per_row: true }]
    }
}

/// The servers for writes, and the states that HAProxy's checks give them. The source is HAProxy's statistics, a line
/// for each server; the first line names the columns.
async fn servers(http: &reqwest::Client, address: IpAddr) -> anyhow::Result<Vec<(String, String)>> {
    let text = http.get(format!("http://{address}:7000/;csv")).send().await?.error_for_status()?.text().await?;
    let header: Vec<&str> = text.lines().next().unwrap_or_default().trim_start_matches("# ").split(',').collect();
    let column = |name: &str| {
        header.iter().position(|known| *known == name).with_context(|| format!("its statistics have no {name}"))
    };
    let (proxy, server, state) = (column("pxname")?, column("svname")?, column("status")?);
    let rows = text.lines().skip(1).map(|line| line.split(',').collect::<Vec<_>>());
    let of_postgres = rows.filter_map(|row| {
        let known = NODES.iter().any(|(node, _)| row.get(server) == Some(node));
        (row.get(proxy) == Some(&"postgres") && known)
            .then(|| Some(((*row.get(server)?).to_owned(), (*row.get(state)?).to_owned())))?
    });
    Ok(of_postgres.collect())
}

/// Renders the file and makes HAProxy (its master is the process `pid`) reload it when another member holds the key.
async fn follow(zookeeper: String, file: PathBuf, mut rendered: String, pid: u32) {
    loop {
        if let Err(error) = follow_in_a_session(&zookeeper, &file, &mut rendered, pid).await {
            eprintln!("      the leader key is lost sight of: {error:#}");
        }
        sleep(Duration::from_secs(1)).await;
    }
}

async fn follow_in_a_session(zookeeper: &str, file: &Path, rendered: &mut String, pid: u32) -> anyhow::Result<()> {
    let connecting = ZooKeeper::connect(zookeeper, Duration::from_secs(30), |_: WatchedEvent| {});
    let zk = timeout(Duration::from_secs(5), connecting).await.context("ZooKeeper does not answer")??;
    loop {
        match timeout(Duration::from_secs(5), zk.get_data(LEADER, false)).await.context("ZooKeeper does not answer")? {
            Ok((holder, _)) => {
                let node = NODES.iter().find(|(_, member)| member.as_bytes() == holder).map(|(node, _)| *node);
                let node = node.with_context(|| format!("no node is {:?}", String::from_utf8_lossy(&holder)))?;
                if node != rendered {
                    let new = file.with_extension("new");
                    tokio::fs::write(&new, with_only(node)).await?;
                    tokio::fs::rename(&new, file).await?;
                    docker::run("kill", &["-USR2", &pid.to_string()]).await?;
                    node.clone_into(rendered);
                }
            }
            Err(ZkError::NoNode) => {}
            Err(error) => return Err(error.into()),
        }
        sleep(LOOK).await;
    }
}
