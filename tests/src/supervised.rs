//! The stack with Patroni under a supervisor, as under systemd. A shell is the container's process. It restarts Patroni
//! after its death, and PostgreSQL outlives Patroni. The configuration cannot tell Warden that Patroni is process 1,
//! and so Warden releases no key.
//!
//! The agent beside [`SEEN`] sees the machine's processes, the postmaster among them, as under systemd. It stops the
//! postmaster by signals. The agent beside [`UNSEEN`] sees only its own processes and needs a session.

use crate::docker::Container;
use anyhow::ensure;
use std::path::{Path, PathBuf};

/// The node whose processes its agent sees. The agent's container has the machine's pid namespace, not the node's. A
/// container in the node's namespace ends with the node, and Docker does not always restart it. So the agent also sees
/// other stacks' servers at the same path.
pub const SEEN: &str = "pg-master";
/// The node whose processes its agent does not see.
pub const UNSEEN: &str = "pg-slave";

/// While this file exists, the supervisor does not restart Patroni.
const STAY_DOWN: &str = "/tmp/stay-down";

/// The supervisor. It passes SIGTERM on to Patroni, which stops its server. Docker kills a process that outlives
/// Patroni with the container.
const SUPERVISOR: &str = r#"trap 'kill -TERM "$$child" 2>/dev/null; ended=1' TERM
while [ -z "$$ended" ]; do
  if [ -e STAY_DOWN ]; then sleep 0.2; continue; fi
  flock --no-fork --timeout 5 /var/run/postgresql/patroni.alive patroni FILE & child=$$!
  while kill -0 "$$child" 2>/dev/null; do wait "$$child"; done
  [ -n "$$ended" ] || sleep 0.5
done"#;

/// Writes the configuration below `directory`. Returns the compose file that uses it.
pub async fn prepare(root: &Path, directory: &Path) -> anyhow::Result<PathBuf> {
    tokio::fs::create_dir_all(directory).await?;
    let mut text = String::from("services:\n");
    for (node, file) in [(SEEN, "/postgres0.yml"), (UNSEEN, "/postgres1.yml")] {
        let warden = tokio::fs::read_to_string(root.join(format!("compose/warden/{node}.yml"))).await?;
        let (with, without) = ("release:\n  enabled: true\n", "release:\n  enabled: false\n");
        let pid_1 = "  patroni_is_pid_1: true\n";
        ensure!(warden.contains(with) && warden.contains(pid_1), "the release is configured otherwise by now");
        let mine = directory.join(format!("{node}.yml"));
        tokio::fs::write(&mine, warden.replace(with, without).replace(pid_1, "")).await?;
        let mount = format!("    volumes: ['{}:/etc/warden/warden.yml:ro']\n", mine.display());
        let script = SUPERVISOR.replace("STAY_DOWN", STAY_DOWN).replace("FILE", file).replace('\n', "\n        ");
        text += &format!("  {node}:\n    command:\n      - bash\n      - -c\n      - |\n        {script}\n{mount}");
        text += &format!("  warden-{node}:\n{mount}");
        if node == SEEN {
            text += "    pid: host\n";
        }
    }
    let path = directory.join("supervised.yml");
    tokio::fs::write(&path, text).await?;
    Ok(path)
}

/// From now on the supervisor does not restart a dead Patroni, until [`may_start`].
pub async fn stay_down(node: &Container) -> anyhow::Result<()> {
    node.exec(&["touch", STAY_DOWN]).await.map(drop)
}

/// The supervisor restarts Patroni again.
pub async fn may_start(node: &Container) -> anyhow::Result<()> {
    node.exec(&["rm", "-f", STAY_DOWN]).await.map(drop)
}

/// SIGSTOP of the postmaster and all its children. Nothing thaws them: a fence kills them, or the test removes their
/// stack.
pub async fn freeze_server(node: &Container) -> anyhow::Result<()> {
    node.signal("STOP", "^postgres: |bin/postgres -D").await
}
