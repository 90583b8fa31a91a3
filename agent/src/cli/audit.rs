//! `warden audit`: prints the audit trail.

use super::{Failure, fence};
use crate::znode::audit::Entry;
use anyhow::Context;
use jiff::Timestamp;
use reqwest::Method;
use std::path::Path;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// pretty or json
    #[arg(long, short, value_enum, default_value_t = Format::Pretty)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Pretty,
    Json,
}

pub(super) fn main(config: &Path, args: &Args) -> Result<(), Failure> {
    let Args { format } = args;
    let answer = fence::ask(config, Method::GET, "/api/v1/audit", None)?;
    let entries = answer.get("entries").cloned().context("the answer of the agent is not an audit trail")?;
    let text = match format {
        Format::Json => serde_json::to_string_pretty(&entries).context("cannot print the audit trail as JSON")?,
        Format::Pretty => {
            let entries: Vec<Entry> =
                serde_json::from_value(entries).context("the answer of the agent is not an audit trail")?;
            pretty(&entries)
        }
    };
    println!("{text}");
    Ok(())
}

/// Two lines for each entry: the action and its outcome; the reason and the facts.
fn pretty(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "the audit trail is empty".to_owned();
    }
    let clean = |text: &str| text.replace(|c: char| c.is_control(), " ");
    let lines = entries.iter().map(|entry| {
        let Entry { at_ms, agent, action, member, rule, reason, by, outcome, facts } = entry;
        let at = Timestamp::from_millisecond(*at_ms).map_or_else(|_| at_ms.to_string(), |at| format!("{at:.3}"));
        let rule = rule.as_ref().filter(|rule| *rule != action).map_or_else(String::new, |rule| format!(" ({rule})"));
        let whose = if by == agent { String::new() } else { format!(" for {by}") };
        let facts: Vec<String> = facts.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let facts = if facts.is_empty() { String::new() } else { format!(" [when ordered: {}]", facts.join(", ")) };
        clean(&format!("{at} {agent}{whose}: {action} {member}{rule}: {outcome}"))
            + "\n    "
            + &clean(&format!("{reason}{facts}"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_its_time_agent_action_outcome_reason_and_facts() {
        let fenced = Entry {
            at_ms: 1_795_523_082_114,
            rule: Some("superseded".to_owned()),
            outcome: "confirmed: fast shutdown, after 21 ms".to_owned(),
            facts: [("leader".to_owned(), "b".to_owned())].into(),
            ..Entry::new("a", "fence", "a", "b holds the leader key")
        };
        let asked = Entry {
            at_ms: 1_795_523_082_114,
            by: "operator".to_owned(),
            outcome: "asked".to_owned(),
            ..Entry::new("a", "unfence", "b", "the operator\ntook the fence back")
        };
        assert_eq!(Entry::parse(&fenced.write()).unwrap(), fenced);
        assert_eq!(
            pretty(&[fenced, asked]),
            "2026-11-24T12:24:42.114Z a: fence a (superseded): confirmed: fast shutdown, after 21 ms\n    \
             b holds the leader key [when ordered: leader=b]\n\
             2026-11-24T12:24:42.114Z a for operator: unfence b: asked\n    \
             the operator took the fence back"
        );
    }
}
