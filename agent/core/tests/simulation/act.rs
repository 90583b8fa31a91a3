//! The agent's actors: a fence and a release. Each checks its condition again right before the act.

use crate::agent::{Act, AgentEvent, ReadPurpose};
use crate::input::{FenceResult, Input};
use crate::patroni::Rest;
use crate::postgres::{PgEvent, QueuedFence, State};
use crate::world::{World, WorldEvent, letter, log};
use crate::zookeeper::{Answer, Client, Record};
use warden_core::decide::FENCE_ORDER_LIFETIME;
use warden_core::event::{Barrier, Event, MemberEvent, PatroniAnswer, Rule, ZooKeeperEvent};
use warden_core::rules::fence::{Guard, Order};
use warden_core::types::{MemberName, Moment};

/// A read for an act counts for this time, in milliseconds. An agent that was paused in between must not act on it.
const GUARD_AGE_MAX: u64 = 500;

/// A statement that waits in front of a paused server is valid for this long, in milliseconds.
pub const ORDER_LIFETIME: u64 = FENCE_ORDER_LIFETIME.as_secs() * 1000;

pub fn number(member: &MemberName) -> usize {
    ["a", "b", "c"].iter().position(|name| *name == member.as_str()).unwrap()
}

impl World {
    pub fn begin_fence(&mut self, node: usize, order: Box<Order>) {
        log!(self, "agent of {}: fence {} by {:?}, {}", letter(node), order.member, order.rule, order.reason);
        let unguarded = self.mutation.skips_fence_guard();
        let guard = order.guard.clone();
        let act = self.new_act(node, Act::Fence(order));
        match guard {
            Guard::Key(_) | Guard::KeyAndTimeline(..) if !unguarded => self.ask_barrier(node, ReadPurpose::Act(act)),
            // The agent asks Patroni once more, and ZooKeeper at the same time.
            Guard::NoContact(_) if !unguarded => {
                let most = if self.nodes[node].patroni.rest == Rest::Slow { 900 } else { 20 };
                let takes = self.random.between(1, most);
                self.ask_barrier(node, ReadPurpose::Act(act));
                self.agent_after(node, takes, AgentEvent::LastAnswer(act));
            }
            _ => self.agent_after(node, 1, AgentEvent::ActFence(act)),
        }
    }

    /// Patroni answers the last question before a fence by lease. A frozen Patroni answers when it thaws.
    pub fn last_answer(&mut self, node: usize, act: usize) {
        if !self.nodes[node].patroni.answers() {
            let rest = if self.nodes[node].patroni.alive { 1000 } else { 1 };
            return self.agent_after(node, rest, AgentEvent::LastAnswerLimit(act));
        }
        self.last_answer_limit(node, act);
    }

    /// The last question has reached its time limit. An answer that came meanwhile counts.
    pub fn last_answer_limit(&mut self, node: usize, act: usize) {
        let Some(Act::Fence(order)) = self.nodes[node].agent.acts[act].clone() else { return };
        let Guard::NoContact(away) = &order.guard else { return };
        let input = if self.nodes[node].patroni.answers() { self.patroni_answer(node) } else { Input::PatroniSilent };
        let Event::Member(_, MemberEvent::Patroni(answer)) = self.event(node, input) else { return };
        match away.check(&Barrier::Unknown(String::new()), &answer, self.heartbeat_at(node)) {
            Ok(()) => self.act_fence(node, act, None),
            Err(why) => {
                log!(self, "agent of {}: no fence by lease, {why}", letter(node));
                self.nodes[node].agent.acts[act] = None;
                self.agent_after(node, 0, AgentEvent::Receive(self.now, input));
                self.report_fence(node, 0, number(&order.member), order.rule, FenceResult::Withdrawn);
            }
        }
    }

    /// The last turn of the HA loop by the heartbeat, read once more if the server answers.
    fn heartbeat_at(&self, node: usize) -> Option<Moment> {
        let (agent, pg) = (&self.nodes[node].agent, &self.nodes[node].pg);
        let shown = pg.heartbeat.filter(|_| self.setting.heartbeat && pg.takes_sessions());
        let known = agent.view.leadership.heartbeat.map(|heartbeat| heartbeat.began);
        known.max(shown.map(|at| agent.moment(at)))
    }

    /// ZooKeeper has answered the barrier read for an act.
    pub fn guard(&mut self, node: usize, asked: u64, verified_at: u64, act: usize, answer: Option<Answer>) {
        let fresh = self.now - asked <= GUARD_AGE_MAX + 2 * self.nodes[node].agent.lag;
        let answer = answer.filter(|_| fresh).zip(self.nodes[node].agent.session);
        let input = answer.map_or(Input::NoBarrier, |(answer, session)| Input::Barrier(answer, session));
        let Event::ZooKeeper(ZooKeeperEvent::Barrier(read)) = self.event(node, input) else { return };
        match self.nodes[node].agent.acts[act].clone() {
            Some(Act::Fence(order)) => {
                let checked = match &order.guard {
                    Guard::Key(condition) | Guard::KeyAndTimeline(condition, _) => condition.check(&read),
                    // The question to Patroni decides, and its answer comes separately.
                    Guard::NoContact(_) if answer.is_none() => return,
                    Guard::NoContact(away) => {
                        away.check(&read, &PatroniAnswer::Silent(String::new()), self.heartbeat_at(node))
                    }
                    Guard::Asked { .. } => Ok(()),
                };
                match checked {
                    Ok(()) => self.act_fence(node, act, Some(verified_at)),
                    Err(why) => {
                        let result = if answer.is_some() { FenceResult::Withdrawn } else { FenceResult::Failed };
                        log!(self, "agent of {}: no fence, {why}", letter(node));
                        self.nodes[node].agent.acts[act] = None;
                        self.report_fence(node, 1, number(&order.member), order.rule, result);
                    }
                }
            }
            Some(Act::Release(release)) => {
                let checked = release.condition.check(&read);
                // The agent checks lock and socket again after the read, which may have taken long.
                let proved = self.nodes[node].pg.state == State::Down
                    && (release.handover_to.is_some() || !self.nodes[node].patroni.alive);
                // The deletion names the version of the key.
                let possible = self.zk.key == answer.and_then(|(answer, _)| answer.key)
                    && self.reaches_zookeeper(Client::Agent(node));
                let done = checked.is_ok() && possible && (proved || self.mutation.skips_release_proof());
                if done {
                    self.check_release(node, release.handover_to.is_some());
                    self.delete_key();
                    if release.handover_to.is_none() {
                        self.record_fence(node, Some(Rule::Crashed));
                    }
                }
                self.agent_after(node, 1, AgentEvent::Receive(self.now, Input::Released(done)));
            }
            Some(Act::Cut(change)) => self.guard_cut(node, act, &change, answer),
            None => {}
        }
    }

    /// Carries out the fence. `verified_at` is the time at which the guard's condition was true.
    pub fn act_fence(&mut self, node: usize, act: usize, verified_at: Option<u64>) {
        let Some(Act::Fence(order)) = self.nodes[node].agent.acts[act].take() else { return };
        let (target, rule) = (number(&order.member), order.rule);
        if !self.reaches(node, target) {
            return self.report_fence(node, 1000, target, rule, FenceResult::Failed);
        }
        let pg = &mut self.nodes[target].pg;
        if pg.paused && pg.state != State::Down {
            if target == node {
                pg.queued_fence = Some(QueuedFence { until: self.now + ORDER_LIFETIME, by: node, rule, verified_at });
                return self.report_fence(node, 500, target, rule, FenceResult::Waiting);
            }
            return self.report_fence(node, 1000, target, rule, FenceResult::Failed);
        }
        if target != node && pg.logins_refused {
            return self.report_fence(node, 30, target, rule, FenceResult::Failed);
        }
        // A starting server accepts no session that could stop it. Its own agent signals it unless it is a standby.
        match pg.state {
            State::Starting { standby } if standby || !order.starting || target != node => {
                return self.report_fence(node, 30, target, rule, FenceResult::Failed);
            }
            _ => {}
        }
        // The statement checks the timeline on the server: another server may use the address now.
        if let Guard::KeyAndTimeline(_, older_than) = &order.guard
            && pg.timeline >= older_than.0
        {
            return self.report_fence(node, 10, target, rule, FenceResult::Withdrawn);
        }
        if matches!(pg.state, State::Down | State::Follows) {
            let pause = self.random.between(1, 10);
            return self.report_fence(node, pause, target, rule, FenceResult::Confirmed);
        }
        let life = pg.life;
        self.check_fence(target, node, rule, verified_at, false);
        let pause = self.random.between(20, 50);
        self.after(pause, WorldEvent::Pg(target, life, PgEvent::Fenced(node, rule)));
    }

    fn report_fence(&mut self, node: usize, pause: u64, target: usize, rule: Rule, result: FenceResult) {
        let at = self.now + pause;
        self.agent_after(node, pause, AgentEvent::Receive(at, Input::Fence(target, rule, result)));
    }

    pub fn fence_confirmed(&mut self, target: usize, by: usize, rule: Rule) {
        self.report_fence(by, 2, target, rule, FenceResult::Confirmed);
        // The agent has recorded an operator's fence already, or the operator has lifted it.
        let recorded = rule == Rule::Operator || self.zk.records[target].is_some();
        if self.reaches_zookeeper(Client::Agent(by)) && !recorded {
            self.record_fence(target, Some(rule));
        }
    }

    pub fn record_fence(&mut self, target: usize, rule: Option<Rule>) {
        if self.zk.records[target].is_some_and(|record| record.rule == Rule::Operator) && rule.is_some() {
            return;
        }
        let (mzxid, at) = (self.zk.transaction(), self.now);
        self.zk.records[target] = rule.map(|rule| Record { rule, mzxid, at });
        self.record_changed(target);
    }
}
