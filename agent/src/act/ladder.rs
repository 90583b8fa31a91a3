//! How a server is stopped: step by step, each verified before the next is tried.
//!
//! Where the postmaster is visible from here it is signalled: fast shutdown, immediate, killed. Elsewhere a superuser
//! session asks the server to signal its own postmaster, fast and then immediate. Fast shutdown refuses open and new
//! sessions within some 20 ms and waits for nobody. It is only said that a server takes no writes when a new session is
//! refused and the one that gave the order has ended too, or when it is in recovery.
//!
//! A server that is silent (paused, stopped, out of IO) gets the same statement at once: it lies in its socket and is
//! the first thing that it does when it wakes. It carries its own time limit, by the server's own clock, so that one
//! that is no longer wanted does nothing.

use super::postmaster::Postmaster;
use super::warm::{CONNECT, EXPIRED, GLANCE, NOT_THE_ONE, NotReady, Warm};
use crate::config::{SslMode, Superuser};
use crate::watch::beside::Beside;
use crate::watch::io_cause;
use crate::watch::postgres::{self, Place};
use rustix::process::Signal;
use std::io;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};
use warden_core::event::{FenceOutcome, PostgresAnswer};
use warden_core::rules::gate::Found;
use warden_core::types::{SystemId, Timeline};

/// How long each step of the ladder has until a new session has to be refused.
const STEP: Duration = Duration::from_millis(1500);

/// Between two looks whether it is.
const VERIFY: Duration = Duration::from_millis(4);

/// One whose fence, or the release of whose key, is recorded has this long to open a session: it has stopped by all that is
/// known, and the address of a container that was killed answers nothing for a second.
const RECORDED: Duration = Duration::from_millis(100);

/// The first look waits for a word that the order was heard, no longer than this: each look costs the server a process,
/// and so does the order.
const HEARD: Duration = Duration::from_millis(25);

/// A look goes no further than the door, where a server that shuts down refuses; this often it goes in, because a
/// standby only says inside that it is one.
const GO_IN: Duration = Duration::from_millis(100);

/// A new session that neither begins nor is refused for this long: the server is silent.
const SILENT: Duration = Duration::from_millis(700);

/// A server all of whose slots are taken is knocked at for this long in one fence, so that the whole of it stays below
/// the 12 s after which it would be ordered again.
const SLOTS: Duration = Duration::from_secs(3);

/// A server that starts is knocked at for this long in one fence, for the same reason.
const START: Duration = Duration::from_secs(8);

/// Between two knocks there, with jitter: a slot that is free for a moment is all it takes, and others want it too.
const SLOT_PAUSE: Duration = Duration::from_millis(20);

/// Whom to stop.
#[derive(Clone, Copy, Debug)]
pub struct Server<'a> {
    /// Where it is.
    pub place: &'a Place,
    /// Superuser.
    pub login: &'a Superuser,
    /// Only if it is on an older timeline than this.
    pub older_than: Option<Timeline>,
    /// It is starting, and its agent has looked: it is no standby. Only then does a signal go to a server that starts.
    pub starting: bool,
    /// A session that we had with it has ended by itself, and it has refused each one since because it shuts down: a fast
    /// shutdown ends every session, a smart one none.
    pub session_ended: bool,
    /// What else can be seen of it, where it is beside us.
    pub beside: Option<&'a Beside>,
}

impl<'a> Server<'a> {
    /// A server of which nothing more is known.
    pub const fn at(place: &'a Place, login: &'a Superuser) -> Self {
        Self { place, login, older_than: None, starting: false, session_ended: false, beside: None }
    }
}

/// A session that has begun.
type Session = (Client, postgres::Driver);

/// Why a new session does not begin.
enum Door {
    /// The server refuses all sessions, or nobody listens.
    Shut(Shut),
    /// The server refuses ours (a wrong password): it may take others.
    Locked(String),
    /// Every slot is taken, those kept for superusers too, or somebody ended our session before it was ready: it may be
    /// another way in a moment.
    Crowded(String),
    /// It broke off: the server may be ending in this very moment, and the next one tells.
    Broken,
    /// None of these.
    Silent,
}

/// How a server refuses all sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shut {
    /// Nobody listens.
    Nobody,
    /// Its socket file is missing, which alone proves nothing: a cleaner of temporary files may have removed it.
    NoSocket,
    /// It is starting or recovering.
    NotOpen,
    /// It is shutting down. In a smart shutdown open sessions go on for as long as they like.
    Stopping,
}

async fn knock(place: &Place, login: &Superuser, limit: Duration) -> Result<Session, Door> {
    let mut config = postgres::client_config(place, login);
    config.application_name("warden-fence");
    let error = match timeout(limit, postgres::connect(&config, place.sslmode(login))).await {
        Ok(Ok(session)) => return Ok(session),
        Ok(Err(error)) => error,
        Err(_) => return Err(Door::Silent),
    };
    if postgres::broke_off(&error) {
        return Err(Door::Broken);
    }
    let cause = io_cause(&error).map(io::Error::kind);
    if cause == Some(io::ErrorKind::NotFound) {
        return Err(Door::Shut(Shut::NoSocket));
    }
    Err(match postgres::answer_of_error(&error) {
        PostgresAnswer::Starting(_) => Door::Shut(Shut::NotOpen),
        PostgresAnswer::Refused(_) => Door::Shut(Shut::Nobody),
        PostgresAnswer::Stopping(_) => Door::Shut(Shut::Stopping),
        PostgresAnswer::Gone(_) => Door::Shut(Shut::Nobody),
        PostgresAnswer::Unknown(why) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS) => Door::Crowded(why),
        // A name that does not resolve, as a stopped container's: nothing answers, and nothing refuses the login either.
        PostgresAnswer::Unknown(_) if cause.is_some_and(|kind| kind != io::ErrorKind::PermissionDenied) => Door::Silent,
        PostgresAnswer::Unknown(why) => Door::Locked(why),
        _ => Door::Silent,
    })
}

/// Knocks until the server is not crowded, or `until`.
async fn knock_on(place: &Place, login: &Superuser, until: Instant) -> Result<Session, Door> {
    loop {
        match knock(place, login, CONNECT).await {
            Err(Door::Crowded(_)) if Instant::now() < until => slot_pause().await,
            found => return found,
        }
    }
}

async fn slot_pause() {
    sleep(SLOT_PAUSE.mul_f64(rand::random_range(0.5..1.0))).await;
}

/// A session that is ready for a fence: what is in the way for a moment only is tried again until `until`.
async fn get_in(server: &Server<'_>, until: Instant) -> Result<Warm, Door> {
    loop {
        let session = knock_on(server.place, server.login, until).await?;
        match Warm::ready(session).await {
            Ok(ready) => return Ok(ready),
            Err(NotReady { in_passing: true, .. }) if Instant::now() < until => slot_pause().await,
            Err(NotReady { why, in_passing: true, .. }) => return Err(Door::Crowded(why)),
            Err(NotReady { why, .. }) => return Err(Door::Locked(why)),
        }
    }
}

/// Opens a session that is ready for a fence.
pub async fn warm_up(place: &Place, login: &Superuser) -> Result<Warm, NotReady> {
    let lasting = |why: &str| NotReady { why: why.to_owned(), in_passing: false, by_shutdown: false };
    let ending = |why: &str| NotReady { by_shutdown: true, ..lasting(why) };
    Err(match knock(place, login, CONNECT).await {
        Ok(session) => return Warm::ready(session).await,
        Err(Door::Shut(Shut::Nobody)) => ending("nobody listens"),
        Err(Door::Shut(Shut::Stopping)) => ending("the server shuts down"),
        Err(Door::Shut(Shut::NoSocket)) => lasting("its socket file is missing"),
        Err(Door::Shut(Shut::NotOpen)) => lasting("the server takes no sessions yet"),
        Err(Door::Locked(why)) => lasting(&why),
        Err(Door::Crowded(why)) => NotReady { in_passing: true, ..lasting(&why) },
        Err(Door::Broken) => ending("the session broke off"),
        Err(Door::Silent) => lasting(&format!("no session within {} s", CONNECT.as_secs())),
    })
}

/// What a new session says about the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verified {
    Refused(Shut),
    InRecovery,
    Silent,
    Open,
}

/// Knocks until a new session is refused, or finds the server in recovery, or [`STEP`] is over.
async fn verify(server: &Server<'_>) -> Verified {
    verify_after(server, std::future::ready(())).await
}

/// The same, but does not begin at once.
async fn verify_after(server: &Server<'_>, heard: impl Future<Output = ()>) -> Verified {
    // Without a word it begins all the same.
    drop(timeout(HEARD, heard).await);
    // Without a password and without TLS: neither is needed for a refusal, and each costs both sides milliseconds.
    let stranger = Superuser { password: None, sslmode: SslMode::Disable, ..server.login.clone() };
    let started = Instant::now();
    let mut went_in = started;
    while started.elapsed() < STEP {
        let goes_in = went_in.elapsed() >= GO_IN;
        match knock(server.place, if goes_in { server.login } else { &stranger }, SILENT).await {
            Err(Door::Locked(_) | Door::Crowded(_) | Door::Broken) => {}
            Err(Door::Shut(shut)) => return Verified::Refused(shut),
            Err(Door::Silent) => return Verified::Silent,
            Ok(session) => {
                if who_is_there(session).await.is_some_and(|(in_recovery, _)| in_recovery) {
                    return Verified::InRecovery;
                }
            }
        }
        if goes_in {
            went_in = Instant::now();
        }
        sleep(VERIFY).await;
    }
    Verified::Open
}

/// What is seen after a server that is shutting down has been watched for a while: whether nobody listens any more, a
/// new session begins, or neither.
async fn watch_stopping(server: &Server<'_>) -> Verified {
    let started = Instant::now();
    loop {
        let seen = verify(server).await;
        if seen != Verified::Refused(Shut::Stopping) || started.elapsed() >= STEP {
            return seen;
        }
        sleep(VERIFY * 4).await;
    }
}

/// The outcome, if what was seen after an order settles it; `session` is the one that gave it.
async fn settled(
    server: &Server<'_>,
    seen: Verified,
    by: &'static str,
    started: Instant,
    session: &mut Option<Warm>,
) -> Result<FenceOutcome, String> {
    let confirmed = |by| FenceOutcome::Confirmed { by, took: started.elapsed() };
    match seen {
        Verified::InRecovery => Ok(confirmed("recovery")),
        Verified::Refused(Shut::Nobody) => Ok(confirmed(by)),
        Verified::Refused(Shut::NoSocket) => {
            // Only the end of the session that gave the order says something: any other may have been ended by anybody.
            let ended = match session {
                Some(session) => session.ends_within(STEP).await,
                None => false,
            };
            let seen = match server.beside {
                _ if ended => return Ok(confirmed(by)),
                Some(beside) => beside.has_ended().await,
                None => Err("there is nowhere else to look".to_owned()),
            };
            let remedy = "restart PostgreSQL: nothing can be stopped by a socket that is not there";
            let why = |why| format!("its socket file is missing, which proves nothing alone, and {why}; {remedy}");
            seen.map(|_| confirmed(by)).map_err(why)
        }
        Verified::Refused(Shut::NotOpen) => Err(format!("{by}: it is starting again")),
        Verified::Refused(Shut::Stopping) => {
            // Open sessions of a server that is shutting down can go on; that ours does not shows that none does.
            let ended = match session {
                Some(session) => session.ends_within(STEP).await,
                None => server.session_ended,
            };
            if ended { Ok(confirmed(by)) } else { Err(format!("{by}: it shuts down, and open sessions may go on")) }
        }
        // The statement lies in the server's socket; it stays there as long as the session does.
        Verified::Silent if session.is_some() => Ok(FenceOutcome::Waiting),
        Verified::Silent => Err("the server is silent, and there was no warm session".to_owned()),
        Verified::Open => Err(format!("{by}: it still opens sessions after {} ms", STEP.as_millis())),
    }
}

/// Stops the server, step by step, until a new session is refused or it is in recovery. `session` is one that is ready,
/// if there is one; it comes back where the order lies in it, in front of a silent server.
pub async fn climb(server: &Server<'_>, mut session: Option<Warm>) -> (FenceOutcome, Option<Warm>) {
    let started = Instant::now();
    session = session.filter(|session| !session.is_over());
    if let Some(outcome) = by_process(server, &mut session, started).await {
        return (outcome, session.filter(|session| !session.is_over()));
    }
    by_session(server, session, started).await
}

/// Where the postmaster is visible from here; `None` where it is not, or that did not help.
async fn by_process(server: &Server<'_>, session: &mut Option<Warm>, started: Instant) -> Option<FenceOutcome> {
    // A timeline can only be judged by the server itself.
    let (Place::Socket(directory, port), None) = (server.place, server.older_than) else { return None };
    let known = session.as_ref().map(Warm::postmaster);
    let postmaster = match Postmaster::find(directory, *port, known).await {
        Ok(postmaster) => postmaster,
        Err(why) => {
            tracing::debug!(why, "the postmaster is not signalled from here");
            return None;
        }
    };
    // A signal does not look whether there is anything to fence.
    let in_recovery = match session {
        Some(session) => session.is_in_recovery().await,
        None => match knock(server.place, server.login, GLANCE).await {
            Ok(new) => who_is_there(new).await.is_some_and(|(in_recovery, _)| in_recovery),
            // It may be a standby: only its agent can tell.
            Err(Door::Shut(Shut::NotOpen)) if !server.starting => return None,
            Err(_) => false,
        },
    };
    if in_recovery {
        return Some(FenceOutcome::Confirmed { by: "recovery", took: started.elapsed() });
    }
    let steps = [
        (Signal::INT, "fast shutdown by signal"),
        (Signal::QUIT, "immediate shutdown by signal"),
        (Signal::KILL, "killed"),
    ];
    for (signal, by) in steps {
        let kill = signal == Signal::KILL;
        let signalled = if kill { postmaster.kill() } else { postmaster.signal(signal) };
        if let Err(why) = signalled {
            tracing::warn!(why, by, "the postmaster");
            return None;
        }
        if kill && !postmaster.leaves_nobody(STEP).await {
            return Some(FenceOutcome::Failed("it is killed, but not all of its processes have ended".to_owned()));
        }
        // Without a session that ends it is the end of the server that counts.
        let seen = if session.is_some() { verify(server).await } else { watch_stopping(server).await };
        if seen == Verified::Silent {
            // Nothing lies in front of it: the next signal.
            continue;
        }
        if let Ok(outcome) = settled(server, seen, by, started, session).await {
            return Some(outcome);
        }
    }
    None
}

/// By a statement on a superuser session: fast shutdown, then immediate.
async fn by_session(server: &Server<'_>, session: Option<Warm>, started: Instant) -> (FenceOutcome, Option<Warm>) {
    let mut climb = Climb { server, session, started };
    let mut trouble = String::new();
    for (signal, by) in [("INT", "fast shutdown"), ("QUIT", "immediate shutdown")] {
        match climb.step(signal, by).await {
            Ok(outcome) => return (outcome, climb.session.filter(|session| !session.is_over())),
            Err(why) => trouble = why,
        }
    }
    (FenceOutcome::Failed(trouble), climb.session)
}

/// One climb of the ladder, by session.
struct Climb<'a> {
    server: &'a Server<'a>,
    session: Option<Warm>,
    started: Instant,
}

impl Climb<'_> {
    /// One step. The error says why another one is needed.
    async fn step(&mut self, signal: &str, by: &'static str) -> Result<FenceOutcome, String> {
        if let Some(outcome) = self.open().await? {
            return Ok(outcome);
        }
        if self.session.as_ref().is_some_and(Warm::has_order) && verify(self.server).await == Verified::Silent {
            return Ok(FenceOutcome::Waiting);
        }
        match self.order(signal, by).await {
            // The server's clock was set meanwhile, and the order came too late by it: once more.
            Err(why) if why.contains(EXPIRED) => {
                let Some(session) = &mut self.session else { return Err(why) };
                session.measure().await.map_err(|failed| format!("{by}: {}", failed.why))?;
                self.order(signal, by).await
            }
            outcome => outcome,
        }
    }

    /// Sees to it that there is a session; the outcome, where the server needs no order any more.
    async fn open(&mut self) -> Result<Option<FenceOutcome>, String> {
        if self.session.take_if(|session| session.is_over()).is_none() && self.session.is_some() {
            return Ok(None);
        }
        let confirmed = |by| FenceOutcome::Confirmed { by, took: self.started.elapsed() };
        loop {
            match get_in(self.server, self.started + SLOTS).await {
                Ok(ready) => {
                    self.session = Some(ready);
                    return Ok(None);
                }
                Err(Door::Shut(Shut::Nobody)) => return Ok(Some(confirmed("refused already"))),
                Err(Door::Shut(Shut::NoSocket)) => {
                    let seen = Verified::Refused(Shut::NoSocket);
                    return settled(self.server, seen, "refused already", self.started, &mut None).await.map(Some);
                }
                // Its first session is ours: it is the first thing that is known of it.
                Err(Door::Shut(Shut::NotOpen)) if self.started.elapsed() < START => slot_pause().await,
                Err(Door::Shut(Shut::NotOpen)) => return Ok(Some(FenceOutcome::Waiting)),
                Err(Door::Shut(Shut::Stopping)) => {
                    let seen = watch_stopping(self.server).await;
                    return settled(self.server, seen, "shutting down already", self.started, &mut None)
                        .await
                        .map(Some);
                }
                Err(Door::Locked(why) | Door::Crowded(why)) => return Err(why),
                Err(Door::Broken) => return Err("a session broke off while it was opened".to_owned()),
                Err(Door::Silent) => return Err("the server is silent, and there was no warm session".to_owned()),
            }
        }
    }

    /// Gives the order on the session, and sees what comes of it. The error says why it is not settled.
    async fn order(&mut self, signal: &str, by: &'static str) -> Result<FenceOutcome, String> {
        let Some(session) = &mut self.session else { return Err("there is no session".to_owned()) };
        // It answers, so nothing lies in front of it.
        session.answered();
        let sent = session.order_shutdown(signal, self.server.older_than);
        let (hears, heard) = oneshot::channel();
        let seen = tokio::select! {
            seen = verify_after(self.server, async { drop(heard.await) }) => Ok(seen),
            why = refusal(sent, hears) => Err(why),
        };
        let settled = match seen {
            Ok(seen) => settled(self.server, seen, by, self.started, &mut self.session).await,
            Err(why) if why.contains(NOT_THE_ONE) => return Ok(FenceOutcome::Withdrawn(why)),
            Err(why) if why.contains(EXPIRED) => Err(why),
            // It may have been heard all the same: the shutdown ends what gave the order, in the middle of it too.
            Err(why) => {
                let seen = verify(self.server).await;
                let outcome = settled(self.server, seen, by, self.started, &mut self.session).await;
                outcome.map_err(|_| format!("{by}: {why}"))
            }
        };
        if let (Err(_), Some(session)) = (&settled, &mut self.session) {
            session.answered();
        }
        settled
    }
}

/// Why the server does not do as it was told; never ends where it does, but drops `hears`.
async fn refusal(sent: JoinHandle<Result<(), String>>, hears: oneshot::Sender<()>) -> String {
    if let Ok(Err(why)) = sent.await {
        return why;
    }
    drop(hears);
    std::future::pending().await
}

/// What became of a fence that lay in front of a silent server, now that its session has ended; `None` where that
/// cannot be told.
pub async fn after_waking(server: &Server<'_>, since: Instant) -> Option<FenceOutcome> {
    let confirmed = |by| Some(FenceOutcome::Confirmed { by, took: since.elapsed() });
    let stopped = "fast shutdown on waking";
    match (watch_stopping(server).await, server.beside) {
        (Verified::Refused(Shut::Nobody | Shut::Stopping), _) => confirmed(stopped),
        (Verified::InRecovery, _) => confirmed("recovery"),
        (Verified::Refused(Shut::NoSocket), Some(beside)) if beside.has_ended().await.is_ok() => confirmed(stopped),
        // One that starts takes writes when it is up; a socket file that is missing proves nothing alone.
        _ => None,
    }
}

/// Asks a member's server for the gate, and stops it where it takes writes of the cluster with this system identifier.
/// Also says whether it was stopped from here. One for whom a `record` stands has less time to answer. `and_fence` is
/// false where it is only to be looked.
pub async fn ask_old_primary(
    place: &Place,
    login: &Superuser,
    cluster: Option<SystemId>,
    record: bool,
    and_fence: bool,
) -> (Found, bool) {
    let found = match knock(place, login, if record { RECORDED } else { CONNECT }).await {
        Err(Door::Shut(Shut::Nobody | Shut::NoSocket)) => Found::Harmless("no process listens there".to_owned()),
        Err(Door::Shut(Shut::NotOpen)) => Found::Starting,
        Err(Door::Shut(Shut::Stopping)) => Found::Stopping,
        Err(Door::Silent | Door::Broken) => Found::Silent,
        // The gate asks again, and a slot may be free then.
        Err(Door::Locked(why) | Door::Crowded(why)) => Found::NoLogin(why),
        Ok(session) => match (who_is_there(session).await, cluster) {
            (Some((true, _)), _) => Found::Harmless("it is in recovery".to_owned()),
            // Addresses are given again: what stands there now is not to be stopped for what stood there before.
            (Some((false, there)), Some(cluster)) if cluster != there => {
                Found::Harmless("another database stands there".to_owned())
            }
            (Some((false, _)), Some(_)) if and_fence => return stop_old_primary(&Server::at(place, login)).await,
            (Some((false, _)), Some(_)) => Found::Writable("it opens sessions, and is not in recovery".to_owned()),
            (Some((false, _)), None) => Found::NoLogin(
                "the cluster's system identifier cannot be read, so it may be another database".to_owned(),
            ),
            (None, _) => Found::Silent,
        },
    };
    (found, false)
}

/// Whether a server takes this role for a superuser, as a fence needs; `None` where that cannot be asked.
pub async fn is_superuser(place: &Place, login: &Superuser) -> Option<bool> {
    let session = knock(place, login, CONNECT).await.ok()?;
    ask(session, "SHOW is_superuser", |row| Some(row.get(0)? == "on")).await
}

async fn stop_old_primary(server: &Server<'_>) -> (Found, bool) {
    match climb(server, None).await.0 {
        FenceOutcome::Confirmed { by, .. } => (Found::Harmless(by.to_owned()), true),
        FenceOutcome::Waiting => (Found::Silent, false),
        FenceOutcome::Failed(why) | FenceOutcome::Withdrawn(why) => (Found::Writable(why), false),
        FenceOutcome::Observed => (Found::Writable("nothing was done".to_owned()), false),
    }
}

/// Whether the server is in recovery, and its system identifier; `None` where it does not say.
async fn who_is_there(session: Session) -> Option<(bool, SystemId)> {
    let question =
        "SELECT pg_catalog.pg_is_in_recovery(), (SELECT system_identifier FROM pg_catalog.pg_control_system())";
    // PostgreSQL shows this unsigned number as a signed one.
    let id = |text: &str| Some(SystemId(text.parse::<i64>().ok()?.cast_unsigned()));
    ask(session, question, |row| Some((row.get(0)? == "t", id(row.get(1)?)?))).await
}

/// Asks one thing on a new session; `None` where there is no answer in time, or none that can be read.
async fn ask<T>((client, driver): Session, question: &str, read: impl Fn(&SimpleQueryRow) -> Option<T>) -> Option<T> {
    let asked = async {
        tokio::select! {
            answer = client.simple_query(question) => answer.ok(),
            () = driver => None,
        }
    };
    let messages = timeout(SILENT, asked).await.ok().flatten()?;
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => read(row),
        _ => None,
    })
}

#[cfg(test)]
#[path = "ladder_tests.rs"]
mod tests;
