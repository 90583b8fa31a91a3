//! Clients for ZooKeeper, Patroni, PostgreSQL, HAProxy, archives of WAL and files of the local node. `watch/`, `act/`
//! and `cli/` use them.
//!
//! The wire formats of other programs stay in here, and callers get core's types. PostgreSQL's sessions are an
//! exception: their callers ask them in SQL. Every question has a time limit. No rule stands here.

pub(crate) mod names;
pub mod tls;

pub(crate) mod control_file;
pub mod data_dir;

pub mod alive_lock;
pub mod beside;
pub mod term_memory;

pub mod archive;
pub mod haproxy;
pub mod patroni;
pub mod postgres;
pub mod zookeeper;

use std::io;

/// The IO error at the bottom of `error`, if there is one.
pub(crate) fn io_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = current.source();
    }
    None
}

/// The innermost message of `error`: "Connection refused" and not "error sending request".
pub(crate) fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}
