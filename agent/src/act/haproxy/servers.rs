//! Sets the state of HAProxy's servers, and holds new connections.
//!
//! Right before each command to a server the agent asks HAProxy for the server's address. After containers come back
//! with other addresses, a command by name could hit another member. Before the agent cuts open sessions it also
//! resolves the member's name again. A barrier read then has to show that another member holds the leader key.

use crate::client::haproxy::command::{command, question};
use crate::client::haproxy::{addresses, is_name, split_address};
use crate::client::names::Names;
use crate::client::zookeeper::Handle as ZooKeeper;
use crate::config::HaproxyConfig;
use crate::events::Events;
use crate::targets::{Probes, Targets};
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch as latest};
use tokio::task::{AbortHandle, JoinSet};
use warden_core::event::{Event, Report};
use warden_core::haproxy::{HoldOutcome, HoldReport, RouteOutcome, RouteReport, ServerCommand, ServerId};
use warden_core::plan::{ServersAction, Step};
use warden_core::rules::route::Change;

/// The time limit of the barrier read before sessions are cut.
const BARRIER_LIMIT: Duration = Duration::from_secs(2);

/// The same command to the same server is logged once in this time. HAProxy's checks may undo it every second.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The last logged command to a server, its reason, and its obstacle.
type Logged = (ServerCommand, String, String);

/// The actor's dependencies.
pub struct ServersActor {
    /// The local HAProxy.
    pub config: HaproxyConfig,
    /// For the barrier read right before sessions are cut.
    pub zookeeper: ZooKeeper,
    /// The members' addresses.
    pub targets: latest::Receiver<Targets>,
    /// To ask for a new look at HAProxy.
    pub probes: Probes,
    /// For the reports to the loop.
    pub events: Events,
}

/// The stick tables of a proxy's hold: its own, and for the only proxy for writes also that of older templates. An
/// entry expires after 2 s.
fn hold_tables(config: &HaproxyConfig, proxy: &str) -> Vec<String> {
    let own = format!("warden_hold_{proxy}");
    if config.writes.len() == 1 { vec![own, "warden_hold".to_owned()] } else { vec![own] }
}

/// The command that refreshes or removes a hold.
pub(crate) fn hold_command(table: &str, on: bool) -> String {
    if on { format!("set table {table} key writes data.gpc0 1") } else { format!("clear table {table} key writes") }
}

/// The hold of a proxy's new connections for writes.
#[derive(Default)]
enum HoldState {
    #[default]
    Off,
    OnSince(Instant),
    /// HAProxy did not take the command.
    Unsupported,
}

/// Why a command was not carried out.
enum CommandError {
    /// The command is no longer right, or the agent cannot verify that it is.
    Obsolete(String),
    /// HAProxy refused it or did not answer, or the name cannot be part of a command.
    Rejected(String),
}

/// A command that was carried out or not, and its outcome.
type Completed = (Box<Change>, RouteOutcome);

/// Carries out steps, one after the other, until the loop ends. A cut of sessions waits for names and for ZooKeeper, so
/// it is a task of its own.
pub async fn run(steps: &mut mpsc::Receiver<Step<ServersAction>>, actor: &Arc<ServersActor>) -> anyhow::Result<()> {
    let mut logged: BTreeMap<ServerId, (Logged, Instant)> = BTreeMap::new();
    let mut holds: BTreeMap<String, HoldState> = BTreeMap::new();
    let mut cuts: JoinSet<Completed> = JoinSet::new();
    let mut cuts_by_server: BTreeMap<ServerId, AbortHandle> = BTreeMap::new();
    loop {
        let (change, outcome) = tokio::select! {
            Some(completed) = cuts.join_next() => {
                // An aborted cut has no outcome.
                let Ok(completed) = completed else { continue };
                cuts_by_server.retain(|_, handle| !handle.is_finished());
                completed
            }
            step = steps.recv() => {
                let Some(Step { action, reason }) = step else { return Ok(()) };
                match action {
                    ServersAction::Hold { proxy, on } => {
                        let hold = holds.entry(proxy.clone()).or_default();
                        if let Some(outcome) = actor.hold(&proxy, on, &reason, hold).await {
                            let report = HoldReport { proxy, outcome };
                            actor.events.send(actor.events.clock.now(), Event::Report(Report::Hold(report))).await?;
                        }
                        continue;
                    }
                    ServersAction::Route(change) if change.to == ServerCommand::Down => {
                        if cuts_by_server.get(&change.server).is_none_or(AbortHandle::is_finished) {
                            let (actor, server) = (Arc::clone(actor), change.server.clone());
                            cuts_by_server.insert(server, cuts.spawn(async move {
                                let outcome = actor.carry_out(&change).await;
                                (change, outcome)
                            }));
                        }
                        continue;
                    }
                    ServersAction::Route(change) => {
                        // This command is newer than a cut of the same server's sessions that still waits.
                        if let Some(cut) = cuts_by_server.remove(&change.server) {
                            cut.abort();
                            while !cut.is_finished() {
                                tokio::task::yield_now().await;
                            }
                        }
                        let outcome = actor.carry_out(&change).await;
                        (change, outcome)
                    }
                }
            }
        };
        let why = match &outcome {
            RouteOutcome::Withdrawn(why) | RouteOutcome::Failed(why) => why.clone(),
            RouteOutcome::Done { .. } | RouteOutcome::Observed => String::new(),
        };
        let entry = (change.to, change.reason.clone(), why);
        let again =
            logged.get(&change.server).is_some_and(|(known, at)| *known == entry && at.elapsed() < LOG_INTERVAL);
        log(&change, &outcome, again);
        if !again {
            logged.insert(change.server.clone(), (entry, Instant::now()));
        }
        // The loop needs the new state of the server at once.
        actor.probes.haproxy.notify_one();
        let Change { pool, server, member, to, .. } = *change;
        let report = RouteReport { pool, server, member, to, outcome };
        actor.events.send(actor.events.clock.now(), Event::Report(Report::Routed(report))).await?;
    }
}

fn log(change: &Change, outcome: &RouteOutcome, again: bool) {
    let Change { pool, server, address, member, to, reason, .. } = change;
    let (pool, to, server) = (pool.as_str(), to.as_str(), server.to_string());
    match outcome {
        _ if again => {
            tracing::debug!(pool, server, %member, address, to, reason, ?outcome, "HAProxy server, the same again")
        }
        RouteOutcome::Done { took } => {
            let took_us = took.as_micros();
            tracing::info!(
                event = "haproxy_server_set",
                pool,
                server,
                %member,
                address,
                to,
                reason,
                took_us,
                "HAProxy server state set"
            );
        }
        RouteOutcome::Withdrawn(why) => {
            tracing::warn!(
                event = "haproxy_server_set_withdrawn",
                pool,
                server,
                %member,
                address,
                to,
                reason,
                why,
                "HAProxy server state not set: order withdrawn"
            );
        }
        RouteOutcome::Failed(why) => {
            tracing::error!(
                event = "haproxy_server_set_failed",
                pool,
                server,
                %member,
                address,
                to,
                reason,
                why,
                "HAProxy server state not set: HAProxy did not carry out the command"
            );
        }
        // The loop logs it.
        RouteOutcome::Observed => {}
    }
}

impl ServersActor {
    /// Sets, refreshes or removes a proxy's hold. Returns an outcome when the hold changes; a refresh has none.
    async fn hold(&self, proxy: &str, on: bool, reason: &str, hold: &mut HoldState) -> Option<HoldOutcome> {
        let asked = Instant::now();
        let mut done = Err(CommandError::Obsolete("a command cannot contain the proxy's name".to_owned()));
        for table in hold_tables(&self.config, proxy).iter().filter(|table| is_name(table)) {
            done = self.command(&hold_command(table, on)).await;
            if done.is_ok() {
                break;
            }
        }
        let took_us = asked.elapsed().as_micros();
        match (done, on) {
            (Ok(()), true) => {
                if let HoldState::OnSince(_) = hold {
                    return None;
                }
                *hold = HoldState::OnSince(asked);
                tracing::info!(
                    event = "haproxy_hold_started",
                    proxy,
                    reason,
                    took_us,
                    "HAProxy holds new connections for writes"
                );
                Some(HoldOutcome::Begun)
            }
            (Ok(()), false) => {
                let HoldState::OnSince(since) = std::mem::take(hold) else { return None };
                let after = since.elapsed();
                let held_ms = after.as_millis();
                tracing::info!(
                    event = "haproxy_hold_ended",
                    proxy,
                    reason,
                    took_us,
                    held_ms,
                    "HAProxy lets new connections for writes continue"
                );
                Some(HoldOutcome::Ended { after })
            }
            // HAProxy's entry expires.
            (Err(_), false) => {
                *hold = HoldState::Off;
                None
            }
            (Err(CommandError::Obsolete(why) | CommandError::Rejected(why)), true) => {
                // The failure is reported once for each change of the primary.
                let is_known = matches!(std::mem::replace(hold, HoldState::Unsupported), HoldState::Unsupported);
                (!is_known).then_some(HoldOutcome::Failed(why))
            }
        }
    }

    /// Carries out a command to a server. Returns the outcome.
    async fn carry_out(&self, change: &Change) -> RouteOutcome {
        let asked = Instant::now();
        match self.set(change).await {
            Ok(()) => RouteOutcome::Done { took: asked.elapsed() },
            Err(CommandError::Obsolete(why)) => RouteOutcome::Withdrawn(why),
            Err(CommandError::Rejected(why)) => RouteOutcome::Failed(why),
        }
    }

    async fn set(&self, change: &Change) -> Result<(), CommandError> {
        let ServerId { proxy, name } = &change.server;
        let server = change.server.to_string();
        if !is_name(proxy) || !is_name(name) {
            return Err(CommandError::Rejected(format!("{server:?} cannot be put into a command")));
        }
        self.check_address(change).await?;
        match change.to {
            ServerCommand::Up => {
                let ready = if change.ready { format!("set server {server} state ready;") } else { String::new() };
                self.command(&format!("{ready}set server {server} health up")).await
            }
            ServerCommand::Drain => self.command(&format!("set server {server} health stopping")).await,
            ServerCommand::Down => {
                let target = self.target(change)?;
                // The server gets no new sessions while the agent asks the name server and ZooKeeper. HAProxy's next
                // good check undoes it.
                self.command(&format!("set server {server} health stopping")).await?;
                self.check_member(change, &target).await?;
                self.check_key(change).await.map_err(CommandError::Obsolete)?;
                let command = format!("set server {server} health down;shutdown sessions server {server}");
                self.command(&command).await
            }
        }
    }

    /// Checks the condition of the change against a new barrier read. The error says why it is not met.
    async fn check_key(&self, change: &Change) -> Result<(), String> {
        let condition = change.condition.as_ref().ok_or("there was no ZooKeeper session")?;
        condition.check(&self.zookeeper.barrier(BARRIER_LIMIT).await)
    }

    /// Checks that HAProxy still has the address by which the server was judged.
    async fn check_address(&self, change: &Change) -> Result<(), CommandError> {
        let states = self.ask(&format!("show servers state {}", change.server.proxy)).await?;
        let addresses = addresses(&states).map_err(CommandError::Rejected)?;
        match addresses.get(&change.server.name) {
            Some(address) if *address == change.address => Ok(()),
            Some(address) => Err(CommandError::Obsolete(format!("HAProxy has the address {address} for it now"))),
            None => Err(CommandError::Obsolete("HAProxy has no such server any more".to_owned())),
        }
    }

    /// The host and port of the member.
    fn target(&self, change: &Change) -> Result<(String, u16), CommandError> {
        let targets = self.targets.borrow();
        let target = targets.get(&change.member).and_then(|target| target.postgres.clone());
        target.ok_or_else(|| CommandError::Obsolete(format!("{} is no member any more", change.member)))
    }

    /// Checks that the member is at that address now, and no other one: by its host, and by its port if they share one.
    async fn check_member(&self, change: &Change, (host, port): &(String, u16)) -> Result<(), CommandError> {
        let targets = self.targets.borrow().clone();
        let resolve = async |host: &str| match Names::forgetful().addresses(host).await {
            Ok(found) => Ok(found.iter().map(SocketAddr::ip).collect::<Vec<_>>()),
            Err(error) => Err(CommandError::Obsolete(error.to_string())),
        };
        let addresses = resolve(host).await?;
        let there = split_address(&change.address).filter(|(address, _)| addresses.contains(address));
        let Some((address, at)) = there else {
            let why = format!("{} is at another address now: {addresses:?}", change.member);
            return Err(CommandError::Obsolete(why));
        };
        let others = targets.iter().filter(|(name, _)| **name != change.member).filter_map(|(other, target)| {
            let (host, others) = target.postgres.as_ref()?;
            let differs_by_port = *port == at && *others != at;
            (!differs_by_port).then_some((other, host))
        });
        let asking = others.map(async |(other, host)| {
            let is_there = resolve(host).await.is_ok_and(|found| found.contains(&address));
            is_there.then_some(other)
        });
        match join_all(asking).await.into_iter().flatten().next() {
            Some(other) => Err(CommandError::Obsolete(format!("{other} is at that address, too"))),
            None => Ok(()),
        }
    }

    async fn ask(&self, text: &str) -> Result<String, CommandError> {
        question(&self.config.socket, text).await.map_err(CommandError::Rejected)
    }

    async fn command(&self, commands: &str) -> Result<(), CommandError> {
        command(&self.config.socket, commands, "").await.map_err(CommandError::Rejected)
    }
}

#[cfg(test)]
#[path = "servers_tests.rs"]
mod tests;
