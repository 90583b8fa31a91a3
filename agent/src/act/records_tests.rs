use super::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use warden_core::types::UnixMillis;

/// A ZooKeeper with one member. It may be away.
#[derive(Default)]
struct Fake {
    away: AtomicBool,
    record: Mutex<Option<(Vec<u8>, i32)>>,
    entries: Mutex<Vec<Vec<u8>>>,
    attempts: AtomicUsize,
    /// The operator's record is written between our read and our write, once.
    operator_comes_between: AtomicBool,
}

impl Fake {
    fn stored(&self) -> Option<FenceRecord> {
        self.record.lock().unwrap().as_ref().map(|(data, _)| fence_record::parse(data).unwrap())
    }

    fn set(&self, record: &FenceRecord) {
        let mut stored = self.record.lock().unwrap();
        let version = stored.as_ref().map_or(0, |(_, version)| version + 1);
        *stored = Some((fence_record::write(record), version));
    }

    fn ask(&self) -> Result<(), String> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        if self.away.load(Ordering::SeqCst) { Err("it is away".to_owned()) } else { Ok(()) }
    }
}

impl Store for Arc<Fake> {
    async fn read(&self, _: &str) -> Result<Option<Znode>, String> {
        self.ask()?;
        let found = self.record.lock().unwrap().clone();
        if self.operator_comes_between.swap(false, Ordering::SeqCst) {
            self.set(&record(Rule::Operator, 99, None));
        }
        Ok(found.map(|(data, version)| Znode { data, czxid: 1, mzxid: 1, version, owner: 0, ctime_ms: 0, mtime_ms: 0 }))
    }

    async fn write(&self, _: &str, record: Option<Vec<u8>>, expect: Expect) -> Result<bool, String> {
        self.ask()?;
        let mut stored = self.record.lock().unwrap();
        let fits = match (expect, stored.as_ref()) {
            (Expect::Anything, _) | (Expect::Nothing, None) => true,
            (Expect::Version(wanted), Some((_, version))) => wanted == *version,
            _ => false,
        };
        if fits {
            let version = stored.as_ref().map_or(0, |(_, version)| version + 1);
            *stored = record.map(|data| (data, version));
        }
        Ok(fits)
    }

    async fn append(&self, entry: Vec<u8>) -> Result<(), String> {
        self.ask()?;
        self.entries.lock().unwrap().push(entry);
        Ok(())
    }
}

fn record(rule: Rule, ordered: i64, confirmed: Option<i64>) -> FenceRecord {
    FenceRecord {
        member: "a".into(),
        rule,
        reason: format!("by {}", rule.as_str()),
        by: "a".to_owned(),
        ordered: UnixMillis(ordered),
        confirmed: confirmed.map(UnixMillis),
        facts: Vec::new(),
        written: None,
    }
}

/// Starts the actor. It is a hundred times as fast as in the agent.
fn started(store: &Arc<Fake>) -> (Records, tokio::task::JoinHandle<()>) {
    let pace = Pace {
        give_up: Duration::from_millis(1200),
        pause_min: Duration::from_millis(1),
        pause_max: Duration::from_millis(50),
    };
    let records = Records { pace, ..Records::default() };
    let (kept, store) = (records.clone(), Arc::clone(store));
    let task = tokio::spawn(async move { drop(run(&kept, &store).await) });
    (records, task)
}

async fn pass(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Waits until `done`.
async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        pass(10).await;
    }
    panic!("not within 5 s: {what}");
}

#[tokio::test]
async fn after_an_outage_only_the_newest_record_is_written() {
    let store = Arc::new(Fake::default());
    store.away.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    records.put(record(Rule::Lease, 1, None));
    pass(100).await;
    records.put(record(Rule::Lease, 2, Some(2)));
    pass(100).await;
    let attempts = store.attempts.load(Ordering::SeqCst);
    assert!((2..30).contains(&attempts), "the agent backs off and continues: {attempts} attempts");
    store.away.store(false, Ordering::SeqCst);
    until("the record is written", || store.stored().is_some()).await;
    assert_eq!(store.stored(), Some(record(Rule::Lease, 2, Some(2))));
    assert_eq!(store.record.lock().unwrap().as_ref().unwrap().1, 0, "the agent wrote the record once");
    task.abort();
}

#[tokio::test]
async fn after_two_minutes_of_failures_the_agent_gives_up_on_a_write() {
    let store = Arc::new(Fake::default());
    store.away.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    records.put(record(Rule::Lease, 1, Some(1)));
    records.audit(b"x".to_vec());
    until("both are given up", || records.next().is_none()).await;
    store.away.store(false, Ordering::SeqCst);
    pass(100).await;
    assert_eq!((store.stored(), store.entries.lock().unwrap().len()), (None, 0));
    task.abort();
}

#[tokio::test]
async fn an_operators_order_in_the_same_instant_is_not_overwritten() {
    let store = Arc::new(Fake::default());
    store.operator_comes_between.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    records.put(record(Rule::Superseded, 1, Some(7)));
    until("the record is written", || records.next().is_none()).await;
    let found = store.stored().unwrap();
    assert_eq!((found.rule, found.ordered, found.confirmed), (Rule::Operator, UnixMillis(99), Some(UnixMillis(7))));
    task.abort();
}

#[tokio::test]
async fn a_record_that_is_written_now_is_not_overwritten_by_a_queued_one() {
    let store = Arc::new(Fake::default());
    store.away.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    records.put(record(Rule::Lease, 1, None));
    pass(20).await;
    store.away.store(false, Ordering::SeqCst);
    records.put_now(&store, record(Rule::Crashed, 2, Some(2))).await.unwrap();
    pass(100).await;
    assert_eq!(store.stored(), Some(record(Rule::Crashed, 2, Some(2))));
    task.abort();
}

#[tokio::test]
async fn the_queue_of_the_audit_trail_keeps_the_newest_entries() {
    let store = Arc::new(Fake::default());
    store.away.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    for number in 0..=u8::try_from(QUEUED_ENTRIES_MAX).unwrap() {
        records.audit(vec![number]);
    }
    store.away.store(false, Ordering::SeqCst);
    until("all are written", || records.next().is_none()).await;
    let expected: Vec<Vec<u8>> = (1..=u8::try_from(QUEUED_ENTRIES_MAX).unwrap()).map(|number| vec![number]).collect();
    assert_eq!(*store.entries.lock().unwrap(), expected);
    task.abort();
}

#[test]
fn an_operators_record_outlasts_other_rules_and_any_other_is_replaced_by_the_newest() {
    let put = |rule, confirmed| Change::Put(record(rule, 5, confirmed));
    let changed = |found: Option<FenceRecord>, change| super::changed(found, &change);
    let theirs = || Some(record(Rule::Operator, 1, None));
    let ours = || Some(record(Rule::Orphaned, 1, Some(1)));
    // An operator's record is neither removed nor replaced. A confirmation is added.
    assert_eq!(changed(theirs(), Change::Remove), NewRecord::Unchanged);
    assert_eq!(changed(theirs(), put(Rule::Lease, None)), NewRecord::Unchanged);
    let confirmed = NewRecord::Written(record(Rule::Operator, 1, Some(5)));
    assert_eq!(changed(theirs(), put(Rule::Lease, Some(5))), confirmed);
    assert_eq!(changed(theirs(), put(Rule::Operator, Some(5))), NewRecord::Written(record(Rule::Operator, 5, Some(5))));
    // A fence that the operator has taken back does not return.
    assert_eq!(changed(None, put(Rule::Operator, Some(5))), NewRecord::Unchanged);
    assert_eq!(changed(ours(), put(Rule::Operator, Some(5))), NewRecord::Unchanged);
    // Any other record is replaced by the newest one, and removed.
    assert_eq!(changed(ours(), put(Rule::Superseded, None)), NewRecord::Written(record(Rule::Superseded, 5, None)));
    assert_eq!(changed(None, put(Rule::Crashed, Some(5))), NewRecord::Written(record(Rule::Crashed, 5, Some(5))));
    assert_eq!(changed(ours(), Change::Remove), NewRecord::Removed);
    assert_eq!(changed(None, Change::Remove), NewRecord::Unchanged);
}

#[tokio::test]
async fn a_record_about_another_member_is_left_unchanged_and_is_no_operators_order() {
    let store = Arc::new(Fake::default());
    let misplaced = FenceRecord { member: "b".into(), ..record(Rule::Operator, 1, None) };
    store.set(&misplaced);
    for change in [Change::Put(record(Rule::Superseded, 2, Some(3))), Change::Remove] {
        assert_eq!(attempt(&store, &"a".into(), &change, || true).await, Ok(true));
        assert_eq!(store.stored(), Some(misplaced.clone()));
    }
}
