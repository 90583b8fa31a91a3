//! Our own znodes: the ephemeral one that shows us to others, and the one that barriers write.

use super::tree::{Failed, request};
use super::{Barrier, End, EndReason, Holds, Released, Settings, Znode, tree};
use serde::Deserialize;
use std::time::Instant;
use zookeeper_async::{Acl, CreateMode, Permission, Stat, ZooKeeper};

/// The folders of our own tree.
pub const FOLDERS: [&str; 4] = ["agents", "audit", "barriers", "fences"];

/// In one epoch a former life of ours is met once; twice, if its last write was on its way.
const MOST_LIVES: u32 = 2;

/// Our part of the tree, within one epoch.
pub(super) struct Own {
    /// `<own>/agents/<name>`, with chroot.
    agent: String,
    /// `<own>/barriers/<name>`, with chroot.
    barrier: String,
    /// `<own>/fences`, with chroot.
    pub(super) fences: String,
    /// `<own>/audit`, with chroot.
    pub(super) audit: String,
    pub(super) acl: Vec<Acl>,
    /// Our own tree, with chroot. It and what is above it, like `/warden`, is shared with the agents of other clusters,
    /// whose trees may lie below: `/warden/service/a` and `/warden/service/a/b`.
    pub(super) tree: String,
    /// Their credentials may be others than ours: everybody may come and create a tree there.
    shared_acl: Vec<Acl>,
    /// The tree of Warden 0.1, with chroot.
    pub(super) old: String,
    session: i64,
    /// Whether the ephemeral is there and ours.
    held: bool,
    /// What we last wrote to it.
    written: Vec<u8>,
    /// How often we have taken it over from another session: a former life is taken over once.
    taken_over: u32,
}

/// What became of an attempt to publish.
pub(super) enum Published {
    /// It is there.
    Done,
    /// Another agent, at this address, has our name.
    TakenBy(String),
}

impl Own {
    pub(super) fn new(settings: &Settings, session: i64) -> Self {
        let own = format!("{}{}", settings.chroot, settings.own);
        // With credentials only those who have them may touch our znodes.
        let (acl, shared_acl) = if settings.auth.is_empty() {
            (Acl::open_unsafe().clone(), Acl::open_unsafe().clone())
        } else {
            let everybody = Acl::new(Permission::READ | Permission::CREATE, "world", "anyone");
            (Acl::creator_all().clone(), [Acl::creator_all().as_slice(), &[everybody]].concat())
        };
        Self {
            agent: format!("{own}/agents/{}", settings.agent),
            barrier: format!("{own}/barriers/{}", settings.agent),
            fences: format!("{own}/fences"),
            audit: format!("{own}/audit"),
            acl,
            tree: own,
            shared_acl,
            old: format!("{}{}", settings.chroot, settings.old),
            session,
            held: false,
            written: Vec::new(),
            taken_over: 0,
        }
    }

    /// Reads `leader`, `config` and `sync` behind a barrier. A request that is late ends the epoch: its write may yet come.
    pub(super) async fn barrier(
        &self,
        zk: &ZooKeeper,
        leader: &str,
        config: &str,
        sync: &str,
        started: Instant,
    ) -> Result<Barrier, End> {
        let zxid = self.touch_barrier(zk).await?.mzxid;
        let (leader, config, sync) =
            futures_util::future::join3(read(zk, leader), read(zk, config), read(zk, sync)).await;
        let (leader, config, sync, session) = (leader?, config?, sync?, self.session);
        Ok(Barrier::Verified { leader, config, sync, zxid, session, started, finished: Instant::now() })
    }

    /// Deletes `leader`, with its version, if it is what it has to be. The only write to Patroni's tree that there is.
    ///
    /// The barrier read came before, in this very session, so that this read is no older. It is made once more because
    /// the version is no identity: one that was created anew has the same.
    pub(super) async fn release(&self, zk: &ZooKeeper, leader: &str, holds: &Holds) -> Result<Released, End> {
        if holds.session != self.session {
            return Ok(Released::Changed("the ZooKeeper session is another one".to_owned()));
        }
        let Some(found) = read(zk, leader).await? else { return Ok(Released::Changed("nobody holds it".to_owned())) };
        let same =
            (found.data.as_slice(), found.czxid, found.owner) == (holds.holder.as_bytes(), holds.czxid, holds.owner);
        if !same {
            let holder = String::from_utf8_lossy(&found.data).into_owned();
            return Ok(Released::Changed(format!("{holder} holds it, with czxid {:#x}", found.czxid)));
        }
        if Instant::now() > holds.not_after {
            return Ok(Released::Changed(
                "ZooKeeper was too slow: what was looked at may have changed since".to_owned(),
            ));
        }
        match request(leader, zk.delete(leader, Some(found.version))).await {
            Ok(()) => Ok(Released::Done),
            Err(Failed::NoNode | Failed::BadVersion) => {
                Ok(Released::Changed("it changed in the same instant".to_owned()))
            }
            Err(failed) => Err(failed.end()),
        }
    }

    /// ZooKeeper's clock, in milliseconds since 1970: the time that it gives to a write of ours.
    pub(super) async fn server_clock(&self, zk: &ZooKeeper) -> Result<i64, End> {
        Ok(self.touch_barrier(zk).await?.mtime)
    }

    async fn touch_barrier(&self, zk: &ZooKeeper) -> Result<Stat, End> {
        // Once it is created it stays, unless somebody removes it again and again.
        for _ in 0..3 {
            match request(&self.barrier, zk.set_data(&self.barrier, Vec::new(), None)).await {
                Ok(stat) => return Ok(stat),
                Err(Failed::NoNode) => self.create(zk, &self.barrier, Vec::new(), CreateMode::Persistent).await?,
                Err(failed) => return Err(failed.end()),
            }
        }
        Err(End::new(EndReason::RequestFailed, format!("{}: it is removed as soon as it is there", self.barrier)))
    }

    /// Puts `data` into our own ephemeral znode, creating it if it is not there.
    ///
    /// One that is there but belongs to another session is our own from a former life (a killed agent's
    /// session lives on for its timeout) if it names the same address; then it is replaced.
    pub(super) async fn publish(&mut self, zk: &ZooKeeper, data: &[u8]) -> Result<Published, End> {
        if self.held {
            match request(&self.agent, zk.set_data(&self.agent, data.to_vec(), None)).await {
                Ok(stat) if stat.ephemeral_owner == self.session => {
                    self.written = data.to_vec();
                    return Ok(Published::Done);
                }
                Ok(_) | Err(Failed::NoNode) => self.held = false,
                Err(failed) => return Err(failed.end()),
            }
        }
        // Each round something changed under us; a few are enough.
        for _ in 0..5 {
            match request(&self.agent, zk.get_data(&self.agent, false)).await {
                Ok((_, stat)) if stat.ephemeral_owner == self.session => {}
                Ok((theirs, stat)) => {
                    let by = address(&theirs);
                    // One that takes it back from us is alive, whatever address it names.
                    if by.is_none() || by != address(data) || self.taken_over >= MOST_LIVES {
                        return Ok(Published::TakenBy(by.unwrap_or_else(|| "an unknown address".to_owned())));
                    }
                    match request(&self.agent, zk.delete(&self.agent, Some(stat.version))).await {
                        Ok(()) => {
                            self.taken_over += 1;
                            tracing::info!(znode = self.agent, "replaced our own znode of a former session");
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
                    self.held = true;
                    self.written = data.to_vec();
                    return Ok(Published::Done);
                }
                Ok(_) | Err(Failed::NoNode) => {}
                Err(failed) => return Err(failed.end()),
            }
        }
        Err(End::new(EndReason::RequestFailed, format!("{}: it keeps changing under us", self.agent)))
    }

    /// Whether our ephemeral znode, as it was just read, is no longer as we left it: somebody removed it, or a
    /// write that a former epoch gave up was applied late. One that has another owner is not ours to mend at
    /// once: two agents under one name would fight without a pause.
    pub(super) fn is_spoiled(&self, read: Option<&Znode>) -> bool {
        self.held && read.is_none_or(|znode| znode.owner == self.session && znode.data != self.written)
    }

    /// Creates a znode, and its parents where they are missing. That it is there already is fine.
    pub(super) async fn create(&self, zk: &ZooKeeper, path: &str, data: Vec<u8>, mode: CreateMode) -> Result<(), End> {
        match request(path, zk.create(path, data.clone(), self.acl.clone(), mode)).await {
            Ok(_) | Err(Failed::NodeExists) => return Ok(()),
            Err(Failed::NoNode) => {}
            Err(failed) => return Err(failed.end()),
        }
        let slashes = path.match_indices('/').map(|(at, _)| at).skip(1);
        let parents = slashes.filter_map(|at| path.get(..at)).map(str::to_owned);
        // All folders at once: in a tree that others may create in, a folder that is missing would be theirs to make.
        let ours = is_below(path, &self.tree);
        let folders = FOLDERS.iter().filter(|_| ours).map(|folder| format!("{}/{folder}", self.tree));
        let mut refused = None;
        for parent in parents.chain(folders) {
            let parent = parent.as_str();
            let shared = parent == self.tree || is_below(&self.tree, parent);
            let acl = if shared { &self.shared_acl } else { &self.acl };
            match request(parent, zk.create(parent, Vec::new(), acl.clone(), CreateMode::Persistent)).await {
                Ok(_) | Err(Failed::NodeExists) => {}
                // Parents that are not ours, like a chroot, need not be ours to create.
                Err(Failed::End(end)) if end.reason == EndReason::AuthFailed => refused = Some(end),
                // Below one that could not be created.
                Err(failed) => return Err(refused.unwrap_or_else(|| failed.end())),
            }
        }
        match request(path, zk.create(path, data, self.acl.clone(), mode)).await {
            Ok(_) | Err(Failed::NodeExists) => Ok(()),
            // A parent is missing: it was not ours to create, but it was needed.
            Err(failed @ Failed::NoNode) => Err(refused.unwrap_or_else(|| failed.end())),
            Err(failed) => Err(failed.end()),
        }
    }
}

/// Whether the znode at `path` is somewhere below the one at `tree`.
fn is_below(path: &str, tree: &str) -> bool {
    path.strip_prefix(tree).is_some_and(|rest| rest.starts_with('/'))
}

/// A znode's data and stat, without a watch.
pub(super) async fn read(zk: &ZooKeeper, path: &str) -> Result<Option<Znode>, End> {
    match request(path, zk.get_data(path, false)).await {
        Ok((data, stat)) => Ok(Some(tree::znode(data, &stat))),
        Err(Failed::NoNode) => Ok(None),
        Err(failed) => Err(failed.end()),
    }
}

/// The address that an agent's record names.
fn address(record: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Record {
        address: String,
    }
    serde_json::from_slice(record).ok().map(|record: Record| record.address)
}
