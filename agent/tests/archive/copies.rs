//! Several directories are one archive, and a name may have several contents.

use super::place::{MIB, Place, compress, files, segment};
use serde_json::Value;

fn conflicts(answer: &super::place::Answer) -> Vec<Value> {
    answer.json()["conflicts"].as_array().unwrap().clone()
}

#[test]
fn two_directories_fill_each_others_gaps() {
    let place = Place::new();
    for (nth, (name, bytes)) in files().into_iter().enumerate() {
        place.write(&format!("{}/{name}", ["a", "b"][nth % 2]), &bytes);
    }
    assert_eq!(place.verify(&["a"]).code, 1);
    assert_eq!(place.verify(&["b"]).code, 1);
    let both = place.verify(&["-f", "json", "a", "b"]);
    assert_eq!((both.code, both.restorable()), (0, vec!["2: 0/600000 to 0/D00000".to_owned()]));
    let reversed = place.verify(&["-f", "json", "b", "a", "b"]);
    assert_eq!((reversed.restorable(), reversed.code), (both.restorable(), 0));
}

#[test]
fn the_same_content_is_no_conflict_also_if_one_is_compressed() {
    let files = files();
    let place = Place::with(&files);
    for (name, bytes) in &files {
        place.write(&format!("other/{name}.gz"), &compress("gz", bytes));
    }
    let answer = place.verify(&["-f", "json", "wal", "other"]);
    assert_eq!((answer.code, conflicts(&answer).len()), (0, 0), "{}", answer.out);
}

#[test]
fn of_a_whole_copy_and_a_damaged_one_the_whole_one_counts_and_both_are_named() {
    let files = files();
    let name = segment(1, 6);
    let short = files[&name][..MIB / 2].to_vec();
    let mut corrupt = files[&name].clone();
    corrupt[MIB / 2] ^= 4;
    let mut zeros = files[&name].clone();
    zeros[MIB / 2..].fill(0);
    for (copy, verdict, code) in [(short, "short", 1), (corrupt, "corrupt", 1), (zeros, "partial", 0)] {
        for order in [["wal", "other"], ["other", "wal"]] {
            let place = Place::with(&files);
            place.write(&format!("other/{name}"), &copy);
            let answer = place.verify(&["-f", "json", order[0], order[1]]);
            let (found, _, reason) = answer.file(&format!("other/{name}"));
            assert_eq!((found.as_str(), answer.code), (verdict, code), "{reason}");
            assert!(reason.ends_with(&format!("; another copy is whole: wal/{name}")), "{reason}");
            assert_eq!(answer.file(&format!("wal/{name}")).0, "complete");
            assert_eq!(answer.restorable(), ["2: 0/600000 to 0/D00000"]);
            assert_eq!((answer.gaps(), conflicts(&answer).len()), (vec![], 0));
        }
    }
}

/// A machine that was copied, or a recovery that was repeated: both contents are right.
#[test]
fn two_right_contents_of_a_name_are_a_conflict_with_its_place() {
    let files = files();
    let name = segment(1, 7);
    // The padding in a page header is in no record, so that both are right.
    let mut other = files[&name].clone();
    other[3 * 8192 + 20] ^= 1;
    let place = Place::with(&files);
    place.write(&format!("other/{name}.zst"), &compress("zst", &other));
    place.write(&format!("third/{name}"), &files[&name]);
    let answer = place.verify(&["-f", "json", "wal", "other", "third"]);
    let [conflict] = conflicts(&answer).try_into().unwrap();
    assert_eq!(
        (answer.code, conflict["file"].as_str(), conflict["lsn"].as_str()),
        (1, Some(name.as_str()), Some("0/706014"))
    );
    let contents = conflict["contents"].as_array().unwrap();
    let paths: Vec<&str> = contents.iter().map(|content| content["path"].as_str().unwrap()).collect();
    let expected = [format!("wal/{name}"), format!("other/{name}.zst"), format!("third/{name}")];
    assert_eq!(paths, expected);
    let hash = |bytes: &[u8]| {
        use sha2::Digest;
        sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    for content in contents {
        let is_other = content["path"].as_str().unwrap().starts_with("other/");
        let expected = if is_other { hash(&other) } else { hash(&files[&name]) };
        assert_eq!(content["sha256"].as_str(), Some(expected.as_str()));
    }
    // Neither is called damaged, and a restore is not promised beyond the place.
    for path in [format!("wal/{name}"), format!("other/{name}.zst")] {
        assert_eq!(answer.file(&path).0, "switched");
    }
    assert_eq!(answer.restorable(), ["2: 0/600000 to 0/706014", "2: 0/800000 to 0/D00000"]);
}

#[test]
fn two_histories_of_a_timeline_are_a_conflict() {
    let files = files();
    let place = Place::with(&files);
    place.write("other/00000002.history", b"1\t0/900000\tanother one\n");
    let answer = place.verify(&["-f", "json", "wal", "other"]);
    let [conflict] = conflicts(&answer).try_into().unwrap();
    assert_eq!(
        (answer.code, conflict["file"].as_str(), conflict["lsn"].as_str()),
        (1, Some("00000002.history"), Some("0/900000"))
    );
    assert_eq!(conflict["contents"].as_array().unwrap().len(), 2);
}

/// The archive of a node, and `pg_wal` of another one that is behind.
#[test]
fn the_segment_that_a_standby_is_writing_is_no_damage() {
    let files = files();
    let place = Place::with(&files);
    let mut behind = files[&segment(2, 12)].clone();
    // Its first record begins behind the page header.
    let first = u32::from_le_bytes(behind[40..44].try_into().unwrap()) as usize;
    behind[(40 + first).next_multiple_of(8)..].fill(0);
    place.write(&format!("pg_wal/{}", segment(2, 12)), &behind);
    let answer = place.verify(&["-f", "json", "wal", "pg_wal"]);
    assert_eq!(answer.code, 0, "{}", answer.out);
}
