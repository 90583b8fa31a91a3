//! How reads of the leader key, of the tree and of ttl change what is remembered.

use super::{BarrierRead, LeaderTerm, Leadership, QUICK_READ_MAX};
use crate::event::{LeaderKey, TermMemory};
use crate::fact::Reading;
use crate::types::{MemberName, Moment, Zxid};
use core::time::Duration;

impl Leadership {
    /// Notes the newest read of the leader key.
    pub fn note_key(&mut self, reading: &Reading<LeaderKey>, at: Moment, own: Option<&MemberName>) {
        if let Reading::Present(key) = reading {
            self.note_holder(key, key.mzxid);
            let known = self.last_key.replace((key.holder.clone(), key.czxid));
            if let Some((holder, _)) = known.filter(|(_, czxid)| *czxid != key.czxid) {
                self.previous_holder = Some(holder);
            }
        }
        match reading {
            Reading::Present(key) if Some(&key.holder) == own => {
                let same = self.term.as_ref().is_some_and(|term| (term.czxid, term.owner) == (key.czxid, key.owner));
                if !same {
                    let (czxid, owner) = (key.czxid, key.owner);
                    self.term = Some(LeaderTerm {
                        czxid,
                        owner,
                        since: at,
                        was_writable: false,
                        lock_was_held: false,
                        patroni_ended: false,
                    });
                }
                self.recall(Some(key.czxid));
            }
            Reading::Present(_) | Reading::Absent => {
                self.term = None;
                self.recall(None);
            }
            // An unreadable key proves no end of the term.
            Reading::Unreadable(_) => {}
        }
    }

    /// Notes that a read at transaction `zxid` or later showed this holder.
    fn note_holder(&mut self, key: &LeaderKey, zxid: Zxid) {
        let held = self.key_held_at.entry(key.holder.clone()).or_insert(zxid);
        *held = (*held).max(zxid).max(key.mzxid);
    }

    /// Notes a barrier read of the present session. `own` is the local member.
    pub fn note_read(&mut self, read: &BarrierRead<'_>, own: Option<&MemberName>) {
        self.read_at = self.read_at.max(Some(read.started));
        self.connected_from = self.connected_from.or(Some(read.zxid));
        self.absent_since = match read.leader {
            Reading::Absent => self.absent_since.or(Some(read.started)),
            Reading::Present(_) | Reading::Unreadable(_) => None,
        };
        let Reading::Present(key) = read.leader else { return self.end_refutation(read.leader) };
        self.note_holder(key, read.zxid);
        if Some(&key.holder) != own {
            return self.end_refutation(read.leader);
        }
        self.read_as_own_at = self.read_as_own_at.max(Some(read.started));
        let (Some(silence), Some(timeout)) = (&mut self.silence, self.session_timeout) else { return };
        // By then ZooKeeper has ended the session of a process that was frozen all the time.
        let expired = silence.known.max(read.connected).plus(timeout).plus(read.grace);
        silence.refuted |= read.started > expired && read.finished.since(read.started) < QUICK_READ_MAX;
    }

    /// Ends the refutation of a silence: the verified key is absent or another member's.
    fn end_refutation(&mut self, leader: &Reading<LeaderKey>) {
        if let (Some(silence), Reading::Present(_) | Reading::Absent) = (&mut self.silence, leader) {
            silence.refuted = false;
        }
    }

    /// Applies the record on disk, until the local member holds a key of another term. `None`: it holds none.
    fn recall(&mut self, term: Option<Zxid>) {
        let Some(memory) = self.remembered.take_if(|memory| term.is_none_or(|term| term == memory.czxid)) else {
            return;
        };
        self.has_answered |= memory.answered;
        self.lock_was_ever_held |= memory.lock_was_held;
        if let Some(term) = &mut self.term {
            term.lock_was_held |= memory.lock_was_held;
        }
    }

    /// The record of the present term for the disk; `None` if there is nothing to keep.
    pub fn to_keep(&self) -> Option<TermMemory> {
        let term = self.term.as_ref()?;
        let memory = TermMemory { czxid: term.czxid, answered: self.has_answered, lock_was_held: term.lock_was_held };
        (memory.answered || memory.lock_was_held).then_some(memory)
    }

    /// Notes ttl as read at `at`.
    pub fn note_ttl(&mut self, ttl: Duration, at: Moment) {
        let Some(before) = self.ttl.replace(ttl).filter(|before| *before != ttl) else { return };
        self.ttl_changed = Some(at);
        if before < ttl {
            let shortest = self.shortest(before);
            self.timeout_before = Some((shortest, at));
        }
    }

    /// The shortest time that Patroni's session lives after its last contact, with this `ttl`; `None` before the
    /// agent's first session.
    pub fn patroni_timeout(&self, ttl: Duration) -> Option<Duration> {
        self.session_timeout.map(|_| self.shortest(ttl))
    }

    fn shortest(&self, ttl: Duration) -> Duration {
        let before = self.timeout_before.filter(|(_, raised)| self.patroni_contact.is_none_or(|seen| seen <= *raised));
        let granted = self.session_timeout.map_or(ttl, |granted| granted.min(ttl));
        before.map_or(granted, |(before, _)| before.min(granted))
    }
}
