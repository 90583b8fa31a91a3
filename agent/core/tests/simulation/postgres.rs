//! PostgreSQL: takes writes, follows, starts or is down, may be paused, and is stopped by a fence.

use crate::world::{Happening, World, letter, tell};
use warden_core::event::Rule;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Down,
    /// It lets no session in yet: as a standby it follows when that is over, else it takes writes.
    Starting {
        standby: bool,
    },
    Follows,
    TakesWrites,
}

#[derive(Clone, Copy, Debug)]
pub enum PgEvent {
    /// It is up, to take writes or to follow.
    Up(bool),
    Promoted,
    Stopped,
    /// A fence has done its work.
    Fenced(usize, Rule),
    /// So has that of a candidate's gate.
    FencedByGate,
}

/// A fence that waits for a paused server to wake.
#[derive(Clone, Copy, Debug)]
pub struct InFront {
    /// Good until then.
    pub until: u64,
    pub by: usize,
    pub rule: Rule,
    /// When its guard was known to be so.
    pub so_at: Option<u64>,
}

pub struct Postgres {
    pub state: State,
    pub paused: bool,
    pub life: u32,
    pub timeline: u32,
    /// Since when it has taken writes, or has not.
    pub since: u64,
    /// When its own agent first saw that it takes writes, if it does and was seen.
    pub seen: Option<u64>,
    pub unpaused_at: u64,
    /// When Patroni's session `Patroni heartbeat` last began a query, while there is one.
    pub heartbeat: Option<u64>,
    /// Since when that has never been too long ago.
    pub beats_since: u64,
    /// It lets no session in from other nodes (pg_hba).
    pub locked: bool,
    /// Since when that is so, or is not.
    pub locked_since: u64,
    /// It was told to stop: one that crashes meanwhile does not restart.
    pub stopping: bool,
    /// It was told to promote itself.
    pub promoting: bool,
    /// It takes writes again after a crash: it is its agent, not Patroni, that has to see it.
    pub recovered: bool,
    /// A fence that stands in front of it while it is paused.
    pub fence_in_front: Option<InFront>,
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
            locked: false,
            locked_since: 0,
            stopping: false,
            promoting: false,
            recovered: false,
            fence_in_front: None,
            deferred: Vec::new(),
        }
    }

    /// It lets sessions in.
    pub fn takes_sessions(&self) -> bool {
        !self.paused && matches!(self.state, State::TakesWrites | State::Follows)
    }

    /// Acknowledges writes.
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
            tell!(self, "PostgreSQL of {}: {state:?} (timeline {})", letter(node), self.nodes[node].pg.timeline);
        }
    }

    /// Whatever was to come of its former life does not come any more.
    fn new_life(&mut self, node: usize) -> u32 {
        let pg = &mut self.nodes[node].pg;
        pg.life += 1;
        pg.deferred.clear();
        (pg.fence_in_front, pg.heartbeat) = (None, None);
        (pg.stopping, pg.promoting) = (false, false);
        pg.life
    }

    /// Patroni starts it, always as a standby: a leader is promoted when it is up.
    pub fn start_pg(&mut self, node: usize) {
        let takes = self.chance.between(300, 2500);
        self.begin_starting(node, true, takes);
    }

    fn begin_starting(&mut self, node: usize, standby: bool, takes: u64) {
        let life = self.new_life(node);
        self.pg_state(node, State::Starting { standby });
        self.after(takes, Happening::Pg(node, life, PgEvent::Up(standby)));
    }

    /// A backend is killed: the postmaster restarts by itself, and needs `takes` for its crash recovery. A primary takes
    /// writes again when that is over, whatever its Patroni does.
    pub fn crash_pg(&mut self, node: usize, takes: u64) {
        match self.nodes[node].pg.state {
            _ if self.nodes[node].pg.stopping => self.kill_pg(node),
            State::TakesWrites => self.begin_starting(node, false, takes),
            State::Follows => self.begin_starting(node, true, takes),
            State::Down | State::Starting { .. } => {}
        }
    }

    /// The signal to stop; it takes writes to the end.
    pub fn stop_pg(&mut self, node: usize, takes: u64) {
        let pg = &mut self.nodes[node].pg;
        pg.stopping = true;
        let life = pg.life;
        self.after(takes, Happening::Pg(node, life, PgEvent::Stopped));
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
        // Measured: 75 ms from the key to the first write, at best.
        let takes = self.chance.between(75, 400);
        self.after(takes, Happening::Pg(node, life, PgEvent::Promoted));
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

    /// It streams from the leader, or is rewound to what that has.
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
        // A fence that stands in front of it is the first thing it does: measured, 10 ms.
        let mut pause = 0;
        if let Some(InFront { until, by, rule, so_at }) = pg.fence_in_front.take()
            && until >= self.now
            && pg.state == State::TakesWrites
        {
            tell!(self, "PostgreSQL of {} wakes with a fence in front of it", letter(node));
            self.strike_fence(node, by, rule, so_at, true);
            pause = self.chance.between(5, 10);
            self.after(pause, Happening::Pg(node, life, PgEvent::Fenced(by, rule)));
        }
        for event in std::mem::take(&mut self.nodes[node].pg.deferred) {
            self.after(pause, Happening::Pg(node, life, event));
        }
    }
}
