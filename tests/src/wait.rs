//! Waiting for something to become true, with a limit and with the last reason why it is not.

use std::time::{Duration, Instant};

/// Looks again after this long.
const PAUSE: Duration = Duration::from_millis(250);

/// Asks `check` until it is `Ok`; after `limit` fails with its last error, under the heading `what`.
pub async fn until<T, F>(what: &str, limit: Duration, mut check: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    let started = Instant::now();
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(error) if started.elapsed() >= limit => {
                return Err(error.context(format!("{what}: not within {} s", limit.as_secs())));
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
