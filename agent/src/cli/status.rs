//! `warden status`: shows the cluster as an agent sees it. If no agent answers, the command asks ZooKeeper, Patroni and
//! PostgreSQL itself.

use super::{Failure, client, load, pretty, runtime};
use crate::client::patroni::PatroniClient;
use crate::client::zookeeper::{self, Reports, Settings};
use crate::clock::Clock;
use crate::config::Config;
use crate::config::policy;
use crate::events::Events;
use crate::targets::{self, Probes, Targets};
use crate::tell::state::{self, State};
use crate::watch::members;
use anyhow::Context;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch as latest};
use tokio::time::timeout;
use warden_core::event::Event;
use warden_core::types::{AgentName, Moment};
use warden_core::view::View;

/// The time in which the command asks ZooKeeper, Patroni and PostgreSQL itself. A silent Patroni takes 1 s, a dead
/// ZooKeeper server among several 0.5 s.
const OBSERVE_LIMIT: Duration = Duration::from_secs(4);

/// The time for the linearizable read.
const BARRIER_LIMIT: Duration = Duration::from_secs(1);

/// The name of the command's barrier znode. All commands share it, because a barrier works with any writer.
const BARRIER_NAME: &str = "status";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show the cluster again every second until interrupted
    #[arg(long, short)]
    watch: bool,
    /// pretty, json, yaml or tsv
    #[arg(long, short, value_enum, default_value_t = Format::Pretty)]
    format: Format,
    /// Ask ZooKeeper, Patroni and PostgreSQL, and no agent
    #[arg(long, conflicts_with = "agent")]
    direct: bool,
    /// Ask the agent at this address, like http://warden-pg-master:8010
    #[arg(long, value_name = "URL")]
    agent: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Pretty,
    Json,
    Yaml,
    Tsv,
}

pub(super) fn main(config: &Path, args: &Args) -> Result<(), Failure> {
    let Args { watch, format, direct, agent } = args;
    let config = load(config)?;
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        loop {
            let text = match find(&config, *direct, agent.as_deref()).await {
                Ok(state) => render(&state, *format)?,
                // With `--watch`, the operator waits until the cluster answers again.
                Err(failure) if *watch => format!("{failure}\n"),
                Err(failure) => return Err(failure),
            };
            show(&text, *watch).context("cannot write the status")?;
            if !watch {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    runtime.shutdown_background();
    done
}

fn show(text: &str, again: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if again && out.is_terminal() {
        // The codes move the cursor home and clear the terminal.
        out.write_all(b"\x1b[H\x1b[2J")?;
    }
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        // The reader of a pipe may stop early, as in `warden status | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn render(state: &State, format: Format) -> Result<String, Failure> {
    Ok(match format {
        Format::Pretty => {
            let color =
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            pretty::render(state, color)
        }
        Format::Json => serde_json::to_string_pretty(state).context("cannot print the state as JSON")? + "\n",
        Format::Yaml => serde_saphyr::to_string(state).context("cannot print the state as YAML")?,
        Format::Tsv => pretty::tsv(state),
    })
}

/// Returns the state of the agent in `--agent`. Without it, the command asks the local agent, then every other agent
/// that ZooKeeper lists, and then shows its own observation.
async fn find(config: &Config, direct: bool, agent: Option<&str>) -> Result<State, Failure> {
    let http = client::http()?;
    if let Some(base) = agent {
        return ask(&http, base.trim_end_matches('/')).await.map_err(|error| Failure::NoAnswer(format!("{error:#}")));
    }
    if direct {
        return observed_state(config).await;
    }
    let local = client::local(config);
    match ask(&http, &local).await {
        Ok(state) => return Ok(state),
        Err(error) => eprintln!(
            "warden: the local agent does not answer ({error:#}); the command asks ZooKeeper and the other agents"
        ),
    }
    let own = observed_state(config).await?;
    for agent in own.agents.iter().filter(|agent| agent.address != config.http.connect_address) {
        if let Ok(state) = ask(&http, &format!("http://{}", agent.address)).await {
            return Ok(state);
        }
    }
    Ok(own)
}

async fn ask(http: &reqwest::Client, base: &str) -> anyhow::Result<State> {
    let url = format!("{base}/api/v1/state");
    let answer = http.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    anyhow::ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
    answer.json().await.with_context(|| format!("the answer of {url} is not a state"))
}

/// The command's own observation of the cluster.
pub(super) struct Seen {
    pub view: View,
    /// A linearizable read counts if it started at this moment or later.
    pub asked: Moment,
    pub clock: Clock,
}

/// The state from the command's own observation.
async fn observed_state(config: &Config) -> Result<State, Failure> {
    let Seen { view, asked, clock } = observe(config).await?;
    Ok(state::state(&view, &clock, asked, state::Observer::Direct))
}

/// Observes the cluster with the agent's own watchers, for a short time and without a znode of an agent.
pub(super) async fn observe(config: &Config) -> Result<Seen, Failure> {
    let clock = Clock::start();
    let mut identity = policy::identity(config);
    identity.agent = AgentName::from(BARRIER_NAME);
    identity.has_alive_lock = false;
    identity.member = None;
    let mut settings = Settings::of(config);
    settings.agent = BARRIER_NAME.to_owned();

    let (events_in, mut events) = mpsc::channel(1024);
    let (targets_in, targets) = latest::channel(Targets::new());
    let events_in = Events::new(events_in, clock);
    let zookeeper = zookeeper::spawn(settings, clock, Reports::Events(events_in.clone()));
    let client = PatroniClient::new(&config.patroni, &config.scope)?;
    let watchers = members::watch(
        members::Local::of(config),
        members::Logins::of(config),
        client,
        targets,
        Probes::default(),
        events_in,
    );
    let watchers = tokio::spawn(watchers);

    let mut view = View::new(identity);
    let started = Instant::now();
    while started.elapsed() < OBSERVE_LIMIT && !complete(&view, config) {
        let observed = tokio::select! {
            Some(observed) = events.recv() => observed,
            () = tokio::time::sleep(Duration::from_millis(100)) => continue,
        };
        warden_core::step::take_in(&mut view, observed, clock.now());
        targets_in.send_replace(targets::targets(&view));
    }
    let asked = Instant::now();
    if view.session().is_some() {
        warden_core::step::take_in(&mut view, zookeeper.barrier_event(BARRIER_LIMIT).await, clock.now());
    }
    warden_core::step::take_in(
        &mut view,
        warden_core::event::Observed { at: clock.now(), event: Event::Tick },
        clock.now(),
    );
    watchers.abort();
    drop(timeout(Duration::from_millis(500), zookeeper.shutdown()).await);

    let answered = |member: &warden_core::view::Member| member.alive_at.is_some();
    if view.tree_read.is_none() && !view.members.values().any(answered) {
        return Err(Failure::NoAnswer(format!(
            "no agent, no ZooKeeper server ({}) and no Patroni answers: check that they run, and that this machine can \
             reach them",
            config.zookeeper.hosts.join(",")
        )));
    }
    Ok(Seen { view, asked: clock.moment(asked), clock })
}

/// Whether ZooKeeper and all members have answered, in any way.
fn complete(view: &View, config: &Config) -> bool {
    let asks_postgres = config.superuser.is_some();
    view.tree_read.is_some()
        && view
            .members
            .values()
            .filter(|member| member.last_record.is_some())
            .all(|member| member.patroni.is_some() && (!asks_postgres || member.postgres.is_some()))
}
