//! The layouts and compressions of other tools.

use super::place::{COMPRESSIONS, MIB, Place, compress, files, segment, sha1};
use std::io::Write;

const WHOLE: [&str; 1] = ["2: 0/600000 to 0/D00000"];

fn group(name: &str) -> &str {
    &name[..16]
}

/// The files as pgBackRest keeps them.
fn pgbackrest(suffix: &str) -> Place {
    let place = Place::new();
    place.write("repo/archive/main/archive.info", b"[backrest]\n");
    place.write("repo/archive/main/archive.info.copy", b"[backrest]\n");
    place.write("repo/backup/main/backup.info", b"[backrest]\n");
    for (name, bytes) in files() {
        let path = if name.ends_with(".history") {
            name.clone()
        } else if suffix.is_empty() {
            format!("{}/{name}-{}", group(&name), sha1(&bytes))
        } else {
            format!("{}/{name}-{}.{suffix}", group(&name), sha1(&bytes))
        };
        let is_plain = suffix.is_empty() || name.ends_with(".history");
        place
            .write(&format!("repo/archive/main/15-1/{path}"), &if is_plain { bytes } else { compress(suffix, &bytes) });
    }
    place
}

#[test]
fn a_repository_of_pgbackrest_is_read_at_each_of_its_levels() {
    for suffix in ["", "gz", "lz4", "zst", "bz2"] {
        let place = pgbackrest(suffix);
        for directory in ["repo", "repo/archive", "repo/archive/main", "repo/archive/main/15-1"] {
            let answer = place.verify(&["-f", "json", directory]);
            assert_eq!(answer.code, 0, "{suffix} {directory}: {}", answer.out);
            assert_eq!(answer.restorable(), WHOLE, "{suffix} {directory}");
        }
    }
}

#[test]
fn of_pgbackrests_clusters_the_newest_is_read_and_several_stanzas_are_not_mixed() {
    let place = pgbackrest("gz");
    place.write(&format!("repo/archive/main/9.6-0/{}/{}.gz", group(&segment(1, 1)), segment(1, 1)), b"old");
    let answer = place.verify(&["-f", "json", "repo"]);
    assert_eq!((answer.code, answer.restorable()), (0, WHOLE.map(str::to_owned).to_vec()));
    let (verdict, _, reason) = answer.file("repo/archive/main/9.6-0");
    assert!(verdict == "other" && reason.contains("an older cluster's"), "{reason}");

    place.write("repo/archive/other/archive.info", b"[backrest]\n");
    let answer = place.verify(&["-f", "json", "repo"]);
    assert_eq!(answer.code, 2);
    assert!(answer.file("repo/archive/other").2.contains("several stanzas"));
    assert_eq!(place.verify(&["repo/archive/main"]).code, 0);
}

#[test]
fn pgbackrests_checksum_finds_a_bit_that_is_in_no_record() {
    let name = segment(1, 7);
    let mut bytes = files()[&name].clone();
    let path = format!("repo/archive/main/15-1/{}/{name}-{}.zst", group(&name), sha1(&bytes));
    // A byte of the padding in a page header.
    bytes[8192 + 20] ^= 1;
    let place = pgbackrest("zst");
    place.write(&path, &compress("zst", &bytes));
    let answer = place.verify(&["-f", "json", "repo"]);
    let (verdict, lsn, reason) = answer.file(&path);
    assert_eq!((answer.code, verdict.as_str(), lsn.as_str()), (1, "corrupt", "0/700000"));
    assert!(reason.contains("SHA-1"), "{reason}");
}

#[test]
fn the_storage_of_wal_g_is_read() {
    for suffix in ["lz4", "zst"] {
        let place = Place::new();
        place.write("storage/basebackups_005/base_1_backup_stop_sentinel.json", b"{}");
        for (name, bytes) in files() {
            place.write(&format!("storage/wal_005/{name}.{suffix}"), &compress(suffix, &bytes));
        }
        let answer = place.verify(&["-f", "json", "storage"]);
        assert_eq!((answer.code, answer.restorable()), (0, WHOLE.map(str::to_owned).to_vec()), "{}", answer.out);
    }
    let place = Place::new();
    for (name, bytes) in files() {
        // What Brotli and LZMA write has no magic number.
        place.write(&format!("storage/wal_005/{name}.br"), &bytes.iter().map(|byte| byte ^ 0x5B).collect::<Vec<_>>());
        place.write(&format!("other/wal_005/{name}.lzma"), b"\x5D\0\0\x80\0");
    }
    for (directory, words) in [("storage", "Brotli, which cannot be read"), ("other", "LZMA, which cannot be read")] {
        let answer = place.verify(&[directory]);
        assert_eq!(answer.code, 2, "{directory}");
        assert!(answer.out.contains(words), "{}", answer.out);
    }
}

#[test]
fn the_archive_of_barman_is_read_with_and_without_suffixes() {
    for suffix in COMPRESSIONS {
        for has_suffix in [false, true] {
            let place = Place::new();
            place.write("main/wals/xlog.db", b"");
            place.write("main/base/20261130T000000/data/PG_VERSION", b"15");
            for (name, bytes) in files() {
                if name.ends_with(".history") {
                    place.write(&format!("main/wals/{name}"), &bytes);
                    continue;
                }
                let dot = if has_suffix { format!(".{suffix}") } else { String::new() };
                place.write(&format!("main/wals/{}/{name}{dot}", group(&name)), &compress(suffix, &bytes));
            }
            let answer = place.verify(&["-f", "json", "main"]);
            assert_eq!(
                (answer.code, answer.restorable()),
                (0, WHOLE.map(str::to_owned).to_vec()),
                "{suffix}: {}",
                answer.out
            );
        }
    }
}

#[test]
fn compressed_data_that_is_cut_off_is_short_and_damaged_data_is_corrupt() {
    for suffix in COMPRESSIONS {
        let name = segment(1, 6);
        let mut files = files();
        let bytes = compress(suffix, &files.remove(&name).unwrap());
        let place = Place::with(&files);
        let path = format!("wal/{name}.{suffix}");
        place.write(&path, &bytes);
        assert_eq!(place.judge().code, 0, "{suffix}");

        place.write(&path, &bytes[..bytes.len() / 2]);
        let (verdict, lsn, reason) = place.judge().file(&path);
        assert_eq!(verdict, "short", "{suffix}: {reason}");
        assert!(lsn.starts_with("0/6"), "{suffix}: {lsn}");
        assert_eq!(place.judge().code, 1);

        let mut damaged = bytes.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 64].fill(0x55);
        place.write(&path, &damaged);
        let (verdict, lsn, reason) = place.judge().file(&path);
        assert!(["corrupt", "short"].contains(&verdict.as_str()), "{suffix}: {verdict} {lsn} {reason}");
        assert_eq!(place.judge().code, 1, "{suffix}: {reason}");
    }
}

/// A file of some kilobytes can become gigabytes. Nothing is read behind the end of a segment.
/// `lz4` writes one frame; two files that were joined have two.
#[test]
fn every_frame_of_a_compressed_file_is_read() {
    let files = files();
    let name = segment(1, 7);
    let parts = files[&name].split_at(500_000);
    for suffix in COMPRESSIONS {
        let whole = [compress(suffix, parts.0), compress(suffix, parts.1)].concat();
        let garbage = [compress(suffix, &files[&name]), b"garbage".to_vec()].concat();
        let twice = compress(suffix, &files[&name]).repeat(2);
        for (bytes, code, verdict) in [(whole, 0, "switched"), (twice, 1, "corrupt"), (garbage, 1, "corrupt")] {
            let mut others = files.clone();
            others.remove(&name);
            let place = Place::with(&others);
            let path = format!("wal/{name}.{suffix}");
            place.write(&path, &bytes);
            let answer = place.judge();
            // A decoder may end before the garbage, as the program does that would unpack it.
            if (suffix, code) != ("gz", 1) && (suffix, code) != ("bz2", 1) {
                assert_eq!((answer.code, answer.file(&path).0.as_str()), (code, verdict), "{suffix}: {}", answer.out);
            }
        }
    }
}

#[test]
fn a_decompression_bomb_is_not_read_to_its_end() {
    let name = segment(1, 6);
    let mut files = files();
    let segment = files.remove(&name).unwrap();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.write_all(&segment).unwrap();
    let zeros = vec![0; MIB];
    for _ in 0..4096 {
        encoder.write_all(&zeros).unwrap();
    }
    let place = Place::with(&files);
    place.write(&format!("wal/{name}.zst"), &encoder.finish().unwrap());
    let started = std::time::Instant::now();
    let answer = place.judge();
    let (verdict, lsn, reason) = answer.file(&format!("wal/{name}.zst"));
    assert_eq!((answer.code, verdict.as_str(), lsn.as_str()), (1, "corrupt", "0/600000"), "{reason}");
    assert!(reason.contains("and a segment has 1048576"), "{reason}");
    let written: usize = reason.split(' ').find_map(|word| word.parse().ok()).unwrap();
    assert!(written <= 2 * MIB, "{written} bytes were unpacked");
    assert!(started.elapsed().as_secs() < 5);
}
