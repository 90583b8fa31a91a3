//! `release:`, the conditions for a release of the leader key.

use super::Resolver;
use crate::config::file::{Asynchronous, ReleaseSection};
use crate::config::{ConfigError, NodeConfig, ReleaseConfig};
use serde_saphyr::Spanned;

impl Resolver<'_> {
    pub(super) fn release(&mut self, node: Option<&NodeConfig>) -> Result<ReleaseConfig, ConfigError> {
        let section = self.file.release.take().unwrap_or_default();
        let ReleaseSection { enabled, handover, asynchronous, after_ms, patroni_is_pid_1 } = section;
        let asynchronous = self.asynchronous(asynchronous)?;
        let (enabled, line) = enabled.map_or((false, 0), |enabled| (enabled.value, enabled.defined.line()));
        let (after_ms, after_line) = after_ms.map_or((50, 0), |after| (after.value, after.defined.line()));
        let patroni_is_pid_1 = patroni_is_pid_1.unwrap_or(false);
        if after_ms > 10_000 {
            let problem = format!("{after_ms} ms is out of range");
            return Err(ConfigError::new(self.path, "release.after_ms", problem, "use 0 to 10000").at(after_line));
        }
        let refuse = |problem, remedy| Err(ConfigError::new(self.path, "release.enabled", problem, remedy).at(line));
        if enabled && !patroni_is_pid_1 {
            return refuse(
                "the backends of a crashed leader can outlive Patroni, and the agent cannot see them",
                "start Patroni as process 1 of its container and set release.patroni_is_pid_1: true, or leave \
                 release.enabled off",
            );
        }
        if enabled && node.is_some_and(|node| node.alive_lock.is_none() || node.socket_dir.is_none()) {
            return refuse(
                "without the alive lock and PostgreSQL's socket nothing proves that a leader is dead, so the agent \
                 would never release the leader key",
                "set node.alive_lock and share PostgreSQL's socket (node.socket_dir), or leave release.enabled off",
            );
        }
        Ok(ReleaseConfig { enabled, handover: handover.unwrap_or(false), asynchronous, after_ms, patroni_is_pid_1 })
    }

    /// Returns the seconds for which the agent leaves the key if no synchronous standby can take over; `None` for
    /// `never`.
    fn asynchronous(&self, given: Option<Spanned<Asynchronous>>) -> Result<Option<u64>, ConfigError> {
        let Some(given) = given else { return Ok(None) };
        match given.value {
            Asynchronous::Seconds(seconds) if seconds <= 3600 => Ok(Some(seconds)),
            Asynchronous::Word(word) if word == "never" => Ok(None),
            Asynchronous::Seconds(_) | Asynchronous::Word(_) => {
                let problem = "it is neither \"never\" nor a number of seconds up to 3600";
                let remedy =
                    "write never, or the seconds that the old node gets to come back before a release may lose rows";
                Err(ConfigError::new(self.path, "release.asynchronous", problem, remedy).at(given.defined.line()))
            }
        }
    }
}
