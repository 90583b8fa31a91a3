//! Prints the judgment on an archive for a person. Files in a row with the same verdict are one line.

use super::clean;
use crate::client::archive::{Verified, hex};
use std::collections::BTreeMap;
use warden_wal::{Gap, History, Judged, Kind, Outcome, Report, Verdict};

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

/// The report as text, with the escape codes of a terminal if `color` is set.
pub(super) fn render(verified: &Verified, color: bool) -> String {
    let Verified { report, reused, .. } = verified;
    let paint =
        |color_code: &str, text: &str| if color { format!("{color_code}{text}{RESET}") } else { text.to_owned() };
    let mut out = String::new();
    let mut line = |text: &str| out.push_str(&format!("{}\n", clean(text)));
    line(&format!("Archive    {}", cluster(report)));
    let known = if *reused > 0 { format!(", {reused} of them known from the state") } else { String::new() };
    line(&format!("Files      {}{known}", report.files.len()));
    let (color_code, result) = result(report);
    out.push_str(&format!("Result     {}\n", paint(color_code, &result)));
    let section = |title: &str, lines: Vec<(bool, String)>, out: &mut String| {
        if !lines.is_empty() {
            out.push_str(&format!("\n{title}\n"));
        }
        for (is_bad, text) in lines {
            let text = format!("{} {}", if is_bad { '!' } else { ' ' }, clean(&text));
            out.push_str(&format!("{}\n", if is_bad { paint(YELLOW, &text) } else { text }));
        }
    };
    section("Files", files(report), &mut out);
    section("Timelines", timelines(report), &mut out);
    section("Conflicts", conflicts(report), &mut out);
    section("A base backup can be restored", restorable(report), &mut out);
    out
}

fn cluster(report: &Report) -> String {
    let Some(cluster) = report.cluster else { return "no segment of WAL could be read".to_owned() };
    let version = cluster.version.map_or_else(|| "?".to_owned(), |version| version.major().to_string());
    let size = cluster.size.bytes() >> 20;
    format!("PostgreSQL {version}, system identifier {}, segments of {size} MiB", cluster.system)
}

fn result(report: &Report) -> (&'static str, String) {
    let count = |number: usize, what: &str| match number {
        0 => None,
        1 => Some(format!("1 {what}")),
        number => Some(format!("{number} {what}s")),
    };
    let join = |parts: Vec<Option<String>>| parts.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let judged = |verdict| report.files.iter().filter(|file| file.kind == Kind::Judged(verdict)).count();
    let open =
        [count(judged(Verdict::Unreadable), "unreadable file"), count(judged(Verdict::Foreign), "foreign segment")];
    match report.outcome {
        Outcome::Whole => (GREEN, "whole".to_owned()),
        Outcome::Damaged => {
            let mut parts = vec![
                count(report.files.iter().filter(|file| file.is_damage).count(), "damaged file"),
                count(report.timelines.iter().map(|timeline| timeline.gaps.len()).sum(), "gap"),
                count(report.conflicts.len(), "conflict"),
                count(report.missing_histories.len(), "missing history file"),
            ];
            parts.extend(open);
            (RED, format!("DAMAGED: {}", join(parts)))
        }
        Outcome::Unknown => {
            let parts = join(open.into());
            let parts = if parts.is_empty() { "there is no segment of WAL".to_owned() } else { parts };
            (YELLOW, format!("UNKNOWN: {parts}"))
        }
    }
}

fn is_not_judged(file: &Judged) -> bool {
    matches!(file.kind, Kind::Judged(Verdict::Unreadable | Verdict::Foreign))
}

/// Whether the file is one of many that need no words of their own.
fn is_plain(kind: Kind) -> bool {
    matches!(kind, Kind::Judged(Verdict::Complete | Verdict::Switched))
}

/// The files in the order of their names. Neighbors with the same verdict are a range, those that are whole also if
/// they are `complete` and `switched`.
fn files(report: &Report) -> Vec<(bool, String)> {
    let mut files: Vec<&Judged> = report.files.iter().collect();
    files.sort_by(|one, two| (&one.name, &one.path).cmp(&(&two.name, &two.path)));
    let alike = |one: &&Judged, two: &&Judged| {
        let same_reason = one.kind == two.kind && one.reason == two.reason && one.is_damage == two.is_damage;
        let both_foreign = one.kind == two.kind && one.kind == Kind::Judged(Verdict::Foreign);
        (is_plain(one.kind) && is_plain(two.kind)) || same_reason || both_foreign
    };
    files.chunk_by(alike).filter_map(range).collect()
}

fn range(files: &[&Judged]) -> Option<(bool, String)> {
    let (first, last) = (files.first()?, files.last()?);
    let is_bad = first.is_damage || is_not_judged(first);
    if let [only] = files {
        let lsn = only.lsn.map_or_else(String::new, |lsn| format!(" at {lsn}"));
        let lsn = if is_plain(only.kind) { String::new() } else { lsn };
        let reason = if only.reason.is_empty() { String::new() } else { format!(": {}", only.reason) };
        return Some((is_bad, format!("{}  {}{lsn}{reason}", only.path, only.kind.name())));
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    files.iter().for_each(|file| *counts.entry(file.kind.name()).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let reason =
        if is_plain(first.kind) || first.reason.is_empty() { String::new() } else { format!(": {}", first.reason) };
    Some((is_bad, format!("{} to {}  {}{reason}", first.path, last.path, counts.join(", "))))
}

/// The timelines as a tree, each below the one that it forked from.
fn timelines(report: &Report) -> Vec<(bool, String)> {
    let histories: BTreeMap<u32, &History> = report.histories.iter().map(|it| (it.timeline, it)).collect();
    let mut numbers: Vec<u32> =
        report.timelines.iter().map(|it| it.timeline).chain(histories.keys().copied()).collect();
    numbers.extend(report.histories.iter().flat_map(|it| it.switches.iter().map(|switch| switch.timeline)));
    numbers.sort_unstable();
    numbers.dedup();
    let parent = |number: u32| histories.get(&number).and_then(|it| it.switches.last()).map(|switch| switch.timeline);
    let mut lines = Vec::new();
    let mut open: Vec<(u32, usize)> =
        numbers.iter().rev().filter(|it| parent(**it).is_none()).map(|it| (*it, 0)).collect();
    while let Some((number, depth)) = open.pop() {
        timeline(report, histories.get(&number).copied(), number, depth, &mut lines);
        let children = numbers.iter().rev().filter(|it| parent(**it) == Some(number));
        open.extend(children.map(|it| (*it, depth + 1)));
    }
    lines
}

fn timeline(report: &Report, history: Option<&History>, number: u32, depth: usize, lines: &mut Vec<(bool, String)>) {
    let indent = "  ".repeat(depth);
    let found = report.timelines.iter().find(|it| it.timeline == number);
    let range = found.map_or_else(|| "no segment".to_owned(), |it| format!("{} to {}", it.from, it.to));
    let begins = history
        .and_then(|it| it.switches.last())
        .map_or_else(String::new, |switch| format!(", begins at {} of timeline {}", switch.at, switch.timeline));
    let mut bad = false;
    let missing = if report.missing_histories.contains(&number) {
        bad = true;
        format!(", {number:08X}.history is missing")
    } else {
        String::new()
    };
    lines.push((bad, format!("{indent}{number}  {range}{begins}{missing}")));
    for Gap { from, to, segments } in found.into_iter().flat_map(|it| &it.gaps) {
        let unit = if *segments == 1 { "segment" } else { "segments" };
        lines.push((true, format!("{indent}   gap from {from} to {to}, {segments} {unit}")));
    }
}

fn conflicts(report: &Report) -> Vec<(bool, String)> {
    let mut lines = Vec::new();
    for conflict in &report.conflicts {
        lines.push((true, format!("{} has different contents from {} on", conflict.name, conflict.lsn)));
        for (path, hash) in &conflict.contents {
            lines.push((true, format!("   {}  {path}", hex(hash))));
        }
    }
    lines
}

fn restorable(report: &Report) -> Vec<(bool, String)> {
    let parts = report.restorable.iter().flat_map(|part| {
        let range = format!("along timeline {} from {} up to {}", part.timeline, part.from, part.to);
        [(false, range), (false, format!("  {}", part.because))]
    });
    parts.collect()
}
