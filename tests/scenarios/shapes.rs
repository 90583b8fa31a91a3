//! HAProxy in configurations that people run. Each shape runs with the agent and without, in front of the same nodes
//! and through the same faults. With the agent no client is worse off. If the agent cannot route, it warns and does
//! nothing.

use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::haproxies::Haproxy;
use warden_e2e::stack::{Flavor, NODES, Stack, wait_for_session};
use warden_e2e::throng::{Throng, Visits};
use warden_e2e::trial::{self, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::wait;
use warden_e2e::writers::{Commit, Report, Route};

/// A warning: its code, and words of its message.
type Words = (&'static str, &'static str);

/// A configuration that people run.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    configuration: &'static str,
    /// Its ports for writes.
    writes: &'static [u16],
    /// Its ports for reads.
    reads: &'static [u16],
    /// The agent's section `haproxy:`, without the socket.
    section: &'static str,
    /// A program that runs in each node beside PostgreSQL, and its argument.
    beside: Option<(&'static str, &'static str)>,
    /// The clients of each port for writes that connect again and again, beside the writers.
    crowd: usize,
    /// Whether a person has put the standby's server into maintenance.
    by_hand: bool,
    /// The warning of its agent while all is well.
    says: Option<Words>,
    /// The warning during the fault. The fault lasts until then.
    during: Option<Words>,
    /// The warning after the fault.
    after: Option<Words>,
    /// The fault of the leader.
    pub(crate) fault: Fault,
    pub(crate) flavor: Flavor,
}

const PLAIN: Shape = Shape {
    configuration: "",
    writes: &[5432],
    reads: &[],
    section: "backend: postgres",
    beside: None,
    crowd: 0,
    by_hand: false,
    says: None,
    during: None,
    after: None,
    fault: Fault::Crash,
    flavor: Flavor::Single,
};

pub(crate) const POOLER_AND_DIRECT: Shape = Shape {
    configuration: include_str!("../shapes/pooler-and-direct.cfg"),
    writes: &[5000, 5001],
    reads: &[5002, 5003],
    section: "backends: {writes: [master, master_direct], reads: [replicas, replicas_sync]}",
    beside: Some((include_str!("../shapes/forwarder.py"), "")),
    ..PLAIN
};

pub(crate) const POOLER_AND_PAUSE: Shape = Shape { fault: Fault::Pause, ..POOLER_AND_DIRECT };

/// HAProxy keeps an address for 30 s after its name is gone.
pub(crate) const FRONTENDS_RESOLVERS: Shape = Shape {
    configuration: include_str!("../shapes/frontends-resolvers.cfg"),
    writes: &[5000],
    reads: &[5001],
    section: "backend: backend_master\nread_backend: backend_replicas",
    during: Some(("haproxy_unresolved", "cannot resolve the name")),
    ..PLAIN
};

pub(crate) const AGENT_CHECK: Shape = Shape {
    configuration: include_str!("../shapes/agent-check.cfg"),
    reads: &[5001],
    section: "backend: postgres\nread_backend: replicas",
    beside: Some((include_str!("../shapes/responder.py"), "")),
    ..PLAIN
};

/// The responder says for half a minute what was true before.
pub(crate) const SLOW_AGENT_CHECK: Shape = Shape {
    beside: Some((include_str!("../shapes/responder.py"), "30")),
    during: Some(("haproxy_agent_check", "its agent-check answers")),
    fault: Fault::Switchover,
    ..AGENT_CHECK
};

pub(crate) const PERSONS_MAINTENANCE: Shape = Shape {
    configuration: include_str!("../shapes/http-check-on-tls-rest.cfg"),
    reads: &[5001],
    section: "backend: postgres\nread_backend: replicas",
    by_hand: true,
    during: Some(("haproxy_leader_in_maintenance", "state ready")),
    fault: Fault::Switchover,
    ..PLAIN
};

pub(crate) const CHECKS_THAT_FAIL: Shape = Shape {
    configuration: include_str!("../shapes/http-check-on-tls-rest.cfg"),
    section: "backend: postgres\nread_backend: replicas",
    says: Some(("haproxy_checks_contradict", "only Warden keeps it up")),
    fault: Fault::Switchover,
    flavor: Flavor::Secured,
    ..PLAIN
};

pub(crate) const SLOWSTART_AND_QUEUE: Shape = Shape {
    configuration: include_str!("../shapes/slowstart-and-queue.cfg"),
    reads: &[5001],
    section: "backend: postgres\nread_backend: replicas",
    crowd: 20,
    says: Some(("haproxy_queue", "limit of 8 sessions")),
    after: Some(("haproxy_slowstart", "Remove slowstart")),
    ..PLAIN
};

pub(crate) const PGSQL_CHECK: Shape = Shape {
    configuration: include_str!("../shapes/pgsql-check-and-track.cfg"),
    section: "backend: writes",
    says: Some(("haproxy_checks_cannot_tell", "httpchk GET /primary")),
    fault: Fault::Switchover,
    ..PLAIN
};

pub(crate) const TRACKING: Shape = Shape {
    writes: &[5433],
    section: "backend: writes_tracking",
    says: Some(("haproxy_tracking", "name primary_checks in haproxy.backends.writes")),
    ..PGSQL_CHECK
};

/// The same with the remedy that the warning names.
pub(crate) const TRACKED: Shape =
    Shape { section: "backends: {writes: [writes_tracking, primary_checks]}", says: None, ..TRACKING };

/// Starts the program beside PostgreSQL in both nodes, if it does not run.
async fn beside(stack: &Stack, program: Option<(&str, &str)>) -> anyhow::Result<()> {
    let Some((program, argument)) = program else { return Ok(()) };
    for (node, _) in NODES {
        let container = stack.container(node).0;
        let mut command = vec!["exec", "-d", &container, "python3", "-c", program];
        command.extend(Some(argument).filter(|argument| !argument.is_empty()));
        // A second instance cannot bind its port, and ends.
        warden_e2e::docker::docker(&command).await?;
    }
    Ok(())
}

/// Ends the program beside PostgreSQL, because the next scenario on the stack may have another one at its port.
async fn nothing_beside(stack: &Stack, program: Option<(&str, &str)>) -> anyhow::Result<()> {
    if program.is_some() {
        for (node, _) in NODES {
            stack.container(node).signal("KILL", "^python3 -c").await?;
        }
    }
    Ok(())
}

/// The limit until every client is served again after the fault.
const AGAIN: Duration = Duration::from_secs(120);

/// The pause of a client that reads.
const READ_PAUSE: Duration = Duration::from_millis(20);

/// A port with the agent and without: two writers on each side, in one session and with a session for each row.
struct Writing {
    port: u16,
    with: [Route; 2],
    without: [Route; 2],
}

/// The same for clients that only connect and ask.
struct Visiting {
    port: u16,
    with: Throng,
    without: Throng,
}

pub(crate) async fn compared(stack: &Stack, shape: &Shape) -> anyhow::Result<()> {
    // Only the agents of every stack run at this moment.
    let leader = Leader::find(stack).await?;
    beside(stack, shape.beside).await?;
    let ports = [shape.writes, shape.reads].concat();
    let with = Haproxy::start(stack, "shape-with", shape.configuration, &ports, Some(shape.section)).await?;
    let without = Haproxy::start(stack, "shape-without", shape.configuration, &ports, None).await?;
    let remove = async {
        with.remove().await?;
        without.remove().await?;
        nothing_beside(stack, shape.beside).await
    };
    let struck = undone_by(strike(stack, shape, &leader, &with, &without), remove).await?;
    let Struck { observed, writing, visiting, until } = struck;
    let report = observed.end(stack).await?.report;
    eprintln!("      {}: {report}", shape.section.replace('\n', ", "));
    report.nothing_lost_and_no_two_primaries()?;
    let report = report.until(until);
    for writing in &writing {
        judge_writes(shape, &report, writing)?;
    }
    for (port, with, without) in &visiting {
        judge_visits(*port, with, without)?;
    }
    Ok(())
}

/// Whether the checks fail. Without the agent no client is served then.
fn is_blind(shape: &Shape) -> bool {
    shape.says.is_some_and(|(code, _)| code == "haproxy_checks_contradict")
}

/// A port, and the visits there with the agent and without.
type Visited = (u16, Visits, Visits);

/// Everything that the verdict needs.
struct Struck {
    observed: Observed,
    writing: Vec<Writing>,
    visiting: Vec<Visited>,
    /// The end of the comparison. The writers go on, and find no HAProxy any more.
    until: Instant,
}

async fn strike(
    stack: &Stack,
    shape: &Shape,
    leader: &Leader,
    with: &Haproxy,
    without: &Haproxy,
) -> anyhow::Result<Struck> {
    let (mut all, mut writing) = (Route::ALL.to_vec(), Vec::new());
    for (nth, port) in shape.writes.iter().enumerate() {
        let sides = Writing { port: *port, with: with.through(nth)?, without: without.through(nth)? };
        wait_for_session(*with.ports.get(nth).context("no port")?, AGAIN).await.context("with the agent")?;
        all.extend(sides.with);
        if !is_blind(shape) {
            wait_for_session(*without.ports.get(nth).context("no port")?, AGAIN).await.context("without")?;
            all.extend(sides.without);
        }
        writing.push(sides);
    }
    let standby = NODES.iter().find(|(_, name)| *name != leader.member).context("no standby")?.0;
    let server = format!("postgres/{standby}");
    if shape.by_hand {
        for side in [with, without] {
            side.ask(&format!("set server {server} state maint")).await?;
        }
    }
    let observed = Observed::start_on(stack, Commit::Synchronous, &all).await?;
    let visiting = visit(shape, with, without).await?;
    if let Some((code, words)) = shape.says {
        with.warns(code, words).await?;
    }
    sleep(Duration::from_secs(5)).await;
    let lasts = async {
        sleep(shape.fault.lingers()).await;
        if let Some((code, words)) = shape.during
            && let Err(error) = with.warns(code, words).await
        {
            return Some(error);
        }
        None
    };
    let mut not_said = None;
    trial::strike_and_heal(stack, shape.fault, leader, async { not_said = lasts.await }).await?;
    if let Some(error) = not_said {
        return Err(error);
    }
    if shape.by_hand {
        let stat = with.ask("show stat postgres 4 -1").await?;
        let kept = stat.lines().any(|line| line.starts_with(&server.replace('/', ",")) && line.contains(",MAINT,"));
        ensure!(kept, "the agent ended a person's maintenance: {stat}");
        for side in [with, without] {
            side.ask(&format!("set server {server} state ready")).await?;
        }
    }
    beside(stack, shape.beside).await?;
    served_again(&observed, &all, &visiting).await?;
    if let Some((code, words)) = shape.after {
        with.warns(code, words).await?;
    }
    says_nothing_else(shape, with).await?;
    let visiting = visiting.iter().map(|side| (side.port, side.with.visits(), side.without.visits())).collect();
    Ok(Struck { observed, writing, visiting, until: Instant::now() })
}

/// Starts the clients of each port that only connect and ask: a crowd at a port for writes, and two at one for reads.
async fn visit(shape: &Shape, with: &Haproxy, without: &Haproxy) -> anyhow::Result<Vec<Visiting>> {
    let mut visiting = Vec::new();
    for (nth, port) in [shape.writes, shape.reads].concat().into_iter().enumerate() {
        let [ours, theirs] = [with, without].map(|side| side.ports.get(nth).copied());
        let (ours, theirs) = (ours.context("no port")?, theirs.context("no port")?);
        let reads = nth >= shape.writes.len();
        let (clients, pause) = if reads { (2, READ_PAUSE) } else { (shape.crowd, Duration::ZERO) };
        if reads {
            wait_for_session(ours, AGAIN).await.context("reads, with the agent")?;
            wait_for_session(theirs, AGAIN).await.context("reads, without")?;
        }
        if clients > 0 {
            let [with, without] = [ours, theirs].map(|port| Throng::paced(port, clients, pause));
            visiting.push(Visiting { port, with, without });
        }
    }
    Ok(visiting)
}

async fn served_again(observed: &Observed, routes: &[Route], visiting: &[Visiting]) -> anyhow::Result<()> {
    let since = Instant::now();
    wait::until("every client is served again", AGAIN, || async {
        for route in routes.iter().filter(|route| !matches!(route, Route::Node(_))) {
            let rows = observed.writers().story(*route).acks_since(since);
            ensure!(rows > 5, "{rows} rows on {route:?}");
        }
        for (port, side, throng) in
            visiting.iter().flat_map(|both| [(both.port, "with", &both.with), (both.port, "without", &both.without)])
        {
            let visits = throng.visits().served_within(since, Instant::now());
            ensure!(visits > 5, "{visits} visits at port {port} {side} the agent");
        }
        Ok(())
    })
    .await
}

/// Waits until the agent raises only the expected warnings of HAProxy.
async fn says_nothing_else(shape: &Shape, with: &Haproxy) -> anyhow::Result<()> {
    let expected: Vec<&str> = [shape.says, shape.after].iter().flatten().map(|(code, _)| *code).collect();
    wait::until("its agent raises only the expected warnings", AGAIN, || async {
        let warnings = with.warnings().await?;
        let of_haproxy = warnings.iter().filter(|(code, _)| code.starts_with("haproxy_"));
        let others: Vec<_> =
            of_haproxy.filter(|(code, _)| !expected.contains(&code.as_str()) && !tolerated(shape, code)).collect();
        ensure!(others.is_empty(), "it says {others:?}");
        Ok(())
    })
    .await
}

/// Whether this shape has this warning in any case. No shape has the table of holds.
fn tolerated(shape: &Shape, code: &str) -> bool {
    let flaps = shape.section == PGSQL_CHECK.section;
    code == "haproxy_cannot_hold" || (flaps && code == "haproxy_wrong_server")
}

/// What one writer saw.
#[derive(Debug)]
struct Seen {
    rows: usize,
    outage: Duration,
    /// The rows that reached a standby.
    at_a_standby: usize,
    /// The other rows that failed before or after the outage.
    failed_besides: usize,
}

fn seen(report: &Report, route: Route) -> Seen {
    let story = report.stories.get(&route).cloned().unwrap_or_default();
    let (outage, from) = story.longest_outage().unwrap_or((Duration::ZERO, report.stopped));
    let (wrong, failed): (Vec<_>, Vec<_>) = story.errors.iter().partition(|error| error.why.contains("read-only"));
    let besides = failed.iter().filter(|failure| !(from..=from + outage).contains(&failure.at)).count();
    Seen { rows: story.acks.len(), outage, at_a_standby: wrong.len(), failed_besides: besides }
}

/// A client that is at a standby tries this many rows in a second. Two equal proxies differ by the moment of their
/// checks, which come every three seconds in some shapes. In one run a server that is promoted is up earlier with the
/// agent, and in the next one without.
const ROWS_IN_A_SECOND: usize = 50;

/// The longest outage that is not worse than `theirs`: two equal proxies differ by the moment of their checks, and by
/// the turns that a busy machine gives them.
fn not_worse(theirs: Duration) -> Duration {
    theirs.mul_f64(1.25) + Duration::from_secs(1)
}

fn judge_writes(shape: &Shape, report: &Report, writing: &Writing) -> anyhow::Result<()> {
    let port = writing.port;
    for (ours, theirs) in writing.with.iter().zip(&writing.without) {
        let (ours, theirs) = (seen(report, *ours), seen(report, *theirs));
        eprintln!("      port {port}, writes: with the agent {ours:?}, without {theirs:?}");
        if is_blind(shape) {
            let soon = not_worse(report.without_a_primary().map_or(Duration::ZERO, |(own, _)| own));
            ensure!(ours.outage < soon, "port {port}: {ours:?} although only Warden knows");
            continue;
        }
        // An agent-check or a check of HAProxy comes every two seconds, and each proxy has its own.
        let enough = ours.rows + 2 * ROWS_IN_A_SECOND >= theirs.rows * 9 / 10;
        ensure!(enough, "port {port}: {ours:?} with the agent, {theirs:?} without");
        // A client that stays at a standby writes no row, and so has no gap between its rows.
        if theirs.at_a_standby <= ours.at_a_standby + 10 {
            let both = format!("port {port}: {ours:?} with the agent, {theirs:?} without");
            ensure!(ours.outage < not_worse(theirs.outage), "{both}");
            ensure!(ours.at_a_standby <= theirs.at_a_standby + 3 * ROWS_IN_A_SECOND, "{both}");
            ensure!(ours.failed_besides <= theirs.failed_besides + 3, "{both}");
        }
    }
    Ok(())
}

fn judge_visits(port: u16, ours: &Visits, theirs: &Visits) -> anyhow::Result<()> {
    let text = |visits: &Visits| {
        let (served, refused, outage) = (visits.served.len(), visits.refused.len(), visits.longest_outage());
        format!("{served} visits, {refused} refused, longest outage {outage:.2?}")
    };
    let both = format!("port {port}, visits: {} with the agent, {} without", text(ours), text(theirs));
    eprintln!("      {both}");
    ensure!(ours.longest_outage() < not_worse(theirs.longest_outage()), "{both}");
    ensure!(ours.served.len() + ROWS_IN_A_SECOND >= theirs.served.len() * 8 / 10, "{both}");
    Ok(())
}
