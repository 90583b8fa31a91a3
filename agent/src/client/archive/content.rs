//! The uncompressed content of a file. The compression is known by the first bytes, because Barman keeps compressed
//! segments under their plain names.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::sync::atomic::{AtomicU64, Ordering};

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
    Lz4,
    Bzip2,
    /// A compression that cannot be read, or an encryption.
    Unreadable(&'static str),
}

impl Compression {
    /// By a file's first bytes, and by the suffix of its name where these say nothing.
    fn of(first: &[u8], suffix: Option<&str>) -> Self {
        const MAGICS: [(&[u8], Compression); 8] = [
            (b"\x1F\x8B", Compression::Gzip),
            (b"\x28\xB5\x2F\xFD", Compression::Zstd),
            (b"\x04\x22\x4D\x18", Compression::Lz4),
            (b"BZh", Compression::Bzip2),
            (b"\xFD7zXZ\x00", Compression::Unreadable("compressed by xz, which cannot be read")),
            (b"Salted__", Compression::Unreadable("encrypted: it begins with Salted__, as openssl writes it")),
            (b"age-encryption.org/", Compression::Unreadable("encrypted by age")),
            (b"-----BEGIN PGP", Compression::Unreadable("encrypted by OpenPGP")),
        ];
        if let Some((_, found)) = MAGICS.iter().find(|(magic, _)| first.starts_with(magic)) {
            return *found;
        }
        // The second byte of WAL, in all versions that are known.
        match suffix.filter(|_| first.get(1) != Some(&0xD1)) {
            Some("br") => Self::Unreadable("compressed by Brotli, which cannot be read"),
            Some("lzma") => Self::Unreadable("compressed by LZMA, which cannot be read"),
            Some("xz" | "lzo" | "lz" | "sz") => Self::Unreadable("by its name compressed in a way that cannot be read"),
            _ => Self::None,
        }
    }
}

/// The reader of a file, which counts what it reads.
struct Counted<'a> {
    file: File,
    count: &'a AtomicU64,
    /// The file itself failed, and not the compression.
    has_failed: bool,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer);
        match &read {
            Ok(read) => drop(self.count.fetch_add(*read as u64, Ordering::Relaxed)),
            Err(error) => self.has_failed |= error.kind() != io::ErrorKind::Interrupted,
        }
        read
    }
}

/// The uncompressed content of a file.
pub(super) struct Stream<'a>(Inner<'a>);

type Source<'a> = BufReader<Counted<'a>>;

enum Inner<'a> {
    Plain(Counted<'a>),
    Gzip(flate2::bufread::MultiGzDecoder<Source<'a>>),
    Zstd(zstd::Decoder<'static, Source<'a>>),
    Lz4(lz4_flex::frame::FrameDecoder<Source<'a>>),
    Bzip2(bzip2::bufread::MultiBzDecoder<Source<'a>>),
}

/// Why a content ends.
#[derive(Debug)]
pub(super) enum StreamError {
    /// The file could not be read, or its compression or encryption is unknown.
    Unreadable(String),
    /// The compressed content ends too early.
    Cut(String),
    /// The compressed content is damaged.
    Damaged(String),
}

/// The bytes that are read at once from a compressed file.
const COMPRESSED_BUFFER: usize = 64 << 10;

impl<'a> Stream<'a> {
    /// The content of `file`; `suffix` is that of its name.
    pub(super) fn new(mut file: File, suffix: Option<&str>, count: &'a AtomicU64) -> Result<Self, StreamError> {
        let unreadable = |error: io::Error| StreamError::Unreadable(format!("cannot be read: {error}"));
        let mut first = Vec::new();
        (&mut file).take(32).read_to_end(&mut first).map_err(unreadable)?;
        file.rewind().map_err(unreadable)?;
        let counted = Counted { file, count, has_failed: false };
        let source = |counted| BufReader::with_capacity(COMPRESSED_BUFFER, counted);
        Ok(Self(match Compression::of(&first, suffix) {
            Compression::None => Inner::Plain(counted),
            Compression::Gzip => Inner::Gzip(flate2::bufread::MultiGzDecoder::new(source(counted))),
            Compression::Zstd => Inner::Zstd(zstd::Decoder::with_buffer(source(counted)).map_err(unreadable)?),
            Compression::Lz4 => Inner::Lz4(lz4_flex::frame::FrameDecoder::new(source(counted))),
            Compression::Bzip2 => Inner::Bzip2(bzip2::bufread::MultiBzDecoder::new(source(counted))),
            Compression::Unreadable(why) => return Err(StreamError::Unreadable(why.to_owned())),
        }))
    }

    /// The next bytes of the content; 0 at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        loop {
            let read = match &mut self.0 {
                Inner::Plain(file) => file.read(buffer),
                Inner::Gzip(decoder) => decoder.read(buffer),
                Inner::Zstd(decoder) => decoder.read(buffer),
                Inner::Lz4(decoder) => read_frames(decoder, buffer),
                Inner::Bzip2(decoder) => decoder.read(buffer),
            };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| self.describe(&error)),
            }
        }
    }

    fn describe(&self, error: &io::Error) -> StreamError {
        let (name, file) = match &self.0 {
            Inner::Plain(file) => ("", file),
            Inner::Gzip(decoder) => ("gzip", decoder.get_ref().get_ref()),
            Inner::Zstd(decoder) => ("zstd", decoder.get_ref().get_ref()),
            Inner::Lz4(decoder) => ("lz4", decoder.get_ref().get_ref()),
            Inner::Bzip2(decoder) => ("bzip2", decoder.get_ref().get_ref()),
        };
        if file.has_failed || name.is_empty() {
            return StreamError::Unreadable(format!("cannot be read: {error}"));
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => StreamError::Cut(format!("the {name} data ends too early")),
            _ => StreamError::Damaged(format!("the {name} data is damaged: {error}")),
        }
    }
}

/// Reads lz4 frames, of which a file may have several. The decoder ends after each.
fn read_frames(decoder: &mut lz4_flex::frame::FrameDecoder<Source<'_>>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let read = decoder.read(buffer)?;
        if read > 0 || decoder.get_mut().fill_buf()?.is_empty() {
            return Ok(read);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compression_is_known_by_the_first_bytes() {
        for (first, suffix, expected) in [
            (&b"\x10\xD1\x07\x00"[..], None, Compression::None),
            (b"\x10\xD1\x07\x00", Some("br"), Compression::None),
            (b"", Some("gz"), Compression::None),
            (b"\x1F\x8B\x08", None, Compression::Gzip),
            (b"\x28\xB5\x2F\xFD", Some("br"), Compression::Zstd),
            (b"\x04\x22\x4D\x18", None, Compression::Lz4),
            (b"BZh9", Some("gz"), Compression::Bzip2),
        ] {
            assert_eq!(Compression::of(first, suffix), expected, "{first:?} {suffix:?}");
        }
        for (first, suffix, words) in [
            (&b"\xFD7zXZ\x00"[..], None, "xz"),
            (b"Salted__12345678", Some("gz"), "encrypted"),
            (b"\x8B\x01", Some("br"), "Brotli"),
            (b"\x5D\x00", Some("lzma"), "LZMA"),
            (b"\x5D\x00", Some("lzo"), "by its name"),
        ] {
            let Compression::Unreadable(why) = Compression::of(first, suffix) else { panic!("{first:?} is readable") };
            assert!(why.contains(words), "{why}");
        }
    }
}
