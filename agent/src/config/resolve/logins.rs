//! The logins: at any member's Patroni, and at any member's PostgreSQL as its superuser or as `watch:`.

use super::Resolver;
use crate::config::file::PatroniSection;
use crate::config::patroni::Login;
use crate::config::{ConfigError, PatroniConfig, SslMode, Superuser};
use crate::secret::Secret;
use serde_saphyr::Spanned;
use std::path::PathBuf;

impl Resolver<'_> {
    pub(super) fn patroni_client(&mut self) -> Result<PatroniConfig, ConfigError> {
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
                let remedy =
                    "mount the file into this container too, or name another file in section patroni of warden.yml";
                return Err(ConfigError::new(self.path, &format!("patroni.{key}"), problem, remedy));
            }
        }
        Ok(client)
    }

    pub(super) fn superuser(&self) -> Result<Option<Superuser>, ConfigError> {
        // Patroni removes its own variables from the environment of its hooks, so the gate needs Warden's.
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

    /// Returns the login of `watch:`. An ordinary role occupies none of the connections that PostgreSQL reserves for
    /// superusers.
    pub(super) fn watch(&mut self) -> Result<Option<Superuser>, ConfigError> {
        let Some(section) = self.file.watch.take() else { return Ok(None) };
        let Some(username) = section.username.filter(|name| !name.is_empty()) else {
            let remedy = "name a role that may log in, or remove the section, and the agent logs in as the superuser";
            return Err(ConfigError::new(self.path, "watch.username", "is missing", remedy));
        };
        let password = match section.password_file {
            Some(named) => Some(self.secret("watch.password_file", &named)?),
            None => self.env.get("WARDEN_WATCH_PASSWORD").filter(|text| !text.is_empty()).map(Secret::new),
        };
        Ok(Some(Superuser { username, password, sslmode: self.sslmode()?, database: self.database() }))
    }

    /// Returns the `sslmode` of Patroni's superuser.
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
                format!("Warden does not support {other:?}"),
                "share PostgreSQL's socket and set PATRONI_SUPERUSER_SSLMODE=require for the sidecar",
            )
            .at(line)),
        }
    }

    /// Returns the database of Patroni's own sessions. A hardened installation may allow no other.
    fn database(&self) -> String {
        let theirs = self.patroni.postgresql.database.clone().filter(|name| !name.is_empty());
        theirs.unwrap_or_else(|| "postgres".to_owned())
    }
}
