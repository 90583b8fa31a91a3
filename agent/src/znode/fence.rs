//! A fence record, `fences/<member>` in Warden's tree: the fenced member, the rule, the reason, and the confirmation.
//! Agents, the gate and `warden status` read it. `agent/docs/reference/zookeeper.md` documents the format too.
//!
//! The record stays until the member is in recovery or leads again. The record of an operator's fence stays until the
//! operator takes the fence back.

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
    /// The time of the order, in milliseconds since 1970, by the clock of the agent that ordered it.
    ordered_ms: i64,
    confirmed_ms: Option<i64>,
    #[serde(default)]
    facts: BTreeMap<String, String>,
    /// Present in a copy between the tree of Warden 0.1 and Warden's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    copied: Option<Copied>,
}

/// The facts about the original of a copied record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copied {
    /// The transaction that wrote the original. The record is evidence as of that transaction. The copy's own
    /// transaction may be later than a leader key under which the server has taken writes again.
    #[serde(with = "hexadecimal")]
    pub mzxid: Zxid,
    /// The time of that transaction by ZooKeeper's clock, in milliseconds since 1970.
    pub mtime_ms: i64,
    /// The system identifier of the cluster.
    pub system_identifier: String,
}

/// The format of a transaction, `0x1f`.
mod hexadecimal {
    use super::Zxid;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(zxid: &Zxid, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{:#x}", zxid.0))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Zxid, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = text.strip_prefix("0x").and_then(|digits| i64::from_str_radix(digits, 16).ok());
        number.map(Zxid).ok_or_else(|| D::Error::custom(format!("{text:?} is not a transaction")))
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
    // JSON can represent every text, number and map of texts.
    serde_json::to_vec(&wire).unwrap_or_default()
}

/// Parses a record. The error is the problem, as text. Only a copy has `written`: the transaction of its original.
pub fn parse(data: &[u8]) -> Result<FenceRecord, String> {
    let wire: Wire = serde_json::from_slice(data).map_err(|error| format!("it is not a fence record: {error}"))?;
    let rule = Rule::ALL.into_iter().find(|rule| rule.as_str() == wire.rule);
    Ok(FenceRecord {
        member: MemberName::from(wire.member),
        rule: rule.ok_or_else(|| format!("it names an unknown rule: {:?}", wire.rule))?,
        reason: wire.reason,
        by: wire.by,
        ordered: UnixMillis(wire.ordered_ms),
        confirmed: wire.confirmed_ms.map(UnixMillis),
        facts: wire.facts.into_iter().collect(),
        written: wire.copied.map(|copied| (copied.mzxid, UnixMillis(copied.mtime_ms))),
    })
}

/// Parses the record in the znode of `member`. The agent applies a record about another member to neither of the two.
/// Applied to the one, it could open the gate. Applied to the other, it could fence the wrong server.
pub fn parse_of(member: &MemberName, data: &[u8]) -> Result<FenceRecord, String> {
    let record = parse(data)?;
    if record.member == *member {
        return Ok(record);
    }
    let other = &record.member;
    Err(format!(
        "it is about {other}, not about {member}, and counts for neither; `warden unfence {member}` removes it"
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
    fn a_copy_has_the_transaction_of_its_original() {
        let text = br#"{"member":"a","rule":"operator","reason":"","by":"operator","ordered_ms":1,"confirmed_ms":2,
            "copied":{"mzxid":"0x1f","mtime_ms":7,"system_identifier":"42"}}"#;
        let record = parse(text).unwrap();
        assert_eq!(record.written, Some((Zxid(0x1f), UnixMillis(7))));
        // A record that an agent writes again is not a copy.
        assert_eq!(parse(&write(&record)).unwrap().written, None);
        let torn = String::from_utf8_lossy(text).replace("0x1f", "later");
        assert!(parse(torn.as_bytes()).unwrap_err().contains("later"));
    }

    #[test]
    fn a_record_about_another_member_is_an_error_that_says_how_to_remove_it() {
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
