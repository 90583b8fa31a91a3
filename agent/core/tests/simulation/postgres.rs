//! PostgreSQL: it takes writes, follows, starts or is down. It can be paused, and a fence stops it.

use crate::world::{World, WorldEvent, letter, log};
use warden_core::event::Rule;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Down,
    /// It accepts no session yet. A standby follows afterwards; another server takes writes.
    Starting {
        standby: bool,
    },
    Follows,
    TakesWrites,
}

#[derive(Clone, Copy, Debug)]
pub enum PgEvent {
    /// It is up, and a standby if `true`.
    Up(bool),
    Promoted,
    Stopped,
    /// The fence of an agent by a rule has stopped it.
    Fenced(usize, Rule),
    /// The fence of a candidate's gate has stopped it.
    FencedByGate,
}

/// A shutdown statement that a paused server runs when it wakes.
#[derive(Clone, Copy, Debug)]
pub struct QueuedFence {
    /// The statement is valid until this time.
    pub until: u64,
    pub by: usize,
    pub rule: Rule,
    /// When the guard's condition was true.
    pub verified_at: Option<u64>,
}

pub struct Postgres {
    pub state: State,
    pub paused: bool,
    pub life: u32,
    pub timeline: u32,
    /// When `state` last changed.
    pub since: u64,
    /// When its own agent first saw that it takes writes.
    pub seen: Option<u64>,
    pub unpaused_at: u64,
    /// When Patroni's session `Patroni heartbeat` last began a query, while there is one.
    pub heartbeat: Option<u64>,
    /// Since when no gap between two heartbeats exceeded the limit.
    pub beats_since: u64,
    /// It refuses sessions from other nodes (pg_hba).
    pub logins_refused: bool,
    /// When `logins_refused` last changed.
    pub logins_refused_since: u64,
    /// It was told to stop. It does not restart after a crash meanwhile.
    pub stopping: bool,
    /// It was told to promote itself.
    pub promoting: bool,
    /// It takes writes again after a crash. Its agent has to see that, and not Patroni.
    pub recovered: bool,
    /// A shutdown statement that waits while it is paused.
    pub queued_fence: Option<QueuedFence>,
    deferred: Vec<PgEvent>,
}

impl Postgres {
    pub fn new(leads: bool) -> Self {
        let state = if leads { State::TakesWrites } else { State::Follows };
        Self {
            state,
            paused: false,
            life: 0,
            timeline: 1,
            since: 0,
            seen: None,
            unpaused_at: 0,
            heartbeat: None,
            beats_since: 0,
            logins_refused: false,
            logins_refused_since: 0,
            stopping: false,
            promoting: false,
            recovered: false,
            queued_fence: None,
            deferred: Vec::new(),
        }
    }

    /// It accepts sessions.
    pub fn takes_sessions(&self) -> bool {
        !self.paused && matches!(self.state, State::TakesWrites | State::Follows)
    }

    /// It acknowledges writes.
    pub fn acknowledges(&self) -> bool {
        self.state == State::TakesWrites && !self.paused
    }
}

impl World {
    pub fn pg_state(&mut self, node: usize, state: State) {
        let pg = &mut self.nodes[node].pg;
        if pg.state != state {
            pg.state = state;
            pg.since = self.now;
            pg.seen = None;
            (pg.promoting, pg.recovered) = (false, false);
            let ends = !matches!(state, State::TakesWrites | State::Follows);
            log!(self, "PostgreSQL of {}: {state:?} (timeline {})", letter(node), self.nodes[node].pg.timeline);
            if ends {
                self.lose_session(node);
            }
        }
    }

    /// Events of the earlier life are void.
    fn new_life(&mut self, node: usize) -> u32 {
        let pg = &mut self.nodes[node].pg;
        pg.life += 1;
        pg.deferred.clear();
        (pg.queued_fence, pg.heartbeat) = (None, None);
        (pg.stopping, pg.promoting) = (false, false);
        pg.life
    }

    /// Patroni starts every server as a standby. It promotes a leader when the server is up.
    pub fn start_pg(&mut self, node: usize) {
        let takes = self.random.between(300, 2500);
        self.begin_starting(node, true, takes);
    }

    fn begin_starting(&mut self, node: usize, standby: bool, takes: u64) {
        let life = self.new_life(node);
        self.pg_state(node, State::Starting { standby });
        self.after(takes, WorldEvent::Pg(node, life, PgEvent::Up(standby)));
    }

    /// A backend is killed. The postmaster restarts by itself, with a crash recovery of `takes`. A primary takes writes
    /// again afterwards, even with a frozen Patroni.
    pub fn crash_pg(&mut self, node: usize, takes: u64) {
        match self.nodes[node].pg.state {
            _ if self.nodes[node].pg.stopping => self.kill_pg(node),
            State::TakesWrites => self.begin_starting(node, false, takes),
            State::Follows => self.begin_starting(node, true, takes),
            State::Down | State::Starting { .. } => {}
        }
    }

    /// The signal to stop. The server takes writes until it has stopped.
    pub fn stop_pg(&mut self, node: usize, takes: u64) {
        let pg = &mut self.nodes[node].pg;
        pg.stopping = true;
        let life = pg.life;
        self.after(takes, WorldEvent::Pg(node, life, PgEvent::Stopped));
    }

    /// The postmaster is killed, and its backends with it.
    pub fn kill_pg(&mut self, node: usize) {
        self.new_life(node);
        self.nodes[node].pg.paused = false;
        self.pg_state(node, State::Down);
    }

    pub fn promote_pg(&mut self, node: usize) {
        let pg = &mut self.nodes[node].pg;
        if pg.state != State::Follows || pg.promoting {
            return;
        }
        pg.promoting = true;
        let life = pg.life;
        // Measured: at best 75 ms from the key to the first write.
        let takes = self.random.between(75, 400);
        self.after(takes, WorldEvent::Pg(node, life, PgEvent::Promoted));
    }

    pub fn pg_event(&mut self, node: usize, life: u32, event: PgEvent) {
        let pg = &mut self.nodes[node].pg;
        if pg.life != life {
            return;
        }
        if pg.paused {
            pg.deferred.push(event);
            return;
        }
        match event {
            PgEvent::Up(standby) => {
                if standby {
                    self.pg_state(node, State::Follows);
                    self.follow_timeline(node);
                    // Patroni's own task, which started it, wakes the loop.
                    self.wake_patroni(node, 50);
                } else {
                    self.pg_state(node, State::TakesWrites);
                    self.nodes[node].pg.recovered = true;
                }
            }
            PgEvent::Promoted => {
                if pg.state == State::Follows {
                    self.zk.timeline += 1;
                    pg.timeline = self.zk.timeline;
                    self.pg_state(node, State::TakesWrites);
                }
            }
            PgEvent::Stopped => {
                self.new_life(node);
                self.pg_state(node, State::Down);
            }
            PgEvent::Fenced(by, rule) => {
                self.new_life(node);
                self.pg_state(node, State::Down);
                self.fence_confirmed(node, by, rule);
            }
            PgEvent::FencedByGate => {
                self.new_life(node);
                self.pg_state(node, State::Down);
                if self.zk.up && self.zk.records[node].is_none() {
                    self.record_fence(node, Some(Rule::Peer));
                }
            }
        }
    }

    /// It streams from the leader, or is rewound to the leader's timeline.
    pub fn follow_timeline(&mut self, node: usize) {
        let leader = self.zk.key.map(|key| &self.nodes[key.node].pg).filter(|pg| pg.state == State::TakesWrites);
        if let Some(timeline) = leader.map(|pg| pg.timeline) {
            self.nodes[node].pg.timeline = timeline;
        }
    }

    pub fn pause_pg(&mut self, node: usize) {
        self.nodes[node].pg.paused = true;
    }

    pub fn unpause_pg(&mut self, node: usize) {
        let pg = &mut self.nodes[node].pg;
        if !pg.paused {
            return;
        }
        pg.paused = false;
        pg.unpaused_at = self.now;
        let life = pg.life;
        // It runs a queued statement first. Measured: 10 ms.
        let mut pause = 0;
        if let Some(QueuedFence { until, by, rule, verified_at }) = pg.queued_fence.take()
            && until >= self.now
            && pg.state == State::TakesWrites
        {
            log!(self, "PostgreSQL of {} wakes with a queued fence", letter(node));
            self.check_fence(node, by, rule, verified_at, true);
            pause = self.random.between(5, 10);
            self.after(pause, WorldEvent::Pg(node, life, PgEvent::Fenced(by, rule)));
        }
        for event in std::mem::take(&mut self.nodes[node].pg.deferred) {
            self.after(pause, WorldEvent::Pg(node, life, event));
        }
    }
}
