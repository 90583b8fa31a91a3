//! A page of the documentation: its tables, headings and links.
//!
//! The first columns of some tables come from the code. Their test compares them with the code, or writes them if
//! `UPDATE_DOCS=1` is set. It keeps the other columns, which are written by hand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A file of Markdown.
pub struct Page {
    /// Relative to the root of the repository.
    pub name: String,
    pub text: String,
}

/// A row of a table: the code span of its first cell, and every cell.
pub struct Row {
    pub name: String,
    pub cells: Vec<String>,
}

/// A page below `agent/docs`.
pub fn page(name: &str) -> Page {
    Page::read(&format!("agent/docs/{name}"))
}

impl Page {
    pub fn read(name: &str) -> Self {
        let text = std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        Self { name: name.to_owned(), text }
    }

    /// The rows of the table below `heading`.
    pub fn table(&self, heading: &str) -> Vec<Row> {
        let range = self.rows(heading);
        let lines = self.text.lines().skip(range.start).take(range.len());
        lines.map(|line| self.row(line)).collect()
    }

    /// The table below `heading` has each of `names` once and no other row.
    pub fn assert_lists(&self, heading: &str, names: &BTreeSet<String>) {
        let place = format!("{}, {heading}", self.name);
        assert!(!names.is_empty(), "the code has no names for {place}: this test reads the wrong source");
        let rows = self.table(heading);
        for row in &rows {
            assert!(row.cells.iter().all(|cell| !cell.is_empty()), "{place}: {} has an empty cell", row.name);
        }
        let listed: BTreeSet<String> = rows.iter().map(|row| row.name.clone()).collect();
        let missing: Vec<_> = names.difference(&listed).collect();
        let invented: Vec<_> = listed.difference(names).collect();
        assert!(missing.is_empty(), "{place}: the page lacks {missing:?}");
        assert!(invented.is_empty(), "{place}: the page has {invented:?}, and the code does not");
        assert_eq!(rows.len(), listed.len(), "{place}: a name is listed twice");
    }

    /// Each row of the table below `heading` begins with its cells in `from_code`. With `UPDATE_DOCS=1` the test writes
    /// the table, and keeps the further cells of a row by its first cell.
    pub fn assert_generated(&self, heading: &str, from_code: &[Vec<String>]) {
        let range = self.rows(heading);
        let lines: Vec<&str> = self.text.lines().collect();
        let width = cells(lines[range.start - 2]).len();
        let old = self.table(heading);
        let new = from_code.iter().map(|generated| {
            let mut row = generated.clone();
            let kept = old.iter().find(|row| row.cells.first() == generated.first());
            row.extend(kept.into_iter().flat_map(|row| row.cells.iter().skip(generated.len()).cloned()));
            row.resize(width, String::new());
            format!("| {} |", row.join(" | "))
        });
        let new: Vec<String> = new.collect();
        if lines[range.clone()].iter().eq(new.iter()) {
            return;
        }
        if std::env::var_os("UPDATE_DOCS").is_none() {
            let differs = lines[range].iter().zip(&new).find(|(old, new)| **old != **new);
            panic!(
                "{}, {heading}: the table is not as the code has it; set UPDATE_DOCS=1 to write it. \
                 The first row that differs (page, code): {differs:#?}",
                self.name
            );
        }
        let before = lines.iter().take(range.start).map(|line| (*line).to_owned());
        let after = lines.iter().skip(range.end).map(|line| (*line).to_owned());
        let text: Vec<String> = before.chain(new).chain(after).collect();
        std::fs::write(root().join(&self.name), text.join("\n") + "\n").unwrap();
    }

    /// Headings outside of code blocks, with their `#`.
    pub fn headings(&self) -> Vec<&str> {
        let prose = self.prose();
        prose.into_iter().map(|(_, line)| line).filter(|line| line.starts_with('#')).collect()
    }

    /// The anchors that GitHub gives to the headings.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut anchors = BTreeSet::new();
        for heading in self.headings() {
            let text = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            let anchor = kept.collect::<String>().replace(' ', "-");
            let repeated = (1..).map(|count| format!("{anchor}-{count}"));
            let unique = std::iter::once(anchor.clone()).chain(repeated).find(|name| !anchors.contains(name));
            anchors.extend(unique);
        }
        anchors
    }

    /// The lines outside of code blocks, with their numbers.
    pub fn prose(&self) -> Vec<(usize, &str)> {
        let mut in_code = false;
        let numbered = self.text.lines().enumerate().filter(|(_, line)| {
            let fence = line.trim_start().starts_with("```");
            in_code ^= fence;
            !in_code && !fence
        });
        numbered.map(|(index, line)| (index + 1, line)).collect()
    }

    /// The targets of all links, with the numbers of their lines.
    pub fn links(&self) -> Vec<(usize, String)> {
        let mut links = Vec::new();
        for (number, line) in self.prose() {
            let text = without_code(line);
            let inline = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
            links.extend(inline.map(|target| (number, target.to_owned())));
            if let Some((_, target)) = text.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
                links.push((number, target.to_owned()));
            }
        }
        links
    }

    /// The indices of the table's lines below `heading`, without its head.
    fn rows(&self, heading: &str) -> std::ops::Range<usize> {
        let lines: Vec<&str> = self.text.lines().collect();
        let top = lines.iter().position(|line| *line == heading);
        let top = top.unwrap_or_else(|| panic!("{} has no heading {heading:?}", self.name));
        let until = |from: usize, is_over: fn(&str) -> bool| {
            let length = lines[from..].iter().take_while(|line| !is_over(line)).count();
            from + length
        };
        let head = until(top + 1, |line| line.starts_with('|') || line.starts_with('#'));
        let end = until(head, |line| !line.starts_with('|'));
        assert!(end > head + 1, "{}: there is no table below {heading:?}", self.name);
        head + 2..end
    }

    fn row(&self, line: &str) -> Row {
        let cells = cells(line);
        let name = cells[0].split('`').nth(1);
        let name = name.unwrap_or_else(|| panic!("{}: no code span in the first cell of {line:?}", self.name));
        Row { name: name.to_owned(), cells }
    }
}

/// Every page that the checks of form apply to.
pub fn all() -> Vec<Page> {
    let mut names = vec!["README.md".to_owned(), "agent/CHANGELOG.md".to_owned()];
    for directory in ["agent/docs", ".github"] {
        markdown(directory, &mut names);
    }
    names.iter().map(|name| Page::read(name)).collect()
}

fn markdown(directory: &str, names: &mut Vec<String>) {
    let mut entries: Vec<_> = std::fs::read_dir(root().join(directory)).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = format!("{directory}/{}", entry.file_name().to_str().unwrap());
        if entry.path().is_dir() {
            markdown(&name, names);
        } else if name.ends_with(".md") {
            names.push(name);
        }
    }
}

fn cells(line: &str) -> Vec<String> {
    let inner = line.strip_prefix("| ").and_then(|line| line.strip_suffix(" |"));
    let inner = inner.unwrap_or_else(|| panic!("not a row of a table: {line:?}"));
    inner.split(" | ").map(|cell| cell.trim().to_owned()).collect()
}

/// A line without its code spans.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}
