//! Warden: a sidecar for unmodified Patroni on ZooKeeper behind HAProxy.
//!
//! `watch` turns the state of the cluster into events, `warden-core` decides, only `act` changes the cluster, and
//! `tell` reports. `run` has the loop that joins them. `agent/docs/internals/architecture.md` is the map.
//!
//! `run` and `wiring` join the other modules. Each module after them uses only modules above it.

pub mod run;
pub mod wiring;

pub mod clock;
pub mod log_events;
pub mod secret;

pub mod events;
pub mod targets;

pub mod config;
pub mod znode;

pub mod client;

pub mod tasks;

pub mod act;
pub mod watch;

pub mod tell;

pub mod cli;
