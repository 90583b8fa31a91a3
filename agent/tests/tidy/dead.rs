//! Files that no other file names.

use super::tree::Tree;
use super::{Violations, at};

const PAGES: &str = "agent/docs/";

/// The ends of the file names that may name a script, besides other scripts.
const NAMING: [&str; 5] = [".md", ".yml", ".toml", "Dockerfile", ".j2"];

/// Sources without a `mod` line or a target of cargo, pages without a link, and scripts that no file names.
pub fn files(tree: &Tree) -> Violations {
    let mut violations = Violations::new();
    let reached = tree.modules(&tree.targets());
    let sources = tree.ending(".rs").filter(|(path, _)| !reached.contains_key(*path));
    violations.extend(sources.map(|(path, _)| at(path, 0, "no `mod` and no target of cargo names this source")));

    let pages: Vec<(&str, &str)> = tree.ending(".md").collect();
    for (page, _) in pages.iter().filter(|(path, _)| path.starts_with(PAGES)) {
        let links = |(path, text): &(&str, &str)| path != page && links(path, text).any(|link| link == *page);
        if !pages.iter().any(links) {
            violations.push(at(page, 0, "no other page links to this page"));
        }
    }

    for (script, _) in tree.scripts() {
        let texts = NAMING.into_iter().flat_map(|end| tree.ending(end)).chain(tree.scripts());
        let mut others = texts.filter(|(path, _)| *path != script);
        if !others.any(|(path, text)| names(path, text, script)) {
            violations.push(at(script, 0, "no script, Dockerfile, compose file or page names this script"));
        }
    }
    violations
}

/// The files that a page links to, by their path from the root.
fn links<'a>(page: &'a str, text: &'a str) -> impl Iterator<Item = String> + 'a {
    text.split("](").skip(1).filter_map(move |rest| {
        let target = rest.split([')', '#', ' ']).next()?;
        let mut parts: Vec<&str> = page.split('/').collect();
        parts.pop();
        for part in target.split('/') {
            match part {
                "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        Some(parts.join("/"))
    })
}

/// Whether a file names the script: with its folder, or alone where both lie in one folder.
fn names(path: &str, text: &str, script: &str) -> bool {
    let (folder, name) = script.rsplit_once('/').unwrap_or(("", script));
    let near = path.rsplit_once('/').unwrap_or_default().0 == folder;
    let inside = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let whole = |wanted: &str| {
        let mut places = text.match_indices(wanted);
        places.any(|(at, _)| {
            !text[..at].ends_with(inside) && !text[at + wanted.len()..].starts_with(|c: char| inside(c) && c != '.')
        })
    };
    let last_folder = folder.rsplit('/').next().unwrap_or_default();
    whole(&format!("{last_folder}/{name}")) || (near && whole(name))
}

#[test]
fn a_dead_source_is_found() {
    let living = [
        ("agent/Cargo.toml", "[[test]]\npath = \"other/main.rs\"\n"),
        ("agent/src/lib.rs", "pub mod a;\n#[cfg(test)]\n#[path = \"a_tests.rs\"]\nmod tests;\n"),
        ("agent/src/a.rs", "mod b;\n"),
        ("agent/src/a/b.rs", ""),
        ("agent/src/a_tests.rs", ""),
        ("agent/src/bin/c/main.rs", "mod d;\n"),
        ("agent/src/bin/c/d.rs", ""),
        ("agent/tests/e.rs", ""),
        ("agent/other/main.rs", ""),
    ];
    let dead = [&living[..], &[("agent/src/b.rs", "")]].concat();
    super::assert_check(files, &living, &dead, "agent/src/b.rs:1: no `mod`");
    let commented = [&living[..], &[("agent/src/a.rs", "// mod b;\n")]].concat();
    super::assert_check(files, &living, &commented, "agent/src/a/b.rs:1: no `mod`");
}

#[test]
fn a_dead_page_is_found() {
    let readme = ("README.md", "[start](agent/docs/start.md#first)\n");
    let start = ("agent/docs/start.md", "[more](./guide/more.md), [start](start.md)\n");
    let more = ("agent/docs/guide/more.md", "[back](../start.md)\n");
    let wrong = [readme, ("agent/docs/start.md", "[start](start.md), guide/more.md\n"), more];
    super::assert_check(files, &[readme, start, more], &wrong, "agent/docs/guide/more.md:1: no other page");
}

#[test]
fn a_dead_script_is_found() {
    let scripts = [("images/a/entry", "#!/bin/sh\n"), ("tests/run", "#!/usr/bin/env bash\n. \"../compose/lib.sh\"\n")];
    let others = [("compose/lib.sh", "# shellcheck shell=bash\n"), ("README.md", "Run `tests/run`.\n")];
    let dockerfile = |text| [&scripts[..], &others, &[("images/a/Dockerfile", text)]].concat();
    let (clean, wrong) = (dockerfile("COPY entry /\n"), dockerfile("COPY entry-other re-entry /\n"));
    super::assert_check(files, &clean, &wrong, "images/a/entry:1: no script");
}
