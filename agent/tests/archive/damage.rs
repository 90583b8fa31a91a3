//! The verdicts on files, the gaps, and what can be restored.

use super::place::{MIB, Place, files, files_of, segment};
use std::os::unix::fs::symlink;
use std::time::Instant;

#[test]
fn the_archive_of_a_failover_is_whole_and_can_be_restored_along_the_new_timeline() {
    for (major, parts) in [
        (13, "2: 0/600000 to 0/D00000"),
        (15, "2: 0/600000 to 0/D00000"),
        (16, "2: 0/500000 to 0/D00000"),
        (18, "2: 0/800000 to 0/F00000"),
    ] {
        let place = Place::with(&files_of(major));
        let answer = place.judge();
        assert_eq!((answer.code, answer.err.as_str()), (0, ""), "{major}: {}", answer.out);
        assert_eq!(answer.restorable(), [parts], "{major}");
        assert_eq!(answer.gaps(), [""; 0], "{major}");
        let verdicts: Vec<String> = answer.json()["files"]
            .as_array()
            .unwrap()
            .iter()
            .map(|file| file["verdict"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(verdicts.iter().filter(|it| *it == "forked").count(), 1, "{major}: {verdicts:?}");
        assert_eq!(verdicts.iter().filter(|it| *it == "history").count(), 1, "{major}: {verdicts:?}");
        assert!(verdicts.iter().all(|it| ["complete", "switched", "forked", "history"].contains(&it.as_str())));
    }
}

#[test]
fn a_flipped_bit_is_corrupt_a_gap_and_the_end_of_a_restore() {
    let mut files = files();
    files.get_mut(&segment(1, 6)).unwrap()[MIB / 2] ^= 1;
    let place = Place::with(&files);
    let answer = place.judge();
    let (verdict, lsn, reason) = answer.file(&format!("wal/{}", segment(1, 6)));
    assert_eq!((answer.code, verdict.as_str()), (1, "corrupt"), "{lsn} {reason}");
    assert!(lsn.starts_with("0/67") || lsn.starts_with("0/68"), "{lsn}");
    // Nothing before it is there, so that it is no gap between two segments.
    assert_eq!(answer.gaps(), [""; 0]);
    assert_eq!(answer.restorable(), [format!("2: 0/600000 to {lsn}"), "2: 0/700000 to 0/D00000".to_owned()]);

    let mut files = super::place::files();
    let used = files[&segment(1, 8)].iter().rposition(|byte| *byte != 0).unwrap();
    files.get_mut(&segment(1, 8)).unwrap()[used - 100] ^= 0x80;
    let answer = Place::with(&files).judge();
    assert_eq!((answer.code, answer.gaps()), (1, vec!["1: 0/800000 to 0/900000, 1".to_owned()]));
}

#[test]
fn a_record_that_goes_on_in_the_next_segment_is_verified() {
    let files = files();
    let head = |bytes: &[u8]| u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let number = (7..=10).find(|number| head(&files[&segment(1, *number)]) > 16).expect("a record goes on somewhere");
    let mut files = files;
    files.get_mut(&segment(1, number)).unwrap()[41] ^= 1;
    let answer = Place::with(&files).judge();
    let (verdict, lsn, reason) = answer.file(&format!("wal/{}", segment(1, number)));
    assert_eq!((answer.code, verdict.as_str(), reason.as_str()), (1, "corrupt", "the record's CRC does not match"));
    let before = u64::from_str_radix(lsn.strip_prefix("0/").unwrap(), 16).unwrap();
    assert!(before < u64::from(number) << 20, "the record begins in the segment before: {lsn}");
}

#[test]
fn missing_segments_are_gaps_also_around_the_fork() {
    for (missing, gaps, parts) in [
        (vec![(1, 7)], vec!["1: 0/700000 to 0/800000, 1"], vec!["2: 0/600000 to 0/700000", "2: 0/800000 to 0/D00000"]),
        (vec![(2, 11)], vec!["2: 0/B00000 to 0/C00000, 1"], vec!["2: 0/600000 to 0/B00000", "2: 0/C00000 to 0/D00000"]),
        // The first segment of the new timeline: PostgreSQL 15 would follow the old one, and promote.
        (vec![(2, 10)], vec!["2: 0/A00000 to 0/B00000, 1"], vec!["2: 0/600000 to 0/A00000", "2: 0/B00000 to 0/D00000"]),
        (
            vec![(1, 9), (1, 10), (2, 10)],
            vec!["1: 0/900000 to 0/A00000, 1", "2: 0/A00000 to 0/B00000, 1"],
            vec!["2: 0/600000 to 0/900000", "2: 0/B00000 to 0/D00000"],
        ),
        // The oldest ones were removed.
        (vec![(1, 6), (1, 7), (1, 8), (1, 9), (1, 10), (2, 10)], vec![], vec!["2: 0/B00000 to 0/D00000"]),
    ] {
        let mut files = files();
        for (timeline, number) in &missing {
            files.remove(&segment(*timeline, *number)).unwrap();
        }
        let answer = Place::with(&files).judge();
        assert_eq!(answer.gaps(), gaps, "{missing:?}");
        assert_eq!(answer.restorable(), parts, "{missing:?}");
        assert_eq!(answer.code, i32::from(!gaps.is_empty()), "{missing:?}");
    }
}

#[test]
fn a_missing_history_file_is_damage() {
    let mut files = files();
    files.remove("00000002.history").unwrap();
    let place = Place::with(&files);
    let answer = place.judge();
    assert_eq!(answer.code, 1);
    assert_eq!(answer.restorable(), ["1: 0/600000 to 0/B00000", "2: 0/A00000 to 0/D00000"]);
    assert!(answer.out.contains("its history file is missing"));
    assert!(place.verify(&["wal"]).out.contains("00000002.history is missing"));
}

#[test]
fn a_history_file_that_is_cut_off_is_corrupt() {
    let mut files = files();
    files.insert("00000002.history".to_owned(), b"1\t".to_vec());
    let answer = Place::with(&files).judge();
    let (verdict, _, reason) = answer.file("wal/00000002.history");
    assert_eq!((answer.code, verdict.as_str()), (1, "corrupt"));
    assert!(reason.contains("line 1: \"\" is not an LSN"), "{reason}");
}

#[test]
fn a_copy_that_was_cut_off_is_short() {
    for length in [0, 24, 8192, MIB / 2, MIB - 1] {
        let mut files = files();
        files.get_mut(&segment(1, 7)).unwrap().truncate(length);
        let answer = Place::with(&files).judge();
        let (verdict, _, reason) = answer.file(&format!("wal/{}", segment(1, 7)));
        assert_eq!((answer.code, verdict.as_str()), (1, "short"), "{length}");
        assert_eq!(reason, format!("{length} of 1048576 bytes"));
        assert_eq!(answer.gaps(), ["1: 0/700000 to 0/800000, 1"], "{length}");
    }
}

#[test]
fn zeros_are_partial_and_only_the_end_of_the_last_timeline_may_be() {
    for (timeline, number, gaps, code) in [(2, 13, 0, 0), (2, 12, 0, 0), (1, 8, 1, 1), (2, 11, 1, 1)] {
        let mut files = files();
        files.insert(segment(timeline, number), vec![0; MIB]);
        let answer = Place::with(&files).judge();
        let (verdict, lsn, reason) = answer.file(&format!("wal/{}", segment(timeline, number)));
        assert_eq!((verdict, lsn), ("partial".to_owned(), format!("0/{:X}00000", number)), "{reason}");
        assert_eq!((answer.gaps().len(), answer.code), (gaps, code), "{timeline} {number}");
    }
}

/// `pg_wal` has the segment that is being written, and older ones under the names of those that come.
#[test]
fn recycled_segments_behind_the_last_one_are_no_damage() {
    let mut files = files();
    let old = files[&segment(2, 11)].clone();
    let mut written = files[&segment(2, 12)].clone();
    let used = written.iter().rposition(|byte| *byte != 0).unwrap() / 8192 * 8192;
    written[used..].copy_from_slice(&old[used..]);
    files.insert(segment(2, 12), written);
    files.insert(segment(2, 13), old.clone());
    files.insert(segment(2, 14), old);
    let answer = Place::with(&files).judge();
    for number in [13, 14] {
        let (verdict, lsn, _) = answer.file(&format!("wal/{}", segment(2, number)));
        assert_eq!((verdict, lsn), ("recycled".to_owned(), format!("0/{number:X}00000")));
    }
    assert_eq!((answer.code, answer.gaps()), (0, vec![]), "{}", answer.out);

    // An older segment under the name of a full one is damage.
    let mut files = super::place::files();
    let old = files[&segment(1, 6)].clone();
    files.insert(segment(1, 8), old);
    let answer = Place::with(&files).judge();
    assert_eq!(answer.file(&format!("wal/{}", segment(1, 8))).0, "recycled");
    assert_eq!(answer.code, 1);
}

#[test]
fn a_segment_of_another_cluster_is_foreign_and_leaves_the_archive_unjudged() {
    let mut files = files();
    let other = files_of(16);
    files.insert(segment(1, 32), other[&segment(1, 8)].clone());
    let answer = Place::with(&files).judge();
    // Under a wrong name it is not judged further.
    let (verdict, _, reason) = answer.file(&format!("wal/{}", segment(1, 32)));
    assert_eq!((verdict.as_str(), answer.code), ("foreign", 2), "{reason}");
    assert!(reason.contains("system identifier"));
    assert_eq!(answer.gaps(), [""; 0]);
}

#[test]
fn an_encrypted_archive_is_unknown_and_not_damaged() {
    let encrypted = |bytes: &[u8], clear: usize| -> Vec<u8> {
        let mut state = 7_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        };
        bytes.iter().enumerate().map(|(at, byte)| if at % 8192 < clear { *byte } else { byte ^ random() }).collect()
    };
    for clear in [0, 40] {
        let mut files = files();
        files.iter_mut().filter(|(name, _)| name.len() == 24).for_each(|(_, bytes)| *bytes = encrypted(bytes, clear));
        let place = Place::with(&files);
        let answer = place.judge();
        let (verdict, lsn, reason) = answer.file(&format!("wal/{}", segment(1, 7)));
        assert_eq!((answer.code, verdict.as_str(), lsn.as_str()), (2, "unreadable", "0/700000"), "{}", answer.out);
        assert!(reason.contains("encrypted"), "{reason}");
        assert_eq!(answer.gaps(), [""; 0]);
        // Many files are one line.
        let pretty = place.verify(&["wal"]).out;
        assert_eq!(pretty.matches("unreadable:").count(), 1, "{pretty}");
    }
    let mut files = files();
    let salted = [b"Salted__".to_vec(), encrypted(&files[&segment(1, 7)], 0)].concat();
    files.insert(segment(1, 7), salted);
    let answer = Place::with(&files).judge();
    assert_eq!(answer.code, 2, "one that cannot be read among others");
    assert!(answer.file(&format!("wal/{}", segment(1, 7))).2.contains("openssl"));
    assert_eq!(answer.gaps(), [""; 0]);
}

#[test]
fn what_is_no_file_is_named_and_never_opened() {
    let mut files = files();
    for number in [6, 7, 8, 9] {
        files.remove(&segment(1, number)).unwrap();
    }
    files.insert("NOTES".to_owned(), b"of the operator".to_vec());
    files.insert(format!("{}.tmp", segment(1, 9)), vec![0; 100]);
    let place = Place::with(&files);
    let fifo = |name: &str| {
        let path = place.path(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    };
    fifo("wal/pipe");
    symlink("nowhere", place.path("wal/old")).unwrap();
    std::fs::create_dir(place.path("wal/archive_status")).unwrap();
    std::fs::create_dir(place.path("wal/january")).unwrap();
    std::fs::write(place.path("wal/a\tb\nc"), b"").unwrap();
    assert_eq!(place.judge().code, 0, "{}", place.judge().out);
    for (path, words) in [
        ("pipe", "FIFO"),
        ("old", "leads nowhere"),
        ("january", "a directory of its own"),
        ("NOTES", "not a file of PostgreSQL's"),
    ] {
        let (verdict, _, reason) = place.judge().file(&format!("wal/{path}"));
        assert_eq!(verdict, "other");
        assert!(reason.contains(words), "{path}: {reason}");
    }
    assert!(place.verify(&["-f", "tsv", "wal"]).out.contains("file\twal/a b c\tother\t\t"));

    fifo(&format!("wal/{}", segment(1, 6)));
    std::fs::create_dir(place.path(&format!("wal/{}", segment(1, 7)))).unwrap();
    symlink("nowhere", place.path(&format!("wal/{}", segment(1, 8)))).unwrap();
    // A file of the kernel that opens, and cannot be read at its beginning.
    symlink("/proc/self/mem", place.path(&format!("wal/{}", segment(1, 9)))).unwrap();
    symlink("january", place.path("wal/february")).unwrap();
    let started = Instant::now();
    let answer = place.judge();
    assert!(started.elapsed().as_secs() < 5);
    assert_eq!(answer.code, 2);
    for (path, words) in [
        (segment(1, 6), "FIFO"),
        (segment(1, 7), "a directory"),
        (segment(1, 8), "leads nowhere"),
        (segment(1, 9), "cannot be read"),
        ("february".to_owned(), "symbolic link to a directory"),
    ] {
        let (verdict, _, reason) = answer.file(&format!("wal/{path}"));
        assert_eq!(verdict, "unreadable", "{path}: {reason}");
        assert!(reason.contains(words), "{path}: {reason}");
    }
}

/// The command may use 400 MB of addresses, most of which are its own program.
#[test]
fn a_segment_of_1_gib_is_never_held_whole() {
    let place = Place::new();
    let name = "000000010000000A00000003";
    let mut page = files()[&segment(1, 6)][..40].to_vec();
    page[8..16].copy_from_slice(&0xA_C000_0000_u64.to_le_bytes());
    page[2..4].copy_from_slice(&2_u16.to_le_bytes());
    page[16..20].fill(0);
    page[32..36].copy_from_slice(&(1_u32 << 30).to_le_bytes());
    place.write(&format!("wal/{name}"), &page);
    let file = std::fs::File::options().write(true).open(place.path(&format!("wal/{name}"))).unwrap();
    file.set_len(1 << 30).unwrap();
    let warden = env!("CARGO_BIN_EXE_warden");
    let script = format!("ulimit -v 400000 && exec '{warden}' archive verify -f tsv wal");
    let output = std::process::Command::new("sh").args(["-c", &script]).current_dir(place.path("")).output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{out}{}", String::from_utf8_lossy(&output.stderr));
    assert!(out.starts_with(&format!("file\twal/{name}\tpartial\tA/C0000028\tzeros from there on\n")), "{out}");
}

#[test]
fn a_file_that_cannot_be_opened_is_unknown() {
    let files = files();
    let place = Place::with(&files);
    let link = place.path(&format!("wal/{}", segment(1, 7)));
    std::fs::remove_file(&link).unwrap();
    // A loop of links fails for every user, also for root.
    symlink(&link, &link).unwrap();
    let answer = place.judge();
    assert_eq!((answer.code, answer.file(&format!("wal/{}", segment(1, 7))).0.as_str()), (2, "unreadable"));
}

#[test]
fn segments_that_are_missing_before_one_that_is_not_whole_are_a_gap() {
    let all = files();
    let numbers = [6, 7, 10];
    let mut files: std::collections::BTreeMap<_, _> =
        numbers.map(|number| (segment(1, number), all[&segment(1, number)].clone())).into();
    files.get_mut(&segment(1, 10)).unwrap()[40_960..].fill(0);
    let answer = Place::with(&files).judge();
    assert_eq!(answer.file(&format!("wal/{}", segment(1, 10))).0, "partial", "{}", answer.out);
    assert_eq!((answer.code, answer.gaps()), (1, vec!["1: 0/800000 to 0/A00000, 2".to_owned()]));
    // Zeros in between are no more than nothing, and zeros behind it are no gap.
    for number in [7, 8, 9, 11] {
        files.insert(segment(1, number), vec![0; MIB]);
    }
    let answer = Place::with(&files).judge();
    assert_eq!((answer.code, answer.gaps()), (1, vec!["1: 0/700000 to 0/A00000, 3".to_owned()]));
}

/// PostgreSQL refuses such a page, so that a recovery ends there and promotes.
#[test]
fn a_flag_that_no_page_has_is_corrupt() {
    for (major, number) in [(13, 7), (15, 7), (16, 7), (18, 9)] {
        for bit in 4..16 {
            let mut files = files_of(major);
            let page = 40 * 8192 + 2;
            files.get_mut(&segment(1, number)).unwrap()[page + bit / 8] ^= 1 << (bit % 8);
            let answer = Place::with(&files).judge();
            let (verdict, _, reason) = answer.file(&format!("wal/{}", segment(1, number)));
            assert_eq!((answer.code, verdict.as_str()), (1, "corrupt"), "{major}, bit {bit}: {reason}");
        }
    }
}

#[test]
fn nothing_of_a_file_of_the_wrong_length_can_be_restored() {
    let all = files();
    let name = segment(1, 8);
    let path = format!("wal/{name}");
    let long = [all[&name].clone(), b"x".to_vec()].concat();
    for (bytes, verdict) in [(all[&name][..600_000].to_vec(), "short"), (long, "corrupt")] {
        let mut files = files();
        files.insert(name.clone(), bytes);
        let answer = Place::with(&files).judge();
        assert_eq!((answer.code, answer.file(&path).0.as_str()), (1, verdict));
        assert_eq!(answer.restorable(), ["2: 0/600000 to 0/800000", "2: 0/900000 to 0/D00000"]);
    }
    // Also where the content is an older segment's: the archiver cannot copy the right one while it is there.
    let mut files = files();
    files.insert(segment(2, 13), all[&segment(1, 6)][..300_000].to_vec());
    let answer = Place::with(&files).judge();
    assert_eq!((answer.code, answer.file(&format!("wal/{}", segment(2, 13))).0.as_str()), (1, "short"));
}
