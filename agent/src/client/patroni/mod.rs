//! The client for the members' REST APIs, and the meaning of a failed call.
//!
//! Patroni 4.1 serves its API from five workers without time limits. A worker goes on with a request after its client
//! has closed the connection. So the agent has at most one `GET /health` to a Patroni in progress, and all callers
//! share its answer. Only silence of the transport counts as silence. An answer that cannot be parsed is unusable.

#[cfg(test)]
pub(crate) mod fixtures;
mod wire;

pub(crate) use wire::role_of;

use crate::client::names::{LOOK_UP_LIMIT, Names, NotResolved};
use crate::client::root_cause;
use crate::clock::Clock;
use crate::config::PatroniConfig;
use anyhow::Context;
use reqwest::{Client, RequestBuilder, redirect};
use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch as latest;
use tokio::time::timeout;
use warden_core::event::PatroniAnswer;
use warden_core::types::MemberName;

/// A later answer counts as late.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(1);

/// The client gives up a `GET /health` after this.
pub(crate) const HEALTH_LIMIT: Duration = Duration::from_secs(30);

/// The limit for a connection. With HTTPS, it includes a handshake with one of Patroni's workers.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A host is down if its kernel acknowledges nothing for this long. The kernel of a frozen process acknowledges.
const HOST_SILENCE_MAX: Duration = Duration::from_secs(1);

/// Between two TCP keepalives while the client waits for an answer.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);

const _: () = assert!(LOOK_UP_LIMIT.as_millis() < ANSWER_LIMIT.as_millis());
const _: () = assert!(ANSWER_LIMIT.as_millis() < CONNECT_LIMIT.as_millis());
const _: () = assert!(CONNECT_LIMIT.as_millis() < HEALTH_LIMIT.as_millis());

/// The client refuses a longer answer. A hundred replicas make about 20 KiB.
const BODY_MAX: usize = 1 << 20;

/// A key that Patroni's configuration does not have.
const NO_SUCH_KEY: &str = "warden_wakes_the_ha_loop";

/// A client for the members' REST APIs. Its clones share the questions in progress.
#[derive(Clone, Debug)]
pub struct PatroniClient {
    http: Client,
    login: Option<(String, Option<crate::secret::Secret>)>,
    scope: String,
    under_way: Arc<Mutex<BTreeMap<(MemberName, String), Question>>>,
}

/// A `GET /health` in progress. Its clones wait for the same answer.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    /// When the client sent it.
    pub(crate) asked: Instant,
    answer: latest::Receiver<Option<PatroniAnswer>>,
}

impl Question {
    /// Waits for the answer, for at most [`HEALTH_LIMIT`]. A dropped call loses nothing.
    pub(crate) async fn answer(&mut self) -> PatroniAnswer {
        let answer = self.answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        answer.unwrap_or_else(|| PatroniAnswer::Unusable("the agent's own question failed".to_owned()))
    }

    /// Whether an answer may still come.
    fn is_under_way(&self) -> bool {
        self.answer.borrow().is_none() && self.answer.has_changed().is_ok()
    }
}

impl PatroniClient {
    /// A client with the TLS settings and the login in `config`. The error names an unusable certificate file.
    pub fn new(config: &PatroniConfig, scope: &str) -> anyhow::Result<Self> {
        let read =
            |path: &std::path::Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let mut builder = Client::builder()
            .connect_timeout(CONNECT_LIMIT)
            .tcp_user_timeout(HOST_SILENCE_MAX)
            .tcp_keepalive(KEEPALIVE_INTERVAL)
            .tcp_keepalive_interval(HOST_SILENCE_MAX)
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
            under_way: Arc::default(),
        })
    }

    /// Asks `member`'s Patroni once, for 1 s.
    ///
    /// The answer is that of `GET /health`, also of one already in progress. The API is unusable and not silent if
    /// `GET /health` is late but `GET /liveness` answers 200 meanwhile.
    pub async fn ask(&self, member: &MemberName, api: &str, clock: &Clock) -> PatroniAnswer {
        let mut question = self.question(member, api, clock);
        let asked = question.asked;
        let (answer, liveness) = (timeout(ANSWER_LIMIT, question.answer()), self.liveness(api));
        tokio::pin!(answer, liveness);
        let mut alive = None;
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return match answer {
                    Ok(answer) => answer,
                    Err(_) if alive == Some(Ok(200)) => alive_but_slow(asked.elapsed(), 200),
                    Err(_) => no_answer(asked.elapsed()),
                },
                code = &mut liveness, if alive.is_none() => alive = Some(code),
            }
        }
    }

    /// The question to `member`'s Patroni that is in progress, or a new one.
    pub(crate) fn question(&self, member: &MemberName, api: &str, clock: &Clock) -> Question {
        let key = (member.clone(), api.to_owned());
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(question) = under_way.get(&key).filter(|question| question.is_under_way()) {
            return question.clone();
        }
        let (sender, answer) = latest::channel(None);
        let question = Question { asked: Instant::now(), answer };
        under_way.insert(key.clone(), question.clone());
        drop(under_way);
        let (client, clock) = (self.clone(), *clock);
        // A task of its own, so that it outlives its callers. A closed connection would not free Patroni's worker.
        tokio::spawn(async move {
            let answer = client.health(&key.0, &key.1, &clock).await;
            client.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            sender.send_replace(Some(answer));
        });
        question
    }

    async fn health(&self, member: &MemberName, api: &str, clock: &Clock) -> PatroniAnswer {
        // The code says whether PostgreSQL runs. The body does not depend on it.
        match self.get(api, "health", HEALTH_LIMIT).await {
            Ok((_, body)) => {
                wire::parse(&body, &self.scope, member, clock).map_or_else(|answer| answer, PatroniAnswer::Answering)
            }
            Err(answer) => answer,
        }
    }

    /// Asks `GET /liveness`, for 1 s. Patroni answers 200 if its HA loop turns, and 503 if it is late. Any code shows
    /// that Patroni serves its API.
    pub(crate) async fn liveness(&self, api: &str) -> Result<u16, PatroniAnswer> {
        self.get(api, "liveness", ANSWER_LIMIT).await.map(|(code, _)| code)
    }

    /// Wakes the HA loop of the Patroni at `api`, by a `PATCH /config` that removes a key that does not exist.
    ///
    /// Patroni (`do_PATCH_config` and `patch_config`) then writes nothing, so the agent undoes no edit of an operator.
    /// The error says why it failed, and the remedy.
    pub async fn nudge(&self, api: &str) -> Result<(), String> {
        let nothing = serde_json::Map::from_iter([(NO_SUCH_KEY.to_owned(), serde_json::Value::Null)]);
        let request = self.with_login(self.http.patch(format!("{api}/config")).timeout(ANSWER_LIMIT).json(&nothing));
        let response = request.send().await.map_err(|error| why(answer_of_error(&error, ANSWER_LIMIT)))?;
        match response.status().as_u16() {
            200 => Ok(()),
            code @ (401 | 403) => {
                Err(format!("PATCH /config answers {code}: check restapi.authentication in Patroni's configuration"))
            }
            code => Err(format!("PATCH /config answers {code}: Patroni's log says why")),
        }
    }

    async fn get(&self, api: &str, path: &str, limit: Duration) -> Result<(u16, Vec<u8>), PatroniAnswer> {
        let failed = |error: reqwest::Error| answer_of_error(&error, limit);
        let request = self.with_login(self.http.get(format!("{api}/{path}")).timeout(limit));
        let mut response = request.send().await.map_err(failed)?;
        let code = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > BODY_MAX {
                return Err(PatroniAnswer::Unusable(format!("its answer is longer than {BODY_MAX} bytes")));
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

/// The answer for a Patroni that has been silent for `since`.
pub(crate) fn no_answer(since: Duration) -> PatroniAnswer {
    PatroniAnswer::Silent(format!("no answer within {} s", since.as_secs().max(1)))
}

/// The answer for a Patroni that answers `GET /liveness` with `code` but `GET /health` not for `since`. It is not
/// silent.
pub(crate) fn alive_but_slow(since: Duration, code: u16) -> PatroniAnswer {
    let since = since.as_secs().max(1);
    PatroniAnswer::Unusable(format!("GET /health has not come back for {since} s; GET /liveness answers {code}"))
}

fn why(answer: PatroniAnswer) -> String {
    match answer {
        PatroniAnswer::Refused(why)
        | PatroniAnswer::Silent(why)
        | PatroniAnswer::Unusable(why)
        | PatroniAnswer::Anothers(why) => why,
        PatroniAnswer::Answering(_) => "it answers something else".to_owned(),
    }
}

/// The meaning of a failed call.
///
/// - Refused: its host answers that no process listens.
/// - Silent: no answer within the limit, no route to its host, or a reset by it.
/// - Unusable: any other failure (TLS, the protocol, the name, the agent's own resources). It says nothing about
///   Patroni. A connection that closes without an answer is one too: Patroni closes HTTP connections if it serves
///   HTTPS.
fn answer_of_error(error: &reqwest::Error, limit: Duration) -> PatroniAnswer {
    let unusable = || PatroniAnswer::Unusable(root_cause(error));
    if let Some(error) = cause::<NotResolved>(error) {
        return PatroniAnswer::Unusable(error.to_string());
    }
    match innermost_io(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => PatroniAnswer::Refused("no process listens".to_owned()),
        Some(
            io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted,
        ) => PatroniAnswer::Silent(root_cause(error)),
        Some(io::ErrorKind::TimedOut) => PatroniAnswer::Silent("no answer from its host".to_owned()),
        None if error.is_timeout() => no_answer(limit),
        Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) => {
            PatroniAnswer::Unusable(format!("{}: is it http or https?", root_cause(error)))
        }
        Some(_) => unusable(),
        None if cause::<hyper::Error>(error).is_some_and(hyper::Error::is_incomplete_message) => {
            PatroniAnswer::Unusable(format!("{}: is it http or https?", root_cause(error)))
        }
        None => unusable(),
    }
}

/// The first cause of type `T`.
fn cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The innermost IO error. `source` skips an IO error that another one wraps, so this unwraps it.
fn innermost_io<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut found: &io::Error = cause(error)?;
    while let Some(inner) = found.get_ref().and_then(|inner| cause(inner as &(dyn Error + 'static))) {
        found = inner;
    }
    Some(found)
}

#[cfg(test)]
mod tests;
