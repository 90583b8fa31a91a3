//! The HTTP clients of the commands, and the address of the local agent.

use crate::act::operator::WRITE_LIMIT;
use crate::config::Config;
use crate::tell::http::{BARRIER_LIMIT, LOOP_LIMIT};
use anyhow::Context;
use std::net::IpAddr;
use std::time::Duration;

/// The time for an answer. An agent answers after a request to its loop, and a barrier read or a write.
const ANSWER_LIMIT: Duration = Duration::from_millis(2500);

const _: () = assert!(BARRIER_LIMIT.as_millis() + LOOP_LIMIT.as_millis() < ANSWER_LIMIT.as_millis());
const _: () = assert!(LOOP_LIMIT.as_millis() + WRITE_LIMIT.as_millis() < ANSWER_LIMIT.as_millis());

/// A client for an agent's API.
pub(super) fn http() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(ANSWER_LIMIT)
        .connect_timeout(Duration::from_secs(1))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .context("cannot set up HTTP")
}

/// A client without TLS for the hooks. To load the certificates would take longer than all the rest.
pub(super) fn plain() -> anyhow::Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(ANSWER_LIMIT)
        .connect_timeout(Duration::from_secs(1))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .tls_certs_only([])
        .build()
        .context("cannot set up HTTP")
}

/// The base URL of the agent on this machine.
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
