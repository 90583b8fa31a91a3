//! About one member: its place in the cluster, its Patroni, its PostgreSQL, its agent.

use super::{AGENT_STALE_AFTER, List};
use crate::assess::{Leader, MemberStatus};
use crate::event::{AliveLock, PatroniAnswer, PostgresAnswer, Role, Starting};
use crate::evidence::{Standing, standing};
use crate::fact::{Reading, Source};
use crate::limits::{LIVENESS_LIMIT, PROBE_LIMIT};
use crate::rules::gate::recorded;
use crate::rules::reconnect;
use crate::types::Moment;
use crate::types::seconds;
use crate::view::{Member, View};
use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// Every member.
pub(super) fn each(view: &View, leader: &Leader<'_>, members: &[MemberStatus<'_>], now: Moment, list: &mut List) {
    for member in members {
        leadership(view, leader, member, now, list);
        patroni(view, member, now, list);
        postgres(view, leader, members, member, now, list);
        agent(view, member, list);
        gate(view, member, now, list);
    }
}

/// Warnings that only the member's own agent can raise.
pub(super) fn our_own(view: &View, now: Moment, list: &mut List) {
    not_streaming(view, now, list);
    control_file(view, list);
    superuser_slots(view, now, list);
}

fn leadership(view: &View, leader: &Leader<'_>, member: &MemberStatus<'_>, now: Moment, list: &mut List) {
    let name = member.name;
    let holds = leader.holder() == Some(name);
    // An unreadable key does not show its holder.
    let known = matches!(leader.reading, Some(Reading::Present(_) | Reading::Absent));
    // A sighting from before the key changed its holder does not count.
    let since_then = member.postgres.as_ref().is_some_and(|fact| Some(fact.at) >= view.leader_changed);
    // An answer from an address of both members may be the holder's.
    let is_the_holder = leader.holder().is_some_and(|holder| view.at_one_address(name, holder));
    if member.writable == Some(true) && known && !holds && since_then && !is_the_holder {
        let certainty = if leader.verified { "" } else { " (as last read)" };
        let pause =
            if view.cluster.config().is_some_and(|config| config.pause) { "; the cluster is paused" } else { "" };
        list.about(
            "writable_without_leader_key",
            name,
            format!("{name} is writable but does not hold the leader key{certainty}{pause}"),
        );
    }
    if let Some(holder) = leader.holder().filter(|_| !holds && !is_the_holder)
        && may_still_write(view, member, now)
    {
        list.about(
            "may_still_write",
            name,
            format!(
                "{name} took writes when it was last heard, {holder} leads since, and no fact shows that {name} has \
                 stopped: make sure that it has"
            ),
        );
    }
    // Over TCP a refusal may come from a firewall.
    let refuses =
        member.postgres.as_ref().is_some_and(|fact| fact.source != Source::Tcp && fact.value.refuses_sessions());
    if holds && (member.writable == Some(false) || refuses) && member.role != Role::StandbyLeader {
        let how = match member.postgres.as_ref().map(|fact| &fact.value) {
            Some(PostgresAnswer::InRecovery(_)) => "its PostgreSQL is in recovery",
            _ => "its PostgreSQL refuses connections",
        };
        let certainty = if leader.verified { "" } else { " (as last read)" };
        list.about("leader_not_writable", name, format!("{name} holds the leader key{certainty} but {how}"));
    }
    if member.has_znode == Some(false) {
        list.about(
            "member_key_missing",
            name,
            format!("{name} has no member key in ZooKeeper: its Patroni has no session"),
        );
    }
}

/// Whether it took writes when it was last heard, and neither an answer nor a record shows that it has stopped.
fn may_still_write(view: &View, member: &MemberStatus<'_>, now: Moment) -> bool {
    let refuses = member.postgres.as_ref().is_some_and(|fact| fact.value.refuses_sessions());
    !refuses && standing(view, member.name, now) == Standing::WasWritable && !recorded(view, member.name)
}

fn patroni(view: &View, member: &MemberStatus<'_>, now: Moment, list: &mut List) {
    let name = member.name;
    // Its agent does not report since when.
    let ours = member.patroni.as_ref().is_some_and(|fact| fact.source == Source::Patroni);
    let away = view.members.get(name).and_then(|member| member.patroni_away_since).filter(|_| ours);
    let lasting = away.map_or_else(String::new, |since| format!(" for {}", seconds(now.since(since))));
    let answered = member.patroni.as_ref().map(|fact| fact.at);
    match member.patroni.as_ref().map(|fact| fact.value) {
        Some(PatroniAnswer::Silent(why)) => {
            list.about("patroni_silent", name, format!("Patroni of {name} has been silent{lasting}: {why}"));
        }
        Some(PatroniAnswer::Refused(why)) => {
            list.about("patroni_refused", name, format!("Patroni of {name} refuses connections{lasting}: {why}"));
        }
        Some(PatroniAnswer::Unusable(why) | PatroniAnswer::Anothers(why)) => {
            // The release and the nudge need an answer of the local Patroni, so the warning says it before they are
            // needed.
            let own = view.identity.member.as_ref() == Some(name) && !view.leadership.has_answered;
            let lost = if own {
                ". Until it has answered once, the agent does not release its key and does not nudge it \
                 (patroni.cacert, patroni.username)"
            } else {
                ""
            };
            list.about(
                "patroni_unusable",
                name,
                format!(
                    "Warden cannot use the answer of Patroni of {name}: \
             {why}{lost}"
                ),
            );
        }
        Some(PatroniAnswer::Answering(status)) => {
            if view.members.get(name).is_some_and(|member| loop_is_late(member, now)) {
                list.about(
                    "patroni_loop_late",
                    name,
                    format!("Patroni of {name} answers but its HA loop does not turn: look at its log"),
                );
            }
            if status.failsafe_active {
                list.about(
                    "failsafe_active",
                    name,
                    format!("{name} continues without ZooKeeper in failsafe mode: restore ZooKeeper"),
                );
            }
            // It may have ended since its answer.
            let newer = view.alive_lock.as_ref().is_some_and(|lock| Some(lock.at) > answered);
            let died = newer && view.identity.member.as_ref() == Some(name);
            if member.alive_lock == Some(AliveLock::Gone) && !died {
                list.about(
                    "alive_lock_free",
                    name,
                    format!(
                        "Patroni of {name} answers but does not hold the alive lock: start it with flock --no-fork"
                    ),
                );
            }
        }
        None => {}
    }
    if let Some(AliveLock::Unknown(why)) = &member.alive_lock {
        let configured = view.identity.member.as_ref() != Some(name) || view.identity.has_alive_lock;
        if configured {
            list.about("alive_lock_unknown", name, format!("the agent cannot read the alive lock of {name}: {why}"));
        }
    }
}

fn loop_is_late(member: &Member, now: Moment) -> bool {
    member.loop_turns.as_ref().and_then(|fact| fact.fresh(now, LIVENESS_LIMIT)) == Some(&false)
}

fn postgres(
    view: &View,
    leader: &Leader<'_>,
    members: &[MemberStatus<'_>],
    member: &MemberStatus<'_>,
    now: Moment,
    list: &mut List,
) {
    let name = member.name;
    let Some(postgres) = &member.postgres else { return };
    if let Some(why) = turned_away(view, member, now) {
        list.about("postgres_unknown", name, format!("Warden cannot ask PostgreSQL of {name}: {why}"));
    }
    match &postgres.value {
        PostgresAnswer::Silent(why) => {
            list.about("postgres_silent", name, format!("PostgreSQL of {name} is silent: {why}"));
        }
        PostgresAnswer::Refused(why)
        | PostgresAnswer::Starting(Starting { why, .. })
        | PostgresAnswer::Stopping(why)
        | PostgresAnswer::Gone(why) => {
            list.about("postgres_refused", name, format!("PostgreSQL of {name} refuses connections: {why}"));
        }
        PostgresAnswer::Unknown(_) => {}
        PostgresAnswer::Writable(server) | PostgresAnswer::InRecovery(server) => {
            let cluster_id = view.cluster.initialize.as_ref().and_then(|fact| fact.value.present());
            if let (Some(id), Some(cluster_id)) = (server.system_id, cluster_id)
                && id != *cluster_id
            {
                list.about(
                    "system_identifier_differs",
                    name,
                    format!(
                        "{name} has system identifier {id}, the cluster has {cluster_id}: it belongs to another \
                     cluster"
                    ),
                );
            }
            if let Some(segment) = server.archiver.as_ref().and_then(|archiver| archiver.failing.as_ref()) {
                list.about(
                    "archiver_failing",
                    name,
                    format!("archive_command of {name} fails for {segment}: see its PostgreSQL log"),
                );
            }
        }
    }
    let leaders = members.iter().find(|other| leader.holder() == Some(other.name)).and_then(|other| other.timeline);
    if let (Some(own), Some(leaders)) = (member.timeline, leaders)
        && own != leaders
        && member.writable == Some(false)
    {
        list.about("timeline_differs", name, format!("{name} is on timeline {}, the leader on {}", own.0, leaders.0));
    }
}

fn not_streaming(view: &View, now: Moment, list: &mut List) {
    let (Some(member), Some(why)) = (&view.identity.member, reconnect::attempts_exhausted(view, now)) else { return };
    let text = format!("{why}: see its PostgreSQL log for the cause");
    list.about("standby_not_streaming", member, text);
}

/// Only in asynchronous mode: with a synchronous standby that has every commit, a handover needs no control file.
fn control_file(view: &View, list: &mut List) {
    let (Some(member), Some(shutdown)) = (&view.identity.member, &view.leadership.shutdown) else { return };
    let sync = view.cluster.sync.as_ref().and_then(|fact| fact.value.present());
    let needed = sync.is_none_or(|sync| sync.leader.is_none() || sync.quorum > 0);
    if let (Reading::Unreadable(why), true) = (&shutdown.value, needed) {
        list.about(
            "control_file_unreadable",
            member,
            format!(
                "{member}: no handover in asynchronous mode, because the agent cannot read the control file: {why} \
                 (mount the data directory read-only, set node.data_dir, and run Warden as PostgreSQL's user)"
            ),
        );
    }
}

/// Patroni's sessions: of its HA loop, of its REST API, and one to spare.
const PATRONI_SLOTS: u32 = 3;

/// The local agent's sessions: of its watcher, and for a fence.
const AGENT_SLOTS: u32 = 2;

/// In a burst of connections Warden connects before Patroni, and takes the reserved connections.
fn superuser_slots(view: &View, now: Moment, list: &mut List) {
    let Some(member) = &view.identity.member else { return };
    let answer = view.members.get(member).and_then(|member| member.postgres.as_ref()?.fresh(now, PROBE_LIMIT));
    let Some(slots) = answer.and_then(|answer| answer.server()?.superuser_slots) else { return };
    let needed = PATRONI_SLOTS.saturating_add(AGENT_SLOTS).saturating_add(slots.agents);
    if slots.reserved >= needed {
        return;
    }
    let elsewhere = match slots.agents {
        0 => String::new(),
        agents => format!(", {agents} for remote agents that log in as a superuser (watch.username)"),
    };
    list.about(
        "reserved_connections_low",
        member,
        format!(
            "{member} reserves {} connections for superusers and needs {needed}: {PATRONI_SLOTS} for Patroni, \
             {AGENT_SLOTS} for the local agent{elsewhere}. Set superuser_reserved_connections to {needed}",
            slots.reserved
        ),
    );
}

/// Why a member's PostgreSQL rejects the login of this agent, or of its own.
///
/// The warning also shows if Patroni reports the server's state. A wrong password would otherwise show only once
/// Patroni is silent.
fn turned_away<'a>(view: &'a View, member: &'a MemberStatus<'_>, now: Moment) -> Option<&'a str> {
    let asked = view.members.get(member.name).and_then(|member| member.postgres.as_ref());
    let asked = asked.and_then(|fact| fact.fresh(now, PROBE_LIMIT));
    let believed = member.postgres.as_ref().map(|fact| &fact.value);
    [asked, believed].into_iter().flatten().find_map(|answer| match answer {
        PostgresAnswer::Unknown(why) => Some(why.as_str()),
        _ => None,
    })
}

/// The agent tries the login every minute.
const GATE_CHECK_AGE_MAX: Duration = Duration::from_secs(180);

/// Whether the gate could ask the member in a failover.
fn gate(view: &View, member: &MemberStatus<'_>, now: Moment, list: &mut List) {
    let name = member.name;
    let checked = view.members.get(name).and_then(|member| member.gate_checked.as_ref());
    if let Some(Err(why)) = checked.and_then(|fact| fact.fresh(now, GATE_CHECK_AGE_MAX)) {
        list.about(
            "gate_cannot_ask",
            name,
            format!(
                "the gate could not ask PostgreSQL of {name}: {why} (allow the superuser from this node in \
                 pg_hba.conf, set its password, then run: warden gate --check)"
            ),
        );
    }
}

fn agent(view: &View, member: &MemberStatus<'_>, list: &mut List) {
    // The agent's own znode proves nothing here. Without ZooKeeper the state of other agents is unknown.
    let own = view.identity.member.as_ref() == Some(member.name);
    if own || view.session().is_none() || view.tree_read.is_none() {
        return;
    }
    let name = member.name;
    match &member.agent {
        None => list.about("agent_missing", name, format!("no Warden agent answers for {name}")),
        Some((agent, age)) if *age > AGENT_STALE_AFTER => {
            list.about("agent_stale", name, format!("agent {agent} has written nothing for {}", seconds(*age)));
        }
        Some(_) => {}
    }
}
