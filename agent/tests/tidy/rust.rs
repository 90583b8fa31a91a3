//! Takes Rust sources apart into code, comments and strings, and finds functions, imports and modules in them.

/// One line of a source, taken apart. `code` has spaces where comments and strings stand, so that columns stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub code: String,
    pub comment: String,
    /// The string literals, with their quotes.
    pub strings: String,
}

enum Inside {
    Code,
    LineComment,
    /// Block comments nest.
    BlockComment(usize),
    String,
    /// A raw string ends with its quote and this many `#`.
    RawString(usize),
}

/// Takes a source apart, line by line.
pub fn lines(source: &str) -> Vec<Line> {
    let chars: Vec<char> = source.chars().collect();
    let (mut lines, mut line, mut inside, mut at) = (Vec::new(), Line::default(), Inside::Code, 0);
    while at < chars.len() {
        let (c, next) = (chars[at], chars.get(at + 1).copied());
        if c == '\n' {
            lines.push(std::mem::take(&mut line));
            if matches!(inside, Inside::LineComment) {
                inside = Inside::Code;
            }
            at += 1;
            continue;
        }
        let mut taken = 1;
        match inside {
            Inside::Code => {
                let raw = raw_string(&chars, at);
                if c == '/' && next == Some('/') {
                    inside = Inside::LineComment;
                    line.comment.push(c);
                } else if c == '/' && next == Some('*') {
                    (inside, taken) = (Inside::BlockComment(1), 2);
                    line.comment.push_str("/*");
                } else if let Some(hashes) = raw {
                    (inside, taken) = (Inside::RawString(hashes), hashes + 2);
                    line.strings.push('"');
                } else if c == '"' {
                    inside = Inside::String;
                    line.strings.push(c);
                } else if c == '\'' {
                    taken = char_literal(&chars, at);
                }
                let code = if matches!(inside, Inside::Code) && taken == 1 { c } else { ' ' };
                line.code.extend(std::iter::repeat_n(code, taken));
            }
            Inside::LineComment => line.comment.push(c),
            Inside::BlockComment(depth) => {
                line.comment.push(c);
                if c == '/' && next == Some('*') {
                    (inside, taken) = (Inside::BlockComment(depth + 1), 2);
                } else if c == '*' && next == Some('/') {
                    (inside, taken) = (if depth == 1 { Inside::Code } else { Inside::BlockComment(depth - 1) }, 2);
                }
            }
            Inside::String => {
                line.strings.push(c);
                line.code.push(' ');
                if c == '\\' && next != Some('\n') {
                    line.strings.extend(next);
                    taken = 2;
                } else if c == '"' {
                    line.strings.push(' ');
                    inside = Inside::Code;
                }
            }
            Inside::RawString(hashes) => {
                line.strings.push(c);
                line.code.push(' ');
                if c == '"' && chars[at + 1..].iter().take_while(|c| **c == '#').count() >= hashes {
                    line.strings.push(' ');
                    (inside, taken) = (Inside::Code, hashes + 1);
                }
            }
        }
        at += taken;
    }
    lines.push(line);
    lines
}

/// The number of `#` of the raw string that begins here, as `r"` or `br#"`.
fn raw_string(chars: &[char], at: usize) -> Option<usize> {
    let is_name = |c: &char| c.is_alphanumeric() || *c == '_';
    let before = at.checked_sub(1).map(|before| chars[before]);
    let prefixed = before.is_some_and(|c| matches!(c, 'b' | 'c')) && (at < 2 || !is_name(&chars[at - 2]));
    if chars[at] != 'r' || (before.is_some_and(|c| is_name(&c)) && !prefixed) {
        return None;
    }
    let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
    (chars.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// The length of the character literal that begins here; 1 for a lifetime.
fn char_literal(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => {
            let rest = chars.get(at + 3..).unwrap_or_default();
            rest.iter().position(|c| *c == '\'').map_or(1, |end| end + 4)
        }
        (Some(_), Some('\'')) => 3,
        _ => 1,
    }
}

/// Which lines belong to an item behind `#[cfg(test)]`.
pub fn tests(lines: &[Line]) -> Vec<bool> {
    let mut tests = vec![false; lines.len()];
    for (number, line) in lines.iter().enumerate() {
        if line.code.contains("#[cfg(test)]") && !tests[number] {
            let end = end_of_item(lines, number);
            tests[number..=end].fill(true);
        }
    }
    tests
}

/// The last line of the item whose attribute stands on this line.
fn end_of_item(lines: &[Line], first: usize) -> usize {
    let (mut depth, mut is_use) = (0_i32, None);
    for (number, line) in lines.iter().enumerate().skip(first) {
        let code = line.code.trim();
        if code.starts_with("#[") && code.ends_with(']') {
            continue;
        }
        if is_use.is_none() && !code.is_empty() {
            is_use = Some(code.starts_with("use ") || code.contains(" use "));
        }
        for c in code.chars() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 && (c == ';' || (c == '}' && is_use == Some(false))) {
                return number;
            }
        }
    }
    lines.len() - 1
}

/// The functions that have a body: the line of each, from 0, its name, and how many lines it has.
pub fn functions(lines: &[Line]) -> Vec<(usize, String, usize)> {
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        for (at, _) in line.code.match_indices("fn ") {
            let (before, after) = (&line.code[..at], &line.code[at + 3..]);
            let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if before.ends_with(|c: char| c.is_alphanumeric() || c == '_') || name.is_empty() {
                continue;
            }
            if let Some(end) = end_of_body(lines, number, at) {
                found.push((number, name, end - number + 1));
            }
        }
    }
    found
}

/// The line of the brace that closes the function's body; `None` for a function without one.
fn end_of_body(lines: &[Line], first: usize, column: usize) -> Option<usize> {
    let (mut depth, mut braces) = (0_i32, 0_i32);
    for (number, line) in lines.iter().enumerate().skip(first) {
        let code = if number == first { &line.code[column..] } else { &line.code };
        for c in code.chars() {
            match c {
                '(' | '[' => depth += 1,
                ')' | ']' => depth -= 1,
                ';' if depth == 0 && braces == 0 => return None,
                '{' => braces += 1,
                '}' => {
                    braces -= 1;
                    if braces == 0 {
                        return Some(number);
                    }
                }
                _ => {}
            }
        }
    }
    None
}

/// The paths of its own crate that a source names: the line, from 0, and the path, as `view::Member`. `depth` is the
/// number of `super` that lead from the file's module to the root of the crate.
pub fn imports(lines: &[Line], depth: usize) -> Vec<(usize, String)> {
    let (mut text, mut starts) = (String::new(), Vec::new());
    for line in lines {
        starts.push(text.len());
        text.push_str(&line.code);
        text.push('\n');
    }
    let line_of = |at: usize| starts.partition_point(|start| *start <= at) - 1;
    let mut found = Vec::new();
    for root in ["crate::".to_owned(), "super::".repeat(depth)] {
        for (at, _) in text.match_indices(&root) {
            let (before, rest_at) = (&text[..at], at + root.len());
            if before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | ':' | '$')) {
                continue;
            }
            for (offset, path) in paths(&text[rest_at..]) {
                if !path.starts_with("super::") {
                    found.push((line_of(rest_at + offset), path));
                }
            }
        }
    }
    found.sort();
    found
}

/// The paths that begin here: one, or those of a group in braces, each with its offset.
fn paths(text: &str) -> Vec<(usize, String)> {
    let Some(group) = text.strip_prefix('{') else { return vec![(0, path(text))] };
    let (mut found, mut depth, mut item) = (Vec::new(), 1, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => item = true,
            c if item && !c.is_whitespace() => {
                found.push((at + 1, path(&group[at..])));
                item = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    found
}

fn path(text: &str) -> String {
    let text: String = text.chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
    text.trim_end_matches(':').to_owned()
}

/// A `mod name;`: its line, from 0, its name, its `#[path]`, and whether it stands behind `#[cfg(test)]`.
pub type Module = (usize, String, Option<String>, bool);

/// The modules that a source names.
pub fn modules(source: &str) -> Vec<Module> {
    let lines = lines(source);
    let mut found = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let words: Vec<&str> = line.code.split_whitespace().collect();
        let (["mod", name] | [_, "mod", name] | [_, _, "mod", name]) = words.as_slice() else { continue };
        let Some(name) = name.strip_suffix(';') else { continue };
        let attributes: Vec<&Line> =
            lines[..number].iter().rev().take_while(|line| line.code.trim_start().starts_with("#[")).collect();
        let path = attributes.iter().find(|line| line.code.trim_start().starts_with("#[path"));
        let path = path.and_then(|line| line.strings.split('"').nth(1)).map(str::to_owned);
        let test = attributes.iter().any(|line| line.code.contains("cfg(test)"));
        found.push((number, name.to_owned(), path, test));
    }
    found
}
