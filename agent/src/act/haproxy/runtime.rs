//! Applies the difference of two configurations at the runtime socket of a running HAProxy, without cutting a session.
//!
//! HAProxy considers a server that leaves maintenance to be up. A new server therefore has weight 0 until its checks
//! are on and it is down, so that it gets no unchecked write. A server that moves keeps its sessions, and takes new
//! ones once its check has succeeded. The server of a departed member takes no new sessions (`drain`), and the agent
//! deletes it after the end of the last one. A server that HAProxy does not delete (2.6: one with `resolvers`) stays in
//! maintenance until the next reload.
//!
//! HAProxy resolves no names for a server that was added at runtime. The agent moves such a server when its name
//! resolves to another address.

use super::actor::{HaproxyFileActor, named_servers};
use super::durable::write;
use super::lines::{self, Server};
use super::template::{SealedFile, sealed};
use crate::client::haproxy::command::{command, question};
use crate::client::haproxy::{StatRow, StateRow, addresses, first_line, is_name, rows, split_address, table};
use crate::client::names::Names;
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use warden_core::haproxy::ServerId;

/// Flags of a server that was disabled by a command (`srv_admin_state`; HAProxy's management guide, 9.3).
const FORCED_MAINTENANCE: u32 = 1;
const FORCED_DRAIN: u32 = 8;

/// The operational state of a server that is up by its checks (`srv_op_state`).
const RUNNING: &str = "2";

/// Asks for all servers (type 4) of all proxies.
const SHOW_STAT: &str = "show stat -1 4 -1";

/// The answer to a successful `add server`.
const SERVER_ADDED: &str = "New server registered.";

/// Servers whose names resolved to another address than HAProxy's at the last look, with that address.
pub(super) type Mismatches = BTreeMap<ServerId, IpAddr>;

impl HaproxyFileActor {
    /// Applies the difference from the previous file to the new one. The error says which part needs a reload.
    pub(super) async fn apply_at_runtime(&self, before: &SealedFile, now: &SealedFile) -> Result<(), String> {
        let difference = lines::difference(&before.rendered, &now.rendered)?;
        // HAProxy does not serve this file yet, so the agent checks every server.
        let thorough = before.rendered == now.rendered;
        let added = difference.added.into_iter().map(|server| (None, server));
        let kept = difference.kept.into_iter().map(|(was, server)| (Some(was), server));
        for (was, server) in added.chain(kept) {
            self.apply_server(was.as_ref(), &server, thorough).await?;
            self.disable_again(&server.id, &before.disabled).await?;
        }
        for id in difference.removed {
            // An operator's maintenance already lets no session in.
            if self.row(&id).await?.is_some_and(|row| row.admin & FORCED_MAINTENANCE == 0) {
                self.command(&format!("set server {} state drain", named(&id)?), "").await?;
            }
        }
        self.missing(&named_servers(&now.rendered)).await?.map_or(Ok(()), Err)
    }

    /// Has HAProxy add a server, move it, enable it or change its limit, as needed.
    async fn apply_server(&self, before: Option<&Server>, server: &Server, thorough: bool) -> Result<(), String> {
        let id = named(&server.id)?;
        let Some(row) = self.row(&server.id).await? else { return self.add(server).await };
        if server.is_spare() {
            let is_released = before.is_some_and(|before| !before.is_spare());
            return if is_released { self.command(&format!("set server {id} state drain"), "").await } else { Ok(()) };
        }
        let is_new = before.is_none_or(Server::is_spare);
        let literal = server.host.parse::<IpAddr>().is_ok();
        let has_moved = before.is_none_or(|before| (&before.host, before.port) != (&server.host, server.port));
        if row.follows_name && server.has("resolvers") && before.is_some_and(|before| before.host != server.host) {
            return Err(format!("HAProxy continues to resolve the previous name of {id}"));
        }
        if has_moved || (thorough && literal) {
            let to = resolve(&server.host).await?;
            let is_there =
                split_address(&row.address).is_some_and(|(ip, port)| to.contains(&ip) && port == server.port);
            if !is_there {
                let to = to.first().ok_or_else(|| format!("{} has no address", server.host))?;
                self.move_to(server, *to).await?;
            }
        }
        // The server was prepared, or its member is back before the server was deleted.
        if is_new && row.admin & FORCED_MAINTENANCE != 0 {
            self.command(&enable(server)?, "").await?;
        } else if is_new && row.admin & FORCED_DRAIN != 0 {
            // Another member may be at that address by now. The server takes new sessions once its check has succeeded.
            let waits = if row.is_up { format!("set server {id} health stopping;") } else { String::new() };
            self.command(&format!("{waits}set server {id} state ready"), "").await?;
        }
        let limit = server.value("maxconn");
        if let Some(limit) = limit.filter(|limit| thorough || before.and_then(|b| b.value("maxconn")) != Some(*limit)) {
            self.command(&format!("set maxconn server {id} {limit}"), "").await?;
        }
        Ok(())
    }

    /// Disables the server of a member that is back, if an operator had disabled it before the member left.
    async fn disable_again(&self, id: &ServerId, disabled: &BTreeMap<ServerId, u32>) -> Result<(), String> {
        let Some(flags) = disabled.get(id) else { return Ok(()) };
        let state = if flags & FORCED_MAINTENANCE != 0 { "maint" } else { "drain" };
        self.command(&format!("set server {} state {state}", named(id)?), "").await
    }

    /// Adds a server that HAProxy does not have.
    async fn add(&self, server: &Server) -> Result<(), String> {
        let id = named(&server.id)?;
        if self.adds_servers().await == Some(false) {
            return Err(format!("{id} cannot be added: before 2.6 HAProxy adds no servers at runtime"));
        }
        let addresses = resolve(&server.host).await?;
        let address = addresses.first().ok_or_else(|| format!("{} has no address", server.host))?;
        let at = SocketAddr::new(*address, server.port);
        // One question for all commands, so that no server is left half configured.
        let add = format!("add server {id} {}", server.as_added(&at.to_string()));
        let added = self.command(&format!("{add};{}", enable(server)?), SERVER_ADDED).await;
        if added.is_err() {
            drop(self.command(&format!("set server {id} state maint;del server {id}"), "Server deleted.").await);
        }
        added
    }

    /// Sets a server's address. Its sessions continue. The server takes new ones once its check has succeeded there.
    async fn move_to(&self, server: &Server, to: IpAddr) -> Result<(), String> {
        let id = named(&server.id)?;
        if server.has("check") && self.is_up(&server.id).await? {
            self.command(&format!("set server {id} health stopping"), "").await?;
        }
        let answer = self.ask(&format!("set server {id} addr {to} port {}", server.port)).await?;
        tracing::info!(
            event = "haproxy_server_moved",
            server = id,
            %to,
            port = server.port,
            answer = first_line(&answer),
            "HAProxy server address set"
        );
        let row = self.row(&server.id).await?;
        match row.and_then(|row| split_address(&row.address)) {
            Some((ip, port)) if ip == to && port == server.port => Ok(()),
            _ => Err(format!("{id} cannot be moved to {to}: {}", first_line(&answer))),
        }
    }

    /// The servers of a file that an operator has disabled, with their flags (`srv_admin_state`); none without an
    /// answer.
    pub(super) async fn disabled_by_operator(&self, file: &SealedFile) -> BTreeMap<ServerId, u32> {
        let mut disabled = BTreeMap::new();
        // The agent itself disables only servers that the file does not name, and prepared ones.
        let named = named_servers(&file.rendered);
        for proxy in self.haproxy.proxies() {
            let Ok(rows) = self.servers_of(proxy).await else { continue };
            for (name, row) in rows {
                let id = ServerId { proxy: proxy.to_owned(), name };
                let by_operator = row.admin & (FORCED_MAINTENANCE | FORCED_DRAIN);
                if by_operator != 0 && named.iter().any(|server| server.id == id && !server.is_spare()) {
                    disabled.insert(id, by_operator);
                }
            }
        }
        disabled
    }

    /// Removes the servers that HAProxy does not have. An HAProxy that does not answer may have them all.
    pub(super) async fn retain_existing(&self, ids: &mut BTreeSet<ServerId>) {
        for id in ids.clone() {
            if matches!(self.row(&id).await, Ok(None)) {
                ids.remove(&id);
            }
        }
    }

    /// Deletes servers of departed members that have no sessions, disables unused prepared servers, and moves servers
    /// whose names HAProxy does not resolve itself.
    pub(super) async fn clean_up(&self, mismatches: &mut Mismatches) {
        let Ok(Some(file)) = self.read_file().await else { return };
        if !file.left.is_empty()
            && let Err(why) = self.delete_left(file.clone()).await
        {
            tracing::debug!(why, "the agent could not delete servers of departed members");
        }
        if let Err(why) = self.disable_spares(&file).await {
            tracing::debug!(why, "the agent could not disable prepared servers");
        }
        match self.follow_names(&file, mismatches).await {
            Ok(now) => *mismatches = now,
            Err(why) => tracing::debug!(why, "the agent could not follow the names of servers"),
        }
    }

    async fn delete_left(&self, file: SealedFile) -> Result<(), String> {
        let mut left = BTreeSet::new();
        let named = lines::servers(&file.rendered)?;
        let is_back = |id: &ServerId| named.iter().any(|server| server.id == *id);
        for id in file.left.iter().filter(|id| !is_back(id)) {
            if self.row(id).await?.is_some() && !self.delete(id).await? {
                left.insert(id.clone());
            }
        }
        if left != file.left {
            write(&self.file.config_file, &sealed(&SealedFile { left, ..file })?).await?;
        }
        Ok(())
    }

    /// Disables prepared servers whose members have left: `drain` at once, maintenance after the end of the last
    /// session.
    async fn disable_spares(&self, file: &SealedFile) -> Result<(), String> {
        let spares = lines::servers(&file.rendered)?.into_iter().filter(|server| server.is_spare());
        for server in spares.filter(|server| self.haproxy.pool_of(&server.id.proxy).is_some()) {
            let id = named(&server.id)?;
            let Some(row) = self.row(&server.id).await? else { continue };
            if row.admin & (FORCED_MAINTENANCE | FORCED_DRAIN) == 0 {
                self.command(&format!("set server {id} state drain"), "").await?;
            } else if row.admin & FORCED_MAINTENANCE == 0 && !self.is_in_use(&server.id).await? {
                // No member has the server, so it gets the address of the prepared ones.
                let address = format!("set server {id} addr {} port {}", server.host, server.port);
                self.ask(&format!("set server {id} state maint;{address}")).await?;
            }
        }
        Ok(())
    }

    /// Whether a server has sessions, or may have.
    async fn is_in_use(&self, id: &ServerId) -> Result<bool, String> {
        let stat = self.ask(SHOW_STAT).await?;
        let row = stat_of(&stat, id)?;
        let in_use = |column: &str| row.as_ref().and_then(|row| row.get(column)).is_none_or(|count| count != "0");
        Ok(in_use("scur") || in_use("qcur"))
    }

    /// Deletes a server, unless it has sessions. Returns whether it is gone.
    async fn delete(&self, id: &ServerId) -> Result<bool, String> {
        let server = named(id)?;
        if self.is_in_use(id).await? {
            return Ok(false);
        }
        let answer = self.ask(&format!("set server {server} state maint;del server {server}")).await?;
        let gone = self.row(id).await?.is_none();
        if gone {
            tracing::info!(event = "haproxy_server_deleted", server, "HAProxy server of a departed member deleted");
        } else {
            tracing::debug!(
                server,
                answer = first_line(&answer),
                "HAProxy did not delete the server of a departed member"
            );
        }
        Ok(gone)
    }

    /// Moves a server if its name resolves to the same other address at two consecutive looks. Returns the mismatches
    /// that this look has found for the first time.
    async fn follow_names(&self, file: &SealedFile, mismatches: &Mismatches) -> Result<Mismatches, String> {
        let servers = lines::servers(&file.rendered)?;
        let mut now = Mismatches::new();
        let mut known: BTreeMap<&str, BTreeMap<String, Row>> = BTreeMap::new();
        let by_name = servers.iter().filter(|server| !server.is_spare() && server.host.parse::<IpAddr>().is_err());
        let by_name: Vec<_> = by_name.filter(|server| self.haproxy.pool_of(&server.id.proxy).is_some()).collect();
        // All at the same time: a dead name server delays each look-up.
        let hosts: BTreeSet<&str> = by_name.iter().map(|server| server.host.as_str()).collect();
        let asking = hosts.into_iter().map(async |host| Some((host, resolve(host).await.ok()?)));
        let resolved: BTreeMap<&str, Vec<IpAddr>> = join_all(asking).await.into_iter().flatten().collect();
        for server in by_name {
            let proxy = server.id.proxy.as_str();
            if !known.contains_key(proxy) {
                known.insert(proxy, self.servers_of(proxy).await?);
            }
            let Some(row) = known.get(proxy).and_then(|rows| rows.get(&server.id.name)) else { continue };
            let followed = row.follows_name && server.has("resolvers");
            let Some((at, _)) = split_address(&row.address).filter(|_| !followed) else { continue };
            let Some(found) = resolved.get(server.host.as_str()) else { continue };
            let Some(to) = found.first().filter(|_| !found.contains(&at)) else { continue };
            if mismatches.get(&server.id) == Some(to) {
                self.move_to(server, *to).await?;
            } else {
                now.insert(server.id.clone(), *to);
            }
        }
        Ok(now)
    }

    async fn is_up(&self, id: &ServerId) -> Result<bool, String> {
        let stat = self.ask(SHOW_STAT).await?;
        let row = stat_of(&stat, id)?;
        Ok(row.and_then(|row| row.get("status")).is_some_and(|status| status.starts_with("UP")))
    }

    /// HAProxy's state of a server. `None` if HAProxy does not have it.
    async fn row(&self, id: &ServerId) -> Result<Option<Row>, String> {
        named(id)?;
        Ok(self.servers_of(&id.proxy).await?.remove(&id.name))
    }

    /// HAProxy's state of a proxy's servers, by name.
    async fn servers_of(&self, proxy: &str) -> Result<BTreeMap<String, Row>, String> {
        if !is_name(proxy) {
            return Err(format!("{proxy} cannot be put into a command"));
        }
        let states = self.ask(&format!("show servers state {proxy}")).await?;
        let mut addresses = addresses(&states)?;
        let field = |row: &StateRow<'_>, name: &str| row.get(name).copied().unwrap_or_default().to_owned();
        let server = |row: &StateRow<'_>| {
            let name = field(row, "srv_name");
            let server = Row {
                address: addresses.remove(&name)?,
                admin: field(row, "srv_admin_state").parse().unwrap_or(0),
                is_up: field(row, "srv_op_state") == RUNNING,
                follows_name: !["", "-"].contains(&field(row, "srv_fqdn").as_str()),
            };
            Some((name, server))
        };
        Ok(rows(&states)?.iter().filter_map(server).collect())
    }

    async fn ask(&self, text: &str) -> Result<String, String> {
        question(&self.haproxy.socket, text).await
    }

    async fn command(&self, commands: &str, expected: &str) -> Result<(), String> {
        command(&self.haproxy.socket, commands, expected).await
    }
}

/// HAProxy's state of a server.
struct Row {
    /// `host:port`
    address: String,
    /// The causes for which it takes no new sessions, as flags (`srv_admin_state`).
    admin: u32,
    /// Whether it is up by its checks.
    is_up: bool,
    /// Whether HAProxy has a name for it, and may resolve it.
    follows_name: bool,
}

/// The servers of departed members after this change. The agent writes them into the file before it gives a command, so
/// that the next agent can continue if this one dies.
pub(super) fn left_servers(before: &SealedFile, rendered: &str) -> BTreeSet<ServerId> {
    let named = |text: &str| lines::servers(text).map(|servers| servers.into_iter().map(|server| server.id));
    let (Ok(were), Ok(are)) = (named(&before.rendered), named(rendered)) else { return BTreeSet::new() };
    let are: BTreeSet<ServerId> = are.collect();
    before.left.iter().cloned().chain(were).filter(|id| !are.contains(id)).collect()
}

/// The commands that take a server out of maintenance and leave it down until its check succeeds. HAProxy considers it
/// to be up when it leaves maintenance, so it has weight 0 meanwhile.
fn enable(server: &Server) -> Result<String, String> {
    let id = named(&server.id)?;
    let checks = server.has("check");
    let mut commands = vec![format!("set server {id} weight 0")];
    commands.extend(checks.then(|| format!("enable health {id}")));
    commands.extend(server.has("agent-check").then(|| format!("enable agent {id}")));
    commands.push(format!("set server {id} state ready"));
    commands.extend(checks.then(|| format!("set server {id} health down")));
    commands.push(format!("set server {id} weight {}", server.value("weight").unwrap_or("1")));
    Ok(commands.join(";"))
}

/// A server's line in the answer to [`SHOW_STAT`].
fn stat_of<'a>(stat: &'a str, id: &ServerId) -> Result<Option<StatRow<'a>>, String> {
    let is =
        |row: &StatRow<'_>| row.get("pxname") == Some(id.proxy.as_str()) && row.get("svname") == Some(id.name.as_str());
    Ok(table(stat)?.into_iter().find(is))
}

/// The server's `proxy/name`. The error says that a command cannot contain it.
fn named(id: &ServerId) -> Result<String, String> {
    if is_name(&id.proxy) && is_name(&id.name) {
        Ok(id.to_string())
    } else {
        Err(format!("{id} cannot be put into a command"))
    }
}

/// The addresses of a host, which is a name or an address.
async fn resolve(host: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let found = Names::forgetful().addresses(host).await.map_err(|error| error.to_string())?;
    Ok(found.iter().map(SocketAddr::ip).collect())
}

#[cfg(test)]
#[path = "runtime_tests.rs"]
mod tests;
