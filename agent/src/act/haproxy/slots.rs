//! Prepared servers, for an HAProxy that adds none at runtime (before 2.6). The configuration names spare servers, and
//! a member that joins takes one of them.

use std::iter;
use warden_core::haproxy::file::MemberAddress;
use warden_core::types::MemberName;

/// The member of each prepared server, if it has one; empty if HAProxy adds servers at runtime. The first server is
/// `warden1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots(pub Vec<Option<MemberName>>);

impl Slots {
    /// Whether no servers are prepared.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of a member's prepared server, if it has one.
    pub fn name_of(&self, member: &MemberName) -> Option<String> {
        self.0.iter().position(|owner| owner.as_ref() == Some(member)).map(name)
    }

    /// The names of the servers without a member.
    pub fn spares(&self) -> Vec<String> {
        self.0.iter().enumerate().filter(|(_, owner)| owner.is_none()).map(|(at, _)| name(at)).collect()
    }

    /// The servers for these members. A member that stays keeps its server; one that joins takes a free one. If there
    /// are too few, there are then `spare` more than members.
    pub fn of(&self, places: &[MemberAddress], spare: usize) -> Self {
        let is_there = |member: &MemberName| places.iter().any(|place| place.member == *member);
        let mut slots: Vec<_> = self.0.iter().map(|owner| owner.clone().filter(is_there)).collect();
        let joining = places.iter().map(|place| &place.member).filter(|member| self.name_of(member).is_none());
        for member in joining {
            match slots.iter_mut().find(|owner| owner.is_none()) {
                Some(free) => *free = Some(member.clone()),
                None => slots.push(Some(member.clone())),
            }
        }
        if slots.len() > self.0.len() {
            slots.extend(iter::repeat_n(None, spare));
        }
        Self(slots)
    }
}

fn name(at: usize) -> String {
    format!("warden{}", at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(names: &[&str]) -> Vec<MemberAddress> {
        let place = |name: &&str| MemberAddress {
            member: (*name).into(),
            host: (*name).to_owned(),
            port: 1,
            api: String::new(),
        };
        names.iter().map(place).collect()
    }

    #[test]
    fn a_member_that_stays_keeps_its_server_and_one_that_joins_takes_a_free_one() {
        let of = |slots: &Slots, names: &[&str]| slots.of(&places(names), 2);
        let two = of(&Slots::default(), &["a", "b"]);
        assert_eq!(
            (two.0.len(), two.name_of(&"b".into()), two.spares().concat()),
            (4, Some("warden2".to_owned()), "warden3warden4".to_owned())
        );
        // a leaves. The members that join take free servers.
        let without = of(&two, &["b"]);
        assert_eq!(without.spares(), ["warden1", "warden3", "warden4"]);
        let full = of(&without, &["b", "c", "d", "e"]);
        assert_eq!((full.name_of(&"b".into()).unwrap().as_str(), full.spares().len(), full.0.len()), ("warden2", 0, 4));
        // There are more members than servers, so there are more servers. That needs a reload.
        let more = of(&full, &["b", "c", "d", "e", "f"]);
        assert_eq!((more.0.len(), more.name_of(&"f".into()).unwrap().as_str()), (7, "warden5"));
        assert_eq!(of(&more, &["b", "c", "d", "e", "f"]), more);
    }
}
