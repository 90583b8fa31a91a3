//! The watcher of PostgreSQL with a real server. `tests/run` runs these tests in the node's image.

use super::*;
use crate::client::control_file::tests::{RUNNING, SHUT_DOWN_IN_RECOVERY, write};
use crate::client::postgres::SESSIONS;
use crate::client::postgres::real::{Postgres, login};
use crate::clock::Clock;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use warden_core::event::{MemberEvent, Observed, SuperuserSlots};

/// The limit for an expected answer, also on a slow machine.
const WAIT_LIMIT: Duration = Duration::from_secs(10);

/// The watcher may date a query too early by as much.
const QUESTION_TIME_MAX: Duration = Duration::from_millis(200);

/// A watcher, and its reports.
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

    /// The first wanted answer.
    async fn until(&mut self, what: &str, wanted: impl Fn(&PostgresAnswer) -> bool) -> PostgresAnswer {
        let mut last = None;
        let found = timeout(WAIT_LIMIT, async {
            loop {
                let observed = self.told.recv().await.unwrap();
                if let Event::Member(_, MemberEvent::Postgres { answer, .. }) = observed.event {
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

/// A session with the name of Patroni's.
async fn patroni(postgres: &Postgres) -> Client {
    let mut config = client_config(&postgres.place(), &login("postgres", "postgres"));
    config.application_name("Patroni heartbeat");
    let (client, driver) = connect(&config, SslMode::Disable).await.unwrap();
    tokio::spawn(driver);
    client
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn the_local_server_shows_when_the_ha_loop_turned_unless_it_hides_queries() {
    let postgres = Postgres::start("");
    let mut watching = Watching::start(postgres.place(), Some(Beside::default()), login("postgres", "postgres"));
    watching.heartbeat("without a heartbeat", |shown| shown.is_none()).await;
    let before = watching.clock.now();
    let patroni_session = patroni(&postgres).await;
    let opened = watching.heartbeat("an opened session", |shown| shown.is_some()).await.unwrap();
    let early = before.since(opened);
    assert!(early < QUESTION_TIME_MAX && opened <= watching.clock.now(), "it counts from its beginning: {early:?}");

    sleep(Duration::from_millis(300)).await;
    let before = watching.clock.now();
    patroni_session.simple_query("SELECT 1").await.unwrap();
    let began = watching.heartbeat("a query", |shown| shown.is_some_and(|at| at > opened)).await.unwrap();
    assert!(before.since(began) < QUESTION_TIME_MAX, "{before:?} {began:?}");

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
async fn a_role_without_privileges_gets_a_correct_answer() {
    let postgres = Postgres::start("");
    postgres.sql("CREATE ROLE plain LOGIN");
    let standby = postgres.standby();
    let _patroni = patroni(&postgres).await;
    for beside in [None, Some(Beside::default())] {
        let mut watching = Watching::start(postgres.place(), beside.clone(), login("plain", "postgres"));
        let answer = watching.until("writable", |answer| answer.writable() == Some(true)).await;
        let server = answer.server().unwrap();
        assert!(server.system_id.is_some() && server.timeline.is_some() && server.lsn.is_some(), "{server:?}");
        assert_eq!(server.heartbeat, None, "a query of another role cannot be seen");
        assert_eq!(server.superuser_slots.is_some(), beside.is_some());

        let mut watching = Watching::start(standby.place(), beside, login("plain", "postgres"));
        let streams = |answer: &PostgresAnswer| answer.server().is_some_and(|server| server.receives == Some(true));
        let answer = watching.until("a standby that streams", streams).await;
        let server = answer.server().unwrap();
        assert!(server.system_id.is_some() && server.lsn.is_some(), "{server:?}");
        // The timeline of its last restartpoint may be older.
        assert_eq!(server.timeline, None, "the role may not see the received timeline");
    }
    let mut watching = Watching::start(standby.place(), None, login("postgres", "postgres"));
    let knows = |answer: &PostgresAnswer| answer.server().is_some_and(|server| server.timeline.is_some());
    watching.until("a standby that streams, by the superuser", knows).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn superuser_sessions_of_other_agents_are_counted() {
    let postgres = Postgres::start("-c superuser_reserved_connections=5");
    postgres.sql("CREATE ROLE plain LOGIN");
    let mut own = Watching::start(postgres.place(), Some(Beside::default()), login("postgres", "postgres"));
    let others = ["postgres", "plain", "postgres"];
    let others: Vec<Watching> =
        others.iter().map(|role| Watching::start(postgres.place(), None, login(role, "postgres"))).collect();
    let expected = Some(SuperuserSlots { reserved: 5, agents: 2 });
    own.until("two superusers", |answer| answer.server().is_some_and(|server| server.superuser_slots == expected))
        .await;
    drop(others);
    let expected = Some(SuperuserSlots { reserved: 5, agents: 0 });
    own.until("none", |answer| answer.server().is_some_and(|server| server.superuser_slots == expected)).await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn a_server_without_its_socket_file_is_gone_only_with_its_port_or_its_pid_file() {
    for (tcp, proof) in [(true, "its port refuses"), (false, "its postmaster.pid is gone")] {
        let postgres = Postgres::start("-c listen_addresses=127.0.0.1");
        let data_dir = postgres.path().join("data");
        postgres.run("chmod -R o+rX $0/data || true; chmod 0750 $0/data");
        let port = Some(("127.0.0.1".to_owned(), postgres.port()));
        let beside = if tcp { Beside::at(port, None) } else { Beside::at(None, Some(&data_dir)) };
        let place = postgres.place();
        let Place::Socket(directory, number) = &place else { panic!() };
        let socket = socket_path(directory, *number);
        let mut watching = Watching::start(place.clone(), Some(beside), login("postgres", "postgres"));
        watching.until("writable", |answer| answer.writable() == Some(true)).await;
        sleep(Duration::from_millis(500)).await;

        // As a cleaner of temporary files does; then the end of the watcher's session.
        std::fs::rename(&socket, postgres.path().join("hidden")).unwrap();
        postgres.run(&format!(
            "psql -q -h 127.0.0.1 -p {number} -U postgres -d template1 -c \"SELECT pg_terminate_backend(pid) FROM \
             pg_stat_activity WHERE application_name = '{SESSIONS}'\" >/dev/null"
        ));
        let answer = watching.until("unknown", |answer| matches!(answer, PostgresAnswer::Unknown(_))).await;
        let why = answer.detail().unwrap();
        assert!(why.contains(&socket.display().to_string()) && why.contains("node.socket_dir"), "{why}");

        postgres.run("pg_ctl -D $0/data -m fast -w stop >/dev/null");
        let answer = watching.until("gone", |answer| matches!(answer, PostgresAnswer::Gone(_))).await;
        assert!(answer.detail().unwrap().contains(proof), "{answer:?}");
    }
}

async fn database(postgres: &Postgres, login: &Superuser) -> Result<String, String> {
    let told = |error: tokio_postgres::Error| error.as_db_error().unwrap().message().to_owned();
    let config = client_config(&postgres.place(), login);
    let (client, driver) = connect(&config, SslMode::Disable).await.map_err(told)?;
    tokio::spawn(driver);
    let row = client.query_one("SELECT current_database()::text", &[]).await.unwrap();
    Ok(row.get(0))
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn a_session_is_in_the_configured_database_or_if_that_is_closed_in_template1() {
    let postgres = Postgres::start("");
    let superuser = login("postgres", "ops");
    let plain = login("plain", "ops");
    postgres.sql("CREATE ROLE plain LOGIN");
    assert_eq!(database(&postgres, &superuser).await.as_deref(), Ok("template1"), "it does not exist");
    postgres.sql("CREATE DATABASE ops TEMPLATE template0");
    assert_eq!(database(&postgres, &superuser).await.as_deref(), Ok("ops"));
    postgres.sql("REVOKE CONNECT ON DATABASE ops FROM PUBLIC");
    assert_eq!(database(&postgres, &plain).await.as_deref(), Ok("template1"), "it is closed to this role");
    postgres.sql("ALTER DATABASE ops ALLOW_CONNECTIONS false");
    assert_eq!(database(&postgres, &superuser).await.as_deref(), Ok("template1"), "it is closed");

    // The watcher has its session there, and PostgreSQL answers.
    let mut watching = Watching::start(postgres.place(), Some(Beside::default()), superuser.clone());
    watching.until("writable", |answer| answer.writable() == Some(true)).await;
    drop(watching);

    postgres.run("sed -i '1i local template1 all reject' $0/data/pg_hba.conf");
    postgres.run(&format!("psql -q -h $0 -p {} -U postgres -c 'SELECT pg_reload_conf()' >/dev/null", postgres.port()));
    sleep(Duration::from_millis(300)).await;
    let why = database(&postgres, &superuser).await.unwrap_err();
    assert!(why.contains("\"ops\" is not currently accepting"), "{why}");
}

/// A server on a unix socket that refuses every session.
fn refuses(directory: &Path, code: &'static str, message: &'static str) -> Place {
    let listener = std::os::unix::net::UnixListener::bind(socket_path(directory, 5432)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 4];
            std::io::Read::read_exact(&mut stream, &mut length).unwrap();
            let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
            std::io::Read::read_exact(&mut stream, &mut startup).unwrap();
            let fields = format!("SFATAL\0VFATAL\0C{code}\0M{message}\0\0");
            let mut answer = vec![b'E'];
            answer.extend((u32::try_from(fields.len()).unwrap() + 4).to_be_bytes());
            answer.extend(fields.as_bytes());
            std::io::Write::write_all(&mut stream, &answer).unwrap();
        }
    });
    Place::Socket(directory.to_owned(), 5432)
}

#[tokio::test]
async fn the_agent_of_a_starting_server_reports_whether_it_is_a_standby() {
    let (starts, recovers) = ("the database system is starting up", "the database system is in recovery mode");
    let redoes = "the database system is not yet accepting connections";
    for (says, control, signal, standby) in [
        (starts, Some(RUNNING), false, Some(false)),
        (recovers, Some(RUNNING), false, Some(false)),
        (starts, Some(RUNNING), true, Some(true)),
        (starts, Some(SHUT_DOWN_IN_RECOVERY), false, Some(true)),
        (starts, None, false, None),
        // From PostgreSQL 15 on, a primary in crash recovery says this too.
        (redoes, Some(RUNNING), false, Some(false)),
        (redoes, Some(RUNNING), true, Some(true)),
        (redoes, None, false, None),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let place = refuses(directory.path(), "57P03", says);
        if let Some(fields) = control {
            write(directory.path(), fields);
        }
        if signal {
            std::fs::write(directory.path().join("standby.signal"), "").unwrap();
        }
        let beside = Beside::at(None, Some(directory.path()));
        let mut watching = Watching::start(place, Some(beside), login("postgres", "postgres"));
        let answer = watching.until("starting", |answer| matches!(answer, PostgresAnswer::Starting(_))).await;
        let PostgresAnswer::Starting(starting) = answer else { unreachable!() };
        assert_eq!(starting.standby, standby, "{says}, {signal}");
    }
}

#[tokio::test]
async fn a_socket_that_was_never_seen_says_nothing_unless_the_port_refuses() {
    let directory = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = ("127.0.0.1".to_owned(), port.local_addr().unwrap().port());
    let place = Place::Socket(directory.path().to_owned(), 5432);
    let beside = Beside::at(Some(tcp), Some(directory.path()));
    let mut watching = Watching::start(place, Some(beside), login("postgres", "postgres"));
    let answer = watching.until("unknown", |answer| matches!(answer, PostgresAnswer::Unknown(_))).await;
    let why = answer.detail().unwrap();
    assert!(why.contains("its port answers") && why.contains("node.socket_dir"), "{why}");
    drop(port);
    watching.until("refused", |answer| matches!(answer, PostgresAnswer::Refused(_))).await;
}

/// 48 members whose PostgreSQL refused cost an agent half of its CPU.
#[test]
fn another_members_server_that_refuses_for_long_is_asked_less_often() {
    let refuses_for =
        |time: Duration| Attempts { failing_since: Instant::now().checked_sub(time), ..Attempts::default() };
    let (short, long) = (refuses_for(Duration::from_secs(9)), refuses_for(Duration::from_secs(11)));
    assert_eq!(short.pause(Source::Tcp), RECONNECT_PAUSE);
    assert_eq!(long.pause(Source::Tcp), LONG_REFUSAL_PAUSE);
    assert_eq!(long.pause(Source::Socket), RECONNECT_PAUSE, "the local server");
    assert_eq!(Attempts { login_refusals: 9, ..long }.pause(Source::Tcp), LOGIN_RETRY_PAUSE_MAX);
}
