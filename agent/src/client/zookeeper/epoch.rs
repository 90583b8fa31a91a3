//! One epoch: one connection, one session, one thread.
//!
//! The thread's runtime holds every task that the library spawned. Dropping the runtime ends them all; dropping the
//! library's client does not. Any state but `Connected` ends the epoch, and so does any request that fails or is late.
//! A reconnect would lose the watches, and the library does not report a new session after an expired one.

use super::capture::{Capture, Granted};
use super::own::Own;
use super::tree::{REQUEST_LIMIT, Tree, request};
use super::write::Published;
use super::{Barrier, End, EndReason, Released, Reply, Reports, Request, Settings, Update, connect};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use zookeeper_async::{WatchedEvent, Watcher, ZkState, ZooKeeper};

/// Between two passes. A pass arms the watches again and proves that the connection works.
const PASS_INTERVAL: Duration = Duration::from_secs(1);

/// The limit for a connection, and for a session on it. The library starts over after 2 s without an answer.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(2);

/// The limit for closing a session. A session that takes longer ends by its timeout.
const CLOSE_LIMIT: Duration = Duration::from_millis(200);

/// The library spins with a session timeout below 2 s.
const SESSION_TIMEOUT_MIN: Duration = Duration::from_secs(2);

/// The protocol has 31 bits of milliseconds for the timeout. No server grants as much as a day.
const SESSION_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);

const _: () = assert!(SESSION_TIMEOUT_MIN.as_millis() < SESSION_TIMEOUT_MAX.as_millis());
const _: () = assert!(SESSION_TIMEOUT_MAX.as_millis() < 1 << 31);

/// The state that all epochs share.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) settings: Settings,
    pub(super) reports: Reports,
    pub(super) published: watch::Receiver<Option<Vec<u8>>>,
    pub(super) session_timeout: watch::Receiver<Duration>,
    pub(super) stop: CancellationToken,
}

/// Runs an epoch to its end. Also returns the address of its server, if it found one.
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
        // The receiver is gone if the agent shuts down.
        drop(ended.send(end));
    };
    if let Err(error) = std::thread::Builder::new().name("zookeeper".to_owned()).spawn(body) {
        return (End::new(EndReason::Crashed, format!("no thread for ZooKeeper: {error}")), None);
    }
    let end = end.await.unwrap_or_else(|_| End::new(EndReason::Crashed, "the ZooKeeper client panicked"));
    let server = *server.lock().unwrap_or_else(PoisonError::into_inner);
    (end, server)
}

/// The library's state of the connection, for people; `None` if the library has dropped the listener.
const fn describe(state: Option<ZkState>) -> &'static str {
    match state {
        Some(ZkState::Connecting) => "is lost",
        Some(ZkState::Closed) => "has ended with its session",
        Some(ZkState::AuthFailed) => "is refused: authentication failed",
        Some(ZkState::ConnectedReadOnly) => "is to a server that has lost its quorum",
        Some(_) => "is in an unknown state",
        None => "is given up by the client",
    }
}

/// The paths of changed znodes, from the library's default watcher.
#[derive(Clone, Default)]
struct ChangedPaths {
    paths: Arc<Mutex<BTreeSet<String>>>,
    notify: Arc<Notify>,
}

impl ChangedPaths {
    /// The watcher drops further paths. The next pass reads the tree anyway.
    const PATHS_MAX: usize = 1024;

    async fn wait(&self) -> BTreeSet<String> {
        self.notify.notified().await;
        std::mem::take(&mut *self.paths.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Watcher for ChangedPaths {
    /// Runs inside the library's IO task, which a panic would end. Nothing here can panic.
    fn handle(&self, event: WatchedEvent) {
        if let Some(path) = event.path {
            let mut paths = self.paths.lock().unwrap_or_else(PoisonError::into_inner);
            if paths.len() < Self::PATHS_MAX {
                paths.insert(path);
            }
        }
        self.notify.notify_one();
    }
}

/// The server's grant, and when the connection was there.
struct Session {
    granted: Granted,
    at: Instant,
}

struct Epoch {
    context: Context,
    zk: ZooKeeper,
    changed: ChangedPaths,
    /// The states that the library reports.
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
            Ok(()) => epoch.serve(&mut requests).await,
            Err(end) => end,
        };
        if end.reason.leaves_connection_usable() {
            // The agent's znode is then gone at once, and repeated failures leave no sessions behind.
            drop(timeout(CLOSE_LIMIT, epoch.zk.close()).await);
        }
        end
    }

    /// Connects and waits for the session.
    async fn begin(context: Context, server: &connect::Server) -> Result<(Self, Session), End> {
        let settings = &context.settings;
        let requested = settings.session_timeout.clamp(SESSION_TIMEOUT_MIN, SESSION_TIMEOUT_MAX);
        let capture = Capture::start();
        let changed = ChangedPaths::default();
        let address = server.address.to_string();
        // Longer than the client waits, so that the library tries only once.
        let before_retry = HANDSHAKE_LIMIT * 2;
        let connecting = ZooKeeper::connect_with_retry_time(&address, requested, changed.clone(), before_retry);
        let late = |missing: &str| {
            let detail = format!("{server}: {missing} within {} s", HANDSHAKE_LIMIT.as_secs());
            End::new(EndReason::ConnectTimeout, detail)
        };
        let zk = timeout(HANDSHAKE_LIMIT, connecting)
            .await
            .map_err(|_| late("no connection"))?
            .map_err(|error| End::new(EndReason::Unreachable, format!("{server}: {error}")))?;
        // No task of the library has run on this thread since `connect` returned, so the listener misses no state.
        let (states_in, mut states) = mpsc::unbounded_channel();
        zk.add_listener(move |state| {
            let _epoch_may_be_over = states_in.send(state);
        });
        let at = Instant::now();
        let state = tokio::select! {
            state = timeout(HANDSHAKE_LIMIT, states.recv()) => state.map_err(|_| late("no session"))?,
            // The library would not tell its listeners, and would retry forever.
            () = capture.connects_again() => {
                let detail = format!("{server}: it closed the connection before a session began");
                return Err(End::new(EndReason::Disconnected, detail));
            }
        };
        if state != Some(ZkState::Connected) {
            return Err(End::new(
                EndReason::Disconnected,
                format!("{server}: no session: the connection {}", describe(state)),
            ));
        }
        let Some(granted) = capture.granted() else {
            return Err(End::new(EndReason::Crashed, "the ZooKeeper library has not logged its session"));
        };
        let own = Own::new(settings, granted.session);
        let chroot = &settings.chroot;
        let tree =
            Tree::new(format!("{chroot}{}", settings.tree), format!("{chroot}{}", settings.own), &settings.agent);
        Ok((Self { context, zk, changed, states, tree, own }, Session { granted, at }))
    }

    /// Authenticates, checks the chroot, writes once, and reports the session.
    async fn enter(&mut self, server: &connect::Server, session: Session) -> Result<(), End> {
        let Self { context, zk, tree, own, .. } = self;
        let settings = &context.settings;
        for (scheme, credential) in &settings.auth {
            let credential = credential.reveal().as_bytes().to_vec();
            // The reason distinguishes a refusal from a lost connection.
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
        // The write fails at once on a server without a quorum.
        tree.set_server_clock(own.server_clock(zk).await?, Instant::now());
        let connected = Update::Connected {
            server: server.to_string(),
            session: session.granted.session,
            requested: settings.session_timeout,
            negotiated: session.granted.timeout,
            at: session.at,
        };
        context.reports.send(connected).await?;
        context.published.mark_changed();
        Ok(())
    }

    /// Serves passes, changes and requests until the epoch ends.
    async fn serve(&mut self, requests: &mut mpsc::Receiver<Request>) -> End {
        let mut pass = interval(PASS_INTERVAL);
        pass.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.context.stop.clone();
        loop {
            let done = tokio::select! {
                biased;
                () = stop.cancelled() => Err(End::new(EndReason::Shutdown, "shutdown")),
                state = self.states.recv() => {
                    Err(End::new(EndReason::Disconnected, format!("the connection {}", describe(state))))
                }
                paths = self.changed.wait() => self.guarded(Work::Changed(paths)).await,
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

    /// Carries out `work`. Gives it up at once if the connection changes its state.
    async fn guarded(&mut self, work: Work) -> Result<(), End> {
        let Self { context, zk, changed: _, states, tree, own } = self;
        let stop = context.stop.clone();
        let working = async {
            match work {
                Work::Pass => pass(context, zk, tree, own).await,
                Work::Changed(paths) => tree.read_changed(paths, zk, &context.reports).await,
                Work::Request(request) => carry_out(request, zk, tree, own).await,
                Work::Publish => {
                    let data = context.published.borrow_and_update().clone();
                    let Some(data) = data else { return Ok(()) };
                    publish(own, zk, &data, &context.reports).await
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(End::new(EndReason::Shutdown, "shutdown")),
            state = states.recv() => {
                Err(End::new(EndReason::Disconnected, format!("the connection {}", describe(state))))
            }
            done = timeout(REQUEST_LIMIT * 5, working) => done.unwrap_or_else(|_| {
                Err(End::new(EndReason::RequestTimeout, "a series of requests took too long"))
            }),
        }
    }

    fn check_timeout(&mut self) -> Result<(), End> {
        let wanted = *self.context.session_timeout.borrow_and_update();
        if wanted == self.context.settings.session_timeout {
            return Ok(());
        }
        Err(End::new(EndReason::SettingsChanged, format!("the session timeout changes to {} s", wanted.as_secs())))
    }
}

/// Reads the tree, and writes the agent's znode again if another client has changed or removed it.
async fn pass(context: &Context, zk: &ZooKeeper, tree: &mut Tree, own: &mut Own) -> Result<(), End> {
    tree.pass(zk, &context.reports).await?;
    let published = context.published.borrow().clone();
    let Some(data) = published else { return Ok(()) };
    if !own.needs_rewrite(tree.agent(&context.settings.agent)) {
        return Ok(());
    }
    tracing::warn!(
        event = "agent_znode_rewritten",
        "another client changed or removed the agent's znode; the agent writes it again"
    );
    publish(own, zk, &data, &context.reports).await
}

/// Carries out a request and sends the answer. The caller may have given up.
async fn carry_out(request: Request, zk: &ZooKeeper, tree: &Tree, own: &Own) -> Result<(), End> {
    match request {
        Request::Barrier { started, reply } => {
            let barrier = own.barrier(zk, &tree.leader(), &tree.config(), &tree.sync(), started).await;
            let result = match &barrier {
                Ok(barrier) => barrier.clone(),
                Err(end) => Barrier::Unknown { why: end.detail.clone() },
            };
            drop(reply.send(result));
            barrier.map(|_| ())
        }
        Request::ReadRecord { member, reply } => answer(reply, own.read_record(zk, &member).await),
        Request::WriteRecord { member, record, expect, reply } => {
            answer(reply, own.write_record(zk, &member, record, expect).await)
        }
        Request::Append { entry, reply } => answer(reply, own.append(zk, entry).await),
        Request::ReadAudit { reply } => answer(reply, own.read_audit(zk).await),
        Request::ReadTrees { reply } => answer(reply, own.read_trees(zk, &tree.initialize()).await),
        Request::ReadOldAudit { names, reply } => answer_or_refuse(reply, own.read_old_audit(zk, names).await),
        Request::Replace { place, data, found, reply } => {
            answer_or_refuse(reply, own.replace(zk, &place, data, found.as_ref()).await)
        }
        Request::Release { expected, reply } => {
            let done = own.release(zk, &tree.leader(), &expected).await;
            let result = match &done {
                Ok(released) => released.clone(),
                Err(end) => Released::Failed(end.detail.clone()),
            };
            drop(reply.send(result));
            done.map(|_| ())
        }
    }
}

/// Publishes `data`. Reports it if another agent uses the name.
async fn publish(own: &mut Own, zk: &ZooKeeper, data: &[u8], reports: &Reports) -> Result<(), End> {
    match own.publish(zk, data).await? {
        Published::Done => Ok(()),
        Published::TakenBy(by) => reports.send(Update::NameTaken { by, at: Instant::now() }).await,
    }
}

/// Sends the result of a request. The caller may have given up. A failure also ends the epoch.
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

/// The same for a znode that may belong to another cluster. A missing permission there does not end the epoch.
fn answer_or_refuse<T>(reply: Reply<T>, done: Result<T, End>) -> Result<(), End> {
    match answer(reply, done) {
        Err(end) if end.reason == EndReason::AuthFailed => Ok(()),
        answered => answered,
    }
}

/// The work of an epoch.
enum Work {
    Pass,
    Changed(BTreeSet<String>),
    Request(Request),
    Publish,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_the_connection_is_described_in_words() {
        assert_eq!(describe(Some(ZkState::Connecting)), "is lost");
        assert_eq!(describe(None), "is given up by the client");
    }
}
