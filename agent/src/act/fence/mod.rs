//! Fences: stops a server that must not take writes any more, and keeps a session open for that.
//!
//! Each fence is a task of its own. The local server's fence does not wait for that of an unreachable old primary, nor
//! for a session that is being opened. Right before it acts, the agent checks the guard of the order again. A fence
//! leaves nothing to undo: when Patroni is back, it starts the server as a standby.

pub mod session;

mod connect;
mod postmaster;

mod verify;

mod ladder;
pub mod old_primary;
mod reporting;
mod session_keeper;

use super::records::Records;
use crate::client::beside::Beside;
use crate::client::patroni::PatroniClient;
use crate::client::postgres::Place;
use crate::client::zookeeper::Handle as ZooKeeper;
use crate::config::Superuser;
use crate::events::Events;
use crate::targets::{Probes, Targets};
use connect::Server;
use reporting::ReportMemory;
use session::KeptSession;
use session_keeper::{Change, SessionKeeper};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;
use tokio::time::timeout;
use warden_core::event::{Barrier, Event, FenceOutcome, FenceSession, MemberEvent, PatroniAnswer};
use warden_core::leadership::Heartbeat;
use warden_core::plan::Step;
use warden_core::rules::fence::{Guard, Order};
use warden_core::types::{MemberName, Moment};

/// The time limit of the barrier read right before a fence. A healthy ZooKeeper answers within milliseconds. A slow one
/// must not delay a fence for long.
const BARRIER_LIMIT: Duration = Duration::from_secs(2);

/// The time limit of the look at the heartbeat right before a fence by `lease`. A healthy server answers within
/// milliseconds.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(1);

/// The actor's dependencies.
pub struct Fencer {
    /// The local server, if there is one. The fence session is with it.
    pub local: Option<(MemberName, Place)>,
    /// Further evidence about the local server.
    pub beside: Option<Beside>,
    /// The superuser.
    pub login: Option<Superuser>,
    /// For the barrier read right before a fence.
    pub zookeeper: ZooKeeper,
    /// For the question to the local Patroni right before a fence by `lease`.
    pub client: PatroniClient,
    /// The URL of the local Patroni's REST API.
    pub api: Option<String>,
    /// For fence records and the audit trail.
    pub records: Records,
    /// The addresses of the other members.
    pub targets: latest::Receiver<Targets>,
    /// The heartbeat of the local Patroni's HA loop, from the view.
    pub heartbeat: latest::Receiver<Option<Heartbeat>>,
    /// To ask for a new look at the heartbeat.
    pub probes: Probes,
    /// For the reports to the loop.
    pub events: Events,
    /// This agent's name, for fence records.
    pub agent: String,
}

/// The end of a fence task.
struct Done {
    order: Order,
    /// `None` if there is nothing to report.
    outcome: Option<FenceOutcome>,
    /// The fence session, if it is still open.
    session: Option<KeptSession>,
}

/// The actor's memory.
#[derive(Default)]
struct Memory {
    keeper: SessionKeeper,
    running: JoinSet<Done>,
    /// The members whose fences are running.
    busy: BTreeSet<MemberName>,
    /// The order that waits in the silent local server's socket, and since when.
    waiting: Option<(Order, Instant)>,
    reports: ReportMemory,
}

/// Carries out steps until the loop ends. Keeps the fence session open in between.
pub async fn run(steps: &mut mpsc::Receiver<Step<Box<Order>>>, fencer: &Arc<Fencer>) -> anyhow::Result<()> {
    let mut memory = Memory::default();
    let own = fencer.local.as_ref().map(|(member, _)| member);
    loop {
        let own_is_busy = own.is_some_and(|own| memory.busy.contains(own));
        tokio::select! {
            biased;
            step = steps.recv() => {
                let Some(Step { action: order, reason: _ }) = step else { return Ok(()) };
                memory.start(fencer, *order);
            }
            Some(done) = memory.running.join_next() => memory.finish(fencer, done?).await?,
            change = memory.keeper.changes(fencer, !own_is_busy) => memory.session_changed(fencer, change).await?,
        }
    }
}

impl Memory {
    /// Starts a fence, unless one of the same member is running: that one does the same.
    fn start(&mut self, fencer: &Arc<Fencer>, order: Order) {
        if !self.busy.insert(order.member.clone()) {
            tracing::debug!(member = %order.member, "a fence of this member is running");
            return;
        }
        let is_local = fencer.is_local(&order.member);
        let session = if is_local { self.keeper.session.take() } else { None };
        let ended = is_local && self.keeper.has_ended;
        let fencer = Arc::clone(fencer);
        self.running.spawn(async move { fencer.fence(order, session, ended).await });
    }

    /// Takes the session back from a fence that has ended, and reports its outcome.
    async fn finish(&mut self, fencer: &Fencer, done: Done) -> anyhow::Result<()> {
        let Done { order, outcome, session } = done;
        self.busy.remove(&order.member);
        if fencer.is_local(&order.member) {
            // The keeper may have opened another one. The agent keeps the one in which the order waits.
            self.keeper.session = session.or(self.keeper.session.take());
            if self.keeper.session.is_some() {
                self.keeper.report(fencer, FenceSession::Ready).await?;
            }
            let since = self.waiting.take().map_or_else(Instant::now, |(_, since)| since);
            self.waiting = (outcome == Some(FenceOutcome::Waiting)).then(|| (order.clone(), since));
        }
        if let Some(outcome) = outcome {
            fencer.report(&order, outcome, &mut self.reports).await?;
        }
        Ok(())
    }

    async fn session_changed(&mut self, fencer: &Arc<Fencer>, change: Change) -> anyhow::Result<()> {
        let session = match change {
            Change::Ended => {
                (self.keeper.session, self.keeper.has_ended) = (None, true);
                if let Some((order, since)) = self.waiting.take() {
                    // The server woke, and obeyed the order or refused it.
                    self.busy.insert(order.member.clone());
                    let fencer = Arc::clone(fencer);
                    self.running.spawn(async move { fencer.after_waking(order, since).await });
                }
                // The agent reports the loss if the next attempt fails.
                return Ok(());
            }
            Change::Opened(Ok(session)) => {
                (self.keeper.session, self.keeper.has_ended) = (Some(session), false);
                FenceSession::Ready
            }
            Change::Opened(Err(failed)) => {
                // If the server does not shut down, a client may have terminated the session, and others continue.
                self.keeper.has_ended &= failed.by_shutdown;
                FenceSession::Lost(failed.why)
            }
        };
        self.keeper.report(fencer, session).await
    }
}

impl Fencer {
    fn is_local(&self, member: &MemberName) -> bool {
        self.local.as_ref().is_some_and(|(own, _)| own == member)
    }

    /// Checks the guard, and stops the server.
    async fn fence(&self, order: Order, session: Option<KeptSession>, session_ended: bool) -> Done {
        let started = Instant::now();
        if let Err(why) = self.check(&order.guard).await {
            return Done { order, outcome: Some(FenceOutcome::Withdrawn(why)), session };
        }
        let failed = |why: &str| Some(FenceOutcome::Failed(why.to_owned()));
        let Some(login) = &self.login else {
            return Done { order, outcome: failed("no superuser is configured"), session };
        };
        let local = self.local.as_ref().filter(|(member, _)| *member == order.member);
        let place = match local {
            Some((_, place)) => Some(place.clone()),
            None => self
                .targets
                .borrow()
                .get(&order.member)
                .and_then(|target| target.postgres.clone())
                .map(|(host, port)| Place::Tcp(host, port)),
        };
        let Some(place) = place else {
            return Done { order, outcome: failed("the address of the member's server is unknown"), session };
        };
        let older_than = match order.guard {
            Guard::KeyAndTimeline(_, older_than) => Some(older_than),
            _ => None,
        };
        let beside = local.and(self.beside.as_ref());
        let server =
            Server { older_than, starting: order.starting, session_ended, beside, ..Server::at(&place, login) };
        let (outcome, session) = ladder::stop(&server, session).await;
        let outcome = match outcome {
            FenceOutcome::Confirmed { by, .. } => FenceOutcome::Confirmed { by, took: started.elapsed() },
            outcome => outcome,
        };
        Done { order, outcome: Some(outcome), session }
    }

    /// Checks the guard of an order against new answers. The error says what speaks against the fence.
    async fn check(&self, guard: &Guard) -> Result<(), String> {
        let away = match guard {
            Guard::Asked { .. } => return Ok(()),
            Guard::Key(condition) | Guard::KeyAndTimeline(condition, _) => return condition.check(&self.read().await),
            Guard::NoContact(away) => away,
        };
        // At the same time, so that the time limits do not add up.
        let (read, answer, beat) = tokio::join!(self.read(), self.ask_patroni(), self.last_beat());
        let answer = answer.unwrap_or_else(|| PatroniAnswer::Silent("there is no local Patroni".to_owned()));
        away.check(&read, &answer, beat)
    }

    /// The start of the last round of the local Patroni's HA loop, by a look that begins now.
    ///
    /// The view may not have seen a round within the last second (simulation, seed 291495). If the server does not
    /// answer, the view's value counts.
    async fn last_beat(&self) -> Option<Moment> {
        let mut heartbeat = self.heartbeat.clone();
        // The agent does not wait if it has never seen a heartbeat.
        (*heartbeat.borrow())?;
        let asked = self.events.clock.now();
        self.probes.own.notify_one();
        let looked = heartbeat.wait_for(|known| known.is_some_and(|known| known.looked >= asked));
        if timeout(HEARTBEAT_LIMIT, looked).await.is_err() {
            tracing::debug!("the agent cannot look at the heartbeat again");
        }
        (*heartbeat.borrow()).map(|known| known.began)
    }

    async fn read(&self) -> Barrier {
        self.zookeeper.barrier(BARRIER_LIMIT).await
    }

    /// Asks the local Patroni. The loop gets the answer as well.
    async fn ask_patroni(&self) -> Option<PatroniAnswer> {
        let ((member, _), api) = (self.local.as_ref()?, self.api.as_ref()?);
        let at = self.events.clock.now();
        let answer = self.client.ask(member, api, &self.events.clock).await;
        if !matches!(answer, PatroniAnswer::Refused(_) | PatroniAnswer::Silent(_)) {
            // The send fails only if the loop has ended. Then the agent does not fence any more.
            drop(self.events.send(at, Event::Member(member.clone(), MemberEvent::Patroni(answer.clone()))).await);
        }
        Some(answer)
    }

    /// Finds the outcome of an order that waited in the local server's socket, after its session has ended.
    async fn after_waking(&self, order: Order, since: Instant) -> Done {
        let outcome = match (&self.local, &self.login) {
            (Some((_, place)), Some(login)) => {
                let server = Server { beside: self.beside.as_ref(), ..Server::at(place, login) };
                ladder::after_waking(&server, since).await
            }
            _ => None,
        };
        Done { order, outcome, session: None }
    }
}

#[cfg(test)]
mod tests;
