//! About HAProxy and its configuration.

use super::{AGENT_STALE_AFTER, FAILURE_SHOWN_FOR, List, Warning};
use crate::assess::{self, Leader};
use crate::event::{HaproxyAnswer, HaproxyServer};
use crate::fact::Reading;
use crate::haproxy::{Check, OutOfService, Pool};
use crate::limits::PROBE_LIMIT;
use crate::rules::haproxy_file;
use crate::types::Moment;
use crate::types::seconds;
use crate::view::View;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// Every HAProxy by its agent's report; the local one's configuration and rejected commands.
pub(super) fn all(view: &View, leader: &Leader<'_>, now: Moment, list: &mut List) {
    refused(view, now, list);
    configuration_file(view, list);
    configured(view, now, list);
    limits(view, now, list);
    for router in assess::routers(view, now) {
        let agent = router.agent;
        let own = *agent == view.identity.agent;
        // Without ZooKeeper the state of other agents is unknown.
        if !own && view.session().is_none() {
            continue;
        }
        if router.age > if own { PROBE_LIMIT } else { AGENT_STALE_AFTER } {
            list.about_one(
                "agent_stale",
                agent.as_str(),
                format!("agent {agent} has not reported its HAProxy for {}", seconds(router.age)),
            );
            continue;
        }
        let servers = match router.answer {
            HaproxyAnswer::Unusable(why) => {
                list.about_one(
                    "haproxy_unusable",
                    agent.as_str(),
                    format!("HAProxy beside {agent} gives no usable answer: {why}"),
                );
                continue;
            }
            HaproxyAnswer::Servers(servers) => servers,
        };
        sends_to(agent.as_str(), servers, leader, list);
        // Servers of former members are obsolete. Only the local agent knows them.
        let has_left = |server: &&HaproxyServer| own && view.haproxy_file.left().contains(&server.id);
        let servers: Vec<&HaproxyServer> = servers.iter().filter(|server| !has_left(server)).collect();
        left_alone(agent.as_str(), &servers, leader, list);
    }
}

/// The servers to which an HAProxy sends writes.
fn sends_to(agent: &str, servers: &[HaproxyServer], leader: &Leader<'_>, list: &mut List) {
    let proxies: BTreeSet<&String> =
        servers.iter().filter(|server| server.pool == Pool::Writes).map(|server| &server.id.proxy).collect();
    for proxy in &proxies {
        let mut of_it = servers.iter().filter(|server| server.pool == Pool::Writes && server.id.proxy == **proxy);
        if !of_it.any(|server| server.up) {
            let of_them = if proxies.len() > 1 { format!(" in {proxy}") } else { String::new() };
            list.about_one(
                "haproxy_no_server",
                &if proxies.len() > 1 { format!("{agent}/{proxy}") } else { agent.to_string() },
                format!("HAProxy beside {agent} has no server for writes{of_them}"),
            );
        }
    }
    for server in servers.iter().filter(|server| server.up && server.pool == Pool::Writes) {
        match (&server.member, leader.holder()) {
            (Some(member), Some(holder)) if member != holder => list.0.push(Warning {
                code: "haproxy_wrong_server",
                member: Some(member.clone()),
                subject: Some(agent.to_string()),
                message: format!("HAProxy beside {agent} sends writes to {member}, but {holder} is the leader"),
            }),
            (None, _) => list.about_one(
                "haproxy_unknown_address",
                &format!("{agent}/{}", server.id),
                format!(
                    "HAProxy beside {agent} sends writes to {} at {}, and its host is no member's or more than one's. \
                     Warden sends it no commands. The server needs the host of a member's connect_address; the port \
                     may differ",
                    server.id, server.address
                ),
            ),
            _ => {}
        }
    }
}

/// The servers that Warden does not command, if that needs attention.
fn left_alone(agent: &str, servers: &[&HaproxyServer], leader: &Leader<'_>, list: &mut List) {
    for server in servers {
        let id = &server.id;
        let subject = format!("{agent}/{id}");
        if let Some(other) = &server.tracks {
            // The agent commands the server that it tracks.
            if !servers.iter().any(|known| known.id.to_string() == *other) {
                let proxy = other.split('/').next().unwrap_or_default();
                let key = if server.pool == Pool::Writes { "writes" } else { "reads" };
                list.about_one(
                    "haproxy_tracking",
                    &subject,
                    format!(
                        "HAProxy beside {agent} takes no commands for {id}, which tracks {other}. Give {id} a check of \
                         its own. Or name {proxy} in haproxy.backends.{key}, where haproxy.backend and \
                         haproxy.read_backend then have to go too: {id} follows the commands to that server, and ends \
                         its sessions if it has on-marked-down shutdown-sessions"
                    ),
                );
            }
            continue;
        }
        if server.is_unchecked() {
            list.about_one(
                "haproxy_unchecked",
                &subject,
                format!(
                    "HAProxy beside {agent} does not check {id}, so the server takes connections also if its member \
                     should have none, and Warden sends it no commands: nothing would undo them. Give it a check of \
                     Patroni: \"option httpchk GET {}\" in its section, and \"check port PORT\" at the server, with \
                     the port of Patroni's REST API",
                    if server.pool == Pool::Writes { "/primary" } else { "/replica" }
                ),
            );
            continue;
        }
        let leads = server.pool == Pool::Writes && server.member.is_some() && server.member.as_ref() == leader.holder();
        match server.out_of_service() {
            Some(OutOfService::Unresolved) => list.about_one(
                "haproxy_unresolved",
                &subject,
                format!(
                    "HAProxy beside {agent} cannot resolve the name of {id}, so the server takes no connections. Its \
                     node is down, or HAProxy's name server is (resolvers)"
                ),
            ),
            Some(OutOfService::AgentCheck(words)) if leads => list.about_one(
                "haproxy_agent_check",
                &subject,
                format!(
                    "HAProxy beside {agent} keeps the leader's server {id} out of service: its agent-check answers \
                     {words:?}, and Warden cannot overrule it. Make it answer \"ready up\" where Patroni leads, or \
                     remove agent-check"
                ),
            ),
            Some(OutOfService::ByHand) if leads => list.about_one(
                "haproxy_leader_in_maintenance",
                &subject,
                format!(
                    "the leader's server {id} is in maintenance in HAProxy beside {agent}, and Warden does not end it. \
                     To end it, send \"set server {id} state ready\" to its stats socket"
                ),
            ),
            _ => {}
        }
    }
}

/// A check that contradicts the agent for less than this may only be slow.
const CONTRADICTION_MIN: Duration = Duration::from_secs(10);

/// A queue is shown for this long after it was last seen.
const QUEUE_SHOWN_FOR: Duration = Duration::from_secs(60);

/// A problem that appears only in a change of the primary is shown for this long.
const CHANGE_PROBLEM_SHOWN_FOR: Duration = Duration::from_secs(600);

/// The servers in the local HAProxy's last answer.
fn local_servers(view: &View) -> &[HaproxyServer] {
    match view.haproxy.as_ref().map(|answer| &answer.value) {
        Some(HaproxyAnswer::Servers(servers)) => servers,
        _ => &[],
    }
}

/// Settings in HAProxy's configuration that work against its purpose.
fn configured(view: &View, now: Moment, list: &mut List) {
    let (routing, servers) = (&view.routing, local_servers(view));
    for (id, _) in routing.contradicted_since.iter().filter(|(_, since)| now.since(**since) >= CONTRADICTION_MIN) {
        let Some(server) = servers.iter().find(|server| server.id == *id) else { continue };
        let subject = id.to_string();
        match &server.check {
            Check::None => {}
            Check::Passes => list.about_one(
                "haproxy_checks_cannot_tell",
                &subject,
                format!(
                    "HAProxy's checks accept {id}, which is a standby: they cannot tell a primary. Writes reach it \
                     until Warden takes it down. Check Patroni instead of that: \"option httpchk GET /primary\", \
                     \"http-check expect status 200\", and \"check port PORT\" at the server, with the port of \
                     Patroni's REST API"
                ),
            ),
            Check::Refuses(words) | Check::Fails(words) => list.about_one(
                "haproxy_checks_contradict",
                &subject,
                format!(
                    "HAProxy's checks of {id} fail ({words}), but it is the leader's, takes writes, and its Patroni \
                     answers Warden: only Warden keeps it up. The checks have to ask Patroni's REST API for /primary \
                     at its own port, with \"check-ssl verify none\" (or a ca-file) if the API uses TLS"
                ),
            ),
        }
    }
    for (proxy, (why, _)) in
        routing.cannot_hold.iter().filter(|(_, (_, at))| now.since(*at) <= CHANGE_PROBLEM_SHOWN_FOR)
    {
        list.about_one(
            "haproxy_cannot_hold",
            proxy,
            format!(
                "HAProxy does not hold new connections for writes by {proxy} while the primary changes ({why}). Its \
                 checks may let some reach a server that stops. Its configuration needs the table warden_hold_{proxy} \
                 and the action lua.warden_wait_for, as in Warden's template, where every server except the backup has \
                 a maxconn"
            ),
        );
    }
}

/// Limits of HAProxy that make connections wait.
fn limits(view: &View, now: Moment, list: &mut List) {
    let (routing, servers) = (&view.routing, local_servers(view));
    for (id, _) in routing.throttled.iter().filter(|(_, at)| now.since(**at) <= CHANGE_PROBLEM_SHOWN_FOR) {
        list.about_one(
            "haproxy_slowstart",
            &id.to_string(),
            format!(
                "HAProxy's server {id} takes only a part of its connections at first (slowstart). After a failover the \
                 other connections wait. Remove slowstart from servers for writes"
            ),
        );
    }
    for (id, (count, _)) in routing.queued.iter().filter(|(_, (_, at))| now.since(*at) <= QUEUE_SHOWN_FOR) {
        let limit = servers.iter().find(|server| server.id == *id).and_then(|server| server.limit);
        let limit = limit.map_or_else(|| "its limit".to_string(), |limit| format!("its limit of {limit} sessions"));
        list.about_one(
            "haproxy_queue",
            &id.to_string(),
            format!(
                "connections wait for HAProxy's server {id} ({count} when last seen): it has reached {limit}. \
                 Raise its maxconn, or use a pooler. Warden's template takes haproxy.server_maxconn, or \
                 max_connections of Patroni's dynamic configuration"
            ),
        );
    }
    for (name, (limit, _)) in routing.full.iter().filter(|(_, (_, at))| now.since(*at) <= QUEUE_SHOWN_FOR) {
        list.about_one(
            "haproxy_full",
            name,
            format!(
                "HAProxy's frontend {name} has all of its {limit} connections in use: it accepts no further one, also \
                 if a server has room. Raise maxconn in its section and in HAProxy's global section. Warden's template \
                 takes haproxy.maxconn"
            ),
        );
    }
}

/// The obstacles to a rewrite of HAProxy's configuration.
fn configuration_file(view: &View, list: &mut List) {
    if let Some(Reading::Unreadable(why)) = &view.haproxy_file.rendered {
        let message = format!(
            "the agent does not rewrite HAProxy's configuration when members come or go: {why}, or remove \
             haproxy.config_file"
        );
        list.about_all("haproxy_config_not_ours", message);
    }
    if let Some((why, _)) = &view.haproxy_file.failed {
        let message = format!(
            "the agent could not rewrite HAProxy's configuration: {why} (repair that; the agent tries again every {} \
             s)",
            haproxy_file::RENDER_RETRY_PAUSE.as_secs()
        );
        list.about_all("haproxy_config_failed", message);
    }
}

/// The commands that HAProxy rejected recently.
fn refused(view: &View, now: Moment, list: &mut List) {
    let refused = view.routing.failing.iter().filter(|(_, (_, at))| now.since(*at) <= FAILURE_SHOWN_FOR);
    for (server, (why, _)) in refused {
        let subject = server.to_string();
        list.about_one(
            "haproxy_disobeys",
            &subject,
            format!(
                "HAProxy's server {subject} takes no commands: {why} (if that is about permissions, the stats socket \
                 needs `level admin` and write access for Warden)"
            ),
        );
    }
}
