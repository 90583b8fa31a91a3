//! The members to ask, and their addresses. The loop knows the members from ZooKeeper and publishes them as
//! [`Targets`]; watchers and actors read them.

use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;
use warden_core::assess;
use warden_core::types::{MemberName, Moment};
use warden_core::view::View;

/// The agent asks at most this many members, because each costs two questions a second.
const MEMBERS_MAX: usize = 64;

/// The addresses of a member.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Target {
    /// Base address of its REST API.
    pub api: Option<String>,
    /// Its PostgreSQL over TCP.
    pub postgres: Option<(String, u16)>,
    /// Its own agent reports its Patroni's answers, so this agent does not ask its Patroni.
    pub its_agent_tells: bool,
}

impl Target {
    /// Whether both have the same addresses, so that the same watchers serve both.
    pub fn is_at_the_same_place(&self, other: &Self) -> bool {
        let Self { api, postgres, its_agent_tells: _ } = self;
        (api, postgres) == (&other.api, &other.postgres)
    }
}

/// All members, by name.
pub type Targets = BTreeMap<MemberName, Target>;

/// The members in the view. Notes for each whether its own agent reports its Patroni's answers.
pub fn targets_beside_agents(view: &View, now: Moment) -> Targets {
    let mut targets = targets(view);
    for (name, target) in &mut targets {
        target.its_agent_tells = assess::its_agent_tells(view, name, now);
    }
    targets
}

/// The members in the view, for a caller that asks all of them.
pub fn targets(view: &View) -> Targets {
    let known = view.members.iter().filter_map(|(name, member)| {
        let record = member.last_record.as_ref()?;
        let (api, postgres) = (record.api.clone(), record.postgres());
        Some((name.clone(), Target { api, postgres, its_agent_tells: false }))
    });
    known.take(MEMBERS_MAX).collect()
}

/// Wakes the watchers of PostgreSQL and HAProxy, so that they ask at once.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    /// The watcher of the local server.
    pub own: Arc<Notify>,
    /// The watchers of all other members that now wait for their next question.
    pub others: Arc<Notify>,
    /// The watcher of the local HAProxy.
    pub haproxy: Arc<Notify>,
}
