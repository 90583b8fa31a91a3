//! Evidence: what the rules stand on, and what proves what.
//!
//! Whether a linearizable read may be stood on, whether ZooKeeper answers, whether a server may be taking writes, and
//! whether its Patroni is away. A rule that destroys takes these from here, so that no two rules differ in what they
//! take for proof. The reasons are in the architecture page, "Proof and silence".

use crate::assess::agent_of;
use crate::event::{AliveLock, ClusterConfig, PatroniAnswer, PatroniStatus, PostgresAnswer, Starting};
use crate::limits::{AGENT_LIMIT, BARRIER_LIMIT, LIVENESS_LIMIT, PROBE_LIMIT};
use crate::types::{MemberName, Moment, seconds};
use crate::view::{Link, Member, Verification, View};
use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

/// Patroni has to be silent for this long to count as away: five questions in a row. A frozen one has been silent
/// for much longer when its key expires; a slow one misses a question or two.
pub const AWAY: Duration = Duration::from_secs(5);

/// The lease rule acts this long before the key can be somebody else's.
pub const MARGIN: Duration = Duration::from_secs(5);

/// A round of Patroni's HA loop is late when it takes this much longer than `loop_wait` and `retry_timeout` allow.
const LATE_ROUND: Duration = Duration::from_secs(5);

/// By so much longer kazoo takes where no packet comes back.
const VANISHED_PACKETS: Duration = Duration::from_secs(8);

// ---------------------------------------------------------------------------------------------------------------------
// ZooKeeper

/// The newest barrier read, if a rule may stand on it: of this session, recent, and with no later news against it.
pub fn verified(view: &View, now: Moment) -> Option<&Verification> {
    let known = contact(view, now)?;
    let contradicted = view.leader.as_ref().is_some_and(|read| read.at > known.started && read.value != known.leader);
    (!contradicted).then_some(known)
}

/// The newest barrier read, if it is of this session and recent, whatever other news there is: ZooKeeper answers.
pub fn contact(view: &View, now: Moment) -> Option<&Verification> {
    let known = view.verified.as_ref()?;
    let current = view.session().is_some_and(|session| session.id == known.session);
    (current && now.since(known.started) <= BARRIER_LIMIT).then_some(known)
}

/// When ZooKeeper counts as away: a session that has just begun is about to be verified, and one that has just ended,
/// because another timeout is wanted or for a hiccup, is about to be had again (simulation, seed 202774). `None` if
/// there never was a linearizable read and there is no session.
pub fn out_of_contact_at(view: &View) -> Option<Moment> {
    let begun = if let Link::Connected { since, .. } = view.link { Some(since) } else { None };
    view.leadership.read_at.max(begun).map(|newest| newest.plus(BARRIER_LIMIT).plus(Duration::from_millis(1)))
}

// ---------------------------------------------------------------------------------------------------------------------
// A server

/// Last seen out of recovery, and nothing since proved otherwise: silence keeps it so. A server that starts and was
/// the primary is one: it takes writes as soon as it is up.
pub fn presumed_writable(view: &View, name: &MemberName, now: Moment) -> bool {
    let Some(member) = view.members.get(name) else { return false };
    member.writable_since.is_some() || starts_as_primary(view, name, member, now).is_some()
}

/// The last word of a member on its own server was that it takes writes.
pub fn was_writable(member: &Member) -> bool {
    member.last_word.is_some_and(|(_, writes)| writes)
}

/// A server that lets no session in yet, and takes writes when it does: it was last seen writable, or nothing was heard of it
/// and its own agent has found a primary's data directory; and nothing since says that it is a standby.
pub fn starts_as_primary<'a>(
    view: &'a View,
    name: &MemberName,
    member: &'a Member,
    now: Moment,
) -> Option<&'a Starting> {
    let starting = match (&member.postgres.as_ref()?.value, agent_says(view, name, now)) {
        // Only its own agent can look into its data directory.
        (PostgresAnswer::Starting(_), Some(PostgresAnswer::Starting(starting))) => starting,
        (PostgresAnswer::Starting(starting), _) => starting,
        _ => return None,
    };
    let follows = fresh_status(member, now).is_some_and(|status| status.role.follows());
    let primary = match (starting.standby, member.last_word) {
        (Some(true), _) | (_, Some((_, false))) | (None, None) => false,
        (Some(false), None) | (_, Some((_, true))) => true,
    };
    (primary && !follows).then_some(starting)
}

/// A server that lets no session in yet, and that may take writes when it does: its data directory cannot be looked into,
/// and no word of it was heard before. (Its agent was started since, for one.)
pub fn may_start_as_primary(view: &View, name: &MemberName, now: Moment) -> bool {
    let Some(member) = view.members.get(name) else { return false };
    let unknown =
        matches!(our_session_says(member, now), Some(PostgresAnswer::Starting(Starting { standby: None, .. })));
    let follows = fresh_status(member, now).is_some_and(|status| status.role.follows());
    unknown && member.last_word.is_none() && !follows
}

/// What is known of a member's server without asking it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is a standby; the text says who says so.
    Standby(String),
    /// It was seen writable just now.
    Writable,
    /// When it last said anything of it, it was writable.
    WasWritable,
    /// It never said anything of it.
    Unknown,
}

/// What is known of a member's server by those who have just heard it: its own agent, its Patroni, our own session. A
/// word for "takes writes" outweighs one against it; a login that we lack says nothing.
pub fn standing(view: &View, name: &MemberName, now: Moment) -> Standing {
    let Some(member) = view.members.get(name) else { return Standing::Unknown };
    // Two members at one address: what answers there may be either.
    let shared = view.members.keys().any(|other| other != name && view.at_one_address(name, other));
    let ours = our_session_says(member, now);
    // Patroni's role alone says how it started the server; `writable` comes from a query that the server answered.
    let words = [
        ("its Patroni", fresh_status(member, now).and_then(|status| status.writable)),
        ("our own session", ours.and_then(PostgresAnswer::says)),
        ("its own agent", agent_says(view, name, now).and_then(PostgresAnswer::says)),
    ];
    let heard = words.into_iter().filter_map(|(who, word)| Some((who, word?))).filter(|_| !shared);
    match heard.max_by_key(|(_, writes)| *writes) {
        Some((_, true)) => Standing::Writable,
        Some((who, false)) => Standing::Standby(who.to_string()),
        None if was_writable(member) => Standing::WasWritable,
        None => Standing::Unknown,
    }
}

/// Whether a member could be promoted now: it is a standby, and its server answers in recovery. One that still starts is
/// a standby, too, but may go on recovering for longer than the old primary takes to come back (simulation, seed 46554).
pub fn can_be_promoted(view: &View, name: &MemberName, now: Moment) -> bool {
    let Some(member) = view.members.get(name) else { return false };
    let by_patroni = fresh_status(member, now).and_then(|status| status.writable) == Some(false);
    let answers = [our_session_says(member, now), agent_says(view, name, now)];
    let any = |is: fn(&PostgresAnswer) -> bool| answers.into_iter().flatten().any(is);
    matches!(standing(view, name, now), Standing::Standby(_))
        && (by_patroni || any(|answer| matches!(answer, PostgresAnswer::InRecovery(_))))
        && !any(|answer| matches!(answer, PostgresAnswer::Starting(_)))
}

/// What our own session with a member's server says, if that is recent.
fn our_session_says(member: &Member, now: Moment) -> Option<&PostgresAnswer> {
    member.postgres.as_ref().and_then(|fact| fact.fresh(now, PROBE_LIMIT))
}

/// What the agent beside a member says of its server, if that is recent.
fn agent_says<'a>(view: &'a View, name: &MemberName, now: Moment) -> Option<&'a PostgresAnswer> {
    let (agent, fact) = agent_of(view, name)?;
    let (answer, age) = fact.value.present()?.postgres.as_ref()?;
    let recent = now.since(fact.at).saturating_add(*age) <= AGENT_LIMIT;
    (recent && *agent != view.identity.agent).then_some(answer)
}

/// What a member's Patroni answered, if that is recent.
fn patroni_says(member: &Member, now: Moment) -> Option<&PatroniAnswer> {
    member.patroni.as_ref().and_then(|fact| fact.fresh(now, PROBE_LIMIT))
}

fn fresh_status(member: &Member, now: Moment) -> Option<&PatroniStatus> {
    match patroni_says(member, now)? {
        PatroniAnswer::Answering(status) => Some(status),
        _ => None,
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The local Patroni

/// Whether the local Patroni is away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Away {
    /// It is not, or that is not known.
    No,
    /// It will count as away at this moment, if nothing is heard of it.
    Soon(Moment),
    /// It is; the text says how that is known.
    Yes(String),
}

/// How it is known that the local Patroni is away while ZooKeeper is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// It does not answer: dead by its lock, or silent.
    Silence,
    /// Its heartbeat has stopped: its HA loop does not turn, and its API says nothing of it that can be used.
    Heartbeat,
    /// It answers, and its own word of its last contact is too old.
    OwnWord,
}

/// The lock is free and was held by this Patroni before: the process is gone.
///
/// The lock is only reported when it changes, so that it is not known how old that is. Who has been asking Patroni
/// all the time is awake, and if it had answered since, the lock would not be relied on any more.
pub fn lock_proves_death(view: &View, own: &MemberName, now: Moment) -> bool {
    let free = view.alive_lock.as_ref().is_some_and(|fact| fact.value == AliveLock::Gone);
    let patroni = view.members.get(own).and_then(|member| member.patroni.as_ref());
    let awake = patroni.is_some_and(|fact| fact.age(now) <= PROBE_LIMIT);
    free && awake && view.leadership.lock_was_ever_held
}

/// Whether the local Patroni is away while ZooKeeper answers: dead by its lock, or silent for [`AWAY`], unless a later
/// linearizable read showed the key as its own after every session of a frozen process would have ended.
pub fn patroni_away(view: &View, own: &MemberName, now: Moment) -> Away {
    if lock_proves_death(view, own, now) {
        return dead();
    }
    if view.leadership.silence.is_some_and(|silence| silence.refuted) {
        return Away::No;
    }
    silent(view, own, now)
}

/// The same while ZooKeeper is away, for the lease: it asks for progress of Patroni's HA loop, and not for an answer. Also
/// says by what that is known.
pub fn patroni_away_for_lease(view: &View, own: &MemberName, config: &ClusterConfig, now: Moment) -> (Away, Ground) {
    if lock_proves_death(view, own, now) {
        return (dead(), Ground::Silence);
    }
    let Some(member) = view.members.get(own) else { return (Away::No, Ground::Silence) };
    if let Some(began) = witness(view, member, now) {
        let late = began.plus(progress_limit(config)).plus(Duration::from_millis(1));
        if now < late {
            return (Away::Soon(late), Ground::Heartbeat);
        }
    }
    if let Some(status) = fresh_status(member, now) {
        return (answering_away(view, member, status, config, now), Ground::OwnWord);
    }
    if heartbeat_is_stale(view, config, now) {
        let why = "its Patroni's HA loop has not turned for too long (its heartbeat session)";
        return (Away::Yes(why.to_string()), Ground::Heartbeat);
    }
    (silent(view, own, now), Ground::Silence)
}

/// When Patroni's heartbeat last began a query, if that speaks for it still. A beat from before its port began to refuse does
/// not: the process that beat has ended (simulation: frozen inside `get_cluster`, thawed, killed, and no alive lock).
fn witness(view: &View, member: &Member, now: Moment) -> Option<Moment> {
    let began = view.leadership.heartbeat?.began;
    let ended = refuses(member, now) && view.leadership.silence.is_some_and(|silence| began <= silence.known);
    (!ended).then_some(began)
}

/// No process listens on the port of a member's Patroni: a living one always does.
pub fn refuses(member: &Member, now: Moment) -> bool {
    matches!(patroni_says(member, now), Some(PatroniAnswer::Refused(_)))
}

/// What a member's Patroni answers cannot be used.
pub fn is_unusable(member: &Member, now: Moment) -> bool {
    matches!(patroni_says(member, now), Some(PatroniAnswer::Unusable(_)))
}

/// How long Patroni's HA loop may take for a round before it counts as stuck.
pub fn progress_limit(config: &ClusterConfig) -> Duration {
    config.loop_wait.saturating_add(config.retry_timeout).saturating_add(LATE_ROUND)
}

/// Patroni's heartbeat session was looked at just now, and has begun no query for too long.
pub fn heartbeat_is_stale(view: &View, config: &ClusterConfig, now: Moment) -> bool {
    heartbeat_is_older(view, progress_limit(config), now)
}

/// The same where failsafe mode may be active. A ZooKeeper whose packets vanish keeps `get_cluster` for longer than
/// `retry_timeout`, and only behind that comes Patroni's question to the other members.
pub fn heartbeat_is_stale_in_failsafe(view: &View, config: &ClusterConfig, now: Moment) -> bool {
    heartbeat_is_older(view, progress_limit(config).saturating_add(VANISHED_PACKETS), now)
}

fn heartbeat_is_older(view: &View, limit: Duration, now: Moment) -> bool {
    heartbeat_can_be_had(view, now)
        && view.leadership.heartbeat.is_some_and(|heartbeat| now.since(heartbeat.began) > limit)
}

/// Patroni's heartbeat session can be looked at.
pub fn heartbeat_can_be_had(view: &View, now: Moment) -> bool {
    view.leadership.heartbeat.is_some_and(|heartbeat| now.since(heartbeat.looked) <= PROBE_LIMIT)
}

/// A Patroni that answers counts as away when its own word of its last contact is too old, or its loop is late.
fn answering_away(view: &View, member: &Member, status: &PatroniStatus, config: &ClusterConfig, now: Moment) -> Away {
    if status.failsafe_active {
        return Away::No;
    }
    let late = member.loop_turns.as_ref().and_then(|fact| fact.fresh(now, LIVENESS_LIMIT)) == Some(&false);
    if late {
        return Away::Yes("its Patroni says that its HA loop is late (GET /liveness)".to_string());
    }
    let Some(seen) = status.dcs_last_seen else { return Away::No };
    let lease =
        view.leadership.patroni_timeout(config.ttl).map_or(config.ttl, |timeout| timeout.saturating_sub(MARGIN));
    let limit = lease.max(progress_limit(config));
    if now.since(seen) > limit {
        return Away::Yes(format!("its Patroni last saw ZooKeeper {} ago", seconds(now.since(seen))));
    }
    Away::Soon(seen.plus(limit).plus(Duration::from_millis(1)))
}

/// No answer for [`AWAY`], where an answer was to be expected: Patroni has answered in this agent's life or, by what was
/// kept on disk, in this term; or its heartbeat has stopped, too.
fn silent(view: &View, own: &MemberName, now: Moment) -> Away {
    let memory = &view.leadership;
    let Some(member) = view.members.get(own) else { return Away::No };
    let answer = patroni_says(member, now);
    let (Some(silence), Some(PatroniAnswer::Silent(_) | PatroniAnswer::Refused(_))) = (memory.silence, answer) else {
        return Away::No;
    };
    let stale = view.cluster.config().is_some_and(|config| heartbeat_is_stale(view, config, now));
    if !memory.has_answered && !stale {
        return Away::No;
    }
    let lasted = now.since(silence.since);
    if lasted >= AWAY {
        Away::Yes(format!("its Patroni has not answered for {}", seconds(lasted)))
    } else {
        Away::Soon(silence.since.plus(AWAY))
    }
}

fn dead() -> Away {
    Away::Yes("its Patroni is dead (the alive lock is free)".to_string())
}
