//! Reads the tree of Warden 0.1. Version 0.2 copies from it and keeps it up to date (`act/upgrade/`).
//!
//! That tree may belong to another cluster with the same scope in another namespace, and with other credentials. A
//! missing permission there is an answer, and does not end the epoch.

use super::own::{Own, read};
use super::tree::{CHILDREN_MAX, Failed, request};
use super::{End, EndReason, Znode};
use futures_util::future::{join_all, join3};
use std::collections::BTreeMap;
use zookeeper_async::ZooKeeper;

/// The znode with the state of an upgrade, in the present tree.
pub const UPGRADE: &str = "upgrade";

/// The znode in the tree of 0.1 that marks it as used by several clusters.
pub const SHARED: &str = "shared";

/// The parts of the two trees that an upgrade needs.
#[derive(Clone, Debug, Default)]
pub struct Trees {
    /// The path of the tree of 0.1, for people; `None` if it does not exist.
    pub old: Option<String>,
    /// Why the agent may not read it, if so.
    pub refused: Option<String>,
    /// Whether several clusters are known to use it.
    pub shared: bool,
    /// The records of the agents that are registered there.
    pub agents: Vec<Vec<u8>>,
    /// Its fence records.
    pub old_fences: Folder,
    /// The names of the entries of its audit trail, the oldest first.
    pub audit: Vec<String>,
    /// Patroni's `initialize`: the system identifier.
    pub cluster: Option<Znode>,
    /// The state of the upgrade. No other part was read before it.
    pub state: Option<Znode>,
    /// The fence records of the present tree.
    pub fences: Folder,
}

/// Fence records by member.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    /// The transaction that created the folder; `None` without one. It differs if the folder was removed and created
    /// again.
    pub czxid: Option<i64>,
    /// The records.
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
        // First, so that the later reads show everything that the state mentions.
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

    /// Reads entries of the audit trail of 0.1. The result leaves out removed entries.
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

/// The names below a znode, sorted; none if it does not exist.
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
    // Without a czxid, the upgrade concludes nothing from the absence of a record. In practice there are fewer.
    let czxid = (names.len() <= CHILDREN_MAX).then_some(itself.czxid);
    names.truncate(CHILDREN_MAX);
    let found = read_all(zk, names.iter().map(|name| format!("{path}/{name}")).collect()).await?;
    let records = names.into_iter().zip(found).filter_map(|(name, znode)| Some((name, znode?)));
    Ok(Folder { czxid, records: records.collect() })
}
