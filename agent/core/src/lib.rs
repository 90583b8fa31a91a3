//! What Warden believes about a cluster and what should be done about it.
//!
//! This crate is pure: `no_std`, no dependencies, no IO, no clock, no randomness, ordered maps only.
//! Time comes in as an argument, so that every decision can be reproduced from its inputs.
//! Events ([`event::Event`]) are applied to a [`view::View`]; [`decide::decide`] turns the view into a plan;
//! [`assess`] says what the view amounts to (who leads, who is writable), [`warn`] what a person should know.
#![no_std]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod types;

pub mod fact;
pub mod limits;

pub mod event;
pub mod haproxy;

pub mod leadership;
pub mod view;

pub mod assess;
pub mod evidence;

pub mod rules;

pub mod announce;
pub mod plan;

pub mod decide;
pub mod step;

pub mod warn;
