//! How sessions, znodes and barrier reads change the view.

use super::{Link, Verification, View, replace};
use crate::event::{AgentRecord, Barrier, ClusterConfig, LeaderKey, Session, Znode, ZooKeeperEvent};
use crate::fact::{Fact, Reading, Source};
use crate::leadership::BarrierRead;
use crate::types::{AgentName, Moment};
use core::time::Duration;

impl View {
    pub(super) fn apply_zookeeper(&mut self, event: ZooKeeperEvent, at: Moment, now: Moment) {
        match event {
            ZooKeeperEvent::SessionStarted(session) => self.begin_session(session, at),
            ZooKeeperEvent::SessionLost { detail, .. } => {
                // Further connection failures do not restart the time of the loss.
                let since = if let Link::Lost { since, .. } = self.link { since } else { at };
                self.link = Link::Lost { detail, since };
                self.verified = None;
                self.verification_asked = None;
            }
            ZooKeeperEvent::TreeRead { latency } => {
                self.latency = Some(latency);
                self.tree_read = Some(at);
                self.remove_unreported(at);
            }
            ZooKeeperEvent::Znode(znode) => self.apply_znode(znode, at, now),
            ZooKeeperEvent::Barrier(barrier) => self.apply_barrier(barrier, at, now),
            ZooKeeperEvent::Agent { name, record } => self.apply_agent(name, record, at),
            ZooKeeperEvent::NameTaken { by } => self.name_taken = Some(Fact::new(by, Source::ZooKeeper, at)),
            // [`crate::leadership::Leadership`] has noted it.
            ZooKeeperEvent::FenceRecord { .. } => {}
        }
    }

    fn begin_session(&mut self, session: Session, at: Moment) {
        self.link = Link::Connected { session, since: at };
        self.tree_read = None;
        self.agents_unconfirmed = self.agents.keys().cloned().collect();
        self.verified = None;
        self.barrier_failed = None;
        self.verification_asked = None;
        self.name_taken = None;
        self.announced = None;
    }

    fn apply_agent(&mut self, name: AgentName, record: Reading<AgentRecord>, at: Moment) {
        if record == Reading::Absent {
            self.agents.remove(&name);
            return;
        }
        self.agents_unconfirmed.remove(&name);
        if let Some(known) = record.present() {
            self.note_member_by_agent(known, name == self.identity.agent, at);
        }
        self.agents.insert(name, Fact::new(record, Source::ZooKeeper, at));
    }

    fn apply_znode(&mut self, znode: Znode, at: Moment, now: Moment) {
        let source = Source::ZooKeeper;
        match znode {
            Znode::Leader(reading) => self.take_leader(Fact::new(reading, source, at), now),
            Znode::Config(reading) => self.take_config(Fact::new(reading, source, at)),
            Znode::Sync(reading) => replace(&mut self.cluster.sync, Fact::new(reading, source, at)),
            Znode::Status(reading) => replace(&mut self.cluster.status, Fact::new(reading, source, at)),
            Znode::History(reading) => replace(&mut self.cluster.history, Fact::new(reading, source, at)),
            Znode::Failover(reading) => replace(&mut self.cluster.failover, Fact::new(reading, source, at)),
            Znode::Failsafe(reading) => replace(&mut self.cluster.failsafe, Fact::new(reading, source, at)),
            Znode::Initialize(reading) => replace(&mut self.cluster.initialize, Fact::new(reading, source, at)),
            Znode::Member(name, reading) => {
                let member = self.members.entry(name).or_default();
                if let Some(record) = reading.present() {
                    member.alive_at = Some(at);
                    member.last_record = Some(record.clone());
                }
                replace(&mut member.record, Fact::new(reading, source, at));
            }
        }
    }

    fn apply_barrier(&mut self, barrier: Barrier, at: Moment, now: Moment) {
        match barrier {
            Barrier::Verified { leader, config, sync, session, zxid, finished } => {
                // A result from an earlier session proves nothing in this one.
                if self.session().is_none_or(|current| current.id != session) {
                    return;
                }
                self.take_leader(Fact::new(leader.clone(), Source::Barrier, at), now);
                self.take_config(Fact::new(config.clone(), Source::Barrier, at));
                let grace = self.identity.tick_time.saturating_mul(2).saturating_add(Duration::from_secs(1));
                let connected = if let Link::Connected { since, .. } = self.link { since } else { at };
                let read = BarrierRead { leader: &leader, started: at, finished, zxid, connected, grace };
                self.leadership.note_read(&read, self.identity.member.as_ref());
                if self.verified.as_ref().is_none_or(|known| known.started <= at) {
                    self.verified = Some(Verification { leader, config, sync, session, zxid, started: at, finished });
                    self.barrier_failed = None;
                }
            }
            Barrier::Unknown(why) => replace(&mut self.barrier_failed, Fact::new(why, Source::Barrier, at)),
        }
    }

    fn take_config(&mut self, fact: Fact<Reading<ClusterConfig>>) {
        if let Some(config) = fact.value.present()
            && self.cluster.config.as_ref().is_none_or(|known| known.at <= fact.at)
        {
            self.leadership.note_ttl(config.ttl, fact.at);
        }
        replace(&mut self.cluster.config, fact);
    }

    fn take_leader(&mut self, fact: Fact<Reading<LeaderKey>>, now: Moment) {
        let same = self.leader.as_ref().is_some_and(|known| known.value == fact.value);
        let newer = self.leader.as_ref().is_none_or(|known| known.at <= fact.at);
        if newer {
            self.leadership.note_key(&fact.value, fact.at, self.identity.member.as_ref());
            self.leader = Some(fact);
            if !same {
                self.leader_changed = Some(now);
            }
        }
    }

    /// The whole tree was read: members and agents of a former session that this one did not report are gone.
    fn remove_unreported(&mut self, at: Moment) {
        let Link::Connected { since, .. } = &self.link else { return };
        let since = *since;
        for member in self.members.values_mut() {
            if member.record.as_ref().is_none_or(|record| record.at < since) {
                member.record = Some(Fact::new(Reading::Absent, Source::ZooKeeper, at));
            }
        }
        for gone in core::mem::take(&mut self.agents_unconfirmed) {
            self.agents.remove(&gone);
        }
        // Their fences were taken back between two sessions.
        self.leadership.records.retain(|_, record| record.at >= since);
    }
}
