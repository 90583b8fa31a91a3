use super::*;
use crate::act::fence::connect;
use crate::client::beside::Beside;
use crate::client::postgres;
use crate::client::postgres::real::{self, Postgres};
use crate::config::{SslMode, Superuser};
use tokio::time::{sleep, timeout};
use tokio_postgres::Client;
use warden_core::types::Timeline;

/// The time limit for the end of a session, also on a slow machine.
const END_LIMIT: Duration = Duration::from_secs(3);

fn login() -> Superuser {
    real::login("postgres", "postgres")
}

fn server<'a>(place: &'a Place, login: &'a Superuser) -> Server<'a> {
    Server::at(place, login)
}

fn by(outcome: &FenceOutcome) -> &'static str {
    match outcome {
        FenceOutcome::Confirmed { by, .. } => by,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn a_visible_postmaster_is_stopped_by_a_signal_and_a_frozen_one_is_killed() {
    let (postgres, login) = (Postgres::start(""), login());
    let place = postgres.place();
    let mut open = connect::open(&place, &login).await.unwrap();
    let session = connect::open(&place, &login).await.unwrap();
    let (outcome, _) = stop(&server(&place, &login), Some(session)).await;
    println!("{outcome:?}");
    assert_eq!(by(&outcome), "fast shutdown by signal");
    assert!(open.ends_within(END_LIMIT).await, "open sessions end too");

    let postgres = Postgres::start("");
    let place = postgres.place();
    let session = connect::open(&place, &login).await.unwrap();
    postgres.signal(Signal::STOP);
    let (outcome, _) = stop(&server(&place, &login), Some(session)).await;
    println!("{outcome:?}");
    assert_eq!(by(&outcome), "killed");
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn stopped_backends_are_killed_with_their_postmaster() {
    let login = login();
    let backend = "kill -STOP $(pgrep -P $(head -n1 $0/data/postmaster.pid) -f 'postgres postgres')";
    let all = "kill -STOP $(head -n1 $0/data/postmaster.pid) $(pgrep -P $(head -n1 $0/data/postmaster.pid))";
    for stopped in [backend, all] {
        let postgres = Postgres::start("");
        let place = postgres.place();
        let session = connect::open(&place, &login).await.unwrap();
        postgres.run(stopped);
        let (outcome, _) = stop(&server(&place, &login), Some(session)).await;
        println!("{outcome:?}");
        assert_eq!(by(&outcome), "killed");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn by_a_session_open_sessions_end_whether_it_was_running_or_in_a_smart_shutdown() {
    let login = login();
    for smart in [false, true] {
        let postgres = Postgres::start("");
        let place = postgres.place();
        let session = connect::open(&place, &login).await.unwrap();
        let mut open = connect::open(&place, &login).await.unwrap();
        if smart {
            postgres.signal(Signal::TERM);
            sleep(Duration::from_millis(200)).await;
            assert!(!open.is_over(), "a smart shutdown waits for open sessions");
        }
        let started = Instant::now();
        let (outcome, _) = by_session(&server(&place, &login), Some(session), started).await;
        println!("smart {smart}: {outcome:?}");
        assert_eq!(by(&outcome), "fast shutdown");
        assert!(open.ends_within(END_LIMIT).await, "open sessions end too");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn one_order_waits_for_a_silent_server_which_obeys_when_it_wakes() {
    let (postgres, login) = (Postgres::start(""), login());
    let place = postgres.place();
    let session = connect::open(&place, &login).await.unwrap();
    let beside = Beside::at(None, Some(&postgres.path().join("data")));
    beside.remember().await;
    postgres.run("kill -STOP $(head -n1 $0/data/postmaster.pid) $(pgrep -P $(head -n1 $0/data/postmaster.pid))");
    let (outcome, session) = by_session(&server(&place, &login), Some(session), Instant::now()).await;
    assert_eq!(outcome, FenceOutcome::Waiting);
    let session = session.unwrap();
    assert!(session.has_order());
    let (outcome, session) = by_session(&server(&place, &login), Some(session), Instant::now()).await;
    assert_eq!(outcome, FenceOutcome::Waiting);
    postgres.run("kill -CONT $(pgrep -P $(head -n1 $0/data/postmaster.pid)) $(head -n1 $0/data/postmaster.pid)");
    assert!(session.unwrap().ends_within(END_LIMIT).await);
    let server = Server { beside: Some(&beside), ..server(&place, &login) };
    let woken = after_waking(&server, Instant::now()).await.unwrap();
    assert_eq!(by(&woken), "fast shutdown on waking");
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn without_the_socket_file_the_end_of_an_earlier_session_does_not_confirm_a_fence() {
    let (postgres, login) = (Postgres::start(""), login());
    let place = postgres.place();
    let open = connect::open(&place, &login).await.unwrap();
    let beside = Beside::at(None, Some(&postgres.path().join("data")));
    beside.remember().await;
    postgres.run("rm $0/.s.PGSQL.*");
    for beside in [None, Some(&beside)] {
        let server = Server { session_ended: true, beside, ..server(&place, &login) };
        let (outcome, _) = stop(&server, None).await;
        let FenceOutcome::Failed(why) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains("proves nothing alone") && why.contains("restart PostgreSQL"), "{why}");
        assert_eq!(after_waking(&server, Instant::now()).await, None);
    }
    assert!(!open.is_over(), "the server runs on");
    // The session that was open before still stops the server, and its end confirms that.
    let (outcome, _) =
        by_session(&Server { beside: Some(&beside), ..server(&place, &login) }, Some(open), Instant::now()).await;
    assert_eq!(by(&outcome), "fast shutdown");
}

/// Superusers that have taken all connection slots, those reserved for superusers too.
async fn take_all_slots(place: &Place, login: &Superuser) -> Vec<(Client, JoinHandle<()>)> {
    let config = postgres::client_config(place, login);
    let mut sessions = Vec::new();
    while let Ok((client, driver)) = postgres::connect(&config, SslMode::Disable).await {
        sessions.push((client, tokio::spawn(driver)));
        assert!(sessions.len() < 20, "the slots never run out");
    }
    sessions
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn where_all_slots_are_taken_one_that_is_free_for_a_moment_is_enough() {
    let postgres = Postgres::start("-c max_connections=5 -c superuser_reserved_connections=2");
    let (place, login) = (postgres.place(), login());
    let mut sessions = take_all_slots(&place, &login).await;
    assert!(connect::open(&place, &login).await.is_err_and(|failed| failed.is_transient), "a retry may succeed");
    let started = Instant::now();
    let (outcome, _) = by_session(&server(&place, &login), None, started).await;
    println!("{outcome:?} after {:?}", started.elapsed());
    assert!(matches!(&outcome, FenceOutcome::Failed(why) if why.contains("53300")), "{outcome:?}");
    assert!(started.elapsed() >= SLOT_WAIT_MAX && started.elapsed() < SLOT_WAIT_MAX * 2, "{:?}", started.elapsed());
    let leaves = tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        sessions.pop();
        sessions
    });
    let (outcome, _) = by_session(&server(&place, &login), None, Instant::now()).await;
    println!("{outcome:?}");
    assert_eq!(by(&outcome), "fast shutdown");
    for (_, driver) in leaves.await.unwrap() {
        assert!(timeout(END_LIMIT, driver).await.is_ok(), "the other sessions end too");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn a_server_on_the_leaders_timeline_refuses_and_the_fence_is_withdrawn() {
    let (postgres, login) = (Postgres::start(""), login());
    let place = postgres.place();
    let leads = Server { older_than: Some(Timeline(1)), ..server(&place, &login) };
    let (outcome, session) = by_session(&leads, None, Instant::now()).await;
    println!("{outcome:?}");
    assert!(matches!(&outcome, FenceOutcome::Withdrawn(why) if why.contains(ON_LEADER_TIMELINE)), "{outcome:?}");
    assert!(!session.unwrap().is_over(), "the server is untouched");
}
