//! The content of HAProxy's configuration file: rendered from a template, sealed, and recognized again.
//!
//! The seal tells the agent's own file from any other, and from one that was edited by hand. The agent overwrites
//! neither. The seal holds a checksum, and the members from which the file was rendered.

use super::lines;
use super::naming::Naming;
use super::slots::Slots;
use crate::client::haproxy::split_address;
use crate::config::{HaproxyConfig, RenderConfig};
use minijinja::{Environment, UndefinedBehavior, context};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use warden_core::haproxy::ServerId;
use warden_core::haproxy::file::{Backends, MemberAddress};
use warden_core::types::MemberName;

/// The built-in template.
pub const TEMPLATE: &str = include_str!("../../../templates/haproxy.cfg.j2");

/// The script by which new connections wait in HAProxy.
pub const WAIT_SCRIPT: &str = include_str!("../../../templates/wait.lua");

/// The start of the line with the seal, before its JSON.
const SEAL: &str = "# warden: ";

/// The start of the file. The agent recognizes its own files by these bytes.
const NOTICE: &str = "# Written by Warden: change haproxy.template in warden.yml, or the template that it names, and \
                      restart the agent.\n\
                      # Warden does not overwrite this file once it was edited by hand.\n";

#[derive(Serialize, Deserialize)]
struct Seal {
    /// CRC-32C of the other fields and of the rendered text.
    checksum: u32,
    members: Vec<Member>,
    #[serde(default = "default_limit", skip_serializing_if = "is_default_limit")]
    max_connections: u32,
    /// Servers of departed members that HAProxy may still have because of their sessions, as `proxy/name`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    left: BTreeSet<String>,
    /// The members of the prepared servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    slots: Vec<Option<String>>,
    /// Names of servers by member, if they are not those of [`Naming::fresh`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    names: BTreeMap<String, String>,
    /// Servers of departed members that an operator had disabled, as `proxy/name`, with HAProxy's flags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    disabled: BTreeMap<String, u32>,
}

/// The value for files of versions whose seal does not have it.
const fn default_limit() -> u32 {
    100
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes it so")]
const fn is_default_limit(limit: &u32) -> bool {
    *limit == default_limit()
}

#[derive(Serialize, Deserialize)]
struct Member {
    name: String,
    host: String,
    port: u16,
    api: String,
}

/// A file, as the agent recognizes it.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// The agent's own file.
    Own(SealedFile),
    /// Another file, or one that was edited by hand. The text says which.
    Foreign(&'static str),
}

/// A file of the agent's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedFile {
    /// The members from which it was rendered.
    pub backends: Backends,
    /// Servers of departed members that HAProxy may still have.
    pub left: BTreeSet<ServerId>,
    /// Servers of departed members that an operator had disabled, with their flags (`srv_admin_state`). They are
    /// disabled again when the members are back.
    pub disabled: BTreeMap<ServerId, u32>,
    /// The names of the servers.
    pub naming: Naming,
    /// The rendered text, without notice and seal.
    pub rendered: String,
}

/// A member as a template sees it.
#[derive(Serialize)]
struct Server<'a> {
    /// The member's name in Patroni.
    name: &'a str,
    /// The name of HAProxy's server.
    server: String,
    host: &'a str,
    port: u16,
    api_host: String,
    api_port: u16,
    api_tls: bool,
}

fn servers<'l>(backends: &'l Backends, naming: &Naming) -> Result<Vec<Server<'l>>, String> {
    let server = |place: &'l MemberAddress| {
        let url = reqwest::Url::parse(&place.api);
        let url = url.map_err(|error| format!("{}: {:?} is no URL: {error}", place.member, place.api))?;
        Ok(Server {
            name: place.member.as_str(),
            server: naming.name_of(&place.member),
            host: &place.host,
            port: place.port,
            api_host: url.host_str().unwrap_or_default().to_owned(),
            api_port: url.port_or_known_default().unwrap_or(8008),
            api_tls: url.scheme() == "https",
        })
    };
    backends.places.iter().map(server).collect()
}

/// PostgreSQL's connections that HAProxy leaves to superusers, Patroni and the agents. A client that waits in HAProxy
/// is better off than one that PostgreSQL refuses.
const CONNECTIONS_RESERVED: u32 = 10;

/// The default number of concurrent sessions of a server.
fn session_limit(max_connections: u32) -> u32 {
    max_connections.saturating_sub(CONNECTIONS_RESERVED).max(max_connections / 2).max(1)
}

/// Renders the configuration for these members. The error names the template, the line and the problem.
pub fn render(
    template: &str,
    haproxy: &HaproxyConfig,
    file: &RenderConfig,
    backends: &Backends,
    naming: &Naming,
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
        members => servers(backends, naming)?,
        spares => naming.slots.spares(),
        haproxy => context! {
            socket => haproxy.socket,
            backend => haproxy.writes.first(),
            read_backend => haproxy.reads.first(),
            writes => haproxy.writes,
            reads => haproxy.reads,
            maxconn => haproxy.maxconn,
            server_maxconn => haproxy.server_maxconn.unwrap_or_else(|| session_limit(backends.max_connections)),
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

/// The whole text of the file: notice, seal, rendered text.
pub fn sealed(file: &SealedFile) -> Result<String, String> {
    let SealedFile { backends, left, disabled, naming, rendered } = file;
    let member = |place: &MemberAddress| Member {
        name: place.member.to_string(),
        host: place.host.clone(),
        port: place.port,
        api: place.api.clone(),
    };
    let fresh = Naming::fresh(backends, naming.slots.clone());
    let others = naming.names.iter().filter(|(member, name)| fresh.names.get(*member) != Some(*name));
    let mut seal = Seal {
        checksum: 0,
        members: backends.places.iter().map(member).collect(),
        max_connections: backends.max_connections,
        left: left.iter().map(ToString::to_string).collect(),
        slots: naming.slots.0.iter().map(|owner| owner.as_ref().map(ToString::to_string)).collect(),
        names: others.map(|(member, name)| (member.to_string(), name.clone())).collect(),
        disabled: disabled.iter().map(|(id, flags)| (id.to_string(), *flags)).collect(),
    };
    seal.checksum = checksum(&seal, rendered)?;
    let seal = serde_json::to_string(&seal).map_err(|error| error.to_string())?;
    Ok(format!("{NOTICE}{SEAL}{seal}\n{rendered}"))
}

/// The checksum of a seal. A field with its default value does not count, so that files of older versions are valid.
fn checksum(seal: &Seal, rendered: &str) -> Result<u32, String> {
    let json = |value: Result<Vec<u8>, serde_json::Error>| value.map_err(|error| error.to_string());
    let mut sum = crc32c::crc32c(&json(serde_json::to_vec(&seal.members))?);
    if !is_default_limit(&seal.max_connections) || !seal.left.is_empty() {
        sum = crc32c::crc32c_append(sum, &json(serde_json::to_vec(&(seal.max_connections, &seal.left)))?);
    }
    if !seal.slots.is_empty() {
        sum = crc32c::crc32c_append(sum, &json(serde_json::to_vec(&seal.slots))?);
    }
    if !seal.names.is_empty() {
        sum = crc32c::crc32c_append(sum, &json(serde_json::to_vec(&seal.names))?);
    }
    if !seal.disabled.is_empty() {
        sum = crc32c::crc32c_append(sum, &json(serde_json::to_vec(&seal.disabled))?);
    }
    Ok(crc32c::crc32c_append(sum, rendered.as_bytes()))
}

/// Recognizes a file.
pub fn recognize(text: &str) -> Found {
    let foreign = Found::Foreign("it was not written by Warden");
    let Some((seal, rendered)) = text.strip_prefix(NOTICE).and_then(|rest| rest.strip_prefix(SEAL)?.split_once('\n'))
    else {
        return foreign;
    };
    let Ok(seal) = serde_json::from_str::<Seal>(seal) else { return foreign };
    if checksum(&seal, rendered) != Ok(seal.checksum) {
        return Found::Foreign("it was edited by hand");
    }
    let place = |member: Member| MemberAddress {
        member: MemberName::from(member.name),
        host: member.host,
        port: member.port,
        api: member.api,
    };
    let server = |id: &String| {
        let (proxy, name) = id.split_once('/')?;
        Some(ServerId { proxy: proxy.to_owned(), name: name.to_owned() })
    };
    let backends =
        Backends { places: seal.members.into_iter().map(place).collect(), max_connections: seal.max_connections };
    let slots = Slots(seal.slots.into_iter().map(|owner| owner.map(MemberName::from)).collect());
    let mut naming = Naming::fresh(&backends, slots);
    naming.names.extend(seal.names.into_iter().map(|(member, name)| (MemberName::from(member), name)));
    Found::Own(SealedFile {
        left: seal.left.iter().filter_map(server).collect(),
        disabled: seal.disabled.iter().filter_map(|(id, flags)| Some((server(id)?, *flags))).collect(),
        naming,
        backends,
        rendered: rendered.to_owned(),
    })
}

/// HAProxy's server state file, version 1 (configuration manual, `server-state-file`).
///
/// Every server with checks in the agent's proxies starts down. One successful check raises it, or a command of the
/// agent. Those in `disabled` start with these flags (`srv_admin_state`).
pub fn server_states(
    haproxy: &HaproxyConfig,
    wanted: &[lines::Server],
    disabled: &BTreeMap<ServerId, u32>,
) -> Result<String, String> {
    let mut text = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
                    srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state \
                    srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl \
                    srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n"
        .to_owned();
    for proxy in haproxy.proxies() {
        let checked = |server: &&lines::Server| server.id.proxy == proxy && server.has("check") && !server.is_spare();
        for server in wanted.iter().filter(checked) {
            // Operational state 0: down; check health 1 of rise 2.
            let (name, port) = (&server.id.name, server.port);
            let admin = disabled.get(&server.id).copied().unwrap_or(0);
            let line = format!("0 {proxy} 0 {name} - 0 {admin} 1 1 0 8 2 1 6 0 0 0 - {port} - 0 0 - - 0\n");
            text.write_str(&line).map_err(|error| error.to_string())?;
        }
    }
    Ok(text)
}

/// A server of the configuration that HAProxy does not have in this proxy, or has at another address, if there is one.
///
/// `has` is HAProxy's `host:port` by name. Further servers are ignored. For a host name only the port is compared.
pub fn missing_server(proxy: &str, wanted: &[lines::Server], has: &BTreeMap<String, String>) -> Option<String> {
    wanted.iter().filter(|server| server.id.proxy == proxy).find_map(|server| {
        let (name, host, port) = (&server.id.name, &server.host, server.port);
        let Some(address) = has.get(name) else { return Some(format!("no server {name}")) };
        let same = match host.parse::<IpAddr>() {
            // A prepared server may still have the address of its last member.
            _ if server.is_spare() => true,
            Ok(wanted) => split_address(address) == Some((wanted, port)),
            // The host may be `-`: HAProxy has not resolved it yet.
            Err(_) => address.rsplit_once(':').is_some_and(|(_, at)| at == port.to_string()),
        };
        (!same).then(|| format!("{name} at {address} and not at {host}:{port}"))
    })
}

/// The members' servers in the agent's proxies, as the built-in template names them. For a configuration whose `server`
/// lines the agent cannot read: a custom template may quote.
pub fn presumed_servers(
    haproxy: &HaproxyConfig,
    backends: &Backends,
    naming: &Naming,
) -> Result<Vec<lines::Server>, String> {
    let mut presumed = Vec::new();
    for proxy in haproxy.proxies() {
        for Server { server, host, port, .. } in servers(backends, naming)? {
            let id = ServerId { proxy: proxy.to_owned(), name: server };
            presumed.push(lines::Server { id, host: host.to_owned(), port, arguments: vec!["check".to_owned()] });
        }
    }
    Ok(presumed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_haproxy_does_not_have_is_named() {
        let wanted = lines::servers(
            "listen writes\n server pg-a pg-a:5432\n server b 10.0.0.2:5432\nlisten pooled\n server pg-a pg-a:6432\n",
        );
        let wanted = wanted.unwrap();
        let has = |a: &str, b: &str| {
            let servers = [("pg-a", a), ("b", b), ("left", "10.0.0.9:5432")];
            servers.map(|(name, address)| (name.to_owned(), address.to_owned())).into_iter().collect()
        };
        let missing = |has: &BTreeMap<String, String>| missing_server("writes", &wanted, has);
        assert_eq!(missing(&has("10.0.0.1:5432", "10.0.0.2:5432")), None);
        assert_eq!(missing(&BTreeMap::new()).unwrap(), "no server b");
        assert_eq!(
            missing(&has("10.0.0.1:5433", "10.0.0.2:5432")).unwrap(),
            "pg-a at 10.0.0.1:5433 and not at pg-a:5432"
        );
        assert_eq!(missing(&has("-:5432", "10.0.0.2:5432")), None, "HAProxy has not resolved the name yet");
        assert!(missing(&has("10.0.0.1:5432", "10.0.0.3:5432")).unwrap().contains("not at 10.0.0.2:5432"));
        let presumed = presumed_servers(&configs().0, &trial(), &fresh(&trial())).unwrap();
        let names: Vec<_> = presumed.iter().map(|server| server.id.to_string()).collect();
        assert_eq!(names, ["postgres/pg-master", "postgres/pg-slave", "replicas/pg-master", "replicas/pg-slave"]);
    }

    fn place(member: &str, host: &str) -> MemberAddress {
        MemberAddress { member: member.into(), host: host.to_owned(), port: 5432, api: format!("http://{host}:8008") }
    }

    fn of(places: Vec<MemberAddress>) -> Backends {
        Backends { places, max_connections: 100 }
    }

    fn trial() -> Backends {
        of(vec![place("postgresql0", "pg-master"), place("postgresql1", "pg-slave")])
    }

    fn fresh(backends: &Backends) -> Naming {
        Naming::fresh(backends, Slots::default())
    }

    fn file_of(rendered: &str) -> SealedFile {
        SealedFile {
            backends: trial(),
            left: BTreeSet::new(),
            disabled: BTreeMap::new(),
            naming: fresh(&trial()),
            rendered: rendered.to_owned(),
        }
    }

    fn configs() -> (HaproxyConfig, RenderConfig) {
        let haproxy = HaproxyConfig {
            socket: "/run/haproxy/admin.sock".into(),
            reads: vec!["replicas".to_owned()],
            ..HaproxyConfig::nowhere()
        };
        let file = RenderConfig {
            config_file: "/etc/haproxy/haproxy.cfg".into(),
            master_socket: "/run/haproxy/master.sock".into(),
            template: None,
            resolvers: Some("127.0.0.11:53".to_owned()),
            spare_servers: 2,
        };
        (haproxy, file)
    }

    /// The trial stack starts HAProxy before the agent, with the file that the agent would write.
    #[test]
    fn the_trial_stacks_file_is_what_the_template_gives_for_its_members() {
        let (haproxy, file) = configs();
        let rendered = render(TEMPLATE, &haproxy, &file, &trial(), &fresh(&trial())).unwrap();
        let whole = sealed(&file_of(&rendered)).unwrap();
        let states = server_states(&haproxy, &lines::servers(&rendered).unwrap(), &BTreeMap::new()).unwrap();
        assert_eq!(states.lines().count(), 2 + 4, "{states}");
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../compose/haproxy");
        let script = WAIT_SCRIPT.to_owned();
        for (name, text) in [("haproxy.cfg", whole), ("servers.state", states), ("wait.lua", script)] {
            let path = format!("{directory}/{name}");
            if std::env::var("WRITE_COMPOSE").is_ok() {
                std::fs::write(&path, &text).unwrap();
            }
            assert_eq!(std::fs::read_to_string(path).unwrap(), text, "WRITE_COMPOSE=1 writes {name}");
        }
    }

    #[test]
    fn the_agent_recognizes_its_own_file_and_no_other() {
        let more = SealedFile {
            backends: Backends { max_connections: 300, ..trial() },
            left: [ServerId { proxy: "postgres".to_owned(), name: "pg-third".to_owned() }].into(),
            ..file_of("global\n")
        };
        let whole = sealed(&more).unwrap();
        assert_eq!(recognize(&whole), Found::Own(more.clone()));
        let slots = Slots(vec![Some("postgresql0".into()), None]);
        let mut prepared = SealedFile { naming: Naming::fresh(&more.backends, slots), ..more };
        prepared.naming.names.insert("postgresql1".into(), "another".to_owned());
        let other = sealed(&prepared).unwrap();
        assert_eq!(recognize(&other), Found::Own(prepared));
        assert_eq!(recognize(&other.replace("another", "a-third")), Found::Foreign("it was edited by hand"));
        assert_eq!(recognize(&other.replace("null", "\"b\"")), Found::Foreign("it was edited by hand"));
        assert_eq!(recognize(&whole.replace("pg-third", "pg-slave")), Found::Foreign("it was edited by hand"));
        let whole = sealed(&file_of("global\n")).unwrap();
        assert_eq!(recognize(&whole), Found::Own(file_of("global\n")));
        for edited in [whole.replace("global", "global "), whole.replace("pg-slave", "pg-other"), format!("{whole}#")] {
            assert_eq!(recognize(&edited), Found::Foreign("it was edited by hand"));
        }
        for foreign in ["", "global\n", &whole[1..], &whole.replace("checksum", "sum")] {
            assert_eq!(recognize(foreign), Found::Foreign("it was not written by Warden"), "{foreign}");
        }
    }

    #[test]
    fn an_error_in_a_template_is_reported_with_its_line() {
        let (haproxy, mut file) = configs();
        file.template = Some("/etc/warden/own.j2".into());
        let none = Naming::default();
        let error = render("a\n{{ membres }}\n", &haproxy, &file, &trial(), &none).unwrap_err();
        assert!(error.contains("/etc/warden/own.j2, line 2") && error.contains("undefined"), "{error}");
        let error = render("{% for %}", &haproxy, &file, &trial(), &none).unwrap_err();
        assert!(error.contains("line 1"), "{error}");
        let odd = of(vec![MemberAddress { api: "not an URL".to_owned(), ..place("a", "h") }]);
        assert!(render(TEMPLATE, &haproxy, &file, &odd, &none).unwrap_err().contains("not an URL"));
    }

    #[test]
    fn a_server_leaves_some_of_postgresqls_connections_and_is_checked_at_patronis_url() {
        assert_eq!([1000, 100, 15, 1, 0].map(session_limit), [990, 90, 7, 1, 1]);
        let tls = of(vec![MemberAddress { api: "https://own".to_owned(), ..place("e", "own") }]);
        let (haproxy, file) = configs();
        let rendered = render(TEMPLATE, &haproxy, &file, &tls, &fresh(&tls)).unwrap();
        assert!(rendered.contains("server own own:5432 maxconn 90 check port 443 check-ssl verify none"), "{rendered}");
    }
}
