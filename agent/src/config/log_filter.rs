//! The log's filter, as it is written in `log.level` and sent to `PUT /api/v1/log-level`.

use tracing_subscriber::EnvFilter;

/// The ZooKeeper library logs the session's password when it connects, and every retry of its own. What is worth
/// knowing of it is in our own events. So is a certificate that is not trusted, which the verifier logs at each
/// question to a Patroni.
const SILENCED: &str = "zookeeper_async=off,rustls_platform_verifier=off";

/// The PostgreSQL library tells each notice that a server sends, and that servers went away: it is in our own events too.
/// It keeps quiet unless the filter names it.
const QUIET: &str = "tokio_postgres";

/// Reads a filter as `RUST_LOG` has it. The error says what is wrong with it.
pub fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    if text.trim().is_empty() {
        return Err("the log filter is empty".to_owned());
    }
    // A single word is read as the name of a module by the library, and nothing at all is logged then.
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.contains('=')) {
        if !matches!(directive.to_ascii_lowercase().as_str(), "error" | "warn" | "info" | "debug" | "trace" | "off") {
            return Err(format!("{directive:?} is not a level: use error, warn, info, debug, trace, or module=level"));
        }
    }
    EnvFilter::builder().parse(directives(text)).map_err(|error| format!("{text:?} is not a log filter: {error}"))
}

/// The filter with what is added to it.
pub(crate) fn directives(text: &str) -> String {
    let general = text.split(',').map(str::trim).rfind(|directive| !directive.contains('='));
    // It is not to be louder than everything else.
    let loud = general.is_some_and(|level| ["info", "debug", "trace"].contains(&level.to_ascii_lowercase().as_str()));
    let quiet = if loud && !text.contains(QUIET) { format!(",{QUIET}=warn") } else { String::new() };
    format!("{text}{quiet},{SILENCED}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_postgresql_library_is_heard_only_where_it_is_named_and_never_louder_than_the_rest() {
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
