//! Puts the three sources together, fills in defaults, and refuses what cannot work.

use super::file::{Asynchronous, Hosts, HttpSection, NodeSection, PatroniSection, ReleaseSection, WardenFile};
use super::patroni::{Dcs, Login, PatroniFile};
use super::{
    Config, ConfigError, FencingConfig, FencingMode, GateConfig, HaproxyConfig, HttpConfig, LogConfig, NodeConfig,
    NudgeConfig, PatroniConfig, ReleaseConfig, RenderConfig, SslMode, Superuser, ZooKeeperConfig,
};
use crate::secret::Secret;
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Patroni's defaults (`patroni/global_config.py`), used until its dynamic configuration has been read.
const DEFAULT_TTL: u64 = 30;
const DEFAULT_LOOP_WAIT: u64 = 10;
const DEFAULT_RETRY_TIMEOUT: u64 = 10;

/// Where the agent keeps what a restart of it must not forget.
const DEFAULT_STATE_DIR: &str = "/var/lib/warden";

const DEFAULT_LISTEN: &str = "0.0.0.0:8010";

/// Reads `path` and everything it names.
pub(super) fn load(path: &Path, env: &BTreeMap<String, String>) -> Result<Config, ConfigError> {
    let (config, wrong_mode) = load_but_mode(path, env)?;
    wrong_mode.map_or(Ok(config), Err)
}

/// The same; but where only the mode of fencing is wrong, it is `enforce`, and the error comes beside it.
pub(super) fn load_but_mode(
    path: &Path,
    env: &BTreeMap<String, String>,
) -> Result<(Config, Option<ConfigError>), ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
        file: Some(path.to_owned()),
        line: None,
        key: None,
        problem: format!("cannot be read: {error}"),
        remedy: "name the configuration with --config, or put it there".to_owned(),
    })?;
    let file: WardenFile = if text.trim().is_empty() {
        WardenFile::default()
    } else {
        serde_saphyr::from_str(&text).map_err(|error| ConfigError::yaml(path, &error))?
    };
    let (mut patroni, patroni_path) = match &file.patroni_config {
        Some(named) => {
            let read = PatroniFile::read(&named.value);
            // A file that is not there is the mistake of the key that names it.
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

struct Resolver<'a> {
    path: &'a Path,
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
                "neither section is there, so there is nothing to stand beside",
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

    /// Patroni's own rule: the leader has to be able to give up before its key expires.
    fn check_timing(&self) -> Result<(), ConfigError> {
        let Dcs { ttl, loop_wait, retry_timeout } = &self.patroni.bootstrap.dcs;
        let or = |value: &Option<Spanned<u64>>, default| value.as_ref().map_or(default, |value| value.value);
        let (t, l, r) =
            (or(ttl, DEFAULT_TTL), or(loop_wait, DEFAULT_LOOP_WAIT), or(retry_timeout, DEFAULT_RETRY_TIMEOUT));
        if l.saturating_add(r.saturating_mul(2)) <= t {
            return Ok(());
        }
        let line = [ttl, retry_timeout, loop_wait].into_iter().flatten().map(|value| value.defined.line()).next();
        Err(ConfigError::new(
            self.patroni_path,
            "bootstrap.dcs.ttl",
            format!("loop_wait + 2 * retry_timeout = {l} + 2 * {r} is more than ttl = {t}: the leader key can expire before Patroni gives up"),
            format!("raise ttl to at least {} or lower the others", l.saturating_add(r.saturating_mul(2))),
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

    /// With a slash at both ends and between two names, however many stand there: so Patroni reads it.
    fn namespace(&self, text: &str) -> Result<String, ConfigError> {
        let names = text.split('/').filter(|name| !name.is_empty());
        let names =
            names.map(|name| self.plain_name("namespace", name.to_owned(), 0)).collect::<Result<Vec<_>, _>>()?;
        Ok(names.iter().fold("/".to_owned(), |path, name| format!("{path}{name}/")))
    }

    /// A name that becomes a part of a znode's path.
    fn plain_name(&self, key: &str, name: String, line: u64) -> Result<String, ConfigError> {
        if name.is_empty() || name.contains('/') || name == "." || name == ".." || name.chars().any(char::is_control) {
            let problem = format!("{name:?} cannot be a part of a znode's path");
            return Err(ConfigError::new(self.path, key, problem, "use a name without slashes").at(line));
        }
        Ok(name)
    }

    fn zookeeper(&self) -> Result<ZooKeeperConfig, ConfigError> {
        let own = self.file.zookeeper.as_ref();
        let theirs = self.patroni.zookeeper.as_ref();
        if let Some(use_ssl) = theirs.and_then(|section| section.use_ssl.as_ref()).filter(|on| on.value) {
            return Err(ConfigError::new(
                self.patroni_path,
                "zookeeper.use_ssl",
                "Warden's ZooKeeper client does not speak TLS",
                "give Warden a port without TLS in zookeeper.hosts of its own file, and use_ssl: false, or a local TLS tunnel",
            )
            .at(use_ssl.defined.line()));
        }
        let (hosts, path) =
            match (own.and_then(|section| section.hosts.as_ref()), theirs.and_then(|section| section.hosts.as_ref())) {
                (Some(hosts), _) => (hosts, self.path),
                (None, Some(hosts)) => (hosts, self.patroni_path),
                (None, None) => {
                    let remedy =
                        "list ZooKeeper's servers as host:port, or set patroni_config or PATRONI_ZOOKEEPER_HOSTS";
                    return Err(ConfigError::new(self.path, "zookeeper.hosts", "is missing", remedy));
                }
            };
        let (hosts, chroot) = split_hosts(&hosts.value).map_err(|problem| {
            let remedy = "write each as host:port, a chroot at the end as /path";
            ConfigError::new(path, "zookeeper.hosts", problem, remedy).at(hosts.defined.line())
        })?;
        let auth_data = own
            .and_then(|section| section.auth_data.clone())
            .or_else(|| theirs.map(|section| section.auth_data.clone()))
            .unwrap_or_default();
        if let Some(scheme) = auth_data.keys().find(|scheme| *scheme != "digest") {
            return Err(ConfigError::new(
                self.path,
                "zookeeper.auth_data",
                format!("scheme {scheme:?} is not supported by Warden's ZooKeeper client"),
                "use digest",
            ));
        }
        let ttl = self.patroni.bootstrap.dcs.ttl.as_ref().map_or(DEFAULT_TTL, |ttl| ttl.value);
        let tick_time = own.and_then(|section| section.tick_time.as_ref());
        let remedy = "write the ensemble's tickTime, in milliseconds, as in zoo.cfg (usually 2000)";
        let problem = "ms is no tickTime";
        let tick_time = self.within("zookeeper.tick_time", tick_time, 2000, 100..=60_000, problem, remedy)?;
        Ok(ZooKeeperConfig { hosts, chroot, auth_data, session_timeout: Duration::from_secs(ttl), tick_time })
    }

    fn node(&mut self) -> Result<Option<NodeConfig>, ConfigError> {
        let Some(section) = self.file.node.take() else { return Ok(None) };
        let NodeSection { alive_lock, socket_dir, data_dir, host, port, api } = section;
        let (member, line) = match (self.file.name.take(), self.patroni.name.take()) {
            (Some(name), _) => (name.value, name.defined.line()),
            (None, Some(name)) => (name, 0),
            (None, None) => {
                let remedy = "set it to the member's name in Patroni, or set patroni_config or PATRONI_NAME";
                return Err(ConfigError::new(self.path, "name", "is missing", remedy));
            }
        };
        let member = self.plain_name("name", member, line)?;
        let restapi = &self.patroni.restapi;
        let api = match api.or_else(|| restapi.connect_address.clone()).or_else(|| restapi.listen.clone()) {
            Some(api) if api.contains("://") => api.trim_end_matches('/').to_owned(),
            Some(address) => {
                let scheme = if restapi.certfile.is_some() { "https" } else { "http" };
                // `listen` may be a wildcard, or several hosts.
                let place = split_address(&address).map_or(address, |(host, port)| format!("{host}:{port}"));
                format!("{scheme}://{place}")
            }
            None => {
                let remedy =
                    "set it to the address of Patroni's REST API, or restapi.connect_address in Patroni's file";
                return Err(ConfigError::new(self.path, "node.api", "is missing", remedy));
            }
        };
        let postgresql = &self.patroni.postgresql;
        let address = postgresql.connect_address.as_ref().or(postgresql.listen.as_ref());
        let (their_host, their_port) = match address {
            Some(address) => split_address(address).ok_or_else(|| {
                ConfigError::new(
                    self.patroni_path,
                    "postgresql.connect_address",
                    format!("{address:?} is not host:port"),
                    "write it like pg1:5432",
                )
            })?,
            None => ("localhost".to_owned(), 5432),
        };
        // Of several socket directories the first absolute one; a relative one is inside the data directory.
        let socket_dir = socket_dir.or_else(|| {
            let directories = postgresql.parameters.unix_socket_directories.as_ref()?;
            directories.split(',').map(str::trim).find(|directory| directory.starts_with('/')).map(PathBuf::from)
        });
        Ok(Some(NodeConfig {
            member,
            api,
            host: host.unwrap_or(their_host),
            port: port.unwrap_or(their_port),
            socket_dir,
            data_dir: data_dir.or_else(|| postgresql.data_dir.clone()),
            alive_lock,
        }))
    }

    fn release(&mut self, node: Option<&NodeConfig>) -> Result<ReleaseConfig, ConfigError> {
        let section = self.file.release.take().unwrap_or_default();
        let ReleaseSection { enabled, handover, asynchronous, after_ms, patroni_is_pid_1 } = section;
        let asynchronous = self.asynchronous(asynchronous)?;
        let (enabled, line) = enabled.map_or((false, 0), |enabled| (enabled.value, enabled.defined.line()));
        let (after_ms, after_line) = after_ms.map_or((50, 0), |after| (after.value, after.defined.line()));
        let patroni_is_pid_1 = patroni_is_pid_1.unwrap_or(false);
        if after_ms > 10_000 {
            let problem = format!("{after_ms} ms is longer than any failover should wait");
            return Err(ConfigError::new(self.path, "release.after_ms", problem, "use 10 to 1000").at(after_line));
        }
        let refuse = |problem, remedy| Err(ConfigError::new(self.path, "release.enabled", problem, remedy).at(line));
        if enabled && !patroni_is_pid_1 {
            return refuse(
                "a crashed leader's backends can outlive it, and Warden cannot see from here that none is left",
                "start Patroni as process 1 of its container and say so with release.patroni_is_pid_1: true, or leave release.enabled off",
            );
        }
        if enabled && node.is_some_and(|node| node.alive_lock.is_none() || node.socket_dir.is_none()) {
            return refuse(
                "without the alive lock and PostgreSQL's socket nothing proves that a leader is dead, so nothing would ever be released",
                "set node.alive_lock and share PostgreSQL's socket (node.socket_dir), or leave release.enabled off",
            );
        }
        Ok(ReleaseConfig { enabled, handover: handover.unwrap_or(false), asynchronous, after_ms, patroni_is_pid_1 })
    }

    /// `never`, or for how many seconds the key is left where no synchronous standby can take over.
    fn asynchronous(&self, given: Option<Spanned<Asynchronous>>) -> Result<Option<u64>, ConfigError> {
        let Some(given) = given else { return Ok(None) };
        match given.value {
            Asynchronous::Seconds(seconds) if seconds <= 3600 => Ok(Some(seconds)),
            Asynchronous::Word(word) if word == "never" => Ok(None),
            Asynchronous::Seconds(_) | Asynchronous::Word(_) => {
                let problem = "it is neither \"never\" nor a number of seconds up to 3600";
                let remedy = "write never, or for how many seconds the old node may come back before rows are given up";
                Err(ConfigError::new(self.path, "release.asynchronous", problem, remedy).at(given.defined.line()))
            }
        }
    }

    /// A number that has to lie in `range`; `default` where the file has none. `problem` follows the number.
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
        let problem = "s is no time to wait for an old primary";
        let remedy = "use 6 to 300; a silent one is waited for until its lease is over, 5 s";
        let wait_s = self.within("gate.wait_s", wait.as_ref(), 15, 6..=300, problem, remedy)?;
        Ok(GateConfig { wait_s })
    }

    /// The environment's, so that a whole stack can be set to observe and back without touching its files; else the
    /// file's.
    fn fencing_mode(&mut self) -> Result<FencingMode, ConfigError> {
        let ours = self.file.fencing.take().and_then(|section| section.mode);
        let modes = "set it to enforce, observe or off";
        match self.env.get("WARDEN_FENCING_MODE").filter(|text| !text.is_empty()) {
            Some(text) => mode_called(text).ok_or_else(|| {
                let remedy = format!("{modes}, or leave it to fencing.mode");
                ConfigError::env("WARDEN_FENCING_MODE", format!("{text:?} is not a mode of fencing"), remedy)
            }),
            None => {
                let Some(ours) = ours else { return Ok(FencingMode::default()) };
                let (text, line) = (ours.value, ours.defined.line());
                mode_called(&text).ok_or_else(|| {
                    let problem = format!("{text:?} is not a mode of fencing");
                    ConfigError::new(self.path, "fencing.mode", problem, modes).at(line)
                })
            }
        }
    }

    fn haproxy(&mut self) -> Result<Option<HaproxyConfig>, ConfigError> {
        let Some(section) = self.file.haproxy.take() else { return Ok(None) };
        let backend = section.backend.unwrap_or_else(|| "postgres".to_owned());
        if let Some(reads) = section.read_backend.as_ref().filter(|reads| reads.value == backend) {
            let remedy = "reads need a proxy of their own; leave it out where there is none";
            let problem = format!("{backend:?} is the one for writes");
            return Err(ConfigError::new(self.path, "haproxy.read_backend", problem, remedy).at(reads.defined.line()));
        }
        let file = match (section.config_file, section.master_socket) {
            (None, _) => None,
            (Some(config_file), Some(master_socket)) => Some(RenderConfig {
                config_file: config_file.value,
                master_socket,
                template: section.template,
                resolvers: section.resolvers,
            }),
            (Some(config_file), None) => {
                let problem = "it is missing, and without it HAProxy cannot be told to reload haproxy.config_file";
                let remedy = "start HAProxy with -W -S SOCKET, and name that socket here";
                let error = ConfigError::new(self.path, "haproxy.master_socket", problem, remedy);
                return Err(error.at(config_file.defined.line()));
            }
        };
        let (limit, problem) = (section.max_wait_ms.as_ref(), "ms is no time to wait for a new primary");
        let max_wait_ms = self.within("haproxy.max_wait_ms", limit, 5000, 500..=60_000, problem, "use 500 to 60000")?;
        let limit = section.hard_stop_after.as_ref();
        let problem = "s is no time for sessions to end in after a reload";
        let remedy = "use 10 to 604800, in seconds";
        let hard_stop_after = self.within("haproxy.hard_stop_after", limit, 3600, 10..=604_800, problem, remedy)?;
        Ok(Some(HaproxyConfig {
            socket: section.socket,
            file,
            backend,
            read_backend: section.read_backend.map(|reads| reads.value),
            max_lag: section.max_lag.unwrap_or(16 << 20),
            max_wait_ms,
            hard_stop_after,
            mode: section.mode.unwrap_or_default(),
        }))
    }

    fn patroni_client(&mut self) -> Result<PatroniConfig, ConfigError> {
        let own = self.file.patroni.take().unwrap_or_default();
        let PatroniSection { username, password_file, cacert, certfile, keyfile, insecure } = own;
        let (ctl, restapi) = (&self.patroni.ctl, &self.patroni.restapi);
        let login = ctl.authentication.clone().or_else(|| restapi.authentication.clone()).unwrap_or_default();
        let password = match password_file {
            Some(named) => Some(self.secret("patroni.password_file", &named)?),
            None => login.password,
        };
        let path = |own: Option<Spanned<PathBuf>>, theirs: Option<PathBuf>| own.map(|path| path.value).or(theirs);
        let client = PatroniConfig {
            username: username.or(login.username),
            password,
            cacert: path(cacert, ctl.cacert.clone().or_else(|| restapi.cafile.clone())),
            certfile: path(certfile, ctl.certfile.clone()),
            keyfile: path(keyfile, ctl.keyfile.clone()),
            insecure: insecure.or(ctl.insecure).unwrap_or(false),
        };
        for (key, file) in [("cacert", &client.cacert), ("certfile", &client.certfile), ("keyfile", &client.keyfile)] {
            if let Some(file) = file
                && let Err(error) = std::fs::metadata(file)
            {
                let problem = format!("{}: {error}", file.display());
                let remedy = "mount the file into this container too, or name another in patroni: of Warden's file";
                return Err(ConfigError::new(self.path, &format!("patroni.{key}"), problem, remedy));
            }
        }
        Ok(client)
    }

    fn superuser(&self) -> Result<Option<Superuser>, ConfigError> {
        // Patroni takes its own variables out of the environment, so that its hooks (the gate) do not see them.
        let own = |name: &str| self.env.get(name).filter(|value| !value.is_empty()).cloned();
        let (username, password) = (own("WARDEN_SUPERUSER_USERNAME"), own("WARDEN_SUPERUSER_PASSWORD"));
        let theirs = self.patroni.postgresql.authentication.superuser.clone();
        let Some(mut login) = theirs.or_else(|| (username.is_some() || password.is_some()).then(Login::default)) else {
            return Ok(None);
        };
        login.username = login.username.or(username);
        login.password = login.password.or(password.map(Secret::new));
        Ok(Some(Superuser {
            username: login.username.clone().unwrap_or_else(|| "postgres".to_owned()),
            password: login.password.clone(),
            sslmode: self.sslmode()?,
            database: self.database(),
        }))
    }

    /// An ordinary role, which takes no connection of those that PostgreSQL keeps for superusers.
    fn watch(&mut self) -> Result<Option<Superuser>, ConfigError> {
        let Some(section) = self.file.watch.take() else { return Ok(None) };
        let Some(username) = section.username.filter(|name| !name.is_empty()) else {
            let remedy = "name a role that may log in, or leave the section out: the superuser asks then";
            return Err(ConfigError::new(self.path, "watch.username", "is missing", remedy));
        };
        let password = match section.password_file {
            Some(named) => Some(self.secret("watch.password_file", &named)?),
            None => self.env.get("WARDEN_WATCH_PASSWORD").filter(|text| !text.is_empty()).map(Secret::new),
        };
        Ok(Some(Superuser { username, password, sslmode: self.sslmode()?, database: self.database() }))
    }

    /// Patroni's, for its superuser.
    fn sslmode(&self) -> Result<SslMode, ConfigError> {
        let login = self.patroni.postgresql.authentication.superuser.as_ref();
        let mode = login.and_then(|login| login.sslmode.as_ref());
        match mode.map(|mode| (mode.value.as_str(), mode.defined.line())) {
            None | Some(("prefer" | "allow", _)) => Ok(SslMode::Prefer),
            Some(("disable", _)) => Ok(SslMode::Disable),
            Some(("require", _)) => Ok(SslMode::Require),
            Some((other, line)) => Err(ConfigError::new(
                self.patroni_path,
                "postgresql.authentication.superuser.sslmode",
                format!("{other:?} is not supported by Warden"),
                "share PostgreSQL's socket and set PATRONI_SUPERUSER_SSLMODE=require for the sidecar",
            )
            .at(line)),
        }
    }

    /// The database of Patroni's own sessions, which is the one that a hardened installation leaves open.
    fn database(&self) -> String {
        let theirs = self.patroni.postgresql.database.clone().filter(|name| !name.is_empty());
        theirs.unwrap_or_else(|| "postgres".to_owned())
    }

    fn http(&mut self) -> Result<HttpConfig, ConfigError> {
        let HttpSection { listen, connect_address, token_file } = self.file.http.take().unwrap_or_default();
        let (text, line) =
            listen.map_or((DEFAULT_LISTEN.to_owned(), 0), |listen| (listen.value, listen.defined.line()));
        let listen: SocketAddr = text.parse().map_err(|_| {
            let problem = format!("{text:?} is not an address and a port");
            ConfigError::new(self.path, "http.listen", problem, "write it like 0.0.0.0:8010").at(line)
        })?;
        let connect_address = match connect_address {
            Some(address) if split_address(&address.value).is_none() => {
                let problem = format!("{:?} is not host:port", address.value);
                let remedy = "write it like warden1:8010";
                return Err(
                    ConfigError::new(self.path, "http.connect_address", problem, remedy).at(address.defined.line())
                );
            }
            Some(address) => address.value,
            None => format!("{}:{}", hostname(), listen.port()),
        };
        let token = match token_file {
            Some(named) => Some(self.secret("http.token_file", &named)?),
            None => self.env.get("WARDEN_API_TOKEN").filter(|token| !token.is_empty()).map(Secret::new),
        };
        Ok(HttpConfig { listen, connect_address, token })
    }

    fn log(&mut self) -> Result<LogConfig, ConfigError> {
        let section = self.file.log.take().unwrap_or_default();
        let (level, line) = section.level.map_or(("info".to_owned(), 0), |level| (level.value, level.defined.line()));
        super::log_filter::parse_filter(&level).map_err(|problem| {
            let remedy = "use error, warn, info, debug or trace, or a filter like warden=debug,info";
            ConfigError::new(self.path, "log.level", problem, remedy).at(line)
        })?;
        Ok(LogConfig { format: section.format.unwrap_or_default(), level })
    }

    /// A secret from a file, without the line's end.
    fn secret(&self, key: &str, named: &Spanned<PathBuf>) -> Result<Secret, ConfigError> {
        let problem = |problem: String| {
            let remedy = "put the secret into that file, readable for this user";
            ConfigError::new(self.path, key, format!("{}: {problem}", named.value.display()), remedy)
                .at(named.defined.line())
        };
        let text = std::fs::read_to_string(&named.value).map_err(|error| problem(error.to_string()))?;
        let text = text.trim_end_matches(['\r', '\n']);
        if text.is_empty() { Err(problem("is empty".to_owned())) } else { Ok(Secret::new(text)) }
    }
}

fn mode_called(text: &str) -> Option<FencingMode> {
    match text {
        "enforce" => Some(FencingMode::Enforce),
        "observe" => Some(FencingMode::Observe),
        "off" => Some(FencingMode::Off),
        _ => None,
    }
}

/// Splits `a:2181,b:2181/chroot` into hosts (port 2181 where none is given) and chroot.
fn split_hosts(hosts: &Hosts) -> Result<(Vec<String>, String), String> {
    let joined = hosts.joined();
    let (list, chroot) = match joined.find('/') {
        Some(at) => joined.split_at(at),
        None => (joined.as_str(), ""),
    };
    let chroot = chroot.trim_end_matches('/');
    if chroot.contains(',') {
        return Err(format!("the chroot has to come last: {joined:?}"));
    }
    let mut split = Vec::new();
    for host in list.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        if host.contains(':') {
            let (name, port) = split_address(host).ok_or_else(|| format!("{host:?} is not host:port"))?;
            split.push(format!("{name}:{port}"));
        } else {
            split.push(format!("{host}:2181"));
        }
    }
    if split.is_empty() { Err("names no server".to_owned()) } else { Ok((split, chroot.to_owned())) }
}

/// Splits `host:port`; of several hosts (as in `listen: '127.0.0.1,::1:5432'`) the first.
fn split_address(address: &str) -> Option<(String, u16)> {
    let (hosts, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = hosts.split(',').next().map(str::trim).filter(|host| !host.is_empty())?;
    let host = match host {
        "*" | "0.0.0.0" | "::" | "[::]" => "localhost",
        host => host,
    };
    Some((host.to_owned(), port))
}

/// This machine's name; in a container the container's.
fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
