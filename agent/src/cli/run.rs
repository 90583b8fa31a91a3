//! `warden run`: the agent.

use super::{Failure, load, runtime};
use crate::tell::log;
use std::path::Path;

pub(super) fn main(config: &Path) -> Result<(), Failure> {
    let config = load(config)?;
    let control = log::start(&config.log);
    let runtime = runtime()?;
    let ended = runtime.block_on(crate::run::run(config, control));
    // A name that is being resolved blocks a thread that nobody can stop; it must not keep us.
    runtime.shutdown_background();
    Ok(ended?)
}
