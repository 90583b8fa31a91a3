//! The verdicts on real WAL: two nodes of one cluster after a failover, of PostgreSQL 13, 15, 16 and 18, with segments
//! of 1 MiB. `testdata/` has them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test from end to end

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use warden_wal::{Carry, FileName, Finding, Head, History, Lsn, Reader, SegmentName, SegmentSize, Verdict};

const SIZE: u64 = 1 << 20;

/// The files of a node by name.
type Node = BTreeMap<String, Vec<u8>>;

/// The two nodes' files: the old primary's, and the new one's.
fn nodes(major: u16) -> [Node; 2] {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/pg{major}-1m.tar.zst"));
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut nodes = [Node::new(), Node::new()];
    for entry in tar::Archive::new(zstd::Decoder::new(file).unwrap()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let node = match path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned()) {
            Some(parent) if parent == "old-primary" => 0,
            Some(parent) if parent == "new-primary" => 1,
            _ => continue,
        };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if !bytes.is_empty() {
            nodes[node].insert(name, bytes);
        }
    }
    nodes
}

/// Gives the file to a reader in parts of this many bytes.
fn judge(name: SegmentName, bytes: &[u8], carry: Option<Carry>, part: usize) -> Finding {
    let mut reader = Reader::new(name, SegmentSize::new(SIZE).unwrap(), carry, None);
    for part in bytes.chunks(part) {
        reader.push(part);
    }
    reader.finish()
}

fn segment(name: &str) -> SegmentName {
    match FileName::parse(name) {
        FileName::Segment(segment) | FileName::Partial(segment) => segment,
        other => panic!("{other:?} is no segment"),
    }
}

/// Each file's finding. A segment goes on with the one before.
fn findings(node: &Node, part: usize) -> BTreeMap<String, Finding> {
    let mut carry = None;
    let mut found = BTreeMap::new();
    for (name, bytes) in node.iter().filter(|(name, _)| !name.ends_with(".history")) {
        let finding = judge(segment(name), bytes, carry.take(), part);
        carry = finding.carry.clone();
        found.insert(name.clone(), finding);
    }
    found
}

/// A segment with many records, some of which go on from page to page, and its bytes.
fn busy(major: u16) -> (SegmentName, Vec<u8>) {
    let [old, _] = nodes(major);
    let found = findings(&old, SIZE as usize);
    let (name, _) = found.iter().max_by_key(|(_, finding)| finding.records).unwrap();
    (segment(name), old[name].clone())
}

#[test]
fn the_segments_of_both_nodes_are_whole_and_the_left_timeline_ends_where_the_history_says() {
    for major in [13, 15, 16, 18] {
        let [old, new] = nodes(major);
        let history = History::parse(2, std::str::from_utf8(&new["00000002.history"]).unwrap()).unwrap();
        let end = history.end_of(1).unwrap();
        for node in [&old, &new] {
            let found = findings(node, 1 << 16);
            assert!(!found.is_empty());
            for (name, finding) in found {
                assert_eq!(finding.version.map(warden_wal::Version::major), Some(major), "{name}");
                assert_eq!(finding.size, SegmentSize::new(SIZE), "{name}");
                assert!(finding.records > 0, "{name}: {finding:?}");
                if name.ends_with(".partial") {
                    assert_eq!((finding.verdict, finding.end), (Verdict::Recycled, end), "{major} {name}: {finding:?}");
                    assert_eq!(finding.with_ends(&[Lsn(1), end]).verdict, Verdict::Forked);
                } else {
                    let whole = matches!(finding.verdict, Verdict::Complete | Verdict::Switched);
                    assert!(whole && finding.carry.is_some(), "{major} {name}: {finding:?}");
                }
            }
        }
    }
}

/// The number of records in each file alone, as `pg_waldump FILE | wc -l` of PostgreSQL 15.18 has it.
#[test]
fn pg_waldump_finds_the_same_records() {
    let known: [&[u64]; 2] = [&[4332, 1834, 108, 329, 810], &[814, 14, 3]];
    for (node, known) in nodes(15).into_iter().zip(known) {
        let segments = node.iter().filter(|(name, _)| name.len() == 24);
        let alone = segments.map(|(name, bytes)| judge(segment(name), bytes, None, 1 << 16));
        let records: Vec<u64> = alone.map(|finding| finding.records).collect();
        assert_eq!(records, known);
    }
}

#[test]
fn the_parts_in_which_a_file_is_read_do_not_matter() {
    for major in [13, 18] {
        for node in nodes(major) {
            let whole = findings(&node, SIZE as usize);
            for part in [1, 7, 24, 4096, 8192, 8193] {
                assert_eq!(findings(&node, part), whole, "{major}, parts of {part} bytes");
            }
        }
    }
}

/// Without the segment before, the record that goes on from there is not verified, and everything else is.
#[test]
fn a_segment_can_be_judged_alone() {
    for node in nodes(15) {
        let together = findings(&node, 1 << 16);
        for (name, bytes) in node.iter().filter(|(name, _)| !name.ends_with(".history")) {
            let alone = judge(segment(name), bytes, None, 1 << 16);
            let known = &together[name];
            assert_eq!((alone.verdict, alone.end), (known.verdict, known.end), "{name}");
            assert!(known.records - alone.records <= 1, "{name}");
        }
    }
}

/// The parts of a finding that do not depend on how it came about.
fn essence(finding: &Finding) -> (Verdict, Lsn, u64, Option<String>) {
    (finding.verdict, finding.end, finding.records, finding.carry.as_ref().map(ToString::to_string))
}

/// A segment that was read alone, and then joined with the one before, has the finding of a reader with that carry.
#[test]
fn a_segment_read_alone_can_be_joined_with_the_one_before() {
    let mut joined = 0;
    for major in [13, 15, 16, 18] {
        for node in nodes(major) {
            let mut carry: Option<Carry> = None;
            for (name, bytes) in node.iter().filter(|(name, _)| !name.ends_with(".history")) {
                let name = segment(name);
                let together = judge(name, bytes, carry.clone(), 1 << 16);
                let alone = judge(name, bytes, None, 1 << 16);
                if let Some(carry) = carry {
                    assert_eq!(essence(&alone.clone().after(name, &carry)), essence(&together), "{major} {name}");
                    joined += usize::from(alone.records < together.records);

                    // Another record before it, or a damaged one, does not fit.
                    let head = alone.head.as_ref().unwrap().to_string();
                    let other = Finding { head: Some(head.parse().unwrap()), ..alone.clone() };
                    assert_eq!(other.head, alone.head);
                    let text = carry.to_string();
                    assert_eq!(text.parse(), Ok(carry.clone()));
                    let mut words: Vec<_> = text.split(' ').map(str::to_owned).collect();
                    if let ["of", ..] = words.split_off(3).iter().map(String::as_str).collect::<Vec<_>>()[..] {
                        let crc = text.rsplit(' ').next().unwrap();
                        let wrong = text.replace(crc, &(crc.parse::<u32>().unwrap() ^ 1).to_string());
                        let finding = alone.after(name, &wrong.parse().unwrap());
                        assert_eq!(finding.verdict, Verdict::Corrupt, "{finding:?}");
                        assert_eq!(finding.reason, "the record's CRC does not match");
                        assert!(finding.end < carry.next && finding.carry.is_none());
                    }
                }
                carry = together.carry;
            }
        }
    }
    assert!(joined >= 4, "only {joined} records go on in another segment");
}

#[test]
fn the_text_of_a_carry_or_a_head_is_exact() {
    for text in ["", "0/1", "0/1 1 -", "0/1 1 - of", "0/1 1 - none x", "0/1 1 - unseen -1", "x 1 - none"] {
        assert!(text.parse::<Carry>().is_err(), "{text:?}");
    }
    assert!("0/1 1 - unseen 5".parse::<Carry>().is_ok());
    let head = format!("1 0 24 24 {} 7 - -", "0a".repeat(24));
    assert_eq!(head.parse::<Head>().unwrap().to_string(), head);
    for wrong in [head.replace("0a0a", "0a"), head.replace("0a0a", "0é"), head.replace(" -", ""), format!("{head} 1")]
    {
        assert!(wrong.parse::<Head>().is_err(), "{wrong:?}");
    }
}

/// With an encryption that keeps the page headers, nothing else can be read. A damaged first record is another thing.
#[test]
fn an_encrypted_body_is_not_called_damage() {
    let mut random: u64 = 1;
    let encrypted = changed(|bytes| {
        for (at, byte) in bytes.iter_mut().enumerate() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            if at % 8192 >= 40 {
                *byte ^= (random >> 32) as u8;
            }
        }
    });
    assert_eq!((encrypted.verdict, encrypted.end.0 % SIZE), (Verdict::Unreadable, 0), "{encrypted:?}");
    assert!(encrypted.reason.contains("encrypted"));
    let first = changed(|bytes| {
        let after = 40 + u32::from_le_bytes(bytes[16..20].try_into().unwrap()).next_multiple_of(8) as usize;
        bytes[after + 20] ^= 1;
    });
    assert_eq!(first.verdict, Verdict::Corrupt, "{first:?}");
}

/// The rest of a file need not be read.
#[test]
fn a_verdict_is_clear_before_the_end() {
    let (name, bytes) = busy(16);
    let reader = |bytes: &[u8]| {
        let mut reader = Reader::new(name, SegmentSize::DEFAULT, None, None);
        reader.push(bytes);
        reader.is_judged()
    };
    let mut damaged = bytes.clone();
    damaged[300_000] ^= 1;
    assert!(!reader(&damaged[..290_000]) && reader(&damaged[..320_000]));
    assert!(reader(&[0x55; 64]), "no WAL");
    assert!(!reader(&bytes) && reader(&[&bytes[..], &[0]].concat()));
}

#[test]
fn a_file_that_cannot_be_read_further_has_the_records_before() {
    let (name, bytes) = busy(16);
    for (is_cut, verdict) in [(true, Verdict::Short), (false, Verdict::Corrupt)] {
        let mut reader = Reader::new(name, SegmentSize::DEFAULT, None, None);
        reader.push(&bytes[..100_000]);
        let finding = reader.finish_damaged(is_cut, "why".to_owned());
        assert_eq!((finding.verdict, finding.reason.as_str()), (verdict, "why"));
        let start = name.start(SegmentSize::new(SIZE).unwrap()).unwrap();
        assert!(finding.carry.is_none() && finding.end > start && finding.end.0 <= start.0 + 100_000);
    }
}

/// The verdict on a segment of PostgreSQL 16 that was changed.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Finding {
    let (name, mut bytes) = busy(16);
    change(&mut bytes);
    judge(name, &bytes, None, 1 << 16)
}

#[test]
fn damage_has_its_verdict_and_its_place() {
    let start = changed(|_| {}).end.0 - SIZE;
    let half = SIZE as usize / 2;
    let system = {
        let (name, bytes) = busy(16);
        let mut reader = Reader::new(name, SegmentSize::DEFAULT, None, Some(1));
        reader.push(&bytes);
        reader.finish()
    };
    let old = {
        let (_, bytes) = busy(16);
        judge(segment("0000000100000000000000AA"), &bytes, None, 1 << 16)
    };
    type Case = (&'static str, Finding, Verdict, Option<u64>, &'static str);
    let cases: [Case; 13] = [
        ("cut off", changed(|bytes| bytes.truncate(half)), Verdict::Short, None, "524288 of 1048576 bytes"),
        ("empty", changed(Vec::clear), Verdict::Short, Some(0), "0 of 1048576 bytes"),
        ("a byte too long", changed(|bytes| bytes.push(0)), Verdict::Corrupt, Some(0), "at least 1048577 bytes"),
        ("zeros", changed(|bytes| bytes.fill(0)), Verdict::Partial, Some(0), "zeros from there on"),
        ("zeros at the end", changed(|bytes| bytes[half..].fill(0)), Verdict::Partial, None, "zeros from there on"),
        (
            "a page of zeros",
            changed(|bytes| bytes[half..half + 8192].fill(0)),
            Verdict::Corrupt,
            None,
            "a page again at",
        ),
        (
            "random",
            changed(|bytes| bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(31) ^ 0x5A)),
            Verdict::Unreadable,
            Some(0),
            "magic number",
        ),
        (
            "a page of an older place",
            changed(|bytes| bytes.copy_within(8192..16384, half)),
            Verdict::Corrupt,
            None,
            "one of this at",
        ),
        (
            "a later page",
            changed(|bytes| bytes.copy_within(half..half + 8192, half - 8192)),
            Verdict::Corrupt,
            None,
            "says that it is at",
        ),
        (
            "a noisy page",
            changed(|bytes| bytes[half..half + 24].fill(0xAA)),
            Verdict::Corrupt,
            None,
            "no page header at",
        ),
        ("a short first header", changed(|bytes| bytes[2] &= !2), Verdict::Corrupt, Some(0), "a short header"),
        ("another cluster", system, Verdict::Foreign, Some(0), "the system identifier is"),
        ("an older segment's name", old, Verdict::Recycled, None, "the content is that of"),
    ];
    for (what, finding, verdict, offset, words) in cases {
        assert_eq!(finding.verdict, verdict, "{what}: {finding:?}");
        assert!(finding.reason.contains(words), "{what}: {finding:?}");
        if let Some(offset) = offset {
            assert_eq!(finding.end.0, start + offset, "{what}: {finding:?}");
        }
        assert!(finding.carry.is_none(), "{what}");
    }
}

/// A flipped bit in a record is found. A bit that changes nothing lies in a page header, in the rest of a record whose
/// beginning was not read, or in the padding between two records.
#[test]
fn a_flipped_bit_in_a_record_is_found() {
    for major in [13, 18] {
        let [old, _] = nodes(major);
        // The last segment is nearly empty, so that all of it can be tried.
        let (name, bytes) = old
            .iter()
            .filter(|(name, _)| name.len() == 24)
            .min_by_key(|(name, bytes)| (judge(segment(name), bytes, None, 1 << 16).records, (*name).clone()))
            .unwrap();
        let whole = judge(segment(name), bytes, None, 1 << 16);
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        let mut unfound = 0;
        for bit in 0..(used + 1) * 8 {
            // Every bit of the first records, and some of the others. 1009 is a prime.
            if bit > 8192 && bit % 1009 != 0 {
                continue;
            }
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let finding = judge(segment(name), &flipped, None, 1 << 20);
            if finding.verdict == whole.verdict {
                unfound += 1;
                let in_page = bit / 8 % 8192;
                let header = if bit / 8 < 8192 { 40 } else { 24 };
                let continues = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
                let in_unseen = bit / 8 < 40 + continues;
                let padding = bytes[bit / 8] == 0;
                assert!(in_page < header || in_unseen || padding, "{major} {name}: bit {bit} of byte {}", bit / 8);
            }
        }
        assert!(unfound < used, "{major}: {unfound}");
    }
}

/// A reader keeps one header of a page and one of a record.
#[test]
fn a_reader_is_small() {
    assert!(size_of::<Reader>() < 512, "{} bytes", size_of::<Reader>());
}

mod random {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        /// No input is a panic, and none is called whole.
        #[test]
        fn no_input_is_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..20_000), part in 1_usize..9000) {
            let finding = judge(segment("000000010000000000000006"), &bytes, None, part);
            prop_assert!(finding.carry.is_none());
        }

        /// Damage is the same for a segment that is joined later.
        #[test]
        fn no_damage_is_lost_in_a_join(at in 0..SIZE as usize, bit in 0_u8..8, nth in 1_usize..5) {
            let [old, _] = nodes(15);
            let files: Vec<_> = old.iter().filter(|(name, _)| name.len() == 24).collect();
            let (before, (name, bytes)) = (files[nth - 1], files[nth]);
            let carry = judge(segment(before.0), before.1, None, 1 << 16).carry.unwrap();
            let mut bytes = bytes.clone();
            bytes[at] ^= 1 << bit;
            let name = segment(name);
            let together = judge(name, &bytes, Some(carry.clone()), 1 << 16);
            let alone = judge(name, &bytes, None, 1 << 16).after(name, &carry);
            prop_assert_eq!(alone.verdict, together.verdict);
            prop_assert_eq!(alone.end, together.end);
            prop_assert_eq!(alone.carry, together.carry);
        }

        /// The same where most of the input is real WAL, so that the reader gets further.
        #[test]
        fn no_damage_is_a_panic(
            damage in proptest::collection::vec((0..SIZE as usize, any::<u8>(), 1_usize..64), 1..8),
            length in 0..=SIZE as usize,
        ) {
            let (name, mut bytes) = busy(18);
            for (at, byte, count) in damage {
                let until = (at + count).min(bytes.len());
                bytes[at..until].fill(byte);
            }
            bytes.truncate(length);
            let finding = judge(name, &bytes, None, 1 << 16);
            prop_assert!(finding.end.0 <= name.start(SegmentSize::new(SIZE).unwrap()).unwrap().0 + SIZE);
        }
    }
}
