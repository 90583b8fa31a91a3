//! The five rules to fence a server, and the obstacles that prevent a fence.
//!
//! A fence stops a server that takes writes, so each rule needs positive evidence that is recent ([`crate::evidence`]).
//! An unknown fact is an obstacle: unknown never destroys. The agent reports the fences that an obstacle prevents
//! ([`HeldFence`]).

use crate::event::{ClusterConfig, FenceOutcome, LeaderKey, PostgresAnswer, Rule, Server};
use crate::evidence::{
    Away, Ground, LEASE_MARGIN, Standing, contact, heartbeat_can_be_had, heartbeat_is_stale,
    heartbeat_is_stale_in_failsafe, is_unusable, lock_proves_death, may_start_as_primary, out_of_contact_at,
    patroni_away, patroni_away_for_lease, presumed_writable, refuses, standing, starts_as_primary, verified,
};
use crate::fact::Reading;
use crate::limits::{AGENT_LIMIT, BARRIER_LIMIT, PROBE_LIMIT};
use crate::rules::guard::{self, KeyCondition, KeyIs, not_paused};
use crate::types::{MemberName, Moment, Timeline, seconds};
use crate::view::View;
use alloc::string::{String, ToString};
use alloc::{format, vec, vec::Vec};
use core::time::Duration;

/// The time that the leader key has to be absent before rule `orphaned` acts, unless the alive lock proves the end. A
/// Patroni with a stuck API takes its key again within this time.
pub const KEY_ABSENT_MIN: Duration = Duration::from_secs(1);

/// The rounding of Patroni's last contact to whole seconds, and the duration of a round.
const CONTACT_STAMP_LAG_MAX: Duration = Duration::from_secs(2);

/// The time that a member's own agent has to fence it, before the new leader's agent does.
pub const PEER_FENCE_DELAY: Duration = Duration::from_secs(3);

/// The same for a server that was fenced and takes writes again: a living agent fences it at once.
pub const PEER_FENCE_DELAY_AGAIN: Duration = Duration::from_millis(500);

const _: () = assert!(PEER_FENCE_DELAY_AGAIN.as_millis() < PEER_FENCE_DELAY.as_millis());

/// An order to fence a server now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The server's member.
    pub member: MemberName,
    /// The rule.
    pub rule: Rule,
    /// The reason.
    pub reason: String,
    /// The condition to check right before the act.
    pub guard: Guard,
    /// The server is starting, accepts no session yet, and was the primary, as its own agent read in its data
    /// directory.
    pub starting: bool,
    /// The facts, name and value, for the record.
    pub facts: Vec<(String, String)>,
}

/// The condition to check right before a fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// A condition on a new barrier read. For `superseded` and `orphaned`.
    Key(KeyCondition),
    /// The same, and the server reports an older timeline than this one. Another server, even the rightful primary, may
    /// have taken over the address. For `peer`.
    KeyAndTimeline(KeyCondition, Timeline),
    /// No read is possible: ZooKeeper is away, and Patroni shows no new activity. For `lease`.
    NoContact(guard::LeaseCondition),
    /// The operator asked for it. No condition applies.
    Asked {
        /// The operator's name, which a repeated record keeps.
        by: String,
    },
}

/// A fence that an obstacle prevents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldFence {
    /// The server's member.
    pub member: MemberName,
    /// The rule that asks for the fence.
    pub rule: Rule,
    /// The obstacles.
    pub obstacles: Vec<String>,
}

/// The verdict of the fence rules.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The fences to carry out now.
    pub orders: Vec<Order>,
    /// The fences that an obstacle prevents.
    pub held: Vec<HeldFence>,
    /// The local server starts, and a rule applies to it. The agent asks it repeatedly, to notice its first writable
    /// moment.
    pub watch_start: bool,
    /// When the verdict may change without a new event.
    pub look_again: Option<Moment>,
}

/// Judges the local server and, while the local member leads, the other members' servers.
pub fn judge(view: &View, now: Moment) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(own) = &view.identity.member else { return verdict };
    operator(view, own, now, &mut verdict);
    if !verdict.names(own) && presumed_writable(view, own, now) {
        local(view, own, now, &mut verdict);
    } else if may_start_as_primary(view, own, now) {
        let ours = verified(view, now).and_then(|known| known.leader.present()).is_some_and(|key| key.holder == *own);
        verdict.watch_start |= !ours;
    }
    peers(view, own, now, &mut verdict);
    verdict
}

/// The local server, by `superseded`, `orphaned` or `lease`.
fn local(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let Some(contact) = contact(view, now) else {
        return match out_of_contact_at(view) {
            Some(at) if now < at => verdict.judge_again_at(at),
            _ => lease(view, own, now, verdict),
        };
    };
    if !matches!(patroni_away(view, own, now), Away::No) {
        // If ZooKeeper goes away now, the lease rule applies next.
        verdict.judge_again_at(contact.started.plus(BARRIER_LIMIT).plus(Duration::from_millis(1)));
    }
    // An ordinary read, which may be stale, contradicts it. The next barrier read is under way.
    let Some(known) = verified(view, now) else { return };
    let condition = KeyCondition { session: known.session, key: KeyIs::NotOf(own.clone()), sync: None };
    let mut order = Order::new(own, Rule::Superseded, Guard::Key(condition));
    match &known.leader {
        Reading::Present(key) if key.holder == *own => {}
        Reading::Present(key) => {
            let mut obstacles = obstacles(view, own, &known.config, now);
            obstacles.extend(other_obstacles(view, own, key));
            order.reason =
                format!("{} holds the leader key (czxid {:#x}), and {own} takes writes", key.holder, key.czxid.0);
            order.facts = vec![fact("leader", &key.holder), fact("czxid", format!("{:#x}", key.czxid.0))];
            verdict.conclude(view, order, obstacles, now);
        }
        Reading::Absent => {
            order.rule = Rule::Orphaned;
            orphaned(view, order, &known.config, now, verdict);
        }
        Reading::Unreadable(why) => {
            let why = format!("the leader key cannot be parsed: {why}");
            verdict.held.push(HeldFence { member: own.clone(), rule: Rule::Superseded, obstacles: vec![why] });
        }
    }
}

/// Rule `orphaned`: no member holds the key, and the local Patroni is away. The other members race for the key.
fn orphaned(view: &View, mut order: Order, config: &Reading<ClusterConfig>, now: Moment, verdict: &mut Verdict) {
    let own = &order.member.clone();
    let why = match patroni_away(view, own, now) {
        Away::No => return,
        Away::Soon(at) => return verdict.judge_again_at(at),
        Away::Yes(why) => why,
    };
    let mut obstacles = obstacles(view, own, config, now);
    if !lock_proves_death(view, own, now) {
        // The process may live with a stuck API. It then takes its key again at once.
        let absent = view.leadership.absent_since.unwrap_or(now).plus(KEY_ABSENT_MIN);
        if now < absent {
            return verdict.judge_again_at(absent);
        }
        let takes_over = |other: &&MemberName| matches!(standing(view, other, now), Standing::Standby(_));
        if !view.members.keys().filter(|other| *other != own).any(|other| takes_over(&other)) {
            obstacles.push("no other member is known to be able to take over".to_string());
        }
    }
    order.reason = format!("no member holds the leader key, and {why}: the other members race for it");
    order.facts = vec![fact("patroni", why)];
    verdict.conclude(view, order, obstacles, now);
}

/// Rule `lease`: ZooKeeper and the local Patroni are away. The server may take writes only until another member can
/// hold the key.
///
/// The lease ends with Patroni's session, which lives for its timeout after Patroni's last contact. The key was still
/// there when the agent last read it as the member's. The fence comes [`LEASE_MARGIN`] before the end.
fn lease(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let hold = |obstacle: &str, verdict: &mut Verdict| {
        let obstacles = vec![obstacle.to_string()];
        verdict.held.push(HeldFence { member: own.clone(), rule: Rule::Lease, obstacles });
    };
    let reading = view.cluster.config.as_ref().map(|fact| &fact.value);
    let Some((reading, config)) = reading.and_then(|reading| Some((reading, reading.present()?))) else {
        if matches!(patroni_away(view, own, now), Away::Yes(_)) {
            hold("Patroni's configuration was never read, or cannot be parsed", verdict);
        }
        return;
    };
    let (away, ground) = patroni_away_for_lease(view, own, config, now);
    let memory = &view.leadership;
    let lives =
        memory.patroni_contact.zip(memory.patroni_timeout(config.ttl)).map(|(contact, timeout)| contact.plus(timeout));
    let deadline = memory.read_as_own_at.max(lives).map(|end| end.minus(LEASE_MARGIN));
    let why = match away {
        Away::No if unseen(view, own, now) && deadline.is_some_and(|deadline| now >= deadline) => {
            return hold(
                "its Patroni gives no usable answer and its heartbeat is not visible: it may lead correctly",
                verdict,
            );
        }
        Away::No => return,
        Away::Soon(at) => return verdict.judge_again_at(at),
        Away::Yes(why) => why,
    };
    let Some(deadline) = deadline else {
        return hold("the end of its lease is not known", verdict);
    };
    if now < deadline {
        return verdict.judge_again_at(deadline);
    }
    let mut obstacles = obstacles(view, own, reading, now);
    obstacles.extend(failsafe_may_be_active(view, own, config, ground, now));
    // The last reported contact is no new activity right before the act, even if it did not count here.
    let contact = memory.patroni_contact.max(memory.reported_contact);
    let guard = Guard::NoContact(guard::LeaseCondition {
        contact,
        beat: memory.heartbeat.map(|heartbeat| heartbeat.began),
        ground,
    });
    let mut order = Order::new(own, Rule::Lease, guard);
    let late = seconds(now.since(deadline));
    order.reason =
        format!("ZooKeeper cannot be reached and {why}: its lease is over (less {LEASE_MARGIN:?}) for {late}");
    order.facts = vec![fact("patroni", why)];
    verdict.conclude(view, order, obstacles, now);
}

/// Whether no source shows if its Patroni lives: its answers are unusable, and its heartbeat is not visible.
fn unseen(view: &View, own: &MemberName, now: Moment) -> bool {
    view.members.get(own).is_some_and(|member| is_unusable(member, now)) && !heartbeat_can_be_had(view, now)
}

/// The obstacle that failsafe mode may be active: a leader in it continues without ZooKeeper, and only its own Patroni
/// reports it.
///
/// A Patroni that does not answer has to be dead, or its loop stuck. The limit is longer if it may have entered
/// failsafe mode since its last answer. Without a visible heartbeat, its last answer has to be "not active". Patroni
/// has to have been in contact with ZooKeeper then, at most ttl before this agent last reached ZooKeeper. More time
/// makes that no more certain.
fn failsafe_may_be_active(
    view: &View,
    own: &MemberName,
    config: &ClusterConfig,
    ground: Ground,
    now: Moment,
) -> Option<String> {
    let dead = lock_proves_death(view, own, now) || view.members.get(own).is_some_and(|member| refuses(member, now));
    if !config.failsafe_mode || ground == Ground::ReportedContact || dead {
        return None;
    }
    let memory = &view.leadership;
    let last = memory.failsafe.as_ref().filter(|fact| !fact.value);
    let denied = last.zip(memory.read_at).is_some_and(|(last, read)| {
        let cycle = config.loop_wait.saturating_add(CONTACT_STAMP_LAG_MAX);
        let in_contact = memory.reported_contact.is_none_or(|seen| last.at.since(seen) <= cycle);
        in_contact && read.since(last.at) <= config.ttl
    });
    let stuck = match (heartbeat_can_be_had(view, now), denied) {
        (true, true) => heartbeat_is_stale(view, config, now),
        (true, false) => heartbeat_is_stale_in_failsafe(view, config, now),
        (false, denied) => denied,
    };
    (!stuck).then(|| "failsafe mode may be active: its Patroni has not denied it".to_string())
}

/// Rule `peer`: while the local member leads, old primaries still take writes, and no agent beside them stops them.
fn peers(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let (Some(known), Some(term)) = (verified(view, now), &view.leadership.term) else { return };
    let Some(key) = known.leader.present().filter(|key| key.holder == *own && key.czxid == term.czxid) else { return };
    let Some(ours) = server(view, own, now) else { return };
    for (name, member) in view.members.iter().filter(|(name, _)| *name != own) {
        let Some(theirs) = server(view, name, now) else { continue };
        let (Some(our_timeline), Some(their_timeline)) = (ours.timeline, theirs.timeline) else { continue };
        if their_timeline >= our_timeline || theirs.system_id.is_none() || theirs.system_id != ours.system_id {
            continue;
        }
        if !lacks_an_agent(view, name, now) {
            // The server's own agent is closer and acts first.
            let record = view.leadership.records.get(name).and_then(|record| record.value.present());
            let fenced = record.is_some_and(|record| record.confirmed.is_some());
            let late = if fenced { PEER_FENCE_DELAY_AGAIN } else { PEER_FENCE_DELAY };
            let since = term.since.max(member.writable_since.unwrap_or(now)).plus(late);
            if now < since {
                verdict.judge_again_at(since);
                continue;
            }
        }
        let obstacles = not_paused(&known.config).err().into_iter().chain(same_place(view, own, name)).collect();
        let holds = KeyIs::TheOneOf { member: own.clone(), czxid: key.czxid, owner: key.owner };
        let condition = KeyCondition { session: known.session, key: holds, sync: None };
        let mut order = Order::new(name, Rule::Peer, Guard::KeyAndTimeline(condition, our_timeline));
        order.reason = format!(
            "{name} takes writes on timeline {} while {own} leads on timeline {}",
            their_timeline.0, our_timeline.0
        );
        order.facts = vec![fact("timeline", their_timeline.0), fact("leader_timeline", our_timeline.0)];
        verdict.conclude(view, order, obstacles, now);
    }
}

/// Rule `operator`: the operator's order stands until the operator takes it back.
fn operator(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let leads = verified(view, now).and_then(|known| known.leader.present()).is_some_and(|key| key.holder == *own);
    for (member, fact) in &view.leadership.records {
        let Some(record) = fact.value.present().filter(|record| record.rule == Rule::Operator) else { continue };
        let ours = member == own;
        // Patroni starts it again while it holds the key. The first writable moment is the fence's.
        let starts = || {
            let answer = view.members.get(member).and_then(|known| known.postgres.as_ref());
            answer.is_some_and(|fact| matches!(fact.fresh(now, PROBE_LIMIT), Some(PostgresAnswer::Starting(_))))
        };
        verdict.watch_start |= ours && starts();
        if (ours && presumed_writable(view, own, now))
            || (!ours && leads && lacks_an_agent(view, member, now) && server(view, member, now).is_some())
        {
            // The reason stays as given: the record is written again with each fence and must not grow.
            let mut order = Order::new(member, Rule::Operator, Guard::Asked { by: record.by.clone() });
            order.reason = record.reason.clone();
            verdict.conclude(view, order, Vec::new(), now);
        }
    }
}

/// A member's server, if this agent has just seen it take writes, and after its last fence.
fn server<'a>(view: &'a View, member: &MemberName, now: Moment) -> Option<&'a Server> {
    let answer = view.members.get(member)?.postgres.as_ref()?;
    let ordered = view.leadership.ordered.get(member).and_then(|ordered| ordered.outcome.as_ref());
    if matches!(ordered, Some((FenceOutcome::Confirmed { .. }, _, at)) if answer.at <= *at) {
        return None;
    }
    match answer.fresh(now, PROBE_LIMIT)? {
        PostgresAnswer::Writable(server) => Some(server),
        _ => None,
    }
}

fn lacks_an_agent(view: &View, member: &MemberName, now: Moment) -> bool {
    let living = |record: &&crate::event::AgentRecord| record.member.as_ref() == Some(member);
    let fresh = view.agents.values().filter_map(|fact| fact.fresh(now, AGENT_LIMIT)?.present());
    !fresh.into_iter().any(|record| living(&record))
}

/// The obstacles to a fence of the local server by a rule that depends on its Patroni.
fn obstacles(view: &View, own: &MemberName, config: &Reading<ClusterConfig>, now: Moment) -> Vec<String> {
    let mut obstacles: Vec<String> = not_paused(config).err().into_iter().collect();
    if failsafe_active(view, config, now) {
        obstacles.push("failsafe mode was active when its Patroni last answered".to_string());
    }
    let cluster = view.cluster.initialize.as_ref().map(|fact| &fact.value);
    let server = view.members.get(own).and_then(|member| member.system_id);
    match (cluster, server) {
        (Some(Reading::Present(cluster)), Some(server)) if *cluster == server => {}
        (Some(Reading::Present(cluster)), Some(server)) => obstacles
            .push(format!("its system identifier is {server} and the cluster's {cluster}: it is another database")),
        (_, None) => obstacles.push("its system identifier is not known".to_string()),
        _ => obstacles.push("the cluster's system identifier cannot be read (initialize)".to_string()),
    }
    if let Some(name) = view.leadership.patroni_name.as_ref().filter(|name| *name != own) {
        obstacles.push(format!("its Patroni's name is {name}: correct the name in Warden's configuration"));
    }
    obstacles
}

/// Whether failsafe mode was active in Patroni's last answer, at most ttl ago. Patroni ends it after ttl.
fn failsafe_active(view: &View, config: &Reading<ClusterConfig>, now: Moment) -> bool {
    let lingers = config.present().map_or(Duration::MAX, |config| config.ttl);
    view.leadership.failsafe.as_ref().is_some_and(|fact| fact.value && fact.age(now) <= lingers)
}

/// The obstacles if the holder is not a known, different server. The local member may have been renamed.
fn other_obstacles(view: &View, own: &MemberName, key: &LeaderKey) -> Vec<String> {
    if view.members.get(&key.holder).and_then(|member| member.last_record.as_ref()).is_none() {
        return vec![format!("{} holds the key but is not among the members", key.holder)];
    }
    same_place(view, own, &key.holder).into_iter().collect()
}

fn same_place(view: &View, own: &MemberName, other: &MemberName) -> Option<String> {
    view.at_one_address(own, other).then(|| format!("{own} and {other} have the same address: a member was renamed"))
}

fn fact(name: &str, value: impl ToString) -> (String, String) {
    (name.to_string(), value.to_string())
}

impl Verdict {
    /// One order for each server suffices.
    fn names(&self, member: &MemberName) -> bool {
        self.orders.iter().any(|order| order.member == *member)
    }

    fn judge_again_at(&mut self, at: Moment) {
        self.look_again = Some(self.look_again.map_or(at, |known| known.min(at)));
    }

    /// Adds the verdict of a rule. Every rule ends here.
    fn conclude(&mut self, view: &View, mut order: Order, obstacles: Vec<String>, now: Moment) {
        if self.names(&order.member) {
            return;
        }
        let known = view.members.get(&order.member);
        if let Some(starting) = known.and_then(|known| starts_as_primary(view, &order.member, known, now)) {
            self.watch_start = true;
            // Only its own agent has read its data directory. A living Patroni that lost the key stops its server
            // itself.
            let away = matches!(patroni_away(view, &order.member, now), Away::Yes(_)) || order.rule == Rule::Lease;
            if starting.standby != Some(false) || !away {
                return;
            }
            order.starting = true;
        }
        if obstacles.is_empty() {
            if let Some(server) = known.and_then(|known| known.postgres.as_ref()) {
                order.facts.push(fact("postgres", server.value.as_str()));
            }
            self.orders.push(order);
        } else {
            self.held.push(HeldFence { member: order.member, rule: order.rule, obstacles });
        }
    }
}

impl Order {
    fn new(member: &MemberName, rule: Rule, guard: Guard) -> Self {
        Self { member: member.clone(), rule, reason: String::new(), guard, starting: false, facts: Vec::new() }
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
pub(crate) mod tests;
