//! The actor that keeps HAProxy's configuration file: its dependencies. Its parts are `file` (the loop, and the file),
//! `reload` (HAProxy takes the file by a reload) and `runtime` (HAProxy takes a change while it runs).

use super::lines::{self, Server};
use crate::config::{HaproxyConfig, RenderConfig};
use crate::events::Events;
use crate::targets::Probes;

/// The start of the line of `add server` in HAProxy's `help` (2.6; older versions have it as an experiment only).
pub const ADD_SERVER_HELP: &str = "add server ";

/// The actor's dependencies.
pub struct HaproxyFileActor {
    /// The local HAProxy.
    pub haproxy: HaproxyConfig,
    /// HAProxy's configuration file.
    pub file: RenderConfig,
    /// The program that checks a configuration. It need not be installed.
    pub checker: &'static str,
    /// The text in HAProxy's `help` that shows that HAProxy adds servers at runtime.
    pub add_server_help: &'static str,
    /// Whether the agent may change the file. In mode `observe` it may not.
    pub enforce: bool,
    /// To ask for a new look at HAProxy.
    pub probes: Probes,
    /// For the reports to the loop.
    pub events: Events,
}

/// The servers that a configuration names; none if the agent cannot read its `server` lines.
pub(super) fn named_servers(rendered: &str) -> Vec<Server> {
    lines::servers(rendered).unwrap_or_default()
}
