//! `warden gate`: Patroni's `postgresql.pre_promote` hook. The candidate holds the leader key already. Patroni promotes
//! it when no other member can be taking writes.
//!
//! The rule is core's ([`warden_core::rules::gate`]). The gate gets the picture from the agent beside this node, or
//! from ZooKeeper if that agent does not answer. It asks the members that the rule names over TCP, fences those that
//! take writes, and obeys the verdict.
//!
//! Exit code 0 means: promote. 5 means: do not promote. The hook maps every other code to "promote". The gate also
//! allows the promotion when it cannot establish the facts. Without Warden, Patroni would promote the candidate as
//! well.

mod audit;
mod check;

use crate::act::fence::old_primary::{ask_old_primary, stop_old_primary};
use crate::act::fence::session::CONNECT_LIMIT;
use crate::cli::{Failure, client, load, runtime, status};
use crate::client::postgres::Place;
use crate::clock::Clock;
use crate::config::policy;
use crate::config::{Config, Superuser};
use crate::tell::picture;
use crate::znode::audit::Entry;
use futures_util::future::join_all;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout, timeout_at};
use warden_core::rules::gate::{self, Found, Key, LEASE_OVER_AFTER, Memory, Other, Picture, Verdict};
use warden_core::types::{MemberName, Mode};

/// The time for one member in a round, with its fence. Then the gate judges again.
const MEMBER_ROUND_LIMIT: Duration = Duration::from_secs(8);

/// The time for one member with `fencing.mode: observe`, where the gate only reports.
const MEMBER_OBSERVE_LIMIT: Duration = Duration::from_millis(150);

/// The longest time for a new session with a member.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// The time for a new session with a member that has a record of its fence, or of the release of its key. That member
/// has stopped by all known facts, and the address of a killed container answers nothing for a second.
const CONNECT_RECORDED: Duration = Duration::from_millis(100);

const _: () = assert!(CONNECT_RECORDED.as_millis() < CONNECT_LIMIT.as_millis());
const _: () = assert!(CONNECT_LIMIT.as_millis() < CONNECT_MAX.as_millis());

/// The pause between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// The pause between two rounds while a server starts, because the gate has to open the first session with it.
const ROUND_PAUSE_STARTING: Duration = Duration::from_millis(20);

/// The gate starts no further attempt to get its first picture after this time.
const FIRST_PICTURE_LIMIT: Duration = Duration::from_secs(5);

/// The time for the local agent. It answers within milliseconds, or is away.
const AGENT_LIMIT: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Report the facts that the gate can establish and the members that it can ask; promote and stop no server
    #[arg(long)]
    check: bool,
    /// Add this entry to the audit trail, and do nothing else
    #[arg(long, hide = true)]
    write_down: Option<String>,
}

pub(crate) fn main(path: &Path, args: Args) -> Result<(), Failure> {
    if let Some(entry) = args.write_down {
        return audit::write_down(&load(path)?, entry);
    }
    if args.check {
        return check::main(path);
    }
    // A mistake in Warden's configuration must not prevent a promotion.
    let config = match Config::load_for_gate(path) {
        Ok((config, None)) => config,
        Ok((config, Some(wrong))) => {
            eprintln!("warden gate: {wrong}: the gate continues as with enforce");
            config
        }
        Err(error) => {
            eprintln!("warden gate: {error}: {ALLOWED}");
            return Ok(());
        }
    };
    if policy::mode(config.fencing.mode) == Mode::Off {
        return Ok(());
    }
    let (gate, runtime) =
        match Gate::new(path, &config).and_then(|gate| Ok((gate, runtime().map_err(|e| e.to_string())?))) {
            Ok(ready) => ready,
            Err(why) => {
                eprintln!("warden gate: {why}: {ALLOWED}");
                return Ok(());
            }
        };
    let verdict = runtime.block_on(gate.pass());
    runtime.shutdown_background();
    verdict.map_err(Failure::Refused)
}

/// The end of a message about a gate that waits for no member.
const ALLOWED: &str = "the gate allows the promotion";

/// One run of the hook.
struct Gate<'a> {
    path: &'a Path,
    config: &'a Config,
    own: MemberName,
    login: &'a Superuser,
    mode: Mode,
    clock: Clock,
    /// The last message about the agent beside this node.
    reported: RefCell<String>,
    /// The members that the gate has ordered to stop, and that have not answered since.
    stopping: RefCell<BTreeSet<MemberName>>,
}

impl<'a> Gate<'a> {
    /// The error is the reason for which the gate cannot ask any member.
    fn new(path: &'a Path, config: &'a Config) -> Result<Self, String> {
        let node = config.node.as_ref().ok_or_else(|| format!("{} has no node section", path.display()))?;
        let login =
            config.superuser.as_ref().ok_or("the configuration has no superuser to ask the other members with")?;
        let own = MemberName::from(node.member.as_str());
        Ok(Self {
            path,
            config,
            own,
            login,
            mode: policy::mode(config.fencing.mode),
            clock: Clock::start(),
            reported: RefCell::default(),
            stopping: RefCell::default(),
        })
    }

    /// Returns when the rule allows the promotion. The error is the reason of a refusal.
    async fn pass(&self) -> Result<(), String> {
        let Some(mut picture) = self.first_picture().await else {
            eprintln!("warden gate: the gate cannot establish the facts: {ALLOWED}");
            return Ok(());
        };
        let wait = Duration::from_secs(self.config.gate.wait_s);
        let mut memory = Memory::new(self.clock.now());
        let mut reported = String::new();
        for round in 0_u32.. {
            memory.note_key(&picture.key, self.clock.now());
            let verdict = gate::judge(&picture, &memory, wait, self.clock.now());
            // In mode `observe` the gate asks every member once.
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
                report(&waits, &mut reported);
                sleep(pause(&memory).mul_f64(rand::random_range(0.75..1.25))).await;
                picture = self.picture().await.unwrap_or(picture);
            }
            self.ask(&waits, &picture, &mut memory, connect_limit(round, &picture.key)).await;
        }
        Ok(())
    }

    /// Asks the members in `waits` at the same time, and fences those that take writes.
    async fn ask(&self, waits: &[(MemberName, String)], picture: &Picture, memory: &mut Memory, connect: Duration) {
        let asked = Instant::now();
        let others = picture.others.iter().filter(|other| waits.iter().any(|(name, _)| *name == other.name));
        let asking = others.filter_map(|other| {
            let (host, port) = other.place.clone()?;
            Some(self.ask_one(other, Place::Tcp(host, port), picture, connect))
        });
        for (name, found) in join_all(asking).await {
            // The rule judges a slow member by its last answer.
            if found.is_empty() && !memory.asked.contains_key(name) {
                memory.note(name, Found::Silent);
            }
            for found in found {
                match &found {
                    Answer::Stopped(by) => self.was_stopped(name, by, asked.elapsed()),
                    Answer::Ordered => drop(self.stopping.borrow_mut().insert(name.clone())),
                    Answer::Found(Found::Harmless(by)) if self.stopping.borrow_mut().remove(name) => {
                        self.was_stopped(name, &format!("ordered to stop, and now: {by}"), asked.elapsed());
                    }
                    Answer::Found(_) => {}
                }
                memory.note(name, found.into());
            }
        }
    }

    /// Returns the answer of a member, and then the outcome of its fence. The rule remembers that the member took
    /// writes, also after its fence. Without an answer in time, the list is empty.
    async fn ask_one<'o>(
        &self,
        other: &'o Other,
        place: Place,
        picture: &Picture,
        connect: Duration,
    ) -> (&'o MemberName, Vec<Answer>) {
        let enforce = self.mode == Mode::Enforce;
        let limit = Instant::now() + if enforce { MEMBER_ROUND_LIMIT } else { MEMBER_OBSERVE_LIMIT };
        let mut answers = Vec::new();
        let connect = if other.recorded { CONNECT_RECORDED } else { connect };
        let asking = ask_old_primary(&place, self.login, picture.system_id, connect);
        let Ok(found) = timeout_at(limit.into(), asking).await else { return (&other.name, answers) };
        let writes = matches!(found, Found::Writable(_));
        answers.push(Answer::Found(found));
        if writes && enforce {
            let stopping =
                timeout_at(limit.into(), stop_old_primary(&place, self.login, connect.max(CONNECT_LIMIT))).await;
            answers.extend(stopping.ok().map(|stopped| match stopped {
                Ok(by) => Answer::Stopped(by),
                Err(Found::Silent) => Answer::Ordered,
                Err(found) => Answer::Found(found),
            }));
        }
        (&other.name, answers)
    }

    /// Reports that the gate has stopped a member, and adds an entry to the audit trail.
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
        if let Err(error) = audit::start_writer(self.path, &entry) {
            eprintln!("warden gate: the gate cannot start the writer of the audit trail: {error}");
        }
    }

    /// Tries several times to get a picture. The machine is busiest while a primary is replaced, and without a picture
    /// the gate asks no member.
    async fn first_picture(&self) -> Option<Picture> {
        let began = Instant::now();
        loop {
            let picture = self.picture().await;
            if picture.is_some() || self.mode == Mode::Observe || began.elapsed() >= FIRST_PICTURE_LIMIT {
                return picture;
            }
            sleep(ROUND_PAUSE).await;
        }
    }

    /// Returns the picture of the agent beside this node. The gate reads ZooKeeper itself if that agent does not
    /// answer, has no linearizable read, or has a picture that the gate must check.
    async fn picture(&self) -> Option<Picture> {
        let by_agent = match timeout(AGENT_LIMIT, self.ask_agent()).await {
            Ok(Ok(picture)) if picture.wants_zookeeper() => Some(picture),
            Ok(Ok(picture)) => return Some(picture),
            Ok(Err(error)) => {
                self.report_once(&format!("the agent beside this node: {error:#}; the gate asks ZooKeeper"));
                None
            }
            Err(_) => {
                self.report_once("the agent beside this node does not answer; the gate asks ZooKeeper");
                None
            }
        };
        self.picture_from_zookeeper().await.or(by_agent)
    }

    /// Reports a message about the agent, unless it repeats the last one.
    fn report_once(&self, what: &str) {
        if self.reported.replace(what.to_owned()) != what {
            eprintln!("warden gate: {what}");
        }
    }

    async fn picture_from_zookeeper(&self) -> Option<Picture> {
        match status::observe(self.config).await {
            Ok(seen) => {
                let picture = gate::picture(&seen.view, &self.own, seen.asked, seen.clock.now());
                if picture.is_none() {
                    eprintln!("warden gate: no linearizable read confirms the holder of the leader key");
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
        // The gate runs in Patroni's container, so it asks at the address for other machines.
        let url = format!("http://{}/api/v1/gate", self.config.http.connect_address);
        let answer = client::plain()?.get(&url).send().await?;
        anyhow::ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
        let picture = picture::read(answer.json().await?);
        anyhow::ensure!(picture.own == self.own, "{url} is beside {}", picture.own);
        Ok(picture)
    }
}

/// The outcome of a question to a member's server, or of its fence.
enum Answer {
    Found(Found),
    /// The gate has stopped the server; the text says how it confirmed that.
    Stopped(&'static str),
    /// The gate has ordered the server to stop, and the server has not answered since.
    Ordered,
}

impl From<Answer> for Found {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Found(found) => found,
            Answer::Stopped(by) => Self::Harmless(by.to_owned()),
            Answer::Ordered => Self::Silent,
        }
    }
}

/// Reports the members for which the gate waits, unless `reported` has the same message.
fn report(waits: &[(MemberName, String)], reported: &mut String) {
    let each = |(name, why): &(MemberName, String)| format!("{name} {why}");
    let now = if waits.is_empty() {
        "this node does not hold the leader key; the gate waits until Patroni cancels the promotion".to_owned()
    } else {
        waits.iter().map(each).collect::<Vec<_>>().join("; ")
    };
    if *reported != now {
        eprintln!("warden gate: waiting: {now}");
        *reported = now;
    }
}

/// Returns the longest time for a new session with a member in this round; the first round is 0. A busy server may need
/// seconds. The gate does not wait for a silent server beyond the end of its lease.
fn connect_limit(round: u32, key: &Key) -> Duration {
    let lease_left = match key {
        Key::Own(age) if *age < LEASE_OVER_AFTER => LEASE_OVER_AFTER.saturating_sub(*age).max(CONNECT_LIMIT),
        _ => CONNECT_MAX,
    };
    (CONNECT_LIMIT * round.saturating_add(1)).min(CONNECT_MAX).min(lease_left)
}

fn pause(memory: &Memory) -> Duration {
    let starting = memory.asked.values().any(|(found, _)| matches!(found, Found::Starting));
    if starting { ROUND_PAUSE_STARTING } else { ROUND_PAUSE }
}
