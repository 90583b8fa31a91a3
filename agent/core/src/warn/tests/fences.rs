//! About fences: their records, those that failed or are held back, the session that they need, the lease rule.

use super::*;

/// The fence record of b.
fn fence_record(confirmed: Option<i64>) -> Event {
    let record = FenceRecord {
        reason: "a holds the leader key".to_string(),
        by: "b".to_string(),
        ordered: UnixMillis(5),
        confirmed: confirmed.map(UnixMillis),
        written: None,
        ..fixtures::fence_record("b", Rule::Superseded)
    };
    Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member: "b".into(), record: Reading::Present(record) })
}

fn no_fence_record() -> Event {
    Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member: "b".into(), record: Reading::Absent })
}

/// The outcome of a fence of a.
fn fence(outcome: FenceOutcome) -> Event {
    Event::Report(Report::Fence(FenceReport { member: "a".into(), rule: Rule::Orphaned, outcome }))
}

pub(super) fn about_fence_records() -> Vec<Scenario> {
    let garbled = Reading::Unreadable("it is not a fence record".to_string());
    vec![
        Scenario::new("fenced", Some("b"), &["b is being fenced, NOT confirmed yet (superseded)", "a holds"])
            .both(probe("b", writable()))
            .wrong(fence_record(None))
            .right(no_fence_record()),
        Scenario::new("fenced", Some("b"), &["b is fenced and runs in recovery (superseded): a holds"])
            .wrong(fence_record(None))
            .right(no_fence_record()),
        Scenario::new("fenced", Some("b"), &["b is fenced (superseded): a holds the leader key"])
            .both(fence_record(None))
            .wrong(fence_record(Some(7)))
            .right(no_fence_record()),
        Scenario::new("znode_unreadable", None, &["znode fences/b", "not a fence record"])
            .wrong(Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member: "b".into(), record: garbled }))
            .right(fence_record(Some(7))),
    ]
}

pub(super) fn about_failed_fences() -> Vec<Scenario> {
    let confirmed = FenceOutcome::Confirmed { by: "fast shutdown", took: Duration::from_millis(20) };
    let failed = || fence(FenceOutcome::Failed("no route to host".to_string()));
    // The rule no longer asks for a fence that failed long ago and was not tried again.
    let mut tried = Scenario::new("fence_failed", Some("a"), &[]).at(17_000);
    tried.wrong = vec![(16_000, failed())];
    tried.right = vec![(1400, failed()), (16_800, probe("a", writable()))];
    vec![
        Scenario::new("fence_failed", Some("a"), &["a may still take writes", "orphaned", "no route", "stop its"])
            .wrong(failed())
            .right(fence(confirmed)),
        tried,
        // The next attempt is under way: the failure of the last one stands until this one ends.
        Scenario::new("fence_failed", Some("a"), &["no route", "stop its"])
            .wrong(failed())
            .right(fence(FenceOutcome::Waiting))
            .both(Event::Started(Started::Fence("a".into()))),
        // The fence failed, and the server has been seen in recovery since.
        Scenario::new("fence_failed", Some("a"), &[]).wrong(failed()).right(failed()).right(probe("a", standby(1))),
    ]
}

pub(super) fn about_held_fences() -> Vec<Scenario> {
    let mut paused = cluster_config();
    paused.pause = true;
    let superseded = |config| verified_with(key("b", 2), Reading::Present(config), 1, 1401);
    vec![
        Scenario::new("fence_held", Some("a"), &["a would be fenced (superseded), but", "maintenance mode"])
            .wrong(superseded(paused))
            .right(barrier(key("a", 2))),
        Scenario::new("fence_held", Some("a"), &["its system identifier is not known"])
            .wrong(superseded(cluster_config()))
            .right(superseded(cluster_config()))
            .right(probe("a", PostgresAnswer::Writable(Server { system_id: Some(SystemId(7)), ..server(1, 100) }))),
    ]
}

pub(super) fn about_the_fence_session() -> Vec<Scenario> {
    let lost =
        || Event::Local(LocalEvent::FenceSession(FenceSession::Lost("password authentication failed".to_string())));
    // Not while the server starts, and not while it is down.
    let mut cold = Scenario::new("fence_session_lost", Some("a"), &["fence a with", "slower", "password"]).at(4500);
    cold.wrong = vec![(1400, lost()), (4000, probe("a", writable()))];
    cold.right = vec![(4400, lost()), (4000, probe("a", writable()))];
    let mut down = Scenario::new("fence_session_lost", Some("a"), &[]).at(4500);
    down.wrong = cold.wrong.clone();
    down.right = vec![(1400, lost()), (4000, probe("a", PostgresAnswer::Refused("it is shut down".to_string())))];
    // The server was started again: only attempts since then count, from the first one.
    let refused = || probe("a", PostgresAnswer::Gone("no process listens on its socket".to_string()));
    let gone = || Event::Local(LocalEvent::FenceSession(FenceSession::Lost("no process listens".to_string())));
    let mut again = Scenario::new("fence_session_lost", Some("a"), &["slower: password"]).at(9200);
    let back = |at| vec![(1500, refused()), (1600, gone()), (2000, probe("a", writable())), (at, lost())];
    (again.wrong, again.right) = (back(5000), back(6500));
    let answers = |scenario: &mut Vec<Told>| scenario.push((9000, probe("a", writable())));
    answers(&mut again.wrong);
    answers(&mut again.right);
    let mut old = Scenario::new("fence_session_lost", Some("a"), &[]).at(9200);
    old.wrong = again.wrong.clone();
    old.right = vec![(1500, refused()), (1600, gone()), (2000, probe("a", writable())), (9000, probe("a", writable()))];
    vec![
        cold,
        down,
        again,
        old,
        Scenario::new("fence_session_lost", Some("a"), &[])
            .both(lost())
            .right(Event::Local(LocalEvent::FenceSession(FenceSession::Ready)))
            .later(4000, probe("a", writable()))
            .at(4500),
    ]
}

pub(super) fn about_the_gate_and_the_lease() -> Vec<Scenario> {
    let checked = |outcome: Result<(), String>| Event::Member("b".into(), MemberEvent::GateChecked(outcome));
    let beats = |heartbeat| probe("a", writable_with(heartbeat));
    let mut blind = Scenario::new("heartbeat_unknown", Some("a"), &["Patroni heartbeat", "lease"]).at(40_500);
    blind.wrong = vec![(40_000, beats(None))];
    blind.right = vec![(40_000, beats(Some(ms(39_000))))];
    vec![
        blind,
        Scenario::new("gate_cannot_ask", Some("b"), &["pg_hba.conf entry", "warden gate --check"])
            .wrong(checked(Err("no pg_hba.conf entry for host (28000)".to_string())))
            .right(checked(Ok(()))),
        Scenario::new("lease_uncovered", Some("a"), &["Raise ttl", "loop_wait", "5.0 s"])
            .wrong(config(|config| {
                config.ttl = Duration::from_secs(20);
                config.retry_timeout = Duration::from_secs(5);
            }))
            .right(config(|_| {})),
    ]
}
