//! The agent's hands: a fence and a release, each looked at again right before it is carried out.

use crate::agent::{Act, AgentEvent, For};
use crate::hear::{FenceSaid, Heard};
use crate::patroni::Rest;
use crate::postgres::{InFront, PgEvent, State};
use crate::world::{Happening, World, letter, tell};
use crate::zookeeper::{Answer, Client, Record};
use warden_core::event::{Barrier, Event, PatroniAnswer, Rule};
use warden_core::rules::fence::{Guard, Order};
use warden_core::types::{MemberName, Moment};

/// What was read for an act is good for so long: an agent that was paused in between must not act on it.
const GUARD_LIMIT: u64 = 500;

pub fn number(member: &MemberName) -> usize {
    ["a", "b", "c"].iter().position(|name| *name == member.as_str()).unwrap()
}

impl World {
    pub fn begin_fence(&mut self, node: usize, order: Box<Order>) {
        tell!(self, "agent of {}: fence {} by {:?}, {}", letter(node), order.member, order.rule, order.reason);
        let unguarded = self.mutation.is_rash();
        let guard = order.guard.clone();
        let act = self.new_act(node, Act::Fence(order));
        match guard {
            Guard::Key(_) | Guard::KeyAndTimeline(..) if !unguarded => self.ask_barrier(node, For::Act(act)),
            // Patroni has the last word, and ZooKeeper is asked beside it.
            Guard::NoContact(_) if !unguarded => {
                let most = if self.nodes[node].patroni.rest == Rest::Slow { 900 } else { 20 };
                let takes = self.chance.between(1, most);
                self.ask_barrier(node, For::Act(act));
                self.agent_after(node, takes, AgentEvent::LastWord(act));
            }
            _ => self.agent_after(node, 1, AgentEvent::ActFence(act)),
        }
    }

    /// What Patroni says to the question right before a fence by lease. One that waited in front of a frozen Patroni
    /// is answered when it thaws.
    pub fn last_word(&mut self, node: usize, act: usize) {
        if !self.nodes[node].patroni.answers() {
            let rest = if self.nodes[node].patroni.alive { 1000 } else { 1 };
            return self.agent_after(node, rest, AgentEvent::NoLastWord(act));
        }
        self.no_last_word(node, act);
    }

    /// The question has waited long enough; an answer that came meanwhile is found.
    pub fn no_last_word(&mut self, node: usize, act: usize) {
        let Some(Act::Fence(order)) = self.nodes[node].agent.acts[act].clone() else { return };
        let Guard::NoContact(away) = &order.guard else { return };
        let heard = if self.nodes[node].patroni.answers() { self.patroni_says(node) } else { Heard::PatroniSilent };
        let Event::Patroni { answer, .. } = self.event(node, heard) else { return };
        match away.check(&Barrier::Unknown(String::new()), &answer, self.beat(node)) {
            Ok(()) => self.act_fence(node, act, None),
            Err(why) => {
                tell!(self, "agent of {}: no fence by lease, {why}", letter(node));
                self.nodes[node].agent.acts[act] = None;
                self.agent_after(node, 0, AgentEvent::Hear(self.now, heard));
                self.report_fence(node, 0, number(&order.member), order.rule, FenceSaid::Withdrawn);
            }
        }
    }

    /// When its Patroni's HA loop last turned: looked up once more, where the server answers.
    fn beat(&self, node: usize) -> Option<Moment> {
        let (agent, pg) = (&self.nodes[node].agent, &self.nodes[node].pg);
        let shown = pg.heartbeat.filter(|_| self.setting.heartbeat && pg.takes_sessions());
        let known = agent.view.leadership.heartbeat.map(|heartbeat| heartbeat.began);
        known.max(shown.map(|at| agent.moment(at)))
    }

    /// A barrier read for an act has been answered.
    pub fn guard(&mut self, node: usize, asked: u64, so_at: u64, act: usize, answer: Option<Answer>) {
        let fresh = self.now - asked <= GUARD_LIMIT + 2 * self.nodes[node].agent.lag;
        let answer = answer.filter(|_| fresh).zip(self.nodes[node].agent.session);
        let heard = answer.map_or(Heard::NoBarrier, |(answer, session)| Heard::Barrier(answer, session));
        let Event::Barrier(read) = self.event(node, heard) else { return };
        match self.nodes[node].agent.acts[act].clone() {
            Some(Act::Fence(order)) => {
                let checked = match &order.guard {
                    Guard::Key(condition) | Guard::KeyAndTimeline(condition, _) => condition.check(&read),
                    // Patroni is asked beside it; what it said is not known here.
                    Guard::NoContact(_) if answer.is_none() => return,
                    Guard::NoContact(away) => away.check(&read, &PatroniAnswer::Silent(String::new()), self.beat(node)),
                    Guard::Asked { .. } => Ok(()),
                };
                match checked {
                    Ok(()) => self.act_fence(node, act, Some(so_at)),
                    Err(why) => {
                        let said = if answer.is_some() { FenceSaid::Withdrawn } else { FenceSaid::Failed };
                        tell!(self, "agent of {}: no fence, {why}", letter(node));
                        self.nodes[node].agent.acts[act] = None;
                        self.report_fence(node, 1, number(&order.member), order.rule, said);
                    }
                }
            }
            Some(Act::Release(release)) => {
                let checked = release.condition.check(&read);
                // Lock and socket are looked at again, behind the read, which may have taken its time.
                let proved = self.nodes[node].pg.state == State::Down
                    && (release.handover_to.is_some() || !self.nodes[node].patroni.alive);
                // The deletion names the version.
                let possible = self.zk.key == answer.and_then(|(answer, _)| answer.key)
                    && self.reaches_zookeeper(Client::Agent(node));
                let done = checked.is_ok() && possible && (proved || self.mutation.trusts());
                if done {
                    self.check_release(node, release.handover_to.is_some());
                    self.delete_key();
                    if release.handover_to.is_none() {
                        self.record_fence(node, Some(Rule::Crashed));
                    }
                }
                self.agent_after(node, 1, AgentEvent::Hear(self.now, Heard::Released(done)));
            }
            None => {}
        }
    }

    /// The fence is carried out. `so_at` is when its guard was known to be so.
    pub fn act_fence(&mut self, node: usize, act: usize, so_at: Option<u64>) {
        let Some(Act::Fence(order)) = self.nodes[node].agent.acts[act].take() else { return };
        let (target, rule) = (number(&order.member), order.rule);
        if !self.reaches(node, target) {
            return self.report_fence(node, 1000, target, rule, FenceSaid::Failed);
        }
        let pg = &mut self.nodes[target].pg;
        if pg.paused && pg.state != State::Down {
            if target == node {
                pg.fence_in_front = Some(InFront { until: self.now + 10_000, by: node, rule, so_at });
                return self.report_fence(node, 500, target, rule, FenceSaid::Waiting);
            }
            return self.report_fence(node, 1000, target, rule, FenceSaid::Failed);
        }
        if target != node && pg.locked {
            return self.report_fence(node, 30, target, rule, FenceSaid::Failed);
        }
        // What starts lets no session in that could stop it; its own agent signals one that is no standby.
        match pg.state {
            State::Starting { standby } if standby || !order.starting || target != node => {
                return self.report_fence(node, 30, target, rule, FenceSaid::Failed);
            }
            _ => {}
        }
        // The server itself looks: another one may have come to the address.
        if let Guard::KeyAndTimeline(_, older_than) = &order.guard
            && pg.timeline >= older_than.0
        {
            return self.report_fence(node, 10, target, rule, FenceSaid::Withdrawn);
        }
        if matches!(pg.state, State::Down | State::Follows) {
            let pause = self.chance.between(1, 10);
            return self.report_fence(node, pause, target, rule, FenceSaid::Confirmed);
        }
        let life = pg.life;
        self.strike_fence(target, node, rule, so_at, false);
        let pause = self.chance.between(20, 50);
        self.after(pause, Happening::Pg(target, life, PgEvent::Fenced(node, rule)));
    }

    fn report_fence(&mut self, node: usize, pause: u64, target: usize, rule: Rule, said: FenceSaid) {
        let at = self.now + pause;
        self.agent_after(node, pause, AgentEvent::Hear(at, Heard::Fence(target, rule, said)));
    }

    pub fn fence_confirmed(&mut self, target: usize, by: usize, rule: Rule) {
        self.report_fence(by, 2, target, rule, FenceSaid::Confirmed);
        // What a person asked for is recorded already, or was taken back meanwhile.
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
