//! A whole stack for a test: a compose project with its own container names and ports, so that it does not collide with
//! a running `compose/up`. `compose/up` itself brings it up.

use crate::docker::{self, Container};
use crate::{secured, supervised, wait};
use anyhow::{Context, ensure};
use serde_json::Value;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio_postgres::{Client, Config, NoTls};

/// How long `compose/up` may take once the images are there, and how long it waits for a healthy cluster. It usually
/// takes half a minute. A busy machine may need many times that.
const UP: Duration = Duration::from_secs(1200);
const HEALTHY: Duration = Duration::from_secs(600);

/// Linux gives clients ports from 32768 on.
const PORTS: std::ops::Range<u16> = 22000..32000;

/// Which stack a test needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    /// One ZooKeeper server, as `compose/up` makes it.
    Single,
    /// Three ZooKeeper servers. The agent beside HAProxy knows only `zoo3`, the nodes only the other two. So a test
    /// knows which client talks to which server (`tests/ensemble-known.yml`).
    Ensemble,
    /// One ZooKeeper server. Patroni and PostgreSQL use TLS and passwords everywhere ([`crate::secured`]).
    Secured,
    /// One ZooKeeper server. Patroni is not its container's process, so that PostgreSQL outlives it. One agent sees its
    /// node's processes ([`crate::supervised`]).
    Supervised,
}

/// The two nodes: container and member name.
pub const NODES: [(&str, &str); 2] = [("pg-master", "postgresql0"), ("pg-slave", "postgresql1")];

/// The agents' containers.
pub const AGENTS: [&str; 3] = ["warden-pg-master", "warden-pg-slave", "warden-haproxy"];

/// The host ports of a stack.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// pg-master's PostgreSQL.
    pub master: u16,
    /// pg-slave's PostgreSQL.
    pub slave: u16,
    /// Writes, through HAProxy.
    pub proxy: u16,
    /// Reads, through HAProxy.
    pub reads: u16,
    /// HAProxy's statistics.
    pub stats: u16,
    /// Prometheus.
    pub prometheus: u16,
}

/// A running stack. [`Stack::down`] removes it. The next run of the tests removes a stack that a killed run left.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The name of the compose project.
    pub project: String,
    /// The prefix of the containers' names.
    prefix: String,
    /// Its kind.
    pub flavor: Flavor,
    /// Its ports on this machine.
    pub ports: Ports,
    root: PathBuf,
    /// A compose file over the stack's own.
    over: Option<PathBuf>,
}

impl Stack {
    /// Brings up a stack whose project is called `project`, and waits until it is healthy.
    pub async fn up(project: &str, flavor: Flavor) -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no top")?.to_owned();
        let over = match flavor {
            Flavor::Single => None,
            Flavor::Ensemble => Some(root.join("tests/ensemble-known.yml")),
            Flavor::Secured => Some(secured::prepare(&root, &root.join("tests/out").join(project)).await?),
            Flavor::Supervised => Some(supervised::prepare(&root, &root.join("tests/out").join(project)).await?),
        };
        let prefix = format!("{project}-");
        let [master, slave, proxy, reads, stats, prometheus] = free_ports()?;
        let ports = Ports { master, slave, proxy, reads, stats, prometheus };
        let stack = Self { project: project.to_owned(), prefix, flavor, ports, root, over };
        let said = stack.compose_up().await?;
        ensure!(said.contains("the cluster is healthy"), "compose/up did not report a healthy cluster: {said}");
        Ok(stack)
    }

    /// The stack that `compose/up` has brought up, found by the same variables.
    pub fn running() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no top")?.to_owned();
        let text = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
        let port = |name: &str, default: &str| {
            let text = text(name, default);
            text.parse().with_context(|| format!("{name} is {text:?} and no port"))
        };
        let ports = Ports {
            master: port("PG_MASTER_PORT", "5433")?,
            slave: port("PG_SLAVE_PORT", "5434")?,
            proxy: port("HAPROXY_PORT", "5000")?,
            reads: port("HAPROXY_READ_PORT", "5001")?,
            stats: port("HAPROXY_STATS_PORT", "7000")?,
            prometheus: port("PROMETHEUS_PORT", "9090")?,
        };
        let flavor = if text("WARDEN_ENSEMBLE", "").is_empty() { Flavor::Single } else { Flavor::Ensemble };
        let (project, prefix) = (text("COMPOSE_PROJECT_NAME", "warden"), text("WARDEN_PREFIX", ""));
        Ok(Self { project, prefix, flavor, ports, root, over: None })
    }

    /// Sets what the agents do: `enforce`, `observe` or `off`.
    pub async fn mode(&self, mode: &str) -> anyhow::Result<()> {
        let script = self.root.join("compose/mode");
        let (status, out, err) = docker::run_with(&script.to_string_lossy(), &[mode], &self.env(), UP).await?;
        ensure!(status == 0, "compose/mode {mode} ended with {status}:\n{out}\n{err}");
        Ok(())
    }

    /// Runs `compose/up` (again) and returns what it said.
    pub async fn compose_up(&self) -> anyhow::Result<String> {
        let script = self.root.join("compose/up");
        let (status, out, err) = docker::run_with(&script.to_string_lossy(), &[], &self.env(), UP).await?;
        ensure!(status == 0, "compose/up ended with {status}:\n{out}\n{err}");
        Ok(out)
    }

    fn env(&self) -> Vec<(String, String)> {
        let Ports { master, slave, proxy, reads, stats, prometheus } = self.ports;
        let mut env = vec![
            ("COMPOSE_PROJECT_NAME".to_owned(), self.project.clone()),
            ("WARDEN_PREFIX".to_owned(), self.prefix.clone()),
            // tests/run builds the images once for all stacks.
            ("WARDEN_BUILD".to_owned(), "no".to_owned()),
            ("WARDEN_WAIT".to_owned(), HEALTHY.as_secs().to_string()),
        ];
        let ports = [
            ("PG_MASTER_PORT", master),
            ("PG_SLAVE_PORT", slave),
            ("HAPROXY_PORT", proxy),
            ("HAPROXY_READ_PORT", reads),
            ("HAPROXY_STATS_PORT", stats),
            ("PROMETHEUS_PORT", prometheus),
        ];
        env.extend(ports.map(|(name, port)| (name.to_owned(), port.to_string())));
        if self.flavor == Flavor::Ensemble {
            env.push(("WARDEN_ENSEMBLE".to_owned(), "1".to_owned()));
        }
        if let Some(over) = &self.over {
            env.push(("WARDEN_COMPOSE_FILES".to_owned(), over.to_string_lossy().into_owned()));
        }
        env
    }

    /// Removes containers, networks and volumes.
    pub async fn down(&self) -> anyhow::Result<()> {
        remove_project(&self.project).await
    }

    /// The container of a service.
    pub fn container(&self, service: &str) -> Container {
        Container(format!("{}{service}", self.prefix))
    }

    /// A container beside those of the compose file, in the network `default`. It is removed with the stack.
    pub fn run(&self, service: &str) -> docker::Run {
        self.run_in(service, &self.network("default"))
    }

    /// The same in another network. `container:NAME` is the network of that container.
    pub fn run_in(&self, service: &str, network: &str) -> docker::Run {
        docker::Run::new(self.container(service), network).option("--label", self.label())
    }

    /// Creates a volume that is removed with the stack; returns its full name.
    pub async fn create_volume(&self, name: &str) -> anyhow::Result<String> {
        let volume = format!("{}_{name}", self.project);
        docker::docker(&["volume", "create", "--label", &self.label(), &volume]).await?;
        Ok(volume)
    }

    /// The label of every container, network and volume of the stack.
    fn label(&self) -> String {
        format!("com.docker.compose.project={}", self.project)
    }

    /// The top of the repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where tests put files for this stack: `tests/out/<project>`.
    pub fn out(&self) -> PathBuf {
        self.root.join("tests/out").join(&self.project)
    }

    /// The containers of ZooKeeper's servers.
    pub fn zookeepers(&self) -> Vec<Container> {
        let names: &[&str] = match self.flavor {
            Flavor::Single | Flavor::Secured | Flavor::Supervised => &["zoo"],
            Flavor::Ensemble => &["zoo", "zoo2", "zoo3"],
        };
        names.iter().map(|name| self.container(name)).collect()
    }

    /// The name of a network of this stack, like `default`.
    pub fn network(&self, name: &str) -> String {
        format!("{}_{name}", self.project)
    }

    /// The container of a member.
    pub fn node_of(&self, member: &str) -> anyhow::Result<Container> {
        let (container, _) =
            NODES.iter().find(|(_, name)| *name == member).with_context(|| format!("no node is called {member:?}"))?;
        Ok(self.container(container))
    }

    /// The host port of a node's PostgreSQL, by container name.
    pub fn node_port(&self, node: &str) -> u16 {
        if node == "pg-master" { self.ports.master } else { self.ports.slave }
    }

    /// `warden status -f json` as a user types it, from one agent's container, with further arguments.
    pub async fn status(&self, agent: &str, args: &[&str]) -> anyhow::Result<Value> {
        let text = self.container(agent).exec(&[&["warden", "status", "-f", "json"], args].concat()).await?;
        serde_json::from_str(&text).with_context(|| format!("the status of {agent} is not JSON: {text}"))
    }

    /// `patronictl …` in a node whose container runs.
    pub async fn patronictl(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut node = self.container("pg-master");
        let mut file = "/postgres0.yml";
        if !node.runs().await? {
            (node, file) = (self.container("pg-slave"), "/postgres1.yml");
        }
        node.exec(&[&["patronictl", "-c", file], args].concat()).await
    }

    /// Changes one of Patroni's dynamic settings, such as `ttl`. `null` removes it.
    pub async fn configure(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let setting = format!("{key}={value}");
        self.patronictl(&["edit-config", "my_cluster", "--force", "-s", &setting]).await.map(drop)
    }

    /// Asks for a switchover away from `leader`, and returns when Patroni reports that it is done.
    ///
    /// Patroni polls once a second, and reads the leader key and the request one after the other. The new leader may
    /// take the key and remove the request in between. Patroni then reports a failure although the switchover
    /// succeeded. In that case the holder of the key decides.
    pub async fn switchover(&self, leader: &str) -> anyhow::Result<String> {
        let candidate = other(leader);
        let args = ["switchover", "my_cluster", "--leader", leader, "--candidate", candidate, "--force"];
        let said = self.patronictl(&args).await?;
        if !said.contains("Successfully switched over") {
            ensure!(said.contains("503, Switchover failed"), "the switchover failed: {said}");
            eprintln!("      Patroni says that the switchover to {candidate} failed");
            wait::until("the candidate leads", Duration::from_secs(15), || async {
                let list = self.patronictl(&["list", "my_cluster", "-f", "json"]).await?;
                let members: Vec<Value> = serde_json::from_str(&list)?;
                let leads = members.iter().any(|one| one["Member"] == candidate && one["Role"] == "Leader");
                ensure!(leads, "the switchover failed: {said}{list}");
                Ok(())
            })
            .await?;
        }
        Ok(candidate.to_owned())
    }

    /// Writes the containers' logs to `directory`.
    pub async fn keep_logs(&self, directory: &Path) -> anyhow::Result<()> {
        tokio::fs::create_dir_all(directory).await?;
        let filter = format!("label=com.docker.compose.project={}", self.project);
        let names = docker::docker(&["ps", "-a", "--filter", &filter, "--format", "{{.Names}}"]).await?;
        for name in names.lines() {
            let logs = match Container(name.to_owned()).logs().await {
                Ok(logs) => logs,
                Err(error) => format!("no logs: {error:#}\n"),
            };
            tokio::fs::write(directory.join(format!("{name}.log")), logs).await?;
        }
        Ok(())
    }
}

/// The member that is not `member`.
pub fn other(member: &str) -> &'static str {
    if member == "postgresql0" { "postgresql1" } else { "postgresql0" }
}

/// A superuser's session with a server of the stack on this machine's `port`.
pub async fn session(port: u16) -> anyhow::Result<Client> {
    session_as(port, "postgres").await
}

/// A session of `user`, whose password is the same as the name.
pub async fn session_as(port: u16, user: &str) -> anyhow::Result<Client> {
    session_within(port, user, Duration::from_secs(3)).await
}

/// The same with a time limit.
pub async fn session_within(port: u16, user: &str, limit: Duration) -> anyhow::Result<Client> {
    let mut config = Config::new();
    config.host("127.0.0.1").port(port).user(user).password(user).dbname("postgres");
    config.connect_timeout(Duration::from_secs(2)).application_name("warden-e2e");
    let connecting = tokio::time::timeout(limit, config.connect(NoTls));
    let (client, connection) =
        connecting.await.with_context(|| format!("no session within {} s", limit.as_secs()))??;
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// Removes every project whose name starts with `prefix`, which an earlier, killed run left behind.
pub async fn remove_stale(prefix: &str) -> anyhow::Result<()> {
    let format = r#"{{ .Label "com.docker.compose.project" }}"#;
    let mut projects: Vec<String> =
        docker::docker(&["ps", "-a", "--format", format]).await?.lines().map(str::to_owned).collect();
    projects.sort();
    projects.dedup();
    for project in projects.iter().filter(|project| project.starts_with(prefix)) {
        remove_project(project).await?;
    }
    Ok(())
}

/// Selects by label and not by compose file, so that a changed file does not matter.
async fn remove_project(project: &str) -> anyhow::Result<()> {
    let filter = format!("label=com.docker.compose.project={project}");
    remove(&["ps", "-aq", "--filter", &filter], &["rm", "-f", "-v"]).await?;
    // Docker sometimes reports a network as in use after its last container has gone: for a moment, or, rarely, until
    // Docker restarts. Such a network does no harm.
    let network = || async { remove(&["network", "ls", "-q", "--filter", &filter], &["network", "rm"]).await };
    if let Err(error) = wait::until("its networks are removed", Duration::from_secs(10), network).await {
        eprintln!("      a network of {project} stays behind: {error:#}");
    }
    remove(&["volume", "ls", "-q", "--filter", &filter], &["volume", "rm", "-f"]).await?;
    let left = docker::docker(&["ps", "-aq", "--filter", &filter]).await?;
    ensure!(left.trim().is_empty(), "containers of {project} are left: {left}");
    Ok(())
}

/// Removes what `list` lists.
async fn remove(list: &[&str], remove: &[&str]) -> anyhow::Result<()> {
    let found = docker::docker(list).await?;
    let found: Vec<&str> = found.split_whitespace().collect();
    if !found.is_empty() {
        docker::docker(&[remove, found.as_slice()].concat()).await?;
    }
    Ok(())
}

/// Free ports below the range that the kernel gives to clients. In that range one of the writers could hold the port of
/// a node that restarts. A writer that connects to a closed port could also be connected to itself. Each call begins
/// after the last one's ports, so that stacks that start at once do not collide.
pub fn free_ports<const COUNT: usize>() -> anyhow::Result<[u16; COUNT]> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let seed = std::process::id().wrapping_mul(97);
    let mut found = Vec::new();
    for _ in 0..PORTS.len() {
        let nth = seed.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % u32::from(PORTS.end - PORTS.start);
        let port = PORTS.start + u16::try_from(nth)?;
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            found.push(port);
        }
        if let Ok(ports) = found.as_slice().try_into() {
            return Ok(ports);
        }
    }
    anyhow::bail!("not {COUNT} of the ports {PORTS:?} are free")
}

/// Waits until a TCP port on this machine accepts a PostgreSQL session.
pub async fn wait_for_session(port: u16, limit: Duration) -> anyhow::Result<Client> {
    wait::until(&format!("a session on port {port}"), limit, || session(port)).await
}
