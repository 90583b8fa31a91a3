//! `warden gate`: Patroni's `postgresql.pre_promote` hook. The candidate holds the leader key already; it is promoted
//! when no other member can be taking writes any more.
//!
//! Each other member passes by a fence record that is younger than the candidate's leader key (or that of a release,
//! written right before the key that it released was deleted), or because its server, asked over TCP, refuses, is in
//! recovery or is another database; one that answers as writable is fenced from here; one that is shutting down, or
//! cannot be reached, is waited for, but not longer than its lease can last. Exit code 0: promote. 5: another server
//! takes writes and could not be stopped. Where nothing can be found out (no configuration, no agent, no ZooKeeper), the
//! answer is to promote: without Warden it would be too. So it is in maintenance mode, which is a person's own business.

use super::{Failure, client, load, runtime, status};
use crate::act::ladder::{OldPrimary, stop_old_primary};
use crate::audit::Entry;
use crate::config::{Config, FencingMode, Superuser};
use crate::run;
use crate::tell::state::{Fence, Leader, Member, State};
use crate::watch::postgres::Place;
use crate::watch::zookeeper;
use jiff::Timestamp;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// A member that cannot be reached is waited for this long: the leader key was ours only when its lease was over, and
/// its own agent stops it before that; this is the margin of that rule. One that is shutting down gets the same.
const UNREACHABLE: Duration = Duration::from_secs(5);

/// Where it is only said what would be waited for, each member is asked for no longer than this.
const GLANCE: Duration = Duration::from_millis(150);

/// A release writes its record right before it deletes the key: the candidate's comes within this, or another way.
const RELEASED: Duration = Duration::from_secs(10);

/// Between two questions.
const PAUSE: Duration = Duration::from_millis(100);

/// All of it takes no longer.
const LIMIT: Duration = Duration::from_secs(15);

/// One write to ZooKeeper.
const REQUEST: Duration = Duration::from_secs(2);

/// What was stopped is tried to be written down for this long, by a process of its own: no promotion waits for that.
const TRAIL: Duration = Duration::from_secs(60);

/// The local agent answers within milliseconds or is away.
const AGENT: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only add this entry to the audit trail
    #[arg(long, hide = true)]
    write_down: Option<String>,
}

pub(super) fn main(path: &Path, args: Args) -> Result<(), Failure> {
    if let Some(entry) = args.write_down {
        return write_down(&load(path)?, entry);
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
    if config.fencing.mode == FencingMode::Off {
        return Ok(());
    }
    let Some(node) = &config.node else {
        eprintln!("warden gate: there is no node section in {}: nothing to wait for", path.display());
        return Ok(());
    };
    let Some(login) = config.superuser.clone() else {
        eprintln!("warden gate: there is no superuser to ask others with: not waiting");
        return Ok(());
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("warden gate: {error:#}: not waiting");
            return Ok(());
        }
    };
    let verdict = runtime.block_on(async {
        match timeout(LIMIT, pass(path, &config, &node.member, &login)).await {
            Ok(verdict) => verdict,
            Err(_) => Err(format!("not within {} s", LIMIT.as_secs())),
        }
    });
    runtime.shutdown_background();
    verdict.map_err(Failure::Refused)
}

/// Passes when no other member can be taking writes; the error names the one that does.
async fn pass(path: &Path, config: &Config, own: &str, login: &Superuser) -> Result<(), String> {
    let Some(state) = look(config).await else {
        eprintln!("warden gate: nothing can be found out, so not waiting");
        return Ok(());
    };
    if let Some(why) = nothing_to_wait_for(&state, own) {
        eprintln!("warden gate: {why}: nothing to wait for");
        return Ok(());
    }
    if let Some(why) = fenced_by_a_person(&state.fences, own) {
        if config.fencing.mode == FencingMode::Enforce {
            return Err(why);
        }
        eprintln!("warden gate: would not let {own} be promoted: {why} (fencing.mode is observe)");
    }
    let others = state.members.iter().filter(|member| member.name != own);
    if config.fencing.mode == FencingMode::Observe {
        let glances = others.map(|member| glance(member, &state, login));
        futures_util::future::join_all(glances).await;
        return Ok(());
    }
    let waits = others.map(|member| wait_for(member, &state, config, own, login));
    let verdicts = futures_util::future::join_all(waits).await;
    for entry in verdicts.iter().flatten().flatten() {
        if let Err(error) = leave_to_write_down(path, entry) {
            eprintln!("warden gate: the audit trail cannot be written: {error}");
        }
    }
    verdicts.into_iter().collect::<Result<Vec<_>, _>>().map(drop)
}

/// Has an entry added to the audit trail by a process that outlives this one.
fn leave_to_write_down(path: &Path, entry: &Entry) -> std::io::Result<()> {
    let entry = String::from_utf8_lossy(&entry.write()).into_owned();
    Command::new(std::env::current_exe()?)
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

/// Why nobody has to be waited for, if so.
fn nothing_to_wait_for(state: &State, own: &str) -> Option<String> {
    if state.cluster.pause == Some(true) {
        return Some("the cluster is in maintenance mode".to_owned());
    }
    // Whoever is not about to be promoted has nobody to stop: run by hand on a standby, this must not fence its leader.
    if state.leader.name.as_deref() != Some(own) {
        let holder = state.leader.name.as_deref().unwrap_or("nobody");
        return Some(format!("{own} does not hold the leader key ({holder} does)"));
    }
    None
}

/// Why the candidate itself must not take writes, if a person said so: it would be stopped as soon as it did.
fn fenced_by_a_person(fences: &[Fence], own: &str) -> Option<String> {
    let fence = fences.iter().find(|fence| fence.member == own && fence.rule == "operator")?;
    Some(format!("{own} was fenced by {} ({}); take it back with: warden unfence {own}", fence.by, fence.reason))
}

/// The cluster as the agent beside this node sees it. Where that does not answer, or has no linearizable read to show
/// (it may have no ZooKeeper session), as we do.
async fn look(config: &Config) -> Option<State> {
    let asked = async { status::ask(&client::plain()?, &agent(config)).await };
    let why = match timeout(AGENT, asked).await {
        Ok(Ok(state)) if state.zookeeper.connected && state.leader.verified => return Some(state),
        Ok(Ok(_)) => "knows nothing for certain",
        _ => "does not answer",
    };
    eprintln!("warden gate: the agent beside this node {why}; asking ZooKeeper");
    match status::see(config).await {
        // What is not verified may be long past.
        Ok(state) if state.leader.verified => Some(state),
        Ok(state) => {
            eprintln!("warden gate: {}", state.leader.why_unverified.as_deref().unwrap_or("it cannot be verified"));
            None
        }
        Err(failure) => {
            eprintln!("warden gate: {failure}");
            None
        }
    }
}

/// The agent beside this node; the gate runs in the node's container and not in the agent's.
fn agent(config: &Config) -> String {
    format!("http://{}", config.http.connect_address)
}

/// Whether a record proves that its member has taken no writes since the present key was created. One of an earlier
/// time proves nothing: whoever wrote it may have died before the server came back, and so could not remove it.
fn proves(fence: &Fence, leader: &Leader) -> bool {
    let (Some(_), Some(zxid), Some(czxid)) = (&fence.confirmed, fence.zxid, leader.czxid) else { return false };
    if zxid > czxid {
        return true;
    }
    let time = |text: &Option<String>| text.as_ref()?.parse::<Timestamp>().ok();
    let (Some(written), Some(created)) = (time(&fence.written), time(&leader.since)) else { return false };
    // Both by ZooKeeper's clock.
    let before = created.duration_since(written);
    fence.rule == "crashed" && !before.is_negative() && before.unsigned_abs() <= RELEASED
}

/// Where a member's server is to be asked; `None` where its fence is proved, or it has none.
fn place(member: &Member, state: &State) -> Option<Place> {
    let name = &member.name;
    let fence = state.fences.iter().find(|fence| fence.member == *name && proves(fence, &state.leader));
    if let Some(fence) = fence {
        eprintln!("warden gate: {name} is fenced ({}: {})", fence.rule, fence.reason);
        return None;
    }
    Some(Place::Tcp(member.host.clone()?, member.port?))
}

/// Says what would be waited for.
async fn glance(member: &Member, state: &State, login: &Superuser) {
    let Some(place) = place(member, state) else { return };
    let name = &member.name;
    let asking = stop_old_primary(&place, login, state.cluster.system_identifier.as_deref(), false);
    let would = match timeout(GLANCE, asking).await {
        Ok(Ok(_)) => return,
        Ok(Err(OldPrimary::Writable(why))) => format!("would stop {name}: {why}"),
        Ok(Err(OldPrimary::Stopping)) => format!("would wait for {name}: it is shutting down"),
        Ok(Err(OldPrimary::Silent)) | Err(_) => format!("would wait for {name}: it does not answer"),
    };
    eprintln!("warden gate: {would} (fencing.mode is observe)");
}

/// Waits until a member can take no writes any more; if it was stopped from here, that is an entry of the audit trail.
async fn wait_for(
    member: &Member,
    state: &State,
    config: &Config,
    own: &str,
    login: &Superuser,
) -> Result<Option<Entry>, String> {
    let Some(place) = place(member, state) else { return Ok(None) };
    let name = &member.name;
    let started = Instant::now();
    let mut said = String::new();
    let mut say = |why: String| {
        if said != why {
            eprintln!("warden gate: {name} {why}");
            said = why;
        }
    };
    loop {
        match stop_old_primary(&place, login, state.cluster.system_identifier.as_deref(), true).await {
            Ok((by, stopped_from_here)) => {
                if stopped_from_here || started.elapsed() > Duration::from_millis(100) {
                    eprintln!("warden gate: {name}: {by}, after {} ms", started.elapsed().as_millis());
                }
                return Ok(stopped_from_here.then(|| Entry {
                    rule: Some("gate".to_owned()),
                    outcome: format!("confirmed: {by}, after {} ms", started.elapsed().as_millis()),
                    facts: [("leader".to_owned(), own.to_owned())].into(),
                    ..Entry::new(
                        &config.name,
                        "fence",
                        name,
                        &format!("{own} is about to be promoted, and {name} took writes"),
                    )
                }));
            }
            Err(OldPrimary::Silent) if started.elapsed() >= UNREACHABLE => {
                eprintln!("warden gate: {name} cannot be reached for {} s: its lease is over", UNREACHABLE.as_secs());
                return Ok(None);
            }
            Err(OldPrimary::Stopping) if started.elapsed() >= UNREACHABLE => {
                eprintln!("warden gate: {name} has been shutting down for {} s", UNREACHABLE.as_secs());
                return Ok(None);
            }
            Err(OldPrimary::Silent) => say("does not answer: waiting until its lease is over".to_owned()),
            Err(OldPrimary::Stopping) => say("is shutting down: waiting until nobody listens".to_owned()),
            Err(OldPrimary::Writable(why)) => {
                if started.elapsed() >= UNREACHABLE * 2 {
                    return Err(format!("{name} may still take writes and could not be stopped: {why}"));
                }
                say(format!("may still take writes: {why}"));
            }
        }
        sleep(PAUSE.mul_f64(rand::random_range(0.75..1.25))).await;
        // Much may have happened meanwhile.
        let Some(now) = look(config).await else { continue };
        if let Some(why) = nothing_to_wait_for(&now, own) {
            // In maintenance mode it is a person's business; without the key there is nothing to be promoted for.
            return if now.cluster.pause == Some(true) { Ok(None) } else { Err(why) };
        }
        if now.fences.iter().any(|fence| fence.member == *name && proves(fence, &now.leader)) {
            eprintln!("warden gate: {name} is fenced, after {} ms", started.elapsed().as_millis());
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leader(czxid: i64) -> Leader {
        Leader {
            name: Some("b".to_owned()),
            verified: true,
            why_unverified: None,
            since: Some("2026-11-25T12:00:00.000Z".to_owned()),
            czxid: Some(czxid),
            mzxid: Some(czxid),
            session: None,
            age_ms: Some(0),
            seen_at: None,
        }
    }

    fn fence(rule: &str, zxid: i64, written: &str, confirmed: bool) -> Fence {
        Fence {
            member: "a".to_owned(),
            rule: rule.to_owned(),
            reason: String::new(),
            by: "a".to_owned(),
            ordered: None,
            // By another machine's clock, which proves nothing.
            confirmed: confirmed.then(|| "2030-01-01T00:00:00.000Z".to_owned()),
            written: Some(format!("2026-11-25T{written}Z")),
            zxid: Some(zxid),
        }
    }

    #[test]
    fn a_candidate_that_a_person_has_fenced_is_not_promoted() {
        let fences = [fence("superseded", 12, "12:00:00.100", true), fence("operator", 9, "11:59:59.900", false)];
        let why = fenced_by_a_person(&fences, "a").unwrap_or_default();
        assert!(why.contains("warden unfence a"), "{why}");
        assert_eq!(fenced_by_a_person(&fences, "b"), None);
        assert_eq!(fenced_by_a_person(&fences[..1], "a"), None, "what a rule did is over when it leads");
    }

    #[test]
    fn a_record_proves_only_what_has_been_so_since_the_present_key_was_created() {
        for (fence, expected) in [
            (fence("superseded", 12, "12:00:00.100", true), true),
            (fence("superseded", 12, "12:00:00.100", false), false),
            // It was fenced once upon a time, and may have been started since.
            (fence("superseded", 9, "11:59:59.900", true), false),
            (fence("operator", 9, "11:59:59.900", true), false),
            // The key was released with it.
            (fence("crashed", 9, "11:59:59.900", true), true),
            (fence("crashed", 9, "11:59:49.000", true), false),
            (fence("crashed", 9, "11:59:59.900", false), false),
        ] {
            assert_eq!(proves(&fence, &leader(10)), expected, "{fence:?}");
        }
        let no_zxid = Fence { zxid: None, ..fence("superseded", 12, "12:00:00.100", true) };
        assert!(!proves(&no_zxid, &leader(10)), "as an agent of an older version tells it");
    }
}
