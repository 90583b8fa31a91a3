//! The watcher of a PostgreSQL, on a real one. `tests/run` runs these in the node's image.

use super::*;
use crate::clock::Clock;
use crate::watch::real_postgres::{Postgres, login};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use warden_core::event::Observed;

/// A slow machine's moment.
const SOON: Duration = Duration::from_secs(10);

/// A query may be dated too early by as much.
const TIME_OF_A_QUESTION: Duration = Duration::from_millis(200);

/// A watcher, and what it tells.
struct Watching {
    task: JoinHandle<Result<(), Closed>>,
    told: mpsc::Receiver<Observed>,
    clock: Clock,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watching {
    fn start(place: Place, beside: Option<Beside>, login: Superuser) -> Self {
        let (sender, told) = mpsc::channel(64);
        let clock = Clock::start();
        let events = Events::new(sender, clock);
        let task = tokio::spawn(watch("a".into(), place, beside, login, Arc::default(), events));
        Self { task, told, clock }
    }

    /// The first answer that is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&PostgresAnswer) -> bool) -> PostgresAnswer {
        let mut last = None;
        let found = timeout(SOON, async {
            loop {
                let observed = self.told.recv().await.unwrap();
                if let Event::Postgres { answer, .. } = observed.event {
                    if wanted(&answer) {
                        return answer;
                    }
                    last = Some(answer);
                }
            }
        });
        found.await.unwrap_or_else(|_| panic!("not {what} within 10 s: {last:?}"))
    }

    async fn heartbeat(&mut self, what: &str, wanted: impl Fn(Option<Moment>) -> bool) -> Option<Moment> {
        let shown = |answer: &PostgresAnswer| answer.server().map(|server| server.heartbeat);
        shown(&self.until(what, |answer| shown(answer).is_some_and(&wanted)).await).flatten()
    }
}

/// Patroni's session, which does nothing by itself.
async fn patroni(postgres: &Postgres) -> Client {
    let mut config = client_config(&postgres.place(), &login("postgres", "postgres"));
    config.application_name("Patroni heartbeat");
    let (client, driver) = connect(&config, SslMode::Disable).await.unwrap();
    tokio::spawn(driver);
    client
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn the_server_beside_us_shows_when_patronis_ha_loop_turned_for_as_long_as_it_can() {
    let postgres = Postgres::start("");
    let mut watching = Watching::start(postgres.place(), Some(Beside::default()), login("postgres", "postgres"));
    watching.heartbeat("without a heartbeat", |shown| shown.is_none()).await;
    let before = watching.clock.now();
    let patroni_session = patroni(&postgres).await;
    let opened = watching.heartbeat("an opened session", |shown| shown.is_some()).await.unwrap();
    let early = before.since(opened);
    assert!(early < TIME_OF_A_QUESTION && opened <= watching.clock.now(), "it counts from its beginning: {early:?}");

    sleep(Duration::from_millis(300)).await;
    let before = watching.clock.now();
    patroni_session.simple_query("SELECT 1").await.unwrap();
    let began = watching.heartbeat("a query", |shown| shown.is_some_and(|at| at > opened)).await.unwrap();
    assert!(before.since(began) < TIME_OF_A_QUESTION, "{before:?} {began:?}");

    drop(patroni_session);
    sleep(Duration::from_millis(1500)).await;
    watching.heartbeat("the last query of a session that is gone", |shown| shown == Some(began)).await;

    postgres.sql("ALTER SYSTEM SET track_activities = off");
    postgres.sql("SELECT pg_reload_conf()");
    let patroni_session = patroni(&postgres).await;
    patroni_session.simple_query("SELECT 1").await.unwrap();
    watching.heartbeat("nothing to be seen", |shown| shown.is_none()).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn a_role_that_may_only_log_in_gets_an_answer() {
    let postgres = Postgres::start("");
    postgres.sql("CREATE ROLE plain LOGIN");
    for beside in [None, Some(Beside::default())] {
        let local = beside.is_some();
        let _patroni = patroni(&postgres).await;
        let mut watching = Watching::start(postgres.place(), beside, login("plain", "postgres"));
        let answer = watching.until("writable", |answer| answer.writable() == Some(true)).await;
        let server = answer.server().unwrap();
        assert!(server.system_id.is_some() && server.timeline.is_some() && server.lsn.is_some(), "{server:?}");
        assert_eq!(server.heartbeat, None, "a query of another role cannot be seen; local: {local}");
    }
}
