//! ZooKeeper servers in containers: one that all tests share, and others for tests that stop them. Every container and
//! network carries the id of the process that runs the tests. So a run can tell the rest of a killed run from the
//! containers of another run.

use anyhow::{Context, bail, ensure};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use warden_e2e::docker::{Container, docker};
use warden_e2e::wait::until;

const IMAGE: &str = "warden/zookeeper:local";
const PORT: u16 = 2181;

/// The names of all containers and networks are `PREFIX<pid>-<tag>`.
const PREFIX: &str = "wardentest-zk-";

/// The variable that names the shared server to a process that runs one test.
pub const SHARED: &str = "WARDENTEST_ZK_SHARED";

/// The variable that names the run to such a process. The run removes what the process leaves.
pub const RUN: &str = "WARDENTEST_ZK_RUN";

/// A server is up in 3 s. The limit is for a busy machine.
const UP: Duration = Duration::from_secs(120);

/// Set when no server may start any more.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

static SHARED_SERVER: OnceCell<Server> = OnceCell::const_new();

/// A server and its container, which is removed with this value.
#[derive(Debug)]
pub struct Server {
    pub container: Container,
    pub address: SocketAddr,
    /// Whether this value removes the container.
    owned: bool,
}

impl Server {
    /// The server for tests that do not stop it. The first test that asks starts it.
    pub async fn shared() -> anyhow::Result<&'static Self> {
        SHARED_SERVER
            .get_or_try_init(|| async {
                let Ok(name) = std::env::var(SHARED) else { return Self::start("shared").await };
                let container = Container(name);
                let address = SocketAddr::new(container.ip().await?, PORT);
                Ok(Self { container, address, owned: false })
            })
            .await
    }

    /// Starts a server for one test.
    pub async fn start(tag: &str) -> anyhow::Result<Self> {
        Self::start_with(tag, "bridge", &[]).await
    }

    /// Starts a server for one test in `network`, with additional environment variables.
    pub async fn start_with(tag: &str, network: &str, env: &[String]) -> anyhow::Result<Self> {
        let server = Self::launch(tag, network, env).await?;
        server.up().await?;
        Ok(server)
    }

    /// Starts a server without waiting until it serves. A member of an ensemble alone never serves.
    pub async fn launch(tag: &str, network: &str, env: &[String]) -> anyhow::Result<Self> {
        ensure!(!INTERRUPTED.load(Ordering::SeqCst), "the run was broken off");
        let name = named(tag);
        let mut args = vec!["run", "--detach", "--name", &name, "--network", network, "--env", "ZOO_HEAP=64m"];
        args.extend(env.iter().flat_map(|variable| ["--env", variable.as_str()]));
        args.push(IMAGE);
        docker(&args).await?;
        // From here on the container is removed with the value.
        let unknown = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), PORT);
        let mut server = Self { container: Container(name), address: unknown, owned: true };
        server.address.set_ip(server.container.ip().await?);
        Ok(server)
    }

    /// Waits until it serves.
    pub async fn up(&self) -> anyhow::Result<()> {
        until("a ZooKeeper server that serves", UP, || async {
            let status = self.word("srvr").await?;
            ensure!(status.contains("Mode: "), "{status}");
            Ok(())
        })
        .await
    }

    /// Its answer to a four-letter word.
    pub async fn word(&self, word: &str) -> anyhow::Result<String> {
        let asking = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(word.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        timeout(Duration::from_secs(2), asking).await.with_context(|| format!("{word}: no answer"))?
    }

    /// One of its counters.
    pub async fn gauge(&self, name: &str) -> anyhow::Result<i64> {
        let all = self.word("mntr").await?;
        let value = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('\t'));
        value.with_context(|| format!("mntr has no {name}"))?.trim().parse().context("mntr")
    }

    /// Its address as a configured host.
    pub fn host(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.owned {
            remove("container", &[self.container.0.as_str()]);
        }
    }
}

/// A network for one test. An address in it stays the same over a restart, because no other container takes it.
#[derive(Debug)]
pub struct Network(pub String);

impl Network {
    pub async fn create(tag: &str) -> anyhow::Result<Self> {
        let name = named(tag);
        docker(&["network", "create", &name]).await?;
        Ok(Self(name))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove("network", &[self.0.as_str()]);
    }
}

/// An unused address in the network of the server at `near`, another one each time. Packets to it vanish, until the
/// kernel gives up looking for it after 3 s.
pub fn unused_address(near: SocketAddr) -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let IpAddr::V4(ip) = near.ip() else { bail!("{near} is no IPv4 address") };
    let [a, b, _, _] = ip.octets();
    // Docker gives addresses from the low end of the network.
    let nth = std::process::id().wrapping_mul(31).wrapping_add(NEXT.fetch_add(1, Ordering::SeqCst).into());
    let [_, _, c, d] = nth.to_be_bytes();
    Ok(SocketAddr::from(([a, b, c | 0x80, d.clamp(1, 254)], PORT)))
}

/// The name of a container or network of this run.
pub fn named(tag: &str) -> String {
    format!("{PREFIX}{}-{tag}", run())
}

/// The id of the process that runs the tests.
pub fn run() -> String {
    std::env::var(RUN).unwrap_or_else(|_| std::process::id().to_string())
}

/// Removes the containers and networks of ended runs, and, if `own`, of this run.
pub fn sweep(own: bool) {
    for (kind, list) in [("container", &["ps", "--all"][..]), ("network", &["network", "ls"][..])] {
        let format = if kind == "container" { "{{.Names}}" } else { "{{.Name}}" };
        let filter = format!("name={PREFIX}");
        let listed = Command::new("docker").args(list).args(["--filter", &filter, "--format", format]).output();
        let Ok(listed) = listed else { continue };
        let names = String::from_utf8_lossy(&listed.stdout).into_owned();
        let stale = |name: &&str| match name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) {
            Some(pid) if pid == run() => own,
            Some(pid) => !std::path::Path::new("/proc").join(pid).exists(),
            None => false,
        };
        remove(kind, &names.lines().filter(stale).collect::<Vec<_>>());
    }
}

/// Removes the containers and networks of this run when it is interrupted, also those that are just being created.
pub fn sweep_for_good() {
    INTERRUPTED.store(true, Ordering::SeqCst);
    sweep(true);
    std::thread::sleep(Duration::from_secs(2));
    sweep(true);
}

fn remove(kind: &str, names: &[&str]) {
    if names.is_empty() {
        return;
    }
    let with: &[&str] = if kind == "container" { &["rm", "--force", "--volumes"] } else { &["network", "rm"] };
    match Command::new("docker").args(with).args(names).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => eprintln!("docker {} {names:?}: {}", with.join(" "), String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("docker cannot be run: {error}"),
    }
}
