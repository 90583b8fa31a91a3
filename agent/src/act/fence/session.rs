//! The fence session: a superuser session that the agent keeps open, so that a fence needs only one statement.
//!
//! The agent asks in advance for the values in the statement: the pid of the postmaster and the server's clock.

use crate::client::{postgres, root_cause};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};
use warden_core::decide::{FENCE_ORDER_LIFETIME, FENCE_RENEWAL_INTERVAL};
use warden_core::types::Timeline;

/// The time limit for opening a session.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The time limit of the question whether the server is in recovery.
pub const RECOVERY_CHECK_LIMIT: Duration = Duration::from_millis(100);

/// The maximal number of orders in the socket of a silent server. With one every 10 s, of 0.5 KiB each, they last for
/// more than an hour.
const UNANSWERED_ORDERS_MAX: u32 = 512;

/// The server's refusal of an order that is past its deadline.
pub const ORDER_EXPIRED: &str = "Warden: this fence has expired";

/// The refusal of a server that is already on the leader's timeline.
pub const ON_LEADER_TIMELINE: &str = "Warden: this server is on the leader's timeline, so the fence does not apply";

/// Why the fence session is not open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    /// The cause, for the log.
    pub why: String,
    /// An immediate retry may succeed: all connection slots are taken, or the session was terminated.
    pub is_transient: bool,
    /// The server is down or shuts down.
    pub by_shutdown: bool,
}

impl NotReady {
    /// A cause that lasts, and that is not a shutdown.
    pub fn lasting(why: &str) -> Self {
        Self { why: why.to_owned(), is_transient: false, by_shutdown: false }
    }
}

/// An open fence session.
pub struct KeptSession {
    client: Arc<Client>,
    /// The postmaster's pid in the server's own pid namespace.
    postmaster: u32,
    /// The server's clock, in seconds since 1970, and the local time of that reading.
    clock: (f64, Instant),
    /// The deadline of the newest order that the server has not answered.
    order_valid_until: Option<Instant>,
    /// The number of orders since the server's last answer.
    unanswered_orders: u32,
    /// The task that drives the connection. It ends with the session.
    driver: JoinHandle<()>,
}

impl Drop for KeptSession {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl KeptSession {
    /// Makes a new session ready: asks for the postmaster's pid and the server's clock.
    pub async fn ready((client, driver): (Client, postgres::Driver)) -> Result<Self, NotReady> {
        let (client, driver) = (Arc::new(client), tokio::spawn(driver));
        let clock = (0.0, Instant::now());
        let mut session = Self { client, postmaster: 0, clock, order_valid_until: None, unanswered_orders: 0, driver };
        session.measure().await?;
        Ok(session)
    }

    /// Reads the postmaster's pid and the server's clock.
    pub async fn measure(&mut self) -> Result<(), NotReady> {
        let question = "SELECT split_part(pg_catalog.pg_read_file('postmaster.pid'), E'\\n', 1), \
                               extract(epoch FROM pg_catalog.clock_timestamp())::float8";
        let asked = timeout(CONNECT_LIMIT, self.client.simple_query(question)).await;
        let answer = asked.map_err(|_| NotReady::lasting("PostgreSQL did not answer within 1 s"))?;
        // The local time is taken after the answer. The server's clock is then ahead of the estimate, and a deadline
        // passes sooner.
        let at = Instant::now();
        let messages = answer.map_err(|error| NotReady {
            why: format!("PostgreSQL cannot read postmaster.pid: {}", root_cause(&error)),
            is_transient: ended(&error),
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
            .ok_or_else(|| NotReady::lasting("postmaster.pid names no process"))?;
        self.postmaster = pid;
        self.clock = (clock, at);
        Ok(())
    }

    /// The server's clock `ahead` from now, in seconds since 1970.
    fn server_time(&self, ahead: Duration) -> f64 {
        let (shown, at) = self.clock;
        shown + (at.elapsed() + ahead).as_secs_f64()
    }

    /// Whether the agent must not send another order: one is valid beyond the next renewal, or the maximum is reached.
    pub fn has_order(&self) -> bool {
        self.unanswered_orders >= UNANSWERED_ORDERS_MAX
            || self.order_valid_until.is_some_and(|until| until > Instant::now() + FENCE_RENEWAL_INTERVAL)
    }

    /// The postmaster's pid in the server's own pid namespace.
    pub const fn postmaster(&self) -> u32 {
        self.postmaster
    }

    /// Whether the session has ended.
    pub fn is_over(&self) -> bool {
        self.client.is_closed() || self.driver.is_finished()
    }

    /// Forgets the orders: the server has answered.
    pub const fn answered(&mut self) {
        (self.order_valid_until, self.unanswered_orders) = (None, 0);
    }

    /// Waits for the session's end, for any cause.
    pub async fn ended(&mut self) {
        drop((&mut self.driver).await);
    }

    /// Waits for the session's end; `false` if it lasts longer than `limit`.
    pub async fn ends_within(&mut self, limit: Duration) -> bool {
        self.is_over() || timeout(limit, &mut self.driver).await.is_ok()
    }

    /// Whether the server is in recovery. `false` also if it does not answer within [`RECOVERY_CHECK_LIMIT`].
    pub async fn is_in_recovery(&self) -> bool {
        let question = "SELECT pg_catalog.pg_is_in_recovery()";
        let asked = timeout(RECOVERY_CHECK_LIMIT, self.client.simple_query(question)).await;
        let Ok(Ok(messages)) = asked else { return false };
        messages.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t")))
    }

    /// Orders the server to signal its own postmaster.
    ///
    /// The order is sent at once, also if the returned task is dropped. A silent server obeys it when it wakes before
    /// the order's deadline. The error is the server's refusal.
    pub fn order_shutdown(&mut self, signal: &str, older_than: Option<Timeline>) -> JoinHandle<Result<(), String>> {
        self.order_valid_until = Some(Instant::now() + FENCE_ORDER_LIFETIME);
        self.unanswered_orders += 1;
        let deadline = self.server_time(FENCE_ORDER_LIFETIME);
        let statement = shutdown_statement(signal, self.postmaster, deadline, older_than);
        let client = Arc::clone(&self.client);
        tokio::spawn(async move {
            match client.simple_query(&statement).await {
                Ok(_) => Ok(()),
                // The shutdown ends the session.
                Err(error) if ended(&error) => Ok(()),
                Err(error) => Err(root_cause(&error)),
            }
        })
    }
}

/// Whether the error is the end of the session: the connection closed, or PostgreSQL terminated it.
fn ended(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none() || matches!(error.code(), Some(&SqlState::ADMIN_SHUTDOWN | &SqlState::CRASH_SHUTDOWN))
}

/// The statement by which a server signals its own postmaster.
///
/// The server refuses in recovery, after `deadline` (seconds since 1970, by its own clock), and on a timeline that is
/// not older than `older_than`.
fn shutdown_statement(signal: &str, postmaster: u32, deadline: f64, older_than: Option<Timeline>) -> String {
    let newer = older_than.map_or_else(String::new, |timeline| {
        let own = "('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int";
        format!("WHEN {own} >= {} THEN '{}'", timeline.0, ON_LEADER_TIMELINE.replace('\'', "''"))
    });
    // A cast that fails in the first statement prevents the second one. PostgreSQL knows the value only at run time,
    // so planning does not fail.
    format!(
        "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'Warden: in recovery, so there is nothing to fence' \
                      WHEN pg_catalog.clock_timestamp() > pg_catalog.to_timestamp({deadline:.3}) \
                      THEN '{ORDER_EXPIRED}' {newer} \
                      ELSE '1' END)::int; \
         COPY (SELECT 1) TO PROGRAM 'kill -{signal} {postmaster}'"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_is_in_the_servers_own_time_and_the_server_compares_the_timeline() {
        let statement = shutdown_statement("INT", 42, 1_795_523_082.5, None);
        assert!(statement.contains("clock_timestamp() > pg_catalog.to_timestamp(1795523082.500)"), "{statement}");
        assert!(statement.ends_with("COPY (SELECT 1) TO PROGRAM 'kill -INT 42'"), "{statement}");
        assert!(!statement.contains("walfile"), "{statement}");
        let statement = shutdown_statement("QUIT", 42, 0.0, Some(Timeline(7)));
        assert!(statement.contains(">= 7 THEN 'Warden: this server is on the leader''s timeline"), "{statement}");
    }
}
