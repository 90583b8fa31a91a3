//! `tests/bench routing`: switchovers and crashes, as clients of three HAProxys in front of one cluster see them. One
//! HAProxy has only its own checks, one is reloaded with a new file, and one is Warden's. Clients connected straight to
//! the nodes show how long PostgreSQL itself was away. Each run is a line of JSON in `tests/out/routing.jsonl`, written
//! as soon as the run is done.

// serde_json returns null for a missing index. The code indexes nothing else.
#![allow(clippy::indexing_slicing)]

mod report;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::sleep;
use warden_e2e::agent_log::{Line, log_since};
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::history::{self, LeaderTerm};
use warden_e2e::measure::{File, Turn, between, ms, on_a_new_stack_if_it_fails, turn};
use warden_e2e::rivals::{CHECKS, RELOADED, Rivals};
use warden_e2e::stack::{self, Flavor, NODES, Stack};
use warden_e2e::throng::{Throng, Visits};
use warden_e2e::trial::{self, Observed, Outcome};
use warden_e2e::wait;
use warden_e2e::writers::{Commit, Route, Story};

/// The benchmark's compose project, unless `WARDEN_TEST_PREFIX` names another.
const PROJECT: &str = "wardenbench";

/// The file in `tests/out`.
const OUT: &str = "routing.jsonl";

/// The aim for the time from a writable server until it is up in HAProxy, in milliseconds. A run that takes longer has
/// the agent's log.
const UP_MAX_MS: f64 = 50.0;

/// A client connected straight to the old primary knows of its end after at most this long, because it writes every 20
/// ms.
const KNOWN: Duration = Duration::from_millis(100);

/// The three HAProxys: their keys in the JSON, and their descriptions for people.
const VARIANTS: [(&str, &str); 3] =
    [("checks", "HAProxy's checks alone"), ("reloaded", "template and reload"), ("warden", "Warden")];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let go_on = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => false,
        ["--continue"] => true,
        _ => anyhow::bail!("the only option is --continue, and not {arguments:?}"),
    };
    let wanted =
        [(Fault::Switchover, setting("WARDEN_BENCH_RUNS", 30)?), (Fault::Crash, setting("WARDEN_BENCH_CRASHES", 10)?)];
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let project = std::env::var("WARDEN_TEST_PREFIX").unwrap_or_else(|_| PROJECT.to_owned()) + "-r";
        stack::remove_stale(&project).await?;
        let file = File::open(OUT, go_on)?;
        let mut bench = Bench { project: project.clone(), file, at_work: None };
        let outcome = bench.all(&wanted).await;
        bench.at_work = None;
        stack::remove_stale(&project).await?;
        for (fault, _) in wanted {
            print!("{}", report::report(fault, &bench.file.lines));
        }
        outcome
    })
}

fn setting(name: &str, default: usize) -> anyhow::Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name} is {text:?} and not a number")),
        Err(_) => Ok(default),
    }
}

struct Bench {
    project: String,
    file: File,
    /// A stack, and the other two HAProxys beside it.
    at_work: Option<(Stack, Rivals)>,
}

impl Bench {
    async fn all(&mut self, wanted: &[(Fault, usize)]) -> anyhow::Result<()> {
        // The fault that is furthest behind comes next, so that a busier machine affects both.
        loop {
            let left = wanted.iter().filter(|(fault, runs)| self.done(*fault) < *runs);
            let Some((fault, runs)) = left.min_by_key(|(fault, runs)| self.done(*fault) * 1000 / runs) else {
                return Ok(());
            };
            self.next(*fault, *runs).await?;
        }
    }

    fn done(&self, fault: Fault) -> usize {
        of(fault, &self.file.lines).count()
    }

    /// Does one more run. A run that fails is done again on a new stack.
    async fn next(&mut self, fault: Fault, runs: usize) -> anyhow::Result<()> {
        let what = format!("{fault} {}/{runs}", self.done(fault) + 1);
        let project = self.project.clone();
        let run = async || {
            let line = self.run(fault).await;
            if line.is_err() {
                self.at_work = None;
            }
            line
        };
        let (line, took) = on_a_new_stack_if_it_fails(&project, &what, run).await?;
        println!("{what}, {took:.0?}: {}", short(&line));
        self.file.add(line)
    }

    async fn run(&mut self, fault: Fault) -> anyhow::Result<Value> {
        let (stack, rivals) = match &mut self.at_work {
            Some(at_work) => at_work,
            None => {
                let stack = Stack::up(&self.project, Flavor::Single).await?;
                let leads = Leader::find(&stack).await?.service;
                let rivals = Rivals::start(&stack, leads).await?;
                self.at_work.insert((stack, rivals))
            }
        };
        let leader = Leader::find(stack).await?;
        rivals.settled(leader.service).await?;
        let routes = [Route::ALL.as_slice(), &rivals.through_checks(), &rivals.through_reloaded()].concat();
        let observed = Observed::start_on(stack, Commit::Synchronous, &routes).await?;
        let mut throng = match setting("WARDEN_BENCH_CLIENTS", 0)? {
            0 => None,
            clients => Some(at_work(stack, clients).await?),
        };
        let (outcome, until, visits) = strike(stack, fault, leader, observed, rivals, &routes, &mut throng).await?;
        if fault == Fault::Crash {
            rivals.restart(node_beside(outcome.leader.service)).await?;
        }
        let zoo = stack.zookeepers().into_iter().next().context("no ZooKeeper")?;
        let logs = Logs::of(stack, outcome.struck_at, until.1).await?;
        let through = [rivals.through_checks(), rivals.through_reloaded(), [Route::Proxy, Route::ProxyPerRow]];
        let terms = history::leader_terms(&zoo).await?;
        Ok(figures(fault, &Run { outcome: &outcome, until: until.0, through, logs, terms, visits }))
    }
}

/// Clients that keep Warden's HAProxy busy, and have done so for a while.
async fn at_work(stack: &Stack, clients: usize) -> anyhow::Result<Throng> {
    let throng = Throng::start(stack.ports.proxy, clients);
    wait::until("they are served", Duration::from_secs(60), || async {
        let served = throng.visits().served.len();
        ensure!(served > 2 * clients, "{served} visits");
        Ok(())
    })
    .await?;
    Ok(throng)
}

fn node_beside(node: &str) -> &'static str {
    if node == NODES[0].0 { NODES[1].0 } else { NODES[0].0 }
}

/// Causes the fault, and heals it only when all three HAProxys have followed. So the old primary's return affects no
/// figure. Also returns when they had followed, or when the wait for them ended.
async fn strike(
    stack: &Stack,
    fault: Fault,
    leader: Leader,
    observed: Observed,
    rivals: &Rivals,
    routes: &[Route],
    throng: &mut Option<Throng>,
) -> anyhow::Result<(Outcome, (Instant, SystemTime), Option<Visits>)> {
    let through_proxies = || routes.iter().filter(|route| !matches!(route, Route::Node(_))).copied();
    wait::until("rows on every way", Duration::from_secs(60), || async {
        for route in through_proxies() {
            ensure!(observed.writers().story(route).acks.len() > 5, "none on {route:?}");
        }
        Ok(())
    })
    .await?;
    // The pause differs from every program's rounds of a second.
    sleep(Duration::from_secs(2)).await;
    let leads_then = node_beside(leader.service);
    let (mut until, mut visits) = ((Instant::now(), SystemTime::now()), None);
    let all_have_followed = async {
        // An HAProxy that does not follow has no figure, and the report shows that.
        if let Err(error) = rivals.settled(leads_then).await {
            println!("{error:#}");
        }
        sleep(Duration::from_secs(3)).await;
        until = (Instant::now(), SystemTime::now());
        // The clients stop here. A crowd that waits for a slot is a warning, and in the end no agent may warn.
        visits = throng.take().map(|throng| throng.visits());
    };
    let outcome = trial::with_healing_after(stack, fault, leader, observed, all_have_followed).await?;
    Ok((outcome, until, visits))
}

/// The logs of the HAProxys, and of the agent beside the stack's own, from the fault on.
struct Logs {
    agent: Vec<Line>,
    /// The HAProxys' logs in the order of [`VARIANTS`].
    haproxys: [Vec<Line>; 3],
}

impl Logs {
    async fn of(stack: &Stack, since: SystemTime, until: SystemTime) -> anyhow::Result<Self> {
        let log = async |service| {
            let mut lines = log_since(stack, service, since).await?;
            lines.retain(|line| line.at >= since && line.at <= until);
            anyhow::Ok(lines)
        };
        Ok(Self {
            agent: log("warden-haproxy").await?,
            haproxys: [log(CHECKS).await?, log(RELOADED).await?, log("haproxy").await?],
        })
    }
}

/// All data of a run's figures.
struct Run<'a> {
    outcome: &'a Outcome,
    /// The end of the measured time.
    until: Instant,
    /// The routes through each HAProxy, in the order of [`VARIANTS`]: in one session, and with a session for each row.
    through: [[Route; 2]; 3],
    logs: Logs,
    terms: Vec<LeaderTerm>,
    /// The visits of a crowd of clients, if there was one.
    visits: Option<Visits>,
}

impl Run<'_> {
    fn story(&self, route: Route) -> Option<&Story> {
        self.outcome.report.stories.get(&route)
    }
}

/// The figures of a run. Unknown ones are left out.
fn figures(fault: Fault, run: &Run<'_>) -> Value {
    let turn = turn(run.outcome);
    let own = turn.last_old.zip(turn.first_new).map(|(old, new)| ms(old.at, new.at) / 1000.0);
    let mut line = json!({
        "fault": fault.name(),
        "own_s": own,
        "router": router(run, &turn),
        "lost": run.outcome.report.lost.len(),
        "two_primaries_ms": run.outcome.report.dual.as_millis(),
    });
    if let Some(visits) = &run.visits {
        let (from, until) = (run.outcome.struck, run.until);
        let refused = visits.refused_within(from, until);
        line["crowd"] = json!({
            "served": visits.served_within(from, until),
            "misrouted": visits.misrouted_within(from, until),
            "refused": refused.values().sum::<usize>(),
            "reasons": refused,
        });
    }
    for (((variant, _), [kept, per_row]), log) in VARIANTS.iter().zip(run.through).zip(&run.logs.haproxys) {
        let mut seen = clients(run, &turn, per_row);
        for (key, route) in [("kept", kept), ("per_row", per_row)] {
            let Some(outage) = outage(run, &turn, route) else { continue };
            seen.insert(format!("{key}_s"), json!(outage));
            if let Some(own) = own {
                seen.insert(format!("{key}_more_s"), json!(outage - own));
                seen.insert(format!("{key}_ratio"), json!(outage / own));
            }
        }
        // The master logs this for every worker that it starts.
        seen.insert("reloads".to_owned(), json!(log.iter().filter(|line| line.text.contains("New worker")).count()));
        line[*variant] = Value::Object(seen);
    }
    line
}

/// The longest time without a row on a route, in seconds; `None` if no row came through once the new primary took
/// writes.
fn outage(run: &Run<'_>, turn: &Turn, route: Route) -> Option<f64> {
    let acks = &run.story(route)?.acks;
    let new = turn.first_new?;
    acks.iter().find(|ack| ack.timeline >= new.timeline && ack.at <= run.until)?;
    let gaps = acks.iter().zip(acks.iter().skip(1)).filter(|(a, b)| b.at >= run.outcome.struck && a.at <= run.until);
    gaps.map(|(a, b)| ms(a.at, b.at) / 1000.0).max_by(f64::total_cmp)
}

/// The figures of the clients that connect for each row. How long did one of them wait for a row, or for its refusal?
/// How many were turned away, and with which first reason? A client gives up after 3 s without an answer.
fn clients(run: &Run<'_>, turn: &Turn, per_row: Route) -> Map<String, Value> {
    let mut seen = Map::new();
    let Some((story, old)) = run.story(per_row).zip(turn.last_old) else { return seen };
    // A client that began before the old primary was seen to be gone was in flight. Only one can be, because they come
    // one by one.
    let known = run
        .story(Route::Node(run.outcome.leader.service))
        .and_then(|story| story.errors.iter().map(|failure| failure.at).find(|at| *at > old.at));
    let gone = known.map_or(old.at + KNOWN, |at| at.min(old.at + KNOWN));
    let now = |at: Instant| at >= run.outcome.struck && at <= run.until;
    let failures = || story.errors.iter().filter(|failure| now(failure.at));
    let in_flight = failures().take(1).filter(|failure| failure.begun <= gone).count();
    let turned_away = || failures().skip(in_flight);
    let rows = story.acks.iter().map(|ack| (ack.begun, ack.at));
    let waits = rows.chain(failures().map(|failure| (failure.begun, failure.at))).filter(|(_, at)| now(*at));
    let slowest = waits.map(|(begun, at)| ms(begun, at) / 1000.0).max_by(f64::total_cmp);
    seen.insert("slowest_s".to_owned(), json!(slowest));
    seen.insert("turned_away".to_owned(), json!(turned_away().count()));
    seen.insert("in_flight".to_owned(), json!(in_flight));
    if let Some(first) = turned_away().next() {
        seen.insert("why".to_owned(), json!(first.why));
    }
    seen
}

/// The servers in the HAProxy that Warden routes, by HAProxy's own log, compared with what others saw.
fn router(run: &Run<'_>, turn: &Turn) -> Map<String, Value> {
    let mut found = Map::new();
    let outcome = run.outcome;
    let (old, new) = (outcome.leader.service, node_beside(outcome.leader.service));
    let [.., log] = &run.logs.haproxys;
    // Both Warden's commands and HAProxy's checks log this. (Standard error has the same text with another beginning.)
    let changes = |node: &str| {
        let sign = format!("Server postgres/{node} is ");
        let of_it = log.iter().filter_map(|line| Some((line.at, line.text.strip_prefix(&sign)?.starts_with("UP"))));
        of_it.collect::<Vec<_>>()
    };
    let (of_old, of_new) = (changes(old), changes(new));
    // The start of the last stretch in this state. A check may raise the old server again during its shutdown, and the
    // new one too early.
    let stays = |changes: &[(SystemTime, bool)], wanted: bool| {
        changes.rsplit(|(_, is_up)| *is_up != wanted).next().and_then(<[_]>::first).map(|(at, _)| *at)
    };
    let dips = of_new.windows(2).filter(|pair| matches!(pair, [(_, true), (_, false)])).count();
    found.insert("new_too_early".to_owned(), json!(dips));
    found.insert("old_up_again".to_owned(), json!(of_old.iter().filter(|(_, is_up)| *is_up).count()));
    if let Some(first) = turn.first_new {
        if let Some(up) = stays(&of_new, true) {
            let acknowledged = between(first.wall, up);
            // The server became writable after its last refusal of a write, and no later than the arrival of the first
            // row that it took.
            let after = acknowledged + ms(first.sent, first.at);
            found.insert("up_after_write_ms".to_owned(), json!(after));
            if after > UP_MAX_MS {
                found.insert("late".to_owned(), json!(around(&run.logs.agent, first.wall)));
            }
            let refusals = run.story(Route::Node(new)).into_iter().flat_map(|story| &story.errors);
            if let Some(refused) = refusals.map(|failure| failure.at).filter(|at| *at <= first.at).max() {
                found.insert("up_after_refusal_ms".to_owned(), json!(acknowledged + ms(refused, first.at)));
            }
        }
        let through = [Route::Proxy, Route::ProxyPerRow].into_iter().filter_map(|route| run.story(route));
        let acks = through.flat_map(|story| &story.acks).filter(|ack| ack.timeline >= first.timeline);
        if let Some(served) = acks.map(|ack| ack.at).min() {
            found.insert("first_row_after_write_ms".to_owned(), json!(ms(first.at, served)));
        }
    }
    let led = run.terms.iter().find(|term| term.from >= outcome.struck_at && term.holder != outcome.leader.member);
    if let (Some(led), Some(out)) = (led, stays(&of_old, false)) {
        found.insert("out_after_leader_ms".to_owned(), json!(between(led.from, out)));
        // HAProxy logs every session at its end, with the names of the frontend, the backend and the server.
        let ends = log.iter().filter(|line| line.text.contains(&format!(" postgres postgres/{old} ")));
        if let Some(last) = ends.map(|line| line.at).max() {
            found.insert("cut_after_leader_ms".to_owned(), json!(between(led.from, last.max(out))));
        }
    }
    let written = run.logs.agent.iter().filter(|line| line.is("haproxy_reloaded")).count();
    found.insert("reloads".to_owned(), json!(written));
    found
}

/// The agent's events around a moment, with the milliseconds since then.
fn around(agent: &[Line], moment: SystemTime) -> Vec<String> {
    let near = |line: &&Line| line.event().is_some() && between(line.at, moment).abs() < 1000.0;
    agent.iter().filter(near).map(|line| format!("{:.1}: {}", between(moment, line.at), line.text)).collect()
}

/// A run in one line, for people who watch.
fn short(line: &Value) -> String {
    let seconds = |value: &Value| value.as_f64().map_or("missing".to_owned(), |seconds| format!("{seconds:.2}"));
    let mut text =
        format!("PostgreSQL {} s; outages, in a kept session and with one for each row:", seconds(&line["own_s"]));
    for (variant, _) in VARIANTS {
        let seen = &line[variant];
        text += &format!(" {variant} {} and {} s,", seconds(&seen["kept_s"]), seconds(&seen["per_row_s"]));
    }
    if line["crowd"].is_object() {
        text += &format!(" crowd {},", line["crowd"]);
    }
    text + &format!(" {} rows lost", line["lost"])
}

fn of(fault: Fault, lines: &[Value]) -> impl Iterator<Item = &Value> {
    lines.iter().filter(move |line| line["fault"] == fault.name())
}
