//! The agent: THE loop, and every task and channel around it.
//!
//! Tasks, all supervised (`tasks.rs`), all on one thread unless said otherwise:
//!
//! | task          | does                                                   | reads                | writes            |
//! |---------------|--------------------------------------------------------|----------------------|-------------------|
//! | (main)        | the loop: event -> view -> decide -> steps             | events, queries      | steps, targets    |
//! | zookeeper     | turns what the client reports into events              | updates              | events            |
//! | (epochs)      | begins one ZooKeeper client after the other            |                      | updates           |
//! | (epoch)       | one ZooKeeper client; a thread of its own, disposable  | requests             | updates           |
//! | members       | a pair of watchers (Patroni, PostgreSQL) per member    | targets              | events            |
//! | alive-lock    | the local Patroni's lock; a thread waits on it         |                      | events            |
//! | haproxy       | the local HAProxy's servers                            | targets              | events            |
//! | gate-check    | tries the logins that the gate would need              | targets              | events            |
//! | upkeep        | verifies, announces, keeps the term's memory on disk   | steps                | events            |
//! | fence         | stops servers, a task for each; keeps a session warm   | steps, heartbeat     | events, records   |
//! | lead          | releases the leader key, nudges Patroni                | steps                | events, records   |
//! | route         | tells HAProxy which servers take connections           | steps                | events            |
//! | layout        | writes HAProxy's configuration and has it reloaded     | steps                | events            |
//! | records       | writes fence records and the audit trail               | (its own queue)      |                   |
//! | upgrade       | keeps our records and those of Warden 0.1 the same     |                      |                   |
//! | http          | the API, a task for each connection, at most 64        |                      | queries           |
//!
//! Channels, all bounded: `events` (watchers wait while it is full), `updates` (the ZooKeeper client's),
//! `queries` (HTTP waits, with a limit), `steps` (one for each actor; the loop drops a step that does not fit: the
//! next decision makes it again), `records` (one record for each member, the newest, and 64 entries of the audit trail;
//! nobody waits for it), `targets` and `heartbeat` (the loop's; latest value only). Within the ZooKeeper client: `requests` (16), the
//! present epoch, what is to be published and the session timeout (latest value only), and the states that its
//! library goes through, which end the epoch at the first that is not `Connected`.
//!
//! One thread is enough: nothing here computes, and what may block in the kernel has a thread of its own.
//! It also keeps the agent small beside the database it stands next to.

use crate::act::proof::Proof;
use crate::act::records::Records;
use crate::act::{self, Actors};
use crate::clock::Clock;
use crate::config::{Config, FencingMode};
use crate::tasks::Supervisor;
use crate::tell::http::{self, Api, Query};
use crate::tell::log::LogControl;
use crate::tell::metrics::Metrics;
use crate::tell::narrate::Narrator;
use crate::term_memory;
use crate::watch::members::{self, Local, Logins, Probes, Targets};
use crate::watch::patroni::PatroniClient;
use crate::watch::postgres::Place;
use crate::watch::zookeeper::{self, Settings};
use crate::watch::{Events, alive_lock, gate_check, haproxy, znodes};
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch as latest};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use warden_core::decide::decide;
use warden_core::event::{Event, Observed};
use warden_core::leadership::Heartbeat;
use warden_core::plan::{Policy, Step};
use warden_core::rules::release::ReleasePolicy;
use warden_core::rules::route::RoutePolicy;
use warden_core::types::{AgentName, MemberName, Mode};
use warden_core::view::{Identity, View};

/// Enough for one whole read of a large tree (256 members and agents) and some seconds of everything else.
const EVENTS: usize = 1024;

/// Requests that may wait for the loop.
const QUERIES: usize = 64;

/// Time passes at least this often for the view.
const TICK: Duration = Duration::from_secs(1);

/// All of shutdown has to be over within 2 s of SIGTERM; this is the tasks' part.
const STOP_TASKS: Duration = Duration::from_millis(1000);

/// ZooKeeper's part of shutdown: to close the session, so that our znode is gone at once.
const STOP_ZOOKEEPER: Duration = Duration::from_millis(500);

/// Who this agent is, as the configuration has it.
pub fn identity(config: &Config) -> Identity {
    Identity {
        scope: config.scope.clone(),
        agent: AgentName::from(config.name.as_str()),
        member: config.node.as_ref().map(|node| MemberName::from(node.member.as_str())),
        roles: config.roles(),
        address: config.http.connect_address.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        has_alive_lock: config.node.as_ref().is_some_and(|node| node.alive_lock.is_some()),
        tick_time: Duration::from_millis(config.zookeeper.tick_time),
        session_timeout: config.zookeeper.session_timeout,
    }
}

/// What the ZooKeeper client needs, as the configuration has it.
pub fn zookeeper_settings(config: &Config) -> Settings {
    let auth = config.zookeeper.auth_data.iter();
    Settings {
        hosts: config.zookeeper.hosts.clone(),
        chroot: config.zookeeper.chroot.clone(),
        tree: config.patroni_tree(),
        own: config.own_tree(),
        old: config.old_tree(),
        agent: config.name.clone(),
        auth: auth.map(|(scheme, secret)| (scheme.clone(), secret.clone())).collect(),
        session_timeout: config.zookeeper.session_timeout,
    }
}

/// Runs the agent until SIGTERM or SIGINT.
pub async fn run(config: Config, log: LogControl) -> anyhow::Result<()> {
    let clock = Clock::start();
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;

    let metrics = Metrics::new().context("cannot set up metrics")?;
    let client = PatroniClient::new(&config.patroni, &config.scope)?;
    let listener = TcpListener::bind(config.http.listen)
        .await
        .with_context(|| format!("cannot listen on {} (http.listen): is another agent running?", config.http.listen))?;

    let (events_in, events) = mpsc::channel(EVENTS);
    let (updates_in, updates) = mpsc::channel(EVENTS);
    let (queries_in, queries) = mpsc::channel(QUERIES);
    let probes = Probes::default();
    let (actors, steps) = queues(&config.name, &probes);
    let (targets_in, targets) = latest::channel(Targets::new());
    let (heartbeat_in, heartbeat) = latest::channel(None);
    let events_in = Events::new(events_in, clock);

    let identity = identity(&config);
    tracing::info!(
        version = identity.version,
        agent = %identity.agent,
        scope = identity.scope,
        roles = identity.roles.join(","),
        listen = %config.http.listen,
        "warden starts"
    );
    let zookeeper = zookeeper::spawn(zookeeper_settings(&config), updates_in);
    recall(&config, &events_in).await?;

    let tasks = Supervisor::new(events_in.clone(), shutdown.clone());
    keep_zookeeper(&tasks, updates, &events_in);
    // Shared: what the watcher has seen is what the proof stands on.
    let local = Local::of(&config);
    {
        let (local, logins, client) = (local.clone(), Logins::of(&config), client.clone());
        let (targets, probes, events) = (targets.clone(), probes.clone(), events_in.clone());
        tasks.keep("members", move || {
            let (local, logins, client) = (local.clone(), logins.clone(), client.clone());
            members::watch(local, logins, client, targets.clone(), probes.clone(), events.clone())
        });
    }
    let held = alive_lock::Held::default();
    if let Some(path) = config.node.as_ref().and_then(|node| node.alive_lock.clone()) {
        let (held, events) = (held.clone(), events_in.clone());
        tasks.keep("alive-lock", move || alive_lock::watch(path.clone(), held.clone(), events.clone()));
    }
    if let Some(config) = config.haproxy.clone() {
        let (targets, probe, events) = (targets.clone(), Arc::clone(&probes.haproxy), events_in.clone());
        tasks.keep("haproxy", move || {
            let watch = haproxy::watch(config.clone(), targets.clone(), Arc::clone(&probe), events.clone());
            async { Ok(watch.await?) }
        });
    }
    if let (Some(node), Some(login)) = (&config.node, &config.superuser) {
        let (own, login) = (MemberName::from(node.member.as_str()), login.clone());
        let (targets, events) = (targets.clone(), events_in.clone());
        tasks.keep("gate-check", move || {
            let watch = gate_check::watch(own.clone(), login.clone(), targets.clone(), events.clone());
            async { Ok(watch.await?) }
        });
    }
    keep_records(&tasks, &actors.records, &zookeeper);
    keep_upgrade(&tasks, &zookeeper);
    let proof = Proof {
        socket: config.node.as_ref().and_then(|node| Some((node.socket_dir.clone()?, node.port))),
        beside: local.map(|local| local.beside),
        alive_lock: config.node.as_ref().and_then(|node| node.alive_lock.clone()),
        held,
    };
    keep_actors(
        &tasks,
        &config,
        steps,
        &actors.records,
        proof,
        &zookeeper,
        &client,
        &targets,
        heartbeat,
        &probes,
        &events_in,
    );
    {
        let api = Api {
            queries: queries_in,
            zookeeper: zookeeper.clone(),
            records: actors.records.clone(),
            last_read: http::LastRead::default(),
            reading_audit: Arc::default(),
            agent: config.name.clone(),
            clock,
            metrics: metrics.clone(),
            policy: policy(&config),
            log,
            token: config.http.token.clone(),
        };
        let (listener, shutdown) = (Arc::new(listener), shutdown.clone());
        tasks.keep("http", move || http::serve(Arc::clone(&listener), api.clone(), shutdown.clone()));
    }

    let agent = Loop {
        view: View::new(identity),
        policy: policy(&config),
        clock,
        metrics,
        narrator: Narrator::default(),
        actors,
        targets: targets_in,
        heartbeat: heartbeat_in,
    };
    tokio::select! {
        () = agent.turn(events, queries) => {}
        _ = terminate.recv() => tracing::info!("SIGTERM: shutting down"),
        _ = interrupt.recv() => tracing::info!("SIGINT: shutting down"),
    }
    shutdown.cancel();
    if tokio::time::timeout(STOP_ZOOKEEPER, zookeeper.shutdown()).await.is_err() {
        tracing::warn!("the ZooKeeper session could not be closed in time; it ends by its timeout");
    }
    if !tasks.stopped(STOP_TASKS).await {
        tracing::warn!("some tasks did not stop in time");
    }
    tracing::info!(uptime_s = clock.uptime().as_secs(), "warden stopped");
    Ok(())
}

/// What an earlier life of this agent kept on disk is the first thing that the view hears.
async fn recall(config: &Config, events: &Events) -> anyhow::Result<()> {
    if config.node.is_none() {
        return Ok(());
    }
    match term_memory::read(&config.state_dir).await {
        Ok(Some(memory)) => events.send(events.clock.now(), Event::Remembered(memory)).await?,
        Ok(None) => {}
        Err(why) => tracing::warn!(why, "what was kept of the present term is not known"),
    }
    Ok(())
}

/// The mode, as core has it.
pub const fn mode(mode: FencingMode) -> Mode {
    match mode {
        FencingMode::Enforce => Mode::Enforce,
        FencingMode::Observe => Mode::Observe,
        FencingMode::Off => Mode::Off,
    }
}

/// What the operator leaves to us, as the configuration has it.
fn policy(config: &Config) -> Policy {
    Policy {
        fencing: mode(config.fencing.mode),
        release: ReleasePolicy {
            enabled: config.release.enabled,
            asynchronous: config.release.asynchronous.map(Duration::from_secs),
            handover: config.release.handover,
            after: Duration::from_millis(config.release.after_ms),
            patroni_is_pid_1: config.release.patroni_is_pid_1,
        },
        nudge: config.nudge.enabled,
        routing: match config.haproxy.as_ref().map(|haproxy| haproxy.mode) {
            // Whoever wants to see what is without Warden wants it here, too.
            Some(FencingMode::Enforce) if config.fencing.mode == FencingMode::Observe => Mode::Observe,
            Some(own) => mode(own),
            None => Mode::Off,
        },
        route: RoutePolicy { max_lag: config.haproxy.as_ref().map_or(0, |haproxy| haproxy.max_lag) },
        ..Policy::default()
    }
}

/// What the actors take their steps from.
struct Steps {
    upkeep: mpsc::Receiver<Step>,
    fence: mpsc::Receiver<Step>,
    lead: mpsc::Receiver<Step>,
    route: mpsc::Receiver<Step>,
    layout: mpsc::Receiver<Step>,
}

fn queues(agent: &str, probes: &Probes) -> (Actors, Steps) {
    let (upkeep_in, upkeep) = mpsc::channel(act::QUEUE);
    let (fence_in, fence) = mpsc::channel(act::QUEUE);
    let (lead_in, lead) = mpsc::channel(act::QUEUE);
    let (route_in, route) = mpsc::channel(act::QUEUE);
    let (layout_in, layout) = mpsc::channel(act::QUEUE);
    let (records, agent) = (Records::default(), agent.to_owned());
    (
        Actors {
            upkeep: upkeep_in,
            fence: fence_in,
            lead: lead_in,
            route: route_in,
            layout: layout_in,
            records,
            probes: probes.clone(),
            agent,
        },
        Steps { upkeep, fence, lead, route, layout },
    )
}

#[expect(clippy::too_many_arguments)] // all that the actors stand on, named once
fn keep_actors(
    tasks: &Supervisor,
    config: &Config,
    steps: Steps,
    records: &Records,
    proof: Proof,
    zookeeper: &zookeeper::Handle,
    client: &PatroniClient,
    targets: &latest::Receiver<Targets>,
    heartbeat: latest::Receiver<Option<Heartbeat>>,
    probes: &Probes,
    events: &Events,
) {
    // The receiving ends outlive a failure of an actor: what was asked for is not lost.
    let Steps { upkeep, fence, lead, route, layout } = steps;
    if let Some((haproxy, file)) = config.haproxy.clone().and_then(|haproxy| Some((haproxy.clone(), haproxy.file?))) {
        let layouts =
            act::layout::Layouts { haproxy, file, checker: "haproxy", probes: probes.clone(), events: events.clone() };
        let (steps, layouts) = (Arc::new(Mutex::new(layout)), Arc::new(layouts));
        tasks.keep("layout", move || {
            let (steps, layouts) = (Arc::clone(&steps), Arc::clone(&layouts));
            async move { act::layout::run(&mut *steps.lock().await, &layouts).await }
        });
    }
    if let Some(config) = config.haproxy.clone() {
        let router = Arc::new(act::route::Router {
            config,
            zookeeper: zookeeper.clone(),
            targets: targets.clone(),
            probes: probes.clone(),
            events: events.clone(),
        });
        let steps = Arc::new(Mutex::new(route));
        tasks.keep("route", move || {
            let (steps, router) = (Arc::clone(&steps), Arc::clone(&router));
            async move { act::route::run(&mut *steps.lock().await, &router).await }
        });
    }
    {
        let upkeeper = Arc::new(act::upkeep::Upkeep {
            zookeeper: zookeeper.clone(),
            state_dir: config.node.as_ref().map(|_| config.state_dir.clone()),
            events: events.clone(),
        });
        let steps = Arc::new(Mutex::new(upkeep));
        tasks.keep("upkeep", move || {
            let (steps, upkeeper) = (Arc::clone(&steps), Arc::clone(&upkeeper));
            async move { act::upkeep::run(&mut *steps.lock().await, &upkeeper).await }
        });
    }
    let local = config.node.as_ref().map(|node| (MemberName::from(node.member.as_str()), Place::beside(node)));
    {
        let local = local.clone();
        let fencer = Arc::new(act::fence::Fencer {
            local,
            beside: proof.beside.clone(),
            login: config.superuser.clone(),
            zookeeper: zookeeper.clone(),
            client: client.clone(),
            api: config.node.as_ref().map(|node| node.api.clone()),
            records: records.clone(),
            targets: targets.clone(),
            heartbeat,
            probes: probes.clone(),
            events: events.clone(),
            agent: config.name.clone(),
        });
        let steps = Arc::new(Mutex::new(fence));
        tasks.keep("fence", move || {
            let (steps, fencer) = (Arc::clone(&steps), Arc::clone(&fencer));
            async move { act::fence::run(&mut *steps.lock().await, &fencer).await }
        });
    }
    let actor = Arc::new(act::lead::Lead {
        zookeeper: zookeeper.clone(),
        proof,
        records: records.clone(),
        client: client.clone(),
        api: config.node.as_ref().map(|node| node.api.clone()),
        local: local.map(|(_, place)| place).zip(config.superuser.clone()),
        probes: probes.clone(),
        events: events.clone(),
        agent: config.name.clone(),
    });
    let steps = Arc::new(Mutex::new(lead));
    tasks.keep("lead", move || {
        let (steps, actor) = (Arc::clone(&steps), Arc::clone(&actor));
        async move { act::lead::run(&mut *steps.lock().await, &actor).await }
    });
}

fn keep_records(tasks: &Supervisor, records: &Records, zookeeper: &zookeeper::Handle) {
    // The queue outlives a failure of the actor: what was to be written is not lost.
    let (records, zookeeper) = (records.clone(), zookeeper.clone());
    tasks.keep("records", move || {
        let (records, zookeeper) = (records.clone(), zookeeper.clone());
        async move { act::records::run(&records, &zookeeper).await }
    });
}

fn keep_upgrade(tasks: &Supervisor, zookeeper: &zookeeper::Handle) {
    let zookeeper = zookeeper.clone();
    tasks.keep("upgrade", move || {
        let zookeeper = zookeeper.clone();
        async move { act::upgrade::run(&zookeeper).await }
    });
}

fn keep_zookeeper(tasks: &Supervisor, updates: mpsc::Receiver<zookeeper::Update>, events: &Events) {
    let (updates, events) = (Arc::new(Mutex::new(updates)), events.clone());
    tasks.keep("zookeeper", move || {
        let (updates, events) = (Arc::clone(&updates), events.clone());
        async move {
            let mut updates = updates.lock().await;
            while let Some(update) = updates.recv().await {
                let observed = znodes::observed(update, &events.clock);
                events.send(observed.at, observed.event).await?;
            }
            anyhow::bail!("the ZooKeeper client has ended")
        }
    });
}

/// The loop and what it holds.
struct Loop {
    /// What is believed. Owned by the loop alone: no locks, no second opinion.
    view: View,
    policy: Policy,
    clock: Clock,
    metrics: Metrics,
    narrator: Narrator,
    /// To the actors.
    actors: Actors,
    /// To the members' watchers.
    targets: latest::Sender<Targets>,
    heartbeat: latest::Sender<Option<Heartbeat>>,
}

impl Loop {
    /// Turns until the channels close, which they do not while the agent runs.
    async fn turn(mut self, mut events: mpsc::Receiver<Observed>, mut queries: mpsc::Receiver<Query>) {
        let mut next_tick = Instant::now();
        let mut wake = Instant::now();
        loop {
            tokio::select! {
                observed = events.recv() => match observed {
                    Some(observed) => self.take_in(observed),
                    None => return,
                },
                query = queries.recv() => match query {
                    Some(query) => self.answer(query),
                    None => return,
                },
                () = sleep_until(wake.min(next_tick)) => {}
            }
            if Instant::now() >= next_tick {
                next_tick = Instant::now() + TICK;
                let now = self.clock.now();
                self.take_in(Observed { at: now, event: Event::Tick });
                self.narrator.warnings(&self.view, now);
            }
            wake = self.decide_and_hand_over();
        }
    }

    fn take_in(&mut self, observed: Observed) {
        self.metrics.count(&observed.event, observed.at);
        self.narrator.event(&observed.event);
        let may_change_targets =
            matches!(observed.event, Event::Znode(_) | Event::Agent { .. } | Event::Haproxy(_) | Event::Tick);
        warden_core::step::take_in(&mut self.view, observed, self.clock.now());
        if let Some(holder) = self.narrator.view(&self.view) {
            self.metrics.count_leader_change(&holder);
        }
        let beat = self.view.leadership.heartbeat;
        self.heartbeat.send_if_modified(|known| std::mem::replace(known, beat) != beat);
        if !may_change_targets {
            return;
        }
        let targets = members::targets_beside_agents(&self.view, self.clock.now());
        self.targets.send_if_modified(|known| {
            let changed = *known != targets;
            if changed {
                *known = targets;
            }
            changed
        });
    }

    fn answer(&mut self, query: Query) {
        if let Some(observed) = query.observed {
            self.take_in(observed);
        }
        // Whoever asked may have gone away meanwhile.
        drop(query.reply.send(Box::new(self.view.clone())));
    }

    /// Decides, hands the steps to the actor, and says when to decide again.
    fn decide_and_hand_over(&mut self) -> Instant {
        let now = self.clock.now();
        let plan = decide(&self.view, &self.policy, now);
        for step in plan.steps {
            let started = act::started(&step, &self.clock);
            match self.actors.hand_over(step) {
                Ok(()) => {
                    if let Some(started) = started {
                        self.take_in(started);
                    }
                }
                Err(error) => tracing::debug!(%error, "the actor is busy; the next decision makes this step again"),
            }
        }
        Instant::now() + plan.wake.since(now)
    }
}
