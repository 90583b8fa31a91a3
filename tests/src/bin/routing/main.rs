//! `tests/bench routing`: switchovers and crashes as clients of three HAProxys see them that stand in front of one and
//! the same cluster: one that has only its own checks, one that is reloaded with a new file, and Warden's. Clients
//! straight at the nodes tell how long PostgreSQL itself was away. Every run is a line of JSON in
//! `tests/out/routing.jsonl` as soon as it is done.

// serde_json answers null where an index leads nowhere; nothing else is indexed in here.
#![allow(clippy::indexing_slicing)]

mod report;

use anyhow::{Context, ensure};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant, SystemTime};
use tokio::time::sleep;
use warden_e2e::faults::{Fault, Leader};
use warden_e2e::fences::{Line, log_since};
use warden_e2e::history::{self, Reign};
use warden_e2e::measure::{File, Turn, between, ms, on_a_new_stack_if_it_fails, turn};
use warden_e2e::rivals::{CHECKS, RELOADED, Rivals};
use warden_e2e::stack::{self, Flavor, NODES, Stack};
use warden_e2e::trial::{self, Observed, Outcome};
use warden_e2e::wait;
use warden_e2e::writers::{Commit, Route, Story};

/// Of the benchmark's own compose project, unless `WARDEN_TEST_PREFIX` says otherwise.
const PROJECT: &str = "wardenbench";

/// In `tests/out`.
const OUT: &str = "routing.jsonl";

/// A client straight at the old primary knows after at most this long that it is gone: it writes every 20 ms.
const KNOWN: Duration = Duration::from_millis(100);

/// The three, as the JSON has them, and for people.
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
    /// A stack, and the others beside it.
    at_work: Option<(Stack, Rivals)>,
}

impl Bench {
    async fn all(&mut self, wanted: &[(Fault, usize)]) -> anyhow::Result<()> {
        // Whatever is furthest behind comes next, so that a machine that is busier now and then is so for both.
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

    /// One more run; one that fails is done again on a new stack.
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
        let (outcome, until) = strike(stack, fault, leader, observed, rivals, &routes).await?;
        if fault == Fault::Crash {
            rivals.restart(node_beside(outcome.leader.service)).await?;
        }
        let zoo = stack.zookeepers().into_iter().next().context("no ZooKeeper")?;
        let logs = Logs::of(stack, outcome.struck_at, until.1).await?;
        let through = [rivals.through_checks(), rivals.through_reloaded(), [Route::Proxy, Route::ProxyAnew]];
        Ok(figures(
            fault,
            &Run { outcome: &outcome, until: until.0, through, logs, reigns: history::reigns(&zoo).await? },
        ))
    }
}

fn node_beside(node: &str) -> &'static str {
    if node == NODES[0].0 { NODES[1].0 } else { NODES[0].0 }
}

/// Does it, and heals it only when all three HAProxys have followed: nobody is judged by what the old primary does when
/// it comes back. Also says when that was, or when it was waited for no longer.
async fn strike(
    stack: &Stack,
    fault: Fault,
    leader: Leader,
    observed: Observed,
    rivals: &Rivals,
    routes: &[Route],
) -> anyhow::Result<(Outcome, (Instant, SystemTime))> {
    let through_proxies = || routes.iter().filter(|route| !matches!(route, Route::Node(_))).copied();
    wait::until("rows on every way", Duration::from_secs(60), || async {
        for route in through_proxies() {
            ensure!(observed.writers().story(route).acks.len() > 5, "none on {route:?}");
        }
        Ok(())
    })
    .await?;
    // Not in step with anybody's rounds of a second.
    sleep(Duration::from_secs(2)).await;
    let leads_then = node_beside(leader.service);
    let mut until = (Instant::now(), SystemTime::now());
    let all_have_followed = async {
        // One that does not follow has no figure, and that is for the report to say.
        if let Err(error) = rivals.settled(leads_then).await {
            println!("{error:#}");
        }
        sleep(Duration::from_secs(3)).await;
        until = (Instant::now(), SystemTime::now());
    };
    let outcome = trial::with_healing_after(stack, fault, leader, observed, all_have_followed).await?;
    Ok((outcome, until))
}

/// What the HAProxys and the agent beside the stack's own have logged from the fault on.
struct Logs {
    agent: Vec<Line>,
    /// In the order of [`VARIANTS`].
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

/// All that a run's figures are made of.
struct Run<'a> {
    outcome: &'a Outcome,
    /// The end of what is measured.
    until: Instant,
    /// The ways through each HAProxy, in the order of [`VARIANTS`]: in one session, and with a session for each row.
    through: [[Route; 2]; 3],
    logs: Logs,
    reigns: Vec<Reign>,
}

impl Run<'_> {
    fn story(&self, route: Route) -> Option<&Story> {
        self.outcome.report.stories.get(&route)
    }
}

/// A run in figures. What is not known is not in there.
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
    for (((variant, _), [kept, anew]), log) in VARIANTS.iter().zip(run.through).zip(&run.logs.haproxys) {
        let mut seen = clients(run, &turn, anew);
        for (key, route) in [("kept", kept), ("anew", anew)] {
            let Some(outage) = outage(run, &turn, route) else { continue };
            seen.insert(format!("{key}_s"), json!(outage));
            if let Some(own) = own {
                seen.insert(format!("{key}_more_s"), json!(outage - own));
                seen.insert(format!("{key}_ratio"), json!(outage / own));
            }
        }
        // The master says so of every worker that it starts.
        seen.insert("reloads".to_owned(), json!(log.iter().filter(|line| line.text.contains("New worker")).count()));
        line[*variant] = Value::Object(seen);
    }
    line
}

/// The longest time without a row on a route, in seconds; nothing if no row came through once the new primary wrote.
fn outage(run: &Run<'_>, turn: &Turn, route: Route) -> Option<f64> {
    let acks = &run.story(route)?.acks;
    let new = turn.first_new?;
    acks.iter().find(|ack| ack.timeline >= new.timeline && ack.at <= run.until)?;
    let gaps = acks.iter().zip(acks.iter().skip(1)).filter(|(a, b)| b.at >= run.outcome.struck && a.at <= run.until);
    gaps.map(|(a, b)| ms(a.at, b.at) / 1000.0).max_by(f64::total_cmp)
}

/// What those saw that connect for each row: how long one of them waited for a row, or to learn that there will be none,
/// and how many were turned away, with the first reason. A client gives up after 3 s without an answer.
fn clients(run: &Run<'_>, turn: &Turn, anew: Route) -> Map<String, Value> {
    let mut seen = Map::new();
    let Some((story, old)) = run.story(anew).zip(turn.last_old) else { return seen };
    // Whoever set out before the old primary was seen to be gone was in flight: one of them, as they come one by one.
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

/// What became of the servers in the HAProxy that Warden routes, by HAProxy's own log, held against what others saw.
fn router(run: &Run<'_>, turn: &Turn) -> Map<String, Value> {
    let mut found = Map::new();
    let outcome = run.outcome;
    let (old, new) = (outcome.leader.service, node_beside(outcome.leader.service));
    let [.., log] = &run.logs.haproxys;
    // Whoever did it: Warden, or a check. (The same is said on standard error, after another beginning.)
    let changes = |node: &str| {
        let sign = format!("Server postgres/{node} is ");
        let of_it = log.iter().filter_map(|line| Some((line.at, line.text.strip_prefix(&sign)?.starts_with("UP"))));
        of_it.collect::<Vec<_>>()
    };
    let (of_old, of_new) = (changes(old), changes(new));
    // From when on it stayed so: a check may raise the old one again while it shuts down, and the new one too early.
    let stays = |changes: &[(SystemTime, bool)], wanted: bool| {
        changes.rsplit(|(_, is_up)| *is_up != wanted).next().and_then(<[_]>::first).map(|(at, _)| *at)
    };
    let dips = of_new.windows(2).filter(|pair| matches!(pair, [(_, true), (_, false)])).count();
    found.insert("new_too_early".to_owned(), json!(dips));
    found.insert("old_up_again".to_owned(), json!(of_old.iter().filter(|(_, is_up)| *is_up).count()));
    if let Some(first) = turn.first_new {
        if let Some(up) = stays(&of_new, true) {
            let acknowledged = between(first.wall, up);
            // It became writable after it last refused a write, and at the latest when the first that it took arrived.
            found.insert("up_after_write_ms".to_owned(), json!(acknowledged + ms(first.sent, first.at)));
            let refusals = run.story(Route::Node(new)).into_iter().flat_map(|story| &story.errors);
            if let Some(refused) = refusals.map(|failure| failure.at).filter(|at| *at <= first.at).max() {
                found.insert("up_after_refusal_ms".to_owned(), json!(acknowledged + ms(refused, first.at)));
            }
        }
        let through = [Route::Proxy, Route::ProxyAnew].into_iter().filter_map(|route| run.story(route));
        let acks = through.flat_map(|story| &story.acks).filter(|ack| ack.timeline >= first.timeline);
        if let Some(served) = acks.map(|ack| ack.at).min() {
            found.insert("first_row_after_write_ms".to_owned(), json!(ms(first.at, served)));
        }
    }
    let led = run.reigns.iter().find(|reign| reign.from >= outcome.struck_at && reign.holder != outcome.leader.member);
    if let (Some(led), Some(out)) = (led, stays(&of_old, false)) {
        found.insert("out_after_leader_ms".to_owned(), json!(between(led.from, out)));
        // HAProxy itself logs every session when it ends, by the names of the proxy and of its backend and server.
        let ends = log.iter().filter(|line| line.text.contains(&format!(" postgres postgres/{old} ")));
        if let Some(last) = ends.map(|line| line.at).max() {
            found.insert("cut_after_leader_ms".to_owned(), json!(between(led.from, last.max(out))));
        }
    }
    let written = run.logs.agent.iter().filter(|line| line.text.contains("written anew, and reloaded")).count();
    found.insert("reloads".to_owned(), json!(written));
    found
}

/// A run, for somebody who looks on.
fn short(line: &Value) -> String {
    let seconds = |value: &Value| value.as_f64().map_or("missing".to_owned(), |seconds| format!("{seconds:.2}"));
    let mut text = format!("PostgreSQL {} s; outages, kept and anew:", seconds(&line["own_s"]));
    for (variant, _) in VARIANTS {
        let seen = &line[variant];
        text += &format!(" {variant} {} and {} s,", seconds(&seen["kept_s"]), seconds(&seen["anew_s"]));
    }
    text + &format!(" {} rows lost", line["lost"])
}

fn of(fault: Fault, lines: &[Value]) -> impl Iterator<Item = &Value> {
    lines.iter().filter(move |line| line["fault"] == fault.name())
}
