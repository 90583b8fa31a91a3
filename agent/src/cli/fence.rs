//! `warden fence`, `warden unfence`, `warden plan`: requests to the agent on this machine.

use super::{Failure, client, load, runtime};
use anyhow::{Context, anyhow};
use reqwest::Method;
use std::path::Path;

#[derive(Debug, clap::Args)]
pub(super) struct FenceArgs {
    /// Member whose PostgreSQL must take no writes until it is unfenced
    member: String,
    /// Reason, for the record
    #[arg(long, default_value = "no reason given")]
    reason: String,
}

#[derive(Debug, clap::Args)]
pub(super) struct UnfenceArgs {
    /// Member that may take writes again
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    member: String,
}

pub(super) fn fence(config: &Path, args: &FenceArgs) -> Result<(), Failure> {
    let FenceArgs { member, reason } = args;
    let body = serde_json::json!({ "member": member, "reason": reason });
    ask(config, Method::POST, "/api/v1/fences", Some(body))?;
    println!("the agents fence {member} until `warden unfence {member}`; `warden status` shows the confirmation");
    Ok(())
}

pub(super) fn unfence(config: &Path, args: &UnfenceArgs) -> Result<(), Failure> {
    let UnfenceArgs { member } = args;
    ask(config, Method::DELETE, &path_of_fence(member), None)?;
    println!("{member} is not fenced any more; Patroni may start its server");
    Ok(())
}

/// The path of a member's fence. The name is one segment, so it is percent-encoded: `#`, `?` and `/` would end the
/// segment, and `%` begins an encoded byte.
fn path_of_fence(member: &str) -> String {
    let encoded = |byte: u8| match byte {
        byte if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    let member: String = member.bytes().map(encoded).collect();
    format!("/api/v1/fences/{member}")
}

pub(super) fn plan(config: &Path) -> Result<(), Failure> {
    let plan = ask(config, Method::GET, "/api/v1/plan", None)?;
    let lines =
        plan.get("lines").and_then(|lines| lines.as_array()).context("the answer of the agent is not a plan")?;
    for line in lines.iter().filter_map(|line| line.as_str()) {
        println!("{line}");
    }
    Ok(())
}

/// Sends a request to the agent on this machine, with the token of the configuration, and returns the JSON of the
/// answer.
pub(super) fn ask(
    config: &Path,
    method: Method,
    path: &str,
    body: Option<serde_json::Value>,
) -> Result<serde_json::Value, Failure> {
    let config = load(config)?;
    let url = format!("{}{path}", client::local(&config));
    runtime()?.block_on(async {
        let mut request = client::http()?.request(method, &url);
        if let Some(token) = &config.http.token {
            request = request.bearer_auth(token.reveal());
        }
        if let Some(body) = &body {
            request = request.json(body);
        }
        let answer = request.send().await.with_context(|| format!("{url} does not answer"))?;
        let status = answer.status();
        let body: serde_json::Value = answer.json().await.unwrap_or_default();
        if status.is_success() {
            return Ok(body);
        }
        let why = body.get("error").and_then(|why| why.as_str()).unwrap_or("no reason given");
        Err(anyhow!("the agent refuses ({status}): {why}").into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::{Router, extract::Path, routing::delete};

    #[tokio::test]
    async fn the_api_gets_every_name_as_the_operator_wrote_it() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router =
            Router::new().route("/api/v1/fences/{member}", delete(|Path(member): Path<String>| async move { member }));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let http = client::http().unwrap();
        let names =
            ["pg-1.example_a~", "a#b", "a?b=c", "a%62", "a%", "a/b", "a b+c", "a&b:c", "größe-日本", "a\\b", "..a"];
        for name in names {
            let url = format!("http://{address}{}", path_of_fence(name));
            let answer = http.request(Method::DELETE, &url).send().await.unwrap();
            assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (200, name), "{url}");
        }
    }
}
