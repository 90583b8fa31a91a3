//! Warden's own formats in ZooKeeper: an agent's znode, a fence record, and an entry of the audit trail. Each file
//! documents its format. Fields may be added, and a reader ignores unknown fields. `agent/testdata/formats` has golden
//! files of each version.

pub mod agent;
pub mod audit;
pub mod fence;
