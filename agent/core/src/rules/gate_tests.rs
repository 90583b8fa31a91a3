use super::*;
use crate::assess::tests::{patroni, probe, status};
use crate::event::{Event, PatroniAnswer, PostgresAnswer, Role, Server, Starting, ZooKeeperEvent};
use crate::fixtures;
use crate::rules::fence::tests::{Scene, initialize, member, paused_config};
use crate::types::{UnixMillis, Zxid};
use crate::view::tests::{key, ms, session, verified, verified_with};
use alloc::vec;

const WAIT: Duration = Duration::from_secs(15);

/// The gate began at 100 s.
const BEGAN: u64 = 100_000;

fn other(standing: Standing) -> Other {
    Other {
        name: "a".into(),
        place: Some(("host-a".to_string(), 5432)),
        standing,
        last_holder: Some(true),
        recorded: false,
    }
}

fn picture(others: Vec<Other>) -> Picture {
    Picture {
        own: "b".into(),
        key: Key::Own(Duration::ZERO),
        paused: false,
        fenced_by_operator: None,
        system_id: None,
        others,
    }
}

/// The remote agent beside `member`.
fn agent(member: &str, answer: PostgresAnswer, age: u64) -> Event {
    let Event::ZooKeeper(ZooKeeperEvent::Agent { record, .. }) = crate::assess::tests::agent(member, answer, age)
    else {
        panic!()
    };
    Event::ZooKeeper(ZooKeeperEvent::Agent { name: "warden-a".into(), record })
}

/// The verdict `after` this many milliseconds, with these results of the questions.
fn says(other: &Other, found: &[Found], after: u64) -> Verdict {
    let mut memory = Memory::new(ms(BEGAN));
    let picture = picture(vec![other.clone()]);
    memory.note_key(&picture.key, ms(BEGAN));
    found.iter().for_each(|found| memory.note(&other.name, found.clone()));
    judge(&picture, &memory, WAIT, ms(BEGAN + after))
}

fn standby() -> Standing {
    Standing::Standby("its own agent".to_string())
}

fn no_login() -> Found {
    Found::NoLogin("no pg_hba.conf entry".to_string())
}

fn harmless() -> Found {
    Found::Harmless("no process listens there".to_string())
}

fn writable() -> Found {
    Found::Writable("the fence failed".to_string())
}

/// When a member passes: at once, after so many milliseconds, at the end, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passes {
    AtOnce,
    After(u64),
    Never,
}

/// One row of the contract's table: the member's standing, and the results of the questions in turn.
fn check(name: &str, other: &Other, found: &[Found], expected: Passes) {
    let at = |after| says(other, found, after);
    match expected {
        Passes::AtOnce => assert_eq!(at(0), Verdict::Pass, "{name}"),
        Passes::After(limit) => {
            assert!(matches!(at(0), Verdict::Wait(_)), "{name}: {:?}", at(0));
            assert!(matches!(at(limit - 1), Verdict::Wait(_)), "{name}: {:?}", at(limit - 1));
            assert_eq!(at(limit), Verdict::Pass, "{name}");
        }
        Passes::Never => {
            assert!(matches!(at(14_999), Verdict::Wait(_)), "{name}: {:?}", at(14_999));
            assert!(matches!(at(15_000), Verdict::Refuse(_)), "{name}: {:?}", at(15_000));
        }
    }
}

#[test]
fn a_candidate_is_promoted_as_soon_as_no_other_member_can_be_taking_writes() {
    use Passes::{After, AtOnce, Never};
    let (last, not_last) =
        (|standing| other(standing), |standing| Other { last_holder: Some(false), ..other(standing) });
    let recorded = |standing| Other { recorded: true, ..other(standing) };
    let cases: Vec<(&str, Other, Vec<Found>, Passes)> = vec![
        // A standby, down, fenced and not answering, another database.
        ("a standby is not even asked", last(standby()), vec![], AtOnce),
        ("a standby does not let us in", last(standby()), vec![no_login()], AtOnce),
        ("down", last(Standing::WasWritable), vec![harmless()], AtOnce),
        ("fenced, and silent", recorded(Standing::WasWritable), vec![Found::Silent], AtOnce),
        ("fenced, and shutting down", recorded(Standing::WasWritable), vec![Found::Stopping], AtOnce),
        ("it has no address", Other { place: None, ..last(Standing::Unknown) }, vec![], AtOnce),
        // Writable.
        ("writable to the end", last(Standing::Writable), vec![writable()], Never),
        ("a record does not replace the question", recorded(Standing::Writable), vec![writable()], Never),
        ("nor of one that was not the last holder", not_last(Standing::Unknown), vec![writable()], Never),
        ("stopped from here", last(Standing::Writable), vec![writable(), harmless()], AtOnce),
        ("writable, and does not let us in", last(Standing::Writable), vec![no_login()], Never),
        // Was writable in this run, now silent.
        ("it has fallen silent", last(Standing::Unknown), vec![writable(), Found::Silent], After(15_000)),
        ("others see it take writes", not_last(Standing::Writable), vec![Found::Silent], After(15_000)),
        ("and there is a record", recorded(Standing::Unknown), vec![writable(), Found::Silent], AtOnce),
        ("and refuses now", last(Standing::Unknown), vec![writable(), Found::Silent, harmless()], AtOnce),
        // Starting, and counts as writable.
        ("the old primary recovers from a crash", last(Standing::WasWritable), vec![Found::Starting], Never),
        ("a record does not help it", recorded(Standing::WasWritable), vec![Found::Starting], Never),
        ("unknown, starting, and the last holder", last(Standing::Unknown), vec![Found::Starting], Never),
        ("its agent says it is a standby", last(standby()), vec![Found::Starting], AtOnce),
        ("unknown, starting, not the last holder", not_last(Standing::Unknown), vec![Found::Starting], AtOnce),
        // Unknown, silent, last holder of the key.
        ("silent", last(Standing::Unknown), vec![Found::Silent], After(5_000)),
        ("silent, and was writable", not_last(Standing::WasWritable), vec![Found::Silent], After(5_000)),
        ("does not let us in", last(Standing::Unknown), vec![no_login()], After(5_000)),
        ("shutting down", last(Standing::WasWritable), vec![Found::Stopping], After(5_000)),
        (
            "who held the key is not known",
            Other { last_holder: None, ..last(Standing::Unknown) },
            vec![Found::Silent],
            After(5_000),
        ),
        // Unknown, and not the last holder.
        ("silent, not the last holder", not_last(Standing::Unknown), vec![Found::Silent], AtOnce),
        ("does not let us in, not the last holder", not_last(Standing::Unknown), vec![no_login()], AtOnce),
    ];
    for (name, other, found, expected) in cases {
        check(name, &other, &found, expected);
    }
    assert!(matches!(says(&other(Standing::Unknown), &[], 0), Verdict::Wait(_)), "it has to be asked");
}

#[test]
fn a_lease_that_was_over_before_the_gate_began_is_not_waited_for() {
    let old = Picture { key: Key::Own(LEASE_OVER_AFTER), ..picture(vec![other(Standing::Unknown)]) };
    let mut memory = Memory::new(ms(BEGAN));
    memory.note(&"a".into(), Found::Silent);
    assert_eq!(judge(&old, &memory, WAIT, ms(BEGAN)), Verdict::Pass);
}

#[test]
fn a_candidate_that_has_lost_the_key_is_never_let_through() {
    let lost = |key: &Key, after: u64| {
        let picture = Picture { key: key.clone(), ..picture(vec![other(standby())]) };
        let mut memory = Memory::new(ms(BEGAN));
        memory.note_key(key, ms(BEGAN));
        judge(&picture, &memory, WAIT, ms(BEGAN + after))
    };
    let (anothers, absent) = (Key::Anothers("c".into()), Key::Absent);
    // Patroni itself cancels the hook, without the cost of a refusal.
    assert_eq!(lost(&anothers, 4999), Verdict::Wait(vec![]));
    assert!(matches!(lost(&anothers, 5000), Verdict::Refuse(why) if why.contains("c holds the leader key")));
    assert_eq!(lost(&absent, 14_999), Verdict::Wait(vec![]));
    assert!(matches!(lost(&absent, 15_000), Verdict::Refuse(why) if why.contains("lost")));
    // The candidate holds the key again.
    let mut memory = Memory::new(ms(BEGAN));
    for (at, key) in [(0, anothers), (3000, Key::Own(Duration::ZERO)), (6000, Key::Own(Duration::ZERO))] {
        memory.note_key(&key, ms(BEGAN + at));
    }
    assert_eq!(judge(&picture(vec![other(standby())]), &memory, WAIT, ms(BEGAN + 6000)), Verdict::Pass);
}

#[test]
fn maintenance_mode_is_the_operators_business_and_so_is_a_fence_of_the_candidate() {
    let memory = Memory::new(ms(BEGAN));
    let fenced = Picture { fenced_by_operator: Some("why".to_string()), ..picture(vec![]) };
    assert_eq!(judge(&fenced, &memory, WAIT, ms(BEGAN)), Verdict::Refuse("why".to_string()));
    // The operator may just have taken it back, so the gate reads ZooKeeper.
    assert!(fenced.wants_zookeeper() && !picture(vec![other(Standing::Writable)]).wants_zookeeper());
    let paused = Picture { paused: true, key: Key::Absent, ..fenced };
    assert_eq!(judge(&paused, &memory, WAIT, ms(BEGAN)), Verdict::Pass);
}

#[test]
fn observe_reports_the_verdict_and_passes() {
    let waits = || Verdict::Wait(vec![("a".into(), "does not answer".to_string())]);
    assert_eq!(obey(Mode::Enforce, waits()), (waits(), None));
    assert_eq!(obey(Mode::Observe, waits()), (Verdict::Pass, Some("would wait: a does not answer".to_string())));
    let (_, would) = obey(Mode::Observe, Verdict::Wait(Vec::new()));
    assert!(would.is_some_and(|would| would.contains("the leader key is lost")));
    let refuses = || Verdict::Refuse("x".to_string());
    assert_eq!(obey(Mode::Observe, refuses()), (Verdict::Pass, Some("would refuse: x".to_string())));
    assert_eq!(obey(Mode::Observe, Verdict::Pass), (Verdict::Pass, None));
    assert_eq!(obey(Mode::Off, refuses()), (Verdict::Pass, None));
}

/// The local member is `b`, which took the key from `a` at 9 s; `c` follows.
fn candidate() -> Scene {
    Scene::new([
        ("session", 1, session(1)),
        ("initialize", 3, initialize(7)),
        ("member a", 4, member("a", "host-a")),
        ("member b", 5, member("b", "host-b")),
        ("member c", 6, member("c", "host-c")),
        ("a led", 7, verified(key("a", 1), 1, 8)),
        ("a wrote", 8_000, probe("a", PostgresAnswer::Writable(Server::default()))),
        ("b leads", 9_000, verified(key("b", 9_000), 1, 9_001)),
    ])
}

fn drawn(scene: &Scene) -> Option<Picture> {
    super::picture(&scene.view(), &"b".into(), ms(9_000), ms(11_500))
}

fn of_a(scene: &Scene) -> Other {
    drawn(scene).and_then(|picture| picture.others.into_iter().find(|other| other.name.as_str() == "a")).unwrap()
}

#[test]
fn the_picture_is_drawn_by_a_linearizable_read_made_for_it() {
    let picture = drawn(&candidate()).unwrap();
    let Key::Own(_) = picture.key else { panic!("{picture:?}") };
    assert_eq!(picture.system_id.map(|id| id.0), Some(7));
    let names: Vec<&str> = picture.others.iter().map(|other| other.name.as_str()).collect();
    assert_eq!(names, ["a", "c"]);
    let last: Vec<Option<bool>> = picture.others.iter().map(|other| other.last_holder).collect();
    assert_eq!(last, [Some(true), Some(false)]);
    // A crashed primary has passed the gate under its key before, so an unknown earlier holder does not matter.
    let restarted =
        || candidate().without("a wrote").without("b leads").with("a led", 9_000, verified(key("a", 1), 1, 9_001));
    let others = |scene: Scene| {
        let picture = super::picture(&scene.view(), &"a".into(), ms(9_000), ms(11_500)).unwrap();
        picture.others.into_iter().map(|other| other.last_holder).collect::<Vec<_>>()
    };
    assert_eq!(others(restarted()), [None, None]);
    let writes = || probe("a", PostgresAnswer::Writable(Server::default()));
    assert_eq!(others(restarted().with("a wrote", 9_100, writes())), [Some(false), Some(false)]);
    assert_eq!(others(restarted().with("a wrote", 8_900, writes())), [None, None], "before it held this key");
    let anothers = candidate().with("b leads", 9_000, verified(key("c", 9_000), 1, 9_001));
    assert_eq!(drawn(&anothers).unwrap().key, Key::Anothers("c".into()));
    let absent = candidate().with("b leads", 9_000, verified(Reading::Absent, 1, 9_001));
    assert_eq!(drawn(&absent).unwrap().key, Key::Absent);
    let paused = crate::rules::fence::tests::config(paused_config);
    let paused = candidate().with("b leads", 9_000, verified_with(key("b", 9_000), paused, 1, 9_001));
    assert!(drawn(&paused).unwrap().paused);
    // Unknown facts give no picture.
    assert_eq!(drawn(&candidate().with("b leads", 8_999, verified(key("b", 9_000), 1, 9_001))), None, "too old");
    let torn = || Reading::Unreadable("torn".to_string());
    assert_eq!(drawn(&candidate().with("b leads", 9_000, verified(torn(), 1, 9_001))), None);
    let no_config = verified_with(key("b", 9_000), Reading::Unreadable("torn".to_string()), 1, 9_001);
    assert_eq!(drawn(&candidate().with("b leads", 9_000, no_config)), None);
}

/// Columns: source, report on `a`. This agent cannot log in to `a`.
#[test]
fn a_standby_is_known_by_its_agent_or_its_patroni_and_not_by_our_login() {
    let locked = || probe("a", PostgresAnswer::Unknown("no pg_hba.conf entry".to_string()));
    let c = || candidate().with("locked", 10_500, locked());
    let recovery = || PostgresAnswer::InRecovery(Server::default());
    let starting = |standby| PostgresAnswer::Starting(Starting { why: "starting up".to_string(), standby });
    let answers = |role, writable| patroni("a", PatroniAnswer::Answering(status(role, writable)));
    for (name, scene, standing) in [
        ("nothing since", c(), Standing::WasWritable),
        ("its agent", c().with("agent", 10_500, agent("a", recovery(), 0)), standby()),
        ("its agent, too long ago", c().with("agent", 10_500, agent("a", recovery(), 4_500)), Standing::WasWritable),
        (
            "its agent read its data directory",
            c().with("agent", 10_500, agent("a", starting(Some(true)), 0)),
            standby(),
        ),
        (
            "it is the old primary",
            c().with("agent", 10_500, agent("a", starting(Some(false)), 0)),
            Standing::WasWritable,
        ),
        (
            "its Patroni, by a query",
            c().with("patroni", 10_500, answers(Role::Replica, Some(false))),
            Standing::Standby("its Patroni".to_string()),
        ),
        (
            "its Patroni, by how it started it",
            c().with("patroni", 10_500, answers(Role::Replica, None)),
            Standing::WasWritable,
        ),
        (
            "they differ: what speaks for writes counts",
            c().with("agent", 10_500, agent("a", recovery(), 0)).with(
                "patroni",
                10_500,
                answers(Role::Primary, Some(true)),
            ),
            Standing::Writable,
        ),
        ("never heard of", c().without("a wrote"), Standing::Unknown),
        (
            "two members have its address",
            c().with("member c", 6, member("c", "host-a")).with("agent", 10_500, agent("a", recovery(), 0)),
            Standing::Unknown,
        ),
    ] {
        assert_eq!(of_a(&scene).standing, standing, "{name}");
    }
}

fn record(zxid: i64, confirmed: bool) -> Event {
    let record = FenceRecord {
        confirmed: confirmed.then_some(UnixMillis(0)),
        written: Some((Zxid(zxid), UnixMillis(0))),
        ..fixtures::fence_record("a", Rule::Crashed)
    };
    Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member: "a".into(), record: Reading::Present(record) })
}

/// Reads in which `a` held the key had the transactions 8 and, in some cases, 8,500.
#[test]
fn a_record_counts_if_it_is_later_than_every_read_in_which_its_member_held_the_key() {
    let held = |zxid: Option<i64>| {
        let Event::ZooKeeper(ZooKeeperEvent::Agent { name, record: Reading::Present(record) }) =
            agent("a", PostgresAnswer::Silent(String::new()), 0)
        else {
            panic!()
        };
        Event::ZooKeeper(ZooKeeperEvent::Agent {
            name,
            record: Reading::Present(crate::event::AgentRecord { held: zxid.map(Zxid), ..record }),
        })
    };
    let again = || verified(key("a", 1), 1, 8_500);
    let c = || candidate().with("record", 8_900, record(8_800, true));
    for (name, scene, counts) in [
        ("later than all", c(), true),
        ("not confirmed", c().with("record", 8_900, record(8_800, false)), false),
        ("there is none", candidate(), false),
        (
            "it held the key later, by the same czxid",
            c().with("record", 8_900, record(8_400, true)).with("again", 8_450, again()),
            false,
        ),
        ("and was fenced since", c().with("again", 8_450, again()), true),
        ("our session began later: it may have held the key meanwhile", c().without("a led"), false),
        ("its own agent says when it held it", c().without("a led").with("agent", 9_100, held(Some(8_500))), true),
        ("and that was later", c().with("agent", 9_100, held(Some(8_850))), false),
        ("its agent has just begun and does not say", c().with("agent", 9_100, held(None)), true),
    ] {
        assert_eq!(of_a(&scene).recorded, counts, "{name}");
    }
}
