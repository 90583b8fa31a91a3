//! Sets the state of HAProxy's servers, and keeps HAProxy's configuration file.

pub mod slots;

pub mod naming;

pub mod lines;

pub mod template;

pub mod actor;

mod durable;

pub mod file;
mod reload;
mod runtime;

pub mod servers;
