//! Changes that a test makes and undoes, also after a failure in between.

/// Runs `body`, and then `undo`, also after a failure of `body`. If both fail, the error is that of `body` and mentions
/// the other.
pub async fn undone_by<T>(
    body: impl Future<Output = anyhow::Result<T>>,
    undo: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<T> {
    let done = body.await;
    match (done, undo.await) {
        (Ok(value), Ok(())) => Ok(value),
        (Err(error), Ok(())) | (Ok(_), Err(error)) => Err(error),
        (Err(error), Err(left)) => Err(error.context(format!("this could not be undone either: {left:#}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[tokio::test]
    async fn what_was_done_is_undone_also_after_a_failure_and_the_first_error_is_kept() {
        for (done, left, expected) in [
            (None, None, None),
            (Some("no rows"), None, Some("no rows")),
            (None, Some("still paused"), Some("still paused")),
            (Some("no rows"), Some("still paused"), Some("this could not be undone either: still paused: no rows")),
        ] {
            let mut undone = false;
            let body = async { done.map_or(Ok(7), |error| Err(anyhow!(error))) };
            let undo = async {
                undone = true;
                left.map_or(Ok(()), |error| Err(anyhow!(error)))
            };
            let outcome = undone_by(body, undo).await;
            assert!(undone, "{done:?}");
            assert_eq!(
                outcome.map_err(|error| format!("{error:#}")),
                expected.map_or(Ok(7), |text| Err(text.to_owned()))
            );
        }
    }
}
