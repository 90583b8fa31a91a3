//! Patroni's REST API, as the agent beside it hears it.
//!
//! It is asked every second, and `/liveness` every five. It can be slow, or hang, while the HA loop turns; and it answers
//! while the HA loop hangs.

use crate::agent::AgentEvent;
use crate::hear::Heard;
use crate::patroni::Rest;
use crate::postgres::State;
use crate::world::World;

impl World {
    pub fn ask_patroni(&mut self, node: usize) {
        let patroni = &self.nodes[node].patroni;
        let (heard, takes) = match (patroni.turns(), patroni.rest) {
            (true, Rest::Answers) => (self.patroni_says(node), self.chance.between(1, 20)),
            (true, Rest::Slow) => match self.chance.between(1, 1200) {
                takes if takes < 1000 => (self.patroni_says(node), takes),
                _ => (Heard::PatroniSilent, 1000),
            },
            (false, _) if !patroni.alive || (patroni.starting && !patroni.frozen) => {
                (Heard::PatroniRefuses, self.chance.between(1, 5))
            }
            _ => (Heard::PatroniSilent, 1000),
        };
        self.nodes[node].agent.question = matches!(heard, Heard::PatroniSilent).then_some(self.now);
        self.agent_after(node, takes, AgentEvent::Hear(self.now, heard));
        self.agent_after(node, 1000, AgentEvent::AskPatroni);
    }

    /// `GET /liveness`, which needs no PostgreSQL.
    pub fn ask_liveness(&mut self, node: usize) {
        let known = &self.nodes[node];
        if known.patroni.turns() && known.patroni.rest != Rest::Hung {
            let primary = matches!(known.pg.state, State::TakesWrites | State::Starting { standby: false });
            let live = known.patroni.is_live(self.now, primary);
            let takes = self.chance.between(1, 20);
            self.agent_after(node, takes, AgentEvent::Hear(self.now, Heard::Liveness(live)));
        }
        self.agent_after(node, 5000, AgentEvent::AskLiveness);
    }

    /// A question that waits in front of a frozen Patroni is answered when it thaws.
    pub fn answer_question(&mut self, node: usize) {
        if self.nodes[node].patroni.answers()
            && let Some(asked) = self.nodes[node].agent.question.take_if(|asked| *asked + 1000 > self.now)
        {
            let (heard, pause) = (self.patroni_says(node), self.chance.between(1, 20));
            self.agent_after(node, pause, AgentEvent::Hear(asked, heard));
        }
    }

    pub fn patroni_says(&mut self, node: usize) -> Heard {
        let (patroni, pg) = (&self.nodes[node].patroni, &self.nodes[node].pg);
        let writable = pg.takes_sessions().then_some(pg.state == State::TakesWrites);
        // By a cached word where the query failed: that of how it was started, or was before a crash.
        let primary = matches!(pg.state, State::TakesWrites | State::Starting { standby: false });
        // It tells its last contact by the wall clock, in whole seconds; one that was told before is reckoned by the
        // clock of that time, so that a clock that is set does not move it.
        let stamp = patroni.seen_by_clock / 1000 * 1000;
        let age = (self.now as i64 + patroni.clock - stamp).max(0) as u64;
        let failsafe = self.now < patroni.failsafe_until;
        let told = self.nodes[node].agent.stamp.filter(|(known, _)| *known == stamp);
        let seen = told.map_or(self.now.saturating_sub(age), |(_, seen)| seen);
        self.nodes[node].agent.stamp = Some((stamp, seen));
        Heard::Patroni { writable, primary, seen, failsafe }
    }
}
