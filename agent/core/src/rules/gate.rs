//! May the candidate be promoted? The rule of Patroni's `pre_promote` hook: pass, wait, or refuse.
//!
//! The candidate already holds the leader key. It is promoted once no other member can be taking writes. The local
//! agent builds the [`Picture`] from its view; without an agent the gate builds one from ZooKeeper. The gate asks the
//! members that [`judge`] names, and obeys the verdict. Patroni sets no time limit for the hook and keeps its ZooKeeper
//! session alive meanwhile. A refusal costs the candidate a whole ttl. So the gate rarely refuses: for a lost key, an
//! operator's fence, or a server that is writable to the end.

use crate::assess::agent_of;
use crate::event::{FenceRecord, LeaderKey, Rule};
use crate::evidence::{LEASE_MARGIN, Standing, standing};
use crate::fact::Reading;
use crate::types::{MemberName, Mode, Moment, SystemId};
use crate::view::View;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// The age of the candidate's key after which a silent last holder has stopped. It may have taken writes until its
/// lease was over; its own agent stops it [`LEASE_MARGIN`] before that.
pub const LEASE_OVER_AFTER: Duration = Duration::from_secs(5);

/// The gate refuses once another member has held the key for this long and Patroni has not canceled the hook.
pub const LOST_KEY_WAIT_MAX: Duration = Duration::from_secs(5);

const _: () = assert!(LEASE_OVER_AFTER.as_millis() >= LEASE_MARGIN.as_millis());

/// The holder of the leader key, by a linearizable read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The candidate, for this long.
    Own(Duration),
    /// Another member.
    Anothers(MemberName),
    /// No member.
    Absent,
}

/// The facts about the cluster that the gate needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// The candidate.
    pub own: MemberName,
    /// The leader key.
    pub key: Key,
    /// Maintenance mode.
    pub paused: bool,
    /// The reason of the operator's fence of the candidate, if there is one.
    pub fenced_by_operator: Option<String>,
    /// The cluster's system identifier. A server with another one is of another cluster.
    pub system_id: Option<SystemId>,
    /// The other members.
    pub others: Vec<Other>,
}

impl Picture {
    /// Whether the gate has to read ZooKeeper itself. The agent's view of the fence records follows watches, which may
    /// be late. An operator's fence that was taken back by now would cost the candidate a whole ttl.
    pub const fn wants_zookeeper(&self) -> bool {
        self.fenced_by_operator.is_some()
    }
}

/// Another member, before the gate asks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its name.
    pub name: MemberName,
    /// Host and port of its PostgreSQL; `None` if it has none.
    pub place: Option<(String, u16)>,
    /// Its server's state by its own agent, its Patroni, or this agent's session.
    pub standing: Standing,
    /// Whether it held the leader key before the candidate's server was promoted; `None` if unknown.
    pub last_holder: Option<bool>,
    /// Whether a valid record of its fence, or of the release of its key, exists: later than every read in which it
    /// held the key.
    pub recorded: bool,
}

/// The result of asking a member's server over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It takes no writes of this cluster. The port has no listener, it is in recovery, it is another database, or the
    /// gate stopped it. The text gives the case.
    Harmless(String),
    /// It takes writes, and the gate could not stop it yet. The text gives the reason.
    Writable(String),
    /// It is shutting down and accepts no session.
    Stopping,
    /// It accepts no session yet, and does not report whether it is a standby.
    Starting,
    /// No answer.
    Silent,
    /// It answers, and rejects the login. The text gives the reason.
    NoLogin(String),
}

/// The memory of one run of the gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// When the run began.
    pub started: Moment,
    /// Since when the gate has seen the candidate hold the key.
    pub own_since: Option<Moment>,
    /// Since when the gate has seen another member hold the key.
    pub lost_since: Option<Moment>,
    /// By member: the last result, and whether it was writable in this run.
    pub asked: BTreeMap<MemberName, (Found, bool)>,
}

impl Memory {
    /// The memory at the start of a run.
    pub const fn new(started: Moment) -> Self {
        Self { started, own_since: None, lost_since: None, asked: BTreeMap::new() }
    }

    /// Notes the result of asking `member`.
    pub fn note(&mut self, member: &MemberName, found: Found) {
        let wrote = self.asked.get(member).is_some_and(|(_, wrote)| *wrote) || matches!(found, Found::Writable(_));
        self.asked.insert(member.clone(), (found, wrote));
    }

    /// Notes the holder of the key.
    pub fn note_key(&mut self, key: &Key, now: Moment) {
        self.own_since = matches!(key, Key::Own(_)).then(|| self.own_since.unwrap_or(now));
        self.lost_since = matches!(key, Key::Anothers(_)).then(|| self.lost_since.unwrap_or(now));
    }
}

/// The verdict on a promotion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Promote.
    Pass,
    /// Wait. The gate asks these members again, and fences those that take writes. The texts give the reasons.
    Wait(Vec<(MemberName, String)>),
    /// Do not promote. The text gives the reason.
    Refuse(String),
}

/// The obstacle to a promotion at one member.
enum Obstacle {
    /// Nothing.
    None,
    /// The gate waits for it. At the end of the wait it lets the candidate pass.
    PassAtEnd(String),
    /// The gate waits for it. At the end of the wait it refuses the candidate.
    RefuseAtEnd(String),
}

/// Applies the mode to a verdict. The text is the verdict that `observe` prevents.
pub fn obey(mode: Mode, verdict: Verdict) -> (Verdict, Option<String>) {
    match (mode, verdict) {
        (Mode::Enforce, verdict) => (verdict, None),
        (Mode::Off, _) | (Mode::Observe, Verdict::Pass) => (Verdict::Pass, None),
        (Mode::Observe, Verdict::Refuse(why)) => (Verdict::Pass, Some(format!("would refuse: {why}"))),
        (Mode::Observe, Verdict::Wait(waits)) if waits.is_empty() => {
            (Verdict::Pass, Some("would wait until Patroni cancels it: the leader key is lost".to_string()))
        }
        (Mode::Observe, Verdict::Wait(waits)) => {
            let each = |(name, why): &(MemberName, String)| format!("{name} {why}");
            let waits = waits.iter().map(each).collect::<Vec<_>>().join("; ");
            (Verdict::Pass, Some(format!("would wait: {waits}")))
        }
    }
}

/// Judges the promotion. `wait` is the longest duration of the run.
pub fn judge(picture: &Picture, memory: &Memory, wait: Duration, now: Moment) -> Verdict {
    // In maintenance mode the operator decides.
    if picture.paused {
        return Verdict::Pass;
    }
    let ends = now.since(memory.started) >= wait;
    let own = &picture.own;
    let age = match &picture.key {
        Key::Own(age) => memory.own_since.map_or(*age, |since| now.since(since).max(*age)),
        // Patroni's HA loop also notices the loss, and cancels the hook without the cost of a refusal.
        Key::Anothers(holder) => {
            let long = memory.lost_since.is_some_and(|since| now.since(since) >= LOST_KEY_WAIT_MAX);
            let why = format!("{holder} holds the leader key, and not {own}");
            return if long || ends { Verdict::Refuse(why) } else { Verdict::Wait(Vec::new()) };
        }
        Key::Absent => {
            let why = format!("{own} has lost the leader key");
            return if ends { Verdict::Refuse(why) } else { Verdict::Wait(Vec::new()) };
        }
    };
    if let Some(why) = &picture.fenced_by_operator {
        return Verdict::Refuse(why.clone());
    }
    let mut waits = Vec::new();
    for other in &picture.others {
        match obstacle(other, memory.asked.get(&other.name), age) {
            Obstacle::None => {}
            Obstacle::RefuseAtEnd(why) if ends => return Verdict::Refuse(format!("{} {why}", other.name)),
            Obstacle::PassAtEnd(_) if ends => {}
            Obstacle::RefuseAtEnd(why) | Obstacle::PassAtEnd(why) => waits.push((other.name.clone(), why)),
        }
    }
    if waits.is_empty() { Verdict::Pass } else { Verdict::Wait(waits) }
}

/// The obstacle to a promotion at `other`: it may still take writes. `age` is the age of the candidate's key.
fn obstacle(other: &Other, asked: Option<&(Found, bool)>, age: Duration) -> Obstacle {
    if matches!(other.standing, Standing::Standby(_)) || other.place.is_none() {
        return Obstacle::None;
    }
    let Some((found, wrote)) = asked else { return Obstacle::PassAtEnd("has not been asked yet".to_string()) };
    // It was seen writable, or its state is unknown and it held the key last.
    let may_write = match other.standing {
        Standing::Writable | Standing::WasWritable => true,
        Standing::Unknown | Standing::Standby(_) => *wrote || other.last_holder != Some(false),
    };
    let for_the_lease = |why: &str| {
        if may_write && age < LEASE_OVER_AFTER {
            Obstacle::PassAtEnd(format!("{why}, until its lease is over"))
        } else {
            Obstacle::None
        }
    };
    match found {
        Found::Harmless(_) => Obstacle::None,
        Found::Writable(why) => Obstacle::RefuseAtEnd(format!("takes writes: {why}")),
        Found::Starting if may_write => Obstacle::RefuseAtEnd("is starting, and was the primary".to_string()),
        Found::Starting => Obstacle::None,
        Found::NoLogin(why) if other.standing == Standing::Writable => {
            Obstacle::RefuseAtEnd(format!("takes writes, and rejects the gate's login: {why}"))
        }
        Found::NoLogin(why) => for_the_lease(&format!("rejects the gate's login ({why})")),
        // Neither accepts a session, so a valid record suffices.
        Found::Stopping | Found::Silent if other.recorded => Obstacle::None,
        // A recent report shows it writable. Silence towards the gate does not refute that.
        Found::Silent if *wrote || other.standing == Standing::Writable => {
            Obstacle::PassAtEnd("took writes and is silent now".to_string())
        }
        Found::Silent => for_the_lease("does not answer"),
        Found::Stopping => for_the_lease("is shutting down"),
    }
}

/// The picture of the candidate `own`; `None` if no linearizable read that started at `asked` or later shows the holder
/// of the key.
pub fn picture(view: &View, own: &MemberName, asked: Moment, now: Moment) -> Option<Picture> {
    let own = own.clone();
    let session = view.session()?.id;
    let known = view.verified.as_ref().filter(|known| known.session == session && known.started >= asked)?;
    let key = match &known.leader {
        Reading::Present(key) if key.holder == own => {
            // The key may be older than the agent's first read of it. The real age is then larger, which is safe.
            let since = view.leadership.term.as_ref().filter(|term| term.czxid == key.czxid);
            Key::Own(since.map_or(Duration::ZERO, |term| now.since(term.since)))
        }
        Reading::Present(key) => Key::Anothers(key.holder.clone()),
        Reading::Absent => Key::Absent,
        Reading::Unreadable(_) => return None,
    };
    let paused = known.config.present()?.pause;
    let fence = view.leadership.records.get(&own).and_then(|record| record.value.present());
    let fenced_by_operator = fence.filter(|record| record.rule == Rule::Operator).map(|record| {
        format!("{own} was fenced by {} ({}); take it back with: warden unfence {own}", record.by, record.reason)
    });
    let others = view.members.iter().filter(|(name, _)| **name != own).map(|(name, member)| Other {
        name: name.clone(),
        place: member.last_record.as_ref().and_then(crate::event::MemberRecord::postgres),
        standing: standing(view, name, now),
        last_holder: last_holder(view, name, &known.leader),
        recorded: recorded(view, name),
    });
    let system_id = view.cluster.initialize.as_ref().and_then(|fact| fact.value.present()).copied();
    Some(Picture { key, paused, fenced_by_operator, system_id, others: others.collect(), own })
}

/// Whether a member held the leader key before the candidate's server was last promoted; `None` if unknown.
fn last_holder(view: &View, name: &MemberName, leader: &Reading<LeaderKey>) -> Option<bool> {
    let term = view.leadership.term.as_ref();
    // A crashed primary that keeps its key has passed the gate under this key before.
    let promoted = term.zip(leader.present()).is_some_and(|(term, key)| term.was_writable && term.czxid == key.czxid);
    if promoted {
        return Some(false);
    }
    view.leadership.previous_holder.as_ref().map(|last| last == name)
}

/// Whether a valid record of a member's fence, or of the release of its key, exists. It has to be later than every
/// linearizable read in which the member held the key. The key's czxid does not count, because it can come back.
///
/// The member's own agent reports that read. Otherwise this agent knows it, if its session began before the record was
/// written.
pub fn recorded(view: &View, member: &MemberName) -> bool {
    let record = view.leadership.records.get(member).and_then(|record| record.value.present());
    let Some(FenceRecord { confirmed: Some(_), written: Some((written, _)), .. }) = record else { return false };
    let held = view.leadership.key_held_at.get(member);
    if held.is_some_and(|held| held >= written) {
        return false;
    }
    let announced = agent_of(view, member).and_then(|(_, fact)| fact.value.present()?.held);
    match announced {
        Some(held) => held < *written,
        None => view.leadership.connected_from.is_some_and(|from| from <= *written),
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
