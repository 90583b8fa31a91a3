//! Plans: the operator's policy, the steps and notices, and what the view remembers of them.

use crate::event::{AgentRecord, FenceOutcome, FenceReport, Outcome, ReleaseReport, Report, Rule, Started, TermMemory};
use crate::haproxy::file::Backends;
use crate::haproxy::{RouteOutcome, RouteReport};
use crate::limits::{AGENT_LIMIT, BARRIER_LIMIT};
use crate::rules::fence::{HeldFence, Order};
use crate::rules::release::{Release, ReleasePolicy};
use crate::rules::route::{Change, RoutePolicy};
use crate::types::{MemberName, Mode, Moment};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// The operator's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The longest interval between barrier reads.
    pub verify_every: Duration,
    /// The longest interval between writes of the agent's znode.
    pub announce_every: Duration,
    /// The mode of the fence rules.
    pub fencing: Mode,
    /// The policy of releases.
    pub release: ReleasePolicy,
    /// Whether the agent may nudge Patroni and reconnect the standby.
    pub nudge: bool,
    /// The mode of the routing rules.
    pub routing: Mode,
    /// The limits of routing.
    pub route: RoutePolicy,
}

/// The default interval between barrier reads.
const VERIFY_INTERVAL: Duration = Duration::from_secs(2);

/// The default interval between writes of the agent's znode.
pub(crate) const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(2);

const _: () = assert!(VERIFY_INTERVAL.as_millis() < BARRIER_LIMIT.as_millis());

// A record may be one interval old, its facts another one, and a lost watch costs a second.
const _: () = assert!(2 * ANNOUNCE_INTERVAL.as_secs() < AGENT_LIMIT.as_secs());

impl Default for Policy {
    fn default() -> Self {
        Self {
            verify_every: VERIFY_INTERVAL,
            announce_every: ANNOUNCE_INTERVAL,
            fencing: Mode::Enforce,
            release: ReleasePolicy {
                enabled: false,
                asynchronous: None,
                handover: false,
                after: Duration::from_millis(50),
                patroni_is_pid_1: false,
            },
            nudge: false,
            routing: Mode::Enforce,
            route: RoutePolicy::default(),
        }
    }
}

/// The result of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The steps to carry out, in this order.
    pub steps: Vec<Step>,
    /// The notices for readers. They reach no actor.
    pub notices: Vec<Notice>,
    /// When to decide again without a new event.
    pub wake: Moment,
}

/// A notice for readers, without an action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Mode `observe` prevents this action.
    Observed(Observation),
    /// A rule asks for a fence, and an obstacle prevents it.
    FenceHeld(HeldFence),
    /// A fence by this rule was ordered before.
    FenceOrdered(MemberName, Rule),
    /// The fence rules judge again at this moment.
    FencingLooksAgain(Moment),
    /// The agent gathers the proofs for a release.
    ReleaseProves {
        /// The missing proof is the candidate's position.
        candidate: bool,
    },
    /// The agent does not release the leader key. The text gives the reason.
    ReleaseHeld(String),
    /// The agent nudged Patroni, and nudges it again at this moment.
    NudgedAgain(Moment),
    /// The hold of new connections for writes continues.
    HoldGoesOn,
    /// The agent rewrites HAProxy's configuration at this moment, if the members do not change before.
    RenderLater(Moment),
    /// The mode of the fence rules is `off`.
    FencingIsOff,
    /// The mode of the routing rules is `off`.
    RoutingIsOff,
}

/// An action that mode `observe` prevents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A fence.
    Fence(Box<Order>),
    /// A release of the leader key.
    Release(Box<Release>),
    /// A nudge of the local Patroni, and why.
    Nudge(String),
    /// A reconnect of the local standby, and why.
    Reconnect(String),
    /// A command to a server of HAProxy.
    Route(Box<Change>),
}

impl Observation {
    /// The start and the report that the view remembers, as of an action that was carried out.
    pub fn remembered(&self) -> (Started, Report) {
        match self {
            Self::Fence(order) => {
                let (member, rule) = (order.member.clone(), order.rule);
                let report = FenceReport { member: member.clone(), rule, outcome: FenceOutcome::Observed };
                (Started::Fence(member), Report::Fence(report))
            }
            Self::Release(_) => (Started::Release, Report::Release(ReleaseReport::Observed)),
            Self::Nudge(_) => (Started::Nudge, Report::Nudged(Outcome::Observed)),
            Self::Reconnect(_) => (Started::Reconnect, Report::Reconnected(Outcome::Observed)),
            Self::Route(change) => {
                let Change { pool, server, member, to, .. } = &**change;
                let (server, outcome) = (server.clone(), RouteOutcome::Observed);
                let report =
                    RouteReport { pool: *pool, server: server.clone(), member: member.clone(), to: *to, outcome };
                (Started::Route { server, to: *to }, Report::Routed(report))
            }
        }
    }
}

/// An action with its reason. The queue of an actor holds only its kind of action.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step<A = Action> {
    /// The action.
    pub action: A,
    /// The reason, for readers.
    pub reason: String,
}

/// The actions, by actor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// On Warden's own znodes and session.
    ZooKeeper(ZooKeeperAction),
    /// Stop a server that must not take writes.
    Fence(Box<Order>),
    /// Remove the local member's fence record: its reason has ended.
    CloseFence(MemberName),
    /// Delete the local member's leader key.
    Release(Box<Release>),
    /// On the local Patroni and its standby.
    Local(LocalAction),
    /// Write this record of the present term to disk.
    Keep(TermMemory),
    /// Ask at once, before the next regular question.
    Ask(Ask),
    /// On the servers of HAProxy.
    Servers(ServersAction),
    /// Write HAProxy's configuration file with these members, and make HAProxy load it.
    Render(Backends),
}

/// Actions on Warden's own znodes and session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ZooKeeperAction {
    /// Make a barrier read of the leader znode.
    Verify,
    /// Write the agent's own znode.
    Announce(Box<AgentRecord>),
    /// Request this session timeout from ZooKeeper.
    UseSessionTimeout(Duration),
}

/// Actions on the local Patroni and its standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalAction {
    /// Wake the local Patroni.
    Nudge,
    /// Make the local standby try again to stream.
    Reconnect,
}

/// The targets of an immediate question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The local PostgreSQL.
    Local,
    /// The local PostgreSQL and the others: the candidate's position is the missing proof.
    LocalAndOthers,
    /// HAProxy and every PostgreSQL.
    HaproxyAndMembers,
}

/// Actions on the servers of HAProxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServersAction {
    /// Hold a proxy's new connections for writes, or end the hold.
    Hold {
        /// The proxy.
        proxy: String,
        /// `true`: hold; `false`: end the hold.
        on: bool,
    },
    /// Send a command to a server.
    Route(Box<Change>),
}

impl Action {
    /// The start that the view remembers once an actor's queue has taken the action.
    pub fn started(&self) -> Option<Started> {
        Some(match self {
            Self::ZooKeeper(ZooKeeperAction::Verify) => Started::Verification,
            Self::ZooKeeper(ZooKeeperAction::Announce(announced)) => Started::Announcement(announced.clone()),
            Self::ZooKeeper(ZooKeeperAction::UseSessionTimeout(_)) => return None,
            Self::Fence(order) => Started::Fence(order.member.clone()),
            Self::CloseFence(_) => Started::CloseFence,
            Self::Release(_) => Started::Release,
            Self::Local(LocalAction::Nudge) => Started::Nudge,
            Self::Local(LocalAction::Reconnect) => Started::Reconnect,
            Self::Keep(memory) => Started::Keep(memory.clone()),
            Self::Ask(Ask::Local | Ask::LocalAndOthers) => Started::Probe,
            Self::Ask(Ask::HaproxyAndMembers) => Started::ProbeHaproxy,
            Self::Servers(ServersAction::Hold { proxy, on }) => Started::Hold { proxy: proxy.clone(), on: *on },
            Self::Servers(ServersAction::Route(change)) => {
                Started::Route { server: change.server.clone(), to: change.to }
            }
            Self::Render(_) => Started::Render,
        })
    }
}

/// A step that is due, or the moment at which it may be.
pub(crate) enum Due {
    /// Due now. `decide` considers it again at this moment if no event comes before.
    Now(Step, Moment),
    At(Moment),
}

impl Plan {
    pub(crate) fn step(&mut self, action: Action, reason: impl Into<String>) {
        self.steps.push(Step { action, reason: reason.into() });
    }

    pub(crate) fn observe(&mut self, observation: Observation) {
        self.notices.push(Notice::Observed(observation));
    }

    pub(crate) fn consider(&mut self, due: Due, now: Moment) {
        let next = match due {
            Due::Now(step, again) => {
                self.steps.push(step);
                again
            }
            Due::At(moment) => moment,
        };
        self.wake = self.wake.min(next).max(now);
    }
}
