//! Opens a session with PostgreSQL, for the watcher, the fences and the hooks.

use super::{Place, SESSIONS};
use crate::client::tls;
use crate::config::{SslMode, Superuser};
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

/// The limit for a connection to each address of a server.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// The database to use if the configured one accepts no session. Every cluster has it. Sessions in it can make
/// `CREATE DATABASE` fail, so it comes last.
const FALLBACK_DATABASE: &str = "template1";

/// The settings of a session with the server at `place`.
pub(crate) fn client_config(place: &Place, login: &Superuser) -> Config {
    let mut config = Config::new();
    match place {
        Place::Socket(directory, port) => config.host_path(directory).port(*port),
        Place::Tcp(host, port) => config.host(host).port(*port),
    };
    config
        .user(&login.username)
        .dbname(&login.database)
        .application_name(SESSIONS)
        .connect_timeout(CONNECT_LIMIT)
        // The server ends the session's query if the agent dies in the middle of it.
        .options("-c statement_timeout=5s -c idle_in_transaction_session_timeout=5s")
        .ssl_mode(match place.sslmode(login) {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            SslMode::Require => tokio_postgres::config::SslMode::Require,
        });
    if let Some(password) = &login.password {
        config.password(password.reveal());
    }
    config
}

/// The future that moves the bytes of a session. It ends with the session.
pub(crate) type Driver = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Opens a session, and returns it with its [`Driver`]. The session is in `template1` if the database does not exist or
/// refuses the agent. The agent's statements depend on no database.
pub(crate) async fn connect(config: &Config, sslmode: SslMode) -> Result<(Client, Driver), tokio_postgres::Error> {
    let error = match open(config, sslmode).await {
        Err(error) if is_about_the_database(&error) && config.get_dbname() != Some(FALLBACK_DATABASE) => error,
        opened => return opened,
    };
    let mut elsewhere = config.clone();
    elsewhere.dbname(FALLBACK_DATABASE);
    match open(&elsewhere, sslmode).await {
        // The first error names the configured database. An error of the server itself does not depend on the database.
        Err(second) if is_about_the_database(&second) || is_about_the_login(&second) => Err(error),
        opened => opened,
    }
}

async fn open(config: &Config, sslmode: SslMode) -> Result<(Client, Driver), tokio_postgres::Error> {
    if sslmode != SslMode::Disable
        && let Ok(tls) = tls::unverified()
    {
        let (client, connection) = config.connect(tls).await?;
        return Ok((client, Box::pin(async move { drop(connection.await) })));
    }
    let (client, connection) = config.connect(NoTls).await?;
    Ok((client, Box::pin(async move { drop(connection.await) })))
}

/// Whether the database does not exist, accepts no connections, or none of this role.
fn is_about_the_database(error: &tokio_postgres::Error) -> bool {
    // A server that starts, or has too many connections, answers with other codes.
    let codes =
        [SqlState::INVALID_CATALOG_NAME, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, SqlState::INSUFFICIENT_PRIVILEGE];
    error.code().is_some_and(|code| codes.contains(code))
}

/// Whether the server refuses the login. pg_hba.conf may allow a role in one database only.
pub(crate) fn is_about_the_login(error: &tokio_postgres::Error) -> bool {
    let codes = [SqlState::INVALID_AUTHORIZATION_SPECIFICATION, SqlState::INVALID_PASSWORD];
    error.code().is_some_and(|code| codes.contains(code))
}
