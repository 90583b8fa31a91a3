use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch as latest;

const PROCESSES: &str = "#<PID>          <type>          <reloads>       <uptime>        <version>      \n\
    4163            master          3 [failed: 2]   0d00h00m03s     2.6.12-1+deb12u4\n# workers\n\
    4188            worker          0               0d00h00m03s     2.6.12-1+deb12u4\n# programs\n";

#[test]
fn failed_reloads_are_counted_where_the_master_says_so() {
    assert_eq!(failed_reloads(PROCESSES), Some(2));
    assert_eq!(failed_reloads(&PROCESSES.replace(" [failed: 2]", "")), None, "HAProxy 2.4");
    assert_eq!(failed_reloads(""), None);
}

#[tokio::test]
async fn a_file_is_written_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("haproxy.cfg");
    put(&path, "one").await.unwrap();
    put(&path, "two").await.unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    let nowhere = put(&directory.path().join("nowhere/haproxy.cfg"), "three").await.unwrap_err();
    assert!(nowhere.contains("nowhere/haproxy.cfg cannot be written"), "{nowhere}");
}

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

fn place(member: &str, host: &str) -> Place {
    Place { member: member.into(), host: host.to_owned(), port: 5432, api: format!("http://{host}:8008/patroni") }
}

/// A real HAProxy, as in our image: a master process and a worker.
struct Running {
    layouts: Layouts,
    directory: tempfile::TempDir,
    _haproxy: tokio::process::Child,
    events: mpsc::Receiver<warden_core::event::Observed>,
}

impl Running {
    async fn start(layout: &[Place]) -> Self {
        Self::with(TEMPLATE, layout).await
    }

    async fn with(template: &str, layout: &[Place]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("template.j2"), template).unwrap();
        let file = RenderConfig {
            config_file: at("haproxy.cfg"),
            master_socket: at("master.sock"),
            template: Some(at("template.j2")),
            resolvers: None,
        };
        let haproxy = HaproxyConfig { socket: at("admin.sock"), ..HaproxyConfig::nowhere() };
        let (sender, events) = mpsc::channel(8);
        let layouts = Layouts {
            haproxy,
            file,
            checker: "haproxy",
            probes: Probes::default(),
            events: Events::new(sender, crate::clock::Clock::start()),
        };
        let rendered = layouts.render(layout).await.unwrap();
        std::fs::write(&layouts.file.config_file, sealed(layout, &rendered).unwrap()).unwrap();
        std::fs::write(layouts.file.wait_script(), WAIT_SCRIPT).unwrap();
        std::fs::write(layouts.file.state_file(), states(&layouts.haproxy, layout).unwrap()).unwrap();
        let master = format!("{},mode,600", layouts.file.master_socket.display());
        let haproxy = Command::new("haproxy")
            .args(["-W", "-db", "-S", &master, "-f"])
            .arg(&layouts.file.config_file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let started = Instant::now();
        while layouts.worker().await.is_err() {
            assert!(started.elapsed() < RELOAD, "HAProxy does not start");
            sleep(LOOK).await;
        }
        Self { layouts, directory, _haproxy: haproxy, events }
    }

    async fn servers(&self) -> Vec<String> {
        let answer = ask(&self.layouts.haproxy.socket, "show servers state postgres", ANSWER).await.unwrap();
        addresses(&answer).unwrap().into_keys().collect()
    }

    async fn is_current(&mut self, compared: &mut bool) -> bool {
        self.layouts.tell_what_there_is(compared).await.unwrap();
        match self.events.recv().await.unwrap().event {
            Event::Layout(Reading::Present(Rendered { current, .. })) => current,
            other => panic!("{other:?}"),
        }
    }

    fn template(&self, text: &str) {
        std::fs::write(self.directory.path().join("template.j2"), text).unwrap();
    }

    fn file(&self) -> String {
        std::fs::read_to_string(&self.layouts.file.config_file).unwrap()
    }
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_member_that_comes_is_served_after_a_reload_and_its_server_begins_down() {
    let running = Running::start(&[place("a", "127.0.0.1")]).await;
    assert_eq!(running.servers().await, ["a", "wait"]);
    let before = running.layouts.worker().await.unwrap();
    let both = [place("a", "127.0.0.1"), place("b", "127.0.0.2")];
    running.layouts.write(&both).await.unwrap();
    assert_eq!(running.servers().await, ["a", "b", "wait"]);
    assert_ne!(running.layouts.worker().await.unwrap(), before, "another worker serves");
    assert_eq!(running.layouts.there_is().await.unwrap().unwrap().0, both);
    let stat = ask(&running.layouts.haproxy.socket, "show stat -1 4 -1", ANSWER).await.unwrap();
    let down = stat.lines().filter(|line| line.contains(",DOWN")).count();
    assert_eq!(down, 2, "until a check, or we, have found them up: {stat}");
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn what_haproxy_does_not_take_is_not_put_in_place_or_taken_back() {
    let mut running = Running::start(&[place("a", "127.0.0.1")]).await;
    let (before, worker) = (running.file(), running.layouts.worker().await.unwrap());
    let both = [place("a", "127.0.0.1"), place("b", "127.0.0.2")];
    running.template(&TEMPLATE.replace("mode tcp", "mode smoke"));
    let why = running.layouts.write(&both).await.unwrap_err();
    assert!(why.contains("haproxy -c refuses it") && why.contains("smoke"), "{why}");
    assert_eq!(running.file(), before);
    running.template("{{ nobody }}");
    assert!(running.layouts.write(&both).await.unwrap_err().contains("template.j2, line 1"));
    assert_eq!(running.layouts.worker().await.unwrap(), worker, "it was not even reloaded");
    // Where there is no program to check with, HAProxy itself refuses, and everything is put back.
    running.layouts.checker = "no-such-haproxy";
    running.template(&TEMPLATE.replace("mode tcp", "mode smoke"));
    let why = running.layouts.write(&both).await.unwrap_err();
    assert!(why.contains("does not take the new configuration") && why.contains("is back"), "{why}");
    assert_eq!(running.file(), before);
    assert_eq!(running.servers().await, ["a", "wait"]);
    // And it goes on from there.
    running.template(TEMPLATE);
    running.layouts.write(&both).await.unwrap();
    assert_eq!(running.servers().await, ["a", "b", "wait"]);
}

/// A file system of 64 KiB, which `tests/run` mounts for it.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_full_disk_loses_nothing() {
    let mut running = Running::start(&[place("a", "127.0.0.1")]).await;
    let small = std::path::Path::new("/small");
    let (path, text) = (small.join("haproxy.cfg"), running.file());
    std::fs::write(&path, &text).unwrap();
    running.layouts.file.config_file = path.clone();
    let mut filler = std::fs::File::create(small.join("filler")).unwrap();
    while filler.write_all(&[0; 512]).is_ok() {}
    let both = [place("a", "127.0.0.1"), place("b", "127.0.0.2")];
    let why = running.layouts.write(&both).await.unwrap_err();
    assert!(why.contains("cannot be written") && why.contains("No space left"), "{why}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    assert_eq!(running.servers().await, ["a", "wait"]);
    let mut left: Vec<_> = std::fs::read_dir(small).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["filler", "haproxy.cfg"]);
}

/// As after an agent that died between the two.
#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_file_that_was_put_in_place_and_never_reloaded_is_not_current() {
    let mut running = Running::start(&[place("a", "127.0.0.1")]).await;
    let both = vec![place("a", "127.0.0.1"), place("b", "127.0.0.2")];
    let text = sealed(&both, &running.layouts.render(&both).await.unwrap()).unwrap();
    put(&running.layouts.file.config_file, &text).await.unwrap();
    assert!(!running.is_current(&mut false).await);
    // Once it was tried in vain it is left alone.
    assert!(running.is_current(&mut true).await);
    running.layouts.write(&both).await.unwrap();
    assert_eq!(running.servers().await, ["a", "b", "wait"]);
    let mut compared = false;
    assert!(running.is_current(&mut compared).await && compared);
    // Where HAProxy cannot be asked, the file is all there is.
    running.layouts.haproxy.socket = "/nowhere/admin.sock".into();
    std::fs::write(
        &running.layouts.file.config_file,
        sealed(&both, &running.layouts.render(&both).await.unwrap()).unwrap(),
    )
    .unwrap();
    let mut compared = false;
    assert!(running.is_current(&mut compared).await && !compared, "it is asked again");
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_file_that_is_not_ours_is_left_alone() {
    let running = Running::start(&[place("a", "127.0.0.1")]).await;
    let both = [place("a", "127.0.0.1"), place("b", "127.0.0.2")];
    let edited = running.file().replace("timeout client 5s", "timeout client 6s");
    std::fs::write(&running.layouts.file.config_file, &edited).unwrap();
    assert!(running.layouts.write(&both).await.unwrap_err().contains("edited by hand"));
    assert_eq!(running.file(), edited);
    // Nobody takes reloads.
    std::fs::write(&running.layouts.file.config_file, "global\n").unwrap();
    assert!(running.layouts.write(&both).await.unwrap_err().contains("not written by Warden"));
}

/// Answers whoever connects, with what there is to say at that moment.
async fn answers(address: &str, answer: latest::Receiver<&'static str>) {
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = *answer.borrow();
            tokio::spawn(async move {
                // A check asks first; a client of this server waits for it.
                let mut question = [0; 1024];
                drop(timeout(Duration::from_millis(50), stream.read(&mut question)).await);
                drop(stream.write_all(answer.as_bytes()).await);
            });
        }
    });
}

/// What a new client of the proxy hears first; nothing where it is turned away.
async fn first_word() -> String {
    let mut stream = TcpStream::connect("127.0.0.1:15432").await.unwrap();
    let mut word = String::new();
    drop(stream.read_to_string(&mut word).await);
    word
}

/// Our own template, script and all, with one member whose server says "a"; and what its Patroni says.
async fn with_our_template() -> (Running, latest::Sender<&'static str>) {
    let (patroni, says) = latest::channel("HTTP/1.0 200 OK\r\n\r\n");
    answers("127.0.0.2:8008", says).await;
    answers("127.0.0.2:5432", latest::channel("a").1).await;
    let template = crate::layout::TEMPLATE.replace("bind *:5432", "bind 127.0.0.1:5432");
    let template = template.replace("127.0.0.1:5432", "127.0.0.1:15432");
    (Running::with(&template, &[place("a", "127.0.0.2")]).await, patroni)
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn whoever_waits_is_woken_when_the_hold_is_over() {
    const ROUNDS: usize = 20;
    const CLIENTS: u64 = 100;
    let (running, _patroni) = with_our_template().await;
    assert_eq!(first_word().await, "a");
    let tell = |command: &'static str| async { ask(&running.layouts.haproxy.socket, command, ANSWER).await.unwrap() };
    for round in 0..ROUNDS {
        tell(crate::act::route::HOLD).await;
        let mut clients = tokio::task::JoinSet::new();
        for nth in 0..CLIENTS {
            clients.spawn(async move {
                sleep(Duration::from_millis(nth * 3)).await;
                let word = first_word().await;
                (word, Instant::now())
            });
        }
        sleep(Duration::from_millis(500)).await;
        tell(crate::act::route::LET_GO).await;
        let over = Instant::now();
        for (word, at) in clients.join_all().await {
            assert_eq!(word, "a");
            // One that was forgotten waits for what is left of 5 s.
            let waited = at.duration_since(over);
            assert!(waited < Duration::from_secs(3), "round {round}: {waited:?} after the hold was over");
        }
    }
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn whoever_waits_when_haproxy_is_reloaded_goes_on_in_the_new_worker() {
    let (running, _patroni) = with_our_template().await;
    assert_eq!(first_word().await, "a");
    ask(&running.layouts.haproxy.socket, crate::act::route::HOLD, ANSWER).await.unwrap();
    let clients: tokio::task::JoinSet<String> = (0..20).map(|_| first_word()).collect();
    sleep(Duration::from_millis(300)).await;
    running.layouts.write(&[place("a", "127.0.0.2")]).await.unwrap();
    // Nobody tells the new one to hold them, and its checks find the server up. In the old one they would wait in vain.
    assert_eq!(clients.join_all().await, ["a"; 20]);
}

#[tokio::test]
#[ignore = "needs HAProxy: tests/run has it in the HAProxy image"]
async fn a_new_connection_waits_while_it_is_held_and_while_no_server_is_up() {
    let (running, patroni) = with_our_template().await;
    let tell = |command: &'static str| async { ask(&running.layouts.haproxy.socket, command, ANSWER).await.unwrap() };
    // Until its checks have found a server up.
    assert_eq!(first_word().await, "a");
    // They say that it is; we know better.
    assert_eq!(tell(crate::act::route::HOLD).await.trim(), "");
    let held = tokio::spawn(first_word());
    sleep(Duration::from_millis(300)).await;
    assert!(!held.is_finished(), "it was let through");
    assert_eq!(tell(crate::act::route::LET_GO).await.trim(), "");
    assert_eq!(held.await.unwrap(), "a");
    // Nobody says it again.
    tell(crate::act::route::HOLD).await;
    assert_eq!(first_word().await, "a");
    // And not for ever.
    patroni.send("HTTP/1.0 503 no\r\n\r\n").unwrap();
    let is_down = |stat: &str| stat.lines().any(|line| line.starts_with("postgres,a,") && line.contains(",DOWN"));
    while !is_down(&tell("show stat -1 4 -1").await) {
        sleep(LOOK).await;
    }
    let asked = Instant::now();
    assert_eq!(first_word().await, "");
    assert!(asked.elapsed() > Duration::from_secs(4), "it was not even made to wait");
}
