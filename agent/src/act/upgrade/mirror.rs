//! The rule for a member's fence record while it exists in two trees: that of Warden 0.1 and our own. Agents of 0.1
//! read and write the old one. Pure: it takes both records and the note of when they were last the same, and returns
//! the write. `act/upgrade/mod.rs` reads and writes.
//!
//! Every agent does this on its own, and may be interrupted at any point. So each step is right by itself. The agent
//! replaces only the record that it read. A copy says that it is one. Two agents at once come to the same result. A
//! copy equals its original, so that it is never copied back.
//!
//! The last change wins. A removal wins only if it is certain: the records were noted as the same, or the remaining one
//! is a copy, and the other folder has not been replaced since. Between a removal and a change the fence stays. Between
//! an operator's fence and another rule's, the operator's stays. A superfluous fence is seen and taken back; a missing
//! one is not seen.

use crate::client::zookeeper::{Place, Znode};
use crate::znode::fence::{self as fence_record, Copied};
use serde_json::{Map, Value};
use warden_core::event::Rule;
use warden_core::types::{MemberName, Zxid};

/// The mzxids of a record in the tree of 0.1 and in ours, when both were last the same.
pub type Pair = (Zxid, Zxid);

/// The facts beside the two records.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The cluster's system identifier.
    pub identifier: &'a str,
    /// The folder in the tree of 0.1 is the same znode as in the last note.
    pub old_folder_is_same: bool,
    /// Our own folder is the same znode as in the last note.
    pub our_folder_is_same: bool,
}

/// The action for a member's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: both are the same, or there is none.
    Same,
    /// Write or remove one of the records.
    Write {
        /// The znode.
        place: Place,
        /// The new content; `None` removes it.
        data: Option<Vec<u8>>,
    },
    /// Nothing, and why: the agent cannot copy the record.
    Skipped(String),
}

/// A record in one of the two trees.
struct Side {
    json: Map<String, Value>,
    operator: bool,
    mzxid: Zxid,
    copied: Option<Copied>,
    mtime_ms: i64,
}

impl Side {
    fn read(member: &str, znode: &Znode) -> Result<Self, String> {
        let record = fence_record::parse_of(&MemberName::from(member), &znode.data)?;
        let json: Map<String, Value> = serde_json::from_slice(&znode.data).map_err(|error| error.to_string())?;
        let copied = json.get("copied").filter(|copied| !copied.is_null()).cloned();
        let copied = copied.map(serde_json::from_value).transpose().map_err(|error| error.to_string())?;
        let operator = record.rule == Rule::Operator;
        Ok(Self { json, operator, mzxid: Zxid(znode.mzxid), copied, mtime_ms: znode.mtime_ms })
    }

    /// The transaction that first wrote this content.
    fn original(&self) -> Zxid {
        self.copied.as_ref().map_or(self.mzxid, |copied| copied.mzxid)
    }

    /// The content without the mark of a copy. A copy for 0.1 has no confirmation.
    fn content(&self, confirmation: bool) -> Map<String, Value> {
        let mut json = self.json.clone();
        json.remove("copied");
        if !confirmation {
            json.remove("confirmed_ms");
        }
        json
    }

    fn copy(&self, identifier: &str, confirmation: bool) -> Option<Vec<u8>> {
        let mut json = self.json.clone();
        let mtime_ms = self.copied.as_ref().map_or(self.mtime_ms, |copied| copied.mtime_ms);
        let copied = Copied { mzxid: self.original(), mtime_ms, system_identifier: identifier.to_owned() };
        json.insert("copied".to_owned(), serde_json::to_value(copied).ok()?);
        if !confirmation {
            json.insert("confirmed_ms".to_owned(), Value::Null);
        }
        serde_json::to_vec(&json).ok()
    }
}

/// Decides about the record of `member`: `old` is in the tree of 0.1, `ours` in our own.
pub fn decide(
    member: &str,
    known: Known<'_>,
    pair: Option<Pair>,
    old: Option<&Znode>,
    ours: Option<&Znode>,
) -> Outcome {
    let read = |znode: Option<&Znode>| znode.map(|znode| Side::read(member, znode)).transpose();
    let (old, ours) = match (read(old), read(ours)) {
        (Ok(old), Ok(ours)) => (old, ours),
        (Err(why), _) => return Outcome::Skipped(why),
        (_, Err(why)) => return Outcome::Skipped(format!("the record in the tree of this version: {why}")),
    };
    let foreign = |copied: &&Copied| copied.system_identifier != known.identifier;
    if let Some(copied) = old.as_ref().and_then(|old| old.copied.as_ref()).filter(foreign) {
        return Outcome::Skipped(format!(
            "the record belongs to the cluster with system identifier {}",
            copied.system_identifier
        ));
    }
    // A copy for 0.1 is never confirmed, because it is newer than its original. For the gate of 0.1, any confirmed
    // record that is newer than the leader key proves that the server has been stopped since.
    let to_old = |side: &Side| write(Place::OldFence(member.to_owned()), side.copy(known.identifier, false));
    let to_ours = |side: &Side| write(Place::Fence(member.to_owned()), side.copy(known.identifier, true));
    match (&old, &ours) {
        (None, None) => Outcome::Same,
        (Some(old), None) => {
            let unchanged = old.copied.is_some() || pair.is_some_and(|(then, _)| then == old.mzxid);
            if known.our_folder_is_same && unchanged {
                remove(Place::OldFence(member.to_owned()))
            } else {
                to_ours(old)
            }
        }
        (None, Some(ours)) => {
            let unchanged = ours.copied.is_some() || pair.is_some_and(|(_, then)| then == ours.mzxid);
            if known.old_folder_is_same && unchanged { remove(Place::Fence(member.to_owned())) } else { to_old(ours) }
        }
        (Some(old), Some(ours)) => {
            let confirmation = old.copied.is_none();
            if old.content(confirmation) == ours.content(confirmation) {
                return Outcome::Same;
            }
            let changed = |then: Option<Zxid>, now: Zxid| then != Some(now);
            let old_changed = changed(pair.map(|(then, _)| then), old.mzxid);
            let ours_changed = changed(pair.map(|(_, then)| then), ours.mzxid);
            let old_wins = match (old_changed, ours_changed) {
                (true, false) => true,
                (false, true) => false,
                _ if old.operator != ours.operator => old.operator,
                _ => old.original() > ours.original(),
            };
            if old_wins { to_ours(old) } else { to_old(ours) }
        }
    }
}

fn write(place: Place, data: Option<Vec<u8>>) -> Outcome {
    match data {
        Some(data) => Outcome::Write { place, data: Some(data) },
        // The content is numbers and text, so this does not happen. A failed copy must not become a removal.
        None => Outcome::Skipped("the agent cannot write the record as JSON".to_owned()),
    }
}

const fn remove(place: Place) -> Outcome {
    Outcome::Write { place, data: None }
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
