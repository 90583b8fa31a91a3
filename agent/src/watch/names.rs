//! Name resolution that remembers for a few seconds, for what is asked every second.
//!
//! A system call or two, a thread's attention and two packets for each question are most of what an idle agent would
//! cost. What is remembered can be wrong for as long: whoever uses it has to check who answered.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::lookup_host;

/// For how long a name is remembered. A container that comes back has another address as soon as it is there.
const KEEP: Duration = Duration::from_secs(4);

/// More names than this are not remembered.
const MOST: usize = 256;

/// Names, with what they resolved to and when.
type Known = BTreeMap<String, (Vec<SocketAddr>, Instant)>;

/// The names that were resolved lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Arc<Mutex<Known>>);

impl Names {
    fn known(&self, name: &str) -> Option<Vec<SocketAddr>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|(_, at)| at.elapsed() < KEEP).map(|(addresses, _)| addresses.clone())
    }

    fn remember(&self, name: String, addresses: &[SocketAddr]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, (_, at)| at.elapsed() < KEEP);
        if known.len() < MOST {
            known.insert(name, (addresses.to_vec(), Instant::now()));
        }
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let (names, name) = (self.clone(), name.as_str().to_owned());
        Box::pin(async move {
            let addresses = match names.known(&name) {
                Some(addresses) => addresses,
                None => {
                    // The port is put in by who asked.
                    let addresses: Vec<SocketAddr> = lookup_host((name.as_str(), 0)).await?.collect();
                    names.remember(name, &addresses);
                    addresses
                }
            };
            let addresses: Addrs = Box::new(addresses.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_asked_for_once_and_one_that_is_not_there_again_and_again() {
        let names = Names::default();
        let resolve = |name: &str| names.resolve(name.parse().unwrap());
        let first: Vec<SocketAddr> = resolve("localhost").await.unwrap().collect();
        assert!(first.iter().all(|address| address.ip().is_loopback()) && !first.is_empty(), "{first:?}");
        assert_eq!(names.known("localhost"), Some(first));
        assert!(resolve("nowhere.invalid").await.is_err());
        assert_eq!(names.known("nowhere.invalid"), None);
    }
}
