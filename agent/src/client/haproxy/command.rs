//! Questions and commands to HAProxy's runtime socket, with errors for people.

use super::{ask, first_line};
use std::path::Path;
use std::time::Duration;

/// The time limit of an answer at one of HAProxy's sockets. HAProxy answers in well below a millisecond.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// Asks a question. The error names the socket.
pub async fn question(socket: &Path, question: &str) -> Result<String, String> {
    ask(socket, question, ANSWER_LIMIT).await.map_err(|error| format!("{}: {error}", socket.display()))
}

/// Sends commands, separated by semicolons. HAProxy has to answer with `expected` and nothing else; it answers most
/// commands with nothing.
pub async fn command(socket: &Path, commands: &str, expected: &str) -> Result<(), String> {
    let answer = question(socket, commands).await?;
    let other = answer.lines().map(str::trim).find(|line| !line.is_empty() && *line != expected);
    match other {
        None if expected.is_empty() || answer.contains(expected) => Ok(()),
        other => Err(format!("HAProxy answers {commands:?} with {:?}", other.unwrap_or_else(|| first_line("")))),
    }
}
