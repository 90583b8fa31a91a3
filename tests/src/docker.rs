//! Docker's command line, and the faults that Docker and the kernel can cause. Every call has a time limit.

use crate::wait;
use anyhow::{Context, bail, ensure};
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tokio::time::timeout;

/// Enough for `docker stop` with its grace period on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(240);

/// Runs `program` and returns its standard output. The error holds the program's output.
pub async fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let (status, out, err) = run_with(program, args, &[], LIMIT).await?;
    ensure!(status == 0, "{program} {} ended with {status}: {}{}", args.join(" "), err.trim(), out.trim());
    Ok(out)
}

/// Runs `program` with additional environment variables. Returns the exit code, standard output and standard error.
pub async fn run_with(
    program: &str,
    args: &[&str],
    env: &[(String, String)],
    limit: Duration,
) -> anyhow::Result<(i32, String, String)> {
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().cloned()).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(limit, command.output())
        .await
        .with_context(|| format!("{program} {} took longer than {} s", args.join(" "), limit.as_secs()))?
        .with_context(|| format!("{program} cannot be started"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr)))
}

/// `docker …`.
pub async fn docker(args: &[&str]) -> anyhow::Result<String> {
    run("docker", args).await
}

/// A container that a test starts by itself, with `docker run --detach`.
#[derive(Clone, Debug)]
#[must_use]
pub struct Run {
    container: Container,
    options: Vec<String>,
}

impl Run {
    /// A container of this name in this network.
    pub fn new(container: Container, network: &str) -> Self {
        let options = vec!["--name".to_owned(), container.0.clone(), "--network".to_owned(), network.to_owned()];
        Self { container, options }
    }

    /// An option of `docker run` with its value, as `--memory` and `128m`.
    pub fn option(mut self, name: &str, value: impl Into<String>) -> Self {
        self.options.extend([name.to_owned(), value.into()]);
        self
    }

    /// The container sees this file or directory of this machine at a path of its own, and cannot write it.
    pub fn mount(self, from: &Path, to: &str) -> Self {
        self.option("--volume", format!("{}:{to}:ro", from.display()))
    }

    /// The container sees this volume at a path of its own.
    pub fn volume(self, volume: &str, to: &str) -> Self {
        self.option("--volume", format!("{volume}:{to}"))
    }

    /// Docker publishes this port on the loopback address, on a port of its choice: [`Container::published`].
    pub fn publish(self, port: u16) -> Self {
        self.option("--publish", format!("127.0.0.1::{port}"))
    }

    /// Starts the container from `image`; without a `command` it runs the image's own.
    pub async fn start(self, image: &str, command: &[&str]) -> anyhow::Result<Container> {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        docker(&[["run", "--detach"].as_slice(), &options, &[image], command].concat()).await?;
        Ok(self.container)
    }
}

/// A container, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Container(pub String);

impl Container {
    /// Runs a command in it and returns its standard output.
    pub async fn exec(&self, args: &[&str]) -> anyhow::Result<String> {
        docker(&[&["exec", self.0.as_str()], args].concat()).await
    }

    /// Its standard output and standard error so far.
    pub async fn logs(&self) -> anyhow::Result<String> {
        let (status, out, err) = run_with("docker", &["logs", &self.0], &[], LIMIT).await?;
        ensure!(status == 0, "docker logs {}: {err}", self.0);
        Ok(out + &err)
    }

    /// `docker inspect` with a Go template.
    pub async fn inspect(&self, template: &str) -> anyhow::Result<String> {
        Ok(docker(&["inspect", "--format", template, &self.0]).await?.trim().to_owned())
    }

    /// The address in the container's first network.
    pub async fn ip(&self) -> anyhow::Result<IpAddr> {
        let all = self.inspect("{{ range .NetworkSettings.Networks }}{{ .IPAddress }} {{ end }}").await?;
        let first = all.split_whitespace().next().with_context(|| format!("{} has no address", self.0))?;
        first.parse().with_context(|| format!("{}: {first:?} is no address", self.0))
    }

    /// The address in the network whose name ends in `network`.
    pub async fn ip_in(&self, network: &str) -> anyhow::Result<IpAddr> {
        let template =
            "{{ range $name, $network := .NetworkSettings.Networks }}{{ $name }}={{ $network.IPAddress }} {{ end }}";
        let all = self.inspect(template).await?;
        let found =
            all.split_whitespace().filter_map(|pair| pair.split_once('=')).find(|(name, _)| name.ends_with(network));
        let (_, address) = found.with_context(|| format!("{} is not in {network}: {all}", self.0))?;
        address.parse().with_context(|| format!("{}: {address:?} is no address", self.0))
    }

    /// The container's process, as this machine numbers it.
    pub async fn pid(&self) -> anyhow::Result<u32> {
        let pid = self.inspect("{{ .State.Pid }}").await?;
        let pid: u32 = pid.parse().with_context(|| format!("{}: {pid:?} is no pid", self.0))?;
        ensure!(pid > 0, "{} does not run", self.0);
        Ok(pid)
    }

    /// Starts it.
    pub async fn start(&self) -> anyhow::Result<()> {
        docker(&["start", &self.0]).await.map(drop)
    }

    /// Stops it: SIGTERM, and SIGKILL after `grace`.
    pub async fn stop(&self, grace: Duration) -> anyhow::Result<()> {
        docker(&["stop", "-t", &grace.as_secs().to_string(), &self.0]).await.map(drop)
    }

    /// Removes it with its anonymous volumes, even while it runs.
    pub async fn remove(&self) -> anyhow::Result<()> {
        docker(&["rm", "-f", "-v", &self.0]).await.map(drop)
    }

    /// The port of this machine at which Docker publishes one of its ports.
    pub async fn published(&self, port: u16) -> anyhow::Result<u16> {
        let text = docker(&["port", &self.0, &port.to_string()]).await?;
        let (_, port) = text.trim().rsplit_once(':').with_context(|| format!("{}: no port in {text:?}", self.0))?;
        port.parse().with_context(|| format!("{}: {port:?} is no port", self.0))
    }

    /// `docker restart`.
    pub async fn restart(&self) -> anyhow::Result<()> {
        docker(&["restart", &self.0]).await.map(drop)
    }

    /// SIGKILL of every process in it. Docker does not restart it by itself.
    pub async fn kill(&self) -> anyhow::Result<()> {
        docker(&["kill", &self.0]).await.map(drop)
    }

    /// SIGKILL of its process without Docker's knowledge: a crash, after which the restart policy applies.
    pub async fn crash(&self) -> anyhow::Result<()> {
        run("kill", &["-KILL", &self.pid().await?.to_string()]).await.map(drop)
    }

    /// Freezes every process in it. On a busy machine the kernel may exceed Docker's time limit ("unable to freeze"),
    /// and the container goes on. Then this tries again.
    pub async fn pause(&self) -> anyhow::Result<()> {
        wait::until("it is paused", Duration::from_secs(60), || async { docker(&["pause", &self.0]).await })
            .await
            .map(drop)
    }

    /// Thaws it.
    pub async fn unpause(&self) -> anyhow::Result<()> {
        docker(&["unpause", &self.0]).await.map(drop)
    }

    /// Sends `signal` (like `STOP`) to the processes in it whose command line matches `pattern`.
    pub async fn signal(&self, signal: &str, pattern: &str) -> anyhow::Result<()> {
        self.exec(&["pkill", &format!("-{signal}"), "-f", pattern]).await.map(drop)
    }

    /// Disconnects it from `network`. Its interface disappears.
    pub async fn unplug(&self, network: &str) -> anyhow::Result<()> {
        docker(&["network", "disconnect", network, &self.0]).await.map(drop)
    }

    /// Connects it to `network` again, under `aliases`.
    pub async fn plug_in(&self, network: &str, aliases: &[&str]) -> anyhow::Result<()> {
        let aliases: Vec<&str> = aliases.iter().flat_map(|alias| ["--alias", alias]).collect();
        docker(&[&["network", "connect"], aliases.as_slice(), &[network, self.0.as_str()]].concat()).await.map(drop)
    }

    /// Drops every packet between it and `peers`. Neither side receives an error.
    pub async fn cut(&self, peers: &[IpAddr]) -> anyhow::Result<()> {
        self.filter("-I", peers).await
    }

    /// Undoes [`Container::cut`].
    pub async fn heal(&self, peers: &[IpAddr]) -> anyhow::Result<()> {
        self.filter("-D", peers).await
    }

    /// For `time`, the kernel answers its packets to `port` of `peer` with RST. Open connections end, and new ones are
    /// refused.
    pub async fn refuse(&self, peer: IpAddr, port: u16, time: Duration) -> anyhow::Result<()> {
        let (pid, peer, port) = (self.pid().await?.to_string(), peer.to_string(), port.to_string());
        let rule = |what| {
            let command =
                ["-t", &pid, "-n", "iptables", "-w", what, "OUTPUT", "-p", "tcp", "-d", &peer, "--dport", &port];
            let target = ["-j", "REJECT", "--reject-with", "tcp-reset"];
            [command.as_slice(), &target].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        let call = async |what| {
            let rule = rule(what);
            run("nsenter", &rule.iter().map(String::as_str).collect::<Vec<_>>()).await
        };
        call("-I").await?;
        tokio::time::sleep(time).await;
        call("-D").await.map(drop)
    }

    /// Drops packets from `peers` to one of its ports.
    pub async fn close(&self, port: u16, peers: &[IpAddr]) -> anyhow::Result<()> {
        self.filter_port("-I", port, peers).await
    }

    /// Undoes [`Container::close`].
    pub async fn open(&self, port: u16, peers: &[IpAddr]) -> anyhow::Result<()> {
        self.filter_port("-D", port, peers).await
    }

    async fn filter_port(&self, what: &str, port: u16, peers: &[IpAddr]) -> anyhow::Result<()> {
        let (pid, port) = (self.pid().await?.to_string(), port.to_string());
        for peer in peers.iter().map(IpAddr::to_string) {
            let rule = ["INPUT", "-s", &peer, "-p", "tcp", "--dport", &port, "-j", "DROP"];
            run("nsenter", &[&["-t", &pid, "-n", "iptables", "-w", what], rule.as_slice()].concat()).await?;
        }
        Ok(())
    }

    async fn filter(&self, what: &str, peers: &[IpAddr]) -> anyhow::Result<()> {
        let pid = self.pid().await?.to_string();
        for peer in peers.iter().map(IpAddr::to_string) {
            for (chain, side) in [("INPUT", "-s"), ("OUTPUT", "-d")] {
                // The rule applies in the container's network namespace and uses this machine's iptables. The image
                // needs none.
                let rule = ["-t", &pid, "-n", "iptables", "-w", what, chain, side, &peer, "-j", "DROP"];
                run("nsenter", &rule).await?;
            }
        }
        Ok(())
    }

    /// Whether the container runs.
    pub async fn runs(&self) -> anyhow::Result<bool> {
        match self.inspect("{{ .State.Running }}").await?.as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            other => bail!("{}: State.Running is {other:?}", self.0),
        }
    }
}
