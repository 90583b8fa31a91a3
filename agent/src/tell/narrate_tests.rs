use super::*;
use crate::tell::fixtures::{
    apply, healthy, identity, key, leader, lost, member, ms, patroni, postgres, router, server, session,
};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use tracing_subscriber::fmt::MakeWriter;
use warden_core::event::{HaproxyAnswer, PostgresAnswer, Role};
use warden_core::fact::Reading;

/// What was logged.
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

/// The lines that `telling` logs at the usual level.
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
fn nothing_is_told_of_a_healthy_cluster() {
    let mut narrator = Narrator::default();
    let told = lines(|| (0..5).for_each(|_| narrator.warnings(&healthy(), ms(1500))));
    assert_eq!(told, [""; 0]);
}

#[test]
fn a_warning_that_lasts_is_told_once_and_once_as_over() {
    let mut narrator = Narrator::default();
    let mut view = healthy();
    apply(&mut view, 1400, silent("b"));
    let mut look = |view: &View, now| lines(|| narrator.warnings(view, ms(now)));
    assert_eq!(look(&view, 1500), [""; 0], "what passes within a second is noise");
    assert_eq!(
        look(&view, 1501),
        [r#"WARN PostgreSQL of b refuses connections: the database system is starting up code="postgres_refused""#]
    );
    assert_eq!(look(&view, 1502), [""; 0]);
    apply(&mut view, 1503, postgres("b", PostgresAnswer::InRecovery(server(400))));
    assert_eq!(look(&view, 1504), [r#"INFO no longer code="postgres_refused" member="b""#]);
    assert_eq!(look(&view, 1505), [""; 0]);
}

#[test]
fn a_warning_that_passes_between_two_looks_is_not_told_at_all() {
    let mut narrator = Narrator::default();
    let mut view = healthy();
    let told = lines(|| {
        for round in 0..4 {
            apply(&mut view, 1400 + round, silent("b"));
            narrator.warnings(&view, ms(1400 + round));
            apply(&mut view, 1400 + round, postgres("b", PostgresAnswer::InRecovery(server(400))));
            narrator.warnings(&view, ms(1400 + round));
        }
    });
    assert_eq!(told, [""; 0]);
}

#[test]
fn a_warning_whose_words_change_while_it_lasts_is_still_one() {
    let mut narrator = Narrator::default();
    let mut view = healthy();
    let refused = warden_core::event::PatroniAnswer::Refused("connection refused".to_owned());
    let told = lines(|| {
        for at in [1400, 2400, 3400, 4400] {
            apply(&mut view, at, Event::Patroni { member: "b".into(), answer: refused.clone() });
            apply(&mut view, at, postgres("b", PostgresAnswer::InRecovery(server(400))));
            apply(&mut view, at, postgres("a", PostgresAnswer::Writable(server(500))));
            apply(&mut view, at, crate::tell::fixtures::verified(key("a", 1), at));
            narrator.warnings(&view, ms(at + 10));
        }
    });
    let about = told.iter().filter(|line| line.contains("patroni_refused")).count();
    assert_eq!((about, told.len()), (1, 1), "{told:?}");
}

#[test]
fn two_warnings_of_one_code_are_two() {
    let mut narrator = Narrator::default();
    let mut view = healthy();
    apply(&mut view, 1400, away("haproxy-1"));
    let mut look = |view: &View| {
        lines(|| {
            narrator.warnings(view, ms(1500));
            narrator.warnings(view, ms(1500));
        })
    };
    assert!(look(&view)[0].contains("HAProxy beside haproxy-1"));
    apply(&mut view, 1450, away("haproxy-2"));
    let second = look(&view);
    assert_eq!(second.len(), 1, "{second:?}");
    assert!(second[0].contains("HAProxy beside haproxy-2"), "{second:?}");
    apply(&mut view, 1460, Event::Agent { name: "haproxy-1".into(), record: Reading::Absent });
    assert_eq!(look(&view), [r#"INFO no longer code="haproxy_unusable" subject="haproxy-1""#]);
}

#[test]
fn a_zookeeper_that_stays_away_is_told_once_for_each_reason_until_it_is_back() {
    let mut narrator = Narrator::default();
    let mut tell = |event: Event| lines(|| narrator.event(&event)).join("\n");
    assert!(tell(session(1)).starts_with("INFO ZooKeeper session started"));
    let first = tell(lost("disconnected"));
    assert!(first.starts_with("WARN no ZooKeeper session") && first.contains("the connection is gone"), "{first}");
    assert!(tell(lost("unreachable")).starts_with("WARN still no ZooKeeper session"));
    for _ in 0..100 {
        assert_eq!(tell(lost("unreachable")) + &tell(lost("disconnected")), "");
    }
    assert!(tell(session(2)).starts_with("INFO ZooKeeper session started"));
    assert!(tell(lost("disconnected")).starts_with("WARN no ZooKeeper session"), "a new loss is told again");
}

#[test]
fn a_new_holder_of_the_leader_key_is_told_and_counted_once() {
    let mut narrator = Narrator::default();
    let mut view = View::new(identity(&["node"]));
    let mut told = |view: &View| {
        let mut holder = None;
        let lines = lines(|| holder = narrator.view(view));
        (holder, lines.join("\n"))
    };
    assert_eq!(told(&view), (None, String::new()), "nothing has been read yet");
    apply(&mut view, 1, session(1));
    apply(&mut view, 2, leader(key("a", 9)));
    let (holder, line) = told(&view);
    assert_eq!(holder.as_deref(), Some("a"));
    assert_eq!(line, r#"INFO leader key holder="a" czxid=0x9 before="unknown""#);
    assert_eq!(told(&view), (None, String::new()));
    apply(&mut view, 3, leader(Reading::Absent));
    assert_eq!(told(&view).1, r#"INFO leader key holder="nobody" before="a""#);
    apply(&mut view, 4, leader(key("b", 10)));
    assert_eq!(told(&view).0.as_deref(), Some("b"));
}

#[test]
fn what_goes_on_all_the_time_is_not_worth_a_line() {
    let mut narrator = Narrator::default();
    let ordinary =
        [Event::Tick, member("b", true), patroni("a", Role::Primary), leader(key("a", 1)), silent("b"), away("r")];
    let told = lines(|| ordinary.iter().for_each(|event| narrator.event(event)));
    assert_eq!(told, [""; 0]);
}

#[test]
fn the_alive_lock_is_told_when_it_changes() {
    let mut narrator = Narrator::default();
    let mut view = View::new(identity(&["node"]));
    let mut told = |view: &View| lines(|| drop(narrator.view(view))).join("\n");
    apply(&mut view, 1, Event::AliveLock(AliveLock::Alive));
    assert!(told(&view).contains(r#"state="alive""#));
    apply(&mut view, 2, Event::AliveLock(AliveLock::Alive));
    assert_eq!(told(&view), "");
    apply(&mut view, 3, Event::AliveLock(AliveLock::Gone));
    assert!(told(&view).contains(r#"state="gone""#));
}

#[test]
fn a_session_that_is_begun_anew_for_a_new_ttl_is_information_and_what_fails_then_is_not() {
    let mut narrator = Narrator::default();
    let told = lines(|| {
        narrator.event(&lost("settings_changed"));
        narrator.event(&lost("unreachable"));
    });
    let [anew, failed] = told.as_slice() else { panic!("{told:?}") };
    assert!(anew.starts_with("INFO the ZooKeeper session is begun anew"), "{anew}");
    assert!(failed.starts_with("WARN no ZooKeeper session"), "{failed}");
}
