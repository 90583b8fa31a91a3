//! The gate's questions to the server of another member: does it take writes, and does it stop?

use super::connect::{ConnectError, Refusal, Server, ask, identify, try_connect};
use super::ladder;
use super::session::CONNECT_LIMIT;
use crate::client::postgres::Place;
use crate::config::Superuser;
use std::time::Duration;
use warden_core::event::FenceOutcome;
use warden_core::rules::gate::Found;
use warden_core::types::SystemId;

/// Asks a member's server whether it takes writes of the cluster with this system identifier. `limit` is the time limit
/// for opening a session.
pub async fn ask_old_primary(place: &Place, login: &Superuser, cluster: Option<SystemId>, limit: Duration) -> Found {
    match try_connect(place, login, limit).await {
        Err(ConnectError::Refused(Refusal::NoListener | Refusal::NoSocket)) => {
            Found::Harmless("no process listens there".to_owned())
        }
        Err(ConnectError::Refused(Refusal::Starting)) => Found::Starting,
        Err(ConnectError::Refused(Refusal::Stopping)) => Found::Stopping,
        Err(ConnectError::Silent | ConnectError::Reset) => Found::Silent,
        // The gate asks again, and a slot may be free then.
        Err(ConnectError::AuthFailed(why) | ConnectError::TooManyConnections(why)) => Found::NoLogin(why),
        Ok(session) => match (identify(session).await, cluster) {
            (Some((true, _)), _) => Found::Harmless("the server is in recovery".to_owned()),
            // Addresses are reused: another cluster's server must not be stopped.
            (Some((false, there)), Some(cluster)) if cluster != there => {
                Found::Harmless("the server belongs to another cluster".to_owned())
            }
            (Some((false, _)), Some(_)) => {
                Found::Writable("the server accepts sessions and is not in recovery".to_owned())
            }
            (Some((false, _)), None) => Found::NoLogin(
                "the gate cannot read the cluster's system identifier; the server may belong to another cluster"
                    .to_owned(),
            ),
            (None, _) => Found::Silent,
        },
    }
}

/// Whether the server accepts this role as a superuser, as a fence needs. `None` without an answer.
pub async fn is_superuser(place: &Place, login: &Superuser) -> Option<bool> {
    let session = try_connect(place, login, CONNECT_LIMIT).await.ok()?;
    ask(session, "SHOW is_superuser", |row| Some(row.get(0)? == "on")).await
}

/// Stops a server that takes writes, by [`ask_old_primary`]. Returns the step that confirmed it; the error is the
/// server's state if it is not confirmed.
pub async fn stop_old_primary(place: &Place, login: &Superuser, limit: Duration) -> Result<&'static str, Found> {
    let server = Server { connect_limit: limit, ..Server::at(place, login) };
    match ladder::stop(&server, None).await.0 {
        FenceOutcome::Confirmed { by, .. } => Ok(by),
        FenceOutcome::Waiting => Err(Found::Silent),
        FenceOutcome::Failed(why) | FenceOutcome::Withdrawn(why) => Err(Found::Writable(why)),
        FenceOutcome::Observed => Err(Found::Writable("nothing was done".to_owned())),
    }
}
