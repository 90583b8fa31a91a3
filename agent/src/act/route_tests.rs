use super::*;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use warden_core::rules::guard::{KeyCondition, KeyIs};
use warden_core::types::SessionId;

const STATES: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_port\n2 postgres 1 pg-a 127.0.0.1 5432\n\n";

/// A socket that answers as it is told, and remembers what it was asked.
fn socket(path: &std::path::Path, answer: impl Fn(&str) -> String + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let listener = UnixListener::bind(path).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = [0; 4096];
            let read = stream.read(&mut question).await.unwrap();
            let question = String::from_utf8_lossy(&question[..read]).trim().to_owned();
            heard.lock().unwrap().push(question.clone());
            stream.write_all(answer(&question).as_bytes()).await.unwrap();
        }
    });
    asked
}

struct Bench {
    router: Router,
    asked: Arc<Mutex<Vec<String>>>,
    _targets: latest::Sender<Targets>,
    _directory: tempfile::TempDir,
}

fn bench(answer: impl Fn(&str) -> String + Send + 'static) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let asked = socket(&path, answer);
    let (updates, _) = mpsc::channel(8);
    let (events, _) = mpsc::channel(8);
    let target = crate::watch::members::Target { postgres: Some(("127.0.0.1".to_owned(), 5432)), ..Default::default() };
    let (targets_in, targets) = latest::channel(Targets::from([("a".into(), target)]));
    let router = Router {
        config: HaproxyConfig { socket: path, ..HaproxyConfig::nowhere() },
        zookeeper: crate::watch::zookeeper::spawn(crate::watch::zookeeper::Settings::nowhere(), updates),
        targets,
        probes: Probes::default(),
        events: Events::new(events, crate::clock::Clock::start()),
    };
    Bench { router, asked, _targets: targets_in, _directory: directory }
}

fn change(to: Wish) -> Change {
    Change {
        pool: Pool::Writes,
        server: "pg-a".to_owned(),
        address: "127.0.0.1:5432".to_owned(),
        member: "a".into(),
        to,
        reason: "b holds the leader key".to_owned(),
        condition: Some(KeyCondition { session: SessionId(9), key: KeyIs::OfAnotherThan("a".into()), sync: None }),
    }
}

fn as_haproxy(question: &str) -> String {
    if question.starts_with("show servers state") { STATES.to_owned() } else { "\n".to_owned() }
}

fn why(outcome: Result<(), Not>) -> String {
    match outcome {
        Ok(()) => "done".to_owned(),
        Err(Not::Wanted(why)) => format!("withdrawn: {why}"),
        Err(Not::Taken(why)) => format!("failed: {why}"),
    }
}

#[tokio::test]
async fn a_server_is_told_by_name_only_where_its_address_is_the_one_it_was_judged_by() {
    let bench = bench(as_haproxy);
    assert_eq!(why(bench.router.make(&change(Wish::Up)).await), "done");
    assert_eq!(why(bench.router.make(&change(Wish::Wait)).await), "done");
    let told = ["set server postgres/pg-a health up", "set server postgres/pg-a health stopping"];
    let question = "show servers state postgres";
    assert_eq!(*bench.asked.lock().unwrap(), [question, told[0], question, told[1]]);
    bench.asked.lock().unwrap().clear();
    let swapped = Change { address: "127.0.0.2:5432".to_owned(), ..change(Wish::Out) };
    let outcome = why(bench.router.make(&swapped).await);
    assert!(outcome.starts_with("withdrawn: HAProxy has the address 127.0.0.1:5432"), "{outcome}");
    let gone = Change { server: "pg-c".to_owned(), ..change(Wish::Up) };
    assert!(why(bench.router.make(&gone).await).contains("no such server any more"));
    let reads = Change { pool: Pool::Reads, ..change(Wish::Up) };
    assert!(why(bench.router.make(&reads).await).contains("no proxy for reads"));
    assert_eq!(*bench.asked.lock().unwrap(), [question, question], "nothing but questions");
}

#[tokio::test]
async fn new_connections_are_held_and_let_go_and_told_of_once() {
    let there = bench(as_haproxy);
    let mut held = Held::No;
    assert_eq!(there.router.hold(true, "a goes", &mut held).await, Some(HoldReport::Begun));
    assert_eq!(there.router.hold(true, "a goes", &mut held).await, None, "said again, so that HAProxy remembers");
    assert!(matches!(there.router.hold(false, "b is up", &mut held).await, Some(HoldReport::Ended { .. })));
    assert_eq!(there.router.hold(false, "b is up", &mut held).await, None);
    assert_eq!(*there.asked.lock().unwrap(), [HOLD, HOLD, LET_GO, LET_GO]);
    // A template of somebody's own may have no such table.
    let lacking = bench(|_| "No such table\n".to_owned());
    let mut held = Held::No;
    let Some(HoldReport::Failed(why)) = lacking.router.hold(true, "a goes", &mut held).await else { panic!() };
    assert!(why.contains("No such table"), "{why}");
    assert_eq!(lacking.router.hold(true, "a goes", &mut held).await, None, "said once");
    assert_eq!(lacking.router.hold(false, "b is up", &mut held).await, None);
}

#[tokio::test]
async fn sessions_are_cut_only_where_the_member_is_and_zookeeper_says_so() {
    let bench = bench(as_haproxy);
    // There is no ZooKeeper.
    let outcome = why(bench.router.make(&change(Wish::Out)).await);
    assert!(outcome.starts_with("withdrawn: it cannot be verified"), "{outcome}");
    assert_eq!(bench.asked.lock().unwrap().last().unwrap(), "set server postgres/pg-a health stopping");
    bench.asked.lock().unwrap().clear();
    let stranger = Change { member: "b".into(), ..change(Wish::Out) };
    assert!(why(bench.router.make(&stranger).await).contains("b is no member any more"));
    assert_eq!(bench.asked.lock().unwrap().len(), 1, "it is not told anything");
}

#[tokio::test]
async fn what_haproxy_refuses_is_an_error_with_its_words() {
    let refuses = |question: &str| match question {
        "show servers state postgres" => STATES.to_owned(),
        _ => "Permission denied\n\n".to_owned(),
    };
    let outcome = why(bench(refuses).router.make(&change(Wish::Up)).await);
    assert!(outcome.starts_with("failed: ") && outcome.contains("Permission denied"), "{outcome}");
    for nonsense in ["", "2\n", "Can't find backend.\n"] {
        let outcome = why(bench(move |_| nonsense.to_owned()).router.make(&change(Wish::Up)).await);
        assert!(outcome.starts_with("failed: "), "{outcome}");
    }
    let injected = Change { server: "a;shutdown frontend x".to_owned(), ..change(Wish::Up) };
    let bench = bench(as_haproxy);
    assert!(why(bench.router.make(&injected).await).contains("cannot be put into a command"));
    assert_eq!(bench.asked.lock().unwrap().len(), 0);
}
