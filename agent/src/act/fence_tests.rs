use super::*;
use crate::clock::Clock;
use crate::config::PatroniConfig;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use warden_core::event::Observed;
use warden_core::rules::guard::Away;

/// Patroni answered nothing when the fence was ordered.
const AWAY: Guard =
    Guard::NoContact(Away { contact: None, beat: None, ground: warden_core::evidence::Ground::Silence });

#[test]
fn what_is_tried_again_and_again_is_one_entry_of_the_trail_and_each_confirmation_one_of_its_own() {
    let order = |rule| Order {
        member: "a".into(),
        rule,
        reason: String::new(),
        guard: AWAY,
        starting: false,
        facts: Vec::new(),
    };
    let mut trail = Trail::default();
    let (lease, orphaned) = (order(Rule::Lease), order(Rule::Orphaned));
    let confirmed = FenceOutcome::Confirmed { by: "x", took: Duration::ZERO };
    assert!(trail.is_news(&lease, &FenceOutcome::Waiting));
    assert!(!trail.is_news(&lease, &FenceOutcome::Waiting));
    assert!(trail.is_news(&orphaned, &FenceOutcome::Waiting));
    assert!(trail.is_news(&orphaned, &confirmed));
    assert!(trail.is_news(&orphaned, &confirmed));
}

#[test]
fn what_comes_of_a_fence_again_and_again_is_said_at_once_then_now_and_then_with_how_often() {
    let order = |rule| Order {
        member: "a".into(),
        rule,
        // Which it says in other words each time does not make it news.
        reason: format!("{:?}", Instant::now()),
        guard: AWAY,
        starting: false,
        facts: Vec::new(),
    };
    let (failed, withdrawn) = (FenceOutcome::Failed, FenceOutcome::Withdrawn);
    let no_route = || "no route".to_owned();
    for outcome in [failed(no_route()), withdrawn(no_route()), FenceOutcome::Waiting, FenceOutcome::Observed] {
        let (mut trail, started) = (Trail::default(), Instant::now());
        let mut times = |ms: u64, rule, outcome: &FenceOutcome| {
            trail.times(&order(rule), outcome, started + Duration::from_millis(ms))
        };
        assert_eq!(times(0, Rule::Lease, &outcome), Some(1), "{outcome:?}");
        for again in 1..20 {
            assert_eq!(times(again * 500, Rule::Lease, &outcome), None, "{outcome:?}");
        }
        assert_eq!(times(10_000, Rule::Lease, &outcome), Some(20), "the first one was said, the others are counted");
        assert_eq!(times(10_500, Rule::Lease, &outcome), None);
        assert_eq!(times(11_000, Rule::Lease, &failed("no password".to_owned())), Some(1), "another reason is news");
        assert_eq!(times(11_500, Rule::Orphaned, &failed("no password".to_owned())), Some(1), "another rule is news");
        let confirmed = FenceOutcome::Confirmed { by: "x", took: Duration::ZERO };
        assert_eq!(times(11_600, Rule::Orphaned, &confirmed), Some(1));
        assert_eq!(times(11_700, Rule::Orphaned, &confirmed), Some(1), "it took writes in between");
        assert_eq!(times(12_000, Rule::Orphaned, &failed("no password".to_owned())), Some(1));
    }
}

#[test]
fn a_session_that_is_kept_out_by_a_crowd_or_was_just_ended_is_tried_again_at_once_and_others_ever_later() {
    let failed = |in_passing| NotReady { why: String::new(), in_passing, by_shutdown: false };
    let lasting = failed(false);
    let mut pause = next_pause(LONGEST_PAUSE, None);
    assert_eq!(pause, SHORT_PAUSE, "it was there, so it is wanted back soon");
    for expected in [FIRST_PAUSE, FIRST_PAUSE * 2, FIRST_PAUSE * 4] {
        pause = next_pause(pause, Some(&lasting));
        assert_eq!(pause, expected);
    }
    assert_eq!(next_pause(LONGEST_PAUSE, Some(&lasting)), LONGEST_PAUSE);
    assert_eq!(next_pause(LONGEST_PAUSE, Some(&failed(true))), SHORT_PAUSE);
}

/// A Patroni that answers every request with `body`, or takes it and says nothing.
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
    let (updates, _) = mpsc::channel(8);
    let settings = crate::watch::zookeeper::Settings::nowhere();
    let fencer = Fencer {
        local: Some(("a".into(), Place::Tcp("127.0.0.1".to_owned(), 1))),
        beside: None,
        login: None,
        zookeeper: crate::watch::zookeeper::spawn(settings, updates),
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
async fn without_zookeeper_a_patroni_that_answers_withdraws_the_fence_and_the_view_hears_it_first() {
    let body = r#"{"state": "running", "role": "primary", "patroni": {"scope": "s", "name": "a"}}"#;
    let (fencer, mut events) = fencer(patroni(Some(body)).await);
    assert_eq!(fencer.look_again(&AWAY).await, Err("its Patroni answers".to_owned()));
    let observed = events.try_recv().unwrap();
    assert!(
        matches!(&observed.event, Event::Patroni { member, answer: PatroniAnswer::Answering(_) } if member.as_str() == "a"),
        "{observed:?}"
    );
}

#[tokio::test]
async fn without_zookeeper_a_patroni_that_is_frozen_or_gone_does_not() {
    let (frozen, mut events) = fencer(patroni(None).await);
    let started = Instant::now();
    assert_eq!(frozen.look_again(&AWAY).await, Ok(()));
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(events.try_recv().is_err());
    let (gone, _) = fencer("127.0.0.1:1".parse().unwrap());
    assert_eq!(gone.look_again(&AWAY).await, Ok(()));
}
