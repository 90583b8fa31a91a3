//! HAProxy's reload: the check of a configuration, the master's socket, and the worker that serves.

use super::actor::HaproxyFileActor;
use super::lines::Server;
use super::template::missing_server;
use crate::client::haproxy::command::{ANSWER_LIMIT, question};
use crate::client::haproxy::{addresses, ask, first_line};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// The time limit of a reload, until the new worker serves. It starts within some 50 ms, and resolves names first.
pub const RELOAD_LIMIT: Duration = Duration::from_secs(10);

/// The time limit until the master listens again. It restarts itself for each reload, and does not listen meanwhile.
const MASTER_RESTART_LIMIT: Duration = Duration::from_secs(3);
const _: () = assert!(MASTER_RESTART_LIMIT.as_millis() < RELOAD_LIMIT.as_millis());

/// The pause between two questions to the master or the worker during a reload.
pub const RELOAD_POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The agent asks a worker again after this long if it does not serve the file. It may be the old one during a reload.
const OLD_WORKER_GRACE: Duration = Duration::from_millis(500);

/// The time limit of `haproxy -c`.
const CHECK_LIMIT: Duration = Duration::from_secs(10);

impl HaproxyFileActor {
    /// Has the master reload its file, and waits until a new worker serves these servers.
    pub(super) async fn reload(&self, wanted: &[Server]) -> Result<(), String> {
        let master = &self.file.master_socket;
        let failed = self.ask_master("show proc").await.ok().and_then(|answer| failed_reloads(&answer));
        let old = self.worker().await;
        match self.ask_master("reload").await {
            Ok(_) => {}
            // The master restarts itself. The new worker shows whether it did.
            Err(error) if is_reset(&error) => tracing::debug!(%error, "HAProxy's master reset the connection"),
            Err(error) => {
                return Err(format!("HAProxy's master does not accept a reload: {}: {error}", master.display()));
            }
        }
        let started = Instant::now();
        let mut why = String::new();
        while started.elapsed() < RELOAD_LIMIT {
            sleep(RELOAD_POLL_INTERVAL).await;
            match self.worker().await {
                Ok(new) if old.as_ref().is_ok_and(|old| *old == new) => {
                    "the old worker still serves".clone_into(&mut why)
                }
                Err(error) => why = error,
                Ok(_) => match self.missing(wanted).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(missing)) => why = missing,
                    Err(error) => why = error,
                },
            }
            if failed.is_some() && self.failed_reloads().await > failed {
                return Err("HAProxy does not accept the new configuration; read HAProxy's log".to_owned());
            }
        }
        Err(format!("no new worker serves the file after {} s: {why}", RELOAD_LIMIT.as_secs()))
    }

    /// The process that answers at the runtime socket: its pid and its start time.
    pub(super) async fn worker(&self) -> Result<(String, String), String> {
        let answer = question(&self.haproxy.socket, "show info").await?;
        let field = |name: &str| {
            let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.map(str::to_owned)
                .ok_or_else(|| format!("{}: no {name} in: {}", self.haproxy.socket.display(), first_line(&answer)))
        };
        Ok((field("Pid")?, field("Start_time_sec").unwrap_or_default()))
    }

    /// Whether HAProxy serves these servers. `None` without an answer. The agent asks a second time, because the old
    /// worker answers during a reload.
    pub(super) async fn serves(&self, wanted: &[Server]) -> Option<bool> {
        if self.missing(wanted).await.ok()?.is_none() {
            return Some(true);
        }
        sleep(OLD_WORKER_GRACE).await;
        Some(self.missing(wanted).await.ok()?.is_none())
    }

    /// A difference between these servers and those that HAProxy has in the agent's proxies, if there is one.
    pub(super) async fn missing(&self, wanted: &[Server]) -> Result<Option<String>, String> {
        for proxy in self.haproxy.proxies() {
            let answer = ask(&self.haproxy.socket, &format!("show servers state {proxy}"), ANSWER_LIMIT).await;
            let servers = addresses(&answer.map_err(|error| error.to_string())?)?;
            if let Some(missing) = missing_server(proxy, wanted, &servers) {
                return Ok(Some(format!("{proxy} has {missing}")));
            }
        }
        Ok(None)
    }

    async fn failed_reloads(&self) -> Option<u32> {
        failed_reloads(&ask(&self.file.master_socket, "show proc", ANSWER_LIMIT).await.ok()?)
    }

    /// Asks the master. A master that does not listen may be restarting itself, so the agent asks again.
    async fn ask_master(&self, question: &str) -> io::Result<String> {
        let started = Instant::now();
        loop {
            match ask(&self.file.master_socket, question, ANSWER_LIMIT).await {
                Err(error) if is_without_listener(&error) && started.elapsed() < MASTER_RESTART_LIMIT => {
                    sleep(RELOAD_POLL_INTERVAL).await;
                }
                answered => return answered,
            }
        }
    }
}

fn is_without_listener(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn is_reset(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof)
}

/// The number of failed reloads since the last success, from the master's `show proc` (HAProxy 2.5 and newer).
fn failed_reloads(processes: &str) -> Option<u32> {
    let master = processes.lines().find(|line| line.split_whitespace().nth(1) == Some("master"))?;
    master.split("[failed:").nth(1)?.split(']').next()?.trim().parse().ok()
}

/// Runs `haproxy -c`. A program that is not installed is no error.
pub async fn check(program: &str, path: &Path) -> Result<(), String> {
    let output = Command::new(program).arg("-c").arg("-f").arg(path).kill_on_drop(true).output();
    let output = match timeout(CHECK_LIMIT, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(Err(error)) => return Err(format!("haproxy -c: {error}")),
        Err(_) => return Err(format!("haproxy -c has not ended within {} s", CHECK_LIMIT.as_secs())),
    };
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let alerts: Vec<&str> = stderr.lines().filter(|line| line.contains("ALERT")).take(3).collect();
    Err(format!("haproxy -c refuses it: {}", alerts.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROCESSES: &str = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n\
        4163            master          3 [failed: 2]   0d00h00m03s     2.6.12-1+deb12u4\n# workers\n\
        4188            worker          0               0d00h00m03s     2.6.12-1+deb12u4\n# programs\n";

    #[test]
    fn failed_reloads_are_counted_if_the_master_reports_them() {
        assert_eq!(failed_reloads(PROCESSES), Some(2));
        assert_eq!(failed_reloads(&PROCESSES.replace(" [failed: 2]", "")), None, "HAProxy 2.4");
        assert_eq!(failed_reloads(""), None);
    }
}
