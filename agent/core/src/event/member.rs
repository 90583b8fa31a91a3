//! Events of a member: the answers of its Patroni and its PostgreSQL.

use super::{PatroniAnswer, PostgresAnswer};
use crate::fact::Source;
use alloc::string::String;

/// An answer or a sign of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberEvent {
    /// Its Patroni's answer to `GET /health`.
    Patroni(PatroniAnswer),
    /// Its Patroni's answer to `GET /liveness`.
    Liveness {
        /// Its HA loop turns (status 200), or is late (503).
        turns: bool,
    },
    /// Its PostgreSQL's answer.
    Postgres {
        /// The unix socket or TCP.
        via: Source,
        /// The answer.
        answer: PostgresAnswer,
    },
    /// The agent's session with its PostgreSQL ended. The server stops, or another client terminated the session.
    SessionBroke,
    /// Whether the login that `warden gate` would use works. The error gives the reason why not.
    GateChecked(Result<(), String>),
}
