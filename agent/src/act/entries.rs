//! The entries of the audit trail for a fence and a release, carried out or only observed.

use crate::znode::audit::Entry;
use warden_core::rules::fence::{Guard, Order};
use warden_core::rules::release::Release;

/// The entry of the audit trail for a fence.
pub fn fence_entry(agent: &str, order: &Order, outcome: String) -> Entry {
    Entry {
        rule: Some(order.rule.as_str().to_owned()),
        by: by(agent, order).to_owned(),
        outcome,
        facts: order.facts.iter().cloned().collect(),
        ..Entry::new(agent, "fence", order.member.as_str(), &order.reason)
    }
}

/// The entry of the audit trail for a release.
pub fn release_entry(agent: &str, release: &Release, outcome: String) -> Entry {
    let action = if release.handover_to.is_some() { "handover" } else { "release" };
    Entry {
        rule: Some(action.to_owned()),
        outcome,
        facts: release.facts.iter().cloned().collect(),
        ..Entry::new(agent, action, release.member.as_str(), &release.reason)
    }
}

/// The name of the operator or agent that ordered a fence.
pub fn by<'a>(agent: &'a str, order: &'a Order) -> &'a str {
    if let Guard::Asked { by } = &order.guard { by } else { agent }
}
