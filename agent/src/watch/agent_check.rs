//! The present answer to HAProxy's agent-check of a server that is out of service.
//!
//! HAProxy shows that a server is in maintenance, but not whether an operator or its agent-check put it there. So the
//! agent asks the port of the agent-check itself. It answers a connection with one line (HAProxy's configuration
//! manual, `agent-check`).

use crate::client::haproxy::{ask, rows};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use warden_core::event::HaproxyServer;
use warden_core::haproxy::{OutOfService, ServerId};

/// Between two questions about the same server.
const QUESTION_INTERVAL: Duration = Duration::from_millis(250);

/// The limit for each step of a question.
const STEP_LIMIT: Duration = Duration::from_millis(250);

/// An answer is valid for this long.
const ANSWER_AGE_MAX: Duration = Duration::from_secs(2);

const _: () = assert!(QUESTION_INTERVAL.as_millis() + 3 * STEP_LIMIT.as_millis() < ANSWER_AGE_MAX.as_millis());

/// The agent reads at most this many bytes of an answer.
const ANSWER_MAX: u64 = 256;

/// The newest answers. Tasks of their own ask the questions.
#[derive(Default)]
pub(super) struct AgentChecks {
    known: BTreeMap<ServerId, (Option<String>, Instant)>,
    under_way: JoinSet<(ServerId, Option<String>)>,
}

impl AgentChecks {
    /// Sets `agent_check` of the servers that are out of service, and starts the next questions.
    pub(super) fn fill_in(&mut self, socket: &Path, servers: &mut [HaproxyServer]) {
        while let Some(answer) = self.under_way.try_join_next() {
            let Ok((id, answer)) = answer else { continue };
            self.known.insert(id, (answer, Instant::now()));
        }
        self.known.retain(|_, (_, at)| at.elapsed() < ANSWER_AGE_MAX);
        let mut due = Vec::new();
        // HAProxy says so itself if a name or another server keeps a server out of service.
        let may_be_by_check = |server: &&mut HaproxyServer| {
            let other_cause =
                matches!(server.out_of_service(), None | Some(OutOfService::Unresolved | OutOfService::Follows(_)));
            server.member.is_some() && !other_cause
        };
        for server in servers.iter_mut().filter(may_be_by_check) {
            let known = self.known.get(&server.id);
            server.agent_check = known.and_then(|(answer, _)| answer.clone());
            if known.is_none_or(|(_, at)| at.elapsed() >= QUESTION_INTERVAL) {
                due.push(server.id.clone());
            }
        }
        if self.under_way.is_empty() {
            for id in due {
                self.under_way.spawn(answer(socket.to_owned(), id));
            }
        }
    }
}

/// Asks the agent-check of this server, if it has one.
async fn answer(socket: PathBuf, id: ServerId) -> (ServerId, Option<String>) {
    let asking = async {
        let states = ask(&socket, &format!("show servers state {}", id.proxy), STEP_LIMIT).await.ok()?;
        let (address, port) = port_of(&states, &id.name)?;
        let stream = timeout(STEP_LIMIT, TcpStream::connect((address.as_str(), port))).await.ok()?.ok()?;
        let mut answer = Vec::new();
        // HAProxy reads one line.
        timeout(STEP_LIMIT, stream.take(ANSWER_MAX).read_to_end(&mut answer)).await.ok()?.ok()?;
        let answer = String::from_utf8_lossy(&answer);
        answer.lines().next().map(|line| line.trim().to_owned())
    };
    let answer = asking.await;
    (id, answer)
}

/// The address and port of a server's agent-check; `None` if it has none. The check uses the server's address if
/// it has no address of its own.
fn port_of(states: &str, server: &str) -> Option<(String, u16)> {
    let rows = rows(states).ok()?;
    let row = rows.iter().find(|row| row.get("srv_name").copied() == Some(server))?;
    // Flag 4: enabled; 2: configured; 16: an agent-check (HAProxy's management guide, `srv_agent_state`).
    let state: u32 = row.get("srv_agent_state")?.parse().ok()?;
    let port: u16 = row.get("srv_agent_port")?.parse().ok()?;
    if state & 6 != 6 || port == 0 {
        return None;
    }
    let named = row.get("srv_agent_addr").filter(|address| **address != "-");
    let address = named.or_else(|| row.get("srv_addr"))?;
    Some(((*address).to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: &str = "1\n\
        # be_id be_name srv_id srv_name srv_addr srv_port srv_agent_state srv_agent_addr srv_agent_port\n\
        2 pg 1 a 10.0.0.1 5432 22 - 9010\n2 pg 2 b 10.0.0.2 5432 0 - 8008\n2 pg 3 c 10.0.0.3 5432 22 10.0.0.9 9010\n";

    #[test]
    fn the_address_of_an_agent_check_is_its_own_or_the_servers() {
        assert_eq!(port_of(STATES, "a"), Some(("10.0.0.1".to_owned(), 9010)));
        assert_eq!(port_of(STATES, "b"), None, "it has none");
        assert_eq!(port_of(STATES, "c"), Some(("10.0.0.9".to_owned(), 9010)));
        assert_eq!(port_of(STATES, "d"), None);
        assert_eq!(port_of("", "a"), None);
    }
}
