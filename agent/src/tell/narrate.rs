//! The log as a story: what changed, in words, once. A person who reads it at night should not need the code.

use std::collections::{BTreeMap, BTreeSet};
use tracing::{debug, info, warn};
use warden_core::event::holder_text;
use warden_core::event::{AliveLock, Event};
use warden_core::types::Moment;
use warden_core::view::View;
use warden_core::warn::{self as warnings, Warning};

/// A warning is logged when it has lasted this many looks: one look a second, and what passes within one
/// is the ordinary noise of a change.
const LASTING: u32 = 2;

/// Remembers what has been told.
#[derive(Debug, Default)]
pub struct Narrator {
    holder: Option<String>,
    /// The reasons told since the ZooKeeper session was lost: each attempt that fails is a loss again.
    lost: BTreeSet<&'static str>,
    lock: Option<AliveLock>,
    told: BTreeSet<Key>,
    /// The warnings of the last look that have not been told, and how many looks they have lasted.
    pending: BTreeMap<Key, u32>,
}

/// Which warning it is: code, member, subject. Its words change while it lasts.
type Key = (&'static str, Option<String>, Option<String>);

fn key(warning: &Warning) -> Key {
    (warning.code, warning.member.as_ref().map(ToString::to_string), warning.subject.clone())
}

impl Narrator {
    /// Tells an event that is worth a line, before it is applied.
    pub fn event(&mut self, event: &Event) {
        match event {
            Event::SessionStarted(session) => {
                info!(
                    server = %session.server,
                    session = %session.id,
                    timeout_ms = super::state::millis(session.negotiated),
                    "ZooKeeper session started"
                );
                self.lost.clear();
            }
            // Our own doing, and a new session begins at once.
            Event::SessionLost { reason: reason @ "settings_changed", detail } => {
                info!(reason, detail, "the ZooKeeper session is begun anew");
            }
            Event::SessionLost { reason, detail } => {
                let first = self.lost.is_empty();
                if !self.lost.insert(reason) {
                    debug!(reason, detail, "still no ZooKeeper session");
                } else if first {
                    warn!(reason, detail, "no ZooKeeper session");
                } else {
                    warn!(reason, detail, "still no ZooKeeper session");
                }
            }
            Event::TaskFailed { task, error } => tracing::error!(task, error, "a task failed and is started again"),
            _ => {}
        }
    }

    /// Tells what the view has come to differ in; the new holder of the leader key where that changed.
    pub fn view(&mut self, view: &View) -> Option<String> {
        if let Some(fact) = &view.alive_lock
            && self.lock.as_ref() != Some(&fact.value)
        {
            info!(state = fact.value.as_str(), detail = super::state::lock_detail(&fact.value), "alive lock");
            self.lock = Some(fact.value.clone());
        }
        let holder = holder_text(&view.leader.as_ref()?.value).to_owned();
        if self.holder.as_ref() == Some(&holder) {
            return None;
        }
        let czxid = view.leader.as_ref().and_then(|fact| fact.value.present()).map(|key| format!("{:#x}", key.czxid.0));
        let czxid = czxid.as_deref().map(tracing::field::display);
        info!(holder, czxid, before = self.holder.as_deref().unwrap_or("unknown"), "leader key");
        self.holder = Some(holder.clone());
        Some(holder)
    }

    /// Tells which warnings have come to stay and which are over. To be called once a second.
    pub fn warnings(&mut self, view: &View, now: Moment) {
        let present = warnings::warnings(view, now, None);
        let pending = std::mem::take(&mut self.pending);
        for warning in &present {
            let key = key(warning);
            if self.told.contains(&key) {
                continue;
            }
            let seen = pending.get(&key).copied().unwrap_or(0) + 1;
            if seen >= LASTING {
                warn!(code = warning.code, "{}", warning.message);
                self.told.insert(key);
            } else {
                self.pending.insert(key, seen);
            }
        }
        let still: BTreeSet<_> = present.iter().map(key).collect();
        self.told.retain(|key| {
            let lasts = still.contains(key);
            if !lasts {
                let (code, member, subject) = key;
                info!(code, member, subject, "no longer");
            }
            lasts
        });
    }
}

#[cfg(test)]
#[path = "narrate_tests.rs"]
mod tests;
