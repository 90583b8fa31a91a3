//! Watches a member's PostgreSQL through one session: the local server by its unix socket, the others over TCP.
//!
//! The watcher keeps the session open, without an open transaction. One query waits if the server hangs, so that its
//! answer arrives as soon as the server continues. Meanwhile the watcher reports the server silent every second. After
//! a lost session, the watcher tries again at once. The next failure tells a crash (refused) from a hang (silent).

use crate::client::beside::{Beside, Port};
use crate::client::io_cause;
use crate::client::names::{Names, NotResolved};
use crate::client::postgres::{
    Driver, Heartbeat, Place, answer_of_error, broke_off, client_config, connect, is_about_the_login,
    keep_newest_timeline, question, read_answer, socket_path,
};
use crate::config::{SslMode, Superuser};
use crate::events::{Closed, Events};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config};
use warden_core::event::{Event, LocalEvent, MemberEvent, PostgresAnswer, Starting};
use warden_core::fact::{Reading, Source};
use warden_core::limits::PROBE_LIMIT;
use warden_core::types::{MemberName, Moment};

/// Between two questions.
const QUESTION_INTERVAL: Duration = Duration::from_secs(1);

/// The limit for opening a session. A server that has not answered a question for this long is silent.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// The watcher gives up a session without an answer after this.
const SESSION_SILENCE_MAX: Duration = Duration::from_secs(10);

const _: () = assert!(SESSION_SILENCE_MAX.as_millis() == 10 * ANSWER_LIMIT.as_millis());

/// Between two attempts to connect, with jitter.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause while the server refuses the login. The last answer must stay valid until the next attempt.
const LOGIN_RETRY_PAUSE_MAX: Duration = Duration::from_millis(2300);

const _: () = assert!(LOGIN_RETRY_PAUSE_MAX.as_millis() * 5 / 4 < PROBE_LIMIT.as_millis());

/// Between two attempts while the local server starts or stops: it accepts no session, or no process listens. A
/// handover, a nudge or a standby waits for the end of that.
const TRANSITION_RETRY_PAUSE: Duration = Duration::from_millis(40);

/// [`TRANSITION_RETRY_PAUSE`] applies for this long, because each attempt costs the server a process of a few
/// milliseconds. A transition usually takes less.
const TRANSITION_MAX: Duration = Duration::from_secs(30);

/// Between two attempts while another member's server refuses for longer than [`REFUSES_LONG_AFTER`]. A rule that needs
/// it sooner makes the watcher ask at once.
const LONG_REFUSAL_PAUSE: Duration = Duration::from_secs(2);

/// A server that restarts is back before that. With many members down, attempts were most of the agent's CPU.
const REFUSES_LONG_AFTER: Duration = Duration::from_secs(10);

/// After an attempt that the server broke off.
const BROKEN_OFF_RETRY_PAUSE: Duration = Duration::from_millis(2);

const _: () = assert!(BROKEN_OFF_RETRY_PAUSE.as_millis() < TRANSITION_RETRY_PAUSE.as_millis());
const _: () = assert!(TRANSITION_RETRY_PAUSE.as_millis() < RECONNECT_PAUSE.as_millis());
const _: () = assert!(RECONNECT_PAUSE.as_millis() < LONG_REFUSAL_PAUSE.as_millis());
const _: () = assert!(LONG_REFUSAL_PAUSE.as_millis() < LOGIN_RETRY_PAUSE_MAX.as_millis());

/// Watches one member's PostgreSQL until the agent shuts down. `probe` makes it ask at once.
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
    let mut attempts = Attempts::default();
    loop {
        let asked = Instant::now();
        let at = watcher.events.clock.now();
        let attempt = watcher.connect(&names).await;
        attempts.login_refusals = match &attempt {
            Err(Failed::Refused(error)) if is_about_the_login(error) => attempts.login_refusals + 1,
            _ => 0,
        };
        match attempt {
            Ok((client, driver)) => {
                (attempts.refusing_since, attempts.failing_since) = (None, None);
                watcher.use_session(client, driver).await?;
                if asked.elapsed() >= RECONNECT_PAUSE {
                    continue;
                }
                // The pause applies to a server that accepts a session and ends it at once.
            }
            // The server may have ended during the attempt, which says nothing about it. The next attempt does.
            Err(Failed::Refused(error))
                if broke_off(&error) && !attempts.broken_off && watcher.place.source() == Source::Socket =>
            {
                attempts.broken_off = true;
                sleep(BROKEN_OFF_RETRY_PAUSE).await;
                continue;
            }
            Err(Failed::Refused(error)) => {
                attempts.broken_off = false;
                attempts.failing_since.get_or_insert(asked);
                let refuses = watcher.report_refusal(at, &error).await?;
                attempts.refusing_since = if refuses { attempts.refusing_since.or(Some(asked)) } else { None };
            }
            // An unknown name says nothing about the server.
            Err(Failed::Name(why)) => watcher.report(at, PostgresAnswer::Unknown(why.to_string())).await?,
            Err(Failed::Silent) => {
                watcher.report(at, PostgresAnswer::Silent("no session within 1 s".to_owned())).await?;
            }
        }
        // With jitter, so that agents which lost the same server do not return at the same time.
        let pause = attempts.pause(watcher.place.source());
        tokio::select! {
            () = sleep_until(asked + pause.mul_f64(rand::random_range(0.75..1.25))) => {}
            // A probe does not repeat a refused login, because each attempt is a line in the server's log.
            () = watcher.probe.notified(), if attempts.login_refusals == 0 => {}
        }
    }
}

/// The state between two attempts to connect.
#[derive(Default)]
struct Attempts {
    /// Since when the server has refused sessions, or has been gone.
    refusing_since: Option<Instant>,
    /// Since when no attempt has led to a session, and the server or its host has refused.
    failing_since: Option<Instant>,
    /// Whether the server broke off the last attempt.
    broken_off: bool,
    /// How often in a row the server has refused the login.
    login_refusals: u32,
}

impl Attempts {
    /// The pause before the next attempt, without jitter.
    fn pause(&self, source: Source) -> Duration {
        let in_transition =
            source == Source::Socket && self.refusing_since.is_some_and(|since| since.elapsed() < TRANSITION_MAX);
        let long = |since: Instant| since.elapsed() >= REFUSES_LONG_AFTER;
        match self.login_refusals {
            0 if in_transition => TRANSITION_RETRY_PAUSE,
            0 if source == Source::Tcp && self.failing_since.is_some_and(long) => LONG_REFUSAL_PAUSE,
            times => RECONNECT_PAUSE.saturating_mul(1 << times.min(8)).min(LOGIN_RETRY_PAUSE_MAX),
        }
    }
}

/// Why an attempt failed.
enum Failed {
    /// The server's name has no known address.
    Name(NotResolved),
    /// The server or its host refused.
    Refused(tokio_postgres::Error),
    /// No answer came in time.
    Silent,
}

struct Watcher {
    member: MemberName,
    place: Place,
    config: Config,
    sslmode: SslMode,
    /// Further signs of the local server.
    beside: Option<Beside>,
    /// Whether a server at this address has ever accepted a session. Only then does a missing socket mean an end.
    had_session: bool,
    /// When the HA loop of the server's Patroni turned.
    heartbeat: Heartbeat,
    /// Makes the watcher ask at once.
    probe: Arc<Notify>,
    events: Events,
}

impl Watcher {
    /// Opens a session.
    async fn connect(&self, names: &Names) -> Result<(Client, Driver), Failed> {
        let config = self.resolved(names).await.map_err(Failed::Name)?;
        let connected = timeout(ANSWER_LIMIT, connect(&config, self.sslmode)).await;
        connected.map_err(|_| Failed::Silent)?.map_err(Failed::Refused)
    }

    /// Asks in the session until it ends, and reports the end.
    async fn use_session(&mut self, client: Client, driver: Driver) -> Result<(), Closed> {
        self.had_session = true;
        // The driver ends with the connection, and the connection with the client, so nothing leaks.
        tokio::select! {
            closed = self.ask_repeatedly(client) => closed?,
            () = driver => {}
        }
        // The next attempt tells more, but it may take its time.
        let broke = Event::Member(self.member.clone(), MemberEvent::SessionBroke);
        self.events.send(self.events.clock.now(), broke).await
    }

    /// Reports a refusal. Returns whether the server accepts no session now, or is gone.
    async fn report_refusal(&mut self, at: Moment, error: &tokio_postgres::Error) -> Result<bool, Closed> {
        let answer = self.answer_of_failure(error).await;
        let data_dir = self.beside.as_ref().and_then(Beside::shutdown);
        if let (PostgresAnswer::Gone(_), Some(data_dir)) = (&answer, data_dir) {
            // After the look at the socket, so that the record is not of a running server.
            let shut_down = Event::Local(LocalEvent::ShutDown(data_dir.shutdown().await));
            self.events.send(at, shut_down).await?;
        }
        let refuses = error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) || matches!(answer, PostgresAnswer::Gone(_));
        self.report(at, answer).await?;
        Ok(refuses)
    }

    /// The settings with the addresses of the server's name. A silent name server does not make the server silent.
    async fn resolved(&self, names: &Names) -> Result<Config, NotResolved> {
        let mut config = self.config.clone();
        if let Place::Tcp(host, _) = &self.place {
            for (nth, address) in names.addresses(host).await?.into_iter().enumerate() {
                // Each address needs a name, and the configuration has the first one.
                if nth > 0 {
                    config.host(host);
                }
                config.hostaddr(address.ip());
            }
        }
        Ok(config)
    }

    /// The meaning of a failed attempt for the server.
    async fn answer_of_failure(&self, error: &tokio_postgres::Error) -> PostgresAnswer {
        match (io_cause(error).map(io::Error::kind), &self.place) {
            (Some(io::ErrorKind::ConnectionRefused), Place::Socket(..)) if self.had_session => {
                PostgresAnswer::Gone("no process listens on its socket".to_owned())
            }
            (Some(io::ErrorKind::NotFound), Place::Socket(directory, port)) => {
                self.answer_without_socket(&socket_path(directory, *port)).await
            }
            _ => self.with_role(answer_of_error(error)).await,
        }
    }

    /// The meaning of a missing socket file, which alone proves nothing ([`Beside`]).
    ///
    /// The agent may look in the wrong place (another directory, a volume that is not shared) if the socket has never
    /// accepted a session. The server then is not gone, and refuses only if its port does.
    async fn answer_without_socket(&self, path: &Path) -> PostgresAnswer {
        let remedy =
            "set node.socket_dir to PostgreSQL's socket directory, and restart PostgreSQL if the file was removed";
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
            Port::Refuses => {
                PostgresAnswer::Refused("there is no socket and no process listens on its port".to_owned())
            }
            Port::Answers => unknown("its port answers".to_owned()),
            Port::Unknown(why) => unknown(why),
        }
    }

    /// Adds to the answer of a starting local server whether it is a standby, from its data directory.
    async fn with_role(&self, mut answer: PostgresAnswer) -> PostgresAnswer {
        if let PostgresAnswer::Starting(Starting { standby: standby @ None, .. }) = &mut answer
            && let Some(data_dir) = self.beside.as_ref().and_then(|beside| beside.data_dir.as_ref())
        {
            match data_dir.is_standby().await {
                Ok(found) => *standby = Some(found),
                Err(why) => tracing::debug!(member = %self.member, why, "the role of the starting server is unknown"),
            }
        }
        answer
    }

    /// Remembers the signs of a server that has accepted a session. Also reports whether the agent can read its control
    /// file, before a handover needs it.
    async fn look_beside(&self) -> Result<(), Closed> {
        let Some(beside) = &self.beside else { return Ok(()) };
        if let Place::Socket(..) = self.place {
            beside.remember().await;
        }
        let Some(data_dir) = beside.shutdown() else { return Ok(()) };
        let at = self.events.clock.now();
        // A record in the file is of an earlier shutdown.
        let reading = match data_dir.shutdown().await {
            Reading::Present(_) => Reading::Absent,
            reading => reading,
        };
        self.events.send(at, Event::Local(LocalEvent::ShutDown(reading))).await
    }

    async fn report(&mut self, at: Moment, answer: PostgresAnswer) -> Result<(), Closed> {
        self.events
            .send(at, Event::Member(self.member.clone(), MemberEvent::Postgres { via: self.place.source(), answer }))
            .await
    }

    /// Asks every second. Returns when the session is no longer usable.
    async fn ask_repeatedly(&mut self, client: Client) -> Result<(), Closed> {
        let text = question(self.beside.is_some());
        let mut timeline = None;
        let mut answered = false;
        loop {
            let asked = Instant::now();
            let at = self.events.clock.now();
            let question = client.simple_query(&text);
            tokio::pin!(question);
            let answer = loop {
                match timeout(ANSWER_LIMIT, &mut question).await {
                    Ok(answer) => break answer,
                    Err(_) if asked.elapsed() >= SESSION_SILENCE_MAX => return Ok(()),
                    Err(_) => {
                        let waited = asked.elapsed().as_secs();
                        let now = self.events.clock.now();
                        self.report(now, PostgresAnswer::Silent(format!("a query has waited for {waited} s"))).await?;
                    }
                }
            };
            match answer {
                Ok(messages) => {
                    // `at` is before the question, so the heartbeat is never dated too late.
                    let answer = read_answer(&messages, |shown| self.heartbeat.look(shown, at));
                    // A late answer describes the server at the time of the answer, and not of the question.
                    let at = if asked.elapsed() > ANSWER_LIMIT { self.events.clock.now() } else { at };
                    self.report(at, keep_newest_timeline(answer, &mut timeline)).await?;
                    if !std::mem::replace(&mut answered, true) {
                        self.look_beside().await?;
                    }
                }
                Err(error) if error.is_closed() || io_cause(&error).is_some() => return Ok(()),
                Err(error) if error.code() == Some(&SqlState::ADMIN_SHUTDOWN) => return Ok(()),
                Err(error) if error.code() == Some(&SqlState::CRASH_SHUTDOWN) => return Ok(()),
                Err(error) => self.report(at, answer_of_error(&error)).await?,
            }
            tokio::select! {
                () = sleep_until(asked + QUESTION_INTERVAL) => {}
                () = self.probe.notified() => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "postgres_tests.rs"]
mod on_a_server;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// The watcher's first reports about a socket, `wanted` of them. The server answers each attempt in turn with these
    /// bytes and closes it. After that, no process listens.
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
        let login = crate::client::postgres::real::login("a", "a");
        let place = Place::Socket(directory.path().to_owned(), 5432);
        // Probes all the time.
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
            if let Event::Member(_, MemberEvent::Postgres { answer, .. }) = observed.event {
                told.push(answer);
            }
        }
        watching.abort();
        asking.abort();
        told
    }

    const SHUTTING_DOWN: &[u8] = b"E\0\0\0\x39SFATAL\0C57P03\0Mthe database system is shutting down\0\0";

    #[tokio::test]
    async fn a_server_that_ends_during_an_attempt_is_asked_again_before_a_report() {
        let told = told(&[SHUTTING_DOWN, b""], 2).await;
        assert!(matches!(told.as_slice(), [PostgresAnswer::Stopping(_), PostgresAnswer::Refused(_)]), "{told:?}");
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_says_nothing_about_the_server() {
        let (sender, mut events) = tokio::sync::mpsc::channel(64);
        let events_in = Events::new(sender, crate::clock::Clock::start());
        let login = crate::client::postgres::real::login("a", "a");
        let place = Place::Tcp("nowhere.invalid".to_owned(), 5432);
        let watching = tokio::spawn(watch("a".into(), place, None, login, Arc::default(), events_in));
        let told = timeout(Duration::from_secs(10), events.recv()).await.unwrap().unwrap();
        watching.abort();
        let Event::Member(_, MemberEvent::Postgres { answer: PostgresAnswer::Unknown(why), .. }) = &told.event else {
            panic!("{told:?}")
        };
        assert!(why.contains("nowhere.invalid cannot be resolved"), "{why}");
    }

    const REFUSED: &[u8] = b"E\0\0\0\x1eSFATAL\0C28000\0Mno pg_hba\0\0";

    #[tokio::test]
    async fn a_probe_does_not_repeat_a_refused_login() {
        let begun = Instant::now();
        let told = told(&[REFUSED, REFUSED], 2).await;
        assert!(told.iter().all(|answer| matches!(answer, PostgresAnswer::Unknown(_))), "{told:?}");
        assert!(begun.elapsed() > Duration::from_millis(700), "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_server_that_keeps_breaking_off_is_asked_with_pauses() {
        let told = told(&[b"", b"", b"", b""], 2).await;
        assert!(matches!(told.as_slice(), [PostgresAnswer::Silent(_), PostgresAnswer::Silent(_)]), "{told:?}");
    }
}
