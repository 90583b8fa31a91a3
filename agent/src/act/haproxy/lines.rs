//! The `server` lines of HAProxy's configuration, and the difference between two configurations.
//!
//! The agent reads the text with which HAProxy starts, so a server that is added at runtime gets the same arguments for
//! any template. A line that the agent cannot read for certain is an error, and HAProxy is reloaded.

use std::collections::BTreeMap;
use warden_core::haproxy::ServerId;

/// A `server` line, with the arguments of `default-server` in front of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The proxy and the name.
    pub id: ServerId,
    /// A name or an address.
    pub host: String,
    /// The port of PostgreSQL, or of a pooler in front of it.
    pub port: u16,
    /// The other words of the line.
    pub arguments: Vec<String>,
}

impl Server {
    /// The word after the last occurrence of `word`.
    pub fn value(&self, word: &str) -> Option<&str> {
        let at = self.arguments.iter().rposition(|argument| argument == word)?;
        self.arguments.get(at + 1).map(String::as_str)
    }

    /// Whether the arguments contain this word.
    pub fn has(&self, word: &str) -> bool {
        self.arguments.iter().any(|argument| argument == word)
    }

    /// Whether it is a prepared server without a member.
    pub fn is_spare(&self) -> bool {
        self.has("disabled")
    }

    /// The arguments that HAProxy cannot change at runtime.
    fn fixed(&self) -> Vec<&str> {
        let mut words = self.arguments.iter().map(String::as_str);
        let mut fixed = Vec::new();
        while let Some(word) = words.next() {
            if word != "disabled" {
                fixed.push(word);
            }
            if word == "maxconn" {
                words.next();
            }
        }
        fixed
    }

    /// The arguments of `add server PROXY/NAME`, with this address. HAProxy resolves no names for a server that is
    /// added, and refuses the arguments about resolution.
    pub fn as_added(&self, address: &str) -> String {
        const RESOLUTION: [&str; 3] = ["resolvers", "resolve-opts", "init-addr"];
        let mut words = self.arguments.iter().map(String::as_str);
        let mut text = address.to_owned();
        while let Some(word) = words.next() {
            if RESOLUTION.contains(&word) || word == "weight" {
                words.next();
            } else {
                text.push(' ');
                text.push_str(word);
            }
        }
        text
    }
}

/// The difference between two configurations.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// New servers.
    pub added: Vec<Server>,
    /// Servers of both, before and now. Address and limit may differ.
    pub kept: Vec<(Server, Server)>,
    /// Servers of the first configuration only.
    pub removed: Vec<ServerId>,
}

/// Compares two configurations. The error names a difference other than servers, their addresses and limits.
pub fn difference(from: &str, to: &str) -> Result<Difference, String> {
    let (mut from, to) = (Lines::read(from)?, Lines::read(to)?);
    if from.rest != to.rest {
        let other = to.rest.iter().zip(&from.rest).find(|(to, from)| to != from).map(|(to, _)| to);
        return Err(match other.or_else(|| to.rest.last()) {
            Some(line) => format!("the configuration differs at {line:?}"),
            None => "the configuration differs".to_owned(),
        });
    }
    let mut difference = Difference::default();
    for (id, server) in to.servers {
        match from.servers.remove(&id) {
            None => difference.added.push(server),
            Some(before) if before.fixed() != server.fixed() => {
                return Err(format!("server {id} is configured differently"));
            }
            Some(before) => difference.kept.push((before, server)),
        }
    }
    difference.removed = from.servers.into_keys().collect();
    Ok(difference)
}

/// The servers that a configuration names. The error names the line that the agent cannot read for certain.
pub fn servers(text: &str) -> Result<Vec<Server>, String> {
    Ok(Lines::read(text)?.servers.into_values().collect())
}

/// The keywords that start a section (HAProxy's configuration manual, 2.1 and 3 to 12).
const SECTIONS: [&str; 17] = [
    "global",
    "defaults",
    "frontend",
    "backend",
    "listen",
    "peers",
    "resolvers",
    "mailers",
    "userlist",
    "program",
    "cache",
    "ring",
    "log-forward",
    "http-errors",
    "fcgi-app",
    "log-profile",
    "traces",
];

/// A configuration: its servers, and all other lines in order.
struct Lines {
    servers: BTreeMap<ServerId, Server>,
    rest: Vec<String>,
}

impl Lines {
    fn read(text: &str) -> Result<Self, String> {
        let mut lines = Self { servers: BTreeMap::new(), rest: Vec::new() };
        // The arguments of `default-server` in the last `defaults`, and in this section.
        let (mut inherited, mut own): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        let (mut section, mut proxy) = (String::new(), None);
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
            let Some(first) = words.first().copied() else { continue };
            if SECTIONS.contains(&first) {
                first.clone_into(&mut section);
                let is_proxy = ["backend", "listen", "frontend"].contains(&first);
                if (is_proxy && words.len() > 2) || (first == "defaults" && words.len() > 1) {
                    return Err(format!("{line:?} inherits from a named section"));
                }
                if first == "defaults" {
                    inherited.clear();
                }
                own = if is_proxy { inherited.clone() } else { Vec::new() };
                proxy = words.get(1).filter(|_| is_proxy).map(|name| (*name).to_owned());
            }
            let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            let unclear = || {
                let quoted = words.iter().any(|word| word.contains(['"', '\'', '\\', '$']));
                quoted.then(|| format!("{line:?} is quoted"))
            };
            match (first, &proxy) {
                ("default-server", _) => {
                    if let Some(why) = unclear() {
                        return Err(why);
                    }
                    let more = owned(words.get(1..).unwrap_or_default());
                    if section == "defaults" { inherited.extend(more) } else { own.extend(more) }
                }
                ("server", Some(proxy)) => {
                    if let Some(why) = unclear() {
                        return Err(why);
                    }
                    let (Some(name), Some(address)) = (words.get(1), words.get(2)) else {
                        return Err(format!("{line:?} names no server"));
                    };
                    let (host, port) = address.rsplit_once(':').ok_or_else(|| format!("{line:?} has no port"))?;
                    let id = ServerId { proxy: proxy.clone(), name: (*name).to_owned() };
                    let arguments = [own.clone(), owned(words.get(3..).unwrap_or_default())].concat();
                    let server = Server {
                        host: host.trim_matches(['[', ']']).to_owned(),
                        port: port.parse().map_err(|_| format!("{line:?} has no port"))?,
                        id: id.clone(),
                        arguments,
                    };
                    lines.servers.insert(id, server);
                    continue;
                }
                ("server-template", _) => return Err(format!("{line:?} creates servers with other names")),
                _ => {}
            }
            lines.rest.push(words.join(" "));
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "global\n  maxconn 10\ndefaults\n  default-server inter 3s\nlisten pg\n  bind *:5432\n  \
        default-server fall 2 init-addr last,libc # as it is\n  server a pg-a:5432 maxconn 100 check port 8008\n  \
        server wait 127.0.0.1:1 backup\nbackend reads\n  server a pg-a:5432 check\n";

    fn id(proxy: &str, name: &str) -> ServerId {
        ServerId { proxy: proxy.to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_server_is_added_with_the_arguments_that_it_inherits() {
        let three = TWO.replace("  server wait", "  server b 10.0.0.2:5432 maxconn 50 check weight 7\n  server wait");
        let difference = difference(TWO, &three).unwrap();
        assert_eq!((difference.kept.len(), difference.removed.len()), (3, 0));
        let [b] = difference.added.as_slice() else { panic!("{difference:?}") };
        assert_eq!((&b.id, b.host.as_str(), b.port, b.value("weight")), (&id("pg", "b"), "10.0.0.2", 5432, Some("7")));
        assert_eq!(b.as_added("10.0.0.2:5432"), "10.0.0.2:5432 inter 3s fall 2 maxconn 50 check");
    }

    #[test]
    fn removed_and_changed_servers_are_found() {
        let gone = TWO.replace("backend reads\n  server a pg-a:5432 check\n", "backend reads\n");
        assert_eq!(difference(TWO, &gone).unwrap().removed, [id("reads", "a")]);
        let moved = TWO.replace("pg-a:5432 maxconn 100", "10.0.0.9:6432 maxconn 300");
        let kept = difference(TWO, &moved).unwrap().kept;
        let (before, now) = kept.iter().find(|(_, now)| now.id == id("pg", "a")).unwrap();
        assert_eq!((before.host.as_str(), now.host.as_str(), now.port), ("pg-a", "10.0.0.9", 6432));
        assert_eq!((before.value("maxconn"), now.value("maxconn")), (Some("100"), Some("300")));
    }

    #[test]
    fn a_difference_that_needs_a_reload_is_named() {
        for (other, why) in [
            (TWO.replace("bind *:5432", "bind *:5433"), "bind *:5433"),
            (TWO.replace("check port 8008", "check port 8009"), "server pg/a is configured differently"),
            (TWO.replace("fall 2", "fall 3"), "fall 3"),
            (TWO.replace("listen pg", "listen pg from x"), "inherits"),
            (TWO.replace("server wait", "server-template w 1-3"), "other names"),
            (TWO.replace("server a pg-a:5432 check", "server a \"pg-a:5432\" check"), "quoted"),
            (TWO.replace("pg-a:5432 check", "pg-a check"), "no port"),
            (TWO.replace(" maxconn 100", ""), "server pg/a is configured differently"),
            (format!("{TWO}listen more\n"), "listen more"),
        ] {
            let error = difference(TWO, &other).unwrap_err();
            assert!(error.contains(why), "{error}: {why}");
        }
        assert_eq!(difference(TWO, &TWO.replace("  bind", "    # more\n\n  bind")).unwrap().added, []);
        assert!(difference(TWO, &TWO.replace("wait 127.0.0.1:1 backup", "wait 127.0.0.1:1 backup # don't")).is_ok());
    }
}
