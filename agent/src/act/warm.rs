//! A superuser session that is kept ready, so that a fence needs no more than one statement on it.
//!
//! What the statement needs is found out beforehand: the number of the postmaster, and what the server's clock shows.

use crate::watch::{postgres, root_cause};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};
use warden_core::decide::FENCE_RENEWED;
use warden_core::types::Timeline;

/// How long a session may take to begin.
pub const CONNECT: Duration = Duration::from_secs(1);

/// A session that is ready is asked for no longer than this whether the server is in recovery.
pub const GLANCE: Duration = Duration::from_millis(100);

/// A statement in front of a silent server is good for this long: two renewals and a bit, so that there is always one.
const GOOD_FOR: Duration = Duration::from_secs(FENCE_RENEWED.as_secs() * 2 + 2);

/// No more statements than this lie in front of a silent server: one every 10 s for more than an hour, 0.5 KiB each.
const MOST_LYING: u32 = 512;

/// What the statement says where it does nothing, because it comes too late.
pub const EXPIRED: &str = "Warden: this fence has expired";
/// The same, where it is not the server that was meant.
pub const NOT_THE_ONE: &str = "Warden: it is on the leader's timeline, so it is not the one";

/// Why no session is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// In words.
    pub why: String,
    /// It may be another way in a moment: every slot is taken, or somebody ended the session.
    pub in_passing: bool,
    /// The server is down or shuts down.
    pub by_shutdown: bool,
}

/// A session that is ready: a fence needs no more than one statement on it.
pub struct Warm {
    client: Arc<Client>,
    /// The server's postmaster, in its own numbering.
    postmaster: u32,
    /// The server's clock, seconds since 1970, and when it showed that.
    clock: (f64, Instant),
    /// Until when the statement is good that lies in front of the server, if one does.
    lies_until: Option<Instant>,
    /// How many have been sent since the server last answered.
    lying: u32,
    /// Ends with the session.
    driver: JoinHandle<()>,
}

impl Drop for Warm {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Warm {
    /// Finds out what a fence needs to know.
    pub async fn ready((client, driver): (Client, postgres::Driver)) -> Result<Self, NotReady> {
        let (client, driver) = (Arc::new(client), tokio::spawn(driver));
        let clock = (0.0, Instant::now());
        let mut warm = Self { client, postmaster: 0, clock, lies_until: None, lying: 0, driver };
        warm.measure().await?;
        Ok(warm)
    }

    /// The postmaster's number, and the server's clock.
    pub async fn measure(&mut self) -> Result<(), NotReady> {
        let question = "SELECT split_part(pg_catalog.pg_read_file('postmaster.pid'), E'\\n', 1), \
                               extract(epoch FROM pg_catalog.clock_timestamp())::float8";
        let lasting = |why: &str| NotReady { why: why.to_owned(), in_passing: false, by_shutdown: false };
        let asked = timeout(CONNECT, self.client.simple_query(question)).await;
        let answer = asked.map_err(|_| lasting("no answer within 1 s"))?;
        // Taken when the answer is there, so that the server's clock shows more than we think, and a limit comes sooner.
        let at = Instant::now();
        let messages = answer.map_err(|error| NotReady {
            why: format!("postmaster.pid cannot be read: {}", root_cause(&error)),
            in_passing: ended(&error),
            by_shutdown: ended(&error),
        })?;
        let (pid, clock) = messages
            .iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => {
                    Some((row.get(0)?.trim().parse::<u32>().ok()?, row.get(1)?.parse::<f64>().ok()?))
                }
                _ => None,
            })
            .filter(|(pid, _)| *pid > 0)
            .ok_or_else(|| lasting("postmaster.pid names no process"))?;
        self.postmaster = pid;
        self.clock = (clock, at);
        Ok(())
    }

    /// What the server's clock shows when ours will have gone on for `by`.
    fn server_time(&self, by: Duration) -> f64 {
        let (shown, at) = self.clock;
        shown + (at.elapsed() + by).as_secs_f64()
    }

    /// Whether a statement lies in front of the server that is good until after the next renewal, or no more may.
    pub fn has_order(&self) -> bool {
        self.lying >= MOST_LYING || self.lies_until.is_some_and(|until| until > Instant::now() + FENCE_RENEWED)
    }

    /// The postmaster's number as the server tells it.
    pub const fn postmaster(&self) -> u32 {
        self.postmaster
    }

    /// Whether the session is over.
    pub fn is_over(&self) -> bool {
        self.client.is_closed() || self.driver.is_finished()
    }

    /// It answered, so nothing lies in front of it any more.
    pub const fn answered(&mut self) {
        (self.lies_until, self.lying) = (None, 0);
    }

    /// Waits for the session's end.
    pub async fn ended(&mut self) {
        // However it ends.
        drop((&mut self.driver).await);
    }

    /// Waits for the session's end; `false` if it has not come after `limit`.
    pub async fn ends_within(&mut self, limit: Duration) -> bool {
        self.is_over() || timeout(limit, &mut self.driver).await.is_ok()
    }

    /// Whether the server is in recovery; no, where it does not say so at once.
    pub async fn is_in_recovery(&self) -> bool {
        let question = "SELECT pg_catalog.pg_is_in_recovery()";
        let Ok(Ok(messages)) = timeout(GLANCE, self.client.simple_query(question)).await else { return false };
        messages.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t")))
    }

    /// Sends the statement that has the server signal its own postmaster. It is sent at once, and stays sent whatever
    /// becomes of the task: a server that is silent finds it when it wakes, if that is before its time limit.
    pub fn order_shutdown(&mut self, signal: &str, older_than: Option<Timeline>) -> JoinHandle<Result<(), String>> {
        self.lies_until = Some(Instant::now() + GOOD_FOR);
        self.lying += 1;
        let statement = shutdown_statement(signal, self.postmaster, self.server_time(GOOD_FOR), older_than);
        let client = Arc::clone(&self.client);
        tokio::spawn(async move {
            match client.simple_query(&statement).await {
                Ok(_) => Ok(()),
                // That it ends the session is the purpose.
                Err(error) if ended(&error) => Ok(()),
                // The server's own words, which tell why it does not do it.
                Err(error) => Err(root_cause(&error)),
            }
        })
    }
}

/// Whether the session has ended, by itself or because somebody ended it.
fn ended(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none() || matches!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN))
}

/// The statement by which a server signals its own postmaster, unless it is in recovery, or it is later than `limit`
/// (seconds since 1970, by its own clock), or it is on another timeline than meant.
fn shutdown_statement(signal: &str, postmaster: u32, limit: f64, older_than: Option<Timeline>) -> String {
    let newer = older_than.map_or_else(String::new, |timeline| {
        let own = "('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int";
        format!("WHEN {own} >= {} THEN '{}'", timeline.0, NOT_THE_ONE.replace('\'', "''"))
    });
    // The first statement refuses where there is nothing to fence; then the second is not carried out. The cast is
    // of a value that is only known then, so that planning cannot trip over it.
    format!(
        "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'Warden: in recovery, so there is nothing to fence' \
                      WHEN pg_catalog.clock_timestamp() > pg_catalog.to_timestamp({limit:.3}) THEN '{EXPIRED}' {newer} \
                      ELSE '1' END)::int; \
         COPY (SELECT 1) TO PROGRAM 'kill -{signal} {postmaster}'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_limit_is_in_the_servers_own_time_and_the_timeline_is_judged_by_the_server() {
        let statement = shutdown_statement("INT", 42, 1_795_523_082.5, None);
        assert!(statement.contains("clock_timestamp() > pg_catalog.to_timestamp(1795523082.500)"), "{statement}");
        assert!(statement.ends_with("COPY (SELECT 1) TO PROGRAM 'kill -INT 42'"), "{statement}");
        assert!(!statement.contains("walfile"), "{statement}");
        let statement = shutdown_statement("QUIT", 42, 0.0, Some(Timeline(7)));
        assert!(statement.contains(">= 7 THEN 'Warden: it is on the leader''s timeline"), "{statement}");
    }
}
