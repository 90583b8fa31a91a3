//! HAProxy: the answers of its runtime socket, the commands that it takes, and the memory of the routing rules.

pub mod file;

use crate::types::{MemberName, Moment};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

/// The answer of HAProxy's runtime socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HaproxyAnswer {
    /// The servers of the configured pools.
    Servers(Vec<HaproxyServer>),
    /// Warden cannot use the answer. The text gives the reason.
    Unusable(String),
}

/// The kind of connections that a proxy takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Pool {
    /// To the primary.
    #[default]
    Writes,
    /// To streaming replicas.
    Reads,
}

impl HaproxyAnswer {
    /// The same answer without the servers in `left`.
    pub fn without(&self, left: &BTreeSet<ServerId>) -> Self {
        match self {
            Self::Servers(servers) => {
                Self::Servers(servers.iter().filter(|server| !left.contains(&server.id)).cloned().collect())
            }
            Self::Unusable(why) => Self::Unusable(why.clone()),
        }
    }
}

impl Pool {
    /// The name in output and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Reads => "reads",
        }
    }
}

/// A server by its name in HAProxy's configuration: `proxy/server`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ServerId {
    /// The backend or listen section.
    pub proxy: String,
    /// The name in that section.
    pub name: String,
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.proxy, self.name)
    }
}

/// The last result of HAProxy's own check of a server.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Check {
    /// The server has no check, or HAProxy has not made it yet.
    #[default]
    None,
    /// The check passed.
    Passes,
    /// The check got an unexpected status: the server is not fit. The text is HAProxy's.
    Refuses(String),
    /// The check got no answer, or one that HAProxy does not understand. The text is HAProxy's.
    Fails(String),
}

/// Why a server is out of service (`MAINT`) or draining (`DRAIN`), independent of its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutOfService {
    /// The operator or another program set it at HAProxy's socket, or the configuration has it.
    ByHand,
    /// Its name does not resolve.
    Unresolved,
    /// HAProxy's agent-check sets it, with this answer.
    AgentCheck(String),
    /// HAProxy's agent-check answers that it is ready. HAProxy has not asked it since.
    AgentCheckEndsIt,
    /// The server that it tracks is out of service: `proxy/server`.
    Follows(String),
}

/// A server of one of HAProxy's pools.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HaproxyServer {
    /// The pool of its proxy.
    pub pool: Pool,
    /// Its name in HAProxy's configuration.
    pub id: ServerId,
    /// `host:port` as HAProxy has resolved it.
    pub address: String,
    /// The member at that host; ports may differ. `None` if the host is no member's.
    pub member: Option<MemberName>,
    /// HAProxy's status text: UP, DOWN, NOLB, MAINT, ...
    pub status: String,
    /// It takes new connections.
    pub up: bool,
    /// Its open sessions.
    pub sessions: u64,
    /// The result of HAProxy's own check.
    pub check: Check,
    /// The server that it tracks (`track`). It takes no commands.
    pub tracks: Option<String>,
    /// HAProxy set it up a short while ago and limits its connections (`slowstart`).
    pub throttled: bool,
    /// Connections in its queue.
    pub queued: u64,
    /// Its limit of sessions (`maxconn`).
    pub limit: Option<u64>,
    /// The recent answer of HAProxy's agent-check to the agent. The agent asks only if the server is out of service.
    pub agent_check: Option<String>,
}

/// Whether an agent-check's answer contains one of these words (HAProxy's configuration manual, `agent-check`).
fn has_word(answer: &str, words: &[&str]) -> bool {
    answer.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| words.contains(&word))
}

impl HaproxyServer {
    /// Whether it takes new connections while its checks have begun to fail: "UP 1/2".
    pub fn is_failing(&self) -> bool {
        self.status.starts_with("UP") && self.status.contains('/')
    }

    /// The reason if it is out of service.
    pub fn out_of_service(&self) -> Option<OutOfService> {
        let status = self.status.as_str();
        if !status.starts_with("MAINT") && !status.starts_with("DRAIN") {
            return None;
        }
        let why = status.split_once('(').map_or("", |(_, why)| why.trim_end_matches(')'));
        if why == "resolution" {
            return Some(OutOfService::Unresolved);
        }
        if let Some(other) = why.strip_prefix("via ") {
            return Some(OutOfService::Follows(other.to_string()));
        }
        // HAProxy does not report the source. The agent-check's answer counts for both: `ready` also ends an operator's
        // maintenance.
        Some(match &self.agent_check {
            Some(answer) if has_word(answer, &["ready"]) => OutOfService::AgentCheckEndsIt,
            Some(answer) if has_word(answer, &["maint", "drain"]) => OutOfService::AgentCheck(answer.clone()),
            _ => OutOfService::ByHand,
        })
    }

    /// Whether it has no check. Nothing would undo a command to it if the agent dies.
    pub fn is_unchecked(&self) -> bool {
        self.status == "no check"
    }

    /// Whether the agent must not command it. The operator owns a maintenance, and an agent-check decides. A tracking
    /// server takes no commands, a server without an address has no host, and nothing would undo a command to one
    /// without a check.
    pub fn is_left_alone(&self) -> bool {
        self.tracks.is_some()
            || self.is_unchecked()
            || !matches!(self.out_of_service(), None | Some(OutOfService::AgentCheckEndsIt))
    }
}

/// A command to a server at HAProxy's runtime socket. HAProxy's own checks continue, and decide alone while the agent
/// is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServerCommand {
    /// Take new connections (`health up`).
    Up,
    /// Take no new connections, and keep open ones (`health stopping`). HAProxy's next good check undoes it.
    Drain,
    /// Take no connections, and cut open ones (`health down`, `shutdown sessions`).
    Down,
}

impl ServerCommand {
    /// The name in output and in JSON; a metric label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Drain => "drain",
            Self::Down => "down",
        }
    }
}

/// The outcome of a server command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteReport {
    /// The server's pool.
    pub pool: Pool,
    /// The server.
    pub server: ServerId,
    /// The member at its address.
    pub member: MemberName,
    /// The command.
    pub to: ServerCommand,
    /// The outcome.
    pub outcome: RouteOutcome,
}

/// The outcome of a server command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteOutcome {
    /// HAProxy carried it out.
    Done {
        /// The time since the order.
        took: Duration,
    },
    /// The command was obsolete. The text gives the reason.
    Withdrawn(String),
    /// HAProxy rejected it. The text gives the reason.
    Failed(String),
    /// Mode `observe`: the agent only logged and counted it.
    Observed,
}

/// The outcome of a hold of a proxy's new connections for writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldReport {
    /// The proxy.
    pub proxy: String,
    /// The outcome.
    pub outcome: HoldOutcome,
}

/// The outcome of a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HoldOutcome {
    /// New connections wait, independent of HAProxy's checks.
    Begun,
    /// The hold ended.
    Ended {
        /// The time since the hold began.
        after: Duration,
    },
    /// HAProxy cannot hold, or failed to. The text gives the reason.
    Failed(String),
}

/// The memory of the routing rules.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RoutingMemory {
    /// When the agent's session with a member's PostgreSQL was last lost.
    pub session_lost_at: BTreeMap<MemberName, Moment>,
    /// The session losses of the present window: its first loss, and their number. See
    /// [`RoutingMemory::note_session_loss`].
    pub session_losses: BTreeMap<MemberName, (Moment, u32)>,
    /// By proxy: since when it has had no server for writes whose member takes writes.
    pub unrouted_since: BTreeMap<String, Moment>,
    /// By proxy: since when it would send new connections for writes to a server that stops, or to none.
    pub misrouted_since: BTreeMap<String, Moment>,
    /// By proxy: when the agent last refreshed the hold. The entry goes when the agent ends the hold.
    pub hold_refreshed_at: BTreeMap<String, Moment>,
    /// The last command to each server.
    pub last_commands: BTreeMap<ServerId, LastCommand>,
    /// Since when HAProxy's check of a server for writes has contradicted the agent's own facts.
    pub contradicted_since: BTreeMap<ServerId, Moment>,
    /// When HAProxy last limited a server's connections after it was set up (`slowstart`).
    pub throttled: BTreeMap<ServerId, Moment>,
    /// When connections last waited in a server's queue, and their number.
    pub queued: BTreeMap<ServerId, (u64, Moment)>,
    /// The servers whose check said no when it last had an answer: the proxy may want other replicas (`/sync`).
    pub refused: BTreeSet<ServerId>,
    /// The replicas that have streamed, by their Patronis' answers, and since when each has not; `None` while it
    /// streams. Patroni before 3.1 never says that a replica streams.
    pub streamed: BTreeMap<MemberName, Option<Moment>>,
    /// The frontends that last had as many connections as they may: that number, and the time.
    pub full: BTreeMap<String, (u64, Moment)>,
    /// By proxy: why a hold failed, and when. The entry goes when a hold succeeds.
    pub cannot_hold: BTreeMap<String, (String, Moment)>,
    /// By server: why the last command failed, and when.
    pub failing: BTreeMap<ServerId, (String, Moment)>,
    /// When the agent last asked HAProxy and the members before the next regular question.
    pub probed: Option<Moment>,
}

/// The last command to a server, which the agent may have sent several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastCommand {
    /// The command.
    pub to: ServerCommand,
    /// When the agent last sent it.
    pub at: Moment,
    /// When the agent first sent it, without a long pause since.
    pub since: Moment,
}

/// An equal command after a longer pause than this is a new one.
pub(crate) const REPEATED_WITHIN: Duration = Duration::from_secs(60);

/// The window over which session losses are counted.
const SESSION_LOSS_WINDOW: Duration = Duration::from_secs(2);

/// Further losses in one window are ignored. A client that keeps terminating the agent's sessions cannot block traffic
/// to a healthy server. A normal shutdown causes two.
const SESSION_LOSSES_MAX: u32 = 4;

impl RoutingMemory {
    /// Notes a command to a server.
    pub fn note_command(&mut self, server: ServerId, to: ServerCommand, at: Moment) {
        let repeated = |last: &&LastCommand| last.to == to && at.since(last.at) <= REPEATED_WITHIN;
        let since = self.last_commands.get(&server).filter(repeated).map_or(at, |last| last.since);
        self.last_commands.insert(server, LastCommand { to, at, since });
    }

    /// Notes that the agent's session with a member's PostgreSQL was lost.
    pub fn note_session_loss(&mut self, member: MemberName, at: Moment) {
        let (since, count) = self
            .session_losses
            .get(&member)
            .copied()
            .filter(|(since, _)| at.since(*since) < SESSION_LOSS_WINDOW)
            .unwrap_or((at, 0));
        self.session_losses.insert(member.clone(), (since, count.saturating_add(1)));
        if count < SESSION_LOSSES_MAX {
            self.session_lost_at.insert(member, at);
        }
    }
}
