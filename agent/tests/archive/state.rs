//! `--state`, `--full` and `--jobs`.

use super::place::{MIB, Place, files, segment};
use std::fs;
use std::path::PathBuf;
use warden::client::archive::{Progress, Request, verify};

struct Silent;

impl Progress for Silent {
    fn starts(&self, _: u64) {}
    fn advances(&self, _: u64) {}
}

/// The bytes that a run reads, and the number of files that the state knew.
fn run(place: &Place, full: bool) -> (u64, usize) {
    let directories: Vec<PathBuf> = vec![place.path("wal")];
    let state = place.path("state");
    let request = Request { directories: &directories, jobs: 1, state: Some(&state), full };
    let verified = verify(&request, &Silent).unwrap();
    assert_eq!(verified.notes, [""; 0]);
    (verified.read, verified.reused)
}

#[test]
fn old_bytes_are_not_read_again() {
    let files = files();
    let place = Place::with(&files);
    let all: u64 = files.values().map(|bytes| bytes.len() as u64).sum();
    assert_eq!(run(&place, false), (all, 0));
    assert_eq!(run(&place, false), (0, files.len()));
    // Another time of the same file.
    place.write("wal/00000002.history", &files["00000002.history"]);
    let history = fs::File::options().write(true).open(place.path("wal/00000002.history")).unwrap();
    history.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(run(&place, false), (files["00000002.history"].len() as u64, files.len() - 1));
    assert_eq!(run(&place, true), (all, 0));
    assert_eq!(run(&place, false), (0, files.len()), "a full run keeps the state");
}

/// The findings of old files are joined with those of new ones.
#[test]
fn a_known_file_is_judged_as_before_together_with_new_ones() {
    let mut files = files();
    let later = files.split_off(&segment(1, 8));
    let place = Place::with(&files);
    let state = ["--state", "state", "-f", "json", "wal"];
    assert_eq!(place.verify(&state).restorable(), ["1: 0/600000 to 0/800000"]);
    for (name, bytes) in &later {
        place.write(&format!("wal/{name}"), bytes);
    }
    let incremental = place.verify(&state);
    assert_eq!(incremental, place.judge());
    assert_eq!((incremental.code, incremental.restorable()), (0, vec!["2: 0/600000 to 0/D00000".to_owned()]));
    let again = place.verify(&["--state", "state", "wal"]).out;
    assert!(again.contains(", 10 of them known from the state"), "{again}");
}

#[test]
fn a_bit_that_flips_later_is_found_by_a_full_run_only() {
    let files = files();
    let place = Place::with(&files);
    assert_eq!(place.verify(&["--state", "state", "wal"]).code, 0);
    let mut bytes = files[&segment(1, 6)].clone();
    bytes[MIB / 2] ^= 1;
    // The length, the time and the inode stay.
    place.write(&format!("wal/{}", segment(1, 6)), &bytes);
    assert_eq!(place.verify(&["--state", "state", "wal"]).code, 0, "it was read again");
    assert_eq!(place.verify(&["--state", "state", "--full", "wal"]).code, 1);
    assert_eq!(place.verify(&["--state", "state", "wal"]).code, 1, "the state keeps the damage");
}

/// A file of zeros has no size of its own: it is the size of the other segments that counts.
#[test]
fn a_file_without_a_first_page_is_judged_by_the_size_of_the_others() {
    let mut files = files();
    let later = files.split_off(&segment(1, 7));
    let place = Place::new();
    place.write(&format!("wal/{}", segment(2, 13)), &vec![0; MIB]);
    let state = ["--state", "state", "-f", "json", "wal"];
    assert_eq!(place.verify(&state).file(&format!("wal/{}", segment(2, 13))).0, "short", "of 16 MiB");
    for (name, bytes) in files.iter().chain(&later) {
        place.write(&format!("wal/{name}"), bytes);
    }
    let answer = place.verify(&state);
    assert_eq!((answer.code, answer.file(&format!("wal/{}", segment(2, 13))).0.as_str()), (0, "partial"));
}

#[test]
fn a_second_copy_of_a_known_file_is_compared_with_it() {
    let files = files();
    let place = Place::with(&files);
    assert_eq!(place.verify(&["--state", "state", "wal"]).code, 0);
    let mut other = files[&segment(1, 7)].clone();
    other[8192 + 20] ^= 1;
    place.write(&format!("other/{}", segment(1, 7)), &other);
    let answer = place.verify(&["--state", "state", "-f", "json", "wal", "other"]);
    assert_eq!((answer.code, answer.json()["conflicts"].as_array().unwrap().len()), (1, 1));
}

#[test]
fn a_file_that_was_just_written_is_read_again() {
    let place = Place::with(&files());
    let name = format!("wal/{}", segment(1, 6));
    fs::write(place.path(&name), &files()[&segment(1, 6)]).unwrap();
    run(&place, false);
    assert_eq!(run(&place, false).0, MIB as u64);
}

#[test]
fn a_damaged_state_is_replaced_and_a_foreign_file_never() {
    let place = Place::with(&files());
    let arguments = ["--state", "state", "wal"];
    assert_eq!(place.verify(&arguments).err, "");
    let state = fs::read(place.path("state")).unwrap();
    assert_eq!(fs::read_dir(place.path(".")).unwrap().count(), 2, "the state and the WAL");
    let newer = [b"warden archive state 9".to_vec(), state[22..].to_vec()].concat();
    let mut flipped = state.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for (bytes, words) in [
        (state[..state.len() / 2].to_vec(), "its checksum does not match"),
        (flipped, "its checksum does not match"),
        (state[..20].to_vec(), "the state is cut off"),
        (state[..3].to_vec(), "the state is cut off"),
        (vec![], "the state is cut off"),
        (newer, "of version \"9\""),
    ] {
        fs::write(place.path("state"), bytes).unwrap();
        let answer = place.verify(&arguments);
        assert!(answer.code == 0 && answer.err.contains(words), "{answer:?}");
        assert_eq!(place.verify(&arguments).err, "", "it was replaced");
    }
    fs::write(place.path("state"), b"a letter").unwrap();
    let answer = place.verify(&arguments);
    assert!(answer.code == 2 && answer.err.contains("is no state file"), "{answer:?}");
    assert_eq!(fs::read(place.path("state")).unwrap(), b"a letter");
    let fifo = std::process::Command::new("mkfifo").arg(place.path("fifo")).status().unwrap();
    assert!(fifo.success());
    let answer = place.verify(&["--state", "fifo", "wal"]);
    assert!(answer.code == 2 && answer.err.contains("not a regular file"), "it was not waited for: {answer:?}");
    let answer = place.verify(&["--state", "no/such/directory/state", "wal"]);
    assert!(answer.code == 0 && answer.err.contains("cannot be written"), "{answer:?}");
}

#[test]
fn the_number_of_jobs_does_not_change_the_answer() {
    let mut files = files();
    files.get_mut(&segment(1, 6)).unwrap()[MIB / 3] ^= 1;
    let place = Place::with(&files);
    place.write(&format!("other/{}", segment(1, 7)), &files[&segment(1, 7)][..100_000]);
    let one = place.verify(&["-f", "json", "wal", "other"]);
    for jobs in ["0", "2", "4", "64"] {
        assert_eq!(place.verify(&["-f", "json", "--jobs", jobs, "wal", "other"]), one, "{jobs}");
    }
}
