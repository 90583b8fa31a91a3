//! The upgrade from Warden 0.1, whose tree did not distinguish namespaces. The agent copies the records of 0.1 into its
//! own tree. It keeps the fence records of both trees the same while an agent of 0.1 is registered in the old one.
//!
//! The agents that are registered in the old tree show whose it is: one of them has our system identifier, and none
//! another. Otherwise the agent copies nothing, and the log says so. The old tree is never removed. Every agent of this
//! version does all of it, in small steps that others may take as well ([`mirror`]).

mod mirror;

use crate::client::zookeeper::{Handle as ZooKeeper, Place, Trees, Znode};
use crate::znode::audit::Entry;
use mirror::{Known, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use warden_core::types::Zxid;

/// The time limit of one request to ZooKeeper. A healthy one takes milliseconds.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// The pauses between two comparisons of the trees, before jitter: while both are in use, after a change, and while
/// there is nothing to do.
const COMPARE_INTERVAL: Duration = Duration::from_millis(500);
const COMPARE_INTERVAL_AFTER_CHANGE: Duration = Duration::from_millis(20);
const COMPARE_INTERVAL_IDLE: Duration = Duration::from_secs(5);
const _: () = assert!(COMPARE_INTERVAL_AFTER_CHANGE.as_millis() < COMPARE_INTERVAL.as_millis());
const _: () = assert!(COMPARE_INTERVAL.as_millis() < COMPARE_INTERVAL_IDLE.as_millis());

/// After more changes in a row than this the agent uses the longer pause: another client changes the records all the
/// time.
const CONSECUTIVE_CHANGES_MAX: u32 = 20;

/// The pause after a failure, before jitter. It doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(200);
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

/// An obstacle is logged when it has lasted this long. An agent of 0.1 that has just started does not know its server's
/// identifier yet, and ZooKeeper may be away for a moment.
const OBSTACLE_GRACE: Duration = Duration::from_secs(10);

/// The number of entries of the audit trail that one round copies.
const AUDIT_BATCH: usize = 32;

/// The number of entries that the audit trail keeps.
const AUDIT_KEPT: usize = 200;
const _: () = assert!(AUDIT_BATCH <= AUDIT_KEPT);

/// The agent remembers at most this many log messages, and logs no further ones.
const LOGGED_MAX: usize = 512;

/// The remedy if nothing is copied.
const REMEDY: &str = "run `warden fence` again for each member that is to stay fenced";

/// ZooKeeper, as this actor needs it: the two trees.
pub trait Store {
    /// Reads both trees.
    fn read(&self) -> impl Future<Output = Result<Trees, String>> + Send;
    /// Reads entries of the audit trail of 0.1.
    fn read_audit(&self, names: Vec<String>) -> impl Future<Output = Result<Vec<(String, Vec<u8>)>, String>> + Send;
    /// Writes a znode, or removes it (`None`). `false` if the znode is not the one that was `found`.
    fn replace(
        &self,
        place: Place,
        data: Option<Vec<u8>>,
        found: Option<Znode>,
    ) -> impl Future<Output = Result<bool, String>> + Send;
}

impl Store for ZooKeeper {
    async fn read(&self) -> Result<Trees, String> {
        self.read_trees(REQUEST_LIMIT).await
    }

    async fn read_audit(&self, names: Vec<String>) -> Result<Vec<(String, Vec<u8>)>, String> {
        self.read_old_audit(names, REQUEST_LIMIT).await
    }

    async fn replace(&self, place: Place, data: Option<Vec<u8>>, found: Option<Znode>) -> Result<bool, String> {
        ZooKeeper::replace(self, place, data, found, REQUEST_LIMIT).await
    }
}

/// The content of `<our tree>/upgrade`. Numbers are ZooKeeper's transactions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Notes {
    /// The cluster for which the records of 0.1 were copied.
    system_identifier: String,
    /// The last entry of the audit trail of 0.1 that was copied.
    audit: String,
    /// The czxids of the folders of the fence records, in the tree of 0.1 and in ours.
    folders: (Option<i64>, Option<i64>),
    /// By member, the mzxids of its records in both trees when they were last the same.
    records: BTreeMap<String, (i64, i64)>,
}

/// The state of the upgrade, by the agents that are registered in the tree of 0.1.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// There is nothing to do.
    Idle,
    /// An agent of 0.1 is registered, and the tree is that of the cluster with this identifier.
    Both(String),
    /// The agents of another cluster use the same tree.
    Mixed,
    /// There are records to copy, and the reason why they are not copied.
    Blocked(&'static str),
    /// ZooKeeper refuses our credentials there.
    Refused(String),
}

/// The result of one comparison.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    Idle,
    Same,
    Changed,
}

/// The messages that were logged, and the start of an obstacle.
#[derive(Default)]
struct Memory {
    logged: BTreeSet<String>,
    both: bool,
    obstacle_since: Option<Instant>,
}

impl Memory {
    /// Whether this message is logged for the first time.
    fn is_new(&mut self, message: String) -> bool {
        self.logged.len() < LOGGED_MAX && self.logged.insert(message)
    }

    /// Whether an obstacle has lasted long enough to be logged.
    fn obstacle_lasts(&mut self) -> bool {
        self.obstacle_since.get_or_insert_with(Instant::now).elapsed() >= OBSTACLE_GRACE
    }

    /// Logs the start and the end of the mirroring.
    fn note_both(&mut self, both: bool) {
        if both && !self.both {
            tracing::info!(
                event = "upgrade_mirror_started",
                "the agent keeps fence records the same in both trees: an agent of Warden 0.1 is registered"
            );
        }
        if !both && self.both {
            tracing::info!(
                event = "upgrade_mirror_stopped",
                "the agent leaves the tree of Warden 0.1 unchanged: no agent of Warden 0.1 is registered"
            );
        }
        self.both = both;
    }
}

/// Compares the trees again and again, until the agent shuts down.
pub async fn run(store: &impl Store) -> anyhow::Result<()> {
    let (mut memory, mut pause, mut changes) = (Memory::default(), RETRY_PAUSE_MIN, 0);
    loop {
        let done = round(store, &mut memory).await;
        changes = if done == Ok(Round::Changed) { changes + 1 } else { 0 };
        let wait = match &done {
            Ok(Round::Idle) => COMPARE_INTERVAL_IDLE,
            Ok(Round::Changed) if changes < CONSECUTIVE_CHANGES_MAX => COMPARE_INTERVAL_AFTER_CHANGE,
            Ok(Round::Changed | Round::Same) => COMPARE_INTERVAL,
            Err(_) => pause,
        };
        match done {
            Ok(_) => pause = RETRY_PAUSE_MIN,
            Err(why) => {
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
                tracing::debug!(why, "the agent cannot compare its tree with that of Warden 0.1 yet");
                if memory.both && memory.obstacle_lasts() && memory.is_new(why.clone()) {
                    tracing::warn!(
                        event = "upgrade_mirror_failed",
                        why,
                        "the agent cannot keep fence records the same for the agents of Warden 0.1"
                    );
                }
            }
        }
        sleep(wait.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

/// Compares the two trees once, and copies.
async fn round(store: &impl Store, memory: &mut Memory) -> Result<Round, String> {
    let trees = store.read().await?;
    let notes = notes(&trees);
    let stage = stage(&trees, &notes);
    memory.note_both(matches!(stage, Stage::Both(_)));
    let old = trees.old.as_deref().unwrap_or_default();
    let why = match stage {
        Stage::Both(identifier) => {
            let done = copy(store, &trees, notes, &identifier, memory).await?;
            memory.obstacle_since = None;
            return Ok(done);
        }
        Stage::Idle => {
            memory.obstacle_since = None;
            return Ok(Round::Idle);
        }
        Stage::Refused(why) => {
            if memory.is_new(why.clone()) {
                tracing::info!(
                    event = "upgrade_copy_refused",
                    why,
                    "the agent copies nothing from {old}: ZooKeeper refuses the agent's credentials there"
                );
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
        Stage::Blocked(why) => why,
    };
    if memory.obstacle_lasts() && memory.is_new(why.to_owned()) {
        let fenced = fenced_by_operator(&trees);
        tracing::warn!(
            event = "upgrade_copy_blocked",
            old,
            fenced,
            why,
            remedy = REMEDY,
            "the agent does not copy the records of Warden 0.1"
        );
    }
    Ok(Round::Idle)
}

const SEVERAL: &str = "agents of several clusters have used that tree";
const ANOTHER: &str = "only agents of another cluster are registered there";
const UNMATCHED: &str = "no agent of 0.1 there shows this cluster's system identifier";
const NO_AGENT: &str = "no agent of 0.1 is registered there to show whose the records are";

/// The fields of an agent's record that the upgrade needs.
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
        return if copied || nothing { Stage::Idle } else { Stage::Blocked(NO_AGENT) };
    }
    let identifiers = agents.iter().filter_map(|agent| agent.sees.postgres.as_ref()?.system_identifier.as_deref());
    let (ours, others): (Vec<&str>, Vec<&str>) = identifiers.partition(|identifier| *identifier == cluster);
    match (ours.is_empty(), others.is_empty()) {
        _ if trees.shared => Stage::Mixed,
        // Another cluster's agents are there, and ours have used the tree.
        (ours, false) if !ours || copied => Stage::Mixed,
        (_, false) => Stage::Blocked(ANOTHER),
        (true, true) if !copied => Stage::Blocked(UNMATCHED),
        (_, true) => Stage::Both(cluster),
    }
}

/// The notes of the upgrade. Unreadable notes count as absent, and then no removal is copied.
fn notes(trees: &Trees) -> Notes {
    let Some(state) = &trees.state else { return Notes::default() };
    serde_json::from_slice(&state.data).unwrap_or_else(|error| {
        tracing::error!(
            event = "upgrade_notes_unreadable",
            %error,
            "the agent cannot read its notes of the upgrade from Warden 0.1 and starts new ones"
        );
        Notes::default()
    })
}

/// The members that the operator has fenced in the tree of 0.1, for the log.
fn fenced_by_operator(trees: &Trees) -> String {
    let records = trees.old_fences.records.iter();
    let operator = |data: &[u8]| {
        let record = crate::znode::fence::parse(data);
        record.is_ok_and(|record| record.rule == warden_core::event::Rule::Operator)
    };
    let members: Vec<&str> =
        records.filter(|(_, znode)| operator(&znode.data)).map(|(member, _)| member.as_str()).collect();
    members.join(", ")
}

/// Copies the records that differ, and notes the others once none differs.
///
/// A note is about both trees as a whole. A folder that was removed meanwhile must not look like one whose records
/// were.
async fn copy(
    store: &impl Store,
    trees: &Trees,
    notes: Notes,
    identifier: &str,
    memory: &mut Memory,
) -> Result<Round, String> {
    let (old, ours) = (&trees.old_fences, &trees.fences);
    let notes = if notes.system_identifier == identifier { notes } else { Notes::default() };
    let is_same = |then: Option<i64>, now: Option<i64>| now.is_some() && then == now;
    let known = Known {
        identifier,
        old_folder_is_same: is_same(notes.folders.0, old.czxid),
        our_folder_is_same: is_same(notes.folders.1, ours.czxid),
    };
    let (mut differs, mut records) = (false, BTreeMap::new());
    let members: BTreeSet<&String> = old.records.keys().chain(ours.records.keys()).collect();
    for member in members {
        let (old_record, our_record) = (old.records.get(member), ours.records.get(member));
        let pair = notes.records.get(member).map(|(old, ours)| (Zxid(*old), Zxid(*ours)));
        match mirror::decide(member, known, pair, old_record, our_record) {
            Outcome::Same => {
                let same = old_record.zip(our_record).map(|(old, ours)| (member.clone(), (old.mzxid, ours.mzxid)));
                records.extend(same);
            }
            Outcome::Write { place, data } => {
                let found = if matches!(place, Place::OldFence(_)) { old_record } else { our_record };
                tracing::debug!(member, ?place, removes = data.is_none(), "the agent copies a fence record");
                store.replace(place, data, found.cloned()).await?;
                differs = true;
            }
            Outcome::Skipped(why) => {
                let old = trees.old.as_deref().unwrap_or_default();
                if memory.is_new(format!("{member} {why}")) {
                    tracing::error!(
                        event = "upgrade_fence_record_skipped",
                        old,
                        member,
                        why,
                        remedy = REMEDY,
                        "the agent does not copy a fence record"
                    );
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
        tracing::info!(
            event = "upgrade_records_copied",
            from,
            fences,
            entries = trees.audit.len(),
            "the agent has copied the records of Warden 0.1"
        );
    }
    Ok(if more || !written { Round::Changed } else { Round::Same })
}

/// Copies the next entries of the audit trail of 0.1 after the entry `last`. Returns the last entry that was copied,
/// and whether there are more. Names begin with `0.1`, so that they come before ours, and every agent uses the same
/// ones.
async fn copy_audit(
    store: &impl Store,
    trees: &Trees,
    last: &str,
    memory: &mut Memory,
) -> Result<(String, bool), String> {
    let newest = trees.audit.get(trees.audit.len().saturating_sub(AUDIT_KEPT)..).unwrap_or_default();
    let mut names = newest.iter().filter(|name| name.starts_with("e-") && name.as_str() > last);
    let batch: Vec<String> = names.by_ref().take(AUDIT_BATCH).cloned().collect();
    let (more, Some(reached)) = (names.next().is_some(), batch.last().cloned()) else {
        return Ok((last.to_owned(), false));
    };
    for (name, data) in store.read_audit(batch).await? {
        if let Err(why) = Entry::parse(&data) {
            if memory.is_new(format!("{name} {why}")) {
                tracing::error!(
                    event = "upgrade_audit_entry_skipped",
                    entry = name,
                    why,
                    "the agent does not copy an entry of the audit trail of Warden 0.1"
                );
            }
            continue;
        }
        let name = name.replacen("e-", "0.1-", 1);
        // If the znode exists, another agent has copied the entry.
        store.replace(Place::Audit(name), Some(data), None).await?;
    }
    Ok((reached, more))
}

#[cfg(test)]
mod tests;
