//! Silence is not death, and the lease rule looks for progress: the contract "proof and silence", clause by clause.

use super::lease::frozen_and_cut;
use super::*;
use crate::event::{LocalEvent, MemberEvent, Starting, TermMemory};
use crate::evidence::Away as PatroniAway;
use crate::evidence::patroni_away;

/// `a` takes writes, and Patroni's heartbeat began a query at this moment; the agent saw both at `at`.
fn beats(began: u64) -> Event {
    let server = Server { system_id: Some(SystemId(7)), heartbeat: Some(ms(began)), ..at_timeline(1, 5) };
    probe("a", PostgresAnswer::Writable(server))
}

fn unusable() -> Event {
    patroni("a", PatroniAnswer::Unusable("invalid peer certificate: UnknownIssuer".to_string()))
}

/// ZooKeeper is away since 20 s, and Patroni last reported a contact at 9 s. Its lease is good until 39 s.
fn cut() -> Scene {
    leading().with("barrier", 19_000, verified(key("a", 1), 1, 19_001)).with("lost", 20_000, lost())
}

/// Patroni's REST API has been silent since it was first asked.
fn never_answered() -> Scene {
    cut()
        .without("patroni")
        .without("patroni 1")
        .without("patroni 2")
        .with("silence", 1_000, silent())
        .with("still silent", 39_900, silent())
        .with("postgres", 39_900, takes_writes("a", 1))
}

#[test]
fn a_rest_api_that_never_answered_is_not_a_dead_patroni() {
    check("never", &never_answered(), 40_000, &Nothing);
    let unknown = cut().with("tls", 10_500, unusable()).with("still", 39_900, unusable());
    let unknown = unknown.with("postgres", 39_900, takes_writes("a", 1));
    check("answers that cannot be used are not silence", &unknown, 40_000, &Holds(Rule::Lease, "no usable answer"));
    check("and that is said when its lease is over", &unknown, 33_000, &Nothing);
    let liveness = Event::Member("a".into(), MemberEvent::Liveness { turns: true });
    let busy = cut().with("silence", 10_500, silent()).with("liveness", 38_000, liveness);
    let busy = busy.with("still silent", 39_900, silent()).with("postgres", 39_900, takes_writes("a", 1));
    check("GET /liveness was answered: the silence began again", &busy, 40_000, &Waits(44_900));
}

#[test]
fn silence_counts_together_with_a_heartbeat_that_has_stopped() {
    let stopped = never_answered().with("postgres", 39_900, beats(14_000));
    check("no query for 26 s", &stopped, 40_000, &Fences("a", Rule::Lease));
    let turns = never_answered().with("postgres", 39_900, beats(15_100));
    check("24.9 s: a round may take so long", &turns, 40_000, &Waits(40_101));
    let blind = never_answered().with("postgres", 36_000, beats(10_000)).with(
        "silent",
        39_900,
        probe("a", PostgresAnswer::Silent("x".to_string())),
    );
    check("the heartbeat was not looked at of late", &blind, 40_000, &Nothing);
}

#[test]
fn a_loop_that_turns_holds_the_lease_also_with_a_dead_rest_api() {
    let silent_since_ten = || cut().with("silence", 10_500, silent()).with("still silent", 39_900, silent());
    let turns = silent_since_ten().with("postgres", 39_900, beats(35_000));
    check("ZooKeeper is away for long, and the loop turns", &turns, 40_000, &Waits(60_001));
    let frozen = silent_since_ten().with("postgres", 39_900, beats(9_500));
    check("it has not turned for 30 s", &frozen, 40_000, &Fences("a", Rule::Lease));
    let broken_tls =
        cut().with("tls", 10_500, unusable()).with("still", 39_900, unusable()).with("postgres", 39_900, beats(9_500));
    check("an API that cannot be used, and a loop that stands still", &broken_tls, 40_000, &Fences("a", Rule::Lease));
}

#[test]
fn a_heartbeat_is_no_contact_and_one_from_before_the_port_refused_is_no_witness() {
    let scene = cut().with("postgres", 30_500, beats(30_000));
    assert_eq!(scene.view().leadership.patroni_contact, Some(ms(9_000)), "it beats without ZooKeeper, too");
    let refused = || patroni("a", PatroniAnswer::Refused("no process listens".to_string()));
    let killed = cut().with("beat", 30_000, beats(29_000)).with("killed", 30_500, refused());
    let killed = killed.with("still", 39_900, refused()).with("postgres", 39_900, beats(29_000));
    check("it was killed after its last beat", &killed, 40_000, &Fences("a", Rule::Lease));
    let hung = cut().with("hung", 12_000, super::silent()).with("beat", 30_000, beats(29_000)).with(
        "killed",
        34_500,
        refused(),
    );
    let hung = hung.with("still", 39_900, refused()).with("postgres", 39_900, beats(29_000));
    check("its API had hung for long before", &hung, 40_000, &Fences("a", Rule::Lease));
    let silent = cut().with("beat", 30_000, beats(29_000)).with("silence", 30_500, silent());
    let silent = silent.with("still", 39_900, super::silent()).with("postgres", 39_900, beats(29_000));
    check("it may be its API alone that hangs", &silent, 40_000, &Waits(54_001));
}

/// Patroni was started again without flock, and its API hangs (found by the simulation).
#[test]
fn a_heartbeat_since_the_lock_was_free_is_of_a_patroni_that_lives_without_it() {
    let lock = |state| Event::Local(LocalEvent::AliveLock(state));
    let refused = || patroni("a", PatroniAnswer::Refused("x".to_string()));
    let scene = |began| {
        let freed =
            frozen_and_cut().with("held", 10_001, lock(AliveLock::Alive)).with("lock", 10_200, lock(AliveLock::Gone));
        freed.without("silence").with("still silent", 33_900, silent()).with("postgres", 34_000, beats(began))
    };
    check("its last one", &scene(11_100), 34_000, &Fences("a", Rule::Lease));
    check("a later one", &scene(30_000), 34_000, &Waits(55_001));
    let ended = scene(30_000).with("still silent", 33_900, refused());
    check("it is silent, and nothing else is known", &ended, 34_000, &Waits(38_900));
}

#[test]
fn a_patroni_that_answers_is_away_when_its_reported_contact_is_too_old() {
    let answering = |at, seen, failsafe| {
        cut()
            .with(
                "answers",
                at,
                answers(|status| (status.dcs_last_seen, status.failsafe_active) = (Some(ms(seen)), failsafe)),
            )
            .with("postgres", at, takes_writes("a", 1))
    };
    check(
        "its loop is stuck: no contact since 9 s",
        &answering(34_100, 9000, false),
        34_200,
        &Fences("a", Rule::Lease),
    );
    check("not yet too old", &answering(33_900, 9000, false), 33_950, &Waits(34_001));
    check("failsafe mode is active", &answering(60_000, 9000, true), 60_100, &Nothing);
    let late = answering(34_100, 30_000, false).with(
        "late",
        34_050,
        Event::Member("a".into(), MemberEvent::Liveness { turns: false }),
    );
    let late = late.with("lost", 20_000, lost());
    check("its loop is late by its own word", &late, 39_500, &Nothing);
    let turned = |seen| {
        let late = Event::Member("a".into(), MemberEvent::Liveness { turns: false });
        answering(34_300, seen, false).with("late", 34_050, late)
    };
    check("it was late", &turned(33_000), 34_400, &Fences("a", Rule::Lease));
    check("it was late, and has turned since", &turned(34_000), 34_400, &Waits(59_001));
    // A small ttl: while Patroni answers, the limit of its loop counts, not its lease.
    let config = || {
        config_znode(|config| (config.ttl, config.retry_timeout) = (Duration::from_secs(20), Duration::from_secs(5)))
    };
    let small = |at, seen| answering(at, seen, false).with("config 2", 19_500, config());
    check("15 s of lease, 20 s for a round", &small(28_900, 9000), 28_950, &Waits(29_001));
}

/// A key that is read as the member's after the session of a frozen Patroni would have expired: 30 s, two ticks and a
/// second.
#[test]
fn a_verified_key_refutes_an_old_silence_until_it_is_not_ours() {
    let silent_since_ten = || {
        leading()
            .with("silence", 10_500, silent())
            .with("still silent", 59_900, silent())
            .with("postgres", 59_900, takes_writes("a", 1))
            .with("b follows", 59_500, follows("b"))
    };
    let away = |scene: &Scene| patroni_away(&scene.view(), &"a".into(), ms(60_000));
    let read = |at: u64| verified(key("a", 1), 1, at + 1);
    assert!(matches!(away(&silent_since_ten().with("read", 45_500, read(45_500))), PatroniAway::Yes(_)), "too early");
    let refuted = silent_since_ten().with("read", 45_501, read(45_501));
    assert_eq!(away(&refuted), PatroniAway::No);
    let slow = silent_since_ten().with("read", 45_501, verified(key("a", 1), 1, 46_502));
    assert!(matches!(away(&slow), PatroniAway::Yes(_)), "a read that took a second says nothing of when");
    let reconnected = refuted.clone().with("session 2", 20_000, session(1));
    assert!(matches!(away(&reconnected), PatroniAway::Yes(_)), "every session has its full timeout again");
    let absent = refuted.clone().with("absent", 58_000, verified(Reading::Absent, 1, 58_001));
    assert!(matches!(away(&absent), PatroniAway::Yes(_)), "the first read that shows otherwise ends it");
    let absent = absent.with("still absent", 59_800, verified(Reading::Absent, 1, 59_801));
    check("so a Patroni that froze later is fenced", &absent, 60_000, &Fences("a", Rule::Orphaned));
}

#[test]
fn a_thawed_patroni_does_not_prolong_its_lease_by_a_late_stamp() {
    let told = |at, seen| (at, answers(move |status| status.dcs_last_seen = Some(ms(seen))));
    let contact = |events: &[(u64, Event)]| {
        let mut scene = leading();
        for (name, (at, event)) in ["1", "2", "3"].into_iter().zip(events.iter().cloned()) {
            scene = scene.with(name, at, event);
        }
        scene.view().leadership.patroni_contact
    };
    // Frozen inside of get_cluster from 10.5 s to 25 s: when it thaws it reports a contact at 25 s, before its first
    // answer.
    let thawed = [(12_000, silent()), told(25_600, 25_000), told(26_600, 25_000)];
    assert_eq!(contact(&thawed), Some(ms(9_000)));
    let next_round = [(12_000, silent()), told(25_600, 25_000), told(27_500, 27_000)];
    assert_eq!(contact(&next_round), Some(ms(27_000)));
    let gap = [told(12_001, 11_000), told(14_002, 14_000)];
    assert_eq!(contact(&gap), Some(ms(9_000)), "each answer came more than 2 s after the one before");
}

#[test]
fn in_failsafe_mode_a_silent_patroni_has_to_be_proved_dead_or_stuck() {
    let failsafe = |postgres: Event, told: Option<bool>| {
        let config = config_znode(|config| config.failsafe_mode = true);
        let barrier = verified_with(key("a", 1), super::config(|config| config.failsafe_mode = true), 1, 19_001);
        let scene = cut().with("config", 2, config).with("barrier", 19_000, barrier);
        let scene = scene.with("silence", 12_000, silent()).with("still silent", 59_900, silent());
        let scene = scene.with("postgres", 59_900, postgres);
        match told {
            Some(active) => scene.with("told", 11_000, answers(|status| status.failsafe_active = active)),
            None => scene.without("patroni").without("patroni 1").without("patroni 2"),
        }
    };
    let blind = || takes_writes("a", 1);
    check("it said that it is not active", &failsafe(blind(), Some(false)), 60_000, &Fences("a", Rule::Lease));
    check("long ago, and so it stays", &failsafe(blind(), Some(false)), 62_000, &Fences("a", Rule::Lease));
    let active = failsafe(blind(), Some(true));
    check("it said that it is, a ttl ago", &active, 60_000, &Holds(Rule::Lease, "failsafe"));
    check("its loop has stopped", &failsafe(beats(9_000), Some(true)), 60_000, &Fences("a", Rule::Lease));
    check("its loop turns", &failsafe(beats(50_000), Some(true)), 60_000, &Waits(75_001));
}

/// An agent that was restarted while Patroni was frozen has had no answer from it.
#[test]
fn the_record_on_disk_of_this_term_survives_a_restart_of_the_agent() {
    let kept = |czxid| {
        Event::Local(LocalEvent::Remembered(TermMemory {
            czxid: crate::types::Zxid(czxid),
            answered: true,
            lock_was_held: false,
        }))
    };
    check("in this term", &never_answered().with("kept", 0, kept(1)), 40_000, &Fences("a", Rule::Lease));
    check("of another term", &never_answered().with("kept", 0, kept(2)), 40_000, &Nothing);
    let keeps = |scene: &Scene| scene.view().leadership.to_keep();
    assert_eq!(keeps(&leading()).map(|memory| (memory.czxid.0, memory.answered)), Some((1, true)));
    assert_eq!(keeps(&never_answered()), None, "there is nothing to remember");
}

fn starts(standby: Option<bool>) -> Event {
    probe("a", PostgresAnswer::Starting(Starting { why: "the database system is starting up".to_string(), standby }))
}

/// The old primary is in crash recovery, its Patroni is frozen, and another leads.
fn recovering() -> Scene {
    superseded()
        .with("silence", 12_000, silent())
        .with("still silent", 29_900, silent())
        .with("barrier", 29_000, verified(key("b", 2), 1, 29_001))
        .with("refused", 21_000, probe("a", PostgresAnswer::Refused("no process listens".to_string())))
        .with("starts", 29_900, starts(Some(false)))
}

#[test]
fn an_old_primary_that_recovers_from_a_crash_is_fenced_before_it_takes_writes() {
    let order = judge(&recovering().view(), ms(30_000)).orders.remove(0);
    assert!(order.rule == Rule::Superseded && order.starting, "{order:?}");
    let cases = [
        ("its agent has not looked whether it is a standby", recovering().with("starts", 29_900, starts(None))),
        (
            "no report on it exists: its agent was restarted since",
            recovering().without("patroni").without("postgres").without("refused").with("starts", 29_900, starts(None)),
        ),
        (
            "its Patroni lives, and stops it itself",
            recovering().with("still silent", 29_900, answers(|status| status.writable = None)),
        ),
    ];
    for (name, scene) in cases {
        let verdict = judge(&scene.view(), ms(30_000));
        assert!(
            verdict.orders.is_empty() && verdict.watch_start,
            "{name}: it is watched, so that its first write is fenced: {verdict:?}"
        );
    }
    let cases = [
        ("its data directory says standby", recovering().with("starts", 29_900, starts(Some(true)))),
        ("its Patroni started it as a replica", {
            let role = |status: &mut PatroniStatus| (status.role, status.writable) = (Role::Replica, None);
            recovering().with("still silent", 29_900, answers(role))
        }),
        ("it was a standby when it was last heard", recovering().with("followed", 20_500, follows("a"))),
        ("it is down", recovering().without("starts")),
        ("the key is ours", recovering().with("barrier", 29_000, verified(key("a", 1), 1, 29_001))),
    ];
    for (name, scene) in cases {
        let verdict = judge(&scene.view(), ms(30_000));
        assert!(verdict.orders.is_empty() && !verdict.watch_start, "{name}: {verdict:?}");
    }
}
