//! The only place that changes the cluster: Warden's own znodes and ZooKeeper session, fences, the release of a leader
//! key, nudges, HAProxy's servers and file. An actor makes no choice: each step comes from the plan. A destructive step
//! carries its guard, which the actor checks again right before it acts.
//!
//! Each actor has a queue, so that none waits for another. `zookeeper` verifies and announces. `term_memory` keeps the
//! leader term's memory on disk. `fence` stops servers. `release` deletes the leader key of a dead member. `nudge`
//! wakes the local Patroni and its standby. `haproxy::servers` sets the state of HAProxy's servers. `haproxy::file`
//! keeps HAProxy's configuration file. `records` writes fence records and the audit trail. Beside them, `upgrade`
//! copies the records of Warden 0.1.

mod entries;
mod observed;

pub mod records;

pub mod fence;
pub mod haproxy;
pub mod nudge;
pub mod operator;
pub mod release;
pub mod term_memory;
pub mod upgrade;
pub mod zookeeper;

use crate::targets::Probes;
use crate::znode::audit::Entry;
use tokio::sync::mpsc;
use warden_core::event::TermMemory;
use warden_core::haproxy::file::Backends;
use warden_core::plan::{Action, Ask, LocalAction, Observation, ServersAction, Step, ZooKeeperAction};
use warden_core::rules::fence::Order;
use warden_core::rules::release::Release;
use warden_core::types::MemberName;

/// The capacity of an actor's queue: more steps than a plan ever has.
pub const QUEUE: usize = 16;

/// The loop's ends of the actors' queues. Each queue takes only the steps that its actor carries out.
pub struct Actors {
    /// To `zookeeper`.
    pub zookeeper: mpsc::Sender<Step<ZooKeeperAction>>,
    /// To `term-memory`.
    pub term_memory: mpsc::Sender<Step<TermMemory>>,
    /// To `fence`.
    pub fence: mpsc::Sender<Step<Box<Order>>>,
    /// To `release`.
    pub release: mpsc::Sender<Step<Box<Release>>>,
    /// To `nudge`.
    pub nudge: mpsc::Sender<Step<LocalAction>>,
    /// To `haproxy-servers`.
    pub servers: mpsc::Sender<Step<ServersAction>>,
    /// To `haproxy-file`.
    pub file: mpsc::Sender<Step<Backends>>,
    /// To `records`.
    pub records: records::Records,
    /// To ask for a new look at Patroni, PostgreSQL or HAProxy.
    pub probes: Probes,
    /// The audit trail of mode `observe`.
    pub observed: observed::ObservedTrail,
    /// This agent's name, for the audit trail.
    pub agent: String,
}

/// The actors' ends of their queues.
pub struct Steps {
    /// Of `zookeeper`.
    pub zookeeper: mpsc::Receiver<Step<ZooKeeperAction>>,
    /// Of `term-memory`.
    pub term_memory: mpsc::Receiver<Step<TermMemory>>,
    /// Of `fence`.
    pub fence: mpsc::Receiver<Step<Box<Order>>>,
    /// Of `release`.
    pub release: mpsc::Receiver<Step<Box<Release>>>,
    /// Of `nudge`.
    pub nudge: mpsc::Receiver<Step<LocalAction>>,
    /// Of `haproxy-servers`.
    pub servers: mpsc::Receiver<Step<ServersAction>>,
    /// Of `haproxy-file`.
    pub file: mpsc::Receiver<Step<Backends>>,
}

/// Creates the queues between the loop and the actors. `agent` is this agent's name.
pub fn queues(agent: &str, probes: &Probes) -> (Actors, Steps) {
    let (zookeeper_in, zookeeper) = mpsc::channel(QUEUE);
    let (term_memory_in, term_memory) = mpsc::channel(QUEUE);
    let (fence_in, fence) = mpsc::channel(QUEUE);
    let (release_in, release) = mpsc::channel(QUEUE);
    let (nudge_in, nudge) = mpsc::channel(QUEUE);
    let (servers_in, servers) = mpsc::channel(QUEUE);
    let (file_in, file) = mpsc::channel(QUEUE);
    let actors = Actors {
        zookeeper: zookeeper_in,
        term_memory: term_memory_in,
        fence: fence_in,
        release: release_in,
        nudge: nudge_in,
        servers: servers_in,
        file: file_in,
        records: records::Records::default(),
        probes: probes.clone(),
        observed: observed::ObservedTrail::default(),
        agent: agent.to_owned(),
    };
    (actors, Steps { zookeeper, term_memory, fence, release, nudge, servers, file })
}

impl Actors {
    /// Hands a step to its actor. `false` if that actor's queue is full; the next decision repeats the step.
    pub fn hand_over(&self, step: Step) -> bool {
        let Step { action, reason } = step;
        match action {
            Action::ZooKeeper(action) => self.zookeeper.try_send(Step { action, reason }).is_ok(),
            Action::Keep(action) => self.term_memory.try_send(Step { action, reason }).is_ok(),
            Action::Fence(action) => self.fence.try_send(Step { action, reason }).is_ok(),
            Action::Release(action) => self.release.try_send(Step { action, reason }).is_ok(),
            Action::Local(action) => self.nudge.try_send(Step { action, reason }).is_ok(),
            Action::Servers(action) => self.servers.try_send(Step { action, reason }).is_ok(),
            Action::Render(action) => self.file.try_send(Step { action, reason }).is_ok(),
            Action::CloseFence(member) => {
                self.close_fence(&member, &reason);
                true
            }
            Action::Ask(whom) => {
                self.ask(whom);
                true
            }
        }
    }

    /// Adds an action that mode `observe` prevents to the audit trail.
    pub fn audit(&mut self, observation: &Observation) {
        if let Some(entry) = self.observed.entry(&self.agent, observation) {
            self.records.audit(entry.write());
        }
    }

    fn close_fence(&self, member: &MemberName, reason: &str) {
        tracing::info!(event = "fence_closed", %member, reason, "fence closed");
        self.records.remove(member.clone());
        let outcome = "done".to_owned();
        let entry = Entry { outcome, ..Entry::new(&self.agent, "close", member.as_str(), reason) };
        self.records.audit(entry.write());
    }

    /// Wakes the watchers. An answer does not wait for an actor's earlier steps.
    fn ask(&self, whom: Ask) {
        match whom {
            Ask::Local => self.probes.own.notify_one(),
            Ask::LocalAndOthers => {
                self.probes.own.notify_one();
                // A watcher that is asking at this moment reports soon enough.
                self.probes.others.notify_waiters();
            }
            Ask::HaproxyAndMembers => {
                self.probes.haproxy.notify_one();
                self.probes.others.notify_waiters();
                self.probes.own.notify_waiters();
            }
        }
    }
}
