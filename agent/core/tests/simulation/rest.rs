//! Patroni's REST API, as the local agent uses it.
//!
//! The agent asks every second, and `/liveness` every five seconds. The API can be slow, or hang, while the HA loop
//! turns. It can answer while the HA loop hangs.

use crate::agent::AgentEvent;
use crate::input::Input;
use crate::patroni::Rest;
use crate::postgres::State;
use crate::world::World;

impl World {
    pub fn ask_patroni(&mut self, node: usize) {
        let patroni = &self.nodes[node].patroni;
        let (input, takes) = match (patroni.turns(), patroni.rest) {
            (true, Rest::Answers) => (self.patroni_answer(node), self.random.between(1, 20)),
            (true, Rest::Slow) => match self.random.between(1, 1200) {
                takes if takes < 1000 => (self.patroni_answer(node), takes),
                _ => (Input::PatroniSilent, 1000),
            },
            (false, _) if !patroni.alive || (patroni.starting && !patroni.frozen) => {
                (Input::PatroniRefuses, self.random.between(1, 5))
            }
            _ => (Input::PatroniSilent, 1000),
        };
        self.nodes[node].agent.question = matches!(input, Input::PatroniSilent).then_some(self.now);
        self.agent_after(node, takes, AgentEvent::Receive(self.now, input));
        self.agent_after(node, 1000, AgentEvent::AskPatroni);
    }

    /// `GET /liveness`, which needs no PostgreSQL.
    pub fn ask_liveness(&mut self, node: usize) {
        let known = &self.nodes[node];
        if known.patroni.turns() && known.patroni.rest != Rest::Hung {
            let primary = matches!(known.pg.state, State::TakesWrites | State::Starting { standby: false });
            let live = known.patroni.is_live(self.now, primary);
            let takes = self.random.between(1, 20);
            self.agent_after(node, takes, AgentEvent::Receive(self.now, Input::Liveness(live)));
        }
        self.agent_after(node, 5000, AgentEvent::AskLiveness);
    }

    /// A frozen Patroni answers a waiting question when it thaws.
    pub fn answer_question(&mut self, node: usize) {
        if self.nodes[node].patroni.answers()
            && let Some(asked) = self.nodes[node].agent.question.take_if(|asked| *asked + 1000 > self.now)
        {
            let (input, pause) = (self.patroni_answer(node), self.random.between(1, 20));
            self.agent_after(node, pause, AgentEvent::Receive(asked, input));
        }
    }

    pub fn patroni_answer(&mut self, node: usize) -> Input {
        let (patroni, pg) = (&self.nodes[node].patroni, &self.nodes[node].pg);
        let writable = pg.takes_sessions().then_some(pg.state == State::TakesWrites);
        // Patroni falls back on its last known role if its query fails.
        let primary = matches!(pg.state, State::TakesWrites | State::Starting { standby: false });
        // Patroni reports its last contact by the wall clock, in whole seconds. The agent keeps the time of a stamp
        // that it knows already, so that a clock step does not move it.
        let stamp = patroni.seen_by_clock / 1000 * 1000;
        let age = (self.now as i64 + patroni.clock - stamp).max(0) as u64;
        let failsafe = self.now < patroni.failsafe_until;
        let reported = self.nodes[node].agent.stamp.filter(|(known, _)| *known == stamp);
        let seen = reported.map_or(self.now.saturating_sub(age), |(_, seen)| seen);
        self.nodes[node].agent.stamp = Some((stamp, seen));
        Input::Patroni { writable, primary, seen, failsafe }
    }
}
