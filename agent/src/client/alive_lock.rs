//! One look at the alive lock, the file that the local Patroni holds locked as long as it lives.
//!
//! The lock counts only on the inode that the path names now, and only on a local file system. A remote file system may
//! lose or keep a lock for reasons unrelated to the process.

use rustix::fs::{FlockOperation, flock, fstatfs};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use warden_core::event::AliveLock;

/// File systems on which a lock's state does not follow the life of a process on this machine
/// (magic numbers from statfs(2)): NFS, SMB, SMB2, CIFS, 9P, Ceph, FUSE.
const REMOTE_FILE_SYSTEMS: [u32; 7] = [0x6969, 0x517b, 0xfe53_4d42, 0xff53_4d42, 0x0102_1997, 0x00c3_6400, 0x6573_5546];

/// The file that the agent last saw locked (device, inode). Only this file, when free, proves an end: Patroni may hold
/// the file that another one replaced. The watcher and the actors share it.
#[derive(Clone, Debug, Default)]
pub struct LockedFile(Arc<Mutex<Option<(u64, u64)>>>);

impl LockedFile {
    fn get(&self) -> Option<(u64, u64)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the file. An observation of an earlier watcher may be too old.
    pub fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn set(&self, file: (u64, u64)) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
    }
}

/// Checks whether a process holds the lock at `path`. The agent takes a free lock and releases it at once.
/// May block in the kernel for a moment.
pub fn look(path: &Path, locked: &LockedFile) -> AliveLock {
    match try_lock(path) {
        Ok((true, file)) if locked.get() == Some(file) => AliveLock::Gone,
        Ok((true, _)) => AliveLock::Unknown(format!(
            "the agent has not seen a process hold {}: is Patroni started with flock, on this file?",
            path.display()
        )),
        Ok((false, file)) => {
            locked.set(file);
            AliveLock::Alive
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            AliveLock::Unknown(format!("{} is not there: is Patroni started with flock?", path.display()))
        }
        Err(error) => AliveLock::Unknown(format!("{}: {error}", path.display())),
    }
}

/// Whether the file could be locked, and its identity (device, inode).
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

/// Opens the file. Fails if its lock proves nothing about a process on this machine.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    // Before the open: to open a FIFO would block until a process opens it for writing.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    let file = File::open(path)?;
    let kind = u32::try_from(fstatfs(&file)?.f_type).unwrap_or_default();
    if REMOTE_FILE_SYSTEMS.contains(&kind) {
        return Err(io::Error::other("is not on a local file system, so its lock proves nothing"));
    }
    Ok(file)
}

fn must_be_named(file: &File, path: &Path) -> io::Result<()> {
    let (open, named) = (file.metadata()?, std::fs::metadata(path)?);
    if (open.dev(), open.ino()) == (named.dev(), named.ino()) {
        Ok(())
    } else {
        Err(io::Error::other("was replaced during the look"))
    }
}
