//! The limits of a function, a line and a source.

use super::rust;
use super::tree::Tree;
use super::{Violations, at};

const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 120;
const FILE_LINES_MAX: usize = 450;

/// A function is counted from the line of its name to the brace that closes it.
pub fn functions(tree: &Tree) -> Violations {
    let mut violations = Violations::new();
    for (path, source) in tree.ending(".rs") {
        for (line, name, length) in rust::functions(&rust::lines(source)) {
            if length > FUNCTION_LINES_MAX {
                violations.push(at(path, line, &format!("fn {name} has {length} lines")));
            }
        }
    }
    violations
}

/// Sources, scripts and pages. An address cannot be broken, and a row of a table neither.
pub fn lines(tree: &Tree) -> Violations {
    let (sources, pages) = (tree.ending(".rs"), tree.ending(".md"));
    let mut violations = Violations::new();
    for (path, text) in sources.chain(tree.scripts()).chain(pages) {
        let page = path.ends_with(".md");
        for (number, line) in text.lines().enumerate() {
            let columns = if page && line.trim_start().starts_with('|') { 0 } else { without_addresses(line, page) };
            if columns > COLUMNS_MAX {
                violations.push(at(path, number, &format!("{columns} columns: {}", line.trim())));
            }
        }
    }
    violations
}

/// The columns of a line without its addresses; in a page without the targets of its links as well.
fn without_addresses(line: &str, page: bool) -> usize {
    let ends = |c: char| c.is_whitespace() || matches!(c, ')' | ']' | '>' | '"' | '`');
    let columns = |from: usize| line[from..].split(ends).next().unwrap_or_default().chars().count();
    let addresses = line.match_indices("://").map(|(at, _)| columns(at));
    let targets = line.match_indices("](").map(|(at, _)| at + 2).filter(|at| page && !line[*at..].starts_with("http"));
    line.chars().count() - addresses.sum::<usize>() - targets.map(columns).sum::<usize>()
}

/// Lines of an item behind `#[cfg(test)]` are not counted, nor are sources that hold nothing but tests.
pub fn files(tree: &Tree) -> Violations {
    let tests_only = |path: &str| path.ends_with("tests.rs") || path.starts_with("agent/tests/");
    let modules = tree.modules(&tree.targets());
    let mut violations = Violations::new();
    for (path, source) in tree.ending(".rs").filter(|(path, _)| !tests_only(path) && modules.get(*path) != Some(&true))
    {
        let lines = rust::lines(source);
        let tests = rust::tests(&lines).into_iter().filter(|test| *test).count();
        let count = source.lines().count() - tests;
        if count > FILE_LINES_MAX {
            violations.push(at(path, 0, &format!("{count} lines without its tests")));
        }
    }
    violations
}

#[test]
fn a_long_function_is_found() {
    let body = |lines: usize| {
        format!("trait T {{\n    fn g();\n}}\nfn f(a: [u8; 2]) -> u8\n{{\n{}}}\n", "    a;\n".repeat(lines))
    };
    let (short, long) = (body(67), body(68));
    super::assert_check(functions, &[("a.rs", &short)], &[("a.rs", &long)], "a.rs:4: fn f has 71 lines");
    let text =
        format!("/*\nfn f() {{\n{}*/\nconst A: &str = r#\"\nfn f() {{\n{}\"#;\n", "\n".repeat(80), "\n".repeat(80));
    super::assert_check(functions, &[("a.rs", &text)], &[("a.rs", &long)], "fn f");
}

#[test]
fn a_wide_line_is_found() {
    let (fits, wide) = ("é".repeat(120), "é".repeat(121));
    let (row, link) = (format!("| {wide} |"), format!("[a](https://example.org/{wide}) b, [c](d/{wide}#e)"));
    let clean = [("a.rs", fits.as_str()), ("a.md", row.as_str()), ("b.md", link.as_str()), ("a.yml", wide.as_str())];
    super::assert_check(lines, &clean, &[("a.md", &wide)], "a.md:1: 121 columns");
    super::assert_check(lines, &clean, &[("a.rs", &wide)], "a.rs:1: 121 columns");
    super::assert_check(lines, &clean, &[("a", &format!("#!/bin/sh\n{wide}"))], "a:2: 121 columns");
}

#[test]
fn a_long_source_is_found() {
    let source = |lines: usize| format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(lines), "\n".repeat(99));
    let (short, long) = (source(450), source(451));
    let clean = [("src/a.rs", short.as_str()), ("src/a_tests.rs", long.as_str())];
    super::assert_check(files, &clean, &[("src/a.rs", &long)], "src/a.rs:1: 451 lines");
}
