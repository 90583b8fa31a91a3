//! `warden before-stop`: Patroni's `postgresql.before_stop` hook.
//!
//! PostgreSQL refuses new sessions from the moment in which it is told to stop, and those that are open end some 10 to 40
//! ms later. The end of its own session is the first sign that the agent beside HAProxy has of it, and what makes new
//! connections wait. So these sessions are ended first, and nobody is refused: a sign that only a superuser can give, that
//! needs no way of its own, and that costs new connections 50 ms where the server then goes on.
//!
//! Patroni runs it before each stop of a primary and says nothing of its cause. Where it has lost the leader key it
//! stops at once, because another may be promoted any moment: then nothing is done here. The agent, asked side by
//! side with the server, knows that at once; where it does not answer, this takes no longer than [`LIMIT`].
//!
//! It never keeps Patroni from stopping its server: whatever goes wrong is said, and it ends in time.

use super::{client, runtime};
use crate::config::{Config, FencingMode, Superuser};
use crate::tell::leader::LeaderNow;
use crate::watch::postgres::{Driver, Place, SESSIONS, client_config, connect};
use crate::watch::root_cause;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, SimpleQueryMessage};

/// All of it takes no longer,
const LIMIT: Duration = Duration::from_millis(100);

/// unless a switchover is asked for and the key is our member's: no other is promoted before it is released.
const LIMIT_IN_SWITCHOVER: Duration = Duration::from_millis(500);

/// The agent beside us has it in its memory.
const AGENT: Duration = Duration::from_millis(50);

/// What the agent knows has to be as recent as this: a key of which nothing is heard may be another's.
const RECENT_MS: u64 = 3000;

/// So long those whose session ended have to tell their HAProxy. Then the server's queue is as long as it gets.
const HEARD: Duration = Duration::from_millis(10);

pub(super) fn main(path: &Path) {
    let path = path.to_owned();
    let (done, ended) = mpsc::channel();
    let in_switchover = Arc::new(AtomicBool::new(false));
    let longer = Arc::clone(&in_switchover);
    // On a thread of its own: a file system may hang, too, and what is left of it ends with the process.
    std::thread::spawn(move || drop(done.send(work(&path, &longer))));
    let said = match wait(&ended, &in_switchover) {
        Some(Ok(0)) => return,
        Some(Ok(ended)) => format!("ended {ended} sessions of agents elsewhere"),
        Some(Err(why)) => why,
        None => "not in time".to_owned(),
    };
    // Nobody may be there to read it.
    drop(writeln!(std::io::stderr(), "warden before-stop: {said}"));
}

/// What came of it, if anything did in time.
fn wait<T>(ended: &mpsc::Receiver<T>, in_switchover: &AtomicBool) -> Option<T> {
    match ended.recv_timeout(LIMIT) {
        Err(mpsc::RecvTimeoutError::Timeout) if in_switchover.load(Ordering::SeqCst) => {
            ended.recv_timeout(LIMIT_IN_SWITCHOVER - LIMIT).ok()
        }
        ended => ended.ok(),
    }
}

/// Returns how many sessions were ended; the error says what was in the way.
fn work(path: &Path, in_switchover: &AtomicBool) -> Result<u32, String> {
    let (config, _) = Config::load_for_gate(path).map_err(|error| error.to_string())?;
    let (Some(node), Some(login)) = (&config.node, &config.superuser) else {
        return Err(format!("no node section in {}, or no superuser", path.display()));
    };
    // It serves routing, which goes on where nobody is fenced.
    if config.fencing.mode == FencingMode::Observe {
        return Ok(0);
    }
    let runtime = runtime().map_err(|error| format!("{error:#}"))?;
    let agent = format!("http://{}", config.http.connect_address);
    let ended = runtime.block_on(async {
        let place = Place::beside(node);
        let ended = before_stop(&place, login, &agent, &node.member, in_switchover).await?;
        if ended > 0 {
            sleep(HEARD).await;
            // Whoever came before has a process of the server by then, and is not refused.
            drop(connect(&client_config(&Place::Tcp(node.host.clone(), node.port), login), login.sslmode).await);
        }
        Ok(ended)
    });
    // A name that is being resolved is not waited for.
    runtime.shutdown_background();
    ended
}

/// Ends the sessions, unless the agent at `agent` knows that the stop is not to be delayed.
async fn before_stop(
    place: &Place,
    login: &Superuser,
    agent: &str,
    own: &str,
    in_switchover: &AtomicBool,
) -> Result<u32, String> {
    let told = async {
        let Some(leader) = leader(agent).await else { return Ok(()) };
        if let Some(why) = not_to_be_delayed(&leader, own) {
            return Err(why);
        }
        in_switchover.store(leader.switchover && leader.name.as_deref() == Some(own), Ordering::SeqCst);
        Ok(())
    };
    let mut config = client_config(place, login);
    config.application_name("warden-before-stop");
    let session = async { connect(&config, place.sslmode(login)).await.map_err(|error| root_cause(&error)) };
    // Ends at once with the agent's word against it.
    let ((client, driver), ()) = tokio::try_join!(session, told)?;
    end_sessions(client, driver).await.map_err(|error| root_cause(&error))
}

/// Who leads, as the agent knows it now; `None` where it does not answer.
async fn leader(agent: &str) -> Option<LeaderNow> {
    let asked = async {
        let answer = client::plain().ok()?.get(format!("{agent}/api/v1/leader")).send().await.ok()?;
        answer.error_for_status().ok()?.json().await.ok()
    };
    timeout(AGENT, asked).await.ok().flatten()
}

/// Why the stop is not to be delayed: the key is not our member's. What is only read, and not verified, will do:
/// nothing is lost but that a new connection may be refused.
fn not_to_be_delayed(leader: &LeaderNow, own: &str) -> Option<String> {
    let recent = leader.known && leader.age_ms.is_some_and(|age| age <= RECENT_MS);
    match leader.name.as_deref() {
        Some(holder) if recent && holder != own => Some(format!("{holder} holds the leader key: nothing is delayed")),
        None if recent => Some("there is no leader key: nothing is delayed".to_owned()),
        _ => None,
    }
}

/// Ends the sessions that agents on other machines have with this server, where it takes writes, and returns how many.
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
    fn a_stop_is_delayed_only_where_no_other_can_be_promoted_as_far_as_is_known() {
        let unknown = LeaderNow { known: false, age_ms: None, ..leader(None, 0) };
        for (name, leader, delayed) in [
            ("it holds the key", leader(Some("a"), 10), true),
            ("another holds it", leader(Some("b"), 10), false),
            ("there is none", leader(None, 10), false),
            ("another held it long ago", leader(Some("b"), 10_000), true),
            ("there was none long ago", leader(None, 10_000), true),
            ("nothing is known", unknown, true),
        ] {
            assert_eq!(not_to_be_delayed(&leader, "a").is_none(), delayed, "{name}");
        }
    }

    #[test]
    fn only_a_switchover_has_longer_than_100_ms() {
        let (sender, ended) = mpsc::channel::<()>();
        for (in_switchover, limit) in [(false, LIMIT), (true, LIMIT_IN_SWITCHOVER)] {
            let started = Instant::now();
            assert_eq!(wait(&ended, &AtomicBool::new(in_switchover)), None);
            let took = started.elapsed();
            assert!(took >= limit && took < limit + Duration::from_millis(80), "{took:?} instead of {limit:?}");
        }
        sender.send(()).unwrap();
        assert_eq!(wait(&ended, &AtomicBool::new(false)), Some(()));
    }

    /// An agent that answers with `leader`, or not at all.
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
        let why = timeout(LIMIT, before_stop(&place, &login, &lost, "a", &in_switchover)).await.unwrap().unwrap_err();
        assert!(why.contains("b holds the leader key"), "{why}");
        let switching = LeaderNow { switchover: true, ..leader(Some("a"), 5) };
        for (told, expected) in [(None, false), (Some(leader(Some("a"), 5)), false), (Some(switching), true)] {
            let agent = agent(told).await;
            let stop = before_stop(&place, &login, &agent, "a", &in_switchover);
            assert!(timeout(LIMIT, stop).await.is_err(), "the server is waited for");
            assert_eq!(in_switchover.load(Ordering::SeqCst), expected);
        }
    }
}
