//! Opens a session with a PostgreSQL, for all who need one: the watcher, a fence, the hooks.

use super::postgres::{Place, SESSIONS};
use super::tls;
use crate::config::{SslMode, Superuser};
use std::time::Duration;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

/// How long each of a server's addresses may take to answer.
const CONNECT: Duration = Duration::from_secs(1);

/// Every cluster has it, and it takes connections. `CREATE DATABASE` does not like sessions in it, so it comes last.
const LAST_RESORT: &str = "template1";

/// How to log in at `place`.
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
        .connect_timeout(CONNECT)
        // Should the agent die in the middle of a question, the server shall not keep it.
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

/// What moves a session's bytes; it ends with the session.
pub(crate) type Driver = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A session, and the future that moves its bytes. Where the database does not exist, or does not let us in, it is one
/// in `template1`: what the agent asks and does is not about a database.
pub(crate) async fn connect(config: &Config, sslmode: SslMode) -> Result<(Client, Driver), tokio_postgres::Error> {
    let error = match open(config, sslmode).await {
        Err(error) if is_about_the_database(&error) && config.get_dbname() != Some(LAST_RESORT) => error,
        opened => return opened,
    };
    let mut elsewhere = config.clone();
    elsewhere.dbname(LAST_RESORT);
    match open(&elsewhere, sslmode).await {
        // The name of the database that is configured says more. What is the server's own matter does not depend on it.
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

/// It does not exist, takes no connections, or takes none of this role.
fn is_about_the_database(error: &tokio_postgres::Error) -> bool {
    // A server that starts or is full says so with other codes.
    let codes =
        [SqlState::INVALID_CATALOG_NAME, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE, SqlState::INSUFFICIENT_PRIVILEGE];
    error.code().is_some_and(|code| codes.contains(code))
}

/// pg_hba.conf may let a role into one database only.
pub(super) fn is_about_the_login(error: &tokio_postgres::Error) -> bool {
    let codes = [SqlState::INVALID_AUTHORIZATION_SPECIFICATION, SqlState::INVALID_PASSWORD];
    error.code().is_some_and(|code| codes.contains(code))
}
