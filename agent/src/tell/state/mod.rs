//! The state as JSON: the answer of `/api/v1/state`, and the output of `warden status -f json`.
//!
//! It is an interface: fields may be added, and no field is renamed or gets another meaning. An unknown value is
//! `null`, never a guess. `agent/docs/reference/state.md` documents every field.

mod build;
mod schema;

pub use build::{Observer, state};
pub use schema::{
    About, Agent, Answer, Cluster, Fence, Haproxy, Leader, Member, MemberAgent, Server, State, Warning, ZooKeeper,
};
