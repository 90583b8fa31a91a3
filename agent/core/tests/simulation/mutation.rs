//! Bugs that are put in on purpose, without a change of the core. A mutation drops steps of the plan, alters the view
//! before the decision, alters an input, or skips a guard.
//!
//! Each mutation names the faults that reveal it. Unmutated histories with the same faults have to pass, so that the
//! bug is found and not an effect of the faults.

use crate::faults::FaultKind;
use std::time::Duration;
use warden_core::event::{AliveLock, FailoverRequest, PatroniAnswer, PostgresAnswer, Rule, SyncState};
use warden_core::evidence::{LEASE_MARGIN, PATRONI_SILENT_MIN};
use warden_core::fact::{Fact, Reading, Source};
use warden_core::leadership::Gone;
use warden_core::types::{MemberName, Moment};
use warden_core::view::View;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Warden without a bug.
    Sound,
    /// A rule is missing.
    WithoutRule(Rule),
    /// The agent ignores maintenance mode.
    IgnoresPause,
    /// The actors check nothing again before they act.
    Unguarded,
    /// An ordinary read counts as a barrier read, also right before an act.
    PlainForBarrier,
    /// The rule `lease` waits until the lease ends.
    NoMargin,
    /// Patroni counts as away after one missing answer.
    NoAway,
    /// The alive lock proves death without having been seen held.
    LockNeedNotBeHeld,
    /// A lock that was found free counts as free forever, after a pause and while Patroni answers.
    LockBelievedForever,
    /// The agent does not know failsafe mode.
    IgnoresFailsafe,
    /// A silent server counts as stopped.
    SilenceIsProof,
    /// A raised ttl counts at once.
    ForgetsOldTtl,
    /// The lease counts from now and not from Patroni's last contact.
    LeaseForever,
    /// The agent releases the key when Patroni is dead, while its server may be up.
    ReleaseWithoutSocket,
    /// The agent releases the key when the server is down, while Patroni may live.
    ReleaseWithoutLock,
    /// The agent hands over when a server is down, without a request for a switchover.
    HandoverUnasked,
    /// The gate lets every promotion pass.
    GatePassesAlways,
    /// The gate refuses beside a healthy standby.
    GateRefusesStandby,
    /// A fence record counts forever, also in a later term.
    OldRecordCounts,
    /// A hold never ends, and HAProxy never forgets it.
    HoldsForever,
    /// The agent sets no hold, and takes no server out.
    OnlyRaises,
}

/// Each bug with its faults.
pub const MUTATIONS: &[(Mutation, &[FaultKind])] = &[
    (Mutation::WithoutRule(Rule::Superseded), &[FaultKind::PauseNode, FaultKind::FreezePatroni, FaultKind::KillAgent]),
    (Mutation::WithoutRule(Rule::Orphaned), &[FaultKind::KillPatroni, FaultKind::FreezePatroni]),
    (Mutation::WithoutRule(Rule::Lease), &[FaultKind::KillPatroni, FaultKind::FreezePatroni, FaultKind::CutAgent]),
    (Mutation::WithoutRule(Rule::Peer), &[FaultKind::KillPatroni, FaultKind::FreezePatroni, FaultKind::KillAgent]),
    (Mutation::IgnoresPause, &[FaultKind::Maintenance, FaultKind::KillPatroni, FaultKind::FreezePatroni]),
    (
        Mutation::Unguarded,
        &[FaultKind::KillPatroni, FaultKind::FreezePatroni, FaultKind::Lag(1200), FaultKind::KillNode],
    ),
    (
        Mutation::PlainForBarrier,
        &[FaultKind::KillPatroni, FaultKind::FreezePatroni, FaultKind::Lag(1200), FaultKind::Switchover],
    ),
    (Mutation::NoMargin, &[FaultKind::KillPatroni, FaultKind::CutAgent, FaultKind::StallAgent]),
    (Mutation::NoAway, &[FaultKind::SlowRest, FaultKind::StuckLoop, FaultKind::CutPatroni]),
    (
        Mutation::LockNeedNotBeHeld,
        &[FaultKind::WithoutFlock, FaultKind::Ttl(20_000), FaultKind::Ttl(30_000), FaultKind::Ttl(40_000)],
    ),
    (
        Mutation::LockBelievedForever,
        &[FaultKind::KillPatroni, FaultKind::PauseAgent, FaultKind::RestartPatroni, FaultKind::CutAgent],
    ),
    (Mutation::IgnoresFailsafe, &[FaultKind::Failsafe, FaultKind::ZooKeeperDown, FaultKind::HungRest]),
    (Mutation::SilenceIsProof, &[FaultKind::PauseNode]),
    (
        Mutation::ForgetsOldTtl,
        &[FaultKind::Ttl(40_000), FaultKind::KillPatroni, FaultKind::FreezePatroni, FaultKind::CutAgent],
    ),
    (Mutation::LeaseForever, &[FaultKind::KillPatroni, FaultKind::FreezePatroni, FaultKind::CutAgent]),
    (Mutation::ReleaseWithoutSocket, &[FaultKind::KillPatroni, FaultKind::KillPostmaster]),
    (Mutation::ReleaseWithoutLock, &[FaultKind::KillPatroni, FaultKind::KillPostmaster]),
    (Mutation::HandoverUnasked, &[FaultKind::KillPostmaster, FaultKind::Switchover]),
    (Mutation::GatePassesAlways, &[FaultKind::FreezePatroni, FaultKind::KillPatroni, FaultKind::KillAgent]),
    (Mutation::OldRecordCounts, &[FaultKind::KillAgent, FaultKind::OldRecord, FaultKind::PauseNode]),
    (Mutation::GateRefusesStandby, &[FaultKind::KillPostmaster, FaultKind::Switchover]),
    (Mutation::HoldsForever, &[FaultKind::KillPostmaster, FaultKind::Switchover]),
    (Mutation::OnlyRaises, &[FaultKind::FreezePatroni, FaultKind::Switchover, FaultKind::PauseNode]),
];

impl Mutation {
    /// The actors check nothing again before a fence. The guard would hide a wrong belief that has to show.
    pub fn skips_fence_guard(self) -> bool {
        matches!(self, Self::Unguarded | Self::LockBelievedForever | Self::IgnoresFailsafe)
    }

    /// Only a history with an HAProxy reveals it.
    pub fn needs_haproxy(self) -> bool {
        matches!(self, Self::HoldsForever | Self::OnlyRaises)
    }

    /// The actors do not check lock and socket again before a release.
    pub fn skips_release_proof(self) -> bool {
        matches!(self, Self::Unguarded | Self::ReleaseWithoutSocket | Self::ReleaseWithoutLock)
    }

    /// The altered view for the decision; `None` if the mutation alters none.
    pub fn view(self, view: &View, now: Moment) -> Option<View> {
        let own = view.identity.member.clone()?;
        let mut view = view.clone();
        let later = |moment: Option<Moment>| moment.map(|moment| moment.plus(LEASE_MARGIN));
        let member = view.members.get_mut(&own)?;
        let memory = &mut view.leadership;
        match self {
            Self::NoMargin => {
                memory.patroni_contact = later(memory.patroni_contact);
                memory.read_as_own_at = later(memory.read_as_own_at);
            }
            Self::NoAway => {
                if let Some(silence) = &mut memory.silence {
                    silence.since = silence.since.minus(PATRONI_SILENT_MIN);
                }
            }
            Self::LockNeedNotBeHeld => {
                memory.lock_was_ever_held = true;
                if let Some(term) = &mut memory.term {
                    term.lock_was_held = true;
                }
            }
            Self::LockBelievedForever => {
                let gone = view.alive_lock.as_ref().is_some_and(|lock| lock.value == AliveLock::Gone);
                if gone && memory.term.is_some() {
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
            Self::LeaseForever => memory.patroni_contact = Some(now),
            Self::ReleaseWithoutSocket => memory.gone = Some(proof(now)),
            Self::ReleaseWithoutLock => {
                let freed = now.minus(Duration::from_secs(1));
                view.alive_lock = Some(Fact::new(AliveLock::Gone, Source::AliveLock, freed));
                memory.lock_was_ever_held = true;
                memory.term.as_mut()?.lock_was_held = true;
            }
            Self::HandoverUnasked => request_switchover(&mut view, own, now),
            Self::Sound
            | Self::WithoutRule(_)
            | Self::IgnoresPause
            | Self::Unguarded
            | Self::PlainForBarrier
            | Self::GatePassesAlways
            | Self::GateRefusesStandby
            | Self::OldRecordCounts
            | Self::HoldsForever
            | Self::OnlyRaises => return None,
        }
        Some(view)
    }
}

/// A switchover from `own` to another member, which is its synchronous standby.
fn request_switchover(view: &mut View, own: MemberName, now: Moment) {
    let to = MemberName::from(if own.as_str() == "b" { "a" } else { "b" });
    let request = FailoverRequest { leader: Some(own.clone()), candidate: Some(to.clone()), scheduled: false };
    let sync = SyncState { leader: Some(own), standbys: [to].into(), quorum: 0 };
    view.cluster.failover = Some(Fact::new(Reading::Present(request), Source::ZooKeeper, now));
    if let Some(known) = &mut view.verified {
        known.sync = Reading::Present(sync.clone());
    }
    view.cluster.sync = Some(Fact::new(Reading::Present(sync), Source::ZooKeeper, now));
}

/// The proof that the socket has no listener, by enough probes.
fn proof(now: Moment) -> Gone {
    Gone { since: Moment::new(Duration::ZERO), last: now, probes: 9 }
}
