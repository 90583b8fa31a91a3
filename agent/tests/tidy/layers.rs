//! The order in which modules may import each other, and the one file that writes to ZooKeeper.

use super::rust;
use super::tree::Tree;
use super::{Violations, at};

const CORE: &str = "agent/core/src/";
const AGENT: &str = "agent/src/";

/// A layer of the agent: its modules, and whether they may import each other.
type Layer = (&'static [&'static str], bool);

/// The layers of the agent, the lowest first. A module imports only from layers below its own.
const LAYERS: [Layer; 9] = [
    (&["log_events", "clock", "secret"], true),
    (&["events", "targets"], true),
    (&["config"], true),
    (&["znode"], true),
    (&["client"], true),
    (&["watch", "act"], false),
    (&["tell"], true),
    (&["tasks", "wiring", "run"], true),
    (&["cli"], true),
];

/// `tell` does not act. The exceptions are a file, and the module that it may import: an operator orders a fence over
/// HTTP.
const TELL_ORDERS: [(&str, &str); 1] = [("agent/src/tell/http/mod.rs", "act::operator")];

/// The only file that writes to ZooKeeper.
const WRITES: &str = "agent/src/client/zookeeper/write.rs";

/// The imports of every source below `folder` that is not compiled for tests only: the file, the line, the path.
fn imports(tree: &Tree, folder: &str, roots: &[&str]) -> Vec<(String, usize, String)> {
    let roots: Vec<String> = roots.iter().map(|root| format!("{folder}{root}")).collect();
    let mut all = Vec::new();
    for (path, test) in tree.modules(&roots) {
        let file = path.strip_prefix(folder).unwrap_or_default();
        if test || roots.contains(&path) {
            continue;
        }
        let depth = file.trim_end_matches("/mod.rs").split('/').count();
        let lines = rust::lines(tree.get(&path));
        let tests = rust::tests(&lines);
        let found = rust::imports(&lines, depth).into_iter().filter(|(line, _)| !tests[*line]);
        all.extend(found.map(|(line, import)| (path.clone(), line, import)));
    }
    all
}

/// The module of the crate's root that a file or an import belongs to.
fn module<'a>(folder: &str, path: &'a str) -> &'a str {
    let file = path.strip_prefix(folder).unwrap_or(path);
    file.split(['/', ':']).next().unwrap_or_default().trim_end_matches(".rs")
}

/// Each module of core imports only those that stand above it in lib.rs.
pub fn core(tree: &Tree) -> Violations {
    let order: Vec<String> =
        rust::modules(tree.get(&format!("{CORE}lib.rs"))).into_iter().map(|(_, name, ..)| name).collect();
    let place = |name: &str| order.iter().position(|module| module == name);
    let mut violations = Violations::new();
    for (path, line, import) in imports(tree, CORE, &["lib.rs"]) {
        let (own, other) = (module(CORE, &path), module(CORE, &import));
        if own != other && place(other) > place(own) {
            violations.push(at(&path, line, &format!("{own} imports {import}, which stands below it in lib.rs")));
        }
    }
    violations
}

/// Each module of the agent imports only from layers below its own.
pub fn agent(tree: &Tree) -> Violations {
    let layer = |name: &str| LAYERS.iter().position(|(modules, _)| modules.contains(&name));
    let mut violations = Violations::new();
    let roots = ["lib.rs", "main.rs"];
    for (line, name, ..) in rust::modules(tree.get(&format!("{AGENT}lib.rs"))) {
        if layer(&name).is_none() {
            violations.push(at(&format!("{AGENT}lib.rs"), line, &format!("{name} is in no layer of tidy/layers.rs")));
        }
    }
    for (path, line, import) in imports(tree, AGENT, &roots) {
        let (own, other) = (module(AGENT, &path), module(AGENT, &import));
        let (Some(here), Some(there)) = (layer(own), layer(other)) else { continue };
        let free = here == there && LAYERS[here].1;
        let order = TELL_ORDERS.iter().any(|(file, allowed)| path == *file && import.starts_with(allowed));
        let acts = own == "tell" && other == "act" && !order;
        if own != other && (acts || (there >= here && !free)) {
            violations.push(at(&path, line, &format!("{own} imports {import}")));
        }
    }
    violations
}

/// Only one file calls the methods that write to ZooKeeper.
pub fn writes(tree: &Tree) -> Violations {
    const CALLS: [&str; 4] = [".create(", ".set_data(", ".delete(", ".set_acl("];
    let roots = ["lib.rs", "main.rs"].map(|root| format!("{AGENT}{root}"));
    let mut violations = Violations::new();
    for (path, test) in tree.modules(&roots) {
        let source = tree.get(&path);
        // A client has no other type: a file without it deletes something else.
        if test || path == WRITES || !(source.contains("zookeeper_async") || source.contains("ZooKeeper")) {
            continue;
        }
        let lines = rust::lines(source);
        let tests = rust::tests(&lines);
        for (number, line) in lines.iter().enumerate().filter(|(number, _)| !tests[*number]) {
            // A file's option, and a helper of the file itself.
            let code = line.code.replace(".create(true)", "").replace("self.create(", "");
            if CALLS.iter().any(|call| code.contains(call)) {
                violations.push(at(&path, number, line.code.trim()));
            }
        }
    }
    violations
}

#[test]
fn an_import_of_core_that_goes_up_is_found() {
    let lib = ("agent/core/src/lib.rs", "pub mod types;\npub mod view;\npub mod rules;\n");
    let rules = ("agent/core/src/rules/mod.rs", "pub mod fence;\n#[cfg(test)]\nmod fence_tests;\n");
    let fence = ("agent/core/src/rules/fence.rs", "use crate::{types::A, view::{B, C}};\nuse super::other;\n");
    let clean = [
        lib,
        rules,
        fence,
        ("agent/core/src/types.rs", "// use crate::view::B;\n#[cfg(test)]\nmod tests {\n    use crate::view::B;\n}\n"),
        ("agent/core/src/view.rs", "use crate::types::A;\n"),
        ("agent/core/src/rules/fence_tests.rs", "use crate::rules::fence;\n"),
    ];
    for import in ["use crate::rules::fence::D;", "use crate::{types::A, rules::D};", "type D = super::rules::D;"] {
        let source = format!("use crate::types::A;\n{import}\n");
        let wrong = [lib, rules, fence, ("agent/core/src/view.rs", source.as_str())];
        super::assert_check(core, &clean, &wrong, "agent/core/src/view.rs:2: view imports rules");
    }
}

#[test]
fn an_import_of_the_agent_that_goes_up_is_found() {
    let lib = ("agent/src/lib.rs", "pub mod config;\npub mod watch;\npub mod act;\npub mod tell;\n");
    let folders = [
        ("agent/src/config/mod.rs", "mod file;\n"),
        ("agent/src/watch/mod.rs", "use crate::config::Config;\n"),
        ("agent/src/tell/mod.rs", "mod http;\nuse crate::watch::A;\n"),
        ("agent/src/tell/http/mod.rs", "mod operator;\nuse crate::act::operator::Orders;\n"),
        ("agent/src/tell/http/operator.rs", "use crate::config::Config;\n"),
        ("agent/src/act/mod.rs", "use crate::config::Config;\n"),
    ];
    let clean = [&[lib][..], &folders].concat();
    for (file, import, words) in [
        ("agent/src/act/mod.rs", "use crate::watch::A;", "act/mod.rs:1: act imports watch::A"),
        ("agent/src/watch/mod.rs", "use crate::act::A;", "watch/mod.rs:1: watch imports act::A"),
        ("agent/src/config/file.rs", "use super::super::tell::A;", "config/file.rs:1: config imports tell::A"),
        ("agent/src/tell/http/operator.rs", "use crate::act::fence;", "operator.rs:1: tell imports act::fence"),
        ("agent/src/lib.rs", "mod config; mod watch; mod act; mod tell;\nmod log;", "lib.rs:2: log is in no layer"),
    ] {
        let wrong: Vec<_> = clean.iter().copied().chain([(file, import)]).collect();
        super::assert_check(agent, &clean, &wrong, words);
    }
}

#[test]
fn a_write_to_zookeeper_elsewhere_is_found() {
    let write = "use zookeeper_async::ZooKeeper;\nfn f() {\n    zk.delete(path, None)\n}\n";
    let modules = [
        ("agent/src/lib.rs", "mod client;\nmod act;\n"),
        ("agent/src/client/mod.rs", "mod zookeeper;\n"),
        ("agent/src/client/zookeeper/mod.rs", "mod write;\n"),
        ("agent/src/client/zookeeper/write.rs", write),
    ];
    let other = "// ZooKeeper's zk.delete(\nfn f() {\n    options.create(true);\n    self.create(zk);\n}\n";
    let clean = [&modules[..], &[("agent/src/act/mod.rs", other)]].concat();
    let wrong = [&modules[..], &[("agent/src/act/mod.rs", write)]].concat();
    super::assert_check(writes, &clean, &wrong, "agent/src/act/mod.rs:3: zk.delete(path, None)");
}
