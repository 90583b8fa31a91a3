//! PostgreSQL's control file, `global/pg_control`: in which state it says the server is, and with which record a server
//! that is down was shut down.
//!
//! Layout as in `src/include/catalog/pg_control.h`, the same from PostgreSQL 11 to 18 as far as it is read here, in the
//! byte order of the machine that wrote it, which is ours. Where the checksum is differs between versions: it is found
//! by being right.

use std::path::Path;
use warden_core::event::ShutdownCheckpoint;
use warden_core::types::{Lsn, SystemId, Timeline};

/// Below the data directory.
const FILE: &str = "global/pg_control";

/// PG_CONTROL_FILE_SIZE.
const SIZE: usize = 8192;

/// PG_CONTROL_VERSION of PostgreSQL 11: before it, there was another field in front of the checkpoint's copy.
const OLDEST_VERSION: u32 = 1100;

/// The checksum lies at the end of the fields: never before this, and never behind that.
const CHECKSUM: std::ops::Range<usize> = 128..1024;

/// DBState, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// DB_STARTUP: made by initdb, never started.
    Startup,
    /// DB_SHUTDOWNED: a primary that was shut down with a checkpoint.
    ShutDown,
    /// DB_SHUTDOWNED_IN_RECOVERY: a standby that was shut down.
    ShutDownInRecovery,
    /// DB_SHUTDOWNING: a primary whose shutdown checkpoint is under way.
    ShuttingDown,
    /// DB_IN_CRASH_RECOVERY: takes writes when that is over.
    InCrashRecovery,
    /// DB_IN_ARCHIVE_RECOVERY: a standby that runs, or was killed.
    InArchiveRecovery,
    /// DB_IN_PRODUCTION: a primary that runs, or was killed.
    InProduction,
}

impl State {
    const ALL: [Self; 7] = [
        Self::Startup,
        Self::ShutDown,
        Self::ShutDownInRecovery,
        Self::ShuttingDown,
        Self::InCrashRecovery,
        Self::InArchiveRecovery,
        Self::InProduction,
    ];

    /// Whether it is a standby's.
    pub(super) const fn is_standbys(self) -> bool {
        matches!(self, Self::ShutDownInRecovery | Self::InArchiveRecovery)
    }
}

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ControlFile {
    pub state: State,
    /// The last checkpoint; in [`State::ShutDown`] the one of the shutdown.
    checkpoint: ShutdownCheckpoint,
}

impl ControlFile {
    /// The record with which a primary was shut down cleanly.
    pub(super) fn shutdown(self) -> Option<ShutdownCheckpoint> {
        (self.state == State::ShutDown).then_some(self.checkpoint)
    }
}

/// Reads the control file in `data_directory`. May block. A server that runs writes it at any time, so that it can be
/// caught half written: then the error is about its checksum.
pub(super) fn read(data_directory: &Path) -> Result<ControlFile, String> {
    let path = data_directory.join(FILE);
    let bytes = std::fs::read(&path).map_err(|error| error.to_string());
    bytes.and_then(|bytes| parse(&bytes)).map_err(|why| format!("{}: {why}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<ControlFile, String> {
    if bytes.len() != SIZE {
        return Err(format!("it is {} bytes long and not {SIZE}", bytes.len()));
    }
    let version = u32_at(bytes, 8)?;
    if version < OLDEST_VERSION {
        return Err(format!("its version {version} is older than {OLDEST_VERSION}"));
    }
    let right = |end: &usize| bytes.get(..*end).map(crc32c::crc32c) == u32_at(bytes, *end).ok();
    if !CHECKSUM.step_by(4).any(|end| right(&end)) {
        return Err("its checksum is wrong".to_owned());
    }
    let state = u32_at(bytes, 16)?;
    let known = usize::try_from(state).ok().and_then(|state| State::ALL.get(state));
    let checkpoint = ShutdownCheckpoint {
        location: Lsn(u64_at(bytes, 32)?),
        timeline: Timeline(u32_at(bytes, 48)?),
        system_id: SystemId(u64_at(bytes, 0)?),
    };
    Ok(ControlFile { state: *known.ok_or_else(|| format!("its state {state} is not known"))?, checkpoint })
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, String> {
    let field = bytes.get(offset..).and_then(<[u8]>::first_chunk).ok_or("it ends too early")?;
    Ok(u32::from_ne_bytes(*field))
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, String> {
    let field = bytes.get(offset..).and_then(<[u8]>::first_chunk).ok_or("it ends too early")?;
    Ok(u64::from_ne_bytes(*field))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The fields of real files, of PostgreSQL 15; the rest of such a file is zeros.
    pub(in crate::watch) const SHUT_DOWN: &[u8] = include_bytes!("testdata/pg_control_15_shut_down");
    pub(in crate::watch) const RUNNING: &[u8] = include_bytes!("testdata/pg_control_15_running");
    pub(in crate::watch) const IN_CRASH_RECOVERY: &[u8] = include_bytes!("testdata/pg_control_15_in_crash_recovery");
    pub(in crate::watch) const IN_ARCHIVE_RECOVERY: &[u8] =
        include_bytes!("testdata/pg_control_15_in_archive_recovery");
    pub(in crate::watch) const SHUT_DOWN_IN_RECOVERY: &[u8] =
        include_bytes!("testdata/pg_control_15_shut_down_in_recovery");

    fn whole(fields: &[u8]) -> Vec<u8> {
        let mut bytes = fields.to_vec();
        bytes.resize(SIZE, 0);
        bytes
    }

    /// Makes a data directory of `directory`, as far as it is read.
    pub(in crate::watch) fn write(directory: &Path, fields: &[u8]) {
        std::fs::create_dir_all(directory.join("global")).unwrap();
        std::fs::write(directory.join(FILE), whole(fields)).unwrap();
    }

    /// What pg_controldata says of the file of a server that was shut down.
    pub(in crate::watch) const EXPECTED: ShutdownCheckpoint = ShutdownCheckpoint {
        location: Lsn(0x0150_0790),
        timeline: Timeline(1),
        system_id: SystemId(7_712_415_857_458_671_679),
    };

    #[test]
    fn it_says_what_pg_controldata_says() {
        for (fields, state, standbys) in [
            (SHUT_DOWN, State::ShutDown, false),
            (RUNNING, State::InProduction, false),
            (IN_CRASH_RECOVERY, State::InCrashRecovery, false),
            (IN_ARCHIVE_RECOVERY, State::InArchiveRecovery, true),
            (SHUT_DOWN_IN_RECOVERY, State::ShutDownInRecovery, true),
        ] {
            let file = parse(&whole(fields)).unwrap();
            assert_eq!((file.state, file.state.is_standbys()), (state, standbys));
            assert_eq!(file.shutdown(), (state == State::ShutDown).then_some(EXPECTED), "{state:?}");
        }
    }

    #[test]
    fn a_damaged_file_is_told_and_never_believed() {
        let good = whole(SHUT_DOWN);
        for bit in 0..SHUT_DOWN.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bytes).is_err(), "bit {bit} is another one");
        }
        for short in [0, 7, 16, 296, 8191] {
            assert!(parse(&good[..short]).unwrap_err().contains("bytes long"));
        }
        let mut old = good.clone();
        old[8..12].copy_from_slice(&1002_u32.to_ne_bytes());
        assert!(parse(&old).unwrap_err().contains("version 1002"));
    }

    #[test]
    fn a_state_of_a_newer_postgresql_is_told() {
        let mut bytes = whole(SHUT_DOWN);
        bytes[16..20].copy_from_slice(&7_u32.to_ne_bytes());
        let end = SHUT_DOWN.len() - 4;
        let checksum = crc32c::crc32c(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&checksum.to_ne_bytes());
        assert!(parse(&bytes).unwrap_err().contains("state 7 is not known"));
    }
}
