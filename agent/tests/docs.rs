//! The reference pages list every name that others may rely on, and no other.
//!
//! The names come from the code: from its tables, its answers, or its source if it has no other list. `UPDATE_DOCS=1
//! cargo test -p warden --test docs` writes the tables that the code has in full.

// clippy.toml allows these in tests; the helpers here are outside of them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "docs/page.rs"]
mod page;
#[path = "docs/sample.rs"]
mod sample;

#[path = "docs/form.rs"]
mod form;

use page::page;
use sample::{failed, fence, sample};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use warden::config::Config;
use warden::tell::metrics::Metrics;
use warden::tell::state;
use warden_core::event::{
    Barrier, Event, FenceOutcome, FenceRecord, FenceReport, Outcome, ReleaseReport, Report, Rule, ZooKeeperEvent,
};
use warden_core::haproxy::{HoldOutcome, HoldReport, Pool, RouteOutcome, RouteReport, ServerCommand, ServerId};
use warden_core::types::Mode;
use warden_core::warn::CODES;

/// The agent's sources that contain `text`, without their tests: found by their content and not by their path.
fn sources_with(text: &str) -> String {
    let mut all = String::new();
    each_source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut |source| {
        if source.contains(text) {
            all.push_str(source);
        }
    });
    assert!(!all.is_empty(), "no source has {text:?}: this test reads the wrong tree");
    all
}

/// The string literals of a source that consist of `prefix` and letters of [a-zA-Z_].
fn literals(source: &str, prefix: &str) -> BTreeSet<String> {
    let quoted = source.split('"').filter(|text| text.len() > prefix.len() && text.starts_with(prefix));
    quoted.filter(|text| text.chars().all(|c| c.is_ascii_alphabetic() || c == '_')).map(str::to_owned).collect()
}

fn each_source(directory: &Path, take: &mut impl FnMut(&str)) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            each_source(&path, take);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") {
            take(&std::fs::read_to_string(path).unwrap());
        }
    }
}

fn warden(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warden"));
    // The help shows the value of the variable.
    let output = command.args(arguments).env_remove("WARDEN_CONFIG").output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn every_warning_code_is_documented_with_its_meaning_and_its_remedy() {
    let page = page("reference/warnings.md");
    let codes = CODES.iter().map(|(code, meaning)| vec![format!("`{code}`"), (*meaning).to_owned()]);
    page.assert_generated("# Warning codes", &codes.collect::<Vec<_>>());
    page.assert_lists("# Warning codes", &CODES.iter().map(|(code, _)| (*code).to_owned()).collect());
}

#[test]
fn every_metric_is_documented_with_its_type_its_labels_and_its_help() {
    let (clock, view) = sample();
    let metrics = Metrics::new().unwrap();
    let lost = Event::ZooKeeper(ZooKeeperEvent::SessionLost { reason: "disconnected", detail: String::new() });
    let took = Duration::from_millis(20);
    let fenced = FenceOutcome::Confirmed { by: "fast shutdown", took };
    let acts = [
        Event::Report(Report::Fence(FenceReport { member: "b".into(), rule: Rule::Superseded, outcome: fenced })),
        Event::Report(Report::Release(ReleaseReport::Done { took })),
        Event::Report(Report::Nudged(Outcome::Done)),
        Event::Report(Report::Reconnected(Outcome::Done)),
        Event::Report(Report::Hold(HoldReport { proxy: "writes".to_owned(), outcome: HoldOutcome::Begun })),
        Event::Report(Report::Hold(HoldReport {
            proxy: "writes".to_owned(),
            outcome: HoldOutcome::Ended { after: took },
        })),
        Event::Report(Report::Routed(RouteReport {
            pool: Pool::Writes,
            server: ServerId { proxy: "writes".to_owned(), name: "pg-a".to_owned() },
            member: "a".into(),
            to: ServerCommand::Up,
            outcome: RouteOutcome::Done { took },
        })),
    ];
    for event in
        [Event::Tick, lost, Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown(String::new()))), failed()]
            .iter()
            .chain(&acts)
    {
        metrics.count(event, clock.now());
    }
    metrics.count_leader_change("b");
    let text = String::from_utf8(metrics.render(&view, clock.now()).unwrap()).unwrap();
    let metrics = metrics_of(&text);
    let names: BTreeSet<String> = metrics.iter().map(|metric| metric[0].trim_matches('`').to_owned()).collect();
    assert_eq!(names, literals(&sources_with("use prometheus::"), "warden_"), "a metric is not exercised here");
    page("reference/metrics.md").assert_generated("# Metrics", &metrics);
}

/// Name, type, labels and help of each metric in Prometheus's text format.
fn metrics_of(text: &str) -> Vec<Vec<String>> {
    let families = text.split("# HELP ").skip(1).map(|family| {
        let mut lines = family.lines();
        let (name, help) = lines.next().unwrap().split_once(' ').unwrap();
        let kind = lines.next().unwrap().rsplit(' ').next().unwrap();
        let series = lines.next().and_then(|line| line.split_once('{')).map_or("", |(_, labels)| labels);
        let labels = series.split("=\"").filter_map(|part| part.rsplit([',', '"', ' ']).next());
        let labels: Vec<String> = labels
            .filter(|label| !label.is_empty() && *label != "le" && label.chars().all(|c| c.is_ascii_lowercase()))
            .map(|label| format!("`{label}`"))
            .collect();
        let labels = if labels.is_empty() { "none".to_owned() } else { labels.join(", ") };
        vec![format!("`{name}`"), kind.to_owned(), labels, help.to_owned()]
    });
    families.collect()
}

#[test]
fn every_subcommand_is_documented() {
    let names = subcommands().iter().map(|name| format!("warden {name}")).collect();
    page("reference/cli.md").assert_lists("## Subcommands", &names);
}

#[test]
fn every_option_is_documented_with_its_help() {
    let mut rows = options_of("warden", &warden(&["--help"]).1);
    for name in subcommands() {
        let help = warden(&[&name, "--help"]).1;
        let options = options_of(&format!("warden {name}"), &help);
        rows.extend(options.into_iter().filter(|row| !row[0].contains(" --config ")));
        for inner in subcommands_of(&help) {
            let options = options_of(&format!("warden {name} {inner}"), &warden(&[&name, &inner, "--help"]).1);
            rows.extend(options.into_iter().filter(|row| !row[0].contains(" --config ")));
        }
    }
    page("reference/cli.md").assert_generated("## Options", &rows);
}

/// The subcommands, in the order of the help.
fn subcommands() -> Vec<String> {
    subcommands_of(&warden(&["--help"]).1)
}

fn subcommands_of(help: &str) -> Vec<String> {
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).map(str::to_owned).collect()
}

/// The arguments and options in a command's help, each with its meaning, default and environment variable.
fn options_of(command: &str, help: &str) -> Vec<Vec<String>> {
    let lines = help.lines().map(str::trim).filter(|line| line.starts_with('-') || line.starts_with('<'));
    let options = lines.filter(|line| !line.contains("--help"));
    let rows = options.map(|line| {
        let (spec, meaning) = line.split_once("  ").unwrap_or_else(|| panic!("{command}: {line:?} has no meaning"));
        let (short, long) = spec.split_once(", ").map_or((None, spec), |(short, long)| (Some(short), long));
        let short = short.map_or(String::new(), |short| format!(" (`{short}`)"));
        let mut meaning = meaning.trim().split(" [");
        let mut sentence = format!("{}.", meaning.next().unwrap());
        for note in meaning.map(|note| note.trim_end_matches(']')) {
            match note.split_once(": ") {
                Some(("default", value)) => sentence += &format!(" Default: `{}`.", value.trim_matches('"')),
                Some(("env", name)) => sentence += &format!(" Environment: `{}`.", name.trim_end_matches('=')),
                _ => {}
            }
        }
        vec![format!("`{command} {}`{short}", long.replace(['<', '>'], "")), sentence]
    });
    rows.collect()
}

/// The keys that the YAML reader lists in its error about an unknown key.
fn keys_of(section: Option<&str>) -> Option<BTreeSet<String>> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("warden.yml");
    let yaml = section.map_or_else(|| "no_such_key: 1\n".to_owned(), |name| format!("{name}: {{no_such_key: 1}}\n"));
    std::fs::write(&path, yaml).unwrap();
    let problem = Config::load(&path).unwrap_err().problem;
    let (_, expected) = problem.split_once("unknown field `no_such_key`, expected one of ")?;
    let expected = expected.split(" at line ").next()?;
    Some(expected.split(", ").map(str::to_owned).collect())
}

#[test]
fn every_configuration_key_is_documented() {
    let mut keys = BTreeSet::new();
    for key in keys_of(None).expect("an unknown key at the top is an error that lists the known ones") {
        match keys_of(Some(&key)) {
            Some(section) => keys.extend(section.into_iter().map(|inner| format!("{key}.{inner}"))),
            None => drop(keys.insert(key)),
        }
    }
    page("reference/configuration.md").assert_lists("## Configuration keys", &keys);
}

#[test]
fn every_exit_code_is_documented() {
    let cli = sources_with("pub const NO_ANSWER: u8");
    let constants = cli.lines().filter_map(|line| line.strip_prefix("pub const ")?.split_once(": u8 = "));
    let mut codes: BTreeSet<String> = constants.map(|(_, value)| value.trim_end_matches(';').to_owned()).collect();
    assert!(codes.contains(&warden::cli::NO_ANSWER.to_string()), "{codes:?}");
    let (wrong_command_line, _) = warden(&["--no-such-option"]);
    codes.insert(wrong_command_line.unwrap().to_string());
    page("reference/cli.md").assert_lists("## Exit codes", &codes);
}

#[test]
fn every_http_path_is_documented_with_its_method() {
    let http = sources_with(".route(\"");
    let routes = http.split(".route(\"").skip(1).map(|rest| {
        let (path, rest) = rest.split_once("\", ").unwrap();
        format!("{} {path}", rest.split('(').next().unwrap().to_uppercase())
    });
    page("reference/http.md").assert_lists("## Requests", &routes.collect());
}

#[test]
fn every_environment_variable_of_warden_is_documented() {
    let names = literals(&sources_with("WARDEN_"), "WARDEN_");
    page("reference/environment.md").assert_lists("# Environment variables", &names);
}

#[test]
fn every_field_of_the_state_is_documented() {
    let (clock, view) = sample();
    let state = state::state(&view, &clock, clock.now(), state::Observer::Agent(Mode::Enforce));
    let mut fields = BTreeSet::new();
    flatten("", &serde_json::to_value(&state).unwrap(), &mut fields);
    page("reference/state.md").assert_lists("## Fields", &fields);
}

/// The paths of all leaves: `leader.name`, `members[].postgres.answer`, `agents[].roles`.
fn flatten(path: &str, value: &serde_json::Value, fields: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{dot}{key}"), value, fields);
            }
        }
        serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
            items.iter().for_each(|item| flatten(&format!("{path}[]"), item, fields));
        }
        _ => drop(fields.insert(path.to_owned())),
    }
}

#[test]
fn the_fence_record_that_is_shown_has_the_fields_of_a_fence_record() {
    let text = page("reference/zookeeper.md").text;
    let section = text.split("\n## Fence records\n").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let shown = section.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next());
    let parsed: Vec<FenceRecord> = shown.filter_map(|json| warden::znode::fence::parse(json.as_bytes()).ok()).collect();
    let [record] = parsed.as_slice() else { panic!("not one fence record, but {}", parsed.len()) };
    let fields = |record: &FenceRecord| {
        let value: serde_json::Value = serde_json::from_slice(&warden::znode::fence::write(record)).unwrap();
        value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>()
    };
    assert!(record.confirmed.is_some() && !record.facts.is_empty(), "every field is shown with a value");
    assert_eq!(fields(record), fields(&fence()));
}

/// Every rule by which the agent acts has its row, with the key that turns it off.
#[test]
fn every_rule_is_documented() {
    let fences = Rule::ALL.into_iter().filter(|rule| *rule != Rule::Crashed).map(|rule| rule.as_str().to_owned());
    let others = ["release", "handover", "nudge", "reconnect", "gate", "routing"].map(str::to_owned);
    page("reference/rules.md").assert_lists("# Rules", &fences.chain(others).collect());
}
