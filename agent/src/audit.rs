//! An entry of the audit trail, `audit/` in Warden's tree: what was done, by whom, why, on what facts, and what came of
//! it. Warden's own format, documented in the README. Fields may be added; a reader ignores those it does not know.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Something that was done, or tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When, milliseconds since 1970, by the clock of the agent that writes it.
    pub at_ms: i64,
    /// Which agent.
    pub agent: String,
    /// `fence`, `unfence`, `close` (a fence that is over), `release`, `handover`.
    pub action: String,
    /// Whose server or key.
    pub member: String,
    /// By which rule; null where a person did it.
    pub rule: Option<String>,
    /// Why, in words.
    pub reason: String,
    /// Who wanted it: an agent, or `operator`.
    pub by: String,
    /// What came of it, in words that begin with one of a few: `asked`, `confirmed`, `waiting`, `withdrawn`, `failed`,
    /// `observed`, `done`.
    pub outcome: String,
    /// What was believed when it was ordered; what was found in the end is the outcome's.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
}

impl Entry {
    /// An entry of now.
    pub fn new(agent: &str, action: &str, member: &str, reason: &str) -> Self {
        Self {
            at_ms: Timestamp::now().as_millisecond(),
            agent: agent.to_owned(),
            action: action.to_owned(),
            member: member.to_owned(),
            rule: None,
            reason: reason.to_owned(),
            by: agent.to_owned(),
            outcome: String::new(),
            facts: BTreeMap::new(),
        }
    }

    /// As JSON.
    pub fn write(&self) -> Vec<u8> {
        // Text, numbers and a map of texts: there is nothing in it that JSON could refuse.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads an entry. The error says what is wrong with it.
    pub fn parse(data: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(data).map_err(|error| format!("it is not an entry of the audit trail: {error}"))
    }
}
