//! Name resolution with a cache of a few seconds, for addresses that the agent uses every second.
//!
//! A look-up costs a system call or two, a thread and two packets, which would be most of the cost of an idle agent. A
//! cached address can be out of date, so the caller has to check the identity of the peer.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::lookup_host;
use tokio::sync::watch as latest;
use tokio::time::timeout;

/// The cache keeps a name for this long. A restarted container has another address at once.
const CACHE_AGE_MAX: Duration = Duration::from_secs(4);

/// The limit for a look-up. It is less than the limit of any question, so that the silence of the name server never
/// counts as the silence of the host.
pub(crate) const LOOK_UP_LIMIT: Duration = Duration::from_millis(900);

/// The cache keeps at most this many names.
const NAMES_MAX: usize = 256;

/// A name without a known address. It says nothing about the host.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the name {name} cannot be resolved: {why}")]
pub(crate) struct NotResolved {
    name: String,
    why: String,
}

/// The result of a look-up, and its time; `None` while it runs.
type Found = Option<(Result<Vec<SocketAddr>, NotResolved>, Instant)>;

/// The cache, and the look-ups in progress. At most one look-up of each name runs, because it occupies a thread while
/// the name server is silent.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    known: Arc<Mutex<BTreeMap<String, latest::Receiver<Found>>>>,
    age_max: Duration,
}

impl Default for Names {
    fn default() -> Self {
        Self { known: Arc::default(), age_max: CACHE_AGE_MAX }
    }
}

impl Names {
    /// Without a cache. The callers during one look-up still share its result.
    pub(crate) fn forgetful() -> Self {
        Self { age_max: Duration::ZERO, ..Self::default() }
    }

    fn look_up(&self, name: &str) -> latest::Receiver<Found> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.get(name).filter(|known| self.is_good(known)) {
            return known.clone();
        }
        known.retain(|_, known| self.is_good(known));
        let (sender, found) = latest::channel(None);
        if known.len() < NAMES_MAX {
            known.insert(name.to_owned(), found.clone());
        }
        drop(known);
        let name = name.to_owned();
        // A task of its own: it goes on for the next caller when the present one has given up.
        tokio::spawn(async move {
            // The caller sets the port.
            let found = lookup_host((name.as_str(), 0)).await;
            let found = found.map(Iterator::collect).map_err(|error| NotResolved { name, why: error.to_string() });
            sender.send_replace(Some((found, Instant::now())));
        });
        found
    }
}

impl Names {
    /// Whether the look-up still runs, or has found addresses recently.
    fn is_good(&self, known: &latest::Receiver<Found>) -> bool {
        match &*known.borrow() {
            None => known.has_changed().is_ok(),
            Some((found, at)) => found.is_ok() && at.elapsed() < self.age_max,
        }
    }

    /// The addresses of a name, within 0.9 s. Their ports are meaningless.
    pub(crate) async fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, NotResolved> {
        let mut found = self.look_up(name);
        let failed = |why: &str| NotResolved { name: name.to_owned(), why: why.to_owned() };
        let found = match timeout(LOOK_UP_LIMIT, found.wait_for(Option::is_some)).await {
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
    async fn a_found_name_is_cached_and_a_missing_one_is_not() {
        let names = Names::default();
        let resolve = |name: &str| names.resolve(name.parse().unwrap());
        let known = |name: &str| names.known.lock().unwrap().get(name).is_some_and(|known| names.is_good(known));
        let first: Vec<SocketAddr> = resolve("localhost").await.unwrap().collect();
        assert!(first.iter().all(|address| address.ip().is_loopback()) && !first.is_empty(), "{first:?}");
        assert!(known("localhost"));
        let error = resolve("nowhere.invalid").await.err().unwrap();
        assert!(error.downcast_ref::<NotResolved>().is_some(), "{error}");
        assert!(!known("nowhere.invalid"));
    }

    #[tokio::test]
    async fn a_silent_name_server_is_given_up_in_time_and_occupies_one_thread() {
        let names = Names::default();
        let (sender, under_way) = latest::channel(None);
        names.known.lock().unwrap().insert("slow".to_owned(), under_way);
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
