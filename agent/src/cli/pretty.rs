//! Prints the state for a person, in at most 80 columns and with optional colors, and as TSV.

use crate::tell::state::{Fence, Haproxy, Member, State};
use jiff::Timestamp;
use warden_core::haproxy::Pool;

/// The columns of a terminal.
const WIDTH: usize = 80;

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const BOLD: &str = "\x1b[1m";
const RESET: &str = "\x1b[0m";

struct Paint(bool);

impl Paint {
    fn with(&self, color: &str, text: &str) -> String {
        if self.0 { format!("{color}{text}{RESET}") } else { text.to_owned() }
    }
}

/// The state as text, with the escape codes of a terminal if `color` is set.
pub(super) fn render(state: &State, color: bool) -> String {
    let paint = Paint(color);
    let mut out = String::new();
    let at = state.at.get(..19).unwrap_or(&state.at).replace('T', " ");
    let by = match &state.agent {
        // The default mode needs no words. Older agents do not send the mode.
        Some(agent) if matches!(agent.fencing_mode.as_str(), "" | "enforce") => format!("seen by agent {}", agent.name),
        Some(agent) => format!("seen by agent {}, fencing.mode is {}", agent.name, agent.fencing_mode),
        None => "seen without an agent".to_owned(),
    };
    line(&mut out, "Cluster", &format!("{}, {at} UTC, {by}", state.scope));
    let known = state.leader.verified && state.leader.name.is_some();
    let leads = lines("Leader", &leader(state));
    leads.iter().for_each(|text| out.push_str(&(paint.with(if known { BOLD } else { YELLOW }, text) + "\n")));
    out.push('\n');
    members(state, &paint, &mut out);
    out.push('\n');
    zookeeper(state, &mut out);
    agents(state, &mut out);
    for haproxy in &state.haproxy {
        line(&mut out, "HAProxy", &haproxy_text(haproxy));
    }
    for fence in &state.fences {
        // The agents leave a server in recovery as it is.
        let in_recovery =
            state.members.iter().any(|member| member.name == fence.member && member.postgres.answer == "in_recovery");
        let color = if fence.confirmed.is_some() || in_recovery { YELLOW } else { RED };
        let texts = lines("Fence", &fence_text(fence, &state.at, in_recovery));
        texts.iter().for_each(|text| out.push_str(&(paint.with(color, text) + "\n")));
    }
    if state.warnings.is_empty() {
        out.push_str(&format!("Warnings   {}\n", paint.with(GREEN, "none")));
    } else {
        out.push_str("Warnings\n");
        for warning in &state.warnings {
            let text = format!("{} [{}]", clean(&warning.message), clean(&warning.code));
            for (index, text) in wrap(&text, WIDTH - 4).into_iter().enumerate() {
                let lead = if index == 0 { "  ! " } else { "    " };
                out.push_str(&format!("{lead}{}\n", paint.with(YELLOW, &text)));
            }
        }
    }
    out
}

fn leader(state: &State) -> String {
    let leader = &state.leader;
    let mut text = leader.name.clone().unwrap_or_else(|| "none".to_owned());
    match (&leader.why_unverified, leader.verified) {
        (_, true) => text.push_str(", verified"),
        (Some(why), false) if leader.name.is_none() => text = format!("unknown: {why}"),
        (Some(why), false) => text.push_str(&format!(" as last read, NOT verified: {why}")),
        (None, false) => text.push_str(", NOT verified"),
    }
    if let Some(since) = &leader.since {
        let shown = since.get(..19).unwrap_or(since).replace('T', " ");
        text.push_str(&format!(", since {shown} UTC{}", ago(since, &state.at)));
    }
    if let Some(czxid) = leader.czxid {
        text.push_str(&format!(", czxid {czxid:#x}"));
    }
    text
}

fn ago(since: &str, at: &str) -> String {
    match (since.parse::<Timestamp>(), at.parse::<Timestamp>()) {
        (Ok(since), Ok(at)) => {
            let seconds = at.duration_since(since).as_secs().max(0).unsigned_abs();
            format!(" ({})", duration(seconds))
        }
        _ => String::new(),
    }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 10_000 && unit + 1 < UNITS.len() {
        value /= 1000;
        unit += 1;
    }
    format!("{value} {}", UNITS.get(unit).unwrap_or(&"B"))
}

const HEAD: [&str; 8] = ["Member", "Role", "State", "TL", "Lag", "Writable", "Patroni", "Agent"];

/// The maximal width of each column. The names get the rest of the line.
const WIDTHS_MAX: [usize; 8] = [WIDTH, 14, 12, 4, 7, 8, 9, 7];

/// The columns for the mark of the leader.
const MARK: usize = 2;

const _: () = {
    let [_, a, b, c, d, e, f, g] = WIDTHS_MAX;
    let between = WIDTHS_MAX.len() - 1;
    assert!(WIDTH - MARK - between - (a + b + c + d + e + f + g) >= 10, "names have less than 10 columns");
};

fn widths(rows: &[[String; 8]]) -> Vec<usize> {
    let width = |(column, (head, limit)): (usize, (&str, usize))| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head.len()]).max().unwrap_or(0).min(limit)
    };
    let mut widths: Vec<usize> = HEAD.into_iter().zip(WIDTHS_MAX).enumerate().map(width).collect();
    if let Some((names, others)) = widths.split_first_mut() {
        let taken = MARK + others.len() + others.iter().sum::<usize>();
        *names = (*names).min(WIDTH.saturating_sub(taken));
    }
    widths
}

/// Prints the table of the members, with a star at the leader.
fn members(state: &State, paint: &Paint, out: &mut String) {
    const RIGHT: [bool; 8] = [false, false, false, true, true, false, false, true];
    let rows: Vec<[String; 8]> = state.members.iter().map(row).collect();
    let widths = widths(&rows);
    let cells = |row: &[String]| {
        let cells = row.iter().zip(&widths).zip(RIGHT).enumerate().map(|(column, ((cell, width), right))| {
            // The names of a cluster's members often differ in their last letter only.
            let cell = if column == 0 { cut_inside(cell, *width) } else { cut(cell, *width) };
            if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        cells.collect::<Vec<_>>().join(" ").trim_end().to_owned()
    };
    out.push_str(&format!("  {}\n", cells(&HEAD.map(str::to_owned))));
    for (member, row) in state.members.iter().zip(&rows) {
        let leads = state.leader.name.as_deref() == Some(member.name.as_str());
        let color = match (leads, member.writable) {
            (false, Some(true)) => RED,
            (true, Some(true)) => GREEN,
            (true, _) => RED,
            (false, Some(false)) if member.postgres.answer == "in_recovery" => "",
            (false, _) => YELLOW,
        };
        let text = format!("{} {}", if leads { '*' } else { ' ' }, cells(row));
        out.push_str(&if color.is_empty() { text } else { paint.with(color, &text) });
        out.push('\n');
    }
    if state.members.is_empty() {
        out.push_str("  (none known)\n");
    }
}

fn row(member: &Member) -> [String; 8] {
    let dash = || "-".to_owned();
    [
        clean(&member.name),
        clean(&member.role),
        clean(&member.state),
        member.timeline.map_or_else(dash, |timeline| timeline.to_string()),
        member.lag_bytes.map_or_else(dash, bytes),
        match member.writable {
            Some(true) => "yes".to_owned(),
            Some(false) => "no".to_owned(),
            None => "unknown".to_owned(),
        },
        clean(&member.patroni.answer),
        member.agent.as_ref().map_or_else(|| "none".to_owned(), |agent| age(agent.age_ms)),
    ]
}

fn age(ms: u64) -> String {
    if ms < 10_000 { format!("{}.{} s", ms / 1000, ms % 1000 / 100) } else { duration(ms / 1000) }
}

fn zookeeper(state: &State, out: &mut String) {
    let zookeeper = &state.zookeeper;
    let text = if zookeeper.connected {
        let timeout = zookeeper.timeout_ms.map_or_else(|| "?".to_owned(), |ms| (ms / 1000).to_string());
        let latency = zookeeper.latency_ms.map_or_else(|| "?".to_owned(), |ms| format!("{ms:.1}"));
        format!(
            "{}, session {}, timeout {timeout} s, read {latency} ms",
            zookeeper.server.as_deref().unwrap_or("?"),
            zookeeper.session.as_deref().unwrap_or("?"),
        )
    } else {
        format!("not connected: {}", zookeeper.detail.as_deref().unwrap_or("?"))
    };
    line(out, "ZooKeeper", &text);
}

fn agents(state: &State, out: &mut String) {
    let agents: Vec<String> =
        state.agents.iter().map(|agent| format!("{} {}", agent.name, age(agent.age_ms))).collect();
    let text = if agents.is_empty() { "none".to_owned() } else { agents.join(", ") };
    line(out, "Agents", &text);
}

fn haproxy_text(haproxy: &Haproxy) -> String {
    if let Some(why) = &haproxy.detail {
        return format!("{}: unknown: {why}", haproxy.agent);
    }
    // Reads may go on to the primary, so their line does not say that there are none.
    let targets =
        |members: &[String], none: &str| if members.is_empty() { none.to_owned() } else { members.join(", ") };
    let servers = |pool: Pool| {
        let of_it = haproxy.servers.iter().filter(|server| server.pool == pool.as_str());
        of_it
            .map(|server| format!("{} {}, {} sessions", server.name, server.status, server.sessions))
            .collect::<Vec<_>>()
    };
    let (writes, reads) = (servers(Pool::Writes), servers(Pool::Reads));
    let mut text =
        format!("{}: writes go to {} ({})", haproxy.agent, targets(&haproxy.writes_to, "no member"), writes.join("; "));
    if !reads.is_empty() {
        text += &format!(", reads to {} ({})", targets(&haproxy.reads_from, "no replica"), reads.join("; "));
    }
    text
}

/// The text of a fence. It has no day if that is the day of `at`.
fn fence_text(fence: &Fence, at: &str, in_recovery: bool) -> String {
    let Fence { member, rule, reason, by, ordered, confirmed, written: _, zxid: _ } = fence;
    let confirmed = match confirmed {
        Some(_) => "confirmed",
        None if in_recovery => "confirmed: in recovery",
        None => "NOT confirmed",
    };
    let when = match ordered.as_deref().map(|ordered| (ordered.get(..10), ordered.get(11..19), ordered)) {
        Some((day, Some(time), _)) if day == at.get(..10) => format!(" {time}"),
        Some((Some(day), Some(time), _)) => format!(" {day} {time}"),
        Some((_, _, other)) => format!(" {other}"),
        None => String::new(),
    };
    format!("{member}: {rule}, {confirmed}, ordered{when} by {by}: {reason}")
}

/// The column at which the text after a label begins.
const TEXT: usize = 11;

/// A label and its text, wrapped under the first word of the text.
fn lines(label: &str, text: &str) -> Vec<String> {
    let wrapped = wrap(&clean(text), WIDTH - TEXT).into_iter().enumerate();
    wrapped.map(|(index, text)| format!("{:TEXT$}{text}", if index == 0 { label } else { "" })).collect()
}

fn line(out: &mut String, label: &str, text: &str) {
    lines(label, text).iter().for_each(|text| out.push_str(&format!("{text}\n")));
}

/// Replaces the characters that would steer the terminal, hide text or change its direction. A hostile client can write
/// them into a znode, or into the answer of an agent.
fn clean(text: &str) -> String {
    let hidden =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    text.chars().map(|c| if c.is_control() || hidden(c) { '?' } else { c }).collect()
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    format!("{kept}~")
}

/// Shortens a text in the middle, so that its end stays.
fn cut_inside(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let end = kept.div_ceil(2);
    let head: String = text.chars().take(kept - end).collect();
    let tail: String = text.chars().skip(length - end).collect();
    format!("{head}~{tail}")
}

/// Breaks a text at its spaces, and breaks a word that is longer than a line at the end of the line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut length = 0;
    for (index, word) in text.split(' ').enumerate() {
        let mut word: Vec<char> = word.chars().collect();
        if index > 0 {
            if length + 1 + word.len() <= width {
                line.push(' ');
                length += 1;
            } else {
                lines.push(std::mem::take(&mut line));
                length = 0;
            }
        }
        while word.len() > width {
            let rest = word.split_off(width - length);
            line.extend(&word);
            lines.push(std::mem::take(&mut line));
            length = 0;
            word = rest;
        }
        length += word.len();
        line.extend(&word);
    }
    lines.push(line);
    lines
}

/// One line for each member, with a header; `-` for an unknown value.
pub(super) fn tsv(state: &State) -> String {
    let mut out =
        String::from("member\trole\tstate\ttimeline\tlag_bytes\twritable\tpatroni\tpostgres\tleader\tverified\n");
    for member in &state.members {
        let dash = || "-".to_owned();
        let leads = state.leader.name.as_deref() == Some(member.name.as_str());
        let fields = [
            clean(&member.name),
            clean(&member.role),
            clean(&member.state),
            member.timeline.map_or_else(dash, |timeline| timeline.to_string()),
            member.lag_bytes.map_or_else(dash, |lag| lag.to_string()),
            member.writable.map_or_else(dash, |writable| writable.to_string()),
            clean(&member.patroni.answer),
            clean(&member.postgres.answer),
            leads.to_string(),
            state.leader.verified.to_string(),
        ];
        out.push_str(&fields.join("\t"));
        out.push('\n');
    }
    out
}

#[cfg(test)]
#[path = "pretty_tests.rs"]
mod tests;
