use super::*;
use crate::tell::fixtures::{apply, healthy, identity, key, ms, patroni, postgres, server, verified};
use std::time::Duration;
use warden_core::event::{
    AliveLock, Event, HaproxyAnswer, HaproxyEvent, HaproxyServer, LocalEvent, MemberEvent, PatroniAnswer,
    PostgresAnswer, Role, Server, Started, Znode, ZooKeeperEvent,
};
use warden_core::fact::Reading;
use warden_core::haproxy::Pool;
use warden_core::rules::release::ReleasePolicy;
use warden_core::types::Mode;
use warden_core::types::SystemId;

fn after(events: impl IntoIterator<Item = (u64, Event)>) -> View {
    let mut view = healthy();
    events.into_iter().for_each(|(at, event)| apply(&mut view, at, event));
    view
}

fn policy(fencing: Mode) -> Policy {
    Policy { fencing, ..Policy::default() }
}

/// Every optional action is allowed.
fn all() -> Policy {
    let after = Duration::from_millis(50);
    let release = ReleasePolicy {
        enabled: true,
        asynchronous: Some(Duration::ZERO),
        handover: true,
        after,
        patroni_is_pid_1: true,
    };
    Policy { release, nudge: true, ..Policy::default() }
}

fn gone(at: u64) -> (u64, Event) {
    (at, postgres("a", PostgresAnswer::Gone("no process listens".to_owned())))
}

fn check(name: &str, view: &View, policy: &Policy, now: u64, expected: &[&str]) {
    assert_eq!(lines(view, policy, ms(now)), expected, "{name}");
}

#[test]
fn an_empty_plan_says_why_it_is_empty() {
    check("a leader", &healthy(), &all(), 1100, &["nothing: a takes writes, and no rule objects"]);
    let standby =
        after([(1050, verified(key("b", 2), 1050)), (1050, postgres("a", PostgresAnswer::InRecovery(server(500))))]);
    check("a standby", &standby, &all(), 1100, &["nothing: a takes no writes"]);
    let router = View::new(identity(&["router"]));
    check("beside HAProxy", &router, &all(), 1100, &["nothing: this agent has no node role"]);
}

#[test]
fn the_plan_names_a_fence_and_the_mode_that_prevents_it() {
    let identified = PostgresAnswer::Writable(Server { system_id: Some(SystemId(7)), ..server(500) });
    let view = after([
        (1050, Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Initialize(Reading::Present(SystemId(7)))))),
        (1050, postgres("a", identified)),
        (1060, verified(key("b", 2), 1060)),
    ]);
    let why = "a by rule superseded: b holds the leader key (czxid 0x2), and a takes writes";
    for (fencing, words) in [(Mode::Enforce, "fence"), (Mode::Observe, "would fence (fencing.mode is observe)")] {
        check(words, &view, &policy(fencing), 1100, &[&format!("{words} {why}")]);
    }
    let off = "the agent does not ask the fence rules: fencing.mode is off";
    check("off", &view, &policy(Mode::Off), 1100, &[off]);
}

#[test]
fn the_plan_names_a_fence_that_is_held_back_and_each_obstacle() {
    let view = after([(1060, verified(key("b", 2), 1060))]);
    let expected = "held back: a fence of a by rule superseded, because its system identifier is not known";
    check("no system identifier", &view, &policy(Mode::Enforce), 1100, &[expected]);
}

#[test]
fn the_plan_says_when_a_waiting_rule_decides_again() {
    let silent = PatroniAnswer::Silent("no answer within 1 s".to_owned());
    let view = after([
        (2000, Event::Member("a".into(), MemberEvent::Patroni(silent))),
        (3000, verified(Reading::Absent, 3000)),
    ]);
    check("", &view, &policy(Mode::Enforce), 3101, &["the fence rules decide again in 2.9 s, or at the next event"]);
}

#[test]
fn the_plan_names_a_release_from_its_first_proof_on_if_it_is_allowed() {
    let mut view = after([
        (1050, Event::Local(LocalEvent::AliveLock(AliveLock::Alive))),
        (1100, Event::Local(LocalEvent::AliveLock(AliveLock::Gone))),
    ]);
    let proving = "release: the agent proves the death of the leader";
    let again = "the fence rules decide again in 2.9 s, or at the next event";
    check("dead", &view, &all(), 1110, &[again, proving]);
    check("not allowed", &view, &policy(Mode::Enforce), 1110, &[again]);
    for (at, event) in [gone(1120), gone(1180)] {
        apply(&mut view, at, event);
    }
    let release = "release the leader key: Patroni (its alive lock) and PostgreSQL (its socket) of a are gone";
    check("proved", &view, &all(), 1190, &[release]);
}

#[test]
fn the_plan_names_a_nudge_and_the_wait_for_the_next_one() {
    let mut view = after([gone(1050), gone(1100), (1110, patroni("a", Role::Primary))]);
    check("gone", &view, &all(), 1150, &["nudge Patroni: PostgreSQL of a is gone while its Patroni lives"]);
    check("not allowed", &view, &policy(Mode::Enforce), 1150, &["nothing: a takes no writes"]);
    apply(&mut view, 1150, Event::Started(Started::Nudge));
    check("nudged", &view, &all(), 1250, &["nudge Patroni again in 0.9 s"]);
}

fn haproxy(a_is_up: bool) -> Event {
    let server = |name: &str, up: bool| HaproxyServer {
        pool: Pool::Writes,
        id: warden_core::haproxy::ServerId { proxy: "writes".to_string(), name: format!("pg-{name}") },
        member: Some(name.into()),
        address: format!("{name}:5432"),
        up,
        status: if up { "UP" } else { "DOWN" }.to_owned(),
        sessions: 0,
        ..HaproxyServer::default()
    };
    Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(vec![server("a", a_is_up), server("b", false)])))
}

#[test]
fn the_plan_names_each_command_to_haproxy() {
    let routing = |routing| Policy { routing, ..all() };
    let well = after([(1050, haproxy(true))]);
    let nothing = ["nothing: a takes writes, and no rule objects"];
    check("well", &well, &routing(Mode::Enforce), 1100, &nothing);
    let down = after([(1050, haproxy(false))]);
    let told = "set HAProxy server writes/pg-a to \"up\"";
    let why = "a holds the leader key and takes writes";
    for (mode, line) in [
        (Mode::Enforce, format!("{told}: {why}")),
        (Mode::Observe, format!("would {told} (haproxy.mode or fencing.mode is observe): {why}")),
        (Mode::Off, "the agent does not ask the routing rules: haproxy.mode is off".to_owned()),
    ] {
        check("down", &down, &routing(mode), 1100, &[&line]);
    }
}

#[test]
fn the_plan_names_a_hold_of_new_connections() {
    let broke = Event::Member("a".into(), MemberEvent::SessionBroke);
    let mut view = after([(1050, haproxy(true)), (1060, broke)]);
    let why = "a: the agent's session with it was lost";
    let wait = format!("set HAProxy server writes/pg-a to \"drain\": {why}");
    let routing = |routing| Policy { routing, ..all() };
    let hold = format!("hold new connections for writes by writes: {why}");
    check("goes", &view, &routing(Mode::Enforce), 1070, &[&hold, &wait]);
    apply(&mut view, 1070, Event::Started(Started::Hold { proxy: "writes".to_owned(), on: true }));
    let held = "keep holding new connections for writes";
    check("held", &view, &routing(Mode::Enforce), 1080, &[&wait, held]);
}
