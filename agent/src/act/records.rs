//! Writes fence records and the audit trail to ZooKeeper.
//!
//! Changes wait in a queue, so that no action waits for ZooKeeper. The queue holds the newest record of each member,
//! and a bounded number of entries of the audit trail. The agent reads a record before it writes it, and replaces only
//! the version that it read. An operator's record stays: another rule's record adds only its confirmation, and only the
//! operator removes it.

use crate::client::zookeeper::{Expect, Handle as ZooKeeper, Znode};
use crate::znode::fence as fence_record;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use warden_core::event::{FenceRecord, Rule};
use warden_core::types::MemberName;

/// The time limit of one request to ZooKeeper. A healthy one takes milliseconds.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);

/// The retries of a write that fails.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// The agent gives up after this long.
    give_up: Duration,
    /// The first pause between two attempts, before jitter. It doubles up to `pause_max`.
    pause_min: Duration,
    /// The longest pause, before jitter.
    pause_max: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            give_up: Duration::from_secs(120),
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(5),
        }
    }
}

/// The maximal number of queued entries of the audit trail. The agent drops the oldest, with an error in the log.
const QUEUED_ENTRIES_MAX: usize = 64;

/// The maximal number of members with a queued record. A cluster never has as many.
const QUEUED_RECORDS_MAX: usize = 256;

/// The agent gives up on a record that another client changes between read and write this often.
const PUT_ATTEMPTS_MAX: u32 = 3;

/// A change of a member's record.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Put(FenceRecord),
    Remove,
}

/// A write that waits.
#[derive(Clone, Debug)]
struct Waiting<T> {
    write: T,
    /// Distinguishes it from a later write in its place.
    number: u64,
    /// The start of the attempts: they have failed since.
    since: Instant,
    next: Instant,
    pause: Duration,
}

impl<T> Waiting<T> {
    fn new(write: T, number: u64, pace: &Pace) -> Self {
        let now = Instant::now();
        Self { write, number, since: now, next: now, pause: pace.pause_min }
    }

    /// Schedules the next attempt. `false` if the agent gives up.
    fn schedule_retry(&mut self, pace: &Pace) -> bool {
        let now = Instant::now();
        self.next = now + self.pause.mul_f64(rand::random_range(0.5..1.0));
        self.pause = (self.pause * 2).min(pace.pause_max);
        now.duration_since(self.since) < pace.give_up
    }
}

#[derive(Default)]
struct Queue {
    records: BTreeMap<MemberName, Waiting<Change>>,
    entries: VecDeque<Waiting<Vec<u8>>>,
    numbers: u64,
}

/// The queue of this actor. Cheap to clone. It outlives a failure of the actor.
#[derive(Clone, Default)]
pub struct Records {
    queue: Arc<Mutex<Queue>>,
    wake: Arc<Notify>,
    pace: Pace,
}

/// ZooKeeper, as this actor needs it.
pub trait Store {
    /// Reads a member's record.
    fn read(&self, member: &str) -> impl Future<Output = Result<Option<Znode>, String>> + Send;
    /// Writes a member's record, or removes it (`None`). `false` if the znode is not as expected.
    fn write(
        &self,
        member: &str,
        record: Option<Vec<u8>>,
        expect: Expect,
    ) -> impl Future<Output = Result<bool, String>> + Send;
    /// Adds an entry to the audit trail.
    fn append(&self, entry: Vec<u8>) -> impl Future<Output = Result<(), String>> + Send;
}

impl Store for ZooKeeper {
    async fn read(&self, member: &str) -> Result<Option<Znode>, String> {
        self.read_record(member, REQUEST_LIMIT).await
    }

    async fn write(&self, member: &str, record: Option<Vec<u8>>, expect: Expect) -> Result<bool, String> {
        self.write_record(member, record, expect, REQUEST_LIMIT).await
    }

    async fn append(&self, entry: Vec<u8>) -> Result<(), String> {
        self.append_audit(entry, REQUEST_LIMIT).await
    }
}

impl Records {
    /// Queues the write of `record`. Never waits.
    pub fn put(&self, record: FenceRecord) {
        self.change(record.member.clone(), Change::Put(record));
    }

    /// Queues the removal of the record of `member`. An operator's record stays. Never waits.
    pub fn remove(&self, member: MemberName) {
        self.change(member, Change::Remove);
    }

    /// Queues an entry of the audit trail. Never waits.
    pub fn audit(&self, entry: Vec<u8>) {
        let mut queue = self.lock();
        if queue.entries.len() >= QUEUED_ENTRIES_MAX {
            queue.entries.pop_front();
            tracing::error!(
                event = "audit_entry_dropped",
                "too many entries of the audit trail wait; the agent drops the oldest"
            );
        }
        queue.numbers += 1;
        let waiting = Waiting::new(entry, queue.numbers, &self.pace);
        queue.entries.push_back(waiting);
        drop(queue);
        self.wake.notify_one();
    }

    /// Discards the queued change of the record of `member`: a newer decision replaces it.
    pub fn forget(&self, member: &MemberName) {
        self.lock().records.remove(member);
    }

    /// Writes `record` now, in place of a queued change. The error says why ZooKeeper does not have it.
    pub async fn put_now(&self, store: &impl Store, record: FenceRecord) -> Result<(), String> {
        self.forget(&record.member);
        let member = record.member.clone();
        let change = Change::Put(record);
        for _ in 0..PUT_ATTEMPTS_MAX {
            if attempt(store, &member, &change, || true).await? {
                return Ok(());
            }
        }
        Err("other clients change the fence record all the time".to_owned())
    }

    /// Whether the write with this number is still the one in the queue.
    fn is_wanted(&self, member: &MemberName, number: u64) -> bool {
        self.lock().records.get(member).is_some_and(|waiting| waiting.number == number)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, member: MemberName, change: Change) {
        let mut queue = self.lock();
        queue.numbers += 1;
        let mut waiting = Waiting::new(change, queue.numbers, &self.pace);
        if let Some(before) = queue.records.get(&member) {
            // A new change does not shorten the pause: ZooKeeper is still away.
            (waiting.since, waiting.next, waiting.pause) = (before.since, before.next, before.pause);
        } else if queue.records.len() >= QUEUED_RECORDS_MAX {
            tracing::error!(
                event = "fence_record_dropped",
                %member,
                "too many fence records wait; the agent drops this one"
            );
            return;
        }
        queue.records.insert(member, waiting);
        drop(queue);
        self.wake.notify_one();
    }

    /// The next write, and its time. Of a record and an entry with the same time, the record comes first.
    fn next(&self) -> Option<(Instant, Next)> {
        let queue = self.lock();
        let record = queue.records.iter().min_by_key(|(_, waiting)| waiting.next);
        let record = record.map(|(member, waiting)| (waiting.next, Next::Record(member.clone(), waiting.clone())));
        // The audit trail is in order, so later entries wait for the first.
        let entry = queue.entries.front().map(|waiting| (waiting.next, Next::Entry(waiting.clone())));
        match (record, entry) {
            (Some(record), Some(entry)) => Some(if record.0 <= entry.0 { record } else { entry }),
            (record, entry) => record.or(entry),
        }
    }

    /// Takes the result of an attempt. A later write in its place stays in the queue.
    fn settle(&self, next: &Next, done: Result<bool, String>) {
        let mut queue = self.lock();
        match next {
            Next::Record(member, tried) => {
                let Some(waiting) = queue.records.get_mut(member) else { return };
                match done {
                    Ok(true) if waiting.number == tried.number => drop(queue.records.remove(member)),
                    // A later change waits, or another client has written. ZooKeeper answers, so the pause ends.
                    Ok(_) => {
                        let now = Instant::now();
                        (waiting.since, waiting.next, waiting.pause) = (now, now, self.pace.pause_min);
                    }
                    Err(why) if !waiting.schedule_retry(&self.pace) => {
                        tracing::error!(
                            event = "fence_record_dropped",
                            %member,
                            why,
                            "the agent could not write the fence record and gives up"
                        );
                        queue.records.remove(member);
                    }
                    Err(why) => tracing::debug!(%member, why, "the fence record could not be written yet"),
                }
            }
            Next::Entry(tried) => {
                let Some(first) = queue.entries.front_mut().filter(|first| first.number == tried.number) else {
                    return;
                };
                match done {
                    Ok(_) => drop(queue.entries.pop_front()),
                    Err(why) if !first.schedule_retry(&self.pace) => {
                        let entry = String::from_utf8_lossy(&tried.write).into_owned();
                        tracing::error!(
                            event = "audit_entry_dropped",
                            entry,
                            why,
                            "the agent could not write to the audit trail and gives up on this entry"
                        );
                        queue.entries.pop_front();
                    }
                    Err(why) => tracing::debug!(why, "the audit trail could not be written to yet"),
                }
            }
        }
    }
}

/// The next write.
enum Next {
    Record(MemberName, Waiting<Change>),
    Entry(Waiting<Vec<u8>>),
}

/// Carries out the queued writes, one after the other, until the agent shuts down.
pub async fn run(records: &Records, store: &impl Store) -> anyhow::Result<()> {
    loop {
        let Some((at, next)) = records.next() else {
            records.wake.notified().await;
            continue;
        };
        if at > Instant::now() {
            tokio::select! {
                () = sleep_until(at) => {}
                () = records.wake.notified() => {}
            }
            // The queue may have changed.
            continue;
        }
        let done = match &next {
            Next::Record(member, tried) => {
                attempt(store, member, &tried.write, || records.is_wanted(member, tried.number)).await
            }
            Next::Entry(tried) => store.append(tried.write.clone()).await.map(|()| true),
        };
        records.settle(&next, done);
    }
}

/// Reads a member's record, and writes the change. `false` if the change is not wanted any more, or if another client
/// wrote the record in between.
async fn attempt(
    store: &impl Store,
    member: &MemberName,
    change: &Change,
    is_wanted: impl Fn() -> bool,
) -> Result<bool, String> {
    let found = store.read(member.as_str()).await?;
    if !is_wanted() {
        return Ok(false);
    }
    let expect = found.as_ref().map_or(Expect::Nothing, |znode| Expect::Version(znode.version));
    let known = match found.as_ref().map(|znode| fence_record::parse_of(member, &znode.data)).transpose() {
        Ok(known) => known,
        Err(why) => {
            // The record may be an operator's, of a newer version. For one in the wrong place there is a warning.
            tracing::error!(
                event = "fence_record_unreadable",
                %member,
                why,
                "the agent cannot parse the existing fence record and leaves it unchanged"
            );
            return Ok(true);
        }
    };
    let record = match changed(known, change) {
        NewRecord::Unchanged => return Ok(true),
        NewRecord::Removed => None,
        NewRecord::Written(record) => Some(fence_record::write(&record)),
    };
    store.write(member.as_str(), record, expect).await
}

/// The new state of a record.
#[derive(Debug, PartialEq, Eq)]
enum NewRecord {
    Unchanged,
    Removed,
    Written(FenceRecord),
}

/// The record after `change`.
fn changed(found: Option<FenceRecord>, change: &Change) -> NewRecord {
    match (found, change) {
        (None, Change::Remove) => NewRecord::Unchanged,
        (Some(found), Change::Remove) if found.rule == Rule::Operator => NewRecord::Unchanged,
        (Some(_), Change::Remove) => NewRecord::Removed,
        // The fence was carried out for the operator. The record keeps the operator's reason.
        (Some(found), Change::Put(record)) if found.rule == Rule::Operator && record.rule == Rule::Operator => {
            NewRecord::Written(FenceRecord { ordered: record.ordered, confirmed: record.confirmed, ..found })
        }
        (Some(found), Change::Put(record)) if found.rule == Rule::Operator => match record.confirmed {
            Some(_) => NewRecord::Written(FenceRecord { confirmed: record.confirmed, ..found }),
            None => NewRecord::Unchanged,
        },
        // The operator has taken the fence back.
        (_, Change::Put(record)) if record.rule == Rule::Operator => NewRecord::Unchanged,
        (_, Change::Put(record)) => NewRecord::Written(record.clone()),
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
