//! `warden gate` as Patroni calls it: an error of the gate itself never prevents a promotion.

// clippy.toml allows `unwrap` in tests, but not in their helpers.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn gate(yaml: Option<&str>) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("warden.yml");
    if let Some(yaml) = yaml {
        std::fs::write(&path, yaml).unwrap();
    }
    Command::new(env!("CARGO_BIN_EXE_warden")).arg("gate").arg("--config").arg(&path).output().unwrap()
}

#[test]
fn a_wrong_configuration_never_prevents_a_promotion_and_the_gate_reports_it() {
    let router = "scope: s\nzookeeper: {hosts: 127.0.0.1:1}\nhaproxy: {socket: /s}\n";
    let no_login = "scope: s\nname: a\nzookeeper: {hosts: 127.0.0.1:1}\nnode: {api: 127.0.0.1:1}\n";
    let cases = [
        (None, "cannot be read"),
        (Some("scope: ["), "warden.yml:1"),
        (Some("scope: s\nfoo: 1\n"), "foo"),
        (Some(router), "no node section"),
        (Some(no_login), "no superuser"),
    ];
    for (yaml, words) in cases {
        let output = gate(yaml);
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{yaml:?}: {told}");
        assert!(told.contains(words) && told.contains("warden gate: "), "{yaml:?}: {told}");
    }
}

#[test]
fn the_writer_of_an_audit_entry_waits_for_zookeeper() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("warden.yml");
    std::fs::write(&path, "scope: s\nname: a\nzookeeper: {hosts: 127.0.0.1:1}\nnode: {api: 127.0.0.1:1}\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_warden"));
    let mut writer = command.args(["gate", "--write-down", "{}", "--config"]).arg(&path).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    let ended = writer.try_wait().unwrap();
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(ended, None, "the writer tries for a minute");
}

#[test]
fn a_wrong_mode_of_fencing_does_not_open_the_gate_and_stops_the_agent() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("warden.yml");
    let yaml = "scope: s\nname: a\nzookeeper: {hosts: 127.0.0.1:1}\nnode: {api: 127.0.0.1:1}\nfencing: {mode: of}\n";
    std::fs::write(&path, yaml).unwrap();
    let warden = |command: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_warden")).arg(command).arg("--config").arg(&path).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for command in ["run", "check-config"] {
        let (code, told) = warden(command);
        assert!(code == Some(3) && told.contains(":5: fencing.mode: \"of\""), "{command}: {code:?}, {told}");
        assert!(told.contains("enforce, observe or off"), "{command}: {told}");
    }
    // The gate continues until it finds no superuser.
    let (code, told) = warden("gate");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("as with enforce") && told.contains("no superuser to ask the other members with"), "{told}");
}

#[test]
fn the_gate_is_silent_with_fencing_off_and_reports_with_observe() {
    let yaml = |mode: &str| {
        format!(
            "scope: s\nname: a\nzookeeper: {{hosts: 127.0.0.1:1}}\nnode: {{api: 127.0.0.1:1}}\n\
             fencing: {{mode: {mode}}}\n"
        )
    };
    let output = gate(Some(&yaml("off")));
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    let output = gate(Some(&yaml("observe")));
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.contains("no superuser to ask the other members with"), "{told}");
}
