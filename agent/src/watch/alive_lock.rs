//! The alive lock: the file that the local Patroni holds locked as long as it lives.
//!
//! Patroni is started as `flock --no-fork FILE patroni …`; the kernel frees the lock with the process, in
//! whatever namespace. A thread of its own waits for that in a shared `flock`, so that it is known at once
//! and without polling, and lets go in the same instant so that Patroni is never kept from starting.
//! The lock counts only on the inode that the path names now, and on a local file system: elsewhere a lock
//! may be lost or kept for reasons that have nothing to do with the process.

use super::Events;
use rustix::fs::{FlockOperation, flock, fstatfs};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use warden_core::event::{AliveLock, Event};
use warden_core::types::Moment;

/// While nobody holds the lock: how soon it is seen that somebody does again.
const RECHECK: Duration = Duration::from_millis(200);

/// How often the path is compared with the inode that is being waited on.
const INODE_CHECK: Duration = Duration::from_secs(1);

/// A volume on which a look at the path takes longer than this hangs.
const LOOK: Duration = Duration::from_secs(1);

const NO_ANSWER: &str = "its volume has not answered within 1 s";

/// Pause after the lock could not be waited for, with jitter: doubled from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Threads that wait on inodes which the path no longer names cannot be woken; beyond this many we stop.
const MAX_STRAYS: u64 = 8;

/// File systems on which a lock's state does not follow the life of a process on this machine
/// (magic numbers from statfs(2)): NFS, SMB, SMB2, CIFS, 9P, Ceph, FUSE.
const REMOTE: [u32; 7] = [0x6969, 0x517b, 0xfe53_4d42, 0xff53_4d42, 0x0102_1997, 0x00c3_6400, 0x6573_5546];

/// The file that was last seen locked (device, inode): free, any other says nothing of a process that may hold the
/// one before it. Shared with whoever looks right before acting.
#[derive(Clone, Debug, Default)]
pub struct Held(Arc<Mutex<Option<(u64, u64)>>>);

impl Held {
    fn get(&self) -> Option<(u64, u64)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, file: (u64, u64)) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }
}

/// Looks now whether somebody holds the lock at `path`. Our own hold lasts no longer than it takes to know. May block
/// in the kernel for a moment.
pub fn look(path: &Path, held: &Held) -> AliveLock {
    match try_lock(path) {
        Ok((true, file)) if held.get() == Some(file) => AliveLock::Gone,
        Ok((true, _)) => AliveLock::Unknown(format!(
            "nobody has been seen holding {}: is Patroni started with flock, on this file?",
            path.display()
        )),
        Ok((false, file)) => {
            held.set(file);
            AliveLock::Alive
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            AliveLock::Unknown(format!("{} is not there: is Patroni started with flock?", path.display()))
        }
        Err(error) => AliveLock::Unknown(format!("{}: {error}", path.display())),
    }
}

/// Watches the lock until the agent shuts down.
pub async fn watch(path: PathBuf, held: Held, events: Events) -> anyhow::Result<()> {
    watch_by(path, held, events, Kernel { inode: |path| Ok(std::fs::metadata(path)?.ino()), wait: wait_for }).await
}

/// What is asked of the kernel, and may block in it.
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

async fn watch_by(path: PathBuf, held: Held, events: Events, kernel: Kernel) -> anyhow::Result<()> {
    let shared = Arc::new(Shared::default());
    // A former watcher's word is not relied on: what it saw may be long ago.
    *held.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    // When this task is ended the waiter, which nobody can wake, must not go on reporting.
    let _retired_when_dropped = Retire(Arc::clone(&shared));
    let mut named = Named { path: path.clone(), inode: kernel.inode, under_way: None };
    loop {
        let generation = shared.generation.fetch_add(1, Ordering::SeqCst) + 1;
        let waiter = Waiter {
            path: path.clone(),
            held: held.clone(),
            events: events.clone(),
            shared: Arc::clone(&shared),
            generation,
            wait: kernel.wait,
        };
        let thread = std::thread::Builder::new().name("alive-lock".to_owned()).spawn(move || waiter.run())?;
        let why = replaced(&path, &held, &events, &shared, &thread, &mut named).await?;
        events.send(events.clock.now(), unknown(&path, why)).await?;
        shared.inode.store(0, Ordering::SeqCst);
        while shared.strays.load(Ordering::SeqCst) >= MAX_STRAYS {
            let why = "was replaced too often; restart this agent, and do not delete the file";
            events.send(events.clock.now(), unknown(&path, why)).await?;
            sleep(INODE_CHECK).await;
        }
    }
}

/// Waits until the path names no longer what the waiter waits on, which may sleep in the kernel for ever on a file that
/// was replaced under it. Returns what has become of it.
async fn replaced(
    path: &Path,
    held: &Held,
    events: &Events,
    shared: &Shared,
    thread: &std::thread::JoinHandle<()>,
    named: &mut Named,
) -> anyhow::Result<&'static str> {
    // Why it is not known what the path names, as it was told.
    let mut told: Option<String> = None;
    loop {
        sleep(INODE_CHECK).await;
        anyhow::ensure!(!thread.is_finished(), "the thread that waits for {} has ended", path.display());
        let asked = events.clock.now();
        let waited_on = shared.inode.load(Ordering::SeqCst);
        let inode = match named.look().await {
            Ok(inode) => inode,
            Err(error) if error.kind() == io::ErrorKind::NotFound && waited_on != 0 => {
                return Ok("is not there any more");
            }
            // The waiter's own look says so.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let why = format!("cannot be looked at: {error}");
                if told.as_ref() != Some(&why) {
                    events.send(asked, unknown(path, &why)).await?;
                    told = Some(why);
                }
                continue;
            }
        };
        if waited_on != 0 && inode != waited_on {
            return Ok("was replaced");
        }
        if told.take().is_some() {
            // The waiter tells changes only, and nothing may have changed. Its own look counts where it is later.
            let (at, looked_at, held) = (events.clock.now(), path.to_owned(), held.clone());
            let state = timeout(LOOK, tokio::task::spawn_blocking(move || look(&looked_at, &held))).await;
            let no_answer = || AliveLock::Unknown(format!("{} cannot be looked at: {NO_ANSWER}", path.display()));
            let state = state.unwrap_or_else(|_| Ok(no_answer()))?;
            told = if let AliveLock::Unknown(why) = &state { Some(why.clone()) } else { None };
            events.send(at, Event::AliveLock(state)).await?;
        }
    }
}

/// Which inode a path names, asked on a thread that may block: never more than one, however long the volume hangs.
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
        let Ok(found) = timeout(LOOK, under_way).await else {
            return Err(io::Error::other(NO_ANSWER));
        };
        self.under_way = None;
        found.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

fn unknown(path: &Path, why: &str) -> Event {
    Event::AliveLock(AliveLock::Unknown(format!("{} {why}", path.display())))
}

/// Takes the present waiter's word from it.
struct Retire(Arc<Shared>);

impl Drop for Retire {
    fn drop(&mut self) {
        self.0.generation.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Shared {
    /// The waiter of this number is the one that counts.
    generation: AtomicU64,
    /// The inode it waits on; 0 while it waits on none.
    inode: AtomicU64,
    /// Waiters that sleep in the kernel: the present one, and those on inodes which the path no longer names.
    strays: AtomicU64,
}

struct Waiter {
    path: PathBuf,
    held: Held,
    events: Events,
    shared: Arc<Shared>,
    generation: u64,
    wait: fn(&File) -> rustix::io::Result<()>,
}

impl Waiter {
    /// Reports until the agent is gone or another waiter has taken over.
    fn run(&self) {
        let mut last: Option<AliveLock> = None;
        let mut pause = FIRST_PAUSE;
        while self.is_current() {
            let at = self.events.clock.now();
            let state = look(&self.path, &self.held);
            let is_held = state == AliveLock::Alive;
            if !self.tell(&mut last, at, state) {
                return;
            }
            if !is_held {
                std::thread::sleep(RECHECK);
            } else if let Err(error) = self.wait_until_free() {
                // It is held, but that it comes free would go unnoticed.
                let why = format!("{} is locked, and cannot be waited for: {error}", self.path.display());
                if !self.tell(&mut last, self.events.clock.now(), AliveLock::Unknown(why)) {
                    return;
                }
                std::thread::sleep(pause.mul_f64(rand::random_range(0.5..1.0)));
                pause = (pause * 2).min(LONGEST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
        }
    }

    /// Reports `state`, looked for at `at`, if it is news. `false` if nobody wants to know any more.
    fn tell(&self, last: &mut Option<AliveLock>, at: Moment, state: AliveLock) -> bool {
        if last.as_ref() == Some(&state) {
            return true;
        }
        *last = Some(state.clone());
        // It may have been retired while it slept.
        self.is_current() && self.events.send_blocking(at, Event::AliveLock(state)).is_ok()
    }

    fn is_current(&self) -> bool {
        self.shared.generation.load(Ordering::SeqCst) == self.generation
    }

    /// Sleeps in the kernel until nobody holds the lock exclusively.
    fn wait_until_free(&self) -> io::Result<()> {
        let file = open(&self.path)?;
        let inode = file.metadata().map_or(0, |metadata| metadata.ino());
        self.shared.inode.store(inode, Ordering::SeqCst);
        self.shared.strays.fetch_add(1, Ordering::SeqCst);
        let waited = (self.wait)(&file);
        // Let go at once: Patroni may be about to start.
        drop(file);
        self.shared.strays.fetch_sub(1, Ordering::SeqCst);
        if self.is_current() {
            self.shared.inode.store(0, Ordering::SeqCst);
        }
        Ok(waited?)
    }
}

/// Whether it could be locked, and which file that was (device, inode).
fn try_lock(path: &Path) -> io::Result<(bool, (u64, u64))> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    let identity = (metadata.dev(), metadata.ino());
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            flock(&file, FlockOperation::Unlock)?;
            must_be_named(&file, path)?;
            Ok((true, identity))
        }
        Err(rustix::io::Errno::WOULDBLOCK) => {
            must_be_named(&file, path)?;
            Ok((false, identity))
        }
        Err(error) => Err(error.into()),
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Looked at before it is opened: to open a FIFO would wait for somebody who writes to it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    let file = File::open(path)?;
    let kind = u32::try_from(fstatfs(&file)?.f_type).unwrap_or_default();
    if REMOTE.contains(&kind) {
        return Err(io::Error::other("is not on a local file system, so its lock proves nothing"));
    }
    Ok(file)
}

fn must_be_named(file: &File, path: &Path) -> io::Result<()> {
    let (open, named) = (file.metadata()?, std::fs::metadata(path)?);
    if (open.dev(), open.ino()) == (named.dev(), named.ino()) {
        Ok(())
    } else {
        Err(io::Error::other("was replaced while it was looked at"))
    }
}

#[cfg(test)]
#[path = "alive_lock_tests.rs"]
mod tests;
