//! The part of Patroni's own configuration file that Warden needs, and the `PATRONI_*` variables, which take
//! precedence.
//!
//! Warden ignores all other keys, because the file belongs to Patroni. Names and precedence follow `patroni/config.py`
//! and `patroni/request.py` of Patroni 4.1.

use super::ConfigError;
use super::file::Hosts;
use crate::secret::Secret;
use serde::Deserialize;
use serde_saphyr::Spanned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Patroni's YAML.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PatroniFile {
    pub scope: Option<String>,
    pub namespace: Option<String>,
    pub name: Option<String>,
    #[serde(default)]
    pub restapi: RestApi,
    #[serde(default)]
    pub ctl: Ctl,
    pub zookeeper: Option<ZooKeeper>,
    pub citus: Option<Citus>,
    #[serde(default)]
    pub bootstrap: Bootstrap,
    #[serde(default)]
    pub postgresql: Postgresql,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RestApi {
    pub listen: Option<String>,
    pub connect_address: Option<String>,
    pub certfile: Option<PathBuf>,
    pub cafile: Option<PathBuf>,
    pub authentication: Option<Login>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Ctl {
    pub insecure: Option<bool>,
    pub cacert: Option<PathBuf>,
    pub certfile: Option<PathBuf>,
    pub keyfile: Option<PathBuf>,
    pub authentication: Option<Login>,
}

#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct Login {
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub sslmode: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct ZooKeeper {
    pub hosts: Option<Spanned<Hosts>>,
    pub use_ssl: Option<Spanned<bool>>,
    #[serde(default)]
    pub auth_data: BTreeMap<String, Secret>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Citus {
    pub group: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Bootstrap {
    #[serde(default)]
    pub dcs: Dcs,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Dcs {
    pub ttl: Option<Spanned<u64>>,
    pub loop_wait: Option<Spanned<u64>>,
    pub retry_timeout: Option<Spanned<u64>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Postgresql {
    pub listen: Option<String>,
    pub connect_address: Option<String>,
    pub data_dir: Option<PathBuf>,
    /// Patroni has no variable for it.
    pub database: Option<String>,
    #[serde(default)]
    pub authentication: Authentication,
    #[serde(default)]
    pub parameters: Parameters,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Authentication {
    pub superuser: Option<Login>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Parameters {
    pub unix_socket_directories: Option<String>,
}

impl PatroniFile {
    /// Reads Patroni's file at `path`. An empty file has no keys.
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
            file: Some(path.to_owned()),
            line: None,
            key: None,
            problem: format!("Patroni's configuration cannot be read: {error}"),
            remedy: "mount it at the path in patroni_config, readable for this user".to_owned(),
        })?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&text).map_err(|error| ConfigError::yaml(path, &error))
    }

    /// Replaces values of the file by the `PATRONI_*` variables, as Patroni does. An empty variable counts as not set.
    pub(super) fn overlay(&mut self, env: &BTreeMap<String, String>) -> Result<(), ConfigError> {
        let get = |name: &str| env.get(&format!("PATRONI_{name}")).filter(|value| !value.is_empty()).cloned();
        let over = |slot: &mut Option<String>, name: &str| {
            if let Some(value) = get(name) {
                *slot = Some(value);
            }
        };
        let over_path = |slot: &mut Option<PathBuf>, name: &str| {
            if let Some(value) = get(name) {
                *slot = Some(value.into());
            }
        };
        over(&mut self.scope, "SCOPE");
        over(&mut self.namespace, "NAMESPACE");
        over(&mut self.name, "NAME");
        over(&mut self.restapi.listen, "RESTAPI_LISTEN");
        over(&mut self.restapi.connect_address, "RESTAPI_CONNECT_ADDRESS");
        over_path(&mut self.restapi.certfile, "RESTAPI_CERTFILE");
        over_path(&mut self.restapi.cafile, "RESTAPI_CAFILE");
        over_path(&mut self.ctl.cacert, "CTL_CACERT");
        over_path(&mut self.ctl.certfile, "CTL_CERTFILE");
        over_path(&mut self.ctl.keyfile, "CTL_KEYFILE");
        over(&mut self.postgresql.listen, "POSTGRESQL_LISTEN");
        over(&mut self.postgresql.connect_address, "POSTGRESQL_CONNECT_ADDRESS");
        if let Some(value) = get("CTL_INSECURE") {
            self.ctl.insecure = Some(matches!(value.to_ascii_lowercase().as_str(), "on" | "true" | "yes" | "1"));
        }
        overlay_login(&mut self.restapi.authentication, "RESTAPI", &get);
        overlay_login(&mut self.ctl.authentication, "CTL", &get);
        overlay_login(&mut self.postgresql.authentication.superuser, "SUPERUSER", &get);
        if let Some(mode) = get("SUPERUSER_SSLMODE") {
            let login = self.postgresql.authentication.superuser.get_or_insert_default();
            login.sslmode = Some(unspanned(mode));
        }
        self.overlay_zookeeper(&get)?;
        if let Some(group) = get("CITUS_GROUP") {
            let group = group.parse().map_err(|_| {
                ConfigError::env(
                    "PATRONI_CITUS_GROUP",
                    format!("{group:?} is not a number"),
                    "set it to the number of the group",
                )
            })?;
            self.citus = Some(Citus { group: Some(group) });
        }
        Ok(())
    }

    fn overlay_zookeeper(&mut self, get: &impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        if let Some(hosts) = get("ZOOKEEPER_HOSTS") {
            // Patroni accepts a YAML list with or without the brackets: 'a:2181','b:2181'.
            let bare = !hosts.trim_start().starts_with('-') && !hosts.contains('[');
            let yaml = if bare { format!("[{hosts}]") } else { hosts };
            let list: Vec<String> = serde_saphyr::from_str(&yaml).map_err(|_| {
                ConfigError::env(
                    "PATRONI_ZOOKEEPER_HOSTS",
                    "is not a list of host:port",
                    "write it like 'zoo1:2181','zoo2:2181'",
                )
            })?;
            self.zookeeper.get_or_insert_default().hosts = Some(unspanned(Hosts::List(list)));
        }
        if let Some(data) = get("ZOOKEEPER_AUTH_DATA") {
            let braced = data.trim_start().starts_with('{');
            let yaml = if braced { data } else { format!("{{{data}}}") };
            // The error of the parser would quote the secret.
            self.zookeeper.get_or_insert_default().auth_data = serde_saphyr::from_str(&yaml).map_err(|_| {
                ConfigError::env(
                    "PATRONI_ZOOKEEPER_AUTH_DATA",
                    "is not a mapping of scheme to credential",
                    "write it like {digest: 'user:password'}",
                )
            })?;
        }
        if let Some(value) = get("ZOOKEEPER_USE_SSL") {
            let on = matches!(value.to_ascii_lowercase().as_str(), "on" | "true" | "yes" | "1");
            self.zookeeper.get_or_insert_default().use_ssl = Some(unspanned(on));
        }
        Ok(())
    }
}

fn overlay_login(slot: &mut Option<Login>, prefix: &str, get: &impl Fn(&str) -> Option<String>) {
    if let Some(username) = get(&format!("{prefix}_USERNAME")) {
        slot.get_or_insert_default().username = Some(username);
    }
    if let Some(password) = get(&format!("{prefix}_PASSWORD")) {
        slot.get_or_insert_default().password = Some(Secret::new(password));
    }
}

/// A value from the environment, which has no line.
fn unspanned<T>(value: T) -> Spanned<T> {
    Spanned::new(value, serde_saphyr::Location::UNKNOWN, serde_saphyr::Location::UNKNOWN)
}
