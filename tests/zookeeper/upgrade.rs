//! Two clusters of one scope, and the way from the tree of Warden 0.1, which did not tell them apart.

use crate::agent::{Agent, digest as credentials, record};
use crate::raw::Raw;
use crate::server::Server;
use anyhow::{Context, ensure};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::sleep;
use warden::act::upgrade;
use warden::config::Config;
use warden::run::zookeeper_settings;
use warden::watch::zookeeper::{EndReason, Expect, Node, Settings, Update};
use warden_e2e::wait::until;

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);

/// One that takes longer than any copy, and than the agent waits before it says that it copies nothing.
const NOTHING: Duration = Duration::from_secs(3);

/// Both clusters are made from this template: scope `my_cluster`, member `postgresql0`.
const PATRONI: &str = include_str!("configs/patroni-stage-namespace.yml");

const SERVICE: &str = "7711696653903761442";
const STAGE: &str = "7711696653903761443";

/// A chroot of one's own on a server, so that the paths in it are those of production.
struct World {
    raw: Raw,
    host: String,
    chroot: String,
}

impl World {
    async fn new(test: &str) -> anyhow::Result<Self> {
        let server = Server::shared().await?;
        let (raw, chroot) = (Raw::connect(server.address).await?, format!("/{test}-{}", std::process::id()));
        raw.set(&chroot, b"").await?;
        let world = Self { raw, host: server.host(), chroot };
        world.set("/service/my_cluster/initialize", SERVICE.as_bytes()).await?;
        world.set("/stage/my_cluster/initialize", STAGE.as_bytes()).await?;
        Ok(world)
    }

    fn path(&self, path: &str) -> String {
        format!("{}{path}", self.chroot)
    }

    async fn set(&self, path: &str, data: &[u8]) -> anyhow::Result<()> {
        self.raw.set(&self.path(path), data).await
    }

    async fn get(&self, path: &str) -> anyhow::Result<Option<String>> {
        Ok(self.raw.get(&self.path(path)).await?.map(|(data, _)| String::from_utf8_lossy(&data).into_owned()))
    }

    async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.raw.delete(&self.path(path)).await
    }

    /// What an agent of this namespace has, read from Patroni's file as it reads it.
    fn settings(&self, namespace: &str) -> anyhow::Result<Settings> {
        static FILES: AtomicU32 = AtomicU32::new(0);
        let number = FILES.fetch_add(1, Ordering::SeqCst);
        let directory = std::env::temp_dir().join(format!("wardentest-zk-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let hosts = format!("{}{}", self.host, self.chroot);
        let patroni = PATRONI.replace("/stage/", namespace).replace("zoo:2181", &hosts);
        std::fs::write(directory.join("patroni.yml"), patroni)?;
        let ours = directory.join("warden.yml");
        let patroni_config = directory.join("patroni.yml");
        std::fs::write(&ours, format!("patroni_config: {}\nnode: {{}}\n", patroni_config.display()))?;
        let config = Config::load(&ours);
        std::fs::remove_dir_all(&directory)?;
        Ok(zookeeper_settings(&config?))
    }

    /// An agent of this version, that upgrades.
    async fn agent(&self, namespace: &str) -> anyhow::Result<Upgrading> {
        let agent = Agent::spawn(self.settings(namespace)?);
        agent.connected(0, LONG).await?;
        let handle = agent.handle.clone();
        let upgrade = tokio::spawn(async move { upgrade::run(&handle).await });
        Ok(Upgrading { agent, upgrade })
    }

    /// An agent of 0.1, which is registered until its session is closed.
    async fn old_agent(&self, name: &str, identifier: Option<&str>) -> anyhow::Result<Raw> {
        let raw = Raw::connect(Server::shared().await?.address).await?;
        let postgres = identifier.map_or_else(String::new, |identifier| {
            format!(r#","postgres":{{"answer":"writable","age_ms":1,"system_identifier":"{identifier}"}}"#)
        });
        let says = format!(
            r#"{{"version":"0.1.0","roles":["node"],"address":"x:8010","member":"{name}","sees":{{"leader":null{postgres}}}}}"#
        );
        raw.create_ephemeral(&self.path(&format!("/warden/my_cluster/agents/{name}")), says.as_bytes()).await?;
        Ok(raw)
    }

    /// Waits until a znode has what contains all of `words`, or with none is gone.
    async fn has(&self, path: &str, words: &[&str]) -> anyhow::Result<()> {
        until(&format!("{path} with {words:?}"), SOON, || async {
            match self.get(path).await? {
                Some(text) => ensure!(!words.is_empty() && words.iter().all(|word| text.contains(word)), "{text}"),
                None => ensure!(words.is_empty(), "it is not there"),
            }
            Ok(())
        })
        .await
    }

    async fn absent(&self, path: &str) -> anyhow::Result<()> {
        let found = self.get(path).await?;
        ensure!(found.is_none(), "{path} is there: {found:?}");
        Ok(())
    }

    /// Waits until the log says `word` about this test's old tree.
    async fn says(&self, word: &str) -> anyhow::Result<String> {
        let old = self.path("/warden/my_cluster");
        let mut said = String::new();
        until(&format!("a line of the log with {word:?}"), LONG, || {
            let lines = crate::log::lines(word).into_iter().filter(|line| line.contains(&old)).collect::<Vec<_>>();
            said = lines.join("\n");
            let count = lines.len();
            async move {
                ensure!(count == 1, "{count} lines say it");
                Ok(())
            }
        })
        .await?;
        Ok(said)
    }
}

struct Upgrading {
    agent: Agent,
    upgrade: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Upgrading {
    async fn end(self) -> anyhow::Result<()> {
        self.upgrade.abort();
        self.agent.shutdown().await.map(drop)
    }
}

fn fence(member: &str, rule: &str, reason: &str) -> Vec<u8> {
    format!(
        r#"{{"member":"{member}","rule":"{rule}","reason":"{reason}","by":"operator","ordered_ms":1,"confirmed_ms":2}}"#
    )
    .into_bytes()
}

fn entry(member: &str) -> Vec<u8> {
    warden::audit::Entry::new("postgresql0", "fence", member, "why").write()
}

const OLD: &str = "/warden/my_cluster";
const NEW: &str = "/warden/service/my_cluster";
const STAGED: &str = "/warden/stage/my_cluster";

/// Fails for an agent whose tree is named after the scope alone.
pub async fn namespaces() -> anyhow::Result<()> {
    let world = World::new("namespaces").await?;
    let service = Agent::spawn(world.settings("/service/")?);
    let stage = Agent::spawn(world.settings("/stage/")?);
    let me = Node::Agent("postgresql0".to_owned());
    for (agent, address) in [(&service, "service:8010"), (&stage, "stage:8010")] {
        let own = record(address, "");
        agent.handle.publish(own.clone());
        agent.sees(0, &me, Some(&own), LONG).await?;
    }
    let fenced = fence("postgresql0", "operator", "why");
    let done = service.handle.write_record("postgresql0", Some(fenced.clone()), Expect::Nothing, SOON).await;
    ensure!(done == Ok(true), "the record is not written: {done:?}");
    service.handle.append_audit(entry("postgresql0"), SOON).await.map_err(anyhow::Error::msg)?;
    service.sees(0, &Node::Fence("postgresql0".to_owned()), Some(&fenced), SOON).await?;
    stage.passes(2).await?;
    let strange = stage.count(0, |update| match update {
        Update::NameTaken { .. } => true,
        Update::Znode { node: Node::Fence(_), value, .. } => value.is_some(),
        Update::Znode { node: Node::Agent(_), value: Some(value), .. } => value.data != record("stage:8010", ""),
        _ => false,
    });
    ensure!(strange == 0, "the one cluster sees the other:\n{}", stage.told(0));
    let trail = stage.handle.read_audit(SOON).await.map_err(anyhow::Error::msg)?;
    ensure!(trail.is_empty(), "it has the other's audit trail: {trail:?}");
    world.absent(OLD).await?;
    for agent in [service, stage] {
        agent.shutdown().await?;
    }
    Ok(())
}

/// Fails for a copy to whoever asks first, and for one that takes something away.
pub async fn copied_on_a_match() -> anyhow::Result<()> {
    let world = World::new("match").await?;
    world.set(&format!("{OLD}/fences/postgresql1"), &fence("postgresql1", "operator", "disk is failing")).await?;
    world.set(&format!("{OLD}/audit/e-0000000003"), &entry("postgresql1")).await?;
    let (service, stage) = (world.agent("/service/").await?, world.agent("/stage/").await?);
    // There is no agent of 0.1 that could show whose they are.
    let old = world.path(OLD);
    until("both to say that nothing is copied", LONG, || async {
        let lines = crate::log::lines("no agent of 0.1 is registered there");
        let lines: Vec<_> = lines.iter().filter(|line| line.contains(&old)).collect();
        ensure!(lines.len() == 2, "{lines:?}");
        ensure!(lines.iter().all(|line| line.contains("warden fence") && line.contains("postgresql1")), "{lines:?}");
        Ok(())
    })
    .await?;
    world.absent(&format!("{NEW}/fences/postgresql1")).await?;

    let first = world.old_agent("postgresql0", Some(SERVICE)).await?;
    let before = world.raw.dump(&world.path(&format!("{OLD}/fences"))).await?;
    world.has(&format!("{NEW}/fences/postgresql1"), &["disk is failing", r#""confirmed_ms":2"#, SERVICE]).await?;
    world.has(&format!("{NEW}/audit/0.1-0000000003"), &["postgresql1"]).await?;
    let trail = service.agent.handle.read_audit(SOON).await.map_err(anyhow::Error::msg)?;
    ensure!(trail.len() == 1, "{trail:?}");
    world.says("only agents of another cluster").await?;
    world.absent(&format!("{STAGED}/fences/postgresql1")).await?;
    world.absent(&format!("{STAGED}/audit/0.1-0000000003")).await?;
    ensure!(before == world.raw.dump(&world.path(&format!("{OLD}/fences"))).await?, "the old ones are changed");
    first.close().await?;
    service.end().await?;
    stage.end().await
}

/// Fails for a copy of what may be the other cluster's.
pub async fn shared() -> anyhow::Result<()> {
    let world = World::new("shared").await?;
    world.set(&format!("{OLD}/fences/postgresql1"), &fence("postgresql1", "operator", "whose?")).await?;
    let one = world.old_agent("postgresql0", Some(SERVICE)).await?;
    let two = world.old_agent("postgresql1", Some(STAGE)).await?;
    let service = world.agent("/service/").await?;
    world.says("agents of several clusters").await?;
    // Nor once the other one has gone, or comes to upgrade: whose the record is cannot be told any more.
    two.close().await?;
    let stage = world.agent("/stage/").await?;
    sleep(NOTHING).await;
    one.close().await?;
    let two = world.old_agent("postgresql1", Some(STAGE)).await?;
    sleep(NOTHING + NOTHING).await;
    for new in [NEW, STAGED] {
        world.absent(&format!("{new}/fences/postgresql1")).await?;
    }
    two.close().await?;
    service.end().await?;
    stage.end().await
}

/// Fails for a copy that is made once, for one that goes one way, and for one that never ends.
pub async fn kept_the_same() -> anyhow::Result<()> {
    let world = World::new("same").await?;
    let old = world.old_agent("postgresql0", Some(SERVICE)).await?;
    // Each agent of this version does it; they must not be in each other's way.
    let (first, second) = (world.agent("/service/").await?, world.agent("/service/").await?);
    let (theirs, ours) = (format!("{OLD}/fences/postgresql0"), format!("{NEW}/fences/postgresql0"));
    let put = async |data: Option<Vec<u8>>| {
        let done = first.agent.handle.write_record("postgresql0", data, Expect::Anything, SOON).await;
        ensure!(done == Ok(true), "{done:?}");
        anyhow::Ok(())
    };
    put(Some(fence("postgresql0", "operator", "asked of 0.2"))).await?;
    // For the gate of 0.1 a confirmed one would prove what happened after it, too.
    world.has(&theirs, &["asked of 0.2", r#""confirmed_ms":null"#]).await?;
    world.set(&theirs, &fence("postgresql0", "operator", "confirmed by 0.1")).await?;
    world.has(&ours, &["confirmed by 0.1", r#""confirmed_ms":2"#]).await?;
    world.delete(&theirs).await?;
    world.has(&ours, &[]).await?;
    world.set(&theirs, &fence("postgresql0", "operator", "asked of 0.1")).await?;
    world.has(&ours, &["asked of 0.1"]).await?;
    put(None).await?;
    world.has(&theirs, &[]).await?;
    sleep(NOTHING).await;
    world.absent(&theirs).await?;
    world.absent(&ours).await?;

    // Nodes first: of 0.1 only a router is left, which shows no identifier.
    let router = world.old_agent("haproxy", None).await?;
    old.close().await?;
    put(Some(fence("postgresql0", "operator", "for the router"))).await?;
    world.has(&theirs, &["for the router"]).await?;
    let writes = world.raw.dump(&world.path("/warden")).await?;
    sleep(NOTHING).await;
    ensure!(writes == world.raw.dump(&world.path("/warden")).await?, "it goes on writing what is the same");

    router.close().await?;
    sleep(NOTHING).await;
    put(Some(fence("postgresql0", "operator", "not for 0.1"))).await?;
    world.set(&format!("{OLD}/fences/postgresql1"), &fence("postgresql1", "operator", "by hand")).await?;
    sleep(NOTHING + NOTHING).await;
    world.has(&theirs, &["for the router"]).await?;
    world.absent(&format!("{NEW}/fences/postgresql1")).await?;
    first.end().await?;
    second.end().await
}

/// Fails for a copy that spreads what cannot be understood or is about somebody else, or stops at it.
pub async fn torn() -> anyhow::Result<()> {
    let world = World::new("torn").await?;
    world.set(&format!("{OLD}/fences/postgresql0"), br#"{"member":"postgresql0","rule":"ope"#).await?;
    world.set(&format!("{OLD}/fences/postgresql1"), &fence("postgresql7", "operator", "misplaced")).await?;
    world.set(&format!("{OLD}/fences/postgresql2"), &fence("postgresql2", "operator", "good")).await?;
    let copied = r#","copied":{"mzxid":"0x1","mtime_ms":1,"system_identifier":"1"}}"#;
    let foreign = String::from_utf8(fence("postgresql3", "operator", "foreign"))?.replace('}', copied);
    world.set(&format!("{OLD}/fences/postgresql3"), foreign.as_bytes()).await?;
    let before = world.raw.dump(&world.path(&format!("{OLD}/fences"))).await?;
    let old = world.old_agent("postgresql0", Some(SERVICE)).await?;
    let service = world.agent("/service/").await?;
    world.has(&format!("{NEW}/fences/postgresql2"), &["good"]).await?;
    for (member, word) in [(0, "not a fence record"), (1, "about postgresql7"), (3, "system identifier 1")] {
        let line = world.says(word).await?;
        ensure!(line.contains("warden fence") && line.contains(&format!("postgresql{member}")), "{line}");
        world.absent(&format!("{NEW}/fences/postgresql{member}")).await?;
    }
    ensure!(before == world.raw.dump(&world.path(&format!("{OLD}/fences"))).await?, "the old ones are changed");
    old.close().await?;
    service.end().await
}

/// Fails for a client that ends its session over a tree of another cluster's, and for one that closes to others what
/// lies between `/warden` and its own tree.
pub async fn other_credentials() -> anyhow::Result<()> {
    let world = World::new("credentials").await?;
    let settings = |namespace: &str, credential: &str| {
        anyhow::Ok(Settings { auth: credentials(credential), ..world.settings(namespace)? })
    };
    let theirs = Raw::authenticated(Server::shared().await?.address, "theirs:secret").await?;
    theirs.set(&world.path(OLD), b"").await?;
    // One below the other, and two side by side.
    let clusters = [("/service/", "a"), ("/service/my_cluster/", "b"), ("/service/eu/", "c"), ("/service/us/", "d")];
    for (namespace, credential) in clusters {
        let settings = settings(namespace, &format!("{credential}:secret"))?;
        let agent = Agent::spawn(settings.clone());
        let own = record("10.0.0.1:8010", credential);
        agent.handle.publish(own.clone());
        let seen = agent.sees(0, &Node::Agent("postgresql0".to_owned()), Some(&own), LONG).await;
        seen.with_context(|| format!("the cluster in {namespace} has no znode"))?;
        let trees = agent.handle.read_trees(SOON).await.map_err(anyhow::Error::msg)?;
        ensure!(trees.refused.is_some(), "{namespace}: another cluster's tree is read: {trees:?}");
        agent.passes(2).await?;
        let lost = agent.count(0, |update| matches!(update, Update::Lost { .. }));
        ensure!(lost == 0, "{namespace}: a session was lost:\n{}", agent.told(0));
        // All folders are there and closed, so that nobody else puts a fence into one.
        let root = format!("{}{}", settings.chroot, settings.own);
        for folder in ["agents", "audit", "barriers", "fences"] {
            let acl = world.raw.acl(&format!("{root}/{folder}")).await;
            let acl = match acl {
                Ok(acl) => acl,
                Err(_) => theirs_acl(&format!("{root}/{folder}"), credential).await?,
            };
            ensure!(acl.iter().all(|entry| entry.scheme == "digest"), "{root}/{folder}: {acl:?}");
        }
        agent.shutdown().await?;
    }
    // Below one of 0.1's trees, which was closed, there is no room: that is said as what it is.
    let agent = Agent::spawn(settings("/my_cluster/", "e:secret")?);
    let (reason, detail) = agent.lost(0, LONG).await?;
    ensure!(reason == EndReason::AuthFailed && detail.contains(&world.path(OLD)), "{reason:?}: {detail}");
    agent.shutdown().await.map(drop)
}

/// The ACL of a znode that only those may ask for who may read it.
async fn theirs_acl(path: &str, credential: &str) -> anyhow::Result<Vec<zookeeper_async::Acl>> {
    Raw::authenticated(Server::shared().await?.address, &format!("{credential}:secret")).await?.acl(path).await
}
