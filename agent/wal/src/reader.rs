//! The verdict on a segment file, from its bytes in order.

mod pages;

use crate::link::{Carry, Head, Rest, SWITCHED};
use crate::noise::Noise;
use crate::page::{LONG, PAGE, SHORT, u32_at, u64_at};
use crate::record::{HEADER, Record};
use crate::verdict::{Finding, Verdict};
use crate::{Lsn, SegmentName, SegmentSize, Version};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};

/// Where the reader is, once the header of the page is read.
#[derive(Clone, Debug)]
enum Mode {
    /// In records.
    Records,
    /// In zeros since this position, after an `XLOG_SWITCH` or not.
    Zeros { since: Lsn, switched: bool },
    /// In what an older segment left, since this position.
    Old { since: Lsn, address: Lsn },
    /// The verdict is clear.
    Judged(Verdict, Lsn, String),
}

/// Judges a segment file. Give it the file's bytes in order with [`Reader::push`], in parts of any size, and then call
/// [`Reader::finish`].
#[derive(Clone, Debug)]
pub struct Reader {
    name: SegmentName,
    size: SegmentSize,
    start: Lsn,
    page_size: u64,
    expected_system: Option<u64>,
    version: Option<Version>,
    system: Option<u64>,
    header_size: Option<SegmentSize>,
    /// The offset in the file.
    at: u64,
    page_header: [u8; LONG],
    /// The bytes of the page's header that are read, and that it has; equal in the page's body.
    page_header_read: (usize, usize),
    timeline: u32,
    previous: Option<Lsn>,
    rest: Rest,
    /// What the segment before has to leave, where it was not given.
    head: Option<Head>,
    mode: Mode,
    records: u64,
    /// The bytes after a first record that is not right.
    noise: Option<Box<Noise>>,
}

impl Reader {
    /// A reader of the segment `name`. `size` counts until the file's own first page gives another. `carry` is what the
    /// segment before left; without it the first record's beginning is unknown, and is not verified. `system`: the
    /// cluster's system identifier, if it is known.
    pub fn new(name: SegmentName, size: SegmentSize, carry: Option<Carry>, system: Option<u64>) -> Self {
        let mut reader = Self {
            name,
            size,
            start: Lsn(0),
            page_size: PAGE,
            expected_system: system,
            version: None,
            system: None,
            header_size: None,
            at: 0,
            page_header: [0; LONG],
            page_header_read: (0, SHORT),
            timeline: 0,
            previous: None,
            rest: Rest::Unseen(0),
            head: None,
            mode: Mode::Records,
            records: 0,
            noise: None,
        };
        match name.start(size) {
            Some(start) => reader.start = start,
            None => reader.corrupt(Lsn(0), format!("no segment of {} bytes has this name", size.bytes())),
        }
        if let Some(carry) = carry.filter(|carry| carry.next == reader.start && carry.timeline <= name.timeline) {
            reader.timeline = carry.timeline;
            reader.previous = carry.previous;
            reader.rest = carry.rest;
        }
        reader
    }

    /// Takes the next bytes of the file.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (read, whole) = self.page_header_read;
            if matches!(self.mode, Mode::Judged(..)) {
                self.skip(bytes);
                return;
            }
            if read < whole {
                bytes = self.take_page_header(bytes);
                continue;
            }
            let left = self.page_size - self.at % self.page_size;
            let (part, rest) = bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            bytes = rest;
            self.take_body(part);
            if self.at.is_multiple_of(self.page_size) {
                self.page_header_read = (0, SHORT);
            }
        }
    }

    /// The verdict, once all bytes of the file were given.
    pub fn finish(self) -> Finding {
        let end_of_segment = Lsn(self.start.0.saturating_add(self.size.bytes()));
        let is_short = self.at < self.size.bytes();
        let is_long = self.at > self.size.bytes();
        let (verdict, end, reason) = match &self.mode {
            Mode::Judged(Verdict::Corrupt, ..) if self.noise.as_ref().is_some_and(|noise| noise.is_noise()) => {
                let reason = "the page header is right, and no record is: encrypted";
                (Verdict::Unreadable, self.start, reason.to_string())
            }
            Mode::Judged(verdict, end, reason) => (*verdict, *end, reason.clone()),
            // PostgreSQL restores no file of another length.
            _ if is_long => (
                Verdict::Corrupt,
                self.start,
                format!("the file has at least {} bytes, and a segment has {}", self.at, self.size.bytes()),
            ),
            _ if is_short => (Verdict::Short, self.valid_end(), format!("{} of {} bytes", self.at, self.size.bytes())),
            Mode::Old { since, address } => {
                (Verdict::Recycled, *since, format!("from there on the content is that of {address}"))
            }
            Mode::Zeros { switched: true, .. } => (Verdict::Switched, end_of_segment, SWITCHED.to_string()),
            Mode::Zeros { since, .. } => (Verdict::Partial, *since, "zeros from there on".to_string()),
            Mode::Records => (Verdict::Complete, end_of_segment, format!("{} records", self.records)),
        };
        let carry = match verdict {
            Verdict::Complete | Verdict::Switched => {
                Some(Carry { next: end_of_segment, timeline: self.timeline, previous: self.previous, rest: self.rest })
            }
            _ => None,
        };
        let Self { version, system, header_size: size, records, head, timeline, .. } = self;
        let head = head.filter(|_| !matches!(verdict, Verdict::Foreign | Verdict::Unreadable));
        Finding { verdict, end, reason, carry, head, timeline, version, system, size, records }
    }

    /// The verdict, where the file cannot be read further: its compression is damaged there, or cut off.
    pub fn finish_damaged(self, is_cut: bool, why: String) -> Finding {
        let end = self.valid_end();
        let finding = self.finish();
        match finding.verdict {
            Verdict::Corrupt | Verdict::Unreadable | Verdict::Foreign => finding,
            _ => {
                let verdict = if is_cut { Verdict::Short } else { Verdict::Corrupt };
                Finding { verdict, end, reason: why, carry: None, ..finding }
            }
        }
    }

    /// Whether no further byte changes the verdict: it is clear, or the file has more bytes than a segment.
    pub fn is_judged(&self) -> bool {
        let is_clear = matches!(self.mode, Mode::Judged(..)) && self.noise.as_ref().is_none_or(|noise| noise.is_full());
        is_clear || self.at > self.size.bytes()
    }

    fn here(&self) -> Lsn {
        Lsn(self.start.0.saturating_add(self.at))
    }

    /// The end of the last whole record.
    fn valid_end(&self) -> Lsn {
        match (&self.mode, &self.rest) {
            (Mode::Zeros { since, .. } | Mode::Old { since, .. }, _) => *since,
            (_, Rest::Of(record)) => record.start,
            (_, Rest::Unseen(1..)) => self.start,
            _ => self.here(),
        }
    }

    fn corrupt(&mut self, since: Lsn, reason: String) {
        if self.records == 0 && self.system.is_some() {
            self.noise = Some(Box::new(Noise::new()));
        }
        self.mode = Mode::Judged(Verdict::Corrupt, since, reason);
    }

    /// Takes bytes that do not change the verdict.
    fn skip(&mut self, bytes: &[u8]) {
        if let Some(noise) = &mut self.noise {
            noise.take(self.at, self.page_size, bytes);
        }
        self.at = self.at.saturating_add(bytes.len() as u64);
    }

    /// The start of the record that goes on at this position, or the position.
    fn record_at(&self, here: Lsn) -> Lsn {
        if let Rest::Of(record) = &self.rest { record.start } else { here }
    }

    /// Takes bytes of one page after its header.
    fn take_body(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.mode {
                Mode::Records => {
                    bytes = self.take_whole_records(bytes);
                    if !bytes.is_empty() {
                        bytes = self.take_record(bytes);
                    }
                }
                Mode::Zeros { since, .. } => {
                    if let Some(nth) = first_nonzero(bytes) {
                        let place = Lsn(self.here().0 + nth as u64);
                        self.corrupt(since, format!("zeros, and then something else at {place}"));
                    }
                    self.at += bytes.len() as u64;
                    return;
                }
                Mode::Old { .. } | Mode::Judged(..) => {
                    self.skip(bytes);
                    return;
                }
            }
        }
    }

    /// Takes the records that are right and end on this page, and returns the rest. It is `take_record` without its
    /// steps, for most of all bytes; `take_record` judges all that is not right.
    fn take_whole_records<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        if self.rest != Rest::None {
            return bytes;
        }
        while let Some(previous) = self.previous {
            let padding = padding(self.at);
            let Some((header, rest)) = bytes.get(padding..).and_then(<[u8]>::split_first_chunk::<HEADER>) else {
                break;
            };
            let length = u32_at(header, 0) as usize;
            let Some((body, rest)) = length.checked_sub(HEADER).and_then(|length| rest.split_at_checked(length)) else {
                break;
            };
            let start = Lsn(self.here().0 + padding as u64);
            if Lsn(u64_at(header, 8)) != previous || !Record::is_whole(header, body) {
                break;
            }
            self.at += (padding + length) as u64;
            self.previous = Some(start);
            self.records += 1;
            bytes = rest;
        }
        bytes
    }

    /// Takes bytes of a record, and returns the rest.
    fn take_record<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        match core::mem::replace(&mut self.rest, Rest::None) {
            Rest::Unseen(0) | Rest::None => {
                let (pad, rest) = bytes.split_at(bytes.len().min(padding(self.at)));
                self.at += pad.len() as u64;
                if !rest.is_empty() {
                    self.rest = Rest::Of(Record::new(self.here()));
                }
                rest
            }
            Rest::Unseen(left) => {
                let (part, rest) = bytes.split_at(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                self.at += part.len() as u64;
                if let Some(head) = &mut self.head {
                    head.take(part);
                }
                self.rest = Rest::Unseen(left.saturating_sub(u32::try_from(part.len()).unwrap_or(u32::MAX)));
                rest
            }
            Rest::Of(mut record) => {
                let rest = self.take_part(&mut record, bytes);
                if matches!(self.mode, Mode::Records) && (record.read < 4 || record.read < record.length()) {
                    self.rest = Rest::Of(record);
                }
                rest
            }
        }
    }

    /// Takes bytes of this record, and returns the rest. Judges the record when it has enough of it.
    fn take_part<'a>(&mut self, record: &mut Record, bytes: &'a [u8]) -> &'a [u8] {
        let read = record.read as usize;
        if read < HEADER {
            // Four bytes give the length. They are always on one page.
            let wanted = if read < 4 { 4 } else { HEADER } - read;
            let (part, rest) = bytes.split_at(bytes.len().min(wanted));
            if let Some(place) = record.header.get_mut(read..read + part.len()) {
                place.copy_from_slice(part);
            }
            self.took(record, part);
            self.judge_header(record);
            return rest;
        }
        let left = record.length().saturating_sub(record.read) as usize;
        let (part, rest) = bytes.split_at(bytes.len().min(left));
        record.take_body(part);
        self.took(record, part);
        self.judge_record(record);
        rest
    }

    fn took(&mut self, record: &mut Record, part: &[u8]) {
        self.at += part.len() as u64;
        record.read = record.read.saturating_add(u32::try_from(part.len()).unwrap_or(u32::MAX));
    }

    fn judge_header(&mut self, record: &Record) {
        let start = record.start;
        if record.read == 4 {
            if record.length() == 0 {
                self.mode = Mode::Zeros { since: start, switched: false };
            } else if !record.has_valid_length() {
                self.corrupt(start, format!("a record of {} bytes", record.length()));
            }
        } else if record.read as usize == HEADER {
            if let Err(reason) = record.check_link(self.previous) {
                self.corrupt(start, reason);
                return;
            }
            if let Some(head) = self.head.as_mut().filter(|head| head.link.is_none() && head.read == head.remaining) {
                head.link = Some((start, record.previous()));
            }
            self.judge_record(record);
        }
    }

    fn judge_record(&mut self, record: &Record) {
        if record.read < record.length() {
            return;
        }
        if !record.has_valid_crc() {
            self.corrupt(record.start, "the record's CRC does not match".to_string());
            return;
        }
        self.previous = Some(record.start);
        self.records += 1;
        if record.is_switch() {
            self.mode = Mode::Zeros { since: self.here(), switched: true };
        }
    }
}

/// The bytes up to the next record. Records begin at multiples of 8.
fn padding(at: u64) -> usize {
    usize::try_from(at.wrapping_neg() % 8).unwrap_or_default()
}

/// The first byte that is not zero. Blocks are compared at once.
fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    let is_zero = |block: &&[u8]| block.iter().fold(0, |all, byte| all | byte) == 0;
    let zeros: usize = bytes.chunks(64).take_while(is_zero).map(<[u8]>::len).sum();
    let rest = bytes.get(zeros..)?;
    rest.iter().position(|byte| *byte != 0).map(|nth| zeros + nth)
}
