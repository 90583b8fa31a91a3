//! Prometheus metrics: a table of them (`registry`), the counters, and the gauges.
//!
//! The agent counts an event when it happens. It sets the gauges from the view for each scrape.

mod counters;
mod gauges;
mod registry;

use prometheus::{Encoder, Registry, TextEncoder};
use registry::Handles;
use warden_core::event::Event;
use warden_core::types::Moment;
use warden_core::view::View;

/// All metrics of one agent.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    handles: Handles,
}

impl Metrics {
    /// Registers every metric. It fails only if two metrics have one name, which a test rules out.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let handles = Handles::registered(&registry)?;
        Ok(Self { registry, handles })
    }

    /// Counts `event`, which was requested at `at`.
    pub fn count(&self, event: &Event, at: Moment) {
        self.handles.count(event, at);
    }

    /// Counts a change of the leader key to `holder`.
    pub fn count_leader_change(&self, holder: &str) {
        self.handles.leader_changes.with_label_values(&[holder]).inc();
    }

    /// All metrics in Prometheus's text format, with the gauges set from `view` at `now`.
    pub fn render(&self, view: &View, now: Moment) -> Result<Vec<u8>, prometheus::Error> {
        self.handles.set_gauges(view, now);
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests;
