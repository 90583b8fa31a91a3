//! PostgreSQL's control file, `global/pg_control`: whether a server that is down was shut down cleanly, and with which
//! record.
//!
//! Layout as in `src/include/catalog/pg_control.h`, the same from PostgreSQL 11 to 18 as far as it is read here, in the
//! byte order of the machine that wrote it, which is ours. Where the checksum is differs between versions: it is found
//! by being right.

use std::path::Path;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use warden_core::event::ShutdownCheckpoint;
use warden_core::fact::Reading;
use warden_core::types::{Lsn, SystemId, Timeline};

/// Below the data directory.
const FILE: &str = "global/pg_control";

/// PG_CONTROL_FILE_SIZE.
const SIZE: usize = 8192;

/// PG_CONTROL_VERSION of PostgreSQL 11: before it, there was another field in front of the checkpoint's copy.
const OLDEST_VERSION: u32 = 1100;

/// DBState: DB_SHUTDOWNED, a primary that was shut down with a checkpoint.
const SHUT_DOWN: u32 = 1;

/// The checksum lies at the end of the fields: never before this, and never behind that.
const CHECKSUM: std::ops::Range<usize> = 128..1024;

/// One read of 8 KiB: what takes longer is not waited for.
const LIMIT: Duration = Duration::from_millis(200);

/// Reads the control file in `data_directory`. Absent: the server was not shut down cleanly, or it was a standby.
/// It has to be down: a running server writes the file at any time.
pub async fn read(data_directory: &Path) -> Reading<ShutdownCheckpoint> {
    let path = data_directory.join(FILE);
    let of = path.clone();
    let reading = spawn_blocking(move || std::fs::read(&path));
    let why = match timeout(LIMIT, reading).await {
        Ok(Ok(Ok(bytes))) => match parse(&bytes) {
            Ok(found) => return found.map_or(Reading::Absent, Reading::Present),
            Err(why) => why,
        },
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not read within {} ms", LIMIT.as_millis()),
    };
    Reading::Unreadable(format!("{}: {why}", of.display()))
}

fn parse(bytes: &[u8]) -> Result<Option<ShutdownCheckpoint>, String> {
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
    if u32_at(bytes, 16)? != SHUT_DOWN {
        return Ok(None);
    }
    Ok(Some(ShutdownCheckpoint {
        location: Lsn(u64_at(bytes, 32)?),
        timeline: Timeline(u32_at(bytes, 48)?),
        system_id: SystemId(u64_at(bytes, 0)?),
    }))
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
mod tests {
    use super::*;

    /// The fields of real files, of PostgreSQL 15; the rest of such a file is zeros.
    const SHUT_DOWN_FILE: &[u8] = include_bytes!("testdata/pg_control_15_shut_down");
    const RUNNING_FILE: &[u8] = include_bytes!("testdata/pg_control_15_running");

    fn whole(fields: &[u8]) -> Vec<u8> {
        let mut bytes = fields.to_vec();
        bytes.resize(SIZE, 0);
        bytes
    }

    /// What pg_controldata says of it.
    const EXPECTED: ShutdownCheckpoint = ShutdownCheckpoint {
        location: Lsn(0x0150_0790),
        timeline: Timeline(1),
        system_id: SystemId(7_712_415_857_458_671_679),
    };

    #[test]
    fn it_says_what_pg_controldata_says() {
        assert_eq!(parse(&whole(SHUT_DOWN_FILE)), Ok(Some(EXPECTED)));
        assert_eq!(parse(&whole(RUNNING_FILE)), Ok(None), "a server that runs, or was killed");
    }

    #[test]
    fn a_damaged_file_is_told_and_never_believed() {
        let good = whole(SHUT_DOWN_FILE);
        for bit in 0..SHUT_DOWN_FILE.len() * 8 {
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

    #[tokio::test]
    async fn it_is_found_in_the_data_directory() {
        let directory = tempfile::tempdir().unwrap();
        let Reading::Unreadable(why) = read(directory.path()).await else { panic!() };
        assert!(why.contains("global/pg_control: No such file"), "{why}");
        std::fs::create_dir(directory.path().join("global")).unwrap();
        std::fs::write(directory.path().join(FILE), whole(SHUT_DOWN_FILE)).unwrap();
        assert_eq!(read(directory.path()).await, Reading::Present(EXPECTED));
        std::fs::write(directory.path().join(FILE), whole(RUNNING_FILE)).unwrap();
        assert_eq!(read(directory.path()).await, Reading::Absent);
    }
}
