//! The agent's own znode, `agents/<name>` in Warden's tree: JSON about the agent itself and the servers that it
//! watches. Other agents and `warden status` read it.

use crate::clock::millis;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use warden_core::event::{
    AgentRecord, AliveLock, Archiver, HaproxyAnswer, HaproxyServer, PatroniAnswer, PatroniStatus, PostgresAnswer, Role,
    Server, Starting, State,
};
use warden_core::haproxy::{Check, Pool, ServerId};
use warden_core::types::{MemberName, SystemId, Timeline, Zxid};

/// The maximal number of servers in the record, because the znode has to stay small.
const SERVERS_MAX: usize = 64;

#[derive(Serialize, Deserialize)]
struct Wire {
    version: String,
    roles: Vec<String>,
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    member: Option<String>,
    sees: Sees,
    /// Absent from older agents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held_zxid: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Sees {
    leader: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    postgres: Option<Postgres>,
    /// Absent from older agents; the other agents then ask that Patroni themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    patroni: Option<Patroni>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alive_lock: Option<Detailed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    haproxy: Option<Haproxy>,
}

#[derive(Serialize, Deserialize)]
struct Detailed {
    answer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Postgres {
    answer: String,
    age_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Whether a starting server is a standby; absent if its agent does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    standby: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeline: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lsn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_identifier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    archiver: Option<WireArchiver>,
}

/// Patroni's answer: `answering` with the fields below, or `refused`, `silent`, `unusable` with a detail.
#[derive(Serialize, Deserialize)]
struct Patroni {
    answer: String,
    age_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// Patroni's name for the state of its PostgreSQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writable: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeline: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lsn: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    system_identifier: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pause: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    failsafe_active: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    cluster_unlocked: bool,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    nosync: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct WireArchiver {
    archived: i64,
    failed: i64,
    failing: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Haproxy {
    age_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    servers: Vec<WireServer>,
}

#[derive(Serialize, Deserialize)]
struct WireServer {
    /// Absent from agents that route writes only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    reads: bool,
    /// Absent from agents that report one proxy for each pool.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    proxy: String,
    name: String,
    address: String,
    member: Option<String>,
    status: String,
    up: bool,
    sessions: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracks: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent_check: Option<String>,
}

/// The record as JSON.
pub fn write(record: &AgentRecord) -> Vec<u8> {
    let wire = Wire {
        version: record.version.clone(),
        roles: record.roles.clone(),
        address: record.address.clone(),
        member: record.member.as_ref().map(ToString::to_string),
        sees: Sees {
            leader: record.leader.as_ref().map(ToString::to_string),
            postgres: record.postgres.as_ref().map(|(answer, age)| postgres(answer, *age)),
            patroni: record.patroni.as_ref().map(|(answer, age)| patroni(answer, *age)),
            alive_lock: record.alive_lock.as_ref().map(|lock| Detailed {
                answer: lock.as_str().to_owned(),
                detail: match lock {
                    AliveLock::Unknown(why) => Some(why.clone()),
                    AliveLock::Alive | AliveLock::Gone => None,
                },
            }),
            haproxy: record.haproxy.as_ref().map(|(answer, age)| haproxy(answer, *age)),
        },
        held_zxid: record.held.map(|zxid| format!("{:#x}", zxid.0)),
    };
    // JSON can represent every text, number and list.
    serde_json::to_vec(&wire).unwrap_or_default()
}

/// Parses a record. The error is the problem, as text.
pub fn parse(data: &[u8]) -> Result<AgentRecord, String> {
    let wire: Wire = serde_json::from_slice(data).map_err(|error| format!("it is not an agent's record: {error}"))?;
    Ok(AgentRecord {
        version: wire.version,
        roles: wire.roles,
        address: wire.address,
        member: wire.member.map(MemberName::from),
        leader: wire.sees.leader.map(MemberName::from),
        postgres: wire.sees.postgres.map(read_postgres),
        patroni: wire.sees.patroni.map(read_patroni),
        alive_lock: wire.sees.alive_lock.map(|lock| match lock.answer.as_str() {
            "alive" => AliveLock::Alive,
            "gone" => AliveLock::Gone,
            other => AliveLock::Unknown(lock.detail.unwrap_or_else(|| other.to_owned())),
        }),
        haproxy: wire.sees.haproxy.map(read_haproxy),
        held: wire.held_zxid.as_deref().and_then(read_zxid),
    })
}

/// Parses a transaction, such as `0x1f`.
fn read_zxid(text: &str) -> Option<Zxid> {
    i64::from_str_radix(text.strip_prefix("0x")?, 16).ok().map(Zxid)
}

fn postgres(answer: &PostgresAnswer, age: Duration) -> Postgres {
    let server = answer.server();
    Postgres {
        answer: answer.as_str().to_owned(),
        age_ms: millis(age),
        detail: answer.detail().map(str::to_owned),
        standby: match answer {
            PostgresAnswer::Starting(starting) => starting.standby,
            _ => None,
        },
        timeline: server.and_then(|server| server.timeline).map(|timeline| timeline.0),
        lsn: server.and_then(|server| server.lsn).map(|lsn| lsn.to_string()),
        system_identifier: server.and_then(|server| server.system_id).map(|id| id.to_string()),
        archiver: server.and_then(|server| server.archiver.as_ref()).map(|archiver| WireArchiver {
            archived: archiver.archived,
            failed: archiver.failed,
            failing: archiver.failing.clone(),
        }),
    }
}

fn read_postgres(wire: Postgres) -> (PostgresAnswer, Duration) {
    let server = Server {
        timeline: wire.timeline.map(Timeline),
        lsn: wire.lsn.and_then(|lsn| lsn.parse().ok()),
        system_id: wire.system_identifier.and_then(|id| id.parse().ok()).map(SystemId),
        archiver: wire.archiver.map(|archiver| Archiver {
            archived: archiver.archived,
            failed: archiver.failed,
            failing: archiver.failing,
        }),
        receives: None,
        heartbeat: None,
        superuser_slots: None,
    };
    let detail = wire.detail.unwrap_or_default();
    let answer = match wire.answer.as_str() {
        "writable" => PostgresAnswer::Writable(server),
        "in_recovery" => PostgresAnswer::InRecovery(server),
        "refused" => PostgresAnswer::Refused(detail),
        "starting" => PostgresAnswer::Starting(Starting { why: detail, standby: wire.standby }),
        "silent" => PostgresAnswer::Silent(detail),
        _ => PostgresAnswer::Unknown(detail),
    };
    (answer, Duration::from_millis(wire.age_ms))
}

fn patroni(answer: &PatroniAnswer, age: Duration) -> Patroni {
    let (name, detail, status) = match answer {
        PatroniAnswer::Answering(status) => ("answering", None, Some(status)),
        PatroniAnswer::Refused(why) => ("refused", Some(why), None),
        PatroniAnswer::Silent(why) => ("silent", Some(why), None),
        PatroniAnswer::Unusable(why) | PatroniAnswer::Anothers(why) => ("unusable", Some(why), None),
    };
    let is = |what: fn(&PatroniStatus) -> bool| status.is_some_and(what);
    Patroni {
        answer: name.to_owned(),
        age_ms: millis(age),
        detail: detail.cloned(),
        state: status.map(|status| status.state.as_str().to_owned()),
        role: status.map(|status| status.role.as_str().to_owned()),
        writable: status.and_then(|status| status.writable),
        timeline: status.and_then(|status| status.timeline).map(|timeline| timeline.0),
        lsn: status.and_then(|status| status.lsn).map(|lsn| lsn.to_string()),
        system_identifier: status.and_then(|status| status.system_id).map(|id| id.to_string()),
        pause: is(|status| status.pause),
        failsafe_active: is(|status| status.failsafe_active),
        cluster_unlocked: is(|status| status.cluster_unlocked),
        nosync: is(|status| status.nosync),
        version: status.and_then(|status| status.version.clone()),
    }
}

fn read_patroni(wire: Patroni) -> (Box<PatroniAnswer>, Duration) {
    let detail = wire.detail.unwrap_or_default();
    let answer = match wire.answer.as_str() {
        "answering" => PatroniAnswer::Answering(PatroniStatus {
            state: State::from_patroni(wire.state.as_deref().unwrap_or_default()),
            role: Role::ALL
                .into_iter()
                .find(|role| Some(role.as_str()) == wire.role.as_deref())
                .unwrap_or(Role::Unknown),
            writable: wire.writable,
            timeline: wire.timeline.map(Timeline),
            lsn: wire.lsn.and_then(|lsn| lsn.parse().ok()),
            system_id: wire.system_identifier.and_then(|id| id.parse().ok()).map(SystemId),
            pause: wire.pause,
            failsafe_active: wire.failsafe_active,
            cluster_unlocked: wire.cluster_unlocked,
            dcs_last_seen: None,
            name: None,
            nosync: wire.nosync,
            version: wire.version,
        }),
        "refused" => PatroniAnswer::Refused(detail),
        "silent" => PatroniAnswer::Silent(detail),
        _ => PatroniAnswer::Unusable(detail),
    };
    (Box::new(answer), Duration::from_millis(wire.age_ms))
}

fn haproxy(answer: &HaproxyAnswer, age: Duration) -> Haproxy {
    let (servers, detail) = match answer {
        HaproxyAnswer::Servers(servers) => (servers.as_slice(), None),
        HaproxyAnswer::Unusable(why) => ([].as_slice(), Some(why.clone())),
    };
    let servers = servers.iter().take(SERVERS_MAX).map(|server| WireServer {
        reads: server.pool == Pool::Reads,
        proxy: server.id.proxy.clone(),
        name: server.id.name.clone(),
        address: server.address.clone(),
        member: server.member.as_ref().map(ToString::to_string),
        status: server.status.clone(),
        up: server.up,
        sessions: server.sessions,
        tracks: server.tracks.clone(),
        agent_check: server.agent_check.clone(),
    });
    Haproxy { age_ms: millis(age), detail, servers: servers.collect() }
}

fn read_haproxy(wire: Haproxy) -> (HaproxyAnswer, Duration) {
    let answer = match wire.detail {
        Some(why) => HaproxyAnswer::Unusable(why),
        None => HaproxyAnswer::Servers(
            wire.servers
                .into_iter()
                .map(|server| HaproxyServer {
                    pool: if server.reads { Pool::Reads } else { Pool::Writes },
                    id: ServerId { proxy: server.proxy, name: server.name },
                    address: server.address,
                    member: server.member.map(MemberName::from),
                    status: server.status,
                    up: server.up,
                    sessions: server.sessions,
                    tracks: server.tracks,
                    agent_check: server.agent_check,
                    // Only the agent beside that HAProxy uses these fields.
                    check: Check::None,
                    throttled: false,
                    queued: 0,
                    limit: None,
                })
                .collect(),
        ),
    };
    (answer, Duration::from_millis(wire.age_ms))
}

#[cfg(test)]
mod tests {
    use super::*;
    use warden_core::types::Lsn;

    fn full() -> AgentRecord {
        AgentRecord {
            held: Some(Zxid(0x1f)),
            version: "0.1.0".to_owned(),
            roles: vec!["node".to_owned(), "router".to_owned()],
            address: "warden:8010".to_owned(),
            member: Some("a".into()),
            leader: Some("b".into()),
            postgres: Some((
                PostgresAnswer::Writable(Server {
                    timeline: Some(Timeline(3)),
                    lsn: Some(Lsn(0x16_B374_D848)),
                    system_id: Some(SystemId(u64::MAX)),
                    archiver: Some(Archiver { archived: 1, failed: 2, failing: Some("x".to_owned()) }),
                    receives: None,
                    heartbeat: None,
                    superuser_slots: None,
                }),
                Duration::from_millis(7),
            )),
            patroni: Some((
                Box::new(PatroniAnswer::Answering(PatroniStatus {
                    state: State::InArchiveRecovery,
                    role: Role::QuorumStandby,
                    writable: Some(false),
                    timeline: Some(Timeline(3)),
                    lsn: Some(Lsn(0x16_B374_D848)),
                    system_id: Some(SystemId(u64::MAX)),
                    pause: true,
                    failsafe_active: true,
                    cluster_unlocked: true,
                    dcs_last_seen: None,
                    name: None,
                    nosync: true,
                    version: Some("4.1.5".to_owned()),
                })),
                Duration::from_millis(5),
            )),
            alive_lock: Some(AliveLock::Unknown("why".to_owned())),
            haproxy: Some((
                HaproxyAnswer::Servers(vec![HaproxyServer {
                    pool: Pool::Reads,
                    id: ServerId { proxy: "writes".to_string(), name: "pg".to_owned() },
                    address: "1.2.3.4:5432".to_owned(),
                    member: None,
                    status: "UP".to_owned(),
                    up: true,
                    sessions: 4,
                    ..HaproxyServer::default()
                }]),
                Duration::ZERO,
            )),
        }
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let (postgres, patroni) = (None, None);
        let little = AgentRecord { postgres, patroni, alive_lock: None, haproxy: None, member: None, ..full() };
        for record in [full(), little] {
            assert_eq!(parse(&write(&record)).unwrap(), record);
        }
        let why = || "why".to_owned();
        let others = [PatroniAnswer::Refused(why()), PatroniAnswer::Silent(why()), PatroniAnswer::Unusable(why())];
        for answer in others {
            let record = AgentRecord { patroni: Some((Box::new(answer), Duration::from_secs(1))), ..full() };
            assert_eq!(parse(&write(&record)).unwrap(), record);
        }
    }

    #[test]
    fn a_record_of_an_older_agent_has_no_patroni() {
        let text =
            r#"{"version":"0.1.0","roles":[],"address":"a:1","sees":{"leader":"a","alive_lock":{"answer":"alive"}}}"#;
        assert_eq!(parse(text.as_bytes()).unwrap().patroni, None);
    }

    #[test]
    fn an_unknown_field_in_a_record_of_a_newer_agent_is_ignored() {
        let text = r#"{"version":"9","roles":["x"],"address":"a:1","future":1,
            "sees":{"leader":null,"alive_lock":{"answer":"dozing"}}}"#;
        let record = parse(text.as_bytes()).unwrap();
        assert_eq!(record.alive_lock, Some(AliveLock::Unknown("dozing".to_owned())));
    }

    #[test]
    fn something_else_is_an_error() {
        for text in ["", "{}", "[]", "null", r#"{"version":1}"#] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
