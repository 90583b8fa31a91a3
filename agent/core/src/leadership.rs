//! What has to be remembered for the rules of leadership, beyond the newest fact of each kind.
//!
//! Who held the key when, what is proved about our own neighbour, and what has been ordered. As in the view,
//! no conclusion is drawn here: that is [`crate::rules::fence`]'s, [`crate::rules::release`]'s and [`crate::rules::nudge`]'s.

use crate::event::{
    AliveLock, Event, FenceOutcome, FenceRecord, FenceReport, FenceSession, Outcome, PatroniAnswer, PostgresAnswer,
    ReleaseReport, Rule, ShutdownCheckpoint, Started, TermMemory, Znode,
};
use crate::fact::{Fact, Reading, Source};
use crate::types::{MemberName, Moment, SessionId, Zxid};
use alloc::collections::BTreeMap;
use alloc::string::String;
use core::time::Duration;

/// After this long without one, the next nudge has a reason of its own.
pub const EPISODE: Duration = Duration::from_secs(30);

/// So does the death of a server that lived this long.
pub const LIVED: Duration = Duration::from_secs(5);

/// A time during which our member has held the leader key without a break, as far as we read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reign {
    /// The transaction that created the key.
    pub czxid: Zxid,
    /// The session that owns it.
    pub owner: SessionId,
    /// When we first read it.
    pub since: Moment,
    /// Our server was seen to take writes since: it was promoted under this very key, and passed the gate for that.
    pub wrote: bool,
    /// The alive lock was seen held while Patroni answered, in this reign: only then does it prove anything to
    /// find it free.
    pub lock_was_held: bool,
    /// The Patroni that took the key was seen to be gone: another one's contact with ZooKeeper does not prolong the
    /// session that owns the key.
    pub outlived: bool,
}

/// The local Patroni does not answer `GET /health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// When the first question was asked that it did not answer.
    pub since: Moment,
    /// When that question was given up.
    pub known: Moment,
    /// A linearizable read showed the key as its own after the session of a frozen Patroni would have expired: kazoo has
    /// been in contact since the silence began, so the process runs. The first read that shows otherwise ends this.
    pub refuted: bool,
}

/// Patroni's session `Patroni heartbeat` with the local PostgreSQL: it begins a query in each round of the HA loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// When it last began one.
    pub began: Moment,
    /// When we last looked.
    pub looked: Moment,
}

/// Consecutive answers of Patroni that lie further apart than this leave room for a freeze between them.
const ANSWER_GAP: Duration = Duration::from_secs(2);

/// A read that refutes a silence took less than this itself: it says when it was so.
const QUICK_READ: Duration = Duration::from_secs(1);

/// The local postmaster is gone: nobody listens on its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// When that was first found.
    pub since: Moment,
    /// When it was last found.
    pub last: Moment,
    /// How often it was found in a row.
    pub probes: u32,
}

/// A fence that was ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// When it was last ordered.
    pub at: Moment,
    /// What became of it, and when we heard.
    pub outcome: Option<(FenceOutcome, Rule, Moment)>,
    /// The attempts fail: why the last one that ended did, by which rule, and when we heard. It stands while the next one
    /// is under way.
    pub failing: Option<(String, Rule, Moment)>,
}

/// A release that was ordered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseOrdered {
    /// When.
    pub at: Moment,
    /// What became of it, and when we heard.
    pub outcome: Option<(ReleaseReport, Moment)>,
}

/// Nudges of one episode: as long as there is a reason, they are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nudges {
    /// When the last one was ordered.
    pub last: Moment,
    /// How many there have been.
    pub count: u32,
}

/// A barrier read, as what is remembered takes it in.
pub struct Read<'a> {
    /// The leader key.
    pub leader: &'a Reading<crate::event::LeaderKey>,
    /// When it was asked for.
    pub started: Moment,
    /// When the answer was there.
    pub finished: Moment,
    /// The transaction of the write that made the barrier.
    pub zxid: Zxid,
    /// When the session began in which it was made: ZooKeeper's last restart, election or our reconnect.
    pub connected: Moment,
    /// For how long after its timeout ZooKeeper may keep a session that is not heard: two ticks, and a second.
    pub grace: Duration,
}

/// What is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Leadership {
    /// The alive lock was seen held while Patroni answered, and never free before an answer of Patroni's since: free,
    /// it then means that this Patroni is gone. For a release it has to have been in the present reign
    /// ([`Reign::lock_was_held`]).
    pub lock_was_ever_held: bool,
    /// Our member's present reign, if the key was its own when it was last read.
    pub reign: Option<Reign>,
    /// When the newest barrier read that succeeded was *started*, in whatever session.
    pub read_at: Option<Moment>,
    /// When the newest barrier read that said "the leader is us" was *started*: the key was there at that moment or
    /// later.
    pub mine_at: Option<Moment>,
    /// Since when every linearizable read has shown that no member holds the key: when the first of them was started.
    pub absent_since: Option<Moment>,
    /// Who held the key before its present holder, as far as we saw both; `None` where we did not.
    pub previous_holder: Option<MemberName>,
    /// The holder that was read last, and the transaction that created its key.
    last_key: Option<(MemberName, Zxid)>,
    /// The newest transaction by which each member is known to have held the key.
    pub held: BTreeMap<MemberName, Zxid>,
    /// The transaction from which on we have been connected without a break; `None` until a first linearizable read.
    pub connected_from: Option<Zxid>,
    /// When the local Patroni was last known to be in contact with ZooKeeper, by what it tells (`dcs_last_seen`) and by
    /// what only it writes. Its heartbeat proves that its loop turns, and no contact: it beats without ZooKeeper, too, and a
    /// key that is still there may be that of a session that is about to expire (simulation: frozen inside `get_cluster`).
    pub patroni_contact: Option<Moment>,
    /// The local Patroni's heartbeat session, as far as it can be looked at.
    pub heartbeat: Option<Heartbeat>,
    /// Patroni has answered: in this agent's life, or in this term by what was kept on disk.
    pub has_answered: bool,
    /// When the first of its present answers was asked for, since it last left a gap of more than [`ANSWER_GAP`].
    answering_since: Option<Moment>,
    /// When its newest answer was asked for.
    answered_at: Option<Moment>,
    /// It does not answer.
    pub silence: Option<Silence>,
    /// What was kept on disk of an earlier life of this agent.
    remembered: Option<TermMemory>,
    /// What was last handed over to be kept there.
    pub kept: Option<TermMemory>,
    /// The session timeout that the server granted us, and so Patroni, last.
    pub session_timeout: Option<Duration>,
    /// Patroni's ttl, as it was last read.
    pub ttl: Option<Duration>,
    /// When it was read to have changed.
    pub ttl_changed: Option<Moment>,
    /// The timeout that sessions had before ttl was raised, and when it was: Patroni's session has the old one until
    /// it has been in contact since.
    pub timeout_before: Option<(Duration, Moment)>,
    /// Whether failsafe mode was active when the local Patroni last answered.
    pub failsafe: Option<Fact<bool>>,
    /// The contact with ZooKeeper that it told in that answer.
    pub told_contact: Option<Moment>,
    /// What the local Patroni calls its member.
    pub patroni_name: Option<MemberName>,
    /// The local postmaster is proved gone.
    pub gone: Option<Gone>,
    /// What the local PostgreSQL was shut down with, since it is gone.
    pub shutdown: Option<Fact<Reading<ShutdownCheckpoint>>>,
    /// The session that is kept ready for a fence.
    pub fence_session: Option<Fact<FenceSession>>,
    /// Since when the local PostgreSQL has answered, if it does.
    pub answers_since: Option<Moment>,
    /// Since when it has answered and attempts to have such a session with it have failed.
    pub fence_session_lost: Option<Moment>,
    /// Fences that were ordered from here, by member.
    pub ordered: BTreeMap<MemberName, Ordered>,
    /// The fence records in ZooKeeper, by member.
    pub records: BTreeMap<MemberName, Fact<Reading<FenceRecord>>>,
    /// When our own fence record was last removed.
    pub closed: Option<Moment>,
    /// The last release.
    pub release: Option<ReleaseOrdered>,
    /// When the local PostgreSQL was last asked out of turn.
    pub probed: Option<Moment>,
    /// Nudges of the present episode.
    pub nudges: Option<Nudges>,
    /// How often the local standby was told to try again since it last streamed, and when last.
    pub reconnects: Option<Nudges>,
    /// Why the last nudge failed, if it did.
    pub nudge_failed: Option<Fact<String>>,
}

impl Leadership {
    /// Takes in something that happened to the cluster of which `own` is our member; the leader key itself is
    /// [`Leadership::note_key`]'s. `tree_read` is when the tree was last read as a whole in this session.
    pub fn note(
        &mut self,
        event: &Event,
        at: Moment,
        now: Moment,
        own: Option<&MemberName>,
        tree_read: Option<Moment>,
    ) {
        match event {
            Event::SessionStarted(session) => {
                self.session_timeout = Some(session.negotiated);
                self.connected_from = None;
            }
            // What only our Patroni writes, it wrote in a session that lived, and after the last whole read, which
            // still found it otherwise. The first sight of it in a session says nothing: it may be of any age.
            Event::Znode(Znode::Member(name, Reading::Present(_))) if Some(name) == own => self.note_contact(tree_read),
            Event::Znode(Znode::Status(Reading::Present(_))) if self.reign.is_some() => self.note_contact(tree_read),
            Event::AliveLock(AliveLock::Gone) if self.lock_was_ever_held => self.note_end(),
            Event::Patroni { member, answer } if Some(member) == own => self.note_patroni(answer, at, now),
            // It answers something, so it is not silent.
            Event::Liveness { member, .. } if Some(member) == own => self.silence = None,
            Event::Remembered(memory) => {
                self.remembered = Some(memory.clone());
            }
            Event::Postgres { member, answer, .. } if Some(member) == own => self.note_postgres(answer, at),
            Event::ShutDown(reading) => self.shutdown = Some(Fact::new(reading.clone(), Source::Own, at)),
            Event::FenceSession(session) => {
                self.fence_session_lost = match session {
                    FenceSession::Ready => None,
                    // While the server is away there can be none.
                    FenceSession::Lost(_) => self.fence_session_lost.or(self.answers_since.map(|_| at)),
                };
                self.fence_session = Some(Fact::new(session.clone(), Source::Socket, at));
            }
            Event::Fence(FenceReport { member, rule, outcome }) => {
                let ordered =
                    self.ordered.entry(member.clone()).or_insert(Ordered { at, outcome: None, failing: None });
                ordered.outcome = Some((outcome.clone(), *rule, at));
                ordered.failing = match outcome {
                    FenceOutcome::Failed(why) => Some((why.clone(), *rule, at)),
                    _ => None,
                };
            }
            Event::FenceRecord { member, record } => match record {
                Reading::Absent => {
                    self.records.remove(member);
                }
                record => {
                    let fact = Fact::new(record.clone(), Source::ZooKeeper, at);
                    self.records.insert(member.clone(), fact);
                }
            },
            Event::Release(report) => {
                let ordered = self.release.get_or_insert(ReleaseOrdered { at, outcome: None });
                ordered.outcome = Some((report.clone(), at));
            }
            Event::Nudged { outcome } => {
                self.nudge_failed = match outcome {
                    Outcome::Failed(why) => Some(Fact::new(why.clone(), Source::Patroni, at)),
                    Outcome::Done | Outcome::Observed => None,
                };
            }
            Event::Started(started) => self.note_started(started, at),
            _ => {}
        }
    }

    /// What the lock and Patroni's newest answer, at `answered` if it is recent, say of each other.
    ///
    /// Found held while Patroni answers, it can be relied on for this reign. Found free before Patroni answered, it is
    /// not this Patroni's: started again without it, or not yet seen to have it.
    pub fn note_lock(&mut self, lock: &Fact<AliveLock>, answered: Option<Moment>) {
        let relied_on = match (&lock.value, answered) {
            (AliveLock::Alive, Some(_)) => true,
            (AliveLock::Gone, Some(answered)) if answered > lock.at => false,
            _ => return,
        };
        self.lock_was_ever_held = relied_on;
        if let Some(reign) = &mut self.reign {
            reign.lock_was_held = relied_on;
        }
    }

    fn note_patroni(&mut self, answer: &PatroniAnswer, at: Moment, now: Moment) {
        match answer {
            PatroniAnswer::Answering(status) => {
                self.has_answered = true;
                let silent = self.silence.take().is_some();
                let gap = silent || self.answered_at.is_none_or(|last| at.since(last) > ANSWER_GAP);
                // The first one is as old as it came: one that waited in front of a frozen Patroni was given when it thawed.
                let since = if gap { now } else { self.answering_since.unwrap_or(now) };
                (self.answering_since, self.answered_at) =
                    (Some(since), Some(self.answered_at.map_or(at, |last| last.max(at))));
                // A Patroni that thaws stamps a contact that it had before: only one later than an answer counts.
                self.note_contact(status.dcs_last_seen.filter(|seen| *seen > since));
                self.failsafe = Some(Fact::new(status.failsafe_active, Source::Patroni, at));
                self.told_contact = status.dcs_last_seen;
                self.patroni_name = status.name.clone().or_else(|| self.patroni_name.take());
            }
            PatroniAnswer::Silent(_) | PatroniAnswer::Refused(_) => {
                self.silence.get_or_insert(Silence { since: at, known: now, refuted: false });
                // Without a lock to tell, a port on which no process listens will do.
                if matches!(answer, PatroniAnswer::Refused(_)) && !self.lock_was_ever_held {
                    self.note_end();
                }
            }
            // Something answered, or nothing is known: neither is silence.
            PatroniAnswer::Unusable(_) => self.silence = None,
        }
    }

    /// What was kept on disk counts until our member holds a key of another term. `None`: it holds none.
    fn recall(&mut self, term: Option<Zxid>) {
        let Some(memory) = self.remembered.take_if(|memory| term.is_none_or(|term| term == memory.czxid)) else {
            return;
        };
        self.has_answered |= memory.answered;
        self.lock_was_ever_held |= memory.lock_was_held;
        if let Some(reign) = &mut self.reign {
            reign.lock_was_held |= memory.lock_was_held;
        }
    }

    /// What is to be kept on disk of the present term.
    pub fn to_keep(&self) -> Option<TermMemory> {
        let reign = self.reign.as_ref()?;
        let memory = TermMemory { czxid: reign.czxid, answered: self.has_answered, lock_was_held: reign.lock_was_held };
        (memory.answered || memory.lock_was_held).then_some(memory)
    }

    fn note_heartbeat(&mut self, began: Moment, looked: Moment) {
        let began = self.heartbeat.map_or(began, |known| known.began.max(began));
        self.heartbeat = Some(Heartbeat { began, looked });
    }

    fn note_contact(&mut self, at: Option<Moment>) {
        if self.reign.as_ref().is_none_or(|reign| !reign.outlived) {
            self.patroni_contact = self.patroni_contact.max(at);
        }
    }

    fn note_end(&mut self) {
        if let Some(reign) = &mut self.reign {
            reign.outlived = true;
        }
    }

    /// ttl as it was read at `at`.
    pub fn note_ttl(&mut self, ttl: Duration, at: Moment) {
        let Some(before) = self.ttl.replace(ttl).filter(|before| *before != ttl) else { return };
        self.ttl_changed = Some(at);
        if before < ttl {
            let shortest = self.shortest(before);
            self.timeout_before = Some((shortest, at));
        }
    }

    /// For how long Patroni's session lives after its last contact, at least, where ttl is `ttl`; `None` while no
    /// session has been granted.
    pub fn patroni_timeout(&self, ttl: Duration) -> Option<Duration> {
        self.session_timeout.map(|_| self.shortest(ttl))
    }

    fn shortest(&self, ttl: Duration) -> Duration {
        let before = self.timeout_before.filter(|(_, raised)| self.patroni_contact.is_none_or(|seen| seen <= *raised));
        let granted = self.session_timeout.map_or(ttl, |granted| granted.min(ttl));
        before.map_or(granted, |(before, _)| before.min(granted))
    }

    /// A barrier read of the present session. `own` is our member.
    pub fn note_read(&mut self, read: &Read<'_>, own: Option<&MemberName>) {
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
        self.mine_at = self.mine_at.max(Some(read.started));
        let (Some(silence), Some(timeout)) = (&mut self.silence, self.session_timeout) else { return };
        // By then the session of a process that was frozen all the while would have expired.
        let expired = silence.known.max(read.connected).plus(timeout).plus(read.grace);
        silence.refuted |= read.started > expired && read.finished.since(read.started) < QUICK_READ;
    }

    /// A verified key that is absent or another's: that the silence was refuted is past.
    fn end_refutation(&mut self, leader: &Reading<crate::event::LeaderKey>) {
        if let (Some(silence), Reading::Present(_) | Reading::Absent) = (&mut self.silence, leader) {
            silence.refuted = false;
        }
    }

    /// A member was read as the holder of the key at a transaction not earlier than `zxid`.
    fn note_holder(&mut self, key: &crate::event::LeaderKey, zxid: Zxid) {
        let held = self.held.entry(key.holder.clone()).or_insert(zxid);
        *held = (*held).max(zxid).max(key.mzxid);
    }

    /// The leader key as it was read last.
    pub fn note_key(&mut self, reading: &Reading<crate::event::LeaderKey>, at: Moment, own: Option<&MemberName>) {
        if let Reading::Present(key) = reading {
            self.note_holder(key, key.mzxid);
            let known = self.last_key.replace((key.holder.clone(), key.czxid));
            if let Some((holder, _)) = known.filter(|(_, czxid)| *czxid != key.czxid) {
                self.previous_holder = Some(holder);
            }
        }
        match reading {
            Reading::Present(key) if Some(&key.holder) == own => {
                let same =
                    self.reign.as_ref().is_some_and(|reign| (reign.czxid, reign.owner) == (key.czxid, key.owner));
                if !same {
                    let (czxid, owner) = (key.czxid, key.owner);
                    self.reign =
                        Some(Reign { czxid, owner, since: at, wrote: false, lock_was_held: false, outlived: false });
                }
                self.recall(Some(key.czxid));
            }
            Reading::Present(_) | Reading::Absent => {
                self.reign = None;
                self.recall(None);
            }
            // It says nothing, so it ends nothing.
            Reading::Unreadable(_) => {}
        }
    }

    fn note_postgres(&mut self, answer: &PostgresAnswer, at: Moment) {
        if let (PostgresAnswer::Writable(_), Some(reign)) = (answer, &mut self.reign) {
            reign.wrote |= at >= reign.since;
        }
        // The death of a server that lived is a reason of its own; one that dies again and again is not.
        let lived = self.answers_since.is_some_and(|since| at.since(since) >= LIVED);
        if self.gone.is_none() && matches!(answer, PostgresAnswer::Gone(_)) && lived {
            self.nudges = None;
        }
        // One that answers, but not to us, runs too: too many connections are just what keeps a session from being ready.
        if answer.server().is_some() || matches!(answer, PostgresAnswer::Unknown(_)) {
            self.answers_since = self.answers_since.or(Some(at));
        } else {
            (self.answers_since, self.fence_session_lost) = (None, None);
        }
        if let Some(began) = answer.server().and_then(|server| server.heartbeat) {
            self.note_heartbeat(began, at);
        }
        if answer.server().is_some_and(|server| server.receives == Some(true)) {
            self.reconnects = None;
        }
        match answer {
            PostgresAnswer::Gone(_) => {
                let gone = self.gone.get_or_insert(Gone { since: at, last: at, probes: 0 });
                gone.last = gone.last.max(at);
                gone.probes += 1;
            }
            // It may have been started, and what it was shut down with is past.
            PostgresAnswer::Writable(_)
            | PostgresAnswer::InRecovery(_)
            | PostgresAnswer::Refused(_)
            | PostgresAnswer::Starting(_)
            | PostgresAnswer::Stopping(_) => (self.gone, self.shutdown) = (None, None),
            // A socket that nobody could ask proves nothing either way; two in a row have to be in a row.
            PostgresAnswer::Silent(_) | PostgresAnswer::Unknown(_) => self.gone = None,
        }
    }

    fn note_started(&mut self, started: &Started, at: Moment) {
        match started {
            Started::Fence(member) => {
                let failing = self.ordered.remove(member).and_then(|before| before.failing);
                self.ordered.insert(member.clone(), Ordered { at, outcome: None, failing });
            }
            Started::Probe => self.probed = Some(at),
            Started::CloseFence => self.closed = Some(at),
            Started::Release => self.release = Some(ReleaseOrdered { at, outcome: None }),
            Started::Nudge => {
                let episode = self.nudges.filter(|nudges| at.since(nudges.last) < EPISODE);
                let count = episode.map_or(0, |nudges| nudges.count);
                self.nudges = Some(Nudges { last: at, count: count.saturating_add(1) });
            }
            Started::Reconnect => {
                let count = self.reconnects.map_or(0, |tries| tries.count);
                self.reconnects = Some(Nudges { last: at, count: count.saturating_add(1) });
            }
            Started::Keep(memory) => self.kept = Some(memory.clone()),
            Started::Verification
            | Started::Announcement(_)
            | Started::Look
            | Started::Render
            | Started::Hold { .. }
            | Started::Route { .. } => {}
        }
    }
}
