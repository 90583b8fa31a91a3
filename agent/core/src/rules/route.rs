//! Routing: which of HAProxy's servers take new connections, and whose sessions are cut.
//!
//! HAProxy's own checks always stay on: they are right in the end, and decide alone while the agent is away. The rule
//! acts where they are late:
//! - A server goes up as soon as its member holds the leader key and is seen writable. An ordinary read suffices, if it
//!   is no older than the last linearizable one.
//! - It takes no new connections at the first sign that it stops. A wrong sign costs little.
//! - Its sessions are cut only if a linearizable read shows that another member holds the key.
//!
//! While ZooKeeper is away no session is cut, and only the members' own reports count.
//!
//! The table [`command`] decides each command to a server for writes. Its inputs are the leader key, the newest report
//! on the member's server ([`writability`]), and HAProxy's state. The memory ([`memory`]) only decides the length of
//! holds and the interval of questions.

mod memory;
mod reads;
mod writability;

pub use memory::remember;

use crate::assess;
use crate::event::{HaproxyServer, PatroniAnswer, Role, Rule};
use crate::evidence;
use crate::fact::Reading;
use crate::haproxy::{Check, HaproxyAnswer, LastCommand, Pool, REPEATED_WITHIN, ServerCommand, ServerId};
use crate::limits::{self, PROBE_LIMIT};
use crate::rules::guard::{KeyCondition, KeyIs};
use crate::types::{MemberName, Moment};
use crate::view::View;
use alloc::string::String;
use alloc::{format, vec::Vec};
use core::cell::OnceCell;
use core::time::Duration;
use writability::{Writability, writability};

/// The operator's policy of routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutePolicy {
    /// A replica takes no new reads if it has more bytes of WAL than this to replay.
    pub max_lag: u64,
    /// HAProxy sends reads to the primary if no replica takes them, as with the built-in template. If not, the last
    /// server that takes reads goes on, however far behind.
    pub reads_fall_back: bool,
}

impl Default for RoutePolicy {
    fn default() -> Self {
        Self { max_lag: 16 << 20, reads_fall_back: true }
    }
}

/// The shortest interval between two equal commands to a server, if HAProxy's checks undo the command.
const COMMAND_INTERVAL_MIN: Duration = Duration::from_millis(5);

/// The pause after a command that HAProxy rejected, and after the first cut of a server's sessions.
const COMMAND_RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause between two cuts of a server's sessions. A session does not end while its client does not read.
const CUT_PAUSE_MAX: Duration = Duration::from_secs(30);

const _: () = assert!(COMMAND_INTERVAL_MIN.as_millis() < COMMAND_RETRY_PAUSE.as_millis());
const _: () = assert!(COMMAND_RETRY_PAUSE.as_millis() < CUT_PAUSE_MAX.as_millis());
const _: () = assert!(CUT_PAUSE_MAX.as_millis() < REPEATED_WITHIN.as_millis());

/// A command to a server of HAProxy, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The pool of its proxy.
    pub pool: Pool,
    /// The server.
    pub server: ServerId,
    /// HAProxy's address of the server. It has to be the same right before the act.
    pub address: String,
    /// The member at that address.
    pub member: MemberName,
    /// The command.
    pub to: ServerCommand,
    /// The command also ends a maintenance.
    pub ready: bool,
    /// The reason.
    pub reason: String,
    /// The condition that a new barrier read has to meet before sessions are cut.
    pub condition: Option<KeyCondition>,
}

/// A hold of a proxy's new connections for writes, or its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The proxy.
    pub proxy: String,
    /// `true`: hold; `false`: end the hold.
    pub on: bool,
    /// The reason.
    pub reason: String,
}

/// The verdict of the routing rule.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Routing {
    /// The holds to begin, refresh or end now. The others stay.
    pub holds: Vec<Hold>,
    /// The commands to send now.
    pub changes: Vec<Change>,
    /// Ask HAProxy and the members at once, before the next regular question.
    pub probe: bool,
    /// When to judge again without a new event.
    pub again: Option<Moment>,
}

impl Routing {
    fn at(&mut self, moment: Moment) {
        self.again = Some(self.again.map_or(moment, |known| known.min(moment)));
    }
}

/// Judges every server of the local HAProxy.
pub fn judge(view: &View, policy: &RoutePolicy, now: Moment) -> Routing {
    let mut routing = Routing::default();
    let Some(answer) = &view.haproxy else { return routing };
    if let Some(HaproxyAnswer::Servers(servers)) = answer.fresh(now, PROBE_LIMIT) {
        let key = Key::of(view, now);
        // The servers for reads may need it.
        let statuses = OnceCell::new();
        for server in servers.iter().filter(|server| !server.is_left_alone()) {
            let Some(member) = &server.member else { continue };
            let last = view.routing.last_commands.get(&server.id);
            // A command since HAProxy's last answer counts as done until the next answer.
            let up = last.filter(|last| last.at > answer.at).map_or(server.up, |last| last.to == ServerCommand::Up);
            let wanted = match server.pool {
                Pool::Writes => writes(view, &key, server, up, member, now),
                Pool::Reads => reads::judge(view, policy, (servers, server, up), member, &statuses, now),
            };
            let Some((to, reason)) = wanted else { continue };
            let fails = view.routing.failing.contains_key(&server.id);
            let next = last.filter(|last| last.to == to).map(|last| last.at.plus(pause(last, up, fails)));
            match next.filter(|next| now < *next) {
                Some(at) => routing.at(at),
                None => routing.changes.push(Change {
                    pool: server.pool,
                    server: server.id.clone(),
                    address: server.address.clone(),
                    member: member.clone(),
                    to,
                    ready: to == ServerCommand::Up && server.out_of_service().is_some(),
                    reason,
                    condition: view.session().filter(|_| to == ServerCommand::Down).map(|session| KeyCondition {
                        session: session.id,
                        key: KeyIs::OfAnotherThan(member.clone()),
                        sync: None,
                    }),
                }),
            }
        }
    }
    // A cut needs a barrier read, so the other commands come first.
    routing.changes.sort_by_key(|change| change.to == ServerCommand::Down);
    memory::hold(&mut routing, view, now);
    memory::probe(&mut routing, view, now);
    if let Some(contact) = evidence::contact(view, now) {
        // ZooKeeper counts as away from then on.
        routing.at(contact.started.plus(limits::BARRIER_LIMIT).plus(Duration::from_millis(1)));
    }
    routing
}

/// The pause before a command is repeated. `up`: the server takes new connections; `fails`: HAProxy has rejected it.
fn pause(last: &LastCommand, up: bool, fails: bool) -> Duration {
    match last.to {
        // The sessions of the last cut still end. Each pause is as long as all before it, so they double.
        ServerCommand::Down if !up => last.at.since(last.since).clamp(COMMAND_RETRY_PAUSE, CUT_PAUSE_MAX),
        ServerCommand::Down => COMMAND_RETRY_PAUSE,
        _ if fails => COMMAND_RETRY_PAUSE,
        _ => COMMAND_INTERVAL_MIN,
    }
}

/// The state of the leader key.
enum Key<'a> {
    /// By a linearizable read this member holds it.
    Held {
        holder: &'a MemberName,
        /// Maintenance mode, in which the operator moves servers by hand.
        paused: bool,
    },
    /// No member holds it; or a later read contradicts, and the next barrier read is under way. `next` holds it by that
    /// later read.
    Open { next: Option<&'a MemberName> },
    /// ZooKeeper is away. `only_writable` is the member that takes writes, if it is the only one.
    Away { only_writable: Option<&'a MemberName> },
}

impl<'a> Key<'a> {
    fn of(view: &'a View, now: Moment) -> Self {
        match evidence::verified(view, now) {
            Some(known) => match &known.leader {
                Reading::Present(key) => {
                    let paused = known.config.present().is_none_or(|config| config.pause);
                    Self::Held { holder: &key.holder, paused }
                }
                Reading::Absent | Reading::Unreadable(_) => Self::Open { next: None },
            },
            None if evidence::contact(view, now).is_some() => {
                let read = view.leader.as_ref().and_then(|read| read.value.present());
                Self::Open { next: read.map(|key| &key.holder) }
            }
            None => Self::Away { only_writable: only_writable(view, now) },
        }
    }
}

/// The holder of the leader key, as seen from one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// The member itself.
    Itself,
    /// The member itself, by a read that the barrier read under way has yet to confirm. A barrier read takes 50 ms and
    /// more while the ZooKeeper servers' disk is busy, and HAProxy's checks do not wait for one either.
    ItselfUnconfirmed,
    /// Another member.
    Another,
    /// Another member, in maintenance mode.
    AnotherInPause,
    /// No member, or unknown. A writable server may be about to take the key.
    Absent,
    /// ZooKeeper is away, and the member is the only primary.
    OnlyPrimary,
}

/// The newest report on a member's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reported {
    Writable,
    NotWritable,
    Nothing,
}

/// The server's state in HAProxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HaproxyState {
    /// It takes new connections.
    Up,
    /// It takes new connections, and its checks have begun to fail.
    UpFailing,
    /// It takes no new connections, and has open sessions.
    DownInUse,
    /// It takes no new connections, and has no open session.
    Down,
}

/// The command to a server for writes, if one is needed. This table has every case.
const fn command(holder: Holder, reported: Reported, has: HaproxyState) -> Option<ServerCommand> {
    use HaproxyState::{Down, DownInUse, Up, UpFailing};
    use Holder::{Absent, Another, AnotherInPause, Itself, ItselfUnconfirmed, OnlyPrimary};
    use Reported::{NotWritable, Writable};
    match (holder, reported, has) {
        // The rightful primary, also if HAProxy's checks fail.
        (Itself | ItselfUnconfirmed, Writable, UpFailing | DownInUse | Down) => Some(ServerCommand::Up),
        (OnlyPrimary, Writable, DownInUse | Down) => Some(ServerCommand::Up),
        // New connections wait at the first sign that a server stops.
        (Itself | ItselfUnconfirmed | Absent | OnlyPrimary, NotWritable, Up | UpFailing) => Some(ServerCommand::Drain),
        // Another member leads: the server takes no connection and keeps no session.
        (Another, _, Up | UpFailing | DownInUse) => Some(ServerCommand::Down),
        (AnotherInPause, _, Up | UpFailing) => Some(ServerCommand::Drain),
        _ => None,
    }
}

/// The command to a server for writes with its reason, if one is needed.
fn writes(
    view: &View,
    key: &Key<'_>,
    server: &HaproxyServer,
    up: bool,
    member: &MemberName,
    now: Moment,
) -> Option<(ServerCommand, String)> {
    let holder = match key {
        Key::Held { holder, .. } if *holder == member => Holder::Itself,
        Key::Held { paused: true, .. } => Holder::AnotherInPause,
        Key::Held { paused: false, .. } => Holder::Another,
        Key::Away { only_writable } if *only_writable == Some(member) && is_primary(view, server, member, now) => {
            Holder::OnlyPrimary
        }
        Key::Open { next: Some(next) } if *next == member => Holder::ItselfUnconfirmed,
        Key::Open { .. } | Key::Away { .. } => Holder::Absent,
    };
    // If another member leads, this member's report does not matter.
    let matters = !matches!(holder, Holder::Another | Holder::AnotherInPause);
    let report = match matters {
        // The server is stopped again as soon as it takes writes. Without ZooKeeper the fence may have been taken back
        // (simulation, seed 80174).
        true if operator_fences(view, member) && !matches!(key, Key::Away { .. }) => {
            Some(Writability::not(now, "the operator has fenced it"))
        }
        true => writability(view, member, now),
        false => None,
    };
    let reported = match &report {
        Some(Writability { writable: true, .. }) => Reported::Writable,
        Some(Writability { writable: false, .. }) => Reported::NotWritable,
        None => Reported::Nothing,
    };
    let has = match (up, server.is_failing(), server.sessions) {
        (true, false, _) => HaproxyState::Up,
        (true, true, _) => HaproxyState::UpFailing,
        (false, _, 0) => HaproxyState::Down,
        (false, ..) => HaproxyState::DownInUse,
    };
    let to = command(holder, reported, has)?;
    let why = match (key, holder) {
        (_, Holder::Itself | Holder::ItselfUnconfirmed) if to == ServerCommand::Up => {
            let failing = if has == HaproxyState::UpFailing { ", and HAProxy's checks fail" } else { "" };
            format!("{member} holds the leader key and takes writes{failing}")
        }
        (Key::Held { holder: other, .. }, Holder::Another | Holder::AnotherInPause) => {
            format!("{other} holds the leader key")
        }
        (_, Holder::OnlyPrimary) if to == ServerCommand::Up => {
            format!("{member} is the only primary, and ZooKeeper is away")
        }
        _ => format!("{member}: {}", report.map_or_else(String::new, |report| report.why)),
    };
    Some((to, why))
}

/// Whether the operator's fence of a member stands.
fn operator_fences(view: &View, member: &MemberName) -> bool {
    let record = view.leadership.records.get(member).and_then(|fact| fact.value.present());
    record.is_some_and(|record| record.rule == Rule::Operator)
}

/// The member whose server takes writes, if it is the only one.
fn only_writable(view: &View, now: Moment) -> Option<&MemberName> {
    let mut writable =
        view.members.keys().filter(|member| writability(view, member, now).is_some_and(|report| report.writable));
    let (Some(only), None) = (writable.next(), writable.next()) else { return None };
    Some(only)
}

/// Whether its Patroni reports a member as primary: to this agent, or else to HAProxy's last check. Without the latter,
/// a server that this agent has drained would wait for a check that passes, and a Patroni that has just begun to hang
/// gives none (simulation, seed 83983).
fn is_primary(view: &View, server: &HaproxyServer, member: &MemberName, now: Moment) -> bool {
    let patroni = assess::patroni_of(view, member, now);
    match patroni.as_ref().map(|fact| &fact.value) {
        Some(PatroniAnswer::Answering(status)) => status.role == Role::Primary,
        _ => matches!(server.check, Check::Passes),
    }
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
