use super::*;
use crate::config::SslMode;
use crate::watch::real_postgres::{self, Postgres};

/// A slow machine's moment.
const SOON: Duration = Duration::from_secs(3);

fn login() -> Superuser {
    real_postgres::login("postgres", "postgres")
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
    let mut open = warm_up(&place, &login).await.unwrap();
    let session = warm_up(&place, &login).await.unwrap();
    let (outcome, _) = climb(&server(&place, &login), Some(session)).await;
    println!("{outcome:?}");
    assert_eq!(by(&outcome), "fast shutdown by signal");
    assert!(open.ends_within(SOON).await, "open sessions are over too");

    let postgres = Postgres::start("");
    let place = postgres.place();
    let session = warm_up(&place, &login).await.unwrap();
    postgres.signal(Signal::STOP);
    let (outcome, _) = climb(&server(&place, &login), Some(session)).await;
    println!("{outcome:?}");
    assert_eq!(by(&outcome), "killed");
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn what_is_stopped_is_killed_with_its_postmaster() {
    let login = login();
    let backend = "kill -STOP $(pgrep -P $(head -n1 $0/data/postmaster.pid) -f 'postgres postgres')";
    let all = "kill -STOP $(head -n1 $0/data/postmaster.pid) $(pgrep -P $(head -n1 $0/data/postmaster.pid))";
    for stopped in [backend, all] {
        let postgres = Postgres::start("");
        let place = postgres.place();
        let session = warm_up(&place, &login).await.unwrap();
        postgres.run(stopped);
        let (outcome, _) = climb(&server(&place, &login), Some(session)).await;
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
        let session = warm_up(&place, &login).await.unwrap();
        let mut open = warm_up(&place, &login).await.unwrap();
        if smart {
            postgres.signal(Signal::TERM);
            sleep(Duration::from_millis(200)).await;
            assert!(!open.is_over(), "a smart shutdown waits for it");
        }
        let started = Instant::now();
        let (outcome, _) = by_session(&server(&place, &login), Some(session), started).await;
        println!("smart {smart}: {outcome:?}");
        assert_eq!(by(&outcome), "fast shutdown");
        assert!(open.ends_within(SOON).await, "open sessions are over too");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn an_order_lies_in_front_of_a_silent_server_once_and_is_obeyed_when_it_wakes() {
    let (postgres, login) = (Postgres::start(""), login());
    let place = postgres.place();
    let session = warm_up(&place, &login).await.unwrap();
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
    assert!(session.unwrap().ends_within(SOON).await);
    let server = Server { beside: Some(&beside), ..server(&place, &login) };
    let woken = after_waking(&server, Instant::now()).await.unwrap();
    assert_eq!(by(&woken), "fast shutdown on waking");
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn a_server_without_its_socket_file_is_not_confirmed_by_a_session_that_anybody_may_have_ended() {
    let (postgres, login) = (Postgres::start(""), login());
    let place = postgres.place();
    let open = warm_up(&place, &login).await.unwrap();
    let beside = Beside::at(None, Some(&postgres.path().join("data")));
    beside.remember().await;
    postgres.run("rm $0/.s.PGSQL.*");
    for beside in [None, Some(&beside)] {
        let server = Server { session_ended: true, beside, ..server(&place, &login) };
        let (outcome, _) = climb(&server, None).await;
        let FenceOutcome::Failed(why) = outcome else { panic!("{outcome:?}") };
        assert!(why.contains("proves nothing alone") && why.contains("restart PostgreSQL"), "{why}");
        assert_eq!(after_waking(&server, Instant::now()).await, None);
    }
    assert!(!open.is_over(), "it goes on");
    // By the session that was open before, it can be stopped, and is seen to be.
    let (outcome, _) =
        by_session(&Server { beside: Some(&beside), ..server(&place, &login) }, Some(open), Instant::now()).await;
    assert_eq!(by(&outcome), "fast shutdown");
}

/// Superusers that have taken every slot, those reserved for superusers too.
async fn crowd(place: &Place, login: &Superuser) -> Vec<(Client, JoinHandle<()>)> {
    let config = postgres::client_config(place, login);
    let mut sessions = Vec::new();
    while let Ok((client, driver)) = postgres::connect(&config, SslMode::Disable).await {
        sessions.push((client, tokio::spawn(driver)));
        assert!(sessions.len() < 20, "it never gets crowded");
    }
    sessions
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn where_every_slot_is_taken_one_that_is_free_for_a_moment_is_enough() {
    let postgres = Postgres::start("-c max_connections=5 -c superuser_reserved_connections=2");
    let (place, login) = (postgres.place(), login());
    let mut sessions = crowd(&place, &login).await;
    assert!(warm_up(&place, &login).await.is_err_and(|failed| failed.in_passing), "worth another try at once");
    let started = Instant::now();
    let (outcome, _) = by_session(&server(&place, &login), None, started).await;
    println!("{outcome:?} after {:?}", started.elapsed());
    assert!(matches!(&outcome, FenceOutcome::Failed(why) if why.contains("53300")), "{outcome:?}");
    assert!(started.elapsed() >= SLOTS && started.elapsed() < SLOTS * 2, "{:?}", started.elapsed());
    let leaves = tokio::spawn(async move {
        sleep(Duration::from_secs(1)).await;
        sessions.pop();
        sessions
    });
    let (outcome, _) = by_session(&server(&place, &login), None, Instant::now()).await;
    println!("{outcome:?}");
    assert_eq!(by(&outcome), "fast shutdown");
    for (_, driver) in leaves.await.unwrap() {
        assert!(timeout(SOON, driver).await.is_ok(), "the others' sessions are over too");
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL's programs: tests/run runs it in the node's image"]
async fn a_server_on_the_leaders_timeline_says_that_it_is_not_the_one_and_the_fence_is_withdrawn() {
    let (postgres, login) = (Postgres::start(""), login());
    let place = postgres.place();
    let leads = Server { older_than: Some(Timeline(1)), ..server(&place, &login) };
    let (outcome, session) = by_session(&leads, None, Instant::now()).await;
    println!("{outcome:?}");
    assert!(matches!(&outcome, FenceOutcome::Withdrawn(why) if why.contains(NOT_THE_ONE)), "{outcome:?}");
    assert!(!session.unwrap().is_over(), "it goes on as if nothing had been");
}
