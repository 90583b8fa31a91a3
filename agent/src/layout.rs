//! HAProxy's configuration as a file: rendered from a template, sealed, and recognized again.
//!
//! The seal is what tells our file from somebody else's, and from one of ours that was edited by hand: neither is
//! overwritten. It holds a checksum and the members that the file was made of.

use crate::config::{HaproxyConfig, RenderConfig};
use crate::watch::haproxy::split_address;
use minijinja::{Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use warden_core::haproxy::file::{Layout, Place};
use warden_core::types::MemberName;

/// The template where none is configured.
pub const TEMPLATE: &str = include_str!("../templates/haproxy.cfg.j2");

/// What the template has HAProxy do with connections that wait.
pub const WAIT_SCRIPT: &str = include_str!("../templates/wait.lua");

/// What follows it on the second line is JSON.
const SEAL: &str = "# warden: ";

const NOTICE: &str = "# Written by Warden: change haproxy.template in warden.yml, or the template that it names, and restart the agent.\n\
                      # Warden does not overwrite this file once it was edited by hand.\n";

#[derive(Serialize, Deserialize)]
struct Seal {
    /// CRC-32C of the members and of what follows.
    checksum: u32,
    members: Vec<Member>,
}

#[derive(Serialize, Deserialize)]
struct Member {
    name: String,
    host: String,
    port: u16,
    api: String,
}

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// Ours, made of these members; the text is what was rendered.
    Ours(Layout, String),
    /// Not ours, or edited since; the text says which.
    Foreign(&'static str),
}

/// A member as a template sees it.
#[derive(Serialize)]
struct Server<'a> {
    /// Its name in Patroni.
    name: &'a str,
    /// What HAProxy's server is called: the host where that is a name and nobody else's, as people know it; else the
    /// member's name.
    server: String,
    host: &'a str,
    port: u16,
    api_host: String,
    api_port: u16,
    api_tls: bool,
}

fn servers(layout: &[Place]) -> Result<Vec<Server<'_>>, String> {
    layout
        .iter()
        .map(|place| {
            let url = reqwest::Url::parse(&place.api);
            let url = url.map_err(|error| format!("{}: {:?} is no URL: {error}", place.member, place.api))?;
            let alone = layout.iter().filter(|other| other.host == place.host).count() == 1;
            let known_by_name = alone && place.host.parse::<IpAddr>().is_err();
            let name = if known_by_name { place.host.as_str() } else { place.member.as_str() };
            Ok(Server {
                name: place.member.as_str(),
                // HAProxy takes letters, digits, and these.
                server: name.replace(|c: char| !(c.is_ascii_alphanumeric() || "-_.:".contains(c)), "_"),
                host: &place.host,
                port: place.port,
                api_host: url.host_str().unwrap_or_default().to_owned(),
                api_port: url.port_or_known_default().unwrap_or(8008),
                api_tls: url.scheme() == "https",
            })
        })
        .collect()
}

/// Renders the configuration for these members. The error names the template, the line and the problem.
pub fn render(
    template: &str,
    haproxy: &HaproxyConfig,
    file: &RenderConfig,
    layout: &[Place],
) -> Result<String, String> {
    let name =
        file.template.as_ref().map_or_else(|| "the built-in template".to_owned(), |path| path.display().to_string());
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(true);
    let problem = |error: minijinja::Error| {
        let line = error.line().map_or_else(String::new, |line| format!(", line {line}"));
        format!("{name}{line}: {error}")
    };
    environment.add_template("haproxy.cfg", template).map_err(problem)?;
    let values = context! {
        members => servers(layout)?,
        haproxy => context! {
            socket => haproxy.socket,
            backend => haproxy.backend,
            read_backend => haproxy.read_backend,
            max_lag => haproxy.max_lag,
            max_wait_ms => haproxy.max_wait_ms,
            hard_stop_after => haproxy.hard_stop_after,
            state_file => file.state_file(),
            wait_script => file.wait_script(),
            resolvers => file.resolvers,
        },
    };
    environment.get_template("haproxy.cfg").and_then(|template| template.render(values)).map_err(problem)
}

/// The file's whole text: the notice, the seal, and what was rendered.
pub fn sealed(layout: &[Place], rendered: &str) -> Result<String, String> {
    let members: Vec<Member> = layout
        .iter()
        .map(|place| Member {
            name: place.member.to_string(),
            host: place.host.clone(),
            port: place.port,
            api: place.api.clone(),
        })
        .collect();
    let checksum = checksum(&members, rendered)?;
    let seal = serde_json::to_string(&Seal { checksum, members }).map_err(|error| error.to_string())?;
    Ok(format!("{NOTICE}{SEAL}{seal}\n{rendered}"))
}

fn checksum(members: &[Member], rendered: &str) -> Result<u32, String> {
    let members = serde_json::to_vec(members).map_err(|error| error.to_string())?;
    Ok(crc32c::crc32c_append(crc32c::crc32c(&members), rendered.as_bytes()))
}

/// Recognizes a file.
pub fn recognize(text: &str) -> Found {
    let foreign = Found::Foreign("it was not written by Warden");
    let Some((seal, rendered)) = text.strip_prefix(NOTICE).and_then(|rest| rest.strip_prefix(SEAL)?.split_once('\n'))
    else {
        return foreign;
    };
    let Ok(Seal { checksum: sealed, members }) = serde_json::from_str::<Seal>(seal) else { return foreign };
    if checksum(&members, rendered) != Ok(sealed) {
        return Found::Foreign("it was edited by hand");
    }
    let place = |member: Member| Place {
        member: MemberName::from(member.name),
        host: member.host,
        port: member.port,
        api: member.api,
    };
    Found::Ours(members.into_iter().map(place).collect(), rendered.to_owned())
}

/// HAProxy's server state file, version 1 (configuration manual, `server-state-file`), in which every server of both
/// pools is down: it takes one good check, or a word of ours, to raise it.
pub fn states(haproxy: &HaproxyConfig, layout: &[Place]) -> Result<String, String> {
    let mut text = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
                    srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state \
                    srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl \
                    srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n"
        .to_owned();
    for proxy in haproxy.proxies() {
        for Server { server, port, .. } in servers(layout)? {
            // Operational state 0: down; check health 1 of rise 2.
            let line = format!("0 {proxy} 0 {server} - 0 0 1 1 0 8 2 1 6 0 0 0 - {port} - 0 0 - - 0\n");
            text.write_str(&line).map_err(|error| error.to_string())?;
        }
    }
    Ok(text)
}

/// Why servers that HAProxy has, `host:port` by name, are not all that these members need, if they are not. Members that
/// have left do no harm, and a host's name is HAProxy's to resolve.
pub fn lacks(layout: &[Place], has: &BTreeMap<String, String>) -> Result<Option<String>, String> {
    for Server { server, host, port, .. } in servers(layout)? {
        let Some(address) = has.get(&server) else { return Ok(Some(format!("no server {server}"))) };
        let same = match host.parse::<IpAddr>() {
            Ok(wanted) => split_address(address) == Some((wanted, port)),
            // It may have none yet: `-`.
            Err(_) => address.rsplit_once(':').is_some_and(|(_, at)| at == port.to_string()),
        };
        if !same {
            return Ok(Some(format!("{server} at {address} and not at {host}:{port}")));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_haproxy_lacks_is_named() {
        let layout = [place("a", "pg-a"), place("b", "10.0.0.2")];
        let has = |a: &str, b: &str| {
            let servers = [("pg-a", a), ("b", b), ("left", "10.0.0.9:5432")];
            servers.map(|(name, address)| (name.to_owned(), address.to_owned())).into_iter().collect()
        };
        let lacks = |has: &BTreeMap<String, String>| lacks(&layout, has).unwrap();
        assert_eq!(lacks(&has("10.0.0.1:5432", "10.0.0.2:5432")), None);
        assert_eq!(lacks(&BTreeMap::new()).unwrap(), "no server pg-a");
        assert_eq!(
            lacks(&has("10.0.0.1:5433", "10.0.0.2:5432")).unwrap(),
            "pg-a at 10.0.0.1:5433 and not at pg-a:5432"
        );
        assert_eq!(lacks(&has("-:5432", "10.0.0.2:5432")), None, "its name is not resolved yet");
        assert!(lacks(&has("10.0.0.1:5432", "10.0.0.3:5432")).unwrap().contains("not at 10.0.0.2:5432"));
    }

    fn place(member: &str, host: &str) -> Place {
        Place { member: member.into(), host: host.to_owned(), port: 5432, api: format!("http://{host}:8008") }
    }

    fn trial() -> Layout {
        vec![place("postgresql0", "pg-master"), place("postgresql1", "pg-slave")]
    }

    fn configs() -> (HaproxyConfig, RenderConfig) {
        let haproxy = HaproxyConfig {
            socket: "/run/haproxy/admin.sock".into(),
            read_backend: Some("replicas".to_owned()),
            ..HaproxyConfig::nowhere()
        };
        let file = RenderConfig {
            config_file: "/etc/haproxy/haproxy.cfg".into(),
            master_socket: "/run/haproxy/master.sock".into(),
            template: None,
            resolvers: Some("127.0.0.11:53".to_owned()),
        };
        (haproxy, file)
    }

    /// What HAProxy starts with before there is an agent is what the agent would write.
    #[test]
    fn the_trial_stacks_file_is_what_the_template_gives_for_its_members() {
        let (haproxy, file) = configs();
        let rendered = render(TEMPLATE, &haproxy, &file, &trial()).unwrap();
        let whole = sealed(&trial(), &rendered).unwrap();
        let states = states(&haproxy, &trial()).unwrap();
        assert_eq!(states.lines().count(), 2 + 4, "{states}");
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/haproxy");
        let script = WAIT_SCRIPT.to_owned();
        for (name, text) in [("haproxy.cfg", whole), ("servers.state", states), ("wait.lua", script)] {
            let path = format!("{directory}/{name}");
            if std::env::var("WRITE_COMPOSE").is_ok() {
                std::fs::write(&path, &text).unwrap();
            }
            assert_eq!(std::fs::read_to_string(path).unwrap(), text, "WRITE_COMPOSE=1 writes {name} anew");
        }
    }

    #[test]
    fn our_own_file_is_recognized_and_no_other() {
        let whole = sealed(&trial(), "global\n").unwrap();
        assert_eq!(recognize(&whole), Found::Ours(trial(), "global\n".to_owned()));
        for edited in [whole.replace("global", "global "), whole.replace("pg-slave", "pg-other"), format!("{whole}#")] {
            assert_eq!(recognize(&edited), Found::Foreign("it was edited by hand"));
        }
        for foreign in ["", "global\n", &whole[1..], &whole.replace("checksum", "sum")] {
            assert_eq!(recognize(foreign), Found::Foreign("it was not written by Warden"), "{foreign}");
        }
    }

    #[test]
    fn what_a_template_gets_wrong_is_named_with_its_line() {
        let (haproxy, mut file) = configs();
        file.template = Some("/etc/warden/own.j2".into());
        let error = render("a\n{{ membres }}\n", &haproxy, &file, &trial()).unwrap_err();
        assert!(error.contains("/etc/warden/own.j2, line 2") && error.contains("undefined"), "{error}");
        let error = render("{% for %}", &haproxy, &file, &trial()).unwrap_err();
        assert!(error.contains("line 1"), "{error}");
        let odd = [Place { api: "not an URL".to_owned(), ..place("a", "h") }];
        assert!(render(TEMPLATE, &haproxy, &file, &odd).unwrap_err().contains("not an URL"));
    }

    #[test]
    fn servers_are_called_by_their_hosts_where_those_are_names_and_by_their_members_elsewhere() {
        let layout = [
            place("a", "10.0.0.1"),
            place("b", "same"),
            place("c", "same"),
            Place { api: "http://[fe80::1]:8008".to_owned(), ..place("d é", "fe80::1") },
            place("e", "own"),
        ];
        let mut names: Vec<_> = servers(&layout).unwrap().into_iter().map(|server| server.server).collect();
        names.sort();
        assert_eq!(names, ["a", "b", "c", "d__", "own"]);
        let tls = [Place { api: "https://own".to_owned(), ..place("e", "own") }];
        let (haproxy, file) = configs();
        let rendered = render(TEMPLATE, &haproxy, &file, &tls).unwrap();
        assert!(
            rendered.contains("server own own:5432 maxconn 100 check port 443 check-ssl verify none"),
            "{rendered}"
        );
    }
}
