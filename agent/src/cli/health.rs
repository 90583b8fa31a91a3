//! `warden health`: the container's health check.

use super::{Failure, client, load, runtime};
use anyhow::anyhow;
use std::path::Path;

pub(super) fn main(config: &Path) -> Result<(), Failure> {
    let config = load(config)?;
    let url = format!("{}/healthz", client::local(&config));
    runtime()?.block_on(async {
        let answer =
            client::http()?.get(&url).send().await.map_err(|error| anyhow!("{url} does not answer: {error}"))?;
        if answer.status().is_success() { Ok(()) } else { Err(anyhow!("{url} answers {}", answer.status()).into()) }
    })
}
