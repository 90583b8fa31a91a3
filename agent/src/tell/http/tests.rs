use super::*;
use crate::act::operator::Operator;
use crate::act::records::Records;
use crate::config::{LogConfig, LogFormat};
use crate::tell::fixtures::{apply, fence_record, healthy, identity, key, leader, patroni, servers, session, verified};
use crate::tell::leader::LeaderNow;
use crate::tell::log;
use std::net::SocketAddr;
use std::sync::OnceLock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use warden_core::event::Rule;
use warden_core::event::{Event, FailoverRequest, HaproxyEvent, Role, Znode, ZooKeeperEvent};
use warden_core::fact::Reading;

/// The log starts once in a process; a second control would have no effect.
pub(crate) fn log_control() -> LogControl {
    static LOG: OnceLock<LogControl> = OnceLock::new();
    LOG.get_or_init(|| log::start(&LogConfig { format: LogFormat::Human, level: "off".to_owned() })).clone()
}

/// A server with a ZooKeeper that does not exist and a loop that holds `view`.
struct Server {
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Server {
    async fn start(view: View, token: Option<&str>) -> Self {
        let (queries, mut asked) = mpsc::channel::<Query>(8);
        tokio::spawn(async move {
            let mut view = view;
            while let Some(Query { observed, reply }) = asked.recv().await {
                if let Some(observed) = observed {
                    let at = observed.at;
                    warden_core::step::take_in(&mut view, observed, at);
                }
                drop(reply.send(Box::new(view.clone())));
            }
        });
        Self::with(queries, token).await
    }

    async fn with(queries: mpsc::Sender<Query>, token: Option<&str>) -> Self {
        let listener = Arc::new(TcpListener::bind("127.0.0.1:0").await.unwrap());
        let address = listener.local_addr().unwrap();
        let zookeeper = ZooKeeper::nowhere();
        let metrics = Metrics::new().unwrap();
        let (clock, token) = (Clock::start(), token.map(Secret::new));
        let api = Api {
            queries,
            operator: Operator { zookeeper: zookeeper.clone(), records: Records::default(), agent: "a".to_owned() },
            zookeeper,
            reading_audit: Arc::default(),
            last_read: LastRead::default(),
            clock,
            metrics,
            policy: warden_core::plan::Policy::default(),
            log: log_control(),
            token,
        };
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, api, shutdown.clone()));
        Self { address, shutdown, serving }
    }

    /// Sends a request. Returns the status, and the answer with its headers.
    async fn ask(&self, request: &str, headers: &[&str], body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
        let length = body.len();
        let head =
            format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
        // A server that refuses a large body may close the connection before it has read it.
        let _sent = stream.write_all((head + body).as_bytes()).await;
        let mut answer = Vec::new();
        let _read = timeout(Duration::from_secs(8), stream.read_to_end(&mut answer)).await.expect("an answer");
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {answer:?}"));
        (status.parse().unwrap(), answer)
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path}"), &[], "").await
    }

    /// The time until the server drops a client that has sent `text` and nothing else.
    async fn time_to_drop(&self, text: &str) -> Duration {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let since = Instant::now();
        let _end = timeout(Duration::from_secs(9), stream.read_to_end(&mut Vec::new())).await.expect("the end");
        since.elapsed()
    }
}

#[tokio::test]
async fn the_answer_to_a_wrong_path_lists_the_right_ones() {
    let server = Server::start(healthy(), None).await;
    let (status, answer) = server.get("/helthz").await;
    assert_eq!(status, 404);
    let api = ["state", "leader", "plan", "fences", "log-level"].map(|path| format!("/api/v1/{path}"));
    for path in ["/healthz", "/readyz", "/metrics"].map(str::to_owned).into_iter().chain(api) {
        assert!(answer.contains(&path), "{path} is not in {answer}");
    }
}

#[tokio::test]
async fn the_log_level_changes_only_with_the_token_and_a_correct_filter() {
    const GOOD: &str = r#"{"level": "error"}"#;
    let server = Server::start(healthy(), Some("s3cret")).await;
    let large = format!(r#"{{"level": "{}"}}"#, "x".repeat(BODY_BYTES_MAX));
    let right = "Authorization: Bearer s3cret";
    let refused = [
        ("no token", None, GOOD, 401, "Authorization: Bearer"),
        ("a wrong token", Some("Authorization: Bearer s3creT"), GOOD, 401, "not this agent's"),
        ("no token in the header", Some("Authorization: Bearer "), GOOD, 401, "token"),
        ("another scheme", Some("Authorization: Basic s3cret"), GOOD, 401, "Authorization: Bearer"),
        ("not JSON", Some(right), "error", 400, r#"{\"level\": \"debug\"}"#),
        ("an unknown key", Some(right), r#"{"level": "error", "for": "ever"}"#, 400, "for"),
        ("a filter that is none", Some(right), r#"{"level": "=?="}"#, 400, "not a log filter"),
        ("an empty filter", Some(right), r#"{"level": " "}"#, 400, "empty"),
        ("a body that is too large", Some(right), &large, 413, ""),
    ];
    for (name, header, body, expected, words) in refused {
        let headers: Vec<&str> = header.into_iter().collect();
        let (status, answer) = server.ask("PUT /api/v1/log-level", &headers, body).await;
        assert_eq!(status, expected, "{name}: {answer}");
        assert!(answer.contains(words), "{name}: {words:?} is not in {answer}");
        assert!(!answer.contains("s3cret"), "{name}: the token is in {answer}");
        assert!(!tracing::enabled!(tracing::Level::ERROR), "{name}: the level has changed");
    }
    let (status, answer) = server.ask("PUT /api/v1/log-level", &[right], GOOD).await;
    assert_eq!(status, 200, "{answer}");
    assert!(tracing::enabled!(tracing::Level::ERROR), "the level has not changed");
    assert!(!tracing::enabled!(tracing::Level::WARN));
}

#[tokio::test]
async fn an_agent_without_a_token_refuses_every_change() {
    let server = Server::start(healthy(), None).await;
    let fence = r#"{"member": "a", "reason": "x"}"#;
    let requests = [
        ("PUT /api/v1/log-level", r#"{"level": "off"}"#),
        ("POST /api/v1/fences", fence),
        ("DELETE /api/v1/fences/a", ""),
    ];
    for (request, body) in requests {
        for header in ["Authorization: Bearer ", "Authorization: Bearer x", "X-Nothing: 1"] {
            let (status, answer) = server.ask(request, &[header], body).await;
            assert_eq!(status, 403, "{request}, {header}");
            assert!(answer.contains("http.token_file"), "the remedy is missing: {answer}");
        }
    }
}

#[tokio::test]
async fn a_fence_is_ordered_and_taken_back_only_with_the_token_and_for_a_known_member() {
    const GOOD: &str = r#"{"member": "b", "reason": "maintenance"}"#;
    const POST: &str = "POST /api/v1/fences";
    let mut view = healthy();
    apply(&mut view, 1000, fence_record("a", Rule::Superseded));
    let server = Server::start(view, Some("s3cret")).await;
    let right = Some("Authorization: Bearer s3cret");
    let wrong = Some("Authorization: Bearer s3creT");
    let large = format!(r#"{{"member": "b", "reason": "{}"}}"#, "x".repeat(BODY_BYTES_MAX));
    let cases = [
        ("no token", POST, None, GOOD, 401, "Authorization: Bearer"),
        ("a wrong token", POST, wrong, GOOD, 401, "not this agent's"),
        ("not JSON", POST, right, "b", 400, r#"{\"member\": \"pg1\", \"reason\": \"why\"}"#),
        ("no reason", POST, right, r#"{"member": "b"}"#, 400, "reason"),
        ("an unknown key", POST, right, r#"{"member": "b", "reason": "x", "for": "ever"}"#, 400, "for"),
        (
            "an unknown member",
            POST,
            right,
            r#"{"member": "c", "reason": "x"}"#,
            404,
            "no member has the name c; the members are a, b",
        ),
        ("a body that is too large", POST, right, &large, 413, ""),
        ("no ZooKeeper", POST, right, GOOD, 503, "could not write the fence"),
        ("no token", "DELETE /api/v1/fences/a", None, "", 401, "Authorization: Bearer"),
        ("a wrong token", "DELETE /api/v1/fences/a", wrong, "", 401, "not this agent's"),
        ("a member that is not fenced", "DELETE /api/v1/fences/b", right, "", 404, "b is not fenced"),
        ("a path out of the tree", "DELETE /api/v1/fences/..%2F..%2Fa", right, "", 404, "is not fenced"),
        ("no ZooKeeper", "DELETE /api/v1/fences/a", right, "", 503, "could not take the fence back"),
        ("the method of another path", "GET /api/v1/fences", right, "", 405, ""),
    ];
    for (name, request, header, body, expected, words) in cases {
        let headers: Vec<&str> = header.into_iter().collect();
        let (status, answer) = server.ask(request, &headers, body).await;
        assert_eq!(status, expected, "{request}, {name}: {answer}");
        assert!(answer.contains(words), "{request}, {name}: {words:?} is not in {answer}");
        assert!(!answer.contains("s3cret"), "{request}, {name}: the token is in {answer}");
    }
}

#[tokio::test]
async fn the_plan_needs_no_token_and_is_not_carried_out() {
    let server = Server::start(healthy(), None).await;
    let (status, answer) = server.get("/api/v1/plan").await;
    assert_eq!(status, 200, "{answer}");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let expected = serde_json::json!({ "lines": ["nothing: a takes writes, and no rule objects"] });
    assert_eq!(body, expected);
}

#[tokio::test]
async fn a_silent_client_is_dropped_after_2_s_and_delays_no_other() {
    let server = Server::start(healthy(), None).await;
    let others = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let since = Instant::now();
        assert_eq!(server.get("/healthz").await.0, 200);
        since.elapsed()
    };
    let half = "GET /healthz HTTP/1.1\r\nHost: x\r\n";
    let (silent, halting, other) = tokio::join!(server.time_to_drop(""), server.time_to_drop(half), others);
    for time in [silent, halting] {
        assert!((Duration::from_millis(1900)..Duration::from_secs(4)).contains(&time), "{time:?}");
    }
    assert!(other < Duration::from_secs(1), "{other:?}");
}

#[tokio::test]
async fn silent_clients_in_all_slots_keep_the_others_out_for_2_s_only() {
    let server = Server::start(healthy(), None).await;
    let mut silent = Vec::new();
    for _ in 0..LOCAL_CONNECTIONS_MAX {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }
    let since = Instant::now();
    let answers = async || {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(())
    };
    while answers().await.is_none() {
        assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn without_the_token_the_agent_does_not_wait_for_a_body() {
    let server = Server::start(healthy(), Some("right")).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = b"PUT /api/v1/log-level HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{";
    stream.write_all(head).await.unwrap();
    let since = Instant::now();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
}

#[tokio::test]
async fn readyz_says_what_is_missing() {
    let mut node = View::new(identity(&["node"]));
    let router = View::new(identity(&["router"]));
    let (zookeeper, tree) = ("a ZooKeeper session", "a whole read of Patroni's tree");
    let (local, haproxy) = ("an answer about the local Patroni", "an answer about the local HAProxy");
    let missing = async |view: &View| {
        let (status, answer) = Server::start(view.clone(), None).await.get("/readyz").await;
        assert_eq!(status, if answer.contains("not yet") { 503 } else { 200 }, "{answer}");
        [zookeeper, tree, local, haproxy].into_iter().filter(|what| answer.contains(what)).collect::<Vec<_>>()
    };
    assert_eq!(missing(&node).await, [zookeeper, tree, local]);
    apply(&mut node, 1, session(1));
    assert_eq!(missing(&node).await, [tree, local]);
    apply(&mut node, 2, patroni("a", Role::Replica));
    assert_eq!(missing(&node).await, [tree]);
    apply(&mut node, 3, Event::ZooKeeper(ZooKeeperEvent::TreeRead { latency: Duration::from_millis(1) }));
    assert_eq!(missing(&node).await, [""; 0]);
    assert_eq!(missing(&router).await, [zookeeper, tree, haproxy]);
    let mut router = router;
    apply(&mut router, 1, Event::Haproxy(HaproxyEvent::Answered(servers(&[("a", true, 1)]))));
    assert_eq!(missing(&router).await, [zookeeper, tree]);
}

#[tokio::test]
async fn a_stuck_loop_makes_the_agent_unhealthy() {
    // The loop accepts requests and never answers.
    let (queries, _asked) = mpsc::channel(8);
    let server = Server::with(queries, None).await;
    for path in ["/healthz", "/readyz", "/metrics", "/api/v1/state", "/api/v1/leader", "/api/v1/plan"] {
        let (status, answer) = server.get(path).await;
        assert_eq!(status, 503, "{path}");
        assert!(answer.contains("restart the agent"), "{path}: {answer}");
    }
}

#[tokio::test]
async fn the_leader_is_answered_at_once_as_last_read() {
    let switchover = |scheduled| {
        let request = FailoverRequest { leader: Some("a".into()), candidate: None, scheduled };
        Event::ZooKeeper(ZooKeeperEvent::Znode(Znode::Failover(Reading::Present(request))))
    };
    let absent = || leader(Reading::Absent);
    let cases = [
        ("nothing is known", vec![], (None, false, false)),
        ("it was read", vec![leader(key("a", 1))], (Some("a"), true, false)),
        ("there is none", vec![leader(key("a", 1)), absent()], (None, true, false)),
        ("a switchover", vec![leader(key("a", 1)), switchover(false)], (Some("a"), true, true)),
        ("one for later", vec![leader(key("a", 1)), switchover(true)], (Some("a"), true, false)),
    ];
    for (name, events, (holder, known, switchover)) in cases {
        let mut view = View::new(identity(&["node"]));
        for event in events {
            apply(&mut view, 0, event);
        }
        let server = Server::start(view, None).await;
        let (status, answer) = server.get("/api/v1/leader").await;
        let told: LeaderNow = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        let (told_name, told) = (told.name.clone(), (told.known, told.switchover, told.verified));
        assert_eq!((status, told_name.as_deref(), told), (200, holder, (known, switchover, false)), "{name}");
    }
}

#[tokio::test]
async fn the_state_says_why_its_leader_is_not_verified() {
    let mut view = View::new(identity(&["node"]));
    for event in [session(1), leader(key("a", 1)), verified(key("a", 1), 0)] {
        apply(&mut view, 0, event);
    }
    let server = Server::start(view, None).await;
    let (status, answer) = server.get("/api/v1/state").await;
    assert_eq!(status, 200);
    let body = answer.split_once("\r\n\r\n").unwrap().1;
    let state: crate::tell::state::State = serde_json::from_str(body).unwrap();
    assert_eq!((state.source.as_str(), state.leader.name.as_deref()), ("agent", Some("a")));
    assert!(!state.leader.verified, "the last verification is older than the request");
    let why = state.leader.why_unverified.unwrap();
    assert!(why.contains("ZooKeeper"), "{why}");
}

#[tokio::test]
async fn metrics_come_in_the_text_format_of_prometheus() {
    let server = Server::start(healthy(), None).await;
    let (status, answer) = server.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
    assert!(answer.contains("\nwarden_zookeeper_connected 1\n"), "{answer}");
}

#[tokio::test]
async fn the_server_ends_when_the_agent_does() {
    let server = Server::start(healthy(), None).await;
    let end = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.shutdown.cancel();
    };
    let (open, ()) = tokio::join!(server.time_to_drop(""), end);
    assert!(open < Duration::from_millis(1500), "the server waited for an open connection");
    timeout(Duration::from_secs(1), server.serving).await.unwrap().unwrap().unwrap();
}

#[test]
fn a_reason_is_one_line_without_control_characters() {
    assert_eq!(
        super::operator::one_line("maintenance\nof \u{1b}[0mdisks, für heute"),
        "maintenance of  [0mdisks, für heute"
    );
}
