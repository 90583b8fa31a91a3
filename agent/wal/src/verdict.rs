//! Verdicts on segment files.

use crate::{Carry, Head, Lsn, SegmentSize, Version};
use alloc::format;
use alloc::string::String;

/// The verdict on a file with the name of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Every record is right, to the end of the segment.
    Complete,
    /// Every record is right, to an `XLOG_SWITCH`, and zeros follow.
    Switched,
    /// Every record is right, to where a history says that the timeline ends.
    Forked,
    /// Every record is right, and zeros follow: a segment that is still written.
    Partial,
    /// Every record is right, and the file ends too early: a copy that was cut off, or is still written.
    Short,
    /// Every record is right, and what follows is of an older segment: the file was used again.
    Recycled,
    /// A CRC, a link or a header is wrong.
    Corrupt,
    /// Another cluster's, by the system identifier.
    Foreign,
    /// Nothing fits: encrypted, compressed, or of an unknown version.
    Unreadable,
}

impl Verdict {
    const ALL: [Self; 9] = [
        Self::Complete,
        Self::Switched,
        Self::Forked,
        Self::Partial,
        Self::Short,
        Self::Recycled,
        Self::Corrupt,
        Self::Foreign,
        Self::Unreadable,
    ];

    /// The verdict of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|verdict| verdict.name() == name)
    }

    /// The verdict's name for people and programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Switched => "switched",
            Self::Forked => "forked",
            Self::Partial => "partial",
            Self::Short => "short",
            Self::Recycled => "recycled",
            Self::Corrupt => "corrupt",
            Self::Foreign => "foreign",
            Self::Unreadable => "unreadable",
        }
    }
}

/// The verdict on a segment file, and its reasons.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The verdict.
    pub verdict: Verdict,
    /// The end of what is right: the first position that is not. For a segment without an error, its end.
    pub end: Lsn,
    /// The reason of the verdict, for people.
    pub reason: String,
    /// What the next segment has to continue; `None` unless [`Verdict::Complete`] or [`Verdict::Switched`].
    pub carry: Option<Carry>,
    /// What the segment before has to leave; `None` if that is verified, or the first page is not right.
    pub head: Option<Head>,
    /// The timeline of the last page.
    pub timeline: u32,
    /// PostgreSQL's version, by the first page.
    pub version: Option<Version>,
    /// The system identifier, by the first page.
    pub system: Option<u64>,
    /// The size of the segment, by the first page.
    pub size: Option<SegmentSize>,
    /// The number of verified records that end in this segment.
    pub records: u64,
}

impl Finding {
    /// The finding in the light of the histories that are known: `ends` are the ends of this segment's timeline in
    /// them. The last segment of a timeline that was left has its records, and what follows them does not matter.
    pub fn with_ends(mut self, ends: &[Lsn]) -> Self {
        if matches!(self.verdict, Verdict::Partial | Verdict::Recycled) && ends.contains(&self.end) {
            self.verdict = Verdict::Forked;
            self.reason = format!("a history ends its timeline at {}", self.end);
        }
        self
    }
}
