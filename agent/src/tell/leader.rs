//! The JSON of `GET /api/v1/leader`: who leads, as the agent knows it now, for who cannot wait for a linearizable read.

use serde::{Deserialize, Serialize};
use warden_core::assess;
use warden_core::fact::Reading;
use warden_core::types::Moment;
use warden_core::view::View;

/// Who leads, as it was read last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderNow {
    /// The holder of the leader key; null where there is none, or it is not known.
    pub name: Option<String>,
    /// The key has been read, so that no name means no holder.
    pub known: bool,
    /// By a linearizable read of the last 3 s.
    pub verified: bool,
    /// How long ago it was read.
    pub age_ms: Option<u64>,
    /// A switchover or failover is asked for, and not scheduled for later.
    pub switchover: bool,
}

impl LeaderNow {
    /// Who leads in `view`.
    pub fn of(view: &View, now: Moment) -> Self {
        let leader = assess::leader(view, now, None);
        let request = view.cluster.failover.as_ref().and_then(|fact| fact.value.present());
        Self {
            name: leader.holder().map(ToString::to_string),
            known: matches!(leader.reading, Some(Reading::Present(_) | Reading::Absent)),
            verified: leader.verified,
            age_ms: leader.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            switchover: request.is_some_and(|request| !request.scheduled),
        }
    }
}
