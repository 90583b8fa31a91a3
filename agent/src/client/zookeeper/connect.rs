//! Finds one address of the configured hosts that answers.
//!
//! The library resolves names once, blocking, and gives up on all if one does not resolve. Its connect hangs on a host
//! that drops packets, and loops forever if no server answers. The client therefore resolves all names itself, in each
//! epoch and with a limit. It shuffles the addresses, puts the one that has just failed last, and tries each for half a
//! second. The library gets the one that answered. An address that accepts and closes is no server: Docker's port
//! forwarding does this for a container that is down.

use super::{End, EndReason};
use rand::seq::SliceRandom;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

/// The limit for resolving all names. The look-ups run at the same time.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);

/// The limit for a connection to one address.
const CONNECT_LIMIT: Duration = Duration::from_millis(500);

/// A ZooKeeper server neither sends nor closes within this time, because it waits for a request.
const SERVER_QUIET_MIN: Duration = Duration::from_millis(20);

/// A server that answers, and its configured name.
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
    // The sort is stable, so all others stay shuffled.
    servers.sort_by_key(|server| Some(server.address) == avoid);
    for server in servers {
        match timeout(CONNECT_LIMIT, TcpStream::connect(server.address)).await {
            Ok(Ok(stream)) if timeout(SERVER_QUIET_MIN, stream.readable()).await.is_err() => return Ok(server),
            Ok(Ok(_)) => problems.push(format!("{server}: accepts, and then closes or is not ZooKeeper")),
            Ok(Err(error)) => problems.push(format!("{server}: {error}")),
            Err(_) => problems.push(format!("{server}: no answer within {} ms", CONNECT_LIMIT.as_millis())),
        }
    }
    Err(End::new(EndReason::Unreachable, problems.join("; ")))
}

/// All addresses of all hosts, and the errors of those that have none.
async fn resolve(hosts: &[String]) -> (Vec<Server>, Vec<String>) {
    let lookups =
        hosts.iter().map(|host| async move { (host, timeout(RESOLVE_LIMIT, lookup_host(host.as_str())).await) });
    let mut servers: Vec<Server> = Vec::new();
    let mut problems = Vec::new();
    for (host, found) in futures_util::future::join_all(lookups).await {
        match found {
            Ok(Ok(addresses)) => {
                servers.extend(addresses.map(|address| Server { name: host.clone(), address }));
            }
            Ok(Err(error)) => problems.push(format!("{host}: {error}")),
            Err(_) => problems.push(format!("{host}: the name does not resolve within {} s", RESOLVE_LIMIT.as_secs())),
        }
    }
    (servers, problems)
}
