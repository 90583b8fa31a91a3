//! Events from the local HAProxy.

use crate::fact::Reading;
use crate::haproxy::HaproxyAnswer;
use crate::haproxy::file::Rendered;
use alloc::collections::BTreeMap;
use alloc::string::String;

/// An answer of the local HAProxy, or a read of its configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HaproxyEvent {
    /// The answer of its runtime socket.
    Answered(HaproxyAnswer),
    /// Its frontends that have as many connections as they may, with that number.
    FrontendsFull(BTreeMap<String, u64>),
    /// A read of its configuration file. Unreadable: Warden did not write the file.
    File(Reading<Rendered>),
}
