//! The HTTP API: `/healthz`, `/readyz`, `/metrics`, `/api/v1/state`, `/api/v1/leader`, `/api/v1/plan`,
//! `/api/v1/gate`, `/api/v1/fences`, `/api/v1/audit`, `/api/v1/log-level`.
//!
//! A request that changes something needs the token; others do not. Bodies, headers and the number of connections are
//! bounded, so a hostile or slow client costs no more than one slot for a few seconds.

mod operator;
mod read;

use super::log::LogControl;
use super::metrics::Metrics;
use crate::act::operator::Operator;
use crate::client::zookeeper::Handle as ZooKeeper;
use crate::clock::Clock;
use crate::secret::Secret;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use warden_core::event::Observed;
use warden_core::plan::Policy;
use warden_core::types::Moment;
use warden_core::view::View;

/// The maximal number of connections from other machines. The agent closes further ones at once.
const CONNECTIONS_MAX: usize = 64;

/// The maximal number of connections from this machine.
const LOCAL_CONNECTIONS_MAX: usize = 16;

/// The longest life of a connection. Ordinary answers take milliseconds.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);

/// The time for the head of a request, and for its body.
const HEAD_LIMIT: Duration = Duration::from_secs(2);

/// The maximal size of a body. Every body is a line of JSON.
const BODY_BYTES_MAX: usize = 4096;

/// The time for a linearizable read. A person waits for it.
pub(crate) const BARRIER_LIMIT: Duration = Duration::from_secs(1);

/// The time for an answer of the loop, which takes microseconds unless the loop is stuck.
pub(crate) const LOOP_LIMIT: Duration = Duration::from_secs(1);

const _: () = assert!(
    HEAD_LIMIT.as_millis() * 2 + BARRIER_LIMIT.as_millis() * 2 + LOOP_LIMIT.as_millis() < CONNECTION_LIMIT.as_millis()
);

/// A request to the loop for a copy of the view.
#[derive(Debug)]
pub struct Query {
    /// A barrier read for this request, which the view takes in first.
    pub observed: Option<Observed>,
    /// The channel for the copy.
    pub reply: oneshot::Sender<Box<View>>,
}

/// The last linearizable read for a request, and its start.
pub type LastRead = Arc<tokio::sync::Mutex<Option<(Instant, Observed)>>>;

/// The parts that the handlers need.
#[derive(Clone)]
pub struct Api {
    /// The requests to the loop.
    pub queries: mpsc::Sender<Query>,
    /// The ZooKeeper client for the linearizable reads.
    pub zookeeper: ZooKeeper,
    /// The actor for the orders of the operator.
    pub operator: Operator,
    /// The last linearizable read, which requests share.
    pub last_read: LastRead,
    /// The lock of the request that reads the audit trail.
    pub reading_audit: Arc<tokio::sync::Mutex<()>>,
    /// The agent's clock.
    pub clock: Clock,
    /// The metrics.
    pub metrics: Metrics,
    /// The actions that the operator allows the agent.
    pub policy: Policy,
    /// The control of the log level.
    pub log: LogControl,
    /// The token for requests that change something.
    pub token: Option<Secret>,
}

/// Serves until `shutdown`.
pub async fn serve(listener: Arc<TcpListener>, api: Api, shutdown: CancellationToken) -> anyhow::Result<()> {
    let router = router(api);
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let local_slots = Arc::new(Semaphore::new(LOCAL_CONNECTIONS_MAX));
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The agent has no free file descriptor, or the client has gone. A retry at once would not help.
                    tracing::debug!(%error, "the agent could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = shutdown.cancelled() => return Ok(()),
        };
        // Clients of other machines must not take the slots of the health check.
        let slots = if peer.ip().is_loopback() { &local_slots } else { &slots };
        let Ok(slot) = Arc::clone(slots).try_acquire_owned() else {
            tracing::debug!(%peer, "too many connections; the agent closes this one");
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_LIMIT)
                // With one request for each connection, `CONNECTION_LIMIT` is a limit for a request, and idle clients
                // hold no slot.
                .keep_alive(false)
                .max_buf_size(32 * 1024)
                .serve_connection(TokioIo::new(stream), service);
            // An error of the connection concerns the client only.
            tokio::select! {
                _ = timeout(CONNECTION_LIMIT, connection) => {}
                () = shutdown.cancelled() => {}
            }
            drop(slot);
        });
    }
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/healthz", get(read::healthz))
        .route("/readyz", get(read::readyz))
        .route("/metrics", get(read::metrics))
        .route("/api/v1/state", get(read::state_json))
        .route("/api/v1/leader", get(read::leader))
        .route("/api/v1/plan", get(read::plan))
        .route("/api/v1/gate", get(read::gate_picture))
        .route("/api/v1/fences", post(operator::fence))
        .route("/api/v1/fences/{member}", delete(operator::unfence))
        .route("/api/v1/audit", get(read::audit_trail))
        .route("/api/v1/log-level", put(operator::log_level))
        .fallback(|| async {
            problem(
                StatusCode::NOT_FOUND,
                "no such path; the paths are /healthz, /readyz, /metrics, /api/v1/state, /api/v1/leader, /api/v1/plan, \
                 /api/v1/gate, /api/v1/fences, /api/v1/audit, /api/v1/log-level",
            )
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api)
}

/// An error as JSON: the problem and the remedy.
fn problem(status: StatusCode, message: &str) -> Response {
    (status, Json(serde_json::json!({ "error": message }))).into_response()
}

const STUCK: &str = "the agent's loop does not answer; restart the agent and keep its log";

impl Api {
    async fn ask(&self, observed: Option<Observed>) -> Option<Box<View>> {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            self.queries.send(Query { observed, reply }).await.ok()?;
            answer.await.ok()
        };
        timeout(LOOP_LIMIT, asking).await.ok().flatten()
    }

    /// The view, and the moment after which a linearizable read counts as an answer to this request.
    ///
    /// Requests that arrive during such a read share the next one, so all of them cost ZooKeeper one write at a time.
    async fn verified_view(&self) -> (Option<Box<View>>, Moment) {
        let asked = Instant::now();
        let mut last = self.last_read.lock().await;
        let observed = match &*last {
            Some((started, observed)) if *started >= asked => observed.clone(),
            _ => {
                let started = Instant::now();
                let observed = self.zookeeper.barrier_event(BARRIER_LIMIT).await;
                *last = Some((started, observed.clone()));
                observed
            }
        };
        drop(last);
        (self.ask(Some(observed)).await, self.clock.moment(asked))
    }
}

#[cfg(test)]
pub(crate) mod tests;
