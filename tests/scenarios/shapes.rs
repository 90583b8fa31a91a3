//! HAProxy in configurations that people run. Each shape runs with the agent and without, in front of the same nodes
//! and through the same faults. With the agent no client is worse off. If the agent cannot route, it warns and does
//! nothing.

use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::haproxies::Haproxy;
use warden_e2e::stack::{NODES, Stack, wait_for_session};
use warden_e2e::trial::{self, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::wait;
use warden_e2e::writers::{Commit, Report, Route};

/// The tolerance between two equal runs, on a busy machine.
const SLACK: Duration = Duration::from_secs(3);

/// A configuration that people run.
pub(crate) struct Shape {
    configuration: &'static str,
    /// Its ports for writes.
    ports: &'static [u16],
    /// The agent's section `haproxy:`, without the socket.
    section: &'static str,
    /// A program that runs in each node beside PostgreSQL.
    beside: Option<&'static str>,
    /// The warning of its agent while all is well: code and words.
    says: Option<(&'static str, &'static str)>,
    /// The fault of the leader.
    fault: Fault,
}

/// A stand-in for a pooler's port. It forwards connections to PostgreSQL.
const FORWARDER: &str = "import socket,threading as t
def pump(a,b):
    try:
        while True:
            d=a.recv(65536)
            if not d: break
            b.sendall(d)
    except OSError: pass
    for s in (a,b):
        try: s.shutdown(2)
        except OSError: pass
def serve(c):
    try: s=socket.create_connection((socket.gethostname(),5432),5)
    except OSError: c.close(); return
    s.settimeout(None)
    t.Thread(target=pump,args=(c,s),daemon=True).start(); pump(s,c)
l=socket.create_server(('',6432),backlog=200)
while True: t.Thread(target=serve,args=(l.accept()[0],),daemon=True).start()
";

/// Answers an agent-check: whether Patroni leads.
const RESPONDER: &str = "import socket,urllib.request as u
l=socket.create_server(('',9010),backlog=50)
while True:
    c=l.accept()[0]
    try: leads=u.urlopen('http://localhost:8008/primary',timeout=1).status==200
    except Exception: leads=False
    c.sendall(b'ready up\\n' if leads else b'maint\\n'); c.close()
";

pub(crate) const POOLER_AND_DIRECT: Shape = Shape {
    configuration: include_str!("../shapes/pooler-and-direct.cfg"),
    ports: &[5000, 5001],
    section: "backends: {writes: [master, master_direct], reads: [replicas]}",
    beside: Some(FORWARDER),
    says: None,
    fault: Fault::Crash,
};

pub(crate) const FRONTENDS_RESOLVERS: Shape = Shape {
    configuration: include_str!("../shapes/frontends-resolvers.cfg"),
    ports: &[5000],
    section: "backend: backend_master\nread_backend: backend_replicas",
    beside: None,
    says: None,
    fault: Fault::Crash,
};

pub(crate) const AGENT_CHECK: Shape = Shape {
    configuration: include_str!("../shapes/agent-check.cfg"),
    ports: &[5432],
    section: "backend: postgres",
    beside: Some(RESPONDER),
    says: None,
    fault: Fault::Crash,
};

pub(crate) const CHECKS_THAT_FAIL: Shape = Shape {
    configuration: include_str!("../shapes/checks-that-fail.cfg"),
    ports: &[5432],
    section: "backend: postgres\nread_backend: replicas",
    beside: None,
    says: Some(("haproxy_checks_contradict", "only Warden keeps it up")),
    fault: Fault::Switchover,
};

pub(crate) const PGSQL_CHECK: Shape = Shape {
    configuration: include_str!("../shapes/pgsql-check-and-track.cfg"),
    ports: &[5432],
    section: "backend: writes",
    beside: None,
    says: Some(("haproxy_checks_cannot_tell", "httpchk GET /primary")),
    fault: Fault::Switchover,
};

pub(crate) const TRACKING: Shape = Shape {
    configuration: include_str!("../shapes/pgsql-check-and-track.cfg"),
    ports: &[5433],
    section: "backend: writes_tracking",
    beside: None,
    says: Some(("haproxy_tracking", "name primary_checks in haproxy.backends.writes")),
    fault: Fault::Switchover,
};

/// The same with the remedy that the warning names.
pub(crate) const TRACKED: Shape =
    Shape { section: "backends: {writes: [writes_tracking, primary_checks]}", says: None, ..TRACKING };

/// Starts the program beside PostgreSQL in both nodes, if it does not run.
async fn beside(stack: &Stack, program: Option<&str>) -> anyhow::Result<()> {
    let Some(program) = program else { return Ok(()) };
    for (node, _) in NODES {
        // A second instance cannot bind its port, and ends.
        warden_e2e::docker::docker(&["exec", "-d", &stack.container(node).0, "python3", "-c", program]).await?;
    }
    Ok(())
}

/// The number of rows that reached a standby.
fn at_a_standby(report: &Report, route: Route) -> usize {
    let errors = report.stories.get(&route).map(|story| story.errors.as_slice()).unwrap_or_default();
    errors.iter().filter(|error| error.why.contains("read-only")).count()
}

/// The limit until every client writes again after the fault.
const AGAIN: Duration = Duration::from_secs(120);

pub(crate) async fn compared(stack: &Stack, shape: &Shape) -> anyhow::Result<()> {
    // Only the agents of every stack run at this moment.
    let leader = Leader::find(stack).await?;
    beside(stack, shape.beside).await?;
    let with = Haproxy::start(stack, "shape-with", shape.configuration, shape.ports, Some(shape.section)).await?;
    let without = Haproxy::start(stack, "shape-without", shape.configuration, shape.ports, None).await?;
    let remove = async {
        with.remove().await?;
        without.remove().await
    };
    let (observed, routes) = undone_by(strike(stack, shape, &leader, &with, &without), remove).await?;
    let report = observed.end(stack).await?.report;
    eprintln!("      {}: {report}", shape.section.replace('\n', ", "));
    judge(shape, &report, &routes)
}

/// The same clients through one port of each: with the agent, and without.
type Routes = Vec<(u16, [Route; 2], [Route; 2])>;

/// Whether the checks fail. Without the agent no client is served then.
fn is_blind(shape: &Shape) -> bool {
    shape.says.is_some_and(|(code, _)| code == "haproxy_checks_contradict")
}

async fn strike(
    stack: &Stack,
    shape: &Shape,
    leader: &Leader,
    with: &Haproxy,
    without: &Haproxy,
) -> anyhow::Result<(Observed, Routes)> {
    let (mut all, mut routes) = (Route::ALL.to_vec(), Routes::new());
    for (nth, port) in shape.ports.iter().enumerate() {
        let (ours, theirs) = (with.through(nth)?, without.through(nth)?);
        wait_for_session(*with.ports.get(nth).context("no port")?, AGAIN).await.context("with the agent")?;
        all.extend(ours);
        if !is_blind(shape) {
            wait_for_session(*without.ports.get(nth).context("no port")?, AGAIN).await.context("without")?;
            all.extend(theirs);
        }
        routes.push((*port, ours, theirs));
    }
    if let Some((code, words)) = shape.says {
        with.warns(code, words).await?;
    }
    let observed = Observed::start_on(stack, Commit::Synchronous, &all).await?;
    sleep(Duration::from_secs(5)).await;
    trial::strike_and_heal(stack, shape.fault, leader, sleep(shape.fault.lingers())).await?;
    beside(stack, shape.beside).await?;
    let since = Instant::now();
    wait::until("every client writes again", AGAIN, || async {
        for route in all.iter().filter(|route| !matches!(route, Route::Node(_))) {
            let rows = observed.writers().story(*route).acks_since(since);
            ensure!(rows > 5, "{rows} rows on {route:?}");
        }
        Ok(())
    })
    .await?;
    let expected: Vec<&str> = shape.says.iter().map(|(code, _)| *code).collect();
    wait::until("its agent raises only the expected warnings", AGAIN, || async {
        let warnings = with.warnings().await?;
        let of_haproxy = warnings.iter().filter(|(code, _)| code.starts_with("haproxy_"));
        let others: Vec<_> =
            of_haproxy.filter(|(code, _)| !expected.contains(&code.as_str()) && !tolerated(shape, code)).collect();
        ensure!(others.is_empty(), "it says {others:?}");
        Ok(())
    })
    .await?;
    Ok((observed, routes))
}

fn judge(shape: &Shape, report: &Report, routes: &Routes) -> anyhow::Result<()> {
    report.nothing_lost_and_no_two_primaries()?;
    for (port, ours, theirs) in routes {
        for (ours, theirs) in ours.iter().zip(theirs) {
            let (ours_out, theirs_out) = (report.outage(*ours), report.outage(*theirs));
            let (ours_wrong, theirs_wrong) = (at_a_standby(report, *ours), at_a_standby(report, *theirs));
            eprintln!(
                "      port {port}: {ours_out:.2?} with the agent, {theirs_out:.2?} without; at a standby \
                 {ours_wrong}, {theirs_wrong}"
            );
            if is_blind(shape) {
                let soon = report.without_a_primary().map_or(Duration::ZERO, |(own, _)| own) + SLACK;
                ensure!(ours_out < soon, "port {port}: {ours_out:?} without a row, although only Warden knows");
                continue;
            }
            if theirs_wrong > ours_wrong + 10 {
                // A client that stays at a standby writes no row, and so has no gap between its rows.
                let rows = |route: &Route| report.stories.get(route).map_or(0, |story| story.acks.len());
                let (ours, theirs) = (rows(ours), rows(theirs));
                ensure!(ours >= theirs, "port {port}: {ours} rows with the agent, {theirs} without");
                continue;
            }
            ensure!(ours_out < theirs_out + SLACK, "port {port}: {ours_out:?} with the agent, {theirs_out:?} without");
            ensure!(ours_wrong <= theirs_wrong + 2, "port {port}: {ours_wrong} met a standby, {theirs_wrong} without");
        }
    }
    Ok(())
}

/// Whether this shape has this warning in any case. No shape has the table of holds.
fn tolerated(shape: &Shape, code: &str) -> bool {
    let flaps = shape.section == PGSQL_CHECK.section;
    code == "haproxy_cannot_hold" || (flaps && code == "haproxy_wrong_server")
}
