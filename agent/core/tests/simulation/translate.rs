//! The inputs of an agent, as events of the core.

use crate::haproxy::{CheckResult, HEALTH_MAX, RISE, ServerReport};
use crate::input::{FenceResult, Input};
use crate::mutation::Mutation;
use crate::world::{World, letter};
use crate::zookeeper::{Answer, Config, Key, Sync};
use std::time::Duration;
use warden_core::event::{
    AliveLock, Barrier, ClusterConfig, Event, FailoverRequest, FenceOutcome, FenceRecord, FenceReport, HaproxyEvent,
    LeaderKey, LocalEvent, MemberEvent, PatroniAnswer, PatroniStatus, PostgresAnswer, ReleaseReport, Report, Role,
    Rule, Server, Starting, State, SyncState, Znode, ZooKeeperEvent,
};
use warden_core::fact::{Reading, Source};
use warden_core::fixtures;
use warden_core::haproxy::{
    Check, HaproxyAnswer, HaproxyServer, HoldOutcome, HoldReport, Pool, RouteOutcome, RouteReport, ServerCommand,
    ServerId,
};
use warden_core::types::{Lsn, MemberName, Moment, SessionId, SystemId, Timeline, UnixMillis, Zxid};

pub fn reading(key: Option<Key>) -> Reading<LeaderKey> {
    key.map_or(Reading::Absent, |key| {
        Reading::Present(LeaderKey {
            owner: SessionId(i64::try_from(key.owner).unwrap_or(0)),
            ..fixtures::leader_key(letter(key.node), key.czxid)
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
        ..fixtures::cluster_config()
    })
}

fn synchronous(sync: Sync) -> Reading<SyncState> {
    let Some(leader) = sync.leader else { return Reading::Absent };
    let standbys = sync.standby.into_iter().map(|standby| letter(standby).into()).collect();
    Reading::Present(SyncState { leader: Some(letter(leader).into()), standbys, quorum: 0 })
}

fn failover(request: Option<(usize, usize)>) -> Reading<FailoverRequest> {
    request.map_or(Reading::Absent, |(from, to)| {
        let (leader, candidate) = (Some(letter(from).into()), Some(letter(to).into()));
        Reading::Present(FailoverRequest { leader, candidate, scheduled: false })
    })
}

fn fence_event(whose: usize, rule: Rule, result: FenceResult) -> Event {
    let outcome = match result {
        FenceResult::Confirmed => FenceOutcome::Confirmed { by: "fast", took: Duration::from_millis(30) },
        FenceResult::Waiting => FenceOutcome::Waiting,
        FenceResult::Withdrawn => FenceOutcome::Withdrawn(String::new()),
        FenceResult::Failed => FenceOutcome::Failed(String::new()),
    };
    Event::Report(Report::Fence(FenceReport { member: letter(whose).into(), rule, outcome }))
}

/// HAProxy's proxy for writes.
const WRITES_PROXY: &str = "postgres";

fn server_id(node: usize) -> ServerId {
    ServerId { proxy: WRITES_PROXY.to_owned(), name: letter(node).to_owned() }
}

/// The servers, with the status that HAProxy's CSV would show.
fn servers_event(reports: [Option<ServerReport>; 3]) -> Event {
    let servers = reports.iter().enumerate().filter_map(|(node, report)| {
        let report = (*report)?;
        let status = match report {
            ServerReport { stopping: true, health: RISE.., .. } => "NOLB",
            ServerReport { health: HEALTH_MAX.., .. } => "UP",
            ServerReport { health: RISE.., .. } => "UP 1/2",
            _ => "DOWN",
        };
        Some(HaproxyServer {
            pool: Pool::Writes,
            id: server_id(node),
            address: format!("{}:5432", letter(node)),
            member: Some(letter(node).into()),
            status: status.to_owned(),
            up: report.up,
            sessions: u64::from(report.used),
            check: match report.result {
                CheckResult::Primary => Check::Passes,
                CheckResult::NoPrimary => Check::Refuses("503".to_owned()),
                CheckResult::NoAnswer => Check::Fails("timeout".to_owned()),
            },
            ..HaproxyServer::default()
        })
    });
    Event::Haproxy(HaproxyEvent::Answered(HaproxyAnswer::Servers(servers.collect())))
}

fn hold_event(on: bool) -> Event {
    let outcome = if on { HoldOutcome::Begun } else { HoldOutcome::Ended { after: Duration::from_secs(1) } };
    Event::Report(Report::Hold(HoldReport { proxy: WRITES_PROXY.to_owned(), outcome }))
}

fn routed_event(node: usize, to: ServerCommand, done: bool) -> Event {
    let outcome = if done {
        RouteOutcome::Done { took: Duration::from_millis(1) }
    } else {
        RouteOutcome::Withdrawn(String::new())
    };
    Event::Report(Report::Routed(RouteReport {
        pool: Pool::Writes,
        server: server_id(node),
        member: letter(node).into(),
        to,
        outcome,
    }))
}

impl World {
    pub fn event(&self, node: usize, input: Input) -> Event {
        let postgres = |whose: usize, answer| {
            let via = if whose == node { Source::Socket } else { Source::Tcp };
            Event::Member(letter(whose).into(), MemberEvent::Postgres { via, answer })
        };
        let patroni = |whose: usize, answer| Event::Member(letter(whose).into(), MemberEvent::Patroni(answer));
        let znode = |znode| Event::ZooKeeper(ZooKeeperEvent::Znode(znode));
        let none = String::new();
        match input {
            Input::Leader(_, key) => znode(Znode::Leader(reading(key))),
            Input::Config(_, config) => znode(Znode::Config(configuration(config, self.mutation))),
            Input::Failover(_, request) => znode(Znode::Failover(failover(request))),
            Input::Sync(_, sync) => znode(Znode::Sync(synchronous(sync))),
            Input::Status(_, position) => znode(Znode::Status(Reading::Present(Lsn(position)))),
            Input::Agent(_, whose) => self.agent_record_event(whose),
            Input::Record(_, whose) => self.record_event(whose),
            Input::TreeRead(_) => Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) }),
            Input::Barrier(answer, session) => self.barrier_event(node, answer, session),
            Input::NoBarrier => Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Unknown(none))),
            Input::Lock(free) => {
                Event::Local(LocalEvent::AliveLock(if free { AliveLock::Gone } else { AliveLock::Alive }))
            }
            Input::Pg { whose, writable, timeline, heartbeat } => {
                let server = self.server(node, timeline, heartbeat);
                let answer =
                    if writable { PostgresAnswer::Writable(server) } else { PostgresAnswer::InRecovery(server) };
                postgres(whose, answer)
            }
            Input::PgStarts(whose, standby) => {
                postgres(whose, PostgresAnswer::Starting(Starting { why: none, standby }))
            }
            Input::PgNoLogin(whose) => postgres(whose, PostgresAnswer::Unknown(none)),
            Input::Liveness(turns) => Event::Member(letter(node).into(), MemberEvent::Liveness { turns }),
            Input::PgRefuses(whose) => postgres(whose, PostgresAnswer::Refused(none)),
            Input::PgGone(whose) => postgres(whose, PostgresAnswer::Gone(none)),
            Input::PgSilent(whose) => postgres(whose, PostgresAnswer::Silent(none)),
            Input::Patroni { writable, primary, seen, failsafe } => {
                let seen = Some(self.nodes[node].agent.moment(seen));
                patroni(node, self.patroni_status(node, writable, primary, seen, failsafe))
            }
            Input::PatroniSilent => patroni(node, PatroniAnswer::Silent(none)),
            Input::PatroniRefuses => patroni(node, PatroniAnswer::Refused(none)),
            Input::PatroniOf(whose, Some(writable)) => {
                patroni(whose, self.patroni_status(whose, Some(writable), writable, None, false))
            }
            Input::PatroniOf(whose, None) => patroni(whose, PatroniAnswer::Silent(none)),
            Input::Fence(whose, rule, result) => fence_event(whose, rule, result),
            Input::Haproxy(reports) => servers_event(reports),
            Input::SessionLost(whose) => Event::Member(letter(whose).into(), MemberEvent::SessionBroke),
            Input::Hold(on) => hold_event(on),
            Input::Routed(whose, to, done) => routed_event(whose, to, done),
            Input::Released(done) => Event::Report(Report::Release(if done {
                ReleaseReport::Done { took: Duration::from_millis(5) }
            } else {
                ReleaseReport::Withdrawn(none)
            })),
        }
    }

    fn agent_record_event(&self, whose: usize) -> Event {
        let znode = self.nodes[whose].agent.znode.as_ref();
        let record = znode.map_or(Reading::Absent, |znode| Reading::Present((*znode.record).clone()));
        Event::ZooKeeper(ZooKeeperEvent::Agent { name: letter(whose).into(), record })
    }

    fn barrier_event(&self, node: usize, answer: Answer, session: usize) -> Event {
        let Answer { key, config, sync, zxid } = answer;
        Event::ZooKeeper(ZooKeeperEvent::Barrier(Barrier::Verified {
            leader: reading(key),
            config: configuration(config, self.mutation),
            sync: synchronous(sync),
            zxid: Zxid(zxid),
            session: SessionId(i64::try_from(session).unwrap_or(0)),
            finished: self.nodes[node].agent.moment(self.now),
        }))
    }

    fn server(&self, node: usize, timeline: u32, heartbeat: Option<u64>) -> Server {
        Server {
            timeline: Some(Timeline(timeline)),
            lsn: None,
            system_id: Some(SystemId(1)),
            archiver: None,
            receives: None,
            heartbeat: heartbeat.map(|at| self.nodes[node].agent.moment(at)),
            superuser_slots: None,
        }
    }

    fn patroni_status(
        &self,
        whose: usize,
        writable: Option<bool>,
        primary: bool,
        dcs_last_seen: Option<Moment>,
        failsafe_active: bool,
    ) -> PatroniAnswer {
        PatroniAnswer::Answering(PatroniStatus {
            state: if writable.is_some() { State::Running } else { State::Unknown },
            timeline: None,
            lsn: None,
            pause: self.nodes[whose].patroni.known.pause,
            failsafe_active,
            dcs_last_seen,
            name: Some(letter(whose).into()),
            ..fixtures::patroni_status(if primary { Role::Primary } else { Role::Replica }, writable)
        })
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
                // The agent records a rule's fence when it is done, and an operator's fence at once.
                confirmed: (record.rule != Rule::Operator).then_some(UnixMillis(0)),
                facts: Vec::new(),
                written: Some((Zxid(record.mzxid), UnixMillis(i64::try_from(record.at).unwrap_or(0)))),
            })
        });
        Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member, record })
    }
}
