//! Is it still right to act? This is the only check between a decision and a destructive action.
//!
//! A fence, a release and a cut of sessions each carry a [`KeyCondition`]. Right before it acts, the actor makes a new
//! linearizable read and calls [`KeyCondition::check`]. An unreadable fact always refuses: unknown never destroys. The
//! rule `lease` exists because no such read is possible; its condition is [`LeaseCondition`].

use crate::event::{Barrier, ClusterConfig, LeaderKey, PatroniAnswer, SyncState};
use crate::evidence::Ground;
use crate::fact::Reading;
use crate::types::{MemberName, Moment, SessionId, Zxid};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

/// Patroni reports its last contact in whole seconds, so a later one differs by at least a second.
const CONTACT_STAMP_ROUNDING: Duration = Duration::from_millis(500);

/// The condition that a new linearizable read has to meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyCondition {
    /// The ZooKeeper session of the decision. Its evidence does not count in another session.
    pub session: SessionId,
    /// The condition on the leader key.
    pub key: KeyIs,
    /// The condition on Patroni's znode `sync`; `None` if it does not matter.
    pub sync: Option<SyncNames>,
}

/// The condition on the leader key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyIs {
    /// Another member's, or absent. For the fences `superseded` and `orphaned`.
    NotOf(MemberName),
    /// This member's, and the same key as at the decision. For the fence `peer` and the release.
    TheOneOf {
        /// The holder.
        member: MemberName,
        /// The transaction that created the key.
        czxid: Zxid,
        /// The session that owns it.
        owner: SessionId,
    },
    /// Another member's. For the cut of sessions through HAProxy.
    OfAnotherThan(MemberName),
}

/// The condition on the znode `sync`: it names this leader, and one of these standbys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncNames {
    /// The leader that wrote the znode.
    pub leader: MemberName,
    /// The standbys that can take over. One of them suffices.
    pub one_of: BTreeSet<MemberName>,
}

impl KeyCondition {
    /// Checks the condition against `read`. The error gives the reason not to act.
    pub fn check(&self, read: &Barrier) -> Result<(), String> {
        let (leader, config, sync, session) = match read {
            Barrier::Verified { leader, config, sync, session, .. } => (leader, config, sync, session),
            Barrier::Unknown(why) => return Err(format!("the leader key cannot be verified: {why}")),
        };
        not_paused(config)?;
        if *session != self.session {
            return Err("the ZooKeeper session has changed".to_string());
        }
        if let Some(names) = &self.sync {
            names.check(sync)?;
        }
        self.key.check(leader)
    }
}

impl KeyIs {
    fn check(&self, leader: &Reading<LeaderKey>) -> Result<(), String> {
        let key = match leader {
            Reading::Present(key) => Some(key),
            Reading::Absent => None,
            Reading::Unreadable(why) => return Err(format!("the leader key cannot be parsed: {why}")),
        };
        match (self, key) {
            (Self::NotOf(member), Some(key)) if key.holder == *member => {
                Err(format!("{member} holds the leader key again"))
            }
            (Self::NotOf(_), _) => Ok(()),
            (Self::TheOneOf { member, czxid, owner }, Some(key))
                if (&key.holder, key.czxid, key.owner) == (member, *czxid, *owner) =>
            {
                Ok(())
            }
            (Self::OfAnotherThan(member), Some(key)) if key.holder == *member => {
                Err(format!("{member} holds the leader key"))
            }
            (Self::OfAnotherThan(_), Some(_)) => Ok(()),
            (Self::TheOneOf { .. }, Some(key)) => {
                Err(format!("{} holds the leader key, with czxid {:#x}", key.holder, key.czxid.0))
            }
            (Self::TheOneOf { .. } | Self::OfAnotherThan(_), None) => Err("no member holds the leader key".to_string()),
        }
    }
}

impl SyncNames {
    fn check(&self, sync: &Reading<SyncState>) -> Result<(), String> {
        let Reading::Present(sync) = sync else {
            return Err("Patroni's sync znode cannot be read".to_string());
        };
        if sync.leader.as_ref() != Some(&self.leader) {
            return Err(format!("{} is not the leader that Patroni's sync znode names", self.leader));
        }
        if self.one_of.is_disjoint(&sync.standbys) {
            return Err("no standby that can take over is synchronous any more".to_string());
        }
        Ok(())
    }
}

/// An error in maintenance mode, and if the configuration cannot be read: the agent destroys nothing then.
pub fn not_paused(config: &Reading<ClusterConfig>) -> Result<(), String> {
    match config {
        Reading::Present(config) if !config.pause => Ok(()),
        Reading::Present(_) => Err("the cluster is in maintenance mode".to_string()),
        Reading::Absent => Err("Patroni's configuration is absent".to_string()),
        Reading::Unreadable(why) => Err(format!("Patroni's configuration cannot be parsed: {why}")),
    }
}

/// The condition of a fence by `lease`: Patroni's last known activity at the time of the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseCondition {
    /// Patroni's newest known contact with ZooKeeper; `None` if there was none.
    pub contact: Option<Moment>,
    /// When the newest known query of its heartbeat began; `None` if there was none.
    pub beat: Option<Moment>,
    /// The evidence that Patroni is away.
    pub ground: Ground,
}

impl LeaseCondition {
    /// Checks the condition after a new read of ZooKeeper and a new question to Patroni, with the newest `beat` of its
    /// heartbeat. Only new activity withdraws the fence; the passing of time does not.
    pub fn check(&self, read: &Barrier, patroni: &PatroniAnswer, beat: Option<Moment>) -> Result<(), String> {
        if matches!(read, Barrier::Verified { .. }) {
            return Err("ZooKeeper answers again, so the other rules judge first".to_string());
        }
        if beat > self.beat {
            return Err("its Patroni's heartbeat session shows a new round of the HA loop".to_string());
        }
        match patroni {
            PatroniAnswer::Silent(_) | PatroniAnswer::Refused(_) => Ok(()),
            PatroniAnswer::Unusable(_) | PatroniAnswer::Anothers(_) if self.ground == Ground::Heartbeat => Ok(()),
            PatroniAnswer::Unusable(why) | PatroniAnswer::Anothers(why) => {
                Err(format!("its Patroni sends an unusable answer: {why}"))
            }
            PatroniAnswer::Answering(_) if self.ground != Ground::ReportedContact => {
                Err("its Patroni answers".to_string())
            }
            PatroniAnswer::Answering(status) if status.failsafe_active => {
                Err("its Patroni reports active failsafe mode".to_string())
            }
            // Patroni reports whole seconds. Their conversion varies a little.
            PatroniAnswer::Answering(status)
                if status.dcs_last_seen > self.contact.map(|contact| contact.plus(CONTACT_STAMP_ROUNDING)) =>
            {
                Err("its Patroni has been in contact with ZooKeeper since".to_string())
            }
            PatroniAnswer::Answering(_) => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "guard_tests.rs"]
mod tests;
