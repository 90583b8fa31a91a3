//! `warden gate --check`: reports the facts that the gate can establish from here. It promotes and stops no server.

use super::{AGENT_LIMIT, Gate};
use crate::act::fence::old_primary::{ask_old_primary, is_superuser};
use crate::act::fence::session::CONNECT_LIMIT;
use crate::cli::{Failure, load, runtime};
use crate::client::postgres::Place;
use std::path::Path;
use tokio::time::timeout;
use warden_core::evidence::Standing;
use warden_core::rules::gate::{Found, Other, Picture};

/// The error counts the facts that the gate cannot establish.
pub(super) fn main(path: &Path) -> Result<(), Failure> {
    let config = load(path)?;
    let gate =
        Gate::new(path, &config).map_err(|why| Failure::Failed(anyhow::anyhow!("the gate does nothing: {why}")))?;
    let runtime = runtime()?;
    let missing = runtime.block_on(gate.check());
    runtime.shutdown_background();
    if missing == 0 {
        return Ok(());
    }
    Err(Failure::Failed(anyhow::anyhow!(
        "{missing} of these facts would be missing in a failover; the gate would allow the promotion without them"
    )))
}

impl Gate<'_> {
    /// Prints a line for each fact, and returns the number of missing ones.
    async fn check(&self) -> u32 {
        let mut missing = 0;
        let mut line = |good: bool, what: String| {
            println!("{} {what}", if good { "ok     " } else { "MISSING" });
            missing += u32::from(!good);
        };
        let agent = timeout(AGENT_LIMIT, self.ask_agent()).await;
        let address = &self.config.http.connect_address;
        match &agent {
            Ok(Ok(_)) => line(true, format!("the agent at {address} answers")),
            Ok(Err(error)) => line(false, format!("the agent does not answer: {error:#} (http.connect_address)")),
            Err(_) => line(false, format!("the agent at {address} does not answer (http.connect_address)")),
        }
        let picture = if let Ok(Ok(picture)) = agent { Some(picture) } else { self.picture().await };
        let Some(picture) = picture else {
            line(false, "neither the agent nor ZooKeeper knows the holder of the leader key".to_owned());
            return missing;
        };
        for other in &picture.others {
            let (good, what) = self.check_other(other, &picture).await;
            line(good, what);
        }
        missing
    }

    async fn check_other(&self, other: &Other, picture: &Picture) -> (bool, String) {
        let name = &other.name;
        let standing = match &other.standing {
            Standing::Standby(by) => format!("{name} is a standby according to {by}"),
            Standing::Writable => format!("{name} takes writes"),
            Standing::WasWritable => format!("{name} took writes in its last answer"),
            Standing::Unknown => format!("{name} is in an unknown state"),
        };
        let Some((host, port)) = other.place.clone() else { return (true, format!("{standing}; it has no address")) };
        let place = Place::Tcp(host, port);
        let found = ask_old_primary(&place, self.login, picture.system_id, CONNECT_LIMIT).await;
        if !matches!(found, Found::NoLogin(_)) && is_superuser(&place, self.login).await == Some(false) {
            let role = &self.login.username;
            return (false, format!("{standing}; the gate can ask it, but cannot stop it: {role} is no superuser"));
        }
        match found {
            Found::NoLogin(why) => (
                false,
                format!(
                    "{standing}; the gate cannot ask it: {why} (pg_hba.conf has to admit {} from this node, and the \
                     gate needs the password: WARDEN_SUPERUSER_PASSWORD)",
                    self.login.username
                ),
            ),
            Found::Silent => (false, format!("{standing}; it does not answer this node")),
            Found::Harmless(what) => (true, format!("{standing}; its answer to this node: {what}")),
            Found::Writable(_) => (true, format!("{standing}; its answer to this node: it takes writes")),
            Found::Starting => (true, format!("{standing}; its answer to this node: it is starting")),
            Found::Stopping => (true, format!("{standing}; its answer to this node: it is shutting down")),
        }
    }
}
