//! Every write to ZooKeeper. The agent writes its own znodes. In Patroni's tree it only deletes the leader key, in a
//! release. `agent/tests/tidy.rs` checks that no other file writes.

use super::own::{AUDIT_ENTRIES_MAX, Own, read};
use super::tree::{Failed, request};
use super::upgrade::{SHARED, UPGRADE};
use super::{End, EndReason, Expect, ExpectedKey, FOLDERS, Place, Released, Znode};
use serde::Deserialize;
use std::time::Instant;
use zookeeper_async::{CreateMode, Stat, ZooKeeper};

/// In one epoch, the agent replaces its znode of an earlier session at most this often. Twice is possible: a write of
/// the earlier session may still arrive.
const TAKEOVERS_MAX: u32 = 2;

/// The agent removes at most this many entries at once, so that other requests do not wait for long.
const AUDIT_REMOVALS_MAX: usize = 16;

/// Attempts of a write that other clients interfere with.
const ATTEMPTS_MAX: usize = 3;

/// Attempts to publish the agent's znode while other clients change it.
const PUBLISH_ATTEMPTS_MAX: usize = 5;

/// The result of an attempt to publish.
pub(super) enum Published {
    /// The znode has the data.
    Done,
    /// Another agent, at this address, uses this agent's name.
    TakenBy(String),
}

impl Own {
    /// Deletes `leader`, with its version, if it has the state in `expected`. It is the only write to Patroni's tree.
    ///
    /// The barrier read was made in the same session, so this read is no older. The agent reads again because a version
    /// identifies no znode: a znode that was created again has the same version.
    pub(super) async fn release(&self, zk: &ZooKeeper, leader: &str, expected: &ExpectedKey) -> Result<Released, End> {
        if expected.session != self.session {
            return Ok(Released::Changed("the agent has another ZooKeeper session".to_owned()));
        }
        let Some(found) = read(zk, leader).await? else {
            return Ok(Released::Changed("no member holds it".to_owned()));
        };
        let same = (found.data.as_slice(), found.czxid, found.owner)
            == (expected.holder.as_bytes(), expected.czxid, expected.owner);
        if !same {
            let holder = String::from_utf8_lossy(&found.data).into_owned();
            return Ok(Released::Changed(format!("{holder} holds it, with czxid {:#x}", found.czxid)));
        }
        if Instant::now() > expected.not_after {
            return Ok(Released::Changed("ZooKeeper was too slow: the agent's proof may be out of date".to_owned()));
        }
        match request(leader, zk.delete(leader, Some(found.version))).await {
            Ok(()) => Ok(Released::Done),
            Err(Failed::NoNode | Failed::BadVersion) => {
                Ok(Released::Changed("another client changed it at the same time".to_owned()))
            }
            Err(failed) => Err(failed.end()),
        }
    }

    /// Writes the agent's barrier znode, and creates it if it does not exist.
    pub(super) async fn touch_barrier(&self, zk: &ZooKeeper) -> Result<Stat, End> {
        for _ in 0..ATTEMPTS_MAX {
            match request(&self.barrier, zk.set_data(&self.barrier, Vec::new(), None)).await {
                Ok(stat) => return Ok(stat),
                Err(Failed::NoNode) => self.create(zk, &self.barrier, Vec::new(), CreateMode::Persistent).await?,
                Err(failed) => return Err(failed.end()),
            }
        }
        Err(End::new(EndReason::RequestFailed, format!("{}: another client keeps removing it", self.barrier)))
    }

    /// Writes `data` to the agent's ephemeral znode, and creates it if it does not exist.
    ///
    /// The agent replaces a znode of another session that names the agent's own address. A killed agent leaves such a
    /// znode until its session expires.
    pub(super) async fn publish(&mut self, zk: &ZooKeeper, data: &[u8]) -> Result<Published, End> {
        if self.owns_agent {
            match request(&self.agent, zk.set_data(&self.agent, data.to_vec(), None)).await {
                Ok(stat) if stat.ephemeral_owner == self.session => {
                    self.written = data.to_vec();
                    return Ok(Published::Done);
                }
                Ok(_) | Err(Failed::NoNode) => self.owns_agent = false,
                Err(failed) => return Err(failed.end()),
            }
        }
        for _ in 0..PUBLISH_ATTEMPTS_MAX {
            match request(&self.agent, zk.get_data(&self.agent, false)).await {
                Ok((_, stat)) if stat.ephemeral_owner == self.session => {}
                Ok((theirs, stat)) => {
                    let by = address(&theirs);
                    // An agent that writes its znode again is alive, even if it names the same address.
                    if by.is_none() || by != address(data) || self.taken_over >= TAKEOVERS_MAX {
                        return Ok(Published::TakenBy(by.unwrap_or_else(|| "an unknown address".to_owned())));
                    }
                    match request(&self.agent, zk.delete(&self.agent, Some(stat.version))).await {
                        Ok(()) => {
                            self.taken_over += 1;
                            tracing::info!(
                                event = "agent_znode_replaced",
                                znode = self.agent,
                                "the agent replaced its znode of an earlier session"
                            );
                        }
                        Err(Failed::NoNode | Failed::BadVersion) => {}
                        Err(failed) => return Err(failed.end()),
                    }
                }
                Err(Failed::NoNode) => {}
                Err(failed) => return Err(failed.end()),
            }
            self.create(zk, &self.agent, data.to_vec(), CreateMode::Ephemeral).await?;
            match request(&self.agent, zk.set_data(&self.agent, data.to_vec(), None)).await {
                Ok(stat) if stat.ephemeral_owner == self.session => {
                    self.owns_agent = true;
                    self.written = data.to_vec();
                    return Ok(Published::Done);
                }
                Ok(_) | Err(Failed::NoNode) => {}
                Err(failed) => return Err(failed.end()),
            }
        }
        Err(End::new(EndReason::RequestFailed, format!("{}: another client keeps changing it", self.agent)))
    }

    /// Writes or removes a member's fence record. Returns `false` if the present record is not as expected.
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
        for _ in 0..ATTEMPTS_MAX {
            match request(&path, zk.set_data(&path, record.clone(), version)).await {
                Ok(_) => return Ok(true),
                Err(Failed::BadVersion) => return Ok(false),
                Err(Failed::NoNode) if version.is_some() => return Ok(false),
                Err(Failed::NoNode) => self.create(zk, &path, record.clone(), CreateMode::Persistent).await?,
                Err(failed) => return Err(failed.end()),
            }
        }
        Err(End::new(EndReason::RequestFailed, format!("{path}: another client keeps removing it")))
    }

    /// Writes `data` to `place`, or removes the znode without `data`. Returns `false` if it is no longer as `found`.
    ///
    /// The agent reads the znode right before, because a version identifies no znode. A znode that was removed and
    /// created again may have the same version.
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

    /// Adds an entry to the audit trail, and removes the oldest ones.
    pub(super) async fn append(&self, zk: &ZooKeeper, entry: Vec<u8>) -> Result<(), End> {
        self.create_new(zk, &format!("{}/e-", self.audit), entry, CreateMode::PersistentSequential).await?;
        let names = self.audit_names(zk).await?;
        let excess = names.len().saturating_sub(AUDIT_ENTRIES_MAX).min(AUDIT_REMOVALS_MAX);
        for name in names.iter().take(excess) {
            let path = format!("{}/{name}", self.audit);
            match request(&path, zk.delete(&path, None)).await {
                // Another agent may remove the same entry.
                Ok(()) | Err(Failed::NoNode) => {}
                Err(failed) => return Err(failed.end()),
            }
        }
        Ok(())
    }

    /// Creates a znode and its missing parents. An existing znode is no error.
    pub(super) async fn create(&self, zk: &ZooKeeper, path: &str, data: Vec<u8>, mode: CreateMode) -> Result<(), End> {
        match request(path, zk.create(path, data.clone(), self.acl.clone(), mode)).await {
            Ok(_) | Err(Failed::NodeExists) => return Ok(()),
            Err(Failed::NoNode) => {}
            Err(failed) => return Err(failed.end()),
        }
        let slashes = path.match_indices('/').map(|(at, _)| at).skip(1);
        let parents = slashes.filter_map(|at| path.get(..at)).map(str::to_owned);
        // All folders at once: other clients may create znodes in the shared tree, and would own a missing folder.
        let ours = is_below(path, &self.tree);
        let folders = FOLDERS.iter().filter(|_| ours).map(|folder| format!("{}/{folder}", self.tree));
        let mut refused = None;
        for parent in parents.chain(folders) {
            let parent = parent.as_str();
            let shared = parent == self.tree || is_below(&self.tree, parent);
            let acl = if shared { &self.shared_acl } else { &self.acl };
            match request(parent, zk.create(parent, Vec::new(), acl.clone(), CreateMode::Persistent)).await {
                Ok(_) | Err(Failed::NodeExists) => {}
                // The agent needs no permission for existing parents, like a chroot.
                Err(Failed::End(end)) if end.reason == EndReason::AuthFailed => refused = Some(end),
                // If a parent was refused, it does not exist, and its refusal is the cause.
                Err(failed) => return Err(refused.unwrap_or_else(|| failed.end())),
            }
        }
        match request(path, zk.create(path, data, self.acl.clone(), mode)).await {
            Ok(_) | Err(Failed::NodeExists) => Ok(()),
            // A parent is missing, and the agent has no permission to create it.
            Err(failed @ Failed::NoNode) => Err(refused.unwrap_or_else(|| failed.end())),
            Err(failed) => Err(failed.end()),
        }
    }

    /// Creates a znode and its missing parents. Returns `false` if it exists already.
    pub(super) async fn create_new(
        &self,
        zk: &ZooKeeper,
        path: &str,
        data: Vec<u8>,
        mode: CreateMode,
    ) -> Result<bool, End> {
        for _ in 0..ATTEMPTS_MAX {
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
        Err(End::new(EndReason::RequestFailed, format!("{path}: another client keeps removing its parent")))
    }
}

/// Whether `path` is below `tree`.
fn is_below(path: &str, tree: &str) -> bool {
    path.strip_prefix(tree).is_some_and(|rest| rest.starts_with('/'))
}

/// The address in an agent's record.
fn address(record: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Record {
        address: String,
    }
    serde_json::from_slice(record).ok().map(|record: Record| record.address)
}
