//! HAProxys beside a stack's own, in front of the same nodes, each with a configuration of its own, with or without an
//! agent.

use crate::docker::{Container, Run, docker};
use crate::stack::{Flavor, Stack};
use crate::wait;
use crate::writers::Route;
use anyhow::{Context, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// An HAProxy, and the agent beside it if there is one. Their containers belong to the stack's project and go with it.
#[derive(Debug)]
pub struct Haproxy {
    /// HAProxy's container.
    pub container: Container,
    /// The agent's container.
    pub agent: Option<Container>,
    /// The ports of this machine where its ports are published, in the order of the request.
    pub ports: Vec<u16>,
    /// Its volumes. The first holds its sockets.
    volumes: Vec<String>,
}

/// The agent's section `haproxy:` of compose/warden/haproxy.yml, with a template. The agent writes HAProxy's file.
const RENDERED: &str = "backend: postgres
read_backend: replicas
config_file: /etc/haproxy/haproxy.cfg
master_socket: /run/haproxy/master.sock
resolvers: 127.0.0.11:53
template: /etc/warden/haproxy.cfg.j2";

/// The command of compose/docker-compose.yml. HAProxy begins with the file of the repository, and the agent may write
/// it.
const MASTER: &str = "cp -n /usr/local/etc/haproxy/* /etc/haproxy/ && \
                      exec haproxy -W -db -S /run/haproxy/master.sock,mode,660 -f /etc/haproxy/haproxy.cfg";

impl Haproxy {
    /// Starts an HAProxy with this configuration, and the agent beside it with this section `haproxy:`. The section's
    /// lines have no indentation.
    pub async fn start(
        stack: &Stack,
        name: &str,
        configuration: &str,
        ports: &[u16],
        section: Option<&str>,
    ) -> anyhow::Result<Self> {
        let directory = directory(stack, name).await?;
        tokio::fs::write(directory.join("haproxy.cfg"), configuration).await?;
        tokio::fs::write(directory.join("wait.lua"), include_str!("../../agent/templates/wait.lua")).await?;
        let sockets = stack.create_volume(&format!("{name}-run")).await?;
        let mut run = stack.run(name).volume(&sockets, SOCKETS).mount(&directory, "/etc/haproxy");
        for port in ports {
            run = run.publish(*port);
        }
        let container = run.start("warden/haproxy:local", &[]).await?;
        let agent = match section {
            None => None,
            Some(section) => Some(agent(stack, name, section, beside(stack, name, &sockets)).await?),
        };
        let mut found = Vec::new();
        for port in ports {
            found.push(container.published(*port).await?);
        }
        Ok(Self { container, agent, ports: found, volumes: vec![sockets] })
    }

    /// Starts an HAProxy that takes writes at port 5432. Its agent writes its file from this template.
    pub async fn start_rendered(stack: &Stack, name: &str, template: &Path) -> anyhow::Result<Self> {
        let sockets = stack.create_volume(&format!("{name}-run")).await?;
        let configuration = stack.create_volume(&format!("{name}-conf")).await?;
        let run = stack.run(name).volume(&sockets, SOCKETS).volume(&configuration, "/etc/haproxy");
        let run = run.mount(&stack.root().join("compose/haproxy"), "/usr/local/etc/haproxy").publish(5432);
        let container = run.start("warden/haproxy:local", &["sh", "-c", MASTER]).await?;
        let run = beside(stack, name, &sockets).volume(&configuration, "/etc/haproxy");
        let agent = agent(stack, name, RENDERED, run.mount(template, "/etc/warden/haproxy.cfg.j2")).await?;
        let ports = vec![container.published(5432).await?];
        Ok(Self { container, agent: Some(agent), ports, volumes: vec![sockets, configuration] })
    }

    /// Connects this HAProxy to another stack's network, and starts an agent there with this section `haproxy:`.
    pub async fn join(&self, stack: &Stack, name: &str, section: &str) -> anyhow::Result<Container> {
        docker(&["network", "connect", &stack.network("default"), &self.container.0]).await?;
        let sockets = self.volumes.first().context("it has no volume for its sockets")?;
        agent(stack, name, section, beside(stack, name, sockets)).await
    }

    /// The routes through a port: in one session, and with a session for each row.
    pub fn through(&self, port: usize) -> anyhow::Result<[Route; 2]> {
        let port = *self.ports.get(port).context("no such port")?;
        Ok([Route::Beside { port, per_row: false }, Route::Beside { port, per_row: true }])
    }

    /// HAProxy's answer at its runtime socket.
    pub async fn ask(&self, command: &str) -> anyhow::Result<String> {
        ask(self.volumes.first().context("it has no volume for its sockets")?, command).await
    }

    /// Its agent's warnings: code and message.
    pub async fn warnings(&self) -> anyhow::Result<Vec<(String, String)>> {
        let agent = self.agent.as_ref().context("there is no agent")?;
        let state: Value = serde_json::from_str(&agent.exec(&["warden", "status", "-f", "json"]).await?)?;
        let text = |warning: &Value, key: &str| warning[key].as_str().unwrap_or_default().to_owned();
        let warnings = state["warnings"].as_array().context("no warnings[]")?;
        Ok(warnings.iter().map(|warning| (text(warning, "code"), text(warning, "message"))).collect())
    }

    /// Waits until its agent warns with this code and these words.
    pub async fn warns(&self, code: &str, words: &str) -> anyhow::Result<()> {
        wait::until("its agent raises the warning", Duration::from_secs(120), || async {
            let warnings = self.warnings().await?;
            let said = warnings.iter().any(|(known, message)| known == code && message.contains(words));
            ensure!(said, "no {code} with {words:?} in {warnings:?}");
            Ok(())
        })
        .await
    }

    /// Removes both, and their volumes. The agent stops first, so that its znode goes with it.
    pub async fn remove(&self) -> anyhow::Result<()> {
        if let Some(agent) = &self.agent {
            drop(agent.stop(Duration::from_secs(5)).await);
            agent.remove().await?;
        }
        self.container.remove().await?;
        for volume in &self.volumes {
            docker(&["volume", "rm", "-f", volume]).await?;
        }
        Ok(())
    }
}

/// The answer of the HAProxy whose sockets are in `volume`, at its runtime socket.
pub async fn ask(volume: &str, command: &str) -> anyhow::Result<String> {
    let directory = docker(&["volume", "inspect", "-f", "{{ .Mountpoint }}", volume]).await?;
    let mut socket = UnixStream::connect(Path::new(directory.trim()).join("admin.sock")).await?;
    socket.write_all(format!("{command}\n").as_bytes()).await?;
    let mut answer = String::new();
    timeout(ANSWER, socket.read_to_string(&mut answer)).await.context("HAProxy does not answer")??;
    Ok(answer)
}

/// The limit for HAProxy's answer, on a busy machine.
const ANSWER: Duration = Duration::from_secs(10);

/// The directory of HAProxy's sockets, in its container and in its agent's.
const SOCKETS: &str = "/run/haproxy";

/// The directory for the files of an HAProxy.
async fn directory(stack: &Stack, name: &str) -> anyhow::Result<PathBuf> {
    let directory = stack.out().join(name);
    tokio::fs::create_dir_all(&directory).await?;
    Ok(directory)
}

/// The container of the agent beside the HAProxy `name`.
fn beside(stack: &Stack, name: &str, sockets: &str) -> Run {
    let host = format!("warden-{name}");
    stack.run(&host).option("--hostname", &host).volume(sockets, SOCKETS)
}

/// Starts the agent beside the HAProxy `name` with this section `haproxy:`. The section's lines have no indentation.
async fn agent(stack: &Stack, name: &str, section: &str, run: Run) -> anyhow::Result<Container> {
    let section: String = section.lines().map(|line| format!("  {}\n", line.trim_start())).collect();
    let file = directory(stack, name).await?.join("warden.yml");
    let config = format!(
        "patroni_config: /postgres0.yml\nname: {name}\nhaproxy:\n  socket: {SOCKETS}/admin.sock\n{section}http:\n  \
         listen: 0.0.0.0:8010\n  connect_address: warden-{name}:8010\n"
    );
    tokio::fs::write(&file, config).await?;
    let compose = stack.root().join("compose");
    let run = run.mount(&file, "/etc/warden/warden.yml");
    let mut run = run.option("--env-file", compose.join("trial.env").display().to_string());
    if stack.flavor == Flavor::Secured {
        run = run.mount(&stack.out().join("postgres0.yml"), "/postgres0.yml").mount(&stack.out().join("tls"), "/tls");
        for connection in ["SUPERUSER", "REPLICATION", "REWIND"] {
            run = run.option("--env", format!("PATRONI_{connection}_SSLMODE=require"));
        }
    } else {
        run = run.mount(&compose.join("patroni/postgres0.yml"), "/postgres0.yml");
    }
    run.start("warden/warden:local", &[]).await
}
