//! What the files of an archive are together: timelines, gaps, and from where to where a restore is possible.

use crate::{Finding, History, Lsn, SegmentName, SegmentSize, Verdict};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Segments of one cluster in a row that are missing or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first position that is missing.
    pub from: Lsn,
    /// The first position that is there again.
    pub to: Lsn,
    /// The number of segments.
    pub segments: u64,
}

/// What the archive has of a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeline {
    /// The timeline.
    pub timeline: u32,
    /// The start of its first segment.
    pub from: Lsn,
    /// The end of what is right in its last segment.
    pub to: Lsn,
    /// What is missing in between.
    pub gaps: Vec<Gap>,
}

/// A part of the WAL without a gap, along a timeline and its ancestors. A base backup in it can be restored to any
/// position up to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restorable {
    /// The timeline that a recovery would follow (`recovery_target_timeline`).
    pub timeline: u32,
    /// Its first position.
    pub from: Lsn,
    /// The first position that a restore does not reach.
    pub to: Lsn,
    /// Why no further, for people.
    pub because: String,
}

/// The segments and histories of an archive.
#[derive(Clone, Debug)]
pub struct Archive {
    size: SegmentSize,
    segments: BTreeMap<SegmentName, (Verdict, Lsn, String)>,
    histories: BTreeMap<u32, History>,
    contested: BTreeMap<SegmentName, (Lsn, String)>,
}

impl Archive {
    /// An empty archive of segments of this size.
    pub const fn new(size: SegmentSize) -> Self {
        Self { size, segments: BTreeMap::new(), histories: BTreeMap::new(), contested: BTreeMap::new() }
    }

    /// Adds the finding on a segment. Of several copies the one that reaches furthest counts.
    pub fn add(&mut self, name: SegmentName, finding: &Finding) {
        let new = (finding.verdict, finding.end, finding.reason.clone());
        let better = |known: &(Verdict, Lsn, String)| (is_whole(new.0), new.1) > (is_whole(known.0), known.1);
        if self.segments.get(&name).is_none_or(better) {
            self.segments.insert(name, new);
        }
    }

    /// Adds a segment of which no copy can be read. A copy that can be read counts more.
    pub fn add_unreadable(&mut self, name: SegmentName, why: &str) {
        let start = name.start(self.size).unwrap_or_default();
        self.segments.entry(name).or_insert_with(|| (Verdict::Unreadable, start, why.to_string()));
    }

    /// Copies of this segment are right and differ from this position on, so that none of them is the right one.
    pub fn contest(&mut self, name: SegmentName, lsn: Lsn, because: String) {
        self.contested.insert(name, (lsn, because));
    }

    /// Adds a history.
    pub fn add_history(&mut self, history: History) {
        self.histories.insert(history.timeline, history);
    }

    /// Where the histories that are there end this timeline.
    pub fn ends_of(&self, timeline: u32) -> Vec<Lsn> {
        let ends: BTreeSet<Lsn> = self.histories.values().filter_map(|history| history.end_of(timeline)).collect();
        ends.into_iter().collect()
    }

    /// The timelines that have segments and no history file, so that where they begin is unknown.
    pub fn missing_histories(&self) -> Vec<u32> {
        let numbers: BTreeSet<u32> = self.segments.keys().map(|name| name.timeline).collect();
        numbers.into_iter().filter(|timeline| *timeline > 1 && !self.histories.contains_key(timeline)).collect()
    }

    /// The timelines with their gaps, in order.
    pub fn timelines(&self) -> Vec<Timeline> {
        let holes = self.holes();
        let mut numbers: BTreeSet<u32> = self.segments.keys().map(|name| name.timeline).collect();
        numbers.extend(holes.keys());
        let gaps = |timeline| holes.get(&timeline).cloned().unwrap_or_default();
        numbers.into_iter().filter_map(|timeline| self.timeline(timeline, gaps(timeline))).collect()
    }

    fn timeline(&self, timeline: u32, gaps: Vec<Gap>) -> Option<Timeline> {
        let of_it = || self.segments.iter().filter(move |(name, _)| name.timeline == timeline);
        let first = of_it().filter_map(|(name, _)| name.start(self.size));
        let from = first.chain(gaps.iter().map(|gap| gap.from)).min()?;
        let mut found = Timeline { timeline, from, to: from, gaps };
        let mut next = from;
        for (name, (verdict, end, _)) in of_it() {
            let Some(start) = name.start(self.size) else { continue };
            if is_whole(*verdict) || start == next || *end > start {
                found.to = *end;
            }
            if is_there(*verdict) {
                next = self.next(start);
            }
        }
        Some(found)
    }

    /// The start of the segment after the one with this start.
    const fn next(&self, start: Lsn) -> Lsn {
        Lsn(start.0.saturating_add(self.size.bytes()))
    }

    /// The gaps of each timeline: between its own segments, and along each timeline and its ancestors. Segments before
    /// the first one that is there are no gap, because an archive is cleaned from its beginning.
    fn holes(&self) -> BTreeMap<u32, Vec<Gap>> {
        let mut holes: BTreeSet<(u32, Lsn, Lsn)> = BTreeSet::new();
        let there = |name: &&SegmentName| self.segments.get(name).is_some_and(|(verdict, ..)| is_there(*verdict));
        for timeline in self.leaves() {
            let on_path = || self.segments.keys().filter(|name| self.is_on_path(timeline, **name));
            let last = on_path().rfind(|name| self.is_begun(**name));
            let starts: BTreeSet<Lsn> =
                on_path().filter(there).chain(last).filter_map(|name| name.start(self.size)).collect();
            for (before, after) in starts.iter().zip(starts.iter().skip(1)) {
                self.split(timeline, self.next(*before), *after, &mut holes);
            }
        }
        let mut own: BTreeSet<&SegmentName> = self.segments.keys().filter(there).collect();
        // By its name the last one of each timeline comes last.
        let begun = self.segments.keys().filter(|name| self.is_begun(**name));
        own.extend(begun.map(|name| (name.timeline, name)).collect::<BTreeMap<_, _>>().into_values());
        for (before, after) in own.iter().zip(own.iter().skip(1)) {
            let (Some(start), Some(to)) = (before.start(self.size), after.start(self.size)) else { continue };
            if before.timeline == after.timeline && self.next(start) < to {
                holes.insert((before.timeline, self.next(start), to));
            }
        }
        let mut gaps: BTreeMap<u32, Vec<Gap>> = BTreeMap::new();
        for (timeline, from, to) in holes {
            let known = gaps.entry(timeline).or_default();
            let mut gap = Gap { from, to, segments: 0 };
            if let Some(last) = known.pop_if(|last| from <= last.to) {
                (gap.from, gap.to) = (last.from, to.max(last.to));
            }
            gap.segments = (gap.to.0 - gap.from.0) / self.size.bytes();
            known.push(gap);
        }
        gaps
    }

    /// Whether the segment has records of its own: every segment before it was full once.
    fn is_begun(&self, name: SegmentName) -> bool {
        let start = name.start(self.size);
        self.segments.get(&name).is_some_and(|(_, end, _)| start.is_some_and(|start| *end > start))
    }

    /// The parts of this range by the timeline whose segments a recovery along `timeline` would read.
    fn split(&self, timeline: u32, mut from: Lsn, to: Lsn, holes: &mut BTreeSet<(u32, Lsn, Lsn)>) {
        while from < to {
            let reads = self.reads(timeline, from);
            let end = self.histories.get(&timeline).and_then(|history| history.end_of(reads));
            // The segment in which a timeline ends is read from the next one.
            let end = end.map_or(to, |end| Lsn(end.0 - end.0 % self.size.bytes())).min(to);
            holes.insert((reads, from, end.max(self.next(from))));
            from = end.max(self.next(from));
        }
    }

    /// The timelines that no history names as an ancestor.
    fn leaves(&self) -> BTreeSet<u32> {
        let ancestors: BTreeSet<u32> =
            self.histories.values().flat_map(|history| history.switches.iter().map(|switch| switch.timeline)).collect();
        let mut numbers: BTreeSet<u32> = self.segments.keys().map(|name| name.timeline).collect();
        numbers.extend(self.histories.keys());
        numbers.into_iter().filter(|timeline| !ancestors.contains(timeline)).collect()
    }

    /// Whether a recovery along `timeline` reads this segment.
    fn is_on_path(&self, timeline: u32, name: SegmentName) -> bool {
        name.start(self.size).is_some_and(|start| self.reads(timeline, start) == name.timeline)
    }

    /// The parts of the WAL without a gap, along each timeline that no other one goes on from, and its ancestors.
    pub fn restorable(&self) -> Vec<Restorable> {
        self.leaves().into_iter().flat_map(|timeline| self.along(timeline)).collect()
    }

    /// The timeline whose segment a recovery along `timeline` reads at this start: the newest that begins before the
    /// segment's end.
    fn reads(&self, timeline: u32, start: Lsn) -> u32 {
        let last = Lsn(start.0.saturating_add(self.size.bytes() - 1));
        self.histories.get(&timeline).map_or(timeline, |history| history.timeline_at(last))
    }

    fn along(&self, timeline: u32) -> Vec<Restorable> {
        let of_path = self.segments.keys().filter(|name| self.is_on_path(timeline, **name));
        let starts: BTreeSet<Lsn> = of_path.filter_map(|name| name.start(self.size)).collect();
        let mut found: Vec<Restorable> = Vec::new();
        let mut add = |from, to, because| {
            if from < to {
                found.push(Restorable { timeline, from, to, because });
            }
        };
        // The part that is still growing: its start, and the start of the next segment.
        let mut open: Option<(Lsn, Lsn)> = None;
        let name_at = |start| SegmentName::at(self.reads(timeline, start), start, self.size);
        for start in starts {
            let name = name_at(start);
            let Some((verdict, end, reason)) = self.segments.get(&name) else { continue };
            if let Some((from, next)) = open.take_if(|(_, next)| *next != start) {
                add(from, next, format!("{} is missing", name_at(next)));
            }
            let from = open.map_or(start, |(from, _)| from);
            if let Some((lsn, because)) = self.contested.get(&name) {
                add(from, *lsn, because.clone());
                open = None;
            } else if is_whole(*verdict) && *verdict != Verdict::Forked {
                open = Some((from, self.next(start)));
            } else {
                // PostgreSQL restores no file of another length.
                let to = if *verdict == Verdict::Short { start } else { *end };
                add(from, to, format!("{name} is {} at {end}: {reason}", verdict.name()));
                open = None;
            }
        }
        if let Some((from, next)) = open {
            add(from, next, format!("the archive ends before {}", name_at(next)));
        }
        if timeline > 1 && !self.histories.contains_key(&timeline) {
            for part in &mut found {
                part.because += ". Where timeline ";
                part.because += &timeline.to_string();
                part.because += " begins is unknown: its history file is missing";
            }
        }
        found
    }
}

/// Whether a recovery can go on behind the segment, or needs nothing behind it.
pub(crate) const fn is_whole(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Complete | Verdict::Switched | Verdict::Forked)
}

/// Whether the segment is not missing: it is whole, or cannot be judged.
const fn is_there(verdict: Verdict) -> bool {
    is_whole(verdict) || matches!(verdict, Verdict::Unreadable)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use alloc::vec;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn lsn(segment: u64) -> Lsn {
        Lsn(segment * SIZE.bytes())
    }

    fn finding(verdict: Verdict, end: Lsn) -> Finding {
        let reason = "a reason".to_string();
        Finding {
            verdict,
            end,
            reason,
            carry: None,
            head: None,
            timeline: 1,
            version: None,
            system: None,
            size: None,
            records: 0,
        }
    }

    /// An archive of these segments: timeline, number, verdict. What is not whole ends 100 bytes behind its start.
    fn archive(segments: &[(u32, u64, Verdict)]) -> Archive {
        let mut archive = Archive::new(SIZE);
        for (timeline, number, verdict) in segments {
            let end = if is_whole(*verdict) { lsn(number + 1) } else { Lsn(lsn(*number).0 + 100) };
            archive.add(SegmentName::at(*timeline, lsn(*number), SIZE), &finding(*verdict, end));
        }
        archive
    }

    fn forked(at: Lsn) -> History {
        History { timeline: 2, switches: vec![crate::Switch { timeline: 1, at, reason: String::new() }] }
    }

    fn parts(archive: &Archive) -> Vec<(u32, Lsn, Lsn)> {
        archive.restorable().iter().map(|part| (part.timeline, part.from, part.to)).collect()
    }

    use Verdict::{Complete, Corrupt, Partial, Recycled, Short, Switched, Unreadable};

    #[test]
    fn a_missing_or_damaged_segment_is_a_gap_and_ends_a_restore() {
        let whole = archive(&[(1, 1, Complete), (1, 2, Switched), (1, 3, Partial)]);
        let timeline = Timeline { timeline: 1, from: lsn(1), to: Lsn(lsn(3).0 + 100), gaps: vec![] };
        assert_eq!(whole.timelines(), [timeline]);
        assert_eq!(parts(&whole), [(1, lsn(1), Lsn(lsn(3).0 + 100))]);

        // A segment that is still written has nothing behind it.
        let zeros = archive(&[(1, 1, Complete), (1, 2, Partial), (1, 3, Complete)]);
        assert_eq!(zeros.timelines()[0].gaps, [Gap { from: lsn(2), to: lsn(3), segments: 1 }]);

        // A segment that cannot be judged is no gap.
        let unknown = archive(&[(1, 1, Complete), (1, 2, Unreadable), (1, 3, Complete)]);
        assert_eq!(unknown.timelines()[0].gaps, []);
        assert_eq!(unknown.restorable().len(), 2);

        let missing = archive(&[(1, 1, Complete), (1, 4, Complete), (1, 5, Complete)]);
        let [found] = missing.timelines().try_into().unwrap();
        assert_eq!(found.gaps, [Gap { from: lsn(2), to: lsn(4), segments: 2 }]);
        assert_eq!(parts(&missing), [(1, lsn(1), lsn(2)), (1, lsn(4), lsn(6))]);
        let because: Vec<_> = missing.restorable().into_iter().map(|part| part.because).collect();
        assert_eq!(
            because,
            ["000000010000000000000002 is missing", "the archive ends before 000000010000000000000006"]
        );

        for verdict in [Corrupt, Short] {
            let damaged = archive(&[(1, 1, Complete), (1, 2, verdict), (1, 3, Complete)]);
            let [found] = damaged.timelines().try_into().unwrap();
            assert_eq!(found.gaps, [Gap { from: lsn(2), to: lsn(3), segments: 1 }]);
            // PostgreSQL restores no short file.
            let to = if verdict == Short { lsn(2) } else { Lsn(lsn(2).0 + 100) };
            assert_eq!(parts(&damaged), [(1, lsn(1), to), (1, lsn(3), lsn(4))]);
            assert!(damaged.restorable()[0].because.contains(verdict.name()));
        }
    }

    /// A recovery reads the new timeline's segment where the old one ends, and the old one's before it.
    #[test]
    fn a_restore_goes_along_a_timeline_and_its_ancestors() {
        let end = Lsn(lsn(3).0 + 0xA0);
        let segments = [(1, 1, Complete), (1, 2, Complete), (1, 3, Recycled), (2, 3, Switched), (2, 4, Complete)];
        let mut archive = archive(&segments);
        assert_eq!(archive.restorable().len(), 2, "without the history both timelines stand alone");
        assert!(archive.restorable()[1].because.contains("its history file is missing"));
        archive.add_history(forked(end));
        assert_eq!(archive.ends_of(1), [end]);
        assert_eq!(parts(&archive), [(2, lsn(1), lsn(5))]);

        // PostgreSQL 15 would follow the old timeline without a word, and promote.
        let mut branch = self::archive(&[(1, 1, Complete), (1, 2, Complete), (1, 3, Complete), (2, 4, Complete)]);
        branch.add_history(forked(end));
        assert_eq!(parts(&branch), [(2, lsn(1), lsn(3)), (2, lsn(4), lsn(5))]);
        assert_eq!(branch.restorable()[0].because, "000000020000000000000003 is missing");
    }

    #[test]
    fn segments_that_are_missing_around_a_fork_are_gaps_of_their_timelines() {
        let end = Lsn(lsn(5).0 + 0xA0);
        let mut archive = archive(&[(1, 1, Complete), (1, 2, Complete), (2, 7, Complete), (2, 8, Complete)]);
        assert!(archive.timelines().iter().all(|timeline| timeline.gaps.is_empty()), "no history joins them");
        assert_eq!(archive.missing_histories(), [2]);
        archive.add_history(forked(end));
        let [first, second] = archive.timelines().try_into().unwrap();
        assert_eq!(first.gaps, [Gap { from: lsn(3), to: lsn(5), segments: 2 }]);
        assert_eq!(second.gaps, [Gap { from: lsn(5), to: lsn(7), segments: 2 }]);
        assert_eq!((first.to, second.from, second.to), (lsn(3), lsn(5), lsn(9)));
        assert_eq!(archive.missing_histories(), []);

        // An archive is cleaned from its beginning.
        let mut cleaned = self::archive(&[(2, 7, Complete), (2, 8, Complete)]);
        cleaned.add_history(forked(end));
        let [only] = cleaned.timelines().try_into().unwrap();
        assert_eq!((only.from, only.gaps), (lsn(7), vec![]));
    }

    #[test]
    fn a_restore_ends_where_two_right_copies_differ() {
        let mut archive = archive(&[(1, 1, Complete), (1, 2, Complete), (1, 3, Complete)]);
        let at = Lsn(lsn(2).0 + 8);
        archive.contest(SegmentName::at(1, lsn(2), SIZE), at, "two contents".to_string());
        assert_eq!(parts(&archive), [(1, lsn(1), at), (1, lsn(3), lsn(4))]);
        assert_eq!(archive.restorable()[0].because, "two contents");
    }

    #[test]
    fn of_several_copies_the_best_counts() {
        for order in [[Complete, Short], [Short, Complete]] {
            let archive = archive(&order.map(|verdict| (1, 1, verdict)));
            assert_eq!(parts(&archive), [(1, lsn(1), lsn(2))]);
        }
        assert_eq!(Archive::new(SIZE).restorable(), []);
    }
}
