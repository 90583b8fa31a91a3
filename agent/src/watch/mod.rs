//! Turns the world into events.
pub mod zookeeper;
