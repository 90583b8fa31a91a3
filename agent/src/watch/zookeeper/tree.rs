//! What is read, and what of it is news.
//!
//! Reads arm the library's default watcher (`watch = true`), which only pokes: the closures of its `*_w`
//! methods pile up with each read. A znode that is not there is watched through `exists`.

use super::{EndReason, Node, Update, Znode};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use zookeeper_async::{Stat, ZkError, ZkResult, ZooKeeper};

use super::End;

/// No request to ZooKeeper may take longer: the library itself would wait for ever.
pub(super) const REQUEST: Duration = Duration::from_secs(2);

/// More members or agents than this are not read; said loudly, once per epoch.
pub(super) const MAX_CHILDREN: usize = 256;

/// The znodes with a fixed name, the most urgent first.
const FIXED: [(Node, &str); 8] = [
    (Node::Leader, "leader"),
    (Node::Config, "config"),
    (Node::Failover, "failover"),
    (Node::Sync, "sync"),
    (Node::Status, "status"),
    (Node::Initialize, "initialize"),
    (Node::Failsafe, "failsafe"),
    (Node::History, "history"),
];

/// How many of [`FIXED`], and with them the members, are read in each pass. The rest, and the other agents, which
/// write all the time and are read whenever they do, only in one of [`THOROUGH`]: an idle agent is to cost little.
const EACH_PASS: usize = 5;

/// Every so many passes everything is read; the first pass of an epoch is one of them.
const THOROUGH: u32 = 5;

/// The trees that are watched, and what was last seen in them.
pub(super) struct Tree {
    /// Patroni's, with chroot.
    patroni: String,
    /// Our own, with chroot.
    own: String,
    /// Our own name, whose znode is looked at in every pass.
    me: Node,
    /// What has been reported in this epoch.
    seen: BTreeMap<Node, Option<Znode>>,
    /// Whether too many children have been complained about.
    complained: bool,
    /// ZooKeeper's clock, milliseconds since 1970, and when it was read: what is found in place when the epoch
    /// begins is as old as its last change, not as our first sight of it.
    server_clock: Option<(i64, Instant)>,
    /// Passes so far.
    passes: u32,
}

impl Tree {
    pub(super) fn new(patroni: String, own: String, me: &str) -> Self {
        let me = Node::Agent(me.to_owned());
        Self { patroni, own, me, seen: BTreeMap::new(), complained: false, server_clock: None, passes: 0 }
    }

    /// Sets ZooKeeper's clock: what it showed, and when. To be called before the first pass.
    pub(super) fn set_server_clock(&mut self, server_ms: i64, at: Instant) {
        self.server_clock = Some((server_ms, at));
    }

    /// The leader znode's path.
    pub(super) fn leader(&self) -> String {
        format!("{}/leader", self.patroni)
    }

    /// What was last read of an agent's znode.
    pub(super) fn agent(&self, name: &str) -> Option<&Znode> {
        self.seen.get(&Node::Agent(name.to_owned()))?.as_ref()
    }

    /// The config znode's path.
    pub(super) fn config(&self) -> String {
        format!("{}/config", self.patroni)
    }

    pub(super) fn initialize(&self) -> String {
        format!("{}/initialize", self.patroni)
    }

    pub(super) fn sync(&self) -> String {
        format!("{}/sync", self.patroni)
    }

    fn path(&self, node: &Node) -> String {
        match node {
            Node::Fence(name) => format!("{}/fences/{name}", self.own),
            Node::Member(name) => format!("{}/members/{name}", self.patroni),
            Node::Agent(name) => format!("{}/agents/{name}", self.own),
            fixed => {
                let name = FIXED.iter().find(|(known, _)| known == fixed).map_or("", |(_, name)| name);
                format!("{}/{name}", self.patroni)
            }
        }
    }

    fn node(&self, path: &str) -> Option<Node> {
        if let Some(name) = path.strip_prefix(&format!("{}/agents/", self.own)) {
            return Some(Node::Agent(name.to_owned()));
        }
        if let Some(name) = path.strip_prefix(&format!("{}/fences/", self.own)) {
            return Some(Node::Fence(name.to_owned()));
        }
        let rest = path.strip_prefix(&self.patroni)?.strip_prefix('/')?;
        match rest.strip_prefix("members/") {
            Some(name) => Some(Node::Member(name.to_owned())),
            None => FIXED.iter().find(|(_, name)| *name == rest).map(|(node, _)| node.clone()),
        }
    }

    /// Reads what matters, and every so often everything. The first update is the leader's, if it is news, and the
    /// last one `Synced`.
    pub(super) async fn pass(&mut self, zk: &ZooKeeper, updates: &super::mpsc::Sender<Update>) -> Result<(), End> {
        let at = Instant::now();
        let leader = read(zk, &self.leader()).await?;
        let latency = at.elapsed();
        self.report(Node::Leader, leader, at, updates).await?;
        let members = self.children(zk, &format!("{}/members", self.patroni)).await?;
        let agents = self.children(zk, &format!("{}/agents", self.own)).await?;
        let fences = self.children(zk, &format!("{}/fences", self.own)).await?;
        let thorough = self.passes.is_multiple_of(THOROUGH);
        self.passes = self.passes.wrapping_add(1);
        let fixed = FIXED.iter().take(if thorough { FIXED.len() } else { EACH_PASS }).skip(1);
        let members = members.into_iter().map(Node::Member);
        let others = agents.into_iter().map(Node::Agent).chain(fences.into_iter().map(Node::Fence));
        let children: Vec<Node> = members.chain(others).collect();
        self.forget_the_vanished(&children, at, updates).await?;
        // Somebody who has just come has no watch yet.
        let always = |node: &Node| matches!(node, Node::Member(_)) || *node == self.me;
        let needed = |node: &Node| thorough || always(node) || !self.seen.contains_key(node);
        let children: Vec<Node> = children.into_iter().filter(needed).collect();
        self.read_all(zk, fixed.map(|(node, _)| node.clone()).chain(children).collect(), updates).await?;
        send(updates, Update::Synced { at, latency }).await
    }

    /// Reads what was poked; the leader first.
    pub(super) async fn poked(
        &mut self,
        paths: BTreeSet<String>,
        zk: &ZooKeeper,
        updates: &super::mpsc::Sender<Update>,
    ) -> Result<(), End> {
        let leader = self.leader();
        if paths.contains(&leader) {
            let at = Instant::now();
            let value = read(zk, &leader).await?;
            self.report(Node::Leader, value, at, updates).await?;
        }
        let lists =
            [format!("{}/members", self.patroni), format!("{}/agents", self.own), format!("{}/fences", self.own)];
        if paths.iter().any(|path| lists.contains(path)) {
            // Somebody came or went.
            return self.pass(zk, updates).await;
        }
        let wanted = paths.iter().filter(|path| **path != leader).filter_map(|path| self.node(path)).collect();
        self.read_all(zk, wanted, updates).await
    }

    async fn read_all(
        &mut self,
        zk: &ZooKeeper,
        wanted: Vec<Node>,
        updates: &super::mpsc::Sender<Update>,
    ) -> Result<(), End> {
        let at = Instant::now();
        let paths: Vec<String> = wanted.iter().map(|node| self.path(node)).collect();
        // All at once on the one connection: a pass costs one round trip and not one for each znode.
        let values = futures_util::future::join_all(paths.iter().map(|path| read(zk, path))).await;
        for (node, value) in wanted.into_iter().zip(values) {
            self.report(node, value?, at, updates).await?;
        }
        Ok(())
    }

    async fn children(&mut self, zk: &ZooKeeper, path: &str) -> Result<Vec<String>, End> {
        let mut names = match request(path, zk.get_children(path, true)).await {
            Ok(names) => names,
            Err(Failed::NoNode) => {
                request(path, zk.exists(path, true)).await.map_err(Failed::end)?;
                return Ok(Vec::new());
            }
            Err(failed) => return Err(failed.end()),
        };
        names.sort();
        if names.len() > MAX_CHILDREN {
            if !self.complained {
                tracing::error!(path, count = names.len(), "too many znodes; only the first {MAX_CHILDREN} are read");
                self.complained = true;
            }
            names.truncate(MAX_CHILDREN);
        }
        Ok(names)
    }

    async fn forget_the_vanished(
        &mut self,
        present: &[Node],
        at: Instant,
        updates: &super::mpsc::Sender<Update>,
    ) -> Result<(), End> {
        let children = |node: &Node| matches!(node, Node::Member(_) | Node::Agent(_) | Node::Fence(_));
        let known: Vec<Node> = self.seen.keys().filter(|node| children(node)).cloned().collect();
        for node in known.into_iter().filter(|node| !present.contains(node)) {
            self.seen.remove(&node);
            send(updates, Update::Znode { node, value: None, at }).await?;
        }
        Ok(())
    }

    async fn report(
        &mut self,
        node: Node,
        value: Option<Znode>,
        at: Instant,
        updates: &super::mpsc::Sender<Update>,
    ) -> Result<(), End> {
        let known = self.seen.get(&node);
        if known == Some(&value) {
            return Ok(());
        }
        let at = match (&node, &value) {
            (Node::Agent(_), Some(found)) if known.is_none() => self.written_at(found, at),
            _ => at,
        };
        self.seen.insert(node.clone(), value.clone());
        send(updates, Update::Znode { node, value, at }).await
    }

    /// When a znode that was there before us was last written, by ZooKeeper's clock alone: a frozen agent's word
    /// does not become any fresher by being read again. Never later than `read`.
    fn written_at(&self, found: &Znode, read: Instant) -> Instant {
        let Some((server_ms, ours)) = self.server_clock else { return read };
        let age = server_ms.saturating_sub(found.mtime_ms);
        let by = Duration::from_millis(age.unsigned_abs());
        // What was written since the clock was read is that much younger than the clock.
        let written = if age >= 0 { ours.checked_sub(by) } else { ours.checked_add(by) };
        written.unwrap_or(ours).min(read)
    }
}

/// Hands over an update; if nobody takes it, the agent is shutting down.
pub(super) async fn send(updates: &super::mpsc::Sender<Update>, update: Update) -> Result<(), End> {
    updates.send(update).await.map_err(|_| End::new(EndReason::Shutdown, "nobody listens any more"))
}

/// A znode's data and stat, with a watch on it whether it is there or not.
async fn read(zk: &ZooKeeper, path: &str) -> Result<Option<Znode>, End> {
    loop {
        match request(path, zk.get_data(path, true)).await {
            Ok((data, stat)) => return Ok(Some(znode(data, &stat))),
            Err(Failed::NoNode) => {}
            Err(failed) => return Err(failed.end()),
        }
        // `get_data` of a missing znode leaves no watch behind.
        if request(path, zk.exists(path, true)).await.map_err(Failed::end)?.is_none() {
            return Ok(None);
        }
        // It came to be in between.
    }
}

/// Data and stat in our own type.
pub(super) fn znode(data: Vec<u8>, stat: &Stat) -> Znode {
    Znode {
        data,
        czxid: stat.czxid,
        mzxid: stat.mzxid,
        version: stat.version,
        owner: stat.ephemeral_owner,
        ctime_ms: stat.ctime,
        mtime_ms: stat.mtime,
    }
}

/// A request that came to nothing.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    /// The server says: no such znode.
    NoNode,
    /// The server says: it is there already.
    NodeExists,
    /// The server says: somebody else changed it meanwhile.
    BadVersion,
    /// The epoch is over.
    End(End),
}

impl Failed {
    /// As the end of the epoch, where none of the server's answers was expected.
    pub(super) fn end(self) -> End {
        match self {
            Self::End(end) => end,
            other => End::new(EndReason::RequestFailed, format!("unexpected answer: {other:?}")),
        }
    }
}

/// A request with a time limit. A request that was given up may still be carried out later by the server.
pub(super) async fn request<T>(path: &str, asking: impl Future<Output = ZkResult<T>>) -> Result<T, Failed> {
    let end = |reason, detail: String| Err(Failed::End(End::new(reason, detail)));
    match timeout(REQUEST, asking).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ZkError::NoNode)) => Err(Failed::NoNode),
        Ok(Err(ZkError::NodeExists)) => Err(Failed::NodeExists),
        Ok(Err(ZkError::BadVersion)) => Err(Failed::BadVersion),
        Ok(Err(ZkError::NoAuth | ZkError::AuthFailed | ZkError::InvalidACL)) => end(
            EndReason::AuthFailed,
            format!("{path}: no permission; give Warden the credentials that Patroni has (zookeeper.auth_data)"),
        ),
        Ok(Err(error)) => end(EndReason::RequestFailed, format!("{path}: {error}")),
        Err(_) => end(EndReason::RequestTimeout, format!("{path}: no answer within {} s", REQUEST.as_secs())),
    }
}
