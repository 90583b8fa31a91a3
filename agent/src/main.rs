//! The `warden` command. The code is in the library, so that tests can use it.

fn main() -> std::process::ExitCode {
    warden::cli::main()
}
