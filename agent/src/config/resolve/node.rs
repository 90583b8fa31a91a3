//! `node:`, the role beside a Patroni node.

use super::Resolver;
use crate::config::file::NodeSection;
use crate::config::parse::split_address;
use crate::config::{ConfigError, NodeConfig};
use std::path::PathBuf;

impl Resolver<'_> {
    pub(super) fn node(&mut self) -> Result<Option<NodeConfig>, ConfigError> {
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
                // `listen` may be a wildcard or a list of hosts.
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
        // A relative socket directory lies inside the data directory, which the agent may not see.
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
}
