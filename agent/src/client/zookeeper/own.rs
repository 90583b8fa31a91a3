//! The agent's own znodes: the ephemeral one that announces it, and the one that its barriers write.

use super::tree::{Failed, request};
use super::{Barrier, End, Settings, Znode, tree};
use std::time::Instant;
use zookeeper_async::{Acl, Permission, ZooKeeper};

/// The folders of Warden's tree.
pub const FOLDERS: [&str; 4] = ["agents", "audit", "barriers", "fences"];

/// The audit trail keeps this many entries. The agent removes the oldest first.
pub(super) const AUDIT_ENTRIES_MAX: usize = 200;

/// Warden's tree, within one epoch.
pub(super) struct Own {
    /// `<own>/agents/<name>`, with chroot.
    pub(super) agent: String,
    /// `<own>/barriers/<name>`, with chroot.
    pub(super) barrier: String,
    /// `<own>/fences`, with chroot.
    pub(super) fences: String,
    /// `<own>/audit`, with chroot.
    pub(super) audit: String,
    pub(super) acl: Vec<Acl>,
    /// Warden's tree of this cluster, with chroot. Trees of other clusters may lie below it: `/warden/service/a` and
    /// `/warden/service/a/b`. Their agents share this znode and those above it, like `/warden`.
    pub(super) tree: String,
    /// The ACL of the shared znodes. Any client may create a tree there, because other clusters may have other
    /// credentials.
    pub(super) shared_acl: Vec<Acl>,
    /// The tree of Warden 0.1, with chroot.
    pub(super) old: String,
    pub(super) session: i64,
    /// Whether this session owns the agent's ephemeral znode.
    pub(super) owns_agent: bool,
    /// The data that the agent last wrote to it.
    pub(super) written: Vec<u8>,
    /// How often this session has replaced a znode of another session.
    pub(super) taken_over: u32,
}

impl Own {
    pub(super) fn new(settings: &Settings, session: i64) -> Self {
        let own = format!("{}{}", settings.chroot, settings.own);
        // If the agent has credentials, only clients with the same ones may read or change its znodes.
        let (acl, shared_acl) = if settings.auth.is_empty() {
            (Acl::open_unsafe().clone(), Acl::open_unsafe().clone())
        } else {
            let anyone = Acl::new(Permission::READ | Permission::CREATE, "world", "anyone");
            (Acl::creator_all().clone(), [Acl::creator_all().as_slice(), &[anyone]].concat())
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
            owns_agent: false,
            written: Vec::new(),
            taken_over: 0,
        }
    }

    /// Reads `leader`, `config` and `sync` behind a barrier. A late request ends the epoch: the server may still carry
    /// out its write.
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

    /// ZooKeeper's clock, in milliseconds since 1970: the server's time of a write by the agent.
    pub(super) async fn server_clock(&self, zk: &ZooKeeper) -> Result<i64, End> {
        Ok(self.touch_barrier(zk).await?.mtime)
    }

    /// Whether the agent's ephemeral znode, as just read, differs from the agent's last write. Another client removed
    /// it, or the server applied a late write of an earlier epoch. A znode of another owner does not count: two agents
    /// with one name would replace each other's znode without a pause.
    pub(super) fn needs_rewrite(&self, read: Option<&Znode>) -> bool {
        self.owns_agent && read.is_none_or(|znode| znode.owner == self.session && znode.data != self.written)
    }

    /// Reads a member's fence record.
    pub(super) async fn read_record(&self, zk: &ZooKeeper, member: &str) -> Result<Option<Znode>, End> {
        read(zk, &format!("{}/{member}", self.fences)).await
    }

    /// The audit trail, the oldest entry first.
    pub(super) async fn read_audit(&self, zk: &ZooKeeper) -> Result<Vec<Znode>, End> {
        let names = self.audit_names(zk).await?;
        let newest = names.get(names.len().saturating_sub(AUDIT_ENTRIES_MAX)..).unwrap_or_default();
        let paths: Vec<String> = newest.iter().map(|name| format!("{}/{name}", self.audit)).collect();
        let read = futures_util::future::join_all(paths.iter().map(|path| read(zk, path))).await;
        let mut entries = Vec::new();
        for entry in read {
            entries.extend(entry?);
        }
        Ok(entries)
    }

    /// The names of the entries, the oldest first. They end in numbers with leading zeros.
    pub(super) async fn audit_names(&self, zk: &ZooKeeper) -> Result<Vec<String>, End> {
        match request(&self.audit, zk.get_children(&self.audit, false)).await {
            Ok(mut names) => {
                names.sort();
                Ok(names)
            }
            Err(Failed::NoNode) => Ok(Vec::new()),
            Err(failed) => Err(failed.end()),
        }
    }
}

/// Reads a znode without a watch.
pub(super) async fn read(zk: &ZooKeeper, path: &str) -> Result<Option<Znode>, End> {
    match request(path, zk.get_data(path, false)).await {
        Ok((data, stat)) => Ok(Some(tree::znode(data, &stat))),
        Err(Failed::NoNode) => Ok(None),
        Err(failed) => Err(failed.end()),
    }
}
