//! The judgment on an archive: every file, the segments as a chain, copies of one name, and whether it is whole.
//!
//! The caller reads the files, each segment alone, and gives what it found to [`judge`]. Where copies of one name
//! differ, it first compares the pairs that [`compare`] names. The order of the files does not matter.

mod chain;

use crate::archive::is_whole;
use crate::{Archive, FileName, Finding, History, Lsn, Restorable, SegmentSize, Timeline, Verdict, Version};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use chain::Chain;

/// A file of an archive, as the caller read it.
#[derive(Clone, Debug)]
pub struct File {
    /// The path, for people.
    pub path: String,
    /// The name that it has for PostgreSQL: without the suffix of a compression or a checksum.
    pub name: FileName,
    /// The content.
    pub content: Content,
    /// The SHA-256 of the uncompressed content. Needed where several files have one name.
    pub sha256: Option<[u8; 32]>,
}

/// The content of a file.
#[derive(Clone, Debug)]
pub enum Content {
    /// A file with the name of a segment, with `.partial` or without. It was read without a carry.
    Segment(Finding),
    /// A file with the name of a history, or the error in it.
    History(Result<History, String>),
    /// The label of a base backup.
    Backup,
    /// A file that is none of PostgreSQL's, and what it is.
    Other(String),
    /// The file could not be read, for this reason.
    Unreadable(String),
}

/// The kind of a file, or its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A segment, or another file that is damaged or cannot be read.
    Judged(Verdict),
    /// A history file.
    History,
    /// The label of a base backup.
    Backup,
    /// A file that is none of PostgreSQL's.
    Other,
}

impl Kind {
    /// Its name for people and programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Judged(verdict) => verdict.name(),
            Self::History => "history",
            Self::Backup => "backup",
            Self::Other => "other",
        }
    }
}

/// The verdict on a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The file's path, as it was given.
    pub path: String,
    /// The file's name for PostgreSQL.
    pub name: FileName,
    /// The verdict.
    pub kind: Kind,
    /// For a segment the end of what is right, for a history where its timeline begins, for a base backup its start.
    pub lsn: Option<Lsn>,
    /// The reason, for people.
    pub reason: String,
    /// The archive is not whole because of this file.
    pub is_damage: bool,
}

/// Files of one name that are right and have different contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The name.
    pub name: FileName,
    /// The first position that differs. For a history where its timeline would begin.
    pub lsn: Lsn,
    /// The paths with the SHA-256 of their contents.
    pub contents: Vec<(String, [u8; 32])>,
}

/// What the files are together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Every file is right, and none is missing in between.
    Whole,
    /// A file is damaged or missing, or two contradict each other.
    Damaged,
    /// No damage is known, and something could not be judged.
    Unknown,
}

/// The cluster that most segments belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its system identifier.
    pub system: u64,
    /// PostgreSQL's version, by its newest segment.
    pub version: Option<Version>,
    /// The size of its segments.
    pub size: SegmentSize,
}

/// The judgment on an archive.
#[derive(Clone, Debug)]
pub struct Report {
    /// The files, in the order in which they were given.
    pub files: Vec<Judged>,
    /// The cluster; `None` if no segment could be read.
    pub cluster: Option<Cluster>,
    /// The histories, by their timelines.
    pub histories: Vec<History>,
    /// Timelines of which the history file is missing.
    pub missing_histories: Vec<u32>,
    /// The timelines with their gaps.
    pub timelines: Vec<Timeline>,
    /// Names with different contents.
    pub conflicts: Vec<Conflict>,
    /// From where to where a restore is possible.
    pub restorable: Vec<Restorable>,
    /// The archive as a whole.
    pub outcome: Outcome,
}

/// The pairs of files that have one name and different contents, the best copy first. For [`judge`] the caller finds
/// the first byte in which their contents differ; the end of the shorter one, if it has no other.
pub fn compare(files: &[File]) -> Vec<(usize, usize)> {
    let mut pairs = Vec::new();
    for copies in by_name(files).into_values() {
        let best =
            copies.iter().copied().reduce(|best, it| if rank(files, it) > rank(files, best) { it } else { best });
        let Some(best) = best else { continue };
        let hash = |nth: usize| files.get(nth).and_then(|file| file.sha256);
        let others =
            copies.into_iter().filter(|it| hash(*it).is_some_and(|own| hash(best).is_some_and(|it| it != own)));
        pairs.extend(others.map(|it| (best, it)));
    }
    pairs
}

/// Files of PostgreSQL's by their names.
fn by_name(files: &[File]) -> BTreeMap<&FileName, Vec<usize>> {
    let mut copies: BTreeMap<&FileName, Vec<usize>> = BTreeMap::new();
    for (nth, file) in files.iter().enumerate() {
        if !matches!(file.content, Content::Other(_) | Content::Unreadable(_)) {
            copies.entry(&file.name).or_default().push(nth);
        }
    }
    copies
}

/// The best copy has the highest rank.
fn rank(files: &[File], nth: usize) -> (bool, Lsn) {
    match files.get(nth).map(|file| &file.content) {
        Some(Content::Segment(finding)) => (is_whole(finding.verdict), finding.end),
        Some(Content::History(history)) => (history.is_ok(), Lsn(0)),
        _ => (true, Lsn(0)),
    }
}

/// Judges the files of an archive. `differences`: the offset of the first byte that differs in each pair of
/// [`compare`].
pub fn judge(files: &[File], differences: &BTreeMap<(usize, usize), u64>) -> Report {
    let cluster = cluster(files);
    let size = cluster.map_or(SegmentSize::DEFAULT, |cluster| cluster.size);
    let mut archive = Archive::new(size);
    let mut histories: BTreeMap<u32, History> = BTreeMap::new();
    for file in files {
        if let Content::History(Ok(history)) = &file.content {
            histories.entry(history.timeline).or_insert_with(|| history.clone());
        }
    }
    histories.values().for_each(|history| archive.add_history(history.clone()));
    let mut findings = Chain { files, size, histories: &histories }.findings(cluster);
    for (file, finding) in files.iter().zip(&mut findings) {
        if let FileName::Segment(name) | FileName::Partial(name) = &file.name {
            *finding = finding.take().map(|finding| finding.with_ends(&archive.ends_of(name.timeline)));
        }
    }
    for (file, finding) in files.iter().zip(&findings) {
        if let (FileName::Segment(name), Some(finding)) = (&file.name, finding)
            && finding.verdict != Verdict::Foreign
        {
            archive.add(*name, finding);
        }
    }
    for file in files {
        if let (FileName::Segment(name), Content::Unreadable(why)) = (&file.name, &file.content) {
            archive.add_unreadable(*name, why);
        }
    }
    let conflicts = conflicts(files, &findings, differences, size);
    for conflict in &conflicts {
        if let FileName::Segment(name) = conflict.name {
            let paths: Vec<&str> = conflict.contents.iter().map(|(path, _)| path.as_str()).collect();
            let because = format!("{name} has different contents from {} on: {}", conflict.lsn, paths.join(", "));
            archive.contest(name, conflict.lsn, because);
        }
    }
    let both = || files.iter().zip(findings.iter().map(Option::as_ref));
    let whole = both().filter(|(_, finding)| finding.is_some_and(|finding| is_whole(finding.verdict)));
    let whole = whole.map(|(file, _)| (&file.name, file.path.as_str())).collect();
    let view = View { archive: &archive, size, whole, last: last(files, &findings, size) };
    let files: Vec<Judged> = both().map(|(file, finding)| view.judge(file, finding)).collect();
    let timelines = archive.timelines();
    let unread = |timeline: &u32| files.iter().any(|file| file.name == FileName::History(*timeline));
    let missing_histories: Vec<u32> = archive.missing_histories().into_iter().filter(|it| !unread(it)).collect();
    let is_damaged = files.iter().any(|file| file.is_damage)
        || timelines.iter().any(|timeline| !timeline.gaps.is_empty())
        || !conflicts.is_empty()
        || !missing_histories.is_empty();
    // The segments of another cluster are not judged together with these, and may be those that are needed.
    let is_open = |file: &Judged| matches!(file.kind, Kind::Judged(Verdict::Unreadable | Verdict::Foreign));
    let is_unknown = files.iter().any(is_open) || cluster.is_none();
    let outcome = match (is_damaged, is_unknown) {
        (true, _) => Outcome::Damaged,
        (false, true) => Outcome::Unknown,
        (false, false) => Outcome::Whole,
    };
    let restorable = archive.restorable();
    let histories = histories.into_values().collect();
    Report { files, cluster, histories, missing_histories, timelines, conflicts, restorable, outcome }
}

/// The cluster of most segments; of two with the same number that of the newer segment.
fn cluster(files: &[File]) -> Option<Cluster> {
    let mut found: BTreeMap<(u64, SegmentSize), (usize, Lsn, Option<Version>)> = BTreeMap::new();
    for file in files {
        let Content::Segment(Finding { system: Some(system), size: Some(size), version, end, .. }) = &file.content
        else {
            continue;
        };
        let known = found.entry((*system, *size)).or_default();
        known.0 += 1;
        if *end >= known.1 {
            (known.1, known.2) = (*end, *version);
        }
    }
    let most = found.into_iter().max_by_key(|(_, (count, end, _))| (*count, *end));
    most.map(|((system, size), (_, _, version))| Cluster { system, version, size })
}

/// The last timeline that has segments, and the start of its last whole one.
fn last(files: &[File], findings: &[Option<Finding>], size: SegmentSize) -> (u32, Lsn) {
    let mut last = (0, Lsn(0));
    for (file, finding) in files.iter().zip(findings) {
        let (FileName::Segment(name), Some(finding)) = (&file.name, finding) else { continue };
        if finding.verdict == Verdict::Foreign {
            continue;
        }
        let start = name.start(size).filter(|_| is_whole(finding.verdict)).unwrap_or_default();
        last = last.max((name.timeline, start));
    }
    last
}

/// Names of which two copies are right beyond the first byte in which they differ.
fn conflicts(
    files: &[File],
    findings: &[Option<Finding>],
    differences: &BTreeMap<(usize, usize), u64>,
    size: SegmentSize,
) -> Vec<Conflict> {
    let mut found: BTreeMap<&FileName, Lsn> = BTreeMap::new();
    for ((best, other), offset) in differences {
        let Some((one, two)) = files.get(*best).zip(files.get(*other)) else { continue };
        let end = |nth: usize| findings.get(nth).and_then(Option::as_ref).map(|finding| finding.end);
        let is_foreign = |nth: usize| {
            findings.get(nth).and_then(Option::as_ref).is_some_and(|finding| finding.verdict == Verdict::Foreign)
        };
        let lsn = match (&one.content, &two.content) {
            (Content::Segment(_), Content::Segment(_)) => {
                let (FileName::Segment(name) | FileName::Partial(name)) = &one.name else { continue };
                let lsn = Lsn(name.start(size).unwrap_or_default().0.saturating_add(*offset));
                // What differs behind the end of what is right is damage, or not written yet.
                if end(*best).min(end(*other)).is_none_or(|end| end <= lsn) || is_foreign(*best) || is_foreign(*other) {
                    continue;
                }
                lsn
            }
            (Content::History(Ok(one)), Content::History(Ok(two))) => {
                let ends = |history: &History| history.switches.iter().map(|it| it.at).collect::<Vec<_>>();
                let (one, two) = (ends(one), ends(two));
                let differs = one.iter().zip(&two).find(|(one, two)| one != two).map(|(one, two)| *one.min(two));
                differs.or_else(|| one.last().copied()).unwrap_or_default()
            }
            (Content::Backup, Content::Backup) => lsn_of_backup(&one.name, size).unwrap_or_default(),
            _ => continue,
        };
        let known = found.entry(&one.name).or_insert(lsn);
        *known = lsn.min(*known);
    }
    // All files of the name that are right there.
    let contents = |name: &FileName, lsn: Lsn| {
        let copies = files
            .iter()
            .zip(findings)
            .filter(|(file, finding)| file.name == *name && finding.as_ref().is_none_or(|finding| finding.end > lsn));
        copies.filter_map(|(file, _)| Some((file.path.clone(), file.sha256?))).collect()
    };
    found.into_iter().map(|(name, lsn)| Conflict { name: name.clone(), lsn, contents: contents(name, lsn) }).collect()
}

fn lsn_of_backup(name: &FileName, size: SegmentSize) -> Option<Lsn> {
    let FileName::Backup(segment, offset) = name else { return None };
    segment.start(size).map(|start| Lsn(start.0.saturating_add(u64::from(*offset))))
}

/// What the verdict on a file depends on, beside the file.
struct View<'a> {
    archive: &'a Archive,
    size: SegmentSize,
    /// The path of a whole copy of a segment.
    whole: BTreeMap<&'a FileName, &'a str>,
    last: (u32, Lsn),
}

impl View<'_> {
    fn judge(&self, file: &File, finding: Option<&Finding>) -> Judged {
        let (kind, lsn, reason, is_damage) = match (&file.content, finding) {
            (Content::Segment(_), Some(finding)) => self.segment(file, finding.clone()),
            (Content::Segment(_), None) => (Kind::Other, None, String::new(), false),
            (Content::History(Ok(history)), _) => {
                let switch = history.switches.last();
                let reason = switch.map_or_else(String::new, |it| {
                    let why = if it.reason.is_empty() { "no reason given" } else { &it.reason };
                    format!("timeline {} begins there, at timeline {}: {why}", history.timeline, it.timeline)
                });
                (Kind::History, switch.map(|switch| switch.at), reason, false)
            }
            (Content::History(Err(error)), _) => (Kind::Judged(Verdict::Corrupt), None, error.clone(), true),
            (Content::Backup, _) => {
                let lsn = lsn_of_backup(&file.name, self.size);
                (Kind::Backup, lsn, "a base backup begins there".to_string(), false)
            }
            (Content::Other(what), _) => (Kind::Other, None, what.clone(), false),
            (Content::Unreadable(why), _) => (Kind::Judged(Verdict::Unreadable), None, why.clone(), false),
        };
        Judged { path: file.path.clone(), name: file.name.clone(), kind, lsn, reason, is_damage }
    }

    fn segment(&self, file: &File, mut finding: Finding) -> (Kind, Option<Lsn>, String, bool) {
        let (FileName::Segment(name) | FileName::Partial(name)) = &file.name else {
            return (Kind::Other, None, String::new(), false);
        };
        let ends = self.archive.ends_of(name.timeline);
        let is_segment = matches!(file.name, FileName::Segment(_));
        // A timeline that was left is not needed beyond its end.
        let is_left = ends.iter().any(|end| *end <= finding.end);
        let is_last = self.last.0 == name.timeline && name.start(self.size) > Some(self.last.1);
        let whole = self.whole.get(&file.name).filter(|_| is_segment && !is_whole(finding.verdict));
        let is_damage = match finding.verdict {
            Verdict::Corrupt => true,
            Verdict::Short => is_segment,
            Verdict::Partial | Verdict::Recycled => is_segment && !is_left && !is_last && whole.is_none(),
            _ => false,
        };
        if let Some(path) = whole {
            finding.reason += &format!("; another copy is whole: {path}");
        }
        (Kind::Judged(finding.verdict), Some(finding.end), finding.reason, is_damage)
    }
}
