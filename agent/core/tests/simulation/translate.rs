//! What an agent hears, turned into the core's events.

use crate::hear::{FenceSaid, Heard};
use crate::mutation::Mutation;
use crate::world::{World, letter};
use crate::zookeeper::{Answer, Config, Key, Sync};
use std::time::Duration;
use warden_core::event::{
    AliveLock, Barrier, ClusterConfig, Event, FailoverRequest, FenceOutcome, FenceRecord, FenceReport, LeaderKey,
    PatroniAnswer, PatroniStatus, PostgresAnswer, ReleaseReport, Role, Rule, Server, Starting, State, SyncState, Znode,
};
use warden_core::fact::{Reading, Source};
use warden_core::types::{Lsn, MemberName, SessionId, SystemId, Timeline, UnixMillis, Zxid};

pub fn reading(key: Option<Key>) -> Reading<LeaderKey> {
    key.map_or(Reading::Absent, |key| {
        Reading::Present(LeaderKey {
            holder: letter(key.node).into(),
            czxid: Zxid(key.czxid),
            mzxid: Zxid(key.czxid),
            owner: SessionId(i64::try_from(key.owner).unwrap_or(0)),
            created: UnixMillis(0),
        })
    })
}

pub fn configuration(config: Config, mutation: Mutation) -> Reading<ClusterConfig> {
    Reading::Present(ClusterConfig {
        ttl: Duration::from_millis(config.ttl),
        loop_wait: Duration::from_millis(config.loop_wait),
        retry_timeout: Duration::from_millis(config.retry_timeout),
        pause: config.pause && mutation != Mutation::IgnoresPause,
        failsafe_mode: config.failsafe,
        synchronous_mode: true,
        standby_cluster: false,
    })
}

fn synchronous(sync: Sync) -> Reading<SyncState> {
    let Some(leader) = sync.leader else { return Reading::Absent };
    let standbys = sync.standby.into_iter().map(|standby| letter(standby).into()).collect();
    Reading::Present(SyncState { leader: Some(letter(leader).into()), standbys, quorum: 0 })
}

impl World {
    pub fn event(&self, node: usize, heard: Heard) -> Event {
        let postgres = |whose: usize, answer| Event::Postgres {
            member: letter(whose).into(),
            via: if whose == node { Source::Socket } else { Source::Tcp },
            answer,
        };
        let patroni = |answer| Event::Patroni { member: letter(node).into(), answer };
        match heard {
            Heard::Leader(_, key) => Event::Znode(Znode::Leader(reading(key))),
            Heard::Config(_, config) => Event::Znode(Znode::Config(configuration(config, self.mutation))),
            Heard::Failover(_, request) => {
                Event::Znode(Znode::Failover(request.map_or(Reading::Absent, |(from, to)| {
                    let (leader, candidate) = (Some(letter(from).into()), Some(letter(to).into()));
                    Reading::Present(FailoverRequest { leader, candidate, scheduled: false })
                })))
            }
            Heard::Sync(_, sync) => Event::Znode(Znode::Sync(synchronous(sync))),
            Heard::Status(_, position) => Event::Znode(Znode::Status(Reading::Present(Lsn(position)))),
            Heard::Agent(_, whose) => Event::Agent {
                name: letter(whose).into(),
                record: self.nodes[whose]
                    .agent
                    .znode
                    .as_ref()
                    .map_or(Reading::Absent, |znode| Reading::Present((*znode.record).clone())),
            },
            Heard::Record(_, whose) => self.record_event(whose),
            Heard::TreeRead(_) => Event::TreeRead { latency: Duration::from_millis(1) },
            Heard::Barrier(Answer { key, config, sync, zxid }, session) => Event::Barrier(Barrier::Verified {
                leader: reading(key),
                config: configuration(config, self.mutation),
                sync: synchronous(sync),
                zxid: Zxid(zxid),
                session: SessionId(i64::try_from(session).unwrap_or(0)),
                finished: self.nodes[node].agent.moment(self.now),
            }),
            Heard::NoBarrier => Event::Barrier(Barrier::Unknown(String::new())),
            Heard::Lock(free) => Event::AliveLock(if free { AliveLock::Gone } else { AliveLock::Alive }),
            Heard::Pg { whose, writable, timeline, heartbeat } => {
                let server = Server {
                    timeline: Some(Timeline(timeline)),
                    lsn: None,
                    system_id: Some(SystemId(1)),
                    archiver: None,
                    receives: None,
                    heartbeat: heartbeat.map(|at| self.nodes[node].agent.moment(at)),
                    superuser_slots: None,
                };
                postgres(
                    whose,
                    if writable { PostgresAnswer::Writable(server) } else { PostgresAnswer::InRecovery(server) },
                )
            }
            Heard::PgStarts(whose, standby) => {
                postgres(whose, PostgresAnswer::Starting(Starting { why: String::new(), standby }))
            }
            Heard::PgLocked(whose) => postgres(whose, PostgresAnswer::Unknown(String::new())),
            Heard::Liveness(turns) => Event::Liveness { member: letter(node).into(), turns },
            Heard::PgRefuses(whose) => postgres(whose, PostgresAnswer::Refused(String::new())),
            Heard::PgGone(whose) => postgres(whose, PostgresAnswer::Gone(String::new())),
            Heard::PgSilent(whose) => postgres(whose, PostgresAnswer::Silent(String::new())),
            Heard::Patroni { writable, primary, seen, failsafe } => patroni(PatroniAnswer::Answering(PatroniStatus {
                state: if writable.is_some() { State::Running } else { State::Unknown },
                role: if primary { Role::Primary } else { Role::Replica },
                writable,
                timeline: None,
                lsn: None,
                system_id: None,
                pause: self.nodes[node].patroni.known.pause,
                failsafe_active: failsafe,
                cluster_unlocked: false,
                dcs_last_seen: Some(self.nodes[node].agent.moment(seen)),
                name: Some(letter(node).into()),
                nosync: false,
                version: None,
            })),
            Heard::PatroniSilent => patroni(PatroniAnswer::Silent(String::new())),
            Heard::PatroniRefuses => patroni(PatroniAnswer::Refused(String::new())),
            Heard::Fence(whose, rule, said) => {
                let outcome = match said {
                    FenceSaid::Confirmed => FenceOutcome::Confirmed { by: "fast", took: Duration::from_millis(30) },
                    FenceSaid::Waiting => FenceOutcome::Waiting,
                    FenceSaid::Withdrawn => FenceOutcome::Withdrawn(String::new()),
                    FenceSaid::Failed => FenceOutcome::Failed(String::new()),
                };
                Event::Fence(FenceReport { member: letter(whose).into(), rule, outcome })
            }
            Heard::Released(done) => Event::Release(if done {
                ReleaseReport::Done { took: Duration::from_millis(5) }
            } else {
                ReleaseReport::Withdrawn(String::new())
            }),
        }
    }

    fn record_event(&self, whose: usize) -> Event {
        let member = MemberName::from(letter(whose));
        let record = self.zk.records[whose].map_or(Reading::Absent, |record| {
            Reading::Present(FenceRecord {
                member: member.clone(),
                rule: record.rule,
                reason: String::new(),
                by: String::new(),
                ordered: UnixMillis(0),
                // What the rules do is recorded when it is done, what a person wants at once.
                confirmed: (record.rule != Rule::Operator).then_some(UnixMillis(0)),
                facts: Vec::new(),
                written: Some((Zxid(record.mzxid), UnixMillis(i64::try_from(record.at).unwrap_or(0)))),
            })
        });
        Event::FenceRecord { member, record }
    }
}
