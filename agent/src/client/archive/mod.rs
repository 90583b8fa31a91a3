//! Archives of WAL in directories: PostgreSQL's own layout, and those of pgBackRest, WAL-G and Barman. Read-only.
//!
//! Each segment is read once, alone, and by any of several threads. `warden-wal` joins and judges them. A new layout
//! is a function in `layout`, and its names are in `name`.

mod content;
mod layout;
mod name;
mod read;
mod state;

use layout::{Entry, Place};
use read::{BUFFER, Seen, Task};
use state::State;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use warden_wal::{Content, File, FileName, Finding, Report, SegmentSize};

pub use state::StateError;

/// What to verify, and how.
#[derive(Debug)]
pub struct Request<'a> {
    /// The directories. They are judged as one archive.
    pub directories: &'a [PathBuf],
    /// The number of threads.
    pub jobs: usize,
    /// The state file.
    pub state: Option<&'a Path>,
    /// Read also what the state knows.
    pub full: bool,
}

/// What was verified.
#[derive(Debug)]
pub struct Verified {
    /// The judgment.
    pub report: Report,
    /// The bytes that were read from files.
    pub read: u64,
    /// The number of files that the state knew.
    pub reused: usize,
    /// What the operator should know beside the report.
    pub notes: Vec<String>,
}

/// A hash as hexadecimal digits.
pub fn hex(hash: &[u8; 32]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Is told how far the verification is.
pub trait Progress: Sync {
    /// This many bytes are to be read.
    fn starts(&self, bytes: u64);
    /// A file of this many bytes was read.
    fn advances(&self, bytes: u64);
}

/// Reads the archive and judges it.
pub fn verify(request: &Request<'_>, progress: &dyn Progress) -> Result<Verified, StateError> {
    let Request { directories, jobs, state: state_path, full } = request;
    let mut notes = Vec::new();
    let mut state = match state_path {
        Some(path) => State::load(path, &mut notes)?,
        None => State::default(),
    };
    let entries = list(directories);
    let hashed = copies(&entries);
    let count = AtomicU64::new(0);
    let mut seen: Vec<Option<Seen>> = entries
        .iter()
        .zip(&hashed)
        .map(|(entry, hashes)| {
            let is_file = entry.place == Place::File && !*full;
            let metadata = is_file.then(|| std::fs::metadata(&entry.path).ok()).flatten()?;
            state.find(entry, &metadata, *hashes)
        })
        .collect();
    let reused = seen.iter().flatten().count();
    let size = size(&entries, &seen);
    let tasks: Vec<(usize, Task<'_>)> = entries
        .iter()
        .zip(&hashed)
        .enumerate()
        .filter(|(nth, _)| seen.get(*nth).is_some_and(Option::is_none))
        .map(|(nth, (entry, hashes))| (nth, Task { entry, hashes: *hashes, size, count: &count }))
        .collect();
    for (nth, read) in work(&tasks, *jobs, progress) {
        if let Some(place) = seen.get_mut(nth) {
            *place = Some(read);
        }
    }
    let mut files = Vec::with_capacity(entries.len());
    for (entry, seen) in entries.iter().zip(seen) {
        let seen = seen.unwrap_or_else(|| Seen::unread(Content::Unreadable("it was not read".to_owned())));
        state.keep(entry, &seen);
        let path = entry.path.to_string_lossy().into_owned();
        files.push(File { path, name: entry.stored.name.clone(), content: seen.content, sha256: seen.sha256 });
    }
    let differences = differences(&entries, &mut files, &count);
    let report = warden_wal::judge(&files, &differences);
    if let Some(path) = state_path
        && let Err(error) = state.save(path)
    {
        notes.push(error.to_string());
    }
    Ok(Verified { report, read: count.load(Ordering::Relaxed), reused, notes })
}

/// The entries of all directories, each path once.
fn list(directories: &[PathBuf]) -> Vec<Entry> {
    let mut known = std::collections::HashSet::new();
    let entries = directories.iter().flat_map(|directory| layout::list(directory));
    entries.filter(|entry| known.insert(entry.path.clone())).collect()
}

/// Which files have a name that another one has, too: their contents are compared.
fn copies(entries: &[Entry]) -> Vec<bool> {
    let mut counts: BTreeMap<&FileName, usize> = BTreeMap::new();
    let is_named = |entry: &&Entry| entry.place == Place::File && !entry.stored.is_other();
    entries.iter().filter(is_named).for_each(|entry| *counts.entry(&entry.stored.name).or_default() += 1);
    entries.iter().map(|entry| counts.get(&entry.stored.name).is_some_and(|count| *count > 1)).collect()
}

/// The size of the archive's segments: what the state knows, or what the first readable segment says.
fn size(entries: &[Entry], seen: &[Option<Seen>]) -> SegmentSize {
    let known = seen.iter().flatten().find_map(|seen| match &seen.content {
        Content::Segment(Finding { size, .. }) => *size,
        _ => None,
    });
    let segments = entries.iter().filter(|entry| entry.place == Place::File && entry.stored.is_segment());
    known.or_else(|| segments.into_iter().find_map(read::size)).unwrap_or(SegmentSize::DEFAULT)
}

/// Reads the files in this many threads.
fn work(tasks: &[(usize, Task<'_>)], jobs: usize, progress: &dyn Progress) -> Vec<(usize, Seen)> {
    let bytes = |task: &Task<'_>| match task.entry.place {
        Place::File if !task.entry.stored.is_other() => std::fs::metadata(&task.entry.path).map_or(0, |it| it.len()),
        _ => 0,
    };
    progress.starts(tasks.iter().map(|(_, task)| bytes(task)).sum());
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::with_capacity(tasks.len()));
    let run = || {
        let mut buffer = vec![0; BUFFER];
        while let Some((nth, task)) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let seen = task.read(&mut buffer);
            progress.advances(bytes(task));
            found.lock().unwrap_or_else(PoisonError::into_inner).push((*nth, seen));
        }
    };
    std::thread::scope(|scope| {
        (1..jobs.clamp(1, tasks.len().max(1))).for_each(|_| drop(scope.spawn(run)));
        run();
    });
    found.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The first byte that differs in each pair of copies. A file that cannot be read again is not judged.
fn differences(entries: &[Entry], files: &mut [File], count: &AtomicU64) -> BTreeMap<(usize, usize), u64> {
    let mut found = BTreeMap::new();
    for (best, other) in warden_wal::compare(files) {
        let Some((one, two)) = entries.get(best).zip(entries.get(other)) else { continue };
        match read::first_difference(one, two, count) {
            Ok(Some(offset)) => drop(found.insert((best, other), offset)),
            Ok(None) => {}
            Err(why) => {
                if let Some(file) = files.get_mut(other) {
                    file.content = Content::Unreadable(why);
                }
            }
        }
    }
    found
}
