//! Who has to be fenced, by which rule, and why not where it looks so and is not.
//!
//! A fence stops a server that takes writes, so each rule needs positive evidence that is recent enough
//! ([`crate::evidence`]). What cannot be known is an obstacle; an obstacle holds, and what is held back is said
//! ([`Held`]). Unknown never destroys.

use crate::event::{ClusterConfig, FenceOutcome, LeaderKey, PostgresAnswer, Rule, Server};
use crate::evidence::{
    Away, Ground, MARGIN, Standing, contact, heartbeat_can_be_had, heartbeat_is_stale, heartbeat_is_stale_in_failsafe,
    is_unusable, lock_proves_death, may_start_as_primary, out_of_contact_at, patroni_away, patroni_away_for_lease,
    presumed_writable, refuses, standing, starts_as_primary, verified,
};
use crate::fact::Reading;
use crate::limits::{AGENT_LIMIT, BARRIER_LIMIT, PROBE_LIMIT};
use crate::rules::guard::{self, KeyCondition, KeyIs, not_paused};
use crate::types::{MemberName, Moment, Timeline, seconds};
use crate::view::View;
use alloc::string::{String, ToString};
use alloc::{format, vec, vec::Vec};
use core::time::Duration;

/// The members race for a key that is absent. A Patroni that holds its alive lock and answers nothing may only have a stuck
/// API: it takes its key again within this.
pub const ABSENT: Duration = Duration::from_secs(1);

/// Patroni tells its last contact in whole seconds, and a cycle takes its time.
const STAMP_LAG: Duration = Duration::from_secs(2);

/// A member's own agent has this long to fence it before the new leader's agent does.
pub const PEER_LATE: Duration = Duration::from_secs(3);

/// The same where the server was fenced already and takes writes again: its own agent, if it lives, fences it at once.
pub const PEER_LATE_AGAIN: Duration = Duration::from_millis(500);

/// A fence of this server, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Whose server.
    pub member: MemberName,
    /// By which rule.
    pub rule: Rule,
    /// Why, in words.
    pub reason: String,
    /// What has to be so still, right before acting.
    pub guard: Guard,
    /// The server is starting: its agent has looked, and it is the primary of before. It opens no session yet.
    pub starting: bool,
    /// What was believed, name and value, for the record.
    pub facts: Vec<(String, String)>,
}

/// What has to be so still, right before a fence is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// A new barrier read says so. By `superseded` and `orphaned`.
    Key(KeyCondition),
    /// The same, and the server is on an older timeline than this, by its own word: another one may have come to the
    /// address, the rightful primary even. By `peer`.
    KeyAndTimeline(KeyCondition, Timeline),
    /// There is nothing to be read: ZooKeeper is away, and Patroni says nothing new. By `lease`.
    NoContact(guard::Away),
    /// A person wants it, whatever the key says.
    Asked {
        /// Who, for the record: it is still theirs after it was carried out.
        by: String,
    },
}

/// What would be fenced but for an obstacle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Whose server.
    pub member: MemberName,
    /// By which rule it would be.
    pub rule: Rule,
    /// What keeps us from it.
    pub obstacles: Vec<String>,
}

/// What the rules say.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Verdict {
    /// To be fenced now.
    pub orders: Vec<Order>,
    /// Held back.
    pub held: Vec<Held>,
    /// The local server starts, and a rule concerns it: it is to be asked again and again, so that its first moment of taking
    /// writes is not missed.
    pub watch_start: bool,
    /// When a rule may say something else although nothing happens.
    pub look_again: Option<Moment>,
}

/// Judges every server that concerns us: our neighbour, and while we lead the other members.
pub fn judge(view: &View, now: Moment) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(own) = &view.identity.member else { return verdict };
    operator(view, own, now, &mut verdict);
    if !verdict.names(own) && presumed_writable(view, own, now) {
        neighbour(view, own, now, &mut verdict);
    } else if may_start_as_primary(view, own, now) {
        let ours = verified(view, now).and_then(|known| known.leader.present()).is_some_and(|key| key.holder == *own);
        verdict.watch_start |= !ours;
    }
    peers(view, own, now, &mut verdict);
    verdict
}

/// Our own neighbour, by superseded, orphaned or lease.
fn neighbour(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let Some(contact) = contact(view, now) else {
        return match out_of_contact_at(view) {
            Some(at) if now < at => verdict.again(at),
            _ => lease(view, own, now, verdict),
        };
    };
    if !matches!(patroni_away(view, own, now), Away::No) {
        // Should ZooKeeper go away now, it is the lease that counts.
        verdict.again(contact.started.plus(BARRIER_LIMIT).plus(Duration::from_millis(1)));
    }
    // Contradicted by an ordinary read, which may be stale: the next barrier read is under way, and tells.
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
            verdict.say(view, order, obstacles, now);
        }
        Reading::Absent => {
            order.rule = Rule::Orphaned;
            orphaned(view, order, &known.config, now, verdict);
        }
        Reading::Unreadable(why) => {
            let why = format!("the leader key cannot be understood: {why}");
            verdict.held.push(Held { member: own.clone(), rule: Rule::Superseded, obstacles: vec![why] });
        }
    }
}

/// No member holds the key, and our Patroni is away: the others are racing for it.
fn orphaned(view: &View, mut order: Order, config: &Reading<ClusterConfig>, now: Moment, verdict: &mut Verdict) {
    let own = &order.member.clone();
    let why = match patroni_away(view, own, now) {
        Away::No => return,
        Away::Soon(at) => return verdict.again(at),
        Away::Yes(why) => why,
    };
    let mut obstacles = obstacles(view, own, config, now);
    if !lock_proves_death(view, own, now) {
        // The process may live, with an API that is stuck: then it takes its key again at once.
        let absent = view.leadership.absent_since.unwrap_or(now).plus(ABSENT);
        if now < absent {
            return verdict.again(absent);
        }
        let takes_over = |other: &&MemberName| matches!(standing(view, other, now), Standing::Standby(_));
        if !view.members.keys().filter(|other| *other != own).any(|other| takes_over(&other)) {
            obstacles.push("no other member is known to be able to take over".to_string());
        }
    }
    order.reason = format!("nobody holds the leader key, and {why}: the others are racing for it");
    order.facts = vec![fact("patroni", why)];
    verdict.say(view, order, obstacles, now);
}

/// ZooKeeper is away and so is Patroni: the server may take writes only as long as nobody else can have the key.
///
/// The lease ends with Patroni's session, which lives for its timeout after Patroni's last contact; and when the key was
/// last read as ours it was still there. The fence comes [`MARGIN`] before.
fn lease(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let hold = |obstacle: &str, verdict: &mut Verdict| {
        let obstacles = vec![obstacle.to_string()];
        verdict.held.push(Held { member: own.clone(), rule: Rule::Lease, obstacles });
    };
    let reading = view.cluster.config.as_ref().map(|fact| &fact.value);
    let Some((reading, config)) = reading.and_then(|reading| Some((reading, reading.present()?))) else {
        if matches!(patroni_away(view, own, now), Away::Yes(_)) {
            hold("Patroni's configuration was never read, or cannot be understood", verdict);
        }
        return;
    };
    let (away, ground) = patroni_away_for_lease(view, own, config, now);
    let memory = &view.leadership;
    let lives =
        memory.patroni_contact.zip(memory.patroni_timeout(config.ttl)).map(|(contact, timeout)| contact.plus(timeout));
    let deadline = memory.mine_at.max(lives).map(|end| end.minus(MARGIN));
    let why = match away {
        Away::No if unseen(view, own, now) && deadline.is_some_and(|deadline| now >= deadline) => {
            return hold(
                "its Patroni cannot be asked and its heartbeat cannot be seen: it may be leading in good order",
                verdict,
            );
        }
        Away::No => return,
        Away::Soon(at) => return verdict.again(at),
        Away::Yes(why) => why,
    };
    let Some(deadline) = deadline else {
        return hold("it is not known until when the leader key is certain to be its own", verdict);
    };
    if now < deadline {
        return verdict.again(deadline);
    }
    let mut obstacles = obstacles(view, own, reading, now);
    obstacles.extend(failsafe_may_be_active(view, own, config, ground, now));
    // What it told last is no news right before acting, whether it counted or not.
    let contact = memory.patroni_contact.max(memory.told_contact);
    let guard =
        Guard::NoContact(guard::Away { contact, beat: memory.heartbeat.map(|heartbeat| heartbeat.began), ground });
    let mut order = Order::new(own, Rule::Lease, guard);
    let late = seconds(now.since(deadline));
    order.reason = format!("ZooKeeper cannot be reached and {why}: its lease is over (less {MARGIN:?}) for {late}");
    order.facts = vec![fact("patroni", why)];
    verdict.say(view, order, obstacles, now);
}

/// Nothing tells whether its Patroni lives: what it says cannot be used, and its heartbeat cannot be had.
fn unseen(view: &View, own: &MemberName, now: Moment) -> bool {
    view.members.get(own).is_some_and(|member| is_unusable(member, now)) && !heartbeat_can_be_had(view, now)
}

/// In failsafe mode a leader goes on without ZooKeeper, and only its own Patroni says so. A Patroni that answers nothing
/// has to be proved dead, or its loop stuck: for longer, where it may have entered failsafe mode since its last answer.
/// Where its heartbeat cannot be looked at, its last answer has to have been "not active", by a Patroni that was in contact
/// with ZooKeeper, and no older than ttl when ZooKeeper was last reached from here. No time that passes makes that any truer.
fn failsafe_may_be_active(
    view: &View,
    own: &MemberName,
    config: &ClusterConfig,
    ground: Ground,
    now: Moment,
) -> Option<String> {
    let dead = lock_proves_death(view, own, now) || view.members.get(own).is_some_and(|member| refuses(member, now));
    if !config.failsafe_mode || ground == Ground::OwnWord || dead {
        return None;
    }
    let memory = &view.leadership;
    let last = memory.failsafe.as_ref().filter(|fact| !fact.value);
    let denied = last.zip(memory.read_at).is_some_and(|(last, read)| {
        let cycle = config.loop_wait.saturating_add(STAMP_LAG);
        let in_contact = memory.told_contact.is_none_or(|seen| last.at.since(seen) <= cycle);
        in_contact && read.since(last.at) <= config.ttl
    });
    let stuck = match (heartbeat_can_be_had(view, now), denied) {
        (true, true) => heartbeat_is_stale(view, config, now),
        (true, false) => heartbeat_is_stale_in_failsafe(view, config, now),
        (false, denied) => denied,
    };
    (!stuck).then(|| "failsafe mode may be active: its Patroni has not said that it is not".to_string())
}

/// While we lead: old primaries that still take writes, and nobody beside them to stop them.
fn peers(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let (Some(known), Some(reign)) = (verified(view, now), &view.leadership.reign) else { return };
    let Some(key) = known.leader.present().filter(|key| key.holder == *own && key.czxid == reign.czxid) else { return };
    let Some(ours) = server(view, own, now) else { return };
    for (name, member) in view.members.iter().filter(|(name, _)| *name != own) {
        let Some(theirs) = server(view, name, now) else { continue };
        let (Some(our_timeline), Some(their_timeline)) = (ours.timeline, theirs.timeline) else { continue };
        if their_timeline >= our_timeline || theirs.system_id.is_none() || theirs.system_id != ours.system_id {
            continue;
        }
        if !lacks_an_agent(view, name, now) {
            // Its own agent is nearer, and gets its time.
            let record = view.leadership.records.get(name).and_then(|record| record.value.present());
            let fenced = record.is_some_and(|record| record.confirmed.is_some());
            let late = if fenced { PEER_LATE_AGAIN } else { PEER_LATE };
            let since = reign.since.max(member.writable_since.unwrap_or(now)).plus(late);
            if now < since {
                verdict.again(since);
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
        verdict.say(view, order, obstacles, now);
    }
}

/// What a person asked for stands until it is taken back.
fn operator(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let leads = verified(view, now).and_then(|known| known.leader.present()).is_some_and(|key| key.holder == *own);
    for (member, fact) in &view.leadership.records {
        let Some(record) = fact.value.present().filter(|record| record.rule == Rule::Operator) else { continue };
        let ours = member == own;
        if (ours && presumed_writable(view, own, now))
            || (!ours && leads && lacks_an_agent(view, member, now) && server(view, member, now).is_some())
        {
            // As it was given: what is carried out is recorded again, and must not grow each time.
            let mut order = Order::new(member, Rule::Operator, Guard::Asked { by: record.by.clone() });
            order.reason = record.reason.clone();
            verdict.say(view, order, Vec::new(), now);
        }
    }
}

/// A member's server, if it was just seen to take writes by ourselves, and not before it was last fenced.
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

/// What keeps us from fencing our neighbour by any of the rules that need its Patroni's word.
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
        obstacles.push(format!("its Patroni calls itself {name}: correct the name in Warden's configuration"));
    }
    obstacles
}

/// Active when Patroni last answered, and not so long ago that it must be over: Patroni drops it after ttl.
fn failsafe_active(view: &View, config: &Reading<ClusterConfig>, now: Moment) -> bool {
    let lingers = config.present().map_or(Duration::MAX, |config| config.ttl);
    view.leadership.failsafe.as_ref().is_some_and(|fact| fact.value && fact.age(now) <= lingers)
}

/// The holder has to be another server, known as such, and not our own under another name.
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
    /// A server is fenced once, whoever else would have it fenced too.
    fn names(&self, member: &MemberName) -> bool {
        self.orders.iter().any(|order| order.member == *member)
    }

    fn again(&mut self, at: Moment) {
        self.look_again = Some(self.look_again.map_or(at, |known| known.min(at)));
    }

    /// The one place where every rule ends.
    fn say(&mut self, view: &View, mut order: Order, obstacles: Vec<String>, now: Moment) {
        if self.names(&order.member) {
            return;
        }
        let known = view.members.get(&order.member);
        if let Some(starting) = known.and_then(|known| starts_as_primary(view, &order.member, known, now)) {
            self.watch_start = true;
            // Only its own agent has looked into its data directory; and a living Patroni that lost the key stops its server
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
            self.held.push(Held { member: order.member, rule: order.rule, obstacles });
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
