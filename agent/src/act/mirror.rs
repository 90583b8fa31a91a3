//! What becomes of a member's fence record while it stands in two trees: that of Warden 0.1, where agents of 0.1 read
//! and write it, and ours. Pure: from what both hold, and what was noted when they last held the same, to what is to be
//! written. `act/upgrade.rs` reads and writes.
//!
//! Every agent does this on its own, and may be interrupted anywhere. So each step is right by itself: a record is written
//! only over what was read, a copy says that it is one, and what two agents do at once comes to the same. A copy is the
//! same as its original, so that it is never copied back.
//!
//! The last change wins. A removal wins only where it is certain that there was one: the two were noted as the same, or
//! what is left is a copy, and the other folder is still the one that it was then. Between a removal and a change, and
//! between a person's fence and another rule's, the fence stays: one too many is seen and taken back, one too few is not.

use crate::fence_record::{self, Copied};
use crate::watch::zookeeper::{Place, Znode};
use serde_json::{Map, Value};
use warden_core::event::Rule;
use warden_core::types::{MemberName, Zxid};

/// The transactions that last wrote a record in the tree of 0.1 and in ours, when both said the same.
pub type Pair = (Zxid, Zxid);

/// What is known beside the two records.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The cluster's system identifier.
    pub identifier: &'a str,
    /// The folder in the tree of 0.1 is the one that was there when the two were last noted as the same.
    pub old_stands: bool,
    /// Likewise our own.
    pub ours_stands: bool,
}

/// What is to be done about a member's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing: both say the same, or there is none.
    Same,
    /// To write `data`, or to remove what is there.
    Write {
        /// Where.
        place: Place,
        /// What; `None` removes it.
        data: Option<Vec<u8>>,
    },
    /// Nothing can be done, and why.
    Left(String),
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

    /// When what it says was first written.
    fn original(&self) -> Zxid {
        self.copied.as_ref().map_or(self.mzxid, |copied| copied.mzxid)
    }

    /// What it says, whoever copied it. A copy for 0.1 has lost its confirmation.
    fn says(&self, confirmation: bool) -> Map<String, Value> {
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

/// What becomes of `member`'s record: `old` in the tree of 0.1, `ours` in our own.
pub fn becomes(
    member: &str,
    known: Known<'_>,
    pair: Option<Pair>,
    old: Option<&Znode>,
    ours: Option<&Znode>,
) -> Outcome {
    let read = |znode: Option<&Znode>| znode.map(|znode| Side::read(member, znode)).transpose();
    let (old, ours) = match (read(old), read(ours)) {
        (Ok(old), Ok(ours)) => (old, ours),
        (Err(why), _) => return Outcome::Left(why),
        (_, Err(why)) => return Outcome::Left(format!("the record in its place here: {why}")),
    };
    let foreign = |copied: &&Copied| copied.system_identifier != known.identifier;
    if let Some(copied) = old.as_ref().and_then(|old| old.copied.as_ref()).filter(foreign) {
        return Outcome::Left(format!("it belongs to the cluster with system identifier {}", copied.system_identifier));
    }
    // A copy for 0.1 is never confirmed. Its gate takes any confirmed record that is newer than the leader key for proof
    // that the server has been stopped since, and the copy is newer than its original.
    let to_old = |side: &Side| write(Place::OldFence(member.to_owned()), side.copy(known.identifier, false));
    let to_ours = |side: &Side| write(Place::Fence(member.to_owned()), side.copy(known.identifier, true));
    match (&old, &ours) {
        (None, None) => Outcome::Same,
        (Some(old), None) => {
            let unchanged = old.copied.is_some() || pair.is_some_and(|(then, _)| then == old.mzxid);
            if known.ours_stands && unchanged { remove(Place::OldFence(member.to_owned())) } else { to_ours(old) }
        }
        (None, Some(ours)) => {
            let unchanged = ours.copied.is_some() || pair.is_some_and(|(_, then)| then == ours.mzxid);
            if known.old_stands && unchanged { remove(Place::Fence(member.to_owned())) } else { to_old(ours) }
        }
        (Some(old), Some(ours)) => {
            let confirmation = old.copied.is_none();
            if old.says(confirmation) == ours.says(confirmation) {
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
        // Numbers and text: there is nothing in it that JSON could refuse. If it did, a copy must not become a removal.
        None => Outcome::Left("it cannot be written as JSON".to_owned()),
    }
}

const fn remove(place: Place) -> Outcome {
    Outcome::Write { place, data: None }
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;
