//! No two writable primaries, judged by the rows acknowledged to clients. Patroni is frozen, killed or cut off, or the
//! whole node is paused.

use anyhow::{Context, bail, ensure};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::sleep;
use warden_e2e::agent_log::Line;
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::promise::kept;
use warden_e2e::stack::{Stack, other, session};
use warden_e2e::storm::{Crowd, Storm};
use warden_e2e::supervised::{SEEN, UNSEEN};
use warden_e2e::trial::{self, Observation, Observed, Outcome};
use warden_e2e::undo::undone_by;
use warden_e2e::writers::{Commit, Route};
use warden_e2e::{storm, supervised, truth, wait};

/// SIGSTOP of Patroni. Without a fence both servers would take writes until SIGCONT. Commits do not wait for the
/// standby, so that a second primary shows at once.
pub(crate) async fn a_frozen_patroni_never_leaves_two_primaries(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Freeze, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.a_member_was_fenced(stack).await
}

/// The same with more clients than the server has slots for, after every session was terminated. The agent's fence
/// session has come back, and the fence works. Before the fault no member may be fenced.
pub(crate) async fn a_storm_of_connections_does_not_keep_the_fence_out(stack: &Stack) -> anyhow::Result<()> {
    // In a storm on a busy machine ZooKeeper may be so slow that Patroni demotes its primary by itself before the
    // fault.
    for _ in 0..3 {
        let Some(outcome) = in_a_storm(stack).await? else {
            eprintln!("      another member led before the fault: once more");
            continue;
        };
        eprintln!("      {}", outcome.report);
        outcome.report.nothing_lost_and_no_two_primaries()?;
        return outcome.a_member_was_fenced(stack).await;
    }
    bail!("another member led before the fault, three times")
}

/// `None` if another member led by the time of the fault.
async fn in_a_storm(stack: &Stack) -> anyhow::Result<Option<Outcome>> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, Commit::Local).await?;
    let storm = Storm::start(stack, leader.service);
    storm.until_full().await?;
    for _ in 0..3 {
        storm::terminate_all_sessions(stack, leader.service).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let ready = storm::until_ready_to_fence(stack, &leader).await;
    if !leader.leads(stack).await? {
        drop(storm);
        observed.end(stack).await?.report.nothing_lost_and_no_two_primaries()?;
        return Ok(None);
    }
    ready?;
    // The storm ends before the fenced server comes back. The fence has to get through, not the restart.
    let lingers = async {
        tokio::time::sleep(Fault::Freeze.lingers()).await;
        drop(storm);
    };
    trial::with_healing_after(stack, Fault::Freeze, leader, observed, lingers).await.map(Some)
}

/// The agent sees the postmaster as a process and signals it.
pub(crate) async fn a_visible_postmaster_is_fenced_by_a_signal(stack: &Stack) -> anyhow::Result<()> {
    Leader::at(stack, SEEN).await?;
    let outcome = trial::run(stack, Fault::Freeze, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    by_signal(&outcome)
}

/// The same, with every slot taken by superusers. The agent gets a session only if it is quicker than they are when a
/// slot becomes free, and then loses it again. Whether it has one at the time of the fence is random, and a signal
/// needs none.
pub(crate) async fn a_visible_postmaster_without_a_free_slot_is_fenced_by_a_signal(
    stack: &Stack,
) -> anyhow::Result<()> {
    let leader = Leader::at(stack, SEEN).await?;
    let observed = Observed::start(stack, Commit::Local).await?;
    let crowd = Crowd::start(stack, leader.service);
    storm::until_without_session(stack, &leader).await?;
    let outcome = trial::with(stack, Fault::Freeze, leader, observed).await;
    drop(crowd);
    let outcome = outcome?;
    eprintln!("      {}", outcome.report);
    outcome.report.nothing_lost_and_no_two_primaries()?;
    by_signal(&outcome)
}

/// The server is stopped by SIGSTOP as well. A session's order would wait until it wakes. The agent kills the
/// postmaster with its children, which would block a restart. No acknowledged row is lost, because the standby has each
/// of them.
pub(crate) async fn a_visible_postmaster_that_is_stopped_is_fenced_by_a_signal(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::at(stack, SEEN).await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    supervised::freeze_server(&leader.node).await?;
    let outcome = trial::with(stack, Fault::Freeze, leader, observed).await?;
    eprintln!("      {}", outcome.report);
    outcome.report.nothing_lost_and_no_two_primaries()?;
    by_signal(&outcome)
}

/// Any of the three signals may have stopped the server.
fn by_signal(outcome: &Outcome) -> anyhow::Result<()> {
    let (how, at) = outcome.fenced_how()?;
    eprintln!("      fenced {:.1?} after the fault: {how}", at.duration_since(outcome.struck_at).unwrap_or_default());
    let signals = ["fast shutdown by signal", "immediate shutdown by signal", "killed"];
    ensure!(signals.contains(&how), "not by a signal, but: {how}");
    Ok(())
}

/// SIGKILL of Patroni. Its PostgreSQL goes on without it.
pub(crate) async fn a_server_that_outlives_its_patroni_is_fenced(stack: &Stack) -> anyhow::Result<()> {
    Leader::at(stack, UNSEEN).await?;
    let outcome = trial::run(stack, Fault::Orphan, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.a_member_was_fenced(stack).await
}

/// The supervisor restarts Patroni again and again. Each time Patroni gives up without touching its PostgreSQL. The
/// agent has no ZooKeeper either.
pub(crate) async fn without_zookeeper_the_lease_fences_a_server_whose_patroni_restarts(
    stack: &Stack,
) -> anyhow::Result<()> {
    Leader::at(stack, UNSEEN).await?;
    let outcome = trial::run(stack, Fault::OrphanCut, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.fenced_by("lease")
}

/// SIGKILL of every process in the node. The agent releases the key, and the standby does not wait for ttl.
pub(crate) async fn a_killed_primary_costs_no_row_and_its_leader_key_is_released(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Crash, Commit::Synchronous).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.logged("leader_key_released")?;
    let member = &outcome.leader.member;
    let called = |sample: &warden_e2e::watching::Sample| sample.writable(member) == Some(false);
    ensure!(outcome.samples.iter().any(called), "no agent ever said that {member} takes no writes");
    Ok(())
}

/// The same, but Docker restarts the node at once. No row is lost, whichever member leads then.
pub(crate) async fn a_killed_node_that_restarts_at_once_loses_no_row(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Restart, Commit::Synchronous).await?;
    outcome.report.nothing_lost_and_no_two_primaries()
}

/// SIGKILL of the postmaster under a living Patroni. Patroni restarts the server in place, without a failover.
pub(crate) async fn a_killed_postmaster_comes_back_in_place_without_a_failover(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Postmaster, Commit::Synchronous).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.no_member_was_fenced()?;
    let because = |line: &Line| line.field("reason").is_some_and(|why| why.contains("is gone while its Patroni lives"));
    let nudged = outcome.lines.iter().any(|line| line.is("patroni_nudged") && because(line));
    ensure!(nudged, "Patroni was not nudged");
    ensure!(outcome.led == outcome.leader.member, "{} took over although Patroni lived", outcome.led);
    Ok(())
}

/// `docker pause` of the node past the failover. The fence waits in the server's socket until the node wakes.
pub(crate) async fn a_node_paused_past_the_failover_acknowledges_few_rows_when_it_wakes(
    stack: &Stack,
) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Pause, Commit::Local).await?;
    few_on_waking(&outcome)
}

/// The rows that the server acknowledged between its waking and the fence are lost. There may be only few.
pub(crate) fn few_on_waking(outcome: &Outcome) -> anyhow::Result<()> {
    let report = &outcome.report;
    ensure!(report.lost.len() <= 100, "{} rows were acknowledged on waking: {report}", report.lost.len());
    Ok(())
}

/// The node and its agent lose ZooKeeper while Patroni is frozen. Only the rule `lease` can act.
pub(crate) async fn without_zookeeper_the_lease_fences_a_frozen_leader(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::FreezeCut, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.fenced_by("lease")
}

/// A new session takes more than a second, as on an overloaded machine. Open sessions are not affected.
const SLOW_LOGINS: &str = "PGPASSWORD=$PATRONI_SUPERUSER_PASSWORD psql -qAtX -h /var/run/postgresql -U postgres \
        -c \"ALTER SYSTEM SET pre_auth_delay = '1s'\" -c 'SELECT pg_reload_conf()'";

/// This works while the server is down. If the server never starts from this file again, that is as good.
const QUICK_LOGINS: &str = "sed -i /pre_auth_delay/d /var/lib/postgresql/data/*/postgresql.auto.conf";

/// The agent beside the primary is killed, and then Patroni is frozen. The other member's gate or agent stops the old
/// server, also if a session takes more than a second. (A gate with a limit of one second took that server for silent.)
pub(crate) async fn without_its_agent_a_frozen_leader_is_fenced_from_the_other_node(
    stack: &Stack,
) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, Commit::Local).await?;
    sleep(Duration::from_secs(2)).await;
    leader.node.exec(&["sh", "-c", SLOW_LOGINS]).await?;
    let node = leader.node.clone();
    let lingers = async {
        sleep(Fault::FreezeAlone.lingers()).await;
        if let Err(error) = node.exec(&["sh", "-c", QUICK_LOGINS]).await {
            eprintln!("      logins stay slow: {error:#}");
        }
    };
    let outcome = trial::with_healing_after(stack, Fault::FreezeAlone, leader, observed, lingers).await?;
    eprintln!("      {}: {}", Fault::FreezeAlone, outcome.report);
    outcome.report.nothing_lost_and_no_two_primaries()?;
    let proxy = outcome.report.stories.get(&Route::Proxy).context("no story")?;
    ensure!(!proxy.acks.is_empty(), "nothing through the proxy");
    // In the end the audit trail has the fence, whichever of the two it was.
    outcome.audited(stack, |rule| ["gate", "peer"].contains(&rule)).await
}

/// The socket file is removed, as by a cleaner of temporary files, and the agents' sessions are terminated. No server
/// is taken for stopped because of that, neither while all is well nor when Patroni is frozen afterwards. The other
/// node's gate stops the server by TCP.
pub(crate) async fn a_missing_socket_file_is_never_taken_for_a_stopped_server(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, Commit::Local).await?;
    let script = "rm /var/run/postgresql/.s.PGSQL.5432
        PGPASSWORD=$PATRONI_SUPERUSER_PASSWORD psql -qAt -h 127.0.0.1 -U postgres -c \
          \"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'warden%'\"";
    leader.node.exec(&["sh", "-ec", script]).await?;
    sleep(Duration::from_secs(10)).await;
    let member = leader.member.clone();
    let outcome = trial::with(stack, Fault::Freeze, leader, observed).await?;
    eprintln!("      {}", outcome.report);
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.audited(stack, |rule| ["gate", "peer"].contains(&rule)).await?;
    // Its own agent could not stop it, and logged that.
    outcome.logged("fence_failed")?;
    let confirmed = outcome.fences();
    let by_itself = |line: &Line| line.field("by") == Some("refused already");
    kept(!confirmed.iter().any(|line| by_itself(line)), || format!("{member} was taken for stopped: {confirmed:#?}"))
}

/// WAL for a long crash recovery. The scenario drops the table at its end.
const MUCH_WAL: &str = "SET synchronous_commit = local; CHECKPOINT; \
    CREATE TABLE much_wal AS SELECT n, repeat('x', 500) FROM generate_series(1, 400000) n";

/// Kills the checkpointer, and stops the startup process that recovers from that. Prints the state of the startup
/// process.
const CRASH_AND_HOLD: &str = "server=$(head -n1 /var/lib/postgresql/data/*/postmaster.pid)
    kill -9 $(pgrep -P $server -f checkpointer)
    for turn in $(seq 1000); do pkill -STOP -P $server -f 'postgres:.*startup' && break; sleep 0.005; done
    sleep 0.2; ps -o stat= -p $(pgrep -P $server -f 'postgres:.*startup')";

/// A server that opens after its crash recovery is fenced within this time: the fence polls it every 20 ms.
const FENCED_AFTER_RECOVERY: Duration = Duration::from_secs(5);

/// Patroni is frozen, and its server crashes. The recovery outlasts the leader key. No agent can stop the server
/// meanwhile, because it opens no session. The candidate is not promoted before the server has been stopped.
pub(crate) async fn no_candidate_is_promoted_while_the_old_primary_recovers_from_a_crash(
    stack: &Stack,
) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let candidate = other(&leader.member);
    let observed = Observed::start(stack, Commit::Local).await?;
    session(stack.node_port(leader.service)).await?.batch_execute(MUCH_WAL).await?;
    let (struck, struck_at) = (Instant::now(), SystemTime::now());
    leader.node.signal("STOP", leader.patroni).await?;
    let recovering = async {
        // If the recovery ends before it is held, the server still leads and is crashed once more.
        let held = wait::until("it is held in its crash recovery", Duration::from_secs(25), || async {
            let state = leader.node.exec(&["sh", "-c", CRASH_AND_HOLD]).await?;
            ensure!(state.trim().starts_with('T'), "its process is in the state {state:?}");
            Ok(Instant::now())
        })
        .await?;
        wait::until("the candidate holds the leader key", Duration::from_secs(240), || async {
            let now = truth::truth(stack).await?;
            ensure!(now.leader.as_ref().is_some_and(|(holder, _)| holder == candidate), "{now:?}");
            Ok(())
        })
        .await?;
        sleep(Duration::from_secs(2)).await;
        let now = truth::truth(stack).await?;
        ensure!(!now.servers.values().any(|server| server.writable), "promoted before the old one is stopped: {now:?}");
        anyhow::Ok(held)
    };
    let frozen = async {
        let held = undone_by(recovering, leader.node.signal("CONT", "postgres:.*startup")).await?;
        leader.replaced(stack).await?;
        Ok(held)
    };
    let held = undone_by(frozen, Fault::Freeze.heal(stack, &leader)).await?;
    let healed = Instant::now();
    session(stack.ports.proxy).await?.batch_execute("DROP TABLE much_wal").await?;
    let Observation { led, report, lines, samples } = observed.end(stack).await?;
    let outcome = Outcome { leader, led, struck, struck_at, healed, report, lines, samples };
    eprintln!("      {}", outcome.report);
    outcome.report.no_two_primaries()?;
    // Commits did not wait for the standby. A crash loses the rows that the standby did not have yet. When the recovery
    // ends, the server opens to every client at once, and the agent that fences it needs a session too: the rows that a
    // client commits before that are lost as well.
    let later: Vec<Instant> = outcome.report.lost.iter().map(|(_, ack)| ack.at).filter(|at| *at > held).collect();
    let taken = later.iter().max().zip(later.iter().min()).map(|(last, first)| last.duration_since(*first));
    kept(taken.is_none_or(|taken| taken < FENCED_AFTER_RECOVERY), || {
        format!("the server took writes for {taken:?} after its recovery: {:?}", outcome.report.lost)
    })?;
    outcome.a_member_was_fenced(stack).await
}

/// The operator fences the leader and takes the fence back.
pub(crate) async fn the_operator_fences_a_leader_and_takes_it_back(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let agent = stack.container("warden-pg-master");
    let plan = agent.exec(&["warden", "plan"]).await?;
    ensure!(plan.starts_with("nothing: "), "a healthy cluster has a plan: {plan}");
    agent.exec(&["warden", "fence", &leader.member, "--reason", "a test"]).await?;
    truth::until_every_agent_says(stack, "it is fenced", Duration::from_secs(180), |state| {
        let fence = state["fences"].as_array().into_iter().flatten().find(|fence| fence["member"] == leader.member);
        let fence = fence.context("there is no fence")?;
        ensure!(
            fence["rule"] == "operator" && fence["reason"].as_str().is_some_and(|why| why.contains("a test")),
            "{fence}"
        );
        let members = state["members"].as_array().context("no members[]")?;
        let shown = members.iter().find(|member| member["name"] == leader.member).context("it is not shown")?;
        ensure!(shown["writable"] != true, "it is writable");
        Ok(())
    })
    .await?;
    agent.exec(&["warden", "unfence", &leader.member]).await?;
    truth::all_well(stack).await?;
    Ok(())
}
