//! How a segment goes on with the one before: what that one leaves, and what this one begins with.
//!
//! A segment can be read with the [`Carry`] of the one before, or alone. Alone it gives a [`Head`], which
//! [`Finding::after`] joins with a carry later. So segments can be read in any order, each of them once.

use crate::record::{HEADER, Record};
use crate::verdict::{Finding, Verdict};
use crate::{Lsn, SegmentName};
use alloc::format;
use alloc::string::String;
use core::fmt;
use core::str::FromStr;

/// What the next segment has to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carry {
    /// The start of the next segment.
    pub next: Lsn,
    /// The timeline of the last page.
    pub timeline: u32,
    /// The start of the last whole record.
    pub(crate) previous: Option<Lsn>,
    /// The record that goes on in the next segment.
    pub(crate) rest: Rest,
}

/// What a page has to begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// A record, or zeros.
    None,
    /// The rest of this record.
    Of(Record),
    /// This many bytes of a record whose beginning was not read.
    Unseen(u32),
}

/// What a segment that was read alone has to find in the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The timeline of the first page.
    pub timeline: u32,
    /// The record of the segment before was given up.
    pub(crate) overwrites: bool,
    /// The bytes of that record from this segment on, and those of them that were read.
    pub(crate) remaining: u32,
    pub(crate) read: u32,
    /// Their first bytes, and the CRC of all that were read.
    pub(crate) first: [u8; HEADER],
    pub(crate) crc: u32,
    /// The first record that begins in this segment, and its link.
    pub(crate) link: Option<(Lsn, Lsn)>,
}

impl Head {
    /// Takes bytes of the record that began in the segment before.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        let read = self.read as usize;
        if let Some(place) = self.first.get_mut(read..) {
            for (to, from) in place.iter_mut().zip(bytes) {
                *to = *from;
            }
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.read = self.read.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    }
}

impl Finding {
    /// The finding on a segment that was read alone, together with what the segment before left. It is the finding of
    /// a reader with that carry.
    pub fn after(mut self, name: SegmentName, carry: &Carry) -> Self {
        let Some(head) = self.head.take() else { return self };
        if carry.timeline > name.timeline {
            self.head = Some(head);
            return self;
        }
        match self.join(&head, carry) {
            Ok(()) => self,
            Err((end, reason)) => {
                (self.verdict, self.end, self.reason, self.carry) = (Verdict::Corrupt, end, reason, None);
                self
            }
        }
    }

    fn join(&mut self, head: &Head, carry: &Carry) -> Result<(), (Lsn, String)> {
        let page = carry.next;
        let open = if let Rest::Of(record) = &carry.rest { record.start } else { page };
        if head.timeline < carry.timeline {
            return Err((open, format!("the page at {page} is of timeline {}", head.timeline)));
        }
        let expected = match &carry.rest {
            Rest::None => 0,
            Rest::Of(record) => record.length().saturating_sub(record.read),
            Rest::Unseen(left) => *left,
        };
        let given_up = head.overwrites && expected > 0;
        if !given_up && head.remaining != expected {
            return Err((open, format!("{} bytes of a record go on at {page}, and not {expected}", head.remaining)));
        }
        let mut previous = carry.previous;
        if let (Rest::Of(record), false) = (&carry.rest, given_up) {
            let mut record = record.clone();
            record.join(&head.first, head.read, head.crc);
            if record.read as usize >= HEADER && record.read > 0 {
                record.check_link(previous).map_err(|reason| (record.start, reason))?;
            }
            if record.read < record.length() {
                return self.keep_open(record, previous);
            }
            if !record.has_valid_crc() {
                return Err((record.start, "the record's CRC does not match".into()));
            }
            self.records += 1;
            previous = Some(record.start);
            if record.is_switch() {
                self.switch(page, &record)?;
            }
        }
        if let (Some((start, link)), Some(expected)) = (head.link, previous)
            && link != expected
        {
            return Err((start, format!("the record's link says {link}, and not {expected}")));
        }
        if let Some(left) = &mut self.carry
            && left.previous.is_none()
        {
            left.previous = previous;
        }
        Ok(())
    }

    /// The record that began before the segment does not end in it.
    fn keep_open(&mut self, record: Record, previous: Option<Lsn>) -> Result<(), (Lsn, String)> {
        match &mut self.carry {
            Some(left) => (left.previous, left.rest) = (previous, Rest::Of(record)),
            None => self.end = self.end.min(record.start),
        }
        Ok(())
    }

    /// The record that began before the segment is an `XLOG_SWITCH`: the segment has its rest, and zeros.
    fn switch(&mut self, page: Lsn, record: &Record) -> Result<(), (Lsn, String)> {
        match (self.verdict, self.size) {
            (Verdict::Partial, Some(size)) if self.records == 1 => {
                self.verdict = Verdict::Switched;
                self.end = Lsn(page.0.saturating_add(size.bytes()));
                self.reason = SWITCHED.into();
                let timeline = self.timeline;
                self.carry = Some(Carry { next: self.end, timeline, previous: Some(record.start), rest: Rest::None });
                Ok(())
            }
            (Verdict::Short | Verdict::Recycled, _) => Ok(()),
            _ => Err((self.end, "an XLOG_SWITCH, and then something else than zeros".into())),
        }
    }
}

/// The reason of [`Verdict::Switched`].
pub(crate) const SWITCHED: &str = "an XLOG_SWITCH, and zeros";

/// A text for a file that keeps findings: numbers, and bytes as hexadecimal numbers.
impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeline, overwrites, remaining, read, first, crc, link } = self;
        write!(f, "{timeline} {} {remaining} {read} {} {crc}", u8::from(*overwrites), Hex(first))?;
        match link {
            Some((start, link)) => write!(f, " {start} {link}"),
            None => f.write_str(" - -"),
        }
    }
}

/// The text of [`Carry`], as that of [`Head`].
impl fmt::Display for Carry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { next, timeline, previous, rest } = self;
        write!(f, "{next} {timeline} ")?;
        match previous {
            Some(previous) => write!(f, "{previous} ")?,
            None => f.write_str("- ")?,
        }
        match rest {
            Rest::None => f.write_str("none"),
            Rest::Unseen(left) => write!(f, "unseen {left}"),
            Rest::Of(record) => write!(f, "of {} {} {} {}", record.start, Hex(&record.header), record.read, record.crc),
        }
    }
}

struct Hex<'a>(&'a [u8; HEADER]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The text is not that of a head or a carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkError;

/// The words of a text.
struct Words<'a>(core::str::SplitAsciiWhitespace<'a>);

impl Words<'_> {
    fn next<T: FromStr>(&mut self) -> Result<T, LinkError> {
        self.0.next().and_then(|word| word.parse().ok()).ok_or(LinkError)
    }

    fn next_lsn(&mut self) -> Result<Option<Lsn>, LinkError> {
        match self.0.next() {
            Some("-") => Ok(None),
            Some(word) => word.parse().map(Some).map_err(|_| LinkError),
            None => Err(LinkError),
        }
    }

    fn bytes(&mut self) -> Result<[u8; HEADER], LinkError> {
        let word = self.0.next().filter(|word| word.len() == 2 * HEADER).ok_or(LinkError)?;
        let mut bytes = [0; HEADER];
        for (nth, byte) in bytes.iter_mut().enumerate() {
            let digits = word.get(2 * nth..2 * nth + 2).ok_or(LinkError)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| LinkError)?;
        }
        Ok(bytes)
    }

    fn end<T>(mut self, value: T) -> Result<T, LinkError> {
        if self.0.next().is_none() { Ok(value) } else { Err(LinkError) }
    }
}

impl FromStr for Head {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let mut words = Words(text.split_ascii_whitespace());
        let timeline = words.next()?;
        let overwrites = words.next::<u8>()? == 1;
        let (remaining, read, first, crc) = (words.next()?, words.next()?, words.bytes()?, words.next()?);
        let link = words.next_lsn()?.zip(words.next_lsn()?);
        words.end(Self { timeline, overwrites, remaining, read, first, crc, link })
    }
}

impl FromStr for Carry {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let mut words = Words(text.split_ascii_whitespace());
        let (next, timeline, previous) = (words.next()?, words.next()?, words.next_lsn()?);
        let rest = match words.0.next() {
            Some("none") => Rest::None,
            Some("unseen") => Rest::Unseen(words.next()?),
            Some("of") => {
                let (start, header, read, crc) = (words.next()?, words.bytes()?, words.next()?, words.next()?);
                Rest::Of(Record { start, header, read, crc })
            }
            _ => return Err(LinkError),
        };
        words.end(Self { next, timeline, previous, rest })
    }
}
