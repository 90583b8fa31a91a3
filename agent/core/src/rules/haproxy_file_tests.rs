use super::*;
use crate::event::{Event, HaproxyEvent, Observed, Report, Started, Znode, ZooKeeperEvent};
use crate::fixtures;
use crate::haproxy::file::RenderReport;
use crate::view::tests::{after, key, lost, ms, session, verified};
use alloc::vec::Vec;
use alloc::{format, vec};

fn record(host: &str) -> MemberRecord {
    MemberRecord { api: Some(format!("http://{host}:8008/patroni")), ..fixtures::member_record(host) }
}

fn member(name: &str, host: &str) -> Event {
    fixtures::member_read(name, Reading::Present(record(host)))
}

fn gone(name: &str) -> Event {
    Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Member(name.into(), Reading::Absent)))
}

fn places(members: &[(&str, &str)]) -> Backends {
    let place = |(name, host): &(&str, &str)| MemberAddress {
        member: (*name).into(),
        host: (*host).to_string(),
        port: 5432,
        api: format!("http://{host}:8008/patroni"),
    };
    Backends { places: members.iter().map(place).collect(), max_connections: 100 }
}

fn file(members: &[(&str, &str)], current: bool) -> Event {
    Event::Haproxy(HaproxyEvent::File(Reading::Present(Rendered {
        backends: places(members),
        left: BTreeSet::new(),
        current,
    })))
}

const BOTH: [(&str, &str); 2] = [("a", "pg-a"), ("b", "pg-b")];

/// The view at `now`: ZooKeeper names a and b, then come these events, with a barrier read every second.
fn view(events: &[(u64, Event)], now: u64) -> View {
    let start = [(1, session(1)), (2, member("a", "pg-a")), (2, member("b", "pg-b"))];
    let mut view = after(start);
    let mut events: Vec<(u64, Event)> = events.to_vec();
    for second in 0..=now / 1000 {
        let at = second * 1000 + 3;
        events.push((at, verified(key("a", 1), 1, at)));
        events.push((at, Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) })));
        events.push((at + 1, Event::Tick));
    }
    events.sort_by_key(|(at, _)| *at);
    for (at, event) in events.into_iter().filter(|(at, _)| *at <= now) {
        crate::step::take_in(&mut view, Observed { at: ms(at), event }, ms(at));
    }
    view
}

fn says(events: &[(u64, Event)], now: u64) -> Result<String, Option<Moment>> {
    judge(&view(events, now), ms(now)).map(|(_, reason)| reason)
}

#[test]
fn the_file_is_rewritten_only_for_other_members_or_another_template() {
    assert_eq!(says(&[], 9_000), Err(None), "the file has not been read");
    assert_eq!(says(&[(3, file(&BOTH, true))], 9_000), Err(None));
    let changed = "the template has changed, or HAProxy does not serve the file".to_string();
    assert_eq!(says(&[(3, file(&BOTH, false))], 9_000), Ok(changed.clone()));
    assert_eq!(
        says(&[(3, Event::Haproxy(HaproxyEvent::File(Reading::Absent)))], 9_000),
        Ok("there is no file".to_string())
    );
    let foreign = Event::Haproxy(HaproxyEvent::File(Reading::Unreadable("it was edited".to_string())));
    assert_eq!(says(&[(3, foreign)], 9_000), Err(None), "what is not ours is not overwritten");
    assert_eq!(
        says(&[(3, file(&[("a", "pg-a"), ("b", "elsewhere")], true))], 9_000).unwrap(),
        "a member has another address"
    );
}

#[test]
fn a_new_member_is_written_soon_and_a_leaving_one_removed_late() {
    let known = (3, file(&BOTH, true));
    let comes = [known.clone(), (4_000, member("c", "pg-c"))];
    assert_eq!(says(&comes, 6_003), Err(Some(ms(6_004))));
    assert_eq!(says(&comes, 6_004), Ok("c has joined the cluster".to_string()));
    // A lost session: the znode is absent for a moment.
    let blips = [known.clone(), (4_000, gone("b")), (9_000, member("b", "pg-b"))];
    for now in (4_000..70_000).step_by(500) {
        assert!(says(&blips, now).is_err(), "at {now}");
    }
    // The view keeps a member for a minute after its last sign of life. The file keeps it for another minute.
    let goes = [known, (4_000, gone("b"))];
    assert_eq!(says(&goes, 59_000), Err(None));
    assert!(matches!(says(&goes, 119_000), Err(Some(_))));
    assert_eq!(says(&goes, 121_000), Ok("b has left the cluster".to_string()));
}

/// A new member does not wait for one that leaves.
#[test]
fn a_new_member_is_written_soon_while_a_leaving_one_stays_for_its_time() {
    let known = || (3, file(&BOTH, true));
    let goes = || vec![known(), (4_000, gone("b")), (70_000, member("c", "pg-c"))];
    let drawn = |events: &[(u64, Event)], now| judge(&view(events, now), ms(now)).map(|(backends, _)| backends);
    assert!(matches!(drawn(&goes(), 71_000), Err(Some(_))));
    let all = [BOTH.as_slice(), &[("c", "pg-c")]].concat();
    assert_eq!(drawn(&goes(), 73_000), Ok(places(&all)));
    let written = [goes(), vec![(73_000, file(&all, true))]].concat();
    assert!(matches!(drawn(&written, 100_000), Err(Some(_))));
    assert_eq!(drawn(&written, 131_000), Ok(places(&[("a", "pg-a"), ("c", "pg-c")])));
}

/// A failure that was repaired raises no warning.
#[test]
fn a_file_that_is_as_it_should_be_has_not_failed() {
    let failed = Event::Report(Report::Rendered(RenderReport::Failed("template.j2, line 1".to_string())));
    let events = vec![(3, file(&BOTH, false)), (5_000, failed), (8_000, file(&BOTH, false))];
    assert!(view(&events, 9_000).haproxy_file.failed.is_some());
    let mended = [events, vec![(11_000, file(&BOTH, true))]].concat();
    assert_eq!(view(&mended, 12_000).haproxy_file.failed, None);
}

#[test]
fn a_tree_that_cannot_be_read_has_no_members_that_are_gone() {
    let mut events = vec![(3, file(&BOTH, true)), (4_000, gone("b")), (4_500, lost())];
    for at in (5_000..200_000).step_by(1_000) {
        events.push((at, Event::Tick));
    }
    let mut view = after([(1, session(1)), (2, member("a", "pg-a")), (2, member("b", "pg-b"))]);
    for (at, event) in events {
        crate::step::take_in(&mut view, Observed { at: ms(at), event }, ms(at));
    }
    assert_eq!(judge(&view, ms(200_000)), Err(None));
}

#[test]
fn two_reloads_are_ten_seconds_apart() {
    let reports = |reloaded| Event::Report(Report::Rendered(RenderReport::Done { reloaded }));
    let joins = |reloaded| {
        let file = file(&BOTH, true);
        vec![
            (3, file),
            (4_000, Event::Started(Started::Render)),
            (5_000, reports(reloaded)),
            (6_000, member("c", "pg-c")),
        ]
    };
    assert_eq!(says(&joins(true), 14_999), Err(Some(ms(15_000))));
    assert_eq!(says(&joins(true), 15_000), Ok("c has joined the cluster".to_string()));
    assert_eq!(says(&joins(false), 9_000), Ok("c has joined the cluster".to_string()), "the last change needed none");
}

#[test]
fn a_failed_rewrite_is_tried_again_after_a_pause() {
    let known = (3, file(&BOTH, false));
    let ordered = [known.clone(), (4_000, Event::Started(Started::Render))];
    assert_eq!(says(&ordered, 9_000), Err(Some(ms(64_000))));
    let failed = Event::Report(Report::Rendered(RenderReport::Failed("no space left on device".to_string())));
    let failed = [ordered[0].clone(), ordered[1].clone(), (5_000, failed)];
    assert_eq!(says(&failed, 9_000), Err(Some(ms(35_000))));
    assert!(says(&failed, 35_000).is_ok());
    let done = [
        ordered[0].clone(),
        ordered[1].clone(),
        (5_000, Event::Report(Report::Rendered(RenderReport::Done { reloaded: false }))),
        (5_000, file(&BOTH, true)),
    ];
    assert_eq!(says(&done, 9_000), Err(None));
    assert_eq!(view(&done, 9_000).haproxy_file.failed, None);
}
