//! The end-to-end harness: a stack for each test, real faults, and two witnesses that do not depend on Warden. They are
//! the clients ([`writers`]) and ZooKeeper's own transaction log ([`history`]).
// serde_json returns null for a missing index. The crate indexes nothing else.
#![allow(clippy::indexing_slicing)]

pub mod docker;
pub mod secured;
pub mod stack;
pub mod supervised;
pub mod undo;
pub mod wait;

pub mod agent_log;
pub mod fences;
pub mod haproxies;
pub mod history;
pub mod promise;
pub mod truth;
pub mod watching;
pub mod writers;

pub mod faults;
pub mod measure;
pub mod rivals;
pub mod storm;
pub mod throng;
pub mod trial;
