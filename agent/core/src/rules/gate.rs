//! May the candidate be promoted? The rule of Patroni's `pre_promote` hook: pass, wait, or refuse.
//!
//! The candidate holds the leader key already. It is promoted once no other member can be taking writes. `warden gate`
//! draws the [`Picture`] (its agent does, from the view), asks the members that [`judge`] names, and obeys the verdict.
//! Patroni sets no limit to the hook and keeps its ZooKeeper session alive meanwhile; a refusal costs the candidate a
//! whole ttl. So the gate refuses only for a server that answers as writable to the end, and for a lost key.

use crate::assess::agent_of;
use crate::event::{FenceRecord, LeaderKey, Rule};
use crate::evidence::{MARGIN, Standing, standing};
use crate::fact::Reading;
use crate::types::{MemberName, Mode, Moment, SystemId};
use crate::view::View;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// A silent last holder may have taken writes until its lease was over. Its own agent stops it [`MARGIN`]
/// before that, so this long after our key was created it has stopped.
pub const LEASE_IS_OVER: Duration = Duration::from_secs(5);

/// Another member has held the key for this long, and Patroni has not cancelled the hook: then the gate refuses.
pub const LOST_KEY: Duration = Duration::from_secs(5);

const _: () = assert!(LEASE_IS_OVER.as_millis() >= MARGIN.as_millis());

/// Who holds the leader key, by a linearizable read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// The candidate, for this long.
    Own(Duration),
    /// Another member.
    Anothers(MemberName),
    /// No member.
    Nobody,
}

/// The cluster as the gate has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// The candidate.
    pub own: MemberName,
    /// The leader key.
    pub key: Key,
    /// Maintenance mode.
    pub paused: bool,
    /// Why the operator fenced the candidate, if so.
    pub fenced_by_operator: Option<String>,
    /// The cluster's system identifier: a server with another one is not the cluster's.
    pub system_id: Option<SystemId>,
    /// The other members.
    pub others: Vec<Other>,
}

impl Picture {
    /// Whether an agent's picture is not enough: its view of the records follows ZooKeeper by watches, which may be late,
    /// and a fence that the operator has taken back by now would cost the candidate a whole ttl. The gate looks itself.
    pub const fn wants_zookeeper(&self) -> bool {
        self.fenced_by_operator.is_some()
    }
}

/// Another member, as it is known before the gate asks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its name.
    pub name: MemberName,
    /// Host and port of its PostgreSQL; `None` where it has none.
    pub place: Option<(String, u16)>,
    /// What its own agent, its Patroni or our own session says of it.
    pub standing: Standing,
    /// It held the leader key before the candidate's server was promoted; `None` where that is not known.
    pub last_holder: Option<bool>,
    /// A record that counts: its fence, or the release of its key, came after every read in which it held the key.
    pub recorded: bool,
}

/// What came of asking a member's server over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It takes no writes of this cluster: no process listens, it is in recovery, it is another database, or it was stopped
    /// from here. The text says which.
    Harmless(String),
    /// It takes writes, and could not be stopped yet; the text says why.
    Writable(String),
    /// It is shutting down: it opens no session.
    Stopping,
    /// It opens no session yet, and does not tell whether it is a standby.
    Starting,
    /// No answer.
    Silent,
    /// It answers, and does not let us in; the text says why.
    NoLogin(String),
}

/// What the gate remembers while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// When it began.
    pub started: Moment,
    /// Since when the candidate has held the key, as far as the gate has seen.
    pub own_since: Option<Moment>,
    /// Since when another member has held the key.
    pub lost_since: Option<Moment>,
    /// What came of asking each member last, and whether it was writable in this run.
    pub asked: BTreeMap<MemberName, (Found, bool)>,
}

impl Memory {
    /// The memory of a gate that begins.
    pub const fn new(started: Moment) -> Self {
        Self { started, own_since: None, lost_since: None, asked: BTreeMap::new() }
    }

    /// Takes in what came of asking `member`.
    pub fn note(&mut self, member: &MemberName, found: Found) {
        let wrote = self.asked.get(member).is_some_and(|(_, wrote)| *wrote) || matches!(found, Found::Writable(_));
        self.asked.insert(member.clone(), (found, wrote));
    }

    /// Takes in who holds the key.
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
    /// Not yet. These members are to be asked (again), and fenced where they take writes; the texts say why.
    Wait(Vec<(MemberName, String)>),
    /// Do not promote; the text says why.
    Refuse(String),
}

/// What holds a promotion up at one member.
enum Doubt {
    /// Nothing.
    None,
    /// It is waited for; at the end the candidate passes.
    Passing(String),
    /// It is waited for; at the end the candidate is refused.
    Lasting(String),
}

/// What the mode makes of a verdict, and what would have been done otherwise.
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

/// Judges. `wait` is how long the gate may take in all.
pub fn judge(picture: &Picture, memory: &Memory, wait: Duration, now: Moment) -> Verdict {
    // Maintenance mode is the operator's own business.
    if picture.paused {
        return Verdict::Pass;
    }
    let ends = now.since(memory.started) >= wait;
    let own = &picture.own;
    let age = match &picture.key {
        Key::Own(age) => memory.own_since.map_or(*age, |since| now.since(since).max(*age)),
        // Patroni's own loop sees the loss too, and cancels the hook without the penalty of a refusal.
        Key::Anothers(holder) => {
            let long = memory.lost_since.is_some_and(|since| now.since(since) >= LOST_KEY);
            let why = format!("{holder} holds the leader key, and not {own}");
            return if long || ends { Verdict::Refuse(why) } else { Verdict::Wait(Vec::new()) };
        }
        Key::Nobody => {
            let why = format!("{own} has lost the leader key");
            return if ends { Verdict::Refuse(why) } else { Verdict::Wait(Vec::new()) };
        }
    };
    if let Some(why) = &picture.fenced_by_operator {
        return Verdict::Refuse(why.clone());
    }
    let mut waits = Vec::new();
    for other in &picture.others {
        match doubt(other, memory.asked.get(&other.name), age) {
            Doubt::None => {}
            Doubt::Lasting(why) if ends => return Verdict::Refuse(format!("{} {why}", other.name)),
            Doubt::Passing(_) if ends => {}
            Doubt::Lasting(why) | Doubt::Passing(why) => waits.push((other.name.clone(), why)),
        }
    }
    if waits.is_empty() { Verdict::Pass } else { Verdict::Wait(waits) }
}

/// Whether `other` may still take writes. `age` is that of the candidate's key.
fn doubt(other: &Other, asked: Option<&(Found, bool)>, age: Duration) -> Doubt {
    if matches!(other.standing, Standing::Standby(_)) || other.place.is_none() {
        return Doubt::None;
    }
    let Some((found, wrote)) = asked else { return Doubt::Passing("has not been asked yet".to_string()) };
    // Seen writable, or unknown and the last holder of the key.
    let may_write = match other.standing {
        Standing::Writable | Standing::WasWritable => true,
        Standing::Unknown | Standing::Standby(_) => *wrote || other.last_holder != Some(false),
    };
    let for_the_lease = |why: &str| {
        if may_write && age < LEASE_IS_OVER {
            Doubt::Passing(format!("{why}, until its lease is over"))
        } else {
            Doubt::None
        }
    };
    match found {
        Found::Harmless(_) => Doubt::None,
        Found::Writable(why) => Doubt::Lasting(format!("takes writes: {why}")),
        Found::Starting if may_write => Doubt::Lasting("is starting, and was the primary".to_string()),
        Found::Starting => Doubt::None,
        Found::NoLogin(why) if other.standing == Standing::Writable => {
            Doubt::Lasting(format!("takes writes, and does not let the gate in: {why}"))
        }
        Found::NoLogin(why) => for_the_lease(&format!("does not let the gate in ({why})")),
        // Neither opens a session, so a record may stand in.
        Found::Stopping | Found::Silent if other.recorded => Doubt::None,
        Found::Silent if *wrote => Doubt::Passing("took writes and has fallen silent".to_string()),
        Found::Silent => for_the_lease("does not answer"),
        Found::Stopping => for_the_lease("is shutting down"),
    }
}

/// The picture of the candidate `own`; `None` where no linearizable read that was started at `asked` or later says who
/// holds the key.
pub fn picture(view: &View, own: &MemberName, asked: Moment, now: Moment) -> Option<Picture> {
    let own = own.clone();
    let session = view.session()?.id;
    let known = view.verified.as_ref().filter(|known| known.session == session && known.started >= asked)?;
    let key = match &known.leader {
        Reading::Present(key) if key.holder == own => {
            // It may be older than our first sight of it: then it is older than it has to be.
            let since = view.leadership.reign.as_ref().filter(|reign| reign.czxid == key.czxid);
            Key::Own(since.map_or(Duration::ZERO, |reign| now.since(reign.since)))
        }
        Reading::Present(key) => Key::Anothers(key.holder.clone()),
        Reading::Absent => Key::Nobody,
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

/// Whether a member held the leader key before the candidate's server was last promoted; `None` where that is not known.
fn last_holder(view: &View, name: &MemberName, leader: &Reading<LeaderKey>) -> Option<bool> {
    let reign = view.leadership.reign.as_ref();
    // A primary that crashed and keeps its key: the gate has let it pass under this key before.
    let promoted = reign.zip(leader.present()).is_some_and(|(reign, key)| reign.wrote && reign.czxid == key.czxid);
    if promoted {
        return Some(false);
    }
    view.leadership.previous_holder.as_ref().map(|last| last == name)
}

/// Whether there is a record of a member's fence, or of the release of its key, that counts: written later than every
/// linearizable read in which the member held the key, whatever the key's czxid, which can come back.
///
/// The member's own agent says when that was; or we know it, if our session began before the record was written.
pub fn recorded(view: &View, member: &MemberName) -> bool {
    let record = view.leadership.records.get(member).and_then(|record| record.value.present());
    let Some(FenceRecord { confirmed: Some(_), written: Some((written, _)), .. }) = record else { return false };
    let held = view.leadership.held.get(member);
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
