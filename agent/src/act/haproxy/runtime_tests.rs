//! Servers are added, moved and deleted in a real HAProxy with the built-in template, and no session is cut.

use super::*;
use crate::act::haproxy::file::tests::{Running, answers, fresh, of, place};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch as latest;
use tokio::time::{sleep, timeout};
use warden_core::haproxy::file::{Backends, MemberAddress};

const PRIMARY: &str = "HTTP/1.0 200 OK\r\n\r\n";
const STANDBY: &str = "HTTP/1.0 503 no\r\n\r\n";

/// A member at a local address: its Patroni, which answers whether it leads, and its server. The server sends its
/// letter, and ends the session when its client does.
async fn member(letter: &'static str, address: &str, leads: bool) -> latest::Sender<&'static str> {
    let (patroni, says) = latest::channel(if leads { PRIMARY } else { STANDBY });
    answers(&format!("{address}:8008"), says).await;
    let listener = tokio::net::TcpListener::bind(format!("{address}:5432")).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                drop(stream.write_all(letter.as_bytes()).await);
                drop(stream.read(&mut [0; 16]).await);
            });
        }
    });
    patroni
}

/// An open session, and the letter of its server.
struct Session(TcpStream, String);

impl Session {
    async fn open(port: u16) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut letter = [0; 1];
        let read = timeout(Duration::from_secs(10), stream.read(&mut letter)).await.unwrap().unwrap();
        Self(stream, String::from_utf8_lossy(&letter[..read]).into_owned())
    }

    async fn lives(&mut self) -> bool {
        timeout(Duration::from_millis(50), self.0.read(&mut [0; 1])).await.is_err()
    }
}

async fn with_built_in_template(port: u16, members: &[MemberAddress]) -> Running {
    let template = crate::act::haproxy::template::TEMPLATE
        .replace("bind *:5432", &format!("bind 127.0.0.1:{port}"))
        .replace("127.0.0.1:5432", &format!("127.0.0.1:{port}"))
        .replace("bind *:5001", &format!("bind 127.0.0.1:{}", port + 1))
        .replace("bind *:7000", &format!("bind 127.0.0.1:{}", port + 2));
    Running::with(&template, members).await
}

async fn status(running: &Running, server: &str) -> String {
    let stat = running.actor.ask(SHOW_STAT).await.unwrap();
    let (proxy, name) = server.split_once('/').unwrap();
    let id = ServerId { proxy: proxy.to_owned(), name: name.to_owned() };
    let row = stat_of(&stat, &id).unwrap();
    row.map_or_else(|| "none".to_owned(), |row| row.get("status").unwrap().to_owned())
}

async fn becomes(running: &Running, server: &str, wanted: &str) {
    let began = Instant::now();
    loop {
        let now = status(running, server).await;
        if now == wanted {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{server} is {now} and not {wanted}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn members_join_move_and_leave_and_no_session_is_cut() {
    let a = member("a", "127.0.0.11", true).await;
    let _b = member("b", "127.0.0.12", false).await;
    let _elsewhere = member("B", "127.0.0.13", false).await;
    let running = with_built_in_template(15_440, &[place("a", "127.0.0.11")]).await;
    let worker = running.actor.worker().await.unwrap();
    let mut old = Session::open(15_440).await;
    assert_eq!(old.1, "a");
    // b joins. It is never up before its check has found that it leads.
    let both = of(&[place("a", "127.0.0.11"), place("b", "127.0.0.12")]);
    assert_eq!(running.actor.write(&both).await.unwrap(), None, "no reload");
    for _ in 0..50 {
        assert_eq!(status(&running, "postgres/b").await, "DOWN");
        sleep(Duration::from_millis(20)).await;
    }
    // The same change again does nothing.
    assert_eq!(running.actor.write(&both).await.unwrap(), None);
    // b leads.
    a.send(STANDBY).unwrap();
    _b.send(PRIMARY).unwrap();
    becomes(&running, "postgres/b", "UP").await;
    let mut new = Session::open(15_440).await;
    assert_eq!(new.1, "b");
    // b moves. Its session continues, and new ones reach it there once its Patroni answers that it leads.
    let moved = of(&[place("a", "127.0.0.11"), place("b", "127.0.0.13")]);
    assert_eq!(running.actor.write(&moved).await.unwrap(), None);
    assert_ne!(status(&running, "postgres/b").await, "UP", "its check has not run there yet");
    _elsewhere.send(PRIMARY).unwrap();
    becomes(&running, "postgres/b", "UP").await;
    let mut there = Session::open(15_440).await;
    assert_eq!(there.1, "B");
    // The limit of connections rises.
    let more = Backends { max_connections: 300, ..moved.clone() };
    assert_eq!(running.actor.write(&more).await.unwrap(), None);
    let stat = running.actor.ask("show stat -1 4 -1").await.unwrap();
    let limits: Vec<_> = table(&stat).unwrap().iter().filter_map(|row| row.get("slim")?.parse::<u32>().ok()).collect();
    assert_eq!(limits, [290; 4], "{stat}");
    // b leaves with open sessions.
    let alone = Backends { places: vec![place("a", "127.0.0.11")], ..more.clone() };
    assert_eq!(running.actor.write(&alone).await.unwrap(), None);
    assert_eq!(status(&running, "postgres/b").await, "DRAIN");
    running.actor.clean_up(&mut Mismatches::new()).await;
    assert_eq!(status(&running, "postgres/b").await, "DRAIN", "it has sessions");
    assert!(new.lives().await && there.lives().await);
    assert!(!running.file().contains("server b "), "the file does not name b any more");
    // b is back before its server was deleted, and leaves again.
    assert_eq!(running.actor.write(&more).await.unwrap(), None);
    becomes(&running, "postgres/b", "UP").await;
    assert_eq!(running.actor.write(&alone).await.unwrap(), None);
    drop((new, there));
    let began = Instant::now();
    while status(&running, "postgres/b").await != "none" {
        assert!(began.elapsed() < Duration::from_secs(20), "the server is not deleted");
        running.actor.clean_up(&mut Mismatches::new()).await;
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(running.actor.read_file().await.unwrap().unwrap().left, BTreeSet::new());
    assert_eq!(running.actor.write(&more).await.unwrap(), None, "b joins again");
    becomes(&running, "postgres/b", "UP").await;
    assert_eq!(running.actor.worker().await.unwrap(), worker, "HAProxy was never reloaded");
    // The failed checks of a cut its session, as the configuration says.
    assert!(!old.lives().await);
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_session_with_the_primary_outlives_members_that_join_and_leave() {
    let _a = member("a", "127.0.0.21", true).await;
    let running = with_built_in_template(15_450, &[place("a", "127.0.0.21"), place("b", "127.0.0.22")]).await;
    let mut session = Session::open(15_450).await;
    let (a, b) = (place("a", "127.0.0.21"), place("b", "127.0.0.22"));
    for places in [[a.clone()].as_slice(), &[a.clone(), b.clone()], &[a.clone(), b, place("c", "127.0.0.23")], &[a]] {
        assert_eq!(running.actor.write(&of(places)).await.unwrap(), None);
        running.actor.clean_up(&mut Mismatches::new()).await;
    }
    assert!(session.lives().await);
    assert_eq!(running.servers().await, ["a", "wait"]);
    // The name resolves to another address. The agent moves the server after two looks.
    let named = of(&[place("a", "localhost")]);
    assert_eq!(running.actor.write(&named).await.unwrap(), None);
    assert!(session.lives().await, "the member has another server, and the old one keeps its sessions");
    let move_away = "set server postgres/localhost addr 127.0.0.99 port 5432";
    running.actor.ask(move_away).await.unwrap();
    let mut mismatches = Mismatches::new();
    let address = async || {
        let id = ServerId { proxy: "postgres".to_owned(), name: "localhost".to_owned() };
        running.actor.row(&id).await.unwrap().unwrap().address
    };
    running.actor.clean_up(&mut mismatches).await;
    assert_eq!(address().await, "127.0.0.99:5432");
    running.actor.clean_up(&mut mismatches).await;
    assert_ne!(address().await, "127.0.0.99:5432");
    assert!(session.lives().await);
}

/// A change that HAProxy refuses at its socket needs a reload.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_change_that_haproxy_refuses_at_runtime_is_applied_by_a_reload() {
    // HAProxy adds no server to a backend whose algorithm is static.
    let template = "defaults\n  mode tcp\n  timeout connect 1s\n  timeout client 5s\n  timeout server 5s\n  \
        load-server-state-from-file global\nglobal\n  stats socket {{ haproxy.socket }} mode 600 level admin expose-fd \
        listeners\n  server-state-file {{ haproxy.state_file }}\nlisten postgres\n  \
        bind unix@{{ haproxy.socket }}.pg\n  balance static-rr\n{% for member in members %}\n  \
        server {{ member.server }} {{ member.host }}:{{ member.port }} check inter 60s\n{% endfor %}\n";
    let running = Running::with(template, &[place("a", "127.0.0.1")]).await;
    let worker = running.actor.worker().await.unwrap();
    let both = of(&[place("a", "127.0.0.1"), place("b", "127.0.0.2")]);
    let why = running.actor.write(&both).await.unwrap().unwrap();
    assert!(why.contains("add server") && why.contains("dynamic load balancing"), "{why}");
    assert_eq!(running.servers().await, ["a", "b"]);
    let reloaded = running.actor.worker().await.unwrap();
    assert_ne!(reloaded, worker);
    // The departure of a member needs no reload.
    assert_eq!(running.actor.write(&of(&[place("a", "127.0.0.1")])).await.unwrap(), None);
    running.actor.clean_up(&mut Mismatches::new()).await;
    assert_eq!((running.servers().await, running.actor.worker().await.unwrap()), (vec!["a".to_owned()], reloaded));
}

/// A server of any name and port starts down after a reload, and a file with quotes is reloaded as well.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_template_may_use_any_names_and_ports_for_servers() {
    let template = "global\n  stats socket {{ haproxy.socket }} mode 600 level admin expose-fd listeners\n  \
        server-state-file {{ haproxy.state_file }}\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout client 5s\n  \
        timeout server 5s\n  load-server-state-from-file global\nlisten postgres\n  \
        bind unix@{{ haproxy.socket }}.pg\n  {% for member in members %}\n  \
        server {{ member.name }}-pooled {{ member.host }}:6432 check inter 60s\n{% endfor %}\n";
    let running = Running::with(template, &[place("a", "127.0.0.1")]).await;
    let address = async |name: &str| {
        let id = ServerId { proxy: "postgres".to_owned(), name: name.to_owned() };
        running.actor.row(&id).await.unwrap().map(|row| row.address)
    };
    running.template(&template.replace("client 5s", "client 6s"));
    let both = of(&[place("a", "127.0.0.1"), place("b", "127.0.0.2")]);
    assert!(running.actor.write(&both).await.unwrap().unwrap().contains("client 6s"));
    assert_eq!(address("b-pooled").await.unwrap(), "127.0.0.2:6432");
    assert_eq!(status(&running, "postgres/b-pooled").await, "DOWN");
    running.template(&template.replace(":6432", "':6432'"));
    for places in [[place("a", "127.0.0.1")].as_slice(), &[place("a", "127.0.0.1"), place("c", "127.0.0.3")]] {
        assert!(running.actor.write(&of(places)).await.unwrap().is_some());
    }
    assert_eq!(running.servers().await, ["a-pooled", "c-pooled"]);
    // A departure is no reason for a reload, also where the agent cannot read the servers' lines.
    let worker = running.actor.worker().await.unwrap();
    assert_eq!(running.actor.write(&of(&[place("a", "127.0.0.1")])).await.unwrap(), None);
    assert!(!running.file().contains("c-pooled"));
    assert_eq!(running.actor.worker().await.unwrap(), worker);
    assert_eq!(running.servers().await, ["a-pooled", "c-pooled"]);
}

/// An operator puts a server out of service, and stops its node for some time.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_server_that_an_operator_disabled_stays_disabled_while_its_member_is_away() {
    let (a, b, c) = (place("a", "127.0.0.61"), place("b", "127.0.0.62"), place("c", "127.0.0.63"));
    let running = with_built_in_template(15_470, &[a.clone(), b.clone(), c.clone()]).await;
    running.actor.ask("set server postgres/b state maint;set server postgres/c state drain").await.unwrap();
    assert_eq!(running.actor.write(&of(std::slice::from_ref(&a))).await.unwrap(), None);
    assert_eq!(status(&running, "postgres/b").await, "MAINT", "nothing takes it out of maintenance");
    let began = Instant::now();
    while running.servers().await != ["a", "wait"] {
        assert!(began.elapsed() < Duration::from_secs(20), "the servers are not deleted");
        running.actor.clean_up(&mut Mismatches::new()).await;
        sleep(Duration::from_millis(50)).await;
    }
    // Another change in between does not forget it.
    assert_eq!(running.actor.write(&of(&[a.clone(), b.clone()])).await.unwrap(), None);
    assert_eq!(running.actor.write(&of(&[a, b, c])).await.unwrap(), None);
    assert_eq!(status(&running, "postgres/b").await, "MAINT");
    assert!(status(&running, "postgres/c").await.starts_with("D"));
    let states = running.actor.ask("show servers state postgres").await.unwrap();
    assert!(states.lines().any(|line| line.contains(" c ") && line.split(' ').nth(6) == Some("8")), "{states}");
}

/// The agent writes the file and dies before it gives a command. The next agent continues.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn after_the_death_of_an_agent_the_next_one_completes_its_change() {
    let running = with_built_in_template(15_460, &[place("a", "127.0.0.31"), place("b", "127.0.0.32")]).await;
    let worker = running.actor.worker().await.unwrap();
    let written = async |places: &[MemberAddress]| {
        let backends = of(places);
        let before = running.actor.read_file().await.unwrap().unwrap();
        let rendered = running.actor.render(&backends, &fresh(&backends)).await.unwrap();
        let (left, naming) = (left_servers(&before, &rendered), fresh(&backends));
        let file = SealedFile { left, disabled: BTreeMap::new(), backends: backends.clone(), naming, rendered };
        write(&running.actor.file.config_file, &sealed(&file).unwrap()).await.unwrap();
        backends
    };
    // b leaves without a command. The agent deletes its server, and b joins without a command.
    let alone = written(&[place("a", "127.0.0.31")]).await;
    running.actor.clean_up(&mut Mismatches::new()).await;
    assert_eq!(running.servers().await, ["a", "wait"]);
    let both = written(&[place("a", "127.0.0.31"), place("b", "127.0.0.32")]).await;
    running.actor.clean_up(&mut Mismatches::new()).await;
    assert_eq!(running.actor.write(&both).await.unwrap(), None);
    assert_eq!(status(&running, "postgres/b").await, "DOWN");
    // A member that is back keeps its server, although it had left by the previous file.
    assert_eq!(running.actor.write(&alone).await.unwrap(), None);
    written(&[place("a", "127.0.0.31"), place("b", "127.0.0.32")]).await;
    running.actor.clean_up(&mut Mismatches::new()).await;
    assert_ne!(status(&running, "postgres/b").await, "none");
    assert_eq!(running.actor.worker().await.unwrap(), worker);
}

fn member_of(letter: &str) -> MemberAddress {
    place(letter, &format!("127.0.0.4{}", u32::from(letter.as_bytes()[0] - b'`')))
}

fn members_of(letters: &[&str]) -> Backends {
    of(&letters.iter().map(|letter| member_of(letter)).collect::<Vec<_>>())
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_member_that_joins_takes_a_prepared_server_if_haproxy_adds_none() {
    let a = member("a", "127.0.0.41", true).await;
    let _b = member("b", "127.0.0.42", false).await;
    let c = member("c", "127.0.0.43", false).await;
    let d = member("d", "127.0.0.44", false).await;
    let mut running = with_built_in_template(15_470, &members_of(&["a"]).places).await;
    running.actor.add_server_help = "no such command";
    // The first member that joins needs a reload, which prepares servers.
    let why = running.actor.write(&members_of(&["a", "b"])).await.unwrap().unwrap();
    assert!(why.contains("cannot be added: before 2.6"), "{why}");
    assert_eq!(running.servers().await, ["wait", "warden1", "warden2", "warden3", "warden4"]);
    assert_eq!(status(&running, "postgres/warden3").await, "MAINT");
    becomes(&running, "postgres/warden1", "UP").await;
    let worker = running.actor.worker().await.unwrap();
    let mut compared = false;
    assert!(running.is_current(&mut compared).await);
    let mut old = Session::open(15_470).await;
    // The next one needs none, and is not up before its check has found that it leads.
    assert_eq!(running.actor.write(&members_of(&["a", "b", "c"])).await.unwrap(), None);
    for _ in 0..50 {
        assert_eq!(status(&running, "postgres/warden3").await, "DOWN");
        sleep(Duration::from_millis(20)).await;
    }
    c.send(PRIMARY).unwrap();
    becomes(&running, "postgres/warden3", "UP").await;
    assert!(old.lives().await);
    a.send(STANDBY).unwrap();
    becomes(&running, "postgres/warden1", "DOWN").await;
    let mut at_c = Session::open(15_470).await;
    assert_eq!(at_c.1, "c");
    // c leaves, and d takes its server while it has sessions. They continue, and new ones wait for a check.
    assert_eq!(running.actor.write(&members_of(&["a", "b"])).await.unwrap(), None);
    assert_eq!(status(&running, "postgres/warden3").await, "DRAIN");
    running.actor.clean_up(&mut Mismatches::new()).await;
    assert_eq!(status(&running, "postgres/warden3").await, "DRAIN", "it has sessions");
    assert_eq!(running.actor.write(&members_of(&["a", "b", "d"])).await.unwrap(), None);
    assert_ne!(status(&running, "postgres/warden3").await, "UP");
    assert!(at_c.lives().await);
    d.send(PRIMARY).unwrap();
    becomes(&running, "postgres/warden3", "UP").await;
    assert_eq!(Session::open(15_470).await.1, "d");
    // d leaves. The server gets the address of the prepared ones again, also if an agent died in between.
    assert_eq!(running.actor.write(&members_of(&["a", "b"])).await.unwrap(), None);
    drop(at_c);
    running.actor.ask("set server postgres/warden3 state ready").await.unwrap();
    let began = Instant::now();
    let id = ServerId { proxy: "postgres".to_owned(), name: "warden3".to_owned() };
    while running.actor.row(&id).await.unwrap().unwrap().address != "192.0.2.1:1" {
        assert!(began.elapsed() < Duration::from_secs(20), "it is {}", status(&running, "postgres/warden3").await);
        running.actor.clean_up(&mut Mismatches::new()).await;
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(status(&running, "postgres/warden3").await, "MAINT");
    assert_eq!(running.actor.worker().await.unwrap(), worker);
    more_members_than_servers(running, &worker).await;
}

/// A reload prepares more servers. An HAProxy that adds servers at runtime then needs none.
async fn more_members_than_servers(mut running: Running, worker: &(String, String)) {
    let five = members_of(&["a", "b", "c", "d", "e"]);
    assert!(running.actor.write(&five).await.unwrap().is_some());
    assert_eq!(running.servers().await.len(), 1 + 5 + 2);
    assert_ne!(running.actor.worker().await.unwrap(), *worker);
    if running.actor.ask("help").await.unwrap().contains(crate::act::haproxy::actor::ADD_SERVER_HELP) {
        running.actor.add_server_help = crate::act::haproxy::actor::ADD_SERVER_HELP;
        let all = members_of(&["a", "b", "c", "d", "e", "f", "g", "h"]);
        assert_eq!(running.actor.write(&all).await.unwrap(), None);
        let began = Instant::now();
        while running.servers().await != ["a", "b", "c", "d", "e", "f", "g", "h", "wait"] {
            assert!(began.elapsed() < Duration::from_secs(20), "{:?}", running.servers().await);
            running.actor.clean_up(&mut Mismatches::new()).await;
            sleep(Duration::from_millis(100)).await;
        }
    }
}
