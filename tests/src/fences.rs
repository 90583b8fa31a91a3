//! The fences and other acts in the agents' logs, and whether ZooKeeper's own log shows that a fence was right.

use crate::agent_log::Line;
use crate::history::{self, LeaderTerm};
use crate::promise::kept;
use crate::stack::Stack;
use anyhow::Context;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The confirmed fences among these lines.
pub fn carried_out(lines: &[Line]) -> Vec<&Line> {
    lines.iter().filter(|line| line.is("fenced")).collect()
}

/// The rules that stopped a member since a moment, or that stop it as soon as its server wakes. They come from Warden's
/// audit trail, which has the gate's fences too.
pub async fn audited(stack: &Stack, member: &str, since: SystemTime) -> anyhow::Result<Vec<String>> {
    let begun = since.duration_since(UNIX_EPOCH)?.as_millis();
    let trail = stack.container("warden-haproxy").exec(&["warden", "audit", "--format", "json"]).await?;
    let trail: Vec<serde_json::Value> = serde_json::from_str(&trail).context("the audit trail is not JSON")?;
    let since = |entry: &&serde_json::Value| entry["at_ms"].as_u64().is_some_and(|at| u128::from(at) >= begun);
    let stopped = |entry: &&serde_json::Value| {
        entry["outcome"].as_str().is_some_and(|what| what.starts_with("confirmed") || what.starts_with("waiting"))
    };
    let about = trail.iter().filter(|entry| entry["member"] == member).filter(since).filter(stopped);
    Ok(about.filter_map(|entry| entry["rule"].as_str()).map(str::to_owned).collect())
}

/// The events that [`deeds`] shows, each with a short text for people.
const DEEDS: [(&str, &str); 13] = [
    ("fenced", "fenced"),
    ("leader_key_released", "leader key released"),
    ("patroni_nudged", "Patroni nudged"),
    ("fence_waiting", "the server accepts no session now"),
    ("would_fence", "would be fenced"),
    ("would_release_leader_key", "the leader key would be released"),
    ("would_nudge_patroni", "Patroni would be nudged"),
    ("standby_reconnect_asked", "standby asked to retry streaming"),
    ("would_reconnect_standby", "standby would be asked to retry streaming"),
    ("haproxy_server_set", "HAProxy server state set"),
    ("would_set_haproxy_server", "HAProxy server state would be set"),
    ("haproxy_file_written", "HAProxy configuration file written"),
    ("haproxy_reloaded", "HAProxy configuration file written, HAProxy reloaded"),
];

/// The acts of Warden and their reasons, one line each for people. Equal lines appear once.
pub fn deeds(lines: &[Line]) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for line in lines {
        let Some((_, what)) = DEEDS.iter().find(|(event, _)| line.is(event)) else { continue };
        let rule = line.field("rule").map(|rule| format!("rule {rule}: ")).unwrap_or_default();
        let server = line.field("server").zip(line.field("to"));
        let server = server.map(|(server, to)| format!(" ({server}: {to})")).unwrap_or_default();
        let deed = format!("{}: {rule}{what}{server}: {}", line.service, line.field("reason").unwrap_or_default());
        if !told.contains(&deed) {
            told.push(deed);
        }
    }
    told
}

/// Fails if one of the fences stopped a member that held the leader key. The rule `lease` rightly fences a member that
/// still holds the key, before ZooKeeper can give the key to another. The operator may fence any member.
pub async fn none_of_a_leader(stack: &Stack, lines: &[Line]) -> anyhow::Result<()> {
    let zoo = stack.zookeepers().into_iter().next().context("no ZooKeeper")?;
    let terms = history::leader_terms(&zoo).await?;
    for fence in carried_out(lines) {
        kept(!was_wrong(fence, &terms), || format!("the leader was fenced: {}\nterms: {terms:#?}", fence.text))?;
    }
    Ok(())
}

fn was_wrong(fence: &Line, terms: &[LeaderTerm]) -> bool {
    if matches!(fence.field("rule"), Some("lease" | "operator")) {
        return false;
    }
    let took = fence.field("took_ms").and_then(|text| text.parse().ok()).unwrap_or(0);
    let decided = fence.at - Duration::from_millis(took);
    let member = fence.field("member").unwrap_or_default();
    terms
        .iter()
        .any(|term| term.holder == member && term.from <= decided && term.until.is_none_or(|end| end >= fence.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(at: u64, rule: &str) -> Line {
        let text = format!(
            "2026-11-24T13:15:42Z  WARN warden: fenced event=\"fenced\" member=\"a\" rule=\"{rule}\" \
             reason=\"of two, b leads\" took_ms=1000"
        );
        Line { service: "warden-pg-master".to_owned(), at: UNIX_EPOCH + Duration::from_secs(at), text }
    }

    #[test]
    fn a_fence_is_wrong_if_its_member_led_from_the_decision_to_the_end() {
        let at = |second| UNIX_EPOCH + Duration::from_secs(second);
        let terms = [LeaderTerm { holder: "a".to_owned(), czxid: 1, from: at(10), until: Some(at(20)) }];
        for (second, rule, wrong) in
            [(15, "superseded", true), (15, "lease", false), (22, "superseded", false), (10, "orphaned", false)]
        {
            assert_eq!(was_wrong(&fence(second, rule), &terms), wrong, "{second} {rule}");
        }
    }
}
