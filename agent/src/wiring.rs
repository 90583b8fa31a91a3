//! Makes the agent's parts from the configuration, starts every task and channel of the table in `run.rs`, and runs
//! them until a signal ends the agent.

use crate::act::operator::Operator;
use crate::act::release::proof::Proof;
use crate::act::{self, Steps};
use crate::client::alive_lock::LockedFile;
use crate::client::patroni::PatroniClient;
use crate::client::postgres::Place;
use crate::client::term_memory;
use crate::client::zookeeper::{self, Handle as ZooKeeper, Reports, Settings};
use crate::clock::Clock;
use crate::config::Config;
use crate::config::policy::{identity, policy};
use crate::events::Events;
use crate::run::Loop;
use crate::targets::{Probes, Targets};
use crate::tasks::Supervisor;
use crate::tell::Reporter;
use crate::tell::http::{self, Api, Query};
use crate::tell::log::LogControl;
use crate::tell::metrics::Metrics;
use crate::watch::members::{self, Local, Logins};
use crate::watch::{alive_lock, gate_check, haproxy};
use anyhow::Context;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Mutex, mpsc, watch as latest};
use tokio_util::sync::CancellationToken;
use warden_core::event::{Event, LocalEvent, Observed};
use warden_core::haproxy::file::Backends;
use warden_core::leadership::Heartbeat;
use warden_core::plan::{ServersAction, Step};
use warden_core::types::{MemberName, Mode};
use warden_core::view::View;

/// The size of the queue of events: a complete read of a large tree (256 members and agents), and some seconds of all
/// other events.
const EVENTS_MAX: usize = 1024;

/// The number of requests that may wait for the loop.
const QUERIES_MAX: usize = 64;

/// The time for the tasks to stop. The whole shutdown takes less than 2 s.
const STOP_TASKS_LIMIT: Duration = Duration::from_millis(1000);

/// The time to close the ZooKeeper session, which removes the agent's znode at once.
const CLOSE_SESSION_LIMIT: Duration = Duration::from_millis(500);

const _: () = assert!(STOP_TASKS_LIMIT.as_millis() + CLOSE_SESSION_LIMIT.as_millis() < 2000);

/// The agent, ready to run.
struct Wired {
    /// The loop.
    agent: Loop,
    /// The queue of events.
    events: mpsc::Receiver<Observed>,
    /// The queue of requests.
    queries: mpsc::Receiver<Query>,
    /// The ZooKeeper client, for the end of the session.
    zookeeper: ZooKeeper,
    /// The tasks beside the loop.
    tasks: Supervisor,
}

/// The parts that the tasks share.
struct Parts<'a> {
    config: &'a Config,
    tasks: &'a Supervisor,
    zookeeper: &'a ZooKeeper,
    client: &'a PatroniClient,
    local: Option<Local>,
    held: LockedFile,
    targets: latest::Receiver<Targets>,
    heartbeat: latest::Receiver<Option<Heartbeat>>,
    probes: &'a Probes,
    records: act::records::Records,
    events: &'a Events,
}

/// Runs the agent until SIGTERM or SIGINT.
pub async fn run(config: Config, log: LogControl) -> anyhow::Result<()> {
    let clock = Clock::start();
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let Wired { agent, events, queries, zookeeper, tasks } = wire(&config, log, clock, &shutdown).await?;
    tokio::select! {
        () = agent.turn(events, queries) => {}
        _ = terminate.recv() => tracing::info!(event = "agent_stopping", "the agent stops on SIGTERM"),
        _ = interrupt.recv() => tracing::info!(event = "agent_stopping", "the agent stops on SIGINT"),
    }
    shutdown.cancel();
    if tokio::time::timeout(CLOSE_SESSION_LIMIT, zookeeper.shutdown()).await.is_err() {
        tracing::warn!(
            event = "session_close_timed_out",
            "the agent could not close the ZooKeeper session in time; ZooKeeper ends it after its timeout"
        );
    }
    if !tasks.stopped(STOP_TASKS_LIMIT).await {
        tracing::warn!(event = "tasks_stop_timed_out", "some tasks did not stop in time");
    }
    tracing::info!(event = "agent_stopped", uptime_s = clock.uptime().as_secs(), "the agent stopped");
    Ok(())
}

/// Starts every task and makes the loop.
async fn wire(config: &Config, log: LogControl, clock: Clock, shutdown: &CancellationToken) -> anyhow::Result<Wired> {
    let metrics = Metrics::new().context("cannot set up metrics")?;
    let client = PatroniClient::new(&config.patroni, &config.scope)?;
    let listener = TcpListener::bind(config.http.listen)
        .await
        .with_context(|| format!("cannot listen on {} (http.listen): is another agent running?", config.http.listen))?;
    let (events_in, events) = mpsc::channel(EVENTS_MAX);
    let (queries_in, queries) = mpsc::channel(QUERIES_MAX);
    let probes = Probes::default();
    let (actors, steps) = act::queues(&config.name, &probes);
    let (targets_in, targets) = latest::channel(Targets::new());
    let (heartbeat_in, heartbeat) = latest::channel(None);
    let events_in = Events::new(events_in, clock);

    let identity = identity(config);
    tracing::info!(
        event = "agent_started",
        version = identity.version,
        agent = %identity.agent,
        scope = identity.scope,
        roles = identity.roles.join(","),
        listen = %config.http.listen,
        "the agent starts"
    );
    // Before the client reports: the memory of an earlier life is the first event of the view, and the queue is empty.
    recall(config, &events_in).await?;
    let zookeeper = zookeeper::spawn(Settings::of(config), clock, Reports::Events(events_in.clone()));

    let tasks = Supervisor::new(events_in.clone(), shutdown.clone());
    let parts = Parts {
        config,
        tasks: &tasks,
        zookeeper: &zookeeper,
        client: &client,
        local: Local::of(config),
        // The proof of a release relies on the lock that the watcher has seen.
        held: LockedFile::default(),
        targets,
        heartbeat,
        probes: &probes,
        records: actors.records.clone(),
        events: &events_in,
    };
    parts.keep_watchers();
    parts.keep_actors(steps);
    parts.keep_http(listener, queries_in, &metrics, log, shutdown);
    let agent = Loop {
        view: View::new(identity),
        policy: policy(config),
        clock,
        reporter: Reporter::new(metrics),
        actors,
        targets: targets_in,
        targets_may_change: true,
        heartbeat: heartbeat_in,
    };
    Ok(Wired { agent, events, queries, zookeeper, tasks })
}

/// Gives the view the memory of the leader term that an earlier run of this agent wrote to disk, as its first event: a
/// leader key that is read before it would not find it.
async fn recall(config: &Config, events: &Events) -> anyhow::Result<()> {
    if config.node.is_none() {
        return Ok(());
    }
    match term_memory::read(&config.state_dir).await {
        Ok(Some(memory)) => {
            events.send(events.clock.now(), Event::Local(LocalEvent::Remembered(memory))).await?;
        }
        Ok(None) => {}
        Err(why) => {
            tracing::warn!(event = "term_memory_unreadable", why, "the agent cannot read its memory of this term");
        }
    }
    Ok(())
}

/// Keeps an actor running. The receiving end of its queue outlives a failure of the actor, so no step is lost.
macro_rules! keep_actor {
    ($tasks:expr, $name:literal, $steps:expr, $actor:expr, $run:path) => {{
        let (steps, actor) = (Arc::new(Mutex::new($steps)), Arc::new($actor));
        $tasks.keep($name, move || {
            let (steps, actor) = (Arc::clone(&steps), Arc::clone(&actor));
            async move { $run(&mut *steps.lock().await, &actor).await }
        });
    }};
}

impl Parts<'_> {
    fn keep_watchers(&self) {
        self.keep_members();
        self.keep_alive_lock();
        self.keep_haproxy();
        self.keep_gate_check();
    }

    fn keep_members(&self) {
        let (local, logins, client) = (self.local.clone(), Logins::of(self.config), self.client.clone());
        let (targets, probes, events) = (self.targets.clone(), self.probes.clone(), self.events.clone());
        self.tasks.keep("members", move || {
            let (local, logins, client) = (local.clone(), logins.clone(), client.clone());
            members::watch(local, logins, client, targets.clone(), probes.clone(), events.clone())
        });
    }

    fn keep_alive_lock(&self) {
        let Some(path) = self.config.node.as_ref().and_then(|node| node.alive_lock.clone()) else { return };
        let (held, events) = (self.held.clone(), self.events.clone());
        self.tasks.keep("alive-lock", move || alive_lock::watch(path.clone(), held.clone(), events.clone()));
    }

    fn keep_haproxy(&self) {
        let Some(config) = self.config.haproxy.clone() else { return };
        let (targets, probe, events) = (self.targets.clone(), Arc::clone(&self.probes.haproxy), self.events.clone());
        self.tasks.keep("haproxy", move || {
            let watch = haproxy::watch(config.clone(), targets.clone(), Arc::clone(&probe), events.clone());
            async { Ok(watch.await?) }
        });
    }

    fn keep_gate_check(&self) {
        let (Some(node), Some(login)) = (&self.config.node, self.config.superuser.clone()) else { return };
        let own = MemberName::from(node.member.as_str());
        let (targets, events) = (self.targets.clone(), self.events.clone());
        self.tasks.keep("gate-check", move || {
            let watch = gate_check::watch(own.clone(), login.clone(), targets.clone(), events.clone());
            async { Ok(watch.await?) }
        });
    }

    fn keep_actors(&self, steps: Steps) {
        let Steps { zookeeper, term_memory, fence, release, nudge, servers, file } = steps;
        let own = act::zookeeper::Own { zookeeper: self.zookeeper.clone(), events: self.events.clone() };
        keep_actor!(self.tasks, "own-znodes", zookeeper, own, act::zookeeper::run);
        if self.config.node.is_some() {
            keep_actor!(self.tasks, "term-memory", term_memory, self.config.state_dir.clone(), act::term_memory::run);
        }
        keep_actor!(self.tasks, "fence", fence, self.fencer(), act::fence::run);
        keep_actor!(self.tasks, "release", release, self.releaser(), act::release::run);
        keep_actor!(self.tasks, "nudge", nudge, self.nudger(), act::nudge::run);
        self.keep_haproxy_actors(servers, file);
        // The queue of records outlives a failure of the actor, so no record is lost.
        let (records, zookeeper) = (self.records.clone(), self.zookeeper.clone());
        self.tasks.keep("records", move || {
            let (records, zookeeper) = (records.clone(), zookeeper.clone());
            async move { act::records::run(&records, &zookeeper).await }
        });
        let zookeeper = self.zookeeper.clone();
        self.tasks.keep("upgrade", move || {
            let zookeeper = zookeeper.clone();
            async move { act::upgrade::run(&zookeeper).await }
        });
    }

    fn keep_haproxy_actors(
        &self,
        servers: mpsc::Receiver<Step<ServersAction>>,
        file_steps: mpsc::Receiver<Step<Backends>>,
    ) {
        let Some(haproxy) = self.config.haproxy.clone() else { return };
        if let Some(file) = haproxy.file.clone() {
            let file_actor = act::haproxy::actor::HaproxyFileActor {
                enforce: policy(self.config).routing == Mode::Enforce,
                haproxy: haproxy.clone(),
                file,
                checker: "haproxy",
                add_server_help: act::haproxy::actor::ADD_SERVER_HELP,
                probes: self.probes.clone(),
                events: self.events.clone(),
            };
            keep_actor!(self.tasks, "haproxy-file", file_steps, file_actor, act::haproxy::file::run);
        }
        let servers_actor = act::haproxy::servers::ServersActor {
            config: haproxy,
            zookeeper: self.zookeeper.clone(),
            targets: self.targets.clone(),
            probes: self.probes.clone(),
            events: self.events.clone(),
        };
        keep_actor!(self.tasks, "haproxy-servers", servers, servers_actor, act::haproxy::servers::run);
    }

    fn fencer(&self) -> act::fence::Fencer {
        let node = self.config.node.as_ref();
        act::fence::Fencer {
            local: node.map(|node| (MemberName::from(node.member.as_str()), Place::beside(node))),
            beside: self.local.as_ref().map(|local| local.beside.clone()),
            login: self.config.superuser.clone(),
            zookeeper: self.zookeeper.clone(),
            client: self.client.clone(),
            api: node.map(|node| node.api.clone()),
            records: self.records.clone(),
            targets: self.targets.clone(),
            heartbeat: self.heartbeat.clone(),
            probes: self.probes.clone(),
            events: self.events.clone(),
            agent: self.config.name.clone(),
        }
    }

    fn releaser(&self) -> act::release::Releaser {
        let node = self.config.node.as_ref();
        let proof = Proof {
            socket: node.and_then(|node| Some((node.socket_dir.clone()?, node.port))),
            beside: self.local.as_ref().map(|local| local.beside.clone()),
            alive_lock: node.and_then(|node| node.alive_lock.clone()),
            last_locked: self.held.clone(),
        };
        act::release::Releaser {
            zookeeper: self.zookeeper.clone(),
            proof,
            records: self.records.clone(),
            events: self.events.clone(),
            agent: self.config.name.clone(),
        }
    }

    fn nudger(&self) -> act::nudge::Nudger {
        let node = self.config.node.as_ref();
        act::nudge::Nudger {
            client: self.client.clone(),
            api: node.map(|node| node.api.clone()),
            local: node.map(Place::beside).zip(self.config.superuser.clone()),
            probes: self.probes.clone(),
            events: self.events.clone(),
        }
    }

    fn keep_http(
        &self,
        listener: TcpListener,
        queries: mpsc::Sender<Query>,
        metrics: &Metrics,
        log: LogControl,
        shutdown: &CancellationToken,
    ) {
        let api = Api {
            queries,
            zookeeper: self.zookeeper.clone(),
            operator: Operator {
                zookeeper: self.zookeeper.clone(),
                records: self.records.clone(),
                agent: self.config.name.clone(),
            },
            last_read: http::LastRead::default(),
            reading_audit: Arc::default(),
            clock: self.events.clock,
            metrics: metrics.clone(),
            policy: policy(self.config),
            log,
            token: self.config.http.token.clone(),
        };
        let (listener, shutdown) = (Arc::new(listener), shutdown.clone());
        self.tasks.keep("http", move || http::serve(Arc::clone(&listener), api.clone(), shutdown.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tell::http::tests::log_control;
    use std::path::Path;
    use std::process::Command;

    fn config(directory: &Path) -> Config {
        let file = directory.join("warden.yml");
        let yaml = format!(
            "scope: s\nname: a\nzookeeper: {{hosts: 127.0.0.1:1}}\nnode: {{api: 127.0.0.1:1}}\n\
             http: {{listen: 127.0.0.1:0}}\nstate_dir: {}\n",
            directory.display()
        );
        std::fs::write(&file, yaml).unwrap();
        Config::load(&file).unwrap()
    }

    /// The file is a pipe: its content comes after the ZooKeeper client could report that no server answers.
    #[tokio::test]
    async fn the_memory_of_the_term_is_the_first_event_of_the_view_however_slow_the_disk_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("term.json");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let disk = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            let boot = boot.trim();
            let text = format!(r#"{{"boot_id": "{boot}", "czxid": "0x1", "answered": true, "lock_was_held": false}}"#);
            std::fs::write(path, text).unwrap();
        });
        let shutdown = CancellationToken::new();
        let wired = wire(&config(directory.path()), log_control(), Clock::start(), &shutdown).await;
        let Wired { mut events, zookeeper, .. } = wired.unwrap();
        disk.join().unwrap();
        let first = events.recv().await.unwrap().event;
        assert!(matches!(first, Event::Local(LocalEvent::Remembered(_))), "{first:?}");
        shutdown.cancel();
        zookeeper.shutdown().await;
    }
}
