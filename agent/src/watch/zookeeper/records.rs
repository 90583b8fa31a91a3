//! Our own records: a member's fence, and the audit trail of what was done.

use super::own::{Own, read};
use super::tree::{Failed, request};
use super::upgrade::{SHARED, UPGRADE};
use super::{End, EndReason, Expect, Place, Znode};
use zookeeper_async::{CreateMode, ZooKeeper};

/// As many entries of the audit trail are kept; the oldest go first.
const AUDIT_KEPT: usize = 200;

/// No more entries are removed at once, so that nobody's request waits for long behind it.
const AUDIT_REMOVED: usize = 16;

impl Own {
    /// Reads a member's fence record.
    pub(super) async fn read_record(&self, zk: &ZooKeeper, member: &str) -> Result<Option<Znode>, End> {
        read(zk, &format!("{}/{member}", self.fences)).await
    }

    /// Puts a member's fence record in its place, or removes it, if what is there is what was expected.
    pub(super) async fn write_record(
        &self,
        zk: &ZooKeeper,
        member: &str,
        record: Option<Vec<u8>>,
        expect: Expect,
    ) -> Result<bool, End> {
        let path = format!("{}/{member}", self.fences);
        let version = match expect {
            Expect::Version(version) => Some(version),
            Expect::Anything | Expect::Nothing => None,
        };
        let Some(record) = record else {
            return match request(&path, zk.delete(&path, version)).await {
                Ok(()) | Err(Failed::NoNode) => Ok(true),
                Err(Failed::BadVersion) => Ok(false),
                Err(failed) => Err(failed.end()),
            };
        };
        if expect == Expect::Nothing {
            return self.create_new(zk, &path, record, CreateMode::Persistent).await;
        }
        for _ in 0..3 {
            match request(&path, zk.set_data(&path, record.clone(), version)).await {
                Ok(_) => return Ok(true),
                Err(Failed::BadVersion) => return Ok(false),
                Err(Failed::NoNode) if version.is_some() => return Ok(false),
                Err(Failed::NoNode) => self.create(zk, &path, record.clone(), CreateMode::Persistent).await?,
                Err(failed) => return Err(failed.end()),
            }
        }
        Err(End::new(EndReason::RequestFailed, format!("{path}: it is removed as soon as it is there")))
    }

    /// Puts `data` in its place, or removes what is there, if that is still what was `found`. Looked at right before,
    /// because a version is no identity: a znode that was removed and created anew may have the same.
    pub(super) async fn replace(
        &self,
        zk: &ZooKeeper,
        place: &Place,
        data: Option<Vec<u8>>,
        found: Option<&Znode>,
    ) -> Result<bool, End> {
        let path = match place {
            Place::OldFence(member) => format!("{}/fences/{member}", self.old),
            Place::OldShared => format!("{}/{SHARED}", self.old),
            Place::Fence(member) => format!("{}/{member}", self.fences),
            Place::Audit(name) => format!("{}/{name}", self.audit),
            Place::Upgrade => format!("{}/{UPGRADE}", self.tree),
        };
        let identity = |znode: &Znode| (znode.czxid, znode.mzxid);
        if read(zk, &path).await?.as_ref().map(identity) != found.map(identity) {
            return Ok(false);
        }
        let done = match (data, found.map(|znode| znode.version)) {
            (Some(data), None) => return self.create_new(zk, &path, data, CreateMode::Persistent).await,
            (Some(data), version) => request(&path, zk.set_data(&path, data, version)).await.map(drop),
            (None, Some(version)) => request(&path, zk.delete(&path, Some(version))).await,
            (None, None) => Ok(()),
        };
        match done {
            Ok(()) => Ok(true),
            Err(Failed::NoNode | Failed::BadVersion) => Ok(false),
            Err(failed) => Err(failed.end()),
        }
    }

    /// Adds to the audit trail, and removes what is too old.
    pub(super) async fn append(&self, zk: &ZooKeeper, entry: Vec<u8>) -> Result<(), End> {
        self.create_new(zk, &format!("{}/e-", self.audit), entry, CreateMode::PersistentSequential).await?;
        let names = self.audit_names(zk).await?;
        let excess = names.len().saturating_sub(AUDIT_KEPT).min(AUDIT_REMOVED);
        for name in names.iter().take(excess) {
            let path = format!("{}/{name}", self.audit);
            match request(&path, zk.delete(&path, None)).await {
                // Another agent is at it as well.
                Ok(()) | Err(Failed::NoNode) => {}
                Err(failed) => return Err(failed.end()),
            }
        }
        Ok(())
    }

    /// The audit trail, the oldest entry first.
    pub(super) async fn read_audit(&self, zk: &ZooKeeper) -> Result<Vec<Znode>, End> {
        let names = self.audit_names(zk).await?;
        let newest = names.get(names.len().saturating_sub(AUDIT_KEPT)..).unwrap_or_default();
        let paths: Vec<String> = newest.iter().map(|name| format!("{}/{name}", self.audit)).collect();
        let read = futures_util::future::join_all(paths.iter().map(|path| read(zk, path))).await;
        let mut entries = Vec::new();
        for entry in read {
            entries.extend(entry?);
        }
        Ok(entries)
    }

    /// The names of the entries, which end in numbers with leading zeros, the oldest first.
    async fn audit_names(&self, zk: &ZooKeeper) -> Result<Vec<String>, End> {
        match request(&self.audit, zk.get_children(&self.audit, false)).await {
            Ok(mut names) => {
                names.sort();
                Ok(names)
            }
            Err(Failed::NoNode) => Ok(Vec::new()),
            Err(failed) => Err(failed.end()),
        }
    }

    /// Creates a znode that must not be there yet; `false` if it is. Its parents are created where they are missing.
    async fn create_new(&self, zk: &ZooKeeper, path: &str, data: Vec<u8>, mode: CreateMode) -> Result<bool, End> {
        for _ in 0..3 {
            match request(path, zk.create(path, data.clone(), self.acl.clone(), mode)).await {
                Ok(_) => return Ok(true),
                Err(Failed::NodeExists) => return Ok(false),
                Err(Failed::NoNode) => {
                    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
                    self.create(zk, parent, Vec::new(), CreateMode::Persistent).await?;
                }
                Err(failed) => return Err(failed.end()),
            }
        }
        Err(End::new(EndReason::RequestFailed, format!("{path}: its parent is removed as soon as it is there")))
    }
}
