//! The log: text or JSON on stderr. The operator can change its level while the agent runs.

pub mod story;

use crate::config::log_filter::{directives, parse_filter};
use crate::config::{LogConfig, LogFormat};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Changes the log level of a running agent.
#[derive(Clone, Debug)]
pub struct LogControl(reload::Handle<EnvFilter, Registry>);

/// Starts the log. A second call in the same process has no effect, and neither has the control that it returns.
pub fn start(config: &LogConfig) -> LogControl {
    let filter = parse_filter(&config.level).unwrap_or_else(|_| EnvFilter::new(directives("info")));
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let _already_started = match config.format {
        LogFormat::Human => registry.with(fmt::layer().with_writer(std::io::stderr).with_ansi(false)).try_init(),
        LogFormat::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
            registry.with(layer).try_init()
        }
    };
    LogControl(handle)
}

impl LogControl {
    /// Uses `filter` from now on. The error is the problem, as text.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let parsed = parse_filter(filter)?;
        self.0.reload(parsed).map_err(|error| format!("the agent could not change the log filter: {error}"))
    }
}
