//! Whether the gate could ask the other members: now and then a new login is tried with each, as `warden gate` would.
//!
//! The session that a watcher keeps was perhaps opened before a rule in pg_hba.conf changed, or a password did. So a
//! login that the gate lacks would come to light in the failover.

use super::members::Targets;
use super::postgres::{self, Place};
use super::{Closed, Events};
use crate::config::Superuser;
use std::time::Duration;
use tokio::sync::watch as latest;
use tokio::time::{sleep, timeout};
use warden_core::event::{Event, PostgresAnswer};
use warden_core::types::MemberName;

/// Between two rounds, with jitter.
const PERIOD: Duration = Duration::from_secs(60);

/// The first round comes soon after the start, once the members are known.
const FIRST: Duration = Duration::from_secs(5);

/// As long as the gate waits for a session.
const LIMIT: Duration = Duration::from_secs(1);

/// Tries until the agent shuts down.
pub async fn watch(
    own: MemberName,
    login: Superuser,
    targets: latest::Receiver<Targets>,
    events: Events,
) -> Result<(), Closed> {
    let mut pause = FIRST;
    loop {
        sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
        pause = PERIOD;
        let members = targets.borrow().clone();
        for (member, target) in members.into_iter().filter(|(member, _)| *member != own) {
            let Some((host, port)) = target.postgres else { continue };
            let at = events.clock.now();
            if let Some(outcome) = attempt(&Place::Tcp(host, port), &login).await {
                events.send(at, Event::GateChecked { member, outcome }).await?;
            }
        }
    }
}

/// Whether a login works; `None` where the server could not be asked at all, which says nothing of the login.
async fn attempt(place: &Place, login: &Superuser) -> Option<Result<(), String>> {
    let config = postgres::client_config(place, login);
    let attempt = timeout(LIMIT, postgres::connect(&config, place.sslmode(login))).await.ok()?;
    let Err(error) = attempt else { return Some(Ok(())) };
    match postgres::answer_of_error(&error) {
        PostgresAnswer::Unknown(why) => Some(Err(why)),
        _ => None,
    }
}
