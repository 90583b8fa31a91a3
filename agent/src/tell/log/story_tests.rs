use super::*;
use crate::tell::fixtures::{
    apply, healthy, identity, key, leader, lost, member, ms, patroni, postgres, router, server, session,
};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use tracing_subscriber::fmt::MakeWriter;
use warden_core::event::{HaproxyAnswer, LocalEvent, MemberEvent, PostgresAnswer, Role, ZooKeeperEvent};
use warden_core::fact::Reading;

/// The text of the log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(text)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The lines that `telling` logs at level `info` or above.
fn lines(telling: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(log.clone())
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .finish();
    tracing::subscriber::with_default(subscriber, telling);
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn away(agent: &str) -> Event {
    router(agent, HaproxyAnswer::Unusable("connection refused".to_owned()))
}

fn silent(member: &str) -> Event {
    postgres(member, PostgresAnswer::Refused("the database system is starting up".to_owned()))
}

#[test]
fn a_healthy_cluster_has_no_line() {
    let mut story = Story::default();
    let told = lines(|| (0..5).for_each(|_| story.warnings(&healthy(), ms(1500))));
    assert_eq!(told, [""; 0]);
}

#[test]
fn a_lasting_warning_is_logged_once_and_cleared_once() {
    let mut story = Story::default();
    let mut view = healthy();
    apply(&mut view, 1400, silent("b"));
    let mut look = |view: &View, now| lines(|| story.warnings(view, ms(now)));
    assert_eq!(look(&view, 1500), [""; 0], "a warning of less than a second is noise");
    assert_eq!(
        look(&view, 1501),
        [concat!(
            "WARN PostgreSQL of b refuses connections: the database system is starting up ",
            r#"event="warning_raised" code="postgres_refused""#
        )]
    );
    assert_eq!(look(&view, 1502), [""; 0]);
    apply(&mut view, 1503, postgres("b", PostgresAnswer::InRecovery(server(400))));
    assert_eq!(
        look(&view, 1504),
        [r#"INFO warning cleared event="warning_cleared" code="postgres_refused" member="b""#]
    );
    assert_eq!(look(&view, 1505), [""; 0]);
}

#[test]
fn a_warning_of_one_evaluation_is_not_logged() {
    let mut story = Story::default();
    let mut view = healthy();
    let told = lines(|| {
        for round in 0..4 {
            apply(&mut view, 1400 + round, silent("b"));
            story.warnings(&view, ms(1400 + round));
            apply(&mut view, 1400 + round, postgres("b", PostgresAnswer::InRecovery(server(400))));
            story.warnings(&view, ms(1400 + round));
        }
    });
    assert_eq!(told, [""; 0]);
}

#[test]
fn a_warning_whose_words_change_is_still_one_warning() {
    let mut story = Story::default();
    let mut view = healthy();
    let refused = warden_core::event::PatroniAnswer::Refused("connection refused".to_owned());
    let told = lines(|| {
        for at in [1400, 2400, 3400, 4400] {
            apply(&mut view, at, Event::Member("b".into(), MemberEvent::Patroni(refused.clone())));
            apply(&mut view, at, postgres("b", PostgresAnswer::InRecovery(server(400))));
            apply(&mut view, at, postgres("a", PostgresAnswer::Writable(server(500))));
            apply(&mut view, at, crate::tell::fixtures::verified(key("a", 1), at));
            story.warnings(&view, ms(at + 10));
        }
    });
    let about = told.iter().filter(|line| line.contains("patroni_refused")).count();
    assert_eq!((about, told.len()), (1, 1), "{told:?}");
}

#[test]
fn two_warnings_with_one_code_are_two_lines() {
    let mut story = Story::default();
    let mut view = healthy();
    apply(&mut view, 1400, away("haproxy-1"));
    let mut look = |view: &View| {
        lines(|| {
            story.warnings(view, ms(1500));
            story.warnings(view, ms(1500));
        })
    };
    assert!(look(&view)[0].contains("HAProxy beside haproxy-1"));
    apply(&mut view, 1450, away("haproxy-2"));
    let second = look(&view);
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(second[0].contains("HAProxy beside haproxy-2"), "{second:?}");
    apply(
        &mut view,
        1460,
        Event::ZooKeeper(ZooKeeperEvent::Agent { name: "haproxy-1".into(), record: Reading::Absent }),
    );
    assert_eq!(
        look(&view),
        [r#"INFO warning cleared event="warning_cleared" code="haproxy_unusable" subject="haproxy-1""#]
    );
}

#[test]
fn a_lost_session_is_logged_once_for_each_reason_until_a_new_one_starts() {
    let mut story = Story::default();
    let mut tell = |event: Event| lines(|| story.event(&event)).join("\n");
    assert!(tell(session(1)).starts_with("INFO ZooKeeper session started"));
    let first = tell(lost("disconnected"));
    assert!(first.starts_with("WARN no ZooKeeper session") && first.contains("the connection is gone"), "{first}");
    assert!(tell(lost("unreachable")).starts_with("WARN still no ZooKeeper session"));
    for _ in 0..100 {
        assert_eq!(tell(lost("unreachable")) + &tell(lost("disconnected")), "");
    }
    assert!(tell(session(2)).starts_with("INFO ZooKeeper session started"));
    assert!(tell(lost("disconnected")).starts_with("WARN no ZooKeeper session"), "a new loss is a new line");
}

#[test]
fn a_new_holder_of_the_leader_key_is_logged_and_counted_once() {
    let mut story = Story::default();
    let mut view = View::new(identity(&["node"]));
    let mut told = |view: &View| {
        let mut holder = None;
        let lines = lines(|| holder = story.view(view));
        (holder, lines.join("\n"))
    };
    assert_eq!(told(&view), (None, String::new()), "the agent has read nothing yet");
    apply(&mut view, 1, session(1));
    apply(&mut view, 2, leader(key("a", 9)));
    let (holder, line) = told(&view);
    assert_eq!(holder.as_deref(), Some("a"));
    assert_eq!(
        line,
        r#"INFO leader key holder changed event="leader_key_changed" holder="a" czxid=0x9 before="unknown""#
    );
    assert_eq!(told(&view), (None, String::new()));
    apply(&mut view, 3, leader(Reading::Absent));
    assert_eq!(
        told(&view).1,
        r#"INFO leader key holder changed event="leader_key_changed" holder="nobody" before="a""#
    );
    apply(&mut view, 4, leader(key("b", 10)));
    assert_eq!(told(&view).0.as_deref(), Some("b"));
}

#[test]
fn an_ordinary_event_has_no_line() {
    let mut story = Story::default();
    let ordinary =
        [Event::Tick, member("b", true), patroni("a", Role::Primary), leader(key("a", 1)), silent("b"), away("r")];
    let told = lines(|| ordinary.iter().for_each(|event| story.event(event)));
    assert_eq!(told, [""; 0]);
}

#[test]
fn the_alive_lock_is_logged_when_it_changes() {
    let mut story = Story::default();
    let mut view = View::new(identity(&["node"]));
    let mut told = |view: &View| lines(|| drop(story.view(view))).join("\n");
    apply(&mut view, 1, Event::Local(LocalEvent::AliveLock(AliveLock::Alive)));
    assert!(told(&view).contains(r#"state="alive""#));
    apply(&mut view, 2, Event::Local(LocalEvent::AliveLock(AliveLock::Alive)));
    assert_eq!(told(&view), "");
    apply(&mut view, 3, Event::Local(LocalEvent::AliveLock(AliveLock::Gone)));
    assert!(told(&view).contains(r#"state="gone""#));
}

#[test]
fn a_session_replaced_for_a_new_ttl_is_information_and_a_failed_attempt_is_a_warning() {
    let mut story = Story::default();
    let told = lines(|| {
        story.event(&lost("settings_changed"));
        story.event(&lost("unreachable"));
    });
    let [replaced, failed] = told.as_slice() else { panic!("{told:?}") };
    assert!(replaced.contains(r#"event="session_replaced""#) && replaced.starts_with("INFO"), "{replaced}");
    assert!(failed.contains(r#"event="session_lost""#) && failed.starts_with("WARN"), "{failed}");
}
