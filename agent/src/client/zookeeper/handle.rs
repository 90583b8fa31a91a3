//! The handle: requests to the present epoch, each with a time limit.

use super::{Barrier, Expect, ExpectedKey, Place, Released, Trees, Znode, decode};
use crate::clock::Clock;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use warden_core::event::{self, Observed};

/// A request to the present epoch. [`Handle`] documents each.
pub(super) enum Request {
    Barrier { started: Instant, reply: oneshot::Sender<Barrier> },
    ReadRecord { member: String, reply: Reply<Option<Znode>> },
    WriteRecord { member: String, record: Option<Vec<u8>>, expect: Expect, reply: Reply<bool> },
    Append { entry: Vec<u8>, reply: Reply<()> },
    ReadAudit { reply: Reply<Vec<Znode>> },
    ReadTrees { reply: Reply<Trees> },
    ReadOldAudit { names: Vec<String>, reply: Reply<Vec<(String, Vec<u8>)>> },
    Replace { place: Place, data: Option<Vec<u8>>, found: Option<Znode>, reply: Reply<bool> },
    Release { expected: ExpectedKey, reply: oneshot::Sender<Released> },
}

/// Takes the answer to a request; the error says what failed.
pub(super) type Reply<T> = oneshot::Sender<Result<T, String>>;

/// The queue of the present epoch's requests; `None` between epochs.
pub(super) type Present = watch::Sender<Option<mpsc::Sender<Request>>>;

/// The way to talk to ZooKeeper. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) present: watch::Receiver<Option<mpsc::Sender<Request>>>,
    pub(super) published: Arc<watch::Sender<Option<Vec<u8>>>>,
    pub(super) session_timeout: Arc<watch::Sender<Duration>>,
    pub(super) clock: Clock,
    pub(super) stop: CancellationToken,
    pub(super) stopped: CancellationToken,
}

impl Handle {
    /// Makes a barrier read, as [`Handle::raw_barrier`] does. The event is dated by the request.
    pub async fn barrier_event(&self, limit: Duration) -> Observed {
        let asked = Instant::now();
        decode::barrier(self.raw_barrier(limit).await, asked, &self.clock)
    }

    /// Makes a barrier read, as [`Handle::raw_barrier`] does. Returns its result in core's type.
    pub async fn barrier(&self, limit: Duration) -> event::Barrier {
        decode::read(self.raw_barrier(limit).await, &self.clock)
    }

    /// Reads the leader znode behind a barrier. The client writes the agent's barrier znode, then reads in the same
    /// session, so the read includes every earlier commit. A failure, or no answer within `limit`, is `Unknown`.
    pub async fn raw_barrier(&self, limit: Duration) -> Barrier {
        let started = Instant::now();
        let read = self.ask(limit, |reply| Request::Barrier { started, reply }).await;
        read.unwrap_or_else(|why| Barrier::Unknown { why })
    }

    /// Reads `member`'s fence record, `fences/<member>`. An ordinary read: it may be stale.
    pub async fn read_record(&self, member: &str, limit: Duration) -> Result<Option<Znode>, String> {
        let member = member.to_owned();
        self.ask(limit, |reply| Request::ReadRecord { member, reply }).await?
    }

    /// Writes `record` as `member`'s fence record, or removes the record if `record` is `None`. Returns `false` if the
    /// present record is not as expected. The error says what failed; the server may still have made the change.
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

    /// Adds `entry` to the audit trail, `audit/`, and removes some of the oldest entries if there are too many.
    pub async fn append_audit(&self, entry: Vec<u8>, limit: Duration) -> Result<(), String> {
        self.ask(limit, |reply| Request::Append { entry, reply }).await?
    }

    /// Reads the audit trail, the oldest entry first.
    pub async fn read_audit(&self, limit: Duration) -> Result<Vec<Znode>, String> {
        self.ask(limit, |reply| Request::ReadAudit { reply }).await?
    }

    /// Reads the parts of Warden's tree and of the tree of Warden 0.1 that an upgrade needs.
    pub async fn read_trees(&self, limit: Duration) -> Result<Trees, String> {
        self.ask(limit, |reply| Request::ReadTrees { reply }).await?
    }

    /// Reads entries of the audit trail of Warden 0.1 by their names. The result leaves out removed entries.
    pub async fn read_old_audit(&self, names: Vec<String>, limit: Duration) -> Result<Vec<(String, Vec<u8>)>, String> {
        self.ask(limit, |reply| Request::ReadOldAudit { names, reply }).await?
    }

    /// Writes `data` to `place`, or removes the znode if `data` is `None`. Returns `false` if the znode is no longer
    /// as `found`. The error says what failed; the server may still have made the change.
    pub async fn replace(
        &self,
        place: Place,
        data: Option<Vec<u8>>,
        found: Option<Znode>,
        limit: Duration,
    ) -> Result<bool, String> {
        self.ask(limit, |reply| Request::Replace { place, data, found, reply }).await?
    }

    /// Deletes the leader znode if it has the state in `expected`. It is the only write to Patroni's tree. The caller
    /// has made a barrier read in the same session.
    pub async fn release(&self, expected: ExpectedKey, limit: Duration) -> Released {
        let done = self.ask(limit, |reply| Request::Release { expected, reply }).await;
        done.unwrap_or_else(Released::Failed)
    }

    /// Sends a request to the present epoch. The error says why there is no answer.
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

    /// Keeps `data` in the agent's ephemeral znode from now on, in this epoch and all later ones.
    pub fn publish(&self, data: Vec<u8>) {
        self.published.send_replace(Some(data));
    }

    /// Requests this session timeout from now on. A new session begins if it differs from the present one.
    pub fn set_session_timeout(&self, timeout: Duration) {
        self.session_timeout.send_if_modified(|known| {
            let changed = *known != timeout;
            *known = timeout;
            changed
        });
    }

    /// Closes the session and ends the client. Takes at most about 300 ms.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.stopped.cancelled().await;
    }
}
