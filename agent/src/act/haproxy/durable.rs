//! Files that survive a crash: a temporary name in the same directory, fsync, rename, fsync of the directory.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use tokio::task::spawn_blocking;

/// The hidden file `.NAME.SUFFIX` in the same directory.
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{suffix}"))
}

/// Writes the whole file, or nothing.
pub async fn write(path: &Path, text: &str) -> Result<(), String> {
    let (path, text) = (path.to_owned(), text.to_owned());
    let shown = path.display().to_string();
    let written = spawn_blocking(move || {
        let new = beside(&path, "tmp");
        let outcome = (|| {
            let mut file = std::fs::File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            sync_directory(&path)
        })();
        if outcome.is_err() {
            drop(std::fs::remove_file(&new));
        }
        outcome
    });
    written.await.map_err(|error| error.to_string())?.map_err(|error| format!("{shown} cannot be written: {error}"))
}

/// Removes a file, if it exists.
pub async fn remove(path: &Path) -> Result<(), String> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
        _ => Ok(()),
    }
}

/// Renames `new` to `path`.
pub async fn replace(new: &Path, path: &Path) -> Result<(), String> {
    let (new, path) = (new.to_owned(), path.to_owned());
    let shown = path.display().to_string();
    let moved = spawn_blocking(move || {
        std::fs::rename(&new, &path)?;
        sync_directory(&path)
    });
    moved.await.map_err(|error| error.to_string())?.map_err(|error| format!("{shown} cannot be replaced: {error}"))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| std::fs::File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_written_whole_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("haproxy.cfg");
        write(&path, "one").await.unwrap();
        write(&path, "two").await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
        let nowhere = write(&directory.path().join("nowhere/haproxy.cfg"), "three").await.unwrap_err();
        assert!(nowhere.contains("nowhere/haproxy.cfg cannot be written"), "{nowhere}");
    }
}
