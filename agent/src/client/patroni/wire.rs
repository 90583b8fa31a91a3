//! Parses the JSON of Patroni's REST API into core's types.

use crate::clock::Clock;
use serde::Deserialize;
use std::collections::BTreeMap;
use warden_core::event::{PatroniAnswer, PatroniStatus, Role, State};
use warden_core::types::{Lsn, MemberName, SystemId, Timeline};

/// The body of `GET /health`, Patroni 3.x and 4.x (`get_postgresql_status` in `patroni/api.py`).
#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    state: String,
    #[serde(default)]
    role: String,
    xlog: Option<Xlog>,
    timeline: Option<u32>,
    replication_state: Option<String>,
    #[serde(default)]
    sync_standby: bool,
    #[serde(default)]
    quorum_standby: bool,
    #[serde(default)]
    pause: bool,
    #[serde(default)]
    failsafe_mode_is_active: bool,
    #[serde(default)]
    cluster_unlocked: bool,
    dcs_last_seen: Option<i64>,
    #[serde(default)]
    tags: BTreeMap<String, serde_json::Value>,
    database_system_identifier: Option<String>,
    patroni: Option<About>,
}

#[derive(Deserialize)]
struct Xlog {
    location: Option<u64>,
    replayed_location: Option<u64>,
}

#[derive(Deserialize)]
struct About {
    version: Option<String>,
    scope: Option<String>,
    name: Option<String>,
}

/// Parses the JSON of `member`'s Patroni. The error is the answer to report instead.
pub(super) fn parse(
    body: &[u8],
    scope: &str,
    member: &MemberName,
    clock: &Clock,
) -> Result<PatroniStatus, PatroniAnswer> {
    let unusable = |why: String| PatroniAnswer::Unusable(why);
    let wire: Wire =
        serde_json::from_slice(body).map_err(|error| unusable(format!("its answer is not Patroni's JSON: {error}")))?;
    if let Some(other) = wire.patroni.as_ref().and_then(|about| about.scope.as_deref())
        && other != scope
    {
        return Err(unusable(format!("it belongs to another cluster: scope {other:?} instead of {scope:?}")));
    }
    // Restarted containers may have swapped their addresses, and a name may resolve to the wrong one for a while.
    if let Some(other) = wire.patroni.as_ref().and_then(|about| about.name.as_deref())
        && other != member.as_str()
    {
        let why = format!("it is the Patroni of {other:?}: is the name right, and its address?");
        return Err(PatroniAnswer::Anothers(why));
    }
    let role = match role_of(&wire.role) {
        Role::Replica if wire.sync_standby => Role::SyncStandby,
        Role::Replica if wire.quorum_standby => Role::QuorumStandby,
        role => role,
    };
    let state = match (State::from_patroni(&wire.state), wire.replication_state.as_deref()) {
        (State::Running, Some("streaming")) => State::Streaming,
        (State::Running, Some("in archive recovery")) => State::InArchiveRecovery,
        (state, _) => state,
    };
    // Patroni sends `xlog` only if PostgreSQL answered its query for this request. pg_is_in_recovery() decides which
    // position it has. The role without `xlog` is Patroni's memory of how it started the server.
    let writable = wire.xlog.as_ref().and_then(|xlog| match (xlog.location, xlog.replayed_location) {
        (Some(_), _) => Some(true),
        (None, Some(_)) => Some(false),
        (None, None) => None,
    });
    let lsn = wire.xlog.as_ref().and_then(|xlog| xlog.location.or(xlog.replayed_location)).map(Lsn);
    Ok(PatroniStatus {
        state,
        role,
        writable,
        timeline: wire.timeline.filter(|timeline| *timeline > 0).map(Timeline),
        lsn,
        system_id: wire.database_system_identifier.and_then(|id| id.parse().ok()).map(SystemId),
        pause: wire.pause,
        failsafe_active: wire.failsafe_mode_is_active,
        cluster_unlocked: wire.cluster_unlocked,
        dcs_last_seen: wire.dcs_last_seen.map(|seconds| clock.moment_of_wall(seconds)),
        name: wire.patroni.as_ref().and_then(|about| about.name.as_deref()).map(MemberName::from),
        nosync: wire.tags.get("nosync").is_some_and(|tag| *tag == true),
        version: wire.patroni.and_then(|about| about.version),
    })
}

/// The role with this name in Patroni: `master` until 3.x, `primary` from 4.0 on.
pub(crate) fn role_of(text: &str) -> Role {
    match text {
        "primary" | "master" | "promoted" => Role::Primary,
        "standby_leader" => Role::StandbyLeader,
        "replica" => Role::Replica,
        "sync_standby" => Role::SyncStandby,
        "quorum_standby" => Role::QuorumStandby,
        "demoted" => Role::Demoted,
        "uninitialized" => Role::Uninitialized,
        _ => Role::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: &str = include_str!("../../../testdata/patroni-primary.json");
    const STANDBY: &str = include_str!("../../../testdata/patroni-sync-standby.json");

    #[test]
    fn a_primary_of_patroni_4_is_read() {
        let status = parse(PRIMARY.as_bytes(), "my_cluster", &"postgresql0".into(), &Clock::start()).unwrap();
        assert_eq!((status.role, status.state, status.writable), (Role::Primary, State::Running, Some(true)));
        assert_eq!((status.timeline, status.lsn), (Some(Timeline(1)), Some(Lsn(50_331_840))));
        assert_eq!(status.system_id, Some(SystemId(7_711_166_548_103_880_737)));
        assert_eq!(status.version.as_deref(), Some("4.1.5"));
        assert_eq!(status.name, Some("postgresql0".into()));
        assert!(status.dcs_last_seen.is_some() && !status.nosync);
    }

    #[test]
    fn a_synchronous_standby_is_read() {
        let status = parse(STANDBY.as_bytes(), "my_cluster", &"postgresql1".into(), &Clock::start()).unwrap();
        assert_eq!((status.role, status.state, status.writable), (Role::SyncStandby, State::Streaming, Some(false)));
        assert_eq!(status.lsn, Some(Lsn(50_331_840)));
    }

    #[test]
    fn master_of_patroni_3_is_primary() {
        let json = r#"{"state": "running", "role": "master", "xlog": {"location": 1}}"#;
        assert_eq!(parse(json.as_bytes(), "x", &"postgresql0".into(), &Clock::start()).unwrap().role, Role::Primary);
    }

    #[test]
    fn without_an_answer_of_postgresql_the_writability_is_unknown() {
        let json = r#"{"state": "unknown", "role": "primary", "dcs_last_seen": 5}"#;
        let status = parse(json.as_bytes(), "x", &"postgresql0".into(), &Clock::start()).unwrap();
        assert_eq!((status.writable, status.state), (None, State::Unknown));
    }

    #[test]
    fn an_unknown_state_or_role_is_no_error() {
        let json = r#"{"state": "levitating", "role": "oracle", "new": [1], "xlog": {"x": 1}}"#;
        let status = parse(json.as_bytes(), "x", &"postgresql0".into(), &Clock::start()).unwrap();
        assert_eq!((status.state, status.role), (State::Unknown, Role::Unknown));
    }

    #[test]
    fn only_a_position_from_postgresql_decides_the_writability() {
        for (xlog, writable) in [
            (r#"{"location": 5}"#, Some(true)),
            (r#"{"received_location": 7, "replayed_location": 5}"#, Some(false)),
            (r#"{"received_location": 7, "replayed_location": null}"#, None),
            (r#"{"received_location": 7}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            let json = format!(r#"{{"state": "running", "role": "replica", "xlog": {xlog}}}"#);
            let status = parse(json.as_bytes(), "x", &"postgresql0".into(), &Clock::start()).unwrap();
            assert_eq!(status.writable, writable, "{xlog}");
        }
    }

    #[test]
    fn the_patroni_of_another_cluster_is_unusable() {
        let error = parse(PRIMARY.as_bytes(), "other", &"postgresql0".into(), &Clock::start()).unwrap_err();
        assert!(format!("{error:?}").contains("my_cluster"), "{error:?}");
    }

    #[test]
    fn the_patroni_of_another_member_is_recognized() {
        let error = parse(PRIMARY.as_bytes(), "my_cluster", &"postgresql1".into(), &Clock::start()).unwrap_err();
        assert!(matches!(&error, PatroniAnswer::Anothers(why) if why.contains("postgresql0")), "{error:?}");
    }

    #[test]
    fn nonsense_is_an_error() {
        for body in ["", "null", "[]", "<html>", "{\"xlog\": 5}", "{\"state\": {}}", "\u{0}"] {
            assert!(parse(body.as_bytes(), "x", &"postgresql0".into(), &Clock::start()).is_err(), "{body:?}");
        }
    }
}
