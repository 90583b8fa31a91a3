//! The routine work on Warden's own znodes and session: barrier reads, announcements, the session timeout.

use crate::client::zookeeper::Handle as ZooKeeper;
use crate::events::Events;
use crate::znode::agent;
use std::time::Duration;
use tokio::sync::mpsc;
use warden_core::plan::{Step, ZooKeeperAction};

/// The time limit of a barrier read.
const BARRIER_LIMIT: Duration = Duration::from_secs(2);

/// The actor's dependencies.
pub struct Own {
    /// The ZooKeeper client.
    pub zookeeper: ZooKeeper,
    /// For the results of barrier reads.
    pub events: Events,
}

/// Carries out steps, one after the other, until the loop ends.
pub async fn run(steps: &mut mpsc::Receiver<Step<ZooKeeperAction>>, own: &Own) -> anyhow::Result<()> {
    let Own { zookeeper, events } = own;
    while let Some(Step { action, reason }) = steps.recv().await {
        tracing::debug!(?action, reason, "acting");
        match action {
            ZooKeeperAction::Verify => {
                let observed = zookeeper.barrier_event(BARRIER_LIMIT).await;
                events.send(observed.at, observed.event).await?;
            }
            ZooKeeperAction::Announce(announced) => zookeeper.publish(agent::write(&announced)),
            ZooKeeperAction::UseSessionTimeout(timeout) => zookeeper.set_session_timeout(timeout),
        }
    }
    Ok(())
}
