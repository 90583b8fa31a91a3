//! Promises of Warden whose breach is never put down to a slow machine.

use std::fmt;

/// A broken promise of Warden: acknowledged rows lost, two primaries, a leader fenced, or a false claim called
/// verified. Any other failure of a scenario may be the machine's, and the scenario is tried again.
#[derive(Debug)]
pub struct Broken(String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Broken {}

/// Fails with [`Broken`] unless `kept`.
pub fn kept(kept: bool, why: impl FnOnce() -> String) -> anyhow::Result<()> {
    if kept { Ok(()) } else { Err(Broken(why()).into()) }
}

/// Whether the error is a broken promise.
pub fn is_broken(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Broken>().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_broken_promise_is_known_whatever_is_said_around_it() {
        let error = kept(false, || "two primaries".to_owned()).context("after 3 s").context("turn 7").unwrap_err();
        assert!(is_broken(&error));
        assert!(format!("{error:#}").ends_with("two primaries"));
        assert!(!is_broken(&anyhow::anyhow!("not within 60 s")));
    }
}
