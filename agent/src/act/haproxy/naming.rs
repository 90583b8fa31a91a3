//! The names of HAProxy's servers.
//!
//! A server keeps its name as long as its member stays at its host, also if members join. A server with another name is
//! another server to HAProxy. It has none of the sessions of the first, and no state that an operator set.

use super::slots::Slots;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use warden_core::haproxy::file::{Backends, MemberAddress};
use warden_core::types::MemberName;

/// Names of further servers in the built-in template.
const RESERVED_NAMES: [&str; 2] = ["wait", "next"];

/// The names of the members' servers, and the prepared servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Naming {
    /// The members of the prepared servers.
    pub slots: Slots,
    /// The name of each member's server. All are different.
    pub names: BTreeMap<MemberName, String>,
}

impl Naming {
    /// The names for these members without a previous file.
    pub fn fresh(backends: &Backends, slots: Slots) -> Self {
        Self::after(None, backends, slots)
    }

    /// The names for these members after a previous file.
    pub fn after(before: Option<(&Backends, &Self)>, backends: &Backends, slots: Slots) -> Self {
        let places = &backends.places;
        let keeps = |place: &MemberAddress| {
            let (known, naming) = before?;
            let stayed = known.places.iter().any(|other| other.member == place.member && other.host == place.host);
            let prepared = naming.slots.name_of(&place.member).is_some();
            naming.names.get(&place.member).filter(|_| stayed && !prepared).cloned()
        };
        let known = |place: &MemberAddress| slots.name_of(&place.member).or_else(|| keeps(place));
        let mut names: BTreeMap<MemberName, String> =
            places.iter().filter_map(|place| Some((place.member.clone(), known(place)?))).collect();
        let mut taken: BTreeSet<String> =
            RESERVED_NAMES.iter().map(|name| (*name).to_owned()).chain(names.values().cloned()).collect();
        for place in places {
            if names.contains_key(&place.member) {
                continue;
            }
            // Operators know a host by its name, so the host's name comes first if no other member has it.
            let alone = places.iter().filter(|other| other.host == place.host).count() == 1;
            let by_host = (alone && place.host.parse::<IpAddr>().is_err()).then(|| place.host.clone());
            let by_member = place.member.to_string();
            let numbered = (2_u32..).map(|number| format!("{by_member}-{number}"));
            let candidates = by_host.into_iter().chain([by_member.clone()]).chain(numbered);
            let free = candidates.map(|name| allowed(&name)).find(|name| !taken.contains(name));
            if let Some(name) = free {
                taken.insert(name.clone());
                names.insert(place.member.clone(), name);
            }
        }
        Self { slots, names }
    }

    /// The name of a member's server.
    pub fn name_of(&self, member: &MemberName) -> String {
        self.names.get(member).cloned().unwrap_or_else(|| allowed(member.as_str()))
    }
}

/// Replaces the characters that HAProxy does not accept in a name.
fn allowed(name: &str) -> String {
    name.replace(|c: char| !(c.is_ascii_alphanumeric() || "-_.:".contains(c)), "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(members: &[(&str, &str)]) -> Backends {
        let place = |(member, host): &(&str, &str)| MemberAddress {
            member: (*member).into(),
            host: (*host).to_owned(),
            port: 5432,
            api: String::new(),
        };
        Backends { places: members.iter().map(place).collect(), max_connections: 100 }
    }

    fn names(naming: &Naming) -> Vec<&str> {
        naming.names.values().map(String::as_str).collect()
    }

    #[test]
    fn a_server_has_the_name_of_its_host_and_that_of_its_member_if_the_host_is_an_address_or_shared() {
        let members = [("a", "10.0.0.1"), ("b", "same"), ("c", "same"), ("d é", "fe80::1"), ("e", "own")];
        assert_eq!(names(&Naming::fresh(&backends(&members), Slots::default())), ["a", "b", "c", "d__", "own"]);
    }

    #[test]
    fn no_two_servers_have_the_same_name() {
        // A member has the name of another one's host, or of a server of the template.
        let members =
            [("host-b", "10.0.0.1"), ("wait", "10.0.0.2"), ("x", "host-b"), ("y", "wait"), ("é", "1::"), ("_", "2::")];
        let naming = Naming::fresh(&backends(&members), Slots::default());
        let mut all = names(&naming);
        all.sort_unstable();
        assert_eq!(all, ["_", "_-2", "host-b", "wait-2", "x", "y"]);
    }

    #[test]
    fn a_member_that_stays_keeps_its_servers_name_when_others_join() {
        let before = backends(&[("a", "host-a"), ("b", "host-b")]);
        let naming = Naming::fresh(&before, Slots::default());
        let more = backends(&[("a", "host-a"), ("b", "host-b"), ("c", "host-a"), ("host-b", "10.0.0.1")]);
        let then = Naming::after(Some((&before, &naming)), &more, Slots::default());
        assert_eq!(names(&then), ["host-a", "host-b", "c", "host-b-2"]);
        // A member at another host gets another name. One whose host is not shared any more keeps its name.
        let moved = backends(&[("b", "host-x"), ("c", "host-a")]);
        assert_eq!(names(&Naming::after(Some((&more, &then)), &moved, Slots::default())), ["host-x", "c"]);
        // Prepared servers have names of their own. Without them the hosts' names are back.
        let prepared = Naming::after(Some((&before, &naming)), &before, Slots::default().of(&before.places, 1));
        assert_eq!(names(&prepared), ["warden1", "warden2"]);
        assert_eq!(names(&Naming::after(Some((&before, &prepared)), &before, Slots::default())), ["host-a", "host-b"]);
    }
}
