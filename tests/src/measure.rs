//! The figures of a trial, and how many trials meet their aims.

use crate::agent_log::Line;
use crate::docker::Container;
use crate::faults::Fault;
use crate::history::LeaderTerm;
use crate::stack::{self, NODES};
use crate::trial::Outcome;
use crate::writers::{Ack, Route};
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The measurements: a line of JSON for each run, written as soon as the run is done.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    /// The lines in order.
    pub lines: Vec<Value>,
}

impl File {
    /// Opens the file `name` in `tests/out`. With `go_on` its lines are kept. Otherwise it starts empty, and the old
    /// content is kept under another name.
    pub fn open(name: &str, go_on: bool) -> anyhow::Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("out");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(name);
        let mut lines = Vec::new();
        if path.exists() && go_on {
            for line in std::fs::read_to_string(&path)?.lines() {
                // A line that was cut short is dropped, and its run is done again.
                lines.extend(serde_json::from_str(line).ok());
            }
        } else if path.exists() {
            std::fs::rename(&path, directory.join(format!("{name}.before")))?;
        }
        Ok(Self { path, lines })
    }

    /// Adds a line.
    pub fn add(&mut self, line: Value) -> anyhow::Result<()> {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&self.path)?;
        writeln!(file, "{line}")?;
        self.lines.push(line);
        Ok(())
    }
}

/// The number of consecutive failures that ends the benchmark.
const FAILURES: usize = 3;

/// Does one run; `what` names it for people. A run that fails is done again on a new stack. `run` has dropped its own
/// stack by then, and this removes the rest of `project`. Also returns how long the successful run took.
pub async fn on_a_new_stack_if_it_fails(
    project: &str,
    what: &str,
    mut run: impl AsyncFnMut() -> anyhow::Result<Value>,
) -> anyhow::Result<(Value, Duration)> {
    let mut failed = 0;
    loop {
        let started = Instant::now();
        match run().await {
            Ok(line) => return Ok((line, started.elapsed())),
            Err(error) => {
                failed += 1;
                println!("{what} failed: {error:#}");
                if failed == FAILURES {
                    return Err(error);
                }
                stack::remove_stale(project).await?;
            }
        }
    }
}

/// A figure with an aim.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its key in the JSON.
    pub key: &'static str,
    /// The fault that it measures.
    pub fault: Fault,
    /// Its description for people.
    pub what: &'static str,
    /// `ms`, `s` or `rows`.
    pub unit: &'static str,
    /// The aims: a share of the runs (1 is the worst run), and the limit for that share.
    pub aims: &'static [(f64, f64)],
}

/// All figures. A row comes every 20 ms and each commit takes some time, so a figure between two writes is exact to
/// about that.
pub const FIGURES: [Figure; 10] = [
    Figure {
        key: "decision_to_refused_ms",
        fault: Fault::Freeze,
        what: "decision -> open and new sessions refused, as the agent logs it",
        unit: "ms",
        aims: &[(0.99, 25.0)],
    },
    Figure {
        key: "key_gone_to_refused_ms",
        fault: Fault::Freeze,
        what: "leader key gone -> old primary refuses",
        unit: "ms",
        aims: &[(0.99, 50.0)],
    },
    Figure {
        key: "old_refused_minus_new_writable_ms",
        fault: Fault::Freeze,
        what: "last write on the old primary minus first on the new",
        unit: "ms",
        aims: &[(1.0, -0.001)],
    },
    Figure {
        key: "crash_to_first_write_s",
        fault: Fault::Crash,
        what: "docker kill: last write on the old -> first on the new",
        unit: "s",
        aims: &[(0.5, 0.5), (0.99, 0.8)],
    },
    Figure {
        key: "switchover_to_first_write_s",
        fault: Fault::Switchover,
        what: "switchover: last write on the old -> first on the new",
        unit: "s",
        aims: &[(0.5, 0.8)],
    },
    Figure {
        key: "switchover_to_synchronous_s",
        fault: Fault::Switchover,
        what: "switchover: last write on the old -> synchronous standby again",
        unit: "s",
        aims: &[(0.5, 8.0)],
    },
    Figure {
        key: "shut_down_to_key_gone_ms",
        fault: Fault::Switchover,
        what: "switchover: PostgreSQL logs that it is shut down -> leader key gone",
        unit: "ms",
        aims: &[(0.5, 25.0)],
    },
    Figure {
        key: "gate_ms",
        fault: Fault::Switchover,
        what: "warden gate with nothing to wait for, the median of nine",
        unit: "ms",
        aims: &[(0.5, 15.0)],
    },
    Figure {
        key: "postmaster_to_first_write_s",
        fault: Fault::Postmaster,
        what: "killed postmaster: last write -> first write",
        unit: "s",
        aims: &[(0.5, 2.0)],
    },
    Figure {
        key: "stray_acknowledgements",
        fault: Fault::Pause,
        what: "rows acknowledged by the old primary after it woke, and lost",
        unit: "rows",
        aims: &[(1.0, 20.0)],
    },
];

/// The steps at which a measured time ends.
const FIRST_WRITE: &str = "first write on the new primary";
const SYNCHRONOUS: &str = "its standby is synchronous again";

/// The figures of a trial: a line of the benchmark's output.
pub fn figures(outcome: &Outcome, fault: Fault, terms: &[LeaderTerm], synchronous: Option<Instant>) -> Value {
    let turn = turn(outcome);
    let mut figures: BTreeMap<&str, f64> = BTreeMap::new();
    let key_gone = key_gone(outcome, terms);
    match fault {
        Fault::Freeze => {
            let fence = outcome.fences().first().copied().cloned();
            if let Some(took) = fence.as_ref().and_then(|fence| fence.field("took_ms")?.parse::<f64>().ok()) {
                figures.insert("decision_to_refused_ms", took);
            }
            // Without a fence the old primary refuses writes after the last row that it acknowledged.
            let refused = fence.map(|fence| fence.at).or(turn.last_old.map(|ack| ack.wall));
            if let (Some(gone), Some(refused)) = (key_gone, refused) {
                figures.insert("key_gone_to_refused_ms", between(gone, refused));
            }
            if let (Some(old), Some(new)) = (turn.last_old, turn.first_new) {
                figures.insert("old_refused_minus_new_writable_ms", -ms(old.at, new.at));
            }
        }
        Fault::Crash | Fault::Switchover => {
            if let (Some(old), Some(new)) = (turn.last_old, turn.first_new) {
                let key = if fault == Fault::Crash { "crash_to_first_write_s" } else { "switchover_to_first_write_s" };
                figures.insert(key, ms(old.at, new.at) / 1000.0);
            }
            if let (Some(old), Some(synchronous), Fault::Switchover) = (turn.last_old, synchronous, fault) {
                figures.insert("switchover_to_synchronous_s", ms(old.at, synchronous) / 1000.0);
            }
        }
        Fault::Postmaster => {
            if let Some((outage, _)) = outcome.report.without_a_primary() {
                figures.insert("postmaster_to_first_write_s", outage.as_secs_f64());
            }
        }
        Fault::Pause => {
            #[expect(clippy::cast_precision_loss, reason = "a few rows")]
            figures.insert("stray_acknowledgements", outcome.report.lost.len() as f64);
        }
        _ => {}
    }
    json!({
        "figures": figures,
        "steps": steps(outcome, terms, &turn, synchronous),
        "lost": outcome.report.lost.len(),
        "two_primaries_ms": outcome.report.dual.as_millis(),
        "proxy_outage_s": outcome.report.outage(Route::ProxyPerRow).as_secs_f64(),
    })
}

/// When the server in `node` last logged its shutdown, since `since`.
pub async fn shut_down(node: &Container, since: SystemTime) -> anyhow::Result<Option<SystemTime>> {
    let logs = node.logs().await?;
    let ends = logs.lines().filter(|line| line.ends_with("LOG:  database system is shut down"));
    // 2026-11-29 22:00:01.123 UTC [57] LOG: ...
    let mut at = ends.filter_map(|line| {
        let mut words = line.split(' ');
        let (day, time) = (words.next()?, words.next()?);
        let at: jiff::Timestamp = format!("{day}T{time}Z").parse().ok()?;
        Some(UNIX_EPOCH + Duration::from_millis(u64::try_from(at.as_millisecond()).ok()?))
    });
    Ok(at.rfind(|at| *at >= since))
}

/// How long `warden gate` takes in `node`, the leader's, in milliseconds: the median of nine calls.
pub async fn gate(node: &Container) -> anyhow::Result<f64> {
    let nine = "for i in 1 2 3 4 5 6 7 8 9; do a=$EPOCHREALTIME; warden gate || exit; b=$EPOCHREALTIME; \
                echo $((${b/./} - ${a/./})); done";
    let said = node.exec(&["bash", "-c", nine]).await?;
    let mut took = said.lines().map(str::parse).collect::<Result<Vec<f64>, _>>().with_context(|| said.clone())?;
    took.sort_by(f64::total_cmp);
    Ok(quantile(&took, 0.5).context("nothing was measured")? / 1000.0)
}

/// When the old leader's key was gone.
pub fn key_gone(outcome: &Outcome, terms: &[LeaderTerm]) -> Option<SystemTime> {
    let ours = |term: &&LeaderTerm| term.holder == outcome.leader.member;
    terms.iter().filter(ours).filter_map(|term| term.until).find(|end| *end >= outcome.struck_at)
}

/// The change from one primary to the next, as clients connected straight to the nodes saw it.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// The last row that the old primary acknowledged.
    pub last_old: Option<Ack>,
    /// The first row that the new primary acknowledged.
    pub first_new: Option<Ack>,
}

/// The last row of the old primary and the first row of the new one.
pub fn turn(outcome: &Outcome) -> Turn {
    let story = |node: &str| {
        let (node, _) = NODES.into_iter().find(|(known, _)| *known == node)?;
        outcome.report.stories.get(&Route::Node(node))
    };
    let (old, new) = (outcome.leader.service, NODES.iter().find(|(node, _)| *node != outcome.leader.service));
    let before = story(old).and_then(|story| story.acks.first()).map_or(0, |ack| ack.timeline);
    let last_old = story(old).and_then(|story| story.acks.iter().rfind(|ack| ack.timeline == before)).copied();
    let first_new = new.and_then(|(node, _)| story(node)?.acks.iter().find(|ack| ack.at >= outcome.struck)).copied();
    Turn { last_old, first_new }
}

/// The events of a trial in order, in milliseconds since the fault. They show which step took the time.
fn steps(
    outcome: &Outcome,
    terms: &[LeaderTerm],
    turn: &Turn,
    synchronous: Option<Instant>,
) -> Vec<(&'static str, f64)> {
    const EVENTS: [(&str, &str); 4] = [
        ("fenced", "fenced"),
        ("the key is released", "leader_key_released"),
        ("Patroni is nudged", "patroni_nudged"),
        ("the fence waits for the server to wake", "fence_waiting"),
    ];
    let since = |at: SystemTime| between(outcome.struck_at, at);
    let mut steps: Vec<(&str, f64)> = Vec::new();
    let mut first = |what, is_it: &dyn Fn(&Line) -> bool| {
        let line = outcome.lines.iter().find(|line| line.at >= outcome.struck_at && is_it(line));
        steps.extend(line.map(|line| (what, since(line.at))));
    };
    let seen_free = |line: &Line| line.is("alive_lock_changed") && line.field("state") == Some("gone");
    first("the alive lock is seen free", &seen_free);
    for (what, event) in EVENTS {
        first(what, &|line| line.is(event));
    }
    steps.extend(key_gone(outcome, terms).map(|gone| ("the leader key is gone", since(gone))));
    let taken = terms.iter().find(|term| term.from >= outcome.struck_at && term.holder != outcome.leader.member);
    steps.extend(taken.map(|term| ("the other one has the key", since(term.from))));
    steps.extend(turn.last_old.map(|ack| ("last write on the old primary", since(ack.wall))));
    steps.extend(turn.first_new.map(|ack| (FIRST_WRITE, since(ack.wall))));
    steps.extend(synchronous.map(|at| (SYNCHRONOUS, ms(outcome.struck, at))));
    steps.sort_by(|a, b| a.1.total_cmp(&b.1));
    steps
}

/// Milliseconds from `from` to `to`; negative if `to` was earlier.
pub fn ms(from: Instant, to: Instant) -> f64 {
    let ahead = to.saturating_duration_since(from).as_secs_f64();
    (ahead - from.saturating_duration_since(to).as_secs_f64()) * 1000.0
}

/// The same, by the wall clock.
pub fn between(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(ahead) => ahead.as_secs_f64() * 1000.0,
        Err(behind) => -behind.duration().as_secs_f64() * 1000.0,
    }
}

/// The value that the share `share` of all values does not exceed (nearest rank); `None` without values.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // small and positive
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied()
}

/// The table of a figure's values with and without Warden, and whether each aim is met.
pub fn table(figure: &Figure, lines: &[Value]) -> String {
    let mut text = format!("\n{} ({})\n", figure.what, figure.unit);
    let mut missed = false;
    for with in [true, false] {
        let mut values: Vec<f64> =
            of(figure.fault, with, lines).filter_map(|line| line["figures"][figure.key].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        let [least, median, p90, p99, most] = [0.0, 0.5, 0.9, 0.99, 1.0].map(|share| quantile(&values, share));
        let (Some(least), Some(median), Some(p90), Some(p99), Some(most)) = (least, median, p90, p99, most) else {
            text += &format!("  {:8} no runs\n", if with { "with" } else { "without" });
            continue;
        };
        text += &format!(
            "  {:8} {:3} runs   least {least:9.2}   median {median:9.2}   p90 {p90:9.2}   p99 {p99:9.2}   \
             most {most:9.2}\n",
            if with { "with" } else { "without" },
            values.len()
        );
        if with {
            for (share, aim) in figure.aims {
                let value = quantile(&values, *share).unwrap_or(f64::NAN);
                let met = value <= *aim;
                missed |= !met;
                let share = if (*share - 1.0).abs() < f64::EPSILON {
                    "each".to_owned()
                } else {
                    format!("p{:.0}", share * 100.0)
                };
                text += &format!("           aim: {share} <= {aim}: {}\n", if met { "met" } else { "MISSED" });
            }
        }
    }
    if missed {
        let end = if figure.key == "switchover_to_synchronous_s" { SYNCHRONOUS } else { FIRST_WRITE };
        text += &longest_steps(figure.fault, end, lines);
    }
    text
}

fn of(fault: Fault, with: bool, lines: &[Value]) -> impl Iterator<Item = &Value> {
    lines.iter().filter(move |line| line["fault"] == fault.name() && line["with"] == with)
}

/// The median time of each step, and of its distance from the step before, up to `end`.
fn longest_steps(fault: Fault, end: &str, lines: &[Value]) -> String {
    let mut steps: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for step in of(fault, true, lines).flat_map(|line| line["steps"].as_array().into_iter().flatten()) {
        if let (Some(what), Some(at)) = (step[0].as_str(), step[1].as_f64()) {
            steps.entry(what).or_default().push(at);
        }
    }
    let mut medians: Vec<(&str, f64)> = steps
        .into_iter()
        .filter_map(|(what, mut at)| {
            at.sort_by(f64::total_cmp);
            Some((what, quantile(&at, 0.5)?))
        })
        .collect();
    medians.sort_by(|a, b| a.1.total_cmp(&b.1));
    let mut text =
        "           which step took the time (medians, ms since the fault, and since the step before)\n".to_owned();
    let mut before = 0.0;
    for (what, at) in medians {
        text += &format!("             {at:9.0} {:+9.0}  {what}\n", at - before);
        before = at;
        if what == end {
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_that_is_missed_is_said_with_the_steps() {
        let line = |value: f64, with: bool| {
            json!({"fault": "crash", "with": with, "figures": {"crash_to_first_write_s": value},
                "steps": [["the key is released", 120.0], ["first write on the new primary", value * 1000.0]]})
        };
        let figure = FIGURES.iter().find(|figure| figure.key == "crash_to_first_write_s").unwrap();
        let good: Vec<Value> = (0..30).map(|_| line(0.4, true)).chain([line(29.0, false)]).collect();
        let text = table(figure, &good);
        assert!(
            text.contains("p50 <= 0.5: met") && text.contains("p99 <= 0.8: met") && !text.contains("which step"),
            "{text}"
        );
        let bad: Vec<Value> = good.into_iter().chain([line(1.5, true)]).collect();
        let text = table(figure, &bad);
        assert!(text.contains("p50 <= 0.5: met") && text.contains("p99 <= 0.8: MISSED"), "{text}");
        assert!(text.contains("the key is released"), "{text}");
    }

    #[test]
    fn a_quantile_is_a_value_that_was_there() {
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0], 0.5), Some(2.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.99), Some(2.0));
        assert_eq!(quantile(&[], 0.5), None);
    }
}
