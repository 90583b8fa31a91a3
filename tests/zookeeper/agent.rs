//! The client under test, with all of its reports.

use anyhow::{Context, anyhow, ensure};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::sleep;
use warden::client::zookeeper::{self, Barrier, EndReason, Handle, Node, Reports, Settings, Update, Znode};
use warden::clock::Clock;
use warden::secret::Secret;

/// The names of one test on a shared server.
#[derive(Clone, Debug)]
pub struct Names {
    pub scope: String,
    pub agent: String,
    pub chroot: String,
}

impl Names {
    pub fn new(scope: &str) -> Self {
        let scope = format!("{scope}-{}", std::process::id());
        Self { scope, agent: "agent".to_owned(), chroot: String::new() }
    }

    /// A znode of Patroni's tree.
    pub fn patroni(&self, name: &str) -> String {
        format!("{}/service/{}/{name}", self.chroot, self.scope)
    }

    /// Patroni's tree.
    pub fn tree(&self) -> String {
        format!("{}/service/{}", self.chroot, self.scope)
    }

    /// The agent's ephemeral znode.
    pub fn agent(&self) -> String {
        format!("{}{}/agents/{}", self.chroot, self.own(), self.agent)
    }

    /// The agent's barrier znode.
    pub fn barrier(&self) -> String {
        format!("{}{}/barriers/{}", self.chroot, self.own(), self.agent)
    }

    /// The root of Warden's trees. Each scope has its own, because a `/warden` with credentials would serve one test
    /// only.
    pub fn own(&self) -> String {
        format!("/warden-{}/cluster", self.scope)
    }

    /// The tree that Warden 0.1 would use.
    pub fn old(&self) -> String {
        format!("/warden-{}/old", self.scope)
    }

    /// Settings with a session timeout of 20 s.
    pub fn settings(&self, hosts: &[String]) -> Settings {
        Settings {
            hosts: hosts.to_vec(),
            chroot: self.chroot.clone(),
            tree: format!("/service/{}", self.scope),
            own: self.own(),
            old: self.old(),
            agent: self.agent.clone(),
            auth: Vec::new(),
            session_timeout: Duration::from_secs(20),
        }
    }
}

/// Digest authentication for [`Settings::auth`].
pub fn digest(credential: &str) -> Vec<(String, Secret)> {
    vec![("digest".to_owned(), Secret::new(credential))]
}

/// An agent's record, as far as the client uses it.
pub fn record(address: &str, note: &str) -> Vec<u8> {
    format!(r#"{{"address":"{address}","note":"{note}"}}"#).into_bytes()
}

/// A session as the client reported it.
#[derive(Clone, Debug)]
pub struct Session {
    pub server: String,
    pub id: i64,
    pub requested: Duration,
    pub negotiated: Duration,
    pub at: Instant,
}

/// The client under test.
pub struct Agent {
    pub handle: Handle,
    reports: Arc<Mutex<Vec<(Instant, Update)>>>,
}

impl Agent {
    pub fn spawn(settings: Settings) -> Self {
        let (updates_in, mut updates) = mpsc::channel(1024);
        let handle = zookeeper::spawn(settings, Clock::start(), Reports::Raw(updates_in));
        let reports = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&reports);
        tokio::spawn(async move {
            while let Some(update) = updates.recv().await {
                into.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), update));
            }
        });
        Self { handle, reports }
    }

    /// A mark. Later reports come after it.
    pub fn mark(&self) -> usize {
        self.reports().len()
    }

    /// The number of reports after `mark` that satisfy this.
    pub fn count(&self, mark: usize, like: impl Fn(&Update) -> bool) -> usize {
        self.reports().iter().skip(mark).filter(|(_, update)| like(update)).count()
    }

    /// The first report after `mark` that `find` accepts, and when it came.
    pub async fn wait<T>(
        &self,
        mark: usize,
        what: &str,
        limit: Duration,
        find: impl Fn(&Update) -> Option<T>,
    ) -> anyhow::Result<(T, Instant)> {
        let started = Instant::now();
        loop {
            let found = self.reports().iter().skip(mark).find_map(|(at, update)| Some((find(update)?, *at)));
            if let Some(found) = found {
                return Ok(found);
            }
            if started.elapsed() > limit {
                return Err(anyhow!("{what}: not reported within {limit:?}, but:\n{}", self.told(mark)));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The next session after `mark`.
    pub async fn connected(&self, mark: usize, limit: Duration) -> anyhow::Result<Session> {
        let session = |update: &Update| match update {
            Update::Connected { server, session, requested, negotiated, at } => Some(Session {
                server: server.clone(),
                id: *session,
                requested: *requested,
                negotiated: *negotiated,
                at: *at,
            }),
            _ => None,
        };
        Ok(self.wait(mark, "a session", limit, session).await?.0)
    }

    /// The next end of an epoch after `mark`.
    pub async fn lost(&self, mark: usize, limit: Duration) -> anyhow::Result<(EndReason, String)> {
        let lost = |update: &Update| match update {
            Update::Lost { reason, detail, .. } => Some((*reason, detail.clone())),
            _ => None,
        };
        Ok(self.wait(mark, "the end of the session", limit, lost).await?.0)
    }

    /// The next report that `node` has `data`, or is absent for `None`, and when it came.
    pub async fn sees(
        &self,
        mark: usize,
        node: &Node,
        data: Option<&[u8]>,
        limit: Duration,
    ) -> anyhow::Result<Instant> {
        let what = match data {
            Some(data) => format!("{node:?} {:?}", String::from_utf8_lossy(data.get(..60).unwrap_or(data))),
            None => format!("{node:?} gone"),
        };
        let seen = |update: &Update| match update {
            Update::Znode { node: of, value, .. } if of == node => {
                (value.as_ref().map(|value| value.data.as_slice()) == data).then_some(())
            }
            _ => None,
        };
        Ok(self.wait(mark, &what, limit, seen).await?.1)
    }

    /// The members reported after `mark`.
    pub fn members(&self, mark: usize) -> BTreeSet<String> {
        let member = |update: &Update| match update {
            Update::Znode { node: Node::Member(name), value: Some(_), .. } => Some(name.clone()),
            _ => None,
        };
        self.reports().iter().skip(mark).filter_map(|(_, update)| member(update)).collect()
    }

    /// Waits for `passes` whole passes of the client from now on.
    pub async fn passes(&self, passes: usize) -> anyhow::Result<()> {
        for _ in 0..passes {
            let mark = self.mark();
            let synced = |update: &Update| matches!(update, Update::Synced { .. }).then_some(());
            self.wait(mark, "a whole pass", Duration::from_secs(30), synced).await?;
        }
        Ok(())
    }

    /// A linearizable read that must succeed.
    pub async fn verified(&self) -> anyhow::Result<(Option<Znode>, i64)> {
        match self.handle.raw_barrier(Duration::from_secs(5)).await {
            Barrier::Verified { leader, session, started, finished, config: _, sync: _, zxid: _ } => {
                ensure!(started <= finished, "a barrier that ended before it began");
                Ok((leader, session))
            }
            Barrier::Unknown { why } => Err(anyhow!("the barrier is unknown: {why}")),
        }
    }

    /// Shuts the client down. Returns how long that took.
    pub async fn shutdown(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        tokio::time::timeout(Duration::from_secs(10), self.handle.shutdown()).await.context("shutdown hangs")?;
        Ok(started.elapsed())
    }

    /// The reports after `mark`, for people.
    pub fn told(&self, mark: usize) -> String {
        let reports = self.reports();
        let told: Vec<String> = reports
            .iter()
            .skip(mark)
            .filter(|(_, update)| !matches!(update, Update::Synced { .. }))
            .map(|(_, update)| format!("{update:?}").chars().take(300).collect())
            .collect();
        let skipped = told.len().saturating_sub(40);
        told.into_iter().skip(skipped).collect::<Vec<_>>().join("\n")
    }

    fn reports(&self) -> MutexGuard<'_, Vec<(Instant, Update)>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
