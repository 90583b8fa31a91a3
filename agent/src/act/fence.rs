//! Fences: stops a server that must not take writes any more, and keeps a session warm to do it with.
//!
//! Each fence is a task of its own, so that the local server's does not wait for that of an old primary which cannot be
//! reached, nor for a session that is being opened. Right before it acts, it looks again whether that is still right.
//! Nothing is left behind that would have to be undone: Patroni, when it comes back, starts the server as a replica by
//! itself.

use super::ladder::{self, Server};
use super::records::Records;
use super::warm::{NotReady, Warm};
use crate::audit::Entry;
use crate::config::Superuser;
use crate::watch::beside::Beside;
use crate::watch::members::{Probes, Targets};
use crate::watch::patroni::PatroniClient;
use crate::watch::postgres::Place;
use crate::watch::zookeeper::Handle as ZooKeeper;
use crate::watch::{Events, znodes};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch as latest};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use warden_core::event::{Barrier, Event, FenceOutcome, FenceRecord, FenceReport, FenceSession, PatroniAnswer, Rule};
use warden_core::leadership::Heartbeat;
use warden_core::plan::{Action, Step};
use warden_core::rules::fence::{Guard, Order};
use warden_core::types::{MemberName, Moment, UnixMillis};

/// The look right before acting. A healthy ZooKeeper answers within milliseconds; one that is slow must not keep a fence
/// from being carried out for ever.
const LOOK: Duration = Duration::from_secs(2);

/// The look at the heartbeat right before a fence by lease; a healthy server answers within milliseconds.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Pause before the warm session is tried again, with jitter: doubled from the first to the longest.
/// Where the one that was there has just ended, or every slot is taken, it is the short one: who takes the slots and ends
/// our session must not have it for long.
const SHORT_PAUSE: Duration = Duration::from_millis(100);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Attempts to have the session that fail and fail, many a second perhaps, are told this often.
const RETOLD: Duration = Duration::from_secs(1);

/// What comes of a fence again and again is said again after this.
const SAID_AGAIN: Duration = Duration::from_secs(10);

/// What the actor needs.
pub struct Fencer {
    /// The local server, if there is one; the warm session is with it.
    pub local: Option<(MemberName, Place)>,
    /// What else can be seen of it.
    pub beside: Option<Beside>,
    /// Superuser.
    pub login: Option<Superuser>,
    /// For the look right before acting.
    pub zookeeper: ZooKeeper,
    /// For the same look, where there is no ZooKeeper.
    pub client: PatroniClient,
    /// Where the local Patroni answers.
    pub api: Option<String>,
    /// For the record.
    pub records: Records,
    /// Where the other members are.
    pub targets: latest::Receiver<Targets>,
    /// The heartbeat of the local Patroni's HA loop, as the view has it.
    pub heartbeat: latest::Receiver<Option<Heartbeat>>,
    /// For another look at it.
    pub probes: Probes,
    /// For what came of it.
    pub events: Events,
    /// Our own name, for the record.
    pub agent: String,
}

/// A fence that has come to its end, for now.
struct Done {
    order: Order,
    /// `None` where there is nothing to tell.
    outcome: Option<FenceOutcome>,
    /// The session, where it is left.
    session: Option<Warm>,
}

/// Keeps a session with the local server ready.
struct Warmth {
    session: Option<Warm>,
    /// The last one has ended by itself, and there could be none since because the server shuts down.
    has_ended: bool,
    /// One is being opened.
    opening: Option<JoinHandle<Result<Warm, NotReady>>>,
    pause: Duration,
    /// What the view has been told, and when.
    told: Option<(FenceSession, Instant)>,
}

/// What happens to the session.
enum Change {
    /// It has ended.
    Ended,
    /// It is ready, or could not be had.
    Opened(Result<Warm, NotReady>),
}

impl Drop for Warmth {
    fn drop(&mut self) {
        if let Some(opening) = &self.opening {
            opening.abort();
        }
    }
}

impl Warmth {
    /// Waits for the session's end; without one opens one, after a pause. Loses nothing when it is dropped.
    async fn changes(&mut self, fencer: &Fencer, wanted: bool) -> Change {
        if let Some(session) = &mut self.session {
            session.ended().await;
            return Change::Ended;
        }
        let (Some((_, place)), Some(login)) = (&fencer.local, &fencer.login) else { return pending().await };
        let pause = self.pause;
        if self.opening.is_none() && !wanted {
            return pending().await;
        }
        let opening = self.opening.get_or_insert_with(|| {
            let (place, login) = (place.clone(), login.clone());
            tokio::spawn(async move {
                sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                ladder::warm_up(&place, &login).await
            })
        });
        let opened = opening.await.unwrap_or_else(|error| {
            Err(NotReady { why: format!("it could not be tried: {error}"), in_passing: false, by_shutdown: false })
        });
        self.opening = None;
        self.pause = next_pause(pause, opened.as_ref().err());
        Change::Opened(opened)
    }
}

/// The pause before the next attempt, after one that ended like this.
fn next_pause(pause: Duration, failed: Option<&NotReady>) -> Duration {
    match failed {
        None | Some(NotReady { in_passing: true, .. }) => SHORT_PAUSE,
        Some(_) => (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE),
    }
}

impl Warmth {
    /// Tells the view, if that is news to it. That an attempt has failed is, each second: the server may have been
    /// started again since the last one, and then this one is the first that says something about it.
    async fn tell(&mut self, fencer: &Fencer, session: FenceSession) -> anyhow::Result<()> {
        let known = self
            .told
            .as_ref()
            .is_some_and(|(told, at)| *told == session && (session == FenceSession::Ready || at.elapsed() < RETOLD));
        if !known {
            fencer.events.send(fencer.events.clock.now(), Event::FenceSession(session.clone())).await?;
            self.told = Some((session, Instant::now()));
        }
        Ok(())
    }
}

/// Carries out steps until the loop is gone, and keeps the session warm in between.
pub async fn run(steps: &mut mpsc::Receiver<Step>, fencer: &Arc<Fencer>) -> anyhow::Result<()> {
    let mut warmth = Warmth { session: None, has_ended: false, opening: None, pause: FIRST_PAUSE, told: None };
    let mut running: JoinSet<Done> = JoinSet::new();
    // Whose fences are under way.
    let mut busy: BTreeSet<MemberName> = BTreeSet::new();
    // An order that lies in front of the silent local server.
    let mut waiting: Option<(Order, Instant)> = None;
    let mut trail = Trail::default();
    let own = fencer.local.as_ref().map(|(member, _)| member);
    loop {
        let own_is_busy = own.is_some_and(|own| busy.contains(own));
        tokio::select! {
            biased;
            step = steps.recv() => {
                let Some(Step { action, reason: _ }) = step else { return Ok(()) };
                match action {
                    Action::Fence(order) if busy.insert(order.member.clone()) => {
                        let ours = own == Some(&order.member);
                        let session = if ours { warmth.session.take() } else { None };
                        let ended = ours && warmth.has_ended;
                        let fencer = Arc::clone(fencer);
                        running.spawn(async move { fencer.fence(*order, session, ended).await });
                    }
                    // The one that is under way is as good.
                    Action::Fence(order) => tracing::debug!(member = %order.member, "its fence is under way"),
                    Action::ObserveFence(order) => fencer.report(&order, FenceOutcome::Observed, &mut trail).await?,
                    // `Actors::hand_over` sends nothing else here.
                    other => tracing::error!(action = ?other, "this actor does not do such things"),
                }
            }
            Some(done) = running.join_next() => {
                let Done { order, outcome, session } = done?;
                busy.remove(&order.member);
                if own == Some(&order.member) {
                    // One may have been opened meanwhile; the one that the order lies in is kept.
                    warmth.session = session.or(warmth.session.take());
                    if warmth.session.is_some() {
                        warmth.tell(fencer, FenceSession::Ready).await?;
                    }
                    let since = waiting.take().map_or_else(Instant::now, |(_, since)| since);
                    waiting = (outcome == Some(FenceOutcome::Waiting)).then(|| (order.clone(), since));
                }
                if let Some(outcome) = outcome {
                    fencer.report(&order, outcome, &mut trail).await?;
                }
            }
            change = warmth.changes(fencer, !own_is_busy) => {
                let session = match change {
                    Change::Ended => {
                        (warmth.session, warmth.has_ended) = (None, true);
                        if let Some((order, since)) = waiting.take() {
                            // The server woke, and did it or not.
                            busy.insert(order.member.clone());
                            let fencer = Arc::clone(fencer);
                            running.spawn(async move { fencer.after_waking(order, since).await });
                        }
                        // Told once it has not come back.
                        continue;
                    }
                    Change::Opened(Ok(session)) => {
                        (warmth.session, warmth.has_ended) = (Some(session), false);
                        FenceSession::Ready
                    }
                    Change::Opened(Err(failed)) => {
                        // Somebody else may have ended it: then the server goes on, and there could be another.
                        warmth.has_ended &= failed.by_shutdown;
                        FenceSession::Lost(failed.why)
                    }
                };
                warmth.tell(fencer, session).await?;
            }
        }
    }
}

/// What was last said of each member's fence: one that is tried again and again is one entry of the audit trail until
/// something else comes of it, and one line of the log now and then.
#[derive(Default)]
struct Trail {
    entries: BTreeMap<MemberName, (Rule, &'static str)>,
    repeating: BTreeMap<MemberName, Repeating>,
}

/// A fence of which the same comes again and again.
struct Repeating {
    /// What came of it, by which rule, and why.
    what: (Rule, &'static str, String),
    /// When that was last said.
    said: Instant,
    /// How often it has come since.
    times: u32,
}

impl Trail {
    fn is_news(&mut self, order: &Order, outcome: &FenceOutcome) -> bool {
        let news = (order.rule, outcome.as_str());
        let repeats = self.entries.insert(order.member.clone(), news) == Some(news);
        // Each time that it is confirmed the server took writes before.
        !repeats || matches!(outcome, FenceOutcome::Confirmed { .. })
    }

    /// How often this has come since it was last said, this time too; `None` where it is not to be said now. It is at
    /// first and when it, its rule or the reason is another one, else every [`SAID_AGAIN`].
    fn times(&mut self, order: &Order, outcome: &FenceOutcome, now: Instant) -> Option<u32> {
        let why = match outcome {
            FenceOutcome::Confirmed { .. } => {
                self.repeating.remove(&order.member);
                return Some(1);
            }
            FenceOutcome::Failed(why) | FenceOutcome::Withdrawn(why) => why.as_str(),
            FenceOutcome::Waiting | FenceOutcome::Observed => "",
        };
        let what = (order.rule, outcome.as_str(), why.to_owned());
        if let Some(known) = self.repeating.get_mut(&order.member).filter(|known| known.what == what) {
            known.times += 1;
            if now.duration_since(known.said) < SAID_AGAIN {
                return None;
            }
            known.said = now;
            return Some(std::mem::take(&mut known.times));
        }
        self.repeating.insert(order.member.clone(), Repeating { what, said: now, times: 0 });
        Some(1)
    }
}

impl Fencer {
    async fn report(&self, order: &Order, outcome: FenceOutcome, trail: &mut Trail) -> anyhow::Result<()> {
        let (member, rule, reason) = (order.member.as_str(), order.rule.as_str(), order.reason.as_str());
        if let Some(times) = trail.times(order, &outcome, Instant::now()) {
            say(order, &outcome, times);
        }
        let detail = match &outcome {
            FenceOutcome::Confirmed { by, took } => {
                self.record(order, true);
                format!(": {by}, after {} ms", took.as_millis())
            }
            FenceOutcome::Waiting => {
                self.record(order, false);
                String::new()
            }
            FenceOutcome::Observed => String::new(),
            FenceOutcome::Withdrawn(why) => format!(": {why}"),
            FenceOutcome::Failed(why) => {
                self.record(order, false);
                format!(": {why}")
            }
        };
        if trail.is_news(order, &outcome) {
            let entry = Entry {
                rule: Some(rule.to_owned()),
                by: self.by(order).to_owned(),
                outcome: format!("{}{detail}", outcome.as_str()),
                facts: order.facts.iter().cloned().collect(),
                ..Entry::new(&self.agent, "fence", member, reason)
            };
            self.records.audit(entry.write());
        }
        let report = FenceReport { member: order.member.clone(), rule: order.rule, outcome };
        Ok(self.events.send(self.events.clock.now(), Event::Fence(report)).await?)
    }

    /// Who wanted it. What a person asked for stays theirs.
    fn by<'a>(&'a self, order: &'a Order) -> &'a str {
        if let Guard::Asked { by } = &order.guard { by } else { &self.agent }
    }

    /// Has the record written: a fence does not wait for ZooKeeper, which may be away.
    fn record(&self, order: &Order, confirmed: bool) {
        let now = UnixMillis(Timestamp::now().as_millisecond());
        self.records.put(FenceRecord {
            member: order.member.clone(),
            rule: order.rule,
            reason: order.reason.clone(),
            by: self.by(order).to_owned(),
            ordered: now,
            confirmed: confirmed.then_some(now),
            facts: order.facts.clone(),
            written: None,
        });
    }

    async fn fence(&self, order: Order, session: Option<Warm>, session_ended: bool) -> Done {
        let started = Instant::now();
        if let Err(why) = self.look_again(&order.guard).await {
            return Done { order, outcome: Some(FenceOutcome::Withdrawn(why)), session };
        }
        let failed = |why: &str| Some(FenceOutcome::Failed(why.to_owned()));
        let Some(login) = &self.login else {
            return Done { order, outcome: failed("there is no superuser to log in with"), session };
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
            return Done { order, outcome: failed("it is not known where its server is"), session };
        };
        let older_than = match order.guard {
            Guard::KeyAndTimeline(_, older_than) => Some(older_than),
            _ => None,
        };
        let beside = local.and(self.beside.as_ref());
        let server =
            Server { older_than, starting: order.starting, session_ended, beside, ..Server::at(&place, login) };
        let (outcome, session) = ladder::climb(&server, session).await;
        let outcome = match outcome {
            FenceOutcome::Confirmed { by, .. } => FenceOutcome::Confirmed { by, took: started.elapsed() },
            outcome => outcome,
        };
        Done { order, outcome: Some(outcome), session }
    }

    /// Whether it is still right to fence.
    async fn look_again(&self, guard: &Guard) -> Result<(), String> {
        let away = match guard {
            Guard::Asked { .. } => return Ok(()),
            Guard::Key(condition) | Guard::KeyAndTimeline(condition, _) => return condition.check(&self.read().await),
            Guard::NoContact(away) => away,
        };
        // Side by side: what cannot be reached is waited for once.
        let (read, answer, beat) = tokio::join!(self.read(), self.ask_patroni(), self.last_beat());
        let answer = answer.unwrap_or_else(|| PatroniAnswer::Silent("there is no local Patroni".to_owned()));
        away.check(&read, &answer, beat)
    }

    /// When the local Patroni's HA loop last turned, by a look that begins now. A loop that has turned within the last
    /// second was not seen to yet (simulation, seed 291495). Where the server does not answer, what is known counts.
    async fn last_beat(&self) -> Option<Moment> {
        let mut heartbeat = self.heartbeat.clone();
        // Where none was ever seen, none is waited for.
        (*heartbeat.borrow())?;
        let asked = self.events.clock.now();
        self.probes.own.notify_one();
        let looked = heartbeat.wait_for(|known| known.is_some_and(|known| known.looked >= asked));
        if timeout(LAST_LOOK, looked).await.is_err() {
            tracing::debug!("its heartbeat cannot be looked at once more");
        }
        (*heartbeat.borrow()).map(|known| known.began)
    }

    async fn read(&self) -> Barrier {
        znodes::read(self.zookeeper.barrier(LOOK).await, &self.events.clock)
    }

    /// What the local Patroni answers now; the view hears it, too, and judges it.
    async fn ask_patroni(&self) -> Option<PatroniAnswer> {
        let ((member, _), api) = (self.local.as_ref()?, self.api.as_ref()?);
        let at = self.events.clock.now();
        let answer = self.client.ask(member, api, &self.events.clock).await;
        if matches!(answer, PatroniAnswer::Answering(_) | PatroniAnswer::Unusable(_)) {
            // Should the loop be gone, nothing is fenced any more either.
            drop(self.events.send(at, Event::Patroni { member: member.clone(), answer: answer.clone() }).await);
        }
        Some(answer)
    }

    /// The session that a waiting fence lay in has ended: the server woke, and did it or not.
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

/// Logs what came of a fence, `times` times since it was last said.
fn say(order: &Order, outcome: &FenceOutcome, times: u32) {
    let (member, rule, reason) = (order.member.as_str(), order.rule.as_str(), order.reason.as_str());
    match outcome {
        FenceOutcome::Confirmed { by, took } => {
            tracing::warn!(member, rule, reason, by, took_ms = took.as_millis(), "fenced");
        }
        FenceOutcome::Waiting => {
            let words = "the server takes no session now; the fence is the first that it takes";
            tracing::warn!(member, rule, reason, times, "{words}");
        }
        FenceOutcome::Observed => {
            tracing::warn!(member, rule, reason, times, "would be fenced (fencing.mode is observe)");
        }
        FenceOutcome::Withdrawn(why) => tracing::warn!(member, rule, reason, why, times, "not fenced"),
        FenceOutcome::Failed(why) => {
            let words = "THE FENCE FAILED: this server may still take writes";
            tracing::error!(member, rule, reason, why, times, "{words}");
        }
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
mod tests;
