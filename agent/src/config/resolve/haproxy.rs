//! `haproxy:`, the role beside an HAProxy.

use super::Resolver;
use crate::config::file::BackendsSection;
use crate::config::{ConfigError, HaproxyConfig, RenderConfig};
use serde_saphyr::Spanned;
use std::collections::BTreeSet;
use std::net::SocketAddr;

impl Resolver<'_> {
    pub(super) fn haproxy(&mut self) -> Result<Option<HaproxyConfig>, ConfigError> {
        let Some(section) = self.file.haproxy.take() else { return Ok(None) };
        let several = section.backends.is_some();
        let (writes, reads) = self.backends(section.backend, section.read_backend, section.backends)?;
        let is_name = |name: &&String| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || ['-', '_', '.', ':'].contains(&c))
        };
        if let Some(name) = writes.iter().chain(&reads).find(|name| !is_name(name)) {
            let key = if several { "haproxy.backends" } else { "haproxy.backend" };
            let problem = format!("{name:?} is no name of a section in HAProxy's configuration");
            let remedy = "name the section as haproxy.cfg does: letters, digits, and - _ . :";
            return Err(ConfigError::new(self.path, key, problem, remedy));
        }
        if let Some(resolvers) = section.resolvers.as_ref().filter(|at| at.value.parse::<SocketAddr>().is_err()) {
            let problem = format!("{:?} is no address with a port", resolvers.value);
            let remedy = "write the name server's address and port, as in 127.0.0.11:53";
            let line = resolvers.defined.line();
            return Err(ConfigError::new(self.path, "haproxy.resolvers", problem, remedy).at(line));
        }
        let built_in = section.config_file.is_some() && section.template.is_none();
        if built_in && (writes.len() > 1 || reads.len() > 1) {
            let problem = "the built-in template has one proxy for writes and one for reads";
            let remedy = "name your own template in haproxy.template, or remove haproxy.config_file";
            return Err(ConfigError::new(self.path, "haproxy.backends", problem, remedy));
        }
        let (limit, key) = (section.spare_servers.as_ref(), "haproxy.spare_servers");
        let spare_servers = self.within(key, limit, 2, 0..=64, "is out of range", "use 0 to 64")?;
        let file = match (section.config_file, section.master_socket) {
            (None, _) => None,
            (Some(config_file), Some(master_socket)) => Some(RenderConfig {
                config_file: config_file.value,
                master_socket,
                template: section.template,
                resolvers: section.resolvers.map(|at| at.value),
                spare_servers: usize::try_from(spare_servers).unwrap_or(0),
            }),
            (Some(config_file), None) => {
                let problem = "it is missing, and the agent needs it to make HAProxy reload haproxy.config_file";
                let remedy = "start HAProxy with -W -S SOCKET, and name that socket here";
                let error = ConfigError::new(self.path, "haproxy.master_socket", problem, remedy);
                return Err(error.at(config_file.defined.line()));
            }
        };
        let (limit, problem) = (section.max_wait_ms.as_ref(), "ms is out of range");
        let max_wait_ms = self.within("haproxy.max_wait_ms", limit, 5000, 500..=60_000, problem, "use 500 to 60000")?;
        let limit = section.hard_stop_after.as_ref();
        let problem = "s is out of range";
        let remedy = "use 10 to 604800, in seconds";
        let hard_stop_after = self.within("haproxy.hard_stop_after", limit, 3600, 10..=604_800, problem, remedy)?;
        let problem = "is out of range";
        let (limit, key) = (section.maxconn.as_ref(), "haproxy.maxconn");
        let maxconn = self.within(key, limit, 4000, 100..=1_000_000, problem, "use 100 to 1000000")?;
        let (limit, key) = (section.server_maxconn.as_ref(), "haproxy.server_maxconn");
        let server_maxconn = self.within(key, limit, 0, 1..=100_000, problem, "use 1 to 100000")?;
        let maxconn = u32::try_from(maxconn).unwrap_or(u32::MAX);
        let server_maxconn = u32::try_from(server_maxconn).ok().filter(|_| limit.is_some());
        Ok(Some(HaproxyConfig {
            socket: section.socket,
            file,
            writes,
            reads,
            several,
            server_maxconn,
            maxconn,
            max_lag: section.max_lag.unwrap_or(16 << 20),
            max_wait_ms,
            hard_stop_after,
            mode: section.mode.unwrap_or_default(),
        }))
    }

    /// Returns the proxies for writes and the proxies for reads.
    fn backends(
        &self,
        backend: Option<Spanned<String>>,
        read_backend: Option<Spanned<String>>,
        backends: Option<Spanned<BackendsSection>>,
    ) -> Result<(Vec<String>, Vec<String>), ConfigError> {
        let error = |key: &str, problem: String, remedy: &str, line| {
            Err(ConfigError::new(self.path, key, problem, remedy).at(line))
        };
        if let Some(backends) = backends {
            let (line, BackendsSection { writes, reads }) = (backends.defined.line(), backends.value);
            if let Some(one) = backend.or(read_backend) {
                let problem = format!("{:?} is named beside haproxy.backends", one.value);
                let remedy = "name it in haproxy.backends, and leave haproxy.backend and haproxy.read_backend out";
                return error("haproxy.backends", problem, remedy, line);
            }
            if writes.is_empty() {
                return error("haproxy.backends.writes", "it is empty".to_owned(), "name the proxy for writes", line);
            }
            let mut seen = BTreeSet::new();
            if let Some(twice) = writes.iter().chain(&reads).find(|name| !seen.insert(name.as_str())) {
                let problem = format!("{twice:?} is named twice");
                return error("haproxy.backends", problem, "name each proxy once, for writes or for reads", line);
            }
            return Ok((writes, reads));
        }
        let writes = backend.map_or_else(|| "postgres".to_owned(), |backend| backend.value);
        if let Some(reads) = read_backend.as_ref().filter(|reads| reads.value == writes) {
            let remedy = "name another proxy for reads, or remove haproxy.read_backend";
            let problem = format!("{writes:?} is the proxy for writes");
            return error("haproxy.read_backend", problem, remedy, reads.defined.line());
        }
        Ok((vec![writes], read_backend.into_iter().map(|reads| reads.value).collect()))
    }
}
