//! The end-to-end harness: a stack of its own for each test, real faults, and two witnesses that owe nothing
//! to Warden: the clients ([`writers`]) and ZooKeeper's own transaction log ([`history`]).
// serde_json answers null where an index leads nowhere; nothing else is indexed in here.
#![allow(clippy::indexing_slicing)]

pub mod docker;
pub mod secured;
pub mod stack;
pub mod supervised;
pub mod wait;

pub mod fences;
pub mod history;
pub mod promise;
pub mod truth;
pub mod watching;
pub mod writers;

pub mod faults;
pub mod measure;
pub mod rivals;
pub mod storm;
pub mod trial;
