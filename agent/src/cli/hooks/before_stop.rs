//! `warden before-stop`: Patroni's `postgresql.before_stop` hook.
//!
//! A PostgreSQL that gets the order to stop refuses new sessions at once. It ends the open sessions some 10 to 40 ms
//! later. The agent beside HAProxy notices the stop by the end of its own session, and then makes new connections wait.
//! The hook ends the sessions of the agents before the stop, so PostgreSQL refuses no new connection. Only a superuser
//! can give this sign, and it needs no other channel. It costs new connections 50 ms if the server does not stop after
//! all.
//!
//! Patroni runs the hook before each stop of a primary, and does not give the cause. If Patroni has lost the leader
//! key, another member may be promoted at any moment, so the hook does nothing. The hook asks the local agent for the
//! leader at the same time as it asks the server. If the agent does not answer, the hook takes no longer than
//! [`HOOK_LIMIT`].
//!
//! The hook never prevents Patroni from stopping its server. It reports an error, and ends in time.

use crate::cli::{client, runtime};
use crate::client::postgres::{Driver, Place, SESSIONS, client_config, connect};
use crate::client::root_cause;
use crate::config::{Config, FencingMode, Superuser};
use crate::tell::leader::LeaderNow;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, SimpleQueryMessage};

/// The time for the whole hook.
const HOOK_LIMIT: Duration = Duration::from_millis(100);

/// The time for the whole hook in a switchover while the local member holds the key. Patroni promotes no other member
/// before it has released the key.
const HOOK_LIMIT_IN_SWITCHOVER: Duration = Duration::from_millis(500);

/// The time for the local agent, which answers from its memory.
const AGENT_LIMIT: Duration = Duration::from_millis(50);

const _: () = assert!(AGENT_LIMIT.as_millis() < HOOK_LIMIT.as_millis());
const _: () = assert!(HOOK_LIMIT.as_millis() < HOOK_LIMIT_IN_SWITCHOVER.as_millis());

/// The maximal age of the agent's read of the leader key. Another member may hold the key after an older read.
const LEADER_AGE_MAX_MS: u64 = 3000;

/// The time for the agents elsewhere to tell their HAProxy. After it, PostgreSQL's listen queue does not grow any more.
const HOLD_PAUSE: Duration = Duration::from_millis(10);

pub(crate) fn main(path: &Path) {
    let path = path.to_owned();
    let (done, ended) = mpsc::channel();
    let in_switchover = Arc::new(AtomicBool::new(false));
    let longer = Arc::clone(&in_switchover);
    // The work has a thread of its own, because a file system may hang too. The thread ends with the process.
    std::thread::spawn(move || drop(done.send(work(&path, &longer))));
    let report = match wait(&ended, &in_switchover) {
        Some(Ok(0)) => return,
        Some(Ok(ended)) => format!("ended {ended} sessions of agents elsewhere"),
        Some(Err(why)) => why,
        None => "the hook did not end the sessions in time".to_owned(),
    };
    // Patroni may have closed the hook's output.
    drop(writeln!(std::io::stderr(), "warden before-stop: {report}"));
}

/// Returns the outcome; `None` if there is none in time.
fn wait<T>(ended: &mpsc::Receiver<T>, in_switchover: &AtomicBool) -> Option<T> {
    match ended.recv_timeout(HOOK_LIMIT) {
        Err(mpsc::RecvTimeoutError::Timeout) if in_switchover.load(Ordering::SeqCst) => {
            ended.recv_timeout(HOOK_LIMIT_IN_SWITCHOVER - HOOK_LIMIT).ok()
        }
        ended => ended.ok(),
    }
}

/// Returns the number of sessions that the hook ended. The error is the reason for which it ended none.
fn work(path: &Path, in_switchover: &AtomicBool) -> Result<u32, String> {
    let (config, _) = Config::load_for_gate(path).map_err(|error| error.to_string())?;
    let (Some(node), Some(login)) = (&config.node, &config.superuser) else {
        return Err(format!("no node section in {}, or no superuser", path.display()));
    };
    // The hook serves routing, so mode `off` of fencing does not turn it off.
    if config.fencing.mode == FencingMode::Observe {
        return Ok(0);
    }
    let runtime = runtime().map_err(|error| format!("{error:#}"))?;
    let agent = format!("http://{}", config.http.connect_address);
    let ended = runtime.block_on(async {
        let place = Place::beside(node);
        let ended = before_stop(&place, login, &agent, &node.member, in_switchover).await?;
        if ended > 0 {
            sleep(HOLD_PAUSE).await;
            // PostgreSQL serves its listen queue in order. This session shows that every earlier client has its
            // process.
            drop(connect(&client_config(&Place::Tcp(node.host.clone(), node.port), login), login.sslmode).await);
        }
        Ok(ended)
    });
    // The resolution of a name may block a thread.
    runtime.shutdown_background();
    ended
}

/// Ends the sessions, unless the agent at `agent` knows that the hook must not delay the stop.
async fn before_stop(
    place: &Place,
    login: &Superuser,
    agent: &str,
    own: &str,
    in_switchover: &AtomicBool,
) -> Result<u32, String> {
    let told = async {
        let Some(leader) = leader(agent).await else { return Ok(()) };
        if let Some(why) = must_not_delay(&leader, own) {
            return Err(why);
        }
        in_switchover.store(leader.switchover && leader.name.as_deref() == Some(own), Ordering::SeqCst);
        Ok(())
    };
    let mut config = client_config(place, login);
    config.application_name("warden-before-stop");
    let session = async { connect(&config, place.sslmode(login)).await.map_err(|error| root_cause(&error)) };
    // The objection of the agent ends the attempt at once.
    let ((client, driver), ()) = tokio::try_join!(session, told)?;
    end_sessions(client, driver).await.map_err(|error| root_cause(&error))
}

/// The leader as the agent knows it now; `None` if the agent does not answer.
async fn leader(agent: &str) -> Option<LeaderNow> {
    let asked = async {
        let answer = client::plain().ok()?.get(format!("{agent}/api/v1/leader")).send().await.ok()?;
        answer.error_for_status().ok()?.json().await.ok()
    };
    timeout(AGENT_LIMIT, asked).await.ok().flatten()
}

/// Returns the reason for which the hook must not delay the stop: the local member does not hold the key. An unverified
/// read is enough, because PostgreSQL refuses some new connections at worst.
fn must_not_delay(leader: &LeaderNow, own: &str) -> Option<String> {
    let recent = leader.known && leader.age_ms.is_some_and(|age| age <= LEADER_AGE_MAX_MS);
    match leader.name.as_deref() {
        Some(holder) if recent && holder != own => {
            Some(format!("{holder} holds the leader key, so the hook does not delay the stop"))
        }
        None if recent => Some("there is no leader key, so the hook does not delay the stop".to_owned()),
        _ => None,
    }
}

/// Ends the sessions of agents on other machines with this server, if it takes writes, and returns their number.
async fn end_sessions(client: Client, connection: Driver) -> Result<u32, tokio_postgres::Error> {
    let asked = async {
        let ended = client.simple_query(&statement()).await?;
        let count = ended.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        Ok(count.unwrap_or(0))
    };
    tokio::select! {
        ended = asked => ended,
        () = connection => Ok(0),
    }
}

fn statement() -> String {
    format!(
        "SELECT pg_catalog.count(pg_catalog.pg_terminate_backend(pid)) FROM pg_catalog.pg_stat_activity \
         WHERE application_name = '{SESSIONS}' AND client_addr IS NOT NULL AND NOT pg_catalog.pg_is_in_recovery()"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SslMode;
    use std::time::Instant;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn leader(name: Option<&str>, age_ms: u64) -> LeaderNow {
        let name = name.map(str::to_owned);
        LeaderNow { name, known: true, verified: false, age_ms: Some(age_ms), switchover: false }
    }

    #[test]
    fn the_hook_delays_a_stop_unless_another_member_may_be_promoted() {
        let unknown = LeaderNow { known: false, age_ms: None, ..leader(None, 0) };
        for (name, leader, delayed) in [
            ("it holds the key", leader(Some("a"), 10), true),
            ("another holds it", leader(Some("b"), 10), false),
            ("there is none", leader(None, 10), false),
            ("another held it long ago", leader(Some("b"), 10_000), true),
            ("there was none long ago", leader(None, 10_000), true),
            ("nothing is known", unknown, true),
        ] {
            assert_eq!(must_not_delay(&leader, "a").is_none(), delayed, "{name}");
        }
    }

    #[test]
    fn only_a_switchover_has_longer_than_100_ms() {
        let (sender, ended) = mpsc::channel::<()>();
        for (in_switchover, limit) in [(false, HOOK_LIMIT), (true, HOOK_LIMIT_IN_SWITCHOVER)] {
            let started = Instant::now();
            assert_eq!(wait(&ended, &AtomicBool::new(in_switchover)), None);
            let took = started.elapsed();
            assert!(took >= limit && took < limit + Duration::from_secs(5), "{took:?} instead of {limit:?}");
        }
        sender.send(()).unwrap();
        assert_eq!(wait(&ended, &AtomicBool::new(false)), Some(()));
    }

    /// An agent that answers with `leader`; with `None` it never answers.
    async fn agent(leader: Option<LeaderNow>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                assert!(request[..read].starts_with(b"GET /api/v1/leader "));
                if let Some(leader) = &leader {
                    let body = serde_json::to_string(leader).unwrap();
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
                kept.push(stream);
            }
        });
        format!("http://{address}")
    }

    #[tokio::test]
    async fn a_server_that_hangs_does_not_delay_a_stop_whose_key_is_lost() {
        let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = Place::Tcp("127.0.0.1".to_owned(), hangs.local_addr().unwrap().port());
        let login = Superuser {
            username: "postgres".to_owned(),
            password: None,
            sslmode: SslMode::Disable,
            database: "postgres".to_owned(),
        };
        let in_switchover = AtomicBool::new(false);
        let lost = agent(Some(leader(Some("b"), 5))).await;
        let why =
            timeout(HOOK_LIMIT, before_stop(&place, &login, &lost, "a", &in_switchover)).await.unwrap().unwrap_err();
        assert!(why.contains("b holds the leader key"), "{why}");
        let switching = LeaderNow { switchover: true, ..leader(Some("a"), 5) };
        for (told, expected) in [(None, false), (Some(leader(Some("a"), 5)), false), (Some(switching), true)] {
            let agent = agent(told).await;
            let stop = before_stop(&place, &login, &agent, "a", &in_switchover);
            assert!(timeout(HOOK_LIMIT, stop).await.is_err(), "the hook waits for the server");
            assert_eq!(in_switchover.load(Ordering::SeqCst), expected);
        }
    }
}
