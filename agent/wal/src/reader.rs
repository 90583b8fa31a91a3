//! The verdict on a segment file, from its bytes in order.

use crate::page::{LONG, LongHeader, PAGE, PageHeader, SHORT};
use crate::record::{HEADER, Record};
use crate::verdict::{Finding, Verdict};
use crate::{Lsn, SegmentName, SegmentSize, Version};
use alloc::format;
use alloc::string::{String, ToString};

/// What the next segment has to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry {
    /// The start of the next segment.
    pub next: Lsn,
    /// The timeline of the last page.
    pub timeline: u32,
    /// The start of the last whole record.
    previous: Option<Lsn>,
    /// The record that goes on in the next segment.
    rest: Rest,
}

/// What a page has to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Rest {
    /// A record, or zeros.
    None,
    /// The rest of this record.
    Of(Record),
    /// This many bytes of a record whose beginning was not read.
    Unseen(u32),
}

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
    mode: Mode,
    records: u64,
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
            mode: Mode::Records,
            records: 0,
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
                self.at = self.at.saturating_add(bytes.len() as u64);
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
            Mode::Judged(verdict, end, reason) => (*verdict, *end, reason.clone()),
            _ if is_long => (
                Verdict::Corrupt,
                end_of_segment,
                format!("the file has {} bytes, and a segment has {}", self.at, self.size.bytes()),
            ),
            Mode::Old { since, address } => {
                (Verdict::Recycled, *since, format!("from there on the content is that of {address}"))
            }
            _ if is_short => (Verdict::Short, self.valid_end(), format!("{} of {} bytes", self.at, self.size.bytes())),
            Mode::Zeros { switched: true, .. } => {
                (Verdict::Switched, end_of_segment, "an XLOG_SWITCH, and zeros".to_string())
            }
            Mode::Zeros { since, .. } => (Verdict::Partial, *since, "zeros from there on".to_string()),
            Mode::Records => (Verdict::Complete, end_of_segment, format!("{} records", self.records)),
        };
        let carry = match verdict {
            Verdict::Complete | Verdict::Switched => {
                Some(Carry { next: end_of_segment, timeline: self.timeline, previous: self.previous, rest: self.rest })
            }
            _ => None,
        };
        let Self { version, system, header_size: size, records, .. } = self;
        Finding { verdict, end, reason, carry, version, system, size, records }
    }

    fn here(&self) -> Lsn {
        Lsn(self.start.0.saturating_add(self.at))
    }

    /// The end of the last whole record.
    fn valid_end(&self) -> Lsn {
        match (&self.mode, &self.rest) {
            (Mode::Zeros { since, .. }, _) => *since,
            (_, Rest::Of(record)) => record.start,
            (_, Rest::Unseen(1..)) => self.start,
            _ => self.here(),
        }
    }

    fn corrupt(&mut self, since: Lsn, reason: String) {
        self.mode = Mode::Judged(Verdict::Corrupt, since, reason);
    }

    /// The start of the record that goes on at this position, or the position.
    fn record_at(&self, here: Lsn) -> Lsn {
        if let Rest::Of(record) = &self.rest { record.start } else { here }
    }

    /// Takes bytes of a page's header, and returns the rest.
    fn take_page_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (read, whole) = self.page_header_read;
        let (part, rest) = bytes.split_at(bytes.len().min(whole - read));
        if let Some(place) = self.page_header.get_mut(read..read + part.len()) {
            place.copy_from_slice(part);
        }
        self.at += part.len() as u64;
        self.page_header_read.0 = read + part.len();
        if self.page_header_read.0 < whole {
            return rest;
        }
        let [short @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = self.page_header;
        let header = PageHeader::parse(&short);
        // Only a header with a known magic number is long. Any other page has no header.
        if header.is_long && header.version.is_some() && whole == SHORT {
            self.page_header_read.1 = LONG;
            return rest;
        }
        let page = self.at - whole as u64;
        if short == [0; SHORT] {
            self.zero_page(page);
        } else {
            self.judge_page(page, &header);
        }
        rest
    }

    fn zero_page(&mut self, page: u64) {
        let since = self.record_at(Lsn(self.start.0.saturating_add(page)));
        // An older segment may have been switched, so that its own end was zeros.
        if matches!(self.mode, Mode::Records) {
            self.mode = Mode::Zeros { since, switched: false };
        }
    }

    /// Judges the header of the page at this offset of the file.
    fn judge_page(&mut self, page: u64, header: &PageHeader) {
        if page == 0 && !self.take_first_page(header) {
            return;
        }
        let expected = Lsn(self.start.0.saturating_add(page));
        let is_known = header.version.is_some() && header.version == self.version;
        let fits = is_known && header.address == expected;
        match (&self.mode, fits) {
            (Mode::Zeros { since, .. }, true) => {
                self.corrupt(*since, format!("zeros, and then a page again at {expected}"));
            }
            (Mode::Old { since, .. }, true) => {
                self.corrupt(*since, format!("a page of another place, and then one of this at {expected}"));
            }
            (Mode::Records, true) => self.follow_page(expected, header),
            (Mode::Old { .. } | Mode::Judged(..), false) | (Mode::Judged(..), true) => {}
            (Mode::Records | Mode::Zeros { .. }, false) => {
                let since = if let Mode::Zeros { since, .. } = &self.mode { *since } else { self.record_at(expected) };
                // A recycled file keeps pages of an older segment. No other page has an older address.
                if header.version.is_some() && header.address < expected {
                    self.mode = Mode::Old { since, address: header.address };
                } else if is_known {
                    self.corrupt(since, format!("the page at {expected} says that it is at {}", header.address));
                } else {
                    self.corrupt(since, format!("no page header at {expected}"));
                }
            }
        }
    }

    /// Takes what only the first page says. Returns whether the rest of its header can be judged.
    fn take_first_page(&mut self, header: &PageHeader) -> bool {
        if header.version.is_none() {
            let reason = "no magic number of PostgreSQL 12 to 19: encrypted, compressed, or of another version";
            self.mode = Mode::Judged(Verdict::Unreadable, self.start, reason.to_string());
            return false;
        }
        self.version = header.version;
        let long = LongHeader::parse(&self.page_header);
        let (page_size, size) = (u64::from(long.page_size), SegmentSize::new(u64::from(long.segment_size)));
        if !header.is_long {
            self.corrupt(self.start, "the first page has a short header".to_string());
        } else if !(page_size.is_power_of_two() && (1 << 10..=1 << 16).contains(&page_size)) {
            self.corrupt(self.start, format!("its pages would have {page_size} bytes"));
        } else if let Some(size) = size {
            (self.system, self.header_size) = (Some(long.system), Some(size));
            self.page_size = page_size;
            let Some(start) = self.name.start(size) else {
                self.corrupt(self.start, format!("no segment of {} bytes has this name", size.bytes()));
                return false;
            };
            if start != self.start {
                // The segment before had another size, so that nothing goes on here.
                (self.rest, self.previous, self.timeline) = (Rest::Unseen(0), None, 0);
            }
            (self.size, self.start) = (size, start);
            if self.expected_system.is_none_or(|expected| expected == long.system) {
                return true;
            }
            let reason = format!("the system identifier is {}", long.system);
            self.mode = Mode::Judged(Verdict::Foreign, start, reason);
        } else {
            self.corrupt(self.start, format!("its segments would have {} bytes", long.segment_size));
        }
        false
    }

    /// Continues the record of the page before, or begins with the first one of this page.
    fn follow_page(&mut self, page: Lsn, header: &PageHeader) {
        if header.timeline < self.timeline || header.timeline > self.name.timeline || header.timeline == 0 {
            let reason = format!("the page at {page} is of timeline {}", header.timeline);
            self.corrupt(self.record_at(page), reason);
            return;
        }
        self.timeline = header.timeline;
        if header.is_long != (page == self.start) {
            self.corrupt(page, format!("the wrong kind of header at {page}"));
            return;
        }
        let expected = match &self.rest {
            Rest::None => 0,
            Rest::Of(record) => record.length() - record.read,
            // The first page says how much of that record is left.
            Rest::Unseen(0) if page == self.start && header.continues => {
                self.rest = Rest::Unseen(header.remaining);
                header.remaining
            }
            Rest::Unseen(left) => *left,
        };
        if header.overwrites && expected > 0 {
            // PostgreSQL has given up the record after a crash, and says so.
            self.rest = Rest::None;
        } else if header.continues != (expected > 0) || (header.continues && header.remaining != expected) {
            let left = if header.continues { header.remaining } else { 0 };
            let reason = format!("{left} bytes of a record go on at {page}, and not {expected}");
            self.corrupt(self.record_at(page), reason);
        }
    }

    /// Takes bytes of one page after its header.
    fn take_body(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.mode {
                Mode::Records => bytes = self.take_record(bytes),
                Mode::Zeros { since, .. } => {
                    if let Some(nth) = bytes.iter().position(|byte| *byte != 0) {
                        let place = Lsn(self.here().0 + nth as u64);
                        self.corrupt(since, format!("zeros, and then something else at {place}"));
                    }
                    self.at += bytes.len() as u64;
                    return;
                }
                Mode::Old { .. } | Mode::Judged(..) => {
                    self.at += bytes.len() as u64;
                    return;
                }
            }
        }
    }

    /// Takes bytes of a record, and returns the rest.
    fn take_record<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        // Records begin at multiples of 8.
        let padding = |at: u64| usize::try_from(at.wrapping_neg() % 8).unwrap_or_default();
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
            let (is, expected) = (record.previous(), self.previous);
            if expected.is_some_and(|expected| expected != is) || is >= start {
                let expected = expected.map_or_else(|| "one before it".to_string(), |lsn| lsn.to_string());
                self.corrupt(start, format!("the record's link says {is}, and not {expected}"));
            } else {
                self.judge_record(record);
            }
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
