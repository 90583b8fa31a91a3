//! The writer of the gate's audit entries: a process of its own, so that no promotion waits for ZooKeeper.

use crate::cli::{Failure, runtime};
use crate::client::zookeeper::{self, Reports, Settings};
use crate::clock::Clock;
use crate::config::Config;
use crate::znode::audit::Entry;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// The writer gives up after this time.
const WRITER_LIMIT: Duration = Duration::from_secs(60);

/// The time for one write to ZooKeeper.
const WRITE_LIMIT: Duration = Duration::from_secs(2);

/// The pause after a failed write.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Starts the writer with `entry`. The writer outlives this process.
pub(super) fn start_writer(path: &Path, entry: &Entry) -> std::io::Result<()> {
    let entry = String::from_utf8_lossy(&entry.write()).into_owned();
    // The path of this program may lead to another version by now.
    Command::new("/proc/self/exe")
        .args(["gate", "--write-down", &entry, "--config"])
        .arg(path)
        // Patroni may end the process group of the hook, or wait until its output is closed.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
}

/// Adds `entry` to the audit trail. It opens a ZooKeeper session of its own, because the local agent may be away.
pub(super) fn write_down(config: &Config, entry: String) -> Result<(), Failure> {
    let runtime = runtime()?;
    // `timeout` works only inside the runtime.
    let done = runtime.block_on(async { timeout(WRITER_LIMIT, append(config, entry)).await });
    runtime.shutdown_background();
    let limit_s = WRITER_LIMIT.as_secs();
    done.map_err(|_| Failure::NoAnswer(format!("the gate could not write the audit entry within {limit_s} s")))
}

async fn append(config: &Config, entry: String) {
    let mut settings = Settings::of(config);
    settings.agent = "gate".to_owned();
    let (updates_in, mut updates) = mpsc::channel(64);
    let zookeeper = zookeeper::spawn(settings, Clock::start(), Reports::Raw(updates_in));
    let heard = async { while updates.recv().await.is_some() {} };
    let written = async {
        while zookeeper.append_audit(entry.clone().into_bytes(), WRITE_LIMIT).await.is_err() {
            // There is no session yet, or ZooKeeper is slow.
            sleep(RETRY_PAUSE).await;
        }
    };
    tokio::select! {
        () = written => {}
        () = heard => {}
    }
    zookeeper.shutdown().await;
}
