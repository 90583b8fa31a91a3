//! Keeps HAProxy's configuration file, and has HAProxy apply each change: at its runtime socket if possible, otherwise
//! by a reload. If HAProxy does not accept the change, the agent restores the previous file.
//!
//! The existing file must carry Warden's seal. The agent renders the new one, checks it by `haproxy -c` if that is
//! installed, and puts it in place of the old one. It then applies the difference at the runtime socket
//! ([`super::runtime`]). If HAProxy cannot do all of that, it reloads: the *new* worker has to answer at the runtime
//! socket with the new servers.

use super::actor::{HaproxyFileActor, named_servers};
use super::durable::{beside, remove, replace, write};
use super::lines::{self};
use super::naming::Naming;
use super::reload::check;
use super::runtime;
use super::slots::Slots;
use super::template::{
    Found, SealedFile, TEMPLATE, WAIT_SCRIPT, presumed_servers, recognize, render, sealed, server_states,
};
use crate::client::haproxy::ask;
use crate::client::haproxy::command::ANSWER_LIMIT;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;
use warden_core::event::{Event, HaproxyEvent, Report};
use warden_core::fact::Reading;
use warden_core::haproxy::ServerId;
use warden_core::haproxy::file::{Backends, MemberAddress, RenderReport, Rendered};
use warden_core::plan::Step;

/// The agent reads the file at this interval. It also deletes servers of departed members, and moves servers whose
/// names resolve to another address.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(3);

/// The same while the file is missing: a container that starts may put its first one in place.
const MISSING_FILE_CHECK_INTERVAL: Duration = Duration::from_millis(500);
const _: () = assert!(MISSING_FILE_CHECK_INTERVAL.as_millis() < FILE_CHECK_INTERVAL.as_millis());

/// The suffix of the previous file. The agent keeps it while HAProxy applies a change.
const PREVIOUS: &str = "before";

/// Reports the content of the file, and carries out steps until the loop ends.
pub async fn run(steps: &mut mpsc::Receiver<Step<Backends>>, actor: &HaproxyFileActor) -> anyhow::Result<()> {
    if actor.enforce
        && let Err(why) = actor.restore_previous().await
    {
        let kept = beside(&actor.file.config_file, PREVIOUS);
        tracing::error!(
            event = "haproxy_file_restore_failed",
            why,
            kept = %kept.display(),
            "the previous agent died during a change of HAProxy's configuration; this agent cannot restore the kept \
             file: let Warden's user read and write both files and restart the agent, or remove the kept file"
        );
    }
    // The agent compares file and HAProxy only until they are the same, or until it has applied a change. An operator
    // may set addresses at the socket later.
    let mut compared = false;
    let mut exists = actor.report_file(&mut compared).await?;
    let mut mismatches = runtime::Mismatches::default();
    loop {
        let pause = if exists { FILE_CHECK_INTERVAL } else { MISSING_FILE_CHECK_INTERVAL };
        let Step { action: backends, reason } = match timeout(pause, steps.recv()).await {
            Ok(Some(step)) => step,
            Ok(None) => return Ok(()),
            Err(_) => {
                if actor.enforce {
                    actor.clean_up(&mut mismatches).await;
                }
                // An operator may have edited the file.
                exists = actor.report_file(&mut compared).await?;
                continue;
            }
        };
        let asked = Instant::now();
        let written = actor.write(&backends).await;
        compared |= written.is_ok();
        let report = actor.log(&backends, &reason, asked.elapsed(), written);
        exists = actor.report_file(&mut compared).await?;
        actor.events.send(actor.events.clock.now(), Event::Report(Report::Rendered(report))).await?;
        // The servers are down until the agent or a check raises them.
        actor.probes.haproxy.notify_one();
    }
}

impl HaproxyFileActor {
    /// Logs the outcome of [`Self::write`].
    fn log(
        &self,
        backends: &Backends,
        reason: &str,
        took: Duration,
        written: Result<Option<String>, String>,
    ) -> RenderReport {
        let path = self.file.config_file.display();
        let members = backends.places.iter().map(|place| place.member.as_str()).collect::<Vec<_>>().join(", ");
        let took_ms = took.as_millis();
        match written {
            Ok(Some(why)) => {
                tracing::info!(
                    event = "haproxy_reloaded",
                    %path,
                    members,
                    reason,
                    why,
                    took_ms,
                    "HAProxy configuration file written, HAProxy reloaded"
                );
                RenderReport::Done { reloaded: true }
            }
            Ok(None) => {
                tracing::info!(
                    event = "haproxy_file_written",
                    %path,
                    members,
                    reason,
                    took_ms,
                    "HAProxy configuration file written, change applied without a reload"
                );
                RenderReport::Done { reloaded: false }
            }
            Err(why) => {
                tracing::error!(
                    event = "haproxy_file_failed",
                    %path,
                    members,
                    reason,
                    why,
                    "the agent could not change HAProxy's configuration"
                );
                RenderReport::Failed(why)
            }
        }
    }

    /// Reports the content of the file to the loop, and returns whether the file exists.
    ///
    /// A file is not current if HAProxy does not serve it: the previous agent may have died before the reload. The
    /// agent then writes it again.
    async fn report_file(&self, compared: &mut bool) -> anyhow::Result<bool> {
        let reading = match self.read_file().await {
            Ok(None) => Reading::Absent,
            Ok(Some(SealedFile { backends, left, naming, rendered, .. })) => {
                let same = self.render(&backends, &naming).await.is_ok_and(|now| now == rendered)
                    && self.has_wait_script().await;
                let wanted = named_servers(&rendered);
                let serves = if same && !*compared { self.serves(&wanted).await } else { None };
                *compared |= serves == Some(true);
                let current = same && serves != Some(false);
                Reading::Present(Rendered { backends, left, current })
            }
            Err(why) => Reading::Unreadable(why),
        };
        let exists = reading != Reading::Absent;
        self.events.send(self.events.clock.now(), Event::Haproxy(HaproxyEvent::File(reading))).await?;
        Ok(exists)
    }

    /// Reads the file. The error says why the agent must not change it.
    pub(super) async fn read_file(&self) -> Result<Option<SealedFile>, String> {
        let path = &self.file.config_file;
        let text = match tokio::fs::read_to_string(path).await {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}; let Warden's user read and write it", path.display())),
        };
        match recognize(&text) {
            Found::Own(file) => Ok(Some(file)),
            Found::Foreign(why) => {
                Err(format!("{}: {why}; move that file away, and the agent writes a new one", path.display()))
            }
        }
    }

    /// Renders the configured template.
    pub(super) async fn render(&self, backends: &Backends, naming: &Naming) -> Result<String, String> {
        let template = match &self.file.template {
            None => TEMPLATE.to_owned(),
            Some(path) => {
                tokio::fs::read_to_string(path).await.map_err(|error| format!("{}: {error}", path.display()))?
            }
        };
        render(&template, &self.haproxy, &self.file, backends, naming)
    }

    /// The prepared servers. There are none if HAProxy adds servers at runtime, or as long as no member joins.
    async fn slots(&self, before: Option<&SealedFile>, backends: &Backends) -> Slots {
        let Some(before) = before else { return Slots::default() };
        let had = &before.naming.slots;
        let slots = had.of(&backends.places, self.file.spare_servers);
        let is_new = |place: &MemberAddress| before.backends.places.iter().all(|known| known.member != place.member);
        if slots.0.len() == had.0.len() {
            return slots;
        }
        let prepares = !had.is_empty() || (self.file.spare_servers > 0 && backends.places.iter().any(is_new));
        if prepares && self.adds_servers().await == Some(false) { slots } else { Slots::default() }
    }

    /// Whether HAProxy adds servers at runtime, by its `help`. `None` without an answer.
    pub(super) async fn adds_servers(&self) -> Option<bool> {
        let help = ask(&self.haproxy.socket, "help", ANSWER_LIMIT).await.ok()?;
        Some(help.lines().any(|line| line.trim_start().starts_with(self.add_server_help)))
    }

    /// Whether `wait.lua` exists and is this version's.
    async fn has_wait_script(&self) -> bool {
        tokio::fs::read_to_string(self.file.wait_script()).await.is_ok_and(|text| text == WAIT_SCRIPT)
    }

    /// Writes the file, and has HAProxy apply it. Returns why HAProxy had to reload, if it had to.
    ///
    /// The error says what failed. File and HAProxy are then as before, or the error says that they are not.
    pub(super) async fn write(&self, backends: &Backends) -> Result<Option<String>, String> {
        // An operator may have edited the file since the last read.
        let before = self.read_file().await?;
        let slots = self.slots(before.as_ref(), backends).await;
        let known = before.as_ref().map(|before| (&before.backends, &before.naming));
        let naming = Naming::after(known, backends, slots);
        let rendered = self.render(backends, &naming).await?;
        let left = before.as_ref().map(|before| runtime::left_servers(before, &rendered)).unwrap_or_default();
        // A departed member's server keeps what an operator has set, for its return.
        let mut disabled = match &before {
            Some(before) => self.disabled_by_operator(before).await,
            None => BTreeMap::new(),
        };
        let named = named_servers(&rendered);
        let is_named = |id: &ServerId| named.iter().any(|server| server.id == *id);
        let known = before.iter().flat_map(|before| before.disabled.clone()).chain(disabled.clone());
        let of_departed = known.filter(|(id, _)| !is_named(id)).collect();
        let new = SealedFile { backends: backends.clone(), left, disabled: of_departed, naming, rendered };
        let text = sealed(&new)?;
        let path = &self.file.config_file;
        // `haproxy -c` needs the script that the file names. HAProxy reads it when it starts.
        let has_wait_script = self.has_wait_script().await;
        if !has_wait_script {
            write(&self.file.wait_script(), WAIT_SCRIPT).await?;
        }
        let prepared_file = beside(path, "new");
        let prepared = async {
            write(&prepared_file, &text).await?;
            check(self.checker, &prepared_file).await?;
            if let Some(before) = &before {
                write(&beside(path, PREVIOUS), &sealed(before)?).await?;
            }
            disabled.extend(before.iter().flat_map(|before| before.disabled.clone()));
            write(&self.file.state_file(), &self.states(&new, &disabled)?).await
        };
        if let Err(why) = prepared.await {
            drop(tokio::fs::remove_file(&prepared_file).await);
            drop(tokio::fs::remove_file(&beside(path, PREVIOUS)).await);
            return Err(why);
        }
        replace(&prepared_file, path).await?;
        let done = self.apply(before.as_ref(), &new, has_wait_script).await;
        // HAProxy serves the new file, so the previous one is obsolete.
        if done.is_ok() {
            remove(&beside(path, PREVIOUS)).await?;
        }
        // A reload keeps the servers that an operator has disabled. A later restart of HAProxy enables them.
        write(
            &self.file.state_file(),
            &self.states(&self.read_file().await.ok().flatten().unwrap_or(new), &BTreeMap::new())?,
        )
        .await?;
        done
    }

    /// Has HAProxy apply the file, at its runtime socket or by a reload. Returns why it had to reload. After an error
    /// the previous file is in place, if the error does not say otherwise.
    async fn apply(
        &self,
        before: Option<&SealedFile>,
        new: &SealedFile,
        has_wait_script: bool,
    ) -> Result<Option<String>, String> {
        let path = &self.file.config_file;
        let why_reload = match before {
            Some(_) if !has_wait_script => "wait.lua has changed".to_owned(),
            Some(before) => match self.apply_at_runtime(before, new).await {
                Ok(()) => return Ok(None),
                Err(why) if self.is_departure(before, new).await => {
                    tracing::warn!(
                        event = "haproxy_departure_incomplete",
                        why,
                        "HAProxy keeps the server of a departed member until its next reload: a departure is no reason \
                         for one"
                    );
                    return Ok(None);
                }
                Err(why) => why,
            },
            None => "there was no file".to_owned(),
        };
        // The new worker has the servers in the file, and no others.
        let fresh = SealedFile { left: BTreeSet::new(), ..new.clone() };
        write(path, &sealed(&fresh)?).await?;
        let worker = self.worker().await;
        let Err(why) = self.reload(&named_servers(&fresh.rendered)).await else { return Ok(Some(why_reload)) };
        let Some(before) = before else {
            return Err(format!("{why}; there was no previous file to restore"));
        };
        // A worker that was not replaced serves the previous file. It may still have servers that the file does not
        // name.
        let same_worker = worker.is_ok() && self.worker().await == worker;
        let mut left = if same_worker { runtime::left_servers(new, &before.rendered) } else { BTreeSet::new() };
        self.retain_existing(&mut left).await;
        let before = SealedFile { left, ..before.clone() };
        let restored = async {
            write(&self.file.state_file(), &self.states(&before, &self.disabled_by_operator(new).await)?).await?;
            write(path, &sealed(&before)?).await?;
            remove(&beside(path, PREVIOUS)).await?;
            if same_worker {
                self.revert_at_runtime(new, &before).await;
                return Ok(());
            }
            self.reload(&named_servers(&before.rendered)).await
        };
        match restored.await {
            Ok(()) if same_worker => {
                Err(format!("{why}; the agent restored the previous file, which HAProxy still serves"))
            }
            Ok(()) => Err(format!("{why}; the agent restored the previous file, and HAProxy reloaded it")),
            Err(again) => Err(format!("{why}; the agent could NOT restore the previous file: {again}")),
        }
    }

    /// Whether members have left since the previous file, and nothing else has changed.
    async fn is_departure(&self, before: &SealedFile, new: &SealedFile) -> bool {
        let (were, are) = (&before.backends, &new.backends);
        let left = are.places.len() < were.places.len() && are.places.iter().all(|place| were.places.contains(place));
        left && are.max_connections == were.max_connections
            && self.render(were, &before.naming).await.is_ok_and(|same| same == before.rendered)
    }

    /// Restores the previous file if an agent died while HAProxy applied a change: HAProxy may not start with the new
    /// file. The loop then orders the change again.
    async fn restore_previous(&self) -> Result<(), String> {
        let (path, kept) = (&self.file.config_file, beside(&self.file.config_file, PREVIOUS));
        let Ok(before) = tokio::fs::read_to_string(&kept).await else { return Ok(()) };
        let new = match tokio::fs::read_to_string(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("{}: {error}", path.display()));
            }
            read => recognize(&read.unwrap_or_default()),
        };
        // An operator who edited the file since, or moved it away, did so on purpose.
        let (Found::Own(before), Found::Own(new)) = (recognize(&before), new) else { return remove(&kept).await };
        if before.rendered != new.rendered {
            let mut left = runtime::left_servers(&new, &before.rendered);
            self.retain_existing(&mut left).await;
            let before = SealedFile { left, ..before };
            write(&self.file.state_file(), &self.states(&before, &BTreeMap::new())?).await?;
            write(path, &sealed(&before)?).await?;
            tracing::warn!(
                event = "haproxy_file_restored",
                path = %path.display(),
                "the previous agent died during a change of HAProxy's configuration; this agent restored the kept file"
            );
            self.revert_at_runtime(&new, &before).await;
        }
        remove(&kept).await
    }

    /// Reverts the part of a change that HAProxy has already applied at runtime.
    async fn revert_at_runtime(&self, new: &SealedFile, before: &SealedFile) {
        if let Err(why) = self.apply_at_runtime(new, before).await {
            tracing::debug!(why, "the agent could not revert HAProxy's servers at runtime");
        }
    }

    /// HAProxy's state file for its next start. `disabled` are the servers that start out of service.
    fn states(&self, file: &SealedFile, disabled: &BTreeMap<ServerId, u32>) -> Result<String, String> {
        let servers = lines::servers(&file.rendered)
            .or_else(|_| presumed_servers(&self.haproxy, &file.backends, &file.naming))?;
        server_states(&self.haproxy, &servers, disabled)
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
pub(super) mod tests;
