//! The facts about one member, and how its answers change them.

use super::{View, replace};
use crate::event::{AgentRecord, MemberEvent, MemberRecord, PatroniAnswer, PatroniStatus, PostgresAnswer};
use crate::fact::{Fact, Reading, Source};
use crate::types::{MemberName, Moment, SystemId};
use alloc::string::String;
use core::time::Duration;

/// The facts about one member.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Member {
    /// Its znode.
    pub record: Option<Fact<Reading<MemberRecord>>>,
    /// The newest readable znode: the member's address after its znode has gone.
    pub last_record: Option<MemberRecord>,
    /// Its Patroni's last answer to the agent.
    pub patroni: Option<Fact<PatroniAnswer>>,
    /// Since when its Patroni has not answered.
    pub patroni_away_since: Option<Moment>,
    /// Its Patroni's last answer to `GET /liveness`: whether its HA loop turns.
    pub loop_turns: Option<Fact<bool>>,
    /// Its PostgreSQL's last answer to the agent.
    pub postgres: Option<Fact<PostgresAnswer>>,
    /// The system identifier that its PostgreSQL last reported.
    pub system_id: Option<SystemId>,
    /// Since when every source has shown its PostgreSQL writable.
    pub writable_since: Option<Moment>,
    /// Whether the gate's login to its server worked at the last try. The error gives the reason why not.
    pub gate_checked: Option<Fact<Result<(), String>>>,
    /// The newest report of whether it takes writes, from its server, its agent or its Patroni, and its time. A refusal
    /// is no report: a former primary that starts again takes writes once it is up.
    pub last_writability: Option<(Moment, bool)>,
    /// Its last sign of life.
    pub alive_at: Option<Moment>,
}

impl Member {
    /// Updates [`Member::last_writability`].
    fn note_writability(&mut self, reported: Option<bool>, at: Moment) {
        if let Some(writes) = reported
            && self.last_writability.is_none_or(|(known, _)| known <= at)
        {
            self.last_writability = Some((at, writes));
        }
    }

    /// Updates [`Member::writable_since`] by an answer of its PostgreSQL. `None`: the answer does not show it.
    pub(super) fn note_writable_since(&mut self, writable: Option<bool>, at: Moment) {
        match writable {
            Some(true) => self.writable_since = Some(self.writable_since.map_or(at, |since| since.min(at))),
            Some(false) => self.writable_since = None,
            None => {}
        }
    }

    /// Notes an answer of its Patroni to its own agent at `at`. PostgreSQL's answer to that agent outranks Patroni's
    /// report, and so does a later answer.
    fn note_patroni_by_agent(
        &mut self,
        status: &PatroniStatus,
        postgres: Option<&(PostgresAnswer, Duration)>,
        at: Moment,
    ) {
        self.alive_at = self.alive_at.max(Some(at));
        let is_said = postgres.is_some_and(|(answer, _)| answer.writable_for_new_sessions().is_some());
        if !is_said && self.writable_since.is_none_or(|since| since <= at) {
            self.note_writable_since(status.writable, at);
        }
    }
}

impl View {
    pub(super) fn apply_member(&mut self, name: MemberName, event: MemberEvent, at: Moment) {
        // A lost session is no answer, so it adds no member.
        if event == MemberEvent::SessionBroke {
            return self.routing.note_session_loss(name, at);
        }
        let member = self.members.entry(name).or_default();
        match event {
            MemberEvent::Patroni(answer) => {
                match &answer {
                    PatroniAnswer::Answering(status) => {
                        member.alive_at = Some(at);
                        member.patroni_away_since = None;
                        member.note_writable_since(status.writable, at);
                        member.note_writability(status.writable, at);
                    }
                    // A process answers.
                    PatroniAnswer::Unusable(_) | PatroniAnswer::Anothers(_) => member.patroni_away_since = None,
                    PatroniAnswer::Silent(_) | PatroniAnswer::Refused(_) => {
                        member.patroni_away_since.get_or_insert(at);
                    }
                }
                replace(&mut member.patroni, Fact::new(answer, Source::Patroni, at));
            }
            MemberEvent::Postgres { via, answer } => {
                if let Some(server) = answer.server() {
                    member.alive_at = Some(at);
                    member.system_id = server.system_id.or(member.system_id);
                }
                member.note_writable_since(answer.writable_for_new_sessions(), at);
                member.note_writability(answer.writable_or_standby(), at);
                replace(&mut member.postgres, Fact::new(answer, via, at));
            }
            MemberEvent::Liveness { turns } => replace(&mut member.loop_turns, Fact::new(turns, Source::Patroni, at)),
            MemberEvent::GateChecked(outcome) => replace(&mut member.gate_checked, Fact::new(outcome, Source::Tcp, at)),
            MemberEvent::SessionBroke => {}
        }
    }

    /// Notes an agent's report of its own member. A node with an agent is a member, even while its Patroni has no
    /// session.
    pub(super) fn note_member_by_agent(&mut self, record: &AgentRecord, is_own: bool, at: Moment) {
        let Some(name) = record.member.clone() else { return };
        let member = self.members.entry(name).or_default();
        if let Some((answer, age)) = &record.postgres {
            let asked = at.minus(*age);
            member.note_writable_since(answer.writable_for_new_sessions(), asked);
            member.note_writability(answer.writable_or_standby(), asked);
        }
        // The answers of the local Patroni arrive directly.
        if let Some((answer, age)) = &record.patroni
            && let PatroniAnswer::Answering(status) = &**answer
            && !is_own
        {
            member.note_patroni_by_agent(status, record.postgres.as_ref(), at.minus(*age));
        }
    }
}
