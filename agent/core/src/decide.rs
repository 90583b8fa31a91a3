//! What should be done, as a pure function of what is believed.
//!
//! Nothing in the plan changes Patroni, PostgreSQL or HAProxy yet: it verifies, announces and keeps the
//! session timeout equal to Patroni's ttl. The rules that act on the world (fence, release, nudge, route)
//! become modules beside this one, called from [`decide`].

use crate::event::{AgentRecord, PostgresAnswer};
use crate::fact::Reading;
use crate::types::Moment;
use crate::view::{Link, View};
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
}

impl Default for Policy {
    fn default() -> Self {
        Self { verify_every: Duration::from_secs(2), announce_every: Duration::from_secs(2) }
    }
}

/// A barrier read that has not come back after this long is not coming: the read itself is limited to 2 s.
const VERIFICATION_LOST: Duration = Duration::from_secs(3);

/// A failed barrier read is not repeated sooner than this.
const VERIFICATION_PAUSE: Duration = Duration::from_millis(500);

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
}

/// Decides. Total: any view, any policy, any moment.
pub fn decide(view: &View, policy: &Policy, now: Moment) -> Plan {
    let mut plan = Plan { steps: Vec::new(), wake: now.plus(policy.verify_every) };
    if let Link::Connected { session, .. } = &view.link {
        if let Some(step) = session_timeout(view, session.requested) {
            plan.steps.push(step);
        }
        plan.consider(verification(view, policy, now), now);
        plan.consider(announcement(view, policy, now), now);
    }
    plan
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
fn session_timeout(view: &View, requested: Duration) -> Option<Step> {
    let ttl = view.cluster.config()?.ttl;
    (ttl != requested).then(|| Step {
        action: Action::UseSessionTimeout(ttl),
        reason: format!("ttl in Patroni's configuration is {} s", ttl.as_secs()),
    })
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
    let announce = |reason: &str, record| {
        let step = Step { action: Action::Announce(Box::new(record)), reason: reason.to_string() };
        Due::Now(step, now.plus(policy.announce_every))
    };
    let Some((announced, at)) = &view.announced else { return announce("new session", own_record(view, now)) };
    let due = at.plus(policy.announce_every);
    if now >= due {
        return announce("periodic", own_record(view, now));
    }
    // Before this moment nothing would be announced, whatever has changed: to compare can wait.
    let next = at.plus(ANNOUNCE_PAUSE);
    if now < next {
        return Due::At(next.min(due));
    }
    let record = own_record(view, now);
    if significant(&record) == significant(announced) { Due::At(due) } else { announce("something changed", record) }
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

/// The record without what changes all the time: ages, positions and counters can wait for the next round.
fn significant(record: &AgentRecord) -> AgentRecord {
    let mut record = record.clone();
    if let Some((answer, age)) = &mut record.postgres {
        *age = Duration::ZERO;
        if let PostgresAnswer::Writable(server) | PostgresAnswer::InRecovery(server) = answer {
            server.lsn = None;
            if let Some(archiver) = &mut server.archiver {
                archiver.archived = 0;
                archiver.failed = 0;
            }
        }
    }
    if let Some((answer, age)) = &mut record.haproxy {
        *age = Duration::ZERO;
        if let crate::event::HaproxyAnswer::Servers(servers) = answer {
            for server in servers {
                server.sessions = 0;
            }
        }
    }
    record
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
