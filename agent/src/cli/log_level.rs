//! `warden log-level LEVEL`: changes the log level of a running agent until it restarts.

use super::{Failure, client, load, runtime};
use anyhow::{Context, anyhow};
use std::path::Path;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// error, warn, info, debug, trace, off, or a filter like warden=debug,info
    level: String,
}

pub(super) fn main(config: &Path, args: &Args) -> Result<(), Failure> {
    let Args { level } = args;
    let config = load(config)?;
    let url = format!("{}/api/v1/log-level", client::local(&config));
    runtime()?.block_on(async {
        let mut request = client::http()?.put(&url).json(&serde_json::json!({ "level": level }));
        if let Some(token) = &config.http.token {
            request = request.bearer_auth(token.reveal());
        }
        let answer = request.send().await.with_context(|| format!("{url} does not answer"))?;
        let status = answer.status();
        let body: serde_json::Value = answer.json().await.unwrap_or_default();
        if status.is_success() {
            println!("the agent logs at {level} until it restarts");
            return Ok(());
        }
        let why = body.get("error").and_then(|why| why.as_str()).unwrap_or("no reason given");
        Err(anyhow!("the agent refuses ({status}): {why}").into())
    })
}
