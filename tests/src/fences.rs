//! What the agents did, by their logs, and whether a fence was right, by ZooKeeper's own log.

use crate::docker::{self, Container};
use crate::history::{self, Reign};
use crate::promise::kept;
use crate::stack::{AGENTS, Stack};
use anyhow::{Context, ensure};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A line of an agent's log.
#[derive(Clone, Debug)]
pub struct Line {
    /// Whose log.
    pub agent: &'static str,
    /// When Docker got it.
    pub at: SystemTime,
    /// The text as the agent wrote it.
    pub text: String,
}

impl Line {
    /// A field of it, like `rule`.
    pub fn field(&self, name: &str) -> Option<&str> {
        let rest = self.text.split_once(&format!(" {name}="))?.1;
        match rest.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => rest.split_whitespace().next(),
        }
    }
}

/// What the agents have logged since a moment.
pub async fn lines_since(stack: &Stack, since: SystemTime) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for agent in AGENTS {
        lines.extend(log_since(stack, agent, since).await?);
    }
    lines.sort_by_key(|line| line.at);
    Ok(lines)
}

/// What the container of one service has logged since a moment, an agent or not.
pub async fn log_since(stack: &Stack, agent: &'static str, since: SystemTime) -> anyhow::Result<Vec<Line>> {
    let Container(name) = stack.container(agent);
    let from = since.duration_since(UNIX_EPOCH)?;
    let from = format!("{}.{:09}", from.as_secs(), from.subsec_nanos());
    let args = ["logs", "--timestamps", "--since", &from, &name];
    let (status, out, err) = docker::run_with("docker", &args, &[], docker::LIMIT).await?;
    ensure!(status == 0, "docker logs {name}: {err}");
    let mut lines = Vec::new();
    for line in out.lines().chain(err.lines()) {
        let Some((at, text)) = line.split_once(' ') else { continue };
        let Ok(at) = at.parse::<jiff::Timestamp>() else { continue };
        let at = UNIX_EPOCH + Duration::from_nanos(u64::try_from(at.as_nanosecond())?);
        lines.push(Line { agent, at, text: text.to_owned() });
    }
    lines.sort_by_key(|line| line.at);
    Ok(lines)
}

/// The fences among them that were carried out.
pub fn carried_out(lines: &[Line]) -> Vec<&Line> {
    lines.iter().filter(|line| line.text.contains("act::fence: fenced")).collect()
}

/// The rules by which a member has been stopped since a moment, or is stopped as soon as its server wakes, by Warden's own
/// audit trail, which has the gate too.
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

/// Lines that tell what Warden did and why, for people: fences, releases, nudges. Of those that are alike only the
/// first.
pub fn deeds(lines: &[Line]) -> Vec<String> {
    let signs = [
        "act::fence: fenced",
        "leader key released",
        "Patroni nudged",
        "the server takes no session now",
        "would be fenced",
        "the leader key would be released",
        "Patroni would be nudged",
        "standby told to try again to stream",
        "standby would be told to try again",
        "HAProxy's server told",
        "HAProxy's server would be told",
        "HAProxy's configuration written anew",
    ];
    let mut told: Vec<String> = Vec::new();
    for line in lines.iter().filter(|line| signs.iter().any(|sign| line.text.contains(sign))) {
        let sign = signs.iter().find(|sign| line.text.contains(**sign)).copied().unwrap_or_default();
        let rule = line.field("rule").map(|rule| format!("rule {rule}: ")).unwrap_or_default();
        let what = sign.trim_start_matches("act::fence: ");
        let server = line.field("server").zip(line.field("to"));
        let server = server.map(|(server, to)| format!(" ({server}: {to})")).unwrap_or_default();
        let deed = format!("{}: {rule}{what}{server}: {}", line.agent, line.field("reason").unwrap_or_default());
        if !told.contains(&deed) {
            told.push(deed);
        }
    }
    told
}

/// Fails if one of the fences stopped a member that held the leader key. By its lease a member is rightly fenced while
/// it holds the key, before that can be given to another, and by hand whenever somebody wishes.
pub async fn none_of_a_leader(stack: &Stack, lines: &[Line]) -> anyhow::Result<()> {
    let zoo = stack.zookeepers().into_iter().next().context("no ZooKeeper")?;
    let reigns = history::reigns(&zoo).await?;
    for fence in carried_out(lines) {
        kept(!was_wrong(fence, &reigns), || format!("the leader was fenced: {}\nreigns: {reigns:#?}", fence.text))?;
    }
    Ok(())
}

fn was_wrong(fence: &Line, reigns: &[Reign]) -> bool {
    if matches!(fence.field("rule"), Some("lease" | "operator")) {
        return false;
    }
    let took = fence.field("took_ms").and_then(|text| text.parse().ok()).unwrap_or(0);
    let decided = fence.at - Duration::from_millis(took);
    let member = fence.field("member").unwrap_or_default();
    reigns
        .iter()
        .any(|reign| reign.holder == member && reign.from <= decided && reign.until.is_none_or(|end| end >= fence.at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence(at: u64, rule: &str) -> Line {
        let text = format!(
            "2026-11-24 13:15:42 UTC WARN warden::act::fence: fenced member=\"a\" rule=\"{rule}\" reason=\"of two, b leads\" took_ms=1000"
        );
        Line { agent: "warden-pg-master", at: UNIX_EPOCH + Duration::from_secs(at), text }
    }

    #[test]
    fn a_fence_is_wrong_if_its_member_led_from_the_decision_to_the_end() {
        let at = |second| UNIX_EPOCH + Duration::from_secs(second);
        let reigns = [Reign { holder: "a".to_owned(), czxid: 1, from: at(10), until: Some(at(20)) }];
        for (second, rule, wrong) in
            [(15, "superseded", true), (15, "lease", false), (22, "superseded", false), (10, "orphaned", false)]
        {
            assert_eq!(was_wrong(&fence(second, rule), &reigns), wrong, "{second} {rule}");
        }
    }

    #[test]
    fn fields_are_read_with_and_without_quotation_marks() {
        let line = fence(1, "lease");
        assert_eq!(line.field("rule"), Some("lease"));
        assert_eq!(line.field("took_ms"), Some("1000"));
        assert_eq!(line.field("reason"), Some("of two, b leads"));
        assert_eq!(line.field("nothing"), None);
    }
}
