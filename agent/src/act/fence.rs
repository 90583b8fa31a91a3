//! Fences: stops a server that must not take writes any more, and keeps a session warm to do it with.
//!
//! The ladder: on the warm session the server is asked to signal its own postmaster, fast shutdown first, which
//! refuses open and new sessions within some 20 ms and waits for nobody, then immediate. "Fenced" is only said when a
//! new session is refused or the server is in recovery. Nothing is left behind that would have to be undone: Patroni,
//! when it comes back, starts the server as a replica by itself.
//!
//! A server that is silent (paused, stopped, out of IO) gets the same statement at once: it lies in its socket and is
//! the first thing that it does when it wakes. It carries its own time limit, so that one that is no longer wanted
//! does nothing.

use super::records::Records;
use crate::config::Superuser;
use crate::watch::Events;
use crate::watch::postgres::{self, Place};
use crate::watch::zookeeper::Handle as ZooKeeper;
use crate::watch::{members::Targets, znodes};
use jiff::Timestamp;
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch as latest};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, SimpleQueryMessage};
use warden_core::decide::{Action, FENCE_RENEWED, Step};
use warden_core::event::{Barrier, Event, FenceOutcome, FenceRecord, FenceReport, FenceSession, PostgresAnswer};
use warden_core::fact::Reading;
use warden_core::fence::{Guard, Order};
use warden_core::types::{MemberName, Timeline, UnixMillis};

/// The look right before acting: a healthy ZooKeeper answers within milliseconds, and every one of them counts.
const LOOK: Duration = Duration::from_millis(500);

/// How long a session may take to begin.
const CONNECT: Duration = Duration::from_secs(1);

/// How long each step of the ladder has until a new session has to be refused.
const STEP: Duration = Duration::from_millis(1500);

/// Between two looks whether it is.
const VERIFY: Duration = Duration::from_millis(5);

/// A new session that neither begins nor is refused for this long: the server is silent.
const SILENT: Duration = Duration::from_millis(700);

/// Pause before the warm session is tried again.
const RECONNECT: Duration = Duration::from_millis(500);

/// What the actor needs.
pub struct Fencer {
    /// The local server, if there is one; the warm session is with it.
    pub local: Option<(MemberName, Place)>,
    /// Superuser.
    pub login: Option<Superuser>,
    /// For the look right before acting.
    pub zookeeper: ZooKeeper,
    /// For the record.
    pub records: Records,
    /// Where the other members are.
    pub targets: latest::Receiver<Targets>,
    /// For what came of it.
    pub events: Events,
    /// Our own name, for the record.
    pub agent: String,
}

/// A session that is ready.
struct Warm {
    client: Arc<Client>,
    /// The server's postmaster, in its own numbering.
    postmaster: u32,
    /// Ends with the session.
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Warm {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// Carries out steps until the loop is gone, and keeps the session warm in between.
pub async fn run(steps: &mut mpsc::Receiver<Step>, fencer: &Fencer) -> anyhow::Result<()> {
    let mut warm: Option<Warm> = None;
    // An order that lies in front of a silent server.
    let mut waiting: Option<(Order, Instant)> = None;
    let mut told = None;
    loop {
        let is_warm = warm.is_some();
        let step = tokio::select! {
            biased;
            step = steps.recv() => step,
            () = ended(&mut warm) => {
                warm = None;
                if let Some((order, since)) = waiting.take() {
                    fencer.after_waking(&order, since).await?;
                }
                continue;
            }
            made = fencer.warm_up(is_warm) => {
                let session = match made {
                    Ok(session) => {
                        warm = Some(session);
                        FenceSession::Ready
                    }
                    Err(why) => FenceSession::Lost(why),
                };
                if told.as_ref() != Some(&session) {
                    fencer.tell(Event::FenceSession(session.clone())).await?;
                    told = Some(session);
                }
                continue;
            }
        };
        let Some(Step { action, reason: _ }) = step else { return Ok(()) };
        match action {
            Action::Fence(order) => {
                let outcome = fencer.fence(&order, &mut warm).await;
                if warm.is_none() {
                    told = None;
                }
                waiting = (outcome == FenceOutcome::Waiting).then(|| ((*order).clone(), Instant::now()));
                fencer.report(&order, outcome).await?;
            }
            Action::ObserveFence(order) => fencer.report(&order, FenceOutcome::Observed).await?,
            // `Actors::hand_over` sends nothing else here.
            other => tracing::error!(action = ?other, "this actor does not do such things"),
        }
    }
}

/// Ends when the warm session does; never without one.
async fn ended(warm: &mut Option<Warm>) {
    match warm {
        Some(warm) => drop((&mut warm.driver).await),
        None => pending().await,
    }
}

/// How a new session fares.
enum Door {
    /// It begins.
    Open(Box<(Client, postgres::Driver)>),
    /// The server refuses all sessions, or nobody listens.
    Shut,
    /// The server refuses ours (a wrong password, too many sessions): it may take others.
    Locked(String),
    /// Neither.
    Silent,
}

impl Fencer {
    async fn tell(&self, event: Event) -> anyhow::Result<()> {
        Ok(self.events.send(self.events.clock.now(), event).await?)
    }

    async fn report(&self, order: &Order, outcome: FenceOutcome) -> anyhow::Result<()> {
        let (member, rule, reason) = (order.member.as_str(), order.rule.as_str(), order.reason.as_str());
        match &outcome {
            FenceOutcome::Confirmed { by, took } => {
                tracing::warn!(member, rule, reason, by, took_ms = took.as_millis(), "fenced");
                self.record(order, true);
            }
            FenceOutcome::Waiting => {
                tracing::warn!(
                    member,
                    rule,
                    reason,
                    "the server is silent; the fence is the first thing it does when it wakes"
                );
                self.record(order, false);
            }
            FenceOutcome::Observed => {
                tracing::warn!(member, rule, reason, "would be fenced (fencing.mode is observe)");
            }
            FenceOutcome::Withdrawn(why) => tracing::warn!(member, rule, reason, why, "not fenced"),
            FenceOutcome::Failed(why) => {
                tracing::error!(member, rule, reason, why, "THE FENCE FAILED: this server may still take writes");
                self.record(order, false);
            }
        }
        self.tell(Event::Fence(FenceReport { member: order.member.clone(), rule: order.rule, outcome })).await
    }

    /// Has the record written: a fence does not wait for ZooKeeper, which may be away.
    fn record(&self, order: &Order, confirmed: bool) {
        let now = UnixMillis(Timestamp::now().as_millisecond());
        // What a person asked for stays theirs.
        let by = if let Guard::Asked { by } = &order.guard { by } else { &self.agent };
        self.records.put(FenceRecord {
            member: order.member.clone(),
            rule: order.rule,
            reason: order.reason.clone(),
            by: by.clone(),
            ordered: now,
            confirmed: confirmed.then_some(now),
            facts: order.facts.clone(),
        });
    }

    /// Makes a session warm, after a pause; never ends while there is one, or nobody to have one with.
    async fn warm_up(&self, is_warm: bool) -> Result<Warm, String> {
        let (Some((_, place)), Some(login), false) = (&self.local, &self.login, is_warm) else {
            return pending().await;
        };
        sleep(RECONNECT.mul_f64(rand::random_range(0.1..1.0))).await;
        match knock(place, login, CONNECT).await {
            Door::Open(session) => ready(*session).await,
            Door::Shut => Err("the server takes no sessions".to_owned()),
            Door::Locked(why) => Err(why),
            Door::Silent => Err("no session within 1 s".to_owned()),
        }
    }

    async fn fence(&self, order: &Order, warm: &mut Option<Warm>) -> FenceOutcome {
        let started = Instant::now();
        if let Err(why) = self.look_again(&order.guard).await {
            return FenceOutcome::Withdrawn(why);
        }
        let local = self.local.as_ref().filter(|(member, _)| *member == order.member);
        let Some(login) = &self.login else {
            return FenceOutcome::Failed("there is no superuser to log in with".into());
        };
        let place = match local {
            Some((_, place)) => place.clone(),
            None => match self.targets.borrow().get(&order.member).and_then(|target| target.postgres.clone()) {
                Some((host, port)) => Place::Tcp(host, port),
                None => return FenceOutcome::Failed("it is not known where its server is".to_owned()),
            },
        };
        // The warm session is with the local server.
        let session = if local.is_some() { warm.take() } else { None };
        let older_than = match order.guard {
            Guard::KeyIs { older_than, .. } => Some(older_than),
            _ => None,
        };
        let (outcome, session) = ladder(&place, login, session, older_than).await;
        if local.is_some() {
            *warm = session;
        }
        match outcome {
            FenceOutcome::Confirmed { by, .. } => FenceOutcome::Confirmed { by, took: started.elapsed() },
            outcome => outcome,
        }
    }

    /// Whether it is still right to fence.
    async fn look_again(&self, guard: &Guard) -> Result<(), String> {
        if matches!(guard, Guard::Asked { .. }) {
            return Ok(());
        }
        let asked = Instant::now();
        let read = znodes::barrier(self.zookeeper.barrier(LOOK).await, asked, &self.events.clock);
        let Event::Barrier(read) = read.event else { return Err("ZooKeeper was not asked".to_owned()) };
        let (leader, config, session) = match (read, guard) {
            (Barrier::Unknown(_), Guard::NoContact) => return Ok(()),
            (Barrier::Unknown(why), _) => return Err(format!("it cannot be verified any more: {why}")),
            (Barrier::Verified { .. }, Guard::NoContact) => {
                return Err("ZooKeeper is there again: what it says is to be judged first".to_owned());
            }
            (Barrier::Verified { leader, config, session, .. }, _) => (leader, config, session),
        };
        match config {
            Reading::Present(config) if !config.pause => {}
            Reading::Present(_) => return Err("the cluster is in maintenance mode".to_owned()),
            _ => return Err("Patroni's configuration cannot be read".to_owned()),
        }
        match (guard, &leader) {
            (Guard::KeyIsNot { session: then, .. } | Guard::KeyIs { session: then, .. }, _) if *then != session => {
                Err("the ZooKeeper session is another one".to_owned())
            }
            (_, Reading::Unreadable(why)) => Err(format!("the leader key cannot be understood: {why}")),
            (Guard::KeyIsNot { member, .. }, Reading::Present(key)) if key.holder == *member => {
                Err("it holds the leader key".to_owned())
            }
            (Guard::KeyIs { member, czxid, .. }, Reading::Present(key))
                if key.holder == *member && key.czxid == *czxid =>
            {
                Ok(())
            }
            (Guard::KeyIs { .. }, _) => Err("we do not hold the leader key any more".to_owned()),
            _ => Ok(()),
        }
    }

    /// The session that a waiting fence lay in has ended: the server woke, and did it or not.
    async fn after_waking(&self, order: &Order, since: Instant) -> anyhow::Result<()> {
        let (Some((member, place)), Some(login)) = (&self.local, &self.login) else { return Ok(()) };
        // The session was with the local server: its end says nothing of another's.
        if *member != order.member {
            return Ok(());
        }
        let outcome = match verify(place, login).await {
            Verified::Refused => FenceOutcome::Confirmed { by: "fast shutdown on waking", took: since.elapsed() },
            Verified::InRecovery => FenceOutcome::Confirmed { by: "recovery", took: since.elapsed() },
            Verified::Silent | Verified::Open => return Ok(()),
        };
        self.report(order, outcome).await
    }
}

/// Stops the server at `place`, step by step, until a new session is refused or it is in recovery. `session` is one
/// that is ready, if there is one; it comes back where the order lies in it, in front of a silent server.
async fn ladder(
    place: &Place,
    login: &Superuser,
    mut session: Option<Warm>,
    older_than: Option<Timeline>,
) -> (FenceOutcome, Option<Warm>) {
    let started = Instant::now();
    let confirmed = |by| FenceOutcome::Confirmed { by, took: started.elapsed() };
    let mut trouble = String::new();
    for (signal, by) in [("INT", "fast shutdown"), ("QUIT", "immediate shutdown")] {
        let ready = match session.take().filter(|session| !session.client.is_closed()) {
            Some(ready) => Ok(ready),
            None => match knock(place, login, CONNECT).await {
                Door::Open(new) => ready(*new).await,
                Door::Locked(why) => Err(why),
                Door::Shut => return (confirmed(by), None),
                Door::Silent => Err("the server is silent, and there was no warm session".to_owned()),
            },
        };
        let ready = match ready {
            Ok(ready) => ready,
            Err(why) => {
                trouble = why;
                continue;
            }
        };
        let sent = order_shutdown(&ready, signal, older_than);
        match verify(place, login).await {
            Verified::Refused => return (confirmed(by), None),
            Verified::InRecovery => return (confirmed("recovery"), Some(ready)),
            // The statement lies in the server's socket; it stays there as long as the session does.
            Verified::Silent => return (FenceOutcome::Waiting, Some(ready)),
            Verified::Open => {
                trouble = match timeout(VERIFY, sent).await {
                    Ok(Ok(Err(why))) => format!("{by}: {why}"),
                    _ => format!("{by}: it still opens sessions after {} ms", STEP.as_millis()),
                };
                session = Some(ready);
            }
        }
    }
    (FenceOutcome::Failed(trouble), None)
}

/// Fences a server that somebody else should have fenced already, for the gate: the candidate holds the leader key.
/// `Ok` says by what it is known that the server takes no writes of the cluster with this system identifier; the error,
/// why that is not known.
pub async fn stop_old_primary(
    place: &Place,
    login: &Superuser,
    cluster: Option<&str>,
) -> Result<&'static str, OldPrimary> {
    match knock(place, login, CONNECT).await {
        Door::Shut => return Ok("it refuses sessions"),
        Door::Silent => return Err(OldPrimary::Silent),
        Door::Locked(why) => return Err(OldPrimary::Writable(why)),
        Door::Open(session) => match who_is_there(*session).await {
            Some((true, _)) => return Ok("it is in recovery"),
            // Addresses are given again: what stands there now is not to be stopped for what stood there before.
            Some((false, there)) if cluster.is_some_and(|cluster| cluster != there) => {
                return Ok("another database stands there");
            }
            _ => {}
        },
    }
    match ladder(place, login, None, None).await.0 {
        FenceOutcome::Confirmed { by, .. } => Ok(by),
        FenceOutcome::Waiting => Err(OldPrimary::Silent),
        FenceOutcome::Failed(why) | FenceOutcome::Withdrawn(why) => Err(OldPrimary::Writable(why)),
        FenceOutcome::Observed => Err(OldPrimary::Writable("nothing was done".to_owned())),
    }
}

/// Why it is not known that an old primary takes no writes.
#[derive(Debug, PartialEq, Eq)]
pub enum OldPrimary {
    /// It cannot be reached, or does not answer.
    Silent,
    /// It answers, and could not be stopped; the text says why.
    Writable(String),
}

async fn knock(place: &Place, login: &Superuser, limit: Duration) -> Door {
    let mut config = postgres::client_config(place, login);
    config.application_name("warden-fence");
    match timeout(limit, postgres::connect(&config, place.sslmode(login))).await {
        Ok(Ok(session)) => Door::Open(Box::new(session)),
        Ok(Err(error)) => match postgres::answer_of_error(&error) {
            PostgresAnswer::Refused(_) | PostgresAnswer::Gone(_) => Door::Shut,
            PostgresAnswer::Unknown(why) => Door::Locked(why),
            _ => Door::Silent,
        },
        Err(_) => Door::Silent,
    }
}

/// Finds out what a fence needs to know, so that it is one statement later.
async fn ready((client, driver): (Client, postgres::Driver)) -> Result<Warm, String> {
    let mut warm = Warm { client: Arc::new(client), postmaster: 0, driver: tokio::spawn(driver) };
    let question = "SELECT split_part(pg_catalog.pg_read_file('postmaster.pid'), E'\\n', 1)";
    let answer = timeout(CONNECT, warm.client.simple_query(question)).await.map_err(|_| "no answer within 1 s")?;
    let messages = answer.map_err(|error| format!("postmaster.pid cannot be read: {error}"))?;
    let pid = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0)?.trim().parse::<u32>().ok(),
        _ => None,
    });
    warm.postmaster = pid.filter(|pid| *pid > 0).ok_or("postmaster.pid names no process")?;
    Ok(warm)
}

async fn verify(place: &Place, login: &Superuser) -> Verified {
    let started = Instant::now();
    while started.elapsed() < STEP {
        match knock(place, login, SILENT).await {
            Door::Locked(_) => {}
            Door::Shut => return Verified::Refused,
            Door::Silent => return Verified::Silent,
            Door::Open(session) => {
                if in_recovery(*session).await {
                    return Verified::InRecovery;
                }
            }
        }
        sleep(VERIFY).await;
    }
    Verified::Open
}

/// What a new session says about the server.
enum Verified {
    Refused,
    InRecovery,
    Silent,
    Open,
}

async fn in_recovery(session: (Client, postgres::Driver)) -> bool {
    who_is_there(session).await.is_some_and(|(in_recovery, _)| in_recovery)
}

/// Whether the server is in recovery, and its system identifier; `None` where it does not say.
async fn who_is_there((client, driver): (Client, postgres::Driver)) -> Option<(bool, String)> {
    let question =
        "SELECT pg_catalog.pg_is_in_recovery(), (SELECT system_identifier FROM pg_catalog.pg_control_system())";
    let asking = client.simple_query(question);
    let asked = async {
        tokio::select! {
            answer = asking => answer.ok(),
            () = driver => None,
        }
    };
    let messages = timeout(SILENT, asked).await.ok().flatten()?;
    messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0)? == "t", row.get(1)?.to_owned())),
        _ => None,
    })
}

/// Sends the statement that has the server signal its own postmaster. It is sent at once, and stays sent whatever
/// becomes of the task: a server that is silent finds it when it wakes, if that is before its time limit.
fn order_shutdown(
    warm: &Warm,
    signal: &str,
    older_than: Option<Timeline>,
) -> tokio::task::JoinHandle<Result<(), String>> {
    let limit = Timestamp::now() + FENCE_RENEWED * 2;
    let newer = older_than.map_or_else(String::new, |timeline| {
        let own = "('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 1, 8))::bit(32)::int";
        format!("WHEN {own} >= {} THEN 'Warden: it is on the leader''s timeline, so it is not the one'", timeline.0)
    });
    // The first statement refuses where there is nothing to fence; then the second is not carried out. The cast is
    // of a value that is only known then, so that planning cannot trip over it.
    let statement = format!(
        "SELECT (CASE WHEN pg_catalog.pg_is_in_recovery() THEN 'Warden: in recovery, so there is nothing to fence' \
                      WHEN pg_catalog.clock_timestamp() > '{limit}' THEN 'Warden: this fence has expired' {newer} \
                      ELSE '1' END)::int; \
         COPY (SELECT 1) TO PROGRAM 'kill -{signal} {}'",
        warm.postmaster
    );
    let client = Arc::clone(&warm.client);
    tokio::spawn(async move {
        match client.simple_query(&statement).await {
            Ok(_) => Ok(()),
            // That it ends the session is the purpose.
            Err(error) if error.is_closed() || error.as_db_error().is_none() => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
}
