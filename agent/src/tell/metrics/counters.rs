//! Counters and histograms: the agent counts each event once, before the view takes it in.

use super::registry::Handles;
use warden_core::event::{Barrier, Event, FenceOutcome, FenceReport, ReleaseReport, Report, ZooKeeperEvent};
use warden_core::haproxy::{HoldOutcome, HoldReport, RouteOutcome, RouteReport};
use warden_core::types::Moment;

impl Handles {
    /// Counts `event`, which was requested at `at`.
    pub(super) fn count(&self, event: &Event, at: Moment) {
        self.events.with_label_values(&[event.kind()]).inc();
        match event {
            Event::ZooKeeper(ZooKeeperEvent::SessionLost { reason, .. }) => {
                self.sessions_lost.with_label_values(&[reason]).inc()
            }
            Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Verified { finished, .. })) => {
                self.barrier_reads.with_label_values(&["verified"]).inc();
                self.barrier_seconds.observe(finished.since(at).as_secs_f64());
            }
            Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown(_))) => {
                self.barrier_reads.with_label_values(&["unknown"]).inc()
            }
            Event::Report(Report::Fence(FenceReport { rule, outcome, .. })) => {
                self.fences.with_label_values(&[rule.as_str(), outcome.as_str()]).inc();
                if let FenceOutcome::Confirmed { took, .. } = outcome {
                    self.fence_seconds.with_label_values(&[rule.as_str()]).observe(took.as_secs_f64());
                }
            }
            Event::Report(Report::Routed(RouteReport { pool, to, outcome, .. })) => {
                let outcome_name = match outcome {
                    RouteOutcome::Done { took } => {
                        self.route_seconds.with_label_values(&[to.as_str()]).observe(took.as_secs_f64());
                        "done"
                    }
                    RouteOutcome::Withdrawn(_) => "withdrawn",
                    RouteOutcome::Failed(_) => "failed",
                    RouteOutcome::Observed => "observed",
                };
                self.routes.with_label_values(&[pool.as_str(), to.as_str(), outcome_name]).inc();
            }
            Event::Report(Report::Hold(HoldReport { outcome, .. })) => match outcome {
                HoldOutcome::Begun => self.holds.with_label_values(&["done"]).inc(),
                HoldOutcome::Failed(_) => self.holds.with_label_values(&["failed"]).inc(),
                HoldOutcome::Ended { after } => self.hold_seconds.observe(after.as_secs_f64()),
            },
            Event::Report(Report::Release(report)) => {
                let outcome = match report {
                    ReleaseReport::Done { .. } => "done",
                    ReleaseReport::Withdrawn(_) => "withdrawn",
                    ReleaseReport::Failed(_) => "failed",
                    ReleaseReport::Observed => "observed",
                };
                self.releases.with_label_values(&[outcome]).inc();
            }
            Event::Report(Report::Nudged(outcome)) => {
                self.nudges.with_label_values(&[outcome.as_str()]).inc();
            }
            Event::Report(Report::Reconnected(outcome)) => {
                self.reconnects.with_label_values(&[outcome.as_str()]).inc();
            }
            Event::TaskFailed { task, .. } => self.task_failures.with_label_values(&[task]).inc(),
            _ => {}
        }
    }
}
