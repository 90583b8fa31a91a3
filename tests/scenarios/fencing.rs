//! No two writable primaries, judged by what clients were told: Patroni frozen, killed, cut off, the whole node paused.

use anyhow::{Context, bail, ensure};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::sleep;
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::promise::kept;
use warden_e2e::stack::{Stack, other, session};
use warden_e2e::storm::{Crowd, Storm};
use warden_e2e::supervised::{SEEN, UNSEEN};
use warden_e2e::trial::{self, Observed, Outcome};
use warden_e2e::writers::{Commit, Route};
use warden_e2e::{fences, storm, supervised, truth, wait};

/// SIGSTOP: without a fence both would take writes until SIGCONT. Commits do not wait for the standby: a second primary
/// would show at once.
pub(crate) async fn patroni_is_frozen(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Freeze, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.somebody_fenced(stack).await
}

/// The same under more clients than the server has room for, after every session was terminated: the agent's own has
/// come back, and the fence works. Meanwhile nobody may be fenced.
pub(crate) async fn frozen_in_a_storm_of_connections(stack: &Stack) -> anyhow::Result<()> {
    // In a storm on a busy machine ZooKeeper may be so slow that Patroni demotes its primary by itself, before it is frozen.
    for _ in 0..3 {
        let Some(outcome) = in_a_storm(stack).await? else {
            eprintln!("      another led before there was a fault: once more");
            continue;
        };
        eprintln!("      {}", outcome.report);
        outcome.report.nothing_lost_and_no_two_primaries()?;
        return outcome.somebody_fenced(stack).await;
    }
    bail!("another led before there was a fault, three times")
}

/// Nothing if another than at first led when the fault was to come.
async fn in_a_storm(stack: &Stack) -> anyhow::Result<Option<Outcome>> {
    let leader = Leader::find(stack).await?;
    let observed = Observed::start(stack, Commit::Local).await?;
    let storm = Storm::start(stack, leader.service);
    storm.until_full().await?;
    for _ in 0..3 {
        storm::terminate_everybody(stack, leader.service).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let ready = storm::until_ready_to_fence(stack, &leader).await;
    if !leader.leads(stack).await? {
        drop(storm);
        observed.end(stack).await?.1.nothing_lost_and_no_two_primaries()?;
        return Ok(None);
    }
    ready?;
    let outcome = trial::with(stack, Fault::Freeze, leader, observed).await;
    drop(storm);
    outcome.map(Some)
}

/// The agent sees the postmaster as a process, and signals it.
pub(crate) async fn frozen_where_the_postmaster_is_visible(stack: &Stack) -> anyhow::Result<()> {
    Leader::at(stack, SEEN).await?;
    let outcome = trial::run(stack, Fault::Freeze, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    by_signal(&outcome)
}

/// The same where superusers have all the room that there is. The agent gets a session only where it is quicker than they
/// are when room becomes free, and loses it again: whether it has one when it fences is a matter of luck, and a signal
/// needs none.
pub(crate) async fn frozen_where_the_postmaster_is_visible_and_has_no_room(stack: &Stack) -> anyhow::Result<()> {
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

/// The server is stopped as well: an order by a session would lie in front of it until it wakes. It is killed with its
/// children, which would keep it from being started again. What it acknowledged is all there, because the standby has it.
pub(crate) async fn frozen_with_its_server_where_the_postmaster_is_visible(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::at(stack, SEEN).await?;
    let observed = Observed::start(stack, Commit::Synchronous).await?;
    supervised::freeze_server(&leader.node).await?;
    let outcome = trial::with(stack, Fault::Freeze, leader, observed).await?;
    eprintln!("      {}", outcome.report);
    outcome.report.nothing_lost_and_no_two_primaries()?;
    by_signal(&outcome)
}

/// Whichever of the three it took.
fn by_signal(outcome: &Outcome) -> anyhow::Result<()> {
    let (how, at) = outcome.fenced_how()?;
    eprintln!("      fenced {:.1?} after the fault: {how}", at.duration_since(outcome.struck_at).unwrap_or_default());
    let signals = ["fast shutdown by signal", "immediate shutdown by signal", "killed"];
    ensure!(signals.contains(&how), "not by a signal, but: {how}");
    Ok(())
}

/// SIGKILL, and PostgreSQL lives on without anybody.
pub(crate) async fn patroni_is_killed_and_outlived(stack: &Stack) -> anyhow::Result<()> {
    Leader::at(stack, UNSEEN).await?;
    let outcome = trial::run(stack, Fault::Orphan, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.somebody_fenced(stack).await
}

/// Its Patroni is started again and again, and gives up each time without touching its PostgreSQL; the agent has no
/// ZooKeeper either.
pub(crate) async fn patroni_is_restarted_without_zookeeper(stack: &Stack) -> anyhow::Result<()> {
    Leader::at(stack, UNSEEN).await?;
    let outcome = trial::run(stack, Fault::OrphanCut, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.fenced_by("lease")
}

/// SIGKILL of everything in the node: the key is released, and the standby does not wait for ttl.
pub(crate) async fn the_primary_is_killed(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Crash, Commit::Synchronous).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.logged("leader key released")?;
    let member = &outcome.leader.member;
    let called = |sample: &warden_e2e::watching::Sample| sample.writable(member) == Some(false);
    ensure!(outcome.samples.iter().any(called), "no agent ever said that {member} takes no writes");
    Ok(())
}

/// The same, but Docker starts the node again at once: whoever wins, nothing is lost.
pub(crate) async fn patroni_and_postgres_are_killed(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Restart, Commit::Synchronous).await?;
    outcome.report.nothing_lost_and_no_two_primaries()
}

/// SIGKILL of the postmaster under a living Patroni: it is brought back where it was, without a failover.
pub(crate) async fn the_postmaster_is_killed(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Postmaster, Commit::Synchronous).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.nobody_fenced()?;
    let nudged = outcome
        .lines
        .iter()
        .any(|line| line.text.contains("Patroni nudged") && line.text.contains("is gone while its Patroni lives"));
    ensure!(nudged, "Patroni was not nudged");
    ensure!(outcome.led == outcome.leader.member, "{} took over although Patroni lived", outcome.led);
    Ok(())
}

/// docker pause of the node past the failover: the fence lies in its socket when it wakes.
pub(crate) async fn the_node_is_paused_past_the_failover(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::Pause, Commit::Local).await?;
    few_on_waking(&outcome)
}

/// What it acknowledged between waking and obeying is lost, and is little.
pub(crate) fn few_on_waking(outcome: &Outcome) -> anyhow::Result<()> {
    let report = &outcome.report;
    ensure!(report.lost.len() <= 100, "{} rows were acknowledged on waking: {report}", report.lost.len());
    Ok(())
}

/// The node and its agent lose ZooKeeper while Patroni is frozen: only the lease is left to go by.
pub(crate) async fn frozen_and_cut_off(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::FreezeCut, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    outcome.fenced_by("lease")
}

/// The agent beside the primary is gone, then Patroni is frozen: the gate, or the new leader's agent, stops the old one.
pub(crate) async fn the_agent_is_dead_and_patroni_frozen(stack: &Stack) -> anyhow::Result<()> {
    let outcome = trial::run(stack, Fault::FreezeAlone, Commit::Local).await?;
    outcome.report.nothing_lost_and_no_two_primaries()?;
    let proxy = outcome.report.stories.get(&Route::Proxy).context("no story")?;
    ensure!(!proxy.acks.is_empty(), "nothing through the proxy");
    // Whichever of the two it was, it is written down, in the end.
    outcome.audited(stack, |rule| ["gate", "peer"].contains(&rule)).await
}

/// The socket file is removed, as by a cleaner of temporary files, and the agents' sessions are ended: nobody is taken for
/// stopped by that, neither while all is well nor when Patroni is frozen then. The other node's gate stops the server by TCP.
pub(crate) async fn frozen_without_a_socket_file(stack: &Stack) -> anyhow::Result<()> {
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
    // It could not be stopped from beside it, and that is said.
    outcome.logged("THE FENCE FAILED")?;
    let confirmed = outcome.fences();
    let by_itself = |line: &fences::Line| line.field("by") == Some("refused already");
    kept(!confirmed.iter().any(|line| by_itself(line)), || format!("{member} was taken for stopped: {confirmed:#?}"))
}

/// WAL for a crash recovery that takes a while; the table goes when all is over.
const MUCH_WAL: &str = "SET synchronous_commit = local; CHECKPOINT; \
    CREATE TABLE much_wal AS SELECT n, repeat('x', 500) FROM generate_series(1, 400000) n";

/// Kills the checkpointer, and stops the process that recovers from that; says in which state that one is then.
const CRASH_AND_HOLD: &str = "server=$(head -n1 /var/lib/postgresql/data/*/postmaster.pid)
    kill -9 $(pgrep -P $server -f checkpointer)
    for turn in $(seq 1000); do pkill -STOP -P $server -f 'postgres:.*startup' && break; sleep 0.005; done
    sleep 0.2; ps -o stat= -p $(pgrep -P $server -f 'postgres:.*startup')";

/// Patroni is frozen and its server crashes. The server recovers for longer than its key lasts, and no agent can stop it
/// meanwhile, because it opens no session: the candidate is not promoted before it has been stopped.
pub(crate) async fn frozen_while_its_server_recovers_from_a_crash(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let candidate = other(&leader.member);
    let observed = Observed::start(stack, Commit::Local).await?;
    session(stack.node_port(leader.service)).await?.batch_execute(MUCH_WAL).await?;
    let (struck, struck_at) = (Instant::now(), SystemTime::now());
    leader.node.signal("STOP", leader.patroni).await?;
    let outcome = async {
        // Where the recovery is over before it is held, the server leads on, and crashes once more.
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
        Ok(held)
    }
    .await;
    let freed = leader.node.signal("CONT", "postgres:.*startup").await;
    let replaced = if outcome.is_ok() { leader.replaced(stack).await } else { Ok(()) };
    Fault::Freeze.heal(stack, &leader).await?;
    let healed = Instant::now();
    let held = outcome?;
    freed?;
    replaced?;
    session(stack.ports.proxy).await?.batch_execute("DROP TABLE much_wal").await?;
    let (led, report, lines, samples) = observed.end(stack).await?;
    let outcome = Outcome { leader, led, struck, struck_at, healed, report, lines, samples };
    eprintln!("      {}", outcome.report);
    outcome.report.no_two_primaries()?;
    // Commits did not wait for the standby: a crash takes with it what that did not have yet, and nothing later.
    let later = outcome.report.lost.iter().find(|(_, ack)| ack.at > held);
    kept(later.is_none(), || format!("acknowledged behind the crash, and lost: {later:?}"))?;
    outcome.somebody_fenced(stack).await
}

/// A person fences the leader and takes it back.
pub(crate) async fn fenced_by_hand(stack: &Stack) -> anyhow::Result<()> {
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
