//! The end-to-end harness: a stack of its own for each test, real faults, and two witnesses that owe nothing
//! to Warden: the clients and ZooKeeper's own transaction log.

pub mod docker;
pub mod wait;
