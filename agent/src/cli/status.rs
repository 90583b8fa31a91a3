//! `warden status`: the cluster as an agent sees it; where no agent answers, as ZooKeeper and Patroni say.

use super::{Failure, client, load, pretty, runtime};
use crate::clock::Clock;
use crate::config::Config;
use crate::run;
use crate::tell::state::{self, State};
use crate::watch::members::{self, Targets};
use crate::watch::patroni::PatroniClient;
use crate::watch::{Events, znodes, zookeeper};
use anyhow::Context;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch as latest};
use tokio::time::timeout;
use warden_core::event::Event;
use warden_core::types::{AgentName, Moment};
use warden_core::view::View;

/// How long we look for ourselves before we show what we have: a silent Patroni takes 1 s, a dead ZooKeeper
/// server among several 0.5 s.
const LOOK: Duration = Duration::from_secs(4);

/// How long the linearizable read may take.
const BARRIER: Duration = Duration::from_secs(1);

/// The name under which the command has its barrier znode. Shared by all of them: a barrier only has to
/// be written, by anybody.
const BARRIER_NAME: &str = "status";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Show it again every second until interrupted
    #[arg(long, short)]
    watch: bool,
    /// pretty, json, yaml or tsv
    #[arg(long, short, value_enum, default_value_t = Format::Pretty)]
    format: Format,
    /// Ask no agent, but ZooKeeper, Patroni and PostgreSQL
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
            let text = match look(&config, *direct, agent.as_deref()).await {
                Ok(state) => render(&state, *format)?,
                // Whoever watches wants to see it come back.
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
        // Home and clear: the picture stays in place.
        out.write_all(b"\x1b[H\x1b[2J")?;
    }
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        // `warden status | head`: the reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn render(state: &State, format: Format) -> Result<String, Failure> {
    Ok(match format {
        Format::Pretty => {
            let colour =
                std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            pretty::render(state, colour)
        }
        Format::Json => serde_json::to_string_pretty(state).context("the state is not JSON")? + "\n",
        Format::Yaml => serde_saphyr::to_string(state).context("the state is not YAML")?,
        Format::Tsv => pretty::tsv(state),
    })
}

/// The agent that was named; else the local one; else any other that ZooKeeper knows; else our own eyes.
async fn look(config: &Config, direct: bool, agent: Option<&str>) -> Result<State, Failure> {
    let http = client::http()?;
    if let Some(base) = agent {
        return ask(&http, base.trim_end_matches('/')).await.map_err(|error| Failure::NoAnswer(format!("{error:#}")));
    }
    if direct {
        return see(config).await;
    }
    let local = client::local(config);
    match ask(&http, &local).await {
        Ok(state) => return Ok(state),
        Err(error) => eprintln!("warden: the local agent does not answer ({error:#}); looking further"),
    }
    let own = see(config).await?;
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
    answer.json().await.with_context(|| format!("{url} answers something that is not the state"))
}

/// What we saw for ourselves.
pub(super) struct Seen {
    pub view: View,
    /// A linearizable read counts if it was started at this moment or later.
    pub asked: Moment,
    pub clock: Clock,
}

/// The state as we see it for ourselves.
async fn see(config: &Config) -> Result<State, Failure> {
    let Seen { view, asked, clock } = observe(config).await?;
    Ok(state::state(&view, &clock, asked, state::Observer::Direct))
}

/// Looks for ourselves: a short-lived observer without a name, made of the agent's own watchers.
pub(super) async fn observe(config: &Config) -> Result<Seen, Failure> {
    let clock = Clock::start();
    let mut identity = run::identity(config);
    identity.agent = AgentName::from(BARRIER_NAME);
    identity.has_alive_lock = false;
    identity.member = None;
    let mut settings = run::zookeeper_settings(config);
    settings.agent = BARRIER_NAME.to_owned();

    let (updates_in, mut updates) = mpsc::channel(1024);
    let (events_in, mut events) = mpsc::channel(1024);
    let (targets_in, targets) = latest::channel(Targets::new());
    let zookeeper = zookeeper::spawn(settings, updates_in);
    let client = PatroniClient::new(&config.patroni, &config.scope)?;
    let watchers = members::watch(
        members::Local::of(config),
        members::Logins::of(config),
        client,
        targets,
        members::Probes::default(),
        Events::new(events_in, clock),
    );
    let watchers = tokio::spawn(watchers);

    let mut view = View::new(identity);
    let started = Instant::now();
    while started.elapsed() < LOOK && !complete(&view, config) {
        let observed = tokio::select! {
            Some(update) = updates.recv() => znodes::observed(update, &clock),
            Some(observed) = events.recv() => observed,
            () = tokio::time::sleep(Duration::from_millis(100)) => continue,
        };
        warden_core::step::take_in(&mut view, observed, clock.now());
        targets_in.send_replace(members::targets(&view));
    }
    let asked = Instant::now();
    if view.session().is_some() {
        let read = zookeeper.barrier(BARRIER).await;
        warden_core::step::take_in(&mut view, znodes::barrier(read, asked, &clock), clock.now());
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
            "neither an agent nor ZooKeeper ({}) nor any Patroni answers: are they running, and can they be reached from here?",
            config.zookeeper.hosts.join(",")
        )));
    }
    Ok(Seen { view, asked: clock.moment(asked), clock })
}

/// Whether everybody we could ask has answered, in one way or another.
fn complete(view: &View, config: &Config) -> bool {
    let asks_postgres = config.superuser.is_some();
    view.tree_read.is_some()
        && view
            .members
            .values()
            .filter(|member| member.last_record.is_some())
            .all(|member| member.patroni.is_some() && (!asks_postgres || member.postgres.is_some()))
}
