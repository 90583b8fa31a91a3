//! Checks that the gate could ask the other members. The agent tries a new login with each member every minute, as
//! `warden gate` would.
//!
//! A watcher may have opened its session before a change of pg_hba.conf or of a password. Without this check, a refused
//! login would show only in the failover.

use crate::client::postgres::{self, Place};
use crate::config::Superuser;
use crate::events::{Closed, Events};
use crate::targets::Targets;
use std::time::Duration;
use tokio::sync::watch as latest;
use tokio::time::{sleep, timeout};
use warden_core::event::{Event, MemberEvent, PostgresAnswer};
use warden_core::types::MemberName;

/// Between two rounds, with jitter.
const ROUND_INTERVAL: Duration = Duration::from_secs(60);

/// Before the first round, with jitter. The agent knows the members by then.
const FIRST_ROUND_DELAY: Duration = Duration::from_secs(5);

/// The limit for a login. The gate waits as long for a session.
const LOGIN_LIMIT: Duration = Duration::from_secs(1);

/// Tries the logins until the agent shuts down.
pub async fn watch(
    own: MemberName,
    login: Superuser,
    targets: latest::Receiver<Targets>,
    events: Events,
) -> Result<(), Closed> {
    let mut pause = FIRST_ROUND_DELAY;
    loop {
        sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
        pause = ROUND_INTERVAL;
        let members = targets.borrow().clone();
        for (member, target) in members.into_iter().filter(|(member, _)| *member != own) {
            let Some((host, port)) = target.postgres else { continue };
            let at = events.clock.now();
            if let Some(outcome) = attempt(&Place::Tcp(host, port), &login).await {
                events.send(at, Event::Member(member, MemberEvent::GateChecked(outcome))).await?;
            }
        }
    }
}

/// Tries a login; the error says why the server refused it. `None` if the agent could not reach the server.
async fn attempt(place: &Place, login: &Superuser) -> Option<Result<(), String>> {
    let config = postgres::client_config(place, login);
    let attempt = timeout(LOGIN_LIMIT, postgres::connect(&config, place.sslmode(login))).await.ok()?;
    let Err(error) = attempt else { return Some(Ok(())) };
    match postgres::answer_of_error(&error) {
        PostgresAnswer::Unknown(why) => Some(Err(why)),
        _ => None,
    }
}
