//! PostgreSQL: takes writes, follows, starts or is down, may be paused, and is stopped by a fence.

use crate::world::{Happening, World, letter, tell};
use warden_core::event::Rule;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Down,
    Starting,
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
            fence_in_front: None,
            deferred: Vec::new(),
        }
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
            tell!(self, "PostgreSQL of {}: {state:?} (timeline {})", letter(node), self.nodes[node].pg.timeline);
        }
    }

    /// Whatever was to come of its former life does not come any more.
    fn new_life(&mut self, node: usize) -> u32 {
        let pg = &mut self.nodes[node].pg;
        pg.life += 1;
        pg.deferred.clear();
        pg.fence_in_front = None;
        pg.life
    }

    pub fn start_pg(&mut self, node: usize, as_leader: bool) {
        let life = self.new_life(node);
        self.pg_state(node, State::Starting);
        let takes = if as_leader { self.chance.between(200, 2000) } else { self.chance.between(500, 3000) };
        self.after(takes, Happening::Pg(node, life, PgEvent::Up(as_leader)));
    }

    /// The signal to stop; it takes writes to the end.
    pub fn stop_pg(&mut self, node: usize, takes: u64) {
        let life = self.nodes[node].pg.life;
        self.after(takes, Happening::Pg(node, life, PgEvent::Stopped));
    }

    /// The postmaster is killed, and its backends with it.
    pub fn kill_pg(&mut self, node: usize) {
        self.new_life(node);
        self.nodes[node].pg.paused = false;
        self.pg_state(node, State::Down);
    }

    pub fn promote_pg(&mut self, node: usize) {
        let life = self.nodes[node].pg.life;
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
            PgEvent::Up(as_leader) => {
                if as_leader {
                    self.pg_state(node, State::TakesWrites);
                } else {
                    self.pg_state(node, State::Follows);
                    self.follow_timeline(node);
                }
            }
            PgEvent::Promoted => {
                if pg.state == State::Follows {
                    pg.timeline += 1;
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
        }
    }

    pub fn follow_timeline(&mut self, node: usize) {
        let leaders = self.zk.key.map(|key| self.nodes[key.node].pg.timeline);
        let pg = &mut self.nodes[node].pg;
        pg.timeline = pg.timeline.max(leaders.unwrap_or(0));
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
