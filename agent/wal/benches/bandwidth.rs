//! The speed of the reader beside that of memory: `cargo bench -p warden-wal --bench bandwidth -- DIR`. Each figure is
//! the best of several runs over the segments in DIR, which are in memory. `tests/bench archive` calls it.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs)]

use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::time::Instant;
use warden_wal::{FileName, Reader, SegmentName, SegmentSize};

const RUNS: usize = 7;

/// The parts in which `warden archive verify` reads a file.
const PART: usize = 128 << 10;

/// The segments in a directory, up to a size that fits in memory.
fn segments(directory: &Path) -> Vec<(SegmentName, Vec<u8>)> {
    let mut paths: Vec<_> = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let named = paths.into_iter().filter_map(|path| match FileName::parse(&path.file_name()?.to_string_lossy()) {
        FileName::Segment(name) => Some((name, path)),
        _ => None,
    });
    named.take(64).map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

/// Prints the speed of `work`, which goes over all bytes once.
fn figure(what: &str, bytes: usize, mut work: impl FnMut()) {
    let best = (0..RUNS).map(|_| {
        let started = Instant::now();
        work();
        started.elapsed()
    });
    #[expect(clippy::cast_precision_loss)] // a speed
    let speed = bytes as f64 / best.min().unwrap().as_secs_f64() / 1e9;
    println!("{what}\t{speed:.2}");
}

fn main() {
    // Cargo adds `--bench`.
    let Some(directory) = std::env::args().skip(1).find(|argument| !argument.starts_with('-')) else {
        println!("usage: cargo bench -p warden-wal --bench bandwidth -- DIR");
        return;
    };
    let segments = segments(Path::new(&directory));
    let bytes: usize = segments.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes > 0, "{directory} has no segment");
    // A segment of its own for each part, so that none of it stays in the processor's cache.
    let mut to = segments.iter().map(|(_, bytes)| vec![0; bytes.len()]).collect::<Vec<Vec<u8>>>();
    figure("memcpy", bytes, || {
        for ((_, from), to) in segments.iter().zip(&mut to) {
            to.copy_from_slice(from);
            black_box(&to);
        }
    });
    figure("crc32c", bytes, || {
        for (_, bytes) in &segments {
            black_box(crc32c::crc32c(bytes));
        }
    });
    let mut records = 0;
    figure("reader", bytes, || {
        records = 0;
        for (name, bytes) in &segments {
            let mut reader = Reader::new(*name, SegmentSize::DEFAULT, None, None);
            bytes.chunks(PART).for_each(|part| reader.push(part));
            records += reader.finish().records;
        }
    });
    let paths: Vec<_> = segments.iter().map(|(name, _)| Path::new(&directory).join(name.to_string())).collect();
    let mut buffer = vec![0; PART];
    figure("reader from the page cache", bytes, || {
        for ((name, _), path) in segments.iter().zip(&paths) {
            let mut file = std::fs::File::open(path).unwrap();
            let mut reader = Reader::new(*name, SegmentSize::DEFAULT, None, None);
            loop {
                let read = file.read(&mut buffer).unwrap();
                if read == 0 {
                    break;
                }
                reader.push(buffer.get(..read).unwrap());
            }
            black_box(reader.finish());
        }
    });
    println!("segments\t{}", segments.len());
    println!("bytes\t{bytes}");
    println!("records\t{records}");
}
