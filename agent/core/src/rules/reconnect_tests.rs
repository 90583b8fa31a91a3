use super::*;
use crate::assess::tests::probe;
use crate::event::{Event, MemberEvent, Server, Started};
use crate::fact::Reading;
use crate::rules::fence::tests::{Scene, config_znode, leading, paused_config, takes_writes};
use crate::view::tests::{key, leader, lost, ms};
use alloc::string::ToString;

const NOW: u64 = 10_300;

fn standby(receives: Option<bool>) -> Event {
    probe("a", PostgresAnswer::InRecovery(Server { receives, ..Server::default() }))
}

fn refused(member: &str) -> Event {
    probe(member, PostgresAnswer::Refused("no process listens".to_string()))
}

/// `b`, the leader, was down and is back; `a`, the local standby, receives nothing.
fn back() -> Scene {
    leading()
        .with("leader", 10_002, leader(key("b", 2)))
        .with("broke", 10_000, Event::Member("b".into(), MemberEvent::SessionBroke))
        .with("refused", 10_010, refused("b"))
        .with("writes", 10_200, takes_writes("b", 1))
        .with("standby", 10_250, standby(Some(false)))
}

fn due(scene: &Scene) -> Verdict {
    judge(&scene.view(), ms(NOW))
}

#[test]
fn a_standby_that_receives_nothing_tries_again_as_soon_as_its_leader_is_back() {
    let reconnects = |scene: &Scene| matches!(due(scene), Verdict::Reconnect(_));
    let b = back;
    assert_eq!(due(&b()), Verdict::Reconnect("b takes writes, and a receives no WAL".to_string()));
    let never_broke = b().without("broke").without("refused");
    assert!(reconnects(&never_broke), "also if its stream never ended");
    for (name, scene) in [
        ("it receives", b().with("standby 2", 10_260, standby(Some(true)))),
        ("it does not say", b().with("standby 2", 10_260, standby(None))),
        ("it writes itself", b().with("standby 2", 10_260, takes_writes("a", 1))),
        ("it is gone", b().with("standby 2", 10_260, refused("a"))),
        ("the leader is not back", b().without("writes")),
        ("the leader is gone again", b().with("again", 10_270, refused("b"))),
        (
            "our session with the leader broke",
            b().with("again", 10_270, Event::Member("b".into(), MemberEvent::SessionBroke)),
        ),
        ("no member leads", b().with("leader 2", 10_270, leader(Reading::Absent))),
        ("we lead", b().with("leader 2", 10_270, leader(key("a", 3)))),
        ("another leads", b().with("leader 2", 10_270, leader(key("c", 3)))),
        ("no session", b().with("lost", 10_270, lost())),
        ("paused", b().with("config 2", 10_270, config_znode(paused_config))),
    ] {
        assert_eq!(due(&scene), Verdict::NoReason, "{name}");
    }
}

#[test]
fn a_report_from_before_the_leaders_return_is_renewed_at_an_interval() {
    let earlier = || back().without("standby").with("standby", 10_150, standby(Some(false)));
    assert_eq!(due(&earlier()), Verdict::Ask);
    let asked = |at| earlier().with("asked", at, Event::Started(Started::Probe));
    assert_eq!(due(&asked(10_260)), Verdict::Later(ms(10_310)));
    assert_eq!(due(&asked(10_250)), Verdict::Ask);
}

#[test]
fn a_standby_that_cannot_stream_is_reconnected_a_few_times_and_one_that_did_again() {
    let told = |times: &[u64]| {
        let names = ["1", "2", "3", "4", "5"];
        times
            .iter()
            .zip(names)
            .fold(back(), |scene, (at, name)| scene.with(name, *at, Event::Started(Started::Reconnect)))
    };
    assert_eq!(due(&told(&[10_270])), Verdict::Later(ms(10_770)));
    assert!(matches!(due(&told(&[9_700, 9_750, 9_780, 9_800])), Verdict::Reconnect(_)));
    assert_eq!(due(&told(&[9_600, 9_700, 9_750, 9_780, 9_800])), Verdict::NoReason);
    let streamed = told(&[9_600, 9_700, 9_750, 9_780, 9_800]).with("streamed", 9_900, standby(Some(true)));
    assert!(matches!(due(&streamed), Verdict::Reconnect(_)));
}
