//! Warden: a sidecar for unmodified Patroni on ZooKeeper behind HAProxy.
pub mod watch;
