use super::*;
use crate::act::haproxy::actor::ADD_SERVER_HELP;
use crate::act::haproxy::reload::{RELOAD_LIMIT, RELOAD_POLL_INTERVAL};
use crate::act::haproxy::servers::hold_command;
use crate::client::haproxy::addresses;
use crate::config::{HaproxyConfig, RenderConfig};
use crate::events::Events;
use crate::targets::Probes;
use std::io::Write as _;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::sync::watch as latest;
use tokio::time::sleep;
use warden_core::haproxy::file::MemberAddress;

const TEMPLATE: &str = "\
global
    stats socket {{ haproxy.socket }} mode 600 level admin expose-fd listeners
    server-state-file {{ haproxy.state_file }}
defaults
    mode tcp
    load-server-state-from-file global
    timeout connect 100ms
    timeout client 5s
    timeout server 5s
listen postgres
    bind unix@{{ haproxy.socket }}.pg
{% for member in members %}
    server {{ member.server }} {{ member.host }}:{{ member.port }} check inter 60s
{% endfor %}
    server wait 127.0.0.1:1 backup
";

pub(crate) fn place(member: &str, host: &str) -> MemberAddress {
    MemberAddress {
        member: member.into(),
        host: host.to_owned(),
        port: 5432,
        api: format!("http://{host}:8008/patroni"),
    }
}

pub(crate) fn of(places: &[MemberAddress]) -> Backends {
    Backends { places: places.to_vec(), max_connections: 100 }
}

pub(crate) fn fresh(backends: &Backends) -> Naming {
    Naming::fresh(backends, Slots::default())
}

fn file_of(backends: &Backends, rendered: String) -> SealedFile {
    SealedFile {
        backends: backends.clone(),
        left: BTreeSet::new(),
        disabled: BTreeMap::new(),
        naming: fresh(backends),
        rendered,
    }
}

/// The HAProxy under test: the installed one, or that of `HAPROXY_UNDER_TEST`.
fn program() -> &'static str {
    std::env::var("HAPROXY_UNDER_TEST").map_or("haproxy", |path| path.leak())
}

/// A real HAProxy, as in our image: a master process and a worker.
pub(crate) struct Running {
    pub actor: HaproxyFileActor,
    directory: tempfile::TempDir,
    _haproxy: tokio::process::Child,
    events: mpsc::Receiver<warden_core::event::Observed>,
}

impl Running {
    async fn start(members: &[MemberAddress]) -> Self {
        Self::with(TEMPLATE, members).await
    }

    pub async fn with(template: &str, members: &[MemberAddress]) -> Self {
        let backends = &of(members);
        let program = program();
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("template.j2"), template).unwrap();
        let file = RenderConfig {
            config_file: at("haproxy.cfg"),
            master_socket: at("master.sock"),
            template: Some(at("template.j2")),
            resolvers: None,
            spare_servers: 2,
        };
        let haproxy = HaproxyConfig { socket: at("admin.sock"), ..HaproxyConfig::nowhere() };
        let (sender, events) = mpsc::channel(8);
        let actor = HaproxyFileActor {
            haproxy,
            file,
            enforce: true,
            checker: program,
            add_server_help: ADD_SERVER_HELP,
            probes: Probes::default(),
            events: Events::new(sender, crate::clock::Clock::start()),
        };
        let rendered = actor.render(backends, &fresh(backends)).await.unwrap();
        std::fs::write(&actor.file.config_file, sealed(&file_of(backends, rendered.clone())).unwrap()).unwrap();
        std::fs::write(actor.file.wait_script(), WAIT_SCRIPT).unwrap();
        std::fs::write(
            actor.file.state_file(),
            actor.states(&file_of(backends, rendered.clone()), &BTreeMap::new()).unwrap(),
        )
        .unwrap();
        let master = format!("{},mode,600", actor.file.master_socket.display());
        let haproxy = Command::new(program)
            .args(["-W", "-db", "-S", &master, "-f"])
            .arg(&actor.file.config_file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let started = Instant::now();
        while actor.worker().await.is_err() {
            assert!(started.elapsed() < RELOAD_LIMIT, "HAProxy does not start");
            sleep(RELOAD_POLL_INTERVAL).await;
        }
        Self { actor, directory, _haproxy: haproxy, events }
    }

    pub async fn servers(&self) -> Vec<String> {
        let answer = ask(&self.actor.haproxy.socket, "show servers state postgres", ANSWER_LIMIT).await.unwrap();
        addresses(&answer).unwrap().into_keys().collect()
    }

    pub async fn is_current(&mut self, compared: &mut bool) -> bool {
        self.actor.report_file(compared).await.unwrap();
        match self.events.recv().await.unwrap().event {
            Event::Haproxy(HaproxyEvent::File(Reading::Present(Rendered { current, .. }))) => current,
            other => panic!("{other:?}"),
        }
    }

    pub fn template(&self, text: &str) {
        std::fs::write(self.directory.path().join("template.j2"), text).unwrap();
    }

    pub fn file(&self) -> String {
        std::fs::read_to_string(&self.actor.file.config_file).unwrap()
    }
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn another_template_needs_a_reload_and_every_server_begins_down() {
    let running = Running::start(&[place("a", "127.0.0.1")]).await;
    assert_eq!(running.servers().await, ["a", "wait"]);
    let before = running.actor.worker().await.unwrap();
    let both = of(&[place("a", "127.0.0.1"), place("b", "127.0.0.2")]);
    running.template(&TEMPLATE.replace("timeout client 5s", "timeout client 6s"));
    let why = running.actor.write(&both).await.unwrap().unwrap();
    assert!(why.contains("timeout client 6s"), "{why}");
    assert_eq!(running.servers().await, ["a", "b", "wait"]);
    assert_ne!(running.actor.worker().await.unwrap(), before, "another worker serves");
    assert_eq!(running.actor.read_file().await.unwrap().unwrap().backends, both);
    let stat = ask(&running.actor.haproxy.socket, "show stat -1 4 -1", ANSWER_LIMIT).await.unwrap();
    let down = stat.lines().filter(|line| line.contains(",DOWN")).count();
    assert_eq!(down, 2, "until a check or the agent raises them: {stat}");
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_file_that_haproxy_refuses_is_not_put_in_place_or_the_previous_one_is_restored() {
    let mut running = Running::start(&[place("a", "127.0.0.1")]).await;
    let (before, worker) = (running.file(), running.actor.worker().await.unwrap());
    let both = of(&[place("a", "127.0.0.1"), place("b", "127.0.0.2")]);
    running.template(&TEMPLATE.replace("mode tcp", "mode smoke"));
    let why = running.actor.write(&both).await.unwrap_err();
    assert!(why.contains("haproxy -c refuses it") && why.contains("smoke"), "{why}");
    assert_eq!(running.file(), before);
    running.template("{{ undefined }}");
    assert!(running.actor.write(&both).await.unwrap_err().contains("template.j2, line 1"));
    assert_eq!(running.actor.worker().await.unwrap(), worker, "the agent did not reload HAProxy");
    // Without a checker HAProxy itself refuses, and the agent restores the previous file.
    running.actor.checker = "no-such-haproxy";
    running.template(&TEMPLATE.replace("mode tcp", "mode smoke"));
    let why = running.actor.write(&both).await.unwrap_err();
    assert!(
        why.contains("does not accept the new configuration") && why.contains("restored the previous file"),
        "{why}"
    );
    assert_eq!(running.file(), before);
    assert_eq!(running.servers().await, ["a", "wait"]);
    assert_eq!(running.actor.worker().await.unwrap(), worker, "the worker that serves the previous file stays");
    assert!(!beside(&running.actor.file.config_file, PREVIOUS).exists());
    // The next change works.
    running.template(TEMPLATE);
    running.actor.write(&both).await.unwrap();
    assert_eq!(running.servers().await, ["a", "b", "wait"]);
}

/// HAProxy does not start with a file that it refuses.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_file_that_haproxy_refuses_does_not_outlive_the_death_of_the_agent() {
    let running = Running::start(&[place("a", "127.0.0.1")]).await;
    let actor = &running.actor;
    let (path, kept) = (&actor.file.config_file, beside(&actor.file.config_file, PREVIOUS));
    let before = running.file();
    let refused = {
        let file = actor.read_file().await.unwrap().unwrap();
        sealed(&SealedFile { rendered: file.rendered.replace("mode tcp", "mode smoke"), ..file }).unwrap()
    };
    write(&kept, &before).await.unwrap();
    write(path, &refused).await.unwrap();
    actor.restore_previous().await.unwrap();
    assert_eq!((running.file(), kept.exists()), (before.clone(), false));
    // The agent leaves an edited file alone, and does nothing without a previous file.
    write(&kept, &before).await.unwrap();
    write(path, &format!("{refused}# mended\n")).await.unwrap();
    actor.restore_previous().await.unwrap();
    assert_eq!((running.file(), kept.exists()), (format!("{refused}# mended\n"), false));
    actor.restore_previous().await.unwrap();
}

/// A reload keeps the servers that an operator has disabled. A restart of HAProxy enables them.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_server_that_an_operator_disabled_stays_disabled_in_a_reload() {
    let (a, b, c) = (place("a", "127.0.0.1"), place("b", "127.0.0.2"), place("c", "127.0.0.3"));
    let running = Running::start(&[a.clone(), b.clone(), c.clone()]).await;
    let ask = async |question: &str| ask(&running.actor.haproxy.socket, question, ANSWER_LIMIT).await.unwrap();
    ask("set server postgres/a state maint;set server postgres/b state drain").await;
    running.template(&TEMPLATE.replace("timeout client 5s", "timeout client 6s"));
    assert!(running.actor.write(&of(&[a, b, c])).await.unwrap().is_some());
    let stat = ask("show stat -1 4 -1").await;
    let status = |server: &str| {
        let line = stat.lines().find(|line| line.starts_with(&format!("postgres,{server},"))).unwrap();
        line.split(',').nth(17).unwrap().to_owned()
    };
    assert_eq!((status("a").as_str(), status("c").as_str()), ("MAINT", "DOWN"));
    assert!(status("b").starts_with("D"), "{}", status("b"));
    let states = ask("show servers state postgres").await;
    assert!(states.lines().any(|line| line.contains(" b ") && line.split(' ').nth(6) == Some("8")), "{states}");
    let states = std::fs::read_to_string(running.actor.file.state_file()).unwrap();
    assert!(states.lines().skip(2).all(|line| line.split(' ').nth(6) == Some("0")), "{states}");
}

/// It needs a file system of 64 KiB, which `tests/run` mounts.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_full_disk_loses_nothing() {
    let mut running = Running::start(&[place("a", "127.0.0.1")]).await;
    let small = Path::new("/small");
    let (path, text) = (small.join("haproxy.cfg"), running.file());
    std::fs::write(&path, &text).unwrap();
    running.actor.file.config_file = path.clone();
    let mut filler = std::fs::File::create(small.join("filler")).unwrap();
    while filler.write_all(&[0; 512]).is_ok() {}
    let both = of(&[place("a", "127.0.0.1"), place("b", "127.0.0.2")]);
    let why = running.actor.write(&both).await.unwrap_err();
    assert!(why.contains("cannot be written") && why.contains("No space left"), "{why}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    assert_eq!(running.servers().await, ["a", "wait"]);
    let mut left: Vec<_> = std::fs::read_dir(small).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["filler", "haproxy.cfg"]);
}

/// The previous agent may have died before the reload.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_file_that_was_put_in_place_and_never_reloaded_is_not_current() {
    let mut running = Running::start(&[place("a", "127.0.0.1")]).await;
    let both = of(&[place("a", "127.0.0.1"), place("b", "127.0.0.2")]);
    let text = sealed(&file_of(&both, running.actor.render(&both, &fresh(&both)).await.unwrap())).unwrap();
    write(&running.actor.file.config_file, &text).await.unwrap();
    assert!(!running.is_current(&mut false).await);
    // After a failed attempt the file alone counts.
    assert!(running.is_current(&mut true).await);
    running.actor.write(&both).await.unwrap();
    assert_eq!(running.servers().await, ["a", "b", "wait"]);
    let mut compared = false;
    assert!(running.is_current(&mut compared).await && compared);
    // Without an answer of HAProxy the file alone counts.
    running.actor.haproxy.socket = "/nowhere/admin.sock".into();
    std::fs::write(
        &running.actor.file.config_file,
        sealed(&file_of(&both, running.actor.render(&both, &fresh(&both)).await.unwrap())).unwrap(),
    )
    .unwrap();
    let mut compared = false;
    assert!(running.is_current(&mut compared).await && !compared, "the agent asks again");
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_file_without_a_valid_seal_is_left_alone() {
    let running = Running::start(&[place("a", "127.0.0.1")]).await;
    let both = of(&[place("a", "127.0.0.1"), place("b", "127.0.0.2")]);
    let edited = running.file().replace("timeout client 5s", "timeout client 6s");
    std::fs::write(&running.actor.file.config_file, &edited).unwrap();
    assert!(running.actor.write(&both).await.unwrap_err().contains("edited by hand"));
    assert_eq!(running.file(), edited);
    std::fs::write(&running.actor.file.config_file, "global\n").unwrap();
    assert!(running.actor.write(&both).await.unwrap_err().contains("not written by Warden"));
}

/// Answers each client with the newest value of `answer`.
pub(crate) async fn answers(address: &str, answer: latest::Receiver<&'static str>) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = *answer.borrow();
            tokio::spawn(async move {
                // A check asks first. A client of this server waits for the answer.
                let mut question = [0; 1024];
                drop(timeout(Duration::from_millis(50), stream.read(&mut question)).await);
                drop(stream.write_all(answer.as_bytes()).await);
            });
        }
    });
}

/// The first bytes that a new client of the proxy receives; none if HAProxy refuses it.
async fn first_answer() -> String {
    let mut stream = TcpStream::connect("127.0.0.1:15432").await.unwrap();
    let mut answer = String::new();
    drop(stream.read_to_string(&mut answer).await);
    answer
}

/// HAProxy with the built-in template, one member whose server answers "a", and the answer of its Patroni.
async fn with_built_in_template() -> (Running, latest::Sender<&'static str>) {
    let (patroni, says) = latest::channel("HTTP/1.0 200 OK\r\n\r\n");
    answers("127.0.0.2:8008", says).await;
    answers("127.0.0.2:5432", latest::channel("a").1).await;
    let template = crate::act::haproxy::template::TEMPLATE.replace("bind *:5432", "bind 127.0.0.1:5432");
    let template = template.replace("127.0.0.1:5432", "127.0.0.1:15432");
    (Running::with(&template, &[place("a", "127.0.0.2")]).await, patroni)
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn every_waiting_connection_is_woken_when_the_hold_ends() {
    const ROUNDS: usize = 20;
    const CLIENTS: u64 = 100;
    let (running, _patroni) = with_built_in_template().await;
    assert_eq!(first_answer().await, "a");
    let tell = async |command: &str| ask(&running.actor.haproxy.socket, command, ANSWER_LIMIT).await.unwrap();
    let (hold, release) = (hold_command("warden_hold_postgres", true), hold_command("warden_hold_postgres", false));
    for round in 0..ROUNDS {
        tell(&hold).await;
        let mut clients = tokio::task::JoinSet::new();
        for nth in 0..CLIENTS {
            clients.spawn(async move {
                sleep(Duration::from_millis(nth * 3)).await;
                let answer = first_answer().await;
                (answer, Instant::now())
            });
        }
        sleep(Duration::from_millis(500)).await;
        tell(&release).await;
        let over = Instant::now();
        for (answer, at) in clients.join_all().await {
            assert_eq!(answer, "a");
            // A connection that is not woken waits for the rest of 5 s.
            let waited = at.duration_since(over);
            assert!(waited < Duration::from_secs(3), "round {round}: {waited:?} after the hold ended");
        }
    }
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_connection_that_waits_during_a_reload_continues_in_the_new_worker() {
    let (running, _patroni) = with_built_in_template().await;
    assert_eq!(first_answer().await, "a");
    ask(&running.actor.haproxy.socket, &hold_command("warden_hold_postgres", true), ANSWER_LIMIT).await.unwrap();
    let clients: tokio::task::JoinSet<String> = (0..20).map(|_| first_answer()).collect();
    sleep(Duration::from_millis(300)).await;
    running.actor.reload(&[]).await.unwrap();
    // The new worker has no hold, and its checks find the server up. In the old one they would wait in vain.
    assert_eq!(clients.join_all().await, ["a"; 20]);
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_new_connection_waits_during_a_hold_and_while_no_server_is_up() {
    let (running, patroni) = with_built_in_template().await;
    let tell = async |command: &str| ask(&running.actor.haproxy.socket, command, ANSWER_LIMIT).await.unwrap();
    let (hold, release) = (hold_command("warden_hold_postgres", true), hold_command("warden_hold_postgres", false));
    // The connection waits until the checks have found a server up.
    assert_eq!(first_answer().await, "a");
    // The checks find the server up, and the hold counts all the same.
    assert_eq!(tell(&hold).await.trim(), "");
    let waiting = tokio::spawn(first_answer());
    sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished(), "it did not wait");
    assert_eq!(tell(&release).await.trim(), "");
    assert_eq!(waiting.await.unwrap(), "a");
    // The agent does not refresh the hold, so it expires.
    tell(&hold).await;
    assert_eq!(first_answer().await, "a");
    // The wait for a server that is up has a limit.
    patroni.send("HTTP/1.0 503 no\r\n\r\n").unwrap();
    let is_down = |stat: &str| stat.lines().any(|line| line.starts_with("postgres,a,") && line.contains(",DOWN"));
    while !is_down(&tell("show stat -1 4 -1").await) {
        sleep(RELOAD_POLL_INTERVAL).await;
    }
    let asked = Instant::now();
    assert_eq!(first_answer().await, "");
    assert!(asked.elapsed() > Duration::from_secs(4), "it did not wait");
}
