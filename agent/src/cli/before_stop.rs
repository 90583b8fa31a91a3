//! `warden before-stop`: Patroni's `postgresql.before_stop` hook.
//!
//! PostgreSQL refuses new sessions from the moment in which it is told to stop, and those that are open end some 10 to 40
//! ms later. The end of its own session is the first sign that the agent beside HAProxy has of it, and what makes new
//! connections wait. So these sessions are ended first, and nobody is refused: a sign that only a superuser can give, that
//! needs no way of its own, and that costs new connections 50 ms where the server then goes on.
//!
//! It never keeps Patroni from stopping its server: whatever goes wrong is said, and it ends within [`LIMIT`].

use super::runtime;
use crate::config::{Config, FencingMode, Superuser};
use crate::watch::postgres::{Place, SESSIONS, client_config, connect};
use std::path::Path;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::SimpleQueryMessage;

/// All of it takes no longer.
const LIMIT: Duration = Duration::from_millis(500);

/// So long those whose session ended have to tell their HAProxy.
const HEARD: Duration = Duration::from_millis(10);

pub(super) fn main(path: &Path) {
    let config = match Config::load_for_gate(path) {
        Ok((config, _)) => config,
        Err(error) => return eprintln!("warden before-stop: {error}"),
    };
    let (Some(node), Some(login)) = (&config.node, &config.superuser) else {
        return eprintln!("warden before-stop: no node section in {}, or no superuser", path.display());
    };
    // It serves routing, which goes on where nobody is fenced.
    if config.fencing.mode == FencingMode::Observe {
        return;
    }
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return eprintln!("warden before-stop: {error:#}"),
    };
    match runtime.block_on(async { timeout(LIMIT, end_sessions(&Place::beside(node), login)).await }) {
        Ok(Ok(0)) => {}
        Ok(Ok(ended)) => eprintln!("warden before-stop: ended {ended} sessions of agents elsewhere"),
        Ok(Err(error)) => eprintln!("warden before-stop: {error}"),
        Err(_) => eprintln!("warden before-stop: not within {} ms", LIMIT.as_millis()),
    }
    runtime.shutdown_background();
}

/// Ends the sessions that agents on other machines have with this server, where it takes writes, and returns how many.
async fn end_sessions(place: &Place, login: &Superuser) -> Result<u32, tokio_postgres::Error> {
    let mut config = client_config(place, login);
    config.application_name("warden-before-stop");
    let (client, connection) = connect(&config, place.sslmode(login)).await?;
    let asked = async {
        let ended = client.simple_query(&statement()).await?;
        let count = ended.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        Ok(count.unwrap_or(0))
    };
    let ended = tokio::select! {
        ended = asked => ended?,
        () = connection => 0,
    };
    if ended > 0 {
        sleep(HEARD).await;
    }
    Ok(ended)
}

fn statement() -> String {
    format!(
        "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
         WHERE application_name = '{SESSIONS}' AND client_addr IS NOT NULL AND NOT pg_catalog.pg_is_in_recovery()"
    )
}
