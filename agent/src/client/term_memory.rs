//! The agent's memory of its member's leader term, `<state_dir>/term.json`: whether Patroni answered, and whether the
//! agent saw its alive lock held.
//!
//! Both must survive a restart of the agent during a freeze. Silence counts only after an answer, and a free lock
//! proves a death only if it was held before. The file is valid only in the same boot; core demands the same term.

use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use warden_core::event::TermMemory;
use warden_core::types::Zxid;

const FILE: &str = "term.json";

/// Linux's id of the present boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The limit for a read or a write of the file.
const FILE_LIMIT: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    boot_id: String,
    /// The transaction that created the leader key, `0x1f`.
    czxid: String,
    answered: bool,
    lock_was_held: bool,
}

/// Reads the memory. `None` if there is no file, or it is from another boot. The error names the file and the remedy.
pub async fn read(state_dir: &Path) -> Result<Option<TermMemory>, String> {
    let path = state_dir.join(FILE);
    let of = path.clone();
    on_a_thread(&path, "read", move || match std::fs::read(&of) {
        Ok(bytes) => Ok(Some((bytes, std::fs::read_to_string(BOOT_ID)?))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    })
    .await?
    .map_or(Ok(None), |(bytes, boot)| parse(&bytes, boot.trim()).map_err(|why| format!("{}: {why}", path.display())))
}

/// Writes `memory`. The error names the file and the remedy.
pub async fn write(state_dir: &Path, memory: &TermMemory) -> Result<(), String> {
    let path = state_dir.join(FILE);
    let (of, memory) = (path.clone(), memory.clone());
    on_a_thread(&path, "written", move || put(&of, &memory)).await
}

async fn on_a_thread<T: Send + 'static>(
    path: &Path,
    verb: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let why = match timeout(FILE_LIMIT, spawn_blocking(work)).await {
        Ok(Ok(Ok(done))) => return Ok(done),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it takes longer than {} s", FILE_LIMIT.as_secs()),
    };
    Err(format!("{} cannot be {verb}: {why} (state_dir has to be a directory of the agent's own)", path.display()))
}

fn parse(bytes: &[u8], boot: &str) -> Result<Option<TermMemory>, String> {
    let wire: Wire = serde_json::from_slice(bytes).map_err(|error| format!("it is not the agent's own: {error}"))?;
    let digits = wire.czxid.strip_prefix("0x").ok_or("its czxid is not hexadecimal")?;
    let czxid = i64::from_str_radix(digits, 16).map_err(|error| format!("its czxid is no number: {error}"))?;
    let memory = TermMemory { czxid: Zxid(czxid), answered: wire.answered, lock_was_held: wire.lock_was_held };
    Ok((wire.boot_id == boot).then_some(memory))
}

/// Replaces the file atomically: a temporary name in the same directory, fsync, rename, fsync of the directory.
fn put(path: &PathBuf, memory: &TermMemory) -> io::Result<()> {
    let boot_id = std::fs::read_to_string(BOOT_ID)?.trim().to_owned();
    let czxid = format!("{:#x}", memory.czxid.0);
    let wire = Wire { boot_id, czxid, answered: memory.answered, lock_was_held: memory.lock_was_held };
    let bytes = serde_json::to_vec(&wire).map_err(io::Error::other)?;
    let directory = path.parent().ok_or(io::ErrorKind::NotFound)?;
    let temporary = path.with_extension("json.new");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    std::fs::File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> TermMemory {
        TermMemory { czxid: Zxid(0x1f), answered: true, lock_was_held: false }
    }

    #[tokio::test]
    async fn a_written_memory_is_read_back_and_a_new_one_replaces_it() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(read(directory.path()).await, Ok(None), "there is no file yet");
        for memory in [memory(), TermMemory { lock_was_held: true, ..memory() }] {
            write(directory.path(), &memory).await.unwrap();
            assert_eq!(read(directory.path()).await, Ok(Some(memory)));
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn a_file_of_another_boot_is_ignored_and_a_truncated_one_is_an_error() {
        let text = r#"{"boot_id": "a", "czxid": "0x1f", "answered": true, "lock_was_held": false}"#;
        assert_eq!(parse(text.as_bytes(), "a"), Ok(Some(memory())));
        assert_eq!(parse(text.as_bytes(), "b"), Ok(None));
        for torn in
            [&text[..20], "", "{}", r#"{"boot_id": "a", "czxid": "31", "answered": true, "lock_was_held": true}"#]
        {
            assert!(parse(torn.as_bytes(), "a").is_err(), "{torn}");
        }
    }

    #[tokio::test]
    async fn a_missing_directory_is_an_error_that_names_it_and_the_key() {
        let why = write(Path::new("/nowhere"), &memory()).await.unwrap_err();
        assert!(why.contains("/nowhere/term.json") && why.contains("state_dir"), "{why}");
        assert_eq!(read(Path::new("/nowhere")).await, Ok(None));
    }
}
