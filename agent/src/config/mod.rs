//! The configuration: `warden.yml`, Patroni's own YAML and the environment become a validated [`Config`].
//!
//! `patroni_config:` names Patroni's file, from which Warden takes all values that Patroni has already. The `PATRONI_*`
//! variables take precedence over that file, as in Patroni. `warden.yml` takes precedence over both. Every error names
//! the file, the line, the key and the remedy.

mod error;
mod file;
mod patroni;

pub(crate) mod log_filter;
mod parse;
mod resolve;

pub mod policy;
mod trees;

pub use error::ConfigError;

use crate::secret::Secret;
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use warden_core::haproxy::Pool;

/// The path of the configuration file without `--config`.
pub const DEFAULT_PATH: &str = "/etc/warden/warden.yml";

/// The effective configuration. `warden check-config` prints it as YAML, with the secrets masked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Patroni's scope.
    pub scope: String,
    /// Patroni's namespace, with a slash at both ends.
    pub namespace: String,
    /// The Citus group, if the cluster is part of one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub citus_group: Option<u32>,
    /// The agent's name; beside a node, the name of its member.
    pub name: String,
    /// The connection to ZooKeeper.
    pub zookeeper: ZooKeeperConfig,
    /// The connection to any member's Patroni.
    pub patroni: PatroniConfig,
    /// The superuser's login at any member's PostgreSQL. Without it, the agent relies on Patroni and on the other
    /// agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub superuser: Option<Superuser>,
    /// The login for questions to other members' PostgreSQL. Without it, the agent asks as the superuser, as it does
    /// for a fence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watch: Option<Superuser>,
    /// The node role; on if present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeConfig>,
    /// The router role; on if present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub haproxy: Option<HaproxyConfig>,
    /// The mode of the fence rules.
    pub fencing: FencingConfig,
    /// The conditions for a release of the leader key.
    pub release: ReleaseConfig,
    /// The gate.
    pub gate: GateConfig,
    /// The directory for the memory that a restart of the agent must keep.
    pub state_dir: PathBuf,
    /// The nudge.
    pub nudge: NudgeConfig,
    /// The agent's own HTTP API.
    pub http: HttpConfig,
    /// The log.
    pub log: LogConfig,
}

impl Config {
    /// Reads and validates the file at `path`, with the environment of this process.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let env: BTreeMap<String, String> = std::env::vars().collect();
        resolve::load(path, &env)
    }

    /// Reads the file at `path` for the gate. If only `fencing.mode` is wrong, it returns the mode `enforce` and the
    /// error: a spelling mistake must not open the gate.
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

/// The connection to ZooKeeper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ZooKeeperConfig {
    /// The servers, each as `host:port`.
    pub hosts: Vec<String>,
    /// The prefix of every path, such as `/a/b`, or empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chroot: String,
    /// Credentials by scheme, as in Patroni's `auth_data`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub auth_data: BTreeMap<String, Secret>,
    /// The session timeout that the agent requests until it has read `ttl` in Patroni's dynamic configuration.
    #[serde(rename = "session_timeout_s", serialize_with = "as_seconds")]
    pub session_timeout: Duration,
    /// The ensemble's `tickTime`, in milliseconds.
    pub tick_time: u64,
}

/// The connection to any member's Patroni.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Default)]
pub struct PatroniConfig {
    /// Basic authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// Basic authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// PEM file with the CA of the members' certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cacert: Option<PathBuf>,
    /// PEM file with the agent's client certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certfile: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyfile: Option<PathBuf>,
    /// The agent does not verify certificates.
    pub insecure: bool,
}

/// A login at the members' PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Superuser {
    /// The role.
    pub username: String,
    /// The password; absent with peer or trust authentication.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    /// libpq's `sslmode` for TCP.
    pub sslmode: SslMode,
    /// The database; `template1` if the server refuses this one.
    pub database: String,
}

/// The values of libpq's `sslmode` that Warden supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it; the agent does not verify the certificate.
    Prefer,
    /// TLS always; the agent does not verify the certificate, as libpq does not.
    Require,
}

/// The node role: the agent beside a Patroni node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeConfig {
    /// The member's name.
    pub member: String,
    /// The base URL of its REST API, `http://host:port`.
    pub api: String,
    /// The host of its PostgreSQL over TCP.
    pub host: String,
    /// The port of its PostgreSQL over TCP, and the number in the socket's name.
    pub port: u16,
    /// The directory of its Unix-domain socket, if the agent can reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_dir: Option<PathBuf>,
    /// Its data directory, if the agent can read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_dir: Option<PathBuf>,
    /// The alive lock: the file that its Patroni holds locked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alive_lock: Option<PathBuf>,
}

/// The router role: the agent beside an HAProxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HaproxyConfig {
    /// HAProxy's runtime ("stats") socket.
    pub socket: PathBuf,
    /// The proxies (backend or listen) whose servers take writes; at least one.
    pub writes: Vec<String>,
    /// The proxies whose servers take reads.
    pub reads: Vec<String>,
    /// The operator named the proxies in `haproxy.backends`, and not in `haproxy.backend`.
    #[serde(skip)]
    pub several: bool,
    /// A replica takes no new reads if it has more bytes of WAL than this to replay.
    pub max_lag: u64,
    /// The longest wait of a new connection for writes while no server takes it, in milliseconds.
    pub max_wait_ms: u64,
    /// The longest life of sessions in HAProxy's old worker after a reload, in seconds.
    pub hard_stop_after: u64,
    /// The maximal number of sessions of a server; PostgreSQL's `max_connections` if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_maxconn: Option<u32>,
    /// The maximal number of connections of HAProxy.
    pub maxconn: u32,
    /// HAProxy's configuration file, if the agent writes it.
    #[serde(flatten)]
    pub file: Option<RenderConfig>,
    /// The mode of routing. `observe` in `fencing.mode` counts here too.
    pub mode: FencingMode,
}

impl HaproxyConfig {
    /// The proxies of `pool`.
    pub fn proxies_of(&self, pool: Pool) -> &[String] {
        match pool {
            Pool::Writes => &self.writes,
            Pool::Reads => &self.reads,
        }
    }

    /// All proxies, those for writes first.
    pub fn proxies(&self) -> impl Iterator<Item = &str> {
        self.writes.iter().chain(&self.reads).map(String::as_str)
    }

    /// The pool of `proxy`; `None` if the configuration does not name it.
    pub fn pool_of(&self, proxy: &str) -> Option<Pool> {
        [Pool::Writes, Pool::Reads].into_iter().find(|pool| self.proxies_of(*pool).iter().any(|name| name == proxy))
    }

    /// The key that names the proxies for writes.
    pub const fn writes_key(&self) -> &'static str {
        if self.several { "haproxy.backends.writes" } else { "haproxy.backend" }
    }

    /// The key that names the proxies for reads.
    pub const fn reads_key(&self) -> &'static str {
        if self.several { "haproxy.backends.reads" } else { "haproxy.read_backend" }
    }
}

/// HAProxy's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RenderConfig {
    /// The path of the file.
    pub config_file: PathBuf,
    /// The socket of HAProxy's master process.
    pub master_socket: PathBuf,
    /// The path of the template; the built-in template if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<PathBuf>,
    /// The name server, `address:port`, that HAProxy asks for the members' names while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resolvers: Option<String>,
    /// The number of unused servers in the file, for a HAProxy that cannot add servers while it runs.
    pub spare_servers: usize,
}

impl RenderConfig {
    /// The file with the initial state of HAProxy's servers, in the directory of the configuration file.
    pub fn state_file(&self) -> PathBuf {
        self.config_file.with_file_name("servers.state")
    }

    /// The Lua script that makes new connections wait, in the directory of the configuration file.
    pub fn wait_script(&self) -> PathBuf {
        self.config_file.with_file_name("wait.lua")
    }
}

#[cfg(test)]
impl HaproxyConfig {
    /// The configuration of an HAProxy that does not exist.
    pub fn nowhere() -> Self {
        Self {
            socket: "/nowhere/admin.sock".into(),
            writes: vec!["postgres".to_owned()],
            reads: Vec::new(),
            several: false,
            server_maxconn: None,
            maxconn: 4000,
            max_lag: 16 << 20,
            max_wait_ms: 5000,
            hard_stop_after: 3600,
            file: None,
            mode: FencingMode::Enforce,
        }
    }
}

/// The mode of the fence rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Default)]
pub struct FencingConfig {
    /// The mode.
    pub mode: FencingMode,
}

/// A mode of the agent, for fencing and for routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum FencingMode {
    /// The agent acts.
    #[default]
    Enforce,
    /// The agent logs and counts the actions, and does none of them.
    Observe,
    /// The agent does not ask the rules.
    Off,
}

/// The conditions for a release of the leader key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ReleaseConfig {
    /// The agent releases the key of a crashed leader.
    pub enabled: bool,
    /// The agent shortens a switchover: it releases the key as soon as the old server is down.
    pub handover: bool,
    /// Without a synchronous standby, the agent leaves the key for this many seconds. Absent: it never releases the
    /// key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asynchronous: Option<u64>,
    /// The time for which PostgreSQL's socket must have no listener, in milliseconds.
    pub after_ms: u64,
    /// Patroni is process 1 of a container, so PostgreSQL's backends end with it.
    pub patroni_is_pid_1: bool,
}

/// The gate, Patroni's `pre_promote` hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GateConfig {
    /// The longest wait of the gate, in seconds.
    pub wait_s: u64,
}

/// The nudge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Default)]
pub struct NudgeConfig {
    /// The agent may wake the local Patroni.
    pub enabled: bool,
}

/// The agent's own HTTP API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpConfig {
    /// The address and port of the listener.
    pub listen: SocketAddr,
    /// The `host:port` at which other agents and commands reach this agent.
    pub connect_address: String,
    /// The token for requests that change something. Without it, the agent refuses them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogConfig {
    /// The format.
    pub format: LogFormat,
    /// The filter, in the syntax of `RUST_LOG`: `info`, `warden=debug`.
    pub level: String,
}

/// The format of the log.
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
