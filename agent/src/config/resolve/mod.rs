//! Joins `warden.yml`, Patroni's file and the environment, adds the defaults, and refuses a configuration that cannot
//! work. Each section of `warden.yml` with rules of its own has a file here.

mod haproxy;
mod http;
mod logins;
mod node;
mod release;
mod zookeeper;

use super::file::WardenFile;
use super::log_filter::parse_filter;
use super::parse::{hostname, parse_mode};
use super::patroni::{Dcs, PatroniFile};
use super::{Config, ConfigError, FencingConfig, FencingMode, GateConfig, LogConfig, NudgeConfig};
use crate::secret::Secret;
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

// Patroni's defaults (`patroni/global_config.py`), in seconds. The agent uses them until it has read Patroni's dynamic
// configuration.
const DEFAULT_TTL: u64 = 30;
const DEFAULT_LOOP_WAIT: u64 = 10;
const DEFAULT_RETRY_TIMEOUT: u64 = 10;

const DEFAULT_STATE_DIR: &str = "/var/lib/warden";

const DEFAULT_LISTEN: &str = "0.0.0.0:8010";

/// Reads the file at `path` and every file that it names.
pub(super) fn load(path: &Path, env: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let (config, wrong_mode) = load_but_mode(path, env)?;
    wrong_mode.map_or(Ok(config), Err)
}

/// Reads the file at `path` like [`load`]. If only `fencing.mode` is wrong, it returns the mode `enforce` and the
/// error.
pub(super) fn load_but_mode(
    path: &Path,
    env: &BTreeMap<String, String>,
) -> Result<(Config, Option<ConfigError>), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
        file: Some(path.to_owned()),
        line: None,
        key: None,
        problem: format!("cannot be read: {error}"),
        remedy: "name the configuration file with --config, or create it".to_owned(),
    })?;
    let file: WardenFile = if text.trim().is_empty() {
        WardenFile::default()
    } else {
        serde_saphyr::from_str(&text).map_err(|error| ConfigError::yaml(path, &error))?
    };
    let (mut patroni, patroni_path) = match &file.patroni_config {
        Some(named) => {
            let read = PatroniFile::read(&named.value);
            // If the file is missing, the key that names it is wrong.
            if let Err(error) = &read
                && error.line.is_none()
                && error.key.is_none()
            {
                let remedy = "mount Patroni's configuration there, readable for this user, or correct the path";
                let problem = format!("{}: {}", named.value.display(), error.problem);
                return Err(ConfigError::new(path, "patroni_config", problem, remedy).at(named.defined.line()));
            }
            (read?, named.value.clone())
        }
        None => (PatroniFile::default(), path.to_owned()),
    };
    patroni.overlay(env)?;
    Resolver { path, patroni_path: &patroni_path, file, patroni, env }.resolve()
}

/// The three sources of a configuration.
struct Resolver<'a> {
    /// The path of `warden.yml`.
    path: &'a Path,
    /// The path of Patroni's file; `path` if there is none.
    patroni_path: &'a Path,
    file: WardenFile,
    patroni: PatroniFile,
    env: &'a BTreeMap<String, String>,
}

impl Resolver<'_> {
    fn resolve(mut self) -> Result<(Config, Option<ConfigError>), ConfigError> {
        self.check_timing()?;
        let node = self.node()?;
        let haproxy = self.haproxy()?;
        if node.is_none() && haproxy.is_none() {
            return Err(ConfigError::new(
                self.path,
                "node, haproxy",
                "both sections are missing, so the agent has no role",
                "add `node: {}` beside a Patroni node, or `haproxy: {socket: …}` beside an HAProxy",
            ));
        }
        let zookeeper = self.zookeeper()?;
        let scope = self.scope()?;
        let namespace = self.file.namespace.take().or(self.patroni.namespace.take());
        let namespace = self.namespace(namespace.as_deref().unwrap_or("service"))?;
        let name = match (&node, self.file.name.take()) {
            (Some(node), _) => node.member.clone(),
            (None, Some(name)) => self.plain_name("name", name.value, name.defined.line())?,
            (None, None) => hostname(),
        };
        let (http, release) = (self.http()?, self.release(node.as_ref())?);
        let (mode, wrong_mode) = match self.fencing_mode() {
            Ok(mode) => (mode, None),
            Err(error) => (FencingMode::Enforce, Some(error)),
        };
        let config = Config {
            scope,
            namespace,
            citus_group: self.patroni.citus.as_ref().and_then(|citus| citus.group),
            name,
            zookeeper,
            patroni: self.patroni_client()?,
            superuser: self.superuser()?,
            watch: self.watch()?,
            node,
            haproxy,
            fencing: FencingConfig { mode },
            release,
            gate: self.gate()?,
            state_dir: self.file.state_dir.take().unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIR)),
            nudge: NudgeConfig { enabled: self.file.nudge.take().and_then(|section| section.enabled).unwrap_or(false) },
            http,
            log: self.log()?,
        };
        Ok((config, wrong_mode))
    }

    /// Checks Patroni's own rule: the leader can give up before its key expires.
    fn check_timing(&self) -> Result<(), ConfigError> {
        let Dcs { ttl, loop_wait, retry_timeout } = &self.patroni.bootstrap.dcs;
        let or = |value: &Option<Spanned<u64>>, default| value.as_ref().map_or(default, |value| value.value);
        let (t, l, r) =
            (or(ttl, DEFAULT_TTL), or(loop_wait, DEFAULT_LOOP_WAIT), or(retry_timeout, DEFAULT_RETRY_TIMEOUT));
        let ttl_min = l.saturating_add(r.saturating_mul(2));
        if ttl_min <= t {
            return Ok(());
        }
        let line = [ttl, retry_timeout, loop_wait].into_iter().flatten().map(|value| value.defined.line()).next();
        Err(ConfigError::new(
            self.patroni_path,
            "bootstrap.dcs.ttl",
            format!(
                "loop_wait + 2 * retry_timeout = {l} + 2 * {r} is more than ttl = {t}: the leader key can expire \
                 before Patroni gives up"
            ),
            format!("raise ttl to at least {ttl_min}, or lower the others"),
        )
        .at(line.unwrap_or(0)))
    }

    fn scope(&mut self) -> Result<String, ConfigError> {
        let (scope, line) = match (self.file.scope.take(), self.patroni.scope.take()) {
            (Some(scope), _) => (scope.value, scope.defined.line()),
            (None, Some(scope)) => (scope, 0),
            (None, None) => {
                let remedy = "set it to Patroni's scope, or set patroni_config or PATRONI_SCOPE";
                return Err(ConfigError::new(self.path, "scope", "is missing", remedy));
            }
        };
        self.plain_name("scope", scope, line)
    }

    /// Returns the namespace as Patroni reads it: one slash at both ends and between two names.
    fn namespace(&self, text: &str) -> Result<String, ConfigError> {
        let names = text.split('/').filter(|name| !name.is_empty());
        let names =
            names.map(|name| self.plain_name("namespace", name.to_owned(), 0)).collect::<Result<Vec<_>, _>>()?;
        Ok(names.iter().fold("/".to_owned(), |path, name| format!("{path}{name}/")))
    }

    /// Checks a name that becomes one part of a znode's path.
    fn plain_name(&self, key: &str, name: String, line: u64) -> Result<String, ConfigError> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." || name.chars().any(char::is_control) {
            let problem = format!("{name:?} cannot be a part of a znode's path");
            return Err(ConfigError::new(self.path, key, problem, "use a name without slashes").at(line));
        }
        Ok(name)
    }

    /// Checks that a number lies in `range`; returns `default` if the file has none. The error's text is the number and
    /// then `problem`.
    fn within(
        &self,
        key: &'static str,
        number: Option<&Spanned<u64>>,
        default: u64,
        range: RangeInclusive<u64>,
        problem: &str,
        remedy: &'static str,
    ) -> Result<u64, ConfigError> {
        match number {
            Some(number) if !range.contains(&number.value) => {
                let problem = format!("{} {problem}", number.value);
                Err(ConfigError::new(self.path, key, problem, remedy).at(number.defined.line()))
            }
            number => Ok(number.map_or(default, |number| number.value)),
        }
    }

    fn gate(&mut self) -> Result<GateConfig, ConfigError> {
        let wait = self.file.gate.take().and_then(|section| section.wait_s);
        let problem = "s is out of range";
        let remedy = "use 6 to 300; the gate waits 5 s for a silent primary, until its lease is over";
        let wait_s = self.within("gate.wait_s", wait.as_ref(), 15, 6..=300, problem, remedy)?;
        Ok(GateConfig { wait_s })
    }

    /// Returns the mode from the environment, else from the file. With the variable, the operator sets a whole stack to
    /// `observe` and back, and edits no file.
    fn fencing_mode(&mut self) -> Result<FencingMode, ConfigError> {
        let ours = self.file.fencing.take().and_then(|section| section.mode);
        let modes = "set it to enforce, observe or off";
        match self.env.get("WARDEN_FENCING_MODE").filter(|text| !text.is_empty()) {
            Some(text) => parse_mode(text).ok_or_else(|| {
                let remedy = format!("{modes}, or unset it to use fencing.mode");
                ConfigError::env("WARDEN_FENCING_MODE", format!("{text:?} is not a mode"), remedy)
            }),
            None => {
                let Some(ours) = ours else { return Ok(FencingMode::default()) };
                let (text, line) = (ours.value, ours.defined.line());
                parse_mode(&text).ok_or_else(|| {
                    let problem = format!("{text:?} is not a mode");
                    ConfigError::new(self.path, "fencing.mode", problem, modes).at(line)
                })
            }
        }
    }

    fn log(&mut self) -> Result<LogConfig, ConfigError> {
        let section = self.file.log.take().unwrap_or_default();
        let (level, line) = section.level.map_or(("info".to_owned(), 0), |level| (level.value, level.defined.line()));
        parse_filter(&level).map_err(|problem| {
            let remedy = "use error, warn, info, debug or trace, or a filter like warden=debug,info";
            ConfigError::new(self.path, "log.level", problem, remedy).at(line)
        })?;
        Ok(LogConfig { format: section.format.unwrap_or_default(), level })
    }

    /// Reads a secret from a file, without the line break at its end.
    fn secret(&self, key: &str, named: &Spanned<PathBuf>) -> Result<Secret, ConfigError> {
        let problem = |problem: String| {
            let remedy = "write the secret into that file, and make it readable for this user";
            ConfigError::new(self.path, key, format!("{}: {problem}", named.value.display()), remedy)
                .at(named.defined.line())
        };
        let text = std::fs::read_to_string(&named.value).map_err(|error| problem(error.to_string()))?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() { Err(problem("is empty".to_owned())) } else { Ok(Secret::new(text)) }
    }
}
