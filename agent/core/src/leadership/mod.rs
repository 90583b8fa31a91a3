//! The memory of the rules of leadership, beyond the newest fact of each kind.
//!
//! It records who held the key when, the state of the local node, and the ordered actions. Like the view, it draws no
//! conclusions: [`crate::rules::fence`], [`crate::rules::release`] and [`crate::rules::nudge`] do. `term`, `patroni`
//! and `server` hold the functions that change it.

mod patroni;
mod server;
mod term;

use crate::event::{
    AliveLock, Event, FenceOutcome, FenceRecord, FenceSession, LeaderKey, LocalEvent, MemberEvent, ReleaseReport, Rule,
    ShutdownCheckpoint, TermMemory, Znode, ZooKeeperEvent,
};
use crate::fact::{Fact, Reading, Source};
use crate::types::{MemberName, Moment, SessionId, Zxid};
use alloc::collections::BTreeMap;
use alloc::string::String;
use core::time::Duration;

/// The next nudge belongs to a new episode after a pause of this length.
pub const NUDGE_EPISODE_GAP: Duration = Duration::from_secs(30);

/// The end of a server that has run for this long begins a new episode of nudges.
pub const SERVER_UPTIME_MIN: Duration = Duration::from_secs(5);

/// A leader term of the local member: one leader key without a break, as the agent has read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderTerm {
    /// The transaction that created the key.
    pub czxid: Zxid,
    /// The session that owns it.
    pub owner: SessionId,
    /// When the agent first read it.
    pub since: Moment,
    /// The agent has seen the local server take writes in this term. The server was promoted under this key, so it has
    /// passed the gate.
    pub was_writable: bool,
    /// The agent saw Patroni hold the alive lock in this term, while Patroni answered. Only then does a free lock prove
    /// anything.
    pub lock_was_held: bool,
    /// The Patroni that took the key has ended. Contacts of another one do not prolong the session that owns the key.
    pub patroni_ended: bool,
}

/// The local Patroni does not answer `GET /health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// When the first unanswered question was asked.
    pub since: Moment,
    /// When that question timed out.
    pub known: Moment,
    /// A linearizable read showed the key as its own after the session of a frozen Patroni would have expired. kazoo
    /// has been in contact since the silence began, so the process runs. The first read that shows another key, or
    /// none, ends this.
    pub refuted: bool,
}

/// Patroni's session `Patroni heartbeat` with the local PostgreSQL. It begins a query in each round of the HA loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// When it last began a query.
    pub began: Moment,
    /// When the agent last looked.
    pub looked: Moment,
}

/// The longest pause between two consecutive answers of Patroni. In a longer one Patroni may have been frozen.
const ANSWER_GAP_MAX: Duration = Duration::from_secs(2);

/// The longest duration of a read that refutes a silence. The moment of a slower one is too uncertain.
const QUICK_READ_MAX: Duration = Duration::from_secs(1);

/// The local postmaster has ended: its socket has no listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// When the agent first found it.
    pub since: Moment,
    /// When the agent last found it.
    pub last: Moment,
    /// The number of consecutive findings.
    pub probes: u32,
}

/// An ordered fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderedFence {
    /// The time of the last order.
    pub at: Moment,
    /// The outcome, and when its report arrived.
    pub outcome: Option<(FenceOutcome, Rule, Moment)>,
    /// The last failure, its rule, and when its report arrived. It stands while the next attempt is under way.
    pub failing: Option<(String, Rule, Moment)>,
}

/// An ordered release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderedRelease {
    /// The time of the order.
    pub at: Moment,
    /// The outcome, and when its report arrived.
    pub outcome: Option<(ReleaseReport, Moment)>,
}

/// Attempts of one kind that count together: nudges of one episode, or reconnects until the standby streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// When the last one was ordered.
    pub last: Moment,
    /// Their number.
    pub count: u32,
}

/// The data of a barrier read that the memory needs.
pub struct BarrierRead<'a> {
    /// The leader key.
    pub leader: &'a Reading<LeaderKey>,
    /// When it was requested.
    pub started: Moment,
    /// When the answer arrived.
    pub finished: Moment,
    /// The transaction of the barrier write.
    pub zxid: Zxid,
    /// When its session began: after ZooKeeper's last restart or election, or the agent's reconnect.
    pub connected: Moment,
    /// The time for which ZooKeeper may keep a silent session beyond its timeout: two ticks, and a second.
    pub grace: Duration,
}

/// The memory of the rules of leadership.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The agent saw the alive lock held while Patroni answered, and has not seen it free before a later answer. A free
    /// lock then proves the end of this Patroni. A release needs that in the present term
    /// ([`LeaderTerm::lock_was_held`]).
    pub lock_was_ever_held: bool,
    /// The local member's present term, if the last read showed the key as its own.
    pub term: Option<LeaderTerm>,
    /// When the newest successful barrier read was *started*, in any session.
    pub read_at: Option<Moment>,
    /// When the newest barrier read that showed the key as the local member's was *started*. The key existed at that
    /// moment or later.
    pub read_as_own_at: Option<Moment>,
    /// The start of the first linearizable read since which every one has shown the key absent.
    pub absent_since: Option<Moment>,
    /// The holder before the present one; `None` if the agent has not seen both.
    pub previous_holder: Option<MemberName>,
    /// The holder as last read, and the transaction that created its key.
    last_key: Option<(MemberName, Zxid)>,
    /// By member: the newest transaction at which it is known to have held the key.
    pub key_held_at: BTreeMap<MemberName, Zxid>,
    /// The transaction since which the agent has been connected without a break; `None` before the first linearizable
    /// read.
    pub connected_from: Option<Zxid>,
    /// The local Patroni's last known contact with ZooKeeper: by its own report (`dcs_last_seen`), or by a znode that
    /// only it writes. The heartbeat does not prove a contact, because the HA loop also turns without ZooKeeper. An
    /// existing key may belong to a session that is about to expire (simulation: frozen inside `get_cluster`).
    pub patroni_contact: Option<Moment>,
    /// The local Patroni's heartbeat session; `None` if the agent cannot see it.
    pub heartbeat: Option<Heartbeat>,
    /// Patroni has answered since the agent's start or, by the record on disk, in this term.
    pub has_answered: bool,
    /// When the first of its present answers arrived, since its last pause of more than [`ANSWER_GAP_MAX`].
    answering_since: Option<Moment>,
    /// When the question of its newest answer was asked.
    answered_at: Option<Moment>,
    /// Its silence, if it does not answer.
    pub silence: Option<Silence>,
    /// The record on disk from before the agent's restart.
    remembered: Option<TermMemory>,
    /// The record that was last sent to disk.
    pub kept: Option<TermMemory>,
    /// The session timeout that ZooKeeper last granted the agent. It grants Patroni the same.
    pub session_timeout: Option<Duration>,
    /// Patroni's ttl, as it was last read.
    pub ttl: Option<Duration>,
    /// When the agent read a changed ttl.
    pub ttl_changed: Option<Moment>,
    /// The session timeout before ttl was raised, and the time of that. Patroni's session keeps the old one until
    /// Patroni's next contact.
    pub timeout_before: Option<(Duration, Moment)>,
    /// Whether failsafe mode was active in the local Patroni's last answer.
    pub failsafe: Option<Fact<bool>>,
    /// The contact with ZooKeeper in that answer.
    pub reported_contact: Option<Moment>,
    /// The local Patroni's name for its member.
    pub patroni_name: Option<MemberName>,
    /// The local postmaster has provably ended.
    pub gone: Option<Gone>,
    /// The shutdown checkpoint of the local PostgreSQL, since its postmaster has ended.
    pub shutdown: Option<Fact<Reading<ShutdownCheckpoint>>>,
    /// The state of the fence session.
    pub fence_session: Option<Fact<FenceSession>>,
    /// Since when the local PostgreSQL has answered.
    pub answers_since: Option<Moment>,
    /// Since when attempts to open a fence session have failed while it answers.
    pub fence_session_lost: Option<Moment>,
    /// Fences that this agent ordered, by member.
    pub ordered: BTreeMap<MemberName, OrderedFence>,
    /// The fence records in ZooKeeper, by member.
    pub records: BTreeMap<MemberName, Fact<Reading<FenceRecord>>>,
    /// When the local member's fence record was last removed.
    pub closed: Option<Moment>,
    /// The last release.
    pub release: Option<OrderedRelease>,
    /// When the agent last asked the local PostgreSQL before the next regular question.
    pub probed: Option<Moment>,
    /// Nudges of the present episode.
    pub nudges: Option<Attempts>,
    /// Reconnects of the local standby since it last streamed.
    pub reconnects: Option<Attempts>,
    /// Why the last nudge failed.
    pub nudge_failed: Option<Fact<String>>,
}

impl Leadership {
    /// Notes an event. `own` is the local member. `tree_read` is the last read of the whole tree in this session.
    /// [`Leadership::note_key`] notes the leader key.
    pub fn note(
        &mut self,
        event: &Event,
        at: Moment,
        now: Moment,
        own: Option<&MemberName>,
        tree_read: Option<Moment>,
    ) {
        match event {
            Event::ZooKeeper(event) => self.note_zookeeper(event, at, own, tree_read),
            Event::Member(name, event) if Some(name) == own => match event {
                MemberEvent::Patroni(answer) => self.note_patroni(answer, at, now),
                // Any answer ends a silence.
                MemberEvent::Liveness { .. } => self.silence = None,
                MemberEvent::Postgres { answer, .. } => self.note_postgres(answer, at),
                MemberEvent::SessionBroke | MemberEvent::GateChecked(_) => {}
            },
            Event::Local(event) => self.note_local(event, at),
            Event::Report(report) => self.note_report(report, at),
            Event::Started(started) => self.note_started(started, at),
            Event::Tick | Event::Member(..) | Event::Haproxy(_) | Event::TaskFailed { .. } => {}
        }
    }

    fn note_zookeeper(
        &mut self,
        event: &ZooKeeperEvent,
        at: Moment,
        own: Option<&MemberName>,
        tree_read: Option<Moment>,
    ) {
        match event {
            ZooKeeperEvent::SessionStarted(session) => {
                self.session_timeout = Some(session.negotiated);
                self.connected_from = None;
            }
            // The local Patroni wrote this znode in a living session, after the last whole read, which found the znode
            // otherwise. The first read of it in a session proves nothing: it may be of any age.
            ZooKeeperEvent::Znode(Znode::Member(name, Reading::Present(_))) if Some(name) == own => {
                self.note_contact(tree_read);
            }
            ZooKeeperEvent::Znode(Znode::Status(Reading::Present(_))) if self.term.is_some() => {
                self.note_contact(tree_read);
            }
            ZooKeeperEvent::FenceRecord { member, record: Reading::Absent } => {
                self.records.remove(member);
            }
            ZooKeeperEvent::FenceRecord { member, record } => {
                self.records.insert(member.clone(), Fact::new(record.clone(), Source::ZooKeeper, at));
            }
            _ => {}
        }
    }

    fn note_local(&mut self, event: &LocalEvent, at: Moment) {
        match event {
            LocalEvent::AliveLock(AliveLock::Gone) if self.lock_was_ever_held => self.note_patroni_ended(),
            LocalEvent::AliveLock(_) => {}
            LocalEvent::Remembered(memory) => self.remembered = Some(memory.clone()),
            LocalEvent::ShutDown(reading) => self.shutdown = Some(Fact::new(reading.clone(), Source::Own, at)),
            LocalEvent::FenceSession(session) => {
                self.fence_session_lost = match session {
                    FenceSession::Ready => None,
                    // No session is possible while the server is down.
                    FenceSession::Lost(_) => self.fence_session_lost.or(self.answers_since.map(|_| at)),
                };
                self.fence_session = Some(Fact::new(session.clone(), Source::Socket, at));
            }
        }
    }
}
