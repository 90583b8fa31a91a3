//! Patroni: the HA loop, as far as it decides who takes writes (patroni/ha.py, 4.1).
//!
//! A frozen process does nothing until it is thawed, and then goes on where it was: also with a promotion that it had
//! been about to order. A dead one does nothing; its PostgreSQL lives on.

use crate::postgres::State;
use crate::world::{Happening, World, letter, tell};
use crate::zookeeper::Client;

#[derive(Clone, Copy, Debug)]
pub enum PatroniEvent {
    /// A round of the HA loop; of several that are due only the newest counts.
    Round(u32),
    /// The session's keep-alive.
    Ping,
    /// The end of a race for the key.
    Take,
    Promote,
    /// In a switchover: has PostgreSQL stopped?
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    Answers,
    /// Needs up to 1.2 s, so that it sometimes misses the limit.
    Slow,
    /// Says nothing, though the loop turns.
    Hung,
}

pub struct Patroni {
    pub alive: bool,
    pub frozen: bool,
    /// Since when it is alive and not frozen, or is not.
    pub since: u64,
    /// Cut off from ZooKeeper.
    pub cut: bool,
    pub life: u32,
    pub session: Option<usize>,
    /// When it last heard from ZooKeeper in its loop, by the wall clock.
    pub seen_by_clock: i64,
    /// By so much the wall clock is ahead.
    pub clock: i64,
    /// It was started under flock, and so holds the alive lock while it lives.
    pub flock: bool,
    pub rest: Rest,
    /// Since when.
    pub rest_since: u64,
    pub failsafe_active: bool,
    ttl: u64,
    /// Since when it cannot reach ZooKeeper.
    failing_since: Option<u64>,
    switching: bool,
    round: u32,
    /// What was due while it was frozen.
    deferred: Vec<PatroniEvent>,
}

impl Patroni {
    pub fn new() -> Self {
        Self {
            alive: true,
            frozen: false,
            since: 0,
            cut: false,
            life: 0,
            session: None,
            seen_by_clock: 0,
            clock: 0,
            flock: true,
            rest: Rest::Answers,
            rest_since: 0,
            failsafe_active: false,
            ttl: 0,
            failing_since: None,
            switching: false,
            round: 0,
            deferred: Vec::new(),
        }
    }

    /// It holds the alive lock.
    pub fn holds_lock(&self) -> bool {
        self.alive && self.flock
    }

    /// It can do something.
    pub fn turns(&self) -> bool {
        self.alive && !self.frozen
    }
}

impl World {
    /// The process begins.
    pub fn begin_patroni(&mut self, node: usize) {
        let ttl = self.zk.config.ttl;
        let patroni = &mut self.nodes[node].patroni;
        let (life, cut, rest, rest_since) = (patroni.life + 1, patroni.cut, patroni.rest, patroni.rest_since);
        let clock = patroni.clock;
        *patroni = Patroni { life, cut, rest, rest_since, clock, ttl, since: self.now, ..Patroni::new() };
        if self.reaches_zookeeper(Client::Patroni(node)) {
            let session = self.open_session(Client::Patroni(node), ttl);
            self.nodes[node].patroni.session = Some(session);
            self.nodes[node].patroni.seen_by_clock = self.now as i64 + clock;
        }
        let first = self.chance.between(1, 10_000);
        self.after(first, Happening::Patroni(node, life, PatroniEvent::Ping));
        let first = if self.now == 0 { self.chance.between(1, 10_000) } else { self.chance.between(300, 1500) };
        self.wake_patroni(node, first);
        self.lock_changed(node);
    }

    pub fn kill_patroni(&mut self, node: usize) {
        let patroni = &mut self.nodes[node].patroni;
        if patroni.alive {
            tell!(self, "Patroni of {} is killed", letter(node));
            let patroni = &mut self.nodes[node].patroni;
            (patroni.alive, patroni.frozen, patroni.since) = (false, false, self.now);
            self.lock_changed(node);
        }
    }

    pub fn freeze_patroni(&mut self, node: usize) {
        let patroni = &mut self.nodes[node].patroni;
        if patroni.turns() {
            tell!(self, "Patroni of {} is frozen", letter(node));
            let patroni = &mut self.nodes[node].patroni;
            (patroni.frozen, patroni.since) = (true, self.now);
        }
    }

    pub fn thaw_patroni(&mut self, node: usize) {
        let patroni = &mut self.nodes[node].patroni;
        if !patroni.frozen {
            return;
        }
        (patroni.frozen, patroni.since) = (false, self.now);
        let life = patroni.life;
        tell!(self, "Patroni of {} thaws", letter(node));
        for event in std::mem::take(&mut self.nodes[node].patroni.deferred) {
            self.after(1, Happening::Patroni(node, life, event));
        }
        let pause = self.chance.between(2, 1000);
        self.wake_patroni(node, pause);
        self.answer_question(node);
    }

    /// The next round begins after `pause`.
    pub fn wake_patroni(&mut self, node: usize, pause: u64) {
        let patroni = &mut self.nodes[node].patroni;
        if patroni.alive {
            patroni.round += 1;
            let (life, round) = (patroni.life, patroni.round);
            self.after(pause, Happening::Patroni(node, life, PatroniEvent::Round(round)));
        }
    }

    pub fn patroni_event(&mut self, node: usize, life: u32, event: PatroniEvent) {
        let patroni = &mut self.nodes[node].patroni;
        if !patroni.alive || patroni.life != life {
            return;
        }
        if patroni.frozen {
            // Its rounds and pings begin anew when it thaws.
            match event {
                PatroniEvent::Round(_) => {}
                PatroniEvent::Ping => self.after(1000, Happening::Patroni(node, life, event)),
                _ => patroni.deferred.push(event),
            }
            return;
        }
        match event {
            PatroniEvent::Round(round) => {
                if round == patroni.round {
                    self.round(node);
                }
            }
            PatroniEvent::Ping => {
                let pause = patroni.ttl / 3;
                self.touch_session(node);
                self.after(pause, Happening::Patroni(node, life, event));
            }
            PatroniEvent::Take => self.take(node),
            PatroniEvent::Promote => self.promote_pg(node),
            PatroniEvent::Stopped => self.switchover_goes_on(node),
        }
    }

    /// Whether it has a session that lives; hearing from it prolongs it.
    fn touch_session(&mut self, node: usize) -> bool {
        let Some(session) = self.nodes[node].patroni.session else { return false };
        if !self.reaches_zookeeper(Client::Patroni(node)) || !self.zk.sessions[session].alive {
            return false;
        }
        self.zk.sessions[session].heard = self.now;
        true
    }

    fn round(&mut self, node: usize) {
        if !self.reaches_zookeeper(Client::Patroni(node)) {
            return self.without_zookeeper(node);
        }
        let config = self.zk.config;
        let patroni = &mut self.nodes[node].patroni;
        patroni.failing_since = None;
        patroni.failsafe_active = false;
        patroni.seen_by_clock = self.now as i64 + patroni.clock;
        if self.nodes[node].patroni.ttl != config.ttl {
            // kazoo's client is restarted with another timeout: a new session, and the key goes with the old one.
            self.nodes[node].patroni.ttl = config.ttl;
            if let Some(session) = self.nodes[node].patroni.session.take() {
                self.give_up(node);
                self.close_session(session);
            }
        }
        if !self.touch_session(node) {
            let session = self.open_session(Client::Patroni(node), config.ttl);
            self.nodes[node].patroni.session = Some(session);
        }
        self.wake_patroni(node, config.loop_wait);
        match self.zk.key {
            Some(key) if key.node == node && Some(key.owner) == self.nodes[node].patroni.session => self.lead(node),
            // Its key, of a session that it had in a former life.
            Some(key) if key.node == node => {
                if !config.pause {
                    self.give_up(node);
                    self.delete_key();
                }
            }
            Some(_) => self.follow(node),
            None => self.race(node),
        }
    }

    fn give_up(&mut self, node: usize) {
        if self.zk.holds(node) {
            self.zk.given_up[node] = Some(self.now);
        }
    }

    /// It leads, by the key.
    fn lead(&mut self, node: usize) {
        let switchover = self.zk.failover.filter(|(from, _)| *from == node);
        let state = self.nodes[node].pg.state;
        if self.zk.config.pause || self.nodes[node].patroni.switching {
            return;
        }
        if let (Some((_, to)), State::TakesWrites) = (switchover, state) {
            tell!(self, "Patroni of {} begins the switchover to {}", letter(node), letter(to));
            self.nodes[node].patroni.switching = true;
            let takes = self.chance.between(30, 400);
            self.stop_pg(node, takes);
            let life = self.nodes[node].patroni.life;
            self.after(1000, Happening::Patroni(node, life, PatroniEvent::Stopped));
            return;
        }
        match state {
            State::TakesWrites => self.status_written(node),
            State::Down => self.start_pg(node, true),
            State::Follows => self.promote_soon(node),
            State::Starting => {}
        }
    }

    fn switchover_goes_on(&mut self, node: usize) {
        let life = self.nodes[node].patroni.life;
        if self.nodes[node].pg.state != State::Down {
            return self.after(1000, Happening::Patroni(node, life, PatroniEvent::Stopped));
        }
        self.nodes[node].patroni.switching = false;
        // It gives the key back by restarting its session; somebody else may have given it back already.
        if self.reaches_zookeeper(Client::Patroni(node))
            && let Some(session) = self.nodes[node].patroni.session.take()
        {
            self.give_up(node);
            self.close_session(session);
        }
        self.wake_patroni(node, 2000);
    }

    fn promote_soon(&mut self, node: usize) {
        let (life, pause) = (self.nodes[node].patroni.life, self.chance.between(1, 10));
        self.after(pause, Happening::Patroni(node, life, PatroniEvent::Promote));
    }

    /// Another leads.
    fn follow(&mut self, node: usize) {
        if self.zk.config.pause || self.nodes[node].patroni.switching {
            return;
        }
        match self.nodes[node].pg.state {
            State::TakesWrites => {
                tell!(self, "Patroni of {} demotes it: another leads", letter(node));
                let takes = self.chance.between(20, 200);
                self.stop_pg(node, takes);
                self.wake_patroni(node, takes + 100);
            }
            State::Down => self.start_pg(node, false),
            State::Follows => self.follow_timeline(node),
            State::Starting => {}
        }
    }

    /// Nobody leads.
    fn race(&mut self, node: usize) {
        let state = self.nodes[node].pg.state;
        if self.nodes[node].patroni.switching {
            return;
        }
        let mut pause = self.chance.between(2, 10);
        match state {
            // A client that is restarted takes its time.
            State::TakesWrites => pause += self.chance.between(0, 60),
            State::Follows if !self.zk.config.pause => {
                let expected = self.zk.failover.map(|(_, to)| to);
                if expected.is_some_and(|to| to != node && self.nodes[to].patroni.turns()) {
                    return self.wake_patroni(node, 1000);
                }
                // Somebody's Patroni does not answer: that costs two seconds, its limit.
                let silent = |other: &crate::world::Node| {
                    other.patroni.alive && (other.patroni.frozen || other.patroni.rest == Rest::Hung)
                };
                if self.nodes.iter().any(silent) && self.chance.percent(80) {
                    pause += 2000;
                } else if self.chance.percent(50) {
                    pause += self.chance.between(0, 1500);
                }
            }
            State::Down if !self.zk.config.pause => return self.start_pg(node, false),
            _ => return,
        }
        if self.another_primary_answers(node) {
            tell!(self, "Patroni of {}: a primary is still alive", letter(node));
            if state == State::TakesWrites {
                // "demoting self because i am not the healthiest node"
                let takes = self.chance.between(20, 200);
                self.stop_pg(node, takes);
            }
            return;
        }
        let life = self.nodes[node].patroni.life;
        self.after(pause, Happening::Patroni(node, life, PatroniEvent::Take));
    }

    fn another_primary_answers(&self, node: usize) -> bool {
        self.nodes.iter().enumerate().any(|(other, known)| {
            other != node && known.patroni.turns() && known.patroni.rest != Rest::Hung && known.pg.acknowledges()
        })
    }

    fn take(&mut self, node: usize) {
        let state = self.nodes[node].pg.state;
        if self.zk.key.is_some() || !self.touch_session(node) || state == State::Down {
            return;
        }
        self.create_key(node);
        self.wake_patroni(node, 10_000);
        if state == State::Follows {
            self.promote_soon(node);
        }
    }

    /// ZooKeeper cannot be reached: a primary goes on for `retry_timeout`, then only in failsafe mode.
    fn without_zookeeper(&mut self, node: usize) {
        let config = self.zk.config;
        let patroni = &mut self.nodes[node].patroni;
        let since = *patroni.failing_since.get_or_insert(self.now);
        if self.now - since < config.retry_timeout {
            return self.wake_patroni(node, 1000);
        }
        if self.nodes[node].pg.state == State::TakesWrites && !config.pause {
            let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != node);
            let accepted = others
                .fold(true, |all, (_, other)| all && other.patroni.turns() && other.patroni.rest == Rest::Answers);
            let allowed = config.failsafe && accepted;
            if self.nodes[node].patroni.failsafe_active != allowed {
                tell!(
                    self,
                    "Patroni of {}: failsafe mode {}",
                    letter(node),
                    if allowed { "begins" } else { "is over" }
                );
            }
            self.nodes[node].patroni.failsafe_active = allowed;
            if allowed {
                return self.wake_patroni(node, config.loop_wait);
            }
            tell!(self, "Patroni of {} demotes it: ZooKeeper cannot be reached", letter(node));
            let takes = self.chance.between(50, 300);
            self.stop_pg(node, takes);
        }
        self.wake_patroni(node, 1000);
    }
}
