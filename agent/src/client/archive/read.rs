//! Reads a file of an archive and says what it is. Memory is bounded: one buffer, and the state of a decompression.

use super::content::{Stream, StreamError};
use super::layout::{Entry, Place};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use warden_wal::{Content, FileName, Finding, History, Lsn, Reader, SegmentName, SegmentSize, Verdict};

/// The bytes that are read at once: less than a processor core's cache has.
pub(super) const BUFFER: usize = 128 << 10;

/// The longest history file or label of a base backup that is read.
const SMALL_MAX: u64 = 1 << 20;

/// The size of the largest segment.
const SEGMENT_MAX: u64 = 1 << 30;

/// What was read of a file.
pub(super) struct Seen {
    pub content: Content,
    /// The SHA-256 of the uncompressed content, if it was asked for and all of it was read.
    pub sha256: Option<[u8; 32]>,
    /// The text of a history.
    pub text: Option<String>,
    /// The file's metadata, if it was read to its end and did not change meanwhile.
    pub metadata: Option<Metadata>,
}

impl Seen {
    pub(super) const fn unread(content: Content) -> Self {
        Self { content, sha256: None, text: None, metadata: None }
    }
}

/// What a reader needs to know beside the file.
pub(super) struct Task<'a> {
    pub entry: &'a Entry,
    /// Hash the content.
    pub hashes: bool,
    /// The size of the archive's segments, which counts for files that do not say theirs.
    pub size: SegmentSize,
    pub count: &'a AtomicU64,
}

impl Task<'_> {
    /// Reads the file, with the caller's buffer.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Seen {
        match &self.entry.place {
            Place::Ignored(what) => return Seen::unread(Content::Other(what.clone())),
            Place::Unreadable(why) => return Seen::unread(Content::Unreadable(why.clone())),
            Place::File => {}
        }
        let stored = &self.entry.stored;
        match &stored.name {
            FileName::Segment(name) | FileName::Partial(name) => self.segment(*name, buffer),
            FileName::Backup(..) if !self.hashes => Seen::unread(Content::Backup),
            FileName::History(_) | FileName::Backup(..) => self.small(buffer),
            FileName::Other(_) => Seen::unread(Content::Other("not a file of PostgreSQL's".to_owned())),
        }
    }

    fn segment(&self, name: SegmentName, buffer: &mut [u8]) -> Seen {
        let stored = &self.entry.stored;
        let (mut stream, before) = match open(&self.entry.path)
            .and_then(|(file, metadata)| Ok((Stream::new(file, stored.suffix, self.count).map_err(why)?, metadata)))
        {
            Ok(opened) => opened,
            Err(why) => return Seen::unread(Content::Unreadable(why)),
        };
        let mut reader = Reader::new(name, self.size, None, None);
        let mut sha256 = self.hashes.then(Sha256::new);
        let mut sha1 = stored.sha1.map(|expected| (Sha1::new(), expected));
        let finding = loop {
            let read = match stream.read(buffer) {
                Ok(read) => buffer.get(..read).unwrap_or_default(),
                Err(StreamError::Unreadable(why)) => return Seen::unread(Content::Unreadable(why)),
                Err(StreamError::Cut(why)) => break reader.finish_damaged(true, why),
                Err(StreamError::Damaged(why)) => break reader.finish_damaged(false, why),
            };
            // A compressed file may have any length. Its rest is not read.
            if read.is_empty() || reader.is_judged() {
                break reader.finish();
            }
            reader.push(read);
            sha256.iter_mut().for_each(|hash| hash.update(read));
            sha1.iter_mut().for_each(|(hash, _)| hash.update(read));
        };
        let is_other = sha1.is_some_and(|(hash, expected)| hash.finalize()[..] != expected);
        let finding = if is_other { other_checksum(finding, name, self.size) } else { finding };
        let sha256 = sha256.map(|hash| hash.finalize().into());
        Seen { content: Content::Segment(finding), sha256, text: None, metadata: self.unchanged(&before) }
    }

    /// A history file, or the label of a base backup.
    fn small(&self, buffer: &mut [u8]) -> Seen {
        let is_history = matches!(self.entry.stored.name, FileName::History(_));
        let (bytes, before) = match self.all(buffer) {
            Ok(read) => read,
            Err(StreamError::Cut(why) | StreamError::Damaged(why)) if is_history => {
                return Seen::unread(Content::History(Err(why)));
            }
            Err(error) => return Seen::unread(Content::Unreadable(why(error))),
        };
        let sha256 = Some(Sha256::digest(&bytes).into());
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let FileName::History(timeline) = self.entry.stored.name else {
            return Seen { content: Content::Backup, sha256, text: None, metadata: self.unchanged(&before) };
        };
        Seen { content: history(timeline, &text), sha256, text: Some(text), metadata: self.unchanged(&before) }
    }

    fn all(&self, buffer: &mut [u8]) -> Result<(Vec<u8>, Metadata), StreamError> {
        let (file, metadata) = open(&self.entry.path).map_err(StreamError::Unreadable)?;
        let mut stream = Stream::new(file, self.entry.stored.suffix, self.count)?;
        let mut bytes = Vec::new();
        loop {
            let read = stream.read(buffer)?;
            if read == 0 {
                return Ok((bytes, metadata));
            }
            bytes.extend_from_slice(buffer.get(..read).unwrap_or_default());
            if bytes.len() as u64 > SMALL_MAX {
                let why = format!("the file has more than {SMALL_MAX} bytes, which no file of its kind has");
                return Err(StreamError::Damaged(why));
            }
        }
    }

    fn unchanged(&self, before: &Metadata) -> Option<Metadata> {
        let after = std::fs::metadata(&self.entry.path).ok()?;
        (super::state::Key::of(before) == super::state::Key::of(&after)).then_some(after)
    }
}

/// The history with this text.
pub(super) fn history(timeline: u32, text: &str) -> Content {
    Content::History(History::parse(timeline, text).map_err(|error| error.to_string()))
}

fn why(error: StreamError) -> String {
    match error {
        StreamError::Unreadable(why) | StreamError::Cut(why) | StreamError::Damaged(why) => why,
    }
}

/// Opens a regular file. A FIFO that took its place since it was listed is not waited for.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), String> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(|error| format!("cannot be opened: {error}"))?;
    let metadata = file.metadata().map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    Ok((file, metadata))
}

/// The records are right, and the content is not the one that the name has the SHA-1 of.
fn other_checksum(finding: Finding, name: SegmentName, size: SegmentSize) -> Finding {
    if matches!(finding.verdict, Verdict::Corrupt | Verdict::Short | Verdict::Unreadable) {
        return finding;
    }
    let end: Lsn = name.start(finding.size.unwrap_or(size)).unwrap_or_default();
    let reason = "the content does not have the SHA-1 that the name has".to_owned();
    Finding { verdict: Verdict::Corrupt, end, reason, carry: None, head: None, ..finding }
}

/// The offset of the first byte that differs in the contents of two files; the end of the shorter one, if that is a
/// part of the other; `None` if they are equal.
pub(super) fn first_difference(one: &Entry, two: &Entry, count: &AtomicU64) -> Result<Option<u64>, String> {
    let stream = |entry: &Entry| {
        let (file, _) = open(&entry.path)?;
        Stream::new(file, entry.stored.suffix, count).map_err(why)
    };
    let (mut one, mut two) = (stream(one)?, stream(two)?);
    let (mut first, mut second) = (vec![0; BUFFER], vec![0; BUFFER]);
    let mut at = 0;
    loop {
        let (read, other) = (fill(&mut one, &mut first)?, fill(&mut two, &mut second)?);
        if let Some(nth) = read.iter().zip(other).position(|(one, two)| one != two) {
            return Ok(Some(at + nth as u64));
        }
        if read.len() != other.len() {
            return Ok(Some(at + read.len().min(other.len()) as u64));
        }
        at += read.len() as u64;
        if read.is_empty() {
            return Ok(None);
        }
        if at > SEGMENT_MAX {
            return Ok(Some(at));
        }
    }
}

/// Fills the buffer, unless the content ends. A content that is damaged from there on ends there.
fn fill<'a>(stream: &mut Stream<'_>, buffer: &'a mut [u8]) -> Result<&'a [u8], String> {
    let mut read = 0;
    while let Some(rest) = buffer.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match stream.read(rest) {
            Ok(0) | Err(StreamError::Cut(_) | StreamError::Damaged(_)) => break,
            Ok(more) => read += more,
            Err(StreamError::Unreadable(why)) => return Err(why),
        }
    }
    Ok(buffer.get(..read).unwrap_or_default())
}

/// The size of segments, by the first page of this file.
pub(super) fn size(entry: &Entry) -> Option<SegmentSize> {
    let count = AtomicU64::new(0);
    let (file, _) = open(&entry.path).ok()?;
    let mut stream = Stream::new(file, entry.stored.suffix, &count).ok()?;
    let mut first = [0; 64];
    warden_wal::size_in_first_page(fill(&mut stream, &mut first).ok()?)
}
