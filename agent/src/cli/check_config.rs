//! `warden check-config`: prints the effective configuration with secrets masked.

use super::{Failure, load};
use anyhow::Context;
use std::path::Path;

pub(super) fn main(path: &Path) -> Result<(), Failure> {
    let config = load(path)?;
    let text = serde_saphyr::to_string(&config).context("cannot print the configuration as YAML")?;
    print!("{text}");
    Ok(())
}
