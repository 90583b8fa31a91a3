//! Warden: a sidecar for unmodified Patroni on ZooKeeper behind HAProxy.
//!
//! `watch` turns the world into events, `warden-core` decides, `act` is the only thing that changes the
//! world, `tell` reports. `run` holds the loop that joins them. `agent/ARCHITECTURE.md` is the map.

pub mod run;

pub mod act;
pub mod tell;
pub mod watch;

pub mod cli;
pub mod config;

pub mod audit;
pub mod clock;
pub mod fence_record;
pub mod haproxy;
pub mod layout;
pub mod record;
pub mod secret;
pub mod tasks;
pub mod term_memory;
