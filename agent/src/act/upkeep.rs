//! Verifies, announces, keeps the session timeout: what is done all the time.

use crate::record;
use crate::watch::Events;
use crate::watch::znodes;
use crate::watch::zookeeper::Handle as ZooKeeper;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use warden_core::plan::{Action, Step};

/// How long a barrier read that the plan asks for may take.
const BARRIER: Duration = Duration::from_secs(2);

/// Carries out steps, one after the other, until the loop is gone.
pub async fn run(steps: &mut mpsc::Receiver<Step>, zookeeper: ZooKeeper, events: Events) -> anyhow::Result<()> {
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
            // `Actors::hand_over` sends nothing else here.
            other => tracing::error!(action = ?other, "this actor does not do such things"),
        }
    }
    Ok(())
}
