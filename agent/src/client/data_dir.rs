//! PostgreSQL's data directory, if the agent can read it: evidence about a server that accepts no session.
//!
//! The agent writes nothing there. A volume may hang, so each look has a time limit and a thread of its own. Only one
//! look runs at a time, so that a volume that hangs for a day occupies one thread.

use super::control_file::{self, ControlFile};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use warden_core::event::ShutdownCheckpoint;
use warden_core::fact::Reading;

/// The limit for one look: a read of 8 KiB and three look-ups of names.
const LOOK_LIMIT: Duration = Duration::from_millis(200);

/// The pause before a second read, because the server may have been writing its control file.
const CONTROL_FILE_RETRY_PAUSE: Duration = Duration::from_millis(10);

const _: () = assert!(CONTROL_FILE_RETRY_PAUSE.as_millis() < LOOK_LIMIT.as_millis());

/// Either file makes a starting server a standby (from PostgreSQL 12 on).
const SIGNAL_FILES: [&str; 2] = ["standby.signal", "recovery.signal"];

/// The file with the postmaster's process. The postmaster creates it before its sockets, and removes it after them.
const PID_FILE: &str = "postmaster.pid";

/// The data directory. Clones share the limit of one look at a time.
#[derive(Clone, Debug)]
pub struct DataDir {
    path: PathBuf,
    looking: Arc<Semaphore>,
}

impl DataDir {
    /// The directory at `path`, which need not exist.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), looking: Arc::new(Semaphore::new(1)) }
    }

    /// The shutdown checkpoint. Absent if the shutdown was not clean, the server was a standby, or it runs.
    pub async fn shutdown(&self) -> Reading<ShutdownCheckpoint> {
        match self.look(control_file).await {
            Ok(file) => file.shutdown().map_or(Reading::Absent, Reading::Present),
            Err(why) => Reading::Unreadable(why),
        }
    }

    /// Whether a server that starts here is a standby, by its signal files or the state in its control file. The error
    /// names the file that the agent could not read.
    pub async fn is_standby(&self) -> Result<bool, String> {
        self.look(|path| {
            // In this order, because the server removes the signal file before the state changes.
            for signal in SIGNAL_FILES {
                if is_there(&path.join(signal))? {
                    return Ok(true);
                }
            }
            Ok(control_file(path)?.state.is_standbys())
        })
        .await
    }

    /// Whether there is a `postmaster.pid`. Fails if the control file cannot be read: the directory may then be no data
    /// directory, or no longer.
    pub async fn has_pid_file(&self) -> Result<bool, String> {
        self.look(|path| {
            control_file(path)?;
            is_there(&path.join(PID_FILE))
        })
        .await
    }

    async fn look<T: Send + 'static>(
        &self,
        looking: impl FnOnce(&Path) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let (turn, path) = (Arc::clone(&self.looking), self.path.clone());
        let looked = async {
            let turn = turn.acquire_owned().await.map_err(|error| error.to_string())?;
            // The turn ends with the look, and not with the time limit.
            let looked = spawn_blocking(move || {
                let looked = looking(&path);
                drop(turn);
                looked
            });
            looked.await.map_err(|error| error.to_string())?
        };
        let late = || Err(format!("{}: not read within {} ms", self.path.display(), LOOK_LIMIT.as_millis()));
        timeout(LOOK_LIMIT, looked).await.unwrap_or_else(|_| late())
    }
}

fn control_file(path: &Path) -> Result<ControlFile, String> {
    control_file::read(path).or_else(|_| {
        std::thread::sleep(CONTROL_FILE_RETRY_PAUSE);
        control_file::read(path)
    })
}

fn is_there(path: &Path) -> Result<bool, String> {
    path.try_exists().map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::control_file::tests::{
        EXPECTED, IN_ARCHIVE_RECOVERY, IN_CRASH_RECOVERY, RUNNING, SHUT_DOWN, SHUT_DOWN_IN_RECOVERY, write,
    };
    use super::*;

    #[tokio::test]
    async fn a_clean_shutdown_is_reported_with_its_checkpoint() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = DataDir::new(directory.path());
        let Reading::Unreadable(why) = data_dir.shutdown().await else { panic!() };
        assert!(why.contains("global/pg_control: No such file"), "{why}");
        write(directory.path(), SHUT_DOWN);
        assert_eq!(data_dir.shutdown().await, Reading::Present(EXPECTED));
        write(directory.path(), RUNNING);
        assert_eq!(data_dir.shutdown().await, Reading::Absent);
    }

    #[tokio::test]
    async fn a_server_that_starts_is_a_standby_by_its_signal_file_or_its_control_file() {
        for (fields, signal, standby) in [
            (RUNNING, None, false),
            (SHUT_DOWN, None, false),
            (IN_CRASH_RECOVERY, None, false),
            (IN_ARCHIVE_RECOVERY, None, true),
            (SHUT_DOWN_IN_RECOVERY, None, true),
            // A crashed primary that Patroni starts as a standby.
            (RUNNING, Some("standby.signal"), true),
            (SHUT_DOWN, Some("recovery.signal"), true),
            (RUNNING, Some("backup_label"), false),
        ] {
            let directory = tempfile::tempdir().unwrap();
            write(directory.path(), fields);
            if let Some(signal) = signal {
                std::fs::write(directory.path().join(signal), "").unwrap();
            }
            let control = control_file::read(directory.path()).unwrap();
            assert_eq!(DataDir::new(directory.path()).is_standby().await, Ok(standby), "{control:?} {signal:?}");
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = DataDir::new(&directory.path().join("nowhere"));
        assert!(nowhere.is_standby().await.unwrap_err().contains("nowhere/global/pg_control: No such file"));
        assert!(nowhere.has_pid_file().await.is_err());
        // An unmounted volume is an empty directory.
        let empty = DataDir::new(directory.path());
        assert!(empty.is_standby().await.is_err() && empty.has_pid_file().await.is_err());
        // A symbolic link to itself.
        write(directory.path(), RUNNING);
        std::os::unix::fs::symlink("standby.signal", directory.path().join("standby.signal")).unwrap();
        assert!(empty.is_standby().await.unwrap_err().contains("standby.signal"));
        // A full disk truncated the file.
        std::fs::remove_file(directory.path().join("standby.signal")).unwrap();
        std::fs::write(directory.path().join("global/pg_control"), "").unwrap();
        assert!(empty.is_standby().await.unwrap_err().contains("0 bytes long"));
    }

    #[tokio::test]
    async fn a_volume_that_hangs_occupies_one_thread_and_delays_no_caller() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("global")).unwrap();
        // An open of a pipe for reading blocks until a process opens it for writing.
        rustix::fs::mknodat(
            rustix::fs::CWD,
            directory.path().join("global/pg_control"),
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        let data_dir = DataDir::new(directory.path());
        let began = std::time::Instant::now();
        for _ in 0..3 {
            assert!(data_dir.clone().is_standby().await.unwrap_err().contains("not read within 200 ms"));
        }
        assert!(began.elapsed() < LOOK_LIMIT * 5, "{:?}", began.elapsed());
        assert_eq!(data_dir.looking.available_permits(), 0, "the first look is the only one");
        // The hang ends: the open returns, and the read finds the end of the pipe.
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while data_dir.looking.available_permits() == 0 {
            assert!(std::time::Instant::now() < deadline, "it ends with the hang");
            drop(rustix::fs::open(directory.path().join("global/pg_control"), flags, rustix::fs::Mode::empty()));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_pid_file_is_found() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), RUNNING);
        let data_dir = DataDir::new(directory.path());
        assert_eq!(data_dir.has_pid_file().await, Ok(false));
        std::fs::write(directory.path().join(PID_FILE), "1\n").unwrap();
        assert_eq!(data_dir.has_pid_file().await, Ok(true));
    }
}
