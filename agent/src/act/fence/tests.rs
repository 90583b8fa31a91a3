use super::*;
use crate::clock::Clock;
use crate::config::PatroniConfig;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use warden_core::event::{MemberEvent, Observed};
use warden_core::rules::guard::LeaseCondition;

/// The guard of an order that was given while Patroni was silent.
const AWAY: Guard =
    Guard::NoContact(LeaseCondition { contact: None, beat: None, ground: warden_core::evidence::Ground::Silence });

/// A Patroni that answers every request with `body`, or accepts requests and never answers.
async fn patroni(body: Option<&'static str>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if let Some(body) = body {
                let mut request = [0; 1024];
                drop(stream.read(&mut request).await);
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                drop(stream.write_all(answer.as_bytes()).await);
            }
            kept.push(stream);
        }
    });
    address
}

/// A fencer without ZooKeeper.
fn fencer(api: SocketAddr) -> (Fencer, mpsc::Receiver<Observed>) {
    let (sender, events) = mpsc::channel(8);
    let fencer = Fencer {
        local: Some(("a".into(), Place::Tcp("127.0.0.1".to_owned(), 1))),
        beside: None,
        login: None,
        zookeeper: ZooKeeper::nowhere(),
        client: PatroniClient::new(&PatroniConfig::default(), "s").unwrap(),
        api: Some(format!("http://{api}")),
        records: Records::default(),
        targets: latest::channel(Targets::new()).1,
        heartbeat: latest::channel(None).1,
        probes: Probes::default(),
        events: Events::new(sender, Clock::start()),
        agent: "a".to_owned(),
    };
    (fencer, events)
}

#[tokio::test]
async fn without_zookeeper_a_patroni_that_answers_withdraws_the_fence_and_the_loop_gets_the_answer_first() {
    let body = r#"{"state": "running", "role": "primary", "patroni": {"scope": "s", "name": "a"}}"#;
    let (fencer, mut events) = fencer(patroni(Some(body)).await);
    assert_eq!(fencer.check(&AWAY).await, Err("its Patroni answers".to_owned()));
    let observed = events.try_recv().unwrap();
    let Event::Member(member, MemberEvent::Patroni(PatroniAnswer::Answering(_))) = &observed.event else {
        panic!("{observed:?}")
    };
    assert_eq!(member.as_str(), "a");
}

#[tokio::test]
async fn without_zookeeper_a_patroni_that_is_frozen_or_gone_does_not_withdraw_the_fence() {
    let (frozen, mut events) = fencer(patroni(None).await);
    let started = Instant::now();
    assert_eq!(frozen.check(&AWAY).await, Ok(()));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(events.try_recv().is_err());
    let (gone, _) = fencer("127.0.0.1:1".parse().unwrap());
    assert_eq!(gone.check(&AWAY).await, Ok(()));
}
