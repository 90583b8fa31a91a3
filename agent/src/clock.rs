//! The agent's monotonic clock, and its translation to the wall clock for what is shown.

use jiff::Timestamp;
use std::time::{Duration, Instant};
use warden_core::types::Moment;

/// Moments are counted from so long before the agent's start: what others did before it is as old as it is.
const BEFORE: Duration = Duration::from_secs(24 * 60 * 60);

/// A clock that starts with the agent. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// The wall clock when the agent started. Only for show: nothing is decided by it.
    start_wall: Timestamp,
}

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self { start: Instant::now(), start_wall: Timestamp::now() }
    }

    /// Now.
    pub fn now(&self) -> Moment {
        self.moment(Instant::now())
    }

    /// An instant as a moment; those from before the start count as the start.
    pub fn moment(&self, instant: Instant) -> Moment {
        Moment::new(BEFORE + instant.saturating_duration_since(self.start))
    }

    /// A moment as wall-clock time, as it would have been shown had nobody turned the clock since the start.
    pub fn wall(&self, moment: Moment) -> Timestamp {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let since_start = micros(moment.since_origin()).saturating_sub(micros(BEFORE));
        let micros = self.start_wall.as_microsecond().saturating_add(since_start);
        Timestamp::from_microsecond(micros).unwrap_or(self.start_wall)
    }

    /// The moment of another process's wall-clock time, in whole seconds since 1970, as its age by the wall clock of now:
    /// the beginning of that second, because what happened in it is not known to be later. Never in the future, so
    /// that a clock that was turned back makes nothing last longer than from now.
    pub fn moment_of_wall(&self, unix_seconds: i64) -> Moment {
        let age = Timestamp::now().as_millisecond().saturating_sub(unix_seconds.saturating_mul(1000));
        self.now().minus(Duration::from_millis(u64::try_from(age).unwrap_or(0)))
    }

    /// How long the agent has been running.
    pub fn uptime(&self) -> Duration {
        self.start.elapsed()
    }
}
