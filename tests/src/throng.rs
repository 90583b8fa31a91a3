//! Clients that keep a server busy: each opens a session, runs one query, disconnects, and connects again at once.

use crate::stack::session_within;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

/// Ordinary users. Their password is their name.
const USER: &str = "writer";

/// Longer than any HAProxy makes a client wait. So a client that fails was refused, and did not give up.
const LIMIT: Duration = Duration::from_secs(30);

/// The pause of a client after a refusal.
const AGAIN: Duration = Duration::from_millis(100);

/// The outcomes of their visits.
#[derive(Clone, Debug, Default)]
pub struct Visits {
    /// For each visit that was served: when the answer arrived, and whether it came from a standby.
    pub served: Vec<(Instant, bool)>,
    /// For each visit that was refused: when, and why.
    pub refused: Vec<(Instant, String)>,
}

impl Visits {
    /// The longest time between two visits that were served.
    pub fn longest_outage(&self) -> Duration {
        let mut times: Vec<Instant> = self.served.iter().map(|(at, _)| *at).collect();
        times.sort_unstable();
        times.iter().zip(times.iter().skip(1)).map(|(a, b)| *b - *a).max().unwrap_or_default()
    }

    /// How many visits were served between these two moments.
    pub fn served_within(&self, from: Instant, until: Instant) -> usize {
        self.served.iter().filter(|(at, _)| (from..=until).contains(at)).count()
    }

    /// How many of these reached a standby.
    pub fn misrouted_within(&self, from: Instant, until: Instant) -> usize {
        self.served.iter().filter(|(at, standby)| *standby && (from..=until).contains(at)).count()
    }

    /// How many visits were refused between these two moments, by reason.
    pub fn refused_within(&self, from: Instant, until: Instant) -> BTreeMap<String, usize> {
        let mut reasons = BTreeMap::new();
        for (_, why) in self.refused.iter().filter(|(at, _)| (from..=until).contains(at)) {
            *reasons.entry(why.clone()).or_default() += 1;
        }
        reasons
    }
}

/// Clients at work. Dropping this ends them.
#[derive(Debug)]
pub struct Throng {
    visits: Arc<Mutex<Visits>>,
    _clients: JoinSet<()>,
}

impl Throng {
    /// Starts `clients` clients of this port. Writers must have started before, because they create the user.
    pub fn start(port: u16, clients: usize) -> Self {
        Self::paced(port, clients, Duration::ZERO)
    }

    /// The same with this pause after each visit.
    pub fn paced(port: u16, clients: usize, pause: Duration) -> Self {
        let visits = Arc::new(Mutex::new(Visits::default()));
        let mut all = JoinSet::new();
        for nth in 0..clients {
            let visits = Arc::clone(&visits);
            all.spawn(async move {
                // The clients start one by one, and not all in one moment.
                sleep(Duration::from_millis(5) * u32::try_from(nth).unwrap_or(0)).await;
                client(port, &visits, pause).await;
            });
        }
        Self { visits, _clients: all }
    }

    /// The outcomes so far.
    pub fn visits(&self) -> Visits {
        self.visits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn client(port: u16, visits: &Mutex<Visits>, pause: Duration) {
    loop {
        let visited = async {
            let session = session_within(port, USER, LIMIT).await?;
            visit(&session).await
        };
        let outcome = visited.await;
        let pause = if note(visits, outcome) { pause } else { pause.max(AGAIN) };
        if !pause.is_zero() {
            sleep(pause).await;
        }
    }
}

/// Notes an outcome. Returns whether the visit was served.
fn note(visits: &Mutex<Visits>, outcome: anyhow::Result<bool>) -> bool {
    let mut seen = visits.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    match outcome {
        Ok(standby) => seen.served.push((now, standby)),
        Err(error) => {
            seen.refused.push((now, reason(&error)));
            return false;
        }
    }
    true
}

/// One visit. Returns whether the server is a standby.
async fn visit(session: &Client) -> anyhow::Result<bool> {
    let asked = session.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]);
    Ok(timeout(LIMIT, asked).await??.get(0))
}

/// The reason, in the same words for all errors of one kind.
fn reason(error: &anyhow::Error) -> String {
    let by_server = error.chain().find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>()?.as_db_error());
    by_server.map_or_else(|| error.root_cause().to_string(), |error| error.message().to_owned())
}
