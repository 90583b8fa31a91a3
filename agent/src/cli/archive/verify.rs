//! `warden archive verify`: verifies archives of WAL without a cluster and without a configuration.

use super::{clean, pretty};
use crate::client::archive::{self, Progress, Request, Verified, hex};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use warden_wal::{Outcome, Report};

/// A file is damaged or missing.
const DAMAGED: u8 = 1;

/// Something could not be judged.
const UNKNOWN: u8 = 2;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Directories of one archive: plain, or a repository of pgBackRest, WAL-G or Barman
    #[arg(value_name = "DIR", required = true)]
    directories: Vec<PathBuf>,
    /// pretty, json or tsv
    #[arg(long, short, value_enum, default_value_t = Format::Pretty)]
    format: Format,
    /// Number of files that are read at once; 0 is one for each processor
    #[arg(long, short, default_value_t = 1)]
    jobs: usize,
    /// File that keeps the findings, so that the next run reads new files only
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Read all files, also those that the state knows
    #[arg(long)]
    full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Pretty,
    Json,
    Tsv,
}

pub(super) fn main(args: &Args) -> ExitCode {
    let Args { directories, format, jobs, state, full } = args;
    let jobs = match jobs {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        jobs => *jobs,
    };
    let bar = Bar::new();
    let request = Request { directories, jobs, state: state.as_deref(), full: *full };
    let done = archive::verify(&request, &bar);
    bar.0.finish_and_clear();
    let verified = match done {
        Ok(verified) => verified,
        Err(error) => {
            eprintln!("warden: {error}");
            return ExitCode::from(UNKNOWN);
        }
    };
    let Verified { report, notes, .. } = &verified;
    notes.iter().for_each(|note| eprintln!("warden: {note}"));
    let text = match format {
        Format::Pretty => {
            let color = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            pretty::render(&verified, color)
        }
        Format::Json => json(report) + "\n",
        Format::Tsv => tsv(report),
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            eprintln!("warden: cannot write the result: {error}");
            ExitCode::from(UNKNOWN)
        }
        _ => ExitCode::from(code(report.outcome)),
    }
}

const fn code(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Whole => 0,
        Outcome::Damaged => DAMAGED,
        Outcome::Unknown => UNKNOWN,
    }
}

/// A progress bar on stderr; nothing where that is no terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        if !io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let template = "{bytes} of {total_bytes} [{wide_bar}] {bytes_per_sec}, {eta} left";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::no_length().with_style(style))
    }
}

impl Progress for Bar {
    fn starts(&self, bytes: u64) {
        self.0.set_length(bytes);
    }

    fn advances(&self, bytes: u64) {
        self.0.inc(bytes);
    }
}

#[derive(Serialize)]
struct Output<'a> {
    files: Vec<FileOutput<'a>>,
    timelines: Vec<TimelineOutput>,
    conflicts: Vec<ConflictOutput<'a>>,
    restorable: Vec<RestorableOutput<'a>>,
}

#[derive(Serialize)]
struct FileOutput<'a> {
    file: &'a str,
    verdict: &'static str,
    lsn: Option<String>,
    reason: &'a str,
}

#[derive(Serialize)]
struct TimelineOutput {
    timeline: u32,
    from: String,
    to: String,
    gaps: Vec<GapOutput>,
}

#[derive(Serialize)]
struct GapOutput {
    from: String,
    to: String,
    segments: u64,
}

#[derive(Serialize)]
struct ConflictOutput<'a> {
    file: String,
    lsn: String,
    contents: Vec<ContentOutput<'a>>,
}

#[derive(Serialize)]
struct ContentOutput<'a> {
    path: &'a str,
    sha256: String,
}

#[derive(Serialize)]
struct RestorableOutput<'a> {
    timeline: u32,
    from: String,
    to: String,
    because: &'a str,
}

/// The report as JSON. Positions are text, timelines are numbers, `from` is inclusive and `to` exclusive.
fn json(report: &Report) -> String {
    let files = report.files.iter().map(|file| FileOutput {
        file: &file.path,
        verdict: file.kind.name(),
        lsn: file.lsn.map(|lsn| lsn.to_string()),
        reason: &file.reason,
    });
    let timelines = report.timelines.iter().map(|timeline| TimelineOutput {
        timeline: timeline.timeline,
        from: timeline.from.to_string(),
        to: timeline.to.to_string(),
        gaps: timeline
            .gaps
            .iter()
            .map(|gap| GapOutput { from: gap.from.to_string(), to: gap.to.to_string(), segments: gap.segments })
            .collect(),
    });
    let conflicts = report.conflicts.iter().map(|conflict| ConflictOutput {
        file: conflict.name.to_string(),
        lsn: conflict.lsn.to_string(),
        contents: conflict.contents.iter().map(|(path, hash)| ContentOutput { path, sha256: hex(hash) }).collect(),
    });
    let restorable = report.restorable.iter().map(|part| RestorableOutput {
        timeline: part.timeline,
        from: part.from.to_string(),
        to: part.to.to_string(),
        because: &part.because,
    });
    let output = Output {
        files: files.collect(),
        timelines: timelines.collect(),
        conflicts: conflicts.collect(),
        restorable: restorable.collect(),
    };
    // Strings and numbers are always valid JSON.
    serde_json::to_string_pretty(&output).unwrap_or_default()
}

/// A line for each file, timeline, gap, conflict and part that can be restored; the first column says which.
fn tsv(report: &Report) -> String {
    let mut out = String::new();
    for file in &report.files {
        let lsn = file.lsn.map_or_else(String::new, |lsn| lsn.to_string());
        let (path, verdict, reason) = (clean(&file.path), file.kind.name(), clean(&file.reason));
        out += &format!("file\t{path}\t{verdict}\t{lsn}\t{reason}\n");
    }
    for timeline in &report.timelines {
        out += &format!("timeline\t{}\t{}\t{}\n", timeline.timeline, timeline.from, timeline.to);
        for gap in &timeline.gaps {
            out += &format!("gap\t{}\t{}\t{}\t{}\n", timeline.timeline, gap.from, gap.to, gap.segments);
        }
    }
    for conflict in &report.conflicts {
        for (path, hash) in &conflict.contents {
            out += &format!("conflict\t{}\t{}\t{}\t{}\n", conflict.name, conflict.lsn, clean(path), hex(hash));
        }
    }
    for part in &report.restorable {
        out += &format!("restorable\t{}\t{}\t{}\t{}\n", part.timeline, part.from, part.to, clean(&part.because));
    }
    out
}
