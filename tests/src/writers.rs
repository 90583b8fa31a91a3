//! Writers that write through every fault, through the proxy and straight to each node. They remember every row that
//! was acknowledged to them, with its time.
//!
//! Each acknowledgement carries the server's timeline. So "two nodes took writes at once" needs only this machine's
//! clock: a row acknowledged on an older timeline *after* one on a newer timeline.

use crate::promise::kept;
use crate::stack::{NODES, Stack, session_as, wait_for_session};
use anyhow::{Context, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

/// The pause between two rows.
const PACE: Duration = Duration::from_millis(20);

/// The limit for the first rows.
const FIRST: Duration = Duration::from_secs(120);

/// A writer gives up its session after this long without an answer, and the row counts as not acknowledged. Straight to
/// a node it waits longer than any node is paused. The sessions that are open when a node wakes are the ones that do
/// harm.
const PATIENCE: Duration = Duration::from_secs(3);
const PATIENCE_STRAIGHT: Duration = Duration::from_secs(90);

/// The writers are ordinary users, so that they do not take the slots that the server reserves for superusers. Their
/// password is their name.
const USER: &str = "writer";

/// The way from a writer to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// Through HAProxy, in one session that lasts as long as possible.
    Proxy,
    /// Through HAProxy, with a session for each row.
    ProxyPerRow,
    /// Straight to a node, by container name.
    Node(&'static str),
    /// Through another HAProxy in front of the same nodes, on this port of this machine.
    Beside {
        /// The port.
        port: u16,
        /// Whether each row has a session of its own.
        per_row: bool,
    },
}

impl Route {
    /// Every route of a stack without further HAProxys.
    pub const ALL: [Self; 4] = [Self::Proxy, Self::ProxyPerRow, Self::Node(NODES[0].0), Self::Node(NODES[1].0)];

    fn name(self) -> String {
        match self {
            Self::Proxy => "proxy".to_owned(),
            Self::ProxyPerRow => "proxy, a session for each row".to_owned(),
            Self::Node(node) => node.to_owned(),
            Self::Beside { port, per_row: false } => format!("port {port}"),
            Self::Beside { port, per_row: true } => format!("port {port}, a session for each row"),
        }
    }

    const fn has_a_session_per_row(self) -> bool {
        matches!(self, Self::ProxyPerRow | Self::Beside { per_row: true, .. })
    }

    fn port(self, stack: &Stack) -> u16 {
        match self {
            Self::Proxy | Self::ProxyPerRow => stack.ports.proxy,
            Self::Node(node) => stack.node_port(node),
            Self::Beside { port, .. } => port,
        }
    }
}

/// The guarantee of an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    /// As the cluster is configured: a synchronous standby has the row too. A primary that has lost its standby
    /// acknowledges no more rows.
    Synchronous,
    /// Only the server that was asked has the row. So a second primary shows at once.
    Local,
}

impl Commit {
    const fn setting(self) -> &'static str {
        match self {
            Self::Synchronous => "SET synchronous_commit = on",
            Self::Local => "SET synchronous_commit = local",
        }
    }
}

/// A row that a server acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The row's number within its writer.
    pub row: u64,
    /// When the writer began: before it opened its session, if it needed a new one.
    pub begun: Instant,
    /// When the writer sent the row.
    pub sent: Instant,
    /// When the writer received the acknowledgement.
    pub at: Instant,
    /// The same, by the wall clock, for comparison with the agents' answers.
    pub wall: SystemTime,
    /// The server's timeline.
    pub timeline: u32,
}

/// A failed attempt at a row.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When the writer began.
    pub begun: Instant,
    /// When the writer knew of the failure.
    pub at: Instant,
    /// The reason.
    pub why: String,
}

/// All acknowledgements and failures of one writer.
#[derive(Clone, Debug, Default)]
pub struct Story {
    /// The acknowledged rows in order.
    pub acks: Vec<Ack>,
    /// The failed attempts.
    pub errors: Vec<Failure>,
}

impl Story {
    /// The longest time between two consecutive acknowledgements, and when it began.
    pub fn longest_outage(&self) -> Option<(Duration, Instant)> {
        self.acks.iter().zip(self.acks.iter().skip(1)).map(|(a, b)| (b.at - a.at, a.at)).max()
    }

    /// The number of acknowledgements after `since`.
    pub fn acks_since(&self, since: Instant) -> usize {
        self.acks.iter().filter(|ack| ack.at >= since).count()
    }
}

/// Writers at work on a stack.
#[derive(Debug)]
pub struct Writers {
    stories: BTreeMap<Route, Arc<Mutex<Story>>>,
    tasks: JoinSet<()>,
    run: String,
}

impl Writers {
    /// Starts a writer on every route, and waits until rows arrive through the proxy.
    pub async fn start(stack: &Stack, commit: Commit) -> anyhow::Result<Self> {
        Self::start_on(stack, commit, &Route::ALL).await
    }

    /// The same on these routes.
    pub async fn start_on(stack: &Stack, commit: Commit, routes: &[Route]) -> anyhow::Result<Self> {
        let setup = wait_for_session(stack.ports.proxy, FIRST).await.context("no session through the proxy")?;
        let prepare = format!(
            "DO $$ BEGIN \
                CREATE ROLE {USER} LOGIN PASSWORD '{USER}'; \
                EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; \
             END $$; \
             CREATE TABLE IF NOT EXISTS truth (run text, writer text, row bigint, PRIMARY KEY (run, writer, row)); \
             GRANT ALL ON truth TO {USER}"
        );
        timeout(FIRST, setup.batch_execute(&prepare)).await.context("the table of the writers cannot be made")??;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let run = since_epoch.as_nanos().to_string();
        let mut tasks = JoinSet::new();
        let mut stories = BTreeMap::new();
        for route in routes.iter().copied() {
            let story = Arc::new(Mutex::new(Story::default()));
            tasks.spawn(write(route, route.port(stack), commit, run.clone(), Arc::clone(&story)));
            stories.insert(route, story);
        }
        let writers = Self { stories, tasks, run };
        crate::wait::until("rows through the proxy", FIRST, || async {
            ensure!(writers.story(Route::Proxy).acks.len() > 5, "{:?}", writers.story(Route::Proxy).errors.last());
            Ok(())
        })
        .await?;
        Ok(writers)
    }

    /// A view of the writers while they write.
    pub fn pulse(&self) -> Pulse {
        Pulse { stories: self.stories.clone() }
    }

    /// The story of the writer on `route` so far.
    pub fn story(&self, route: Route) -> Story {
        self.stories
            .get(&route)
            .map(|story| story.lock().unwrap_or_else(PoisonError::into_inner).clone())
            .unwrap_or_default()
    }

    /// Stops the writers and compares their acknowledgements with the primary's rows. The cluster must be whole again.
    pub async fn stop(mut self, stack: &Stack) -> anyhow::Result<Report> {
        self.tasks.shutdown().await;
        let stopped = Instant::now();
        let client = wait_for_session(stack.ports.proxy, FIRST).await.context("no session through the proxy")?;
        let rows = client.query("SELECT writer, row FROM truth WHERE run = $1", &[&self.run]).await?;
        let present: BTreeSet<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let stories: BTreeMap<Route, Story> = self.stories.keys().map(|route| (*route, self.story(*route))).collect();
        let mut lost = Vec::new();
        for (route, story) in &stories {
            let is_there = |row: u64| i64::try_from(row).is_ok_and(|row| present.contains(&(route.name(), row)));
            lost.extend(story.acks.iter().filter(|ack| !is_there(ack.row)).map(|ack| (*route, *ack)));
        }
        Ok(Report { lost, dual: dual(&stories), stories, stopped })
    }
}

/// The number of rows acknowledged to each writer, at any time.
#[derive(Clone, Debug)]
pub struct Pulse {
    stories: BTreeMap<Route, Arc<Mutex<Story>>>,
}

impl Pulse {
    /// The number on `route` so far.
    pub fn acknowledged(&self, route: Route) -> usize {
        self.stories.get(&route).map_or(0, |story| story.lock().unwrap_or_else(PoisonError::into_inner).acks.len())
    }
}

/// The clients' view of a trial.
#[derive(Clone, Debug)]
pub struct Report {
    /// Acknowledged rows that are missing on the primary.
    pub lost: Vec<(Route, Ack)>,
    /// How long two servers took writes at once.
    pub dual: Duration,
    /// The story of each writer.
    pub stories: BTreeMap<Route, Story>,
    /// When the writers were stopped.
    pub stopped: Instant,
}

impl Report {
    /// The number of rows acknowledged on all routes together.
    pub fn acknowledged(&self) -> usize {
        self.stories.values().map(|story| story.acks.len()).sum()
    }

    /// The longest time in which no node acknowledged a row to a client connected straight to it, and when it began:
    /// how long there was no primary.
    pub fn without_a_primary(&self) -> Option<(Duration, Instant)> {
        let straight = self.stories.iter().filter(|(route, _)| matches!(route, Route::Node(_)));
        let mut times: Vec<Instant> = straight.flat_map(|(_, story)| story.acks.iter().map(|ack| ack.at)).collect();
        times.sort_unstable();
        times.iter().zip(times.iter().skip(1)).map(|(a, b)| (*b - *a, *a)).max()
    }

    /// The report of what the clients saw until then.
    #[must_use]
    pub fn until(mut self, at: Instant) -> Self {
        for story in self.stories.values_mut() {
            story.acks.retain(|ack| ack.at <= at);
            story.errors.retain(|failure| failure.at <= at);
        }
        self
    }

    /// The longest time without an acknowledgement on `route`.
    pub fn outage(&self, route: Route) -> Duration {
        self.stories.get(&route).and_then(Story::longest_outage).map_or(Duration::ZERO, |(outage, _)| outage)
    }

    /// Fails if two servers took writes at once.
    pub fn no_two_primaries(&self) -> anyhow::Result<()> {
        kept(self.dual.is_zero(), || format!("two servers took writes at once for {:?}", self.dual))
    }

    /// Fails if an acknowledged row is lost or two servers took writes at once.
    pub fn nothing_lost_and_no_two_primaries(&self) -> anyhow::Result<()> {
        // A report without rows proves nothing.
        let last =
            self.stories.get(&Route::Proxy).and_then(|story| story.acks.last()).context("nothing was written")?;
        let quiet = self.stopped.saturating_duration_since(last.at);
        ensure!(quiet < Duration::from_secs(30), "nothing went through the proxy in the last {quiet:?}: {self}");
        kept(self.lost.is_empty(), || {
            format!("{} acknowledged rows are lost: {:?}", self.lost.len(), self.lost.first())
        })?;
        self.no_two_primaries()
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} rows acknowledged, {} lost, two primaries for {:?}",
            self.acknowledged(),
            self.lost.len(),
            self.dual
        )?;
        for (route, story) in &self.stories {
            let outage = story.longest_outage().map_or(Duration::ZERO, |(outage, _)| outage);
            write!(f, "; {}: {} rows, longest outage {outage:.1?}", route.name(), story.acks.len())?;
        }
        Ok(())
    }
}

/// The time from the first to the last row of an older timeline that counts. A row counts if it was *sent* after a row
/// on a newer timeline was acknowledged. A row that was sent earlier proves nothing: it may have been in transit, or
/// this process slow to read it.
fn dual(stories: &BTreeMap<Route, Story>) -> Duration {
    let acks: Vec<&Ack> = stories.values().flat_map(|story| &story.acks).collect();
    let mut firsts: BTreeMap<u32, Instant> = BTreeMap::new();
    for ack in &acks {
        firsts.entry(ack.timeline).and_modify(|first| *first = ack.at.min(*first)).or_insert(ack.at);
    }
    let stale = |ack: &&&Ack| {
        let newer = firsts.range(ack.timeline.saturating_add(1)..).map(|(_, first)| *first).min();
        newer.is_some_and(|first| ack.sent > first)
    };
    let from = acks.iter().filter(stale).map(|ack| ack.sent).min();
    let until = acks.iter().filter(stale).map(|ack| ack.at).max();
    from.zip(until).map_or(Duration::ZERO, |(from, until)| until.saturating_duration_since(from))
}

async fn write(route: Route, port: u16, commit: Commit, run: String, story: Arc<Mutex<Story>>) {
    let mut client: Option<Client> = None;
    let mut row = 0;
    let patience = if matches!(route, Route::Node(_)) { PATIENCE_STRAIGHT } else { PATIENCE };
    loop {
        row += 1;
        let next = tokio::time::sleep(PACE);
        let begun = Instant::now();
        let attempt = async {
            let open = match client.take() {
                Some(open) if !open.is_closed() => open,
                _ => {
                    let new = session_as(port, USER).await?;
                    timeout(PATIENCE, new.batch_execute(commit.setting())).await.context("no answer")??;
                    new
                }
            };
            let insert = format!(
                "INSERT INTO truth VALUES ('{run}', '{}', {row}) \
                 RETURNING ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int",
                route.name()
            );
            let sent = Instant::now();
            // The simple protocol's answer is complete only after the server's commit.
            let messages = match timeout(patience, open.simple_query(&insert)).await.context("no answer")? {
                Ok(messages) => messages,
                Err(error) => {
                    // The writer keeps a session with a standby. A new session for each refusal would be most of its
                    // work.
                    let refused = error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION);
                    client = (refused && !route.has_a_session_per_row()).then_some(open);
                    return Err(error.into());
                }
            };
            let timeline = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
                _ => None,
            });
            anyhow::Ok((open, sent, timeline.context("no timeline")?))
        };
        let done = attempt.await;
        let at = Instant::now();
        {
            let mut story = story.lock().unwrap_or_else(PoisonError::into_inner);
            match done {
                Ok((open, sent, timeline)) => {
                    story.acks.push(Ack { row, begun, sent, at, wall: SystemTime::now(), timeline });
                    client = (!route.has_a_session_per_row()).then_some(open);
                }
                Err(error) => story.errors.push(Failure { begun, at, why: format!("{error:#}") }),
            }
        }
        next.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn story(start: Instant, acks: &[(u64, u32)]) -> Story {
        let ack = |(ms, timeline): &(u64, u32)| Ack {
            row: *ms,
            begun: start,
            sent: start + Duration::from_millis(ms.saturating_sub(1)),
            at: start + Duration::from_millis(*ms),
            wall: UNIX_EPOCH,
            timeline: *timeline,
        };
        Story { acks: acks.iter().map(ack).collect(), errors: Vec::new() }
    }

    #[test]
    fn two_primaries_are_rows_on_an_older_timeline_after_rows_on_a_newer_one() {
        let start = Instant::now();
        type Acks = &'static [(u64, u32)];
        let cases: [(Acks, Acks, u64); 6] = [
            (&[(1, 1), (2, 1)], &[(3, 2), (4, 2)], 0),
            (&[(1, 1), (5, 1)], &[(3, 2), (4, 2)], 1),
            (&[(1, 1), (6, 1), (9, 1)], &[(3, 2), (4, 2)], 4),
            // This row was sent before the other was acknowledged.
            (&[(1, 1), (4, 1)], &[(3, 2), (9, 2)], 0),
            (&[(1, 1), (9, 3)], &[(3, 2), (7, 2)], 0),
            (&[(1, 1), (9, 1)], &[], 0),
        ];
        for (a, b, expected) in cases {
            let stories = BTreeMap::from([(Route::Proxy, story(start, a)), (Route::ProxyPerRow, story(start, b))]);
            assert_eq!(dual(&stories), Duration::from_millis(expected), "{a:?} {b:?}");
        }
    }

    #[test]
    fn an_outage_is_the_longest_gap_between_two_rows() {
        let start = Instant::now();
        let (longest, began) = story(start, &[(1, 1), (3, 1), (30, 1), (31, 1)]).longest_outage().unwrap();
        assert_eq!((longest, began), (Duration::from_millis(27), start + Duration::from_millis(3)));
    }
}
