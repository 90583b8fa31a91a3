//! The state file of `warden archive verify --state`: the findings on each file, so that old bytes are not read again.
//!
//! The first line has the format's version and the CRC-32C of the rest, which is JSON. A file without that line is not
//! ours, and is never replaced. A damaged one, or one of another version, is replaced after a note.

use super::layout::Entry;
use super::read::{self, Seen};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use warden_wal::{Content, FileName, Finding, SegmentSize, Verdict, Version};

/// The first line is this, the version, and the CRC.
const MARK: &str = "warden archive state";

/// The version of the format.
const VERSION: u32 = 1;

/// A file that was written later than this before it was read is read again the next time.
const AGE_MIN: Duration = Duration::from_secs(2);

/// What has to be the same for a file to be the same: its place, its length and its time in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Key {
    device: u64,
    inode: u64,
    size: u64,
    mtime: i64,
    mtime_ns: i64,
}

impl Key {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            mtime: metadata.mtime(),
            mtime_ns: metadata.mtime_nsec(),
        }
    }
}

/// What was found in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    key: Key,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    segment: Option<Segment>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    history: Option<String>,
}

/// A finding on a segment that was read alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Segment {
    verdict: String,
    end: String,
    reason: String,
    carry: Option<String>,
    head: Option<String>,
    timeline: u32,
    version: Option<u16>,
    system: Option<u64>,
    size: Option<u64>,
    records: u64,
}

impl Segment {
    fn of(finding: &Finding) -> Self {
        Self {
            verdict: finding.verdict.name().to_owned(),
            end: finding.end.to_string(),
            reason: finding.reason.clone(),
            carry: finding.carry.as_ref().map(ToString::to_string),
            head: finding.head.as_ref().map(ToString::to_string),
            timeline: finding.timeline,
            version: finding.version.map(Version::major),
            system: finding.system,
            size: finding.size.map(SegmentSize::bytes),
            records: finding.records,
        }
    }

    /// `None` if a value is none that was written.
    fn finding(&self) -> Option<Finding> {
        let Self { verdict, end, reason, carry, head, timeline, version, system, size, records } = self;
        Some(Finding {
            verdict: Verdict::of_name(verdict)?,
            end: end.parse().ok()?,
            reason: reason.clone(),
            carry: carry.as_ref().map(|text| text.parse()).transpose().ok()?,
            head: head.as_ref().map(|text| text.parse()).transpose().ok()?,
            timeline: *timeline,
            version: version.map(|major| Version::of_major(major).ok_or(())).transpose().ok()?,
            system: *system,
            size: size.map(|bytes| SegmentSize::new(bytes).ok_or(())).transpose().ok()?,
            records: *records,
        })
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Wire {
    files: HashMap<String, Known>,
}

/// What earlier runs found.
#[derive(Debug, Default)]
pub(super) struct State {
    old: HashMap<String, Known>,
    new: HashMap<String, Known>,
}

/// The state file is not ours, or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct StateError {
    path: PathBuf,
    why: String,
}

impl State {
    /// Reads the file. A file that is damaged or of another version counts as none; the note says so.
    pub(super) fn load(path: &Path, notes: &mut Vec<String>) -> Result<Self, StateError> {
        let error = |why: String| StateError { path: path.to_owned(), why };
        if !path.try_exists().map_err(|found| error(format!("cannot be read: {found}")))? {
            return Ok(Self::default());
        }
        // A FIFO would be waited for.
        let (mut file, _) = read::open(path).map_err(error)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|found| error(format!("cannot be read: {found}")))?;
        // The file may have been cut off in its first line.
        let mark = MARK.as_bytes();
        if !bytes.starts_with(mark) && !mark.starts_with(&bytes) {
            let why = "is no state file of `warden archive verify`: name another one, or remove it";
            return Err(error(why.to_owned()));
        }
        match parse(&bytes) {
            Ok(Wire { files }) => Ok(Self { old: files, new: HashMap::new() }),
            Err(why) => {
                notes.push(format!("{}: {why}; every file is read, and the state is replaced", path.display()));
                Ok(Self::default())
            }
        }
    }

    /// What was found in the file, if it is the same, and if its hash is known or not needed.
    pub(super) fn find(&self, entry: &Entry, metadata: &Metadata, hashes: bool) -> Option<Seen> {
        let known = self.old.get(&key(entry)?)?;
        if known.key != Key::of(metadata) || (hashes && known.sha256.is_none()) {
            return None;
        }
        let content = match (&entry.stored.name, &known.segment, &known.history) {
            (FileName::Segment(_) | FileName::Partial(_), Some(segment), _) => Content::Segment(segment.finding()?),
            (FileName::History(timeline), _, Some(text)) => read::history(*timeline, text),
            (FileName::Backup(..), None, None) => Content::Backup,
            _ => return None,
        };
        let sha256 = known.sha256.as_ref().map(|text| bytes(text)).transpose().ok()?;
        Some(Seen { content, sha256, text: known.history.clone(), metadata: Some(metadata.clone()) })
    }

    /// Keeps what was found, if all of the file was read and it did not change meanwhile.
    pub(super) fn keep(&mut self, entry: &Entry, seen: &Seen) {
        let (Some(metadata), Some(path)) = (&seen.metadata, key(entry)) else { return };
        // A file system may give the same time to a write that follows at once.
        if !metadata.modified().is_ok_and(|time| time.elapsed().is_ok_and(|age| age >= AGE_MIN)) {
            return;
        }
        let segment = match &seen.content {
            // Without a readable first page the verdict depends on the other files' size of segments.
            Content::Segment(Finding { size: None, .. }) => return,
            Content::Segment(finding) => Some(Segment::of(finding)),
            _ => None,
        };
        let sha256 = seen.sha256.as_ref().map(super::hex);
        self.new.insert(path, Known { key: Key::of(metadata), sha256, segment, history: seen.text.clone() });
    }

    /// Writes what was kept: a temporary name in the same directory, fsync, rename, fsync of the directory.
    pub(super) fn save(self, path: &Path) -> Result<(), StateError> {
        let put = || -> io::Result<()> {
            let json = serde_json::to_vec(&Wire { files: self.new }).map_err(io::Error::other)?;
            let folder = match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() => folder,
                _ => Path::new("."),
            };
            let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_string_lossy();
            // Several runs may end at once.
            let temporary = folder.join(format!(".{name}.{}.new", std::process::id()));
            let written = write(&temporary, &json).and_then(|()| fs::rename(&temporary, path));
            if written.is_err() {
                drop(fs::remove_file(&temporary));
            }
            written?;
            File::open(folder)?.sync_all()
        };
        put().map_err(|error| StateError { path: path.to_owned(), why: format!("cannot be written: {error}") })
    }
}

fn write(path: &Path, json: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    writeln!(file, "{MARK} {VERSION} {:08x}", crc32c::crc32c(json))?;
    file.write_all(json)?;
    file.sync_all()
}

/// The absolute path of the file, if it is text.
fn key(entry: &Entry) -> Option<String> {
    std::path::absolute(&entry.path).ok()?.into_os_string().into_string().ok()
}

fn bytes(text: &str) -> Result<[u8; 32], ()> {
    let mut bytes = [0; 32];
    for (nth, byte) in bytes.iter_mut().enumerate() {
        *byte = text.get(2 * nth..2 * nth + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or(())?;
    }
    Ok(bytes)
}

fn parse(bytes: &[u8]) -> Result<Wire, String> {
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let text = std::str::from_utf8(line).unwrap_or_default();
    let json = bytes.get(line.len() + 1..).ok_or("the state is cut off")?;
    let mut words = text.get(MARK.len()..).unwrap_or_default().split_ascii_whitespace();
    let (version, crc) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    if version != VERSION.to_string() {
        return Err(format!("the state is of version {version:?}, and this is version {VERSION}"));
    }
    if crc != format!("{:08x}", crc32c::crc32c(json)) {
        return Err("the state is damaged: its checksum does not match".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| format!("the state is damaged: {error}"))
}
