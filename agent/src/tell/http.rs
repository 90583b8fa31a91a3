//! The HTTP API: `/healthz`, `/readyz`, `/metrics`, `/api/v1/state`, `/api/v1/leader`, `/api/v1/plan`,
//! `/api/v1/fences`, `/api/v1/audit`, `/api/v1/log-level`.
//!
//! Reading needs no token; what changes anything does. Bodies, headers and the number of connections are
//! bounded, so that a hostile or slow client costs one slot for a few seconds and nothing else.

use super::leader::LeaderNow;
use super::log::LogControl;
use super::metrics::Metrics;
use super::state;
use crate::act::records::Records;
use crate::audit::Entry;
use crate::clock::Clock;
use crate::fence_record;
use crate::secret::Secret;
use crate::watch::znodes;
use crate::watch::zookeeper::{Expect, Handle as ZooKeeper};
use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use warden_core::event::{FenceRecord, Observed, Rule};
use warden_core::plan::Policy;
use warden_core::rules::gate;
use warden_core::types::{MemberName, Moment, UnixMillis};
use warden_core::view::View;

/// More connections than this are closed at once.
const MAX_CONNECTIONS: usize = 64;

/// The same for those from this machine.
const LOCAL_CONNECTIONS: usize = 16;

/// A connection is over after this long, whatever it is doing: our answers take milliseconds.
const MAX_CONNECTION: Duration = Duration::from_secs(10);

/// A request's head has to be there after this long.
const MAX_HEAD: Duration = Duration::from_secs(2);

/// The largest body taken; the only ones we take are a line of JSON.
const MAX_BODY: usize = 4096;

/// How long the linearizable read behind `/api/v1/state` may take: a person is waiting.
const BARRIER: Duration = Duration::from_secs(1);

/// How long the loop may take to answer; it answers within microseconds unless it is stuck.
const LOOP: Duration = Duration::from_secs(1);

/// A question to the loop: what do you believe, with this taken in first.
#[derive(Debug)]
pub struct Query {
    /// The barrier read that was made for this question, if one was.
    pub observed: Option<Observed>,
    /// Where the view goes.
    pub reply: oneshot::Sender<Box<View>>,
}

/// The last linearizable read that a request caused, and when it was started.
pub type LastRead = Arc<tokio::sync::Mutex<Option<(Instant, Observed)>>>;

/// What the handlers need.
#[derive(Clone)]
pub struct Api {
    /// Questions to the loop.
    pub queries: mpsc::Sender<Query>,
    /// For the linearizable read.
    pub zookeeper: ZooKeeper,
    /// What waits to be written down.
    pub records: Records,
    /// The last such read, and when it was started.
    pub last_read: LastRead,
    /// Whose turn it is to read the audit trail.
    pub reading_audit: Arc<tokio::sync::Mutex<()>>,
    /// Our own name, for the audit trail.
    pub agent: String,
    /// The agent's clock.
    pub clock: Clock,
    /// Counters and gauges.
    pub metrics: Metrics,
    /// What the operator leaves to us.
    pub policy: Policy,
    /// The log's level.
    pub log: LogControl,
    /// What changes anything needs this token.
    pub token: Option<Secret>,
}

/// Serves until `shutdown`.
pub async fn serve(listener: Arc<TcpListener>, api: Api, shutdown: CancellationToken) -> anyhow::Result<()> {
    let router = router(api);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let local_slots = Arc::new(Semaphore::new(LOCAL_CONNECTIONS));
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, or the peer went away: neither gets better by spinning.
                    tracing::debug!(%error, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return Ok(()),
        };
        // Whoever comes from this machine, the health check above all, does not stand in line with the rest.
        let slots = if peer.ip().is_loopback() { &local_slots } else { &slots };
        let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
            tracing::debug!(%peer, "too many connections; this one is closed");
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(MAX_HEAD)
                // One request each: the limit below is then a limit for a request, and idle clients hold no slot.
                .keep_alive(false)
                .max_buf_size(32 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // However it ends, it is the client's business.
            tokio::select! {
                _ = timeout(MAX_CONNECTION, connection) => {}
                () = shutdown.cancelled() => {}
            }
            drop(slot);
        });
    }
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/state", get(state_json))
        .route("/api/v1/leader", get(leader))
        .route("/api/v1/plan", get(plan))
        .route("/api/v1/gate", get(gate_picture))
        .route("/api/v1/fences", post(fence))
        .route("/api/v1/fences/{member}", delete(unfence))
        .route("/api/v1/audit", get(audit_trail))
        .route("/api/v1/log-level", put(log_level))
        .fallback(|| async {
            problem(
                StatusCode::NOT_FOUND,
                "no such path; there are /healthz, /readyz, /metrics, /api/v1/state, /api/v1/leader, /api/v1/plan, /api/v1/gate, /api/v1/fences, /api/v1/audit, /api/v1/log-level",
            )
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(api)
}

/// An error as JSON: what is wrong and what to do.
fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(serde_json::json!({ "error": message }))).into_response()
}

impl Api {
    async fn ask(&self, observed: Option<Observed>) -> Option<Box<View>> {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            self.queries.send(Query { observed, reply }).await.ok()?;
            answer.await.ok()
        };
        timeout(LOOP, asking).await.ok().flatten()
    }

    /// The view, and the moment after which a linearizable read counts as an answer to this request.
    ///
    /// Requests that come while such a read is under way share the next one: however many there are, they cost
    /// ZooKeeper one write at a time.
    async fn verified_view(&self) -> (Option<Box<View>>, Moment) {
        let asked = Instant::now();
        let mut last = self.last_read.lock().await;
        let observed = match &*last {
            Some((started, observed)) if *started >= asked => observed.clone(),
            _ => {
                let started = Instant::now();
                let observed = znodes::barrier(self.zookeeper.barrier(BARRIER).await, started, &self.clock);
                *last = Some((started, observed.clone()));
                observed
            }
        };
        drop(last);
        (self.ask(Some(observed)).await, self.clock.moment(asked))
    }
}

const STUCK: &str = "the agent's loop does not answer; restart the agent and keep its log";

/// 200 while the loop turns.
async fn healthz(State(api): State<Api>) -> Response {
    match api.ask(None).await {
        Some(_) => "ok\n".into_response(),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// 200 once the agent has a ZooKeeper session and has read the tree and its neighbour.
async fn readyz(State(api): State<Api>) -> Response {
    let Some(view) = api.ask(None).await else { return problem(StatusCode::SERVICE_UNAVAILABLE, STUCK) };
    let own = view.identity.member.as_ref().and_then(|name| view.members.get(name));
    let node = view.identity.member.is_none() || own.is_some_and(|member| member.patroni.is_some());
    let router = !view.identity.roles.iter().any(|role| role == "router") || view.haproxy.is_some();
    let missing = [
        (view.session().is_some(), "a ZooKeeper session"),
        (view.tree_read.is_some(), "a whole read of Patroni's tree"),
        (node, "an answer about the local Patroni"),
        (router, "an answer about the local HAProxy"),
    ];
    let missing: Vec<&str> = missing.iter().filter(|(there, _)| !there).map(|(_, what)| *what).collect();
    if missing.is_empty() {
        "ok\n".into_response()
    } else {
        problem(StatusCode::SERVICE_UNAVAILABLE, &format!("not yet: {}", missing.join(", ")))
    }
}

async fn metrics(State(api): State<Api>) -> Response {
    let Some(view) = api.ask(None).await else { return problem(StatusCode::SERVICE_UNAVAILABLE, STUCK) };
    match api.metrics.render(&view, api.clock.now()) {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], Body::from(text)).into_response()
        }
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("the metrics cannot be written: {error}")),
    }
}

async fn state_json(State(api): State<Api>) -> Response {
    let (view, asked) = api.verified_view().await;
    match view {
        Some(view) => {
            Json(state::state(&view, &api.clock, asked, state::Observer::Agent(api.policy.fencing))).into_response()
        }
        None => problem(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// Who leads, as it was read last: at once.
async fn leader(State(api): State<Api>) -> Response {
    match api.ask(None).await {
        Some(view) => Json(LeaderNow::of(&view, api.clock.now())).into_response(),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// What would be done now, and why: the plan itself, not carried out.
async fn plan(State(api): State<Api>) -> Response {
    let (view, _) = api.verified_view().await;
    match view {
        Some(view) => {
            let lines = super::plan::lines(&view, &api.policy, api.clock.now());
            Json(serde_json::json!({ "lines": lines })).into_response()
        }
        None => problem(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// What the gate has to know, by a linearizable read that was started after the request.
async fn gate_picture(State(api): State<Api>) -> Response {
    let (view, asked) = api.verified_view().await;
    let Some(view) = view else { return problem(StatusCode::SERVICE_UNAVAILABLE, STUCK) };
    let Some(own) = &view.identity.member else {
        return problem(StatusCode::NOT_FOUND, "this agent stands beside no node");
    };
    match gate::picture(&view, own, asked, api.clock.now()) {
        Some(picture) => Json(super::picture::write(&picture)).into_response(),
        None => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "no linearizable read says who holds the leader key: see warden status",
        ),
    }
}

/// The body of `POST /api/v1/fences`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedFence {
    member: String,
    reason: String,
}

/// Puts down that a person wants a member fenced; the agents that are nearest see to it.
async fn fence(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    if let Err((status, message)) = authorized(&api, &headers) {
        return problem(status, message);
    }
    let body = match whole(body).await {
        Ok(body) => body,
        Err(problem) => return problem,
    };
    let wanted: WantedFence = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => {
            let message = format!("the body has to be like {{\"member\": \"pg1\", \"reason\": \"why\"}}: {error}");
            return problem(StatusCode::BAD_REQUEST, &message);
        }
    };
    let reason = one_line(&wanted.reason);
    let Some(view) = api.ask(None).await else { return problem(StatusCode::SERVICE_UNAVAILABLE, STUCK) };
    let member = MemberName::from(wanted.member.as_str());
    if !view.members.contains_key(&member) {
        let known: Vec<&str> = view.members.keys().map(MemberName::as_str).collect();
        return problem(
            StatusCode::NOT_FOUND,
            &format!("no member is called {member}; there are {}", known.join(", ")),
        );
    }
    let record = FenceRecord {
        member: member.clone(),
        rule: Rule::Operator,
        reason: reason.clone(),
        by: "operator".to_owned(),
        ordered: UnixMillis(jiff::Timestamp::now().as_millisecond()),
        confirmed: None,
        facts: Vec::new(),
        written: None,
    };
    tracing::warn!(member = member.as_str(), reason = record.reason, "a fence was asked for over HTTP");
    api.records.forget(&member);
    let record = fence_record::write(&record);
    match api.zookeeper.write_record(member.as_str(), Some(record), Expect::Anything, BARRIER).await {
        Ok(_) => {
            audit(&api, "fence", member.as_str(), &reason);
            Json(serde_json::json!({ "member": member.as_str() })).into_response()
        }
        Err(why) => problem(StatusCode::SERVICE_UNAVAILABLE, &format!("the fence could not be put down: {why}")),
    }
}

/// A person's words go into logs, which are read by line.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Takes back what a person asked for.
async fn unfence(State(api): State<Api>, headers: HeaderMap, Path(member): Path<String>) -> Response {
    if let Err((status, message)) = authorized(&api, &headers) {
        return problem(status, message);
    }
    let Some(view) = api.ask(None).await else { return problem(StatusCode::SERVICE_UNAVAILABLE, STUCK) };
    let name = MemberName::from(member.as_str());
    if !view.leadership.records.contains_key(&name) {
        return problem(StatusCode::NOT_FOUND, &format!("{member} is not fenced"));
    }
    tracing::warn!(member, "a fence was taken back over HTTP");
    api.records.forget(&name);
    match api.zookeeper.write_record(&member, None, Expect::Anything, BARRIER).await {
        Ok(_) => {
            audit(&api, "unfence", &member, "it was taken back");
            Json(serde_json::json!({ "member": member })).into_response()
        }
        Err(why) => problem(StatusCode::SERVICE_UNAVAILABLE, &format!("the fence could not be taken back: {why}")),
    }
}

/// Has it written down what a person did.
fn audit(api: &Api, action: &str, member: &str, reason: &str) {
    let entry = Entry {
        by: "operator".to_owned(),
        outcome: "asked".to_owned(),
        ..Entry::new(&api.agent, action, member, reason)
    };
    api.records.audit(entry.write());
}

/// The audit trail, the oldest entry first.
async fn audit_trail(State(api): State<Api>) -> Response {
    // One at a time: it is many reads on the one connection that everything else needs.
    let Ok(_turn) = timeout(BARRIER, api.reading_audit.lock()).await else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "others are reading the audit trail; ask again");
    };
    match api.zookeeper.read_audit(BARRIER).await {
        Ok(found) => {
            let mut entries: Vec<Entry> = found.iter().filter_map(|znode| Entry::parse(&znode.data).ok()).collect();
            // One whose writing was not confirmed was written again.
            entries.dedup();
            Json(serde_json::json!({ "entries": entries })).into_response()
        }
        Err(why) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, &format!("the audit trail cannot be read from ZooKeeper: {why}"))
        }
    }
}

/// The body of `PUT /api/v1/log-level`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevel {
    level: String,
}

async fn log_level(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    // Before the body is read: without the token nobody gets to send one.
    if let Err((status, message)) = authorized(&api, &headers) {
        return problem(status, message);
    }
    let body = match whole(body).await {
        Ok(body) => body,
        Err(problem) => return problem,
    };
    let wanted: LogLevel = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => {
            let message = format!("the body has to be like {{\"level\": \"debug\"}}: {error}");
            return problem(StatusCode::BAD_REQUEST, &message);
        }
    };
    match api.log.set(&wanted.level) {
        Ok(()) => {
            tracing::warn!(level = wanted.level, "log level changed over HTTP");
            Json(serde_json::json!({ "level": wanted.level })).into_response()
        }
        Err(why) => problem(StatusCode::BAD_REQUEST, &why),
    }
}

/// A whole body, if it is small enough and comes in time.
async fn whole(body: Body) -> Result<axum::body::Bytes, Response> {
    match timeout(MAX_HEAD, axum::body::to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        _ => Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or does not come")),
    }
}

/// Whether the request carries our token.
fn authorized(api: &Api, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let Some(token) = &api.token else {
        let message =
            "this agent has no token, so nothing can be changed over HTTP; set http.token_file or WARDEN_API_TOKEN";
        return Err((StatusCode::FORBIDDEN, message));
    };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let scheme = |value: &'_ str| value.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bearer "));
    match given.filter(|value| scheme(value)).and_then(|value| value.get(7..)) {
        Some(given) if token.matches(given.trim()) => Ok(()),
        Some(_) => Err((StatusCode::UNAUTHORIZED, "the token is not this agent's")),
        None => Err((StatusCode::UNAUTHORIZED, "send the token as `Authorization: Bearer …`")),
    }
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
