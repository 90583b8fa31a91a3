//! The rules: what is to be done to the cluster, one file each. A rule judges the view; it changes nothing.

pub mod guard;

pub mod fence;
pub mod gate;
pub mod layout;
pub mod nudge;
pub mod reconnect;
pub mod release;
pub mod route;
