//! A member's PostgreSQL, through one warm superuser connection: the local one by its unix socket, the
//! others over TCP.
//!
//! The connection is kept ready and never holds a transaction open. A server that hangs keeps one query
//! waiting, so that its answer is there the moment it wakes; meanwhile it is reported silent every second.
//! A lost connection is tried again at once, because how the next attempt fails is what tells a crash
//! (refused) from a hang (silent).

use super::beside::{Beside, Port};
use super::heartbeat::Heartbeat;
use super::names::{Names, NotResolved};
use super::question::{no_way_back, question, read_answer};
use super::session::is_about_the_login;
pub(crate) use super::session::{Driver, client_config, connect};
use super::{Closed, Events, io_cause, root_cause};
use crate::config::{NodeConfig, SslMode, Superuser};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};
use warden_core::event::{Event, PostgresAnswer, Starting};
use warden_core::fact::{Reading, Source};
use warden_core::limits::PROBE_LIMIT;
use warden_core::types::{MemberName, Moment};

/// A question every second, and as long for an answer.
const PERIOD: Duration = Duration::from_secs(1);

/// After this long without an answer the connection is given up: 10 questions' worth.
const GIVE_UP: Duration = Duration::from_secs(10);

/// Pause between attempts to connect, while the server cannot be reached.
const RECONNECT: Duration = Duration::from_millis(500);

/// The longest one while it refuses the login. What it said is to be believed until it is asked again.
const LOCKED_OUT: Duration = Duration::from_millis(2300);

const _: () = assert!(LOCKED_OUT.as_millis() * 5 / 4 < PROBE_LIMIT.as_millis());

/// The same for a local server that takes no sessions, or that nobody finds on its socket any more: it is on its way up
/// or down, and a handover, a nudge or a standby waits for the end of that. Each attempt costs it a process of a few
/// milliseconds,
const TRANSITION: Duration = Duration::from_millis(40);

/// so that it does not go on for longer than a transition usually takes.
const TRANSITION_LIMIT: Duration = Duration::from_secs(30);

/// After the first attempt that was broken off.
const BROKEN: Duration = Duration::from_millis(2);

/// The `application_name` of an agent's sessions, but for those that it keeps for a fence.
pub(crate) const SESSIONS: &str = "warden";

/// Where a PostgreSQL is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its unix socket is in this directory.
    Socket(PathBuf, u16),
    /// Host and port.
    Tcp(String, u16),
}

impl Place {
    /// Of the server beside us: its socket, where that is shared with us.
    pub fn beside(node: &NodeConfig) -> Self {
        match &node.socket_dir {
            Some(directory) => Self::Socket(directory.clone(), node.port),
            None => Self::Tcp(node.host.clone(), node.port),
        }
    }

    const fn source(&self) -> Source {
        match self {
            Self::Socket(..) => Source::Socket,
            Self::Tcp(..) => Source::Tcp,
        }
    }

    /// PostgreSQL has no TLS on its socket, and libpq asks for none there whatever `sslmode` says.
    pub(crate) const fn sslmode(&self, login: &Superuser) -> SslMode {
        match self {
            Self::Socket(..) => SslMode::Disable,
            Self::Tcp(..) => login.sslmode,
        }
    }
}

/// The path of a server's unix socket.
pub fn socket_path(directory: &Path, port: u16) -> PathBuf {
    directory.join(format!(".s.PGSQL.{port}"))
}

/// Watches one member's PostgreSQL until the agent shuts down. `probe` asks out of turn.
pub async fn watch(
    member: MemberName,
    place: Place,
    beside: Option<Beside>,
    login: Superuser,
    probe: Arc<Notify>,
    events: Events,
) -> Result<(), Closed> {
    let sslmode = place.sslmode(&login);
    let config = client_config(&place, &login);
    let names = Names::default();
    let heartbeat = Heartbeat::default();
    let mut watcher = Watcher { member, place, config, sslmode, beside, had_session: false, heartbeat, probe, events };
    // Since when it has refused sessions.
    let mut refusing: Option<Instant> = None;
    // The last attempt was broken off.
    let mut broken = false;
    // So often in a row has it refused the login.
    let mut locked_out = 0;
    loop {
        let asked = Instant::now();
        let at = watcher.events.clock.now();
        let attempt = async {
            let config = watcher.resolved(&names).await.map_err(Failed::Name)?;
            let connected = timeout(PERIOD, connect(&config, watcher.sslmode)).await;
            connected.map_err(|_| Failed::Silent)?.map_err(Failed::Refused)
        };
        let attempt = attempt.await;
        locked_out = if matches!(&attempt, Err(Failed::Refused(error)) if is_about_the_login(error)) {
            locked_out + 1
        } else {
            0
        };
        match attempt {
            Ok((client, connection)) => {
                watcher.had_session = true;
                refusing = None;
                // The driver ends with the connection, and the connection with the client: nothing leaks.
                tokio::select! {
                    closed = watcher.ask_for_ever(client) => closed?,
                    () = connection => {}
                }
                // How the next attempt goes tells more, but it may take its time.
                let broke = Event::SessionBroke { member: watcher.member.clone() };
                watcher.events.send(watcher.events.clock.now(), broke).await?;
                if asked.elapsed() >= RECONNECT {
                    continue;
                }
                // A server that lets us in and throws us out again is not to be asked without a pause.
            }
            // Perhaps it ended with our attempt under way, which says nothing of it: the next one does.
            Err(Failed::Refused(error)) if broke_off(&error) && !broken && watcher.place.source() == Source::Socket => {
                broken = true;
                sleep(BROKEN).await;
                continue;
            }
            Err(Failed::Refused(error)) => {
                broken = false;
                let answer = watcher.answer_of_failure(&error).await;
                let data_dir = watcher.beside.as_ref().and_then(Beside::shutdown);
                if let (PostgresAnswer::Gone(_), Some(data_dir)) = (&answer, data_dir) {
                    // Behind the look at the socket: a server that runs is none of this.
                    let shut_down = Event::ShutDown(data_dir.shutdown().await);
                    watcher.events.send(at, shut_down).await?;
                }
                let refuses =
                    error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) || matches!(answer, PostgresAnswer::Gone(_));
                refusing = if refuses { refusing.or(Some(asked)) } else { None };
                watcher.tell(at, answer).await?;
            }
            // It says nothing of the server.
            Err(Failed::Name(why)) => watcher.tell(at, PostgresAnswer::Unknown(why.to_string())).await?,
            Err(Failed::Silent) => {
                watcher.tell(at, PostgresAnswer::Silent("no session within 1 s".to_owned())).await?;
            }
        }
        // Jitter, so that agents which lost the same server do not come back in step.
        let hurry = watcher.place.source() == Source::Socket
            && refusing.is_some_and(|since| since.elapsed() < TRANSITION_LIMIT);
        let pause = match locked_out {
            0 if hurry => TRANSITION,
            times => RECONNECT.saturating_mul(1 << times.min(8)).min(LOCKED_OUT),
        };
        let turn = sleep_until(asked + pause.mul_f64(rand::random_range(0.75..1.25)));
        tokio::select! {
            () = turn => {}
            // Each attempt is a line in the server's log: a probe does not add to them.
            () = watcher.probe.notified(), if locked_out == 0 => {}
        }
    }
}

/// Why an attempt came to nothing.
enum Failed {
    /// The server's name has no address, as far as is known.
    Name(NotResolved),
    /// The server said so, or its host.
    Refused(tokio_postgres::Error),
    /// No answer came in time.
    Silent,
}

struct Watcher {
    member: MemberName,
    place: Place,
    config: Config,
    sslmode: SslMode,
    /// More of it, where it is beside us.
    beside: Option<Beside>,
    /// Whether this place ever let us in: only then does a socket that is not there mean a server that is not.
    had_session: bool,
    /// When its Patroni's HA loop turned.
    heartbeat: Heartbeat,
    /// Somebody wants to know now.
    probe: Arc<Notify>,
    events: Events,
}

impl Watcher {
    /// How to connect, with the addresses of the server's name: a name server that is silent is not a silent server.
    async fn resolved(&self, names: &Names) -> Result<Config, NotResolved> {
        let mut config = self.config.clone();
        if let Place::Tcp(host, _) = &self.place {
            for (nth, address) in names.addresses(host).await?.into_iter().enumerate() {
                // Each address belongs to a name; the first one has been named.
                if nth > 0 {
                    config.host(host);
                }
                config.hostaddr(address.ip());
            }
        }
        Ok(config)
    }

    /// What a failed attempt to connect says about the server.
    async fn answer_of_failure(&self, error: &tokio_postgres::Error) -> PostgresAnswer {
        match (io_cause(error).map(io::Error::kind), &self.place) {
            (Some(io::ErrorKind::ConnectionRefused), Place::Socket(..)) if self.had_session => {
                PostgresAnswer::Gone("nobody listens on its socket".to_owned())
            }
            (Some(io::ErrorKind::NotFound), Place::Socket(directory, port)) => {
                self.answer_without_socket(&socket_path(directory, *port)).await
            }
            _ => self.with_role(answer_of_error(error)).await,
        }
    }

    /// What it says that its socket file is missing: alone nothing ([`super::beside`]).
    ///
    /// A socket that never let us in may only be looked for in the wrong place (another directory, a volume that is not
    /// shared). Then the server is not gone, and it refuses only where its port does.
    async fn answer_without_socket(&self, path: &Path) -> PostgresAnswer {
        let remedy =
            "let node.socket_dir be PostgreSQL's socket directory, and restart PostgreSQL if the file was removed";
        let path = path.display();
        let unknown = |why| PostgresAnswer::Unknown(format!("there is no socket {path}, but {why}: {remedy}"));
        let Some(beside) = &self.beside else { return unknown("that proves nothing".to_owned()) };
        if self.had_session {
            return match beside.has_ended().await {
                Ok(proof) => PostgresAnswer::Gone(format!("there is no socket, and {proof}")),
                Err(why) => unknown(why),
            };
        }
        match beside.port().await {
            Port::Refuses => PostgresAnswer::Refused("there is no socket and nobody listens on its port".to_owned()),
            Port::Answers => unknown("its port answers".to_owned()),
            Port::Unknown(why) => unknown(why),
        }
    }

    /// Where the server beside us starts, its data directory says whether it is a standby.
    async fn with_role(&self, mut answer: PostgresAnswer) -> PostgresAnswer {
        if let PostgresAnswer::Starting(Starting { standby: standby @ None, .. }) = &mut answer
            && let Some(data_dir) = self.beside.as_ref().and_then(|beside| beside.data_dir.as_ref())
        {
            match data_dir.is_standby().await {
                Ok(found) => *standby = Some(found),
                Err(why) => tracing::debug!(member = %self.member, why, "it starts, and its role cannot be seen"),
            }
        }
        answer
    }

    /// Remembers what can be seen of a server that has let us in, and tells whether its control file can be read as long
    /// as it runs, and not first when it is needed.
    async fn look_beside(&self) -> Result<(), Closed> {
        let Some(beside) = &self.beside else { return Ok(()) };
        if let Place::Socket(..) = self.place {
            beside.remember().await;
        }
        let Some(data_dir) = beside.shutdown() else { return Ok(()) };
        let at = self.events.clock.now();
        // Whatever it names is of a shutdown before this one started.
        let reading = match data_dir.shutdown().await {
            Reading::Present(_) => Reading::Absent,
            reading => reading,
        };
        self.events.send(at, Event::ShutDown(reading)).await
    }

    async fn tell(&mut self, at: Moment, answer: PostgresAnswer) -> Result<(), Closed> {
        self.events.send(at, Event::Postgres { member: self.member.clone(), via: self.place.source(), answer }).await
    }

    /// Asks every second; returns when the connection is of no use any more.
    async fn ask_for_ever(&mut self, client: Client) -> Result<(), Closed> {
        let text = question(self.beside.is_some());
        let mut timeline = None;
        let mut answered = false;
        loop {
            let asked = Instant::now();
            let at = self.events.clock.now();
            let question = client.simple_query(&text);
            tokio::pin!(question);
            let answer = loop {
                match timeout(PERIOD, &mut question).await {
                    Ok(answer) => break answer,
                    Err(_) if asked.elapsed() >= GIVE_UP => return Ok(()),
                    Err(_) => {
                        let waited = asked.elapsed().as_secs();
                        let now = self.events.clock.now();
                        self.tell(now, PostgresAnswer::Silent(format!("a query has waited for {waited} s"))).await?;
                    }
                }
            };
            match answer {
                Ok(messages) => {
                    // No query of Patroni's that it shows began later than its age before the question.
                    let answer = read_answer(&messages, |shown| self.heartbeat.look(shown, at));
                    // An answer that took long says how things are now, not how they were when it was asked.
                    let at = if asked.elapsed() > PERIOD { self.events.clock.now() } else { at };
                    self.tell(at, no_way_back(answer, &mut timeline)).await?;
                    if !std::mem::replace(&mut answered, true) {
                        self.look_beside().await?;
                    }
                }
                Err(error) if error.is_closed() || io_cause(&error).is_some() => return Ok(()),
                Err(error) if error.code() == Some(&SqlState::ADMIN_SHUTDOWN) => return Ok(()),
                Err(error) if error.code() == Some(&SqlState::CRASH_SHUTDOWN) => return Ok(()),
                Err(error) => self.tell(at, answer_of_error(&error)).await?,
            }
            tokio::select! {
                () = sleep_until(asked + PERIOD) => {}
                () = self.probe.notified() => {}
            }
        }
    }
}

/// Whether an attempt to connect was accepted and broken off, as by a server that ends in this very moment.
pub(crate) fn broke_off(error: &tokio_postgres::Error) -> bool {
    let kind = io_cause(error).map(io::Error::kind);
    let broken = [io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof];
    error.is_closed() || kind.is_some_and(|kind| broken.contains(&kind))
}

/// What a refusal with 57P03 means. Its text is in the server's language: what is not understood may be a shutdown.
fn refusal(text: &str) -> PostgresAnswer {
    // None of them says whether it is a standby: from PostgreSQL 15 on a primary in crash recovery is "not yet accepting
    // connections", too.
    let not_open = ["starting up", "in recovery mode", "accepting connections"];
    if not_open.iter().any(|words| text.contains(words)) {
        PostgresAnswer::Starting(Starting { why: text.to_owned(), standby: None })
    } else {
        PostgresAnswer::Stopping(text.to_owned())
    }
}

/// What a failed attempt to connect, or a failed question, says about the server.
pub(crate) fn answer_of_error(error: &tokio_postgres::Error) -> PostgresAnswer {
    if let Some(db) = error.as_db_error() {
        // 57P03: starting up, shutting down, in crash recovery: nobody gets a session.
        return match db.code() {
            &SqlState::CANNOT_CONNECT_NOW => refusal(db.message()),
            _ => PostgresAnswer::Unknown(format!("{} ({})", db.message(), db.code().code())),
        };
    }
    match io_cause(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => PostgresAnswer::Refused("nobody listens".to_owned()),
        Some(io::ErrorKind::NotFound) => PostgresAnswer::Refused("there is no socket".to_owned()),
        Some(io::ErrorKind::PermissionDenied) => {
            PostgresAnswer::Unknown("the socket may not be used by this user".to_owned())
        }
        Some(kind) if is_of_the_way(kind) => PostgresAnswer::Silent(root_cause(error)),
        // A name that does not resolve, for one.
        _ => PostgresAnswer::Unknown(root_cause(error)),
    }
}

/// Whether an attempt failed on its way to the host, or on the way back.
const fn is_of_the_way(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, HostUnreachable, NetworkDown, NetworkUnreachable, NotConnected,
        TimedOut, UnexpectedEof,
    };
    matches!(
        kind,
        TimedOut
            | HostUnreachable
            | NetworkUnreachable
            | NetworkDown
            | ConnectionReset
            | ConnectionAborted
            | NotConnected
            | BrokenPipe
            | UnexpectedEof
    )
}

#[cfg(test)]
#[path = "postgres_tests.rs"]
mod on_a_server;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn a_server_that_is_shutting_down_has_not_stopped_and_one_that_lets_nobody_in_yet_may_be_a_primary() {
        for (text, stopping) in [
            ("the database system is starting up", false),
            ("the database system is in recovery mode", false),
            ("the database system is not yet accepting connections", false),
            ("the database system is not accepting connections", false),
            ("the database system is shutting down", true),
            // In another language it may be anything.
            ("das Datenbanksystem startet", true),
        ] {
            let answer = refusal(text);
            assert_eq!(matches!(answer, PostgresAnswer::Stopping(_)), stopping, "{text}");
            assert_eq!(answer.says(), None, "{text}");
        }
    }

    /// What the watcher tells of a socket on which each attempt in turn is answered with these bytes and closed, and on
    /// which nobody listens then: the first answers, as many as are wanted.
    async fn told(attempts: &'static [&'static [u8]], wanted: usize) -> Vec<PostgresAnswer> {
        let directory = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(socket_path(directory.path(), 5432)).unwrap();
        tokio::spawn(async move {
            for answer in attempts {
                let (mut stream, _) = listener.accept().await.unwrap();
                drop(stream.read(&mut [0; 64]).await);
                drop(stream.write_all(answer).await);
            }
        });
        let (sender, mut events) = tokio::sync::mpsc::channel(64);
        let events_in = Events::new(sender, crate::clock::Clock::start());
        let login = crate::watch::real_postgres::login("a", "a");
        let place = Place::Socket(directory.path().to_owned(), 5432);
        // Somebody wants to know all the time.
        let probe = Arc::new(Notify::new());
        let asks = Arc::clone(&probe);
        let asking = tokio::spawn(async move {
            loop {
                asks.notify_one();
                sleep(Duration::from_millis(50)).await;
            }
        });
        let watching = tokio::spawn(watch("a".into(), place, None, login, probe, events_in));
        let mut told = Vec::new();
        while told.len() < wanted {
            let observed = timeout(Duration::from_secs(10), events.recv()).await.unwrap().unwrap();
            if let Event::Postgres { answer, .. } = observed.event {
                told.push(answer);
            }
        }
        watching.abort();
        asking.abort();
        told
    }

    const SHUTTING_DOWN: &[u8] = b"E\0\0\0\x39SFATAL\0C57P03\0Mthe database system is shutting down\0\0";

    #[tokio::test]
    async fn a_server_that_ends_under_an_attempt_is_asked_again_before_anything_is_said_of_it() {
        let told = told(&[SHUTTING_DOWN, b""], 2).await;
        assert!(matches!(told.as_slice(), [PostgresAnswer::Stopping(_), PostgresAnswer::Refused(_)]), "{told:?}");
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_says_nothing_of_the_server() {
        let (sender, mut events) = tokio::sync::mpsc::channel(64);
        let events_in = Events::new(sender, crate::clock::Clock::start());
        let login = crate::watch::real_postgres::login("a", "a");
        let place = Place::Tcp("nowhere.invalid".to_owned(), 5432);
        let watching = tokio::spawn(watch("a".into(), place, None, login, Arc::default(), events_in));
        let told = timeout(Duration::from_secs(10), events.recv()).await.unwrap().unwrap();
        watching.abort();
        let Event::Postgres { answer: PostgresAnswer::Unknown(why), .. } = &told.event else { panic!("{told:?}") };
        assert!(why.contains("nowhere.invalid cannot be resolved"), "{why}");
    }

    const REFUSED: &[u8] = b"E\0\0\0\x1eSFATAL\0C28000\0Mno pg_hba\0\0";

    #[tokio::test]
    async fn a_server_that_refuses_the_login_is_not_asked_out_of_turn() {
        let begun = Instant::now();
        let told = told(&[REFUSED, REFUSED], 2).await;
        assert!(told.iter().all(|answer| matches!(answer, PostgresAnswer::Unknown(_))), "{told:?}");
        assert!(begun.elapsed() > Duration::from_millis(700), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_server_that_breaks_off_again_and_again_is_not_asked_without_a_pause() {
        let told = told(&[b"", b"", b"", b""], 2).await;
        assert!(matches!(told.as_slice(), [PostgresAnswer::Silent(_), PostgresAnswer::Silent(_)]), "{told:?}");
    }
}
