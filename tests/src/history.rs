//! The history of the leader key, from ZooKeeper's transaction log on the server's disk.
//!
//! It shares nothing with the agent: not its client, not its session, not its view. The format is that of
//! `org.apache.zookeeper.server.persistence.FileTxnLog` (3.8). The file begins with a header: `ZKLG`, version, database
//! id. Each transaction follows: its checksum (8 bytes), its length (4 bytes), a jute record, and one byte `B`. Zeros
//! fill the part that was only allocated.

use crate::docker::Container;
use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The leader key of the cluster in every stack.
pub const LEADER: &str = "/service/my_cluster/leader";

/// A time during which one member held the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderTerm {
    /// The member that held the key.
    pub holder: String,
    /// The transaction that created the key.
    pub czxid: i64,
    /// When the leader of the ensemble proposed it.
    pub from: SystemTime,
    /// When the key was gone; `None` while it is held.
    pub until: Option<SystemTime>,
}

/// Every term, in order, from the log of the server in `container`.
pub async fn leader_terms(container: &Container) -> anyhow::Result<Vec<LeaderTerm>> {
    let template =
        r#"{{ range .Mounts }}{{ if eq .Destination "/var/lib/zookeeper/data" }}{{ .Source }}{{ end }}{{ end }}"#;
    let data = PathBuf::from(container.inspect(template).await?).join("version-2");
    let mut transactions = BTreeMap::new();
    for path in log_files(&data)? {
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        read_log(&bytes, &mut transactions).with_context(|| format!("{}", path.display()))?;
    }
    Ok(follow(&transactions))
}

fn log_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log.")))
        .collect();
    files.sort();
    Ok(files)
}

/// A change that matters for the leader key.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Create { path: String, data: Vec<u8>, ephemeral: bool },
    Delete { path: String },
    CloseSession,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Transaction {
    session: i64,
    at: SystemTime,
    changes: Vec<Change>,
}

fn read_log(bytes: &[u8], into: &mut BTreeMap<i64, Transaction>) -> anyhow::Result<()> {
    let mut log = Jute(bytes);
    if bytes.is_empty() {
        return Ok(());
    }
    ensure!(log.bytes(4)? == b"ZKLG", "is not a transaction log");
    log.bytes(12)?;
    // A record that ZooKeeper is still writing ends the log.
    while let Ok((checksum, length)) = log.long().and_then(|checksum| Ok((checksum, log.int()?))) {
        let Some(length) = usize::try_from(length).ok().filter(|length| *length > 0 && checksum != 0) else { break };
        let Ok(record) = log.bytes(length) else { break };
        if !log.bytes(1).is_ok_and(|end| end == b"B") {
            break;
        }
        let (zxid, transaction) = read_transaction(record)?;
        into.insert(zxid, transaction);
    }
    Ok(())
}

fn read_transaction(record: &[u8]) -> anyhow::Result<(i64, Transaction)> {
    let mut record = Jute(record);
    let session = record.long()?;
    let _cxid = record.int()?;
    let zxid = record.long()?;
    let millis = u64::try_from(record.long()?).context("a time before 1970")?;
    let kind = record.int()?;
    let changes = read_changes(kind, &mut record)?;
    Ok((zxid, Transaction { session, at: UNIX_EPOCH + Duration::from_millis(millis), changes }))
}

/// Types as in `org.apache.zookeeper.ZooDefs.OpCode`.
fn read_changes(kind: i32, record: &mut Jute<'_>) -> anyhow::Result<Vec<Change>> {
    Ok(match kind {
        // create, create2. createContainer and createTTL make no ephemeral znodes, and Patroni does not use them.
        1 | 15 => {
            let path = record.text()?;
            let data = record.buffer()?.to_vec();
            for _ in 0..record.int()?.max(0) {
                record.int()?;
                record.text()?;
                record.text()?;
            }
            vec![Change::Create { path, data, ephemeral: record.bytes(1)? != [0] }]
        }
        2 => vec![Change::Delete { path: record.text()? }],
        -11 => vec![Change::CloseSession],
        // multi: a list of (type, record)
        14 => {
            let mut changes = Vec::new();
            for _ in 0..record.int()?.max(0) {
                let kind = record.int()?;
                changes.extend(read_changes(kind, &mut Jute(record.buffer()?))?);
            }
            changes
        }
        _ => Vec::new(),
    })
}

fn follow(transactions: &BTreeMap<i64, Transaction>) -> Vec<LeaderTerm> {
    let mut terms: Vec<LeaderTerm> = Vec::new();
    let mut owner = None;
    for (zxid, transaction) in transactions {
        for change in &transaction.changes {
            let ends = match change {
                Change::Create { path, data, ephemeral } if path == LEADER => {
                    let holder = String::from_utf8_lossy(data).into_owned();
                    terms.push(LeaderTerm { holder, czxid: *zxid, from: transaction.at, until: None });
                    owner = ephemeral.then_some(transaction.session);
                    false
                }
                Change::Delete { path } => path == LEADER,
                Change::CloseSession => owner == Some(transaction.session),
                Change::Create { .. } => false,
            };
            if ends && let Some(term) = terms.last_mut().filter(|term| term.until.is_none()) {
                term.until = Some(transaction.at);
                owner = None;
            }
        }
    }
    terms
}

/// Whether a claim was true at some moment between `from` and `until`. The claim is that this holder held the key with
/// this czxid, or, for `None`, that no member held it.
pub fn was_so(terms: &[LeaderTerm], claim: Option<(&str, i64)>, from: SystemTime, until: SystemTime) -> bool {
    match claim {
        Some((holder, czxid)) => terms.iter().any(|term| {
            term.holder == holder
                && term.czxid == czxid
                && term.from <= until
                && term.until.is_none_or(|end| end >= from)
        }),
        None => {
            let mut free_since = UNIX_EPOCH;
            for term in terms {
                if free_since <= until && term.from >= from {
                    return true;
                }
                match term.until {
                    Some(end) => free_since = end,
                    None => return false,
                }
            }
            free_since <= until
        }
    }
}

/// Java's serialization of records: big-endian numbers, lengths before texts and buffers (-1 for null).
struct Jute<'a>(&'a [u8]);

impl<'a> Jute<'a> {
    fn bytes(&mut self, count: usize) -> anyhow::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).context("the record is too short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn int(&mut self) -> anyhow::Result<i32> {
        Ok(i32::from_be_bytes(self.bytes(4)?.try_into()?))
    }

    fn long(&mut self) -> anyhow::Result<i64> {
        Ok(i64::from_be_bytes(self.bytes(8)?.try_into()?))
    }

    fn buffer(&mut self) -> anyhow::Result<&'a [u8]> {
        let length = self.int()?;
        self.bytes(usize::try_from(length).unwrap_or(0))
    }

    fn text(&mut self) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(self.buffer()?).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn create(session: i64, second: u64, holder: &str) -> Transaction {
        let create = Change::Create { path: LEADER.to_owned(), data: holder.as_bytes().to_vec(), ephemeral: true };
        Transaction { session, at: at(second), changes: vec![create] }
    }

    fn close(session: i64, second: u64) -> Transaction {
        Transaction { session, at: at(second), changes: vec![Change::CloseSession] }
    }

    #[test]
    fn a_term_ends_with_the_session_that_created_the_key_and_no_other() {
        let log =
            BTreeMap::from([(1, create(7, 10, "a")), (2, close(8, 11)), (3, close(7, 12)), (4, create(9, 15, "b"))]);
        let terms = follow(&log);
        assert_eq!(terms.iter().map(|term| term.until).collect::<Vec<_>>(), [Some(at(12)), None]);
    }

    #[test]
    fn a_claim_is_true_if_it_was_so_at_some_moment_of_the_interval() {
        let log = BTreeMap::from([(1, create(7, 10, "a")), (3, close(7, 12)), (4, create(9, 15, "b"))]);
        let terms = follow(&log);
        let cases = [
            (Some(("a", 1)), 11, 11, true),
            (Some(("a", 1)), 12, 13, true),
            (Some(("a", 1)), 13, 14, false),
            (Some(("a", 4)), 11, 11, false),
            (Some(("b", 4)), 11, 14, false),
            (Some(("b", 4)), 14, 15, true),
            (Some(("b", 4)), 99, 99, true),
            (None, 11, 11, false),
            (None, 9, 9, true),
            (None, 13, 14, true),
            (None, 11, 12, true),
            (None, 16, 17, false),
        ];
        for (claim, from, until, expected) in cases {
            assert_eq!(was_so(&terms, claim, at(from), at(until)), expected, "{claim:?} {from}..{until}");
        }
    }

    #[test]
    fn a_log_that_is_cut_short_is_read_as_far_as_it_goes() {
        let mut log = b"ZKLG\0\0\0\x02\0\0\0\0\0\0\0\0".to_vec();
        log.extend(7_i64.to_be_bytes());
        log.extend(100_i32.to_be_bytes());
        log.extend(b"too short");
        let mut transactions = BTreeMap::new();
        read_log(&log, &mut transactions).unwrap();
        assert!(transactions.is_empty());
        assert!(read_log(b"GARBAGE", &mut transactions).is_err());
    }
}
