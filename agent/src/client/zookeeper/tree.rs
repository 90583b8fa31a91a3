//! Reads the watched trees, and reports each znode that has changed.
//!
//! Reads arm the library's default watcher (`watch = true`), which only notes the path. The closures of the library's
//! `*_w` methods pile up with each read. The client watches a missing znode through `exists`.

use super::{End, EndReason, Node, Reports, Update, Znode};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use zookeeper_async::{Stat, ZkError, ZkResult, ZooKeeper};

/// The limit for each request to ZooKeeper. The library itself would wait forever.
pub(super) const REQUEST_LIMIT: Duration = Duration::from_secs(2);

/// The client reads at most this many children of a znode, and logs it once per epoch if there are more.
pub(super) const CHILDREN_MAX: usize = 256;

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

/// Each pass reads this many of [`FIXED`], and the members, so that an idle agent costs little.
///
/// The watches cover the rest. They also fire for the other agents, which write all the time.
const FIXED_IN_EACH_PASS: usize = 5;

/// One of this many passes reads everything. The first pass of an epoch does so.
const PASSES_PER_FULL_PASS: u32 = 5;

const _: () = assert!(FIXED_IN_EACH_PASS <= FIXED.len());

/// The watched trees, and their znodes as last read.
pub(super) struct Tree {
    /// Patroni's tree, with chroot.
    patroni: String,
    /// Warden's tree, with chroot.
    own: String,
    /// The agent's own znode. Every pass reads it.
    me: Node,
    /// The znodes that this epoch has reported.
    seen: BTreeMap<Node, Option<Znode>>,
    /// Whether this epoch has logged that there are too many children.
    logged_too_many: bool,
    /// ZooKeeper's clock, milliseconds since 1970, and when the client read it. It dates the znodes that existed before
    /// the epoch by their last change, and not by the first read.
    server_clock: Option<(i64, Instant)>,
    /// Passes so far.
    passes: u32,
}

impl Tree {
    pub(super) fn new(patroni: String, own: String, me: &str) -> Self {
        let me = Node::Agent(me.to_owned());
        Self { patroni, own, me, seen: BTreeMap::new(), logged_too_many: false, server_clock: None, passes: 0 }
    }

    /// Sets ZooKeeper's clock: its time, and when the client read it. Call it before the first pass.
    pub(super) fn set_server_clock(&mut self, server_ms: i64, at: Instant) {
        self.server_clock = Some((server_ms, at));
    }

    /// The leader znode's path.
    pub(super) fn leader(&self) -> String {
        format!("{}/leader", self.patroni)
    }

    /// An agent's znode as last read.
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

    /// Makes a pass. The first update is the leader's, if it has changed, and the last one is `Synced`.
    pub(super) async fn pass(&mut self, zk: &ZooKeeper, reports: &Reports) -> Result<(), End> {
        let at = Instant::now();
        let leader = read(zk, &self.leader()).await?;
        let latency = at.elapsed();
        self.report(Node::Leader, leader, at, reports).await?;
        let members = self.children(zk, &format!("{}/members", self.patroni)).await?;
        let agents = self.children(zk, &format!("{}/agents", self.own)).await?;
        let fences = self.children(zk, &format!("{}/fences", self.own)).await?;
        let full = self.passes.is_multiple_of(PASSES_PER_FULL_PASS);
        self.passes = self.passes.wrapping_add(1);
        let fixed = FIXED.iter().take(if full { FIXED.len() } else { FIXED_IN_EACH_PASS }).skip(1);
        let members = members.into_iter().map(Node::Member);
        let others = agents.into_iter().map(Node::Agent).chain(fences.into_iter().map(Node::Fence));
        let children: Vec<Node> = members.chain(others).collect();
        self.forget_removed(&children, at, reports).await?;
        // A new znode has no watch yet.
        let always = |node: &Node| matches!(node, Node::Member(_)) || *node == self.me;
        let needed = |node: &Node| full || always(node) || !self.seen.contains_key(node);
        let children: Vec<Node> = children.into_iter().filter(needed).collect();
        self.read_all(zk, fixed.map(|(node, _)| node.clone()).chain(children).collect(), reports).await?;
        reports.send(Update::Synced { at, latency }).await
    }

    /// Reads the znodes at `paths`, the leader first.
    pub(super) async fn read_changed(
        &mut self,
        paths: BTreeSet<String>,
        zk: &ZooKeeper,
        reports: &Reports,
    ) -> Result<(), End> {
        let leader = self.leader();
        if paths.contains(&leader) {
            let at = Instant::now();
            let value = read(zk, &leader).await?;
            self.report(Node::Leader, value, at, reports).await?;
        }
        let lists =
            [format!("{}/members", self.patroni), format!("{}/agents", self.own), format!("{}/fences", self.own)];
        if paths.iter().any(|path| lists.contains(path)) {
            // A child was created or removed.
            return self.pass(zk, reports).await;
        }
        let wanted = paths.iter().filter(|path| **path != leader).filter_map(|path| self.node(path)).collect();
        self.read_all(zk, wanted, reports).await
    }

    async fn read_all(&mut self, zk: &ZooKeeper, wanted: Vec<Node>, reports: &Reports) -> Result<(), End> {
        let at = Instant::now();
        let paths: Vec<String> = wanted.iter().map(|node| self.path(node)).collect();
        // All requests are sent at once, so that a pass costs one round trip and not one for each znode.
        let values = futures_util::future::join_all(paths.iter().map(|path| read(zk, path))).await;
        for (node, value) in wanted.into_iter().zip(values) {
            self.report(node, value?, at, reports).await?;
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
        if names.len() > CHILDREN_MAX {
            if !self.logged_too_many {
                tracing::error!(
                    event = "znodes_too_many",
                    path,
                    count = names.len(),
                    "too many znodes; the agent reads only the first {CHILDREN_MAX}"
                );
                self.logged_too_many = true;
            }
            names.truncate(CHILDREN_MAX);
        }
        Ok(names)
    }

    async fn forget_removed(&mut self, present: &[Node], at: Instant, reports: &Reports) -> Result<(), End> {
        let children = |node: &Node| matches!(node, Node::Member(_) | Node::Agent(_) | Node::Fence(_));
        let known: Vec<Node> = self.seen.keys().filter(|node| children(node)).cloned().collect();
        for node in known.into_iter().filter(|node| !present.contains(node)) {
            self.seen.remove(&node);
            reports.send(Update::Znode { node, value: None, at }).await?;
        }
        Ok(())
    }

    async fn report(&mut self, node: Node, value: Option<Znode>, at: Instant, reports: &Reports) -> Result<(), End> {
        let known = self.seen.get(&node);
        if known == Some(&value) {
            return Ok(());
        }
        let at = match (&node, &value) {
            (Node::Agent(_), Some(found)) if known.is_none() => self.written_at(found, at),
            _ => at,
        };
        self.seen.insert(node.clone(), value.clone());
        reports.send(Update::Znode { node, value, at }).await
    }

    /// When a znode that existed before the epoch was last written, by ZooKeeper's clock alone. Reading the record of a
    /// frozen agent again does not make it newer. Never later than `read`.
    fn written_at(&self, found: &Znode, read: Instant) -> Instant {
        let Some((server_ms, ours)) = self.server_clock else { return read };
        let age = server_ms.saturating_sub(found.mtime_ms);
        let by = Duration::from_millis(age.unsigned_abs());
        // A negative age: the znode was written after the client read the clock.
        let written = if age >= 0 { ours.checked_sub(by) } else { ours.checked_add(by) };
        written.unwrap_or(ours).min(read)
    }
}

/// Reads a znode and sets a watch on it, also if it does not exist.
async fn read(zk: &ZooKeeper, path: &str) -> Result<Option<Znode>, End> {
    loop {
        match request(path, zk.get_data(path, true)).await {
            Ok((data, stat)) => return Ok(Some(znode(data, &stat))),
            Err(Failed::NoNode) => {}
            Err(failed) => return Err(failed.end()),
        }
        // `get_data` of a missing znode sets no watch.
        if request(path, zk.exists(path, true)).await.map_err(Failed::end)?.is_none() {
            return Ok(None);
        }
        // Another client created it in between.
    }
}

/// Data and stat in the client's own type.
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

/// Why a request failed.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    /// The znode does not exist.
    NoNode,
    /// The znode exists already.
    NodeExists,
    /// The znode has another version.
    BadVersion,
    /// The epoch is over.
    End(End),
}

impl Failed {
    /// The end of the epoch, for a caller that expected none of the server's answers.
    pub(super) fn end(self) -> End {
        match self {
            Self::End(end) => end,
            other => End::new(EndReason::RequestFailed, format!("unexpected answer: {other:?}")),
        }
    }
}

/// Makes a request with a time limit. The server may still carry out a request that the client gave up.
pub(super) async fn request<T>(path: &str, asking: impl Future<Output = ZkResult<T>>) -> Result<T, Failed> {
    let end = |reason, detail: String| Err(Failed::End(End::new(reason, detail)));
    match timeout(REQUEST_LIMIT, asking).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(ZkError::NoNode)) => Err(Failed::NoNode),
        Ok(Err(ZkError::NodeExists)) => Err(Failed::NodeExists),
        Ok(Err(ZkError::BadVersion)) => Err(Failed::BadVersion),
        Ok(Err(ZkError::NoAuth | ZkError::AuthFailed | ZkError::InvalidACL)) => end(
            EndReason::AuthFailed,
            format!("{path}: no permission; give Warden the credentials that Patroni has (zookeeper.auth_data)"),
        ),
        Ok(Err(error)) => end(EndReason::RequestFailed, format!("{path}: {error}")),
        Err(_) => end(EndReason::RequestTimeout, format!("{path}: no answer within {} s", REQUEST_LIMIT.as_secs())),
    }
}
