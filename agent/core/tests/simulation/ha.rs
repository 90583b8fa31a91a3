//! Patroni's HA loop, as far as it decides which server takes writes (patroni/ha.py, 4.1).
//!
//! A cycle begins with `get_cluster()`, which tries for `retry_timeout` if ZooKeeper does not answer. On success,
//! `dcs_last_seen` is now. On failure, Patroni stops a primary, except in maintenance mode and failsafe mode. Either
//! way the session `Patroni heartbeat` begins a query. Patroni does not read the key again before the next cycle.

use crate::patroni::PatroniEvent;
use crate::postgres::State;
use crate::world::{World, WorldEvent, letter, log};
use crate::zookeeper::{Client, Sync};

impl World {
    /// A cycle begins.
    pub fn round(&mut self, node: usize) {
        let down = self.nodes[node].pg.state == State::Down;
        let patroni = &mut self.nodes[node].patroni;
        if patroni.stuck || patroni.trying {
            return;
        }
        if patroni.starting {
            if !self.reaches_zookeeper(Client::Patroni(node)) {
                return self.wake_patroni(node, 2000);
            }
            let patroni = &mut self.nodes[node].patroni;
            (patroni.starting, patroni.since, patroni.loop_since) = (false, self.now, self.now);
        }
        let patroni = &mut self.nodes[node].patroni;
        if patroni.demoting {
            // The loop waits until the server has stopped, without a limit.
            patroni.demoting = !down;
            if !down {
                return self.wake_patroni(node, 200);
            }
        }
        let patroni = &mut self.nodes[node].patroni;
        patroni.cycle = self.now;
        if self.reaches_zookeeper(Client::Patroni(node)) {
            let patroni = &mut self.nodes[node].patroni;
            if std::mem::take(&mut patroni.to_freeze) {
                patroni.reading = true;
                // The request prolongs the session, too.
                self.touch_session(node);
                return self.freeze_patroni(node);
            }
            return self.cycle(node);
        }
        self.nodes[node].patroni.trying = true;
        // The failure takes longer to detect if packets vanish.
        let vanish = self.nodes[node].patroni.cut || self.zk.silent;
        let longer = if vanish { self.random.between(0, 8000) } else { 0 };
        let until = self.now + self.nodes[node].patroni.known.retry_timeout + longer;
        self.try_again(node, until);
    }

    pub fn try_again(&mut self, node: usize, until: u64) {
        if self.reaches_zookeeper(Client::Patroni(node)) {
            self.nodes[node].patroni.trying = false;
            return self.cycle(node);
        }
        if self.now >= until {
            self.nodes[node].patroni.trying = false;
            return self.without_zookeeper(node);
        }
        let (life, pause) = (self.nodes[node].patroni.life, self.random.between(300, 1000));
        self.at(until.min(self.now + pause), WorldEvent::Patroni(node, life, PatroniEvent::TryAgain(until)));
    }

    /// The next cycle begins `loop_wait` after this one began.
    fn schedule(&mut self, node: usize) {
        let patroni = &self.nodes[node].patroni;
        let pause = (patroni.cycle + patroni.known.loop_wait).saturating_sub(self.now);
        self.wake_patroni(node, pause.max(1));
    }

    /// `get_cluster()` has returned.
    fn cycle(&mut self, node: usize) {
        let config = self.zk.config;
        self.note_seen(node);
        self.heartbeat(node);
        let patroni = &mut self.nodes[node].patroni;
        (patroni.known, patroni.failsafe_until) = (config, 0);
        if patroni.ttl != config.ttl {
            // Patroni restarts kazoo's client with the new timeout: it gets a new session, and the key goes with the
            // old one.
            patroni.ttl = config.ttl;
            if let Some(session) = patroni.session.take() {
                self.give_up(node);
                self.close_session(session);
            }
        }
        if !self.touch_session(node) {
            let session = self.open_session(Client::Patroni(node), config.ttl);
            self.nodes[node].patroni.session = Some(session);
        }
        self.schedule(node);
        let leads =
            self.zk.key.is_some_and(|key| key.node == node && Some(key.owner) == self.nodes[node].patroni.session);
        if !leads {
            self.cancel_hook(node);
        }
        match self.zk.key {
            Some(_) if leads => self.lead(node),
            // Its key belongs to a session of an earlier process.
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

    /// It leads by the key.
    fn lead(&mut self, node: usize) {
        let switchover = self.zk.failover.filter(|(from, _)| *from == node);
        let state = self.nodes[node].pg.state;
        if std::mem::take(&mut self.nodes[node].patroni.hook_refused) {
            log!(self, "Patroni of {} gives the key back: its pre_promote refused", letter(node));
            let patroni = &mut self.nodes[node].patroni;
            patroni.skips_until = self.now + patroni.known.ttl;
            self.give_up(node);
            return self.delete_key();
        }
        if self.zk.config.pause || self.nodes[node].patroni.switching {
            return;
        }
        if let (Some((_, to)), State::TakesWrites) = (switchover, state) {
            log!(self, "Patroni of {} begins the switchover to {}", letter(node), letter(to));
            self.nodes[node].patroni.switching = true;
            let takes = self.random.between(30, 400);
            self.stop_pg(node, takes);
            let life = self.nodes[node].patroni.life;
            self.after(1000, WorldEvent::Patroni(node, life, PatroniEvent::Stopped));
            return;
        }
        match state {
            State::TakesWrites => {
                self.choose_synchronous(node);
                if !self.setting.idle {
                    self.status_written(node);
                }
            }
            State::Down => self.start_pg(node),
            State::Follows => self.promote_soon(node),
            // It still counts as primary: `is_primary()` falls back on the last known role.
            State::Starting { .. } => {}
        }
    }

    pub fn continue_switchover(&mut self, node: usize) {
        let life = self.nodes[node].patroni.life;
        if self.nodes[node].pg.state != State::Down {
            return self.after(1000, WorldEvent::Patroni(node, life, PatroniEvent::Stopped));
        }
        self.nodes[node].patroni.switching = false;
        // Patroni gives the key back by a restart of its session. The agent may have released the key already.
        if self.reaches_zookeeper(Client::Patroni(node))
            && let Some(session) = self.nodes[node].patroni.session.take()
        {
            self.give_up(node);
            self.close_session(session);
        }
        self.wake_patroni(node, 2000);
    }

    /// The leader names its synchronous standby: one that follows.
    fn choose_synchronous(&mut self, node: usize) {
        let fits = |other: usize| {
            let known = &self.nodes[other];
            other != node && self.reaches(node, other) && known.pg.state == State::Follows && !known.pg.paused
        };
        let old = self.zk.sync;
        let kept = old.standby.filter(|standby| old.leader == Some(node) && fits(*standby));
        let standby = kept.or_else(|| (0..self.setting.nodes).find(|other| fits(*other)));
        let sync = Sync { leader: Some(node), standby };
        if sync != old {
            self.zk.sync = sync;
            self.sync_changed();
        }
    }

    /// Patroni stops its server, and the loop waits.
    fn demote(&mut self, node: usize, takes: u64) {
        self.nodes[node].patroni.demoting = true;
        self.stop_pg(node, takes);
        self.wake_patroni(node, takes + 100);
    }

    fn promote_soon(&mut self, node: usize) {
        if self.setting.gate {
            return self.begin_hook(node);
        }
        let (life, pause) = (self.nodes[node].patroni.life, self.random.between(1, 10));
        self.after(pause, WorldEvent::Patroni(node, life, PatroniEvent::Promote));
    }

    /// Another member leads.
    fn follow(&mut self, node: usize) {
        if self.zk.config.pause || self.nodes[node].patroni.switching {
            return;
        }
        match self.nodes[node].pg.state {
            State::TakesWrites => {
                log!(self, "Patroni of {} demotes its server: another member leads", letter(node));
                let takes = self.random.between(20, 200);
                self.demote(node, takes);
            }
            State::Starting { standby: false } => {
                log!(self, "Patroni of {} stops its crash recovery: another member leads", letter(node));
                let takes = self.random.between(20, 200);
                self.demote(node, takes);
            }
            State::Down => self.start_pg(node),
            State::Follows => self.follow_timeline(node),
            State::Starting { standby: true } => {}
        }
    }

    /// No member leads.
    fn race(&mut self, node: usize) {
        let state = self.nodes[node].pg.state;
        if self.nodes[node].patroni.switching {
            return;
        }
        let mut pause = self.random.between(2, 10);
        match state {
            // The restart of a client takes time.
            State::TakesWrites => pause += self.random.between(0, 60),
            State::Follows if !self.zk.config.pause => {
                let sync = self.zk.sync;
                let synchronous = sync.leader.is_none() || [sync.leader, sync.standby].contains(&Some(node));
                if !synchronous || self.now < self.nodes[node].patroni.skips_until {
                    return;
                }
                let expected = self.zk.failover.map(|(_, to)| to);
                if expected.is_some_and(|to| to != node && self.nodes[to].patroni.turns()) {
                    return self.wake_patroni(node, 1000);
                }
                // A Patroni that does not answer costs two seconds, the time limit.
                let silent = |(other, known): (usize, &crate::world::Node)| {
                    known.patroni.alive && !(known.patroni.answers() && self.reaches(node, other))
                };
                if self.nodes.iter().enumerate().any(silent) && self.random.percent(80) {
                    pause += 2000;
                } else if self.random.percent(50) {
                    pause += self.random.between(0, 1500);
                }
            }
            State::Down if !self.zk.config.pause => return self.start_pg(node),
            _ => return,
        }
        if self.another_primary_answers(node) {
            log!(self, "Patroni of {}: a primary is still alive", letter(node));
            if state == State::TakesWrites {
                // "demoting self because i am not the healthiest node"
                let takes = self.random.between(20, 200);
                self.demote(node, takes);
            }
            return;
        }
        let life = self.nodes[node].patroni.life;
        self.after(pause, WorldEvent::Patroni(node, life, PatroniEvent::Take));
    }

    fn another_primary_answers(&self, node: usize) -> bool {
        self.nodes.iter().enumerate().any(|(other, known)| {
            other != node && self.reaches(node, other) && known.patroni.answers() && known.pg.acknowledges()
        })
    }

    pub fn take(&mut self, node: usize) {
        let state = self.nodes[node].pg.state;
        // Only a server that takes writes or follows takes part.
        if self.zk.key.is_some() || !self.touch_session(node) || !matches!(state, State::TakesWrites | State::Follows) {
            return;
        }
        self.create_key(node);
        self.schedule(node);
        if state == State::Follows {
            self.promote_soon(node);
        }
    }

    /// `get_cluster()` has failed. A primary goes on only in maintenance mode, or in failsafe mode if all members
    /// agree.
    fn without_zookeeper(&mut self, node: usize) {
        self.heartbeat(node);
        let patroni = &self.nodes[node].patroni;
        let (known, was_active) = (patroni.known, self.now < patroni.failsafe_until);
        // A server in crash recovery still counts as primary.
        let primary = matches!(self.nodes[node].pg.state, State::TakesWrites | State::Starting { standby: false });
        if primary && !known.pause {
            let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != node);
            // A member that leads itself refuses.
            let accepted = others.fold(true, |all, (number, other)| {
                all && self.reaches(node, number) && other.patroni.answers() && other.pg.state != State::TakesWrites
            });
            let allowed = known.failsafe && accepted;
            if was_active != allowed {
                let change = if allowed { "begins" } else { "ends" };
                log!(self, "Patroni of {}: failsafe mode {change}", letter(node));
            }
            self.nodes[node].patroni.failsafe_until = if allowed { self.now + known.ttl } else { 0 };
            if !allowed {
                log!(self, "Patroni of {} demotes its server: ZooKeeper cannot be reached", letter(node));
                let takes = self.random.between(50, 300);
                return self.demote(node, takes);
            }
        }
        self.schedule(node);
    }
}
