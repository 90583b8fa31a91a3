//! Arbitrary bytes as segments, histories, names and kept texts: nothing panics, loops, or depends on how it is read.
//!
//! A random file fails at its first bytes. So most inputs become files with a right page header, and those of one kind
//! also records with a right CRC and link, from the lengths and bodies that the input has.
#![no_main]

use libfuzzer_sys::fuzz_target;
use std::collections::BTreeMap;
use warden_wal::{
    Carry, Content, File, FileName, Finding, Head, History, Lsn, Reader, SegmentName, SegmentSize, compare, judge,
};

/// 1 MiB: the smallest size, so that an input is not mostly zeros.
const SIZE: u64 = 1 << 20;

/// The magic numbers of PostgreSQL 12 to 19.
const MAGICS: [u16; 8] = [0xD101, 0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118, 0xD121];

fuzz_target!(|input: &[u8]| {
    let Some((&[mode, part, magic], data)) = input.split_first_chunk::<3>() else { return };
    let text = String::from_utf8_lossy(data);
    match mode % 5 {
        0 => texts(&text),
        1 => archive(data),
        2 => drop(read(6, data, None, usize::from(part) + 1)),
        3 => segment(&pages(6, magic, &[], data), part),
        _ => segment(&pages(6, magic, &records(data), &[]), part),
    }
});

fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

fn name(number: u64) -> SegmentName {
    SegmentName::at(1, Lsn(number * SIZE), size())
}

fn read(number: u64, bytes: &[u8], carry: Option<Carry>, part: usize) -> Finding {
    let mut reader = Reader::new(name(number), size(), carry, None);
    bytes.chunks(part).for_each(|part| reader.push(part));
    let finding = reader.finish();
    // The first page may say another size.
    let size = finding.size.unwrap_or(size());
    let start = name(number).start(size).unwrap_or_default();
    assert!(finding.end.0 <= start.0 + size.bytes(), "{finding:?}");
    finding
}

/// Names, histories, and the texts of heads and carries.
fn texts(text: &str) {
    assert_eq!(FileName::parse(text).to_string(), text);
    if let Ok(history) = History::parse(9, text) {
        assert!(!history.switches.is_empty());
    }
    if let Ok(head) = text.parse::<Head>() {
        assert_eq!(head.to_string().parse(), Ok(head));
    }
    if let Ok(carry) = text.parse::<Carry>() {
        assert_eq!(carry.to_string().parse(), Ok(carry.clone()));
        // A carry of any content, before a segment that begins with any page.
        let alone = read(6, &pages(6, 3, &[], text.as_bytes()), None, 4096);
        drop(alone.after(name(6), &carry));
        drop(read(6, &pages(6, 3, &[], text.as_bytes()), Some(carry), 4096));
    }
}

/// The finding does not depend on the parts, and a segment that is joined later has that of a reader with the carry.
fn segment(bytes: &[u8], part: u8) {
    let whole = read(6, bytes, None, usize::MAX);
    assert_eq!(read(6, bytes, None, usize::from(part) * 37 + 1), whole);
    // The same bytes as the next segment, which the carry of this one may fit or not.
    if let Some(carry) = whole.carry.clone() {
        let mut next = bytes.to_vec();
        for page in (0..next.len()).step_by(8192) {
            let address = 7 * SIZE + page as u64;
            if let Some(place) = next.get_mut(page + 8..page + 16) {
                place.copy_from_slice(&address.to_le_bytes());
            }
        }
        let together = read(7, &next, Some(carry.clone()), 8192);
        let joined = read(7, &next, None, 8192).after(name(7), &carry);
        assert_eq!((joined.verdict, &joined.carry), (together.verdict, &together.carry), "{joined:?} {together:?}");
    }
}

/// A whole segment: page headers with the bytes of `records`, or of `raw`, in between, and zeros.
fn pages(number: u64, magic: u8, records: &[u8], raw: &[u8]) -> Vec<u8> {
    let start = number * SIZE;
    let magic = MAGICS[usize::from(magic) % MAGICS.len()];
    let mut file = Vec::with_capacity(SIZE as usize);
    let mut rest = if records.is_empty() { raw } else { records };
    while file.len() < SIZE as usize {
        let page = file.len() as u64;
        let is_used = page == 0 || !rest.is_empty();
        // The header says how much of a record goes on: as much as the input wants.
        let remaining =
            if records.is_empty() && page > 0 { rest.first().copied().map_or(0, u32::from) * 64 } else { 0 };
        if is_used {
            let info: u16 = if page == 0 { 2 } else { u16::from(remaining > 0) };
            file.extend_from_slice(&magic.to_le_bytes());
            file.extend_from_slice(&info.to_le_bytes());
            file.extend_from_slice(&1_u32.to_le_bytes());
            file.extend_from_slice(&(start + page).to_le_bytes());
            file.extend_from_slice(&remaining.to_le_bytes());
            file.extend_from_slice(&[0; 4]);
            if page == 0 {
                file.extend_from_slice(&7_u64.to_le_bytes());
                file.extend_from_slice(&(SIZE as u32).to_le_bytes());
                file.extend_from_slice(&8192_u32.to_le_bytes());
            }
        }
        let space = page as usize + 8192 - file.len();
        let (part, later) = rest.split_at(rest.len().min(space));
        file.extend_from_slice(part);
        file.resize(page as usize + 8192, 0);
        rest = later;
    }
    file
}

/// Records that fit on the first page, with right CRCs and links. Two bytes of the input give a record's length and its
/// kind, and those after them its body.
fn records(mut data: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut previous = 6 * SIZE - 64;
    while let Some((&[length, info], rest)) = data.split_first_chunk::<2>() {
        let start = 6 * SIZE + 40 + all.len() as u64;
        let (body, later) = rest.split_at(rest.len().min(usize::from(length)));
        data = later;
        if all.len() + 24 + body.len() + 8 > 8192 - 40 {
            break;
        }
        let mut header = Vec::new();
        header.extend_from_slice(&(24 + body.len() as u32).to_le_bytes());
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&previous.to_le_bytes());
        header.extend_from_slice(&[info, info & 1, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &header);
        header.extend_from_slice(&crc.to_le_bytes());
        all.extend_from_slice(&header);
        all.extend_from_slice(body);
        all.resize(all.len().next_multiple_of(8), 0);
        previous = start;
    }
    all
}

/// An archive of a few files: each byte of the input is one, with a name, a verdict and a size from it.
fn archive(data: &[u8]) {
    let mut files = Vec::new();
    for (nth, bytes) in data.chunks(3).take(24).enumerate() {
        let &[what, number, byte] = bytes else { break };
        let number = u64::from(number % 12) + 6;
        let segment = SegmentName::at(u32::from(what % 4) + 1, Lsn(number * SIZE), size());
        let (name, content) = match what / 64 {
            0 | 1 => {
                let file = pages(number, 3, &[], &[byte]);
                let length = file.len().min(usize::from(byte) * 8192);
                (FileName::Segment(segment), Content::Segment(read(number, &file[..length], None, 8192)))
            }
            2 => {
                let text = format!("{}\t0/{:X}00010\t\n", byte % 4 + 1, number);
                let timeline = u32::from(what % 4) + 2;
                let history = History::parse(timeline, &text).map_err(|error| error.to_string());
                (FileName::History(timeline), Content::History(history))
            }
            _ => (FileName::Segment(segment), Content::Unreadable(String::new())),
        };
        files.push(File { path: nth.to_string(), name, content, sha256: Some([byte; 32]) });
    }
    let differences: BTreeMap<(usize, usize), u64> =
        compare(&files).into_iter().map(|pair| (pair, u64::from(data[0]) * 4096)).collect();
    let report = judge(&files, &differences);
    assert_eq!(report.files.len(), files.len());
    for timeline in &report.timelines {
        assert!(timeline.gaps.iter().all(|gap| gap.from < gap.to && gap.segments > 0), "{timeline:?}");
        assert!(timeline.gaps.windows(2).all(|two| two[0].to < two[1].from), "{timeline:?}");
    }
    assert!(report.restorable.iter().all(|part| part.from < part.to));
}
