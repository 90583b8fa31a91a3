//! The keys of `warden.yml`. Every key is optional here; `resolve` checks which are missing.

use super::{FencingMode, LogFormat};
use crate::secret::Secret;
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `warden.yml`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WardenFile {
    pub patroni_config: Option<Spanned<PathBuf>>,
    pub scope: Option<Spanned<String>>,
    pub namespace: Option<String>,
    pub name: Option<Spanned<String>>,
    pub zookeeper: Option<ZooKeeperSection>,
    pub patroni: Option<PatroniSection>,
    pub watch: Option<WatchSection>,
    pub node: Option<NodeSection>,
    pub haproxy: Option<HaproxySection>,
    pub fencing: Option<FencingSection>,
    pub release: Option<ReleaseSection>,
    pub gate: Option<GateSection>,
    pub state_dir: Option<PathBuf>,
    pub nudge: Option<NudgeSection>,
    pub http: Option<HttpSection>,
    pub log: Option<LogSection>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FencingSection {
    /// The text of the file. A wrong mode must not make the other keys unreadable, because the gate uses them.
    pub mode: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReleaseSection {
    pub enabled: Option<Spanned<bool>>,
    pub handover: Option<bool>,
    pub asynchronous: Option<Spanned<Asynchronous>>,
    pub after_ms: Option<Spanned<u64>>,
    pub patroni_is_pid_1: Option<bool>,
}

/// `never`, or a number of seconds.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Asynchronous {
    Seconds(u64),
    Word(String),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GateSection {
    pub wait_s: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NudgeSection {
    pub enabled: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ZooKeeperSection {
    pub hosts: Option<Spanned<Hosts>>,
    pub auth_data: Option<BTreeMap<String, Secret>>,
    pub tick_time: Option<Spanned<u64>>,
}

/// ZooKeeper's hosts in Patroni's syntax: a list, or one text with commas and an optional chroot.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Hosts {
    List(Vec<String>),
    Text(String),
}

impl Hosts {
    /// The hosts as one text with commas.
    pub(super) fn joined(&self) -> String {
        match self {
            Self::List(hosts) => hosts.join(","),
            Self::Text(text) => text.clone(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PatroniSection {
    pub username: Option<String>,
    pub password_file: Option<Spanned<PathBuf>>,
    pub cacert: Option<Spanned<PathBuf>>,
    pub certfile: Option<Spanned<PathBuf>>,
    pub keyfile: Option<Spanned<PathBuf>>,
    pub insecure: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchSection {
    pub username: Option<String>,
    pub password_file: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeSection {
    pub alive_lock: Option<PathBuf>,
    pub socket_dir: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    pub host: Option<String>,
    pub port: Option<u16>,
    pub api: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HaproxySection {
    pub socket: PathBuf,
    pub backend: Option<Spanned<String>>,
    pub read_backend: Option<Spanned<String>>,
    pub backends: Option<Spanned<BackendsSection>>,
    pub server_maxconn: Option<Spanned<u64>>,
    pub maxconn: Option<Spanned<u64>>,
    pub max_lag: Option<u64>,
    pub max_wait_ms: Option<Spanned<u64>>,
    pub hard_stop_after: Option<Spanned<u64>>,
    pub config_file: Option<Spanned<PathBuf>>,
    pub master_socket: Option<PathBuf>,
    pub template: Option<PathBuf>,
    pub resolvers: Option<Spanned<String>>,
    pub spare_servers: Option<Spanned<u64>>,
    pub mode: Option<FencingMode>,
}

/// The proxies for writes and the proxies for reads.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackendsSection {
    pub writes: Vec<String>,
    #[serde(default)]
    pub reads: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpSection {
    pub listen: Option<Spanned<String>>,
    pub connect_address: Option<Spanned<String>>,
    pub token_file: Option<Spanned<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogSection {
    pub format: Option<LogFormat>,
    pub level: Option<Spanned<String>>,
}
