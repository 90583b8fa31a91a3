//! Writes HAProxy's configuration anew, has it reloaded, and looks whether it took it; otherwise everything is put back.
//!
//! In this order: what stands there has to be ours; render; check, where a `haproxy` is at hand; the new file beside the
//! old one, and then in its place; reload; the *new* worker has to answer at the runtime socket, with the new servers.

use crate::config::{HaproxyConfig, RenderConfig};
use crate::haproxy::{addresses, ask, first_line};
use crate::layout::{Found, TEMPLATE, WAIT_SCRIPT, lacks, recognize, render, sealed, states};
use crate::watch::Events;
use crate::watch::members::Probes;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use warden_core::event::Event;
use warden_core::fact::Reading;
use warden_core::haproxy::file::{Layout, Place, RenderReport, Rendered};
use warden_core::plan::{Action, Step};

/// How long HAProxy may take to answer at one of its sockets.
const ANSWER: Duration = Duration::from_secs(1);

/// How long a reload may take until the new worker serves: it starts within some 50 ms, and resolves names first.
const RELOAD: Duration = Duration::from_secs(10);

/// How long the master may take until it listens again: it starts itself anew for each reload, and right after one
/// nobody is there.
const LISTENS_AGAIN: Duration = Duration::from_secs(3);

/// Between two looks whether it does.
const LOOK: Duration = Duration::from_millis(20);

/// A worker that does not serve what is in the file may be the last one before a reload for so long.
const RELOADING: Duration = Duration::from_millis(500);

/// The file is looked at this often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// A file that is not there may be about to come: a container that starts puts its first one in place.
const LOOK_FOR: Duration = Duration::from_millis(500);

/// How long `haproxy -c` may take.
const CHECK: Duration = Duration::from_secs(10);

/// What the actor needs.
pub struct Layouts {
    /// The local HAProxy.
    pub haproxy: HaproxyConfig,
    /// Its configuration file.
    pub file: RenderConfig,
    /// The program that checks a configuration, where there is one.
    pub checker: &'static str,
    /// Asks HAProxy out of turn.
    pub probes: Probes,
    /// For what came of it.
    pub events: Events,
}

/// Tells what the file is made of, and carries out steps until the loop is gone.
pub async fn run(steps: &mut mpsc::Receiver<Step>, layouts: &Layouts) -> anyhow::Result<()> {
    // Once it served what is written, or was told to, HAProxy is believed: whoever sets an address by hand later, knows
    // why.
    let mut compared = false;
    let mut is_there = layouts.tell_what_there_is(&mut compared).await?;
    loop {
        let pause = if is_there { LOOK_AGAIN } else { LOOK_FOR };
        let Step { action, reason } = match timeout(pause, steps.recv()).await {
            Ok(Some(step)) => step,
            Ok(None) => return Ok(()),
            Err(_) => {
                // Somebody may have edited it meanwhile.
                is_there = layouts.tell_what_there_is(&mut compared).await?;
                continue;
            }
        };
        let Action::Render(layout) = action else {
            tracing::error!(?action, "this actor does not do such things");
            continue;
        };
        let path = layouts.file.config_file.display();
        let members = layout.iter().map(|place| place.member.as_str()).collect::<Vec<_>>().join(", ");
        let asked = Instant::now();
        compared = true;
        let report = match layouts.write(&layout).await {
            Ok(()) => {
                let took_ms = asked.elapsed().as_millis();
                tracing::info!(%path, members, reason, took_ms, "HAProxy's configuration written anew, and reloaded");
                RenderReport::Done
            }
            Err(why) => {
                tracing::error!(%path, members, reason, why, "HAProxy's configuration could not be written anew");
                RenderReport::Failed(why)
            }
        };
        is_there = layouts.tell_what_there_is(&mut compared).await?;
        layouts.events.send(layouts.events.clock.now(), Event::Rendered(report)).await?;
        // Its servers are down until somebody raises them.
        layouts.probes.haproxy.notify_one();
    }
}

impl Layouts {
    /// A file that was put in place by an agent that died before HAProxy had reloaded it is not what HAProxy serves: it
    /// is not current then, and written once more.
    ///
    /// Returns whether there is one.
    async fn tell_what_there_is(&self, compared: &mut bool) -> anyhow::Result<bool> {
        let reading = match self.there_is().await {
            Ok(None) => Reading::Absent,
            Ok(Some((layout, rendered))) => {
                let same = self.render(&layout).await.is_ok_and(|now| now == rendered) && self.has_wait_script().await;
                let serves = if same && !*compared { self.serves(&layout).await } else { None };
                *compared |= serves == Some(true);
                let current = same && serves != Some(false);
                Reading::Present(Rendered { layout, current })
            }
            Err(why) => Reading::Unreadable(why),
        };
        let is_there = reading != Reading::Absent;
        self.events.send(self.events.clock.now(), Event::Layout(reading)).await?;
        Ok(is_there)
    }

    /// The members that the file is made of, and what was rendered; the error says why it is not ours.
    async fn there_is(&self) -> Result<Option<(Layout, String)>, String> {
        let path = &self.file.config_file;
        let text = match tokio::fs::read_to_string(path).await {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("{}: {error}; let Warden's user read and write it", path.display())),
        };
        match recognize(&text) {
            Found::Ours(layout, rendered) => Ok(Some((layout, rendered))),
            Found::Foreign(why) => Err(format!("{}: {why}; move that file away to have it written", path.display())),
        }
    }

    async fn render(&self, layout: &[Place]) -> Result<String, String> {
        let template = match &self.file.template {
            None => TEMPLATE.to_owned(),
            Some(path) => {
                tokio::fs::read_to_string(path).await.map_err(|error| format!("{}: {error}", path.display()))?
            }
        };
        render(&template, &self.haproxy, &self.file, layout)
    }

    /// Whether what the template has connections wait by is there, and ours.
    async fn has_wait_script(&self) -> bool {
        tokio::fs::read_to_string(self.file.wait_script()).await.is_ok_and(|text| text == WAIT_SCRIPT)
    }

    /// All of it; the error says what went wrong. Then file and HAProxy are as they were, or it says that, too.
    async fn write(&self, layout: &[Place]) -> Result<(), String> {
        // Once more, right before it is overwritten.
        let before = self.there_is().await?;
        let text = sealed(layout, &self.render(layout).await?)?;
        let path = &self.file.config_file;
        // The check of what names it needs it.
        if !self.has_wait_script().await {
            put(&self.file.wait_script(), WAIT_SCRIPT).await?;
        }
        let new = beside(path, "new");
        put(&new, &text).await?;
        if let Err(why) = check(self.checker, &new).await {
            drop(tokio::fs::remove_file(&new).await);
            return Err(why);
        }
        put(&self.file.state_file(), &states(&self.haproxy, layout)?).await?;
        in_place(&new, path).await?;
        let Err(why) = self.reload(layout).await else { return Ok(()) };
        let Some((layout, rendered)) = before else {
            return Err(format!("{why}; there was no file before to go back to"));
        };
        let back = async {
            put(&self.file.state_file(), &states(&self.haproxy, &layout)?).await?;
            put(path, &sealed(&layout, &rendered)?).await?;
            self.reload(&layout).await
        };
        match back.await {
            Ok(()) => Err(format!("{why}; the file from before is back, and HAProxy has reloaded it")),
            Err(again) => Err(format!("{why}; going back to the file from before FAILED, too: {again}")),
        }
    }

    /// Has the master reload its file, and waits until a new worker serves these members.
    async fn reload(&self, layout: &[Place]) -> Result<(), String> {
        let master = &self.file.master_socket;
        let failed = self.ask_master("show proc").await.ok().and_then(|answer| failed_reloads(&answer));
        let old = self.worker().await;
        match self.ask_master("reload").await {
            Ok(_) => {}
            // It has gone to start itself anew; whether it has, the new worker tells.
            Err(error) if broke_off(&error) => tracing::debug!(%error, "HAProxy's master, asked for a reload"),
            Err(error) => {
                return Err(format!("HAProxy's master does not take a reload: {}: {error}", master.display()));
            }
        }
        let started = Instant::now();
        let mut why = String::new();
        while started.elapsed() < RELOAD {
            sleep(LOOK).await;
            match self.worker().await {
                Ok(new) if old.as_ref().is_ok_and(|old| *old == new) => {
                    "the old worker still serves".clone_into(&mut why)
                }
                Err(error) => why = error,
                Ok(_) => match self.lacks(layout).await {
                    Ok(None) => return Ok(()),
                    Ok(Some(lack)) => why = lack,
                    Err(error) => why = error,
                },
            }
            if failed.is_some() && self.failed_reloads().await > failed {
                return Err("HAProxy does not take the new configuration; its log says why".to_owned());
            }
        }
        Err(format!("after {} s no new worker serves it: {why}", RELOAD.as_secs()))
    }

    /// The process that answers at the runtime socket, and when it started.
    async fn worker(&self) -> Result<(String, String), String> {
        let socket = self.haproxy.socket.display();
        let answer =
            ask(&self.haproxy.socket, "show info", ANSWER).await.map_err(|error| format!("{socket}: {error}"))?;
        let field = |name: &str| {
            let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            line.map(str::to_owned).ok_or_else(|| format!("{socket}: no {name} in: {}", first_line(&answer)))
        };
        Ok((field("Pid")?, field("Start_time_sec").unwrap_or_default()))
    }

    /// Whether HAProxy serves these members; `None` where it does not answer. One that does not may be between two
    /// workers, and is asked again.
    async fn serves(&self, layout: &[Place]) -> Option<bool> {
        if self.lacks(layout).await.ok()?.is_none() {
            return Some(true);
        }
        sleep(RELOADING).await;
        Some(self.lacks(layout).await.ok()?.is_none())
    }

    /// What of these members HAProxy does not serve, if anything.
    async fn lacks(&self, layout: &[Place]) -> Result<Option<String>, String> {
        for proxy in self.haproxy.proxies() {
            let answer = ask(&self.haproxy.socket, &format!("show servers state {proxy}"), ANSWER).await;
            let servers = addresses(&answer.map_err(|error| error.to_string())?)?;
            if let Some(lack) = lacks(layout, &servers)? {
                return Ok(Some(format!("{proxy} has {lack}")));
            }
        }
        Ok(None)
    }

    async fn failed_reloads(&self) -> Option<u32> {
        failed_reloads(&ask(&self.file.master_socket, "show proc", ANSWER).await.ok()?)
    }

    /// Asks the master, who may be starting himself anew: as long as nobody listens nothing was asked, and it is asked
    /// again.
    async fn ask_master(&self, question: &str) -> io::Result<String> {
        let started = Instant::now();
        loop {
            match ask(&self.file.master_socket, question, ANSWER).await {
                Err(error) if nobody_listens(&error) && started.elapsed() < LISTENS_AGAIN => sleep(LOOK).await,
                answered => return answered,
            }
        }
    }
}

fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

fn broke_off(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof)
}

/// How many reloads have failed since the last that did not, where the master says so (HAProxy 2.5 and newer).
fn failed_reloads(processes: &str) -> Option<u32> {
    let master = processes.lines().find(|line| line.split_whitespace().nth(1) == Some("master"))?;
    master.split("[failed:").nth(1)?.split(']').next()?.trim().parse().ok()
}

/// A file beside this one, hidden.
fn beside(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{what}"))
}

/// Writes a file whole: under a temporary name, onto the disk, and then in place.
async fn put(path: &Path, text: &str) -> Result<(), String> {
    let (path, text) = (path.to_owned(), text.to_owned());
    let shown = path.display().to_string();
    let written = spawn_blocking(move || {
        let new = beside(&path, "tmp");
        let outcome = (|| {
            let mut file = std::fs::File::create(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            sync_directory(&path)
        })();
        if outcome.is_err() {
            drop(std::fs::remove_file(&new));
        }
        outcome
    });
    written.await.map_err(|error| error.to_string())?.map_err(|error| format!("{shown} cannot be written: {error}"))
}

/// Puts `new` in the place of `path`, on the disk.
async fn in_place(new: &Path, path: &Path) -> Result<(), String> {
    let (new, path) = (new.to_owned(), path.to_owned());
    let shown = path.display().to_string();
    let moved = spawn_blocking(move || {
        std::fs::rename(&new, &path)?;
        sync_directory(&path)
    });
    moved.await.map_err(|error| error.to_string())?.map_err(|error| format!("{shown} cannot be replaced: {error}"))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| std::fs::File::open(directory)?.sync_all())
}

/// `haproxy -c`, where it is at hand.
async fn check(program: &str, path: &Path) -> Result<(), String> {
    let output = Command::new(program).arg("-c").arg("-f").arg(path).kill_on_drop(true).output();
    let output = match timeout(CHECK, output).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Ok(Err(error)) => return Err(format!("haproxy -c: {error}")),
        Err(_) => return Err(format!("haproxy -c has not ended within {} s", CHECK.as_secs())),
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let alerts: Vec<&str> = said.lines().filter(|line| line.contains("ALERT")).take(3).collect();
    Err(format!("haproxy -c refuses it: {}", alerts.join(" ")))
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
