//! Reports: the log, the metrics, the HTTP API, and the state as JSON. `tell/` changes nothing in the cluster. It
//! writes only its own output, and later its own spool and outbox.

pub mod log;
pub mod metrics;
pub mod state;

pub mod leader;
pub mod picture;
pub mod plan;

pub mod http;

#[cfg(test)]
pub(crate) mod fixtures;

use log::story::{self, Story};
use metrics::Metrics;
use warden_core::event::Observed;
use warden_core::plan::Observation;
use warden_core::types::Moment;
use warden_core::view::View;

/// Reports each event twice: before the view takes it in, and after.
#[derive(Debug)]
pub struct Reporter {
    metrics: Metrics,
    story: Story,
}

impl Reporter {
    /// A reporter that has reported nothing yet.
    pub fn new(metrics: Metrics) -> Self {
        Self { metrics, story: Story::default() }
    }

    /// Counts and logs an event before the view takes it in.
    pub fn before(&mut self, observed: &Observed) {
        self.metrics.count(&observed.event, observed.at);
        self.story.event(&observed.event);
    }

    /// Logs the changes of the view after it has taken in an event.
    pub fn after(&mut self, view: &View) {
        if let Some(holder) = self.story.view(view) {
            self.metrics.count_leader_change(&holder);
        }
    }

    /// Logs an action that mode `observe` prevents.
    pub fn observed(&self, observation: &Observation) {
        story::observed(observation);
    }

    /// Logs the warnings that begin or end. The loop calls this once a second.
    pub fn tick(&mut self, view: &View, now: Moment) {
        self.story.warnings(view, now);
    }
}
