//! Every line that the agent logs at `info`, `warn` or `error` names its event, and the reference lists the events.
//!
//! The test reads the sources. Each call of the macros begins with `event = "name"`. `log_events::EVENTS` lists each
//! name, and the agent uses each name. `UPDATE_DOCS=1` writes the table of `docs/reference/logs.md`.

// clippy.toml allows these in tests; the helpers here are outside of them.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use warden::log_events::EVENTS;

/// A call of one of the logging macros.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    line: usize,
    level: String,
    event: Option<String>,
}

/// The calls in a source, without those in comments.
fn calls(source: &str) -> Vec<Call> {
    let mut calls = Vec::new();
    for (at, _) in source.match_indices("!(") {
        let (before, after) = (&source[..at], &source[at + 2..]);
        let line_begins = before.rfind('\n').map_or(0, |end| end + 1);
        if before[line_begins..].trim_start().starts_with("//") {
            continue;
        }
        let name_begins = before.rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |end| end + 1);
        let level = &before[name_begins..];
        // `event!` counts as unlisted: its level is an argument, and the agent has no use for it.
        if !["info", "warn", "error", "event"].contains(&level) {
            continue;
        }
        let first = after.trim_start().strip_prefix("event = \"");
        let event = first.and_then(|rest| rest.split_once('"')).map(|(event, _)| event.to_owned());
        calls.push(Call { line: before.matches('\n').count() + 1, level: level.to_owned(), event });
    }
    calls
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every call in the agent's sources, with its file.
fn all_calls() -> Vec<(PathBuf, Call)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let in_file = |path: PathBuf| {
        let source = std::fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(&root).unwrap().to_owned();
        calls(&source).into_iter().map(move |call| (path.clone(), call)).collect::<Vec<_>>()
    };
    sources(&root).into_iter().flat_map(in_file).collect()
}

fn is_event_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

#[test]
fn the_calls_of_a_source_are_found_with_their_events() {
    let source = "// info!(event = \"no\")\nwarn!(\n    event = \"a_b\",\n    x, \"text\");\n\
                  tracing::error!(x, \"y\");\ndebug!(\"z\"); println!(\"\"); if x { info!(event = \"c\", \"d\") }";
    let expected = [(2, "warn", Some("a_b")), (5, "error", None), (6, "info", Some("c"))];
    let expected =
        expected.map(|(line, level, event)| Call { line, level: level.to_owned(), event: event.map(str::to_owned) });
    assert_eq!(calls(source), expected);
}

#[test]
fn every_line_from_info_on_begins_with_an_event_that_is_listed() {
    let known: BTreeSet<&str> = EVENTS.iter().map(|(name, _)| *name).collect();
    let calls = all_calls();
    assert!(!calls.is_empty(), "this test reads the wrong tree");
    let wrong: Vec<String> = calls
        .iter()
        .filter_map(|(path, call)| {
            let why = match &call.event {
                None => "has no `event = \"...\"` as its first field".to_owned(),
                Some(event) if !known.contains(event.as_str()) => {
                    format!("has the event {event:?}, which is not listed")
                }
                Some(_) => return None,
            };
            Some(format!("src/{}:{}: {}! {why}", path.display(), call.line, call.level))
        })
        .collect();
    assert!(wrong.is_empty(), "see src/log_events.rs:\n{}", wrong.join("\n"));
}

#[test]
fn every_event_that_is_listed_is_logged_somewhere() {
    let used: BTreeSet<String> = all_calls().into_iter().filter_map(|(_, call)| call.event).collect();
    let unused: Vec<&str> = EVENTS.iter().map(|(name, _)| *name).filter(|name| !used.contains(*name)).collect();
    assert!(unused.is_empty(), "src/log_events.rs lists {unused:?}, which no line of src logs");
}

#[test]
fn the_list_is_sorted_and_gives_each_event_one_sentence() {
    assert!(EVENTS.is_sorted_by(|(a, _), (b, _)| a < b), "it is not sorted, or lists an event twice");
    for (name, meaning) in EVENTS {
        assert!(is_event_name(name), "{name:?} is not snake_case");
        let one_sentence = meaning.ends_with('.') && !meaning.trim_end_matches('.').contains(". ");
        assert!(one_sentence && !meaning.contains('|'), "{name}: {meaning:?} is not one sentence for a table");
    }
}

/// The table of the reference, from the code: event, its levels, meaning.
fn table() -> String {
    let mut levels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, call) in all_calls() {
        let Some(event) = call.event else { continue };
        levels.entry(event).or_default().insert(call.level);
    }
    let mut table = String::from("| event | level | meaning |\n|---|---|---|\n");
    for (name, meaning) in EVENTS {
        let levels: Vec<&str> = levels.get(*name).into_iter().flatten().map(String::as_str).collect();
        writeln!(table, "| `{name}` | {} | {meaning} |", levels.join(", ")).unwrap();
    }
    table
}

#[test]
fn the_reference_lists_every_event_with_its_level_and_meaning() {
    const HEADING: &str = "\n## Events\n\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/logs.md");
    let page = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (before, rest) = page.split_once(HEADING).expect("the page has no heading \"## Events\"");
    // The table ends where its lines do.
    let after = rest.trim_start_matches('\n');
    let after = after.split_inclusive('\n').skip_while(|line| line.starts_with('|')).collect::<String>();
    let wanted = format!("{before}{HEADING}{}{after}", table());
    if std::env::var("UPDATE_DOCS").is_ok_and(|update| update == "1") {
        std::fs::write(&path, wanted).unwrap();
    } else {
        assert!(page == wanted, "{} differs from the code; UPDATE_DOCS=1 rewrites it", path.display());
    }
}
