//! Keeps the memory of the leader term on disk, so that it survives a restart of the agent.

use crate::client::term_memory;
use std::path::Path;
use tokio::sync::mpsc;
use warden_core::event::TermMemory;
use warden_core::plan::Step;

/// Carries out steps, one after the other, until the loop ends.
pub async fn run(steps: &mut mpsc::Receiver<Step<TermMemory>>, state_dir: &Path) -> anyhow::Result<()> {
    // The agent logs a failure once.
    let mut last_failure = String::new();
    while let Some(Step { action: memory, reason }) = steps.recv().await {
        tracing::debug!(?memory, reason, "acting");
        if let Err(why) = term_memory::write(state_dir, &memory).await
            && last_failure != why
        {
            tracing::warn!(
                event = "term_memory_write_failed",
                why,
                "the agent could not write its memory of this leader term; \
                 after a restart it does not know that Patroni answered"
            );
            last_failure = why;
        }
    }
    Ok(())
}
