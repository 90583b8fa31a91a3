//! Parsers of addresses, of ZooKeeper's hosts, and of modes; the name of this machine.

use super::FencingMode;
use super::file::Hosts;

/// Parses `enforce`, `observe` or `off`.
pub(super) fn parse_mode(text: &str) -> Option<FencingMode> {
    match text {
        "enforce" => Some(FencingMode::Enforce),
        "observe" => Some(FencingMode::Observe),
        "off" => Some(FencingMode::Off),
        _ => None,
    }
}

/// Splits `a:2181,b:2181/chroot` into `host:port` texts and the chroot. The default port is 2181. The error is the
/// problem, as text.
pub(super) fn split_hosts(hosts: &Hosts) -> Result<(Vec<String>, String), String> {
    let joined = hosts.joined();
    let (list, chroot) = match joined.find('/') {
        Some(at) => joined.split_at(at),
        None => (joined.as_str(), ""),
    };
    let chroot = chroot.trim_end_matches('/');
    if chroot.contains(',') {
        return Err(format!("the chroot does not stand at the end: {joined:?}"));
    }
    let mut split = Vec::new();
    for host in list.split(',').map(str::trim).filter(|host| !host.is_empty()) {
        if host.contains(':') {
            let (name, port) = split_address(host).ok_or_else(|| format!("{host:?} is not host:port"))?;
            split.push(format!("{name}:{port}"));
        } else {
            split.push(format!("{host}:2181"));
        }
    }
    if split.is_empty() { Err("names no server".to_owned()) } else { Ok((split, chroot.to_owned())) }
}

/// Splits `host:port`. It returns the first of several hosts, as in `listen: '127.0.0.1,::1:5432'`, and `localhost` for
/// a wildcard.
pub(super) fn split_address(address: &str) -> Option<(String, u16)> {
    let (hosts, port) = address.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let host = hosts.split(',').next().map(str::trim).filter(|host| !host.is_empty())?;
    let host = match host {
        "*" | "0.0.0.0" | "::" | "[::]" => "localhost",
        host => host,
    };
    Some((host.to_owned(), port))
}

/// The host name of this machine or container.
pub(super) fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
