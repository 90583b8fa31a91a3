//! Events from the local HAProxy.

use crate::fact::Reading;
use crate::haproxy::HaproxyAnswer;
use crate::haproxy::file::Rendered;

/// An answer of the local HAProxy, or a read of its configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HaproxyEvent {
    /// The answer of its runtime socket.
    Answered(HaproxyAnswer),
    /// A read of its configuration file. Unreadable: Warden did not write the file.
    File(Reading<Rendered>),
}
