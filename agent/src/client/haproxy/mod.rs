//! HAProxy's runtime ("stats") socket: commands and their answers.
//!
//! The socket takes one line of commands per connection (HAProxy's management guide, 9.3). HAProxy answers in lines. An
//! answer without lines is possible.

pub mod around;
pub mod command;
pub mod stat;

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The client reads at most this many bytes of an answer. A line for a server has about 400 bytes.
const ANSWER_MAX: u64 = 1 << 20;

/// Sends `question` and returns the answer. Fails after `limit`. Semicolons separate several commands.
pub async fn ask(socket: &Path, question: &str, limit: Duration) -> io::Result<String> {
    let asking = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(question.as_bytes()).await?;
        stream.write_all(b"\n").await?;
        // The master's socket would wait for more commands.
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    match timeout(limit, asking).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis()))),
    }
}

/// Whether `name` is valid in HAProxy's configuration. The agent puts no other text into a command.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte))
}

/// A line of `show servers state <proxy>`, by column.
pub type StateRow<'a> = BTreeMap<&'a str, &'a str>;

/// Parses `show servers state <proxy>`: the version `1`, a header with the names of the columns, and a line for each
/// server (HAProxy's management guide, 9.3).
pub fn rows(text: &str) -> Result<Vec<StateRow<'_>>, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    if lines.next() != Some("1") {
        return Err(format!("its answer to `show servers state` is not of version 1: {}", first_line(text)));
    }
    let header = lines.next().and_then(|line| line.strip_prefix("# ")).ok_or("its server states have no header")?;
    let columns: Vec<&str> = header.split(' ').collect();
    for name in ["srv_name", "srv_addr", "srv_port"] {
        if !columns.contains(&name) {
            return Err(format!("its server states have no {name}"));
        }
    }
    lines
        .map(|line| {
            let row: StateRow<'_> = columns.iter().copied().zip(line.split(' ')).collect();
            if row.len() < columns.len() {
                return Err("a line of its server states is too short".to_owned());
            }
            Ok(row)
        })
        .collect()
}

/// The addresses of the servers, `host:port` by name, from `show servers state <proxy>`.
pub fn addresses(text: &str) -> Result<BTreeMap<String, String>, String> {
    let field = |row: &StateRow<'_>, name: &str| row.get(name).copied().unwrap_or_default().to_owned();
    let address = |row: &StateRow<'_>| {
        let (address, port) = (field(row, "srv_addr"), field(row, "srv_port"));
        if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
    };
    Ok(rows(text)?.iter().map(|row| (field(row, "srv_name"), address(row))).collect())
}

/// A line of the answer to `show stat`.
#[derive(Clone, Debug)]
pub struct StatRow<'a> {
    /// The place of each column, shared by all rows.
    columns: Rc<BTreeMap<&'a str, usize>>,
    fields: Vec<&'a str>,
}

impl<'a> StatRow<'a> {
    /// A present field that is not empty.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.fields.get(*self.columns.get(name)?).copied().filter(|field| !field.is_empty())
    }

    /// A field that is a number; zero if it is none.
    pub fn number(&self, name: &str) -> u64 {
        self.get(name).and_then(|count| count.parse().ok()).unwrap_or(0)
    }
}

/// Parses `show stat`: CSV with the names of the columns in the first line, after `# ` (HAProxy's management guide,
/// 9.1). New versions of HAProxy add columns.
pub fn table(text: &str) -> Result<Vec<StatRow<'_>>, String> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let header = lines.next().and_then(|line| line.strip_prefix("# "));
    let header = header.ok_or_else(|| "its answer to `show stat` is not a table".to_owned())?;
    let columns: Rc<BTreeMap<_, _>> = Rc::new(header.split(',').enumerate().map(|(at, name)| (name, at)).collect());
    Ok(lines.map(|line| StatRow { columns: Rc::clone(&columns), fields: line.split(',').collect() }).collect())
}

/// Address and port of `host:port`, as HAProxy writes it.
pub fn split_address(address: &str) -> Option<(IpAddr, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).parse().ok()?, port.parse().ok()?))
}

/// The first line of an answer, for messages. HAProxy answers an unknown command with its whole help.
pub fn first_line(text: &str) -> &str {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nothing")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: &str = include_str!("../../../testdata/haproxy-show-servers-state.txt");

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
    fn only_a_valid_name_gets_into_a_command() {
        assert!(is_name("pg-master_1.a:b"));
        for name in ["", "a b", "a;b", "a\nb", "a/b", "ä"] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
