//! Bugs that are put in on purpose, without a change of the core: the plan is thinned out, the view is altered before
//! it is decided upon, what is heard is bent, or the hands leave out what they have to look at again.
//!
//! Each goes with the faults in which it shows. Sound histories with the same faults have to pass, so that it is the
//! bug that is found and not the weather.

use crate::faults::What;
use std::time::Duration;
use warden_core::event::{AliveLock, FailoverRequest, PatroniAnswer, PostgresAnswer, Rule, SyncState};
use warden_core::evidence::{AWAY, MARGIN};
use warden_core::fact::{Fact, Reading, Source};
use warden_core::leadership::Gone;
use warden_core::types::{MemberName, Moment};
use warden_core::view::View;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// None: Warden as it is.
    Sound,
    /// A rule is forgotten.
    WithoutRule(Rule),
    /// Maintenance mode is not seen.
    IgnoresPause,
    /// Nothing is looked at again before acting.
    Unguarded,
    /// An ordinary read counts as a barrier read, also right before acting.
    PlainForBarrier,
    /// The lease rule waits to the very end.
    NoMargin,
    /// One missing answer, and Patroni counts as away.
    NoAway,
    /// The alive lock need not have been seen held.
    LockNeedNotBeHeld,
    /// A lock that was found free is believed for ever: asleep or not, whatever Patroni answers.
    LockBelievedForEver,
    /// Nothing is known of failsafe mode.
    IgnoresFailsafe,
    /// A server that is silent is taken to be stopped.
    SilenceIsProof,
    /// A raised ttl counts at once.
    ForgetsOldTtl,
    /// The lease counts from now, whenever Patroni was last in contact.
    LeaseForEver,
    /// The key is released when Patroni is dead, whatever its server does.
    ReleaseWithoutSocket,
    /// The key is released when the server is down, whatever Patroni does.
    ReleaseWithoutLock,
    /// A server that is down is handed over without anybody having asked for it.
    HandoverUnasked,
    /// The gate lets every promotion pass.
    GatePassesAlways,
    /// The gate refuses beside a healthy standby.
    GateRefusesStandby,
    /// A fence record counts for ever, whatever happened since.
    OldRecordCounts,
}

/// Every bug and its faults.
pub const MUTATIONS: &[(Mutation, &[What])] = &[
    (Mutation::WithoutRule(Rule::Superseded), &[What::PauseNode, What::FreezePatroni, What::KillAgent]),
    (Mutation::WithoutRule(Rule::Orphaned), &[What::KillPatroni, What::FreezePatroni]),
    (Mutation::WithoutRule(Rule::Lease), &[What::KillPatroni, What::FreezePatroni, What::CutAgent]),
    (Mutation::WithoutRule(Rule::Peer), &[What::KillPatroni, What::FreezePatroni, What::KillAgent]),
    (Mutation::IgnoresPause, &[What::Maintenance, What::KillPatroni, What::FreezePatroni]),
    (Mutation::Unguarded, &[What::KillPatroni, What::FreezePatroni, What::Lag(1200), What::KillNode]),
    (Mutation::PlainForBarrier, &[What::KillPatroni, What::FreezePatroni, What::Lag(1200), What::Switchover]),
    (Mutation::NoMargin, &[What::KillPatroni, What::CutAgent, What::DrowsyAgent]),
    (Mutation::NoAway, &[What::SlowRest, What::StuckLoop, What::CutPatroni]),
    (Mutation::LockNeedNotBeHeld, &[What::WithoutFlock, What::Ttl(20_000), What::Ttl(30_000), What::Ttl(40_000)]),
    (Mutation::LockBelievedForEver, &[What::KillPatroni, What::PauseAgent, What::RestartPatroni, What::CutAgent]),
    (Mutation::IgnoresFailsafe, &[What::Failsafe, What::ZooKeeperDown, What::HungRest]),
    (Mutation::SilenceIsProof, &[What::PauseNode]),
    (Mutation::ForgetsOldTtl, &[What::Ttl(40_000), What::KillPatroni, What::FreezePatroni, What::CutAgent]),
    (Mutation::LeaseForEver, &[What::KillPatroni, What::FreezePatroni, What::CutAgent]),
    (Mutation::ReleaseWithoutSocket, &[What::KillPatroni, What::KillPostmaster]),
    (Mutation::ReleaseWithoutLock, &[What::KillPatroni, What::KillPostmaster]),
    (Mutation::HandoverUnasked, &[What::KillPostmaster, What::Switchover]),
    (Mutation::GatePassesAlways, &[What::FreezePatroni, What::KillPatroni, What::KillAgent]),
    (Mutation::OldRecordCounts, &[What::KillAgent, What::OldRecord, What::PauseNode]),
    (Mutation::GateRefusesStandby, &[What::KillPostmaster, What::Switchover]),
];

impl Mutation {
    /// The hands do not look again before a fence: where a wrong belief has to show, the look behind it must not hide it.
    pub fn is_rash(self) -> bool {
        matches!(self, Self::Unguarded | Self::LockBelievedForEver | Self::IgnoresFailsafe)
    }

    /// The hands trust the plan: they do not look at lock and socket again.
    pub fn trusts(self) -> bool {
        matches!(self, Self::Unguarded | Self::ReleaseWithoutSocket | Self::ReleaseWithoutLock)
    }

    /// The view as it is decided upon; `None` where nothing is altered.
    pub fn view(self, view: &View, now: Moment) -> Option<View> {
        let own = view.identity.member.clone()?;
        let mut view = view.clone();
        let later = |moment: Option<Moment>| moment.map(|moment| moment.plus(MARGIN));
        let member = view.members.get_mut(&own)?;
        let memory = &mut view.leadership;
        match self {
            Self::NoMargin => {
                memory.patroni_contact = later(memory.patroni_contact);
                memory.mine_at = later(memory.mine_at);
            }
            Self::NoAway => {
                if let Some(silence) = &mut memory.silence {
                    silence.since = silence.since.minus(AWAY);
                }
            }
            Self::LockNeedNotBeHeld => {
                memory.lock_was_ever_held = true;
                if let Some(reign) = &mut memory.reign {
                    reign.lock_was_held = true;
                }
            }
            Self::LockBelievedForEver => {
                let gone = view.alive_lock.as_ref().is_some_and(|lock| lock.value == AliveLock::Gone);
                if gone && memory.reign.is_some() {
                    memory.lock_was_ever_held = true;
                    let refused = PatroniAnswer::Refused(String::new());
                    member.patroni = Some(Fact::new(refused, Source::Patroni, now));
                }
            }
            Self::IgnoresFailsafe => {
                memory.failsafe = None;
                if let Some(Fact { value: Reading::Present(config), .. }) = &mut view.cluster.config {
                    config.failsafe_mode = false;
                }
                if let Some(Fact { value: PatroniAnswer::Answering(status), .. }) = &mut member.patroni {
                    status.failsafe_active = false;
                }
            }
            Self::SilenceIsProof => {
                if matches!(member.postgres.as_ref()?.value, PostgresAnswer::Silent(_)) {
                    member.writable_since = None;
                }
            }
            Self::ForgetsOldTtl => memory.timeout_before = None,
            Self::LeaseForEver => memory.patroni_contact = Some(now),
            Self::ReleaseWithoutSocket => memory.gone = Some(proof(now)),
            Self::ReleaseWithoutLock => {
                let freed = now.minus(Duration::from_secs(1));
                view.alive_lock = Some(Fact::new(AliveLock::Gone, Source::AliveLock, freed));
                memory.lock_was_ever_held = true;
                memory.reign.as_mut()?.lock_was_held = true;
            }
            Self::HandoverUnasked => {
                let to = MemberName::from(if own.as_str() == "b" { "a" } else { "b" });
                let request =
                    FailoverRequest { leader: Some(own.clone()), candidate: Some(to.clone()), scheduled: false };
                let sync = SyncState { leader: Some(own), standbys: [to].into(), quorum: 0 };
                view.cluster.failover = Some(Fact::new(Reading::Present(request), Source::ZooKeeper, now));
                if let Some(known) = &mut view.verified {
                    known.sync = Reading::Present(sync.clone());
                }
                view.cluster.sync = Some(Fact::new(Reading::Present(sync), Source::ZooKeeper, now));
            }
            Self::Sound
            | Self::WithoutRule(_)
            | Self::IgnoresPause
            | Self::Unguarded
            | Self::PlainForBarrier
            | Self::GatePassesAlways
            | Self::GateRefusesStandby
            | Self::OldRecordCounts => return None,
        }
        Some(view)
    }
}

/// That the socket has been found without a listener, as often as is wanted.
fn proof(now: Moment) -> Gone {
    Gone { since: Moment::new(Duration::ZERO), last: now, probes: 9 }
}
