//! Requests that only read.

use super::{Api, BARRIER_LIMIT, STUCK, problem};
use crate::tell::leader::LeaderNow;
use crate::tell::{picture, plan as plan_in_words, state};
use crate::znode::audit::Entry;
use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;
use warden_core::rules::gate;

/// 200 while the loop answers.
pub(super) async fn healthz(State(api): State<Api>) -> Response {
    match api.ask(None).await {
        Some(_) => "ok\n".into_response(),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// 200 when the agent has a ZooKeeper session, has read Patroni's tree, and has an answer of the local node or HAProxy.
pub(super) async fn readyz(State(api): State<Api>) -> Response {
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

pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let Some(view) = api.ask(None).await else { return problem(StatusCode::SERVICE_UNAVAILABLE, STUCK) };
    match api.metrics.render(&view, api.clock.now()) {
        Ok(text) => {
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], Body::from(text)).into_response()
        }
        Err(error) => {
            problem(StatusCode::INTERNAL_SERVER_ERROR, &format!("the agent cannot write the metrics: {error}"))
        }
    }
}

pub(super) async fn state_json(State(api): State<Api>) -> Response {
    let (view, asked) = api.verified_view().await;
    match view {
        Some(view) => {
            Json(state::state(&view, &api.clock, asked, state::Observer::Agent(api.policy.fencing))).into_response()
        }
        None => problem(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// The leader as the agent last read it, at once.
pub(super) async fn leader(State(api): State<Api>) -> Response {
    match api.ask(None).await {
        Some(view) => Json(LeaderNow::of(&view, api.clock.now())).into_response(),
        None => problem(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// The actions that the agent would take now, and why. The request carries out none of them.
pub(super) async fn plan(State(api): State<Api>) -> Response {
    let (view, _) = api.verified_view().await;
    match view {
        Some(view) => {
            let lines = plan_in_words::lines(&view, &api.policy, api.clock.now());
            Json(serde_json::json!({ "lines": lines })).into_response()
        }
        None => problem(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// The gate's picture, by a linearizable read that started after the request.
pub(super) async fn gate_picture(State(api): State<Api>) -> Response {
    let (view, asked) = api.verified_view().await;
    let Some(view) = view else { return problem(StatusCode::SERVICE_UNAVAILABLE, STUCK) };
    let Some(own) = &view.identity.member else {
        return problem(StatusCode::NOT_FOUND, "this agent has no node role");
    };
    match gate::picture(&view, own, asked, api.clock.now()) {
        Some(picture) => Json(picture::write(&picture)).into_response(),
        None => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "no linearizable read confirms the holder of the leader key; see warden status",
        ),
    }
}

/// The audit trail, the oldest entry first.
pub(super) async fn audit_trail(State(api): State<Api>) -> Response {
    // The audit trail costs many reads on the agent's only connection, so one request reads at a time.
    let Ok(_turn) = timeout(BARRIER_LIMIT, api.reading_audit.lock()).await else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "other requests read the audit trail now; ask again");
    };
    match api.zookeeper.read_audit(BARRIER_LIMIT).await {
        Ok(found) => {
            let mut entries: Vec<Entry> = found.iter().filter_map(|znode| Entry::parse(&znode.data).ok()).collect();
            // The agent repeats a write that ZooKeeper did not confirm, so an entry may be there twice.
            entries.dedup();
            Json(serde_json::json!({ "entries": entries })).into_response()
        }
        Err(why) => problem(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("the agent cannot read the audit trail from ZooKeeper: {why}"),
        ),
    }
}
