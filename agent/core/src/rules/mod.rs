//! The rules, one file each. A rule judges the view and changes nothing.

pub mod guard;

pub mod fence;
pub mod gate;
pub mod haproxy_file;
pub mod nudge;
pub mod reconnect;
pub mod release;
pub mod route;
