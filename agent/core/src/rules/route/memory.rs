//! The memory of the routing rule: since when a proxy has had no server for writes, and since when it has been
//! misrouted.
//!
//! The memory decides how long the agent holds new connections, and how often it asks HAProxy and the members. It does
//! not decide commands to servers. Each proxy for writes is judged alone: a problem of one proxy is no reason to hold
//! another.

use super::{Hold, Key, Routing, writability, writes};
use crate::assess;
use crate::event::{HaproxyServer, PatroniAnswer, Role, State};
use crate::evidence;
use crate::haproxy::{Check, HaproxyAnswer, Pool, ServerCommand, ServerId};
use crate::limits::PROBE_LIMIT;
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// The phase of the routing of writes. It sets the interval of questions to HAProxy and the members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Writes reach the primary.
    Normal,
    /// HAProxy's checks are about to take out a healthy primary whose Patroni hangs. They fail twice, 500 ms apart.
    PatroniHangs,
    /// No server takes writes.
    Changing,
    /// No server has taken writes for longer than [`TRANSITION_MAX`].
    Stuck,
}

impl Phase {
    const fn period(self) -> Option<Duration> {
        match self {
            Self::Normal => None,
            Self::PatroniHangs => Some(Duration::from_millis(150)),
            Self::Changing => Some(Duration::from_millis(20)),
            Self::Stuck => Some(Duration::from_millis(500)),
        }
    }
}

/// The longest normal change of the primary. After that something else is wrong.
const TRANSITION_MAX: Duration = Duration::from_secs(30);

/// The longest hold, after the first sign and after each change of the leader key. A wrong judgment must not block
/// connections forever. HAProxy's checks are right by then.
const HOLD_MAX: Duration = TRANSITION_MAX;

/// The interval of refreshes of a hold.
const HOLD_REFRESH_INTERVAL: Duration = Duration::from_millis(500);

/// HAProxy's stick table drops an entry after this time without a refresh, so a hold ends when the agent does.
const HOLD_EXPIRY: Duration = Duration::from_secs(2);

const _: () = assert!(2 * HOLD_REFRESH_INTERVAL.as_millis() < HOLD_EXPIRY.as_millis());

/// The servers for writes by proxy, as HAProxy last reported them. Empty if HAProxy gives no usable answer.
type Proxies<'a> = BTreeMap<&'a str, Vec<&'a HaproxyServer>>;

/// Updates the memory. `ours`: the event is an action of this agent, which is no new fact about the cluster.
pub fn remember(view: &mut View, now: Moment, ours: bool) {
    if view.haproxy.is_none() {
        return;
    }
    note_servers(view, now);
    note_streaming(view, now);
    let proxies = proxies(view, now);
    let dated = |known: &BTreeMap<String, Moment>, is: &dyn Fn(&[&HaproxyServer]) -> bool| {
        let since = |proxy: &str| known.get(proxy).copied().unwrap_or(now);
        let those = proxies.iter().filter(|(_, servers)| is(servers));
        those.map(|(proxy, _)| (proxy.to_string(), since(proxy))).collect::<BTreeMap<_, _>>()
    };
    let since = |id: &ServerId| view.routing.contradicted_since.get(id).copied().unwrap_or(now);
    let contradicted = contradicted(view, &proxies, now).into_iter().map(|id| (id.clone(), since(id))).collect();
    let unrouted = dated(&view.routing.unrouted_since, &|servers| !is_routed(view, servers, now));
    let key = Key::of(view, now);
    let misrouted = (!ours).then(|| {
        dated(&view.routing.misrouted_since, &|servers| {
            let unrouted = servers.first().is_some_and(|server| unrouted.contains_key(&server.id.proxy));
            is_misrouted(view, &key, servers, unrouted, now)
        })
    });
    view.routing.contradicted_since = contradicted;
    view.routing.unrouted_since = unrouted;
    if let Some(misrouted) = misrouted {
        view.routing.misrouted_since = misrouted;
    }
}

/// The servers for writes whose check contradicts certain facts.
///
/// A linearizable read shows the leader, and the servers report whether they take writes. Patroni answers this agent,
/// so a check that asks it would be right.
fn contradicted<'a>(view: &'a View, proxies: &Proxies<'a>, now: Moment) -> Vec<&'a ServerId> {
    let Some(holder) = evidence::verified(view, now).and_then(|known| known.leader.present()).map(|key| &key.holder)
    else {
        return Vec::new();
    };
    let is_primary = |member: &MemberName| match assess::patroni_of(view, member, now)?.value {
        PatroniAnswer::Answering(status) => Some(status.role == Role::Primary),
        _ => None,
    };
    let writable = |member: &MemberName| writability(view, member, now).map(|report| report.writable);
    let contradicts = |server: &&&HaproxyServer| {
        let Some(member) = &server.member else { return false };
        let leads = member == holder;
        let says_otherwise = match &server.check {
            Check::None => false,
            Check::Passes => !leads,
            Check::Refuses(_) | Check::Fails(_) => leads,
        };
        says_otherwise && is_primary(member) == Some(leads) && writable(member) == Some(leads)
    };
    proxies.values().flatten().filter(contradicts).map(|server| &server.id).collect()
}

/// Notes since when a replica has not streamed, if it has before.
fn note_streaming(view: &mut View, now: Moment) {
    let streams = |name: &MemberName| match assess::patroni_of(view, name, now)?.value {
        PatroniAnswer::Answering(status) => Some(status.role.follows() && status.state == State::Streaming),
        _ => None,
    };
    let known: Vec<_> = view.members.keys().filter_map(|name| Some((name.clone(), streams(name)?))).collect();
    for (name, streams) in known {
        if streams {
            view.routing.streamed.insert(name, None);
        } else if let Some(since) = view.routing.streamed.get_mut(&name) {
            since.get_or_insert(now);
        }
    }
    let View { routing, members, .. } = view;
    routing.streamed.retain(|name, _| members.contains_key(name));
}

/// Notes what HAProxy's checks last said, and for the warnings the servers whose limits make connections wait.
fn note_servers(view: &mut View, now: Moment) {
    let Some(HaproxyAnswer::Servers(servers)) = view.haproxy.as_ref().and_then(|answer| answer.fresh(now, PROBE_LIMIT))
    else {
        return;
    };
    let routing = &mut view.routing;
    for server in servers.iter().filter(|server| server.throttled && server.pool == Pool::Writes) {
        routing.throttled.insert(server.id.clone(), now);
    }
    for server in servers.iter().filter(|server| server.queued > 0) {
        routing.queued.insert(server.id.clone(), (server.queued, now));
    }
    for server in servers {
        match server.check {
            Check::Refuses(_) => _ = routing.refused.insert(server.id.clone()),
            Check::Passes => _ = routing.refused.remove(&server.id),
            Check::None | Check::Fails(_) => {}
        }
    }
    let known: BTreeSet<&ServerId> = servers.iter().map(|server| &server.id).collect();
    routing.throttled.retain(|id, _| known.contains(id));
    routing.queued.retain(|id, _| known.contains(id));
    routing.refused.retain(|id| known.contains(id));
    routing.failing.retain(|id, _| known.contains(id));
    routing.last_commands.retain(|id, _| known.contains(id));
}

fn proxies(view: &View, now: Moment) -> Proxies<'_> {
    let answer = view.haproxy.as_ref().and_then(|answer| answer.fresh(now, PROBE_LIMIT));
    let servers = match answer {
        Some(HaproxyAnswer::Servers(servers)) => servers.as_slice(),
        _ => &[],
    };
    let mut proxies = Proxies::new();
    for server in servers.iter().filter(|server| server.pool == Pool::Writes) {
        proxies.entry(server.id.proxy.as_str()).or_default().push(server);
    }
    proxies
}

/// Whether writes by this proxy reach a primary: a server takes new connections, and its member takes writes.
///
/// It counts as routed where faster questions would not help. HAProxy gives no usable answer, no primary is known, or
/// the agent must not command the primary's server.
fn is_routed(view: &View, servers: &[&HaproxyServer], now: Moment) -> bool {
    // The leader of a standby cluster takes no writes.
    if view.cluster.config().is_some_and(|config| config.standby_cluster) {
        return true;
    }
    // While ZooKeeper is away, another member may lead by now.
    let contact = evidence::contact(view, now).is_some();
    let holder = assess::leader(view, now, None).holder().filter(|_| contact);
    let mut leaders = servers.iter().filter(|server| holder.is_some() && server.member.as_ref() == holder).peekable();
    if servers.iter().all(|server| server.is_left_alone())
        || (leaders.peek().is_some() && leaders.all(|server| server.is_left_alone()))
    {
        return true;
    }
    servers.iter().filter(|server| server.up).any(|server| {
        // HAProxy's checks decide about an unknown server.
        let Some(member) = &server.member else { return true };
        holder.is_none_or(|holder| holder == member)
            && writability(view, member, now).is_none_or(|report| report.writable)
    })
}

/// Whether new connections for writes would go to a server that stops, or no target is known.
///
/// Returns false if a server only has to be marked up, as after every reload. No server accepts connections then, so a
/// hold has no effect. The old worker could even receive the hold and never the release.
fn is_misrouted(view: &View, key: &Key<'_>, servers: &[&HaproxyServer], unrouted: bool, now: Moment) -> bool {
    let commands = commands(view, key, servers, now);
    commands.iter().any(|(server, to, _)| server.up && *to != ServerCommand::Up)
        || (unrouted && commands.iter().all(|(_, to, _)| *to != ServerCommand::Up))
}

/// The commands that the servers of a proxy for writes need, by HAProxy's last answer.
fn commands<'a>(
    view: &View,
    key: &Key<'_>,
    servers: &[&'a HaproxyServer],
    now: Moment,
) -> Vec<(&'a HaproxyServer, ServerCommand, String)> {
    let command = |server: &&'a HaproxyServer| {
        let (to, why) = writes(view, key, server, server.up, server.member.as_ref()?, now)?;
        Some((*server, to, why))
    };
    servers.iter().filter(|server| !server.is_left_alone()).filter_map(command).collect()
}

/// Why a server for writes that HAProxy has up should not be up.
fn down_reason(view: &View, proxy: &str, now: Moment) -> Option<String> {
    let commands = commands(view, &Key::of(view, now), &proxies(view, now).remove(proxy)?, now);
    commands.into_iter().find(|(server, to, _)| server.up && *to != ServerCommand::Up).map(|(_, _, why)| why)
}

/// Adds the holds to begin, refresh or end.
pub(super) fn hold(routing: &mut Routing, view: &View, now: Moment) {
    let answer = view.haproxy.as_ref().filter(|answer| answer.age(now) <= PROBE_LIMIT);
    let known: BTreeSet<&String> =
        view.routing.misrouted_since.keys().chain(view.routing.hold_refreshed_at.keys()).collect();
    for proxy in known {
        let misrouted = view.routing.misrouted_since.get(proxy).copied().filter(|_| answer.is_some());
        // The promotion of a new holder of the leader key takes its own time.
        let from = misrouted.map(|since| view.leader_changed.map_or(since, |changed| since.max(changed)));
        let until = from.map(|from| from.plus(HOLD_MAX)).filter(|until| now < *until);
        if let (Some(answer), Some(_)) = (answer, until) {
            // HAProxy's state is unknown from then on.
            routing.at(answer.at.plus(PROBE_LIMIT).plus(Duration::from_nanos(1)));
        }
        let (on, reason) = match (until, view.routing.hold_refreshed_at.get(proxy)) {
            (Some(until), held) => {
                routing.at(until);
                let next = held.map_or(now, |at| at.plus(HOLD_REFRESH_INTERVAL));
                if now < next {
                    routing.at(next);
                    continue;
                }
                routing.at(now.plus(HOLD_REFRESH_INTERVAL));
                let nowhere = || "no server that HAProxy has up is known to take writes".to_string();
                (true, down_reason(view, proxy, now).unwrap_or_else(nowhere))
            }
            (None, Some(_)) if misrouted.is_some() => (false, "the hold has reached its limit".to_string()),
            (None, Some(_)) => (false, "writes reach a primary".to_string()),
            (None, None) => continue,
        };
        routing.holds.push(Hold { proxy: proxy.clone(), on, reason });
    }
}

/// Decides whether to ask HAProxy and the members before the next regular question.
pub(super) fn probe(routing: &mut Routing, view: &View, now: Moment) {
    let Some(every) = phase(view, now).period() else { return };
    let next = view.routing.probed.map_or(now, |probed| probed.plus(every));
    if now >= next {
        routing.probe = true;
        routing.at(now.plus(every));
    } else {
        routing.at(next);
    }
}

fn phase(view: &View, now: Moment) -> Phase {
    if let Some(since) = view.routing.unrouted_since.values().max() {
        return if now.since(*since) < TRANSITION_MAX { Phase::Changing } else { Phase::Stuck };
    }
    let hangs = |server: &&HaproxyServer| {
        let patroni = server.member.as_ref().and_then(|member| view.members.get(member)?.patroni.as_ref());
        server.up && patroni.is_some_and(|fact| !matches!(fact.value, PatroniAnswer::Answering(_)))
    };
    if proxies(view, now).values().flatten().any(hangs) { Phase::PatroniHangs } else { Phase::Normal }
}
