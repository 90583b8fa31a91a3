//! Patroni: its process, its session with ZooKeeper, and faults of both (patroni/ha.py, 4.1). `ha.rs` has the decisions
//! of the HA loop, `rest.rs` the REST API, `gate.rs` the hook `pre_promote`.
//!
//! A frozen process continues where it was when it thaws, also with a promotion that it was about to order. A dead
//! process does nothing; its PostgreSQL lives on.

use crate::gate::Hook;
use crate::world::{World, WorldEvent, letter, log};
use crate::zookeeper::{Client, Config};

#[derive(Clone, Copy, Debug)]
pub enum PatroniEvent {
    /// A round of the HA loop. Only the newest round counts.
    Round(u32),
    /// The session's keep-alive.
    Ping,
    /// The end of a race for the key.
    Take,
    Promote,
    /// In a switchover: has PostgreSQL stopped?
    Stopped,
    /// `get_cluster()` tries again, until this time.
    TryAgain(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    Answers,
    /// An answer takes up to 1.2 s, and sometimes misses the time limit.
    Slow,
    /// The API does not answer, though the loop turns.
    Hung,
    /// Only `/liveness` answers: requests that query PostgreSQL hang.
    OnlyLiveness,
}

pub struct Patroni {
    pub alive: bool,
    pub frozen: bool,
    /// Since when it is alive and not frozen, or is not.
    pub since: u64,
    /// Patroni cannot reach ZooKeeper.
    pub cut: bool,
    pub life: u32,
    pub session: Option<usize>,
    /// `dcs_last_seen`: when `get_cluster()` last returned, by the wall clock.
    pub seen_by_clock: i64,
    /// The same, by the world's clock.
    pub seen: u64,
    /// The wall clock is ahead by this many milliseconds.
    pub clock: i64,
    /// It was started under flock, and holds the alive lock while it lives.
    pub flock: bool,
    pub rest: Rest,
    /// When `rest` last changed.
    pub rest_since: u64,
    /// Failsafe mode counts as active until this time: ttl after all members last agreed.
    pub failsafe_until: u64,
    /// The configuration that Patroni last read.
    pub known: Config,
    /// The timeout that Patroni asks for in its session.
    pub ttl: u64,
    /// The HA loop hangs, though the process lives: REST and session go on.
    pub stuck: bool,
    /// Since when the loop hangs, or does not.
    pub loop_since: u64,
    /// The whole node is paused when its next `pre_promote` begins.
    pub to_pause: bool,
    /// The process freezes in its next `get_cluster()`, after ZooKeeper's answer. It uses that answer when it thaws.
    pub to_freeze: bool,
    /// The process is frozen inside `get_cluster()`.
    pub reading: bool,
    /// The newest answer of `get_cluster()` is from before a freeze: its stamp and its heartbeat are of the thaw.
    pub stale_read: bool,
    /// It was started and cannot reach ZooKeeper. It does nothing until then (measured: it exits, and is started
    /// again).
    pub starting: bool,
    /// When the last HA cycle began.
    pub cycle: u64,
    /// It is inside `get_cluster()`, and ZooKeeper does not answer.
    pub trying: bool,
    /// It stops its server, and the HA loop waits.
    pub demoting: bool,
    /// It takes no part in a race before this time.
    pub skips_until: u64,
    /// Its `pre_promote` refused, and the loop has not read the result yet.
    pub hook_refused: bool,
    /// Its `pre_promote`, while it runs.
    pub hook: Option<Hook>,
    pub hooks: u32,
    /// When a `pre_promote` last let a promotion pass.
    pub passed_at: Option<u64>,
    pub switching: bool,
    round: u32,
    /// Events that were due while it was frozen or stuck.
    deferred: Vec<PatroniEvent>,
}

impl Patroni {
    pub fn new(known: Config) -> Self {
        Self {
            alive: true,
            frozen: false,
            since: 0,
            cut: false,
            life: 0,
            session: None,
            seen_by_clock: 0,
            seen: 0,
            clock: 0,
            flock: true,
            rest: Rest::Answers,
            rest_since: 0,
            failsafe_until: 0,
            known,
            ttl: known.ttl,
            stuck: false,
            loop_since: 0,
            to_freeze: false,
            to_pause: false,
            reading: false,
            stale_read: false,
            starting: false,
            cycle: 0,
            trying: false,
            demoting: false,
            skips_until: 0,
            hook_refused: false,
            hook: None,
            hooks: 0,
            passed_at: None,
            switching: false,
            round: 0,
            deferred: Vec::new(),
        }
    }

    /// It holds the alive lock.
    pub fn holds_lock(&self) -> bool {
        self.alive && self.flock
    }

    /// The process can run.
    pub fn turns(&self) -> bool {
        self.alive && !self.frozen && !self.starting
    }

    /// Its HA loop turns.
    pub fn loop_turns(&self) -> bool {
        self.turns() && !self.stuck
    }

    /// Its REST API answers, sooner or later.
    pub fn answers(&self) -> bool {
        self.turns() && matches!(self.rest, Rest::Answers | Rest::Slow)
    }

    /// `/liveness`: it fails if no cycle began for ttl, or for twice ttl on a standby. It never fails in maintenance
    /// mode.
    pub fn is_live(&self, now: u64, primary: bool) -> bool {
        self.known.pause || now < self.cycle + self.ttl * if primary { 1 } else { 2 }
    }

    /// A process begins or ends, and loses its state.
    fn forget(&mut self) {
        (self.stuck, self.trying, self.reading, self.to_freeze) = (false, false, false, false);
        self.starting = false;
        (self.demoting, self.switching, self.hook_refused, self.hook) = (false, false, false, None);
        self.deferred.clear();
    }
}

impl World {
    /// The process begins.
    pub fn begin_patroni(&mut self, node: usize) {
        let known = self.zk.config;
        let patroni = &mut self.nodes[node].patroni;
        let (life, cut, rest, rest_since) = (patroni.life + 1, patroni.cut, patroni.rest, patroni.rest_since);
        let (clock, hooks, since) = (patroni.clock, patroni.hooks + 1, self.now);
        *patroni =
            Patroni { life, cut, rest, rest_since, clock, hooks, since, loop_since: since, ..Patroni::new(known) };
        patroni.cycle = self.now;
        if self.reaches_zookeeper(Client::Patroni(node)) {
            let session = self.open_session(Client::Patroni(node), known.ttl);
            self.nodes[node].patroni.session = Some(session);
            self.note_seen(node);
        } else {
            self.nodes[node].patroni.starting = true;
        }
        let first = self.random.between(1, 10_000);
        self.after(first, WorldEvent::Patroni(node, life, PatroniEvent::Ping));
        let first = if self.now == 0 { self.random.between(1, 10_000) } else { self.random.between(300, 1500) };
        self.wake_patroni(node, first);
        self.lock_changed(node);
    }

    pub fn kill_patroni(&mut self, node: usize) {
        let patroni = &mut self.nodes[node].patroni;
        if patroni.alive {
            log!(self, "Patroni of {} is killed", letter(node));
            let patroni = &mut self.nodes[node].patroni;
            (patroni.alive, patroni.frozen, patroni.since) = (false, false, self.now);
            patroni.forget();
            // Its sessions with PostgreSQL end with it.
            self.nodes[node].pg.heartbeat = None;
            self.lock_changed(node);
        }
    }

    pub fn freeze_patroni(&mut self, node: usize) {
        let patroni = &mut self.nodes[node].patroni;
        if patroni.turns() {
            log!(self, "Patroni of {} is frozen", letter(node));
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
        let reading = std::mem::take(&mut patroni.reading);
        log!(self, "Patroni of {} thaws", letter(node));
        if reading {
            // `get_cluster()` returns an answer from before the freeze, and stamps it now.
            self.note_seen(node);
            self.nodes[node].patroni.stale_read = true;
            self.heartbeat(node);
        }
        self.resume(node);
        self.answer_question(node);
    }

    /// The HA loop begins to hang.
    pub fn stick_loop(&mut self, node: usize) {
        let patroni = &mut self.nodes[node].patroni;
        if patroni.alive && !patroni.stuck {
            (patroni.stuck, patroni.loop_since) = (true, self.now);
            log!(self, "the HA loop of {} hangs", letter(node));
        }
    }

    pub fn unstick_loop(&mut self, node: usize) {
        let patroni = &mut self.nodes[node].patroni;
        if std::mem::take(&mut patroni.stuck) {
            patroni.loop_since = self.now;
            log!(self, "the HA loop of {} turns again", letter(node));
            self.resume(node);
        }
    }

    /// Deferred events take place, and a round begins soon.
    fn resume(&mut self, node: usize) {
        let life = self.nodes[node].patroni.life;
        for event in std::mem::take(&mut self.nodes[node].patroni.deferred) {
            self.after(1, WorldEvent::Patroni(node, life, event));
        }
        let pause = self.random.between(2, 1000);
        self.wake_patroni(node, pause);
    }

    /// `get_cluster()` has returned.
    pub fn note_seen(&mut self, node: usize) {
        let patroni = &mut self.nodes[node].patroni;
        (patroni.seen, patroni.seen_by_clock) = (self.now, self.now as i64 + patroni.clock);
        patroni.stale_read = false;
    }

    /// Its session `Patroni heartbeat` begins a query, as in each HA cycle.
    pub fn heartbeat(&mut self, node: usize) {
        // The agent sees it within a second.
        let limit = self.progress_limit(node) - 1100;
        let pg = &mut self.nodes[node].pg;
        if pg.takes_sessions() {
            if pg.heartbeat.is_none_or(|last| last + limit < self.now) {
                pg.beats_since = self.now;
            }
            pg.heartbeat = Some(self.now);
        }
    }

    /// The next round begins after `pause`.
    pub fn wake_patroni(&mut self, node: usize, pause: u64) {
        let patroni = &mut self.nodes[node].patroni;
        if patroni.alive {
            patroni.round += 1;
            let (life, round) = (patroni.life, patroni.round);
            self.after(pause, WorldEvent::Patroni(node, life, PatroniEvent::Round(round)));
        }
    }

    pub fn patroni_event(&mut self, node: usize, life: u32, event: PatroniEvent) {
        let patroni = &mut self.nodes[node].patroni;
        if !patroni.alive || patroni.life != life {
            return;
        }
        if patroni.frozen {
            // Rounds and pings resume when it thaws.
            match event {
                PatroniEvent::Round(_) => {}
                PatroniEvent::Ping => self.after(1000, WorldEvent::Patroni(node, life, event)),
                _ => patroni.deferred.push(event),
            }
            return;
        }
        // The keep-alive and the tasks beside the loop go on while it hangs.
        if patroni.stuck && matches!(event, PatroniEvent::Take | PatroniEvent::TryAgain(_)) {
            patroni.deferred.push(event);
            return;
        }
        match event {
            PatroniEvent::Round(round) => {
                if round == patroni.round {
                    self.round(node);
                }
            }
            PatroniEvent::Ping => {
                // kazoo pings after a third of the granted timeout.
                let pause = patroni.ttl.min(40_000) / 3;
                self.touch_session(node);
                self.after(pause, WorldEvent::Patroni(node, life, event));
            }
            PatroniEvent::Take => self.take(node),
            PatroniEvent::Promote => self.promote_pg(node),
            PatroniEvent::Stopped => self.continue_switchover(node),
            PatroniEvent::TryAgain(until) => self.try_again(node, until),
        }
    }

    /// Contacts ZooKeeper, which prolongs the session. False without a living session.
    pub fn touch_session(&mut self, node: usize) -> bool {
        let Some(session) = self.nodes[node].patroni.session else { return false };
        if !self.reaches_zookeeper(Client::Patroni(node)) || !self.zk.sessions[session].alive {
            return false;
        }
        self.zk.sessions[session].contact_at = self.now;
        true
    }
}
