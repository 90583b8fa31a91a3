//! The text files of the project, and the order in which `mod` lines lead from one source to the next.

use super::rust;
use std::collections::BTreeMap;
use std::path::Path;

/// Directories that are not checked: build output, logs of tests, captures and golden files.
const SKIPPED: [&str; 4] = [".git", "target", "tests/out", "testdata"];

/// The text files by their path from the root.
pub struct Tree(pub BTreeMap<String, String>);

impl Tree {
    /// The project.
    pub fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut files = BTreeMap::new();
        read(&root, "", &mut files);
        Self(files)
    }

    /// A made-up tree.
    pub fn of(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect())
    }

    pub fn get(&self, path: &str) -> &str {
        self.0.get(path).map_or("", String::as_str)
    }

    /// The files whose name ends with `end`.
    pub fn ending(&self, end: &str) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().filter(move |(path, _)| path.ends_with(end)).map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The shell scripts, by their first line.
    pub fn scripts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(path, text)| (path.as_str(), text.as_str())).filter(|(_, text)| is_script(text))
    }

    /// The `.rs` files that are reached from these roots by `mod` lines, and whether each is compiled for tests only.
    pub fn modules(&self, roots: &[String]) -> BTreeMap<String, bool> {
        let mut reached = BTreeMap::new();
        for root in roots {
            self.reach(root, true, false, &mut reached);
        }
        reached
    }

    /// `owns`: the modules of this file lie beside it, as those of `lib.rs` and `mod.rs` do.
    fn reach(&self, path: &str, owns: bool, test: bool, reached: &mut BTreeMap<String, bool>) {
        let Some(source) = self.0.get(path) else { return };
        match reached.get(path) {
            Some(known) if !*known || test => return,
            _ => drop(reached.insert(path.to_owned(), test)),
        }
        let (directory, file) = path.rsplit_once('/').unwrap_or(("", path));
        for (_, name, named, cfg) in rust::modules(source) {
            let test = test || cfg;
            if let Some(named) = named {
                self.reach(&format!("{directory}/{named}"), true, test, reached);
                continue;
            }
            let below =
                if owns { directory.to_owned() } else { format!("{directory}/{}", file.trim_end_matches(".rs")) };
            self.reach(&format!("{below}/{name}.rs"), false, test, reached);
            self.reach(&format!("{below}/{name}/mod.rs"), true, test, reached);
        }
    }

    /// The root files of every target of the crates: by cargo's rules, and by the `path` lines of their Cargo.toml.
    pub fn targets(&self) -> Vec<String> {
        let mut roots = Vec::new();
        for (manifest, text) in self.ending("Cargo.toml") {
            let directory = manifest.trim_end_matches("Cargo.toml");
            let below = |path: &str| format!("{directory}{path}");
            let paths = text.lines().filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'));
            roots.extend(paths.map(below));
            roots.extend(["src/lib.rs", "src/main.rs", "build.rs"].map(below));
            for folder in ["tests/", "src/bin/", "examples/", "benches/"].map(below) {
                let is_root = |path: &&String| {
                    let name = path.strip_prefix(&folder).unwrap_or_default();
                    name.ends_with(".rs")
                        && (!name.contains('/') || name.split_once('/').unwrap_or_default().1 == "main.rs")
                };
                roots.extend(self.0.keys().filter(is_root).cloned());
            }
        }
        roots
    }
}

fn read(directory: &Path, prefix: &str, files: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let path = format!("{prefix}{name}");
        if SKIPPED.contains(&name.as_str()) || SKIPPED.contains(&path.as_str()) {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            read(&entry.path(), &format!("{path}/"), files);
        } else if let Ok(text) = std::fs::read_to_string(entry.path()) {
            files.insert(path, text);
        }
    }
}

fn is_script(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    let shell = |name: &str| matches!(name.rsplit('/').next(), Some("sh" | "bash" | "dash"));
    first.starts_with("# shellcheck shell=") || (first.starts_with("#!") && first[2..].split_whitespace().any(shell))
}
