//! When `decide` orders the rules' verdicts, and when it orders them again.

use super::*;
use crate::event::{AliveLock, Event, FenceReport, LeaderKey, LocalEvent, Report, SyncState};
use crate::rules::fence::tests::{Scene, fence_record, leading, takes_writes};
use crate::types::SystemId;
use crate::view::tests::{barrier, cluster_config, lost};

/// Another member leads and the local server takes writes, as of 20 s. The agent sees both again every second until 60
/// s.
fn superseded() -> View {
    leading().with("postgres", 20_000, takes_writes("a", 1)).view()
}

/// The view at `now` with the same facts, after these events.
fn still(events: &[(u64, Event)], key: &Reading<LeaderKey>, now: u64) -> View {
    let mut view = superseded();
    let fresh = [(now - 20, takes_writes("a", 1)), (now - 10, verified(key.clone(), 1, now))];
    for (at, event) in events.iter().cloned().chain(fresh) {
        crate::step::take_in(&mut view, Observed { at: ms(at), event }, ms(at));
    }
    view
}

fn orders(view: &View, policy: &Policy, now: u64) -> (bool, bool, Moment) {
    let plan = decide(view, policy, ms(now));
    let fences = plan.steps.iter().any(|step| matches!(step.action, Action::Fence(_)));
    let observes = plan.notices.iter().any(|notice| matches!(notice, Notice::Observed(Observation::Fence(_))));
    (fences, observes, plan.wake)
}

fn fencing(fencing: Mode) -> Policy {
    Policy { fencing, ..Policy::default() }
}

fn ordered() -> Event {
    Event::Started(Started::Fence("a".into()))
}

fn outcome(outcome: FenceOutcome) -> Event {
    Event::Report(Report::Fence(FenceReport { member: "a".into(), rule: Rule::Superseded, outcome }))
}

fn confirmed() -> FenceOutcome {
    FenceOutcome::Confirmed { by: "fast", took: Duration::from_millis(20) }
}

#[test]
fn a_fence_is_ordered_once_and_again_only_when_its_time_has_come() {
    let cases = [
        ("never ordered", vec![], 20_100, true),
        ("under way", vec![(20_100, ordered())], 20_101, false),
        ("under way for long", vec![(20_100, ordered())], 32_099, false),
        ("not heard of for 12 s", vec![(20_100, ordered())], 32_100, true),
        ("failed", vec![(20_100, ordered()), (21_000, outcome(FenceOutcome::Failed("x".to_string())))], 21_499, false),
        (
            "failed, later",
            vec![(20_100, ordered()), (21_000, outcome(FenceOutcome::Failed("x".to_string())))],
            21_500,
            true,
        ),
        (
            "withdrawn",
            vec![(20_100, ordered()), (21_000, outcome(FenceOutcome::Withdrawn("x".to_string())))],
            21_499,
            false,
        ),
        (
            "withdrawn, later",
            vec![(20_100, ordered()), (21_000, outcome(FenceOutcome::Withdrawn("x".to_string())))],
            21_500,
            true,
        ),
        ("waiting, and awake", vec![(20_100, ordered()), (20_200, outcome(FenceOutcome::Waiting))], 20_221, true),
        (
            "confirmed, and it takes writes again",
            vec![(20_100, ordered()), (20_130, outcome(confirmed()))],
            21_500,
            true,
        ),
        ("another's is no obstacle", vec![(20_100, Event::Started(Started::Fence("b".into())))], 20_101, true),
    ];
    for (name, events, now, expected) in cases {
        let view = still(&events, &key("b", 2), now);
        let (fences, _, wake) = orders(&view, &Policy::default(), now);
        assert_eq!(fences, expected, "{name}");
        assert!(wake >= ms(now) && wake <= ms(now + 2000), "{name}: wakes at {wake:?}");
        assert!(!orders(&still(&events, &key("a", 2), now), &Policy::default(), now).0, "{name}: the key is ours");
    }
}

#[test]
fn a_fence_that_waits_in_front_of_a_silent_server_is_renewed() {
    let mut view = superseded();
    for (at, event) in [(20_100, ordered()), (20_200, outcome(FenceOutcome::Waiting))] {
        crate::step::take_in(&mut view, Observed { at: ms(at), event }, ms(at));
    }
    let silent = crate::assess::tests::probe("a", PostgresAnswer::Silent("x".to_string()));
    for (now, expected) in [(25_099, false), (25_100, true)] {
        let mut view = view.clone();
        for (at, event) in [(now - 20, silent.clone()), (now - 10, verified(key("b", 2), 1, now))] {
            crate::step::take_in(&mut view, Observed { at: ms(at), event }, ms(at));
        }
        assert_eq!(orders(&view, &Policy::default(), now).0, expected, "at {now}");
    }
}

#[test]
fn a_confirmed_fence_is_not_ordered_again_before_the_server_is_seen_writable_again() {
    let mut view = still(&[], &key("b", 2), 20_100);
    for (at, event) in [(20_100, ordered()), (20_130, outcome(confirmed()))] {
        crate::step::take_in(&mut view, Observed { at: ms(at), event }, ms(at));
    }
    assert!(!orders(&view, &Policy::default(), 20_131).0);
}

#[test]
fn observe_reports_a_fence_once_a_minute_and_off_never() {
    let view = still(&[], &key("b", 2), 20_100);
    assert!(orders(&view, &fencing(Mode::Enforce), 20_100).0);
    assert_eq!(
        (orders(&view, &fencing(Mode::Observe), 20_100).0, orders(&view, &fencing(Mode::Observe), 20_100).1),
        (false, true)
    );
    let off = orders(&view, &fencing(Mode::Off), 20_100);
    assert!(!off.0 && !off.1);
    for (now, expected) in [(80_099, false), (80_100, true)] {
        let view = still(&[(20_100, ordered())], &key("b", 2), now);
        assert_eq!(orders(&view, &fencing(Mode::Observe), now).1, expected, "at {now}");
    }
}

#[test]
fn the_plan_wakes_when_a_lease_runs_out_or_a_silence_becomes_long_enough() {
    let silent = || patroni("a", PatroniAnswer::Silent("x".to_string()));
    let cut = |until: u64| {
        leading()
            .with("silence", 10_500, silent())
            .with("lost", 20_000, lost())
            .with("still silent", until, silent())
            .view()
    };
    let (fences, _, wake) = orders(&cut(33_000), &Policy { verify_every: Duration::MAX, ..Policy::default() }, 33_500);
    assert!(!fences);
    assert_eq!(wake, ms(34_000), "contact at 9 s + 30 s - 5 s");
    let (fences, _, wake) = orders(&cut(15_200), &Policy { verify_every: Duration::MAX, ..Policy::default() }, 15_300);
    assert!(!fences);
    assert_eq!(wake, ms(15_500), "Patroni will have been silent for 5 s");
    assert!(orders(&cut(34_000), &Policy::default(), 34_000).0);
}

/// Columns: the record's rule, the server's answer, the holder by a barrier read, whether the record is removed.
#[test]
fn the_local_fence_record_is_removed_when_its_reason_has_ended() {
    let follows = || probe("a", PostgresAnswer::InRecovery(Server { system_id: Some(SystemId(7)), ..server(2, 5) }));
    let refuses = || probe("a", PostgresAnswer::Refused("x".to_string()));
    let cases = [
        ("it follows", "a", Rule::Superseded, follows(), key("b", 2), true),
        ("it follows a crashed leader's successor", "a", Rule::Crashed, follows(), key("b", 2), true),
        ("it leads", "a", Rule::Superseded, takes_writes("a", 3), key("a", 2), true),
        ("it takes writes without the key", "a", Rule::Superseded, takes_writes("a", 1), key("b", 2), false),
        ("it is down", "a", Rule::Superseded, refuses(), key("b", 2), false),
        ("a person asked for it", "a", Rule::Operator, follows(), key("b", 2), false),
        ("it is another's", "b", Rule::Peer, follows(), key("b", 2), false),
    ];
    for (name, member, rule, postgres, key, expected) in cases {
        let scene = leading()
            .with("record", 15_000, fence_record(member, rule))
            .with("postgres", 20_000, postgres)
            .with("barrier", 20_000, verified(key, 1, 20_001));
        let closes = |scene: &Scene, now| {
            let plan = decide(&scene.view(), &Policy::default(), ms(now));
            plan.steps.iter().any(|step| matches!(&step.action, Action::CloseFence(member) if member.as_str() == "a"))
        };
        assert_eq!(closes(&scene, 20_100), expected, "{name}");
        assert!(!closes(&scene, 24_000), "{name}: old news");
        let closed = scene.with("closed", 20_050, Event::Started(Started::CloseFence));
        assert!(!closes(&closed, 20_100), "{name}: it was just removed");
    }
}

#[test]
fn a_release_and_a_nudge_need_the_operators_leave() {
    let standbys = [MemberName::from("b")].into();
    let sync = Reading::Present(SyncState { leader: Some("a".into()), standbys, quorum: 0 });
    let read = barrier(key("a", 1), Reading::Present(cluster_config()), sync, 1, 10_001);
    let crashed = leading()
        .with("barrier", 10_000, read)
        .with("b follows", 9_990, probe("b", PostgresAnswer::InRecovery(server(1, 5))))
        .with("held", 10_001, Event::Local(LocalEvent::AliveLock(AliveLock::Alive)))
        .with("gone 1", 10_110, probe("a", PostgresAnswer::Gone("x".to_string())))
        .with("gone 2", 10_170, probe("a", PostgresAnswer::Gone("x".to_string())));
    let dead = crashed.clone().with("freed", 10_060, Event::Local(LocalEvent::AliveLock(AliveLock::Gone)));
    let mut policy = Policy::default();
    let acts = |scene: &Scene, policy: &Policy| -> Vec<Action> {
        let plan = decide(&scene.view(), policy, ms(10_200));
        plan.steps
            .into_iter()
            .map(|step| step.action)
            .filter(|act| matches!(act, Action::Release(_) | Action::Local(LocalAction::Nudge)))
            .collect()
    };
    assert_eq!((acts(&crashed, &policy), acts(&dead, &policy)), (vec![], vec![]));
    policy.nudge = true;
    policy.release.enabled = true;
    assert_eq!(acts(&crashed, &policy), [Action::Local(LocalAction::Nudge)]);
    assert!(matches!(acts(&dead, &policy)[..], [Action::Release(_)]));
}
