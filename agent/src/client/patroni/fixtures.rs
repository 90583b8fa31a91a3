//! Local servers that stand in for a Patroni in tests.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A primary's answer, reduced to the fields that the client reads.
pub(crate) const PRIMARY: &str =
    r#"{"state": "running", "role": "primary", "xlog": {"location": 5}, "patroni": {"scope": "s", "name": "a"}}"#;

/// Passes each connection to `treat`, in a task of its own.
pub(crate) async fn listen<F>(treat: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(treat(stream));
        }
    });
    address
}

/// The requests, like `GET /health`, with their bodies.
pub(crate) type Asked = Arc<Mutex<Vec<(String, String)>>>;

/// Reads a request: method and path, and the body.
pub(crate) async fn request(stream: &mut TcpStream) -> (String, String) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    loop {
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            assert!(read > 0, "{text}");
            continue;
        };
        let head = head.to_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            let line = text.lines().next().unwrap_or_default();
            return (line.trim_end_matches(" HTTP/1.1").to_owned(), body.to_owned());
        }
    }
}

pub(crate) async fn respond(stream: &mut TcpStream, code: u16, body: &str) {
    let answer = format!("HTTP/1.1 {code} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    drop(stream.write_all(answer.as_bytes()).await);
}

/// The reaction of a Patroni to a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Does {
    Answers(u16, &'static str),
    AnswersAfter(u64, u16, &'static str),
    Hangs,
}

/// A Patroni that reacts to each path as `does` says, and records the requests.
pub(crate) async fn patroni(does: impl Fn(&str) -> Does + Send + Sync + 'static) -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let (noted, does) = (Arc::clone(&asked), Arc::new(does));
    let address = listen(move |mut stream| {
        let (noted, does) = (Arc::clone(&noted), Arc::clone(&does));
        async move {
            let (line, body) = request(&mut stream).await;
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            noted.lock().unwrap().push((line, body));
            match does(&path) {
                Does::Answers(code, body) => respond(&mut stream, code, body).await,
                Does::AnswersAfter(ms, code, body) => {
                    tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
                    respond(&mut stream, code, body).await;
                }
                Does::Hangs => {
                    // Until the client closes the connection.
                    drop(stream.read(&mut [0; 16]).await);
                }
            }
        }
    })
    .await;
    (address, asked)
}
