//! The paths of a cluster's trees in ZooKeeper, without chroot: Patroni's, Warden's own, and that of Warden 0.1.
//!
//! Warden's own tree is `/warden` followed by Patroni's path. Two clusters share it only if they share Patroni's tree.
//! Two kinds of paths would break that, and [`part`] prevents both:
//!
//! - A part of Patroni's path may have the name of a znode in a tree. Namespace `/service/x` with scope `agents` would
//!   be the folder of the agents of cluster `/service/x`.
//! - A path without a namespace has one part. It would be the tree of Warden 0.1 for that scope, which clusters of
//!   every namespace have used.

use super::Config;

/// Follows `/warden` if Patroni's path has only one part: namespace `/`, no group.
const ROOT: &str = "root";

/// The names that no part of Patroni's path keeps in Warden's path.
const TAKEN: [&str; 17] = [
    ROOT,
    // Warden's znodes.
    "agents",
    "audit",
    "barriers",
    "fences",
    "shared",
    "upgrade",
    // Patroni's znodes. With Patroni's namespace `/warden`, a persistent znode `leader` of Warden would block the
    // leader key.
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

    /// The tree of Warden 0.1, which ignored the namespace: `/warden/my_cluster`, `/warden/my_cluster-1`.
    pub fn old_tree(&self) -> String {
        let group = self.citus_group.map_or_else(String::new, |group| format!("-{group}"));
        format!("/warden/{}{group}", self.scope)
    }
}

/// Warden's tree for Patroni's tree at `path`.
fn beside(path: &str) -> String {
    let parts: Vec<String> = path.split('/').filter(|name| !name.is_empty()).map(part).collect();
    let root = if parts.len() == 1 { format!("/{ROOT}") } else { String::new() };
    format!("/warden{root}/{}", parts.join("/"))
}

/// A part of Patroni's path in Warden's path. A [`TAKEN`] name, with or without underscores behind it, gets one
/// underscore more. Different parts stay different, and no part is a taken name.
fn part(name: &str) -> String {
    let more = if TAKEN.contains(&name.trim_end_matches('_')) { "_" } else { "" };
    format!("{name}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::zookeeper::{FOLDERS, SHARED, UPGRADE};
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
            // No namespace: `/warden/my_cluster` is the tree of Warden 0.1 for every cluster with this scope.
            ("/my_cluster", "/warden/root/my_cluster"),
            ("/root/my_cluster", "/warden/root_/my_cluster"),
            ("/root_/my_cluster", "/warden/root__/my_cluster"),
            ("/my_cluster/1", "/warden/my_cluster/1"),
            // These would lie inside another cluster's folders, or replace Patroni's own znodes.
            ("/service/x/agents", "/warden/service/x/agents_"),
            ("/service/x/agents_", "/warden/service/x/agents__"),
            ("/service/x/fences/y", "/warden/service/x/fences_/y"),
            ("/x/leader", "/warden/x/leader_"),
            ("/warden/x", "/warden/warden/x"),
            // A taken name inside a longer one does not count.
            ("/service/my_agents", "/warden/service/my_agents"),
            ("/service/_agents", "/warden/service/_agents"),
        ] {
            assert_eq!(beside(patroni), ours, "{patroni}");
        }
    }

    /// A path of Patroni's. The names are few, so that equal ones are frequent.
    fn path() -> impl Strategy<Value = String> {
        let bare = prop::sample::select(vec!["a", "a-1", "1", "root", "agents", "fences", "audit", "leader", "warden"]);
        let name = (bare, 0..3_usize).prop_map(|(name, more)| format!("{name}{}", "_".repeat(more)));
        prop::collection::vec(name, 1..5).prop_map(|names| format!("/{}", names.join("/")))
    }

    proptest! {
        #[test]
        fn no_two_clusters_share_a_tree(one in path(), other in path()) {
            prop_assume!(one != other);
            let (ours, theirs) = (beside(&one), beside(&other));
            prop_assert_ne!(&ours, &theirs);
            // It is not in the folders of another cluster or of Warden 0.1, and replaces no znode of Patroni's.
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
