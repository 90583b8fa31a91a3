//! Started actions. The view remembers them, so that `decide` does not order them again at once.

use super::{AgentRecord, TermMemory};
use crate::haproxy::{ServerCommand, ServerId};
use crate::types::MemberName;
use alloc::boxed::Box;
use alloc::string::String;

/// The start of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// A barrier read was requested.
    Verification,
    /// This record goes to the agent's own znode.
    Announcement(Box<AgentRecord>),
    /// A fence was ordered.
    Fence(MemberName),
    /// The fence record of the local member was removed.
    CloseFence,
    /// This record goes to disk.
    Keep(TermMemory),
    /// The agent asks the local PostgreSQL at once, before the next regular question.
    Probe,
    /// The agent asks HAProxy and every PostgreSQL at once, before the next regular question.
    ProbeHaproxy,
    /// The agent rewrites HAProxy's configuration file.
    Render,
    /// A hold of new connections for writes was ordered, or its end.
    Hold {
        /// The proxy.
        proxy: String,
        /// `true`: hold; `false`: end the hold.
        on: bool,
    },
    /// A command to a server of HAProxy was ordered.
    Route {
        /// The server.
        server: ServerId,
        /// The command.
        to: ServerCommand,
    },
    /// A release was ordered.
    Release,
    /// A nudge was ordered.
    Nudge,
    /// A reconnect of the local standby was ordered.
    Reconnect,
}
