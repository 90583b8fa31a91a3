//! `warden gate`: Patroni's `postgresql.pre_promote` hook. The candidate holds the leader key already; it is promoted
//! when no other member can be taking writes any more.
//!
//! Each other member passes by its confirmed fence record, or because its server, asked over TCP, refuses, is in
//! recovery or is another database; one that answers as writable is fenced from here; one that cannot be reached is
//! waited for, but not longer than its lease can last. Exit code 0: promote. 5: another server takes writes and could
//! not be stopped. Where nothing can be found out (no configuration, no agent, no ZooKeeper), the answer is to promote:
//! without Warden it would be too.

use super::{Failure, client, load, runtime, status};
use crate::act::ladder::{OldPrimary, stop_old_primary};
use crate::config::{Config, FencingMode, Superuser};
use crate::tell::state::{Member, State};
use crate::watch::postgres::Place;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// A member that cannot be reached is waited for this long: the leader key was ours only when its lease was over, and
/// its own agent stops it before that; this is the margin of that rule.
const UNREACHABLE: Duration = Duration::from_secs(5);

/// A member whose fence is confirmed is asked for no longer than this whether that is still so.
const KNOCK: Duration = Duration::from_millis(150);

/// All of it takes no longer.
const LIMIT: Duration = Duration::from_secs(15);

/// The local agent answers within milliseconds or is away.
const AGENT: Duration = Duration::from_millis(500);

pub(super) fn main(path: &Path) -> Result<(), Failure> {
    // A promotion is not to fail for a mistake in Warden's configuration.
    let config = match load(path) {
        Ok(config) => config,
        Err(failure) => {
            eprintln!("warden gate: {failure}: not waiting");
            return Ok(());
        }
    };
    if config.fencing.mode != FencingMode::Enforce {
        return Ok(());
    }
    let Some(node) = &config.node else {
        eprintln!("warden gate: there is no node section in {}: nothing to wait for", path.display());
        return Ok(());
    };
    let Some(login) = config.superuser.clone() else {
        eprintln!("warden gate: there is no superuser to ask others with: not waiting");
        return Ok(());
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("warden gate: {error:#}: not waiting");
            return Ok(());
        }
    };
    let verdict = runtime.block_on(async {
        match timeout(LIMIT, pass(&config, &node.member, &login)).await {
            Ok(verdict) => verdict,
            Err(_) => Err(format!("not within {} s", LIMIT.as_secs())),
        }
    });
    runtime.shutdown_background();
    verdict.map_err(Failure::Refused)
}

/// Passes when no other member can be taking writes; the error names the one that does.
async fn pass(config: &Config, own: &str, login: &Superuser) -> Result<(), String> {
    let Some(state) = look(config).await else {
        eprintln!("warden gate: nothing can be found out, so not waiting");
        return Ok(());
    };
    // Whoever is not about to be promoted has nobody to stop: run by hand on a standby, this must not fence its leader.
    if !holds_the_key(&state, own) {
        let holder = state.leader.name.as_deref().unwrap_or("nobody");
        eprintln!("warden gate: {own} does not hold the leader key ({holder} does): nothing to wait for");
        return Ok(());
    }
    let others = state.members.iter().filter(|member| member.name != own);
    let waits = others.map(|member| wait_for(member, &state, config, own, login));
    futures_util::future::join_all(waits).await.into_iter().collect()
}

/// A linearizable read says that `own` holds the leader key.
fn holds_the_key(state: &State, own: &str) -> bool {
    state.leader.verified && state.leader.name.as_deref() == Some(own)
}

/// The cluster as the agent beside this node sees it, or where that does not answer, as we do.
async fn look(config: &Config) -> Option<State> {
    let asked = async { status::ask(&client::http()?, &agent(config)).await };
    match timeout(AGENT, asked).await {
        Ok(Ok(state)) => Some(state),
        _ => {
            eprintln!("warden gate: the agent beside this node does not answer; asking ZooKeeper");
            match status::see(config).await {
                Ok(state) => Some(state),
                Err(failure) => {
                    eprintln!("warden gate: {failure}");
                    None
                }
            }
        }
    }
}

/// The agent beside this node; the gate runs in the node's container and not in the agent's.
fn agent(config: &Config) -> String {
    format!("http://{}", config.http.connect_address)
}

async fn wait_for(member: &Member, state: &State, config: &Config, own: &str, login: &Superuser) -> Result<(), String> {
    let name = &member.name;
    let fence = state.fences.iter().find(|fence| fence.member == *name && fence.confirmed.is_some());
    let (Some(host), Some(port)) = (&member.host, member.port) else { return Ok(()) };
    let place = Place::Tcp(host.clone(), port);
    let started = Instant::now();
    if let Some(fence) = fence {
        // A record can be left over from an earlier fence, whose agent died before it could close it: one that takes
        // writes says so at once. A dead node does not answer, and is not waited for.
        let asked = stop_old_primary(&place, login, state.cluster.system_identifier.as_deref(), true);
        if !matches!(timeout(KNOCK, asked).await, Ok(Err(OldPrimary::Writable(_)))) {
            eprintln!("warden gate: {name} is fenced ({}: {})", fence.rule, fence.reason);
            return Ok(());
        }
    }
    loop {
        match stop_old_primary(&place, login, state.cluster.system_identifier.as_deref(), true).await {
            Ok(by) => {
                if started.elapsed() > Duration::from_millis(100) {
                    eprintln!("warden gate: {name}: {by}, after {} ms", started.elapsed().as_millis());
                }
                return Ok(());
            }
            Err(OldPrimary::Silent) if started.elapsed() >= UNREACHABLE => {
                eprintln!("warden gate: {name} cannot be reached for {} s: its lease is over", UNREACHABLE.as_secs());
                return Ok(());
            }
            Err(OldPrimary::Silent | OldPrimary::Stopping) => {}
            Err(OldPrimary::Writable(why)) => {
                eprintln!("warden gate: {name} may still take writes: {why}");
                if started.elapsed() >= UNREACHABLE * 2 {
                    return Err(format!("{name} may still take writes and could not be stopped: {why}"));
                }
            }
        }
        sleep(Duration::from_millis(100)).await;
        // Much may have happened meanwhile.
        match look(config).await {
            Some(state) if holds_the_key(&state, own) => {}
            _ => return Err(format!("{own} does not hold the leader key any more")),
        }
    }
}
