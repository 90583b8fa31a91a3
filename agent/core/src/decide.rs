//! What should be done, as a pure function of what is believed.
//!
//! The plan verifies, announces and keeps the session timeout equal to Patroni's ttl. The rules that act on the
//! world are modules beside this one ([`crate::fence`], [`crate::release`], [`crate::nudge`], [`crate::reconnect`],
//! [`crate::route`], [`crate::layout`]); what is in here is only when what they say is ordered, and when again.

use crate::event::{AgentRecord, FenceOutcome, HaproxyAnswer, HaproxyServer, PostgresAnswer, Rule, Server, Started};
use crate::fact::Reading;
use crate::fence::{self, Order};
use crate::haproxy::Change;
use crate::layout::{self, Layout};
use crate::release::{self, Release, ReleasePolicy};
use crate::route::{self, RoutePolicy};
use crate::types::{MemberName, Moment};
use crate::view::{Link, View};
use crate::{assess, nudge, reconnect};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
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

/// A barrier read that has not come back after this long is not coming: the read itself is limited to 2 s.
const VERIFICATION_LOST: Duration = Duration::from_secs(3);

/// A failed barrier read is not repeated sooner than this.
const VERIFICATION_PAUSE: Duration = Duration::from_millis(500);

/// A new ttl is taken over after this: Patroni's nodes do it within moments.
const TTL_SETTLES: Duration = Duration::from_secs(5);

/// Changes of our own znode are held together for this long, so that a burst costs one write.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(100);

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

/// A fence that is under way is not ordered again sooner than this: its own ladder takes less.
const FENCE_LOST: Duration = Duration::from_secs(12);

/// A fence that did not work is ordered again after this.
const FENCE_PAUSE: Duration = Duration::from_millis(500);

/// A fence that waits in front of a silent server is renewed this often; each is good for twice as long, so that
/// one that is no longer wanted is soon none.
pub const FENCE_RENEWED: Duration = Duration::from_secs(5);

/// A record that was removed is looked for again after this.
const CLOSE_PAUSE: Duration = Duration::from_secs(2);

/// What would be fenced is said this often while the reason lasts.
const OBSERVED_AGAIN: Duration = Duration::from_secs(60);

/// Decides. Total: any view, any policy, any moment.
pub fn decide(view: &View, policy: &Policy, now: Moment) -> Plan {
    let mut plan = Plan { steps: Vec::new(), wake: now.plus(policy.verify_every) };
    if let Link::Connected { session, .. } = &view.link {
        if let Some(due) = session_timeout(view, session.requested, now) {
            plan.consider(due, now);
        }
        plan.consider(verification(view, policy, now), now);
        plan.consider(announcement(view, policy, now), now);
    }
    fencing(view, policy, now, &mut plan);
    releasing(view, policy, now, &mut plan);
    if policy.nudge {
        match nudge::judge(view, now) {
            nudge::Due::Nudge(reason) => plan.steps.push(Step { action: Action::Nudge, reason }),
            nudge::Due::Later(at) => plan.consider(Due::At(at), now),
            nudge::Due::NoReason => {}
        }
        match reconnect::judge(view, now) {
            reconnect::Due::Reconnect(reason) => plan.steps.push(Step { action: Action::Reconnect, reason }),
            reconnect::Due::Ask => {
                let reason = "whether it receives WAL is to be known".to_string();
                plan.steps.push(Step { action: Action::Probe { others: false }, reason });
            }
            reconnect::Due::Later(at) => plan.consider(Due::At(at), now),
            reconnect::Due::NoReason => {}
        }
    }
    routing(view, policy, now, &mut plan);
    plan
}

fn routing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    if policy.routing == Fencing::Off {
        return;
    }
    let routing = route::judge(view, &policy.route, now);
    if let Some(at) = routing.again {
        plan.consider(Due::At(at), now);
    }
    let mut hold = routing.hold.filter(|_| policy.routing == Fencing::Enforce);
    // They wait before anything is changed, and go on when all of it is.
    if let Some((_, reason)) = hold.take_if(|(on, _)| *on) {
        plan.steps.push(Step { action: Action::Hold { on: true }, reason });
    }
    for change in routing.changes {
        let (reason, change) = (change.reason.clone(), Box::new(change));
        if policy.routing == Fencing::Enforce {
            plan.steps.push(Step { action: Action::Route(change), reason });
            continue;
        }
        let told = view.routing.told.get(&(change.pool, change.server.clone()));
        if told.is_none_or(|(told, at)| *told != change.to || now.since(*at) >= OBSERVED_AGAIN) {
            plan.steps.push(Step { action: Action::ObserveRoute(change), reason });
        }
    }
    if let Some((_, reason)) = hold {
        plan.steps.push(Step { action: Action::Hold { on: false }, reason });
    }
    // What is only observed is not written either; the file is read once the agent enforces.
    if policy.routing == Fencing::Enforce {
        match layout::judge(view, now) {
            Ok((layout, reason)) => plan.steps.push(Step { action: Action::Render(layout), reason }),
            Err(Some(at)) => plan.consider(Due::At(at), now),
            Err(None) => {}
        }
    }
    if routing.look && policy.routing == Fencing::Enforce {
        let reason = "writes have nowhere to go, or are about to".to_string();
        plan.steps.push(Step { action: Action::Look, reason });
    }
}

fn fencing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    if policy.fencing == Fencing::Off {
        return;
    }
    let verdict = fence::judge(view, now);
    if let Some(at) = verdict.look_again {
        plan.consider(Due::At(at), now);
    }
    for order in verdict.orders {
        let next = next_fence(view, &order.member, policy, now);
        if now < next {
            plan.consider(Due::At(next), now);
            continue;
        }
        let reason = order.reason.clone();
        let order = Box::new(order);
        let action =
            if policy.fencing == Fencing::Enforce { Action::Fence(order) } else { Action::ObserveFence(order) };
        plan.steps.push(Step { action, reason });
    }
    if let Some(step) = closing(view, now) {
        plan.steps.push(step);
    }
}

/// When a fence of `member` may be ordered, at the earliest.
fn next_fence(view: &View, member: &MemberName, policy: &Policy, now: Moment) -> Moment {
    let Some(ordered) = view.leadership.ordered.get(member) else { return now };
    if policy.fencing == Fencing::Observe {
        return ordered.at.plus(OBSERVED_AGAIN);
    }
    match &ordered.outcome {
        None => ordered.at.plus(FENCE_LOST),
        Some((FenceOutcome::Observed, _, _)) => ordered.at.plus(OBSERVED_AGAIN),
        // It woke and takes writes: what waited in front of it was lost, with the session that it lay in (simulation,
        // seed 713982).
        Some((FenceOutcome::Waiting, _, at)) if writable_since(view, member, *at) => now,
        Some((FenceOutcome::Waiting, _, _)) => ordered.at.plus(FENCE_RENEWED),
        // It takes writes again, or the rule would not ask for it.
        Some((FenceOutcome::Confirmed { .. }, _, _)) => now,
        Some((FenceOutcome::Failed(_) | FenceOutcome::Withdrawn(_), _, at)) => at.plus(FENCE_PAUSE),
    }
}

/// Whether the member's server was asked after `at` and takes writes.
fn writable_since(view: &View, member: &MemberName, at: Moment) -> bool {
    let answer = view.members.get(member).and_then(|known| known.postgres.as_ref());
    answer.is_some_and(|answer| answer.at > at && matches!(answer.value, PostgresAnswer::Writable(_)))
}

/// Our own fence is over when the server is in recovery or leads again; what a person asked for stays.
fn closing(view: &View, now: Moment) -> Option<Step> {
    let own = view.identity.member.as_ref()?;
    if view.leadership.closed.is_some_and(|at| now.since(at) < CLOSE_PAUSE) {
        return None;
    }
    let record = view.leadership.records.get(own)?.value.present().filter(|record| record.rule != Rule::Operator)?;
    let known = fence::verified(view, now)?;
    let postgres = view.members.get(own)?.postgres.as_ref()?.fresh(now, assess::PROBE_LIMIT)?;
    let reason = match (postgres, known.leader.present()) {
        (PostgresAnswer::InRecovery(_), _) => format!("{own} is in recovery"),
        (PostgresAnswer::Writable(_), Some(key)) if key.holder == *own => format!("{own} leads"),
        _ => return None,
    };
    let reason = format!("{reason}: the fence by rule {} is over", record.rule.as_str());
    Some(Step { action: Action::CloseFence(own.clone()), reason })
}

fn releasing(view: &View, policy: &Policy, now: Moment, plan: &mut Plan) {
    match release::judge(view, &policy.release, now) {
        release::Due::Nothing => {}
        release::Due::Probe { others } => {
            let reason =
                if others { "a candidate is to be seen to have everything" } else { "its death is to be proved" };
            plan.steps.push(Step { action: Action::Probe { others }, reason: reason.to_string() });
        }
        release::Due::At(at) => plan.consider(Due::At(at), now),
        release::Due::Release(release) => {
            let reason = release.reason.clone();
            plan.steps.push(Step { action: Action::Release(Box::new(release)), reason });
        }
    }
}

/// A step, or the moment at which there may be one.
enum Due {
    /// To be done, and to be considered again at this moment if nothing comes of it.
    Now(Step, Moment),
    At(Moment),
}

impl Plan {
    fn consider(&mut self, due: Due, now: Moment) {
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

/// The session timeout is Patroni's ttl, so that what the server grants us is what it grants Patroni.
///
/// A change has every Patroni begin a new session, and the leader's key goes with its old one: until that is over, we
/// have to see what comes of it (simulation, seed 303891).
fn session_timeout(view: &View, requested: Duration, now: Moment) -> Option<Due> {
    let ttl = view.cluster.config().map(|config| config.ttl).filter(|ttl| *ttl != requested)?;
    if let Some(at) = view.leadership.ttl_changed.map(|at| at.plus(TTL_SETTLES)).filter(|at| now < *at) {
        return Some(Due::At(at));
    }
    let reason = format!("ttl in Patroni's configuration is {} s", ttl.as_secs());
    Some(Due::Now(Step { action: Action::UseSessionTimeout(ttl), reason }, now.plus(TTL_SETTLES)))
}

fn verification(view: &View, policy: &Policy, now: Moment) -> Due {
    let verify = |reason: &str| {
        let step = Step { action: Action::Verify, reason: reason.to_string() };
        Due::Now(step, now.plus(VERIFICATION_LOST))
    };
    let finished = view.verified.as_ref().map(|known| known.started);
    let failed = view.barrier_failed.as_ref().map(|failed| failed.at);
    let Some(asked) = view.verification_asked else { return verify("new session") };
    let answered = finished.max(failed).is_some_and(|at| at >= asked);
    if !answered {
        let lost = asked.plus(VERIFICATION_LOST);
        return if now >= lost { verify("no answer to the last attempt") } else { Due::At(lost) };
    }
    if failed > finished {
        let next = asked.plus(VERIFICATION_PAUSE);
        return if now >= next { verify("the last attempt failed") } else { Due::At(next) };
    }
    let changed = match (&view.verified, &view.leader) {
        (Some(known), Some(leader)) => leader.at > known.started && leader.value != known.leader,
        _ => false,
    };
    if changed {
        return verify("the leader key changed");
    }
    let next = asked.plus(policy.verify_every);
    if now >= next { verify("periodic") } else { Due::At(next) }
}

fn announcement(view: &View, policy: &Policy, now: Moment) -> Due {
    let announce = |reason: &str| {
        let step = Step { action: Action::Announce(Box::new(own_record(view, now))), reason: reason.to_string() };
        Due::Now(step, now.plus(policy.announce_every))
    };
    let Some((announced, at)) = &view.announced else { return announce("new session") };
    if now.since(*at) >= policy.announce_every {
        return announce("periodic");
    }
    if same_news(view, announced) {
        return Due::At(at.plus(policy.announce_every));
    }
    let next = at.plus(ANNOUNCE_PAUSE);
    if now >= next { announce("something changed") } else { Due::At(next) }
}

/// What we have to say of ourselves and of our neighbour.
fn own_record(view: &View, now: Moment) -> AgentRecord {
    let identity = &view.identity;
    let postgres = identity
        .member
        .as_ref()
        .and_then(|name| view.members.get(name)?.postgres.as_ref())
        .map(|fact| (fact.value.clone(), fact.age(now)));
    AgentRecord {
        version: identity.version.clone(),
        roles: identity.roles.clone(),
        address: identity.address.clone(),
        member: identity.member.clone(),
        leader: view.leader.as_ref().and_then(|fact| fact.value.present()).map(|key| key.holder.clone()),
        postgres,
        alive_lock: view.alive_lock.as_ref().map(|fact| fact.value.clone()),
        haproxy: view.haproxy.as_ref().map(|fact| (fact.value.clone(), fact.age(now))),
    }
}

/// Whether what we have to say is what was announced, but for what changes all the time: ages, positions and counters
/// can wait for the next round. Asked at each decision, so nothing is copied for it.
fn same_news(view: &View, announced: &AgentRecord) -> bool {
    let AgentRecord { version, roles, address, member, leader, postgres, alive_lock, haproxy } = announced;
    let identity = &view.identity;
    let answer = identity.member.as_ref().and_then(|name| view.members.get(name)?.postgres.as_ref());
    let holder = view.leader.as_ref().and_then(|fact| fact.value.present()).map(|key| &key.holder);
    *version == identity.version
        && *roles == identity.roles
        && *address == identity.address
        && *member == identity.member
        && leader.as_ref() == holder
        && match (answer, postgres) {
            (Some(now), Some((then, _))) => same_answer(&now.value, then),
            (now, then) => now.is_none() && then.is_none(),
        }
        && alive_lock.as_ref() == view.alive_lock.as_ref().map(|fact| &fact.value)
        && match (&view.haproxy, haproxy) {
            (Some(now), Some((then, _))) => same_servers(&now.value, then),
            (now, then) => now.is_none() && then.is_none(),
        }
}

fn same_answer(now: &PostgresAnswer, then: &PostgresAnswer) -> bool {
    match (now, then) {
        (PostgresAnswer::Writable(now), PostgresAnswer::Writable(then))
        | (PostgresAnswer::InRecovery(now), PostgresAnswer::InRecovery(then)) => {
            let Server { timeline, lsn: _, system_id, archiver, receives: _ } = now;
            let archivers = match (archiver, &then.archiver) {
                (Some(now), Some(then)) => now.failing == then.failing,
                (now, then) => now.is_none() && then.is_none(),
            };
            *timeline == then.timeline && *system_id == then.system_id && archivers
        }
        (now, then) => now == then,
    }
}

fn same_servers(now: &HaproxyAnswer, then: &HaproxyAnswer) -> bool {
    match (now, then) {
        (HaproxyAnswer::Servers(now), HaproxyAnswer::Servers(then)) => {
            let same = |(now, then): (&HaproxyServer, &HaproxyServer)| {
                let HaproxyServer { pool, name, address, member, status, up, sessions: _ } = now;
                *pool == then.pool
                    && *name == then.name
                    && *address == then.address
                    && *member == then.member
                    && *status == then.status
                    && *up == then.up
            };
            now.len() == then.len() && now.iter().zip(then).all(same)
        }
        (now, then) => now == then,
    }
}

/// The leader's name in a reading, for log lines: the holder, `nobody` or `unreadable`.
pub fn holder_text(reading: &Reading<crate::event::LeaderKey>) -> &str {
    match reading {
        Reading::Present(key) => key.holder.as_str(),
        Reading::Absent => "nobody",
        Reading::Unreadable(_) => "unreadable",
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
