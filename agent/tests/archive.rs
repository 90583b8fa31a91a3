//! `warden archive verify` on real WAL, in every layout and compression, whole and damaged.

// clippy.toml allows these in tests; the helpers here are outside of them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "archive/place.rs"]
mod place;

#[path = "archive/command.rs"]
mod command;
#[path = "archive/copies.rs"]
mod copies;
#[path = "archive/damage.rs"]
mod damage;
#[path = "archive/layouts.rs"]
mod layouts;
#[path = "archive/state.rs"]
mod state;
