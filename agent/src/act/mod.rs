//! The only place that changes the world: our own znodes and ZooKeeper session, fences, the release of a leader key,
//! nudges. Whatever destroys carries its guard and looks again right before it acts.
//!
//! Six actors, so that none waits for another: `upkeep` verifies and announces, `fence` stops servers, `lead`
//! releases, nudges and asks out of turn, `route` tells HAProxy where to send whom, `layout` writes
//! its configuration, `records` writes down what was done. Beside them `upgrade` copies what Warden 0.1 wrote down.

pub mod fence;
pub mod ladder;
pub mod layout;
pub mod lead;
pub mod mirror;
pub mod postmaster;
pub mod proof;
pub mod records;
pub mod route;
pub mod upgrade;
pub mod upkeep;
pub mod warm;

use crate::audit::Entry;
use crate::clock::Clock;
use crate::watch::members::Probes;
use tokio::sync::mpsc;
use warden_core::event::{Event, Observed};
use warden_core::plan::{Action, Step};

/// What the loop hands to an actor, and may have pending: more than a plan ever holds.
pub const QUEUE: usize = 16;

/// The way to the actors.
#[derive(Clone)]
pub struct Actors {
    /// To `upkeep`.
    pub upkeep: mpsc::Sender<Step>,
    /// To `fence`.
    pub fence: mpsc::Sender<Step>,
    /// To `lead`.
    pub lead: mpsc::Sender<Step>,
    /// To `route`.
    pub route: mpsc::Sender<Step>,
    /// To `layout`.
    pub layout: mpsc::Sender<Step>,
    /// To `records`.
    pub records: records::Records,
    /// Asks out of turn.
    pub probes: Probes,
    /// Our own name, for the audit trail.
    pub agent: String,
}

impl Actors {
    /// Hands a step to whoever does such things. Fails while that one is busy: the next decision makes it again.
    pub fn hand_over(&self, step: Step) -> Result<(), mpsc::error::TrySendError<Step>> {
        let actor = match &step.action {
            Action::CloseFence(member) => {
                tracing::info!(%member, reason = step.reason, "fence closed");
                self.records.remove(member.clone());
                let outcome = "done".to_owned();
                let entry = Entry { outcome, ..Entry::new(&self.agent, "close", member.as_str(), &step.reason) };
                self.records.audit(entry.write());
                return Ok(());
            }
            Action::Verify | Action::Announce(_) | Action::UseSessionTimeout(_) | Action::Keep(_) => &self.upkeep,
            Action::Fence(_) | Action::ObserveFence(_) => &self.fence,
            Action::Probe { .. }
            | Action::Release(_)
            | Action::ObserveRelease(_)
            | Action::Nudge
            | Action::ObserveNudge
            | Action::Reconnect
            | Action::ObserveReconnect => &self.lead,
            // Nobody waits for a barrier read to look.
            Action::Look => {
                self.probes.haproxy.notify_one();
                self.probes.others.notify_waiters();
                self.probes.own.notify_waiters();
                return Ok(());
            }
            Action::Render(_) => &self.layout,
            Action::Hold { .. } | Action::Route(_) | Action::ObserveRoute(_) => &self.route,
        };
        actor.try_send(step)
    }
}

/// What the view has to remember of a step that has been handed over.
pub fn started(step: &Step, clock: &Clock) -> Option<Observed> {
    let started = step.action.started()?;
    Some(Observed { at: clock.now(), event: Event::Started(started) })
}
