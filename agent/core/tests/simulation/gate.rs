//! `pre_promote`: `warden gate`, which Patroni runs after it has taken the key and before it promotes.
//!
//! Patroni sets no limit; its session and its HA loop go on meanwhile. Without the key the next cycle ends the hook, at
//! no cost. A no is taken in by the next cycle that holds the key: that one gives it back, and skips the race for ttl.
//! The hook is a process of its own, so it also runs while Patroni is frozen. The rule is core's; the picture comes from
//! the agent beside it, or from ZooKeeper where no agent answers.

use crate::agent::For;
use crate::hear::Heard;
use crate::mutation::Mutation;
use crate::patroni::PatroniEvent;
use crate::postgres::{PgEvent, State};
use crate::world::{Happening, World, letter, tell};
use crate::zookeeper::{Answer, Client};
use std::time::Duration;
use warden_core::event::{Event, Observed, Rule, Session};
use warden_core::evidence::Standing;
use warden_core::rules::gate::{Found, Key, Memory, Picture, Verdict, judge, picture};
use warden_core::types::{Moment, SessionId};
use warden_core::view::View;

/// `gate.wait_s`.
pub const GATE_WAIT: u64 = 15_000;

/// A run of the hook.
pub struct Hook {
    pub began: u64,
    /// When a linearizable read was asked for.
    asked: Option<u64>,
    memory: Memory,
    picture: Option<Picture>,
}

/// The hook's clock is its own.
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
        let pause = self.chance.between(5, 20);
        self.after(pause, Happening::Hook(node, run));
    }

    /// Patroni's loop cancels it, at no cost.
    pub fn cancel_hook(&mut self, node: usize) {
        if self.nodes[node].patroni.hook.take().is_some() {
            tell!(self, "Patroni of {} cancels pre_promote: the key is gone", letter(node));
        }
    }

    pub fn hook_looks(&mut self, node: usize, run: u32) {
        let patroni = &self.nodes[node].patroni;
        let Some(hook) = patroni.hook.as_ref().filter(|_| patroni.hooks == run) else { return };
        // The whole node is paused, or its server.
        if self.nodes[node].pg.paused {
            return self.after(100, Happening::Hook(node, run));
        }
        let Some(asked) = hook.asked else {
            let takes = self.ask_agent(node);
            self.nodes[node].patroni.hook.as_mut().unwrap().asked = Some(self.now);
            return self.after(takes, Happening::Hook(node, run));
        };
        let drawn = self.draw(node, asked);
        let mut hook = self.nodes[node].patroni.hook.take().unwrap();
        hook.asked = None;
        hook.picture = drawn.or(hook.picture);
        let said = self.gate_says(node, &mut hook);
        self.check_gate(node, &hook, hook.picture.as_ref(), &said);
        match said {
            Verdict::Wait(_) => {
                self.nodes[node].patroni.hook = Some(hook);
                self.after(100, Happening::Hook(node, run));
            }
            Verdict::Pass => {
                let (life, now) = (self.nodes[node].patroni.life, self.now);
                tell!(self, "the gate of {} lets it pass after {} ms", letter(node), now - hook.began);
                // What it could not see it could not stop.
                self.nodes[node].patroni.passed_at = hook.picture.is_some().then_some(now);
                let pause = self.chance.between(1, 10);
                self.after(pause, Happening::Patroni(node, life, PatroniEvent::Promote));
            }
            Verdict::Refuse(why) => {
                tell!(self, "the gate of {} says no after {} ms: {why}", letter(node), self.now - hook.began);
                self.nodes[node].patroni.said_no = true;
                self.wake_patroni(node, 20);
            }
        }
    }

    /// The agent beside it makes a linearizable read; how long that takes.
    fn ask_agent(&mut self, node: usize) -> u64 {
        let agent = &self.nodes[node].agent;
        let (up, paused, takes) = (agent.up, agent.paused, 6 + 2 * agent.lag);
        match (up, paused) {
            (true, false) => {
                self.ask_barrier(node, For::View);
                takes.min(500)
            }
            (true, true) => 500,
            (false, _) => 10,
        }
    }

    /// The picture, as the agent has it, or as a look into ZooKeeper gives it.
    fn draw(&self, node: usize, asked: u64) -> Option<Picture> {
        let (agent, own) = (&self.nodes[node].agent, letter(node).into());
        let (asked, now) = (agent.moment(asked), agent.moment(self.now));
        let mut drawn = None;
        if agent.up && !agent.paused {
            drawn = picture(&agent.view, &own, asked, now);
        }
        let wants = drawn.as_ref().is_none_or(Picture::wants_zookeeper);
        if wants && self.reaches_zookeeper(Client::Agent(node)) {
            drawn = picture(&self.look(node), &own, now, now).or(drawn);
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

    /// A view of nothing but what is in ZooKeeper now.
    fn look(&self, node: usize) -> View {
        let agent = &self.nodes[node].agent;
        let mut view = View::new(agent.view.identity.clone());
        let now = agent.moment(self.now);
        let session = usize::MAX >> 1;
        let seconds = Duration::from_secs(30);
        let id = SessionId(i64::try_from(session).unwrap());
        let started = Session { id, server: String::new(), requested: seconds, negotiated: seconds };
        let answer = Answer { key: self.zk.key, config: self.zk.config, sync: self.zk.sync, zxid: self.zk.zxid() };
        let mut events = vec![(self.now, Event::SessionStarted(started))];
        events.extend(self.tree(node, self.zk.key, true));
        events.push((self.now, self.event(node, Heard::TreeRead(session))));
        events.push((self.now, self.event(node, Heard::Barrier(answer, session))));
        for (at, event) in events {
            view.apply(Observed { at: agent.moment(at), event }, now);
        }
        view
    }

    /// One round of the gate: it judges, asks whom the rule names, and judges again.
    fn gate_says(&mut self, node: usize, hook: &mut Hook) -> Verdict {
        // Without agent and ZooKeeper it lets Patroni go on.
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
            let found = self.gate_finds(node, other);
            if matches!(found, Found::Writable(_)) {
                self.gate_fences(node, other);
            }
            hook.memory.note(name, found);
        }
        judge(picture, &hook.memory, wait, now)
    }

    fn gate_finds(&self, node: usize, other: usize) -> Found {
        let pg = &self.nodes[other].pg;
        match pg.state {
            _ if pg.paused || !self.reaches(node, other) => Found::Silent,
            State::Down => Found::Harmless("no process listens".to_owned()),
            State::Starting { .. } => Found::Starting,
            _ if pg.locked => Found::NoLogin(String::new()),
            State::TakesWrites => Found::Writable(String::new()),
            State::Follows => Found::Harmless("it is in recovery".to_owned()),
        }
    }

    /// It stops a server that takes writes beside the candidate.
    fn gate_fences(&mut self, node: usize, other: usize) {
        let life = self.nodes[other].pg.life;
        tell!(self, "the gate of {} fences {}", letter(node), letter(other));
        self.strike_fence(other, node, Rule::Peer, Some(self.now), false);
        let pause = self.chance.between(20, 50);
        self.after(pause, Happening::Pg(other, life, PgEvent::FencedByGate));
    }
}

/// Whether the candidate holds the key, as the gate knows it.
pub fn holds_key(picture: &Picture) -> bool {
    matches!(picture.key, Key::Own(_))
}
