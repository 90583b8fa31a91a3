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
use crate::watch::root_cause;
use std::io::Write as _;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;
use tokio::time::sleep;
use tokio_postgres::SimpleQueryMessage;

/// All of it takes no longer.
const LIMIT: Duration = Duration::from_millis(500);

/// So long those whose session ended have to tell their HAProxy. Then the server's queue is as long as it gets.
const HEARD: Duration = Duration::from_millis(10);

pub(super) fn main(path: &Path) {
    let path = path.to_owned();
    let (done, ended) = mpsc::channel();
    // On a thread of its own: a file system may hang, too, and what is left of it ends with the process.
    std::thread::spawn(move || drop(done.send(work(&path))));
    let said = match ended.recv_timeout(LIMIT) {
        Ok(Ok(0)) => return,
        Ok(Ok(ended)) => format!("ended {ended} sessions of agents elsewhere"),
        Ok(Err(why)) => why,
        Err(_) => format!("not within {} ms", LIMIT.as_millis()),
    };
    // Nobody may be there to read it.
    drop(writeln!(std::io::stderr(), "warden before-stop: {said}"));
}

/// Returns how many sessions were ended; the error says what was in the way.
fn work(path: &Path) -> Result<u32, String> {
    let (config, _) = Config::load_for_gate(path).map_err(|error| error.to_string())?;
    let (Some(node), Some(login)) = (&config.node, &config.superuser) else {
        return Err(format!("no node section in {}, or no superuser", path.display()));
    };
    // It serves routing, which goes on where nobody is fenced.
    if config.fencing.mode == FencingMode::Observe {
        return Ok(0);
    }
    let runtime = runtime().map_err(|error| format!("{error:#}"))?;
    runtime.block_on(async {
        let ended = end_sessions(&Place::beside(node), login).await.map_err(|error| root_cause(&error))?;
        if ended > 0 {
            sleep(HEARD).await;
            // Whoever came before has a process of the server by then, and is not refused.
            drop(connect(&client_config(&Place::Tcp(node.host.clone(), node.port), login), login.sslmode).await);
        }
        Ok(ended)
    })
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
    tokio::select! {
        ended = asked => ended,
        () = connection => Ok(0),
    }
}

fn statement() -> String {
    format!(
        "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
         WHERE application_name = '{SESSIONS}' AND client_addr IS NOT NULL AND NOT pg_catalog.pg_is_in_recovery()"
    )
}
