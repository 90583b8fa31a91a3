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
use tokio::time::sleep;
use warden_core::event::{AliveLock, Event};

/// While nobody holds the lock: how soon it is seen that somebody does again.
const RECHECK: Duration = Duration::from_millis(200);

/// How often the path is compared with the inode that is being waited on.
const INODE_CHECK: Duration = Duration::from_secs(1);

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
    let shared = Arc::new(Shared::default());
    // A former watcher's word is not relied on: what it saw may be long ago.
    *held.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    // When this task is ended the waiter, which nobody can wake, must not go on reporting.
    let _retired_when_dropped = Retire(Arc::clone(&shared));
    loop {
        let generation = shared.generation.fetch_add(1, Ordering::SeqCst) + 1;
        let waiter = Waiter {
            path: path.clone(),
            held: held.clone(),
            events: events.clone(),
            shared: Arc::clone(&shared),
            generation,
        };
        let thread = std::thread::Builder::new().name("alive-lock".to_owned()).spawn(move || waiter.run())?;
        // The waiter may sleep in the kernel for ever on a file that was replaced under it: notice that here.
        loop {
            sleep(INODE_CHECK).await;
            anyhow::ensure!(!thread.is_finished(), "the thread that waits for {} has ended", path.display());
            let waited_on = shared.inode.load(Ordering::SeqCst);
            let named = std::fs::metadata(&path).map_or(0, |metadata| metadata.ino());
            if waited_on != 0 && named != waited_on {
                let why = if named == 0 { "is not there any more" } else { "was replaced" };
                events.send(events.clock.now(), unknown(&path, why)).await?;
                break;
            }
        }
        shared.inode.store(0, Ordering::SeqCst);
        while shared.strays.load(Ordering::SeqCst) >= MAX_STRAYS {
            let why = "was replaced too often; restart this agent, and do not delete the file";
            events.send(events.clock.now(), unknown(&path, why)).await?;
            sleep(INODE_CHECK).await;
        }
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
}

impl Waiter {
    /// Reports until the agent is gone or another waiter has taken over.
    fn run(&self) {
        let mut last: Option<AliveLock> = None;
        while self.is_current() {
            let at = self.events.clock.now();
            let state = look(&self.path, &self.held);
            if last.as_ref() != Some(&state) {
                last = Some(state.clone());
                // It may have been retired while it slept.
                if !self.is_current() || self.events.send_blocking(at, Event::AliveLock(state.clone())).is_err() {
                    return;
                }
            }
            match state {
                AliveLock::Alive => self.wait_until_free(),
                AliveLock::Gone => std::thread::sleep(RECHECK),
                AliveLock::Unknown(_) => std::thread::sleep(RECHECK),
            }
        }
    }

    fn is_current(&self) -> bool {
        self.shared.generation.load(Ordering::SeqCst) == self.generation
    }

    /// Sleeps in the kernel until nobody holds the lock exclusively.
    fn wait_until_free(&self) {
        let Ok(file) = open(&self.path) else { return };
        let inode = file.metadata().map_or(0, |metadata| metadata.ino());
        self.shared.inode.store(inode, Ordering::SeqCst);
        self.shared.strays.fetch_add(1, Ordering::SeqCst);
        if flock(&file, FlockOperation::LockShared).is_ok() {
            // Let go at once: Patroni may be about to start.
            drop(file);
        }
        self.shared.strays.fetch_sub(1, Ordering::SeqCst);
        if self.is_current() {
            self.shared.inode.store(0, Ordering::SeqCst);
        }
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
mod tests {
    use super::*;
    use crate::clock::Clock;
    use std::process::{Child, Command};
    use tokio::sync::mpsc;
    use tokio::time::timeout;
    use warden_core::event::Observed;

    /// A real process that holds the lock, like Patroni under flock.
    fn holder(path: &Path) -> Child {
        Command::new("flock").args(["--no-fork", "--timeout", "5"]).arg(path).args(["sleep", "60"]).spawn().unwrap()
    }

    async fn next(events: &mut mpsc::Receiver<Observed>) -> AliveLock {
        let observed = timeout(Duration::from_secs(5), events.recv()).await.expect("no event in 5 s").unwrap();
        match observed.event {
            Event::AliveLock(state) => state,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn the_death_of_the_holder_is_learnt_and_so_is_its_return() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("patroni.alive");
        std::fs::write(&path, "").unwrap();
        let (sender, mut events) = mpsc::channel(16);
        let watcher = tokio::spawn(watch(path.clone(), Held::default(), Events::new(sender, Clock::start())));
        assert!(matches!(next(&mut events).await, AliveLock::Unknown(why) if why.contains("nobody has been seen")));
        let mut first = holder(&path);
        assert_eq!(next(&mut events).await, AliveLock::Alive);
        first.kill().unwrap();
        first.wait().unwrap();
        assert_eq!(next(&mut events).await, AliveLock::Gone);
        let mut second = holder(&path);
        assert_eq!(next(&mut events).await, AliveLock::Alive);
        watcher.abort();
        second.kill().unwrap();
        second.wait().unwrap();
    }

    #[tokio::test]
    async fn a_free_file_in_place_of_the_one_that_was_held_does_not_say_that_its_holder_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("patroni.alive");
        std::fs::write(&path, "").unwrap();
        let mut patroni = holder(&path);
        let (sender, mut events) = mpsc::channel(64);
        let watcher = tokio::spawn(watch(path.clone(), Held::default(), Events::new(sender, Clock::start())));
        while next(&mut events).await != AliveLock::Alive {}
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(matches!(next(&mut events).await, AliveLock::Unknown(_)));
        while let Ok(Some(observed)) = timeout(Duration::from_millis(800), events.recv()).await {
            assert_ne!(observed.event, Event::AliveLock(AliveLock::Gone), "its holder lives, on the file before it");
        }
        watcher.abort();
        patroni.kill().unwrap();
        patroni.wait().unwrap();
    }

    #[tokio::test]
    async fn what_is_not_a_regular_file_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("patroni.alive");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (sender, mut events) = mpsc::channel(16);
        let watcher = tokio::spawn(watch(path, Held::default(), Events::new(sender, Clock::start())));
        assert!(matches!(next(&mut events).await, AliveLock::Unknown(why) if why.contains("regular")));
        watcher.abort();
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_or_was_replaced_proves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("patroni.alive");
        let (sender, mut events) = mpsc::channel(16);
        let watcher = tokio::spawn(watch(path.clone(), Held::default(), Events::new(sender, Clock::start())));
        assert!(matches!(next(&mut events).await, AliveLock::Unknown(why) if why.contains("not there")));
        let mut first = holder(&path);
        assert_eq!(next(&mut events).await, AliveLock::Alive);
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(next(&mut events).await, AliveLock::Unknown(_)), "the holder of a deleted file is unknown");
        let mut second = holder(&path);
        loop {
            if next(&mut events).await == AliveLock::Alive {
                break;
            }
        }
        first.kill().unwrap();
        first.wait().unwrap();
        let quiet = timeout(Duration::from_millis(500), events.recv()).await;
        assert!(quiet.is_err(), "the death of the former holder says nothing about the present one: {quiet:?}");
        second.kill().unwrap();
        second.wait().unwrap();
        assert_eq!(next(&mut events).await, AliveLock::Gone);
        watcher.abort();
    }
}
