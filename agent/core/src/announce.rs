//! The agent's own znode: its content, and when the agent writes it.

use crate::event::{AgentRecord, HaproxyAnswer, HaproxyServer, PatroniAnswer, PatroniStatus, PostgresAnswer, Server};
use crate::haproxy::ServerId;
use crate::plan::{Action, Due, Policy, Step, ZooKeeperAction};
use crate::types::Moment;
use crate::view::View;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

/// The pause between two writes of the agent's znode: a burst of changes costs one write.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(100);

/// The write of the agent's znode, if it is due, or its moment.
pub(crate) fn announcement(view: &View, policy: &Policy, now: Moment) -> Due {
    let announce = |reason: &str| {
        let action = Action::ZooKeeper(ZooKeeperAction::Announce(Box::new(own_record(view, now))));
        let step = Step { action, reason: reason.to_string() };
        Due::Now(step, now.plus(policy.announce_every))
    };
    let Some((announced, at)) = &view.announced else { return announce("new session") };
    if now.since(*at) >= policy.announce_every {
        return announce("periodic");
    }
    if same_news(view, announced) {
        return Due::At(at.plus(policy.announce_every));
    }
    let next = at.plus(ANNOUNCE_PAUSE);
    if now >= next { announce("something changed") } else { Due::At(next) }
}

/// The record of the agent and its local node.
pub(crate) fn own_record(view: &View, now: Moment) -> AgentRecord {
    let identity = &view.identity;
    let member = identity.member.as_ref().and_then(|name| view.members.get(name));
    let postgres = member.and_then(|member| member.postgres.as_ref()).map(|fact| (fact.value.clone(), fact.age(now)));
    let patroni = member.and_then(|member| member.patroni.as_ref());
    let patroni = patroni.map(|fact| (Box::new(fact.value.clone()), fact.age(now)));
    AgentRecord {
        version: identity.version.clone(),
        roles: identity.roles.clone(),
        address: identity.address.clone(),
        member: identity.member.clone(),
        leader: view.leader.as_ref().and_then(|fact| fact.value.present()).map(|key| key.holder.clone()),
        postgres,
        patroni,
        alive_lock: view.alive_lock.as_ref().map(|fact| fact.value.clone()),
        haproxy: view.haproxy.as_ref().map(|fact| (fact.value.without(view.haproxy_file.left()), fact.age(now))),
        held: view.identity.member.as_ref().and_then(|own| view.leadership.key_held_at.get(own)).copied(),
    }
}

/// Whether the last written record is still right, except for ages, positions and counters. These wait for the periodic
/// write. Each decision calls this function, so it copies nothing.
fn same_news(view: &View, announced: &AgentRecord) -> bool {
    let AgentRecord { version, roles, address, member, leader, postgres, patroni, alive_lock, haproxy, held: _ } =
        announced;
    let identity = &view.identity;
    let local = identity.member.as_ref().and_then(|name| view.members.get(name));
    let answer = local.and_then(|member| member.postgres.as_ref());
    let holder = view.leader.as_ref().and_then(|fact| fact.value.present()).map(|key| &key.holder);
    *version == identity.version
        && *roles == identity.roles
        && *address == identity.address
        && *member == identity.member
        && leader.as_ref() == holder
        && match (answer, postgres) {
            (Some(now), Some((then, _))) => same_answer(&now.value, then),
            (now, then) => now.is_none() && then.is_none(),
        }
        && match (local.and_then(|member| member.patroni.as_ref()), patroni) {
            (Some(now), Some((then, _))) => same_patroni(&now.value, then),
            (now, then) => now.is_none() && then.is_none(),
        }
        && alive_lock.as_ref() == view.alive_lock.as_ref().map(|fact| &fact.value)
        && match (&view.haproxy, haproxy) {
            (Some(now), Some((then, _))) => same_servers(&now.value, then, view.haproxy_file.left()),
            (now, then) => now.is_none() && then.is_none(),
        }
}

fn same_answer(now: &PostgresAnswer, then: &PostgresAnswer) -> bool {
    match (now, then) {
        (PostgresAnswer::Writable(now), PostgresAnswer::Writable(then))
        | (PostgresAnswer::InRecovery(now), PostgresAnswer::InRecovery(then)) => {
            let Server { timeline, lsn: _, system_id, archiver, receives: _, heartbeat: _, superuser_slots: _ } = now;
            let archivers = match (archiver, &then.archiver) {
                (Some(now), Some(then)) => now.failing == then.failing,
                (now, then) => now.is_none() && then.is_none(),
            };
            *timeline == then.timeline && *system_id == then.system_id && archivers
        }
        (now, then) => now == then,
    }
}

fn same_patroni(now: &PatroniAnswer, then: &PatroniAnswer) -> bool {
    match (now, then) {
        (PatroniAnswer::Answering(now), PatroniAnswer::Answering(then)) => {
            let PatroniStatus {
                state,
                role,
                writable,
                timeline,
                lsn: _,
                system_id,
                pause,
                failsafe_active,
                cluster_unlocked,
                dcs_last_seen: _,
                name: _,
                nosync,
                version: _,
            } = now;
            (state, role, writable, timeline) == (&then.state, &then.role, &then.writable, &then.timeline)
                && (system_id, nosync) == (&then.system_id, &then.nosync)
                && (pause, failsafe_active) == (&then.pause, &then.failsafe_active)
                && *cluster_unlocked == then.cluster_unlocked
        }
        // The texts contain a duration and change each second.
        (PatroniAnswer::Refused(_), PatroniAnswer::Refused(_))
        | (PatroniAnswer::Silent(_), PatroniAnswer::Silent(_))
        | (
            PatroniAnswer::Unusable(_) | PatroniAnswer::Anothers(_),
            PatroniAnswer::Unusable(_) | PatroniAnswer::Anothers(_),
        ) => true,
        _ => false,
    }
}

/// The record leaves out servers of former members: only the agent beside HAProxy knows that they are obsolete.
fn same_servers(now: &HaproxyAnswer, then: &HaproxyAnswer, left: &BTreeSet<ServerId>) -> bool {
    match (now, then) {
        (HaproxyAnswer::Servers(now), HaproxyAnswer::Servers(then)) => {
            let same = |(now, then): (&HaproxyServer, &HaproxyServer)| {
                let HaproxyServer { pool, id, address, member, status, up, tracks, agent_check, .. } = now;
                *pool == then.pool
                    && *id == then.id
                    && *address == then.address
                    && *member == then.member
                    && *status == then.status
                    && *up == then.up
                    && *tracks == then.tracks
                    && *agent_check == then.agent_check
            };
            let now: Vec<&HaproxyServer> = now.iter().filter(|server| !left.contains(&server.id)).collect();
            now.len() == then.len() && now.into_iter().zip(then).all(same)
        }
        (now, then) => now == then,
    }
}
