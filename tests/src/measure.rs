//! What a trial amounts to in figures, and how many of them meet their aims.

use crate::docker::Container;
use crate::faults::Fault;
use crate::history::Reign;
use crate::stack::{self, NODES};
use crate::trial::Outcome;
use crate::writers::{Ack, Route};
use anyhow::Context;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What has been measured: a line of JSON for each run, written as soon as it is done.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    /// In order.
    pub lines: Vec<Value>,
}

impl File {
    /// The file `name` in `tests/out`, with what is in it or, unless a run is to `go_on`, empty; then what was in it is
    /// kept under another name.
    pub fn open(name: &str, go_on: bool) -> anyhow::Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("out");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(name);
        let mut lines = Vec::new();
        if path.exists() && go_on {
            for line in std::fs::read_to_string(&path)?.lines() {
                // A line that was cut short is measured again.
                lines.extend(serde_json::from_str(line).ok());
            }
        } else if path.exists() {
            std::fs::rename(&path, directory.join(format!("{name}.before")))?;
        }
        Ok(Self { path, lines })
    }

    /// One more.
    pub fn add(&mut self, line: Value) -> anyhow::Result<()> {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&self.path)?;
        writeln!(file, "{line}")?;
        self.lines.push(line);
        Ok(())
    }
}

/// So many runs may fail one after the other.
const FAILURES: usize = 3;

/// Does one run, `what` for people. One that fails is done again, on a new stack: `run` has let go of its own by then, and
/// what is left of `project` is removed. Also says how long the run took that did not fail.
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

/// A figure that has an aim.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// In the JSON.
    pub key: &'static str,
    /// Of which fault.
    pub fault: Fault,
    /// For people.
    pub what: &'static str,
    /// `ms`, `s` or `rows`.
    pub unit: &'static str,
    /// Share (1 is the worst) and what that must not be above.
    pub aims: &'static [(f64, f64)],
}

/// All of them. A row comes every 20 ms and each writer's commit takes some, so a figure between two writes is good to
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

/// Steps that end something.
const FIRST_WRITE: &str = "first write on the new primary";
const SYNCHRONOUS: &str = "its standby is synchronous again";

/// A trial in figures: a line of the bench's output.
pub fn figures(outcome: &Outcome, fault: Fault, reigns: &[Reign], synchronous: Option<Instant>) -> Value {
    let turn = turn(outcome);
    let mut figures: BTreeMap<&str, f64> = BTreeMap::new();
    let key_gone = key_gone(outcome, reigns);
    match fault {
        Fault::Freeze => {
            let fence = outcome.fences().first().copied().cloned();
            if let Some(took) = fence.as_ref().and_then(|fence| fence.field("took_ms")?.parse::<f64>().ok()) {
                figures.insert("decision_to_refused_ms", took);
            }
            // Without a fence the old primary refuses after the last row that it acknowledged.
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
            if let Some((outage, _)) = outcome.report.nobody_writable() {
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
        "steps": steps(outcome, reigns, &turn, synchronous),
        "lost": outcome.report.lost.len(),
        "two_primaries_ms": outcome.report.dual.as_millis(),
        "proxy_outage_s": outcome.report.outage(Route::ProxyAnew).as_secs_f64(),
    })
}

/// When the server in `node` last logged that it is shut down, since `since`.
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

/// How long `warden gate` takes in `node`, which leads, in milliseconds: the median of nine.
pub async fn gate(node: &Container) -> anyhow::Result<f64> {
    let nine = "for i in 1 2 3 4 5 6 7 8 9; do a=$EPOCHREALTIME; warden gate || exit; b=$EPOCHREALTIME; \
                echo $((${b/./} - ${a/./})); done";
    let said = node.exec(&["bash", "-c", nine]).await?;
    let mut took = said.lines().map(str::parse).collect::<Result<Vec<f64>, _>>().with_context(|| said.clone())?;
    took.sort_by(f64::total_cmp);
    Ok(quantile(&took, 0.5).context("nothing was measured")? / 1000.0)
}

/// When the key of whoever led was gone.
pub fn key_gone(outcome: &Outcome, reigns: &[Reign]) -> Option<SystemTime> {
    let ours = |reign: &&Reign| reign.holder == outcome.leader.member;
    reigns.iter().filter(ours).filter_map(|reign| reign.until).find(|end| *end >= outcome.struck_at)
}

/// The turn from one primary to the next, as clients straight at the nodes saw it.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// The last row that the old primary acknowledged.
    pub last_old: Option<Ack>,
    /// The first row that the new one did.
    pub first_new: Option<Ack>,
}

/// Who acknowledged what last, and first.
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

/// What happened when, in milliseconds since the fault, in order: to see which step took the time.
fn steps(outcome: &Outcome, reigns: &[Reign], turn: &Turn, synchronous: Option<Instant>) -> Vec<(&'static str, f64)> {
    const SIGNS: [(&str, &str); 5] = [
        ("the alive lock is seen free", "alive lock state=\"gone\""),
        ("fenced", "act::fence: fenced"),
        ("the key is released", "leader key released"),
        ("Patroni is nudged", "Patroni nudged"),
        ("the fence waits for the server to wake", "the server takes no session now"),
    ];
    let since = |at: SystemTime| between(outcome.struck_at, at);
    let mut steps: Vec<(&str, f64)> = Vec::new();
    for (what, sign) in SIGNS {
        if let Some(line) = outcome.lines.iter().find(|line| line.at >= outcome.struck_at && line.text.contains(sign)) {
            steps.push((what, since(line.at)));
        }
    }
    steps.extend(key_gone(outcome, reigns).map(|gone| ("the leader key is gone", since(gone))));
    let taken = reigns.iter().find(|reign| reign.from >= outcome.struck_at && reign.holder != outcome.leader.member);
    steps.extend(taken.map(|reign| ("the other one has the key", since(reign.from))));
    steps.extend(turn.last_old.map(|ack| ("last write on the old primary", since(ack.wall))));
    steps.extend(turn.first_new.map(|ack| (FIRST_WRITE, since(ack.wall))));
    steps.extend(synchronous.map(|at| (SYNCHRONOUS, ms(outcome.struck, at))));
    steps.sort_by(|a, b| a.1.total_cmp(&b.1));
    steps
}

/// Milliseconds, below zero where `to` was before `from`.
pub fn ms(from: Instant, to: Instant) -> f64 {
    let ahead = to.saturating_duration_since(from).as_secs_f64();
    (ahead - from.saturating_duration_since(to).as_secs_f64()) * 1000.0
}

/// The same by the wall clock.
pub fn between(from: SystemTime, to: SystemTime) -> f64 {
    match to.duration_since(from) {
        Ok(ahead) => ahead.as_secs_f64() * 1000.0,
        Err(behind) => -behind.duration().as_secs_f64() * 1000.0,
    }
}

/// The value that `share` of all are not above (nearest rank); nothing of none.
pub fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    // small and positive
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).or(sorted.last()).copied()
}

/// The table of a figure's values with and without Warden, and for each aim whether it is met.
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
            "  {:8} {:3} runs   least {least:9.2}   median {median:9.2}   p90 {p90:9.2}   p99 {p99:9.2}   most {most:9.2}\n",
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

/// The medians of when each step was, and how long after the one before, as far as `end`.
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
