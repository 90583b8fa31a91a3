//! The maximal ages of facts that several rules use. A limit of one rule stands in its file.

use core::time::Duration;

/// The maximal age of an answer to the agent's own question. The agent asks every 1 s with a limit of 1 s, so a healthy
/// answer is up to 2 s old. The third second allows for a busy machine.
pub const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// The maximal age of another agent's report. An agent writes at least every 2 s, its facts may be 2 s old, and a lost
/// watch costs 1 s.
pub const AGENT_LIMIT: Duration = Duration::from_secs(5);

/// The maximal age of an answer to `GET /liveness`. The agent asks every 5 s: two questions, and the time of an answer.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(12);

/// The maximal age of a barrier read that readers see as verified, unless they ask for a new one.
pub const VERIFIED_LIMIT: Duration = Duration::from_secs(3);

/// The maximal age of a barrier read for a rule. The agent makes one at least every 2 s, and at once when the key
/// changes. It makes another one right before it acts.
pub const BARRIER_LIMIT: Duration = Duration::from_secs(3);
