//! Reports: the outcomes of actions. The actor that carried out an action sends its report.

use super::Rule;
use crate::haproxy::file::RenderReport;
use crate::haproxy::{HoldReport, RouteReport};
use crate::types::MemberName;
use alloc::string::String;
use core::time::Duration;

/// The outcome of an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A fence.
    Fence(FenceReport),
    /// A release of the leader key.
    Release(ReleaseReport),
    /// A nudge of the local Patroni.
    Nudged(Outcome),
    /// An attempt to have the local standby connect to its primary again.
    Reconnected(Outcome),
    /// A command to a server of HAProxy.
    Routed(RouteReport),
    /// A hold of new connections for writes.
    Hold(HoldReport),
    /// An attempt to write HAProxy's configuration file.
    Rendered(RenderReport),
}

/// The outcome of an ordered fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceReport {
    /// The member with the fenced server.
    pub member: MemberName,
    /// The rule that ordered it.
    pub rule: Rule,
    /// The outcome.
    pub outcome: FenceOutcome,
}

/// The outcome of a fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceOutcome {
    /// A new session was refused, or the server is in recovery.
    Confirmed {
        /// The step of the ladder that stopped the server.
        by: &'static str,
        /// From the order to the confirmation.
        took: Duration,
    },
    /// A shutdown statement is queued at a silent server, which runs it first when it resumes.
    Waiting,
    /// The check right before the act failed. The text gives the reason.
    Withdrawn(String),
    /// It failed. The text gives the reason. The agent orders it again while the rule asks for it.
    Failed(String),
    /// Mode `observe`: the agent only logged and counted it.
    Observed,
}

impl FenceOutcome {
    /// The name in metrics and in the audit trail.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Confirmed { .. } => "confirmed",
            Self::Waiting => "waiting",
            Self::Withdrawn(_) => "withdrawn",
            Self::Failed(_) => "failed",
            Self::Observed => "observed",
        }
    }
}

/// The outcome of an ordered release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReleaseReport {
    /// The leader key is deleted.
    Done {
        /// From the order to the deletion.
        took: Duration,
    },
    /// The check right before the act failed. The text gives the reason.
    Withdrawn(String),
    /// It failed. The text gives the reason.
    Failed(String),
    /// Mode `observe`: the agent only logged and counted it.
    Observed,
}

/// The outcome of an action that the agent takes once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It worked.
    Done,
    /// It failed. The text gives the reason.
    Failed(String),
    /// Mode `observe`: the agent only logged and counted it.
    Observed,
}

impl Outcome {
    /// The name in metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed(_) => "failed",
            Self::Observed => "observed",
        }
    }
}
