use super::*;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use warden_core::types::UnixMillis;

/// ZooKeeper for one member, which may be away.
#[derive(Default)]
struct Fake {
    away: AtomicBool,
    record: Mutex<Option<(Vec<u8>, i32)>>,
    entries: Mutex<Vec<Vec<u8>>>,
    attempts: AtomicUsize,
    /// A person's record is put down between our read and our write, once.
    person_comes_between: AtomicBool,
}

impl Fake {
    fn holds(&self) -> Option<FenceRecord> {
        self.record.lock().unwrap().as_ref().map(|(data, _)| fence_record::parse(data).unwrap())
    }

    fn set(&self, record: &FenceRecord) {
        let mut held = self.record.lock().unwrap();
        let version = held.as_ref().map_or(0, |(_, version)| version + 1);
        *held = Some((fence_record::write(record), version));
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
        if self.person_comes_between.swap(false, Ordering::SeqCst) {
            self.set(&record(Rule::Operator, 99, None));
        }
        Ok(found.map(|(data, version)| Znode { data, czxid: 1, mzxid: 1, version, owner: 0, ctime_ms: 0, mtime_ms: 0 }))
    }

    async fn write(&self, _: &str, record: Option<Vec<u8>>, expect: Expect) -> Result<bool, String> {
        self.ask()?;
        let mut held = self.record.lock().unwrap();
        let fits = match (expect, held.as_ref()) {
            (Expect::Anything, _) | (Expect::Nothing, None) => true,
            (Expect::Version(wanted), Some((_, version))) => wanted == *version,
            _ => false,
        };
        if fits {
            let version = held.as_ref().map_or(0, |(_, version)| version + 1);
            *held = record.map(|data| (data, version));
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

/// Everything a hundred times as fast as it is.
fn started(store: &Arc<Fake>) -> (Records, tokio::task::JoinHandle<()>) {
    let pace = Pace {
        give_up: Duration::from_millis(1200),
        first: Duration::from_millis(1),
        longest: Duration::from_millis(50),
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
async fn after_an_outage_the_newest_record_is_written_and_none_before_it() {
    let store = Arc::new(Fake::default());
    store.away.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    records.put(record(Rule::Lease, 1, None));
    pass(100).await;
    records.put(record(Rule::Lease, 2, Some(2)));
    pass(100).await;
    let attempts = store.attempts.load(Ordering::SeqCst);
    assert!((2..30).contains(&attempts), "it backs off, and goes on trying: {attempts} attempts");
    store.away.store(false, Ordering::SeqCst);
    until("it is written", || store.holds().is_some()).await;
    assert_eq!(store.holds(), Some(record(Rule::Lease, 2, Some(2))));
    assert_eq!(store.record.lock().unwrap().as_ref().unwrap().1, 0, "it was written once");
    task.abort();
}

#[tokio::test]
async fn what_cannot_be_written_for_two_minutes_is_given_up() {
    let store = Arc::new(Fake::default());
    store.away.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    records.put(record(Rule::Lease, 1, Some(1)));
    records.audit(b"x".to_vec());
    until("both are given up", || records.next().is_none()).await;
    store.away.store(false, Ordering::SeqCst);
    pass(100).await;
    assert_eq!((store.holds(), store.entries.lock().unwrap().len()), (None, 0));
    task.abort();
}

#[tokio::test]
async fn what_a_person_asks_for_in_the_same_instant_is_not_overwritten() {
    let store = Arc::new(Fake::default());
    store.person_comes_between.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    records.put(record(Rule::Superseded, 1, Some(7)));
    until("it is written", || records.next().is_none()).await;
    let held = store.holds().unwrap();
    assert_eq!((held.rule, held.ordered, held.confirmed), (Rule::Operator, UnixMillis(99), Some(UnixMillis(7))));
    task.abort();
}

#[tokio::test]
async fn a_record_that_is_put_now_is_not_overwritten_by_one_that_waited() {
    let store = Arc::new(Fake::default());
    store.away.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    records.put(record(Rule::Lease, 1, None));
    pass(20).await;
    store.away.store(false, Ordering::SeqCst);
    records.put_now(&store, record(Rule::Crashed, 2, Some(2))).await.unwrap();
    pass(100).await;
    assert_eq!(store.holds(), Some(record(Rule::Crashed, 2, Some(2))));
    task.abort();
}

#[tokio::test]
async fn of_the_audit_trail_only_so_much_waits() {
    let store = Arc::new(Fake::default());
    store.away.store(true, Ordering::SeqCst);
    let (records, task) = started(&store);
    for number in 0..=u8::try_from(MOST_ENTRIES).unwrap() {
        records.audit(vec![number]);
    }
    store.away.store(false, Ordering::SeqCst);
    until("all are written", || records.next().is_none()).await;
    let expected: Vec<Vec<u8>> = (1..=u8::try_from(MOST_ENTRIES).unwrap()).map(|number| vec![number]).collect();
    assert_eq!(*store.entries.lock().unwrap(), expected);
    task.abort();
}

#[test]
fn what_becomes_of_a_record() {
    let put = |rule, confirmed| Change::Put(record(rule, 5, confirmed));
    let becomes = |found: Option<FenceRecord>, change| super::becomes(found, &change);
    let theirs = || Some(record(Rule::Operator, 1, None));
    let ours = || Some(record(Rule::Orphaned, 1, Some(1)));
    // A person's record: nobody else removes it or puts another in its place; that it is confirmed is added.
    assert_eq!(becomes(theirs(), Change::Remove), Becomes::AsItIs);
    assert_eq!(becomes(theirs(), put(Rule::Lease, None)), Becomes::AsItIs);
    let confirmed = Becomes::Record(record(Rule::Operator, 1, Some(5)));
    assert_eq!(becomes(theirs(), put(Rule::Lease, Some(5))), confirmed);
    assert_eq!(becomes(theirs(), put(Rule::Operator, Some(5))), Becomes::Record(record(Rule::Operator, 5, Some(5))));
    // One that was taken back does not come again.
    assert_eq!(becomes(None, put(Rule::Operator, Some(5))), Becomes::AsItIs);
    assert_eq!(becomes(ours(), put(Rule::Operator, Some(5))), Becomes::AsItIs);
    // Any other is replaced by the newest, and removed.
    assert_eq!(becomes(ours(), put(Rule::Superseded, None)), Becomes::Record(record(Rule::Superseded, 5, None)));
    assert_eq!(becomes(None, put(Rule::Crashed, Some(5))), Becomes::Record(record(Rule::Crashed, 5, Some(5))));
    assert_eq!(becomes(ours(), Change::Remove), Becomes::Nothing);
    assert_eq!(becomes(None, Change::Remove), Becomes::AsItIs);
}

#[tokio::test]
async fn what_is_about_another_member_is_left_as_it_is_and_not_taken_for_a_persons_word() {
    let store = Arc::new(Fake::default());
    let misplaced = FenceRecord { member: "b".into(), ..record(Rule::Operator, 1, None) };
    store.set(&misplaced);
    for change in [Change::Put(record(Rule::Superseded, 2, Some(3))), Change::Remove] {
        assert_eq!(attempt(&store, &"a".into(), &change, || true).await, Ok(true));
        assert_eq!(store.holds(), Some(misplaced.clone()));
    }
}
