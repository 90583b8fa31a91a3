//! Timeline history files: how a timeline descends from others.

use crate::Lsn;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// A line of a history file: the timeline ends at this position, and the next one begins there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch {
    /// The timeline that ends.
    pub timeline: u32,
    /// The first position that no longer belongs to it.
    pub at: Lsn,
    /// The reason, as PostgreSQL wrote it.
    pub reason: String,
}

/// The history of a timeline. Timeline 1 has none, and no file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// The timeline that the file is named by.
    pub timeline: u32,
    /// Its ancestors from the oldest on. The last one is its parent.
    pub switches: Vec<Switch>,
}

/// The line that is wrong, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryError {
    /// The line's number, from 1.
    pub line: usize,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for HistoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl core::error::Error for HistoryError {}

impl History {
    /// Reads the file `timeline`.history, as PostgreSQL's `readTimeLineHistory` does, but stricter: a line without a
    /// position, timelines that do not rise, and positions that fall are errors. A file without a line is one, too.
    pub fn parse(timeline: u32, text: &str) -> Result<Self, HistoryError> {
        let mut switches: Vec<Switch> = Vec::new();
        let mut last = 0;
        for (nth, line) in text.lines().enumerate() {
            last = nth + 1;
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason: String| HistoryError { line: last, reason };
            let mut parts = line.splitn(3, [' ', '\t']);
            let (parent, at) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let parent: u32 =
                parent.parse().map_err(|_| wrong(format!("{parent:?} is not the number of a timeline")))?;
            let at: Lsn = at.parse().map_err(|error| wrong(format!("{at:?} is {error}")))?;
            if let Some(before) = switches.last() {
                if parent <= before.timeline {
                    return Err(wrong(format!("timeline {parent} comes after timeline {}", before.timeline)));
                }
                if at < before.at {
                    return Err(wrong(format!("{at} is before {}, where the timeline began", before.at)));
                }
            }
            if parent == 0 || parent >= timeline {
                return Err(wrong(format!("timeline {parent} is no ancestor of timeline {timeline}")));
            }
            let reason = parts.next().unwrap_or_default().trim_end().to_string();
            switches.push(Switch { timeline: parent, at, reason });
        }
        if switches.is_empty() {
            return Err(HistoryError { line: last.max(1), reason: "the file names no ancestor".to_string() });
        }
        Ok(Self { timeline, switches })
    }

    /// Where an ancestor ends in this history; `None` if it is no ancestor.
    pub fn end_of(&self, timeline: u32) -> Option<Lsn> {
        self.switches.iter().find(|switch| switch.timeline == timeline).map(|switch| switch.at)
    }

    /// The timeline that a position belongs to.
    pub fn timeline_at(&self, lsn: Lsn) -> u32 {
        self.switches.iter().find(|switch| lsn < switch.at).map_or(self.timeline, |switch| switch.timeline)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_history_has_ancestors_in_order() {
        let text = "1\t0/C000A0\tno recovery target specified\n\n# a comment\n  3\t0/D000000\tbefore 2026-11-30\n";
        let history = History::parse(4, text).unwrap();
        assert_eq!(history.end_of(1), Some(Lsn(0xC0_00A0)));
        assert_eq!(history.switches.last().unwrap().reason, "before 2026-11-30");
        let at = |lsn| history.timeline_at(Lsn(lsn));
        assert_eq!((at(0xC0_009F), at(0xC0_00A0), at(0xD00_0000), history.end_of(2)), (1, 3, 4, None));
    }

    #[test]
    fn a_damaged_history_is_an_error_with_its_line() {
        for (text, line, words) in [
            ("", 1, "names no ancestor"),
            ("# only\n", 1, "names no ancestor"),
            ("x\t0/1\tr\n", 1, "\"x\" is not the number"),
            ("1\n", 1, "\"\" is not an LSN"),
            ("1\t0/1", 1, ""),
            ("1\t0/5\tr\n1\t0/6\tr\n", 2, "timeline 1 comes after timeline 1"),
            ("1\t0/5\tr\n2\t0/4\tr\n", 2, "0/4 is before 0/5"),
            ("4\t0/5\tr\n", 1, "no ancestor of timeline 4"),
            ("0\t0/5\tr\n", 1, "no ancestor of timeline 4"),
        ] {
            match History::parse(4, text) {
                Ok(_) => assert!(words.is_empty(), "{text:?}"),
                Err(error) => assert!(error.line == line && error.reason.contains(words), "{text:?}: {error}"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_history_is_a_panic(timeline: u32, text in "(\\PC|\n|\t)*") {
            let _ = History::parse(timeline, &text);
        }
    }
}
