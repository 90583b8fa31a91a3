//! Questions to every agent while a fault goes on. Afterwards every claim of "verified" is compared with ZooKeeper's
//! own log.

use crate::docker::Container;
use crate::history::{self, LeaderTerm};
use crate::promise::kept;
use crate::stack::{AGENTS, NODES, Stack};
use crate::writers::{Report, Route};
use anyhow::ensure;
use serde_json::Value;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::task::JoinSet;

/// The pause between two questions to an agent.
const PERIOD: Duration = Duration::from_millis(200);

/// ZooKeeper dates a transaction when it is proposed. Clients can read it only when it is on disk, and disks can be
/// slow.
const COMMIT: Duration = Duration::from_secs(3);

/// An agent's answer.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The agent.
    pub agent: &'static str,
    /// When it was asked.
    pub asked: SystemTime,
    /// When it had answered.
    pub answered: SystemTime,
    /// The whole state.
    pub state: Value,
}

impl Sample {
    /// Whether the agent calls its knowledge of the leader verified.
    pub fn verified(&self) -> bool {
        self.state["leader"]["verified"] == true
    }

    /// The holder that it names.
    pub fn holder(&self) -> Option<&str> {
        self.state["leader"]["name"].as_str()
    }

    /// Whether `member` takes writes, according to the agent.
    pub fn writable(&self, member: &str) -> Option<bool> {
        let members = self.state["members"].as_array()?;
        members.iter().find(|known| known["name"] == member)?["writable"].as_bool()
    }

    /// The codes of its warnings.
    pub fn warnings(&self) -> Vec<&str> {
        let warnings = self.state["warnings"].as_array();
        warnings.into_iter().flatten().filter_map(|warning| warning["code"].as_str()).collect()
    }
}

/// Asks every agent until it is stopped.
#[derive(Debug)]
pub struct Watching {
    samples: Arc<Mutex<Vec<Sample>>>,
    tasks: JoinSet<()>,
}

impl Watching {
    /// Starts to ask every agent of `stack`.
    pub fn start(stack: &Stack) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = JoinSet::new();
        for agent in AGENTS {
            tasks.spawn(ask(agent, stack.container(agent), Arc::clone(&samples)));
        }
        Self { samples, tasks }
    }

    /// The answers so far.
    pub fn so_far(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops asking. Fails if an agent ever claimed something verified that was not true.
    pub async fn judge(mut self, stack: &Stack) -> anyhow::Result<Vec<Sample>> {
        self.tasks.shutdown().await;
        let samples = self.so_far();
        let zoo = stack.zookeepers().into_iter().next().ok_or_else(|| anyhow::anyhow!("no ZooKeeper"))?;
        let terms = history::leader_terms(&zoo).await?;
        let lies = lies(&samples, &terms);
        kept(lies.is_empty(), || {
            format!("an agent claimed something verified that was not true:\n{}\nterms: {terms:#?}", lies.join("\n"))
        })?;
        ensure!(samples.iter().any(Sample::verified), "none of {} answers was verified", samples.len());
        Ok(samples)
    }
}

fn lies(samples: &[Sample], terms: &[LeaderTerm]) -> Vec<String> {
    let untrue = |sample: &&Sample| {
        let claim = sample.holder().map(|holder| (holder, sample.state["leader"]["czxid"].as_i64().unwrap_or(-1)));
        sample.verified() && !history::was_so(terms, claim, sample.asked - COMMIT, sample.answered)
    };
    let tell = |sample: &Sample| {
        format!("{} at {:?}..{:?}: {}", sample.agent, sample.asked, sample.answered, sample.state["leader"])
    };
    samples.iter().filter(untrue).map(tell).collect()
}

/// The greatest age of a fact that an answer may rest on.
const OLDEST: Duration = Duration::from_secs(10);

/// Fails if an agent called a member not writable while a client connected straight to its node had rows acknowledged
/// all the time. The time runs from well before the question to after the answer.
pub fn writable_was_true(samples: &[Sample], report: &Report) -> anyhow::Result<()> {
    for (node, member) in NODES {
        let Some(story) = report.stories.get(&Route::Node(node)) else { continue };
        let all_the_time = |from: SystemTime, until: SystemTime| {
            let mut last = from;
            for ack in story.acks.iter().filter(|ack| ack.wall >= from && ack.wall <= until) {
                if ack.wall.duration_since(last).unwrap_or_default() > Duration::from_secs(1) {
                    return false;
                }
                last = ack.wall;
            }
            last > from && until.duration_since(last).unwrap_or_default() <= Duration::from_secs(1)
        };
        for sample in samples.iter().filter(|sample| sample.writable(member) == Some(false)) {
            let lied = all_the_time(sample.asked - OLDEST, sample.answered + Duration::from_millis(500));
            ensure!(!lied, "{} called {member} not writable, and it was: {:#}", sample.agent, sample.state);
        }
    }
    Ok(())
}

async fn ask(agent: &'static str, container: Container, samples: Arc<Mutex<Vec<Sample>>>) {
    let Ok(http) = reqwest::Client::builder().timeout(Duration::from_secs(4)).no_proxy().build() else { return };
    let mut address = None;
    loop {
        if address.is_none() {
            address = container.ip().await.ok();
        }
        if let Some(ip) = address {
            let asked = SystemTime::now();
            let answer = async { http.get(format!("http://{ip}:8010/api/v1/state")).send().await?.json().await };
            match answer.await as reqwest::Result<Value> {
                Ok(state) => {
                    let sample = Sample { agent, asked, answered: SystemTime::now(), state };
                    samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
                }
                // The agent may have another address after a restart.
                Err(_) => address = None,
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}
