//! Who has to be fenced, by which rule, and why not where it looks so and is not.
//!
//! The rules are those of the design's contract "leadership". A fence stops a server that takes writes, so each
//! needs positive evidence that is recent enough; whatever cannot be known is an obstacle, an obstacle holds, and
//! what is held back is said ([`Held`]). Unknown never destroys.

use crate::event::{ClusterConfig, FenceOutcome, LeaderKey, PostgresAnswer, Rule, Server};
use crate::evidence::{Away, contact, out_of_contact_at, patroni_away, presumed_writable, verified};
use crate::fact::Reading;
use crate::limits::{AGENT_LIMIT, BARRIER_LIMIT, PROBE_LIMIT};
use crate::types::{MemberName, Moment, SessionId, Timeline, Zxid, seconds};
use crate::view::View;
use alloc::string::{String, ToString};
use alloc::{format, vec, vec::Vec};
use core::time::Duration;

/// The lease rule acts this long before the key can be somebody else's.
pub const MARGIN: Duration = Duration::from_secs(5);

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
    /// What was believed, name and value, for the record.
    pub facts: Vec<(String, String)>,
}

/// What has to be so still, right before a fence is carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guard {
    /// A new barrier read in this session, not paused: the key is not ours. By `superseded` and `orphaned`.
    KeyIsNot {
        /// Our member.
        member: MemberName,
        /// The session.
        session: SessionId,
    },
    /// A new barrier read in this session, not paused: the key is ours, and the one it was. By `peer`.
    KeyIs {
        /// Our member.
        member: MemberName,
        /// The session.
        session: SessionId,
        /// The transaction that created the key.
        czxid: Zxid,
        /// Only a server on an older timeline than this: another one may have come to the address, the rightful
        /// primary even, and it is the server itself that looks.
        older_than: Timeline,
    },
    /// There is nothing to be read: ZooKeeper is away. By `lease`.
    NoContact,
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
    /// When a rule may say something else although nothing happens.
    pub look_again: Option<Moment>,
}

/// Judges every server that concerns us: our neighbour, and while we lead the other members.
pub fn judge(view: &View, now: Moment) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(own) = &view.identity.member else { return verdict };
    operator(view, own, now, &mut verdict);
    if !verdict.names(own) && presumed_writable(view, own) {
        neighbour(view, own, now, &mut verdict);
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
    let guard = || Guard::KeyIsNot { member: own.clone(), session: known.session };
    match &known.leader {
        Reading::Present(key) if key.holder == *own => {}
        Reading::Present(key) => {
            let mut obstacles = obstacles(view, own, &known.config, now);
            obstacles.extend(other_obstacles(view, own, key));
            let reason =
                format!("{} holds the leader key (czxid {:#x}), and {own} takes writes", key.holder, key.czxid.0);
            let facts = vec![fact("leader", &key.holder), fact("czxid", format!("{:#x}", key.czxid.0))];
            verdict.say(view, Rule::Superseded, own, guard(), reason, facts, obstacles);
        }
        Reading::Absent => match patroni_away(view, own, now) {
            Away::No => {}
            Away::Soon(at) => verdict.again(at),
            Away::Yes(why) => {
                let obstacles = obstacles(view, own, &known.config, now);
                let reason = format!("nobody holds the leader key, and {why}: the others are racing for it");
                verdict.say(view, Rule::Orphaned, own, guard(), reason, vec![fact("patroni", why)], obstacles);
            }
        },
        Reading::Unreadable(why) => {
            let why = format!("the leader key cannot be understood: {why}");
            verdict.held.push(Held { member: own.clone(), rule: Rule::Superseded, obstacles: vec![why] });
        }
    }
}

/// ZooKeeper is away and so is Patroni: the server may take writes only as long as nobody else can have the key.
fn lease(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let why = match patroni_away(view, own, now) {
        Away::No => return,
        Away::Soon(at) => return verdict.again(at),
        Away::Yes(why) => why,
    };
    let memory = &view.leadership;
    let config = view.cluster.config.as_ref().map(|fact| fact.value.clone());
    let config = config.unwrap_or_else(|| Reading::Unreadable("it was never read".to_string()));
    let mut obstacles = obstacles(view, own, &config, now);
    let timeout = config.present().and_then(|config| memory.patroni_timeout(config.ttl));
    let deadline = match timeout {
        Some(timeout) => {
            // Patroni's session lives for its timeout after its last contact; and when the key was last read as
            // ours it was still there, however old that contact is.
            let lives = memory.patroni_contact.map(|contact| contact.plus(timeout));
            memory.mine_at.max(lives).map(|moment| moment.minus(MARGIN))
        }
        None => None,
    };
    let Some(deadline) = deadline else {
        obstacles.push("it is not known until when the leader key is certain to be its own".to_string());
        verdict.held.push(Held { member: own.clone(), rule: Rule::Lease, obstacles });
        return;
    };
    if now < deadline {
        return verdict.again(deadline);
    }
    let late = seconds(now.since(deadline));
    let reason = format!("ZooKeeper cannot be reached and {why}: its lease is over (less {MARGIN:?}) for {late}");
    verdict.say(view, Rule::Lease, own, Guard::NoContact, reason, vec![fact("patroni", why)], obstacles);
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
        let obstacles = paused(&known.config).into_iter().chain(same_place(view, own, name)).collect();
        let older_than = our_timeline;
        let guard = Guard::KeyIs { member: own.clone(), session: known.session, czxid: key.czxid, older_than };
        let reason = format!(
            "{name} takes writes on timeline {} while {own} leads on timeline {}",
            their_timeline.0, our_timeline.0
        );
        let facts = vec![fact("timeline", their_timeline.0), fact("leader_timeline", our_timeline.0)];
        verdict.say(view, Rule::Peer, name, guard, reason, facts, obstacles);
    }
}

/// What a person asked for stands until it is taken back.
fn operator(view: &View, own: &MemberName, now: Moment, verdict: &mut Verdict) {
    let leads = verified(view, now).and_then(|known| known.leader.present()).is_some_and(|key| key.holder == *own);
    for (member, fact) in &view.leadership.records {
        let Some(record) = fact.value.present().filter(|record| record.rule == Rule::Operator) else { continue };
        let ours = member == own;
        if (ours && presumed_writable(view, own))
            || (!ours && leads && lacks_an_agent(view, member, now) && server(view, member, now).is_some())
        {
            // As it was given: what is carried out is recorded again, and must not grow each time.
            let guard = Guard::Asked { by: record.by.clone() };
            verdict.say(view, Rule::Operator, member, guard, record.reason.clone(), Vec::new(), Vec::new());
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
    let mut obstacles: Vec<String> = paused(config).into_iter().collect();
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

fn paused(config: &Reading<ClusterConfig>) -> Option<String> {
    match config {
        Reading::Present(config) if config.pause => Some("the cluster is in maintenance mode".to_string()),
        Reading::Present(_) => None,
        Reading::Absent => Some("Patroni's configuration is not there".to_string()),
        Reading::Unreadable(why) => Some(format!("Patroni's configuration cannot be understood: {why}")),
    }
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

    #[expect(clippy::too_many_arguments)] // one place where every rule ends, so that none forgets a part
    fn say(
        &mut self,
        view: &View,
        rule: Rule,
        member: &MemberName,
        guard: Guard,
        reason: String,
        mut facts: Vec<(String, String)>,
        obstacles: Vec<String>,
    ) {
        if self.names(member) {
            return;
        }
        if obstacles.is_empty() {
            if let Some(server) = view.members.get(member).and_then(|known| known.postgres.as_ref()) {
                facts.push(fact("postgres", server.value.as_str()));
            }
            self.orders.push(Order { member: member.clone(), rule, reason, guard, facts });
        } else {
            self.held.push(Held { member: member.clone(), rule, obstacles });
        }
    }
}

#[cfg(test)]
#[path = "fence_tests.rs"]
pub(crate) mod tests;
