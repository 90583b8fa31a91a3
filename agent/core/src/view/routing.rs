//! How HAProxy's answers, and reports of commands to it, change the view.

use super::{View, replace};
use crate::event::HaproxyEvent;
use crate::fact::{Fact, Source};
use crate::haproxy::file::RenderReport;
use crate::haproxy::{HoldOutcome, HoldReport, RouteOutcome, RouteReport};
use crate::types::Moment;

impl View {
    pub(super) fn apply_haproxy(&mut self, event: HaproxyEvent, at: Moment) {
        match event {
            HaproxyEvent::Answered(answer) => replace(&mut self.haproxy, Fact::new(answer, Source::Haproxy, at)),
            HaproxyEvent::FrontendsFull(full) => {
                self.routing.full = full.into_iter().map(|(name, limit)| (name, (limit, at))).collect();
            }
            HaproxyEvent::File(reading) => self.haproxy_file.note_file(reading),
        }
    }

    pub(super) fn note_routed(&mut self, report: RouteReport, at: Moment) {
        let server = report.server;
        match report.outcome {
            RouteOutcome::Done { .. } | RouteOutcome::Observed | RouteOutcome::Withdrawn(_) => {
                self.routing.failing.remove(&server);
            }
            RouteOutcome::Failed(why) => {
                self.routing.failing.insert(server, (why, at));
            }
        }
    }

    pub(super) fn note_hold(&mut self, report: HoldReport, at: Moment) {
        match report.outcome {
            HoldOutcome::Failed(why) => {
                self.routing.cannot_hold.insert(report.proxy, (why, at));
            }
            HoldOutcome::Begun => {
                self.routing.cannot_hold.remove(&report.proxy);
            }
            HoldOutcome::Ended { .. } => {}
        }
    }

    pub(super) fn note_rendered(&mut self, report: RenderReport, at: Moment) {
        self.haproxy_file.ordered = None;
        self.haproxy_file.failed = match report {
            RenderReport::Done { reloaded } => {
                if reloaded {
                    self.haproxy_file.reloaded = Some(at);
                }
                None
            }
            RenderReport::Failed(why) => Some((why, at)),
        };
    }
}
