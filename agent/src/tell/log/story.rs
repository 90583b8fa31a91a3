//! The log lines about the cluster. Each change is one line, which a person understands without the code.

use crate::clock::millis;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{debug, error, info, warn};
use warden_core::event::holder_text;
use warden_core::event::{AliveLock, Event, ZooKeeperEvent};
use warden_core::plan::Observation;
use warden_core::rules::route::Change;
use warden_core::types::Moment;
use warden_core::view::View;
use warden_core::warn::{self as warnings, Warning};

/// The agent logs a warning that this many evaluations in a row have found. It evaluates once a second. A shorter
/// warning is part of an ordinary change.
const EVALUATIONS_MIN: u32 = 2;

/// The memory of the log.
#[derive(Debug, Default)]
pub struct Story {
    holder: Option<String>,
    /// The reasons logged since the loss of the ZooKeeper session. Each failed attempt is a loss with a reason again.
    lost: BTreeSet<&'static str>,
    lock: Option<AliveLock>,
    /// The warnings that the log has raised and not cleared.
    raised: BTreeSet<Key>,
    /// The other warnings of the last evaluation, with the number of evaluations that have found them.
    pending: BTreeMap<Key, u32>,
}

/// The identity of a warning: code, member, subject. Its words may change while it lasts.
type Key = (&'static str, Option<String>, Option<String>);

fn key(warning: &Warning) -> Key {
    (warning.code, warning.member.as_ref().map(ToString::to_string), warning.subject.clone())
}

impl Story {
    /// Logs an event that is worth a line, before the view takes it in.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::ZooKeeper(ZooKeeperEvent::SessionStarted(session)) => {
                info!(
                    event = "session_started",
                    server = %session.server,
                    session = %session.id,
                    timeout_ms = millis(session.negotiated),
                    "ZooKeeper session started"
                );
                self.lost.clear();
            }
            // The agent itself ends this session, and a new one begins at once.
            Event::ZooKeeper(ZooKeeperEvent::SessionLost { reason: reason @ "settings_changed", detail }) => {
                info!(event = "session_replaced", reason, detail, "the agent replaces its ZooKeeper session");
            }
            Event::ZooKeeper(ZooKeeperEvent::SessionLost { reason, detail }) => {
                let first = self.lost.is_empty();
                if !self.lost.insert(reason) {
                    debug!(reason, detail, "still no ZooKeeper session");
                } else if first {
                    warn!(event = "session_lost", reason, detail, "no ZooKeeper session");
                } else {
                    warn!(event = "session_attempt_failed", reason, detail, "still no ZooKeeper session");
                }
            }
            Event::TaskFailed { task, error } => {
                error!(event = "task_failed", task, error, "a task failed; the agent restarts it");
            }
            _ => {}
        }
    }

    /// Logs the changes of the view. Returns the new holder of the leader key, if the holder has changed.
    pub fn view(&mut self, view: &View) -> Option<String> {
        if let Some(fact) = &view.alive_lock
            && self.lock.as_ref() != Some(&fact.value)
        {
            info!(
                event = "alive_lock_changed",
                state = fact.value.as_str(),
                detail = lock_detail(&fact.value),
                "alive lock state changed"
            );
            self.lock = Some(fact.value.clone());
        }
        let holder = holder_text(&view.leader.as_ref()?.value).to_owned();
        if self.holder.as_ref() == Some(&holder) {
            return None;
        }
        let czxid = view.leader.as_ref().and_then(|fact| fact.value.present()).map(|key| format!("{:#x}", key.czxid.0));
        let czxid = czxid.as_deref().map(tracing::field::display);
        let before = self.holder.as_deref().unwrap_or("unknown");
        info!(event = "leader_key_changed", holder, czxid, before, "leader key holder changed");
        self.holder = Some(holder.clone());
        Some(holder)
    }

    /// Logs the warnings that begin or end. The caller calls it once a second.
    pub fn warnings(&mut self, view: &View, now: Moment) {
        let present = warnings::warnings(view, now, None);
        let pending = std::mem::take(&mut self.pending);
        for warning in &present {
            let key = key(warning);
            if self.raised.contains(&key) {
                continue;
            }
            let seen = pending.get(&key).copied().unwrap_or(0) + 1;
            if seen >= EVALUATIONS_MIN {
                warn!(event = "warning_raised", code = warning.code, "{}", warning.message);
                self.raised.insert(key);
            } else {
                self.pending.insert(key, seen);
            }
        }
        let still: BTreeSet<_> = present.iter().map(key).collect();
        self.raised.retain(|key| {
            let lasts = still.contains(key);
            if !lasts {
                let (code, member, subject) = key;
                info!(event = "warning_cleared", code, member, subject, "warning cleared");
            }
            lasts
        });
    }
}

/// The reason for an unknown state of the alive lock, or the state itself.
fn lock_detail(lock: &AliveLock) -> &str {
    match lock {
        AliveLock::Unknown(why) => why,
        AliveLock::Alive | AliveLock::Gone => lock.as_str(),
    }
}

/// Logs an action that mode `observe` prevents.
pub fn observed(observation: &Observation) {
    match observation {
        Observation::Fence(order) => {
            let (member, rule, reason) = (order.member.as_str(), order.rule.as_str(), order.reason.as_str());
            warn!(event = "would_fence", member, rule, reason, "would be fenced (fencing.mode is observe)");
        }
        Observation::Release(release) => {
            let (member, reason) = (release.member.as_str(), release.reason.as_str());
            warn!(
                event = "would_release_leader_key",
                member, reason, "leader key would be released (fencing.mode is observe)"
            );
        }
        Observation::Nudge(reason) => {
            warn!(event = "would_nudge_patroni", reason, "Patroni would be nudged (fencing.mode is observe)");
        }
        Observation::Reconnect(reason) => {
            warn!(
                event = "would_reconnect_standby",
                reason, "standby would be asked to retry streaming (fencing.mode is observe)"
            );
        }
        Observation::Route(change) => {
            let Change { server, member, to, reason, .. } = &**change;
            let to = to.as_str();
            warn!(
                event = "would_set_haproxy_server",
                %server, %member, to, reason, "HAProxy server state would be set (mode is observe)"
            );
        }
    }
}

#[cfg(test)]
#[path = "story_tests.rs"]
mod tests;
