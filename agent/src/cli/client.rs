//! What the commands share: an HTTP client for the agents, and where the local one is.

use crate::config::Config;
use anyhow::Context;
use std::net::IpAddr;
use std::time::Duration;

/// An agent answers `/api/v1/state` within 1 s of barrier read and 1 s of loop, or not at all.
const LIMIT: Duration = Duration::from_millis(2500);

/// A client for an agent's API.
pub(super) fn http() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(LIMIT)
        .connect_timeout(Duration::from_secs(1))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .context("cannot set up HTTP")
}

/// The same, for the gate: without TLS, whose certificates take longer to load than all the rest.
pub(super) fn plain() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(LIMIT)
        .connect_timeout(Duration::from_secs(1))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_certs_only([])
        .build()
        .context("cannot set up HTTP")
}

/// The base address of the agent on this machine.
pub(super) fn local(config: &Config) -> String {
    let listen = config.http.listen;
    let host = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) if ip.is_unspecified() => "[::1]".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    format!("http://{host}:{}", listen.port())
}
