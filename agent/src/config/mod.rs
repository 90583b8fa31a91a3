//! The configuration: `warden.yml` + Patroni's own YAML + the environment -> a validated [`Config`].
//!
//! `patroni_config:` names Patroni's file, from which everything that Patroni knows already is taken;
//! `PATRONI_*` variables win over that file as they do for Patroni itself; what stands in `warden.yml`
//! wins over both. Every error names the file, the line, the key and the remedy.

mod error;
mod file;
pub(crate) mod log_filter;
mod patroni;
mod resolve;
mod trees;

pub use error::ConfigError;

use crate::secret::Secret;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use warden_core::haproxy::Pool;

/// Where the configuration is looked for when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/warden/warden.yml";

/// The effective configuration. Serialized with secrets masked: that is what `warden check-config` prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Patroni's scope.
    pub scope: String,
    /// Patroni's namespace, with a slash at both ends.
    pub namespace: String,
    /// Citus group, where Patroni's tree has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub citus_group: Option<u32>,
    /// The agent's name: the member's beside a node.
    pub name: String,
    /// How to reach ZooKeeper.
    pub zookeeper: ZooKeeperConfig,
    /// How to talk to any member's Patroni.
    pub patroni: PatroniConfig,
    /// How to log in to any member's PostgreSQL; where it is absent, Patroni's and the other agents' word has to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superuser: Option<Superuser>,
    /// How to log in to other members' PostgreSQL where they are only asked, and not fenced; the superuser where it is
    /// absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<Superuser>,
    /// The node role; on when present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeConfig>,
    /// The router role; on when present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<HaproxyConfig>,
    /// What becomes of the rules of fencing.
    pub fencing: FencingConfig,
    /// When a leader key may be released.
    pub release: ReleaseConfig,
    /// The gate.
    pub gate: GateConfig,
    /// Where the agent keeps what a restart of it must not forget.
    pub state_dir: PathBuf,
    /// Whether Patroni may be woken.
    pub nudge: NudgeConfig,
    /// Our own HTTP API.
    pub http: HttpConfig,
    /// Logging.
    pub log: LogConfig,
}

impl Config {
    /// Reads and validates the file at `path`, with the process's environment.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let env: BTreeMap<String, String> = std::env::vars().collect();
        resolve::load(path, &env)
    }

    /// The same, for the gate: where nothing but the mode of fencing is wrong it is `enforce`, because a slip of the pen
    /// is not to open the gate, and the error comes beside it.
    pub fn load_for_gate(path: &Path) -> Result<(Self, Option<ConfigError>), ConfigError> {
        let env: BTreeMap<String, String> = std::env::vars().collect();
        resolve::load_but_mode(path, &env)
    }

    /// The roles that are on.
    pub fn roles(&self) -> Vec<String> {
        let node = self.node.as_ref().map(|_| "node".to_owned());
        let router = self.haproxy.as_ref().map(|_| "router".to_owned());
        node.into_iter().chain(router).collect()
    }
}

/// How to reach ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZooKeeperConfig {
    /// `host:port`, each.
    pub hosts: Vec<String>,
    /// Prefix of every path, `/a/b`, or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chroot: String,
    /// Scheme and credential, as Patroni's `auth_data`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub auth_data: BTreeMap<String, Secret>,
    /// Timeout asked for until Patroni's dynamic configuration says its ttl.
    #[serde(rename = "session_timeout_s", serialize_with = "as_seconds")]
    pub session_timeout: Duration,
    /// The ensemble's tickTime, in milliseconds.
    pub tick_time: u64,
}

/// How to talk to any member's Patroni.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Default)]
pub struct PatroniConfig {
    /// Basic authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Basic authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// PEM file with the CA that signed the members' certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cacert: Option<PathBuf>,
    /// PEM file with our client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certfile: Option<PathBuf>,
    /// PEM file with its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyfile: Option<PathBuf>,
    /// Certificates are not verified.
    pub insecure: bool,
}

/// How to log in to a member's PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Superuser {
    /// Role.
    pub username: String,
    /// Password; absent with peer or trust authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// libpq's sslmode for TCP.
    pub sslmode: SslMode,
    /// Database to connect to; `template1` where it does not let us in.
    pub database: String,
}

/// libpq's `sslmode`, as far as it is supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS where the server offers it, unverified.
    Prefer,
    /// TLS always, unverified (as libpq does).
    Require,
}

/// The node role: what stands beside a Patroni node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeConfig {
    /// The member's name.
    pub member: String,
    /// Base address of its REST API, `http://host:port`.
    pub api: String,
    /// Its PostgreSQL over TCP.
    pub host: String,
    /// Its PostgreSQL over TCP, and the number in the socket's name.
    pub port: u16,
    /// The directory of its unix socket, where that is shared with us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_dir: Option<PathBuf>,
    /// Its data directory, where that is shared with us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// The file that its Patroni holds locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alive_lock: Option<PathBuf>,
}

/// The router role: what stands beside an HAProxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HaproxyConfig {
    /// Its runtime ("stats") socket.
    pub socket: PathBuf,
    /// The proxy (backend or listen) whose servers take the writes.
    pub backend: String,
    /// The one whose servers take reads, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_backend: Option<String>,
    /// Replicas that have more bytes of WAL than this still to replay take no new reads.
    pub max_lag: u64,
    /// A new connection for writes waits no longer than this, in milliseconds, where it cannot be sent anywhere.
    pub max_wait_ms: u64,
    /// Sessions from before a reload go on in the old worker for so long, in seconds.
    pub hard_stop_after: u64,
    /// Its configuration file, where that is ours to write.
    #[serde(flatten)]
    pub file: Option<RenderConfig>,
    /// Whether HAProxy is told anything. Where `fencing.mode` is `observe`, it is only said what it would be told.
    pub mode: FencingMode,
}

impl HaproxyConfig {
    /// The proxy of this pool, if there is one.
    pub fn proxy(&self, pool: Pool) -> Option<&str> {
        match pool {
            Pool::Writes => Some(&self.backend),
            Pool::Reads => self.read_backend.as_deref(),
        }
    }

    /// The proxies that there are.
    pub fn proxies(&self) -> impl Iterator<Item = &str> {
        [Pool::Writes, Pool::Reads].into_iter().filter_map(|pool| self.proxy(pool))
    }
}

/// HAProxy's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RenderConfig {
    /// Where it is.
    pub config_file: PathBuf,
    /// The socket of HAProxy's master process.
    pub master_socket: PathBuf,
    /// What it is rendered from; the built-in one where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<PathBuf>,
    /// The name server, `address:port`, by which HAProxy resolves the members' names while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolvers: Option<String>,
}

impl RenderConfig {
    /// In what state HAProxy's servers begin, beside the configuration.
    pub fn state_file(&self) -> PathBuf {
        self.config_file.with_file_name("servers.state")
    }

    /// How HAProxy has new connections wait, beside the configuration.
    pub fn wait_script(&self) -> PathBuf {
        self.config_file.with_file_name("wait.lua")
    }
}

#[cfg(test)]
impl HaproxyConfig {
    /// An HAProxy that is not there.
    pub fn nowhere() -> Self {
        Self {
            socket: "/nowhere/admin.sock".into(),
            backend: "postgres".to_owned(),
            read_backend: None,
            max_lag: 16 << 20,
            max_wait_ms: 5000,
            hard_stop_after: 3600,
            file: None,
            mode: FencingMode::Enforce,
        }
    }
}

/// What becomes of the rules of fencing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Default)]
pub struct FencingConfig {
    /// Carried out, only said, or not asked at all.
    pub mode: FencingMode,
}

/// Carried out, only said, or not asked at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum FencingMode {
    /// A server that must not take writes is stopped.
    #[default]
    Enforce,
    /// It is logged and counted what would have been done.
    Observe,
    /// Nothing is done and nothing is said.
    Off,
}

/// When a leader key may be released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReleaseConfig {
    /// A crashed leader's key is released.
    pub enabled: bool,
    /// A switchover is shortened: the key is released as soon as the old server is down.
    pub handover: bool,
    /// Without a synchronous standby the key is left for so many seconds; absent: it is never released then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asynchronous: Option<u64>,
    /// The socket has to be without a listener for this long.
    pub after_ms: u64,
    /// Patroni is process 1 of a container, so that its backends end with it.
    pub patroni_is_pid_1: bool,
}

/// The gate, Patroni's `pre_promote` hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GateConfig {
    /// It takes no longer than so many seconds.
    pub wait_s: u64,
}

/// Whether Patroni may be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Default)]
pub struct NudgeConfig {
    /// It may.
    pub enabled: bool,
}

/// Our own HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpConfig {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// `host:port` under which others reach us.
    pub connect_address: String,
    /// What changes the world needs this token; without it such requests are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// Logging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogConfig {
    /// For people or for machines.
    pub format: LogFormat,
    /// A filter as in `RUST_LOG`: `info`, `warden=debug`.
    pub level: String,
}

/// For people or for machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line of text per event.
    #[default]
    Human,
    /// One JSON object per event.
    Json,
}

fn as_seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

#[cfg(test)]
mod tests;
