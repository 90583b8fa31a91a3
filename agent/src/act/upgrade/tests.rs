use super::*;
use crate::client::zookeeper::Folder;
use crate::znode::fence as fence_record;
use proptest::prelude::*;
use std::sync::Mutex;
use warden_core::event::{FenceRecord, Rule};
use warden_core::types::UnixMillis;

const OURS: &str = "7711696653903761442";
const THEIRS: &str = "7711696653903761443";

fn agent(version: &str, identifier: Option<&str>) -> Vec<u8> {
    let postgres = identifier.map(|id| format!(r#","postgres":{{"answer":"writable","system_identifier":"{id}"}}"#));
    format!(r#"{{"version":"{version}","sees":{{"leader":null{}}}}}"#, postgres.unwrap_or_default()).into_bytes()
}

fn znode(mzxid: i64, data: Vec<u8>) -> Znode {
    Znode { data, czxid: mzxid, mzxid, version: 0, owner: 0, ctime_ms: 0, mtime_ms: 0 }
}

fn trees(agents: Vec<Vec<u8>>) -> Trees {
    Trees {
        old: Some("/warden/s".to_owned()),
        agents,
        cluster: Some(znode(1, OURS.as_bytes().to_vec())),
        audit: vec!["e-0000000000".to_owned()],
        ..Trees::default()
    }
}

#[test]
fn the_agents_in_the_old_tree_show_whose_it_is() {
    let both = Stage::Both(OURS.to_owned());
    let (ours, theirs, router) = (agent("0.1.0", Some(OURS)), agent("0.1.3", Some(THEIRS)), agent("0.1.0", None));
    for (agents, copied, expected, why) in [
        (vec![], false, Stage::Blocked(NO_AGENT), "no agent shows it"),
        (vec![], true, Stage::Idle, "the upgrade is over"),
        (vec![ours.clone()], false, both.clone(), "one of ours"),
        (vec![ours.clone(), router.clone()], false, both.clone(), "one of ours, and a router's"),
        (vec![router.clone()], false, Stage::Blocked(UNMATCHED), "a router's alone shows nothing"),
        (vec![router], true, both, "the notes show whose the records are"),
        (vec![theirs.clone()], false, Stage::Blocked(ANOTHER), "another cluster's"),
        (vec![theirs.clone()], true, Stage::Mixed, "another cluster's where ours has been"),
        (vec![ours, theirs], false, Stage::Mixed, "both clusters'"),
        (vec![agent("0.2.0", Some(OURS))], false, Stage::Blocked(NO_AGENT), "not of 0.1"),
        (vec![agent("0.10.0", Some(OURS))], false, Stage::Blocked(NO_AGENT), "not of 0.1"),
        (vec![b"{".to_vec()], false, Stage::Blocked(NO_AGENT), "the record is unreadable"),
    ] {
        let notes =
            if copied { Notes { system_identifier: OURS.to_owned(), ..Notes::default() } } else { Notes::default() };
        assert_eq!(stage(&trees(agents), &notes), expected, "{why}");
    }
}

#[test]
fn a_tree_that_clusters_have_shared_is_not_copied() {
    let shared = Trees { shared: true, ..trees(vec![agent("0.1.0", Some(OURS))]) };
    assert_eq!(stage(&shared, &Notes::default()), Stage::Mixed);
}

#[test]
fn without_an_identifier_or_records_to_copy_the_agent_is_idle() {
    let unknown = Trees { cluster: None, ..trees(vec![agent("0.1.0", Some(OURS))]) };
    let bootstrapping = Trees { cluster: Some(znode(1, Vec::new())), ..unknown.clone() };
    let empty = Trees { audit: Vec::new(), ..trees(Vec::new()) };
    for trees in [unknown, bootstrapping, empty, Trees::default()] {
        assert_eq!(stage(&trees, &Notes::default()), Stage::Idle);
    }
}

/// Both trees. Each read and each write is one transaction.
#[derive(Default)]
struct Fake(Mutex<Stored>);

struct Stored {
    zxid: i64,
    trees: Trees,
    audit: BTreeMap<String, Vec<u8>>,
    copied: BTreeMap<String, Vec<u8>>,
}

impl Default for Stored {
    fn default() -> Self {
        let trees = trees(vec![agent("0.1.0", Some(OURS))]);
        let folder = |czxid| Folder { czxid: Some(czxid), records: BTreeMap::new() };
        let trees = Trees { old_fences: folder(2), fences: folder(3), audit: Vec::new(), ..trees };
        Self { zxid: 10, trees, audit: BTreeMap::new(), copied: BTreeMap::new() }
    }
}

impl Stored {
    fn put(&mut self, old: bool, member: &str, data: Option<Vec<u8>>) {
        self.zxid += 1;
        let folder = if old { &mut self.trees.old_fences } else { &mut self.trees.fences };
        match data {
            Some(data) => folder.records.insert(member.to_owned(), znode(self.zxid, data)),
            None => folder.records.remove(member),
        };
    }

    fn record(&self, old: bool, member: &str) -> Option<FenceRecord> {
        let folder = if old { &self.trees.old_fences } else { &self.trees.fences };
        folder.records.get(member).map(|znode| fence_record::parse(&znode.data).unwrap())
    }
}

impl Store for Fake {
    async fn read(&self) -> Result<Trees, String> {
        let stored = self.0.lock().unwrap();
        Ok(Trees { audit: stored.audit.keys().cloned().collect(), ..stored.trees.clone() })
    }

    async fn read_audit(&self, names: Vec<String>) -> Result<Vec<(String, Vec<u8>)>, String> {
        let stored = self.0.lock().unwrap();
        Ok(names.into_iter().filter_map(|name| Some((name.clone(), stored.audit.get(&name)?.clone()))).collect())
    }

    async fn replace(&self, place: Place, data: Option<Vec<u8>>, found: Option<Znode>) -> Result<bool, String> {
        let mut stored = self.0.lock().unwrap();
        let there = match &place {
            Place::OldFence(member) => stored.trees.old_fences.records.get(member).cloned(),
            Place::Fence(member) => stored.trees.fences.records.get(member).cloned(),
            Place::Upgrade => stored.trees.state.clone(),
            Place::Audit(name) => stored.copied.get(name).map(|data| znode(0, data.clone())),
            Place::OldShared => None,
        };
        if there.map(|znode| znode.mzxid) != found.map(|znode| znode.mzxid) {
            return Ok(false);
        }
        match (place, data) {
            (Place::OldFence(member), data) => stored.put(true, &member, data),
            (Place::Fence(member), data) => stored.put(false, &member, data),
            (Place::Upgrade, Some(data)) => {
                stored.zxid += 1;
                stored.trees.state = Some(znode(stored.zxid, data));
            }
            (Place::Audit(name), Some(data)) => drop(stored.copied.insert(name, data)),
            (Place::OldShared, _) => stored.trees.shared = true,
            (place, None) => panic!("{place:?} is removed"),
        }
        Ok(true)
    }
}

fn record(rule: Rule, reason: &str) -> Vec<u8> {
    fence_record::write(&FenceRecord {
        member: "a".into(),
        rule,
        reason: reason.to_owned(),
        by: "x".to_owned(),
        ordered: UnixMillis(1),
        confirmed: None,
        facts: Vec::new(),
        written: None,
    })
}

async fn settle(fake: &Fake, memory: &mut Memory) {
    for _ in 0..20 {
        if round(fake, memory).await.unwrap() != Round::Changed {
            return;
        }
    }
    panic!("the trees never settle");
}

#[tokio::test]
async fn records_are_copied_and_kept_the_same_until_the_last_agent_of_0_1_is_gone() {
    let (fake, mut memory) = (Fake::default(), Memory::default());
    let content = |old: bool| fake.0.lock().unwrap().record(old, "a").map(|record| record.reason);
    let put = |old: bool, data: Option<Vec<u8>>| fake.0.lock().unwrap().put(old, "a", data);
    put(true, Some(record(Rule::Operator, "before")));
    settle(&fake, &mut memory).await;
    assert_eq!((content(true), content(false)), (Some("before".to_owned()), Some("before".to_owned())));
    put(false, None);
    settle(&fake, &mut memory).await;
    assert_eq!((content(true), content(false)), (None, None), "the operator takes it back in our tree");
    put(false, Some(record(Rule::Operator, "new")));
    settle(&fake, &mut memory).await;
    assert_eq!(content(true), Some("new".to_owned()));
    put(true, None);
    settle(&fake, &mut memory).await;
    assert_eq!((content(true), content(false)), (None, None), "the operator takes it back in the old tree");

    fake.0.lock().unwrap().trees.agents.clear();
    put(false, Some(record(Rule::Operator, "last")));
    settle(&fake, &mut memory).await;
    assert_eq!(content(true), None, "no agent of 0.1 reads it");
}

#[tokio::test]
async fn the_audit_trail_is_copied_once_without_unreadable_entries() {
    let (fake, mut memory) = (Fake::default(), Memory::default());
    for number in 0..100 {
        let entry = Entry::new("a", "fence", &format!("m{number}"), "why");
        let data = if number == 7 { b"{".to_vec() } else { entry.write() };
        fake.0.lock().unwrap().audit.insert(format!("e-{number:010}"), data);
    }
    settle(&fake, &mut memory).await;
    let copied = |fake: &Fake| fake.0.lock().unwrap().copied.clone();
    assert_eq!(copied(&fake).len(), 99);
    assert!(copied(&fake).contains_key("0.1-0000000099") && !copied(&fake).contains_key("0.1-0000000007"));
    // Entries that were pruned since do not return. New ones are copied.
    fake.0.lock().unwrap().copied.clear();
    fake.0.lock().unwrap().audit.insert("e-0000000100".to_owned(), Entry::new("a", "fence", "m", "why").write());
    settle(&fake, &mut memory).await;
    assert_eq!(copied(&fake).into_keys().collect::<Vec<_>>(), ["0.1-0000000100"]);
}

#[derive(Clone, Debug)]
enum Turn {
    /// A write in the old tree (`true`) or in ours.
    Put(bool, Rule),
    Remove(bool),
    /// An agent of ours reads the trees, and writes after this many more turns.
    Look(usize),
}

fn turn() -> impl Strategy<Value = Turn> {
    let rule = prop::sample::select(vec![Rule::Operator, Rule::Superseded]);
    prop_oneof![
        (any::<bool>(), rule).prop_map(|(old, rule)| Turn::Put(old, rule)),
        any::<bool>().prop_map(Turn::Remove),
        (0..3_usize).prop_map(Turn::Look),
    ]
}

/// The trees for an agent that was delayed after its read: it sees the past.
struct Late<'a>(&'a Fake, Trees);

impl Store for Late<'_> {
    async fn read(&self) -> Result<Trees, String> {
        Ok(self.1.clone())
    }

    async fn read_audit(&self, names: Vec<String>) -> Result<Vec<(String, Vec<u8>)>, String> {
        self.0.read_audit(names).await
    }

    async fn replace(&self, place: Place, data: Option<Vec<u8>>, found: Option<Znode>) -> Result<bool, String> {
        self.0.replace(place, data, found).await
    }
}

async fn play(turns: Vec<Turn>) {
    let (fake, mut memory) = (Fake::default(), Memory::default());
    let mut late: Vec<(usize, Trees)> = Vec::new();
    for (number, turn) in turns.iter().enumerate() {
        match turn {
            Turn::Put(old, rule) => {
                fake.0.lock().unwrap().put(*old, "a", Some(record(*rule, &number.to_string())));
            }
            Turn::Remove(old) => fake.0.lock().unwrap().put(*old, "a", None),
            Turn::Look(later) => late.push((number + later, fake.read().await.unwrap())),
        }
        for (_, trees) in late.extract_if(.., |(due, _)| *due <= number) {
            round(&Late(&fake, trees), &mut memory).await.unwrap();
        }
    }
    settle(&fake, &mut memory).await;
    let content = |old: bool| fake.0.lock().unwrap().record(old, "a").map(|record| (record.rule, record.reason));
    assert_eq!(content(true), content(false));
    // An operator's fence that is the last change stays.
    if let Some(last) = turns.iter().rposition(|turn| !matches!(turn, Turn::Look(_)))
        && matches!(turns[last], Turn::Put(_, Rule::Operator))
    {
        assert_eq!(content(true).map(|(rule, _)| rule), Some(Rule::Operator), "{turns:?}");
    }
    // Without concurrent writes, a removal from one tree removes the record from both.
    for old in [true, false] {
        fake.0.lock().unwrap().put(old, "a", Some(record(Rule::Operator, "last")));
        settle(&fake, &mut memory).await;
        fake.0.lock().unwrap().put(!old, "a", None);
        settle(&fake, &mut memory).await;
        assert_eq!((content(true), content(false)), (None, None), "{turns:?}");
    }
}

proptest! {
    #[test]
    fn after_any_writes_both_trees_become_the_same_and_no_operators_fence_is_lost(
        turns in prop::collection::vec(turn(), 0..12)
    ) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(play(turns));
    }
}
