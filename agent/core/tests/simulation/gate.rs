//! `pre_promote`: `warden gate`, which Patroni runs after it has taken the key and before it promotes.
//!
//! Patroni sets no time limit; its session and its HA loop go on. A cycle without the key cancels the hook. After a
//! refusal, the next cycle that holds the key gives it back, and Patroni skips the race for ttl. The hook is a process
//! of its own, and runs while Patroni is frozen. The rule is core's. The picture comes from the local agent, or from
//! ZooKeeper if no agent answers.

use crate::agent::ReadPurpose;
use crate::input::Input;
use crate::mutation::Mutation;
use crate::patroni::PatroniEvent;
use crate::postgres::{PgEvent, State};
use crate::world::{World, WorldEvent, letter, log};
use crate::zookeeper::{Answer, Client};
use std::time::Duration;
use warden_core::event::{Observed, Rule};
use warden_core::evidence::Standing;
use warden_core::fixtures;
use warden_core::rules::gate::{Found, Key, Memory, Picture, Verdict, judge, picture};
use warden_core::types::Moment;
use warden_core::view::View;

/// `gate.wait_s`, in milliseconds.
pub const GATE_WAIT: u64 = 15_000;

/// A run of the hook.
pub struct Hook {
    pub began: u64,
    /// When the hook asked for a linearizable read.
    asked: Option<u64>,
    memory: Memory,
    picture: Option<Picture>,
}

/// The hook has a clock of its own.
fn moment(at: u64) -> Moment {
    Moment::from_millis(1_000_000 + at)
}

impl World {
    pub fn begin_hook(&mut self, node: usize) {
        let known = &mut self.nodes[node];
        let patroni = &mut known.patroni;
        if patroni.hook.is_some() || known.pg.promoting {
            return;
        }
        patroni.hooks += 1;
        let pausing = std::mem::take(&mut patroni.to_pause);
        let memory = Memory::new(moment(self.now));
        patroni.hook = Some(Hook { began: self.now, asked: None, memory, picture: None });
        let run = patroni.hooks;
        if pausing {
            self.nodes[node].paused = true;
            self.freeze_patroni(node);
            self.pause_pg(node);
        }
        let pause = self.random.between(5, 20);
        self.after(pause, WorldEvent::Hook(node, run));
    }

    /// Patroni's HA loop cancels the hook, at no cost.
    pub fn cancel_hook(&mut self, node: usize) {
        if self.nodes[node].patroni.hook.take().is_some() {
            log!(self, "Patroni of {} cancels pre_promote: the key is gone", letter(node));
        }
    }

    pub fn hook_round(&mut self, node: usize, run: u32) {
        let patroni = &self.nodes[node].patroni;
        let Some(hook) = patroni.hook.as_ref().filter(|_| patroni.hooks == run) else { return };
        // The whole node is paused, or its server.
        if self.nodes[node].pg.paused {
            return self.after(100, WorldEvent::Hook(node, run));
        }
        let Some(asked) = hook.asked else {
            let takes = self.ask_agent(node);
            self.nodes[node].patroni.hook.as_mut().unwrap().asked = Some(self.now);
            return self.after(takes, WorldEvent::Hook(node, run));
        };
        let drawn = self.gate_picture(node, asked);
        let mut hook = self.nodes[node].patroni.hook.take().unwrap();
        hook.asked = None;
        hook.picture = drawn.or(hook.picture);
        let verdict = self.gate_verdict(node, &mut hook);
        self.check_gate(node, &hook, hook.picture.as_ref(), &verdict);
        match verdict {
            Verdict::Wait(_) => {
                self.nodes[node].patroni.hook = Some(hook);
                self.after(100, WorldEvent::Hook(node, run));
            }
            Verdict::Pass => {
                let (life, now) = (self.nodes[node].patroni.life, self.now);
                log!(self, "the gate of {} passes after {} ms", letter(node), now - hook.began);
                // A gate without a picture could not stop any server.
                self.nodes[node].patroni.passed_at = hook.picture.is_some().then_some(now);
                let pause = self.random.between(1, 10);
                self.after(pause, WorldEvent::Patroni(node, life, PatroniEvent::Promote));
            }
            Verdict::Refuse(why) => {
                log!(self, "the gate of {} refuses after {} ms: {why}", letter(node), self.now - hook.began);
                self.nodes[node].patroni.hook_refused = true;
                self.wake_patroni(node, 20);
            }
        }
    }

    /// The local agent makes a linearizable read. Returns the time that it takes.
    fn ask_agent(&mut self, node: usize) -> u64 {
        let agent = &self.nodes[node].agent;
        let (up, paused, takes) = (agent.up, agent.paused, 6 + 2 * agent.lag);
        match (up, paused) {
            (true, false) => {
                self.ask_barrier(node, ReadPurpose::View);
                takes.min(500)
            }
            (true, true) => 500,
            (false, _) => 10,
        }
    }

    /// The picture by the agent's view, or by a new read of ZooKeeper.
    fn gate_picture(&self, node: usize, asked: u64) -> Option<Picture> {
        let (agent, own) = (&self.nodes[node].agent, letter(node).into());
        let (asked, now) = (agent.moment(asked), agent.moment(self.now));
        let mut drawn = None;
        if agent.up && !agent.paused {
            drawn = picture(&agent.view, &own, asked, now);
        }
        let wants = drawn.as_ref().is_none_or(Picture::wants_zookeeper);
        if wants && self.reaches_zookeeper(Client::Agent(node)) {
            drawn = picture(&self.zookeeper_view(node), &own, now, now).or(drawn);
        }
        if self.mutation == Mutation::OldRecordCounts
            && let Some(drawn) = &mut drawn
        {
            for other in &mut drawn.others {
                other.recorded |= self.zk.records[crate::act::number(&other.name)].is_some();
            }
        }
        drawn
    }

    /// A view of the present ZooKeeper only.
    fn zookeeper_view(&self, node: usize) -> View {
        let agent = &self.nodes[node].agent;
        let mut view = View::new(agent.view.identity.clone());
        let now = agent.moment(self.now);
        let session = usize::MAX >> 1;
        let answer = Answer { key: self.zk.key, config: self.zk.config, sync: self.zk.sync, zxid: self.zk.zxid() };
        let mut events = vec![(self.now, fixtures::session_started(i64::try_from(session).unwrap()))];
        events.extend(self.tree(node, self.zk.key, true));
        events.push((self.now, self.event(node, Input::TreeRead(session))));
        events.push((self.now, self.event(node, Input::Barrier(answer, session))));
        for (at, event) in events {
            view.apply(Observed { at: agent.moment(at), event }, now);
        }
        view
    }

    /// One round of the gate: it judges, asks the members that the rule names, and judges again.
    fn gate_verdict(&mut self, node: usize, hook: &mut Hook) -> Verdict {
        // The gate passes without agent and ZooKeeper.
        let Some(picture) = &hook.picture else { return Verdict::Pass };
        let standby = picture.others.iter().any(|other| matches!(other.standing, Standing::Standby(_)));
        match self.mutation {
            Mutation::GatePassesAlways => return Verdict::Pass,
            Mutation::GateRefusesStandby if standby => return Verdict::Refuse("a standby".to_owned()),
            _ => {}
        }
        let (wait, now) = (Duration::from_millis(GATE_WAIT), moment(self.now));
        hook.memory.note_key(&picture.key, now);
        let first = judge(picture, &hook.memory, wait, now);
        let Verdict::Wait(waits) = &first else { return first };
        for (name, _) in waits {
            let other = crate::act::number(name);
            let found = self.gate_finding(node, other);
            if matches!(found, Found::Writable(_)) {
                self.gate_fences(node, other);
            }
            hook.memory.note(name, found);
        }
        judge(picture, &hook.memory, wait, now)
    }

    fn gate_finding(&self, node: usize, other: usize) -> Found {
        let pg = &self.nodes[other].pg;
        match pg.state {
            _ if pg.paused || !self.reaches(node, other) => Found::Silent,
            State::Down => Found::Harmless("no process listens".to_owned()),
            State::Starting { .. } => Found::Starting,
            _ if pg.logins_refused => Found::NoLogin(String::new()),
            State::TakesWrites => Found::Writable(String::new()),
            State::Follows => Found::Harmless("it is in recovery".to_owned()),
        }
    }

    /// The gate stops a server that takes writes beside the candidate.
    fn gate_fences(&mut self, node: usize, other: usize) {
        let life = self.nodes[other].pg.life;
        log!(self, "the gate of {} fences {}", letter(node), letter(other));
        self.check_fence(other, node, Rule::Peer, Some(self.now), false);
        let pause = self.random.between(20, 50);
        self.after(pause, WorldEvent::Pg(other, life, PgEvent::FencedByGate));
    }
}

/// Whether the candidate holds the key, as the gate knows it.
pub fn holds_key(picture: &Picture) -> bool {
    matches!(picture.key, Key::Own(_))
}
