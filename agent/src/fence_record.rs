//! A fence record, `fences/<member>` in Warden's tree: who was fenced, why, and whether that is confirmed.
//!
//! Warden's own format, documented here and in the README; read by agents, the gate and `warden status`. It stays
//! until the member is in recovery or leads again, or, where a person asked for it, until it is taken back. Fields
//! may be added; a reader ignores those it does not know.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use warden_core::event::{FenceRecord, Rule};
use warden_core::types::{MemberName, UnixMillis, Zxid};

#[derive(Serialize, Deserialize)]
struct Wire {
    member: String,
    rule: String,
    reason: String,
    by: String,
    /// Milliseconds since 1970, by the clock of who ordered it.
    ordered_ms: i64,
    confirmed_ms: Option<i64>,
    #[serde(default)]
    facts: BTreeMap<String, String>,
    /// Of a copy, between the tree of Warden 0.1 and ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copied: Option<Copied>,
}

/// What a copy tells of the record that it is a copy of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// The transaction that wrote it, and when that was by ZooKeeper's clock. What the record proves it proves as of then:
    /// the copy's own transaction may be later than a key under which its server has taken writes again.
    #[serde(with = "hexadecimal")]
    pub mzxid: Zxid,
    /// Likewise.
    pub mtime_ms: i64,
    /// Whose cluster's it is.
    pub system_identifier: String,
}

/// A transaction as it is written everywhere, `0x1f`.
mod hexadecimal {
    use super::Zxid;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(zxid: &Zxid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:#x}", zxid.0))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zxid, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = text.strip_prefix("0x").and_then(|digits| i64::from_str_radix(digits, 16).ok());
        number.map(Zxid).ok_or_else(|| D::Error::custom(format!("{text:?} is no transaction")))
    }
}

/// The record as JSON.
pub fn write(record: &FenceRecord) -> Vec<u8> {
    let wire = Wire {
        member: record.member.to_string(),
        rule: record.rule.as_str().to_owned(),
        reason: record.reason.clone(),
        by: record.by.clone(),
        ordered_ms: record.ordered.0,
        confirmed_ms: record.confirmed.map(|at| at.0),
        facts: record.facts.iter().cloned().collect(),
        copied: None,
    };
    // Text, numbers and a map of texts: there is nothing in it that JSON could refuse.
    serde_json::to_vec(&wire).unwrap_or_default()
}

/// Reads a record. The error says what is wrong with it. `written` is known only of a copy: then it is the original's.
pub fn parse(data: &[u8]) -> Result<FenceRecord, String> {
    let wire: Wire = serde_json::from_slice(data).map_err(|error| format!("it is not a fence record: {error}"))?;
    let rule = Rule::ALL.into_iter().find(|rule| rule.as_str() == wire.rule);
    Ok(FenceRecord {
        member: MemberName::from(wire.member),
        rule: rule.ok_or_else(|| format!("it names a rule that is not known here: {:?}", wire.rule))?,
        reason: wire.reason,
        by: wire.by,
        ordered: UnixMillis(wire.ordered_ms),
        confirmed: wire.confirmed_ms.map(UnixMillis),
        facts: wire.facts.into_iter().collect(),
        written: wire.copied.map(|copied| (copied.mzxid, UnixMillis(copied.mtime_ms))),
    })
}

/// Reads the record in the znode of `member`. One that is about somebody else counts for neither: believed of the one it
/// would let the gate pass, believed of the other it would fence a server that nobody meant.
pub fn parse_of(member: &MemberName, data: &[u8]) -> Result<FenceRecord, String> {
    let record = parse(data)?;
    if record.member == *member {
        return Ok(record);
    }
    let other = &record.member;
    Err(format!(
        "it is about {other}, not about {member}, and counts for neither; `warden unfence {member}` takes it away"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        for rule in Rule::ALL {
            let record = FenceRecord {
                member: "a".into(),
                rule,
                reason: "b holds the leader key".to_owned(),
                by: "a".to_owned(),
                ordered: UnixMillis(5),
                confirmed: (rule == Rule::Lease).then_some(UnixMillis(7)),
                facts: vec![("czxid".to_owned(), "0x9".to_owned()), ("leader".to_owned(), "b".to_owned())],
                written: None,
            };
            assert_eq!(parse(&write(&record)).unwrap(), record);
        }
    }

    #[test]
    fn a_copy_was_written_when_its_original_was() {
        let text = br#"{"member":"a","rule":"operator","reason":"","by":"operator","ordered_ms":1,"confirmed_ms":2,
            "copied":{"mzxid":"0x1f","mtime_ms":7,"system_identifier":"42"}}"#;
        let record = parse(text).unwrap();
        assert_eq!(record.written, Some((Zxid(0x1f), UnixMillis(7))));
        // Rewritten by its new owner it is a record of its own.
        assert_eq!(parse(&write(&record)).unwrap().written, None);
        let torn = String::from_utf8_lossy(text).replace("0x1f", "later");
        assert!(parse(torn.as_bytes()).unwrap_err().contains("later"));
    }

    #[test]
    fn a_record_in_another_members_place_is_an_error_that_says_how_to_be_rid_of_it() {
        let text = br#"{"member":"a","rule":"operator","reason":"","by":"operator","ordered_ms":1,"confirmed_ms":2}"#;
        assert_eq!(parse_of(&"a".into(), text).unwrap().member.as_str(), "a");
        let why = parse_of(&"b".into(), text).unwrap_err();
        assert!(why.contains("about a, not about b") && why.contains("`warden unfence b`"), "{why}");
    }

    #[test]
    fn something_else_is_an_error() {
        for text in ["", "{}", "[]", r#"{"member":"a","rule":"whim","reason":"","by":"","ordered_ms":1}"#] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
