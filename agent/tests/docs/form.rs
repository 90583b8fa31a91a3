//! The form of the pages: length, title, links, width of lines, and the changelog's sections.

use crate::page::{Page, all, root};
use std::path::{Component, Path, PathBuf};

/// README.md is the first page that a stranger reads.
const README_LINES_MAX: usize = 250;
const PAGE_LINES_MAX: usize = 400;
const COLUMNS_MAX: usize = 120;

/// The changelog's sections of a version, in this order.
const SECTIONS: [&str; 4] = ["### Operators must act", "### Added", "### Changed", "### Fixed"];

/// All failures at once, so that one pass fixes a page.
fn assert_none(failures: &[String]) {
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

fn each(check: impl Fn(&Page) -> Vec<String>) {
    assert_none(&all().iter().flat_map(check).collect::<Vec<_>>());
}

#[test]
fn no_page_is_too_long() {
    each(|page| {
        let limit = match page.name.as_str() {
            "README.md" => README_LINES_MAX,
            "agent/CHANGELOG.md" => usize::MAX,
            _ => PAGE_LINES_MAX,
        };
        let lines = page.text.lines().count();
        if lines > limit { vec![format!("{}: {lines} lines, at most {limit}", page.name)] } else { Vec::new() }
    });
}

#[test]
fn every_page_has_one_title_and_begins_with_it() {
    each(|page| {
        let titles = page.headings().iter().filter(|heading| heading.starts_with("# ")).count();
        let begins = page.text.starts_with("# ");
        if titles == 1 && begins { Vec::new() } else { vec![format!("{}: {titles} titles", page.name)] }
    });
}

#[test]
fn every_relative_link_resolves() {
    each(|page| page.links().iter().filter_map(|(line, target)| broken(page, *line, target)).collect());
}

/// The failure, if the link has one.
fn broken(page: &Page, line: usize, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
    let fails = |why: &str| Some(format!("{}:{line}: {target}: {why}", page.name));
    let directory = Path::new(&page.name).parent().unwrap();
    let name = normal(&directory.join(file));
    if !file.is_empty() && !root().join(&name).exists() {
        return fails("no such file");
    }
    let anchor = anchor?;
    let anchors = if file.is_empty() { page.anchors() } else { Page::read(name.to_str().unwrap()).anchors() };
    if anchors.contains(anchor) { None } else { fails("no such heading") }
}

/// The path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(normal.pop()),
            other => normal.push(other),
        }
    }
    normal
}

#[test]
fn no_line_is_too_wide_outside_of_tables_links_and_code() {
    each(|page| {
        let prose = page.prose().into_iter().filter(|(_, line)| !line.starts_with('|'));
        let wide = prose.filter(|(_, line)| without_targets(line).chars().count() > COLUMNS_MAX);
        wide.map(|(number, line)| format!("{}:{number}: {} columns", page.name, line.chars().count())).collect()
    });
}

/// A line without the targets of its links.
fn without_targets(line: &str) -> String {
    let mut parts = line.split("](");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once(')').map_or("", |(_, rest)| rest))
}

#[test]
fn the_changelog_begins_with_the_version_of_the_crate() {
    let changelog = Page::read("agent/CHANGELOG.md");
    let headings = changelog.headings();
    let newest = headings.iter().find_map(|heading| heading.strip_prefix("## ")).unwrap();
    assert_eq!(newest.split(' ').next(), Some(env!("CARGO_PKG_VERSION")), "the newest version of the changelog");
}

#[test]
fn the_changelog_has_its_sections_in_order() {
    let changelog = Page::read("agent/CHANGELOG.md");
    let mut last = None;
    for heading in changelog.headings().into_iter().skip(1) {
        if heading.starts_with("## ") {
            last = None;
            continue;
        }
        let index = SECTIONS.iter().position(|section| *section == heading);
        assert!(index.is_some(), "{heading:?} is none of {SECTIONS:?}");
        assert!(index > last, "{heading:?} stands behind a later section");
        last = index;
    }
}

/// Each check above finds its violation.
mod the_checks {
    use super::*;

    fn page(text: &str) -> Page {
        Page { name: "agent/docs/made-up.md".to_owned(), text: text.to_owned() }
    }

    #[test]
    fn find_a_link_to_a_file_or_a_heading_that_does_not_exist() {
        let text = "# A title\n\n[a](none.md) [b](#none) [c](#a-title) [d](../Cargo.toml) [e](https://x.org/y)\n\
                    `[f](code.md)`\n```\n[g](block.md)\n```\n[h]: gone.md\n";
        let page = page(text);
        let broken: Vec<_> = page.links().iter().filter_map(|(line, to)| broken(&page, *line, to)).collect();
        assert_eq!(
            broken,
            [
                "agent/docs/made-up.md:3: none.md: no such file",
                "agent/docs/made-up.md:3: #none: no such heading",
                "agent/docs/made-up.md:8: gone.md: no such file"
            ]
        );
    }

    #[test]
    fn know_githubs_anchors() {
        let page = page("# `warden`: exit codes\n```\n# no heading\n```\n## Twice\n## Twice\n");
        assert_eq!(page.anchors().into_iter().collect::<Vec<_>>(), ["twice", "twice-1", "warden-exit-codes"]);
        assert_eq!(page.headings().len(), 3);
    }

    #[test]
    fn measure_a_line_without_the_targets_of_its_links() {
        assert_eq!(without_targets("see [here](a/long/path.md) and [there](b.md)."), "see [here and [there.");
    }
}
