//! Wakes the local Patroni, and asks the local standby to retry streaming.

use crate::client::patroni::PatroniClient;
use crate::client::postgres::{self, Place};
use crate::client::root_cause;
use crate::config::Superuser;
use crate::events::Events;
use crate::targets::Probes;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use warden_core::event::{Event, Outcome, Report};
use warden_core::plan::{LocalAction, Step};

/// The time limit of a reconnect, with the login.
const RECONNECT_LIMIT: Duration = Duration::from_secs(1);

/// Ends the pause of a standby before its next attempt to connect, if it does not stream.
const RETRY_STREAMING: &str = "SELECT pg_catalog.pg_reload_conf() \
    WHERE pg_catalog.pg_is_in_recovery() AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_wal_receiver)";

/// The actor's dependencies.
pub struct Nudger {
    /// For the nudge.
    pub client: PatroniClient,
    /// The URL of the local Patroni's REST API.
    pub api: Option<String>,
    /// The address of the local PostgreSQL, and the superuser.
    pub local: Option<(Place, Superuser)>,
    /// To ask for a new look at PostgreSQL.
    pub probes: Probes,
    /// For the reports to the loop.
    pub events: Events,
}

/// Carries out steps, one after the other, until the loop ends.
pub async fn run(steps: &mut mpsc::Receiver<Step<LocalAction>>, nudger: &Nudger) -> anyhow::Result<()> {
    while let Some(Step { action, reason }) = steps.recv().await {
        let report = match action {
            LocalAction::Nudge => Report::Nudged(nudger.nudge(&reason).await),
            LocalAction::Reconnect => {
                let outcome = nudger.reconnect(&reason).await;
                // The loop needs to know whether the standby streams now.
                nudger.probes.own.notify_one();
                Report::Reconnected(outcome)
            }
        };
        nudger.events.send(nudger.events.clock.now(), Event::Report(report)).await?;
    }
    Ok(())
}

impl Nudger {
    async fn nudge(&self, reason: &str) -> Outcome {
        let nudged = match &self.api {
            Some(api) => self.client.nudge(api).await,
            None => Err("there is no local Patroni".to_owned()),
        };
        match nudged {
            Ok(()) => {
                tracing::info!(event = "patroni_nudged", reason, "Patroni nudged");
                Outcome::Done
            }
            Err(why) => {
                tracing::warn!(event = "nudge_failed", reason, why, "nudge of Patroni failed");
                Outcome::Failed(why)
            }
        }
    }

    async fn reconnect(&self, reason: &str) -> Outcome {
        let asked = timeout(RECONNECT_LIMIT, self.retry_streaming()).await;
        match asked.unwrap_or_else(|_| Err("PostgreSQL did not answer within 1 s".to_owned())) {
            Ok(true) => {
                tracing::info!(event = "standby_reconnect_asked", reason, "standby asked to retry streaming");
            }
            Ok(false) => tracing::debug!(reason, "the standby has retried by itself"),
            Err(why) => {
                tracing::warn!(
                    event = "standby_reconnect_failed",
                    reason,
                    why,
                    "the agent could not ask the standby to retry streaming"
                );
                return Outcome::Failed(why);
            }
        }
        Outcome::Done
    }

    /// Asks the local standby to retry. `false` if it streams already.
    async fn retry_streaming(&self) -> Result<bool, String> {
        let (place, login) = self.local.as_ref().ok_or("there is no local PostgreSQL")?;
        let session = postgres::connect(&postgres::client_config(place, login), place.sslmode(login)).await;
        let (client, driver) = session.map_err(|error| root_cause(&error))?;
        tokio::select! {
            answer = client.simple_query(RETRY_STREAMING) => {
                let messages = answer.map_err(|error| root_cause(&error))?;
                Ok(messages.iter().any(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_))))
            }
            () = driver => Err("the session ended".to_owned()),
        }
    }
}
