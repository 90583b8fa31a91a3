//! Which of HAProxy's servers take new connections, and whose sessions are cut.
//!
//! HAProxy's own checks are never switched off: they are right in the end, and all there is while we are away. What is
//! judged here is where they are late. A server is raised as soon as its member holds the leader key and is seen
//! writable; it takes no new connections at the first sign that it goes, which costs nobody anything if it was none;
//! and its sessions are cut only when a linearizable read says that another member holds the key.
//!
//! Where ZooKeeper is away nobody is cut, and the members' own words are all there is.

use crate::assess::{self, MemberTruth};
use crate::event::{LeaderKey, PatroniAnswer, PostgresAnswer, Role, Starting};
use crate::evidence;
use crate::fact::Reading;
use crate::haproxy::{HaproxyAnswer, HaproxyServer, Pool, Wish};
use crate::limits::{self, AGENT_LIMIT, PROBE_LIMIT};
use crate::rules::guard::{KeyCondition, KeyIs};
use crate::types::{MemberName, Moment};
use crate::view::{Verification, View};
use alloc::string::{String, ToString};
use alloc::{format, vec::Vec};
use core::time::Duration;

/// What the operator leaves to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutePolicy {
    /// Replicas that have more bytes of WAL than this still to replay take no new reads.
    pub max_lag: u64,
}

impl Default for RoutePolicy {
    fn default() -> Self {
        Self { max_lag: 16 << 20 }
    }
}

/// Between two looks at HAProxy and the members while writes have nowhere to go,
const HURRY: Duration = Duration::from_millis(20);

/// for this long; then
const TRANSITION: Duration = Duration::from_secs(30);

/// this often.
const PATIENCE: Duration = Duration::from_millis(500);

/// Between two looks while HAProxy's checks are about to take a healthy primary out: they fail twice, 500 ms apart.
const WATCHFUL: Duration = Duration::from_millis(150);

/// A server that HAProxy's checks made something else again is told again at once, but no more often than this;
const AGAIN: Duration = Duration::from_millis(5);

/// one that HAProxy does not take, or whose sessions are to be cut once more, after this.
const LATER: Duration = Duration::from_millis(250);

/// New connections are held for so long at the most, after the first sign and after each change of the leader key: a
/// misjudgement must not keep them away for ever. HAProxy's checks are right by then.
const HELD: Duration = TRANSITION;

/// A hold is said again this often. HAProxy forgets it 2 s after it was last said, so that it ends where we do.
const HOLD_RENEWED: Duration = Duration::from_millis(500);

/// After our session with a server broke off, what it was asked within this time says nothing: one that is about to stop
/// may answer once more. A false alarm costs new connections little more than this.
const SIGN: Duration = Duration::from_millis(50);

/// A server that is silent was asked for so long.
const SILENT: Duration = Duration::from_secs(1);

/// A change of HAProxy's servers, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// In which pool.
    pub pool: Pool,
    /// The server, by its name in HAProxy.
    pub server: String,
    /// The address that HAProxy has for it: it has to be this one still, right before it is told.
    pub address: String,
    /// The member at that address.
    pub member: MemberName,
    /// What it is told.
    pub to: Wish,
    /// Why, in words.
    pub reason: String,
    /// Sessions are cut only if a new barrier read meets this.
    pub condition: Option<KeyCondition>,
}

/// What should be done about HAProxy.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Routing {
    /// Whether new connections for writes are to be held from now on, and why; `None`: as they are.
    pub hold: Option<(bool, String)>,
    /// What its servers are told, now.
    pub changes: Vec<Change>,
    /// HAProxy and the members are to be asked now and not when their turn comes.
    pub look: bool,
    /// When to judge again, at the latest.
    pub again: Option<Moment>,
}

/// Judges every server of the local HAProxy.
pub fn judge(view: &View, policy: &RoutePolicy, now: Moment) -> Routing {
    let mut routing = Routing::default();
    let Some(answer) = &view.haproxy else { return routing };
    if let Some(HaproxyAnswer::Servers(servers)) = answer.fresh(now, PROBE_LIMIT) {
        let truths = assess::members(view, now);
        for server in servers.iter().filter(|server| !server.is_in_maintenance()) {
            let Some(member) = &server.member else { continue };
            let told = view.routing.told.get(&(server.pool, server.name.clone()));
            // What it was told since the last look is believed until the next one.
            let up = told.filter(|(_, at)| *at > answer.at).map_or(server.up, |(told, _)| *told == Wish::Up);
            let server = &HaproxyServer { up, ..server.clone() };
            let wanted = match server.pool {
                Pool::Writes => writes(view, server, member, now),
                Pool::Reads => reads(view, policy, server, member, &truths),
            };
            let Some((to, reason)) = wanted else { continue };
            let refused = view.routing.failing.contains_key(&(server.pool, server.name.clone()));
            let pause = if refused || to == Wish::Out { LATER } else { AGAIN };
            let next = told.filter(|(told, _)| *told == to).map(|(_, at)| at.plus(pause));
            match next.filter(|next| now < *next) {
                Some(at) => routing.at(at),
                None => routing.changes.push(Change {
                    pool: server.pool,
                    server: server.name.clone(),
                    address: server.address.clone(),
                    member: member.clone(),
                    to,
                    reason,
                    condition: view.session().filter(|_| to == Wish::Out).map(|session| KeyCondition {
                        session: session.id,
                        key: KeyIs::OfAnotherThan(member.clone()),
                        sync: None,
                    }),
                }),
            }
        }
    }
    // Nobody waits for the barrier read that a cut needs.
    routing.changes.sort_by_key(|change| change.to == Wish::Out);
    routing.hold(view, now);
    if let Some(contact) = evidence::contact(view, now) {
        // From then on ZooKeeper counts as away.
        routing.at(contact.started.plus(limits::BARRIER_LIMIT).plus(Duration::from_millis(1)));
    }
    if let Some(every) = hurry(view, now) {
        let next = view.routing.probed.map_or(now, |probed| probed.plus(every));
        if now >= next {
            routing.look = true;
            routing.at(now.plus(every));
        } else {
            routing.at(next);
        }
    }
    routing
}

impl Routing {
    fn hold(&mut self, view: &View, now: Moment) {
        let answer = view.haproxy.as_ref().filter(|answer| answer.age(now) <= PROBE_LIMIT);
        let astray = view.routing.astray_since.filter(|_| answer.is_some());
        // A new holder of the leader key is promoted yet, however long there was none.
        let from = astray.map(|since| view.leader_changed.map_or(since, |changed| since.max(changed)));
        let until = from.map(|from| from.plus(HELD)).filter(|until| now < *until);
        if let (Some(answer), Some(_)) = (answer, until) {
            // From then on nobody knows what HAProxy does.
            self.at(answer.at.plus(PROBE_LIMIT).plus(Duration::from_nanos(1)));
        }
        match (until, view.routing.held) {
            (Some(until), held) => {
                self.at(until);
                let next = held.map_or(now, |at| at.plus(HOLD_RENEWED));
                if now < next {
                    self.at(next);
                } else {
                    self.at(now.plus(HOLD_RENEWED));
                    let leaves = leaving(view, now).next();
                    let why =
                        leaves.unwrap_or_else(|| "no server that HAProxy has up is known to take writes".to_string());
                    self.hold = Some((true, why));
                }
            }
            (None, Some(_)) => {
                let long = astray.is_some();
                let why = if long { "they have waited long enough" } else { "writes have somewhere to go" };
                self.hold = Some((false, why.to_string()));
            }
            (None, None) => {}
        }
    }

    fn at(&mut self, moment: Moment) {
        self.again = Some(self.again.map_or(moment, |known| known.min(moment)));
    }
}

/// What a server for writes is to be told, if anything.
fn writes(view: &View, server: &HaproxyServer, member: &MemberName, now: Moment) -> Option<(Wish, String)> {
    let word = word(view, member, now);
    let Some(known) = evidence::verified(view, now) else {
        // Contradicted by an ordinary read: the next barrier read is under way, and tells.
        let contact = evidence::contact(view, now).is_some();
        let only = if contact { None } else { only_primary(view, now) };
        return without_zookeeper(server, member, word.as_ref(), only);
    };
    match &known.leader {
        Reading::Present(key) if key.holder == *member => match word {
            Some(Word { writable: true, .. }) if !server.up => {
                Some((Wish::Up, format!("{member} holds the leader key and takes writes")))
            }
            Some(Word { writable: true, .. }) if server.is_failing() => {
                let why = format!("{member} holds the leader key and takes writes, and HAProxy's checks fail");
                Some((Wish::Up, why))
            }
            Some(Word { writable: false, why, .. }) if server.up => Some((Wish::Wait, format!("{member}: {why}"))),
            _ => None,
        },
        Reading::Present(key) => out(known, key, server),
        // Whoever takes writes may be about to take the key, too.
        Reading::Absent | Reading::Unreadable(_) => wait(server, member, word.as_ref()),
    }
}

/// Another member holds the leader key.
fn out(known: &Verification, key: &LeaderKey, server: &HaproxyServer) -> Option<(Wish, String)> {
    // In maintenance mode people move servers by hand.
    let paused = known.config.present().is_none_or(|config| config.pause);
    let reason = format!("{} holds the leader key", key.holder);
    if server.up {
        let to = if paused { Wish::Wait } else { Wish::Out };
        return Some((to, reason));
    }
    (server.sessions > 0 && !paused).then_some((Wish::Out, reason))
}

/// The first sign that a server goes is enough for new connections to wait.
fn wait(server: &HaproxyServer, member: &MemberName, word: Option<&Word>) -> Option<(Wish, String)> {
    let word = word.filter(|word| !word.writable && server.up)?;
    Some((Wish::Wait, format!("{member}: {}", word.why)))
}

/// ZooKeeper cannot be asked: the members' Patronis are, and their servers. Nobody is cut.
fn without_zookeeper(
    server: &HaproxyServer,
    member: &MemberName,
    word: Option<&Word>,
    only_primary: Option<&MemberName>,
) -> Option<(Wish, String)> {
    if !server.up && only_primary == Some(member) {
        return Some((Wish::Up, format!("{member} is the only primary, and ZooKeeper cannot be asked")));
    }
    wait(server, member, word)
}

/// The member whose Patroni calls it the primary and whose server takes writes, if there is exactly one.
fn only_primary(view: &View, now: Moment) -> Option<&MemberName> {
    let mut primaries = view.members.keys().filter(|member| word(view, member, now).is_some_and(|word| word.writable));
    let (Some(only), None) = (primaries.next(), primaries.next()) else { return None };
    let patroni = assess::patroni_of(view, only, now)?;
    matches!(patroni.value, PatroniAnswer::Answering(status) if status.role == Role::Primary).then_some(only)
}

/// What a server for reads is to be told, if anything.
fn reads(
    view: &View,
    policy: &RoutePolicy,
    server: &HaproxyServer,
    member: &MemberName,
    truths: &[MemberTruth<'_>],
) -> Option<(Wish, String)> {
    let truth = truths.iter().find(|truth| truth.name == member)?;
    if truth.writable == Some(true) {
        return server.up.then(|| (Wish::Wait, format!("{member} takes writes")));
    }
    // Without a position of the leader, nothing is known of how far behind it is; HAProxy's checks ask Patroni.
    let lag = truth.lag?;
    let told = view.routing.told.get(&(Pool::Reads, server.name.clone()));
    let was_behind = told.is_some_and(|(told, _)| *told == Wish::Wait);
    let limit = if was_behind { policy.max_lag / 2 } else { policy.max_lag };
    if lag > limit {
        return server.up.then(|| (Wish::Wait, format!("{member} is more than {limit} bytes behind")));
    }
    (!server.up && was_behind).then(|| (Wish::Up, format!("{member} has caught up: {lag} bytes behind")))
}

/// Whether a member's server takes writes, in the newest word there is of it.
struct Word {
    writable: bool,
    at: Moment,
    why: String,
}

/// The word on a member's server: ours, its own agent's, or that our session with it broke off. `None` where nobody can
/// say.
///
/// We look from where HAProxy is: what we cannot reach, it cannot either, whatever others say. And what we have reached
/// is not believed any more as soon as the agent beside it says otherwise.
fn word(view: &View, member: &MemberName, now: Moment) -> Option<Word> {
    let known = view.members.get(member);
    let answer = known.and_then(|known| known.postgres.as_ref());
    let broke = view.routing.broke.get(member).filter(|at| now.since(**at) <= PROBE_LIMIT);
    // What we heard since says more.
    if let Some(at) = broke.filter(|at| answer.is_none_or(|answer| answer.at < at.plus(SIGN))) {
        return Some(Word { writable: false, at: *at, why: "our session with it broke off".to_string() });
    }
    // A server that is slow is not gone: as long as its Patroni answers us, new connections are not kept from it.
    let answers = known
        .and_then(|known| known.patroni.as_ref())
        .is_some_and(|fact| matches!(fact.value, PatroniAnswer::Answering(_)) && fact.age(now) <= PROBE_LIMIT);
    let own = answer.filter(|fact| fact.age(now) <= PROBE_LIMIT);
    let own = own.filter(|fact| {
        !matches!(fact.value, PostgresAnswer::Silent(_)) || (!answers && somebody_answers(view, fact.at.minus(SILENT)))
    });
    let own = own.and_then(|fact| said(&fact.value, fact.at, "it"));
    let agent = assess::agent_of(view, member).and_then(|(_, fact)| {
        let (answer, age) = fact.value.present()?.postgres.as_ref()?;
        let at = fact.at.minus(*age);
        let recent = now.since(at) <= AGENT_LIMIT && !matches!(answer, PostgresAnswer::Silent(_));
        if recent { said(answer, at, "its agent says that it") } else { None }
    });
    match (own, agent) {
        (Some(own), Some(agent)) if own.writable && !agent.writable && agent.at > own.at => Some(agent),
        (own, agent) => own.or(agent),
    }
}

/// Whether anybody has answered what we asked since then, or ZooKeeper has: if not, it may be us who are cut off, and the
/// HAProxy beside us is not.
fn somebody_answers(view: &View, since: Moment) -> bool {
    let member_does = view.members.values().any(|member| {
        let patroni = member.patroni.as_ref().filter(|fact| !matches!(fact.value, PatroniAnswer::Silent(_)));
        let postgres = member.postgres.as_ref().filter(|fact| !matches!(fact.value, PostgresAnswer::Silent(_)));
        patroni.map(|fact| fact.at) >= Some(since) || postgres.map(|fact| fact.at) >= Some(since)
    });
    member_does || view.verified.as_ref().is_some_and(|read| read.started >= since)
}

fn said(answer: &PostgresAnswer, at: Moment, who: &str) -> Option<Word> {
    let (writable, why) = match answer {
        PostgresAnswer::Writable(_) => (true, format!("{who} takes writes")),
        PostgresAnswer::InRecovery(_) => (false, format!("{who} is in recovery")),
        PostgresAnswer::Refused(why)
        | PostgresAnswer::Starting(Starting { why, .. })
        | PostgresAnswer::Stopping(why)
        | PostgresAnswer::Gone(why) => (false, format!("{who} refuses sessions: {why}")),
        PostgresAnswer::Silent(why) => (false, format!("{who} is silent: {why}")),
        PostgresAnswer::Unknown(_) => return None,
    };
    Some(Word { writable, at, why })
}

/// How often HAProxy and the members are to be asked out of turn, if at all.
fn hurry(view: &View, now: Moment) -> Option<Duration> {
    if let Some(since) = view.routing.unrouted_since {
        return Some(if now.since(since) < TRANSITION { HURRY } else { PATIENCE });
    }
    let HaproxyAnswer::Servers(servers) = view.haproxy.as_ref()?.fresh(now, PROBE_LIMIT)? else { return None };
    // Its Patroni hangs, and its server does not: HAProxy would take it out.
    let hangs = |server: &HaproxyServer| {
        let patroni = server.member.as_ref().and_then(|member| view.members.get(member)?.patroni.as_ref());
        server.pool == Pool::Writes
            && server.up
            && patroni.is_some_and(|fact| !matches!(fact.value, PatroniAnswer::Answering(_)))
    };
    servers.iter().any(hangs).then_some(WATCHFUL)
}

/// Notes since when writes have had nowhere to go. `ours`: it is we who did something, which says nothing new of the world.
pub fn remember(view: &mut View, now: Moment, ours: bool) {
    if view.haproxy.is_none() {
        return;
    }
    let since = view.routing.unrouted_since.unwrap_or(now);
    view.routing.unrouted_since = (!is_routed(view, now)).then_some(since);
    if !ours {
        let since = view.routing.astray_since.unwrap_or(now);
        view.routing.astray_since = is_astray(view, now).then_some(since);
    }
}

/// Whether writes have somewhere to go: a server takes new connections, and its member writes. Where HAProxy cannot be
/// asked, or nobody knows of any primary, there is nothing to hurry for.
pub fn is_routed(view: &View, now: Moment) -> bool {
    let Some(HaproxyAnswer::Servers(servers)) = view.haproxy.as_ref().and_then(|fact| fact.fresh(now, PROBE_LIMIT))
    else {
        return true;
    };
    // The leader of a standby cluster takes none.
    if view.cluster.config().is_some_and(|config| config.standby_cluster) {
        return true;
    }
    // Without ZooKeeper it may be somebody else by now.
    let contact = evidence::contact(view, now).is_some();
    let holder = assess::leader(view, now, None).holder().filter(|_| contact);
    servers.iter().filter(|server| server.pool == Pool::Writes && server.up).any(|server| {
        // What nobody can say is left to HAProxy's checks.
        let Some(member) = &server.member else { return true };
        holder.is_none_or(|holder| holder == member) && word(view, member, now).is_none_or(|word| word.writable)
    })
}

/// Whether whoever connects now for writes would be sent to a server that goes, or nobody knows where to.
///
/// Not where one is only to be raised, as after each reload: then no server is up, and nobody is sent anywhere. A hold would
/// do nothing for it, and may reach the worker that goes, which is not told any more that it is over.
pub fn is_astray(view: &View, now: Moment) -> bool {
    let unrouted = view.routing.unrouted_since.is_some();
    leaving(view, now).next().is_some() || (unrouted && wishes(view, now).all(|(_, to, _)| to != Wish::Up))
}

/// The servers for writes that HAProxy has up, and should not, with the reason.
fn leaving(view: &View, now: Moment) -> impl Iterator<Item = String> {
    wishes(view, now).filter(|(server, to, _)| server.up && *to != Wish::Up).map(|(_, _, why)| why)
}

/// What the servers for writes should be, as HAProxy was last seen to have them.
fn wishes(view: &View, now: Moment) -> impl Iterator<Item = (&HaproxyServer, Wish, String)> {
    let answer = view.haproxy.as_ref().and_then(|answer| answer.fresh(now, PROBE_LIMIT));
    let servers = match answer {
        Some(HaproxyAnswer::Servers(servers)) => servers.as_slice(),
        _ => &[],
    };
    servers.iter().filter(|server| server.pool == Pool::Writes && !server.is_in_maintenance()).filter_map(
        move |server| {
            let (to, why) = writes(view, server, server.member.as_ref()?, now)?;
            Some((server, to, why))
        },
    )
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
