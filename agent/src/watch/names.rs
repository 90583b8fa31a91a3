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
use tokio::sync::watch as latest;
use tokio::time::timeout;

/// For how long a name is remembered. A container that comes back has another address as soon as it is there.
const KEEP: Duration = Duration::from_secs(4);

/// A name server that takes longer than this has not answered. Less than the limit of any question, so that its silence
/// is never taken for that of who was asked.
const LIMIT: Duration = Duration::from_millis(900);

/// More names than this are not remembered.
const MOST: usize = 256;

/// A name for which no address is known. It says nothing of the host.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the name {name} cannot be resolved: {why}")]
pub(super) struct NotResolved {
    name: String,
    why: String,
}

/// What came of a look-up, and when.
type Found = Option<(Result<Vec<SocketAddr>, NotResolved>, Instant)>;

/// The names that were resolved lately, or are being resolved. One look-up of each name is under way at the most: it
/// occupies a thread for as long as the name server is silent.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(Arc<Mutex<BTreeMap<String, latest::Receiver<Found>>>>);

impl Names {
    fn look_up(&self, name: &str) -> latest::Receiver<Found> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(name).filter(|known| is_good(known)) {
            return known.clone();
        }
        known.retain(|_, known| is_good(known));
        let (sender, found) = latest::channel(None);
        if known.len() < MOST {
            known.insert(name.to_owned(), found.clone());
        }
        drop(known);
        let name = name.to_owned();
        // It goes on when those who asked have given up, and is there for those who ask next.
        tokio::spawn(async move {
            // The port is put in by who asked.
            let found = lookup_host((name.as_str(), 0)).await;
            let found = found.map(Iterator::collect).map_err(|error| NotResolved { name, why: error.to_string() });
            sender.send_replace(Some((found, Instant::now())));
        });
        found
    }
}

/// Whether it is under way, or has found addresses not long ago.
fn is_good(known: &latest::Receiver<Found>) -> bool {
    match &*known.borrow() {
        None => known.has_changed().is_ok(),
        Some((found, at)) => found.is_ok() && at.elapsed() < KEEP,
    }
}

impl Names {
    /// The addresses of a name, within 0.9 s; the ports mean nothing.
    pub(super) async fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, NotResolved> {
        let mut found = self.look_up(name);
        let failed = |why: &str| NotResolved { name: name.to_owned(), why: why.to_owned() };
        let found = match timeout(LIMIT, found.wait_for(Option::is_some)).await {
            Ok(Ok(found)) => found.clone().map(|(found, _)| found),
            Ok(Err(_)) => None,
            Err(_) => return Err(failed("its name server has not answered within 0.9 s")),
        };
        found.ok_or_else(|| failed("the look-up failed"))?
    }
}

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let names = self.clone();
        Box::pin(async move {
            let addresses: Addrs = Box::new(names.addresses(name.as_str()).await?.into_iter());
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
        let known = |name: &str| names.0.lock().unwrap().get(name).is_some_and(is_good);
        let first: Vec<SocketAddr> = resolve("localhost").await.unwrap().collect();
        assert!(first.iter().all(|address| address.ip().is_loopback()) && !first.is_empty(), "{first:?}");
        assert!(known("localhost"));
        let error = resolve("nowhere.invalid").await.err().unwrap();
        assert!(error.downcast_ref::<NotResolved>().is_some(), "{error}");
        assert!(!known("nowhere.invalid"));
    }

    #[tokio::test]
    async fn a_name_server_that_is_silent_is_given_up_in_time_and_occupies_one_thread() {
        let names = Names::default();
        let (sender, under_way) = latest::channel(None);
        names.0.lock().unwrap().insert("slow".to_owned(), under_way);
        let started = Instant::now();
        let (one, two) = tokio::join!(names.resolve("slow".parse().unwrap()), names.resolve("slow".parse().unwrap()));
        assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        for error in [one.err().unwrap(), two.err().unwrap()] {
            assert!(error.to_string().contains("name server"), "{error}");
        }
        let address: SocketAddr = "127.0.0.1:0".parse().unwrap();
        sender.send_replace(Some((Ok(vec![address]), Instant::now())));
        assert_eq!(names.resolve("slow".parse().unwrap()).await.unwrap().collect::<Vec<_>>(), [address]);
    }
}
