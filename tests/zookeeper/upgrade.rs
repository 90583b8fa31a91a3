//! Two clusters of one scope, and the upgrade from the tree of Warden 0.1, which did not tell them apart.

use crate::agent::{Agent, digest as credentials, record};
use crate::raw::Raw;
use crate::server::Server;
use anyhow::{Context, ensure};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::sleep;
use warden::act::upgrade;
use warden::client::zookeeper::{EndReason, Expect, Node, Settings, Update};
use warden::config::Config;
use warden_e2e::agent_log::field;
use warden_e2e::wait::until;

const SOON: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);

/// Longer than any copy takes, and longer than the agent waits before it logs that it copies nothing.
const NOTHING: Duration = Duration::from_secs(3);

/// The template of both clusters: scope `my_cluster`, member `postgresql0`.
const PATRONI: &str = include_str!("configs/patroni-stage-namespace.yml");

const SERVICE: &str = "7711696653903761442";
const STAGE: &str = "7711696653903761443";

/// A chroot on a server for one test, so that its paths are those of production.
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

    /// The settings of an agent of this namespace, read from Patroni's file as the agent reads it.
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
        Ok(Settings::of(&config?))
    }

    /// Starts an agent of this version, which upgrades.
    async fn agent(&self, namespace: &str) -> anyhow::Result<Upgrading> {
        let agent = Agent::spawn(self.settings(namespace)?);
        agent.connected(0, LONG).await?;
        let handle = agent.handle.clone();
        let upgrade = tokio::spawn(async move { upgrade::run(&handle).await });
        Ok(Upgrading { agent, upgrade })
    }

    /// Registers an agent of 0.1 until its session is closed.
    async fn old_agent(&self, name: &str, identifier: Option<&str>) -> anyhow::Result<Raw> {
        let raw = Raw::connect(Server::shared().await?.address).await?;
        let postgres = identifier.map_or_else(String::new, |identifier| {
            format!(r#","postgres":{{"answer":"writable","age_ms":1,"system_identifier":"{identifier}"}}"#)
        });
        let sees = format!(r#"{{"leader":null{postgres}}}"#);
        let says =
            format!(r#"{{"version":"0.1.0","roles":["node"],"address":"x:8010","member":"{name}","sees":{sees}}}"#);
        raw.create_ephemeral(&self.path(&format!("/warden/my_cluster/agents/{name}")), says.as_bytes()).await?;
        Ok(raw)
    }

    /// Waits until a znode's data contains all of `words`, or, with none, until the znode is gone.
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

    /// Waits until an agent has noted that a member's record is the same in both trees now. A removal before the note
    /// looks like a record that is still to be copied, and the fence stays.
    async fn noted(&self, member: &str) -> anyhow::Result<()> {
        let (notes, folder) = (format!("{NEW}/upgrade"), format!("fences/{member}"));
        until(&format!("a note that both records of {member} are the same"), SOON, || async {
            let mut written = Vec::new();
            for tree in [OLD, NEW] {
                let found = self.raw.get(&self.path(&format!("{tree}/{folder}"))).await?;
                written.push(found.with_context(|| format!("{tree}/{folder} is not there"))?.1.mzxid);
            }
            let found = self.get(&notes).await?.with_context(|| format!("{notes} is not there"))?;
            let notes: serde_json::Value = serde_json::from_str(&found)?;
            let noted = notes.get("records").and_then(|records| records.get(member)).cloned().unwrap_or_default();
            ensure!(noted == serde_json::json!(written), "{written:?} are there, noted is {found}");
            Ok(())
        })
        .await
    }

    async fn absent(&self, path: &str) -> anyhow::Result<()> {
        let found = self.get(path).await?;
        ensure!(found.is_none(), "{path} is there: {found:?}");
        Ok(())
    }

    /// Waits for the one line of this event whose `why` contains `word`, about this test's old tree.
    async fn says(&self, event: &str, word: &str) -> anyhow::Result<String> {
        let old = self.path("/warden/my_cluster");
        let mut said = String::new();
        until(&format!("a line of the event {event} with {word:?}"), LONG, || {
            let lines = events(event, word).into_iter().filter(|line| line.contains(&old)).collect::<Vec<_>>();
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

/// The lines of this event whose `why` contains `word`.
fn events(event: &str, word: &str) -> Vec<String> {
    let mut lines = crate::log::lines(word);
    lines
        .retain(|line| field(line, "event") == Some(event) && field(line, "why").is_some_and(|why| why.contains(word)));
    lines
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
    warden::znode::audit::Entry::new("postgresql0", "fence", member, "why").write()
}

const OLD: &str = "/warden/my_cluster";
const NEW: &str = "/warden/service/my_cluster";
const STAGED: &str = "/warden/stage/my_cluster";

/// Fails for an agent that names its tree after the scope alone.
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
    ensure!(trail.is_empty(), "it has the other cluster's audit trail: {trail:?}");
    world.absent(OLD).await?;
    for agent in [service, stage] {
        agent.shutdown().await?;
    }
    Ok(())
}

/// Fails for a copy to the first cluster that asks, and for one that removes records.
pub async fn copied_on_a_match() -> anyhow::Result<()> {
    let world = World::new("match").await?;
    world.set(&format!("{OLD}/fences/postgresql1"), &fence("postgresql1", "operator", "disk is failing")).await?;
    world.set(&format!("{OLD}/audit/e-0000000003"), &entry("postgresql1")).await?;
    let (service, stage) = (world.agent("/service/").await?, world.agent("/stage/").await?);
    // No agent of 0.1 is there to show whose the records are.
    let old = world.path(OLD);
    until("both to say that nothing is copied", LONG, || async {
        let lines = events("upgrade_copy_blocked", "no agent of 0.1 is registered there");
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
    world.says("upgrade_copy_blocked", "only agents of another cluster").await?;
    world.absent(&format!("{STAGED}/fences/postgresql1")).await?;
    world.absent(&format!("{STAGED}/audit/0.1-0000000003")).await?;
    ensure!(before == world.raw.dump(&world.path(&format!("{OLD}/fences"))).await?, "the old ones are changed");
    first.close().await?;
    service.end().await?;
    stage.end().await
}

/// Fails for a copy of records that may be the other cluster's.
pub async fn shared() -> anyhow::Result<()> {
    let world = World::new("shared").await?;
    world.set(&format!("{OLD}/fences/postgresql1"), &fence("postgresql1", "operator", "whose?")).await?;
    let one = world.old_agent("postgresql0", Some(SERVICE)).await?;
    let two = world.old_agent("postgresql1", Some(STAGE)).await?;
    let service = world.agent("/service/").await?;
    world.says("upgrade_copy_blocked", "agents of several clusters").await?;
    // The same when the other cluster has gone, or comes to upgrade. No agent can tell any more whose the record is.
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
    // Each agent of this version copies. They must not disturb each other.
    let (first, second) = (world.agent("/service/").await?, world.agent("/service/").await?);
    let (theirs, ours) = (format!("{OLD}/fences/postgresql0"), format!("{NEW}/fences/postgresql0"));
    let put = async |data: Option<Vec<u8>>| {
        let done = first.agent.handle.write_record("postgresql0", data, Expect::Anything, SOON).await;
        ensure!(done == Ok(true), "{done:?}");
        anyhow::Ok(())
    };
    put(Some(fence("postgresql0", "operator", "asked of 0.2"))).await?;
    // To the gate of 0.1 a confirmed record would also prove later events.
    world.has(&theirs, &["asked of 0.2", r#""confirmed_ms":null"#]).await?;
    world.set(&theirs, &fence("postgresql0", "operator", "confirmed by 0.1")).await?;
    world.has(&ours, &["confirmed by 0.1", r#""confirmed_ms":2"#]).await?;
    world.noted("postgresql0").await?;
    world.delete(&theirs).await?;
    world.has(&ours, &[]).await?;
    world.set(&theirs, &fence("postgresql0", "operator", "asked of 0.1")).await?;
    world.has(&ours, &["asked of 0.1"]).await?;
    world.noted("postgresql0").await?;
    put(None).await?;
    world.has(&theirs, &[]).await?;
    sleep(NOTHING).await;
    world.absent(&theirs).await?;
    world.absent(&ours).await?;

    // The nodes are upgraded first. Of 0.1 only a router is left, which shows no identifier.
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

/// Fails for a copy that spreads records that cannot be parsed or are about another member, or that stops at them.
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
        let line = world.says("upgrade_fence_record_skipped", word).await?;
        ensure!(line.contains("warden fence") && line.contains(&format!("postgresql{member}")), "{line}");
        world.absent(&format!("{NEW}/fences/postgresql{member}")).await?;
    }
    ensure!(before == world.raw.dump(&world.path(&format!("{OLD}/fences"))).await?, "the old ones are changed");
    old.close().await?;
    service.end().await
}

/// Fails for a client that ends its session because of another cluster's tree. Fails for a client that closes the
/// znodes between `/warden` and its own tree to others.
pub async fn other_credentials() -> anyhow::Result<()> {
    let world = World::new("credentials").await?;
    let settings = |namespace: &str, credential: &str| {
        anyhow::Ok(Settings { auth: credentials(credential), ..world.settings(namespace)? })
    };
    let theirs = Raw::authenticated(Server::shared().await?.address, "theirs:secret").await?;
    theirs.set(&world.path(OLD), b"").await?;
    // One tree is below the other, and two are side by side.
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
        // All folders exist and are closed, so that no other client puts a fence into one.
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
    // There is no place below one of 0.1's closed trees. The agent reports exactly that.
    let agent = Agent::spawn(settings("/my_cluster/", "e:secret")?);
    let (reason, detail) = agent.lost(0, LONG).await?;
    ensure!(reason == EndReason::AuthFailed && detail.contains(&world.path(OLD)), "{reason:?}: {detail}");
    agent.shutdown().await.map(drop)
}

/// The ACL of a znode. Only clients that may read the znode may ask for it.
async fn theirs_acl(path: &str, credential: &str) -> anyhow::Result<Vec<zookeeper_async::Acl>> {
    Raw::authenticated(Server::shared().await?.address, &format!("{credential}:secret")).await?.acl(path).await
}
