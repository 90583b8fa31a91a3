//! The headers of pages: whether a page is of this segment, of an older one, or unused.

use super::{Mode, Reader};
use crate::link::{Head, Rest};
use crate::page::{LONG, LongHeader, PageHeader, SHORT};
use crate::verdict::Verdict;
use crate::{Lsn, SegmentSize};
use alloc::format;
use alloc::string::ToString;

impl Reader {
    /// Takes bytes of a page's header, and returns the rest.
    pub(super) fn take_page_header<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
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
        if header.has_unknown_flags {
            self.corrupt(self.record_at(page), format!("the page at {page} has flags that PostgreSQL refuses"));
            return;
        }
        if header.is_long != (page == self.start) {
            self.corrupt(page, format!("the wrong kind of header at {page}"));
            return;
        }
        let expected = match &self.rest {
            Rest::None => 0,
            Rest::Of(record) => record.length() - record.read,
            // The first page says how much of that record is left.
            Rest::Unseen(0) if page == self.start => {
                let (timeline, overwrites) = (header.timeline, header.overwrites);
                let remaining = if header.continues { header.remaining } else { 0 };
                self.head = Some(Head { timeline, overwrites, remaining, ..Head::default() });
                self.rest = Rest::Unseen(remaining);
                remaining
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
}
