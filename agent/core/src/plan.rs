//! The vocabulary of plans: what the operator leaves to us, what can be done, and what the view remembers of it.

use crate::event::{AgentRecord, Started};
use crate::haproxy::Change;
use crate::haproxy::file::Layout;
use crate::rules::fence::Order;
use crate::rules::release::{Release, ReleasePolicy};
use crate::rules::route::RoutePolicy;
use crate::types::{MemberName, Moment};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// What the operator leaves to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// A barrier read at least this often.
    pub verify_every: Duration,
    /// Our own znode is written at least this often.
    pub announce_every: Duration,
    /// What becomes of the rules of fencing.
    pub fencing: Fencing,
    /// When a leader key may be released.
    pub release: ReleasePolicy,
    /// Patroni may be woken.
    pub nudge: bool,
    /// What becomes of the rules of routing.
    pub routing: Fencing,
    /// The limits of routing.
    pub route: RoutePolicy,
}

/// What becomes of the rules of fencing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// They are carried out.
    Enforce,
    /// It is said and counted what would have been done.
    Observe,
    /// They are not asked.
    Off,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            verify_every: Duration::from_secs(2),
            announce_every: Duration::from_secs(2),
            fencing: Fencing::Enforce,
            release: ReleasePolicy {
                enabled: false,
                handover: false,
                after: Duration::from_millis(50),
                patroni_is_pid_1: false,
            },
            nudge: false,
            routing: Fencing::Enforce,
            route: RoutePolicy::default(),
        }
    }
}

/// What should be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// When to decide again even if nothing happens.
    pub wake: Moment,
}

/// One thing to do, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub action: Action,
    /// Why, for people.
    pub reason: String,
}

/// What can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read the leader znode behind a barrier.
    Verify,
    /// Write our own znode.
    Announce(Box<AgentRecord>),
    /// Ask ZooKeeper for this session timeout from now on.
    UseSessionTimeout(Duration),
    /// Stop a server that must not take writes any more.
    Fence(Box<Order>),
    /// Say what would have been fenced.
    ObserveFence(Box<Order>),
    /// Remove our own fence record: what it stood for is over.
    CloseFence(MemberName),
    /// Ask the local PostgreSQL now and not when its turn comes; and the others' too, where a candidate has to be seen
    /// to have everything.
    Probe {
        /// The others too.
        others: bool,
    },
    /// Delete the leader key that our dead neighbour holds.
    Release(Box<Release>),
    /// Wake the local Patroni.
    Nudge,
    /// Tell the local standby to try again to stream.
    Reconnect,
    /// Ask HAProxy and the members now and not when their turn comes.
    Look,
    /// Tell HAProxy to hold new connections for writes for a moment, whatever its checks say; or to let them go on.
    Hold {
        /// To hold them.
        on: bool,
    },
    /// Tell HAProxy which of its servers take connections.
    Route(Box<Change>),
    /// Say what HAProxy would have been told.
    ObserveRoute(Box<Change>),
    /// Write HAProxy's configuration anew, of these members, and have it reloaded.
    Render(Layout),
}

impl Action {
    /// What the view has to remember once this has been handed over.
    pub fn started(&self) -> Option<Started> {
        Some(match self {
            Self::Verify => Started::Verification,
            Self::Announce(announced) => Started::Announcement(announced.clone()),
            Self::UseSessionTimeout(_) => return None,
            Self::Fence(order) | Self::ObserveFence(order) => Started::Fence(order.member.clone()),
            Self::CloseFence(_) => Started::CloseFence,
            Self::Probe { .. } => Started::Probe,
            Self::Release(_) => Started::Release,
            Self::Nudge => Started::Nudge,
            Self::Reconnect => Started::Reconnect,
            Self::Look => Started::Look,
            Self::Render(_) => Started::Render,
            Self::Hold { on } => Started::Hold { on: *on },
            Self::Route(change) | Self::ObserveRoute(change) => {
                Started::Route { pool: change.pool, server: change.server.clone(), to: change.to }
            }
        })
    }
}

/// A step, or the moment at which there may be one.
pub(crate) enum Due {
    /// To be done, and to be considered again at this moment if nothing comes of it.
    Now(Step, Moment),
    At(Moment),
}

impl Plan {
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
