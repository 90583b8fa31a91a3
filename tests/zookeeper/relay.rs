//! A TCP relay between the client under test and a real server. It does to single connections what networks do: it
//! cuts, resets, holds back, refuses, or accepts and closes them.

use anyhow::{Context, ensure};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::raw::Session;

/// The treatment of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// The relay connects it with the server.
    Forward,
    /// The relay accepts it, and holds its bytes back until [`Relay::release`].
    Hold,
    /// The relay accepts and closes it.
    Close,
    /// The relay accepts it and closes it at the first request, like a ZooKeeper without a quorum.
    CloseWhenAsked,
    /// The relay accepts it, answers with bytes that are not ZooKeeper's, and closes it.
    Gibberish,
    /// The relay accepts and closes it. It refuses every later connection.
    CloseThenRefuse,
    /// The relay refuses it.
    Refuse,
}

/// The treatment of an open connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    Open,
    Held,
    Closed,
    Reset,
}

/// A relay. It ends with the runtime that it was started on.
pub struct Relay {
    pub address: SocketAddr,
    greeting: watch::Sender<Greeting>,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    lines: Mutex<Vec<Line>>,
    accepted: AtomicUsize,
    open: AtomicUsize,
}

/// A connection.
struct Line {
    flow: watch::Sender<Flow>,
    /// The server's first bytes.
    hello: Arc<Mutex<Vec<u8>>>,
}

impl Relay {
    pub async fn start(upstream: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (greeting, greetings) = watch::channel(Greeting::Forward);
        let shared = Arc::new(Shared {
            upstream,
            lines: Mutex::new(Vec::new()),
            accepted: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        tokio::spawn(accept(Some(listener), address, greeting.clone(), greetings, Arc::clone(&shared)));
        Ok(Self { address, greeting, shared })
    }

    /// Its address as a configured host.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Sets the treatment of new connections.
    pub fn greet(&self, greeting: Greeting) {
        self.greeting.send_replace(greeting);
    }

    /// The number of connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// The number of connections open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Closes all connections in an orderly way, as a server or a firewall does.
    pub fn cut(&self) {
        self.all(Flow::Closed);
    }

    /// Resets all connections.
    pub fn reset(&self) {
        self.all(Flow::Reset);
    }

    /// From now on holds back the bytes of all open connections. They arrive late.
    pub fn hold(&self) {
        self.all(Flow::Held);
    }

    /// Delivers the bytes held back, and stops holding back.
    pub fn release(&self) {
        self.all(Flow::Open);
    }

    /// The session that the server granted last.
    pub fn session(&self) -> anyhow::Result<Session> {
        let lines = self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let hello = |line: &Line| line.hello.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let newest = lines.iter().rev().map(hello).find(|hello| !hello.is_empty());
        Session::read(&newest.context("no session was granted through the relay")?)
    }

    fn all(&self, flow: Flow) {
        for line in self.shared.lines.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            line.flow.send_replace(flow);
        }
    }
}

/// Accepts connections, or refuses them by not listening.
async fn accept(
    mut listener: Option<TcpListener>,
    address: SocketAddr,
    greeting: watch::Sender<Greeting>,
    mut greetings: watch::Receiver<Greeting>,
    shared: Arc<Shared>,
) {
    loop {
        let now = *greetings.borrow_and_update();
        if now == Greeting::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = TcpListener::bind(address).await.ok();
        }
        let accepted = tokio::select! {
            changed = greetings.changed() => if changed.is_ok() { continue } else { return },
            Some(Ok((stream, _))) = async { Some(listener.as_ref()?.accept().await) } => stream,
            else => return,
        };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        if now == Greeting::CloseThenRefuse {
            listener = None;
            greeting.send_replace(Greeting::Refuse);
        }
        greet(accepted, now, &shared);
    }
}

fn greet(mut client: TcpStream, greeting: Greeting, shared: &Arc<Shared>) {
    let flow = match greeting {
        Greeting::Forward => Flow::Open,
        Greeting::Hold => Flow::Held,
        Greeting::Gibberish => {
            tokio::spawn(async move { client.write_all(b"\0\0\0\x08HTTP/1.1 400 Bad Request\r\n\r\n").await });
            return;
        }
        Greeting::CloseWhenAsked => {
            tokio::spawn(async move { client.read(&mut [0; 1024]).await });
            return;
        }
        Greeting::Close | Greeting::CloseThenRefuse | Greeting::Refuse => return,
    };
    let (sender, flow) = watch::channel(flow);
    let hello = Arc::new(Mutex::new(Vec::new()));
    let line = Line { flow: sender, hello: Arc::clone(&hello) };
    shared.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        shared.open.fetch_add(1, Ordering::SeqCst);
        // The connection is over when either end fails.
        drop(relay(client, shared.upstream, flow, &hello).await);
        shared.open.fetch_sub(1, Ordering::SeqCst);
    });
}

/// Carries bytes both ways until both ends are done or the connection is ended.
async fn relay(
    mut client: TcpStream,
    upstream: SocketAddr,
    mut flow: watch::Receiver<Flow>,
    hello: &Mutex<Vec<u8>>,
) -> anyhow::Result<()> {
    let mut server = TcpStream::connect(upstream).await?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let nothing = Mutex::new(Vec::new());
    let up = pump(from_client, to_server, flow.clone(), &nothing);
    let down = pump(from_server, to_client, flow.clone(), hello);
    let reset = tokio::select! {
        // The relay still delivers the bytes that an end sent before it left.
        _ = async { tokio::join!(up, down) } => false,
        ended = flow.wait_for(|flow| matches!(flow, Flow::Closed | Flow::Reset)) => {
            ended.is_ok_and(|flow| *flow == Flow::Reset)
        }
    };
    if reset {
        client.set_zero_linger()?;
        server.set_zero_linger()?;
    }
    Ok(())
}

/// Carries bytes one way. Remembers the first ones.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut flow: watch::Receiver<Flow>,
    first: &Mutex<Vec<u8>>,
) -> anyhow::Result<()> {
    let mut chunk = vec![0; 65_536];
    loop {
        let length = from.read(&mut chunk).await?;
        flow.wait_for(|flow| *flow == Flow::Open).await?;
        let read = chunk.get(..length).unwrap_or_default();
        if read.is_empty() {
            return Ok(to.shutdown().await?);
        }
        remember(first, read);
        to.write_all(read).await?;
    }
}

fn remember(first: &Mutex<Vec<u8>>, read: &[u8]) {
    let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
    if first.is_empty() {
        first.extend_from_slice(read);
    }
}

/// A host that drops packets: its queue of connections is full, and no program accepts any.
pub struct Deaf {
    pub address: SocketAddr,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Deaf {
    pub async fn start() -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener = socket.listen(1)?;
        let address = listener.local_addr()?;
        let mut queue = Vec::new();
        while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
            queue.push(connected?);
            ensure!(queue.len() < 100, "{address} takes any number of connections");
        }
        Ok(Self { address, _listener: listener, _queue: queue })
    }

    /// Its address as a configured host.
    pub fn host(&self) -> String {
        self.address.to_string()
    }
}
