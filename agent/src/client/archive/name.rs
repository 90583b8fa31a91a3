//! The names under which archives keep PostgreSQL's files: with the suffix of a compression, and with a checksum.
//!
//! Sources: the documentation and the repositories of pgBackRest (`<segment>-<sha1>.gz`), WAL-G (`<segment>.lz4`),
//! Barman (`<segment>`, compressed or not, or `<segment>.gz`) and `pg_receivewal` (`<segment>.gz.partial`).

use warden_wal::FileName;

/// The suffixes of compressions, also of those that cannot be read.
const SUFFIXES: [&str; 10] = ["gz", "lz4", "zst", "bz2", "xz", "br", "lzma", "lzo", "lz", "sz"];

/// A file's name in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredName {
    /// The name for PostgreSQL, or the whole name of another file.
    pub name: FileName,
    /// The suffix of a compression, without its dot.
    pub suffix: Option<&'static str>,
    /// The SHA-1 of the uncompressed content.
    pub sha1: Option<[u8; 20]>,
}

impl StoredName {
    pub(super) fn parse(text: &str) -> Self {
        Self::known(text).unwrap_or_else(|| Self { name: FileName::parse(text), suffix: None, sha1: None })
    }

    fn known(text: &str) -> Option<Self> {
        let (rest, suffix) = without_suffix(text);
        // `pg_receivewal` compresses the segment that it receives.
        if let Some((rest, Some(suffix))) = text.strip_suffix(".partial").map(without_suffix) {
            let name = known_name(&format!("{rest}.partial"))?;
            return Some(Self { name, suffix: Some(suffix), sha1: None });
        }
        let (rest, sha1) = match rest.rsplit_once('-') {
            Some((rest, digits)) => (rest, Some(sha1(digits)?)),
            None => (rest, None),
        };
        Some(Self { name: known_name(rest)?, suffix, sha1 })
    }

    pub(super) const fn is_segment(&self) -> bool {
        matches!(self.name, FileName::Segment(_) | FileName::Partial(_))
    }

    pub(super) const fn is_other(&self) -> bool {
        matches!(self.name, FileName::Other(_))
    }
}

fn known_name(text: &str) -> Option<FileName> {
    Some(FileName::parse(text)).filter(|name| !matches!(name, FileName::Other(_)))
}

fn without_suffix(text: &str) -> (&str, Option<&'static str>) {
    let found = SUFFIXES.into_iter().find_map(|suffix| {
        let rest = text.strip_suffix(suffix)?.strip_suffix('.')?;
        Some((rest, Some(suffix)))
    });
    found.unwrap_or((text, None))
}

fn sha1(digits: &str) -> Option<[u8; 20]> {
    let valid = digits.len() == 40 && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let mut bytes = [0; 20];
    for (nth, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * nth..2 * nth + 2)?, 16).ok()?;
    }
    valid.then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_known_with_its_suffix_and_its_checksum() {
        let segment = "000000010000000000000003";
        let sum = "0123456789abcdef0123456789abcdef01234567";
        for (text, name, suffix, has_sum) in [
            (segment.to_owned(), segment.to_owned(), None, false),
            (format!("{segment}.zst"), segment.to_owned(), Some("zst"), false),
            (format!("{segment}-{sum}.gz"), segment.to_owned(), Some("gz"), true),
            (format!("{segment}-{sum}"), segment.to_owned(), None, true),
            (format!("{segment}.partial-{sum}.lz4"), format!("{segment}.partial"), Some("lz4"), true),
            (format!("{segment}.partial.br"), format!("{segment}.partial"), Some("br"), false),
            (format!("{segment}.gz.partial"), format!("{segment}.partial"), Some("gz"), false),
            ("00000002.history.lz4".to_owned(), "00000002.history".to_owned(), Some("lz4"), false),
            (format!("{segment}.00000028.backup.gz"), format!("{segment}.00000028.backup"), Some("gz"), false),
        ] {
            let stored = StoredName::parse(&text);
            assert_eq!(
                (stored.name.to_string(), stored.suffix, stored.sha1.is_some()),
                (name, suffix, has_sum),
                "{text}"
            );
            assert!(!stored.is_other());
        }
        for text in [
            format!("{segment}.gz.part"),
            format!("{segment}.tmp"),
            format!("{segment}-{}.gz", sum.to_uppercase()),
            format!("{segment}-0123.gz"),
            format!("{segment}.gz.gz"),
            "archive.info".to_owned(),
            "xlog.db".to_owned(),
            ".gz".to_owned(),
            "gz".to_owned(),
        ] {
            let stored = StoredName::parse(&text);
            assert_eq!((stored.name, stored.suffix), (FileName::Other(text), None));
        }
    }
}
