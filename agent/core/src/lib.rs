//! Warden's view of a cluster, and the decisions that follow from it.
//!
//! This crate is pure: `no_std`, no dependencies, no IO, no clock, no randomness, ordered maps only. Time is an
//! argument, so every decision can be reproduced from its inputs. The modules stand in the order of their layers: each
//! imports only those above it (`agent/tests/tidy.rs`). A [`view::View`] holds the facts from the events
//! ([`event::Event`]). [`decide::decide`] turns the view into a plan. [`assess`] summarizes the view for readers, and
//! [`warn`] lists its warnings.
#![no_std]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod types;

pub mod fact;
pub mod limits;

pub mod haproxy;

pub mod event;

pub mod leadership;
pub mod view;

pub mod assess;
pub mod evidence;

pub mod rules;

pub mod plan;

pub mod announce;
pub mod decide;
pub mod step;

pub mod warn;

#[cfg(any(test, feature = "testing"))]
pub mod fixtures;
