//! How old a fact may be for those that stand on it.
//!
//! Several rules share these; a limit that belongs to one rule stands beside it.

use core::time::Duration;

/// How old an answer to one of our own questions may be. Asked every 1 s with a limit of 1 s, so 2 s is
/// the oldest of a healthy one; half as much again for a busy machine.
pub const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// How old what another agent says may be: it writes at least every 2 s, may itself be up to 2 s behind,
/// and a lost watch costs 1 s.
pub const AGENT_LIMIT: Duration = Duration::from_secs(5);

/// How old an answer to `GET /liveness` may be: it is asked every 5 s. Two of them, and the answer's time.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(12);

/// How old a barrier read may be to still be called verified where nobody asked for a new one (metrics).
pub const VERIFIED_LIMIT: Duration = Duration::from_secs(3);

/// How old the barrier read may be that a rule stands on. One is made at least every 2 s, and at once when the key
/// changes; right before acting another one is made.
pub const BARRIER_LIMIT: Duration = Duration::from_secs(3);
