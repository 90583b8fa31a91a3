//! A member's Patroni, through its REST API.
//!
//! `GET /patroni` every second on a connection of its own (Patroni 4.1 serves its API from five workers
//! without time limits: a connection kept open is a worker taken), and `GET /liveness` of the local one now and then.
//! Refused, silent and answering are three different facts.

use super::names::Names;
use super::{Closed, Events, io_cause, root_cause};
use crate::clock::Clock;
use crate::config::PatroniConfig;
use anyhow::Context;
use reqwest::{Client, RequestBuilder, redirect};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};
use warden_core::event::{Event, PatroniAnswer, PatroniStatus, Role, State};
use warden_core::types::{Lsn, MemberName, SystemId, Timeline};

/// A question every second, and as long for an answer.
const PERIOD: Duration = Duration::from_secs(1);

/// Patroni calls its HA loop late after ttl: it is soon enough to ask this often.
const LIVENESS: Duration = Duration::from_secs(5);

/// The largest answer taken. A hundred replicas make about 20 KiB.
const MAX_BODY: usize = 1 << 20;

/// A client for the members' REST APIs.
#[derive(Clone, Debug)]
pub struct PatroniClient {
    http: Client,
    login: Option<(String, Option<crate::secret::Secret>)>,
    scope: String,
}

impl PatroniClient {
    /// A client as Patroni is configured. Errors name the certificate file that cannot be used.
    pub fn new(config: &PatroniConfig, scope: &str) -> anyhow::Result<Self> {
        let read =
            |path: &std::path::Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let mut builder = Client::builder()
            .timeout(PERIOD)
            .connect_timeout(PERIOD)
            .pool_max_idle_per_host(0)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .http1_only()
            .dns_resolver(Names::default())
            .user_agent(concat!("warden/", env!("CARGO_PKG_VERSION")))
            .tls_danger_accept_invalid_certs(config.insecure);
        if let Some(path) = &config.cacert {
            let bundle = reqwest::Certificate::from_pem_bundle(&read(path)?)
                .with_context(|| format!("{} is not a PEM bundle of certificates", path.display()))?;
            builder = builder.tls_certs_only(bundle);
        }
        if let Some(path) = &config.certfile {
            let mut pem = read(path)?;
            if let Some(key) = &config.keyfile {
                pem.extend(read(key)?);
            }
            let identity = reqwest::Identity::from_pem(&pem)
                .with_context(|| format!("{} is not a PEM certificate with its key", path.display()))?;
            builder = builder.identity(identity);
        }
        Ok(Self {
            http: builder.build().context("cannot set up HTTPS for Patroni's REST API")?,
            login: config.username.clone().map(|user| (user, config.password.clone())),
            scope: scope.to_owned(),
        })
    }

    /// Asks `GET /patroni` of `member`.
    pub async fn ask(&self, member: &MemberName, api: &str, clock: &Clock) -> PatroniAnswer {
        match self.get(api, "patroni").await {
            Ok((_, body)) => {
                parse(&body, &self.scope, member, clock).map_or_else(PatroniAnswer::Unusable, PatroniAnswer::Answering)
            }
            Err(answer) => answer,
        }
    }

    /// Asks `GET /liveness`: whether the HA loop turns. `None` where that was not answered.
    pub async fn turns(&self, api: &str) -> Option<bool> {
        match self.get(api, "liveness").await {
            Ok((200, _)) => Some(true),
            Ok((503, _)) => Some(false),
            _ => None,
        }
    }

    /// Wakes the HA loop of the Patroni at `api`: a `PATCH /config` with a value that is already there, which changes
    /// nothing. The error says what is in the way.
    pub async fn nudge(&self, api: &str) -> Result<(), String> {
        let said = |answer: PatroniAnswer| match answer {
            PatroniAnswer::Refused(why) | PatroniAnswer::Silent(why) | PatroniAnswer::Unusable(why) => why,
            PatroniAnswer::Answering(_) => "it answers something else".to_owned(),
        };
        let (code, body) = self.get(api, "config").await.map_err(said)?;
        if code != 200 {
            return Err(format!("GET /config answers {code}"));
        }
        let config: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&body).map_err(|error| format!("GET /config answers no JSON object: {error}"))?;
        let Some((key, value)) = config.into_iter().find(|(_, value)| value.is_number() || value.is_boolean()) else {
            return Err("Patroni's configuration has no value that could be repeated".to_owned());
        };
        let same = serde_json::Map::from_iter([(key, value)]);
        let request = self.with_login(self.http.patch(format!("{api}/config")).json(&same));
        let response = request.send().await.map_err(|error| said(answer_of_error(&error)))?;
        match response.status().as_u16() {
            200 => Ok(()),
            code => {
                Err(format!("PATCH /config answers {code}: check restapi.authentication in Patroni's configuration"))
            }
        }
    }

    async fn get(&self, api: &str, path: &str) -> Result<(u16, Vec<u8>), PatroniAnswer> {
        let request = self.with_login(self.http.get(format!("{api}/{path}")));
        let mut response = request.send().await.map_err(|error| answer_of_error(&error))?;
        let code = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| answer_of_error(&error))? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(PatroniAnswer::Unusable(format!("its answer is longer than {MAX_BODY} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if code == 401 || code == 403 {
            let remedy = "check restapi.authentication and restapi.allowlist in Patroni's configuration";
            return Err(PatroniAnswer::Unusable(format!("it answers {code}; {remedy}")));
        }
        Ok((code, body))
    }

    fn with_login(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.login {
            Some((user, password)) => request.basic_auth(user, password.as_ref().map(crate::secret::Secret::reveal)),
            None => request,
        }
    }
}

/// Watches one member's Patroni until the agent shuts down.
pub async fn watch(
    member: MemberName,
    api: String,
    is_local: bool,
    client: PatroniClient,
    events: Events,
) -> Result<(), Closed> {
    let mut asked_liveness: Option<Instant> = None;
    loop {
        let asked = Instant::now();
        let at = events.clock.now();
        let liveness = is_local && asked_liveness.is_none_or(|at| at.elapsed() >= LIVENESS);
        // Side by side, so that both together take no longer than one.
        let turns = async { if liveness { client.turns(&api).await } else { None } };
        let (answer, turns) = tokio::join!(client.ask(&member, &api, &events.clock), turns);
        if let Some(turns) = turns {
            asked_liveness = Some(asked);
            events.send(at, Event::Liveness { member: member.clone(), turns }).await?;
        }
        events.send(at, Event::Patroni { member: member.clone(), answer }).await?;
        sleep_until(asked + PERIOD).await;
    }
}

fn answer_of_error(error: &reqwest::Error) -> PatroniAnswer {
    if error.is_timeout() {
        return PatroniAnswer::Silent("no answer within 1 s".to_owned());
    }
    match io_cause(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => PatroniAnswer::Refused("nobody listens".to_owned()),
        // Only an answer of the host itself is a refusal: no route, no name, a reset prove nothing.
        Some(_) => PatroniAnswer::Silent(root_cause(error)),
        None if error.is_connect() || error.is_builder() => PatroniAnswer::Unusable(root_cause(error)),
        None => PatroniAnswer::Silent(root_cause(error)),
    }
}

/// `GET /patroni`, Patroni 3.x and 4.x (`get_postgresql_status` in `patroni/api.py`).
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

/// Reads the JSON of `member`'s Patroni. The error says what is wrong with it.
fn parse(body: &[u8], scope: &str, member: &MemberName, clock: &Clock) -> Result<PatroniStatus, String> {
    let wire: Wire =
        serde_json::from_slice(body).map_err(|error| format!("its answer is not Patroni's JSON: {error}"))?;
    if let Some(other) = wire.patroni.as_ref().and_then(|about| about.scope.as_deref())
        && other != scope
    {
        return Err(format!("it belongs to another cluster: scope {other:?} instead of {scope:?}"));
    }
    // After containers came back with each other's addresses a name may lead to the wrong one for a while.
    if let Some(other) = wire.patroni.as_ref().and_then(|about| about.name.as_deref())
        && other != member.as_str()
    {
        return Err(format!("it is the Patroni of {other:?}: is the name right, and its address?"));
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
    // `xlog` is there exactly when PostgreSQL answered Patroni's query for this request; its role then
    // comes from pg_is_in_recovery(), otherwise from Patroni's memory.
    let writable = wire.xlog.as_ref().map(|xlog| xlog.location.is_some());
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

/// A role by its name in Patroni: `master` until 3.x, `primary` from 4.0 on.
pub(super) fn role_of(text: &str) -> Role {
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

    const PRIMARY: &str = include_str!("testdata/patroni-primary.json");
    const STANDBY: &str = include_str!("testdata/patroni-sync-standby.json");

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
    fn without_a_query_answered_by_postgresql_nothing_is_said_about_writability() {
        let json = r#"{"state": "unknown", "role": "primary", "dcs_last_seen": 5}"#;
        let status = parse(json.as_bytes(), "x", &"postgresql0".into(), &Clock::start()).unwrap();
        assert_eq!((status.writable, status.state), (None, State::Unknown));
    }

    #[test]
    fn what_nobody_has_heard_of_is_unknown_and_not_an_error() {
        let json = r#"{"state": "levitating", "role": "oracle", "new": [1], "xlog": {"x": 1}}"#;
        let status = parse(json.as_bytes(), "x", &"postgresql0".into(), &Clock::start()).unwrap();
        assert_eq!((status.state, status.role), (State::Unknown, Role::Unknown));
    }

    #[test]
    fn another_clusters_patroni_is_not_believed() {
        let error = parse(PRIMARY.as_bytes(), "other", &"postgresql0".into(), &Clock::start()).unwrap_err();
        assert!(error.contains("my_cluster") && error.contains("other"), "{error}");
    }

    #[test]
    fn another_members_patroni_is_not_believed() {
        let error = parse(PRIMARY.as_bytes(), "my_cluster", &"postgresql1".into(), &Clock::start()).unwrap_err();
        assert!(error.contains("postgresql0"), "{error}");
    }

    #[test]
    fn nonsense_is_an_error_that_says_so() {
        for body in ["", "null", "[]", "<html>", "{\"xlog\": 5}", "{\"state\": {}}", "\u{0}"] {
            assert!(parse(body.as_bytes(), "x", &"postgresql0".into(), &Clock::start()).is_err(), "{body:?}");
        }
    }
}
