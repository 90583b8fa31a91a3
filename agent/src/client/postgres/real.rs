//! A PostgreSQL server for one test. The user `postgres` runs it if the test runs as root.

use super::Place;
use crate::config::{SslMode, Superuser};
use rustix::process::{Pid, Signal};
use std::path::Path;
use std::process::Command;

pub struct Postgres {
    directory: tempfile::TempDir,
    port: u16,
}

impl Postgres {
    /// A server that listens on its socket. Its port is free, and `options` may make it listen there.
    pub fn start(options: &str) -> Self {
        let server = Self::nowhere();
        server.run("initdb -D $0/data -U postgres -A trust -E UTF8 --no-sync >/dev/null");
        server.start_again(options);
        server
    }

    /// A standby that streams from this one.
    pub fn standby(&self) -> Self {
        let server = Self::nowhere();
        let from = format!("-h {} -p {} -U postgres", self.path().display(), self.port);
        server.run(&format!("pg_basebackup {from} -D $0/data -R -X stream -c fast --no-sync >/dev/null"));
        server.start_again("");
        server
    }

    fn nowhere() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Self { directory: tempfile::tempdir().unwrap(), port };
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(server.path(), mode).unwrap();
        server
    }

    pub fn start_again(&self, options: &str) {
        let options = format!("-k $0 -p {} -c listen_addresses= -c fsync=off {options}", self.port);
        self.run(&format!("pg_ctl -w -D $0/data -l $0/log -o \"{options}\" start >/dev/null"));
    }

    pub fn run(&self, command: &str) {
        let script = format!("PATH=$PATH:$(echo /usr/lib/postgresql/*/bin | tr ' ' ':'); {command}");
        let root = rustix::process::getuid().is_root();
        let mut shell = if root { Command::new("runuser") } else { Command::new("sh") };
        if root {
            shell.args(["-u", "postgres", "--", "sh"]);
        }
        assert!(shell.arg("-c").arg(script).arg(self.path()).current_dir("/").status().unwrap().success(), "{command}");
    }

    pub fn sql(&self, statement: &str) {
        self.run(&format!(
            "psql -q -v ON_ERROR_STOP=1 -h $0 -p {} -U postgres -d template1 -c \"{statement}\"",
            self.port
        ));
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn place(&self) -> Place {
        Place::Socket(self.path().to_owned(), self.port)
    }

    pub const fn port(&self) -> u16 {
        self.port
    }

    pub fn signal(&self, signal: Signal) {
        let file = std::fs::read_to_string(self.path().join("data/postmaster.pid")).unwrap();
        let postmaster: i32 = file.lines().next().unwrap().parse().unwrap();
        rustix::process::kill_process(Pid::from_raw(postmaster).unwrap(), signal).unwrap();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if !self.path().join("data/postmaster.pid").exists() {
            return;
        }
        // A stopped process handles no other signal.
        self.signal(Signal::CONT);
        self.run("pg_ctl -D $0/data -m immediate -t 2 stop >/dev/null 2>&1 || true");
    }
}

/// A login that needs no password.
pub fn login(username: &str, database: &str) -> Superuser {
    let (username, database) = (username.to_owned(), database.to_owned());
    Superuser { username, password: None, sslmode: SslMode::Disable, database }
}
