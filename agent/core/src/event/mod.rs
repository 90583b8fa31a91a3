//! Events: closed enums that `client/`, `watch/` and `act/` produce, and that the view applies.
//!
//! These are Warden's own types. `client/` converts Patroni's JSON, znodes and HAProxy's text to them. It converts an
//! unknown value to `Unknown` and not to an error.

mod answer;
mod haproxy;
mod local;
mod member;
mod report;
mod started;
mod znode;
mod zookeeper;

pub use crate::haproxy::{HaproxyAnswer, HaproxyServer};
pub use answer::{
    AliveLock, Archiver, PatroniAnswer, PatroniStatus, PostgresAnswer, Role, Server, Starting, State, SuperuserSlots,
};
pub use haproxy::HaproxyEvent;
pub use local::{FenceSession, LocalEvent, TermMemory};
pub use member::MemberEvent;
pub use report::{FenceOutcome, FenceReport, Outcome, ReleaseReport, Report};
pub use started::Started;
pub use znode::{
    AgentRecord, Barrier, ClusterConfig, FailoverRequest, LeaderKey, MemberRecord, ShutdownCheckpoint, SyncState,
    Znode, holder_text,
};
pub use zookeeper::{FenceRecord, Rule, Session, ZooKeeperEvent};

use crate::types::{MemberName, Moment};
use alloc::string::String;

/// An event with the moment of its question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// When the question was asked. An answer is as old as its question.
    pub at: Moment,
    /// The event.
    pub event: Event,
}

/// The events, by source.
#[allow(clippy::large_enum_variant)] // an event is moved twice: into its queue, and from there into the view
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A second has passed.
    Tick,
    /// From the ZooKeeper client.
    ZooKeeper(ZooKeeperEvent),
    /// From a member.
    Member(MemberName, MemberEvent),
    /// From the agent's own node.
    Local(LocalEvent),
    /// From the local HAProxy.
    Haproxy(HaproxyEvent),
    /// An actor reports the outcome of an action.
    Report(Report),
    /// An action was started.
    Started(Started),
    /// A task of the agent failed. The supervisor restarts it.
    TaskFailed {
        /// The task's name.
        task: &'static str,
        /// The task's error.
        error: String,
    },
}

impl Event {
    /// The name in metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Tick => "tick",
            Self::ZooKeeper(event) => match event {
                ZooKeeperEvent::SessionStarted(_) => "session_started",
                ZooKeeperEvent::SessionLost { .. } => "session_lost",
                ZooKeeperEvent::TreeRead { .. } => "tree_read",
                ZooKeeperEvent::Znode(_) => "znode",
                ZooKeeperEvent::Barrier(_) => "barrier",
                ZooKeeperEvent::Agent { .. } => "agent",
                ZooKeeperEvent::NameTaken { .. } => "name_taken",
                ZooKeeperEvent::FenceRecord { .. } => "fence_record",
            },
            Self::Member(_, event) => match event {
                MemberEvent::Patroni(_) => "patroni",
                MemberEvent::Liveness { .. } => "liveness",
                MemberEvent::Postgres { .. } => "postgres",
                MemberEvent::SessionBroke => "session_broke",
                MemberEvent::GateChecked(_) => "gate_checked",
            },
            Self::Local(event) => match event {
                LocalEvent::AliveLock(_) => "alive_lock",
                LocalEvent::ShutDown(_) => "shut_down",
                LocalEvent::FenceSession(_) => "fence_session",
                LocalEvent::Remembered(_) => "remembered",
            },
            Self::Haproxy(event) => match event {
                HaproxyEvent::Answered(_) => "haproxy",
                HaproxyEvent::FrontendsFull(_) => "haproxy_full",
                HaproxyEvent::File(_) => "haproxy_file",
            },
            Self::Report(report) => match report {
                Report::Fence(_) => "fence",
                Report::Release(_) => "release",
                Report::Nudged(_) => "nudged",
                Report::Reconnected(_) => "reconnected",
                Report::Routed(_) => "routed",
                Report::Hold(_) => "hold",
                Report::Rendered(_) => "rendered",
            },
            Self::Started(_) => "started",
            Self::TaskFailed { .. } => "task_failed",
        }
    }
}
