//! Verifies, announces, keeps the session timeout and the memory of the term: what is done all the time.

use crate::record;
use crate::term_memory;
use crate::watch::Events;
use crate::watch::znodes;
use crate::watch::zookeeper::Handle as ZooKeeper;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use warden_core::plan::{Action, Step};

/// How long a barrier read that the plan asks for may take.
const BARRIER: Duration = Duration::from_secs(2);

/// What the actor needs.
pub struct Upkeep {
    /// To verify and to announce.
    pub zookeeper: ZooKeeper,
    /// Where the memory of the term is kept; `None` where there is no node.
    pub state_dir: Option<PathBuf>,
    /// For what came of it.
    pub events: Events,
}

/// Carries out steps, one after the other, until the loop is gone.
pub async fn run(steps: &mut mpsc::Receiver<Step>, upkeep: &Upkeep) -> anyhow::Result<()> {
    let Upkeep { zookeeper, state_dir, events } = upkeep;
    // What was last said of the memory that could not be kept.
    let mut said = String::new();
    while let Some(Step { action, reason }) = steps.recv().await {
        tracing::debug!(?action, reason, "acting");
        match action {
            Action::Verify => {
                let asked = Instant::now();
                let read = zookeeper.barrier(BARRIER).await;
                let observed = znodes::barrier(read, asked, &events.clock);
                events.send(observed.at, observed.event).await?;
            }
            Action::Announce(announced) => zookeeper.publish(record::write(&announced)),
            Action::UseSessionTimeout(timeout) => zookeeper.set_session_timeout(timeout),
            Action::Keep(memory) => {
                let Some(state_dir) = state_dir else { continue };
                if let Err(why) = term_memory::write(state_dir, &memory).await
                    && said != why
                {
                    tracing::warn!(why, "a restart of this agent will forget that Patroni answered");
                    said = why;
                }
            }
            // `Actors::hand_over` sends nothing else here.
            other => tracing::error!(action = ?other, "this actor does not do such things"),
        }
    }
    Ok(())
}
