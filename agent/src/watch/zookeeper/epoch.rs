//! One epoch: one connection, one session, one thread, thrown away as a whole.
//!
//! The thread's runtime holds everything that the library spawned; dropping it ends all of that, which
//! dropping the library's client does not. Any state but `Connected`, and any request that fails or is
//! late, ends the epoch: a reconnect would have lost the watches, and a new session in place of an expired
//! one would not be reported.

use super::capture::{Capture, Granted};
use super::own::{Own, Published};
use super::tree::{REQUEST, Tree, request, send};
use super::{Barrier, End, EndReason, Released, Reply, Request, Settings, Update, connect};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use zookeeper_async::{WatchedEvent, Watcher, ZkState, ZooKeeper};

/// A whole pass this often: it arms the watches again and proves that the connection lives.
const PASS: Duration = Duration::from_secs(1);

/// The library itself starts over after 2 s without an answer to its connection request.
const HANDSHAKE: Duration = Duration::from_secs(2);

/// How long a healthy session may take to close. If it takes longer it ends by its timeout.
const CLOSE: Duration = Duration::from_millis(200);

/// The library takes a session timeout below 2 s for a reason to spin.
const SHORTEST_TIMEOUT: Duration = Duration::from_secs(2);

/// The protocol has 31 bits of milliseconds for it; nobody's server grants anything like a day.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(86_400);

/// What all epochs share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) settings: Settings,
    pub(super) updates: mpsc::Sender<Update>,
    pub(super) published: watch::Receiver<Option<Vec<u8>>>,
    pub(super) session_timeout: watch::Receiver<Duration>,
    pub(super) stop: CancellationToken,
}

/// Runs an epoch to its end; also says which server it was connected to.
pub(super) async fn in_own_thread(
    context: Context,
    requests: mpsc::Receiver<Request>,
    avoid: Option<SocketAddr>,
) -> (End, Option<SocketAddr>) {
    let (ended, end) = oneshot::channel();
    let server = Arc::new(Mutex::new(None));
    let connected_to = Arc::clone(&server);
    let body = move || {
        let end = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => {
                let end = runtime.block_on(Epoch::run(context, requests, avoid, &connected_to));
                runtime.shutdown_background();
                end
            }
            Err(error) => End::new(EndReason::Crashed, format!("no runtime for ZooKeeper: {error}")),
        };
        // Nobody waits any more when the agent is being shut down.
        drop(ended.send(end));
    };
    if let Err(error) = std::thread::Builder::new().name("zookeeper".to_owned()).spawn(body) {
        return (End::new(EndReason::Crashed, format!("no thread for ZooKeeper: {error}")), None);
    }
    let end = end.await.unwrap_or_else(|_| End::new(EndReason::Crashed, "the ZooKeeper client panicked"));
    let server = *server.lock().unwrap_or_else(PoisonError::into_inner);
    (end, server)
}

/// What the library says of the connection, for people; `None` where it says nothing any more.
const fn words(state: Option<ZkState>) -> &'static str {
    match state {
        Some(ZkState::Connecting) => "is lost",
        Some(ZkState::Closed) => "has ended with its session",
        Some(ZkState::AuthFailed) => "is refused: authentication failed",
        Some(ZkState::ConnectedReadOnly) => "is to a server that has lost its quorum",
        Some(_) => "is in an unknown state",
        None => "is given up by the client",
    }
}

/// Pokes from the library's default watcher: which paths have changed.
#[derive(Clone, Default)]
struct Pokes {
    paths: Arc<Mutex<BTreeSet<String>>>,
    notify: Arc<Notify>,
}

impl Pokes {
    /// More than this many at once: the next pass reads everything anyway.
    const MOST: usize = 1024;

    async fn wait(&self) -> BTreeSet<String> {
        self.notify.notified().await;
        std::mem::take(&mut *self.paths.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watcher for Pokes {
    /// Runs inside the library's IO task, which a panic would kill: nothing here can.
    fn handle(&self, event: WatchedEvent) {
        if let Some(path) = event.path {
            let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
            if paths.len() < Self::MOST {
                paths.insert(path);
            }
        }
        self.notify.notify_one();
    }
}

/// What the server granted, and when we asked for it.
struct Session {
    granted: Granted,
    at: Instant,
}

struct Epoch {
    context: Context,
    zk: ZooKeeper,
    pokes: Pokes,
    /// States that the library went through.
    states: mpsc::UnboundedReceiver<ZkState>,
    tree: Tree,
    own: Own,
}

impl Epoch {
    async fn run(
        context: Context,
        mut requests: mpsc::Receiver<Request>,
        avoid: Option<SocketAddr>,
        connected_to: &Mutex<Option<SocketAddr>>,
    ) -> End {
        let stop = context.stop.clone();
        let begin = async {
            let server = connect::find(&context.settings.hosts, avoid).await?;
            *connected_to.lock().unwrap_or_else(PoisonError::into_inner) = Some(server.address);
            Self::begin(context, &server).await.map(|(epoch, session)| (epoch, server, session))
        };
        let begun = tokio::select! {
            begun = begin => begun,
            () = stop.cancelled() => Err(End::new(EndReason::Shutdown, "shutdown")),
        };
        let (mut epoch, server, session) = match begun {
            Ok(begun) => begun,
            Err(end) => return end,
        };
        let entered = tokio::select! {
            entered = epoch.enter(&server, session) => entered,
            () = stop.cancelled() => Err(End::new(EndReason::Shutdown, "shutdown")),
        };
        let end = match entered {
            Ok(()) => epoch.last(&mut requests).await,
            Err(end) => end,
        };
        if end.reason.leaves_the_connection() {
            // End the session now, so that our znode is gone at once, and no session is left behind by each of
            // many attempts that cannot succeed.
            drop(timeout(CLOSE, epoch.zk.close()).await);
        }
        end
    }

    /// Connects, until there is a session.
    async fn begin(context: Context, server: &connect::Server) -> Result<(Self, Session), End> {
        let settings = &context.settings;
        let requested = settings.session_timeout.clamp(SHORTEST_TIMEOUT, LONGEST_TIMEOUT);
        let capture = Capture::start();
        let pokes = Pokes::default();
        let address = server.address.to_string();
        // Longer than we wait: it is to try once.
        let before_retry = HANDSHAKE * 2;
        let connecting = ZooKeeper::connect_with_retry_time(&address, requested, pokes.clone(), before_retry);
        let late = |what: &str| {
            let detail = format!("{server}: {what} within {} s", HANDSHAKE.as_secs());
            End::new(EndReason::ConnectTimeout, detail)
        };
        let zk = timeout(HANDSHAKE, connecting)
            .await
            .map_err(|_| late("no connection"))?
            .map_err(|error| End::new(EndReason::Unreachable, format!("{server}: {error}")))?;
        // Nothing of the library has run on this thread since `connect` returned, so no state is missed.
        let (states_in, mut states) = mpsc::unbounded_channel();
        zk.add_listener(move |state| {
            let _nobody_may_listen_any_more = states_in.send(state);
        });
        let at = Instant::now();
        let state = tokio::select! {
            state = timeout(HANDSHAKE, states.recv()) => state.map_err(|_| late("no session"))?,
            // It would not tell its listeners, and never stop.
            () = capture.connects_again() => {
                return Err(End::new(EndReason::Disconnected, format!("{server}: hung up instead of a session")));
            }
        };
        if state != Some(ZkState::Connected) {
            return Err(End::new(
                EndReason::Disconnected,
                format!("{server}: no session: the connection {}", words(state)),
            ));
        }
        let Some(granted) = capture.granted() else {
            return Err(End::new(EndReason::Crashed, "the ZooKeeper library does not tell its session"));
        };
        let own = Own::new(settings, granted.session);
        let chroot = &settings.chroot;
        let tree =
            Tree::new(format!("{chroot}{}", settings.tree), format!("{chroot}{}", settings.own), &settings.agent);
        Ok((Self { context, zk, pokes, states, tree, own }, Session { granted, at }))
    }

    /// Authenticates, looks for the chroot, writes once, reports the session.
    async fn enter(&mut self, server: &connect::Server, session: Session) -> Result<(), End> {
        let Self { context, zk, tree, own, .. } = self;
        let settings = &context.settings;
        for (scheme, credential) in &settings.auth {
            let credential = credential.reveal().as_bytes().to_vec();
            // Whether it was refused or got lost is in the reason.
            request("/", zk.add_auth(scheme, credential)).await.map_err(|failed| {
                let end = failed.end();
                End::new(end.reason, format!("{server}: authentication by {scheme} failed ({})", end.detail))
            })?;
        }
        if !settings.chroot.is_empty() {
            let chroot = settings.chroot.as_str();
            if request(chroot, zk.exists(chroot, false)).await.map_err(super::tree::Failed::end)?.is_none() {
                let detail = format!("chroot {chroot} is not there; create it or correct zookeeper.hosts");
                return Err(End::new(EndReason::ChrootMissing, detail));
            }
        }
        // A server that takes no writes (cut off from its quorum) is of no use, and so is found out at once.
        tree.set_server_clock(own.server_clock(zk).await?, Instant::now());
        let connected = Update::Connected {
            server: server.to_string(),
            session: session.granted.session,
            requested: settings.session_timeout,
            negotiated: session.granted.timeout,
            at: session.at,
        };
        send(&context.updates, connected).await?;
        context.published.mark_changed();
        Ok(())
    }

    /// Everything the epoch does until it ends.
    async fn last(&mut self, requests: &mut mpsc::Receiver<Request>) -> End {
        let mut pass = interval(PASS);
        pass.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.context.stop.clone();
        loop {
            let done = tokio::select! {
                biased;
                () = stop.cancelled() => Err(End::new(EndReason::Shutdown, "shutdown")),
                state = self.states.recv() => {
                    Err(End::new(EndReason::Disconnected, format!("the connection {}", words(state))))
                }
                paths = self.pokes.wait() => self.guarded(Work::Poked(paths)).await,
                Some(asked) = requests.recv() => self.guarded(Work::Request(asked)).await,
                Ok(()) = self.context.published.changed() => self.guarded(Work::Publish).await,
                Ok(()) = self.context.session_timeout.changed() => self.check_timeout(),
                _ = pass.tick() => self.guarded(Work::Pass).await,
            };
            if let Err(end) = done {
                return end;
            }
        }
    }

    /// Does a piece of work, given up at once when the connection changes its state under it.
    async fn guarded(&mut self, work: Work) -> Result<(), End> {
        let Self { context, zk, pokes: _, states, tree, own } = self;
        let stop = context.stop.clone();
        let working = async {
            match work {
                Work::Pass => {
                    tree.pass(zk, &context.updates).await?;
                    let published = context.published.borrow().clone();
                    let Some(data) = published else { return Ok(()) };
                    if !own.is_spoiled(tree.agent(&context.settings.agent)) {
                        return Ok(());
                    }
                    tracing::warn!("our own znode was changed or removed by somebody else; it is written again");
                    publish(own, zk, &data, &context.updates).await
                }
                Work::Poked(paths) => tree.poked(paths, zk, &context.updates).await,
                Work::Request(Request::Barrier { started, reply }) => {
                    let barrier = own.barrier(zk, &tree.leader(), &tree.config(), &tree.sync(), started).await;
                    let told = match &barrier {
                        Ok(barrier) => barrier.clone(),
                        Err(end) => Barrier::Unknown { why: end.detail.clone() },
                    };
                    // Whoever asked may have given up.
                    drop(reply.send(told));
                    barrier.map(|_| ())
                }
                Work::Request(Request::ReadRecord { member, reply }) => {
                    answer(reply, own.read_record(zk, &member).await)
                }
                Work::Request(Request::WriteRecord { member, record, expect, reply }) => {
                    answer(reply, own.write_record(zk, &member, record, expect).await)
                }
                Work::Request(Request::Append { entry, reply }) => answer(reply, own.append(zk, entry).await),
                Work::Request(Request::ReadAudit { reply }) => answer(reply, own.read_audit(zk).await),
                Work::Request(Request::ReadTrees { reply }) => {
                    answer(reply, own.read_trees(zk, &tree.initialize()).await)
                }
                Work::Request(Request::ReadOldAudit { names, reply }) => {
                    answer_or_refuse(reply, own.read_old_audit(zk, names).await)
                }
                Work::Request(Request::Replace { place, data, found, reply }) => {
                    answer_or_refuse(reply, own.replace(zk, &place, data, found.as_ref()).await)
                }
                Work::Request(Request::Release { holds, reply }) => {
                    let done = own.release(zk, &tree.leader(), &holds).await;
                    let told = match &done {
                        Ok(released) => released.clone(),
                        Err(end) => Released::Failed(end.detail.clone()),
                    };
                    drop(reply.send(told));
                    done.map(|_| ())
                }
                Work::Publish => {
                    let data = context.published.borrow_and_update().clone();
                    let Some(data) = data else { return Ok(()) };
                    publish(own, zk, &data, &context.updates).await
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(End::new(EndReason::Shutdown, "shutdown")),
            state = states.recv() => Err(End::new(EndReason::Disconnected, format!("the connection {}", words(state)))),
            done = timeout(REQUEST * 5, working) => done.unwrap_or_else(|_| {
                Err(End::new(EndReason::RequestTimeout, "a series of requests took too long"))
            }),
        }
    }

    fn check_timeout(&mut self) -> Result<(), End> {
        let wanted = *self.context.session_timeout.borrow_and_update();
        if wanted == self.context.settings.session_timeout {
            return Ok(());
        }
        Err(End::new(EndReason::SettingsChanged, format!("the session timeout is to be {} s", wanted.as_secs())))
    }
}

/// Publishes `data`, and says so if the name is another's.
async fn publish(own: &mut Own, zk: &ZooKeeper, data: &[u8], updates: &mpsc::Sender<Update>) -> Result<(), End> {
    match own.publish(zk, data).await? {
        Published::Done => Ok(()),
        Published::TakenBy(by) => send(updates, Update::NameTaken { by, at: Instant::now() }).await,
    }
}

/// Tells what came of a request; whoever asked may have given up.
fn answer<T>(reply: Reply<T>, done: Result<T, End>) -> Result<(), End> {
    match done {
        Ok(value) => {
            drop(reply.send(Ok(value)));
            Ok(())
        }
        Err(end) => {
            drop(reply.send(Err(end.detail.clone())));
            Err(end)
        }
    }
}

/// The same where the znode may be another cluster's: that it is not ours to touch says nothing about our session.
fn answer_or_refuse<T>(reply: Reply<T>, done: Result<T, End>) -> Result<(), End> {
    match answer(reply, done) {
        Err(end) if end.reason == EndReason::AuthFailed => Ok(()),
        answered => answered,
    }
}

/// What there is to do in an epoch.
enum Work {
    Pass,
    Poked(BTreeSet<String>),
    Request(Request),
    Publish,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_library_says_of_the_connection_is_told_in_words() {
        assert_eq!(words(Some(ZkState::Connecting)), "is lost");
        assert_eq!(words(None), "is given up by the client");
    }
}
