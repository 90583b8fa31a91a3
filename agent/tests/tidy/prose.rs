//! The words that the project's prose avoids.

use super::rust;
use super::tree::Tree;
use super::{Violations, at};
use std::sync::LazyLock;

/// They hide the actor: the agent, Patroni, HAProxy, the operator.
const ACTORLESS: [&str; 8] = ["nobody", "somebody", "everybody", "anybody", "whoever", "whatever", "wherever", "anew"];

/// British spellings, by how a word begins.
const BRITISH: &str = "armour artefact behaviour cancelled cancelling catalogue centre colour defence endeavour favour \
    flavour grey harbour honour judgement labelled labelling labour licence modelled modelling neighbour offence \
    programme rumour signalled signalling travelled travelling";

/// British spellings, whole words: "analyses" and "fulfilled" are American, too.
const BRITISH_WORDS: [&str; 7] = ["amongst", "analyse", "analysed", "analyser", "analysing", "fulfil", "whilst"];

/// Verbs whose British form ends with one of the endings below: "realised", and not "realistic".
const BRITISH_VERBS: &str = "authoris centralis customis finalis generalis initialis maximis minimis normalis optimis \
    organis parallelis prioritis realis recognis serialis specialis stabilis summaris synchronis utilis visualis";
const ENDINGS: [&str; 7] = ["e", "ed", "er", "es", "ing", "ation", "ations"];

static BEGINS: LazyLock<Vec<&str>> = LazyLock::new(|| BRITISH.split_whitespace().collect());
static STEMS: LazyLock<Vec<&str>> = LazyLock::new(|| BRITISH_VERBS.split_whitespace().collect());

/// Names that others rely on, as they are quoted: the holder of an absent leader key in logs and metrics.
const NAMES: [&str; 2] = ["`nobody`", "\"nobody\""];

/// The files of this check.
const OWN: &str = "agent/tests/tidy";

/// Pages, scripts and configuration: every line counts.
const TEXTS: [&str; 8] = [".md", ".yml", ".toml", ".cfg", ".j2", ".lua", ".env", "Dockerfile"];

/// Comments and strings of sources; every line of pages, scripts and configuration.
pub fn words(tree: &Tree) -> Violations {
    let mut violations = Violations::new();
    let mut look = |path: &str, number: usize, prose: &str, line: &str| {
        let found = forbidden(prose);
        if !found.is_empty() {
            violations.push(at(path, number, &format!("{}: {}", found.join(", "), line.trim())));
        }
    };
    for (path, text) in tree.ending(".rs").filter(|(path, _)| !path.starts_with(OWN)) {
        for (number, (parts, line)) in rust::lines(text).iter().zip(text.lines()).enumerate() {
            look(path, number, &format!("{} {}", parts.comment, parts.strings), line);
        }
    }
    let texts = TEXTS.into_iter().flat_map(|end| tree.ending(end));
    for (path, text) in texts.chain(tree.scripts()) {
        for (number, line) in text.lines().enumerate() {
            look(path, number, line, line);
        }
    }
    violations
}

/// The forbidden words, as they are written there.
fn forbidden(prose: &str) -> Vec<String> {
    let prose = NAMES.iter().fold(prose.to_owned(), |prose, name| prose.replace(name, ""));
    let words = prose.split(|c: char| !c.is_ascii_alphabetic());
    words.filter(|word| is_forbidden(&word.to_ascii_lowercase())).map(str::to_owned).collect()
}

fn is_forbidden(word: &str) -> bool {
    let is_verb = |stem: &str| word.strip_prefix(stem).is_some_and(|ending| ENDINGS.contains(&ending));
    ACTORLESS.contains(&word)
        || BRITISH_WORDS.contains(&word)
        || BEGINS.iter().any(|begin| word.starts_with(begin))
        || STEMS.iter().any(|stem| is_verb(stem))
}

#[test]
fn a_forbidden_word_is_found() {
    let clean = [
        ("a.rs", "/// The holder, `nobody` or a name.\nconst COLOUR: &str = \"nobody\";\n"),
        ("b.rs", "// a realistic organism fulfilled its analyses\n"),
        ("a.md", "The behavior of an agent; `nobody`.\n"),
        ("agent/tests/tidy/prose.rs", "// nobody\n"),
    ];
    for (path, text, message) in [
        ("a.rs", "//! Nobody's.\n", "a.rs:1: Nobody"),
        ("a.rs", "\nconst A: &str = \"it is written anew\";\n", "a.rs:2: anew"),
        ("a.rs", "/* It is\n recognised. */\n", "a.rs:2: recognised"),
        ("a.rs", "const A: &str = r#\"\n  whatever\n\"#;\n", "a.rs:2: whatever"),
        ("a.md", "Colours of a `behaviour`.\n", "a.md:1: Colours, behaviour"),
        ("a/b", "#!/usr/bin/env bash\n# whoever\n", "a/b:2: whoever"),
        ("a/Dockerfile", "# licence\n", "a/Dockerfile:1: licence"),
    ] {
        super::assert_check(words, &clean, &[(path, text)], message);
    }
}
