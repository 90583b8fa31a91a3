//! HAProxy's configuration file as data: its members, and the outcome of a rewrite.

use super::ServerId;
use crate::fact::Reading;
use crate::types::{MemberName, Moment};
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

/// A member with its addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberAddress {
    /// Its name.
    pub member: MemberName,
    /// Its PostgreSQL's address.
    pub host: String,
    /// Its PostgreSQL's address.
    pub port: u16,
    /// The URL of its Patroni's REST API.
    pub api: String,
}

/// The content that the agent renders into HAProxy's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// The members, ordered by name.
    pub places: Vec<MemberAddress>,
    /// The limit of sessions for each server.
    pub max_connections: u32,
}

/// The content of HAProxy's configuration file as it was rendered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The rendered members.
    pub backends: Backends,
    /// Servers of former members that HAProxy still has.
    pub left: BTreeSet<ServerId>,
    /// A new rendering with the present template equals the file, and HAProxy serves it as far as its socket shows.
    pub current: bool,
}

/// The outcome of an attempt to rewrite HAProxy's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RenderReport {
    /// HAProxy serves the new file.
    Done {
        /// HAProxy was reloaded.
        reloaded: bool,
    },
    /// HAProxy does not serve it, and the previous file is back. The text gives the reason.
    Failed(String),
}

static NONE: BTreeSet<ServerId> = BTreeSet::new();

impl HaproxyFileMemory {
    /// Servers of former members that HAProxy still has; empty if Warden did not write the file.
    pub fn left(&self) -> &BTreeSet<ServerId> {
        match &self.rendered {
            Some(Reading::Present(Rendered { left, .. })) => left,
            _ => &NONE,
        }
    }

    /// Notes the file as it was just read. A file with the wanted content clears an earlier failure.
    pub fn note_file(&mut self, reading: Reading<Rendered>) {
        if let (Reading::Present(Rendered { backends, current: true, .. }), Some((wanted, _))) =
            (&reading, &self.wanted)
            && backends == wanted
        {
            self.failed = None;
        }
        self.rendered = Some(reading);
    }
}

/// The memory of the rule for HAProxy's configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct HaproxyFileMemory {
    /// The file as rendered. Absent: no file. Unreadable: Warden did not write it.
    pub rendered: Option<Reading<Rendered>>,
    /// The wanted content, and since when it has been the same.
    pub wanted: Option<(Backends, Moment)>,
    /// When the agent last reloaded HAProxy for the file.
    pub reloaded: Option<Moment>,
    /// When a rewrite was last ordered and not yet reported.
    pub ordered: Option<Moment>,
    /// Why and when the last attempt failed.
    pub failed: Option<(String, Moment)>,
}
