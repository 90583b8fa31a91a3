//! An error in the configuration: the place, the problem, and the remedy.

use std::fmt;
use std::path::{Path, PathBuf};

/// An error in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file that has the error; `None` for the environment.
    pub file: Option<PathBuf>,
    /// The line, counted from 1; `None` if it is unknown.
    pub line: Option<u64>,
    /// The key with its sections (`a.b`), or the environment variable.
    pub key: Option<String>,
    /// The problem.
    pub problem: String,
    /// The remedy.
    pub remedy: String,
}

impl ConfigError {
    /// An error about `key` in `file`.
    pub(super) fn new(file: &Path, key: &str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            file: Some(file.to_owned()),
            line: None,
            key: Some(key.to_owned()),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }

    /// An error about an environment variable.
    pub(super) fn env(variable: &str, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { file: None, line: None, key: Some(variable.to_owned()), problem: problem.into(), remedy: remedy.into() }
    }

    /// The same error with its line; 0 means unknown.
    pub(super) fn at(mut self, line: u64) -> Self {
        self.line = (line > 0).then_some(line);
        self
    }

    /// An error of the YAML parser, or of the types, about `file`.
    pub(super) fn yaml(file: &Path, error: &serde_saphyr::Error) -> Self {
        let line = error.location().map(|location| location.line());
        let text = error.without_snippet().to_string();
        let first = text.lines().next().unwrap_or("cannot be read").trim_end_matches(':');
        // `Display` writes the line in front of the problem.
        let problem = first.rsplit_once(" at line ").map_or(first, |(problem, _)| problem).to_owned();
        let remedy = if text.contains("unknown field") {
            "remove the key or correct its spelling; agent/docs/reference/configuration.md lists all keys"
        } else if text.contains("missing field") {
            "add the key"
        } else {
            "correct the value; agent/docs/reference/configuration.md lists the values of each key"
        };
        let key = problem.split('`').nth(1).filter(|_| text.contains("field `")).map(str::to_owned);
        let key = key.or_else(|| error.location().and_then(|at| key_at(file, at.line(), at.column())));
        Self { file: Some(file.to_owned()), line, key, problem, remedy: remedy.to_owned() }
    }
}

/// The key of the value at this place: the last word before a colon, in this line or in a line above.
fn key_at(file: &Path, line: u64, column: u64) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let (line, column) = (usize::try_from(line).ok()?, usize::try_from(column).ok()?);
    let lines: Vec<&str> = text.lines().take(line).collect();
    for (index, text) in lines.iter().enumerate().rev() {
        let before: String = text.chars().take(if index + 1 == line { column } else { usize::MAX }).collect();
        if let Some((head, _)) = before.rsplit_once(':') {
            let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let key = head.rsplit(|c| !is_key(c)).next().filter(|key| !key.is_empty());
            return key.map(str::to_owned);
        }
    }
    None
}

impl fmt::Display for ConfigError {
    /// `file:line: key: problem; remedy`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, _) => f.write_str("environment: ")?,
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

impl std::error::Error for ConfigError {}
