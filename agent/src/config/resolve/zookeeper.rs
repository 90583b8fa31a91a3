//! `zookeeper:`, or Patroni's section of this name.

use super::{DEFAULT_TTL, Resolver};
use crate::config::parse::split_hosts;
use crate::config::{ConfigError, ZooKeeperConfig};
use std::time::Duration;

impl Resolver<'_> {
    pub(super) fn zookeeper(&self) -> Result<ZooKeeperConfig, ConfigError> {
        let own = self.file.zookeeper.as_ref();
        let theirs = self.patroni.zookeeper.as_ref();
        if let Some(use_ssl) = theirs.and_then(|section| section.use_ssl.as_ref()).filter(|on| on.value) {
            return Err(ConfigError::new(
                self.patroni_path,
                "zookeeper.use_ssl",
                "Warden's ZooKeeper client does not support TLS",
                "set use_ssl: false, and name ports without TLS, or a local TLS tunnel, in Warden's zookeeper.hosts",
            )
            .at(use_ssl.defined.line()));
        }
        let (hosts, path) =
            match (own.and_then(|section| section.hosts.as_ref()), theirs.and_then(|section| section.hosts.as_ref())) {
                (Some(hosts), _) => (hosts, self.path),
                (None, Some(hosts)) => (hosts, self.patroni_path),
                (None, None) => {
                    let remedy =
                        "list the ZooKeeper servers as host:port, or set patroni_config or PATRONI_ZOOKEEPER_HOSTS";
                    return Err(ConfigError::new(self.path, "zookeeper.hosts", "is missing", remedy));
                }
            };
        let (hosts, chroot) = split_hosts(&hosts.value).map_err(|problem| {
            let remedy = "write each server as host:port, and a chroot at the end as /path";
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
                format!("Warden's ZooKeeper client does not support scheme {scheme:?}"),
                "use digest",
            ));
        }
        let ttl = self.patroni.bootstrap.dcs.ttl.as_ref().map_or(DEFAULT_TTL, |ttl| ttl.value);
        let tick_time = own.and_then(|section| section.tick_time.as_ref());
        let remedy = "write the ensemble's tickTime from zoo.cfg, in milliseconds (usually 2000)";
        let problem = "ms is out of range";
        let tick_time = self.within("zookeeper.tick_time", tick_time, 2000, 100..=60_000, problem, remedy)?;
        Ok(ZooKeeperConfig { hosts, chroot, auth_data, session_timeout: Duration::from_secs(ttl), tick_time })
    }
}
