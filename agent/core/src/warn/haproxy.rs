//! About HAProxy and its configuration.

use super::{List, RECENT_FAILURE, STALE_AGENT, Warning};
use crate::assess::{self, Leader};
use crate::event::HaproxyAnswer;
use crate::fact::Reading;
use crate::haproxy::Pool;
use crate::limits::PROBE_LIMIT;
use crate::rules::layout;
use crate::types::Moment;
use crate::types::seconds;
use crate::view::View;
use alloc::format;
use alloc::string::ToString;

/// Every HAProxy, by what its agent says of it; the local one's configuration, and what it refuses.
pub(super) fn all(view: &View, leader: &Leader<'_>, now: Moment, list: &mut List) {
    refused(view, now, list);
    drawing(view, list);
    for router in assess::routers(view, now) {
        let agent = router.agent;
        let own = *agent == view.identity.agent;
        // Without ZooKeeper nothing is known of the others.
        if !own && view.session().is_none() {
            continue;
        }
        if router.age > if own { PROBE_LIMIT } else { STALE_AGENT } {
            list.about_one(
                "agent_stale",
                agent.as_str(),
                format!("agent {agent} has said nothing of its HAProxy for {}", seconds(router.age)),
            );
            continue;
        }
        let servers = match router.answer {
            HaproxyAnswer::Unusable(why) => {
                list.about_one(
                    "haproxy_unusable",
                    agent.as_str(),
                    format!("HAProxy beside {agent} cannot be asked: {why}"),
                );
                continue;
            }
            HaproxyAnswer::Servers(servers) => servers,
        };
        let writes = || servers.iter().filter(|server| server.up && server.pool == Pool::Writes);
        if writes().next().is_none() {
            list.about_one(
                "haproxy_no_server",
                agent.as_str(),
                format!("HAProxy beside {agent} has no server for writes"),
            );
        }
        for server in writes() {
            match (&server.member, leader.holder()) {
                (Some(member), Some(holder)) if member != holder => list.0.push(Warning {
                    code: "haproxy_wrong_server",
                    member: Some(member.clone()),
                    subject: Some(agent.to_string()),
                    message: format!("HAProxy beside {agent} sends writes to {member}, but {holder} is the leader"),
                }),
                (None, _) => list.about_one(
                    "haproxy_unknown_address",
                    &format!("{agent}/{}", server.name),
                    format!(
                        "HAProxy beside {agent} sends writes to {} at {}, which is no member's address, or more than one's: \
                         Warden leaves it alone",
                        server.name, server.address
                    ),
                ),
                _ => {}
            }
        }
    }
}

/// What keeps HAProxy's configuration from being written.
fn drawing(view: &View, list: &mut List) {
    if let Some(Reading::Unreadable(why)) = &view.drawing.rendered {
        let message = format!(
            "HAProxy's configuration is not written anew when members come or go: {why}, or leave haproxy.config_file out"
        );
        list.about_all("haproxy_config_not_ours", message);
    }
    if let Some((why, _)) = &view.drawing.failed {
        let message = format!(
            "HAProxy's configuration could not be written anew: {why} (mend that: it is tried again every {} s)",
            layout::AGAIN.as_secs()
        );
        list.about_all("haproxy_config_failed", message);
    }
}

/// What HAProxy refused in the last while.
fn refused(view: &View, now: Moment, list: &mut List) {
    let refused = view.routing.failing.iter().filter(|(_, (_, at))| now.since(*at) <= RECENT_FAILURE);
    for ((pool, server), (why, _)) in refused {
        let subject = format!("{}/{server}", pool.as_str());
        list.about_one(
            "haproxy_disobeys",
            &subject,
            format!(
                "HAProxy's server {subject} cannot be told anything: {why} (its stats socket needs `level admin`, and \
                 has to be Warden's to write to)"
            ),
        );
    }
}
