//! The ZooKeeper client: it watches Patroni's tree, keeps the agent's znode and makes linearizable reads.
//!
//! The library (zookeeper-async 5.0) loses watches on every reconnect and never reports an expired session. It has no
//! time limits, reconnects forever and leaks when dropped. The client therefore works in *epochs*: each has a thread
//! with its own runtime, one address and one session. The client ends an epoch at the first failure, with everything
//! in it, and starts the next one after a pause. A watch event only triggers a read, and the read counts. A pass every
//! second arms the watches again.

mod types;

pub mod decode;
mod reports;

mod capture;
mod connect;
mod tree;

mod own;
mod upgrade;
mod write;

mod epoch;
mod handle;

pub use handle::Handle;
pub use own::FOLDERS;
pub use reports::Reports;
pub use types::{Barrier, EndReason, Expect, ExpectedKey, Node, Place, Released, Update, Znode};
pub use upgrade::{Folder, SHARED, Trees, UPGRADE};

use crate::clock::Clock;
use crate::config::Config;
use handle::{Present, Reply, Request};
use rand::random_range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use types::End;

/// The first pause before the next epoch, with full jitter. It doubles with each epoch, up to [`EPOCH_PAUSE_MAX`].
const EPOCH_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause before the next epoch.
const EPOCH_PAUSE_MAX: Duration = Duration::from_secs(5);

/// The pause returns to [`EPOCH_PAUSE_MIN`] after an epoch that lasted this long.
const EPOCH_HEALTHY_MIN: Duration = Duration::from_secs(10);

const _: () = assert!(EPOCH_PAUSE_MIN.as_millis() < EPOCH_PAUSE_MAX.as_millis());

/// The settings of a connection.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `host:port`, each.
    pub hosts: Vec<String>,
    /// Prefix of every path, like `/a/b`, or empty. The client puts it before each path itself. With the library's own
    /// chroot, a watch on the root never fires.
    pub chroot: String,
    /// Patroni's tree, `/service/my_cluster`.
    pub tree: String,
    /// Warden's tree of this cluster, `/warden/service/my_cluster`.
    pub own: String,
    /// The tree that Warden 0.1 used, `/warden/my_cluster`.
    pub old: String,
    /// The agent's name. Its znode and its barrier znode have this name.
    pub agent: String,
    /// Scheme and credential. The client authenticates in each epoch.
    pub auth: Vec<(String, crate::secret::Secret)>,
    /// The session timeout to request.
    pub session_timeout: Duration,
}

impl Settings {
    /// The settings in the configuration.
    pub fn of(config: &Config) -> Self {
        let auth = config.zookeeper.auth_data.iter();
        Self {
            hosts: config.zookeeper.hosts.clone(),
            chroot: config.zookeeper.chroot.clone(),
            tree: config.patroni_tree(),
            own: config.own_tree(),
            old: config.old_tree(),
            agent: config.name.clone(),
            auth: auth.map(|(scheme, secret)| (scheme.clone(), secret.clone())).collect(),
            session_timeout: config.zookeeper.session_timeout,
        }
    }
}

#[cfg(test)]
impl Handle {
    /// For tests without a ZooKeeper: it never has a session.
    pub fn nowhere() -> Self {
        spawn(Settings::nowhere(), Clock::start(), Reports::Raw(mpsc::channel(8).0))
    }
}

#[cfg(test)]
impl Settings {
    /// For tests without a ZooKeeper: no process listens there.
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

/// Starts the client. It reports to `reports`, and ends when the receiver is closed.
pub fn spawn(settings: Settings, clock: Clock, reports: Reports) -> Handle {
    let (present_in, present) = watch::channel(None);
    let (published, published_out) = watch::channel(None);
    let (session_timeout, session_timeout_out) = watch::channel(settings.session_timeout);
    let (stop, stopped) = (CancellationToken::new(), CancellationToken::new());
    let handle = Handle {
        present,
        published: Arc::new(published),
        session_timeout: Arc::new(session_timeout),
        clock,
        stop: stop.clone(),
        stopped: stopped.clone(),
    };
    let context = epoch::Context {
        settings,
        reports,
        published: published_out,
        session_timeout: session_timeout_out,
        stop: stop.clone(),
    };
    tokio::spawn(async move {
        let present = Arc::new(present_in);
        loop {
            // A task of its own, so that the client reports a panic in it and starts it again.
            let (context, present) = (context.clone(), Arc::clone(&present));
            let reports = context.reports.clone();
            let Err(error) = tokio::spawn(async move { epochs(context, &present).await }).await else { break };
            let detail = format!("the ZooKeeper client failed: {error}");
            let lost = Update::Lost { reason: EndReason::Crashed, detail, at: Instant::now() };
            if stop.is_cancelled() || reports.send(lost).await.is_err() {
                break;
            }
            sleep(EPOCH_PAUSE_MAX).await;
        }
        stopped.cancel();
    });
    handle
}

/// Runs one epoch after the other, until shutdown.
async fn epochs(mut context: epoch::Context, present: &Present) {
    let mut pause = EPOCH_PAUSE_MIN;
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
                if begun.elapsed() >= EPOCH_HEALTHY_MIN {
                    pause = EPOCH_PAUSE_MIN;
                }
                let wait = pause.mul_f64(random_range(0.0..1.0));
                pause = (pause * 2).min(EPOCH_PAUSE_MAX);
                wait
            }
        };
        let lost = Update::Lost { reason: end.reason, detail: end.detail, at };
        // The loop may close its queue before it stops the client.
        tokio::select! {
            sent = context.reports.send(lost) => if sent.is_err() { return },
            () = context.stop.cancelled() => return,
        }
        context.settings.session_timeout = *context.session_timeout.borrow_and_update();
        // The next epoch tries the server that has just failed last.
        avoid = server;
        tokio::select! {
            () = sleep(wait) => {}
            () = context.stop.cancelled() => return,
        }
    }
}
