use super::fixtures::{Asked, Does, PRIMARY, listen, patroni, request, respond};
use super::*;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn client() -> PatroniClient {
    PatroniClient::new(&PatroniConfig::default(), "s").unwrap()
}

async fn ask(api: &str) -> PatroniAnswer {
    client().ask(&"a".into(), api, &Clock::start()).await
}

/// The kind of an answer, and its text.
fn kind(answer: &PatroniAnswer) -> (&'static str, String) {
    match answer {
        PatroniAnswer::Answering(_) => ("answering", String::new()),
        PatroniAnswer::Refused(why) => ("refused", why.clone()),
        PatroniAnswer::Silent(why) => ("silent", why.clone()),
        PatroniAnswer::Unusable(why) => ("unusable", why.clone()),
        PatroniAnswer::Anothers(why) => ("another's", why.clone()),
    }
}

#[track_caller]
fn check(answer: &PatroniAnswer, expected: &str, words: &str) {
    let (kind, why) = kind(answer);
    assert!(kind == expected && why.contains(words), "{answer:?} instead of {expected} with {words:?}");
}

/// An HTTPS server with a self-signed certificate.
fn https() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let certificate = CertificateDer::from(include_bytes!("../../../testdata/self-signed.crt.der").as_slice());
    let key = PrivatePkcs8KeyDer::from(include_bytes!("../../../testdata/self-signed.key.der").as_slice());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key.into())
        .unwrap();
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(mut session) = rustls::ServerConnection::new(Arc::clone(&config)) else { return };
            let mut tls = rustls::Stream::new(&mut session, &mut stream);
            if tls.read(&mut [0; 1024]).is_ok() {
                let length = PRIMARY.len();
                drop(tls.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{PRIMARY}").as_bytes()));
            }
        }
    });
    address
}

#[tokio::test]
async fn an_answer_counts_with_any_code() {
    for code in [200, 503] {
        let (address, _) = patroni(move |_| Does::Answers(code, PRIMARY)).await;
        check(&ask(&format!("http://{address}")).await, "answering", "");
    }
}

#[tokio::test]
async fn an_untrusted_certificate_says_nothing_about_patroni() {
    check(&ask(&format!("https://{}", https())).await, "unusable", "certificate");
    let config = PatroniConfig { insecure: true, ..PatroniConfig::default() };
    let client = PatroniClient::new(&config, "s").unwrap();
    let answer = client.ask(&"a".into(), &format!("https://{}", https()), &Clock::start()).await;
    check(&answer, "answering", "");
}

#[tokio::test]
async fn http_instead_of_https_and_the_reverse_say_nothing_about_patroni() {
    // Python's server reads the handshake as an invalid request line, if it contains a line feed.
    let http = listen(|mut stream| async move {
        drop(stream.read(&mut [0; 4096]).await);
        respond(&mut stream, 400, "Bad request version").await;
    });
    check(&ask(&format!("https://{}", http.await)).await, "unusable", "");
    // Patroni 4.1.5 closes HTTP connections if it serves HTTPS, as seen with its own `shutdown_request`.
    let closes = listen(|mut stream| async move {
        request(&mut stream).await;
    });
    check(&ask(&format!("http://{}", closes.await)).await, "unusable", "http or https");
    // Other TLS servers send an alert, protocol_version.
    let alerts = listen(|mut stream| async move {
        request(&mut stream).await;
        drop(stream.write_all(&[0x15, 3, 1, 0, 2, 2, 70]).await);
    });
    check(&ask(&format!("http://{}", alerts.await)).await, "unusable", "");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_says_nothing_about_patroni() {
    check(&ask("http://nowhere.invalid:8008").await, "unusable", "nowhere.invalid cannot be resolved");
}

#[tokio::test]
async fn an_answer_that_cannot_be_parsed_is_not_silence() {
    let garbage = listen(|mut stream| async move {
        request(&mut stream).await;
        drop(stream.write_all(b"\x00\xffSSH-2.0-x\r\n\r\n").await);
    });
    check(&ask(&format!("http://{}", garbage.await)).await, "unusable", "");
    let closes = listen(|stream| async move { drop(stream) });
    let closes = closes.await;
    let answer = ask(&format!("http://{closes}")).await;
    assert!(!matches!(answer, PatroniAnswer::Answering(_) | PatroniAnswer::Refused(_)), "{answer:?}");
    let huge = listen(|mut stream| async move {
        request(&mut stream).await;
        respond(&mut stream, 200, &" ".repeat(BODY_MAX + 1)).await;
    });
    check(&ask(&format!("http://{}", huge.await)).await, "unusable", "longer than");
    let (forbidden, _) = patroni(|_| Does::Answers(401, "")).await;
    check(&ask(&format!("http://{forbidden}")).await, "unusable", "restapi.authentication");
    let (page, _) = patroni(|_| Does::Answers(502, "<html>")).await;
    check(&ask(&format!("http://{page}")).await, "unusable", "not Patroni's JSON");
    check(&ask("gopher://x").await, "unusable", "");
}

#[tokio::test]
async fn no_answer_within_a_second_is_silence() {
    let silent = listen(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    let drips = listen(|mut stream| async move {
        request(&mut stream).await;
        drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n").await);
        while stream.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    });
    for address in [silent.await, drips.await] {
        let started = Instant::now();
        check(&ask(&format!("http://{address}")).await, "silent", "no answer within 1 s");
        assert!(started.elapsed() < ANSWER_LIMIT + Duration::from_millis(500), "{:?}", started.elapsed());
    }
    let silent = listen(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    });
    check(&ask(&format!("https://{}", silent.await)).await, "silent", "no answer within 1 s");
}

#[tokio::test]
async fn a_reset_is_silence_and_a_refusal_is_a_refusal() {
    let resets = listen(|mut stream| async move {
        request(&mut stream).await;
        stream.set_zero_linger().unwrap();
    });
    check(&ask(&format!("http://{}", resets.await)).await, "silent", "");
    check(&ask("http://127.0.0.1:1").await, "refused", "no process listens");
    check(&ask("https://127.0.0.1:1").await, "refused", "no process listens");
}

#[tokio::test]
async fn an_api_that_answers_liveness_is_not_silent() {
    for (code, expected) in [(200, "unusable"), (503, "silent")] {
        let (address, _) = patroni(move |path| match path {
            "/liveness" => Does::Answers(code, ""),
            _ => Does::Hangs,
        })
        .await;
        check(&ask(&format!("http://{address}")).await, expected, "");
    }
}

fn count(asked: &Asked, line: &str) -> usize {
    asked.lock().unwrap().iter().filter(|(asked, _)| asked == line).count()
}

#[tokio::test]
async fn all_callers_share_one_question() {
    let (address, asked) = patroni(|_| Does::AnswersAfter(1500, 200, PRIMARY)).await;
    let (client, api, clock) = (client(), format!("http://{address}"), Clock::start());
    let other = client.clone();
    let member = MemberName::from("a");
    let (one, two) = tokio::join!(client.ask(&member, &api, &clock), other.ask(&member, &api, &clock));
    assert!(matches!((&one, &two), (PatroniAnswer::Silent(_), PatroniAnswer::Silent(_))), "{one:?}, {two:?}");
    // No caller waits any more, and the question is still in progress.
    check(&client.ask(&member, &api, &clock).await, "answering", "");
    assert_eq!(count(&asked, "GET /health"), 1);
    check(&client.question(&member, &api, &clock).answer().await, "answering", "");
    assert_eq!(count(&asked, "GET /health"), 2, "an answered question is not reused");
}

#[tokio::test]
async fn a_nudge_writes_no_value() {
    let (address, asked) = patroni(|_| Does::Answers(200, "{}")).await;
    client().nudge(&format!("http://{address}")).await.unwrap();
    let asked = asked.lock().unwrap().clone();
    assert_eq!(asked, [("PATCH /config".to_owned(), format!(r#"{{"{NO_SUCH_KEY}":null}}"#))]);
    for (code, words) in [(401, "restapi.authentication"), (503, "503")] {
        let (address, _) = patroni(move |_| Does::Answers(code, "")).await;
        let error = client().nudge(&format!("http://{address}")).await.unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}
