//! The vocabulary of plans: what the operator leaves to us, what can be done, and what the view remembers of it.

use crate::event::{AgentRecord, Rule, Started, TermMemory};
use crate::haproxy::file::Layout;
use crate::rules::fence::{Held, Order};
use crate::rules::release::{Release, ReleasePolicy};
use crate::rules::route::{Change, RoutePolicy};
use crate::types::{MemberName, Mode, Moment};
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
    pub fencing: Mode,
    /// When a leader key may be released.
    pub release: ReleasePolicy,
    /// Patroni may be woken.
    pub nudge: bool,
    /// What becomes of the rules of routing.
    pub routing: Mode,
    /// The limits of routing.
    pub route: RoutePolicy,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            verify_every: Duration::from_secs(2),
            announce_every: Duration::from_secs(2),
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

/// What should be done now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// What is not done, and why: for people only.
    pub notes: Vec<Note>,
    /// When to decide again even if nothing happens.
    pub wake: Moment,
}

/// What is not done now, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// A fence that a rule asks for, and that something unknown keeps it from.
    FenceHeld(Held),
    /// A fence that was ordered before, by this rule.
    FenceOrdered(MemberName, Rule),
    /// The rules of fencing look again at this moment.
    FencingLooksAgain(Moment),
    /// A leader's death, or that a candidate has everything, is being proved.
    ReleaseProves {
        /// The candidate is asked.
        candidate: bool,
    },
    /// The leader key is not released; the text says why.
    ReleaseHeld(String),
    /// Patroni was nudged, and is nudged again at this moment.
    NudgedAgain(Moment),
    /// New connections for writes are held already.
    HoldGoesOn,
    /// HAProxy's configuration is written at this moment, if its members stay as they are.
    RenderLater(Moment),
    /// The rules of fencing are not asked: the mode is off.
    FencingIsOff,
    /// The rules of routing are not asked: the mode is off.
    RoutingIsOff,
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
    /// Say that the key would have been released.
    ObserveRelease(Box<Release>),
    /// Wake the local Patroni.
    Nudge,
    /// Say that Patroni would have been woken.
    ObserveNudge,
    /// Tell the local standby to try again to stream.
    Reconnect,
    /// Say that the local standby would have been told to.
    ObserveReconnect,
    /// Keep this of the present term on disk.
    Keep(TermMemory),
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
            Self::Release(_) | Self::ObserveRelease(_) => Started::Release,
            Self::Nudge | Self::ObserveNudge => Started::Nudge,
            Self::Reconnect | Self::ObserveReconnect => Started::Reconnect,
            Self::Keep(memory) => Started::Keep(memory.clone()),
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
    pub(crate) fn step(&mut self, action: Action, reason: impl Into<String>) {
        self.steps.push(Step { action, reason: reason.into() });
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
