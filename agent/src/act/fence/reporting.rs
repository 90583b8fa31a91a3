//! Reports the outcome of a fence: in the log, in the audit trail, in the fence record and to the loop.

use super::Fencer;
use crate::act::entries::{by, fence_entry};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use warden_core::event::{Event, FenceOutcome, FenceRecord, FenceReport, Report, Rule};
use warden_core::rules::fence::Order;
use warden_core::types::{MemberName, UnixMillis};

/// A repeated outcome is logged again after this long.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The last outcomes of each member's fence. A fence that the agent repeats is one entry of the audit trail until its
/// outcome changes, and one log line an interval.
#[derive(Default)]
pub struct ReportMemory {
    entries: BTreeMap<MemberName, (Rule, &'static str)>,
    repeated: BTreeMap<MemberName, Repeated>,
}

/// An outcome that repeats.
struct Repeated {
    /// The rule, the outcome, and its cause.
    outcome: (Rule, &'static str, String),
    /// The time of the last log line.
    logged: Instant,
    /// The number of repetitions since.
    count: u32,
}

impl ReportMemory {
    /// Whether the outcome becomes a new entry of the audit trail.
    fn is_new_entry(&mut self, order: &Order, outcome: &FenceOutcome) -> bool {
        let entry = (order.rule, outcome.as_str());
        let repeats = self.entries.insert(order.member.clone(), entry) == Some(entry);
        // The server took writes before each confirmation.
        !repeats || matches!(outcome, FenceOutcome::Confirmed { .. })
    }

    /// The number of outcomes since the last log line, this one included. `None` if this one is not logged: it repeats
    /// rule, outcome and cause within [`LOG_INTERVAL`].
    fn count_to_log(&mut self, order: &Order, outcome: &FenceOutcome, now: Instant) -> Option<u32> {
        let why = match outcome {
            FenceOutcome::Confirmed { .. } => {
                self.repeated.remove(&order.member);
                return Some(1);
            }
            FenceOutcome::Failed(why) | FenceOutcome::Withdrawn(why) => why.as_str(),
            FenceOutcome::Waiting | FenceOutcome::Observed => "",
        };
        let outcome = (order.rule, outcome.as_str(), why.to_owned());
        if let Some(known) = self.repeated.get_mut(&order.member).filter(|known| known.outcome == outcome) {
            known.count += 1;
            if now.duration_since(known.logged) < LOG_INTERVAL {
                return None;
            }
            known.logged = now;
            return Some(std::mem::take(&mut known.count));
        }
        self.repeated.insert(order.member.clone(), Repeated { outcome, logged: now, count: 0 });
        Some(1)
    }
}

impl Fencer {
    /// Reports an outcome everywhere.
    pub(super) async fn report(
        &self,
        order: &Order,
        outcome: FenceOutcome,
        memory: &mut ReportMemory,
    ) -> anyhow::Result<()> {
        if let Some(times) = memory.count_to_log(order, &outcome, Instant::now()) {
            log(order, &outcome, times);
        }
        let detail = match &outcome {
            FenceOutcome::Confirmed { by, took } => {
                self.record(order, true);
                format!(": {by}, after {} ms", took.as_millis())
            }
            FenceOutcome::Waiting => {
                self.record(order, false);
                String::new()
            }
            FenceOutcome::Observed => String::new(),
            FenceOutcome::Withdrawn(why) => format!(": {why}"),
            FenceOutcome::Failed(why) => {
                self.record(order, false);
                format!(": {why}")
            }
        };
        if memory.is_new_entry(order, &outcome) {
            let entry = fence_entry(&self.agent, order, format!("{}{detail}", outcome.as_str()));
            self.records.audit(entry.write());
        }
        let report = FenceReport { member: order.member.clone(), rule: order.rule, outcome };
        Ok(self.events.send(self.events.clock.now(), Event::Report(Report::Fence(report))).await?)
    }

    /// Queues the fence record. A fence does not wait for ZooKeeper.
    fn record(&self, order: &Order, confirmed: bool) {
        let now = UnixMillis(Timestamp::now().as_millisecond());
        self.records.put(FenceRecord {
            member: order.member.clone(),
            rule: order.rule,
            reason: order.reason.clone(),
            by: by(&self.agent, order).to_owned(),
            ordered: now,
            confirmed: confirmed.then_some(now),
            facts: order.facts.clone(),
            written: None,
        });
    }
}

/// Logs an outcome that has come `times` times since its last log line.
fn log(order: &Order, outcome: &FenceOutcome, times: u32) {
    let (member, rule, reason) = (order.member.as_str(), order.rule.as_str(), order.reason.as_str());
    match outcome {
        FenceOutcome::Confirmed { by, took } => {
            tracing::warn!(event = "fenced", member, rule, reason, by, took_ms = took.as_millis(), "fenced");
        }
        FenceOutcome::Waiting => {
            let words = "the server accepts no session now; the first session that it accepts is the fence";
            tracing::warn!(event = "fence_waiting", member, rule, reason, times, "{words}");
        }
        // The loop logs it.
        FenceOutcome::Observed => {}
        FenceOutcome::Withdrawn(why) => {
            tracing::warn!(event = "fence_withdrawn", member, rule, reason, why, times, "fence withdrawn");
        }
        FenceOutcome::Failed(why) => {
            let words = "FENCE FAILED: the server may still take writes";
            tracing::error!(event = "fence_failed", member, rule, reason, why, times, "{words}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use warden_core::evidence::Ground;
    use warden_core::rules::fence::Guard;
    use warden_core::rules::guard::LeaseCondition;

    fn order(rule: Rule) -> Order {
        Order {
            member: "a".into(),
            rule,
            // A reason in other words does not make an outcome new.
            reason: format!("{:?}", Instant::now()),
            guard: Guard::NoContact(LeaseCondition { contact: None, beat: None, ground: Ground::Silence }),
            starting: false,
            facts: Vec::new(),
        }
    }

    #[test]
    fn a_repeated_outcome_is_one_entry_of_the_audit_trail_and_each_confirmation_is_its_own() {
        let mut memory = ReportMemory::default();
        let (lease, orphaned) = (order(Rule::Lease), order(Rule::Orphaned));
        let confirmed = FenceOutcome::Confirmed { by: "x", took: Duration::ZERO };
        assert!(memory.is_new_entry(&lease, &FenceOutcome::Waiting));
        assert!(!memory.is_new_entry(&lease, &FenceOutcome::Waiting));
        assert!(memory.is_new_entry(&orphaned, &FenceOutcome::Waiting));
        assert!(memory.is_new_entry(&orphaned, &confirmed));
        assert!(memory.is_new_entry(&orphaned, &confirmed));
    }

    #[test]
    fn a_repeated_outcome_is_logged_at_once_and_then_once_an_interval_with_its_count() {
        let (failed, withdrawn) = (FenceOutcome::Failed, FenceOutcome::Withdrawn);
        let no_route = || "no route".to_owned();
        for outcome in [failed(no_route()), withdrawn(no_route()), FenceOutcome::Waiting, FenceOutcome::Observed] {
            let (mut memory, started) = (ReportMemory::default(), Instant::now());
            let mut times = |ms: u64, rule, outcome: &FenceOutcome| {
                memory.count_to_log(&order(rule), outcome, started + Duration::from_millis(ms))
            };
            assert_eq!(times(0, Rule::Lease, &outcome), Some(1), "{outcome:?}");
            for again in 1..20 {
                assert_eq!(times(again * 500, Rule::Lease, &outcome), None, "{outcome:?}");
            }
            assert_eq!(times(10_000, Rule::Lease, &outcome), Some(20), "the first one was logged, the others count");
            assert_eq!(times(10_500, Rule::Lease, &outcome), None);
            assert_eq!(times(11_000, Rule::Lease, &failed("no password".to_owned())), Some(1), "another cause is new");
            assert_eq!(
                times(11_500, Rule::Orphaned, &failed("no password".to_owned())),
                Some(1),
                "another rule is new"
            );
            let confirmed = FenceOutcome::Confirmed { by: "x", took: Duration::ZERO };
            assert_eq!(times(11_600, Rule::Orphaned, &confirmed), Some(1));
            assert_eq!(times(11_700, Rule::Orphaned, &confirmed), Some(1), "the server took writes in between");
            assert_eq!(times(12_000, Rule::Orphaned, &failed("no password".to_owned())), Some(1));
        }
    }
}
