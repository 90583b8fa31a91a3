//! How answers of the local PostgreSQL change what is remembered, and the agent's own actions on it.

use super::{Attempts, Gone, Leadership, NUDGE_EPISODE_GAP, OrderedFence, OrderedRelease, SERVER_UPTIME_MIN};
use crate::event::{FenceOutcome, FenceReport, Outcome, PostgresAnswer, Report, Started};
use crate::fact::{Fact, Source};
use crate::types::Moment;

impl Leadership {
    pub(super) fn note_postgres(&mut self, answer: &PostgresAnswer, at: Moment) {
        if let (PostgresAnswer::Writable(_), Some(term)) = (answer, &mut self.term) {
            term.was_writable |= at >= term.since;
        }
        // The end of a server after a normal life is a new reason. Repeated crashes are not.
        let lived = self.answers_since.is_some_and(|since| at.since(since) >= SERVER_UPTIME_MIN);
        if self.gone.is_none() && matches!(answer, PostgresAnswer::Gone(_)) && lived {
            self.nudges = None;
        }
        // A server that rejects the agent's login also runs. Too many connections are the usual cause of a missing
        // fence session.
        if answer.server().is_some() || matches!(answer, PostgresAnswer::Unknown(_)) {
            self.answers_since = self.answers_since.or(Some(at));
        } else {
            (self.answers_since, self.fence_session_lost) = (None, None);
        }
        if let Some(began) = answer.server().and_then(|server| server.heartbeat) {
            self.note_heartbeat(began, at);
        }
        if answer.server().is_some_and(|server| server.receives == Some(true)) {
            self.reconnects = None;
        }
        match answer {
            PostgresAnswer::Gone(_) => {
                let gone = self.gone.get_or_insert(Gone { since: at, last: at, probes: 0 });
                gone.last = gone.last.max(at);
                gone.probes += 1;
            }
            // It may have been started since, so the shutdown checkpoint is obsolete.
            PostgresAnswer::Writable(_)
            | PostgresAnswer::InRecovery(_)
            | PostgresAnswer::Refused(_)
            | PostgresAnswer::Starting(_)
            | PostgresAnswer::Stopping(_) => (self.gone, self.shutdown) = (None, None),
            // A question without an answer proves nothing, so it breaks the row.
            PostgresAnswer::Silent(_) | PostgresAnswer::Unknown(_) => self.gone = None,
        }
    }

    pub(super) fn note_started(&mut self, started: &Started, at: Moment) {
        match started {
            Started::Fence(member) => {
                let failing = self.ordered.remove(member).and_then(|before| before.failing);
                self.ordered.insert(member.clone(), OrderedFence { at, outcome: None, failing });
            }
            Started::Probe => self.probed = Some(at),
            Started::CloseFence => self.closed = Some(at),
            Started::Release => self.release = Some(OrderedRelease { at, outcome: None }),
            Started::Nudge => {
                let episode = self.nudges.filter(|nudges| at.since(nudges.last) < NUDGE_EPISODE_GAP);
                let count = episode.map_or(0, |nudges| nudges.count);
                self.nudges = Some(Attempts { last: at, count: count.saturating_add(1) });
            }
            Started::Reconnect => {
                let count = self.reconnects.map_or(0, |tries| tries.count);
                self.reconnects = Some(Attempts { last: at, count: count.saturating_add(1) });
            }
            Started::Keep(memory) => self.kept = Some(memory.clone()),
            Started::Verification
            | Started::Announcement(_)
            | Started::ProbeHaproxy
            | Started::Render
            | Started::Hold { .. }
            | Started::Route { .. } => {}
        }
    }

    pub(super) fn note_report(&mut self, report: &Report, at: Moment) {
        match report {
            Report::Fence(FenceReport { member, rule, outcome }) => {
                let ordered =
                    self.ordered.entry(member.clone()).or_insert(OrderedFence { at, outcome: None, failing: None });
                ordered.outcome = Some((outcome.clone(), *rule, at));
                ordered.failing = match outcome {
                    FenceOutcome::Failed(why) => Some((why.clone(), *rule, at)),
                    _ => None,
                };
            }
            Report::Release(report) => {
                let ordered = self.release.get_or_insert(OrderedRelease { at, outcome: None });
                ordered.outcome = Some((report.clone(), at));
            }
            Report::Nudged(outcome) => {
                self.nudge_failed = match outcome {
                    Outcome::Failed(why) => Some(Fact::new(why.clone(), Source::Patroni, at)),
                    Outcome::Done | Outcome::Observed => None,
                };
            }
            Report::Reconnected(_) | Report::Routed(_) | Report::Hold(_) | Report::Rendered(_) => {}
        }
    }
}
