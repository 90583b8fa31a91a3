//! The JSON of `GET /api/v1/leader`: the leader as the agent knows it now, for clients that cannot wait for a
//! linearizable read.

use crate::clock::millis;
use serde::{Deserialize, Serialize};
use warden_core::assess;
use warden_core::fact::Reading;
use warden_core::types::Moment;
use warden_core::view::View;

/// The leader as the agent last read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderNow {
    /// The holder of the leader key; null if there is no holder, or it is unknown.
    pub name: Option<String>,
    /// The agent has read the key, so a null `name` means no holder.
    pub known: bool,
    /// A linearizable read of the last 3 s confirms the holder.
    pub verified: bool,
    /// The age of the read, in milliseconds.
    pub age_ms: Option<u64>,
    /// The operator has requested a switchover or failover for now, and not for a later time.
    pub switchover: bool,
}

impl LeaderNow {
    /// The leader in `view` at `now`.
    pub fn of(view: &View, now: Moment) -> Self {
        let leader = assess::leader(view, now, None);
        let request = view.cluster.failover.as_ref().and_then(|fact| fact.value.present());
        Self {
            name: leader.holder().map(ToString::to_string),
            known: matches!(leader.reading, Some(Reading::Present(_) | Reading::Absent)),
            verified: leader.verified,
            age_ms: leader.age.map(millis),
            switchover: request.is_some_and(|request| !request.scheduled),
        }
    }
}
