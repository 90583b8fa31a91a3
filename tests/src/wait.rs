//! Waiting for a condition, with a limit and with the last reason why it does not hold.

use std::time::{Duration, Instant};

/// The pause between two checks.
const PAUSE: Duration = Duration::from_millis(250);

/// Calls `check` until it returns `Ok`. Fails after `limit` with its last error, under the heading `what`.
pub async fn until<T, F>(what: &str, limit: Duration, mut check: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<T>>,
{
    // A busy machine needs longer for everything. A condition that never holds then fails a little later.
    let limit = (limit * 3).min(limit + Duration::from_secs(120));
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
