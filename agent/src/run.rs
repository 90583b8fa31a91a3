//! The agent's loop, and the table of every task and channel (`wiring.rs` makes and runs them).
//!
//! All tasks are supervised (`tasks.rs`). All run on one thread, unless the table says otherwise:
//!
//! | task            | does                                                   | reads            | writes          |
//! |-----------------|--------------------------------------------------------|------------------|-----------------|
//! | (main)          | the loop: event, view, decision, steps and notices     | events, queries  | steps, targets  |
//! | (epochs)        | starts one ZooKeeper client after the other            |                  | events          |
//! | (epoch)         | one ZooKeeper client, with a thread of its own         | requests         | events          |
//! | members         | two watchers (Patroni, PostgreSQL) for each member     | targets          | events          |
//! | alive-lock      | waits on the local Patroni's lock, with its own thread |                  | events          |
//! | haproxy         | asks the local HAProxy for its servers                 | targets          | events          |
//! | gate-check      | tries the logins that the gate would need              | targets          | events          |
//! | own-znodes      | verifies, announces                                    | steps            | events          |
//! | term-memory     | keeps the memory of the leader term on disk            | steps            |                 |
//! | fence           | stops servers, a task for each; keeps a fence session  | steps, heartbeat | events, records |
//! | release         | releases the leader key                                | steps            | events, records |
//! | nudge           | wakes the local Patroni and its standby                | steps            | events          |
//! | haproxy-servers | sets the state of HAProxy's servers                    | steps            | events          |
//! | haproxy-file    | writes HAProxy's configuration file, reloads HAProxy   | steps            | events          |
//! | records         | writes fence records and the audit trail               | (its own queue)  |                 |
//! | upgrade         | keeps our records and those of Warden 0.1 the same     |                  |                 |
//! | http            | the API, a task for each connection, at most 64        |                  | queries         |
//!
//! All channels are bounded, by their size or by their use:
//!
//! - `events`: the watchers and the ZooKeeper client wait while it is full.
//! - `queries`: HTTP waits, with a limit.
//! - `steps`: one queue for each actor, with its own kind of step. The loop drops a step that does not fit, and the
//!   next decision makes it again.
//! - `records`: the newest record of each member, and 64 entries of the audit trail. No task waits for it.
//! - `targets` and `heartbeat`: the latest value only, from the loop.
//! - Inside the ZooKeeper client: `requests` (16); the present epoch, the record to publish and the session timeout
//!   (the latest value only); and the states of the library, whose listener must not wait. The first state other than
//!   `Connected` ends the epoch, so at most two are read.
//!
//! The notices of a plan use no queue. The loop reports them itself, so a report never delays a step.
//!
//! One thread is enough, and keeps the agent small beside the database. No task computes, and code that may block in
//! the kernel has a thread of its own. The archive's worker will compute, because it verifies WAL. It will have a
//! thread of its own with a bounded queue, as the ZooKeeper epochs have.

use crate::act::Actors;
use crate::clock::Clock;
use crate::targets::{Targets, targets_beside_agents};
use crate::tell::Reporter;
use crate::tell::http::Query;
use std::time::Duration;
use tokio::sync::{mpsc, watch as latest};
use tokio::time::{Instant, sleep_until};
use warden_core::decide::decide;
use warden_core::event::{Event, HaproxyEvent, Observed, ZooKeeperEvent};
use warden_core::leadership::Heartbeat;
use warden_core::plan::{Notice, Policy};
use warden_core::view::View;

/// The loop takes in at most this many waiting events before the next decision.
const EVENTS_PER_DECISION_MAX: usize = 64;

/// The loop may delay a decision by this time after an event that repeats known facts. With 50 members, such events
/// arrive 100 times a second.
const REPEATED_EVENTS_PAUSE: Duration = Duration::from_millis(100);

/// The view gets an event at least this often, so that facts age.
const TICK: Duration = Duration::from_secs(1);

/// The loop with its state and its channels.
pub struct Loop {
    /// The view. Only the loop has it, so there is no lock and no second view.
    pub view: View,
    /// The actions that the operator allows the agent.
    pub policy: Policy,
    /// The agent's clock.
    pub clock: Clock,
    /// Reports each event and each notice.
    pub reporter: Reporter,
    /// The queues to the actors.
    pub actors: Actors,
    /// The list of members for the watchers and the actors.
    pub targets: latest::Sender<Targets>,
    /// The view has taken in an event that may change `targets`.
    pub targets_may_change: bool,
    /// Patroni's heartbeat, which the fence checks right before it acts.
    pub heartbeat: latest::Sender<Option<Heartbeat>>,
}

impl Loop {
    /// Runs until the channels close, which they do not while the agent runs.
    pub async fn turn(mut self, mut events: mpsc::Receiver<Observed>, mut queries: mpsc::Receiver<Query>) {
        let mut next_tick = Instant::now();
        let mut wake = Instant::now();
        loop {
            let mut news = true;
            tokio::select! {
                observed = events.recv() => match observed {
                    Some(observed) => {
                        news = self.take_in(observed);
                        // One decision serves all events that wait.
                        for _ in 0..EVENTS_PER_DECISION_MAX {
                            let Ok(observed) = events.try_recv() else { break };
                            news |= self.take_in(observed);
                        }
                    }
                    None => return,
                },
                query = queries.recv() => match query {
                    Some(query) => self.answer(query),
                    None => return,
                },
                () = sleep_until(wake.min(next_tick)) => {}
            }
            if !news && Instant::now() < wake.min(next_tick) {
                wake = wake.min(Instant::now() + REPEATED_EVENTS_PAUSE);
                continue;
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                let now = self.clock.now();
                self.take_in(Observed { at: now, event: Event::Tick });
                self.reporter.tick(&self.view, now);
            }
            self.publish_targets();
            wake = self.decide_and_hand_over();
        }
    }

    /// Takes in an event. Returns whether the loop has to decide at once.
    fn take_in(&mut self, observed: Observed) -> bool {
        self.reporter.before(&observed);
        let may_change_targets = match &observed.event {
            Event::ZooKeeper(event) => matches!(event, ZooKeeperEvent::Znode(_) | ZooKeeperEvent::Agent { .. }),
            event => matches!(event, Event::Haproxy(HaproxyEvent::Answered(_)) | Event::Tick),
        };
        let news = warden_core::step::take_in(&mut self.view, observed, self.clock.now());
        self.reporter.after(&self.view);
        let beat = self.view.leadership.heartbeat;
        self.heartbeat.send_if_modified(|known| std::mem::replace(known, beat) != beat);
        self.targets_may_change |= may_change_targets;
        news
    }

    /// Publishes the list of members if it has changed.
    fn publish_targets(&mut self) {
        if !std::mem::take(&mut self.targets_may_change) {
            return;
        }
        let targets = targets_beside_agents(&self.view, self.clock.now());
        self.targets.send_if_modified(|known| {
            let changed = *known != targets;
            if changed {
                *known = targets;
            }
            changed
        });
    }

    fn answer(&mut self, query: Query) {
        if let Some(observed) = query.observed {
            self.take_in(observed);
        }
        // The HTTP client may have gone meanwhile.
        drop(query.reply.send(Box::new(self.view.clone())));
    }

    /// Decides, hands the steps to the actors, and reports the notices. Returns the time of the next decision.
    fn decide_and_hand_over(&mut self) -> Instant {
        let now = self.clock.now();
        let plan = decide(&self.view, &self.policy, now);
        for step in plan.steps {
            let started = step.action.started();
            if !self.actors.hand_over(step) {
                tracing::debug!("the actor is busy; the next decision makes this step again");
            } else if let Some(started) = started {
                self.remember(Event::Started(started));
            }
        }
        for notice in plan.notices {
            if let Notice::Observed(observation) = &notice {
                self.reporter.observed(observation);
                self.actors.audit(observation);
                let (started, report) = observation.remembered();
                self.remember(Event::Started(started));
                self.remember(Event::Report(report));
            }
        }
        Instant::now() + plan.wake.since(now)
    }

    /// Takes in an event that the loop itself makes.
    fn remember(&mut self, event: Event) {
        self.take_in(Observed { at: self.clock.now(), event });
    }
}
