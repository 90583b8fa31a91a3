//! PostgreSQL's write-ahead log (WAL) on disk, of PostgreSQL 12 to 19: the names of its files, its pages and records,
//! and the verdict on a segment file.
//!
//! The crate is pure: it gets bytes and gives verdicts. [`Reader`] verifies every record of a segment, its CRC and its
//! link to the record before it. It keeps one page header and one record header for a segment of any size, and carries
//! a record over to the next segment. It reads WAL of little-endian machines. [`judge`] says what the
//! files of an archive are together.
//!
//! Sources: PostgreSQL's `access/xlog_internal.h`, `access/xlogrecord.h`, `access/transam/xlogreader.c`.
#![no_std]

extern crate alloc;

mod archive;
mod history;
mod link;
mod lsn;
mod name;
mod noise;
mod page;
mod reader;
mod record;
mod verdict;
mod verify;

pub use archive::{Archive, Gap, Restorable, Timeline};
pub use history::{History, HistoryError, Switch};
pub use link::{Carry, Head, LinkError};
pub use lsn::{Lsn, LsnError};
pub use name::{FileName, SegmentName, SegmentSize};
pub use page::{Version, size_in_first_page};
pub use reader::Reader;
pub use verdict::{Finding, Verdict};
pub use verify::{Cluster, Conflict, Content, File, Judged, Kind, Outcome, Report, compare, judge};
