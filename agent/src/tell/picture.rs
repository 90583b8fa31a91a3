//! The gate's picture as JSON: the answer of the agent beside the candidate to `GET /api/v1/gate`, for `warden gate`.
//!
//! The hook may have another version than the agent. Fields may be added. A reader ignores unknown fields, and takes an
//! unknown standing for `unknown`.

use crate::clock::millis;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use warden_core::evidence::Standing;
use warden_core::rules::gate::{Key, Other, Picture};
use warden_core::types::{MemberName, SystemId};

/// The picture in JSON's types.
#[derive(Debug, Serialize, Deserialize)]
pub struct Wire {
    own: String,
    /// The holder of the leader key, by a linearizable read that started after the request.
    holder: Option<String>,
    /// The age of the key if the candidate holds it, in milliseconds.
    held_ms: u64,
    paused: bool,
    fenced_by_operator: Option<String>,
    system_identifier: Option<String>,
    others: Vec<WireOther>,
}

#[derive(Debug, Serialize, Deserialize)]
struct WireOther {
    name: String,
    host: Option<String>,
    port: Option<u16>,
    /// `standby`, `writable`, `was_writable` or `unknown`.
    standing: String,
    /// The source of the standing `standby`.
    by: Option<String>,
    last_holder: Option<bool>,
    recorded: bool,
}

/// Converts a picture for JSON.
pub fn write(picture: &Picture) -> Wire {
    let (holder, held) = match &picture.key {
        Key::Own(held) => (Some(&picture.own), *held),
        Key::Anothers(holder) => (Some(holder), Duration::ZERO),
        Key::Absent => (None, Duration::ZERO),
    };
    Wire {
        own: picture.own.to_string(),
        holder: holder.map(ToString::to_string),
        held_ms: millis(held),
        paused: picture.paused,
        fenced_by_operator: picture.fenced_by_operator.clone(),
        system_identifier: picture.system_id.map(|id| id.to_string()),
        others: picture.others.iter().map(other).collect(),
    }
}

fn other(other: &Other) -> WireOther {
    let (standing, by) = match &other.standing {
        Standing::Standby(by) => ("standby", Some(by.clone())),
        Standing::Writable => ("writable", None),
        Standing::WasWritable => ("was_writable", None),
        Standing::Unknown => ("unknown", None),
    };
    let (host, port) = other.place.clone().unzip();
    WireOther {
        name: other.name.to_string(),
        host,
        port,
        standing: standing.to_owned(),
        by,
        last_holder: other.last_holder,
        recorded: other.recorded,
    }
}

/// Converts a picture from JSON.
pub fn read(wire: Wire) -> Picture {
    let own = MemberName::from(wire.own);
    let key = match wire.holder.map(MemberName::from) {
        Some(holder) if holder == own => Key::Own(Duration::from_millis(wire.held_ms)),
        Some(holder) => Key::Anothers(holder),
        None => Key::Absent,
    };
    let others = wire.others.into_iter().map(|other| Other {
        name: MemberName::from(other.name),
        place: other.host.zip(other.port),
        standing: match other.standing.as_str() {
            "standby" => Standing::Standby(other.by.unwrap_or_default()),
            "writable" => Standing::Writable,
            "was_writable" => Standing::WasWritable,
            _ => Standing::Unknown,
        },
        last_holder: other.last_holder,
        recorded: other.recorded,
    });
    Picture {
        key,
        paused: wire.paused,
        fenced_by_operator: wire.fenced_by_operator,
        system_id: wire.system_identifier.and_then(|id| id.parse().ok()).map(SystemId),
        others: others.collect(),
        own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(key: Key) -> Picture {
        let other = |name: &str, standing| Other {
            name: name.into(),
            place: Some((name.to_owned(), 5432)),
            standing,
            last_holder: Some(true),
            recorded: true,
        };
        Picture {
            own: "b".into(),
            key,
            paused: false,
            fenced_by_operator: Some("x".to_owned()),
            system_id: Some(SystemId(u64::MAX)),
            others: vec![
                other("a", Standing::Standby("its own agent".to_owned())),
                Other { place: None, last_holder: None, recorded: false, ..other("c", Standing::Writable) },
                other("d", Standing::WasWritable),
                other("e", Standing::Unknown),
            ],
        }
    }

    #[test]
    fn a_picture_reads_back_as_it_is_written() {
        for key in [Key::Own(Duration::from_millis(1500)), Key::Anothers("a".into()), Key::Absent] {
            let json = serde_json::to_vec(&write(&picture(key.clone()))).unwrap();
            assert_eq!(read(serde_json::from_slice(&json).unwrap()), picture(key));
        }
    }

    #[test]
    fn a_standing_of_a_later_version_is_unknown() {
        let mut wire = write(&picture(Key::Absent));
        wire.others[0].standing = "levitating".to_owned();
        assert_eq!(read(wire).others[0].standing, Standing::Unknown);
    }
}
