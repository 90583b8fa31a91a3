//! Checks of the tree itself: layers, sizes, words, dead files. Each failure names the place as `path:line: text`.
//!
//! The checks read text and compile nothing. `tidy/tree.rs` finds the files, `tidy/rust.rs` takes Rust sources apart.
//! Each other file holds checks. Its unit tests run them on made-up trees: a clean one, and one with a violation.

// clippy.toml allows these in tests; the helpers here are outside of them.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "tidy/dead.rs"]
mod dead;
#[path = "tidy/layers.rs"]
mod layers;
#[path = "tidy/prose.rs"]
mod prose;
#[path = "tidy/rust.rs"]
mod rust;
#[path = "tidy/size.rs"]
mod size;
#[path = "tidy/tree.rs"]
mod tree;

use tree::Tree;

/// The findings of a check, each as `path:line: text`.
type Violations = Vec<String>;

/// Lines are counted from 0 in the code and from 1 in a message.
fn at(path: &str, line: usize, text: &str) -> String {
    format!("{path}:{}: {text}", line + 1)
}

fn assert_tidy(rule: &str, check: fn(&Tree) -> Violations) {
    let violations = check(&Tree::read());
    assert!(violations.is_empty(), "{} violations: {rule}\n{}", violations.len(), violations.join("\n"));
}

/// The check finds no violation in the first tree, and one in the second. Its message has these words.
fn assert_check(check: fn(&Tree) -> Violations, clean: &[(&str, &str)], wrong: &[(&str, &str)], words: &str) {
    assert_eq!(check(&Tree::of(clean)), Violations::new(), "in the clean tree");
    let found = check(&Tree::of(wrong));
    assert!(found.len() == 1 && found[0].contains(words), "not one violation with {words:?}: {found:?}");
}

#[test]
fn modules_of_core_import_only_those_above_them_in_lib_rs() {
    assert_tidy("a module of core imports only modules that stand above it in lib.rs", layers::core);
}

#[test]
fn folders_of_the_agent_import_only_downwards() {
    assert_tidy("the layers of the agent are in tidy/layers.rs", layers::agent);
}

#[test]
fn writes_to_zookeeper_stand_in_one_file() {
    assert_tidy("only client/zookeeper/write.rs writes to ZooKeeper", layers::writes);
}

#[test]
fn no_function_is_longer_than_70_lines() {
    assert_tidy("a function has at most 70 lines", size::functions);
}

#[test]
fn no_line_is_wider_than_120_columns() {
    assert_tidy("a line has at most 120 columns; tables and addresses may be longer", size::lines);
}

#[test]
fn no_source_is_longer_than_450_lines_without_its_tests() {
    assert_tidy("a source has at most 450 lines without its tests", size::files);
}

#[test]
fn prose_has_no_forbidden_word() {
    assert_tidy("the words are in tidy/prose.rs: name the actor, and write American English", prose::words);
}

#[test]
fn every_file_is_reached() {
    assert_tidy("a source, page or script that no other file names is dead", dead::files);
}
