//! Watchers for each member's Patroni and PostgreSQL, the local alive lock and HAProxy. They report to the loop as
//! events. (ZooKeeper's client reports by itself.)
//!
//! An answer is as old as its question. No rule stands here.

pub mod alive_lock;
pub mod gate_check;

mod agent_check;
pub mod haproxy;

pub mod patroni;
pub mod postgres;

pub mod members;
