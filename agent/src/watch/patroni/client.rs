//! The client for the members' REST APIs, and what a call that fails means.
//!
//! Patroni 4.1 serves its API from five workers without time limits, and a worker goes on with a request whose client
//! has hung up. So at most one `GET /health` to a Patroni is under way in this process: whoever asks while it is, waits
//! for its answer. Only silence of the transport is silence: an API that cannot be understood is unusable.

use super::wire;
use crate::clock::Clock;
use crate::config::PatroniConfig;
use crate::watch::names::{Names, NotResolved};
use crate::watch::root_cause;
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

/// An answer that takes longer is late.
pub(super) const LIMIT: Duration = Duration::from_secs(1);

/// A `GET /health` that has not come back after this long is given up.
pub(super) const GIVEN_UP: Duration = Duration::from_secs(30);

/// A connection has to be ready after this long; with HTTPS a worker of Patroni takes part in that.
const CONNECT: Duration = Duration::from_secs(5);

/// A host whose kernel acknowledges nothing for this long is not there. A frozen process's kernel acknowledges.
const HOST: Duration = Duration::from_secs(1);

/// While an answer is waited for, the host is asked for a sign of life this often.
const KEEPALIVE: Duration = Duration::from_secs(2);

/// The largest answer taken. A hundred replicas make about 20 KiB.
const MAX_BODY: usize = 1 << 20;

/// A key that Patroni's configuration does not have.
const NO_SUCH_KEY: &str = "warden_wakes_the_ha_loop";

/// A client for the members' REST APIs. Its clones share the questions that are under way.
#[derive(Clone, Debug)]
pub struct PatroniClient {
    http: Client,
    login: Option<(String, Option<crate::secret::Secret>)>,
    scope: String,
    under_way: Arc<Mutex<BTreeMap<(MemberName, String), Question>>>,
}

/// A `GET /health` that was sent. Its clones wait for the same answer.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// When it was asked.
    pub(super) asked: Instant,
    answer: latest::Receiver<Option<PatroniAnswer>>,
}

impl Question {
    /// Waits for the answer, for [`GIVEN_UP`] at the most. Loses nothing when it is dropped.
    pub(super) async fn answer(&mut self) -> PatroniAnswer {
        let answer = self.answer.wait_for(Option::is_some).await.ok().and_then(|answer| answer.clone());
        answer.unwrap_or_else(|| PatroniAnswer::Unusable("the agent's own question failed".to_owned()))
    }

    /// Whether an answer may still come.
    fn is_under_way(&self) -> bool {
        self.answer.borrow().is_none() && self.answer.has_changed().is_ok()
    }
}

impl PatroniClient {
    /// A client as Patroni is configured. Errors name the certificate file that cannot be used.
    pub fn new(config: &PatroniConfig, scope: &str) -> anyhow::Result<Self> {
        let read =
            |path: &std::path::Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let mut builder = Client::builder()
            .connect_timeout(CONNECT)
            .tcp_user_timeout(HOST)
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(HOST)
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
    /// The answer is that of `GET /health`; one that is under way already is joined. Where it does not come in time,
    /// but `GET /liveness` answers 200 meanwhile, the API is not silent.
    pub async fn ask(&self, member: &MemberName, api: &str, clock: &Clock) -> PatroniAnswer {
        let mut question = self.question(member, api, clock);
        let asked = question.asked;
        let (answer, liveness) = (timeout(LIMIT, question.answer()), self.liveness(api));
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

    /// The question to `member`'s Patroni that is under way, or a new one.
    pub(super) fn question(&self, member: &MemberName, api: &str, clock: &Clock) -> Question {
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
        // A task of its own, so that it outlives those who no longer wait: to hang up would not free Patroni's worker.
        tokio::spawn(async move {
            let answer = client.health(&key.0, &key.1, &clock).await;
            client.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            sender.send_replace(Some(answer));
        });
        question
    }

    async fn health(&self, member: &MemberName, api: &str, clock: &Clock) -> PatroniAnswer {
        // The code says whether PostgreSQL runs; the body is the same whatever the code.
        match self.get(api, "health", GIVEN_UP).await {
            Ok((_, body)) => wire::parse(&body, &self.scope, member, clock)
                .map_or_else(PatroniAnswer::Unusable, PatroniAnswer::Answering),
            Err(answer) => answer,
        }
    }

    /// Asks `GET /liveness`, for 1 s: 200 where the HA loop turns, 503 where it is late. Any code shows that the API is
    /// served.
    pub(super) async fn liveness(&self, api: &str) -> Result<u16, PatroniAnswer> {
        self.get(api, "liveness", LIMIT).await.map(|(code, _)| code)
    }

    /// Wakes the HA loop of the Patroni at `api`: a `PATCH /config` that removes a key which is not there. Patroni
    /// (`do_PATCH_config` and `patch_config`) then writes nothing, so no edit of another person is undone, and wakes
    /// the loop. The error says what is in the way.
    pub async fn nudge(&self, api: &str) -> Result<(), String> {
        let nothing = serde_json::Map::from_iter([(NO_SUCH_KEY.to_owned(), serde_json::Value::Null)]);
        let request = self.with_login(self.http.patch(format!("{api}/config")).timeout(LIMIT).json(&nothing));
        let response = request.send().await.map_err(|error| why(answer_of_error(&error, LIMIT)))?;
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

/// No answer to a question that was asked so long ago.
pub(super) fn no_answer(since: Duration) -> PatroniAnswer {
    PatroniAnswer::Silent(format!("no answer within {} s", since.as_secs().max(1)))
}

/// The same where `GET /liveness` has answered with this code meanwhile: nothing is known, but it is not silent.
pub(super) fn alive_but_slow(since: Duration, code: u16) -> PatroniAnswer {
    let since = since.as_secs().max(1);
    PatroniAnswer::Unusable(format!("GET /health has not come back for {since} s; GET /liveness answers {code}"))
}

fn why(answer: PatroniAnswer) -> String {
    match answer {
        PatroniAnswer::Refused(why) | PatroniAnswer::Silent(why) | PatroniAnswer::Unusable(why) => why,
        PatroniAnswer::Answering(_) => "it answers something else".to_owned(),
    }
}

/// What a call that failed says of the Patroni.
///
/// Refused: its host says that nothing listens. Silent: no answer within the limit, no way to its host, or a reset by
/// it. Everything else (TLS, the protocol, the name, our own resources) says that we cannot ask, and nothing of
/// Patroni. So does a connection that is closed without an answer: Patroni does that to HTTP where it serves HTTPS.
fn answer_of_error(error: &reqwest::Error, limit: Duration) -> PatroniAnswer {
    let unusable = || PatroniAnswer::Unusable(root_cause(error));
    if let Some(error) = cause::<NotResolved>(error) {
        return PatroniAnswer::Unusable(error.to_string());
    }
    match innermost_io(error).map(io::Error::kind) {
        Some(io::ErrorKind::ConnectionRefused) => PatroniAnswer::Refused("nothing listens".to_owned()),
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

/// The first cause of this type.
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

/// The IO error at the bottom. An IO error hides another one that it was made of: `source` passes over it.
fn innermost_io<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut found: &io::Error = cause(error)?;
    while let Some(inner) = found.get_ref().and_then(|inner| cause(inner as &(dyn Error + 'static))) {
        found = inner;
    }
    Some(found)
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
