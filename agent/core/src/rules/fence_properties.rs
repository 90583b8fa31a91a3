//! Properties over arbitrary histories: no fence without its proof.

use super::peer::agent_of_b;
use super::*;
use crate::view::tests::failed_barrier;
use proptest::prelude::*;

fn holder() -> impl Strategy<Value = Reading<LeaderKey>> {
    prop_oneof![
        4 => (prop_oneof!["a", "b"], 1_i64..4).prop_map(|(holder, zxid)| key(&holder, zxid)),
        2 => Just(Reading::Absent),
        1 => Just(Reading::Unreadable("torn".to_string())),
    ]
}

fn configuration() -> impl Strategy<Value = Reading<ClusterConfig>> {
    prop_oneof![
        6 => Just(config(|_| {})),
        2 => Just(config(paused_config)),
        1 => Just(config(|c| c.ttl = Duration::from_secs(20))),
        1 => Just(Reading::Absent),
        1 => Just(Reading::Unreadable("torn".to_string())),
    ]
}

fn postgres() -> impl Strategy<Value = Event> {
    let member = || prop_oneof![3 => Just("a"), 1 => Just("b")];
    prop_oneof![
        4 => (member(), 1_u32..3).prop_map(|(member, timeline)| takes_writes(member, timeline)),
        1 => member().prop_map(follows),
        1 => member().prop_map(refuses),
        1 => member().prop_map(|member| probe(member, PostgresAnswer::Silent("x".to_string()))),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        1 => (1_i64..3).prop_map(session),
        1 => Just(lost()),
        8 => (holder(), configuration(), 1_i64..3).prop_map(|(key, config, id)| verified_with(key, config, id, 0)),
        1 => Just(failed_barrier()),
        2 => holder().prop_map(leader),
        2 => configuration().prop_map(|config| Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(config)))),
        6 => postgres(),
        2 => any::<bool>().prop_map(|active| answers(|status| {
            status.failsafe_active = active;
            status.dcs_last_seen = Some(ms(100));
        })),
        4 => Just(silent()),
        1 => Just(Event::Local(LocalEvent::AliveLock(AliveLock::Alive))),
        2 => Just(Event::Local(LocalEvent::AliveLock(AliveLock::Gone))),
        1 => Just(agent_of_b("1")),
        1 => prop_oneof![Just("a"), Just("b")].prop_map(|member| fence_record(member, Rule::Operator)),
        1 => Just(fenced("a")),
    ]
}

/// The test's own memory of a history, apart from the view.
#[derive(Default)]
struct Memory {
    session: Option<i64>,
    /// Of the newest barrier read of the present session.
    barrier: Option<(u64, Reading<LeaderKey>)>,
    config: Option<Reading<ClusterConfig>>,
}

impl Memory {
    fn note(&mut self, at: u64, event: &Event) {
        match event {
            Event::ZooKeeper(ZooKeeperEvent::SessionStarted(session)) => {
                self.session = Some(session.id.0);
                self.barrier = None;
            }
            Event::ZooKeeper(ZooKeeperEvent::SessionLost { .. }) => (self.session, self.barrier) = (None, None),
            Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Verified { leader, config, session, .. }))
                if Some(session.0) == self.session =>
            {
                self.barrier = Some((at, leader.clone()));
                self.config = Some(config.clone());
            }
            Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Config(config))) => self.config = Some(config.clone()),
            _ => {}
        }
    }

    fn object(&self, order: &Order, now: u64) -> Result<(), TestCaseError> {
        if order.rule == Rule::Operator {
            return Ok(());
        }
        let barrier = self.barrier.as_ref().filter(|(at, _)| now - at <= 3000).map(|(_, key)| key);
        let holder = barrier.and_then(|key| key.present()).map(|key| key.holder.clone());
        match order.rule {
            Rule::Superseded => prop_assert_eq!(holder, Some("b".into()), "another holds the key"),
            Rule::Orphaned => prop_assert_eq!(barrier, Some(&Reading::Absent), "no member holds the key"),
            Rule::Peer => prop_assert_eq!(holder, Some("a".into()), "we hold the key"),
            _ => prop_assert!(matches!(order.guard, Guard::NoContact(_))),
        }
        prop_assert_ne!(barrier.and_then(|key| key.present()).map(|key| &key.holder), Some(&order.member), "it leads");
        if order.rule == Rule::Lease {
            let paused = self.config.as_ref().and_then(|config| config.present()).is_none_or(|config| config.pause);
            prop_assert!(!paused, "the newest configuration has to say that the cluster is not paused");
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Arbitrary events in the order of time. The rules judge after each of them.
    #[test]
    fn nothing_is_fenced_without_its_proof(
        steps in proptest::collection::vec((0_u64..1500, event()), 1..60),
    ) {
        let start = leading().without("patroni").without("postgres").without("barrier");
        let mut view = start.view();
        let mut memory = Memory { session: Some(1), config: Some(config(|_| {})), ..Memory::default() };
        let mut now = 1000;
        for (pause, event) in steps {
            now += pause;
            memory.note(now, &event);
            crate::step::take_in(&mut view, Observed { at: ms(now), event }, ms(now));
            for later in [0, 1000, 4000] {
                for order in judge(&view, ms(now + later)).orders {
                    memory.object(&order, now + later)?;
                    let writable = presumed_writable(&view, &order.member, ms(now + later));
                    prop_assert!(order.rule == Rule::Operator || writable);
                }
            }
        }
    }

    /// The configuration behind the barrier counts, against any number of plain reads.
    #[test]
    fn a_pause_that_was_verified_holds_every_rule_but_the_operators(
        steps in proptest::collection::vec((0_u64..1500, event()), 1..40),
        key in holder(),
    ) {
        let mut view = leading().view();
        let mut now = 11_000;
        for (pause, event) in steps {
            now += pause;
            crate::step::take_in(&mut view, Observed { at: ms(now), event }, ms(now));
        }
        let Some(id) = view.session().map(|session| session.id.0) else { return Ok(()) };
        let paused = verified_with(key, config(paused_config), id, now);
        crate::step::take_in(&mut view, Observed { at: ms(now), event: paused }, ms(now));
        let orders = judge(&view, ms(now)).orders;
        prop_assert!(orders.iter().all(|order| order.rule == Rule::Operator), "{:?}", orders);
    }
}
