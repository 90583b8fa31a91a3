//! Writes the operator's orders to ZooKeeper: to fence a member, and to take its fence back. The agents that read the
//! fence record carry it out.

use super::records::Records;
use crate::client::zookeeper::{Expect, Handle as ZooKeeper};
use crate::znode::audit::Entry;
use crate::znode::fence;
use std::time::Duration;
use warden_core::event::{FenceRecord, Rule};
use warden_core::types::{MemberName, UnixMillis};

/// The time limit of one write to ZooKeeper. A healthy one takes milliseconds, and the operator waits.
pub(crate) const WRITE_LIMIT: Duration = Duration::from_secs(1);

/// Takes the operator's orders. Cheap to clone.
#[derive(Clone)]
pub struct Operator {
    /// For the fence record.
    pub zookeeper: ZooKeeper,
    /// For the audit trail. An order discards the changes of the fence record that are still queued.
    pub records: Records,
    /// This agent's name, for the audit trail.
    pub agent: String,
}

impl Operator {
    /// Orders a fence of `member`. The error says why ZooKeeper has no record of it.
    pub async fn fence(&self, member: &MemberName, reason: &str) -> Result<(), String> {
        tracing::warn!(
            event = "operator_fence_asked",
            member = member.as_str(),
            reason,
            "the operator asks for a fence over HTTP"
        );
        let record = FenceRecord {
            member: member.clone(),
            rule: Rule::Operator,
            reason: reason.to_owned(),
            by: "operator".to_owned(),
            ordered: UnixMillis(jiff::Timestamp::now().as_millisecond()),
            confirmed: None,
            facts: Vec::new(),
            written: None,
        };
        self.write(member, Some(fence::write(&record))).await?;
        self.audit("fence", member, reason);
        Ok(())
    }

    /// Takes the fence of `member` back. The error says why ZooKeeper still has the record.
    pub async fn unfence(&self, member: &MemberName) -> Result<(), String> {
        tracing::warn!(
            event = "operator_unfence_asked",
            member = member.as_str(),
            "the operator takes a fence back over HTTP"
        );
        self.write(member, None).await?;
        self.audit("unfence", member, "the operator took the fence back");
        Ok(())
    }

    async fn write(&self, member: &MemberName, record: Option<Vec<u8>>) -> Result<(), String> {
        self.records.forget(member);
        self.zookeeper.write_record(member.as_str(), record, Expect::Anything, WRITE_LIMIT).await.map(drop)
    }

    fn audit(&self, action: &str, member: &MemberName, reason: &str) {
        let entry = Entry {
            by: "operator".to_owned(),
            outcome: "asked".to_owned(),
            ..Entry::new(&self.agent, action, member.as_str(), reason)
        };
        self.records.audit(entry.write());
    }
}
