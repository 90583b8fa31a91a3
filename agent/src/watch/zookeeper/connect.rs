//! From configured hosts to one address that answers.
//!
//! The library resolves names once, blocking, and gives up on all when one does not resolve; its connect
//! hangs on a host that drops packets and loops for ever when nobody answers. So names are resolved here,
//! all of them, anew in each epoch and with a limit; the addresses are shuffled, the one that has just
//! failed comes last, and each is tried for half a second. The library gets the one that answered. One that
//! accepts and closes is no server either (Docker's port forwarding does it for a container that is down).

use super::{End, EndReason};
use rand::seq::SliceRandom;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// A name server that is away costs this long, for all hosts together.
const RESOLVE: Duration = Duration::from_secs(2);

/// A host that is away costs this long.
const PROBE: Duration = Duration::from_millis(500);

/// A server says nothing before it is asked; who hangs up or speaks within this time is none.
const HOLDS: Duration = Duration::from_millis(20);

/// A server that answers, and the name it was configured by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) address: SocketAddr,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.address.ip())
    }
}

/// Finds a server that accepts connections.
pub(super) async fn find(hosts: &[String], avoid: Option<SocketAddr>) -> Result<Server, End> {
    let (mut servers, mut problems) = resolve(hosts).await;
    if servers.is_empty() {
        return Err(End::new(EndReason::Unresolvable, problems.join("; ")));
    }
    servers.shuffle(&mut rand::rng());
    // Stable: all others stay shuffled.
    servers.sort_by_key(|server| Some(server.address) == avoid);
    for server in servers {
        match timeout(PROBE, TcpStream::connect(server.address)).await {
            Ok(Ok(stream)) if timeout(HOLDS, stream.readable()).await.is_err() => return Ok(server),
            Ok(Ok(_)) => problems.push(format!("{server}: accepts, and then closes or is not ZooKeeper")),
            Ok(Err(error)) => problems.push(format!("{server}: {error}")),
            Err(_) => problems.push(format!("{server}: no answer within {} ms", PROBE.as_millis())),
        }
    }
    Err(End::new(EndReason::Unreachable, problems.join("; ")))
}

/// All addresses of all hosts, and what went wrong with those that have none.
async fn resolve(hosts: &[String]) -> (Vec<Server>, Vec<String>) {
    let lookups = hosts.iter().map(|host| async move { (host, timeout(RESOLVE, lookup_host(host.as_str())).await) });
    let mut servers: Vec<Server> = Vec::new();
    let mut problems = Vec::new();
    for (host, found) in futures_util::future::join_all(lookups).await {
        match found {
            Ok(Ok(addresses)) => {
                servers.extend(addresses.map(|address| Server { name: host.clone(), address }));
            }
            Ok(Err(error)) => problems.push(format!("{host}: {error}")),
            Err(_) => problems.push(format!("{host}: the name does not resolve within {} s", RESOLVE.as_secs())),
        }
    }
    (servers, problems)
}
