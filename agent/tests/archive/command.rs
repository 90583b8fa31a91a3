//! The output in each format, the exit codes, and the pages about them.

use super::place::{Place, files, segment};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// The archive of the guide: a bit of a segment has flipped.
fn damaged() -> Place {
    let mut files = files();
    let used = files[&segment(1, 8)].iter().rposition(|byte| *byte != 0).unwrap();
    files.get_mut(&segment(1, 8)).unwrap()[used / 2] ^= 1;
    Place::with(&files)
}

/// `UPDATE_FORMATS=1` writes the files.
#[test]
fn the_output_in_each_format_is_as_before() {
    let place = damaged();
    for (format, file) in [("pretty", "damaged.txt"), ("json", "damaged.json"), ("tsv", "damaged.tsv")] {
        let answer = place.verify(&["-f", format, "wal"]);
        assert_eq!((answer.code, answer.err.as_str()), (1, ""));
        let path = root().join("testdata/archive").join(file);
        if std::env::var_os("UPDATE_FORMATS").is_some() {
            std::fs::write(&path, &answer.out).unwrap();
        }
        assert_eq!(answer.out, std::fs::read_to_string(&path).unwrap(), "{}", path.display());
    }
}

#[test]
fn the_guide_shows_the_output_of_the_command() {
    let out = std::fs::read_to_string(root().join("testdata/archive/damaged.txt")).unwrap();
    assert!(
        page("guide/archive.md").contains(&format!("```\n{out}```\n")),
        "the guide shows another output than\n{out}"
    );
}

#[test]
fn a_wrong_command_line_ends_with_64_and_only_there() {
    let place = Place::new();
    for arguments in
        [&["verify"][..], &["verify", "--no", "x"], &["verify", "-f", "xml", "x"], &["verify", "--jobs", "-1", "x"]]
    {
        let answer = place.warden(&[&["archive"], arguments].concat());
        assert!(answer.code == 64 && answer.err.starts_with("error: ") && answer.out.is_empty(), "{answer:?}");
    }
    for arguments in [&["archive"][..], &["archive", "no"], &["fence"], &["no", "archive", "verify"]] {
        assert_eq!(place.warden(arguments).code, 2, "{arguments:?}");
    }
    assert_eq!(place.warden(&["archive", "verify", "--help"]).code, 0);
}

#[test]
fn without_a_segment_nothing_is_known() {
    let place = Place::new();
    std::fs::create_dir(place.path("empty")).unwrap();
    place.write("file", b"");
    for (directory, words) in [
        ("nowhere", "nowhere  unreadable: no such directory"),
        ("file", "file  unreadable: not a directory"),
        ("empty", "UNKNOWN: there is no segment of WAL"),
    ] {
        let answer = place.verify(&[directory]);
        assert!(answer.code == 2 && answer.out.contains(words), "{answer:?}");
        assert_eq!(place.verify(&["-f", "json", directory]).code, 2);
    }
    let whole = Place::with(&files());
    assert_eq!(whole.verify(&["wal"]).code, 0);
    assert_eq!(whole.verify(&["wal", "nowhere"]).code, 2, "one of two is missing");
}

/// The configuration is not read, and nothing is written.
#[test]
fn nothing_but_the_archive_is_needed() {
    let place = Place::with(&files());
    let before: BTreeSet<_> = walk(&place.path(""));
    let answer = place.warden(&["--config", "/no/such/file", "archive", "verify", "wal"]);
    assert_eq!((answer.code, answer.err.as_str()), (0, ""));
    assert_eq!(walk(&place.path("")), before);
}

fn walk(path: &Path) -> BTreeSet<(PathBuf, u64, std::time::SystemTime)> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.metadata().unwrap();
        if metadata.is_dir() {
            found.extend(walk(&path));
        }
        found.insert((path, metadata.len(), metadata.modified().unwrap()));
    }
    found
}

/// The first code spans of the table below a heading.
fn table(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no heading {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_pages_have_every_verdict_field_and_exit_code() {
    let names = ["complete", "switched", "forked", "partial", "short", "recycled", "corrupt", "foreign", "unreadable"];
    for name in names {
        assert!(warden_wal::Verdict::of_name(name).is_some(), "{name}");
    }
    let verdicts: BTreeSet<String> =
        names.into_iter().chain(["history", "backup", "other"]).map(str::to_owned).collect();
    let reference = page("reference/archive.md");
    assert_eq!(table(&reference, "Verdicts"), verdicts);
    let guide = table(&page("guide/archive.md"), "What to do");
    assert!(guide.is_superset(&verdicts), "{:?}", verdicts.difference(&guide));
    let codes: BTreeSet<String> = ["0", "1", "2", "64"].map(str::to_owned).into();
    assert_eq!(table(&reference, "Exit codes"), codes);

    let mut fields = BTreeSet::new();
    let place = damaged();
    let mut other = files()[&segment(1, 7)].clone();
    other[8192 + 20] ^= 1;
    place.write(&format!("other/{}", segment(1, 7)), &other);
    flatten("", &place.verify(&["-f", "json", "wal", "other"]).json(), &mut fields);
    assert_eq!(table(&reference, "JSON"), fields);
}

fn flatten(path: &str, value: &serde_json::Value, fields: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let dot = if path.is_empty() { "" } else { "." };
                flatten(&format!("{path}{dot}{key}"), value, fields);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| flatten(&format!("{path}[]"), item, fields)),
        _ => drop(fields.insert(path.to_owned())),
    }
}
