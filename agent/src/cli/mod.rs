//! The command line: one file per subcommand.
//!
//! `agent/docs/reference/cli.md` documents the exit codes: 0 success; 1 failure at run time; 2 wrong command line (by
//! clap); 3 wrong configuration; 4 no answer (`status`); 5 refused (`gate`). `archive verify` has its own.

mod archive;
mod audit;
mod check_config;
mod client;
mod fence;
mod health;
mod hooks;
mod log_level;
mod pretty;
mod run;
mod status;

use crate::config::{Config, ConfigError, DEFAULT_PATH};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Success.
pub const OK: u8 = 0;
/// Failure at run time.
pub const FAILED: u8 = 1;
/// Wrong configuration.
pub const BAD_CONFIG: u8 = 3;
/// No agent, no ZooKeeper server and no Patroni answered.
pub const NO_ANSWER: u8 = 4;
/// The gate refuses the promotion.
pub const REFUSED: u8 = 5;

/// A sidecar for unmodified Patroni on ZooKeeper behind HAProxy.
#[derive(Debug, Parser)]
#[command(name = "warden", version, about, long_about = None, disable_help_subcommand = true)]
struct Cli {
    /// Configuration file
    #[arg(long, short, global = true, env = "WARDEN_CONFIG", default_value = DEFAULT_PATH, value_name = "FILE")]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent
    Run,
    /// Print the effective configuration with secrets masked, or the error in it
    CheckConfig,
    /// Show the cluster as an agent sees it; ask ZooKeeper, Patroni and PostgreSQL if no agent answers
    Status(status::Args),
    /// Check the health of the agent on this machine: exit code 0 if it is healthy
    Health,
    /// Keep a member's PostgreSQL from taking writes until it is unfenced
    Fence(fence::FenceArgs),
    /// Take back a fence of the operator
    Unfence(fence::UnfenceArgs),
    /// Print the actions that the agent on this machine would take now, and why; change nothing
    Plan,
    /// Print the audit trail: each fence, unfence and release with its time, reason, facts and outcome
    Audit(audit::Args),
    /// Verify archives of WAL
    #[command(subcommand)]
    Archive(archive::Command),
    /// Patroni's pre_promote hook: wait until no other member can be taking writes
    Gate(hooks::gate::Args),
    /// Patroni's before_stop hook: make new connections wait before PostgreSQL refuses them
    BeforeStop,
    /// Change the log level of the agent on this machine
    LogLevel(log_level::Args),
}

/// The failure of a command; each kind has its exit code.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Config(#[from] ConfigError),
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
    #[error("{0}")]
    NoAnswer(String),
    #[error("{0}")]
    Refused(String),
}

impl Failure {
    const fn code(&self) -> u8 {
        match self {
            Self::Config(_) => BAD_CONFIG,
            Self::Failed(_) => FAILED,
            Self::NoAnswer(_) => NO_ANSWER,
            Self::Refused(_) => REFUSED,
        }
    }
}

/// Runs the command of the command line.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let Cli { config, command } = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && archive::is_verify(&arguments) => {
            drop(error.print());
            return ExitCode::from(archive::BAD_COMMAND_LINE);
        }
        Err(error) => error.exit(),
    };
    let done = match command {
        Command::Run => run::main(&config),
        Command::CheckConfig => check_config::main(&config),
        Command::Status(args) => status::main(&config, &args),
        Command::Health => health::main(&config),
        Command::Fence(args) => fence::fence(&config, &args),
        Command::Unfence(args) => fence::unfence(&config, &args),
        Command::Plan => fence::plan(&config),
        Command::Audit(args) => audit::main(&config, &args),
        Command::Archive(command) => return archive::main(&command),
        Command::Gate(args) => hooks::gate::main(&config, args),
        Command::BeforeStop => {
            hooks::before_stop::main(&config);
            Ok(())
        }
        Command::LogLevel(args) => log_level::main(&config, &args),
    };
    match done {
        Ok(()) => ExitCode::from(OK),
        Err(failure) => {
            eprintln!("warden: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Loads the configuration for a command.
fn load(path: &std::path::Path) -> Result<Config, Failure> {
    Ok(Config::load(path)?)
}

/// Builds the runtime for a command.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context;
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the asynchronous runtime")
}
