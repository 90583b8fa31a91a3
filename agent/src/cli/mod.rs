//! The command line: one file per subcommand.
//!
//! Exit codes, documented in the README: 0 done; 1 failed at run time; 2 wrong command line (clap's);
//! 3 wrong configuration; 4 nothing answered (`status`); 5 another server may take writes (`gate`).

mod audit;
mod before_stop;
mod check_config;
mod client;
mod fence;
mod gate;
mod health;
mod log_level;
mod pretty;
mod run;
mod status;

use crate::config::{Config, ConfigError, DEFAULT_PATH};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Done.
pub const OK: u8 = 0;
/// Failed at run time.
pub const FAILED: u8 = 1;
/// Wrong configuration.
pub const BAD_CONFIG: u8 = 3;
/// Nothing answered.
pub const NO_ANSWER: u8 = 4;
/// The gate does not let the candidate pass.
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
    /// Print the effective configuration, secrets masked, or say what is wrong with it
    CheckConfig,
    /// Show the cluster as an agent sees it, or ask ZooKeeper and Patroni where no agent answers
    Status(status::Args),
    /// Whether the agent on this machine is healthy: exit code 0 if so
    Health,
    /// Stop a member's PostgreSQL from taking writes, until it is unfenced
    Fence(fence::FenceArgs),
    /// Take back a fence that a person asked for
    Unfence(fence::UnfenceArgs),
    /// What the agent on this machine would do now, and why, without doing it
    Plan,
    /// Who was fenced, unfenced or released, when, why, and what came of it
    Audit(audit::Args),
    /// Patroni's pre_promote hook: wait until no other member can be taking writes
    Gate(gate::Args),
    /// Patroni's before_stop hook: have new connections wait before PostgreSQL refuses them
    BeforeStop,
    /// Change the log level of the agent on this machine
    LogLevel(log_level::Args),
}

/// Why a command did not do what it should; each has its exit code.
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

/// Does what the command line says.
pub fn main() -> ExitCode {
    let Cli { config, command } = Cli::parse();
    let done = match command {
        Command::Run => run::main(&config),
        Command::CheckConfig => check_config::main(&config),
        Command::Status(args) => status::main(&config, &args),
        Command::Health => health::main(&config),
        Command::Fence(args) => fence::fence(&config, &args),
        Command::Unfence(args) => fence::unfence(&config, &args),
        Command::Plan => fence::plan(&config),
        Command::Audit(args) => audit::main(&config, &args),
        Command::Gate(args) => gate::main(&config, args),
        Command::BeforeStop => {
            before_stop::main(&config);
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

/// The configuration, for a command.
fn load(path: &std::path::Path) -> Result<Config, Failure> {
    Ok(Config::load(path)?)
}

/// A runtime for a command.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    use anyhow::Context;
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the asynchronous runtime")
}
