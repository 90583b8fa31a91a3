//! `http:`, the agent's own API.

use super::{DEFAULT_LISTEN, Resolver};
use crate::config::file::HttpSection;
use crate::config::parse::{hostname, split_address};
use crate::config::{ConfigError, HttpConfig};
use crate::secret::Secret;
use std::net::SocketAddr;

impl Resolver<'_> {
    pub(super) fn http(&mut self) -> Result<HttpConfig, ConfigError> {
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
}
