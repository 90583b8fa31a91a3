//! The agents' logs, read by the field `event` and the fields behind it. The text of a line is for people and may
//! change.

use crate::docker::{self, Container};
use crate::stack::{AGENTS, Stack};
use anyhow::ensure;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A line of a container's log.
#[derive(Clone, Debug)]
pub struct Line {
    /// The service whose log it is.
    pub service: String,
    /// When Docker received it.
    pub at: SystemTime,
    /// The line as the program wrote it.
    pub text: String,
}

impl Line {
    /// The event of an agent's line; `None` for a line at `debug` or `trace`, and for another program's.
    pub fn event(&self) -> Option<&str> {
        field(&self.text, "event")
    }

    /// Whether the line is of this event.
    pub fn is(&self, event: &str) -> bool {
        self.event() == Some(event)
    }

    /// A field of an event, such as `rule`.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.text, name)
    }
}

/// The value of a field in a line of the agent's log in the format `human`; `None` where the line is of no event.
///
/// A text is what stands between its quotation marks; those within it keep their backslashes. A value without quotation
/// marks ends at the first space, or with the line.
pub fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    fields(line).find(|(known, _)| *known == name).map(|(_, value)| value)
}

fn fields(line: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = line.find(" event=").map_or("", |at| line.split_at(at).1);
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start();
            let (word, after) = rest.split_at(rest.find([' ', '='])?);
            let Some(value) = after.strip_prefix('=') else {
                // The end of a value that has a space in it.
                rest = after;
                continue;
            };
            let (value, after) = match value.strip_prefix('"') {
                Some(quoted) => end_of_text(quoted),
                None => value.split_once(char::is_whitespace).unwrap_or((value, "")),
            };
            rest = after;
            return Some((word, value));
        }
    })
}

/// A text and what is behind its closing quotation mark.
fn end_of_text(quoted: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = quoted.find(|c: char| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    let (text, rest) = quoted.split_at(end.unwrap_or(quoted.len()));
    (text, rest.strip_prefix('"').unwrap_or(rest))
}

/// The stack's agents' lines since a moment, in order.
pub async fn lines_since(stack: &Stack, since: SystemTime) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for agent in AGENTS {
        lines.extend(log_since(stack, agent, since).await?);
    }
    lines.sort_by_key(|line| line.at);
    Ok(lines)
}

/// The lines of one service of the stack since a moment, in order. The service need not be an agent.
pub async fn log_since(stack: &Stack, service: &str, since: SystemTime) -> anyhow::Result<Vec<Line>> {
    let from = since.duration_since(UNIX_EPOCH)?;
    let from = format!("{}.{:09}", from.as_secs(), from.subsec_nanos());
    read(&stack.container(service), service, &["--since", &from]).await
}

/// All lines of a container, in order.
pub async fn whole_log(container: &Container) -> anyhow::Result<Vec<Line>> {
    read(container, &container.0, &[]).await
}

async fn read(container: &Container, service: &str, options: &[&str]) -> anyhow::Result<Vec<Line>> {
    let Container(name) = container;
    let args = [&["logs", "--timestamps"], options, &[name]].concat();
    let (status, out, err) = docker::run_with("docker", &args, &[], docker::LIMIT).await?;
    ensure!(status == 0, "docker logs {name}: {err}");
    let mut lines = Vec::new();
    for line in out.lines().chain(err.lines()) {
        let Some((at, text)) = line.split_once(' ') else { continue };
        let Ok(at) = at.parse::<jiff::Timestamp>() else { continue };
        let at = UNIX_EPOCH + Duration::from_nanos(u64::try_from(at.as_nanosecond())?);
        lines.push(Line { service: service.to_owned(), at, text: text.to_owned() });
    }
    lines.sort_by_key(|line| line.at);
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_an_event_are_read_whatever_its_text_and_its_values_say() {
        let text = r#"2026-11-24T13:15:42Z  WARN warden::act::fence: rule="text" fenced"#;
        let fields = r#"member="a" rule="lease" reason="of \"two\", b leads: by=force" path=/a b/c at="" took_ms=1000"#;
        let line = &format!(r#"{text} event="fenced" {fields}"#);
        for (name, expected) in [
            ("event", Some("fenced")),
            ("rule", Some("lease")),
            ("reason", Some(r#"of \"two\", b leads: by=force"#)),
            ("by", None),
            ("path", Some("/a")),
            ("at", Some("")),
            ("took_ms", Some("1000")),
            ("nothing", None),
        ] {
            assert_eq!(field(line, name), expected, "{name}");
        }
    }

    #[test]
    fn the_last_field_ends_with_its_line() {
        assert_eq!(field("x event=\"a\" count=300\n", "count"), Some("300"));
    }

    #[test]
    fn a_line_without_an_event_has_no_fields() {
        assert_eq!(field("2026-11-24T13:15:42Z DEBUG warden: said rule=\"lease\"", "rule"), None);
        assert_eq!(field("Server postgres/pg-master is UP, reason: Layer7 check passed", "reason"), None);
    }
}
