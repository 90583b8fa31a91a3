//! ZooKeeper: Patroni's tree watched, our own znode kept, linearizable reads, behind a small interface.
//!
//! The client library (zookeeper-async 5.0) loses watches on every reconnect, never reports an expired
//! session, has no time limits, reconnects for ever and leaks when dropped. So a client is a *disposable
//! epoch*: a thread with a runtime of its own, connected to one address, ended and thrown away with
//! everything in it at the first doubt, and begun anew after a pause. Within an epoch a watch is only a poke;
//! what counts is the read that follows, and a whole pass every second that arms the watches again.

mod capture;
mod connect;
mod epoch;
mod own;
mod records;
mod tree;
mod upgrade;

pub use own::FOLDERS;
pub use upgrade::{Folder, SHARED, Trees, UPGRADE};

use rand::random_range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Pause before the next epoch, with full jitter: doubled from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An epoch that lasted this long was a good one: the pause starts over.
const GOOD_EPOCH: Duration = Duration::from_secs(10);

/// What has to be known to connect.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`, each.
    pub hosts: Vec<String>,
    /// Prefix of every path, like `/a/b`, or empty. We put it before each path ourselves: with the
    /// library's own chroot a watch on the root never fires.
    pub chroot: String,
    /// Patroni's tree, `/service/my_cluster`.
    pub tree: String,
    /// Our own tree, `/warden/service/my_cluster`.
    pub own: String,
    /// The one that Warden 0.1 used, `/warden/my_cluster`.
    pub old: String,
    /// Our own name, for our own znode and our own barrier.
    pub agent: String,
    /// Scheme and credential, given again in each epoch.
    pub auth: Vec<(String, crate::secret::Secret)>,
    /// Session timeout to ask for.
    pub session_timeout: Duration,
}

#[cfg(test)]
impl Settings {
    /// For tests without a ZooKeeper: nobody listens there.
    pub fn nowhere() -> Self {
        Self {
            hosts: vec!["127.0.0.1:1".to_owned()],
            chroot: String::new(),
            tree: "/service/s".to_owned(),
            own: "/warden/service/s".to_owned(),
            old: "/warden/s".to_owned(),
            agent: "a".to_owned(),
            auth: Vec::new(),
            session_timeout: Duration::from_secs(30),
        }
    }
}

/// What is reported. `at` is when the question was asked.
#[derive(Debug)]
pub enum Update {
    /// A session began.
    Connected {
        /// Server, `name:port (address)`.
        server: String,
        /// Its id.
        session: i64,
        /// The timeout that was asked for.
        requested: Duration,
        /// The timeout that was granted.
        negotiated: Duration,
        /// When.
        at: Instant,
    },
    /// The session is over, or none could be had.
    Lost {
        /// Why, in short.
        reason: EndReason,
        /// Why, for people.
        detail: String,
        /// When.
        at: Instant,
    },
    /// A znode was read: when it changed within an epoch, and once in each epoch.
    Znode {
        /// Which.
        node: Node,
        /// What it says; `None` if there is none.
        value: Option<Znode>,
        /// When.
        at: Instant,
    },
    /// The whole tree was read.
    Synced {
        /// When that began.
        at: Instant,
        /// The round trip of its first read.
        latency: Duration,
    },
    /// Another agent uses our name.
    NameTaken {
        /// Its address.
        by: String,
        /// When.
        at: Instant,
    },
}

/// The znodes that are watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // named after Patroni's znodes
pub enum Node {
    Leader,
    Config,
    Sync,
    Status,
    History,
    Failover,
    Failsafe,
    Initialize,
    Member(String),
    /// Of our own tree: another agent, or ourselves.
    Agent(String),
    /// Of our own tree: a member's fence record.
    Fence(String),
}

/// A znode as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// Its data.
    pub data: Vec<u8>,
    /// The transaction that created it.
    pub czxid: i64,
    /// The transaction that last changed it.
    pub mzxid: i64,
    /// Number of changes since it was created.
    pub version: i32,
    /// The session that owns it; 0 if it is not ephemeral.
    pub owner: i64,
    /// When it was created, milliseconds since 1970 by ZooKeeper's clock.
    pub ctime_ms: i64,
    /// When it was last changed, likewise.
    pub mtime_ms: i64,
}

/// How a linearizable read of the leader znode ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant)] // one at a time, on its way from the epoch to whoever asked
pub enum Barrier {
    /// The leader znode was so at some moment between `started` and `finished`.
    Verified {
        /// What it said; `None` if there is none.
        leader: Option<Znode>,
        /// Patroni's dynamic configuration, read together with it.
        config: Option<Znode>,
        /// Who is synchronous, read together with it.
        sync: Option<Znode>,
        /// The transaction of the write that made the barrier.
        zxid: i64,
        /// The session it was read in.
        session: i64,
        /// When it was asked for.
        started: Instant,
        /// When the answer was there.
        finished: Instant,
    },
    /// Nothing is known.
    Unknown {
        /// Why.
        why: String,
    },
}

/// Why an epoch ended, or did not even begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // see `metric_label`
pub enum EndReason {
    Unresolvable,
    Unreachable,
    ConnectTimeout,
    AuthFailed,
    ChrootMissing,
    Disconnected,
    RequestTimeout,
    RequestFailed,
    SettingsChanged,
    Crashed,
    Shutdown,
}

impl EndReason {
    /// Short, stable, used as a metric label.
    pub const fn metric_label(self) -> &'static str {
        match self {
            Self::Unresolvable => "unresolvable",
            Self::Unreachable => "unreachable",
            Self::ConnectTimeout => "connect_timeout",
            Self::AuthFailed => "auth_failed",
            Self::ChrootMissing => "chroot_missing",
            Self::Disconnected => "disconnected",
            Self::RequestTimeout => "request_timeout",
            Self::RequestFailed => "request_failed",
            Self::SettingsChanged => "settings_changed",
            Self::Crashed => "crashed",
            Self::Shutdown => "shutdown",
        }
    }

    /// Whether the connection is well when an epoch ends like this.
    const fn leaves_the_connection(self) -> bool {
        matches!(self, Self::SettingsChanged | Self::Shutdown | Self::AuthFailed | Self::ChrootMissing)
    }
}

/// The end of an epoch.
#[derive(Clone, Debug)]
struct End {
    reason: EndReason,
    detail: String,
}

impl End {
    fn new(reason: EndReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

/// What the leader znode has to be still, for it to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holds {
    /// Who holds it.
    pub holder: String,
    /// The transaction that created it.
    pub czxid: i64,
    /// The session that owns it.
    pub owner: i64,
    /// Our own session, in which the barrier read was made that this stands on: in another one nothing is known.
    pub session: i64,
    /// Not deleted after this: what was looked at before may have changed since.
    pub not_after: Instant,
}

/// What has to be found for a record to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Whatever is there.
    Anything,
    /// No record.
    Nothing,
    /// A record of this version.
    Version(i32),
}

/// What [`Handle::replace`] may write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A member's fence record in the tree of Warden 0.1.
    OldFence(String),
    /// The mark that several clusters use that tree.
    OldShared,
    /// A member's fence record in our own tree.
    Fence(String),
    /// An entry of our own audit trail that was copied, by its name.
    Audit(String),
    /// What the upgrade notes of itself.
    Upgrade,
}

/// How a release of the leader key ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Released {
    /// It is deleted.
    Done,
    /// It was not any more what it had to be; the text says what it was.
    Changed(String),
    /// Nothing is known, or it could not be done.
    Failed(String),
}

/// A request to the present epoch.
enum Request {
    /// A linearizable read.
    Barrier { started: Instant, reply: oneshot::Sender<Barrier> },
    /// Reads a member's fence record.
    ReadRecord { member: String, reply: Reply<Option<Znode>> },
    /// Puts a member's fence record in its place, or removes it; `false` if something else was found.
    WriteRecord { member: String, record: Option<Vec<u8>>, expect: Expect, reply: Reply<bool> },
    /// Adds to the audit trail.
    Append { entry: Vec<u8>, reply: Reply<()> },
    /// Reads the audit trail.
    ReadAudit { reply: Reply<Vec<Znode>> },
    /// Reads our tree and that of 0.1 for an upgrade.
    ReadTrees { reply: Reply<Trees> },
    /// Reads entries of 0.1's audit trail by their names.
    ReadOldAudit { names: Vec<String>, reply: Reply<Vec<(String, Vec<u8>)>> },
    /// Writes what an upgrade copies; `false` if something else was found.
    Replace { place: Place, data: Option<Vec<u8>>, found: Option<Znode>, reply: Reply<bool> },
    /// Deletes the leader znode.
    Release { holds: Holds, reply: oneshot::Sender<Released> },
}

/// Where the answer to a request goes; the error says what went wrong.
type Reply<T> = oneshot::Sender<Result<T, String>>;

/// Where the present epoch takes its requests; `None` between epochs.
type Present = watch::Sender<Option<mpsc::Sender<Request>>>;

/// The way to talk to ZooKeeper. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    present: watch::Receiver<Option<mpsc::Sender<Request>>>,
    published: Arc<watch::Sender<Option<Vec<u8>>>>,
    session_timeout: Arc<watch::Sender<Duration>>,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl Handle {
    /// Reads the leader znode behind a barrier: our own barrier znode is written and the leader znode read
    /// after it in the same session, so that what is read includes everything that was committed before.
    /// Whatever goes wrong, or takes longer than `limit`, is `Unknown`.
    pub async fn barrier(&self, limit: Duration) -> Barrier {
        let started = Instant::now();
        let read = self.ask(limit, |reply| Request::Barrier { started, reply }).await;
        read.unwrap_or_else(|why| Barrier::Unknown { why })
    }

    /// Reads `member`'s fence record, `fences/<member>`, as whatever server we are connected to has it.
    pub async fn read_record(&self, member: &str, limit: Duration) -> Result<Option<Znode>, String> {
        let member = member.to_owned();
        self.ask(limit, |reply| Request::ReadRecord { member, reply }).await?
    }

    /// Puts `record` in the place of `member`'s fence record, if that is as expected; without one removes it. `false`
    /// if it is not. The error says what went wrong; it may have been done all the same.
    pub async fn write_record(
        &self,
        member: &str,
        record: Option<Vec<u8>>,
        expect: Expect,
        limit: Duration,
    ) -> Result<bool, String> {
        let member = member.to_owned();
        self.ask(limit, |reply| Request::WriteRecord { member, record, expect, reply }).await?
    }

    /// Adds `entry` to the audit trail, `audit/`, and removes what is too old to be kept there.
    pub async fn append_audit(&self, entry: Vec<u8>, limit: Duration) -> Result<(), String> {
        self.ask(limit, |reply| Request::Append { entry, reply }).await?
    }

    /// Reads the audit trail, the oldest entry first.
    pub async fn read_audit(&self, limit: Duration) -> Result<Vec<Znode>, String> {
        self.ask(limit, |reply| Request::ReadAudit { reply }).await?
    }

    /// Reads our own tree and that of Warden 0.1, as far as an upgrade is about them.
    pub async fn read_trees(&self, limit: Duration) -> Result<Trees, String> {
        self.ask(limit, |reply| Request::ReadTrees { reply }).await?
    }

    /// Reads entries of the audit trail of Warden 0.1; those that are gone are left out.
    pub async fn read_old_audit(&self, names: Vec<String>, limit: Duration) -> Result<Vec<(String, Vec<u8>)>, String> {
        self.ask(limit, |reply| Request::ReadOldAudit { names, reply }).await?
    }

    /// Puts `data` in its place, or without any removes what is there, if that is still what was `found`; `false` if
    /// it is not. The error says what went wrong; it may have been done all the same.
    pub async fn replace(
        &self,
        place: Place,
        data: Option<Vec<u8>>,
        found: Option<Znode>,
        limit: Duration,
    ) -> Result<bool, String> {
        self.ask(limit, |reply| Request::Replace { place, data, found, reply }).await?
    }

    /// Deletes the leader znode, if it is as it has to be. The only write to Patroni's tree that there is. To be asked
    /// behind a barrier read in the same session.
    pub async fn release(&self, holds: Holds, limit: Duration) -> Released {
        let done = self.ask(limit, |reply| Request::Release { holds, reply }).await;
        done.unwrap_or_else(Released::Failed)
    }

    /// Hands a request to the present epoch. The error says why there is no answer.
    async fn ask<T>(&self, limit: Duration, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, String> {
        let Some(epoch) = self.present.borrow().clone() else { return Err("there is no ZooKeeper session".to_owned()) };
        let (reply, answer) = oneshot::channel();
        let request = request(reply);
        let asking = async {
            epoch.send(request).await.ok()?;
            answer.await.ok()
        };
        match timeout(limit, asking).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err("the ZooKeeper session ended meanwhile".to_owned()),
            Err(_) => Err(format!("no linearizable answer from ZooKeeper within {} ms", limit.as_millis())),
        }
    }

    /// Keeps `data` in our own ephemeral znode from now on, in this epoch and those to come.
    pub fn publish(&self, data: Vec<u8>) {
        self.published.send_replace(Some(data));
    }

    /// Asks for this session timeout from now on. If it differs from the present one, a new session begins.
    pub fn set_session_timeout(&self, timeout: Duration) {
        self.session_timeout.send_if_modified(|known| {
            let changed = *known != timeout;
            *known = timeout;
            changed
        });
    }

    /// Closes the session and ends everything. Takes at most about 300 ms.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.stopped.cancelled().await;
    }
}

/// Starts the client. Updates go to `updates`; when nobody takes them any more, it ends.
pub fn spawn(settings: Settings, updates: mpsc::Sender<Update>) -> Handle {
    let (present_in, present) = watch::channel(None);
    let (published, published_out) = watch::channel(None);
    let (session_timeout, session_timeout_out) = watch::channel(settings.session_timeout);
    let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
    let handle = Handle {
        present,
        published: Arc::new(published),
        session_timeout: Arc::new(session_timeout),
        stop: stop.clone(),
        stopped: stopped.clone(),
    };
    let context = epoch::Context {
        settings,
        updates,
        published: published_out,
        session_timeout: session_timeout_out,
        stop: stop.clone(),
    };
    tokio::spawn(async move {
        let present = Arc::new(present_in);
        loop {
            // A task of its own, so that a panic in it is reported and does not leave us without ZooKeeper for good.
            let (context, present) = (context.clone(), Arc::clone(&present));
            let updates = context.updates.clone();
            let Err(error) = tokio::spawn(async move { epochs(context, &present).await }).await else { break };
            let detail = format!("the ZooKeeper client failed: {error}");
            let lost = Update::Lost { reason: EndReason::Crashed, detail, at: Instant::now() };
            if stop.is_cancelled() || updates.send(lost).await.is_err() {
                break;
            }
            sleep(LONGEST_PAUSE).await;
        }
        stopped.cancel();
    });
    handle
}

/// One epoch after the other, until shutdown.
async fn epochs(mut context: epoch::Context, present: &Present) {
    let mut pause = FIRST_PAUSE;
    let mut avoid = None;
    loop {
        let (requests_in, requests) = mpsc::channel(16);
        present.send_replace(Some(requests_in));
        let begun = Instant::now();
        let (end, server) = epoch::in_own_thread(context.clone(), requests, avoid).await;
        present.send_replace(None);
        if context.stop.is_cancelled() {
            return;
        }
        let at = Instant::now();
        let wait = match end.reason {
            EndReason::SettingsChanged => Duration::ZERO,
            _ => {
                if begun.elapsed() >= GOOD_EPOCH {
                    pause = FIRST_PAUSE;
                }
                let wait = pause.mul_f64(random_range(0.0..1.0));
                pause = (pause * 2).min(LONGEST_PAUSE);
                wait
            }
        };
        let lost = Update::Lost { reason: end.reason, detail: end.detail, at };
        // Whoever shuts us down may be the one who no longer takes updates.
        tokio::select! {
            sent = context.updates.send(lost) => if sent.is_err() { return },
            () = context.stop.cancelled() => return,
        }
        context.settings.session_timeout = *context.session_timeout.borrow_and_update();
        // A server that has just failed us is tried last.
        avoid = server;
        tokio::select! {
            () = sleep(wait) => {}
            () = context.stop.cancelled() => return,
        }
    }
}
