//! One event processed: the view applies it, and two rules update their memory.
//!
//! The view draws no conclusions ([`View::apply`]). Two rules record since when a conclusion has held: since when
//! writes have had no server, and since when HAProxy's file has been outdated. That happens here, after every change of
//! the view.

use crate::event::{Event, MemberEvent, Observed, PatroniAnswer, PatroniStatus};
use crate::rules::{haproxy_file, route};
use crate::types::Moment;
use crate::view::View;

/// Whether an event repeats the last answer of a member that is neither the local one nor the leader. With many members
/// nearly every event is of this kind.
fn says_nothing_new(view: &View, event: &Event) -> bool {
    let known = |member| view.members.get(member);
    let (member, again) = match event {
        Event::Member(member, MemberEvent::Patroni(answer)) => {
            let last = known(member).and_then(|known| known.patroni.as_ref());
            (member, last.is_some_and(|fact| is_the_same(&fact.value, answer)))
        }
        Event::Member(member, MemberEvent::Postgres { answer, .. }) => {
            let last = known(member).and_then(|known| known.postgres.as_ref());
            (member, last.is_some_and(|fact| fact.value == *answer))
        }
        _ => return false,
    };
    let leads = || view.leader.as_ref().and_then(|fact| fact.value.present()).is_some_and(|key| key.holder == *member);
    again && view.identity.member.as_ref() != Some(member) && !leads()
}

/// Whether a Patroni's answers are equal, except for its last contact with ZooKeeper, which always differs.
fn is_the_same(then: &PatroniAnswer, now: &PatroniAnswer) -> bool {
    match (then, now) {
        (PatroniAnswer::Answering(then), PatroniAnswer::Answering(now)) => {
            PatroniStatus { dcs_last_seen: now.dcs_last_seen, ..then.clone() } == *now
        }
        (then, now) => then == now,
    }
}

/// Processes an event. `now` is the present moment, `observed.at` the moment of the question.
///
/// Returns whether the event says anything new. If not, the decision about it can wait, together with others, and so
/// can the rules' memory: it only records since when a conclusion has held, and a repeated answer changes none.
pub fn take_in(view: &mut View, observed: Observed, now: Moment) -> bool {
    let news = !says_nothing_new(view, &observed.event);
    // The agent's own actions are no new fact about the cluster.
    let ours = matches!(observed.event, Event::Started(_));
    let tick = matches!(observed.event, Event::Tick);
    view.apply(observed, now);
    if tick {
        haproxy_file::remember(view, now);
    }
    if news {
        route::remember(view, now, ours);
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assess::tests::{patroni, probe, status};
    use crate::event::{PostgresAnswer, Role, Server};
    use crate::types::Lsn;
    use crate::view::tests::{after, key, leader, ms};
    use alloc::string::ToString;

    #[test]
    fn what_a_member_says_again_can_wait_but_for_our_own_and_the_one_that_leads() {
        let refused = |member: &str| probe(member, PostgresAnswer::Refused("no".to_string()));
        let at = |lsn| probe("c", PostgresAnswer::InRecovery(Server { lsn: Some(Lsn(lsn)), ..Server::default() }));
        let answers = |seen: u64| {
            let mut status = status(Role::Replica, Some(false));
            status.dcs_last_seen = Some(ms(seen));
            patroni("c", PatroniAnswer::Answering(status))
        };
        let silent = patroni("c", PatroniAnswer::Silent("x".to_string()));
        // The local member is a, and b leads.
        let waits =
            |before: Event, event: Event| says_nothing_new(&after([(10, leader(key("b", 1))), (20, before)]), &event);
        assert!(waits(refused("c"), refused("c")));
        assert!(waits(answers(1), answers(2)));
        for (before, event) in [
            (refused("a"), refused("a")),
            (refused("b"), refused("b")),
            (refused("d"), refused("c")),
            (refused("c"), at(5)),
            (at(5), at(6)),
            (answers(1), silent),
            (Event::Tick, Event::Tick),
        ] {
            assert!(!waits(before.clone(), event.clone()), "{before:?}, {event:?}");
        }
    }
}
