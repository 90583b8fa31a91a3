//! The gate without a login to the other nodes, and a gate that is killed.

use anyhow::{Context, ensure};
use std::fmt::Write;
use std::time::Duration;
use warden_e2e::docker::{Container, docker, run_with};
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::stack::{AGENTS, Stack, other};
use warden_e2e::trial::{self, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::writers::Commit;
use warden_e2e::{history, truth, wait};

/// A program that the shell finds before `warden`. It kills itself when it is called as the gate, as a container's
/// memory limit would.
const DIES: &str = r#"cat >/usr/local/sbin/warden <<'END'
#!/bin/sh
if [ "$1" = gate ]; then touch /tmp/gate.died; kill -9 $$; fi
exec /usr/local/bin/warden "$@"
END
chmod 755 /usr/local/sbin/warden
test "$(command -v warden)" = /usr/local/sbin/warden"#;

/// Removes that program. Fails if no gate was killed.
const LIVES: &str = "rm /usr/local/sbin/warden; rm /tmp/gate.died";

async fn as_root(container: &Container, script: &str) -> anyhow::Result<()> {
    docker(&["exec", "-u", "0", &container.0, "sh", "-ec", script]).await.map(drop)
}

/// A gate that is killed counts as a yes. The candidate is promoted at the first attempt, and no ttl passes.
pub(crate) async fn a_gate_that_is_killed_costs_no_promotion(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let candidate = stack.node_of(other(&leader.member))?;
    let zoo = stack.zookeepers().into_iter().next().context("no ZooKeeper")?;
    let before = history::leader_terms(&zoo).await?.len();
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    as_root(&candidate, DIES).await?;
    let switchover = trial::with(stack, Fault::Switchover, leader, observed);
    let outcome = undone_by(switchover, as_root(&candidate, LIVES)).await?;
    eprintln!("      {}", outcome.report);
    outcome.report.nothing_lost_and_no_two_primaries()?;
    // A refused candidate gives the key back, and a member takes it again.
    let terms = history::leader_terms(&zoo).await?;
    let since = terms.get(before..).unwrap_or_default();
    ensure!(since.len() == 1 && outcome.led != outcome.leader.member, "not one change of the leader, but {since:#?}");
    Ok(())
}

/// Superusers may not log in from other nodes. The gate reports that in advance. It does not refuse the candidate, and
/// two nodes never take writes.
pub(crate) async fn refused_logins_neither_block_a_promotion_nor_leave_two_primaries(
    stack: &Stack,
) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let candidate = stack.node_of(other(&leader.member))?;
    let observed = Observed::start(stack, Commit::Local).await?;
    let mut rules = String::new();
    let beside = AGENTS.iter().filter(|agent| stack.container(agent).0 != leader.agent.0);
    for container in beside.map(|agent| stack.container(agent)).chain([candidate.clone()]) {
        write!(rules, "host all postgres {}/32 reject\\n", container.ip_in("default").await?)?;
    }
    // Patroni rewrites the file when it restarts its server. Open sessions are terminated here.
    let script = format!(
        "dir=$(dirname /var/lib/postgresql/data/*/postmaster.pid); sed -i '1i {rules}' $dir/pg_hba.conf
         kill -HUP $(head -n1 $dir/postmaster.pid); sleep 1
         PGPASSWORD=$PATRONI_SUPERUSER_PASSWORD psql -qAt -h /var/run/postgresql -U postgres -c \
           \"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
              WHERE application_name = 'warden' AND client_addr IS NOT NULL\""
    );
    leader.node.exec(&["sh", "-ec", &script]).await?;
    let (status, said) = check(&candidate).await?;
    ensure!(status == 1 && said.contains(&leader.member), "warden gate --check ended with {status}: {said}");
    let outcome = trial::with(stack, Fault::Freeze, leader, observed).await?;
    eprintln!("      {}", outcome.report);
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.a_member_was_fenced(stack).await?;
    // The frozen member's Patroni has restarted its server with its own rules.
    wait::until("the login is let in again", Duration::from_secs(180), || async {
        truth::all_well(stack).await?;
        let (status, said) = check(&candidate).await?;
        ensure!(status == 0, "warden gate --check ends with {status}: {said}");
        Ok(())
    })
    .await
}

/// Runs `warden gate --check` in a node's container. Returns its exit code and output.
async fn check(node: &Container) -> anyhow::Result<(i32, String)> {
    let args = ["exec", node.0.as_str(), "warden", "gate", "--check"];
    let (status, said, wrong) = run_with("docker", &args, &[], Duration::from_secs(120)).await?;
    Ok((status, said + &wrong))
}
