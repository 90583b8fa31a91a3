//! PostgreSQL's control file, `global/pg_control`: the state of the server, and the checkpoint of its shutdown.
//!
//! The format is that of `src/include/catalog/pg_control.h`. The fields that are read here are the same from PostgreSQL
//! 11 to 18. They are in the byte order of the machine that wrote them, which is the agent's. The position of the
//! checksum differs between versions, so the reader tries all of them.

use std::path::Path;
use warden_core::event::ShutdownCheckpoint;
use warden_core::types::{Lsn, SystemId, Timeline};

/// The path below the data directory.
const FILE: &str = "global/pg_control";

/// PG_CONTROL_FILE_SIZE.
const SIZE: usize = 8192;

/// PG_CONTROL_VERSION of PostgreSQL 11. Older files have another field before the copy of the checkpoint.
const VERSION_MIN: u32 = 1100;

/// The possible offsets of the checksum, which ends the fields.
const CHECKSUM_OFFSETS: std::ops::Range<usize> = 128..1024;

/// DBState, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// DB_STARTUP: created by initdb, never started.
    Startup,
    /// DB_SHUTDOWNED: a primary that was shut down with a checkpoint.
    ShutDown,
    /// DB_SHUTDOWNED_IN_RECOVERY: a standby that was shut down.
    ShutDownInRecovery,
    /// DB_SHUTDOWNING: a primary during its shutdown checkpoint.
    ShuttingDown,
    /// DB_IN_CRASH_RECOVERY: a primary that takes writes after its recovery.
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

    /// Whether it is the state of a standby.
    pub(super) const fn is_standbys(self) -> bool {
        matches!(self, Self::ShutDownInRecovery | Self::InArchiveRecovery)
    }
}

/// The content of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ControlFile {
    pub state: State,
    /// The last checkpoint. In [`State::ShutDown`] it is the shutdown checkpoint.
    checkpoint: ShutdownCheckpoint,
}

impl ControlFile {
    /// The shutdown checkpoint of a primary that was shut down cleanly.
    pub(super) fn shutdown(self) -> Option<ShutdownCheckpoint> {
        (self.state == State::ShutDown).then_some(self.checkpoint)
    }
}

/// Reads the control file in `data_directory`. May block. A running server writes the file at any time; a read in the
/// middle of a write fails by the checksum.
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
    if version < VERSION_MIN {
        return Err(format!("its version {version} is older than {VERSION_MIN}"));
    }
    let right = |end: &usize| bytes.get(..*end).map(crc32c::crc32c) == u32_at(bytes, *end).ok();
    if !CHECKSUM_OFFSETS.step_by(4).any(|end| right(&end)) {
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
pub(crate) mod tests {
    use super::*;

    /// The fields of real files of PostgreSQL 15. The rest of such a file is zeros.
    pub(crate) const SHUT_DOWN: &[u8] = include_bytes!("../../testdata/pg_control_15_shut_down");
    pub(crate) const RUNNING: &[u8] = include_bytes!("../../testdata/pg_control_15_running");
    pub(crate) const IN_CRASH_RECOVERY: &[u8] = include_bytes!("../../testdata/pg_control_15_in_crash_recovery");
    pub(crate) const IN_ARCHIVE_RECOVERY: &[u8] = include_bytes!("../../testdata/pg_control_15_in_archive_recovery");
    pub(crate) const SHUT_DOWN_IN_RECOVERY: &[u8] =
        include_bytes!("../../testdata/pg_control_15_shut_down_in_recovery");

    fn whole(fields: &[u8]) -> Vec<u8> {
        let mut bytes = fields.to_vec();
        bytes.resize(SIZE, 0);
        bytes
    }

    /// Makes `directory` a data directory with this control file.
    pub(crate) fn write(directory: &Path, fields: &[u8]) {
        std::fs::create_dir_all(directory.join("global")).unwrap();
        std::fs::write(directory.join(FILE), whole(fields)).unwrap();
    }

    /// The output of pg_controldata for [`SHUT_DOWN`].
    pub(crate) const EXPECTED: ShutdownCheckpoint = ShutdownCheckpoint {
        location: Lsn(0x0150_0790),
        timeline: Timeline(1),
        system_id: SystemId(7_712_415_857_458_671_679),
    };

    #[test]
    fn the_reader_agrees_with_pg_controldata() {
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
    fn a_damaged_file_is_an_error() {
        let good = whole(SHUT_DOWN);
        for bit in 0..SHUT_DOWN.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(parse(&bytes).is_err(), "bit {bit} differs");
        }
        for short in [0, 7, 16, 296, 8191] {
            assert!(parse(&good[..short]).unwrap_err().contains("bytes long"));
        }
        let mut old = good.clone();
        old[8..12].copy_from_slice(&1002_u32.to_ne_bytes());
        assert!(parse(&old).unwrap_err().contains("version 1002"));
    }

    #[test]
    fn an_unknown_state_is_an_error() {
        let mut bytes = whole(SHUT_DOWN);
        bytes[16..20].copy_from_slice(&7_u32.to_ne_bytes());
        let end = SHUT_DOWN.len() - 4;
        let checksum = crc32c::crc32c(&bytes[..end]);
        bytes[end..end + 4].copy_from_slice(&checksum.to_ne_bytes());
        assert!(parse(&bytes).unwrap_err().contains("state 7 is not known"));
    }
}
