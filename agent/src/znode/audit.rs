//! An entry of the audit trail, `audit/` in Warden's tree: an action with its agent, reason, facts and outcome.
//! `agent/docs/reference/zookeeper.md` documents the format.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An action, or an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The time, in milliseconds since 1970, by the clock of the agent that writes the entry.
    pub at_ms: i64,
    /// The agent that writes the entry.
    pub agent: String,
    /// `fence`, `unfence`, `close` (a fence that is over), `release`, `handover`.
    pub action: String,
    /// The member whose server or key it is.
    pub member: String,
    /// The rule; null for an action of the operator.
    pub rule: Option<String>,
    /// The reason, as text.
    pub reason: String,
    /// The agent that ordered the action, or `operator`.
    pub by: String,
    /// The outcome, as text that begins with `asked`, `confirmed`, `waiting`, `withdrawn`, `failed`, `observed` or
    /// `done`.
    pub outcome: String,
    /// The facts at the time of the order. `outcome` has the facts at the end.
    #[serde(default)]
    pub facts: BTreeMap<String, String>,
}

impl Entry {
    /// An entry of the present time, without rule, outcome and facts.
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

    /// The entry as JSON.
    pub fn write(&self) -> Vec<u8> {
        // JSON can represent every text, number and map of texts.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Parses an entry. The error is the problem, as text.
    pub fn parse(data: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(data).map_err(|error| format!("it is not an entry of the audit trail: {error}"))
    }
}
