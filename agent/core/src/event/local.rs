//! Events of the local node. Only the agent beside it sees them.

use super::{AliveLock, ShutdownCheckpoint};
use crate::fact::Reading;
use crate::types::Zxid;
use alloc::string::String;

/// A fact from the agent's own node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalEvent {
    /// The agent looked at the alive lock of the local Patroni.
    AliveLock(AliveLock),
    /// The shutdown checkpoint from the control file of the local PostgreSQL, read while its socket had no listener.
    /// Absent: the server was not shut down cleanly. The agent also reads the file when a session begins, to see that
    /// it can be read.
    ShutDown(Reading<ShutdownCheckpoint>),
    /// The state of the fence session.
    FenceSession(FenceSession),
    /// The agent's record of its member's leader term from before a restart. The agent reads it once, at the start.
    Remembered(TermMemory),
}

/// The record of its member's leader term that an agent keeps on disk across restarts. It counts only in the same
/// leader term and the same boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TermMemory {
    /// The transaction that created the leader key of that term.
    pub czxid: Zxid,
    /// Patroni answered in that leader term.
    pub answered: bool,
    /// The agent saw Patroni hold the alive lock in that leader term, while Patroni answered.
    pub lock_was_held: bool,
}

/// The fence session: the superuser session that the agent keeps open for a fence of the local PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceSession {
    /// It is open: a fence needs only one statement.
    Ready,
    /// It is closed, so a fence has to connect first. The text gives the reason.
    Lost(String),
}
