//! What the agent says of itself in its own znode, and when it says it again.

use crate::event::{AgentRecord, HaproxyAnswer, HaproxyServer, PatroniAnswer, PatroniStatus, PostgresAnswer, Server};
use crate::plan::{Action, Due, Policy, Step};
use crate::types::Moment;
use crate::view::View;
use alloc::boxed::Box;
use alloc::string::ToString;
use core::time::Duration;

/// Changes of our own znode are held together for this long, so that a burst costs one write.
const ANNOUNCE_PAUSE: Duration = Duration::from_millis(100);

/// Whether our own znode is to be written now, and else when.
pub(crate) fn announcement(view: &View, policy: &Policy, now: Moment) -> Due {
    let announce = |reason: &str| {
        let step = Step { action: Action::Announce(Box::new(own_record(view, now))), reason: reason.to_string() };
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

/// What we have to say of ourselves and of our neighbour.
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
        haproxy: view.haproxy.as_ref().map(|fact| (fact.value.clone(), fact.age(now))),
        held: view.identity.member.as_ref().and_then(|own| view.leadership.held.get(own)).copied(),
    }
}

/// Whether what we have to say is what was announced, but for what changes all the time: ages, positions and counters
/// can wait for the next round. Asked at each decision, so nothing is copied for it.
fn same_news(view: &View, announced: &AgentRecord) -> bool {
    let AgentRecord { version, roles, address, member, leader, postgres, patroni, alive_lock, haproxy, held: _ } =
        announced;
    let identity = &view.identity;
    let neighbour = identity.member.as_ref().and_then(|name| view.members.get(name));
    let answer = neighbour.and_then(|member| member.postgres.as_ref());
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
        && match (neighbour.and_then(|member| member.patroni.as_ref()), patroni) {
            (Some(now), Some((then, _))) => same_patroni(&now.value, then),
            (now, then) => now.is_none() && then.is_none(),
        }
        && alive_lock.as_ref() == view.alive_lock.as_ref().map(|fact| &fact.value)
        && match (&view.haproxy, haproxy) {
            (Some(now), Some((then, _))) => same_servers(&now.value, then),
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
        // The words say for how long, and change each second.
        (PatroniAnswer::Refused(_), PatroniAnswer::Refused(_))
        | (PatroniAnswer::Silent(_), PatroniAnswer::Silent(_))
        | (PatroniAnswer::Unusable(_), PatroniAnswer::Unusable(_)) => true,
        _ => false,
    }
}

fn same_servers(now: &HaproxyAnswer, then: &HaproxyAnswer) -> bool {
    match (now, then) {
        (HaproxyAnswer::Servers(now), HaproxyAnswer::Servers(then)) => {
            let same = |(now, then): (&HaproxyServer, &HaproxyServer)| {
                let HaproxyServer { pool, name, address, member, status, up, sessions: _ } = now;
                *pool == then.pool
                    && *name == then.name
                    && *address == then.address
                    && *member == then.member
                    && *status == then.status
                    && *up == then.up
            };
            now.len() == then.len() && now.iter().zip(then).all(same)
        }
        (now, then) => now == then,
    }
}
