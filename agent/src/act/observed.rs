//! The audit trail of mode `observe`: one entry for each fence and each release that the mode prevents.

use super::entries::{fence_entry, release_entry};
use crate::znode::audit::Entry;
use std::collections::BTreeMap;
use warden_core::event::{FenceOutcome, Rule};
use warden_core::plan::Observation;
use warden_core::rules::fence::Order;
use warden_core::rules::guard::KeyCondition;
use warden_core::rules::release::Release;
use warden_core::types::MemberName;

/// The newest entries. A repeated observation is one entry.
#[derive(Debug, Default)]
pub struct ObservedTrail {
    fences: BTreeMap<MemberName, Rule>,
    release: Option<KeyCondition>,
}

impl ObservedTrail {
    /// The entry for an observation. `None` if the last entry is the same, and for nudges, reconnects and HAProxy's
    /// servers.
    pub fn entry(&mut self, agent: &str, observation: &Observation) -> Option<Entry> {
        match observation {
            Observation::Fence(order) => self.fence(agent, order),
            Observation::Release(release) => self.release(agent, release),
            Observation::Nudge(_) | Observation::Reconnect(_) | Observation::Route(_) => None,
        }
    }

    fn fence(&mut self, agent: &str, order: &Order) -> Option<Entry> {
        if self.fences.insert(order.member.clone(), order.rule) == Some(order.rule) {
            return None;
        }
        Some(fence_entry(agent, order, FenceOutcome::Observed.as_str().to_owned()))
    }

    fn release(&mut self, agent: &str, release: &Release) -> Option<Entry> {
        let condition = Some(release.condition.clone());
        if self.release == condition {
            return None;
        }
        self.release = condition;
        Some(release_entry(agent, release, "observed".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warden_core::event::{Outcome, ReleaseReport, Report, Started};
    use warden_core::rules::fence::Guard;
    use warden_core::rules::guard::KeyIs;
    use warden_core::types::SessionId;

    fn fence(rule: Rule) -> Observation {
        let guard = Guard::Asked { by: "operator".to_owned() };
        let (reason, facts) = ("because".to_owned(), Vec::new());
        Observation::Fence(Box::new(Order { member: "a".into(), rule, reason, facts, guard, starting: false }))
    }

    fn release(session: i64) -> Observation {
        let condition = KeyCondition { session: SessionId(session), key: KeyIs::NotOf("a".into()), sync: None };
        let (reason, facts) = ("it is gone".to_owned(), Vec::new());
        let release = Release { member: "a".into(), condition, reason, handover_to: None, shut_down_with: None, facts };
        Observation::Release(Box::new(release))
    }

    #[test]
    fn a_repeated_observation_is_one_entry_of_the_audit_trail_until_it_changes() {
        let mut trail = ObservedTrail::default();
        let mut entry = |observation: &Observation| trail.entry("w", observation).map(|entry| (entry.action, entry.by));
        let entry_of = |action: &str, by: &str| Some((action.to_owned(), by.to_owned()));
        assert_eq!(entry(&fence(Rule::Operator)), entry_of("fence", "operator"));
        assert_eq!(entry(&fence(Rule::Operator)), None);
        assert_eq!(entry(&fence(Rule::Superseded)), entry_of("fence", "operator"));
        assert_eq!(entry(&release(1)), entry_of("release", "w"));
        assert_eq!(entry(&release(1)), None);
        assert_eq!(entry(&release(2)), entry_of("release", "w"), "another session, so another condition");
        assert_eq!(entry(&Observation::Nudge("why".to_owned())), None);
    }

    #[test]
    fn an_observation_is_remembered_like_an_action_that_was_carried_out() {
        let (started, report) = fence(Rule::Operator).remembered();
        assert_eq!(started, Started::Fence("a".into()));
        assert!(matches!(report, Report::Fence(report) if report.outcome == FenceOutcome::Observed));
        let (started, report) = release(1).remembered();
        assert_eq!((started, report), (Started::Release, Report::Release(ReleaseReport::Observed)));
        let why = || "why".to_owned();
        let expected = (Started::Nudge, Report::Nudged(Outcome::Observed));
        assert_eq!(Observation::Nudge(why()).remembered(), expected);
        let expected = (Started::Reconnect, Report::Reconnected(Outcome::Observed));
        assert_eq!(Observation::Reconnect(why()).remembered(), expected);
    }
}
