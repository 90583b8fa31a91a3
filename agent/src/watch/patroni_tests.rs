use super::*;
use crate::client::patroni::fixtures::{Does, PRIMARY, patroni};
use crate::clock::Clock;
use crate::config::PatroniConfig;
use crate::targets::Target;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;
use tokio::time::timeout;
use warden_core::event::{MemberEvent, Observed};

struct Bench {
    events: mpsc::Receiver<Observed>,
    targets: latest::Sender<Targets>,
    watcher: tokio::task::JoinHandle<Result<(), Closed>>,
    started: Moment,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

fn targets(its_agent_tells: bool) -> Targets {
    Targets::from([("a".into(), Target { its_agent_tells, ..Target::default() })])
}

fn bench(api: SocketAddr, is_local: bool, its_agent_tells: bool) -> Bench {
    let (sender, events) = mpsc::channel(64);
    let (targets, receiver) = latest::channel(targets(its_agent_tells));
    let clock = Clock::start();
    let watched = Watched { member: "a".into(), api: format!("http://{api}"), is_local, targets: receiver };
    let client = PatroniClient::new(&PatroniConfig::default(), "s").unwrap();
    let watcher = tokio::spawn(watch(watched, client, Events::new(sender, clock)));
    Bench { events, targets, watcher, started: clock.now() }
}

impl Bench {
    /// The next report about Patroni, with its date since the start.
    async fn next(&mut self) -> (Duration, PatroniAnswer) {
        loop {
            let observed = timeout(Duration::from_secs(5), self.events.recv()).await.expect("no event in 5 s").unwrap();
            if let Event::Member(_, MemberEvent::Patroni(answer)) = observed.event {
                return (observed.at.since(self.started), answer);
            }
        }
    }
}

fn count(asked: &crate::client::patroni::fixtures::Asked, path: &str) -> usize {
    asked.lock().unwrap().iter().filter(|(line, _)| line == &format!("GET {path}")).count()
}

#[tokio::test]
async fn a_silent_patroni_is_reported_each_second_and_asked_once() {
    let (address, asked) = patroni(|_| Does::Hangs).await;
    let mut bench = bench(address, false, false);
    for second in 0..4_u32 {
        let (at, answer) = bench.next().await;
        let expected = QUESTION_INTERVAL * second;
        assert!(at >= expected && at < expected + QUESTION_INTERVAL / 2, "{at:?} instead of {expected:?}");
        let words = format!("no answer within {} s", second + 1);
        assert_eq!(answer, PatroniAnswer::Silent(words));
    }
    assert_eq!(count(&asked, "/health"), 1, "a worker of Patroni goes on with an abandoned request");
    assert_eq!(count(&asked, "/liveness"), 1);
}

#[tokio::test]
async fn an_api_that_answers_liveness_is_not_silent_without_an_answer_to_health() {
    for code in [200, 503] {
        let (address, asked) = patroni(move |path| match path {
            "/liveness" => Does::Answers(code, ""),
            _ => Does::Hangs,
        })
        .await;
        let mut bench = bench(address, false, false);
        assert!(matches!(bench.next().await.1, PatroniAnswer::Silent(_)));
        for _ in 0..3 {
            let (_, answer) = bench.next().await;
            let words = format!("GET /liveness answers {code}");
            assert!(matches!(&answer, PatroniAnswer::Unusable(why) if why.contains(&words)), "{answer:?}");
        }
        assert_eq!((count(&asked, "/health"), count(&asked, "/liveness")), (1, 1));
    }
}

#[tokio::test]
async fn an_answer_to_liveness_before_the_silence_does_not_disprove_it() {
    let frozen = Arc::new(AtomicBool::new(false));
    let is_frozen = Arc::clone(&frozen);
    let (address, _) = patroni(move |path| match path {
        _ if is_frozen.load(Ordering::SeqCst) => Does::Hangs,
        "/liveness" => Does::Answers(200, ""),
        _ => Does::Answers(200, PRIMARY),
    })
    .await;
    let mut bench = bench(address, true, false);
    assert!(matches!(bench.next().await.1, PatroniAnswer::Answering(_)));
    frozen.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        assert!(matches!(bench.next().await.1, PatroniAnswer::Silent(_)));
    }
}

#[tokio::test]
async fn a_late_answer_ends_the_silence_without_the_facts_of_postgresql() {
    let (address, _) = patroni(|_| Does::AnswersAfter(2500, 200, PRIMARY)).await;
    let mut bench = bench(address, false, false);
    let mut last = Duration::ZERO;
    for _ in 0..2 {
        let (at, answer) = bench.next().await;
        assert!(matches!(answer, PatroniAnswer::Silent(_)), "{answer:?}");
        last = at;
    }
    let (at, answer) = bench.next().await;
    assert_eq!(at, last, "the view replaces an older fact, and keeps a newer one");
    let PatroniAnswer::Answering(status) = answer else { panic!("{answer:?}") };
    assert_eq!((status.writable, status.lsn), (None, None), "they may be as old as the question");
}

#[tokio::test]
async fn a_slightly_late_answer_is_reported_whole_with_the_date_of_its_question() {
    let (address, _) = patroni(|_| Does::AnswersAfter(1300, 200, PRIMARY)).await;
    let mut bench = bench(address, false, false);
    let (silent, answer) = bench.next().await;
    assert!(matches!(answer, PatroniAnswer::Silent(_)), "{answer:?}");
    let (at, answer) = bench.next().await;
    assert!(at == silent && at < QUESTION_INTERVAL / 2, "{at:?}, {silent:?}");
    assert!(matches!(&answer, PatroniAnswer::Answering(status) if status.writable == Some(true)), "{answer:?}");
}

#[tokio::test]
async fn another_member_is_asked_only_while_its_agent_does_not_report() {
    let (address, asked) = patroni(|_| Does::Answers(200, PRIMARY)).await;
    let mut bench = bench(address, false, true);
    assert!(timeout(Duration::from_millis(1500), bench.events.recv()).await.is_err());
    assert_eq!(count(&asked, "/health"), 0);
    let started = Instant::now();
    bench.targets.send_replace(targets(false));
    assert!(matches!(bench.next().await.1, PatroniAnswer::Answering(_)));
    assert!(started.elapsed() < Duration::from_millis(300), "{:?}", started.elapsed());
    assert!(matches!(bench.next().await.1, PatroniAnswer::Answering(_)));
    bench.targets.send_replace(targets(true));
    let before = count(&asked, "/health");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(count(&asked, "/health") <= before + 1);
}

#[tokio::test]
async fn the_local_patroni_is_always_asked() {
    let (address, asked) = patroni(|_| Does::Answers(200, PRIMARY)).await;
    let mut bench = bench(address, true, true);
    assert!(matches!(bench.next().await.1, PatroniAnswer::Answering(_)));
    assert!(matches!(bench.next().await.1, PatroniAnswer::Answering(_)));
    assert_eq!((count(&asked, "/health"), count(&asked, "/liveness")), (2, 1));
}
