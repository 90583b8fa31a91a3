//! The upgrade from Warden 0.1, whose tree did not tell namespaces apart: copies its records into ours, and keeps the
//! fence records of both the same while an agent of 0.1 is registered there.
//!
//! Whose that tree is, is told by the agents that are registered in it: one of them has to show our system identifier,
//! and none another. Otherwise nothing is copied, and the log says so. The old tree is never removed. Every agent of this
//! version does all of it, in small steps that others may take as well (`act/mirror.rs`).

use super::mirror::{self, Known, Outcome};
use crate::audit::Entry;
use crate::watch::zookeeper::{Handle as ZooKeeper, Place, Trees, Znode};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use warden_core::types::Zxid;

/// One request to ZooKeeper: a healthy one takes milliseconds.
const REQUEST: Duration = Duration::from_secs(2);

/// The trees are compared this often, all with jitter: while both are in use, after a change, and while nothing is to
/// be done.
const IN_USE: Duration = Duration::from_millis(500);
const AFTER_CHANGE: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_secs(5);

/// So many looks in a row may follow a change at once. With more, something else changes the records all the time.
const MOST_CHANGES: u32 = 20;

/// Pause after a failure: doubled from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What keeps from copying is said when it has lasted this long: an agent of 0.1 that has just started does not know
/// its server's identifier yet, and ZooKeeper may be away for a moment.
const GRACE: Duration = Duration::from_secs(10);

/// Entries of the audit trail that are copied at once, and that are kept at all.
const ENTRIES: usize = 32;
const AUDIT_KEPT: usize = 200;

/// More different things than this are not remembered as said.
const MOST_SAID: usize = 512;

/// What to do where nothing is copied.
const REMEDY: &str = "run `warden fence` again for each member that is to stay fenced";

/// The two trees.
pub trait Store {
    /// Reads both.
    fn read(&self) -> impl Future<Output = Result<Trees, String>> + Send;
    /// Reads entries of 0.1's audit trail.
    fn read_audit(&self, names: Vec<String>) -> impl Future<Output = Result<Vec<(String, Vec<u8>)>, String>> + Send;
    /// Writes, or without data removes; `false` if what is there is not what was `found`.
    fn replace(
        &self,
        place: Place,
        data: Option<Vec<u8>>,
        found: Option<Znode>,
    ) -> impl Future<Output = Result<bool, String>> + Send;
}

impl Store for ZooKeeper {
    async fn read(&self) -> Result<Trees, String> {
        self.read_trees(REQUEST).await
    }

    async fn read_audit(&self, names: Vec<String>) -> Result<Vec<(String, Vec<u8>)>, String> {
        self.read_old_audit(names, REQUEST).await
    }

    async fn replace(&self, place: Place, data: Option<Vec<u8>>, found: Option<Znode>) -> Result<bool, String> {
        ZooKeeper::replace(self, place, data, found, REQUEST).await
    }
}

/// What is noted in `<our tree>/upgrade`. Numbers are ZooKeeper's transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Notes {
    /// The cluster for which 0.1's records were copied.
    system_identifier: String,
    /// The last entry of 0.1's audit trail that was copied.
    audit: String,
    /// What created the folders of the fence records, in the tree of 0.1 and in ours.
    folders: (Option<i64>, Option<i64>),
    /// By member, what last wrote its record in either when both said the same.
    records: BTreeMap<String, (i64, i64)>,
}

/// What can be done, by what is registered in the tree of 0.1.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// There is nothing to do.
    Idle,
    /// An agent of 0.1 is registered, and the tree is this cluster's.
    Both(String),
    /// The agents of another cluster are there as well; they and ours use one tree.
    Mixed,
    /// There is something to copy, and why it is not copied.
    Kept(&'static str),
    /// The credentials that we have are not good there.
    Refused(String),
}

/// How a look at the trees ended.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    Idle,
    Same,
    Changed,
}

/// What has been said, and since when something cannot be done.
#[derive(Default)]
struct Memory {
    said: BTreeSet<String>,
    both: bool,
    stuck: Option<Instant>,
}

impl Memory {
    /// Whether this is said for the first time.
    fn first(&mut self, what: String) -> bool {
        self.said.len() < MOST_SAID && self.said.insert(what)
    }

    /// Whether something has been in the way for long enough to be said.
    fn lasts(&mut self) -> bool {
        self.stuck.get_or_insert_with(Instant::now).elapsed() >= GRACE
    }

    fn both(&mut self, both: bool) {
        if both && !self.both {
            tracing::info!(
                "the agent keeps fence records the same in both trees: an agent of Warden 0.1 is registered"
            );
        }
        if !both && self.both {
            tracing::info!("the agent leaves the tree of Warden 0.1 as it is: none of its agents is registered");
        }
        self.both = both;
    }
}

/// Keeps at it, for ever.
pub async fn run(store: &impl Store) -> anyhow::Result<()> {
    let (mut memory, mut pause, mut changes) = (Memory::default(), FIRST_PAUSE, 0);
    loop {
        let done = round(store, &mut memory).await;
        changes = if done == Ok(Round::Changed) { changes + 1 } else { 0 };
        let wait = match &done {
            Ok(Round::Idle) => IDLE,
            Ok(Round::Changed) if changes < MOST_CHANGES => AFTER_CHANGE,
            Ok(Round::Changed | Round::Same) => IN_USE,
            Err(_) => pause,
        };
        match done {
            Ok(_) => pause = FIRST_PAUSE,
            Err(why) => {
                pause = (pause * 2).min(LONGEST_PAUSE);
                tracing::debug!(why, "the agent cannot compare its tree with that of Warden 0.1 yet");
                if memory.both && memory.lasts() && memory.first(why.clone()) {
                    tracing::warn!(why, "the agent cannot keep fence records the same for the agents of Warden 0.1");
                }
            }
        }
        sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

/// Compares the two trees once, and writes what follows.
async fn round(store: &impl Store, memory: &mut Memory) -> Result<Round, String> {
    let trees = store.read().await?;
    let notes = notes(&trees);
    let stage = stage(&trees, &notes);
    memory.both(matches!(stage, Stage::Both(_)));
    let old = trees.old.as_deref().unwrap_or_default();
    let why = match stage {
        Stage::Both(identifier) => {
            let done = copy(store, &trees, notes, &identifier, memory).await?;
            memory.stuck = None;
            return Ok(done);
        }
        Stage::Idle => {
            memory.stuck = None;
            return Ok(Round::Idle);
        }
        Stage::Refused(why) => {
            if memory.first(why.clone()) {
                tracing::info!(why, "the agent copies nothing from {old}: it is not this cluster's to read");
            }
            return Ok(Round::Idle);
        }
        Stage::Mixed => {
            if !trees.shared {
                let text =
                    b"Agents of several clusters have used this tree: Warden 0.2 copies nothing from it.".to_vec();
                store.replace(Place::OldShared, Some(text), None).await?;
            }
            SEVERAL
        }
        Stage::Kept(why) => why,
    };
    if memory.lasts() && memory.first(why.to_owned()) {
        let fenced = fenced_by_a_person(&trees);
        tracing::warn!(old, fenced, remedy = REMEDY, "the agent does not copy the records of Warden 0.1: {why}");
    }
    Ok(Round::Idle)
}

const SEVERAL: &str = "agents of several clusters have used that tree";
const ANOTHER: &str = "only agents of another cluster are registered there";
const UNMATCHED: &str = "no agent of 0.1 there shows this cluster's system identifier";
const NO_AGENT: &str = "no agent of 0.1 is registered there to show whose they are";

/// An agent's record, as far as it tells of the upgrade.
#[derive(Deserialize)]
struct Agent {
    version: String,
    sees: Sees,
}

#[derive(Deserialize)]
struct Sees {
    postgres: Option<Postgres>,
}

#[derive(Deserialize)]
struct Postgres {
    system_identifier: Option<String>,
}

fn stage(trees: &Trees, notes: &Notes) -> Stage {
    if let Some(why) = &trees.refused {
        return Stage::Refused(why.clone());
    }
    let of_0_1 = |agent: &Agent| agent.version == "0.1" || agent.version.starts_with("0.1.");
    let agents = trees.agents.iter().filter_map(|data| serde_json::from_slice::<Agent>(data).ok());
    let agents: Vec<Agent> = agents.filter(of_0_1).collect();
    let cluster = trees.cluster.as_ref().map(|znode| String::from_utf8_lossy(&znode.data).trim().to_owned());
    let Some(cluster) = cluster.filter(|identifier| !identifier.is_empty()) else { return Stage::Idle };
    let copied = notes.system_identifier == cluster;
    let nothing = trees.old_fences.records.is_empty() && trees.audit.is_empty();
    if agents.is_empty() {
        return if copied || nothing { Stage::Idle } else { Stage::Kept(NO_AGENT) };
    }
    let identifiers = agents.iter().filter_map(|agent| agent.sees.postgres.as_ref()?.system_identifier.as_deref());
    let (ours, others): (Vec<&str>, Vec<&str>) = identifiers.partition(|identifier| *identifier == cluster);
    match (ours.is_empty(), others.is_empty()) {
        _ if trees.shared => Stage::Mixed,
        // We have used it ourselves.
        (ours, false) if !ours || copied => Stage::Mixed,
        (_, false) => Stage::Kept(ANOTHER),
        (true, true) if !copied => Stage::Kept(UNMATCHED),
        (_, true) => Stage::Both(cluster),
    }
}

/// What was noted of the upgrade. What cannot be read is as if it were not there: then no removal is believed.
fn notes(trees: &Trees) -> Notes {
    let Some(state) = &trees.state else { return Notes::default() };
    serde_json::from_slice(&state.data).unwrap_or_else(|error| {
        tracing::error!(%error, "the agent cannot read its notes of the upgrade from Warden 0.1, and begins new ones");
        Notes::default()
    })
}

/// Whom a person has fenced in the tree of 0.1, for people.
fn fenced_by_a_person(trees: &Trees) -> String {
    let records = trees.old_fences.records.iter();
    let operator = |data: &[u8]| {
        let record = crate::fence_record::parse(data);
        record.is_ok_and(|record| record.rule == warden_core::event::Rule::Operator)
    };
    let members: Vec<&str> =
        records.filter(|(_, znode)| operator(&znode.data)).map(|(member, _)| member.as_str()).collect();
    members.join(", ")
}

/// Copies what differs. What was found the same is noted only once nothing differs: each note is about both trees as a
/// whole, and a folder that was removed meanwhile must not look like one whose records were.
async fn copy(
    store: &impl Store,
    trees: &Trees,
    notes: Notes,
    identifier: &str,
    memory: &mut Memory,
) -> Result<Round, String> {
    let (old, ours) = (&trees.old_fences, &trees.fences);
    let notes = if notes.system_identifier == identifier { notes } else { Notes::default() };
    let stands = |then: Option<i64>, now: Option<i64>| now.is_some() && then == now;
    let known = Known {
        identifier,
        old_stands: stands(notes.folders.0, old.czxid),
        ours_stands: stands(notes.folders.1, ours.czxid),
    };
    let (mut differs, mut records) = (false, BTreeMap::new());
    let members: BTreeSet<&String> = old.records.keys().chain(ours.records.keys()).collect();
    for member in members {
        let (theirs, own) = (old.records.get(member), ours.records.get(member));
        let pair = notes.records.get(member).map(|(theirs, own)| (Zxid(*theirs), Zxid(*own)));
        match mirror::becomes(member, known, pair, theirs, own) {
            Outcome::Same => {
                let same = theirs.zip(own).map(|(theirs, own)| (member.clone(), (theirs.mzxid, own.mzxid)));
                records.extend(same);
            }
            Outcome::Write { place, data } => {
                let found = if matches!(place, Place::OldFence(_)) { theirs } else { own };
                tracing::debug!(member, ?place, removes = data.is_none(), "the agent copies a fence record");
                store.replace(place, data, found.cloned()).await?;
                differs = true;
            }
            Outcome::Left(why) => {
                let old = trees.old.as_deref().unwrap_or_default();
                if memory.first(format!("{member} {why}")) {
                    tracing::error!(old, member, why, remedy = REMEDY, "the agent does not copy a fence record");
                }
            }
        }
    }
    if differs {
        return Ok(Round::Changed);
    }
    let (audit, more) = copy_audit(store, trees, &notes.audit, memory).await?;
    let folders = (old.czxid, ours.czxid);
    let next = Notes { system_identifier: identifier.to_owned(), audit, folders, records };
    if next == notes {
        return Ok(Round::Same);
    }
    let data = serde_json::to_vec(&next).map_err(|error| error.to_string())?;
    let written = store.replace(Place::Upgrade, Some(data), trees.state.clone()).await?;
    if written && notes.system_identifier.is_empty() {
        let (from, fences) = (trees.old.as_deref().unwrap_or_default(), next.records.len());
        tracing::info!(from, fences, entries = trees.audit.len(), "the agent has copied the records of Warden 0.1");
    }
    Ok(if more || !written { Round::Changed } else { Round::Same })
}

/// Copies what came to 0.1's audit trail after the entry `last`, some at a time. Returns what was copied last, and
/// whether there is more. Their names begin with `0.1`, so that they come before ours and every agent gives the same.
async fn copy_audit(
    store: &impl Store,
    trees: &Trees,
    last: &str,
    memory: &mut Memory,
) -> Result<(String, bool), String> {
    let newest = trees.audit.get(trees.audit.len().saturating_sub(AUDIT_KEPT)..).unwrap_or_default();
    let mut names = newest.iter().filter(|name| name.starts_with("e-") && name.as_str() > last);
    let some: Vec<String> = names.by_ref().take(ENTRIES).cloned().collect();
    let (more, Some(reached)) = (names.next().is_some(), some.last().cloned()) else {
        return Ok((last.to_owned(), false));
    };
    for (name, data) in store.read_audit(some).await? {
        if let Err(why) = Entry::parse(&data) {
            if memory.first(format!("{name} {why}")) {
                tracing::error!(entry = name, why, "the agent does not copy an entry of the audit trail of Warden 0.1");
            }
            continue;
        }
        let name = name.replacen("e-", "0.1-", 1);
        // One that is there was copied by another agent.
        store.replace(Place::Audit(name), Some(data), None).await?;
    }
    Ok((reached, more))
}

#[cfg(test)]
#[path = "upgrade_tests.rs"]
mod tests;
