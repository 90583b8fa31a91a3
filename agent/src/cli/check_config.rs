//! `warden check-config`: the effective configuration, secrets masked.

use super::{Failure, load};
use anyhow::Context;
use std::path::Path;

pub(super) fn main(path: &Path) -> Result<(), Failure> {
    let config = load(path)?;
    let text = serde_saphyr::to_string(&config).context("the configuration cannot be shown")?;
    print!("{text}");
    Ok(())
}
