//! Record headers (`XLogRecord`).

use crate::Lsn;
use crate::page::{u32_at, u64_at};
use alloc::format;
use alloc::string::{String, ToString};

/// The length of a record's header, in bytes. Records begin at multiples of 8.
pub(crate) const HEADER: usize = 24;

/// PostgreSQL's limit for a record (`XLogRecordMaxSize`, 1020 MiB).
const LENGTH_MAX: u32 = 1020 << 20;

/// A record that is being read. Its CRC covers the bytes after the header first, and then the header without the CRC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub start: Lsn,
    pub header: [u8; HEADER],
    /// The bytes read so far, with the header.
    pub read: u32,
    /// The CRC of the bytes after the header, so far.
    pub crc: u32,
}

impl Record {
    pub(crate) const fn new(start: Lsn) -> Self {
        Self { start, header: [0; HEADER], read: 0, crc: 0 }
    }

    /// The length of the record, once four bytes are read.
    pub(crate) fn length(&self) -> u32 {
        u32_at(&self.header, 0)
    }

    pub(crate) fn has_valid_length(&self) -> bool {
        (24..=LENGTH_MAX).contains(&self.length())
    }

    /// The start of the record before this one, once the header is read.
    pub(crate) fn previous(&self) -> Lsn {
        Lsn(u64_at(&self.header, 8))
    }

    /// The rest of the segment after this record is unused: `XLOG_SWITCH` of the resource manager XLOG.
    pub(crate) fn is_switch(&self) -> bool {
        let [.., info, manager, _, _, _, _, _, _] = self.header;
        is_switch(info, manager)
    }

    /// Whether a record of this header and this body is right, and is no `XLOG_SWITCH`. The link is not judged.
    pub(crate) fn is_whole(header: &[u8; HEADER], body: &[u8]) -> bool {
        let (covered, crc) = header.split_at(20);
        let [.., info, manager, _, _, _, _, _, _] = *header;
        let crc_is = crc32c::crc32c_append(crc32c::crc32c(body), covered);
        crc_is == u32_at(crc, 0) && !is_switch(info, manager)
    }

    pub(crate) fn take_body(&mut self, bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
    }

    /// Takes this many further bytes, of which the first ones and the CRC are known.
    pub(crate) fn join(&mut self, first: &[u8; HEADER], read: u32, crc: u32) {
        let missing = HEADER.saturating_sub(self.read as usize).min(read as usize);
        let (header, _) = first.split_at(missing.min(HEADER));
        for (to, from) in self.header.iter_mut().skip(self.read as usize).zip(header) {
            *to = *from;
        }
        // The CRC of two parts is the first one's, moved by the length of the second, together with the second one's.
        let body = (read as usize).saturating_sub(missing);
        let body_crc = crc32c::crc32c_combine(crc32c::crc32c(header), crc, body);
        self.crc = crc32c::crc32c_combine(self.crc, body_crc, body);
        self.read = self.read.saturating_add(read);
    }

    /// The error in the link, once the header is read. `previous`: the start of the record before, if it is known.
    pub(crate) fn check_link(&self, previous: Option<Lsn>) -> Result<(), String> {
        let link = self.previous();
        if previous.is_none_or(|previous| previous == link) && link < self.start {
            return Ok(());
        }
        let expected = previous.map_or_else(|| "one before it".to_string(), |lsn| lsn.to_string());
        Err(format!("the record's link says {link}, and not {expected}"))
    }

    pub(crate) fn has_valid_crc(&self) -> bool {
        let (covered, _) = self.header.split_at(20);
        crc32c::crc32c_append(self.crc, covered) == u32_at(&self.header, 20)
    }
}

/// `XLOG_SWITCH` of the resource manager XLOG.
const fn is_switch(info: u8, manager: u8) -> bool {
    manager == 0 && info & 0xF0 == 0x40
}
