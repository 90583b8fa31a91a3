//! Watches the alive lock, the file that the local Patroni holds locked as long as it lives.
//!
//! The operator starts Patroni as `flock --no-fork FILE patroni …`. The kernel frees the lock when the process ends, in
//! any namespace. A thread of its own, the waiter, waits for that in a shared `flock`, so that the agent learns it at
//! once and without polling. The waiter releases the lock at once, so that it does not keep Patroni from starting.
//! `client/alive_lock` says when the lock counts.

use crate::client::alive_lock::{LockedFile, look, open};
use crate::events::Events;
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use warden_core::event::{AliveLock, Event, LocalEvent};
use warden_core::types::Moment;

/// Between two looks while the lock is free.
const FREE_LOCK_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Between two comparisons of the path with the inode on which the waiter waits.
const INODE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A volume hangs if a look at the path takes longer.
const INODE_CHECK_LIMIT: Duration = Duration::from_secs(1);

const NO_ANSWER: &str = "its volume has not answered within 1 s";

/// The first pause after a failed wait, with jitter. It doubles with each failure, up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause after a failed wait.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(5);

const _: () = assert!(RETRY_PAUSE_MIN.as_millis() < RETRY_PAUSE_MAX.as_millis());

/// The agent starts no further waiter while this many sleep. It cannot wake a waiter whose file was replaced.
const WAITERS_MAX: u64 = 8;

/// Watches the lock until the agent shuts down.
pub async fn watch(path: PathBuf, locked: LockedFile, events: Events) -> anyhow::Result<()> {
    watch_by(path, locked, events, Kernel { inode: |path| Ok(std::fs::metadata(path)?.ino()), wait: wait_for }).await
}

/// The calls that may block in the kernel. The tests replace them.
#[derive(Clone, Copy)]
struct Kernel {
    /// The inode that a path names.
    inode: fn(&Path) -> io::Result<u64>,
    /// Sleeps until the lock is free, and takes it.
    wait: fn(&File) -> rustix::io::Result<()>,
}

fn wait_for(file: &File) -> rustix::io::Result<()> {
    flock(file, FlockOperation::LockShared)
}

async fn watch_by(path: PathBuf, locked: LockedFile, events: Events, kernel: Kernel) -> anyhow::Result<()> {
    let shared = Arc::new(Shared::default());
    // The observation of an earlier watcher may be too old.
    locked.forget();
    // The agent cannot wake the waiter, which must not report after the end of this task.
    let _retired_when_dropped = Retire(Arc::clone(&shared));
    let mut named = Named { path: path.clone(), inode: kernel.inode, under_way: None };
    loop {
        let generation = shared.generation.fetch_add(1, Ordering::SeqCst) + 1;
        let waiter = Waiter {
            path: path.clone(),
            locked: locked.clone(),
            events: events.clone(),
            shared: Arc::clone(&shared),
            generation,
            wait: kernel.wait,
        };
        let thread = std::thread::Builder::new().name("alive-lock".to_owned()).spawn(move || waiter.run())?;
        let why = replaced(&path, &locked, &events, &shared, &thread, &mut named).await?;
        events.send(events.clock.now(), unknown(&path, why)).await?;
        shared.inode.store(0, Ordering::SeqCst);
        while shared.sleeping.load(Ordering::SeqCst) >= WAITERS_MAX {
            let why = "was replaced too often; restart this agent, and do not delete the file";
            events.send(events.clock.now(), unknown(&path, why)).await?;
            sleep(INODE_CHECK_INTERVAL).await;
        }
    }
}

/// Waits until the path no longer names the file on which the waiter waits, and returns what happened to the file. The
/// waiter of a replaced file may sleep in the kernel forever.
async fn replaced(
    path: &Path,
    locked: &LockedFile,
    events: &Events,
    shared: &Shared,
    thread: &std::thread::JoinHandle<()>,
    named: &mut Named,
) -> anyhow::Result<&'static str> {
    // Why the agent cannot read the inode of the path, as last reported.
    let mut reported: Option<String> = None;
    loop {
        sleep(INODE_CHECK_INTERVAL).await;
        anyhow::ensure!(!thread.is_finished(), "the thread that waits for {} has ended", path.display());
        let asked = events.clock.now();
        let waited_on = shared.inode.load(Ordering::SeqCst);
        let inode = match named.look().await {
            Ok(inode) => inode,
            Err(error) if error.kind() == io::ErrorKind::NotFound && waited_on != 0 => {
                return Ok("is not there any more");
            }
            // The waiter reports it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let why = format!("cannot be read: {error}");
                if reported.as_ref() != Some(&why) {
                    events.send(asked, unknown(path, &why)).await?;
                    reported = Some(why);
                }
                continue;
            }
        };
        if waited_on != 0 && inode != waited_on {
            return Ok("was replaced");
        }
        if reported.take().is_some() {
            // The waiter reports changes only, and there may be none. Its look replaces this one if it is later.
            let (at, looked_at, locked) = (events.clock.now(), path.to_owned(), locked.clone());
            let state =
                timeout(INODE_CHECK_LIMIT, tokio::task::spawn_blocking(move || look(&looked_at, &locked))).await;
            let no_answer = || AliveLock::Unknown(format!("{} cannot be read: {NO_ANSWER}", path.display()));
            let state = state.unwrap_or_else(|_| Ok(no_answer()))?;
            reported = if let AliveLock::Unknown(why) = &state { Some(why.clone()) } else { None };
            events.send(at, Event::Local(LocalEvent::AliveLock(state))).await?;
        }
    }
}

/// Reads the inode of a path on a thread that may block. At most one such thread runs if the volume hangs.
struct Named {
    path: PathBuf,
    inode: fn(&Path) -> io::Result<u64>,
    under_way: Option<JoinHandle<io::Result<u64>>>,
}

impl Named {
    async fn look(&mut self) -> io::Result<u64> {
        let (path, inode) = (&self.path, self.inode);
        let under_way = self.under_way.get_or_insert_with(|| {
            let path = path.clone();
            tokio::task::spawn_blocking(move || inode(&path))
        });
        let Ok(found) = timeout(INODE_CHECK_LIMIT, under_way).await else {
            return Err(io::Error::other(NO_ANSWER));
        };
        self.under_way = None;
        found.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

fn unknown(path: &Path, why: &str) -> Event {
    Event::Local(LocalEvent::AliveLock(AliveLock::Unknown(format!("{} {why}", path.display()))))
}

/// Keeps the present waiter from reporting, when dropped.
struct Retire(Arc<Shared>);

impl Drop for Retire {
    fn drop(&mut self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Shared {
    /// Only the waiter with this number may report.
    generation: AtomicU64,
    /// The inode on which it waits; 0 while it waits on none.
    inode: AtomicU64,
    /// Waiters that sleep in the kernel: the present one, and those of replaced files.
    sleeping: AtomicU64,
}

struct Waiter {
    path: PathBuf,
    locked: LockedFile,
    events: Events,
    shared: Arc<Shared>,
    generation: u64,
    wait: fn(&File) -> rustix::io::Result<()>,
}

impl Waiter {
    /// Reports changes until the agent ends or another waiter has replaced this one.
    fn run(&self) {
        let mut last: Option<AliveLock> = None;
        let mut pause = RETRY_PAUSE_MIN;
        while self.is_current() {
            let at = self.events.clock.now();
            let state = look(&self.path, &self.locked);
            let is_held = state == AliveLock::Alive;
            if !self.report(&mut last, at, state) {
                return;
            }
            if !is_held {
                std::thread::sleep(FREE_LOCK_CHECK_INTERVAL);
            } else if let Err(error) = self.wait_until_free() {
                // A process holds the lock, but the waiter would miss its end.
                let why = format!("{} is locked, and the agent cannot wait for its end: {error}", self.path.display());
                if !self.report(&mut last, self.events.clock.now(), AliveLock::Unknown(why)) {
                    return;
                }
                std::thread::sleep(pause.mul_f64(rand::random_range(0.5..1.0)));
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
            } else {
                pause = RETRY_PAUSE_MIN;
            }
        }
    }

    /// Reports `state`, of a look at `at`, if it has changed. Returns `false` if the waiter has to end.
    fn report(&self, last: &mut Option<AliveLock>, at: Moment, state: AliveLock) -> bool {
        if last.as_ref() == Some(&state) {
            return true;
        }
        *last = Some(state.clone());
        // Another waiter may have replaced this one while it slept.
        self.is_current() && self.events.send_blocking(at, Event::Local(LocalEvent::AliveLock(state))).is_ok()
    }

    fn is_current(&self) -> bool {
        self.shared.generation.load(Ordering::SeqCst) == self.generation
    }

    /// Sleeps in the kernel until no process holds the lock exclusively.
    fn wait_until_free(&self) -> io::Result<()> {
        let file = open(&self.path)?;
        let inode = file.metadata().map_or(0, |metadata| metadata.ino());
        self.shared.inode.store(inode, Ordering::SeqCst);
        self.shared.sleeping.fetch_add(1, Ordering::SeqCst);
        let waited = (self.wait)(&file);
        // At once, because Patroni may be about to start.
        drop(file);
        self.shared.sleeping.fetch_sub(1, Ordering::SeqCst);
        if self.is_current() {
            self.shared.inode.store(0, Ordering::SeqCst);
        }
        Ok(waited?)
    }
}

#[cfg(test)]
#[path = "alive_lock_tests.rs"]
mod tests;
