//! The faults, each with its healing. Scenarios, the churn, the demonstration and the benchmark use the same ones.

use crate::docker::Container;
use crate::stack::{Flavor, NODES, Stack, other};
use crate::{supervised, truth, wait};
use anyhow::{Context, ensure};
use std::net::IpAddr;
use std::time::Duration;

/// The limit until another member is writable: ttl, and a margin for a busy machine.
const REPLACED: Duration = Duration::from_secs(240);

/// Kills the server, for any data directory.
const KILL_POSTMASTER: &str = "kill -9 $(head -n1 /var/lib/postgresql/data/*/postmaster.pid)";

/// The leader that a fault hits: the member that led when the trial began, and its containers.
#[derive(Clone, Debug)]
pub struct Leader {
    /// The member's name.
    pub member: String,
    /// The service of its node, in the compose file.
    pub service: &'static str,
    /// The container of that service.
    pub node: Container,
    /// The agent beside it.
    pub agent: Container,
    /// A pattern that matches its Patroni's command line, and no supervisor's.
    pub patroni: &'static str,
}

impl Leader {
    /// The leader of a healthy cluster.
    pub async fn find(stack: &Stack) -> anyhow::Result<Self> {
        let member = truth::all_well(stack).await?.leader.context("no leader")?.0;
        Ok(Self::named(stack, &member))
    }

    /// The leader of this name. It need not lead yet.
    pub fn named(stack: &Stack, member: &str) -> Self {
        let (service, patroni) = if member == NODES[0].1 {
            (NODES[0].0, "bin/patroni /postgres0.yml")
        } else {
            (NODES[1].0, "bin/patroni /postgres1.yml")
        };
        let agent = stack.container(&format!("warden-{service}"));
        Self { member: member.to_owned(), service, node: stack.container(service), agent, patroni }
    }

    /// The same, after a switchover if the member of the node `service` does not lead yet.
    pub async fn at(stack: &Stack, service: &str) -> anyhow::Result<Self> {
        let leader = Self::find(stack).await?;
        if leader.service == service {
            return Ok(leader);
        }
        stack.switchover(&leader.member).await?;
        let leader = Self::find(stack).await?;
        ensure!(leader.service == service, "{} leads in spite of a switchover", leader.member);
        Ok(leader)
    }

    /// Whether the member still leads.
    pub async fn leads(&self, stack: &Stack) -> anyhow::Result<bool> {
        Ok(truth::truth(stack).await?.leader.is_some_and(|(name, _)| name == self.member))
    }

    /// Waits until the other member takes writes.
    pub async fn replaced(&self, stack: &Stack) -> anyhow::Result<()> {
        let new = other(&self.member);
        wait::until("the other one takes writes", REPLACED, || async {
            let now = truth::truth(stack).await?;
            ensure!(now.servers.get(new).is_some_and(|server| server.writable), "{now:?}");
            Ok(())
        })
        .await
    }
}

/// A fault of a leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGSTOP of Patroni: its PostgreSQL goes on.
    Freeze,
    /// SIGKILL of Patroni, which stays dead: its PostgreSQL goes on. It needs a supervised stack, because elsewhere the
    /// node dies with Patroni.
    Orphan,
    /// The same, and the supervisor restarts Patroni while its node and agent are cut off from ZooKeeper. Patroni gives
    /// up without touching its PostgreSQL.
    OrphanCut,
    /// SIGKILL of the postmaster: Patroni goes on.
    Postmaster,
    /// SIGKILL of every process in the node, which stays down.
    Crash,
    /// SIGKILL of Patroni and PostgreSQL at once; Docker starts the node again.
    Restart,
    /// Patroni frozen, its node and agent cut off from ZooKeeper.
    FreezeCut,
    /// Its agent killed, then Patroni frozen.
    FreezeAlone,
    /// The whole node paused until another leads, and a while longer.
    Pause,
    /// No fault, but a switchover.
    Switchover,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Freeze,
        Self::Orphan,
        Self::OrphanCut,
        Self::Postmaster,
        Self::Crash,
        Self::Restart,
        Self::FreezeCut,
        Self::FreezeAlone,
        Self::Pause,
        Self::Switchover,
    ];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Orphan => "orphan",
            Self::OrphanCut => "orphan-cut",
            Self::Postmaster => "postmaster",
            Self::Crash => "crash",
            Self::Restart => "restart",
            Self::FreezeCut => "freeze-cut",
            Self::FreezeAlone => "freeze-alone",
            Self::Pause => "pause",
            Self::Switchover => "switchover",
        }
    }

    /// The fault of that name.
    pub fn named(name: &str) -> anyhow::Result<Self> {
        let names = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|fault| fault.name() == name);
        found.with_context(|| format!("no fault is called {name:?}; there are {}", names()))
    }

    /// A description for people.
    pub const fn what(self) -> &'static str {
        match self {
            Self::Freeze => "Patroni is frozen (SIGSTOP), its PostgreSQL goes on",
            Self::Orphan => "Patroni is killed and stays dead, its PostgreSQL goes on",
            Self::OrphanCut => "Patroni is killed, node and agent cut off from ZooKeeper, its PostgreSQL goes on",
            Self::Postmaster => "the postmaster is killed, its Patroni goes on",
            Self::Crash => "the whole node is killed",
            Self::Restart => "Patroni and PostgreSQL are killed, and the node starts again",
            Self::FreezeCut => "Patroni is frozen, node and agent are cut off from ZooKeeper",
            Self::FreezeAlone => "the agent is killed, then Patroni is frozen",
            Self::Pause => "the whole node is paused until another leads",
            Self::Switchover => "a switchover is asked for",
        }
    }

    /// The stack that it needs.
    pub const fn flavor(self) -> Flavor {
        match self {
            Self::Orphan | Self::OrphanCut => Flavor::Supervised,
            _ => Flavor::Single,
        }
    }

    /// Whether another member has to take over. (After [`Fault::Restart`] either member may lead.)
    pub const fn replaces(self) -> bool {
        !matches!(self, Self::Postmaster | Self::Restart)
    }

    /// How long the fault lasts once another member takes writes: long enough for the old primary to do harm.
    pub const fn lingers(self) -> Duration {
        match self {
            Self::Pause => Duration::from_secs(12),
            Self::FreezeAlone => Duration::from_secs(8),
            Self::Switchover | Self::Postmaster | Self::Restart => Duration::ZERO,
            _ => Duration::from_secs(3),
        }
    }

    /// Whether the old leader takes writes until something stops it.
    pub const fn wants_a_fence(self) -> bool {
        matches!(self, Self::Freeze | Self::Orphan | Self::OrphanCut | Self::FreezeCut | Self::FreezeAlone)
    }

    /// Causes the fault.
    pub async fn strike(self, stack: &Stack, leader: &Leader) -> anyhow::Result<()> {
        let Leader { node, agent, patroni, .. } = leader;
        match self {
            Self::Freeze => node.signal("STOP", patroni).await,
            Self::Orphan => {
                supervised::stay_down(node).await?;
                node.signal("KILL", patroni).await
            }
            Self::OrphanCut => {
                cut(stack, leader).await?;
                node.signal("KILL", patroni).await
            }
            Self::Postmaster => node.exec(&["bash", "-c", KILL_POSTMASTER]).await.map(drop),
            Self::Crash => node.kill().await,
            Self::Restart => node.crash().await,
            Self::FreezeCut => {
                node.signal("STOP", patroni).await?;
                cut(stack, leader).await
            }
            Self::FreezeAlone => {
                agent.kill().await?;
                node.signal("STOP", patroni).await
            }
            Self::Pause => node.pause().await,
            Self::Switchover => stack.switchover(&leader.member).await.map(drop),
        }
    }

    /// Heals the fault. It does not wait until the cluster is well.
    pub async fn heal(self, stack: &Stack, leader: &Leader) -> anyhow::Result<()> {
        let Leader { node, agent, patroni, .. } = leader;
        match self {
            Self::Freeze => node.signal("CONT", patroni).await,
            Self::Orphan => supervised::may_start(node).await,
            Self::OrphanCut => heal(stack, leader).await,
            Self::Postmaster | Self::Restart | Self::Switchover => Ok(()),
            Self::Crash => node.start().await,
            Self::FreezeCut => {
                heal(stack, leader).await?;
                node.signal("CONT", patroni).await
            }
            Self::FreezeAlone => {
                node.signal("CONT", patroni).await?;
                agent.start().await
            }
            Self::Pause => node.unpause().await,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

async fn zookeepers(stack: &Stack) -> anyhow::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for server in stack.zookeepers() {
        addresses.push(server.ip_in("default").await?);
    }
    Ok(addresses)
}

/// Cuts the node and its agent off from ZooKeeper.
async fn cut(stack: &Stack, leader: &Leader) -> anyhow::Result<()> {
    let zookeepers = zookeepers(stack).await?;
    leader.node.cut(&zookeepers).await?;
    leader.agent.cut(&zookeepers).await
}

async fn heal(stack: &Stack, leader: &Leader) -> anyhow::Result<()> {
    let zookeepers = zookeepers(stack).await?;
    leader.agent.heal(&zookeepers).await?;
    leader.node.heal(&zookeepers).await
}
