//! What HAProxy's statistics show beside the agent's own proxies: frontends at their limit, and proxies that lead to
//! members although no key names them.

use crate::client::haproxy::table;
use crate::config::HaproxyConfig;
use std::collections::{BTreeMap, BTreeSet};

/// HAProxy's other proxies.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// The frontends that have as many connections as they may, with that number. HAProxy accepts no further connection
    /// there: it waits in the kernel, in no queue that HAProxy counts.
    pub full: BTreeMap<String, u64>,
    /// The proxies with a server at a member's address, which the agent does not command.
    pub not_steered: BTreeSet<String>,
}

/// Reads the answer to [`super::stat::QUESTION`]; empty if it cannot be read. `is_member`: an address is a member's.
///
/// A proxy whose servers the agent's own ones track is no way for clients.
pub fn read(text: &str, config: &HaproxyConfig, is_member: impl Fn(&str) -> bool) -> Around {
    let mut around = Around::default();
    let Ok(rows) = table(text) else { return around };
    let mut tracked = BTreeSet::new();
    for row in rows {
        let (Some(proxy), Some(name)) = (row.get("pxname"), row.get("svname")) else { continue };
        match name {
            "FRONTEND" if row.number("slim") > 0 && row.number("scur") >= row.number("slim") => {
                around.full.insert(proxy.to_owned(), row.number("slim"));
            }
            "FRONTEND" | "BACKEND" => {}
            _ if config.pool_of(proxy).is_some() => {
                tracked.extend(row.get("tracked").and_then(|other| other.split('/').next()).map(str::to_owned));
            }
            _ if row.get("addr").is_some_and(&is_member) => {
                around.not_steered.insert(proxy.to_owned());
            }
            _ => {}
        }
    }
    around.not_steered.retain(|proxy| !tracked.contains(proxy));
    around
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_frontends_and_other_ways_to_members_are_found() {
        let config = HaproxyConfig { writes: vec!["master".to_owned()], ..HaproxyConfig::nowhere() };
        let text = "# pxname,svname,scur,slim,tracked,addr\n\
            master,FRONTEND,100,100,,\n\
            master,a,3,100,checks/a,10.0.0.1:6432\n\
            checks,a,0,,,10.0.0.1:5432\n\
            direct,FRONTEND,99,100,,\n\
            direct,a,3,100,,10.0.0.1:5432\n\
            web,FRONTEND,7,0,,\n\
            web,server,3,100,,10.0.0.9:80\n";
        let around = read(text, &config, |address| address.starts_with("10.0.0.1:"));
        assert_eq!(around.full, [("master".to_owned(), 100)].into());
        assert_eq!(around.not_steered, ["direct".to_owned()].into(), "`checks` is only tracked, `web` is no member's");
        assert_eq!(read("nonsense", &config, |_| true), Around::default());
    }
}
