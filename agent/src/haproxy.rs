//! HAProxy's runtime ("stats") socket: a question and its answer.
//!
//! One connection per question, as the socket's protocol has it (HAProxy's management guide, 9.3). It answers with
//! lines, and with none at all where there is nothing to say.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The largest answer taken. A server makes a line of about 400 bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// Asks, and waits for the answer for `limit` at the most. Several commands can be one question, with semicolons.
pub async fn ask(socket: &Path, question: &str, limit: Duration) -> io::Result<String> {
    let asking = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(question.as_bytes()).await?;
        stream.write_all(b"\n").await?;
        // The master's socket would wait for more.
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    match timeout(limit, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis()))),
    }
}

/// A name as HAProxy's configuration can have it: nothing else is put into a command.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// The servers' addresses, `host:port` by name, from `show servers state <proxy>`: a version, `1`, then a header whose
/// columns are named, then a line for each server.
pub fn addresses(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    if lines.next() != Some("1") {
        return Err(format!("its answer to `show servers state` is none: {}", first_line(text)));
    }
    let header = lines.next().and_then(|line| line.strip_prefix("# ")).ok_or("its server states have no header")?;
    let columns: Vec<&str> = header.split(' ').collect();
    let column = |name: &str| {
        columns.iter().position(|column| *column == name).ok_or_else(|| format!("its server states have no {name}"))
    };
    let (name, address, port) = (column("srv_name")?, column("srv_addr")?, column("srv_port")?);
    let mut found = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split(' ').collect();
        let (Some(name), Some(address), Some(port)) = (fields.get(name), fields.get(address), fields.get(port)) else {
            return Err("a line of its server states is too short".to_owned());
        };
        let address = if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") };
        found.insert((*name).to_owned(), address);
    }
    Ok(found)
}

/// For messages: HAProxy's answers to what it does not understand go on with its whole help.
pub fn first_line(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: &str = include_str!("watch/testdata/haproxy-show-servers-state.txt");

    #[test]
    fn addresses_are_read_by_the_names_of_their_columns() {
        let found = addresses(STATES).unwrap();
        let found: Vec<_> = found.iter().map(|(name, address)| (name.as_str(), address.as_str())).collect();
        assert_eq!(found, [("a", "127.0.0.1:16001"), ("b", "127.0.0.1:16002"), ("wait", "127.0.0.1:1")]);
    }

    #[test]
    fn nonsense_is_an_error_and_never_a_panic() {
        for text in ["", "1", "1\n", "2\n# srv_name srv_addr srv_port\na b 1", "1\n# srv_name\na", "No such backend."] {
            assert!(addresses(text).is_err(), "{text:?}");
        }
        assert!(addresses("1\n# srv_name srv_addr srv_port\na 1").unwrap_err().contains("too short"));
        assert!(addresses("Can't find backend.\n").unwrap_err().contains("Can't find backend."));
    }

    #[test]
    fn nothing_but_a_name_gets_into_a_command() {
        assert!(is_name("pg-master_1.a:b"));
        for name in ["", "a b", "a;b", "a\nb", "a/b", "ä"] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
