//! HAProxy's configuration file: what it is made of, and what became of writing it.

use crate::fact::Reading;
use crate::types::{MemberName, Moment};
use alloc::string::String;
use alloc::vec::Vec;

/// Where a member answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Its name.
    pub member: MemberName,
    /// Its PostgreSQL.
    pub host: String,
    /// Its PostgreSQL.
    pub port: u16,
    /// Its Patroni's REST API, as an URL.
    pub api: String,
}

/// The members that HAProxy's configuration names, ordered by name.
pub type Layout = Vec<Place>;

/// What HAProxy's configuration file was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// These members.
    pub layout: Layout,
    /// Made of the same members now, with the template as it is now, it would be the same, and HAProxy serves it as far
    /// as it can be asked.
    pub current: bool,
}

/// What became of an attempt to write HAProxy's configuration anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RenderReport {
    /// HAProxy serves it.
    Done,
    /// It does not, and the file is what it was before; the text says why.
    Failed(String),
}

/// What has to be remembered.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Drawing {
    /// What the file is made of; absent: there is none. Unreadable: it is not ours.
    pub rendered: Option<Reading<Rendered>>,
    /// What it should be made of, and since when that has been so.
    pub wanted: Option<(Layout, Moment)>,
    /// When it was last ordered to be written.
    pub ordered: Option<Moment>,
    /// Why the last attempt failed, if it did, and when.
    pub failed: Option<(String, Moment)>,
}
