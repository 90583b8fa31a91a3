//! How answers of the local Patroni, its heartbeat and its alive lock change what is remembered.

use super::{ANSWER_GAP_MAX, Heartbeat, Leadership, Silence};
use crate::event::{AliveLock, PatroniAnswer};
use crate::fact::{Fact, Source};
use crate::types::Moment;
use core::time::Duration;

/// PostgreSQL reports the age of a query, so its begin is known with this error at most. A process that ends may have
/// begun its last query right before.
const BEAT_ERROR_MAX: Duration = Duration::from_secs(1);

impl Leadership {
    pub(super) fn note_patroni(&mut self, answer: &PatroniAnswer, at: Moment, now: Moment) {
        match answer {
            PatroniAnswer::Answering(status) => {
                self.has_answered = true;
                let silent = self.silence.take().is_some();
                let gap = silent || self.answered_at.is_none_or(|last| at.since(last) > ANSWER_GAP_MAX);
                // The first answer counts from its arrival: it may have been queued at a frozen Patroni.
                let since = if gap { now } else { self.answering_since.unwrap_or(now) };
                (self.answering_since, self.answered_at) =
                    (Some(since), Some(self.answered_at.map_or(at, |last| last.max(at))));
                // A thawed Patroni reports a contact from before. Only a contact after an answer counts.
                self.note_contact(status.dcs_last_seen.filter(|seen| *seen > since));
                self.failsafe = Some(Fact::new(status.failsafe_active, Source::Patroni, at));
                self.reported_contact = status.dcs_last_seen;
                self.patroni_name = status.name.clone().or_else(|| self.patroni_name.take());
            }
            PatroniAnswer::Silent(_) | PatroniAnswer::Refused(_) => {
                self.silence.get_or_insert(Silence { since: at, known: now, refuted: false });
                // Without a usable alive lock, a port without a listener proves the end.
                if matches!(answer, PatroniAnswer::Refused(_)) && !self.lock_was_ever_held {
                    self.note_patroni_ended();
                }
            }
            // It answered, so it is not silent.
            PatroniAnswer::Unusable(_) | PatroniAnswer::Anothers(_) => self.silence = None,
        }
    }

    /// Notes the alive lock beside Patroni's newest answer, at `answered` if it is recent.
    ///
    /// A lock held while Patroni answers counts for this term. A lock found free before Patroni answered, or before its
    /// heartbeat began a query, is not this Patroni's: Patroni was restarted without it, or the agent has not yet seen
    /// it held (simulation, seed 507131: its API hangs, and only the heartbeat shows it).
    pub fn note_lock(&mut self, lock: &Fact<AliveLock>, answered: Option<Moment>) {
        let relied_on = match (&lock.value, answered) {
            (AliveLock::Alive, Some(_)) => true,
            (AliveLock::Gone, Some(answered)) if answered > lock.at => false,
            (AliveLock::Gone, _) if self.heartbeat.is_some_and(|beat| beat.began > lock.at.plus(BEAT_ERROR_MAX)) => {
                false
            }
            _ => return,
        };
        self.lock_was_ever_held = relied_on;
        if let Some(term) = &mut self.term {
            term.lock_was_held = relied_on;
        }
    }

    pub(super) fn note_heartbeat(&mut self, began: Moment, looked: Moment) {
        let began = self.heartbeat.map_or(began, |known| known.began.max(began));
        self.heartbeat = Some(Heartbeat { began, looked });
    }

    pub(super) fn note_contact(&mut self, at: Option<Moment>) {
        if self.term.as_ref().is_none_or(|term| !term.patroni_ended) {
            self.patroni_contact = self.patroni_contact.max(at);
        }
    }

    pub(super) fn note_patroni_ended(&mut self) {
        if let Some(term) = &mut self.term {
            term.patroni_ended = true;
        }
    }
}
