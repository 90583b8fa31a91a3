//! Reports: logs, metrics, the HTTP API, the state as JSON.

pub mod http;
pub mod leader;
pub mod log;
pub mod metrics;
pub mod narrate;
pub mod picture;
pub mod plan;
pub mod state;

#[cfg(test)]
pub(crate) mod fixtures;
