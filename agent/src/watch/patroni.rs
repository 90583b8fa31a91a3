//! Watches a member's Patroni through its REST API.
//!
//! The agent asks `GET /health` every second, on a new connection. Its body is that of `GET /patroni`. Patroni answers
//! it without the retry of more than a second that `GET /patroni` makes while PostgreSQL accepts no session. At most
//! one question is in progress. The agent asks only `GET /liveness`, every 5 s, while it has no answer. The local
//! Patroni gets this question every 5 s in any case. The agent does not ask another member's Patroni while that
//! member's agent reports the answers. Refused, silent and answering are three different facts.

use crate::client::patroni::{ANSWER_LIMIT, HEALTH_LIMIT, PatroniClient, Question, alive_but_slow, no_answer};
use crate::events::{Closed, Events};
use crate::targets::Targets;
use std::future::pending;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch as latest;
use tokio::time::{Instant, sleep_until};
use warden_core::event::{Event, MemberEvent, PatroniAnswer, PatroniStatus};
use warden_core::types::{MemberName, Moment};

/// Between two questions, and between two reports that there is no answer.
const QUESTION_INTERVAL: Duration = Duration::from_secs(1);

/// Between two `GET /liveness`. Patroni reports a late HA loop only after ttl.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(5);

/// An answer to `GET /liveness` shows for this long that Patroni serves its API: until the next answer.
const LIVENESS_AGE_MAX: Duration = Duration::from_secs(7);

const _: () = assert!(LIVENESS_AGE_MAX.as_secs() > LIVENESS_INTERVAL.as_secs() + ANSWER_LIMIT.as_secs());

/// The first pause after a question that the agent gave up, with jitter. It doubles up to [`RETRY_PAUSE_MAX`].
const RETRY_PAUSE_MIN: Duration = Duration::from_secs(1);

/// The longest pause after a question that the agent gave up.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(8);

const _: () = assert!(RETRY_PAUSE_MIN.as_millis() < RETRY_PAUSE_MAX.as_millis());

/// The member to watch.
pub struct Watched {
    /// Its name.
    pub member: MemberName,
    /// The base address of its REST API.
    pub api: String,
    /// Whether it is the local member.
    pub is_local: bool,
    /// All members. They say whether this one's agent reports its Patroni's answers.
    pub targets: latest::Receiver<Targets>,
}

/// Watches one member's Patroni until the agent shuts down.
pub async fn watch(watched: Watched, client: PatroniClient, events: Events) -> Result<(), Closed> {
    let now = Instant::now();
    let watcher = Watcher {
        watched,
        client,
        events,
        question: None,
        ask_at: now,
        unanswered: None,
        pause: RETRY_PAUSE_MIN,
        liveness: None,
        liveness_at: now,
        alive: None,
    };
    watcher.run().await
}

/// A `GET /liveness` in progress; its result is the code.
type Liveness = Pin<Box<dyn Future<Output = Result<u16, PatroniAnswer>> + Send>>;

struct Watcher {
    watched: Watched,
    client: PatroniClient,
    events: Events,
    /// The question in progress.
    question: Option<Question>,
    /// When to ask next, if no question is in progress.
    ask_at: Instant,
    /// The questions since the last answer.
    unanswered: Option<Unanswered>,
    /// Before the next question, if the agent gives this one up.
    pause: Duration,
    /// The `GET /liveness` in progress, and when the agent asked it.
    liveness: Option<(Instant, Liveness)>,
    /// When to ask `GET /liveness` next.
    liveness_at: Instant,
    /// The code of the last answer to `GET /liveness`, and when the agent asked it.
    alive: Option<(u16, Instant)>,
}

/// Questions without an answer.
struct Unanswered {
    /// When the agent asked the first of them.
    since: Instant,
    /// When to report next that there is no answer.
    report_at: Instant,
    /// The date of the last report.
    reported: Option<Moment>,
}

/// The cause of a watcher's next step.
enum Wake {
    Answer(PatroniAnswer),
    Liveness(Result<u16, PatroniAnswer>),
    /// A question or a report is due, or the members have changed.
    Due,
}

impl Watcher {
    async fn run(mut self) -> Result<(), Closed> {
        loop {
            let now = Instant::now();
            let asks = !self.its_agent_tells();
            if asks && self.question.is_none() && self.ask_at <= now {
                self.ask();
            }
            if asks && self.unanswered.as_ref().is_some_and(|unanswered| unanswered.report_at <= now) {
                self.report_no_answer(now).await?;
            }
            if self.wants_liveness(asks) && self.liveness_at <= now {
                self.ask_liveness(now);
            }
            match self.next(asks).await? {
                Wake::Answer(answer) => self.report_answer(answer).await?,
                Wake::Liveness(answer) => self.report_liveness(answer).await?,
                Wake::Due => {}
            }
        }
    }

    /// Whether the agent beside the member has reported its Patroni's answers recently enough.
    fn its_agent_tells(&self) -> bool {
        let targets = self.watched.targets.borrow();
        !self.watched.is_local && targets.get(&self.watched.member).is_some_and(|target| target.its_agent_tells)
    }

    fn ask(&mut self) {
        let Watched { member, api, .. } = &self.watched;
        let question = self.client.question(member, api, &self.events.clock);
        let asked = Instant::from_std(question.asked);
        self.unanswered.get_or_insert(Unanswered {
            since: asked,
            report_at: asked + QUESTION_INTERVAL,
            reported: None,
        });
        self.question = Some(question);
    }

    /// Whether the agent asks `GET /liveness` at [`Self::liveness_at`].
    fn wants_liveness(&self, asks: bool) -> bool {
        let late = self.unanswered.as_ref().is_some_and(|unanswered| unanswered.reported.is_some());
        self.liveness.is_none() && (self.watched.is_local || (asks && late))
    }

    fn ask_liveness(&mut self, now: Instant) {
        let (client, api) = (self.client.clone(), self.watched.api.clone());
        self.liveness = Some((now, Box::pin(async move { client.liveness(&api).await })));
        self.liveness_at = now + LIVENESS_INTERVAL;
    }

    /// Waits for the cause of the next step. A dropped call loses nothing.
    async fn next(&mut self, asks: bool) -> Result<Wake, Closed> {
        let ask_at = (asks && self.question.is_none()).then_some(self.ask_at);
        let report_at = self.unanswered.as_ref().filter(|_| asks).map(|unanswered| unanswered.report_at);
        let liveness_at = self.wants_liveness(asks).then_some(self.liveness_at);
        let due = [ask_at, report_at, liveness_at].into_iter().flatten().min();
        let (question, liveness) = (&mut self.question, &mut self.liveness);
        let answer = async { if let Some(question) = question { question.answer().await } else { pending().await } };
        let code = async { if let Some((_, liveness)) = liveness { liveness.await } else { pending().await } };
        let due = async { if let Some(due) = due { sleep_until(due).await } else { pending().await } };
        tokio::select! {
            answer = answer => Ok(Wake::Answer(answer)),
            code = code => Ok(Wake::Liveness(code)),
            () = due => Ok(Wake::Due),
            changed = self.watched.targets.changed() => changed.map(|()| Wake::Due).map_err(|_| Closed),
        }
    }

    /// Reports that there is no answer, once a second. The date is a second ago, as of a question asked then.
    async fn report_no_answer(&mut self, now: Instant) -> Result<(), Closed> {
        let Some(unanswered) = &mut self.unanswered else { return Ok(()) };
        let at = self.events.clock.moment(unanswered.report_at.into_std()).minus(QUESTION_INTERVAL);
        if unanswered.reported.is_none() {
            // At once, to learn whether Patroni serves its API.
            self.liveness_at = now;
        }
        unanswered.reported = Some(at);
        unanswered.report_at = now.max(unanswered.report_at + QUESTION_INTERVAL);
        let lasts = now.duration_since(unanswered.since);
        // An earlier answer says nothing about the present silence.
        let alive =
            self.alive.filter(|(_, asked)| *asked >= unanswered.since && now.duration_since(*asked) < LIVENESS_AGE_MAX);
        let answer = alive.map_or_else(|| no_answer(lasts), |(code, _)| alive_but_slow(lasts, code));
        self.send(at, answer).await
    }

    /// Reports the answer. It has the date of its question, or of a later report of no answer, which would otherwise
    /// replace it in the view.
    async fn report_answer(&mut self, answer: PatroniAnswer) -> Result<(), Closed> {
        let Some(question) = self.question.take() else { return Ok(()) };
        let asked = Instant::from_std(question.asked);
        if asked.elapsed() >= HEALTH_LIMIT {
            // The watcher has reported each second that there is no answer.
            self.ask_at = Instant::now() + self.pause.mul_f64(rand::random_range(0.5..1.0));
            self.pause = (self.pause * 2).min(RETRY_PAUSE_MAX);
            return Ok(());
        }
        self.ask_at = asked + QUESTION_INTERVAL;
        self.pause = RETRY_PAUSE_MIN;
        let at = self.events.clock.moment(question.asked);
        let reported = self.unanswered.take().and_then(|unanswered| unanswered.reported);
        match reported.filter(|reported| *reported > at) {
            Some(reported) => self.send(reported, without_old_facts(answer)).await,
            None => self.send(at, answer).await,
        }
    }

    /// Reports the answer to `GET /liveness`.
    async fn report_liveness(&mut self, answer: Result<u16, PatroniAnswer>) -> Result<(), Closed> {
        let Some((asked, _)) = self.liveness.take() else { return Ok(()) };
        let Ok(code) = answer else { return Ok(()) };
        self.alive = Some((code, asked));
        if self.question.is_none() && self.unanswered.is_some() {
            // The agent has given up the last question, and Patroni now serves its API.
            self.ask_at = Instant::now();
        }
        if !matches!(code, 200 | 503) {
            return Ok(());
        }
        let at = self.events.clock.moment(asked.into_std());
        self.events
            .send(at, Event::Member(self.watched.member.clone(), MemberEvent::Liveness { turns: code == 200 }))
            .await
    }

    async fn send(&mut self, at: Moment, answer: PatroniAnswer) -> Result<(), Closed> {
        self.events.send(at, Event::Member(self.watched.member.clone(), MemberEvent::Patroni(answer))).await
    }
}

/// A late answer, for a date after its question: without PostgreSQL's facts, which may be as old as the question. The
/// rest stays: Patroni answers, and it dates its contact with ZooKeeper itself.
fn without_old_facts(answer: PatroniAnswer) -> PatroniAnswer {
    match answer {
        PatroniAnswer::Answering(status) => {
            PatroniAnswer::Answering(PatroniStatus { writable: None, lsn: None, ..status })
        }
        answer => answer,
    }
}

#[cfg(test)]
#[path = "patroni_tests.rs"]
mod tests;
