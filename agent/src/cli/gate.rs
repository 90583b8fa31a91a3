//! `warden gate`: Patroni's `postgresql.pre_promote` hook. The candidate holds the leader key already; it is promoted
//! when no other member can be taking writes any more.
//!
//! The rule is core's ([`warden_core::rules::gate`]). The gate draws the picture (the agent beside this node does; where it
//! does not answer, the gate looks into ZooKeeper itself), asks the members that the rule names over TCP, fences those that
//! take writes, and obeys. Exit code 0: promote. 5: do not; the hook has to map every other code to "promote". Trouble of
//! the gate's own (no configuration, no agent and no ZooKeeper) lets Patroni go on: without Warden it would, too.

use super::{Failure, client, load, runtime, status};
use crate::act::ladder::{ask_old_primary, is_superuser};
use crate::audit::Entry;
use crate::clock::Clock;
use crate::config::{Config, Superuser};
use crate::run;
use crate::tell::picture;
use crate::watch::postgres::Place;
use crate::watch::zookeeper;
use futures_util::future::join_all;
use std::cell::RefCell;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use warden_core::evidence::Standing;
use warden_core::rules::gate::{self, Found, Memory, Other, Picture, Verdict};
use warden_core::types::{MemberName, Mode};

/// Where it is only said what would be waited for, each member is asked for no longer than this.
const GLANCE: Duration = Duration::from_millis(150);

/// A member is asked for no longer than this, fence and all, before the gate judges anew.
const ROUND: Duration = Duration::from_secs(8);

/// Between two rounds of questions.
const PAUSE: Duration = Duration::from_millis(100);

/// The same while a server starts: its first session has to be ours.
const START_PAUSE: Duration = Duration::from_millis(20);

/// One write to ZooKeeper.
const REQUEST: Duration = Duration::from_secs(2);

/// What was stopped is tried to be written down for this long, by a process of its own: no promotion waits for that.
const TRAIL: Duration = Duration::from_secs(60);

/// The local agent answers within milliseconds or is away.
const AGENT: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Say what the gate could find out and whom it could ask, and promote and stop nothing
    #[arg(long)]
    check: bool,
    /// Only add this entry to the audit trail
    #[arg(long, hide = true)]
    write_down: Option<String>,
}

pub(super) fn main(path: &Path, args: Args) -> Result<(), Failure> {
    if let Some(entry) = args.write_down {
        return write_down(&load(path)?, entry);
    }
    if args.check {
        return check(path);
    }
    // A promotion is not to fail for a mistake in Warden's configuration.
    let config = match Config::load_for_gate(path) {
        Ok((config, None)) => config,
        Ok((config, Some(wrong))) => {
            eprintln!("warden gate: {wrong}: going on as with enforce");
            config
        }
        Err(error) => {
            eprintln!("warden gate: {error}: not waiting");
            return Ok(());
        }
    };
    if run::mode(config.fencing.mode) == Mode::Off {
        return Ok(());
    }
    let (gate, runtime) =
        match Gate::new(path, &config).and_then(|gate| Ok((gate, runtime().map_err(|e| e.to_string())?))) {
            Ok(ready) => ready,
            Err(why) => {
                eprintln!("warden gate: {why}: not waiting");
                return Ok(());
            }
        };
    let verdict = runtime.block_on(gate.pass());
    runtime.shutdown_background();
    verdict.map_err(Failure::Refused)
}

/// One run of the hook.
struct Gate<'a> {
    path: &'a Path,
    config: &'a Config,
    own: MemberName,
    login: &'a Superuser,
    mode: Mode,
    clock: Clock,
    /// What was last said of the agent beside this node.
    said: RefCell<String>,
}

impl<'a> Gate<'a> {
    /// The error says why there is nothing to wait for.
    fn new(path: &'a Path, config: &'a Config) -> Result<Self, String> {
        let node = config.node.as_ref().ok_or_else(|| format!("there is no node section in {}", path.display()))?;
        let login = config.superuser.as_ref().ok_or("there is no superuser to ask others with")?;
        let own = MemberName::from(node.member.as_str());
        Ok(Self {
            path,
            config,
            own,
            login,
            mode: run::mode(config.fencing.mode),
            clock: Clock::start(),
            said: RefCell::default(),
        })
    }

    /// Passes when the rule does; the error is its refusal.
    async fn pass(&self) -> Result<(), String> {
        let Some(mut picture) = self.look().await else {
            eprintln!("warden gate: nothing can be found out, so not waiting");
            return Ok(());
        };
        let wait = Duration::from_secs(self.config.gate.wait_s);
        let mut memory = Memory::new(self.clock.now());
        let mut said = String::new();
        for round in 0_u32.. {
            memory.note_key(&picture.key, self.clock.now());
            let verdict = gate::judge(&picture, &memory, wait, self.clock.now());
            // What is only observed is looked at once.
            let (verdict, would) = if self.mode == Mode::Observe && round == 0 && matches!(verdict, Verdict::Wait(_)) {
                (verdict, None)
            } else {
                gate::obey(self.mode, verdict)
            };
            if let Some(would) = would {
                eprintln!("warden gate: {would} (fencing.mode is observe)");
            }
            let waits = match verdict {
                Verdict::Pass => return Ok(()),
                Verdict::Refuse(why) => return Err(why),
                Verdict::Wait(waits) => waits,
            };
            if round > 0 {
                say(&waits, &mut said);
                sleep(pause(&memory).mul_f64(rand::random_range(0.75..1.25))).await;
                picture = self.look().await.unwrap_or(picture);
            }
            self.ask(&waits, &picture, &mut memory).await;
        }
        Ok(())
    }

    /// Asks the members that are waited for, side by side, and fences those that take writes.
    async fn ask(&self, waits: &[(MemberName, String)], picture: &Picture, memory: &mut Memory) {
        let enforce = self.mode == Mode::Enforce;
        let limit = if enforce { ROUND } else { GLANCE };
        let others = picture.others.iter().filter(|other| waits.iter().any(|(name, _)| *name == other.name));
        let asking = others.filter_map(|other| {
            let (host, port) = other.place.clone()?;
            Some(async move {
                let (place, asked) = (Place::Tcp(host, port), Instant::now());
                let asking = ask_old_primary(&place, self.login, picture.system_id, other.recorded, enforce);
                let answer = timeout(limit, asking).await;
                (&other.name, answer, asked.elapsed())
            })
        });
        for (name, answer, took) in join_all(asking).await {
            // One that takes longer is judged by what it said before.
            let (found, stopped) = match answer {
                Ok(answer) => answer,
                Err(_) if memory.asked.contains_key(name) => continue,
                Err(_) => (Found::Silent, false),
            };
            if let (Found::Harmless(by), true) = (&found, stopped) {
                self.was_stopped(name, by, took);
            }
            memory.note(name, found);
        }
    }

    /// That a member was stopped from here is an entry of the audit trail.
    fn was_stopped(&self, name: &MemberName, by: &str, took: Duration) {
        eprintln!("warden gate: {name}: {by}, after {} ms", took.as_millis());
        let own = &self.own;
        let reason = format!("{own} is about to be promoted, and {name} took writes");
        let entry = Entry {
            rule: Some("gate".to_owned()),
            outcome: format!("confirmed: {by}, after {} ms", took.as_millis()),
            facts: [("leader".to_owned(), own.to_string())].into(),
            ..Entry::new(&self.config.name, "fence", name.as_str(), &reason)
        };
        if let Err(error) = leave_to_write_down(self.path, &entry) {
            eprintln!("warden gate: the audit trail cannot be written: {error}");
        }
    }

    /// The cluster as the agent beside this node sees it. Where that does not answer, or has no linearizable read to show
    /// (it may have no ZooKeeper session), or what it sees wants to be looked up, as we do.
    async fn look(&self) -> Option<Picture> {
        let by_agent = match timeout(AGENT, self.ask_agent()).await {
            Ok(Ok(picture)) if picture.wants_zookeeper() => Some(picture),
            Ok(Ok(picture)) => return Some(picture),
            Ok(Err(error)) => {
                self.say_once(&format!("the agent beside this node: {error:#}; asking ZooKeeper"));
                None
            }
            Err(_) => {
                self.say_once("the agent beside this node does not answer; asking ZooKeeper");
                None
            }
        };
        self.look_itself().await.or(by_agent)
    }

    /// Each round of a gate that waits finds the same.
    fn say_once(&self, what: &str) {
        if self.said.replace(what.to_owned()) != what {
            eprintln!("warden gate: {what}");
        }
    }

    async fn look_itself(&self) -> Option<Picture> {
        match status::observe(self.config).await {
            Ok(seen) => {
                let picture = gate::picture(&seen.view, &self.own, seen.asked, seen.clock.now());
                if picture.is_none() {
                    eprintln!("warden gate: no linearizable read says who holds the leader key");
                }
                picture
            }
            Err(failure) => {
                eprintln!("warden gate: {failure}");
                None
            }
        }
    }

    async fn ask_agent(&self) -> anyhow::Result<Picture> {
        // The gate runs in the node's container and not in the agent's.
        let url = format!("http://{}/api/v1/gate", self.config.http.connect_address);
        let answer = client::plain()?.get(&url).send().await?;
        anyhow::ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
        let picture = picture::read(answer.json().await?);
        anyhow::ensure!(picture.own == self.own, "{url} is beside {}", picture.own);
        Ok(picture)
    }
}

/// Says for whom the gate waits, when that has changed.
fn say(waits: &[(MemberName, String)], said: &mut String) {
    let each = |(name, why): &(MemberName, String)| format!("{name} {why}");
    let now = if waits.is_empty() {
        "this node does not hold the leader key; waiting for Patroni to cancel the promotion".to_owned()
    } else {
        waits.iter().map(each).collect::<Vec<_>>().join("; ")
    };
    if *said != now {
        eprintln!("warden gate: waiting: {now}");
        *said = now;
    }
}

fn pause(memory: &Memory) -> Duration {
    let starting = memory.asked.values().any(|(found, _)| matches!(found, Found::Starting));
    if starting { START_PAUSE } else { PAUSE }
}

/// `--check`: everything but the promotion, and nothing is stopped. The error counts what could not be found out.
fn check(path: &Path) -> Result<(), Failure> {
    let config = load(path)?;
    let gate =
        Gate::new(path, &config).map_err(|why| Failure::Failed(anyhow::anyhow!("the gate does nothing: {why}")))?;
    let runtime = runtime()?;
    let missing = runtime.block_on(gate.check());
    runtime.shutdown_background();
    if missing == 0 {
        return Ok(());
    }
    Err(Failure::Failed(anyhow::anyhow!(
        "{missing} of these would not be known in a failover; a promotion goes on without"
    )))
}

impl Gate<'_> {
    /// Says line by line what is known; how much is not.
    async fn check(&self) -> u32 {
        let mut missing = 0;
        let mut line = |good: bool, what: String| {
            println!("{} {what}", if good { "ok     " } else { "MISSING" });
            missing += u32::from(!good);
        };
        let agent = timeout(AGENT, self.ask_agent()).await;
        let address = &self.config.http.connect_address;
        match &agent {
            Ok(Ok(_)) => line(true, format!("the agent at {address} answers")),
            Ok(Err(error)) => line(false, format!("the agent does not answer: {error:#} (http.connect_address)")),
            Err(_) => line(false, format!("the agent at {address} does not answer (http.connect_address)")),
        }
        let picture = if let Ok(Ok(picture)) = agent { Some(picture) } else { self.look().await };
        let Some(picture) = picture else {
            line(false, "neither the agent nor ZooKeeper says who holds the leader key".to_owned());
            return missing;
        };
        for other in &picture.others {
            let (good, what) = self.check_other(other, &picture).await;
            line(good, what);
        }
        missing
    }

    async fn check_other(&self, other: &Other, picture: &Picture) -> (bool, String) {
        let name = &other.name;
        let standing = match &other.standing {
            Standing::Standby(by) => format!("{name} is a standby, says {by}"),
            Standing::Writable => format!("{name} takes writes"),
            Standing::WasWritable => format!("{name} took writes when it was last heard"),
            Standing::Unknown => format!("of {name} nothing is known"),
        };
        let Some((host, port)) = other.place.clone() else { return (true, format!("{standing}; it has no address")) };
        let place = Place::Tcp(host, port);
        let found = ask_old_primary(&place, self.login, picture.system_id, false, false).await.0;
        if !matches!(found, Found::NoLogin(_)) && is_superuser(&place, self.login).await == Some(false) {
            let role = &self.login.username;
            return (false, format!("{standing}; the gate could ask it and not stop it: {role} is no superuser"));
        }
        match found {
            Found::NoLogin(why) => (
                false,
                format!(
                    "{standing}; the gate could not ask it: {why} (pg_hba.conf has to let {} in from this node, and the \
                     gate needs the password: WARDEN_SUPERUSER_PASSWORD)",
                    self.login.username
                ),
            ),
            Found::Silent => (false, format!("{standing}; it does not answer from here")),
            Found::Harmless(what) => (true, format!("{standing}; asked from here: {what}")),
            Found::Writable(_) => (true, format!("{standing}; asked from here: it takes writes")),
            Found::Starting => (true, format!("{standing}; asked from here: it is starting")),
            Found::Stopping => (true, format!("{standing}; asked from here: it is shutting down")),
        }
    }
}

/// Has an entry added to the audit trail by a process that outlives this one.
fn leave_to_write_down(path: &Path, entry: &Entry) -> std::io::Result<()> {
    let entry = String::from_utf8_lossy(&entry.write()).into_owned();
    // Not by its path, where another one may stand by now.
    Command::new("/proc/self/exe")
        .args(["gate", "--write-down", &entry, "--config"])
        .arg(path)
        // Patroni may end the hook's group, or wait until nobody holds its output any more.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
}

/// Adds an entry to the audit trail, in a ZooKeeper session of its own: the agent beside this node may be away.
fn write_down(config: &Config, entry: String) -> Result<(), Failure> {
    let runtime = runtime()?;
    // A limit can be set only inside of the runtime.
    let done = runtime.block_on(async { timeout(TRAIL, append(config, entry)).await });
    runtime.shutdown_background();
    done.map_err(|_| Failure::NoAnswer(format!("not written within {} s", TRAIL.as_secs())))
}

async fn append(config: &Config, entry: String) {
    let mut settings = run::zookeeper_settings(config);
    settings.agent = "gate".to_owned();
    let (updates_in, mut updates) = mpsc::channel(64);
    let zookeeper = zookeeper::spawn(settings, updates_in);
    let heard = async { while updates.recv().await.is_some() {} };
    let written = async {
        while zookeeper.append_audit(entry.clone().into_bytes(), REQUEST).await.is_err() {
            // There is no session yet, or it is slow.
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = written => {}
        () = heard => {}
    }
    zookeeper.shutdown().await;
}
