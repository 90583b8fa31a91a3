//! `warden archive`: the archive of WAL.

mod pretty;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

/// `archive verify`: wrong command line, because 2 says that the archive could not be judged.
pub(super) const BAD_COMMAND_LINE: u8 = 64;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Verify every record of the WAL in directories, and say from where to where a restore is possible
    Verify(verify::Args),
}

pub(super) fn main(command: &Command) -> ExitCode {
    match command {
        Command::Verify(args) => verify::main(args),
    }
}

/// A text for one line: names of files may have control characters.
fn clean(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

/// Whether a command line that clap refuses is one of `archive verify`.
pub(super) fn is_verify(arguments: &[OsString]) -> bool {
    let mut words = arguments.iter().skip(1);
    let mut subcommands = std::iter::from_fn(|| {
        loop {
            let word = words.next()?;
            if word == "-c" || word == "--config" {
                words.next();
            } else if !word.to_string_lossy().starts_with('-') {
                return Some(word);
            }
        }
    });
    subcommands.next().is_some_and(|word| word == "archive") && subcommands.next().is_some_and(|word| word == "verify")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_of_verify_is_known_with_the_options_of_the_whole_command() {
        let is = |line: &str| is_verify(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in ["warden archive verify", "warden -c x archive verify --no", "warden --config=x archive -q verify"]
        {
            assert!(is(line), "{line}");
        }
        for line in ["warden archive", "warden verify", "warden fence archive verify", "warden -c archive verify"] {
            assert!(!is(line), "{line}");
        }
    }
}
