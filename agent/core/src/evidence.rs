//! Evidence: the proofs on which the rules act.
//!
//! The functions here answer four questions. May a rule act on the newest linearizable read? Does ZooKeeper answer? May
//! a server be taking writes? Is its Patroni away? Every destructive rule takes its proofs from here, so that no two
//! rules differ in them. The reasons are in `agent/docs/internals/time-and-evidence.md`.

use crate::assess::agent_of;
use crate::event::{AliveLock, ClusterConfig, PatroniAnswer, PatroniStatus, PostgresAnswer, Starting};
use crate::limits::{AGENT_LIMIT, BARRIER_LIMIT, LIVENESS_LIMIT, PROBE_LIMIT};
use crate::types::{MemberName, Moment, seconds};
use crate::view::{Link, Member, Verification, View};
use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

/// A Patroni that has been silent for this long counts as away: five questions in a row. A frozen one has been silent
/// for much longer when its key expires. A slow one misses a question or two.
pub const PATRONI_SILENT_MIN: Duration = Duration::from_secs(5);

/// The lease rule acts this long before the key can belong to another member.
pub const LEASE_MARGIN: Duration = Duration::from_secs(5);

/// The time beyond `loop_wait` and `retry_timeout` after which a round of Patroni's HA loop is late.
const LOOP_LATE_MARGIN: Duration = Duration::from_secs(5);

/// Patroni reports its last contact in whole seconds, so the contact may be later by this.
const CONTACT_ROUNDING: Duration = Duration::from_secs(1);

/// The time that kazoo needs beyond that if no packet returns.
const VANISHED_PACKETS_DELAY: Duration = Duration::from_secs(8);

const _: () = assert!(PROBE_LIMIT.as_millis() < PATRONI_SILENT_MIN.as_millis());

// ---------------------------------------------------------------------------------------------------------------------
// ZooKeeper

/// The newest barrier read, if a rule may act on it: of this session, recent, and not contradicted by a later read.
pub fn verified(view: &View, now: Moment) -> Option<&Verification> {
    let known = contact(view, now)?;
    let contradicted = view.leader.as_ref().is_some_and(|read| read.at > known.started && read.value != known.leader);
    (!contradicted).then_some(known)
}

/// The newest barrier read, if it is of this session and recent: ZooKeeper answers. A later read may contradict it.
pub fn contact(view: &View, now: Moment) -> Option<&Verification> {
    let known = view.verified.as_ref()?;
    let current = view.session().is_some_and(|session| session.id == known.session);
    (current && now.since(known.started) <= BARRIER_LIMIT).then_some(known)
}

/// When ZooKeeper counts as away. A session that has just begun is verified next. A session that has just ended is soon
/// replaced: the agent asked for another timeout, or the connection broke for a moment (simulation, seed 202774).
/// `None` if there is no session and never was a linearizable read.
pub fn out_of_contact_at(view: &View) -> Option<Moment> {
    let begun = if let Link::Connected { since, .. } = view.link { Some(since) } else { None };
    view.leadership.read_at.max(begun).map(|newest| newest.plus(BARRIER_LIMIT).plus(Duration::from_millis(1)))
}

// ---------------------------------------------------------------------------------------------------------------------
// A server

/// Whether a server was last seen out of recovery, with no proof of the contrary since; silence is none. A former
/// primary that starts counts: it takes writes once it is up.
pub fn presumed_writable(view: &View, name: &MemberName, now: Moment) -> bool {
    let Some(member) = view.members.get(name) else { return false };
    member.writable_since.is_some() || starts_as_primary(view, name, member, now).is_some()
}

/// Whether the newest report of a member's server was that it takes writes.
pub fn was_writable(member: &Member) -> bool {
    member.last_writability.is_some_and(|(_, writes)| writes)
}

/// The answer of a server that accepts no session yet, and takes writes once it is up. It was last seen writable. Or no
/// report exists, and its own agent found a primary's data directory. No report since shows a standby.
pub fn starts_as_primary<'a>(
    view: &'a View,
    name: &MemberName,
    member: &'a Member,
    now: Moment,
) -> Option<&'a Starting> {
    let starting = match (&member.postgres.as_ref()?.value, agent_report(view, name, now)) {
        // Only its own agent can read its data directory.
        (PostgresAnswer::Starting(_), Some(PostgresAnswer::Starting(starting))) => starting,
        (PostgresAnswer::Starting(starting), _) => starting,
        _ => return None,
    };
    let follows = fresh_status(member, now).is_some_and(|status| status.role.follows());
    let primary = match (starting.standby, member.last_writability) {
        (Some(true), _) | (_, Some((_, false))) | (None, None) => false,
        (Some(false), None) | (_, Some((_, true))) => true,
    };
    (primary && !follows).then_some(starting)
}

/// Whether a server that accepts no session yet may take writes once it is up. Its data directory cannot be read, and
/// no report exists, for example because its agent was restarted.
pub fn may_start_as_primary(view: &View, name: &MemberName, now: Moment) -> bool {
    let Some(member) = view.members.get(name) else { return false };
    let unknown = matches!(own_answer(member, now), Some(PostgresAnswer::Starting(Starting { standby: None, .. })));
    let follows = fresh_status(member, now).is_some_and(|status| status.role.follows());
    unknown && member.last_writability.is_none() && !follows
}

/// The state of a member's server, without a new question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is a standby. The text names the source.
    Standby(String),
    /// A recent report shows it writable.
    Writable,
    /// The last report, which is old, showed it writable.
    WasWritable,
    /// No report exists.
    Unknown,
}

/// The state of a member's server by recent reports: of its own agent, of its Patroni, of this agent's session. A
/// report of writes outranks one of a standby. A rejected login reports nothing.
pub fn standing(view: &View, name: &MemberName, now: Moment) -> Standing {
    let Some(member) = view.members.get(name) else { return Standing::Unknown };
    // An answer from an address of two members may be from either.
    let shared = view.members.keys().any(|other| other != name && view.at_one_address(name, other));
    let ours = own_answer(member, now);
    // Patroni's role only shows how it started the server. `writable` comes from a query that the server answered.
    let reports = [
        ("its Patroni", fresh_status(member, now).and_then(|status| status.writable)),
        ("this agent's session", ours.and_then(PostgresAnswer::writable_or_standby)),
        ("its own agent", agent_report(view, name, now).and_then(PostgresAnswer::writable_or_standby)),
    ];
    let known = reports.into_iter().filter_map(|(source, writes)| Some((source, writes?))).filter(|_| !shared);
    match known.max_by_key(|(_, writes)| *writes) {
        Some((_, true)) => Standing::Writable,
        Some((source, false)) => Standing::Standby(source.to_string()),
        None if was_writable(member) => Standing::WasWritable,
        None => Standing::Unknown,
    }
}

/// Whether a member could be promoted now: it is a standby, and its server answers in recovery. A standby that starts
/// may recover for longer than the old primary needs to come back (simulation, seed 46554).
pub fn can_be_promoted(view: &View, name: &MemberName, now: Moment) -> bool {
    let Some(member) = view.members.get(name) else { return false };
    let by_patroni = fresh_status(member, now).and_then(|status| status.writable) == Some(false);
    let answers = [own_answer(member, now), agent_report(view, name, now)];
    let any = |is: fn(&PostgresAnswer) -> bool| answers.into_iter().flatten().any(is);
    matches!(standing(view, name, now), Standing::Standby(_))
        && (by_patroni || any(|answer| matches!(answer, PostgresAnswer::InRecovery(_))))
        && !any(|answer| matches!(answer, PostgresAnswer::Starting(_)))
}

/// The recent answer of a member's server to this agent.
fn own_answer(member: &Member, now: Moment) -> Option<&PostgresAnswer> {
    member.postgres.as_ref().and_then(|fact| fact.fresh(now, PROBE_LIMIT))
}

/// The recent report of a member's own agent about its server.
fn agent_report<'a>(view: &'a View, name: &MemberName, now: Moment) -> Option<&'a PostgresAnswer> {
    let (agent, fact) = agent_of(view, name)?;
    let (answer, age) = fact.value.present()?.postgres.as_ref()?;
    let recent = now.since(fact.at).saturating_add(*age) <= AGENT_LIMIT;
    (recent && *agent != view.identity.agent).then_some(answer)
}

/// The recent answer of a member's Patroni.
fn patroni_answer(member: &Member, now: Moment) -> Option<&PatroniAnswer> {
    member.patroni.as_ref().and_then(|fact| fact.fresh(now, PROBE_LIMIT))
}

fn fresh_status(member: &Member, now: Moment) -> Option<&PatroniStatus> {
    match patroni_answer(member, now)? {
        PatroniAnswer::Answering(status) => Some(status),
        _ => None,
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The local Patroni

/// Whether the local Patroni is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Away {
    /// It is not away, or there is no evidence.
    No,
    /// It counts as away at this moment, unless it answers before.
    Soon(Moment),
    /// It is away. The text gives the evidence.
    Yes(String),
}

/// The evidence that the local Patroni is away while ZooKeeper is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// It does not answer: it is dead by its alive lock, or silent.
    Silence,
    /// Its heartbeat has stopped, so its HA loop does not turn. Its API gives no usable answer.
    Heartbeat,
    /// It answers, and reports a last contact that is too old.
    ReportedContact,
}

/// Whether the alive lock proves that the local Patroni has ended: it is free, and this Patroni held it before.
///
/// The watcher reports only changes of the lock, so its age is unknown. A recent question to Patroni proves that the
/// agent was not suspended. An answer after the lock's report would have made the lock unreliable.
pub fn lock_proves_death(view: &View, own: &MemberName, now: Moment) -> bool {
    let free = view.alive_lock.as_ref().is_some_and(|fact| fact.value == AliveLock::Gone);
    let patroni = view.members.get(own).and_then(|member| member.patroni.as_ref());
    let awake = patroni.is_some_and(|fact| fact.age(now) <= PROBE_LIMIT);
    free && awake && view.leadership.lock_was_ever_held
}

/// Whether the local Patroni is away while ZooKeeper answers: dead by its alive lock, or silent for
/// [`PATRONI_SILENT_MIN`]. A linearizable read refutes the silence: it showed the key after every session of a frozen
/// process would have ended.
pub fn patroni_away(view: &View, own: &MemberName, now: Moment) -> Away {
    if lock_proves_death(view, own, now) {
        return dead();
    }
    if view.leadership.silence.is_some_and(|silence| silence.refuted) {
        return Away::No;
    }
    silent(view, own, now)
}

/// The same while ZooKeeper is away, for the lease rule: it looks for progress of Patroni's HA loop, not for an answer.
/// Returns the evidence too.
pub fn patroni_away_for_lease(view: &View, own: &MemberName, config: &ClusterConfig, now: Moment) -> (Away, Ground) {
    if lock_proves_death(view, own, now) {
        return (dead(), Ground::Silence);
    }
    let Some(member) = view.members.get(own) else { return (Away::No, Ground::Silence) };
    if let Some(began) = heartbeat_evidence(view, member, now) {
        let late = began.plus(progress_limit(config)).plus(Duration::from_millis(1));
        if now < late {
            return (Away::Soon(late), Ground::Heartbeat);
        }
    }
    if let Some(status) = fresh_status(member, now) {
        return (answering_away(view, member, status, config, now), Ground::ReportedContact);
    }
    if heartbeat_is_stale(view, config, now) {
        let why = "its Patroni's HA loop has not turned for too long (its heartbeat session)";
        return (Away::Yes(why.to_string()), Ground::Heartbeat);
    }
    (silent(view, own, now), Ground::Silence)
}

/// When Patroni's heartbeat last began a query, if that still proves a living Patroni. It does not if the port has
/// refused connections since: the process has ended (simulation: frozen inside `get_cluster`, thawed, killed, and no
/// alive lock; or killed after a long silence of its API, seed 737315).
fn heartbeat_evidence(view: &View, member: &Member, now: Moment) -> Option<Moment> {
    let began = view.leadership.heartbeat?.began;
    let asked = member.patroni.as_ref().map(|fact| fact.at);
    let ended = refuses(member, now) && asked.is_some_and(|asked| began <= asked);
    (!ended).then_some(began)
}

/// Whether the port of a member's Patroni has no listener. A living Patroni always listens.
pub fn refuses(member: &Member, now: Moment) -> bool {
    matches!(patroni_answer(member, now), Some(PatroniAnswer::Refused(_)))
}

/// Whether Warden cannot use the answer of a member's Patroni.
pub fn is_unusable(member: &Member, now: Moment) -> bool {
    matches!(patroni_answer(member, now), Some(PatroniAnswer::Unusable(_) | PatroniAnswer::Anothers(_)))
}

/// The longest duration of a round of Patroni's HA loop. A longer one counts as stuck.
pub fn progress_limit(config: &ClusterConfig) -> Duration {
    config.loop_wait.saturating_add(config.retry_timeout).saturating_add(LOOP_LATE_MARGIN)
}

/// Whether Patroni's heartbeat session is visible and has begun no query for too long.
pub fn heartbeat_is_stale(view: &View, config: &ClusterConfig, now: Moment) -> bool {
    heartbeat_is_older(view, progress_limit(config), now)
}

/// The same with a longer limit, if failsafe mode may be active. If ZooKeeper's packets vanish, `get_cluster` takes
/// longer than `retry_timeout`. Only then does Patroni ask the other members.
pub fn heartbeat_is_stale_in_failsafe(view: &View, config: &ClusterConfig, now: Moment) -> bool {
    heartbeat_is_older(view, progress_limit(config).saturating_add(VANISHED_PACKETS_DELAY), now)
}

fn heartbeat_is_older(view: &View, limit: Duration, now: Moment) -> bool {
    heartbeat_can_be_had(view, now)
        && view.leadership.heartbeat.is_some_and(|heartbeat| now.since(heartbeat.began) > limit)
}

/// Whether the agent can see Patroni's heartbeat session.
pub fn heartbeat_can_be_had(view: &View, now: Moment) -> bool {
    view.leadership.heartbeat.is_some_and(|heartbeat| now.since(heartbeat.looked) <= PROBE_LIMIT)
}

/// Whether an answering Patroni is away: the last contact that it reports is too old, or its loop is late.
fn answering_away(view: &View, member: &Member, status: &PatroniStatus, config: &ClusterConfig, now: Moment) -> Away {
    if status.failsafe_active {
        return Away::No;
    }
    // A contact since the question shows that the loop has turned (simulation, seed 613128).
    let turned_since = |asked: Moment| status.dcs_last_seen.is_some_and(|seen| seen.plus(CONTACT_ROUNDING) > asked);
    let late = member.loop_turns.as_ref().filter(|fact| fact.fresh(now, LIVENESS_LIMIT) == Some(&false));
    if late.is_some_and(|late| !turned_since(late.at)) {
        return Away::Yes("its Patroni says that its HA loop is late (GET /liveness)".to_string());
    }
    let Some(seen) = status.dcs_last_seen else { return Away::No };
    let lease =
        view.leadership.patroni_timeout(config.ttl).map_or(config.ttl, |timeout| timeout.saturating_sub(LEASE_MARGIN));
    let limit = lease.max(progress_limit(config));
    if now.since(seen) > limit {
        return Away::Yes(format!("its Patroni last saw ZooKeeper {} ago", seconds(now.since(seen))));
    }
    Away::Soon(seen.plus(limit).plus(Duration::from_millis(1)))
}

/// Whether Patroni is silent for [`PATRONI_SILENT_MIN`] although an answer was to be expected. Patroni has answered
/// since the agent's start or, by the record on disk, in this term; or its heartbeat has stopped too.
fn silent(view: &View, own: &MemberName, now: Moment) -> Away {
    let memory = &view.leadership;
    let Some(member) = view.members.get(own) else { return Away::No };
    let answer = patroni_answer(member, now);
    let (Some(silence), Some(PatroniAnswer::Silent(_) | PatroniAnswer::Refused(_))) = (memory.silence, answer) else {
        return Away::No;
    };
    let stale = view.cluster.config().is_some_and(|config| heartbeat_is_stale(view, config, now));
    if !memory.has_answered && !stale {
        return Away::No;
    }
    let lasted = now.since(silence.since);
    if lasted >= PATRONI_SILENT_MIN {
        Away::Yes(format!("its Patroni has not answered for {}", seconds(lasted)))
    } else {
        Away::Soon(silence.since.plus(PATRONI_SILENT_MIN))
    }
}

fn dead() -> Away {
    Away::Yes("its Patroni is dead (the alive lock is free)".to_string())
}
