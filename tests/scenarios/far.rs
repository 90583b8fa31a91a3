//! HAProxy and its agent far away from the nodes.

use crate::routing::{no_client_was_turned_away_on, soon};
use anyhow::{Context, ensure};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use warden_e2e::docker::{Container, run};
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::haproxies::Haproxy;
use warden_e2e::stack::{Stack, other, wait_for_session};
use warden_e2e::trial::{self, Observed};
use warden_e2e::undo::undone_by;
use warden_e2e::wait;
use warden_e2e::writers::{Commit, Route};

/// Each packet to a node takes this long, and so does a round trip.
const ROUND_TRIP: Duration = Duration::from_millis(200);

const DELAY: &str = include_str!("../shapes/delay.py");

/// Packets of `container` to PostgreSQL, Patroni and ZooKeeper take a round trip longer from now on.
async fn far_away(stack: &Stack, container: &Container) -> anyhow::Result<Container> {
    let name = format!("{}-delay", container.0.trim_start_matches(&format!("{}-", stack.project)));
    let run_it = stack.run_in(&name, &format!("container:{}", container.0));
    let run_it = run_it.option("--cap-add", "NET_ADMIN").option("--user", "root").option("--entrypoint", "python3");
    let milliseconds = ROUND_TRIP.as_millis().to_string();
    let delay = run_it.start("warden/node:local", &["-c", DELAY, "7", &milliseconds]).await?;
    wait::until("the way is long", Duration::from_secs(60), || async {
        let said = delay.logs().await?;
        ensure!(said.contains("ready"), "{said}");
        Ok(())
    })
    .await?;
    let pid = container.pid().await?.to_string();
    for port in ["5432", "8008", "2181"] {
        let rule = ["OUTPUT", "-p", "tcp", "--dport", port, "-j", "NFQUEUE", "--queue-num", "7"];
        run("nsenter", &[&["-t", &pid, "-n", "iptables", "-w", "-I"], rule.as_slice()].concat()).await?;
    }
    Ok(delay)
}

/// HAProxy with Warden's template and its agent are 200 ms away from every node. Writes reach the primary, and a
/// switchover and a crash turn no client away.
pub(crate) async fn a_router_two_hundred_milliseconds_away_turns_no_client_away(stack: &Stack) -> anyhow::Result<()> {
    let leader = Leader::find(stack).await?;
    let template = stack.root().join("agent/templates/haproxy.cfg.j2");
    let far = Haproxy::start_rendered(stack, "far", &template).await?;
    let delays = tokio::sync::Mutex::new(Vec::new());
    let trial = async {
        let port = *far.ports.first().context("it has no port")?;
        wait_for_session(port, Duration::from_secs(120)).await?;
        let agent = far.agent.clone().into_iter();
        for container in agent.chain([far.container.clone()]) {
            delays.lock().await.push(far_away(stack, &container).await?);
        }
        // The sessions of before had short ways.
        let routes = [Route::ALL.as_slice(), &far.through(0)?].concat();
        let observed = Observed::start_on(stack, Commit::Synchronous, &routes).await?;
        sleep(Duration::from_secs(5)).await;
        trial::strike_and_heal(stack, Fault::Switchover, &leader, sleep(Duration::from_secs(5))).await?;
        // Its Patroni has to run as a standby before the other one is killed.
        let next = Leader::named(stack, other(&leader.member));
        trial::synchronous(stack, true).await?;
        trial::strike_and_heal(stack, Fault::Crash, &next, sleep(Duration::from_secs(3))).await?;
        // The clients that keep a session come back, too.
        sleep(Duration::from_secs(5)).await;
        anyhow::Ok((observed, Instant::now()))
    };
    let remove = async {
        for delay in delays.lock().await.drain(..) {
            delay.remove().await?;
        }
        far.remove().await
    };
    let routes = far.through(0)?;
    // Only the agents of every stack run when it ends.
    let (observed, until) = undone_by(trial, remove).await?;
    let report = observed.end(stack).await?.report;
    eprintln!("      far away: {report}");
    report.nothing_lost_and_no_two_primaries()?;
    let report = report.until(until);
    for route in routes {
        soon(&report, route)?;
    }
    no_client_was_turned_away_on(&report, routes[1], 2)
}
