use super::*;
use crate::event::{Event, Observed, Role, Started, State, Znode};
use crate::haproxy::file::RenderReport;
use crate::view::tests::{after, key, lost, ms, session, verified};
use alloc::vec::Vec;
use alloc::{format, vec};

fn record(host: &str) -> MemberRecord {
    MemberRecord {
        host: Some(host.to_string()),
        port: Some(5432),
        api: Some(format!("http://{host}:8008/patroni")),
        role: Role::Replica,
        state: State::Running,
        timeline: None,
        lsn: None,
        version: None,
    }
}

fn member(name: &str, host: &str) -> Event {
    Event::Znode(Znode::Member(name.into(), Reading::Present(record(host))))
}

fn gone(name: &str) -> Event {
    Event::Znode(Znode::Member(name.into(), Reading::Absent))
}

fn places(members: &[(&str, &str)]) -> Layout {
    let place = |(name, host): &(&str, &str)| Place {
        member: (*name).into(),
        host: (*host).to_string(),
        port: 5432,
        api: format!("http://{host}:8008/patroni"),
    };
    members.iter().map(place).collect()
}

fn file(members: &[(&str, &str)], current: bool) -> Event {
    Event::Layout(Reading::Present(Rendered { layout: places(members), current }))
}

const BOTH: [(&str, &str); 2] = [("a", "pg-a"), ("b", "pg-b")];

/// The view at `now`: ZooKeeper names a and b, these events, and then a second after the other with a barrier read each.
fn view(events: &[(u64, Event)], now: u64) -> View {
    let start = [(1, session(1)), (2, member("a", "pg-a")), (2, member("b", "pg-b"))];
    let mut view = after(start);
    let mut events: Vec<(u64, Event)> = events.to_vec();
    for second in 0..=now / 1000 {
        let at = second * 1000 + 3;
        events.push((at, verified(key("a", 1), 1, at)));
        events.push((at, Event::TreeRead { latency: Duration::from_millis(1) }));
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
fn the_file_is_written_anew_only_for_other_members_or_another_template() {
    assert_eq!(says(&[], 9_000), Err(None), "the file has not been read");
    assert_eq!(says(&[(3, file(&BOTH, true))], 9_000), Err(None));
    let changed = "the template has changed, or HAProxy does not serve what is written".to_string();
    assert_eq!(says(&[(3, file(&BOTH, false))], 9_000), Ok(changed.clone()));
    assert_eq!(says(&[(3, Event::Layout(Reading::Absent))], 9_000), Ok("there is no file".to_string()));
    let foreign = Event::Layout(Reading::Unreadable("it was edited".to_string()));
    assert_eq!(says(&[(3, foreign)], 9_000), Err(None), "what is not ours is not overwritten");
    assert_eq!(
        says(&[(3, file(&[("a", "pg-a"), ("b", "elsewhere")], true))], 9_000).unwrap(),
        "a member has another address"
    );
}

#[test]
fn who_comes_is_written_down_soon_and_who_goes_late() {
    let known = (3, file(&BOTH, true));
    let comes = [known.clone(), (4_000, member("c", "pg-c"))];
    assert_eq!(says(&comes, 6_003), Err(Some(ms(6_004))));
    assert_eq!(says(&comes, 6_004), Ok("c is a member now".to_string()));
    // A lost session: the znode is away for a moment.
    let blips = [known.clone(), (4_000, gone("b")), (9_000, member("b", "pg-b"))];
    for now in (4_000..70_000).step_by(500) {
        assert!(says(&blips, now).is_err(), "at {now}");
    }
    // The view itself keeps a member for a minute after its last sign of life; then it is left in for another one.
    let goes = [known, (4_000, gone("b"))];
    assert_eq!(says(&goes, 59_000), Err(None));
    assert!(matches!(says(&goes, 119_000), Err(Some(_))));
    assert_eq!(says(&goes, 121_000), Ok("b is no member any more".to_string()));
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
fn what_failed_is_tried_again_after_a_while() {
    let known = (3, file(&BOTH, false));
    let ordered = [known.clone(), (4_000, Event::Started(Started::Render))];
    assert_eq!(says(&ordered, 9_000), Err(Some(ms(64_000))));
    let failed = Event::Rendered(RenderReport::Failed("no space left on device".to_string()));
    let failed = [ordered[0].clone(), ordered[1].clone(), (5_000, failed)];
    assert_eq!(says(&failed, 9_000), Err(Some(ms(35_000))));
    assert!(says(&failed, 35_000).is_ok());
    let done = [
        ordered[0].clone(),
        ordered[1].clone(),
        (5_000, Event::Rendered(RenderReport::Done)),
        (5_000, file(&BOTH, true)),
    ];
    assert_eq!(says(&done, 9_000), Err(None));
    assert_eq!(view(&done, 9_000).drawing.failed, None);
}
