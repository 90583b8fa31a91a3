use super::*;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use warden_core::haproxy::Pool;
use warden_core::rules::guard::{KeyCondition, KeyIs};
use warden_core::types::SessionId;

const STATES: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_port\n2 postgres 1 pg-a 127.0.0.1 5432\n\n";

/// A socket that answers with `answer`, and records the questions.
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
    actor: ServersActor,
    asked: Arc<Mutex<Vec<String>>>,
    _targets: latest::Sender<Targets>,
    _directory: tempfile::TempDir,
}

fn bench(answer: impl Fn(&str) -> String + Send + 'static) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("admin.sock");
    let asked = socket(&path, answer);
    let (events, _) = mpsc::channel(8);
    let target = crate::targets::Target { postgres: Some(("127.0.0.1".to_owned(), 5432)), ..Default::default() };
    let (targets_in, targets) = latest::channel(Targets::from([("a".into(), target)]));
    let actor = ServersActor {
        config: HaproxyConfig { socket: path, ..HaproxyConfig::nowhere() },
        zookeeper: ZooKeeper::nowhere(),
        targets,
        probes: Probes::default(),
        events: Events::new(events, crate::clock::Clock::start()),
    };
    Bench { actor, asked, _targets: targets_in, _directory: directory }
}

fn id(name: &str) -> ServerId {
    ServerId { proxy: "postgres".to_owned(), name: name.to_owned() }
}

fn change(to: ServerCommand) -> Change {
    Change {
        pool: Pool::Writes,
        server: id("pg-a"),
        address: "127.0.0.1:5432".to_owned(),
        member: "a".into(),
        to,
        ready: false,
        reason: "b holds the leader key".to_owned(),
        condition: Some(KeyCondition { session: SessionId(9), key: KeyIs::OfAnotherThan("a".into()), sync: None }),
    }
}

fn as_haproxy(question: &str) -> String {
    if question.starts_with("show servers state") { STATES.to_owned() } else { "\n".to_owned() }
}

fn why(outcome: Result<(), CommandError>) -> String {
    match outcome {
        Ok(()) => "done".to_owned(),
        Err(CommandError::Obsolete(why)) => format!("withdrawn: {why}"),
        Err(CommandError::Rejected(why)) => format!("failed: {why}"),
    }
}

#[tokio::test]
async fn a_server_gets_a_command_only_at_the_address_by_which_it_was_judged() {
    let bench = bench(as_haproxy);
    assert_eq!(why(bench.actor.set(&change(ServerCommand::Up)).await), "done");
    assert_eq!(why(bench.actor.set(&change(ServerCommand::Drain)).await), "done");
    let commands = ["set server postgres/pg-a health up", "set server postgres/pg-a health stopping"];
    let question = "show servers state postgres";
    assert_eq!(*bench.asked.lock().unwrap(), [question, commands[0], question, commands[1]]);
    bench.asked.lock().unwrap().clear();
    let swapped = Change { address: "127.0.0.2:5432".to_owned(), ..change(ServerCommand::Down) };
    let outcome = why(bench.actor.set(&swapped).await);
    assert!(outcome.starts_with("withdrawn: HAProxy has the address 127.0.0.1:5432"), "{outcome}");
    let gone = Change { server: id("pg-c"), ..change(ServerCommand::Up) };
    assert!(why(bench.actor.set(&gone).await).contains("no such server any more"));
    assert_eq!(*bench.asked.lock().unwrap(), [question, question], "HAProxy got questions only");
    bench.asked.lock().unwrap().clear();
    // A server that its agent check put into maintenance becomes ready first.
    assert_eq!(why(bench.actor.set(&Change { ready: true, ..change(ServerCommand::Up) }).await), "done");
    let ready = "set server postgres/pg-a state ready;set server postgres/pg-a health up";
    assert_eq!(*bench.asked.lock().unwrap(), [question, ready]);
}

#[tokio::test]
async fn a_hold_begins_and_ends_and_is_reported_once() {
    let there = bench(as_haproxy);
    let mut state = HoldState::Off;
    let hold =
        async |bench: &Bench, on, state: &mut HoldState| bench.actor.hold("postgres", on, "because", state).await;
    assert_eq!(hold(&there, true, &mut state).await, Some(HoldOutcome::Begun));
    assert_eq!(hold(&there, true, &mut state).await, None, "the agent refreshes the entry");
    assert!(matches!(hold(&there, false, &mut state).await, Some(HoldOutcome::Ended { .. })));
    assert_eq!(hold(&there, false, &mut state).await, None);
    let (on, off) = (hold_command("warden_hold_postgres", true), hold_command("warden_hold_postgres", false));
    assert_eq!(*there.asked.lock().unwrap(), [on.clone(), on, off.clone(), off]);
    // A custom template may have no such table.
    let lacking = bench(|_| "No such table\n".to_owned());
    let mut state = HoldState::Off;
    let Some(HoldOutcome::Failed(why)) = hold(&lacking, true, &mut state).await else { panic!() };
    assert!(why.contains("No such table"), "{why}");
    assert_eq!(hold(&lacking, true, &mut state).await, None, "reported once");
    assert_eq!(hold(&lacking, false, &mut state).await, None);
    assert!(hold(&lacking, true, &mut state).await.is_some(), "and again in the next change of the primary");
    // An older template has another table.
    let before = bench(|question| if question.contains("warden_hold_") { "No such table\n" } else { "\n" }.to_owned());
    assert_eq!(hold(&before, true, &mut HoldState::Off).await, Some(HoldOutcome::Begun));
    assert_eq!(before.asked.lock().unwrap().last().unwrap(), &hold_command("warden_hold", true));
}

/// A cut waits for names and for ZooKeeper. Other commands do not wait for it, and a later command aborts it.
#[tokio::test]
async fn a_cut_that_waits_delays_no_other_command_and_is_aborted_by_a_later_one() {
    let bench = bench(as_haproxy);
    let Bench { actor, asked, _targets, .. } = bench;
    let target = crate::targets::Target { postgres: Some(("127.0.0.1".to_owned(), 5432)), ..Default::default() };
    let slow = crate::targets::Target { postgres: Some(("nowhere.invalid".to_owned(), 1)), ..Default::default() };
    _targets.send(Targets::from([("a".into(), target), ("b".into(), slow)])).unwrap();
    let (orders, mut steps) = mpsc::channel(8);
    let order = |action| orders.try_send(Step { action, reason: String::new() }).unwrap();
    order(ServersAction::Route(Box::new(change(ServerCommand::Down))));
    order(ServersAction::Route(Box::new(Change { condition: None, ..change(ServerCommand::Up) })));
    let (events, mut reports) = mpsc::channel(8);
    let actor = Arc::new(ServersActor { events: Events::new(events, crate::clock::Clock::start()), ..actor });
    let actor = tokio::spawn(async move { run(&mut steps, &actor).await });
    let report = reports.recv().await.unwrap().event;
    assert!(matches!(
        report,
        Event::Report(Report::Routed(RouteReport { to: ServerCommand::Up, outcome: RouteOutcome::Done { .. }, .. }))
    ));
    drop(orders);
    actor.await.unwrap().unwrap();
    let asked = asked.lock().unwrap();
    assert_eq!(asked.last().unwrap(), "set server postgres/pg-a health up");
    assert!(!asked.iter().any(|command| command.contains("health down")), "{asked:?}");
}

#[tokio::test]
async fn sessions_are_cut_only_at_the_members_address_and_if_zookeeper_confirms() {
    let bench = bench(as_haproxy);
    // There is no ZooKeeper.
    let outcome = why(bench.actor.set(&change(ServerCommand::Down)).await);
    assert!(outcome.starts_with("withdrawn: the leader key cannot be verified"), "{outcome}");
    assert_eq!(bench.asked.lock().unwrap().last().unwrap(), "set server postgres/pg-a health stopping");
    bench.asked.lock().unwrap().clear();
    let stranger = Change { member: "b".into(), ..change(ServerCommand::Down) };
    assert!(why(bench.actor.set(&stranger).await).contains("b is no member any more"));
    assert_eq!(bench.asked.lock().unwrap().len(), 1, "HAProxy got no command");
    // The name server does not answer. The server takes no new sessions all the same.
    let target = crate::targets::Target { postgres: Some(("nowhere.invalid".to_owned(), 5432)), ..Default::default() };
    bench._targets.send(Targets::from([("a".into(), target)])).unwrap();
    let outcome = why(bench.actor.set(&change(ServerCommand::Down)).await);
    assert!(outcome.starts_with("withdrawn: ") && outcome.contains("nowhere.invalid"), "{outcome}");
    assert_eq!(bench.asked.lock().unwrap().last().unwrap(), "set server postgres/pg-a health stopping");
}

#[tokio::test]
async fn a_refusal_of_haproxy_is_an_error_with_its_words() {
    let refuses = |question: &str| match question {
        "show servers state postgres" => STATES.to_owned(),
        _ => "Permission denied\n\n".to_owned(),
    };
    let outcome = why(bench(refuses).actor.set(&change(ServerCommand::Up)).await);
    assert!(outcome.starts_with("failed: ") && outcome.contains("Permission denied"), "{outcome}");
    for nonsense in ["", "2\n", "Can't find backend.\n"] {
        let outcome = why(bench(move |_| nonsense.to_owned()).actor.set(&change(ServerCommand::Up)).await);
        assert!(outcome.starts_with("failed: "), "{outcome}");
    }
    let injected = Change { server: id("a;shutdown frontend x"), ..change(ServerCommand::Up) };
    let bench = bench(as_haproxy);
    assert!(why(bench.actor.set(&injected).await).contains("cannot be put into a command"));
    assert_eq!(bench.asked.lock().unwrap().len(), 0);
}
