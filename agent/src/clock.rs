//! The agent's monotonic clock, and its conversion to and from wall-clock time.

use jiff::Timestamp;
use std::time::{Duration, Instant};
use warden_core::types::Moment;

/// Moments count from this long before the agent's start, so that earlier events elsewhere keep their age.
const ORIGIN_BEFORE_START: Duration = Duration::from_secs(24 * 60 * 60);

/// A clock that starts with the agent. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// The wall clock when the agent started. The agent only displays it and decides nothing by it.
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

    /// An instant as a moment. An instant before the start counts as the start.
    pub fn moment(&self, instant: Instant) -> Moment {
        Moment::new(ORIGIN_BEFORE_START + instant.saturating_duration_since(self.start))
    }

    /// A moment as wall-clock time. It ignores changes of the wall clock since the start.
    pub fn wall(&self, moment: Moment) -> Timestamp {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let since_start = micros(moment.since_origin()).saturating_sub(micros(ORIGIN_BEFORE_START));
        let micros = self.start_wall.as_microsecond().saturating_add(since_start);
        Timestamp::from_microsecond(micros).unwrap_or(self.start_wall)
    }

    /// The moment of another process's wall-clock time, in whole seconds since 1970.
    ///
    /// Its age counts by the present wall clock, from the beginning of that second. It is never in the future, so that
    /// a clock that was set back extends no time limit.
    pub fn moment_of_wall(&self, unix_seconds: i64) -> Moment {
        let age = Timestamp::now().as_millisecond().saturating_sub(unix_seconds.saturating_mul(1000));
        self.now().minus(Duration::from_millis(u64::try_from(age).unwrap_or(0)))
    }

    /// How long the agent has been running.
    pub fn uptime(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A duration in whole milliseconds, as Warden's formats have it.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
