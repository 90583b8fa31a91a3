//! `warden run`: runs the agent.

use super::{Failure, load, runtime};
use crate::tell::log;
use std::path::Path;

pub(super) fn main(config: &Path) -> Result<(), Failure> {
    let config = load(config)?;
    let control = log::start(&config.log);
    let runtime = runtime()?;
    let ended = runtime.block_on(crate::wiring::run(config, control));
    // The resolution of a name blocks its thread, and no call can stop it. The agent does not wait for it.
    runtime.shutdown_background();
    Ok(ended?)
}
