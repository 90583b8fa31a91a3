//! Is it still right to act? The one check between a decision and something that destroys.
//!
//! A fence, a release and a cut of sessions each carry a [`KeyCondition`]. Right before it acts, the actor makes a new
//! linearizable read and asks [`KeyCondition::check`]. What cannot be read refuses, everywhere: unknown never destroys.
//! The rule `lease` exists because there is no such read; its condition is [`Away`].

use crate::event::{Barrier, ClusterConfig, LeaderKey, PatroniAnswer, SyncState};
use crate::evidence::Ground;
use crate::fact::Reading;
use crate::types::{MemberName, Moment, SessionId, Zxid};
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

/// Patroni tells its last contact in whole seconds: a later one is at least one later.
const SAME_SECOND: Duration = Duration::from_millis(500);

/// What a new linearizable read has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyCondition {
    /// The ZooKeeper session in which the decision was made: in another one nothing of it is known.
    pub session: SessionId,
    /// What has to be so of the leader key.
    pub key: KeyIs,
    /// What has to be so of Patroni's `sync` znode; `None` where it plays no part.
    pub sync: Option<SyncNames>,
}

/// What has to be so of the leader key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyIs {
    /// Another member's, or absent. By the fences `superseded` and `orphaned`.
    NotOf(MemberName),
    /// This member's, and the very key that was judged. By the fence `peer` and the release.
    TheOneOf {
        /// The holder.
        member: MemberName,
        /// The transaction that created the key.
        czxid: Zxid,
        /// The session that owns it.
        owner: SessionId,
    },
    /// Another member's. By the cut of sessions through HAProxy.
    OfAnotherThan(MemberName),
}

/// What has to be so of the `sync` znode: the leader is this member, and one of these is a synchronous standby.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncNames {
    /// The leader that wrote it.
    pub leader: MemberName,
    /// Standbys that can take over: one of them is enough.
    pub one_of: BTreeSet<MemberName>,
}

impl KeyCondition {
    /// Whether `read` still leaves it right to act. The error says what speaks against it.
    pub fn check(&self, read: &Barrier) -> Result<(), String> {
        let (leader, config, sync, session) = match read {
            Barrier::Verified { leader, config, sync, session, .. } => (leader, config, sync, session),
            Barrier::Unknown(why) => return Err(format!("it cannot be verified any more: {why}")),
        };
        not_paused(config)?;
        if *session != self.session {
            return Err("the ZooKeeper session is another one".to_string());
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
            Reading::Unreadable(why) => return Err(format!("the leader key cannot be understood: {why}")),
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
            (Self::TheOneOf { .. } | Self::OfAnotherThan(_), None) => Err("nobody holds the leader key".to_string()),
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

/// In maintenance mode, and where that cannot be read, nothing is destroyed.
pub fn not_paused(config: &Reading<ClusterConfig>) -> Result<(), String> {
    match config {
        Reading::Present(config) if !config.pause => Ok(()),
        Reading::Present(_) => Err("the cluster is in maintenance mode".to_string()),
        Reading::Absent => Err("Patroni's configuration is not there".to_string()),
        Reading::Unreadable(why) => Err(format!("Patroni's configuration cannot be understood: {why}")),
    }
}

/// The condition of a fence by `lease`: what Patroni was known to have done when the fence was ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Away {
    /// The newest contact of Patroni with ZooKeeper that was known; `None` where none was.
    pub contact: Option<Moment>,
    /// When the newest beat of its heartbeat began that was known; `None` where none was.
    pub beat: Option<Moment>,
    /// How it was known that Patroni is away.
    pub ground: Ground,
}

impl Away {
    /// Whether it is still right to fence, after one more read of ZooKeeper, one more question to Patroni, and with the
    /// newest `beat` of its heartbeat. Only something new withdraws the fence, never time that passes.
    pub fn check(&self, read: &Barrier, patroni: &PatroniAnswer, beat: Option<Moment>) -> Result<(), String> {
        if matches!(read, Barrier::Verified { .. }) {
            return Err("ZooKeeper is there again: what it says is to be judged first".to_string());
        }
        if beat > self.beat {
            return Err("its Patroni's HA loop has turned since (its heartbeat session)".to_string());
        }
        match patroni {
            PatroniAnswer::Silent(_) | PatroniAnswer::Refused(_) => Ok(()),
            PatroniAnswer::Unusable(_) if self.ground == Ground::Heartbeat => Ok(()),
            PatroniAnswer::Unusable(why) => Err(format!("its Patroni answers something: {why}")),
            PatroniAnswer::Answering(_) if self.ground != Ground::OwnWord => Err("its Patroni answers".to_string()),
            PatroniAnswer::Answering(status) if status.failsafe_active => {
                Err("its Patroni says that failsafe mode is active".to_string())
            }
            // It tells whole seconds, which come out a little otherwise each time.
            PatroniAnswer::Answering(status)
                if status.dcs_last_seen > self.contact.map(|contact| contact.plus(SAME_SECOND)) =>
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
