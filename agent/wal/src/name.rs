//! The names of files in `pg_wal` and in an archive.

use crate::Lsn;
use alloc::string::{String, ToString};
use core::fmt;

/// The size of a segment file: a power of two from 1 MiB to 1 GiB (`initdb --wal-segsize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// PostgreSQL's default, 16 MiB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// The size of this many bytes; `None` if no segment has this size.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes >= 1 << 20 && bytes <= 1 << 30 && bytes.is_power_of_two() {
            #[expect(clippy::cast_possible_truncation)] // at most 1 GiB
            return Some(Self(bytes as u32));
        }
        None
    }

    /// In bytes.
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// The number of segments in 4 GiB of WAL. The last eight digits of a name are below it.
    const fn per_id(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

/// The name of a segment: a timeline, and 16 digits that give the position only together with the segment size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline.
    pub timeline: u32,
    /// The middle eight digits.
    id: u32,
    /// The last eight digits.
    low: u32,
}

impl SegmentName {
    /// The name of the segment that holds this position of a timeline.
    pub const fn at(timeline: u32, lsn: Lsn, size: SegmentSize) -> Self {
        let number = lsn.0 / size.bytes();
        #[expect(clippy::cast_possible_truncation)] // both are below 2^32
        Self { timeline, id: (number / size.per_id()) as u32, low: (number % size.per_id()) as u32 }
    }

    /// The first position in the segment; `None` if no segment of this size has this name.
    pub const fn start(self, size: SegmentSize) -> Option<Lsn> {
        if self.low as u64 >= size.per_id() {
            return None;
        }
        Some(Lsn(((self.id as u64) << 32) + self.low as u64 * size.bytes()))
    }

    fn parse(text: &str) -> Option<Self> {
        (text.len() == 24).then_some(())?;
        let part = |from: usize| hex(text.get(from..from + 8)?);
        let name = Self { timeline: part(0)?, id: part(8)?, low: part(16)? };
        // The smallest segments have the largest numbers.
        (name.timeline > 0 && u64::from(name.low) < SegmentSize(1 << 20).per_id()).then_some(name)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.id, self.low)
    }
}

/// Eight hexadecimal digits as PostgreSQL writes them, in capitals.
fn hex(text: &str) -> Option<u32> {
    let valid = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte));
    u32::from_str_radix(text, 16).ok().filter(|_| valid)
}

/// A file by its name. Only the name of a segment, exactly, is served to a recovery.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileName {
    /// `%08X%08X%08X`.
    Segment(SegmentName),
    /// `%08X%08X%08X.partial`: the last segment of a timeline that was left, archived at a promotion.
    Partial(SegmentName),
    /// `%08X.history`: the ancestors of this timeline.
    History(u32),
    /// `%08X%08X%08X.%08X.backup`: a base backup began in this segment, this many bytes after its start.
    Backup(SegmentName, u32),
    /// Any other name.
    Other(String),
}

impl FileName {
    /// The file of this name, without its directory.
    pub fn parse(name: &str) -> Self {
        Self::known(name).unwrap_or_else(|| Self::Other(name.to_string()))
    }

    fn known(name: &str) -> Option<Self> {
        let Some((stem, rest)) = name.split_once('.') else { return SegmentName::parse(name).map(Self::Segment) };
        match rest {
            "partial" => SegmentName::parse(stem).map(Self::Partial),
            "history" => hex(stem).filter(|timeline| *timeline > 0).map(Self::History),
            _ => {
                let offset = hex(rest.strip_suffix(".backup")?)?;
                SegmentName::parse(stem).map(|name| Self::Backup(name, offset))
            }
        }
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::History(timeline) => write!(f, "{timeline:08X}.history"),
            Self::Backup(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
            Self::Other(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_exact() {
        let segment = SegmentName { timeline: 1, id: 2, low: 0xA };
        for (text, expected) in [
            ("00000001000000020000000A", FileName::Segment(segment)),
            ("00000001000000020000000A.partial", FileName::Partial(segment)),
            ("00000001000000020000000A.00000028.backup", FileName::Backup(segment, 0x28)),
            ("0000000A.history", FileName::History(10)),
        ] {
            assert_eq!(FileName::parse(text), expected);
            assert_eq!(expected.to_string(), text);
        }
        for text in [
            "",
            ".",
            "00000001000000020000000a",
            "00000001000000020000000",
            "00000001000000020000000A0",
            "000000010000000200001000",
            "000000000000000200000001",
            "00000001000000020000000A.gz",
            "00000001000000020000000A.partial.gz",
            "00000001000000020000000A.0028.backup",
            "00000000.history",
            "1.history",
            "0000000é0000000200000001",
        ] {
            assert_eq!(FileName::parse(text), FileName::Other(text.to_string()), "{text:?}");
        }
    }

    #[test]
    fn the_size_of_a_segment_decides_where_a_name_is() {
        let name = |text: &str| match FileName::parse(text) {
            FileName::Segment(name) => name,
            other => panic!("{other:?}"),
        };
        let small = SegmentSize::new(1 << 20).unwrap();
        let large = SegmentSize::new(1 << 30).unwrap();
        assert_eq!(name("0000000100000000000000FF").start(SegmentSize::DEFAULT), Some(Lsn(0xFF00_0000)));
        assert_eq!(name("000000010000000000000FFF").start(small), Some(Lsn(0xFFF0_0000)));
        assert_eq!(name("000000010000000000000100").start(SegmentSize::DEFAULT), None);
        assert_eq!(name("000000010000000A00000003").start(large), Some(Lsn(0xA_C000_0000)));
        assert_eq!(name("000000010000000A00000004").start(large), None);
        for bytes in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, u64::MAX] {
            assert_eq!(SegmentSize::new(bytes), None, "{bytes}");
        }
    }

    proptest! {
        #[test]
        fn every_position_has_one_segment(lsn: u64, timeline in 1_u32.., power in 20_u32..=30) {
            let size = SegmentSize::new(1 << power).unwrap();
            let name = SegmentName::at(timeline, Lsn(lsn), size);
            let start = name.start(size).unwrap();
            prop_assert!(start.0 <= lsn && lsn - start.0 < size.bytes());
            prop_assert_eq!(FileName::parse(&name.to_string()), FileName::Segment(name));
        }

        #[test]
        fn no_name_is_a_panic(text in "\\PC*") {
            prop_assert_eq!(FileName::parse(&text).to_string(), text);
        }
    }
}
