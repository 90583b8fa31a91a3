//! Where a cluster's znodes are, without chroot: Patroni's tree, Warden's own, and the one that Warden 0.1 used.
//!
//! Warden's own tree is `/warden` followed by Patroni's path, so that two clusters share one only if they share
//! Patroni's. Two things would break that, and [`part`] prevents both with one rule. A part of Patroni's path may be
//! called like a znode of a tree's own: namespace `/service/x` with scope `agents` would be an agent of cluster
//! `/service/x`. And the one part of a path without a namespace would be 0.1's tree of that scope, which clusters of
//! every namespace have used and which stays.

use super::Config;

/// Follows `/warden` where Patroni's path has one part only: namespace `/`, no group.
const ROOT: &str = "root";

/// No part of Patroni's path stands in our path under one of these names.
const TAKEN: [&str; 17] = [
    ROOT,
    // Our own znodes.
    "agents",
    "audit",
    "barriers",
    "fences",
    "shared",
    "upgrade",
    // Patroni's. Its namespace may be `/warden`: a persistent `leader` of ours would keep that cluster from a leader.
    "config",
    "failover",
    "failsafe",
    "history",
    "initialize",
    "leader",
    "members",
    "optime",
    "status",
    "sync",
];

impl Config {
    /// Patroni's tree: `/service/my_cluster`, with a Citus group `/service/my_cluster/1`.
    pub fn patroni_tree(&self) -> String {
        let group = self.citus_group.map_or_else(String::new, |group| format!("/{group}"));
        format!("{}{}{group}", self.namespace, self.scope)
    }

    /// Warden's tree: `/warden/service/my_cluster`, with a Citus group `/warden/service/my_cluster/1`.
    pub fn own_tree(&self) -> String {
        beside(&self.patroni_tree())
    }

    /// The tree of Warden 0.1, which did not tell namespaces apart: `/warden/my_cluster`, `/warden/my_cluster-1`.
    pub fn old_tree(&self) -> String {
        let group = self.citus_group.map_or_else(String::new, |group| format!("-{group}"));
        format!("/warden/{}{group}", self.scope)
    }
}

/// Warden's tree for Patroni's at `path`.
fn beside(path: &str) -> String {
    let parts: Vec<String> = path.split('/').filter(|name| !name.is_empty()).map(part).collect();
    let root = if parts.len() == 1 { format!("/{ROOT}") } else { String::new() };
    format!("/warden{root}/{}", parts.join("/"))
}

/// A part of Patroni's path as it stands in ours: one that is [`TAKEN`], or is such a name with underscores behind it,
/// gets one more. That keeps apart what was apart, and gives nothing that is taken.
fn part(name: &str) -> String {
    let more = if TAKEN.contains(&name.trim_end_matches('_')) { "_" } else { "" };
    format!("{name}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::zookeeper::{FOLDERS, SHARED, UPGRADE};
    use proptest::prelude::*;

    #[test]
    fn warden_follows_patronis_path() {
        for (patroni, ours) in [
            ("/service/my_cluster", "/warden/service/my_cluster"),
            ("/service-pr1/my_cluster", "/warden/service-pr1/my_cluster"),
            ("/stage/eu/my_cluster", "/warden/stage/eu/my_cluster"),
            ("/service/my_cluster/0", "/warden/service/my_cluster/0"),
            ("/service/a-1", "/warden/service/a-1"),
            ("/service/a/1", "/warden/service/a/1"),
            // No namespace: `/warden/my_cluster` is 0.1's tree of every cluster with this scope.
            ("/my_cluster", "/warden/root/my_cluster"),
            ("/root/my_cluster", "/warden/root_/my_cluster"),
            ("/root_/my_cluster", "/warden/root__/my_cluster"),
            ("/my_cluster/1", "/warden/my_cluster/1"),
            // What would lie inside another cluster's folders, or in the place of Patroni's own znodes.
            ("/service/x/agents", "/warden/service/x/agents_"),
            ("/service/x/agents_", "/warden/service/x/agents__"),
            ("/service/x/fences/y", "/warden/service/x/fences_/y"),
            ("/x/leader", "/warden/x/leader_"),
            ("/warden/x", "/warden/warden/x"),
            // Only whole names are taken.
            ("/service/my_agents", "/warden/service/my_agents"),
            ("/service/_agents", "/warden/service/_agents"),
        ] {
            assert_eq!(beside(patroni), ours, "{patroni}");
        }
    }

    /// A path of Patroni's: few names, so that they meet.
    fn path() -> impl Strategy<Value = String> {
        let bare = prop::sample::select(vec!["a", "a-1", "1", "root", "agents", "fences", "audit", "leader", "warden"]);
        let name = (bare, 0..3_usize).prop_map(|(name, more)| format!("{name}{}", "_".repeat(more)));
        prop::collection::vec(name, 1..5).prop_map(|names| format!("/{}", names.join("/")))
    }

    proptest! {
        #[test]
        fn no_two_clusters_meet(one in path(), other in path()) {
            prop_assume!(one != other);
            let (ours, theirs) = (beside(&one), beside(&other));
            prop_assert_ne!(&ours, &theirs);
            // Neither in another's folders, nor in 0.1's folders of a scope, nor in the place of a znode of Patroni's.
            for name in TAKEN.into_iter().filter(|name| *name != ROOT) {
                let folder = format!("{ours}/{name}");
                prop_assert!(theirs != folder && !theirs.starts_with(&format!("{folder}/")), "{theirs} in {folder}");
                prop_assert!(!theirs.split('/').any(|part| part == name), "{theirs}");
            }
            prop_assert!(theirs.matches('/').count() > 2, "{theirs} may be a tree of 0.1");
        }
    }

    #[test]
    fn the_folders_of_a_tree_are_taken() {
        for name in FOLDERS.into_iter().chain([UPGRADE, SHARED]) {
            assert!(TAKEN.contains(&name), "{name}");
        }
    }
}
