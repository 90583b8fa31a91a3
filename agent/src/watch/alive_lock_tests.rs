use super::*;
use crate::clock::Clock;
use std::process::{Child, Command};
use std::sync::atomic::AtomicBool;
use tokio::sync::mpsc;
use warden_core::event::{LocalEvent, Observed};

/// A process that holds the lock, as Patroni does under flock.
fn holder(path: &Path) -> Child {
    Command::new("flock").args(["--no-fork", "--timeout", "5"]).arg(path).args(["sleep", "60"]).spawn().unwrap()
}

async fn next(events: &mut mpsc::Receiver<Observed>) -> AliveLock {
    let observed = timeout(Duration::from_secs(5), events.recv()).await.expect("no event in 5 s").unwrap();
    match observed.event {
        Event::Local(LocalEvent::AliveLock(state)) => state,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_end_and_the_return_of_the_holder_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patroni.alive");
    std::fs::write(&path, "").unwrap();
    let (sender, mut events) = mpsc::channel(16);
    let watcher = tokio::spawn(watch(path.clone(), LockedFile::default(), Events::new(sender, Clock::start())));
    assert!(matches!(next(&mut events).await, AliveLock::Unknown(why) if why.contains("has not seen a process hold")));
    let mut first = holder(&path);
    assert_eq!(next(&mut events).await, AliveLock::Alive);
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(next(&mut events).await, AliveLock::Gone);
    let mut second = holder(&path);
    assert_eq!(next(&mut events).await, AliveLock::Alive);
    watcher.abort();
    second.kill().unwrap();
    second.wait().unwrap();
}

#[tokio::test]
async fn a_free_file_that_replaced_the_held_one_does_not_prove_the_end_of_the_holder() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patroni.alive");
    std::fs::write(&path, "").unwrap();
    let mut patroni = holder(&path);
    let (sender, mut events) = mpsc::channel(64);
    let watcher = tokio::spawn(watch(path.clone(), LockedFile::default(), Events::new(sender, Clock::start())));
    while next(&mut events).await != AliveLock::Alive {}
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "").unwrap();
    assert!(matches!(next(&mut events).await, AliveLock::Unknown(_)));
    while let Ok(Some(observed)) = timeout(Duration::from_millis(800), events.recv()).await {
        assert_ne!(
            observed.event,
            Event::Local(LocalEvent::AliveLock(AliveLock::Gone)),
            "its holder lives, on the file before it"
        );
    }
    watcher.abort();
    patroni.kill().unwrap();
    patroni.wait().unwrap();
}

/// While it is set, the test's looks at the path hang.
static HANGS: AtomicBool = AtomicBool::new(false);

#[tokio::test]
async fn a_volume_that_hangs_is_reported_and_delays_no_other_task() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patroni.alive");
    std::fs::write(&path, "").unwrap();
    let mut patroni = holder(&path);
    let hangs = |path: &Path| {
        while HANGS.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(std::fs::metadata(path)?.ino())
    };
    let (sender, mut events) = mpsc::channel(64);
    let kernel = Kernel { inode: hangs, wait: wait_for };
    let watcher = tokio::spawn(watch_by(path, LockedFile::default(), Events::new(sender, Clock::start()), kernel));
    while next(&mut events).await != AliveLock::Alive {}
    HANGS.store(true, Ordering::SeqCst);
    let late = async {
        let started = std::time::Instant::now();
        let mut latest = Duration::ZERO;
        for _ in 0..250 {
            let asleep = std::time::Instant::now();
            sleep(Duration::from_millis(10)).await;
            latest = latest.max(asleep.elapsed());
        }
        assert!(started.elapsed() >= Duration::from_secs(2));
        latest
    };
    let (told, latest) = tokio::join!(next(&mut events), late);
    assert!(matches!(&told, AliveLock::Unknown(why) if why.contains("has not answered")), "{told:?}");
    assert!(latest < Duration::from_millis(500), "other tasks waited for {latest:?}");
    assert!(events.try_recv().is_err(), "it is reported once");
    HANGS.store(false, Ordering::SeqCst);
    assert_eq!(next(&mut events).await, AliveLock::Alive, "its holder lives, and nothing has changed");
    patroni.kill().unwrap();
    patroni.wait().unwrap();
    assert_eq!(next(&mut events).await, AliveLock::Gone);
    watcher.abort();
}

static WAITS: AtomicU64 = AtomicU64::new(0);

#[tokio::test]
async fn a_failed_wait_is_reported_and_repeated_with_pauses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patroni.alive");
    std::fs::write(&path, "").unwrap();
    let mut patroni = holder(&path);
    let fails = |_: &File| {
        WAITS.fetch_add(1, Ordering::SeqCst);
        Err(rustix::io::Errno::NOLCK)
    };
    let kernel = Kernel { inode: |path| Ok(std::fs::metadata(path)?.ino()), wait: fails };
    let (sender, mut events) = mpsc::channel(64);
    let watcher = tokio::spawn(watch_by(path, LockedFile::default(), Events::new(sender, Clock::start()), kernel));
    while next(&mut events).await != AliveLock::Alive {}
    let told = next(&mut events).await;
    assert!(matches!(&told, AliveLock::Unknown(why) if why.contains("cannot wait for its end")), "{told:?}");
    sleep(Duration::from_secs(1)).await;
    let waits = WAITS.load(Ordering::SeqCst);
    assert!((2..10).contains(&waits), "{waits} attempts in a second");
    patroni.kill().unwrap();
    patroni.wait().unwrap();
    while next(&mut events).await != AliveLock::Gone {}
    watcher.abort();
}

#[tokio::test]
async fn a_pipe_in_place_of_the_file_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patroni.alive");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let (sender, mut events) = mpsc::channel(16);
    let watcher = tokio::spawn(watch(path, LockedFile::default(), Events::new(sender, Clock::start())));
    assert!(matches!(next(&mut events).await, AliveLock::Unknown(why) if why.contains("regular")));
    watcher.abort();
}

#[tokio::test]
async fn a_missing_or_replaced_file_proves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("patroni.alive");
    let (sender, mut events) = mpsc::channel(16);
    let watcher = tokio::spawn(watch(path.clone(), LockedFile::default(), Events::new(sender, Clock::start())));
    assert!(matches!(next(&mut events).await, AliveLock::Unknown(why) if why.contains("not there")));
    let mut first = holder(&path);
    assert_eq!(next(&mut events).await, AliveLock::Alive);
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(next(&mut events).await, AliveLock::Unknown(_)), "the holder of a deleted file is unknown");
    let mut second = holder(&path);
    loop {
        if next(&mut events).await == AliveLock::Alive {
            break;
        }
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let quiet = timeout(Duration::from_millis(500), events.recv()).await;
    assert!(quiet.is_err(), "the death of the former holder says nothing about the present one: {quiet:?}");
    second.kill().unwrap();
    second.wait().unwrap();
    assert_eq!(next(&mut events).await, AliveLock::Gone);
    watcher.abort();
}
