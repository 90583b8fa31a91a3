//! The report over all runs: distributions, and whether the aims are met.

use super::{VARIANTS, of};
use serde_json::Value;
use warden_e2e::faults::Fault;
use warden_e2e::measure::quantile;

/// A figure of the report, of one HAProxy or of all of them.
struct Figure {
    /// Its key in a variant's object.
    key: &'static str,
    what: &'static str,
    /// Warden's aims: a share of the runs (1 is the worst run), and the limit for that share.
    aims: fn(Fault) -> &'static [(f64, f64)],
}

const fn no_aim(_: Fault) -> &'static [(f64, f64)] {
    &[]
}

const fn none_at_all(_: Fault) -> &'static [(f64, f64)] {
    &[(1.0, 0.0)]
}

const fn at_once(_: Fault) -> &'static [(f64, f64)] {
    &[(0.99, 50.0)]
}

const fn soon_after_a_crash(fault: Fault) -> &'static [(f64, f64)] {
    if matches!(fault, Fault::Crash) { &[(0.5, 0.6), (0.99, 1.0)] } else { &[] }
}

const fn hardly_longer(fault: Fault) -> &'static [(f64, f64)] {
    if matches!(fault, Fault::Switchover) { &[(0.5, 1.1), (0.99, 1.1)] } else { &[] }
}

const fn a_short_pause(fault: Fault) -> &'static [(f64, f64)] {
    if matches!(fault, Fault::Crash) { &[(0.5, 0.5)] } else { &[] }
}

/// The figures of each of the three HAProxys.
const COMPARED: [Figure; 10] = [
    Figure { key: "kept_s", what: "outage, a client that keeps its session (s)", aims: soon_after_a_crash },
    Figure { key: "per_row_s", what: "outage, clients that connect for each row (s)", aims: soon_after_a_crash },
    Figure { key: "kept_more_s", what: "longer than PostgreSQL's own, session kept (s)", aims: no_aim },
    Figure { key: "per_row_more_s", what: "longer than PostgreSQL's own, connecting for each row (s)", aims: no_aim },
    Figure { key: "kept_ratio", what: "times PostgreSQL's own, session kept", aims: hardly_longer },
    Figure { key: "per_row_ratio", what: "times PostgreSQL's own, connecting for each row", aims: hardly_longer },
    Figure {
        key: "turned_away",
        what: "rows that failed although their client was not in flight at the fault, connecting for each row",
        aims: none_at_all,
    },
    Figure { key: "in_flight", what: "rows that failed in flight, connecting for each row", aims: no_aim },
    Figure {
        key: "slowest_s",
        what: "slowest wait of a client that connects for each row; it gives up after 3 s without an answer (s)",
        aims: a_short_pause,
    },
    Figure { key: "reloads", what: "reloads, by the log of HAProxy's master", aims: none_at_all },
];

/// The figures of Warden's HAProxy only.
const ROUTER: [Figure; 8] = [
    Figure {
        key: "up_after_write_ms",
        what: "first write that the new primary takes arrives, straight -> HAProxy has it up (ms)",
        aims: at_once,
    },
    Figure {
        key: "up_after_refusal_ms",
        what: "the same from the last write that it refused: at most this long after it was writable (ms)",
        aims: at_once,
    },
    Figure {
        key: "first_row_after_write_ms",
        what: "first row acknowledged by the new primary, straight -> the first through Warden's HAProxy (ms)",
        aims: no_aim,
    },
    Figure {
        key: "out_after_leader_ms",
        what: "another holds the leader key -> the old server takes no new session (ms)",
        aims: no_aim,
    },
    Figure {
        key: "cut_after_leader_ms",
        what: "another holds the leader key -> the old server takes no new session and its last session is over (ms)",
        aims: at_once,
    },
    Figure { key: "old_up_again", what: "times that a check raised the old server while it went", aims: no_aim },
    Figure { key: "new_too_early", what: "times that the new server was up and not left so", aims: no_aim },
    Figure { key: "reloads", what: "reloads, by the agent's log", aims: none_at_all },
];

/// The figures of a crowd of clients through Warden's HAProxy, if there was one.
const CROWD: [(&str, &str); 3] = [
    ("served", "visits of a crowd that were served between the fault and the end"),
    ("refused", "visits that were refused meanwhile"),
    ("misrouted", "visits that met a standby"),
];

/// All figures of one fault.
pub(super) fn report(fault: Fault, lines: &[Value]) -> String {
    let runs: Vec<&Value> = of(fault, lines).collect();
    let lost: u64 = runs.iter().filter_map(|run| run["lost"].as_u64()).sum();
    let both = runs.iter().filter(|run| run["two_primaries_ms"] != 0).count();
    let mut text = format!("\n{fault}: {}, {} runs\n", fault.what(), runs.len());
    text += &format!("{lost} acknowledged rows lost; two primaries in {both} runs\n");
    text += "\nPostgreSQL's own outage: last row of the old primary -> first of the new, straight (s)\n";
    text += &row("PostgreSQL", &runs.iter().map(|run| &run["own_s"]).collect::<Vec<_>>()).1;
    for figure in COMPARED {
        text += &format!("\n{}\n", figure.what);
        for (variant, name) in VARIANTS {
            let values: Vec<&Value> = runs.iter().map(|run| &run[variant][figure.key]).collect();
            text += &with_aims(name, &values, if variant == "warden" { (figure.aims)(fault) } else { &[] });
        }
    }
    for (key, what) in CROWD {
        let values: Vec<&Value> = runs.iter().map(|run| &run["crowd"][key]).filter(|value| value.is_u64()).collect();
        if !values.is_empty() {
            text += &format!("\n{what}\n{}", row("Warden", &values).1);
        }
    }
    for figure in ROUTER {
        text += &format!("\n{}\n", figure.what);
        let values: Vec<&Value> = runs.iter().map(|run| &run["router"][figure.key]).collect();
        text += &with_aims("Warden", &values, (figure.aims)(fault));
    }
    text
}

/// The values in order, and their summary for people.
fn row(name: &str, values: &[&Value]) -> (Vec<f64>, String) {
    let mut known: Vec<f64> = values.iter().filter_map(|value| value.as_f64()).collect();
    known.sort_by(f64::total_cmp);
    let shares = [0.0, 0.5, 0.99, 1.0].map(|share| quantile(&known, share));
    let mut text = match shares {
        [Some(least), Some(median), Some(p99), Some(most)] => {
            format!("  {name:24} least {least:9.2}   median {median:9.2}   p99 {p99:9.2}   most {most:9.2}")
        }
        _ => format!("  {name:24} missing"),
    };
    if !known.is_empty() && known.len() < values.len() {
        text += &format!("   missing in {} of {} runs", values.len() - known.len(), values.len());
    }
    (known, text + "\n")
}

fn with_aims(name: &str, values: &[&Value], aims: &[(f64, f64)]) -> String {
    let (known, mut text) = row(name, values);
    for (share, aim) in aims {
        let named = if *share >= 1.0 { "each".to_owned() } else { format!("p{:.0}", share * 100.0) };
        let met = match quantile(&known, *share) {
            None => "NOT KNOWN",
            Some(value) if value > *aim => "MISSED",
            // An unknown value may have been anything.
            Some(_) if known.len() < values.len() => "met where it is known",
            Some(_) => "met",
        };
        text += &format!("  {:24} aim: {named} <= {aim}: {met}\n", "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_said_and_meets_no_aim() {
        let line = |value: Value| json!({"fault": "crash", "warden": {"kept_s": value}});
        let text = report(Fault::Crash, &[line(json!(0.5)), line(Value::Null)]);
        assert!(text.contains("missing in 1 of 2 runs"), "{text}");
        assert!(text.contains("p50 <= 0.6: met where it is known"), "{text}");
        assert!(text.contains("p50 <= 0.5: NOT KNOWN"), "{text}");
        let text = report(Fault::Crash, &[line(json!(0.5)), line(json!(1.5))]);
        assert!(text.contains("p50 <= 0.6: met\n") && text.contains("p99 <= 1: MISSED"), "{text}");
    }
}
