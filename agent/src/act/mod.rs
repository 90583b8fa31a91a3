//! The only place that changes the world. As yet that is our own znode and our own ZooKeeper session;
//! what fences, releases, nudges and reroutes comes in here, each with its guard.

use crate::clock::Clock;
use crate::record;
use crate::watch::Events;
use crate::watch::znodes;
use crate::watch::zookeeper::Handle as ZooKeeper;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use warden_core::decide::{Action, Step};
use warden_core::event::{Event, Started};

/// How long a barrier read that the plan asks for may take.
const BARRIER: Duration = Duration::from_secs(2);

/// What the loop hands to the actor, and may have pending: more than a plan ever holds.
pub const QUEUE: usize = 16;

/// Carries out steps, one after the other, until the loop is gone.
pub async fn run(steps: &mut mpsc::Receiver<Step>, zookeeper: ZooKeeper, events: Events) -> anyhow::Result<()> {
    while let Some(step) = steps.recv().await {
        let action = step.action;
        tracing::debug!(?action, reason = step.reason, "acting");
        match action {
            Action::Verify => {
                let asked = Instant::now();
                let read = zookeeper.barrier(BARRIER).await;
                let observed = znodes::barrier(read, asked, &events.clock);
                events.send(observed.at, observed.event).await?;
            }
            Action::Announce(announced) => zookeeper.publish(record::write(&announced)),
            Action::UseSessionTimeout(timeout) => zookeeper.set_session_timeout(timeout),
        }
    }
    Ok(())
}

/// What the view has to remember of a step that has been handed over.
pub fn started(step: &Step, clock: &Clock) -> Option<warden_core::event::Observed> {
    let event = match &step.action {
        Action::Verify => Event::Started(Started::Verification),
        Action::Announce(announced) => Event::Started(Started::Announcement(announced.clone())),
        Action::UseSessionTimeout(_) => return None,
    };
    Some(warden_core::event::Observed { at: clock.now(), event })
}
