//! ZooKeeper without Warden: a plain client that makes and reads the znodes under test. It speaks enough of the wire
//! protocol to end another client's session.

use anyhow::{Context, bail, ensure};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zookeeper_async::{Acl, CreateMode, Stat, WatchedEvent, ZkError, ZkResult, ZooKeeper};

/// The limit for a call. The library waits forever.
const LIMIT: Duration = Duration::from_secs(10);

/// A plain client.
pub struct Raw {
    zk: ZooKeeper,
    acl: Vec<Acl>,
}

impl Raw {
    pub async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let no_watcher = |_: WatchedEvent| {};
        let address = address.to_string();
        let connecting = ZooKeeper::connect(&address, Duration::from_secs(30), no_watcher);
        let zk = timeout(LIMIT, connecting).await.context("no connection")??;
        let raw = Self { zk, acl: Acl::open_unsafe().clone() };
        raw.get("/zookeeper").await?;
        Ok(raw)
    }

    /// Authenticates with digest. Znodes that it creates from now on are only for clients with the same credentials.
    pub async fn authenticated(address: SocketAddr, credential: &str) -> anyhow::Result<Self> {
        let mut raw = Self::connect(address).await?;
        ask("auth", raw.zk.add_auth("digest", credential.as_bytes().to_vec())).await??;
        raw.acl = Acl::creator_all().clone();
        Ok(raw)
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Option<(Vec<u8>, Stat)>> {
        match ask(path, self.zk.get_data(path, false)).await? {
            Ok(found) => Ok(Some(found)),
            Err(ZkError::NoNode) => Ok(None),
            Err(error) => Err(error).with_context(|| path.to_owned()),
        }
    }

    /// The server's answer to a write, for tests that expect a refusal.
    pub async fn try_set(&self, path: &str, data: &[u8]) -> anyhow::Result<ZkResult<Stat>> {
        ask(path, self.zk.set_data(path, data.to_vec(), None)).await
    }

    /// Writes a znode. Creates it and its parents if they are missing.
    pub async fn set(&self, path: &str, data: &[u8]) -> anyhow::Result<()> {
        match self.try_set(path, data).await? {
            Ok(_) => Ok(()),
            Err(ZkError::NoNode) => self.create(path, data, CreateMode::Persistent).await,
            Err(error) => Err(error).with_context(|| path.to_owned()),
        }
    }

    /// Creates an ephemeral znode, and its parents if they are missing.
    pub async fn create_ephemeral(&self, path: &str, data: &[u8]) -> anyhow::Result<()> {
        self.create(path, data, CreateMode::Ephemeral).await
    }

    async fn create(&self, path: &str, data: &[u8], mode: CreateMode) -> anyhow::Result<()> {
        for (at, _) in path.match_indices('/').skip(1) {
            let parent = path.get(..at).unwrap_or_default();
            let open = Acl::open_unsafe().clone();
            match ask(parent, self.zk.create(parent, Vec::new(), open, CreateMode::Persistent)).await? {
                Ok(_) | Err(ZkError::NodeExists) => {}
                Err(error) => return Err(error).with_context(|| parent.to_owned()),
            }
        }
        ask(path, self.zk.create(path, data.to_vec(), self.acl.clone(), mode)).await?.context(path.to_owned())?;
        Ok(())
    }

    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        ask(path, self.zk.delete(path, None)).await?.with_context(|| path.to_owned())
    }

    pub async fn acl(&self, path: &str) -> anyhow::Result<Vec<Acl>> {
        Ok(ask(path, self.zk.get_acl(path)).await?.with_context(|| path.to_owned())?.0)
    }

    /// All that a write changes: each znode under `root` with its stat. `root` itself may come and go.
    pub async fn dump(&self, root: &str) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut paths = vec![root.to_owned()];
        while let Some(path) = paths.pop() {
            let Some((data, stat)) = self.get(&path).await? else { continue };
            lines.push(format!("{path} {data:?} {stat:?}"));
            let children = ask(&path, self.zk.get_children(&path, false)).await?.with_context(|| path.clone())?;
            paths.extend(children.into_iter().map(|child| format!("{path}/{child}")));
        }
        lines.sort();
        Ok(lines)
    }

    /// Ends the session, and with it its ephemeral znodes.
    pub async fn close(self) -> anyhow::Result<()> {
        ask("close", self.zk.close()).await?.context("close")
    }
}

async fn ask<T>(path: &str, asking: impl Future<Output = ZkResult<T>>) -> anyhow::Result<ZkResult<T>> {
    timeout(LIMIT, asking).await.with_context(|| format!("{path}: no answer"))
}

/// A session's id, and the password with which any client can take the session over.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    pub id: i64,
    pub password: [u8; 16],
}

impl Session {
    /// Reads the server's answer to a connection request: length, protocol, timeout, id, password with length.
    pub fn read(hello: &[u8]) -> anyhow::Result<Self> {
        let field = |at: usize, length: usize| hello.get(at..at + length).context("the answer is too short");
        ensure!(field(20, 4)? == 16_u32.to_be_bytes(), "no session was granted: {hello:?}");
        Ok(Self { id: i64::from_be_bytes(field(12, 8)?.try_into()?), password: field(24, 16)?.try_into()? })
    }

    /// Ends the session on the server without its owner's knowledge. To the owner that is an expiry.
    pub async fn end(&self, address: SocketAddr) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(address).await?;
        let mut hello = Vec::new();
        hello.extend(0_i32.to_be_bytes()); // protocol
        hello.extend(0_i64.to_be_bytes()); // last seen zxid
        hello.extend(30_000_i32.to_be_bytes()); // timeout
        hello.extend(self.id.to_be_bytes());
        hello.extend(16_i32.to_be_bytes());
        hello.extend(self.password);
        hello.push(0); // not read-only
        let granted = Self::read(&exchange(&mut stream, &hello).await?)?;
        if granted.id != self.id {
            bail!("the session {:x} was over already", self.id);
        }
        let mut close = Vec::new();
        close.extend(1_i32.to_be_bytes()); // xid
        close.extend((-11_i32).to_be_bytes()); // closeSession
        exchange(&mut stream, &close).await.map(drop)
    }
}

/// Sends a frame and returns the next one, length included.
async fn exchange(stream: &mut TcpStream, frame: &[u8]) -> anyhow::Result<Vec<u8>> {
    let length = u32::try_from(frame.len())?.to_be_bytes();
    stream.write_all(&[&length, frame].concat()).await?;
    let mut answer = vec![0; 4];
    let reading = async {
        stream.read_exact(&mut answer).await?;
        let length = u32::from_be_bytes(answer.as_slice().try_into()?);
        answer.resize(4 + usize::try_from(length)?, 0);
        stream.read_exact(answer.get_mut(4..).unwrap_or_default()).await?;
        anyhow::Ok(())
    };
    timeout(LIMIT, reading).await.context("no answer")??;
    Ok(answer)
}
