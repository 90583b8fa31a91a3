//! A member's Patroni, through its REST API.
//!
//! `GET /health` every second on a connection of its own: its body is that of `GET /patroni`, without that one's
//! retry of more than a second while PostgreSQL lets no session in. At most one is under way. While it has not come
//! back, only `GET /liveness` is asked, every 5 s; the local one's is asked that often in any case. Another member's
//! Patroni is not asked while its own agent tells what it says. Refused, silent and answering are three different
//! facts.

mod client;
mod wire;

#[cfg(test)]
mod fixtures;

pub use client::PatroniClient;
pub(in crate::watch) use wire::role_of;

use super::members::Targets;
use super::{Closed, Events};
use client::{GIVEN_UP, LIMIT, Question, alive_but_slow, no_answer};
use std::future::pending;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::watch as latest;
use tokio::time::{Instant, sleep_until};
use warden_core::event::{Event, PatroniAnswer, PatroniStatus};
use warden_core::types::{MemberName, Moment};

/// A question every second.
const PERIOD: Duration = Duration::from_secs(1);

/// Patroni calls its HA loop late after ttl: it is soon enough to ask this often.
const LIVENESS: Duration = Duration::from_secs(5);

/// For so long an answer to `GET /liveness` shows that the API is served: until the next one is there.
const ALIVE: Duration = Duration::from_secs(7);

const _: () = assert!(ALIVE.as_secs() > LIVENESS.as_secs() + LIMIT.as_secs());

/// Pause after a question that was given up, with jitter: doubled from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Whose Patroni is watched.
pub struct Watched {
    /// The member.
    pub member: MemberName,
    /// The base address of its REST API.
    pub api: String,
    /// Whether it is our neighbour's.
    pub is_local: bool,
    /// All members: whether this one's own agent tells of its Patroni.
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
        pause: FIRST_PAUSE,
        liveness: None,
        liveness_at: now,
        alive: None,
    };
    watcher.run().await
}

/// What came of `GET /liveness`: its code.
type Liveness = Pin<Box<dyn Future<Output = Result<u16, PatroniAnswer>> + Send>>;

struct Watcher {
    watched: Watched,
    client: PatroniClient,
    events: Events,
    /// The question that is under way.
    question: Option<Question>,
    /// When to ask, where none is.
    ask_at: Instant,
    /// Since there was an answer.
    unanswered: Option<Unanswered>,
    /// Before the next question, should this one be given up.
    pause: Duration,
    /// `GET /liveness` that is under way, and when it was asked.
    liveness: Option<(Instant, Liveness)>,
    /// When to ask it next.
    liveness_at: Instant,
    /// The code that it last answered, and when it was asked.
    alive: Option<(u16, Instant)>,
}

/// A question without an answer, yet.
struct Unanswered {
    /// When the first was asked, should others have been given up.
    since: Instant,
    /// When it is told next that there is no answer.
    tell_at: Instant,
    /// The date of what was told last.
    told: Option<Moment>,
}

/// What happened.
enum Happened {
    Answer(PatroniAnswer),
    Liveness(Result<u16, PatroniAnswer>),
    /// Something is due, or the members have changed.
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
            if asks && self.unanswered.as_ref().is_some_and(|unanswered| unanswered.tell_at <= now) {
                self.tell_that_it_is_late(now).await?;
            }
            if self.wants_liveness(asks) && self.liveness_at <= now {
                self.ask_liveness(now);
            }
            match self.next(asks).await? {
                Happened::Answer(answer) => self.answered(answer).await?,
                Happened::Liveness(answer) => self.heard(answer).await?,
                Happened::Due => {}
            }
        }
    }

    /// Whether the agent beside the member tells what its Patroni says, recently enough.
    fn its_agent_tells(&self) -> bool {
        let targets = self.watched.targets.borrow();
        !self.watched.is_local && targets.get(&self.watched.member).is_some_and(|target| target.its_agent_tells)
    }

    fn ask(&mut self) {
        let Watched { member, api, .. } = &self.watched;
        let question = self.client.question(member, api, &self.events.clock);
        let asked = Instant::from_std(question.asked);
        self.unanswered.get_or_insert(Unanswered { since: asked, tell_at: asked + PERIOD, told: None });
        self.question = Some(question);
    }

    /// Whether `GET /liveness` is to be asked when its time has come.
    fn wants_liveness(&self, asks: bool) -> bool {
        let late = self.unanswered.as_ref().is_some_and(|unanswered| unanswered.told.is_some());
        self.liveness.is_none() && (self.watched.is_local || (asks && late))
    }

    fn ask_liveness(&mut self, now: Instant) {
        let (client, api) = (self.client.clone(), self.watched.api.clone());
        self.liveness = Some((now, Box::pin(async move { client.liveness(&api).await })));
        self.liveness_at = now + LIVENESS;
    }

    /// Waits for what happens next. Loses nothing when it is dropped.
    async fn next(&mut self, asks: bool) -> Result<Happened, Closed> {
        let ask_at = (asks && self.question.is_none()).then_some(self.ask_at);
        let tell_at = self.unanswered.as_ref().filter(|_| asks).map(|unanswered| unanswered.tell_at);
        let liveness_at = self.wants_liveness(asks).then_some(self.liveness_at);
        let due = [ask_at, tell_at, liveness_at].into_iter().flatten().min();
        let (question, liveness) = (&mut self.question, &mut self.liveness);
        let answer = async { if let Some(question) = question { question.answer().await } else { pending().await } };
        let code = async { if let Some((_, liveness)) = liveness { liveness.await } else { pending().await } };
        let due = async { if let Some(due) = due { sleep_until(due).await } else { pending().await } };
        tokio::select! {
            answer = answer => Ok(Happened::Answer(answer)),
            code = code => Ok(Happened::Liveness(code)),
            () = due => Ok(Happened::Due),
            changed = self.watched.targets.changed() => changed.map(|()| Happened::Due).map_err(|_| Closed),
        }
    }

    /// Tells, each second, that there is no answer: dated a second ago, as a question would be that was asked then.
    async fn tell_that_it_is_late(&mut self, now: Instant) -> Result<(), Closed> {
        let Some(unanswered) = &mut self.unanswered else { return Ok(()) };
        let at = self.events.clock.moment(unanswered.tell_at.into_std()).minus(PERIOD);
        if unanswered.told.is_none() {
            // The first time, to learn whether anything is served there.
            self.liveness_at = now;
        }
        unanswered.told = Some(at);
        unanswered.tell_at = now.max(unanswered.tell_at + PERIOD);
        let lasts = now.duration_since(unanswered.since);
        // One from before this question says nothing of now.
        let alive = self.alive.filter(|(_, asked)| *asked >= unanswered.since && now.duration_since(*asked) < ALIVE);
        let answer = alive.map_or_else(|| no_answer(lasts), |(code, _)| alive_but_slow(lasts, code));
        self.tell(at, answer).await
    }

    /// Tells the answer that has come. The question is as old as it was, but what was told since must not outweigh it.
    async fn answered(&mut self, answer: PatroniAnswer) -> Result<(), Closed> {
        let Some(question) = self.question.take() else { return Ok(()) };
        let asked = Instant::from_std(question.asked);
        if asked.elapsed() >= GIVEN_UP {
            // That there is no answer is told each second anyway.
            self.ask_at = Instant::now() + self.pause.mul_f64(rand::random_range(0.5..1.0));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            return Ok(());
        }
        self.ask_at = asked + PERIOD;
        self.pause = FIRST_PAUSE;
        let at = self.events.clock.moment(question.asked);
        let told = self.unanswered.take().and_then(|unanswered| unanswered.told);
        match told.filter(|told| *told > at) {
            Some(told) => self.tell(told, without_what_is_old(answer)).await,
            None => self.tell(at, answer).await,
        }
    }

    /// Tells what `GET /liveness` answered.
    async fn heard(&mut self, answer: Result<u16, PatroniAnswer>) -> Result<(), Closed> {
        let Some((asked, _)) = self.liveness.take() else { return Ok(()) };
        let Ok(code) = answer else { return Ok(()) };
        self.alive = Some((code, asked));
        if self.question.is_none() && self.unanswered.is_some() {
            // The last question was given up, and the API is served now.
            self.ask_at = Instant::now();
        }
        if !matches!(code, 200 | 503) {
            return Ok(());
        }
        let at = self.events.clock.moment(asked.into_std());
        self.events.send(at, Event::Liveness { member: self.watched.member.clone(), turns: code == 200 }).await
    }

    async fn tell(&mut self, at: Moment, answer: PatroniAnswer) -> Result<(), Closed> {
        self.events.send(at, Event::Patroni { member: self.watched.member.clone(), answer }).await
    }
}

/// A late answer, dated later than its question: without what PostgreSQL said, which may be as old as the question.
/// That Patroni answers is news, and it dates its contact with ZooKeeper itself.
fn without_what_is_old(answer: PatroniAnswer) -> PatroniAnswer {
    match answer {
        PatroniAnswer::Answering(status) => {
            PatroniAnswer::Answering(PatroniStatus { writable: None, lsn: None, ..status })
        }
        answer => answer,
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
