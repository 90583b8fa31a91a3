//! Writes down in ZooKeeper what was done: a member's fence record, and the audit trail.
//!
//! What is to be written waits here, so that no act waits for a ZooKeeper that is away: for each member only the newest
//! record, and of the audit trail a bounded number of entries. A record is read before it is written, and written
//! only over what was read. What a person asked for stays theirs: another rule's record only adds to it that the fence
//! is confirmed, and only a person takes it away.

use crate::fence_record;
use crate::watch::zookeeper::{Expect, Handle as ZooKeeper, Znode};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use warden_core::event::{FenceRecord, Rule};
use warden_core::types::MemberName;

/// One request to ZooKeeper: a healthy one takes milliseconds.
const REQUEST: Duration = Duration::from_secs(1);

/// How long and how often something is tried that cannot be written.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Given up after this long.
    give_up: Duration,
    /// Pause before the next attempt, with jitter: doubled from the first to the longest.
    first: Duration,
    longest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { give_up: Duration::from_secs(120), first: Duration::from_millis(100), longest: Duration::from_secs(5) }
    }
}

/// More entries of the audit trail than this do not wait; the oldest are dropped, loudly.
const MOST_ENTRIES: usize = 64;

/// More members than this have no record that waits: there are never as many.
const MOST_MEMBERS: usize = 256;

/// A record that changes this often under our hands is somebody else's business.
const ATTEMPTS: u32 = 3;

/// What is to become of a member's record.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Put(FenceRecord),
    Remove,
}

/// Something that waits to be written.
#[derive(Clone, Debug)]
struct Waiting<T> {
    what: T,
    /// Tells it from what may come to wait in its place.
    number: u64,
    /// Since when nothing of its kind could be written.
    since: Instant,
    next: Instant,
    pause: Duration,
}

impl<T> Waiting<T> {
    fn new(what: T, number: u64, pace: &Pace) -> Self {
        let now = Instant::now();
        Self { what, number, since: now, next: now, pause: pace.first }
    }

    /// Puts off the next attempt; `false` if it has been tried for long enough.
    fn put_off(&mut self, pace: &Pace) -> bool {
        let now = Instant::now();
        self.next = now + self.pause.mul_f64(rand::random_range(0.5..1.0));
        self.pause = (self.pause * 2).min(pace.longest);
        now.duration_since(self.since) < pace.give_up
    }
}

#[derive(Default)]
struct Queue {
    records: BTreeMap<MemberName, Waiting<Change>>,
    entries: VecDeque<Waiting<Vec<u8>>>,
    numbers: u64,
}

/// The way to this actor, and what waits for it. Cheap to clone; it outlives a failure of the actor.
#[derive(Clone, Default)]
pub struct Records {
    queue: Arc<Mutex<Queue>>,
    news: Arc<Notify>,
    pace: Pace,
}

/// What the records are kept in.
pub trait Store {
    /// Reads a member's record.
    fn read(&self, member: &str) -> impl Future<Output = Result<Option<Znode>, String>> + Send;
    /// Writes it, or removes it; `false` if it is not as expected.
    fn write(
        &self,
        member: &str,
        record: Option<Vec<u8>>,
        expect: Expect,
    ) -> impl Future<Output = Result<bool, String>> + Send;
    /// Adds to the audit trail.
    fn append(&self, entry: Vec<u8>) -> impl Future<Output = Result<(), String>> + Send;
}

impl Store for ZooKeeper {
    async fn read(&self, member: &str) -> Result<Option<Znode>, String> {
        self.read_record(member, REQUEST).await
    }

    async fn write(&self, member: &str, record: Option<Vec<u8>>, expect: Expect) -> Result<bool, String> {
        self.write_record(member, record, expect, REQUEST).await
    }

    async fn append(&self, entry: Vec<u8>) -> Result<(), String> {
        self.append_audit(entry, REQUEST).await
    }
}

impl Records {
    /// Has `record` put in its place. Never waits.
    pub fn put(&self, record: FenceRecord) {
        self.change(record.member.clone(), Change::Put(record));
    }

    /// Has the record of `member` removed, unless a person asked for it. Never waits.
    pub fn remove(&self, member: MemberName) {
        self.change(member, Change::Remove);
    }

    /// Has an entry added to the audit trail. Never waits.
    pub fn audit(&self, entry: Vec<u8>) {
        let mut queue = self.lock();
        if queue.entries.len() >= MOST_ENTRIES {
            queue.entries.pop_front();
            tracing::error!("the audit trail cannot be written to: its oldest waiting entry is dropped");
        }
        queue.numbers += 1;
        let waiting = Waiting::new(entry, queue.numbers, &self.pace);
        queue.entries.push_back(waiting);
        drop(queue);
        self.news.notify_one();
    }

    /// Nothing that waits for `member` is written any more: a person has just decided.
    pub fn forget(&self, member: &MemberName) {
        self.lock().records.remove(member);
    }

    /// Puts `record` in its place now, before anything that waits. The error says why that cannot be.
    pub async fn put_now(&self, store: &impl Store, record: FenceRecord) -> Result<(), String> {
        self.forget(&record.member);
        let member = record.member.clone();
        let change = Change::Put(record);
        for _ in 0..ATTEMPTS {
            if attempt(store, &member, &change, || true).await? {
                return Ok(());
            }
        }
        Err("the fence record changes all the time".to_owned())
    }

    /// Whether what was tried under this number is still what is to be written.
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
            // ZooKeeper does not come back sooner because there is more to write.
            (waiting.since, waiting.next, waiting.pause) = (before.since, before.next, before.pause);
        } else if queue.records.len() >= MOST_MEMBERS {
            tracing::error!(%member, "too many fence records wait; this one is dropped");
            return;
        }
        queue.records.insert(member, waiting);
        drop(queue);
        self.news.notify_one();
    }

    /// What is to be tried next, and when: records before entries, the one that is due first.
    fn next(&self) -> Option<(Instant, Next)> {
        let queue = self.lock();
        let record = queue.records.iter().min_by_key(|(_, waiting)| waiting.next);
        let record = record.map(|(member, waiting)| (waiting.next, Next::Record(member.clone(), waiting.clone())));
        // The trail is in order: the later entries wait for the first.
        let entry = queue.entries.front().map(|waiting| (waiting.next, Next::Entry(waiting.clone())));
        match (record, entry) {
            (Some(record), Some(entry)) => Some(if record.0 <= entry.0 { record } else { entry }),
            (record, entry) => record.or(entry),
        }
    }

    /// What came of an attempt. What has come to wait in its place meanwhile stays.
    fn settle(&self, next: &Next, done: Result<bool, String>) {
        let mut queue = self.lock();
        match next {
            Next::Record(member, tried) => {
                let Some(waiting) = queue.records.get_mut(member) else { return };
                match done {
                    Ok(true) if waiting.number == tried.number => drop(queue.records.remove(member)),
                    // Another one waits in its place, or was written by somebody else: ZooKeeper is there.
                    Ok(_) => {
                        let now = Instant::now();
                        (waiting.since, waiting.next, waiting.pause) = (now, now, self.pace.first);
                    }
                    Err(why) if !waiting.put_off(&self.pace) => {
                        tracing::error!(%member, why, "the fence record could not be written, and is given up");
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
                    Err(why) if !first.put_off(&self.pace) => {
                        let entry = String::from_utf8_lossy(&tried.what).into_owned();
                        tracing::error!(entry, why, "the audit trail could not be written to; the entry is given up");
                        queue.entries.pop_front();
                    }
                    Err(why) => tracing::debug!(why, "the audit trail could not be written to yet"),
                }
            }
        }
    }
}

/// What is to be tried next.
enum Next {
    Record(MemberName, Waiting<Change>),
    Entry(Waiting<Vec<u8>>),
}

/// Writes what waits, one after the other, for ever.
pub async fn run(records: &Records, store: &impl Store) -> anyhow::Result<()> {
    loop {
        let Some((at, next)) = records.next() else {
            records.news.notified().await;
            continue;
        };
        if at > Instant::now() {
            tokio::select! {
                () = sleep_until(at) => {}
                () = records.news.notified() => {}
            }
            // Something else may be due, and this one be wanted no more.
            continue;
        }
        let done = match &next {
            Next::Record(member, tried) => {
                attempt(store, member, &tried.what, || records.is_wanted(member, tried.number)).await
            }
            Next::Entry(tried) => store.append(tried.what.clone()).await.map(|()| true),
        };
        records.settle(&next, done);
    }
}

/// Reads what is there, and writes what follows from it and from what is wanted, if it still is. `false` if it is not,
/// or if somebody else wrote in the same instant.
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
            // It may be a newer version's, and a person's; or in the wrong place, and then it is told in a warning.
            tracing::error!(%member, why, "the fence record there cannot be understood, and is left as it is");
            return Ok(true);
        }
    };
    let record = match becomes(known, change) {
        Becomes::AsItIs => return Ok(true),
        Becomes::Nothing => None,
        Becomes::Record(record) => Some(fence_record::write(&record)),
    };
    store.write(member.as_str(), record, expect).await
}

/// What a record is to be.
#[derive(Debug, PartialEq, Eq)]
enum Becomes {
    AsItIs,
    Nothing,
    Record(FenceRecord),
}

/// What becomes of the record that is there when `change` is wanted.
fn becomes(found: Option<FenceRecord>, change: &Change) -> Becomes {
    match (found, change) {
        (None, Change::Remove) => Becomes::AsItIs,
        (Some(found), Change::Remove) if found.rule == Rule::Operator => Becomes::AsItIs,
        (Some(_), Change::Remove) => Becomes::Nothing,
        // It was carried out for a person, who still wants it: their words stay.
        (Some(found), Change::Put(record)) if found.rule == Rule::Operator && record.rule == Rule::Operator => {
            Becomes::Record(FenceRecord { ordered: record.ordered, confirmed: record.confirmed, ..found })
        }
        (Some(found), Change::Put(record)) if found.rule == Rule::Operator => match record.confirmed {
            Some(_) => Becomes::Record(FenceRecord { confirmed: record.confirmed, ..found }),
            None => Becomes::AsItIs,
        },
        // It was taken back meanwhile.
        (_, Change::Put(record)) if record.rule == Rule::Operator => Becomes::AsItIs,
        (_, Change::Put(record)) => Becomes::Record(record.clone()),
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
