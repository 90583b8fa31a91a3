//! Requests that change something. Each needs the agent's token. `act/operator.rs` carries out the orders.

use super::{Api, BODY_BYTES_MAX, HEAD_LIMIT, STUCK, problem};
use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::time::timeout;
use warden_core::types::MemberName;

/// The body of `POST /api/v1/fences`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FenceRequest {
    member: String,
    reason: String,
}

/// Writes the operator's order to fence a member. The agents carry it out.
pub(super) async fn fence(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    if let Err((status, message)) = authorized(&api, &headers) {
        return problem(status, message);
    }
    let body = match whole(body).await {
        Ok(body) => body,
        Err(problem) => return problem,
    };
    let wanted: FenceRequest = match serde_json::from_slice(&body) {
        Ok(wanted) => wanted,
        Err(error) => {
            let message = format!("send a body like {{\"member\": \"pg1\", \"reason\": \"why\"}}: {error}");
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
            &format!("no member has the name {member}; the members are {}", known.join(", ")),
        );
    }
    match api.operator.fence(&member, &reason).await {
        Ok(()) => Json(serde_json::json!({ "member": member.as_str() })).into_response(),
        Err(why) => problem(StatusCode::SERVICE_UNAVAILABLE, &format!("the agent could not write the fence: {why}")),
    }
}

/// Replaces control characters, because the reason becomes part of a log line.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Takes back a fence of the operator.
pub(super) async fn unfence(State(api): State<Api>, headers: HeaderMap, Path(member): Path<String>) -> Response {
    if let Err((status, message)) = authorized(&api, &headers) {
        return problem(status, message);
    }
    let Some(view) = api.ask(None).await else { return problem(StatusCode::SERVICE_UNAVAILABLE, STUCK) };
    let name = MemberName::from(member.as_str());
    if !view.leadership.records.contains_key(&name) {
        return problem(StatusCode::NOT_FOUND, &format!("{member} is not fenced"));
    }
    match api.operator.unfence(&name).await {
        Ok(()) => Json(serde_json::json!({ "member": member })).into_response(),
        Err(why) => {
            problem(StatusCode::SERVICE_UNAVAILABLE, &format!("the agent could not take the fence back: {why}"))
        }
    }
}

/// The body of `PUT /api/v1/log-level`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevel {
    level: String,
}

pub(super) async fn log_level(State(api): State<Api>, headers: HeaderMap, body: Body) -> Response {
    // The agent reads no body of a client without the token.
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
            let message = format!("send a body like {{\"level\": \"debug\"}}: {error}");
            return problem(StatusCode::BAD_REQUEST, &message);
        }
    };
    match api.log.set(&wanted.level) {
        Ok(()) => {
            tracing::warn!(
                event = "log_level_changed",
                level = wanted.level,
                "the operator changed the log level over HTTP"
            );
            Json(serde_json::json!({ "level": wanted.level })).into_response()
        }
        Err(why) => problem(StatusCode::BAD_REQUEST, &why),
    }
}

/// Reads a whole body, if it is small enough and arrives in time.
async fn whole(body: Body) -> Result<axum::body::Bytes, Response> {
    match timeout(HEAD_LIMIT, axum::body::to_bytes(body, BODY_BYTES_MAX)).await {
        Ok(Ok(body)) => Ok(body),
        _ => Err(problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large, or did not arrive in time")),
    }
}

/// Checks that the request has the agent's token.
fn authorized(api: &Api, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let Some(token) = &api.token else {
        let message =
            "this agent has no token, so it refuses every change over HTTP; set http.token_file or WARDEN_API_TOKEN";
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
