//! Page headers (`XLogPageHeaderData`, `XLogLongPageHeaderData`).

use crate::{Lsn, SegmentSize};

/// The length of a short header, in bytes.
pub(crate) const SHORT: usize = 24;

/// The length of a long header, which the first page of a segment has.
pub(crate) const LONG: usize = 40;

/// The size of a page, unless a long header has another.
pub(crate) const PAGE: u64 = 8192;

/// The format of the WAL, by the magic number of its pages. Each major version has its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u16);

impl Version {
    const MAGICS: [(u16, u16); 8] = [
        (0xD101, 12),
        (0xD106, 13),
        (0xD10D, 14),
        (0xD110, 15),
        (0xD113, 16),
        (0xD116, 17),
        (0xD118, 18),
        (0xD121, 19),
    ];

    fn of(magic: u16) -> Option<Self> {
        Self::MAGICS.iter().find(|(known, _)| *known == magic).map(|(_, major)| Self(*major))
    }

    /// The format of this major version; `None` if it is none of 12 to 19.
    pub fn of_major(major: u16) -> Option<Self> {
        Self::MAGICS.iter().find(|(_, known)| *known == major).map(|(_, major)| Self(*major))
    }

    /// PostgreSQL's major version.
    pub const fn major(self) -> u16 {
        self.0
    }

    /// The flag of a page on which the record of the page before does not go on, because a crash cut it off.
    const fn overwrite_flag(self) -> u16 {
        // PostgreSQL 19 dropped the flag 4 (backup blocks removable), and moved 8 there.
        if self.0 >= 19 { 4 } else { 8 }
    }

    /// All flags. PostgreSQL refuses a page with another one (`XLP_ALL_FLAGS`), and a recovery ends there.
    const fn flags(self) -> u16 {
        if self.0 >= 19 { 0x0007 } else { 0x000F }
    }
}

/// The header of a page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageHeader {
    /// `None`: no known magic number.
    pub version: Option<Version>,
    /// The page begins with the rest of a record.
    pub continues: bool,
    /// The record of the page before was given up.
    pub overwrites: bool,
    /// The header is a long one.
    pub is_long: bool,
    /// A flag that the version does not have.
    pub has_unknown_flags: bool,
    pub timeline: u32,
    pub address: Lsn,
    /// The bytes of that record from this page on.
    pub remaining: u32,
}

/// What only a long header has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LongHeader {
    pub system: u64,
    pub segment_size: u32,
    pub page_size: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|part| part.try_into().ok()).map_or(0, u16::from_le_bytes)
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_le_bytes)
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// The size of the segment that begins with these bytes, by its first page; `None` if that is not readable.
pub fn size_in_first_page(bytes: &[u8]) -> Option<SegmentSize> {
    let header = bytes.first_chunk::<LONG>()?;
    let (short, _) = header.split_first_chunk::<SHORT>()?;
    let page = PageHeader::parse(short);
    let size = LongHeader::parse(header).segment_size;
    SegmentSize::new(u64::from(size)).filter(|_| page.version.is_some() && page.is_long)
}

impl PageHeader {
    pub(crate) fn parse(bytes: &[u8; SHORT]) -> Self {
        let version = Version::of(u16_at(bytes, 0));
        let info = u16_at(bytes, 2);
        Self {
            version,
            continues: info & 1 != 0,
            is_long: info & 2 != 0,
            has_unknown_flags: version.is_some_and(|version| info & !version.flags() != 0),
            overwrites: version.is_some_and(|version| info & version.overwrite_flag() != 0),
            timeline: u32_at(bytes, 4),
            address: Lsn(u64_at(bytes, 8)),
            remaining: u32_at(bytes, 16),
        }
    }
}

impl LongHeader {
    /// From the whole header of a page.
    pub(crate) fn parse(bytes: &[u8; LONG]) -> Self {
        Self { system: u64_at(bytes, 24), segment_size: u32_at(bytes, 32), page_size: u32_at(bytes, 36) }
    }
}
