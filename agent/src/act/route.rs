//! Tells HAProxy which of its servers take connections.
//!
//! Right before a server is told anything, HAProxy is asked which address it has for it: after containers come back
//! with other addresses, a command by name could hit another member. Before open sessions are cut the member's name is
//! resolved anew, too, and a barrier read has to say that another member holds the leader key.

use crate::config::HaproxyConfig;
use crate::haproxy::{addresses, ask, first_line, is_name};
use crate::watch::Events;
use crate::watch::haproxy::{resolve, split_address};
use crate::watch::members::{Probes, Targets};
use crate::watch::znodes;
use crate::watch::zookeeper::Handle as ZooKeeper;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch as latest};
use warden_core::event::Event;
use warden_core::haproxy::{HoldReport, Pool, RouteOutcome, RouteReport, Wish};
use warden_core::plan::{Action, Step};
use warden_core::rules::route::Change;

/// How long HAProxy may take to answer a command: it takes well below a millisecond.
const ANSWER: Duration = Duration::from_secs(1);

/// How long the barrier read may take.
const BARRIER: Duration = Duration::from_secs(2);

/// The same thing of the same server is one line for people in this time: HAProxy's checks may undo it every second.
const SAID: Duration = Duration::from_secs(10);

/// What a server was told, why, and what was in the way.
type News = (Wish, String, String);

/// What the actor needs.
pub struct Router {
    /// The local HAProxy.
    pub config: HaproxyConfig,
    /// For the look right before sessions are cut.
    pub zookeeper: ZooKeeper,
    /// Where the members are.
    pub targets: latest::Receiver<Targets>,
    /// Asks HAProxy out of turn.
    pub probes: Probes,
    /// For what came of it.
    pub events: Events,
}

/// What HAProxy's template calls the table of what is held, and its key; the value is forgotten after 2 s.
pub(crate) const HOLD: &str = "set table warden_hold key writes data.gpc0 1";
pub(crate) const LET_GO: &str = "clear table warden_hold key writes";

/// Whether new connections for writes are held.
enum Held {
    No,
    Since(Instant),
    /// HAProxy could not be told.
    Not,
}

/// Why a change was not made.
enum Not {
    /// It is not what is wanted any more, or it is not known to be.
    Wanted(String),
    /// HAProxy did not take it.
    Taken(String),
}

/// Carries out steps, one after the other, until the loop is gone.
pub async fn run(steps: &mut mpsc::Receiver<Step>, router: &Router) -> anyhow::Result<()> {
    // What was last said of each server: what is said again and again is one line for people in a while.
    let mut said: BTreeMap<(Pool, String), (News, Instant)> = BTreeMap::new();
    let mut held = Held::No;
    while let Some(Step { action, reason }) = steps.recv().await {
        let (change, outcome) = match action {
            Action::Hold { on } => {
                if let Some(report) = router.hold(on, &reason, &mut held).await {
                    router.events.send(router.events.clock.now(), Event::Hold(report)).await?;
                }
                continue;
            }
            Action::ObserveRoute(change) => {
                let Change { server, member, to, reason, .. } = &*change;
                let to = to.as_str();
                tracing::warn!(server, %member, to, reason, "HAProxy's server would be told (mode is observe)");
                (change, RouteOutcome::Observed)
            }
            Action::Route(change) => {
                let asked = Instant::now();
                let outcome = match router.make(&change).await {
                    Ok(()) => RouteOutcome::Done { took: asked.elapsed() },
                    Err(Not::Wanted(why)) => RouteOutcome::Withdrawn(why),
                    Err(Not::Taken(why)) => RouteOutcome::Failed(why),
                };
                let why = match &outcome {
                    RouteOutcome::Withdrawn(why) | RouteOutcome::Failed(why) => why.clone(),
                    RouteOutcome::Done { .. } | RouteOutcome::Observed => String::new(),
                };
                let news = (change.to, change.reason.clone(), why);
                let server = (change.pool, change.server.clone());
                let again = said.get(&server).is_some_and(|(known, at)| *known == news && at.elapsed() < SAID);
                say(&change, &outcome, again);
                if !again {
                    said.insert(server, (news, Instant::now()));
                }
                (change, outcome)
            }
            // `Actors::hand_over` sends nothing else here.
            other => {
                tracing::error!(action = ?other, "this actor does not do such things");
                continue;
            }
        };
        // What HAProxy makes of it is to be known at once.
        router.probes.haproxy.notify_one();
        let Change { pool, server, member, to, .. } = *change;
        let report = RouteReport { pool, server, member, to, outcome };
        router.events.send(router.events.clock.now(), Event::Routed(report)).await?;
    }
    Ok(())
}

fn say(change: &Change, outcome: &RouteOutcome, again: bool) {
    let Change { pool, server, address, member, to, reason, .. } = change;
    let (pool, to) = (pool.as_str(), to.as_str());
    match outcome {
        _ if again => tracing::debug!(pool, server, %member, address, to, reason, ?outcome, "HAProxy's server, again"),
        RouteOutcome::Done { took } => {
            let took_us = took.as_micros();
            tracing::info!(pool, server, %member, address, to, reason, took_us, "HAProxy's server told");
        }
        RouteOutcome::Withdrawn(why) => {
            tracing::warn!(pool, server, %member, address, to, reason, why, "HAProxy's server not told");
        }
        RouteOutcome::Failed(why) => {
            tracing::error!(pool, server, %member, address, to, reason, why, "HAProxy did not do as it was told");
        }
        RouteOutcome::Observed => {}
    }
}

impl Router {
    /// Has new connections for writes wait from now on, or go on. Told again and again while it lasts: reported is what
    /// changes.
    async fn hold(&self, on: bool, reason: &str, held: &mut Held) -> Option<HoldReport> {
        let asked = Instant::now();
        let told = self.tell(if on { HOLD } else { LET_GO }).await;
        let took_us = asked.elapsed().as_micros();
        match (told, on) {
            (Ok(()), true) => {
                if let Held::Since(_) = held {
                    return None;
                }
                *held = Held::Since(asked);
                tracing::info!(reason, took_us, "HAProxy holds new connections for writes");
                Some(HoldReport::Begun)
            }
            (Ok(()), false) => {
                let Held::Since(since) = std::mem::replace(held, Held::No) else { return None };
                let after = since.elapsed();
                let held_ms = after.as_millis();
                tracing::info!(reason, took_us, held_ms, "HAProxy lets new connections for writes go on");
                Some(HoldReport::Ended { after })
            }
            // It ends by itself.
            (Err(_), false) => {
                *held = Held::No;
                None
            }
            (Err(Not::Wanted(why) | Not::Taken(why)), true) => {
                if let Held::Not = held {
                    return None;
                }
                *held = Held::Not;
                tracing::warn!(
                    reason,
                    why,
                    "HAProxy does not hold new connections for writes: its checks may let some through to a server \
                     that goes. Has its configuration the table warden_hold, as Warden's template has?"
                );
                Some(HoldReport::Failed(why))
            }
        }
    }

    async fn make(&self, change: &Change) -> Result<(), Not> {
        let proxy =
            self.config.proxy(change.pool).ok_or_else(|| Not::Wanted("there is no proxy for reads".to_owned()))?;
        let server = format!("{proxy}/{}", change.server);
        if !is_name(proxy) || !is_name(&change.server) {
            return Err(Not::Taken(format!("{server:?} cannot be put into a command")));
        }
        self.is_there(proxy, change).await?;
        match change.to {
            Wish::Up => self.tell(&format!("set server {server} health up")).await,
            Wish::Wait => self.tell(&format!("set server {server} health stopping")).await,
            Wish::Out => {
                self.is_the_member(change).await?;
                // Nobody new gets there while ZooKeeper is asked.
                self.tell(&format!("set server {server} health stopping")).await?;
                self.another_leads(change).await.map_err(Not::Wanted)?;
                let command = format!("set server {server} health down;shutdown sessions server {server}");
                self.tell(&command).await
            }
        }
    }

    /// A new barrier read meets the condition of the change. The error says what speaks against it.
    async fn another_leads(&self, change: &Change) -> Result<(), String> {
        let condition = change.condition.as_ref().ok_or("there was no ZooKeeper session")?;
        condition.check(&znodes::read(self.zookeeper.barrier(BARRIER).await, &self.events.clock))
    }

    /// HAProxy has the address for it that it was judged by.
    async fn is_there(&self, proxy: &str, change: &Change) -> Result<(), Not> {
        let states = self.ask(&format!("show servers state {proxy}")).await?;
        let addresses = addresses(&states).map_err(Not::Taken)?;
        match addresses.get(&change.server) {
            Some(address) if *address == change.address => Ok(()),
            Some(address) => Err(Not::Wanted(format!("HAProxy has the address {address} for it now"))),
            None => Err(Not::Wanted("HAProxy has no such server any more".to_owned())),
        }
    }

    /// The member is at that address now, and no other is.
    async fn is_the_member(&self, change: &Change) -> Result<(), Not> {
        let target = self.targets.borrow().get(&change.member).and_then(|target| target.postgres.clone());
        let (host, port) = target.ok_or_else(|| Not::Wanted(format!("{} is no member any more", change.member)))?;
        let addresses = resolve(&host, port).await;
        let addresses = addresses.ok_or_else(|| Not::Wanted(format!("{host} cannot be resolved")))?;
        let address = match split_address(&change.address) {
            Some((address, known)) if known == port && addresses.contains(&address) => address,
            _ => {
                let why = format!("{} is at another address now: {addresses:?}, port {port}", change.member);
                return Err(Not::Wanted(why));
            }
        };
        let targets = self.targets.borrow().clone();
        for (other, target) in targets.iter().filter(|(name, _)| **name != change.member) {
            let Some((host, _)) = target.postgres.as_ref().filter(|(_, known)| *known == port) else { continue };
            if resolve(host, port).await.is_some_and(|found| found.contains(&address)) {
                return Err(Not::Wanted(format!("{other} is at that address, too")));
            }
        }
        Ok(())
    }

    async fn ask(&self, question: &str) -> Result<String, Not> {
        let socket = &self.config.socket;
        ask(socket, question, ANSWER).await.map_err(|error| Not::Taken(format!("{}: {error}", socket.display())))
    }

    /// A command that is answered with nothing.
    async fn tell(&self, command: &str) -> Result<(), Not> {
        let answer = self.ask(command).await?;
        if answer.trim().is_empty() {
            return Ok(());
        }
        Err(Not::Taken(format!("{command:?} is answered with {:?}", first_line(&answer))))
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
