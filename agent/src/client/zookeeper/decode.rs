//! Decodes Patroni's znodes and Warden's own into core's types.
//!
//! Patroni's formats are those of `patroni/dcs/__init__.py` (3.x and 4.x). A znode that cannot be parsed is
//! `Unreadable` with the reason. An unknown key is ignored, and an unknown value becomes `Unknown`.

use super::{Barrier as RawBarrier, Node, Update, Znode as Raw};
use crate::client::patroni::role_of;
use crate::clock::Clock;
use crate::znode::{agent, fence};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Duration;
use warden_core::event::{
    Barrier, ClusterConfig, Event, FailoverRequest, FenceRecord, LeaderKey, MemberRecord, Observed, Session, State,
    SyncState, Znode, ZooKeeperEvent,
};
use warden_core::fact::Reading;
use warden_core::types::{AgentName, Lsn, MemberName, SessionId, SystemId, Timeline, UnixMillis, Zxid};

/// A report of the client as an event.
pub fn observed(update: Update, clock: &Clock) -> Observed {
    match update {
        Update::Connected { server, session, requested, negotiated, at, .. } => Observed {
            at: clock.moment(at),
            event: Event::ZooKeeper(ZooKeeperEvent::SessionStarted(Session {
                id: SessionId(session),
                server,
                requested,
                negotiated,
            })),
        },
        Update::Lost { reason, detail, at, .. } => Observed {
            at: clock.moment(at),
            event: Event::ZooKeeper(ZooKeeperEvent::SessionLost { reason: reason.metric_label(), detail }),
        },
        Update::Znode { node, value, at } => Observed { at: clock.moment(at), event: znode(node, value.as_ref()) },
        Update::Synced { at, latency, .. } => {
            Observed { at: clock.moment(at), event: Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency }) }
        }
        Update::NameTaken { by, at } => {
            Observed { at: clock.moment(at), event: Event::ZooKeeper(ZooKeeperEvent::NameTaken { by }) }
        }
    }
}

/// The result of a barrier read as an event.
pub fn barrier(raw: RawBarrier, asked: std::time::Instant, clock: &Clock) -> Observed {
    let at = if let RawBarrier::Verified { started, .. } = &raw { *started } else { asked };
    Observed { at: clock.moment(at), event: Event::ZooKeeper(ZooKeeperEvent::Barrier(read(raw, clock))) }
}

/// The result of a barrier read in core's type.
pub fn read(raw: RawBarrier, clock: &Clock) -> Barrier {
    match raw {
        RawBarrier::Verified { leader: value, config: settings, sync: state, zxid, session, started: _, finished } => {
            Barrier::Verified {
                leader: leader(value.as_ref()),
                config: json(settings.as_ref(), config),
                sync: json(state.as_ref(), sync),
                zxid: Zxid(zxid),
                session: SessionId(session),
                finished: clock.moment(finished),
            }
        }
        RawBarrier::Unknown { why } => Barrier::Unknown(why),
    }
}

fn znode(node: Node, value: Option<&Raw>) -> Event {
    let znode = match node {
        Node::Leader => Znode::Leader(leader(value)),
        Node::Config => Znode::Config(json(value, config)),
        Node::Sync => Znode::Sync(json(value, sync)),
        Node::Status => Znode::Status(json(value, status)),
        Node::History => Znode::History(history(value)),
        Node::Failover => Znode::Failover(failover(value)),
        Node::Failsafe => Znode::Failsafe(json(value, failsafe)),
        Node::Initialize => Znode::Initialize(initialize(value)),
        Node::Member(name) => Znode::Member(MemberName::from(name), json(value, member)),
        Node::Fence(name) => {
            let member = MemberName::from(name);
            let record = match value {
                None => Reading::Absent,
                Some(raw) => match fence::parse_of(&member, &raw.data) {
                    Ok(record) => {
                        // A copied record carries the write of its original.
                        let written = record.written.unwrap_or((Zxid(raw.mzxid), UnixMillis(raw.mtime_ms)));
                        Reading::Present(FenceRecord { written: Some(written), ..record })
                    }
                    Err(why) => Reading::Unreadable(why),
                },
            };
            return Event::ZooKeeper(ZooKeeperEvent::FenceRecord { member, record });
        }
        Node::Agent(name) => {
            let record = match value {
                None => Reading::Absent,
                Some(raw) => match agent::parse(&raw.data) {
                    Ok(record) => Reading::Present(record),
                    Err(why) => Reading::Unreadable(why),
                },
            };
            return Event::ZooKeeper(ZooKeeperEvent::Agent { name: AgentName::from(name), record });
        }
    };
    Event::ZooKeeper(ZooKeeperEvent::Znode(znode))
}

/// `leader`: the bare name of the holder.
fn leader(value: Option<&Raw>) -> Reading<LeaderKey> {
    let Some(raw) = value else { return Reading::Absent };
    match std::str::from_utf8(&raw.data) {
        Ok(name) if !name.trim().is_empty() => Reading::Present(LeaderKey {
            holder: MemberName::from(name),
            czxid: Zxid(raw.czxid),
            mzxid: Zxid(raw.mzxid),
            owner: SessionId(raw.owner),
            created: UnixMillis(raw.ctime_ms),
        }),
        Ok(_) => Reading::Unreadable("it is empty".to_owned()),
        Err(error) => Reading::Unreadable(format!("it is not text: {error}")),
    }
}

/// Parses JSON and reads it with `read`. An error of either becomes `Unreadable`.
fn json<T>(value: Option<&Raw>, read: impl Fn(&Value) -> Result<T, String>) -> Reading<T> {
    let Some(raw) = value else { return Reading::Absent };
    let parsed: Result<Value, _> = serde_json::from_slice(&raw.data);
    match parsed.map_err(|error| format!("it is not JSON: {error}")).and_then(|value| read(&value)) {
        Ok(value) => Reading::Present(value),
        Err(why) => Reading::Unreadable(why),
    }
}

fn object(value: &Value) -> Result<&serde_json::Map<String, Value>, String> {
    value.as_object().ok_or_else(|| "it is not a JSON object".to_owned())
}

/// `config`: Patroni's dynamic configuration. Defaults as in `patroni/global_config.py`.
fn config(value: &Value) -> Result<ClusterConfig, String> {
    let map = object(value)?;
    let seconds = |key: &str, default: u64| match map.get(key) {
        None | Some(Value::Null) => Ok(Duration::from_secs(default)),
        Some(value) => {
            number(value).map(Duration::from_secs).ok_or_else(|| format!("{key} is {value}, not a number of seconds"))
        }
    };
    let flag = |key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(value) => boolean(value).ok_or_else(|| format!("{key} is {value}, neither true nor false")),
    };
    // `synchronous_mode` may also be "quorum" (from 4.0 on).
    let synchronous = match map.get("synchronous_mode") {
        Some(Value::String(mode)) if mode == "quorum" => true,
        _ => flag("synchronous_mode")?,
    };
    Ok(ClusterConfig {
        // Patroni raises a shorter ttl to 20 s (`_validate_and_adjust_timeouts`).
        ttl: seconds("ttl", 30)?.max(Duration::from_secs(20)),
        loop_wait: seconds("loop_wait", 10)?,
        retry_timeout: seconds("retry_timeout", 10)?,
        pause: flag("pause")?,
        failsafe_mode: flag("failsafe_mode")?,
        synchronous_mode: synchronous,
        standby_cluster: map.get("standby_cluster").is_some_and(|value| value.is_object()),
        max_connections: max_connections(map),
    })
}

/// `postgresql.parameters.max_connections`, which Patroni reads only from here. 100 if it is not set or no number.
fn max_connections(config: &serde_json::Map<String, Value>) -> u32 {
    let parameters = config.get("postgresql").and_then(|postgresql| postgresql.get("parameters"));
    let set = parameters.and_then(|parameters| parameters.get("max_connections")).and_then(number);
    set.and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0).unwrap_or(100)
}

/// A number. Patroni also accepts numbers as text.
fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// A flag, as Patroni's `parse_bool` reads it.
fn boolean(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Some(true),
            "off" | "false" | "no" | "0" => Some(false),
            _ => None,
        },
        Value::Number(number) => Some(number.as_u64() == Some(1)),
        _ => None,
    }
}

/// `sync`: `{"leader": …, "sync_standby": "a,b", "quorum": 0}`. It is `{}` until Patroni first writes it.
fn sync(value: &Value) -> Result<SyncState, String> {
    let map = object(value)?;
    let text = |key: &str| map.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let standbys = text("sync_standby").unwrap_or_default();
    Ok(SyncState {
        leader: text("leader").map(MemberName::from),
        standbys: standbys.split(',').map(str::trim).filter(|name| !name.is_empty()).map(MemberName::from).collect(),
        quorum: map.get("quorum").and_then(number).and_then(|count| u32::try_from(count).ok()).unwrap_or(0),
    })
}

/// `status`: `{"optime": …, "slots": …}`. Patroni before 2.1 wrote the bare number to another znode.
fn status(value: &Value) -> Result<Lsn, String> {
    let optime = value.as_u64().or_else(|| object(value).ok()?.get("optime").and_then(number));
    optime.map(Lsn).ok_or_else(|| "optime is missing".to_owned())
}

/// `history`: `[[timeline, lsn, reason, time, new leader], …]`.
fn history(value: Option<&Raw>) -> Reading<Timeline> {
    match value {
        Some(raw) if raw.data.is_empty() || raw.data == b"[]" => Reading::Absent,
        value => json(value, |value| {
            let last = value.as_array().and_then(|lines| lines.last()?.as_array()?.first()?.as_u64());
            let timeline = last.and_then(|timeline| u32::try_from(timeline).ok());
            timeline.map(Timeline).ok_or_else(|| "its last line has no timeline".to_owned())
        }),
    }
}

/// `failover`: `{"leader": …, "member": …, "scheduled_at": …}`, or empty. Old versions wrote `leader:candidate`.
fn failover(value: Option<&Raw>) -> Reading<FailoverRequest> {
    #[derive(Deserialize)]
    struct Wire {
        leader: Option<String>,
        member: Option<String>,
        scheduled_at: Option<String>,
    }
    let name = |name: Option<String>| name.filter(|name| !name.is_empty()).map(MemberName::from);
    match value {
        None => Reading::Absent,
        Some(raw) if raw.data.is_empty() || raw.data == b"{}" => Reading::Absent,
        Some(raw) => match serde_json::from_slice::<Wire>(&raw.data) {
            Ok(wire) => Reading::Present(FailoverRequest {
                leader: name(wire.leader),
                candidate: name(wire.member),
                scheduled: wire.scheduled_at.is_some(),
            }),
            Err(error) => Reading::Unreadable(format!("it is not a failover request: {error}")),
        },
    }
}

/// `failsafe`: member names to API addresses.
fn failsafe(value: &Value) -> Result<BTreeSet<MemberName>, String> {
    Ok(object(value)?.keys().map(|name| MemberName::from(name.as_str())).collect())
}

/// `initialize`: the system identifier as text. It is empty during the bootstrap of the cluster.
fn initialize(value: Option<&Raw>) -> Reading<SystemId> {
    let Some(raw) = value else { return Reading::Absent };
    let text = String::from_utf8_lossy(&raw.data);
    match text.trim() {
        "" => Reading::Absent,
        id => id
            .parse()
            .map(|id| Reading::Present(SystemId(id)))
            .unwrap_or_else(|_| Reading::Unreadable("it is not a system identifier".to_owned())),
    }
}

/// `members/<name>`.
fn member(value: &Value) -> Result<MemberRecord, String> {
    let map = object(value)?;
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    let (host, port) = match text("conn_url").map(split_conn_url).transpose()? {
        Some((host, port)) => (Some(host), Some(port)),
        None => (None, None),
    };
    let api = text("api_url").map(api_url).transpose()?;
    let state = State::from_patroni(text("state").unwrap_or_default());
    let state = match (state, text("replication_state")) {
        (State::Running, Some("streaming")) => State::Streaming,
        (State::Running, Some("in archive recovery")) => State::InArchiveRecovery,
        (state, _) => state,
    };
    let timeline = map.get("timeline").and_then(number).and_then(|timeline| u32::try_from(timeline).ok());
    Ok(MemberRecord {
        host,
        port,
        api,
        role: role_of(text("role").unwrap_or_default()),
        state,
        timeline: timeline.filter(|timeline| *timeline > 0).map(Timeline),
        lsn: map.get("xlog_location").and_then(number).map(Lsn),
        version: text("version").map(str::to_owned),
        noloadbalance: map.get("tags").and_then(|tags| tags.get("noloadbalance")).is_some_and(is_true_in_python),
    })
}

/// Whether Python takes a value for true, as Patroni does with a tag.
fn is_true_in_python(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
    }
}

/// Host and port of `postgres://[user[:password]@]host[:port][/db][?…]`.
fn split_conn_url(url: &str) -> Result<(String, u16), String> {
    let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
    let rest = rest.ok_or("conn_url is not a PostgreSQL URL")?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    // The text before the last @ may be a password.
    let address = authority.rsplit('@').next().unwrap_or_default();
    let (host, port) = split_address(address).map_err(|why| format!("conn_url: {why}"))?;
    Ok((host.to_owned(), port.unwrap_or(5432)))
}

/// `http[s]://host[:port]` of Patroni's `api_url`, without the path.
fn api_url(url: &str) -> Result<String, String> {
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    if !["http", "https"].contains(&scheme) {
        return Err("api_url is not an HTTP URL".to_owned());
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    split_address(authority).map_err(|why| format!("api_url: {why}"))?;
    Ok(format!("{scheme}://{authority}"))
}

/// Host and port of `host[:port]`. The host is an IP address (IPv6 in brackets) or a name of letters, digits and `-._`.
/// The check is strict because the agent writes this text to HAProxy's configuration, and any writer of a member's
/// znode controls it.
fn split_address(address: &str) -> Result<(&str, Option<u16>), String> {
    let shown = || address.chars().take(80).collect::<String>().escape_debug().to_string();
    let wrong = |problem: &str| format!("\"{}\" {problem}", shown());
    let (host, port) = match address.strip_prefix('[') {
        Some(v6) => {
            let (host, rest) = v6.split_once(']').ok_or_else(|| wrong("has no ] after its IPv6 address"))?;
            if host.parse::<Ipv6Addr>().is_err() {
                return Err(wrong("has no IPv6 address in its brackets"));
            }
            let port = rest.strip_prefix(':');
            if port.is_none() && !rest.is_empty() {
                return Err(wrong("has text other than a port after its IPv6 address"));
            }
            (host, port)
        }
        None => {
            let (host, port) = address.split_once(':').map_or((address, None), |(host, port)| (host, Some(port)));
            let named = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if host.is_empty() || !host.chars().all(named) {
                return Err(wrong("names a host that is neither an IP address nor letters, digits, - . and _"));
            }
            (host, port)
        }
    };
    let port = match port {
        Some(port) => Some(port.parse().ok().filter(|port| *port > 0).ok_or_else(|| wrong("has no valid port"))?),
        None => None,
    };
    Ok((host, port))
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
