//! Record headers (`XLogRecord`).

use crate::Lsn;
use crate::page::{u32_at, u64_at};

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
    crc: u32,
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
        manager == 0 && info & 0xF0 == 0x40
    }

    pub(crate) fn take_body(&mut self, bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
    }

    pub(crate) fn has_valid_crc(&self) -> bool {
        let (covered, _) = self.header.split_at(20);
        crc32c::crc32c_append(self.crc, covered) == u32_at(&self.header, 20)
    }
}
