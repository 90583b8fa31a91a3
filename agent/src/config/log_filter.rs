//! The log filter of `log.level` and of `PUT /api/v1/log-level`.

use tracing_subscriber::EnvFilter;

/// These libraries never log. The ZooKeeper library would log the password of each session, and each of its retries.
/// The TLS verifier would log an untrusted certificate at each question to a Patroni. The agent's own events have both.
const SILENCED: &str = "zookeeper_async=off,rustls_platform_verifier=off";

/// The PostgreSQL library logs from level `warn` only, unless the filter names it. It would log each notice of a server
/// and each lost connection, which the agent's own events have.
const QUIET: &str = "tokio_postgres";

/// Parses a filter in the syntax of `RUST_LOG`. The error is the problem, as text.
pub fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    if text.trim().is_empty() {
        return Err("the log filter is empty".to_owned());
    }
    // The library takes any other word for the name of a module, and then logs nothing.
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.contains('=')) {
        if !matches!(directive.to_ascii_lowercase().as_str(), "error" | "warn" | "info" | "debug" | "trace" | "off") {
            return Err(format!("{directive:?} is not a level: use error, warn, info, debug, trace, or module=level"));
        }
    }
    EnvFilter::builder().parse(directives(text)).map_err(|error| format!("{text:?} is not a log filter: {error}"))
}

/// The filter with the directives for the libraries.
pub(crate) fn directives(text: &str) -> String {
    let general = text.split(',').map(str::trim).rfind(|directive| !directive.contains('='));
    // The library must not log more than the rest of the process.
    let loud = general.is_some_and(|level| ["info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str()));
    let quiet = if loud && !text.contains(QUIET) { format!(",{QUIET}=warn") } else { String::new() };
    format!("{text}{quiet},{SILENCED}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_postgresql_library_logs_only_if_the_filter_names_it_and_never_more_than_the_rest() {
        for (text, expected) in [
            ("info", "info,tokio_postgres=warn,zookeeper_async=off,rustls_platform_verifier=off"),
            (
                "warden=trace, DEBUG",
                "warden=trace, DEBUG,tokio_postgres=warn,zookeeper_async=off,rustls_platform_verifier=off",
            ),
            ("info,tokio_postgres=debug", "info,tokio_postgres=debug,zookeeper_async=off,rustls_platform_verifier=off"),
            ("error", "error,zookeeper_async=off,rustls_platform_verifier=off"),
            ("warden=debug", "warden=debug,zookeeper_async=off,rustls_platform_verifier=off"),
        ] {
            assert_eq!(directives(text), expected);
            assert!(parse_filter(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_instead_of_silencing_the_log() {
        for good in ["info", "DEBUG", "warn,warden=trace", "warden::act=debug", "off"] {
            assert!(parse_filter(good).is_ok(), "{good}");
        }
        for bad in ["", "blah", "debgu", "info,loud", "warden=loud", "a=b=c"] {
            assert!(parse_filter(bad).is_err(), "{bad}");
        }
    }
}
