//! Reads the tree of Warden 0.1, from which 0.2 copies and with which it keeps in step (`act/upgrade.rs`).
//!
//! That tree may be another cluster's, of the same scope in another namespace, and its credentials may be others than
//! ours. A refusal there is an answer, and never ends the epoch.

use super::own::{Own, read};
use super::tree::{Failed, MAX_CHILDREN, request};
use super::{End, EndReason, Znode};
use futures_util::future::{join_all, join3};
use std::collections::BTreeMap;
use zookeeper_async::ZooKeeper;

/// What an upgrade keeps of itself, in our own tree.
pub const UPGRADE: &str = "upgrade";

/// In the tree of 0.1 once agents of several clusters were seen there at once.
pub const SHARED: &str = "shared";

/// The two trees, as far as an upgrade is about them.
#[derive(Clone, Debug, Default)]
pub struct Trees {
    /// Where the tree of 0.1 is, for people; `None` if there is none.
    pub old: Option<String>,
    /// Why nothing can be read there, if so.
    pub refused: Option<String>,
    /// Whether several clusters are known to use it.
    pub shared: bool,
    /// What the agents that are registered there say.
    pub agents: Vec<Vec<u8>>,
    /// Its fence records.
    pub old_fences: Folder,
    /// The names of the entries of its audit trail, the oldest first.
    pub audit: Vec<String>,
    /// Patroni's `initialize`: the system identifier.
    pub cluster: Option<Znode>,
    /// What was last noted of the upgrade. No other part is older than this.
    pub state: Option<Znode>,
    /// The fence records of our own tree.
    pub fences: Folder,
}

/// Fence records by member.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    /// The transaction that created the folder: one that was removed and came back is another. `None` without one.
    pub czxid: Option<i64>,
    /// What is in it.
    pub records: BTreeMap<String, Znode>,
}

impl Own {
    /// Reads both trees.
    pub(super) async fn read_trees(&self, zk: &ZooKeeper, initialize: &str) -> Result<Trees, End> {
        match self.read_both(zk, initialize).await {
            Err(end) if end.reason == EndReason::AuthFailed => {
                Ok(Trees { old: Some(self.old.clone()), refused: Some(end.detail), ..Trees::default() })
            }
            read => read,
        }
    }

    async fn read_both(&self, zk: &ZooKeeper, initialize: &str) -> Result<Trees, End> {
        if read(zk, &self.old).await?.is_none() {
            return Ok(Trees::default());
        }
        // First, so that it tells of nothing that the reads behind it do not show.
        let state = read(zk, &format!("{}/{UPGRADE}", self.tree)).await?;
        let (agents, shared, cluster) = (format!("{}/agents", self.old), format!("{}/{SHARED}", self.old), initialize);
        let (agents, shared, cluster) = join3(children(zk, &agents), read(zk, &shared), read(zk, cluster)).await;
        let agents = agents?.iter().map(|name| format!("{}/agents/{name}", self.old)).collect();
        let agents = read_all(zk, agents).await?.into_iter().flatten();
        let (old_fences, audit, fences) = (format!("{}/fences", self.old), format!("{}/audit", self.old), &self.fences);
        let (old_fences, audit, fences) =
            join3(folder(zk, &old_fences), children(zk, &audit), folder(zk, fences)).await;
        Ok(Trees {
            old: Some(self.old.clone()),
            refused: None,
            shared: shared?.is_some(),
            agents: agents.filter(|znode| znode.owner != 0).map(|znode| znode.data).collect(),
            old_fences: old_fences?,
            audit: audit?,
            cluster: cluster?,
            state,
            fences: fences?,
        })
    }

    /// Reads entries of 0.1's audit trail; those that are gone are left out.
    pub(super) async fn read_old_audit(
        &self,
        zk: &ZooKeeper,
        names: Vec<String>,
    ) -> Result<Vec<(String, Vec<u8>)>, End> {
        let paths = names.iter().map(|name| format!("{}/audit/{name}", self.old)).collect();
        let found = names.into_iter().zip(read_all(zk, paths).await?);
        Ok(found.filter_map(|(name, znode)| Some((name, znode?.data))).collect())
    }
}

/// The names below a znode, in order; none if it is not there.
async fn children(zk: &ZooKeeper, path: &str) -> Result<Vec<String>, End> {
    match request(path, zk.get_children(path, false)).await {
        Ok(mut names) => {
            names.sort();
            Ok(names)
        }
        Err(Failed::NoNode) => Ok(Vec::new()),
        Err(failed) => Err(failed.end()),
    }
}

async fn read_all(zk: &ZooKeeper, paths: Vec<String>) -> Result<Vec<Option<Znode>>, End> {
    join_all(paths.iter().map(|path| read(zk, path))).await.into_iter().collect()
}

async fn folder(zk: &ZooKeeper, path: &str) -> Result<Folder, End> {
    let Some(itself) = read(zk, path).await? else { return Ok(Folder::default()) };
    let mut names = children(zk, path).await?;
    // Of what is not read nothing may be concluded from its absence. There are never as many.
    let czxid = (names.len() <= MAX_CHILDREN).then_some(itself.czxid);
    names.truncate(MAX_CHILDREN);
    let found = read_all(zk, names.iter().map(|name| format!("{path}/{name}")).collect()).await?;
    let records = names.into_iter().zip(found).filter_map(|(name, znode)| Some((name, znode?)));
    Ok(Folder { czxid, records: records.collect() })
}
