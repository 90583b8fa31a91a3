//! Directories with real WAL: two nodes of one cluster after a failover, with segments of 1 MiB. And the command.

use serde_json::Value;
use sha1::Digest;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// The size of a segment.
pub const MIB: usize = 1 << 20;

/// The files of both nodes of PostgreSQL 15 by name: timeline 1 from 6 to A, timeline 2 from A to C, the history and
/// the partial segment of timeline 1.
pub fn files() -> BTreeMap<String, Vec<u8>> {
    files_of(15)
}

/// The same of another version.
pub fn files_of(major: u16) -> BTreeMap<String, Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("wal/testdata/pg{major}-1m.tar.zst"));
    let file = fs::File::open(path).unwrap();
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(zstd::Decoder::new(file).unwrap()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let Some(name) = path.file_name().map(|name| name.to_string_lossy().into_owned()) else { continue };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        if !bytes.is_empty() && !name.ends_with(".json") {
            files.insert(name, bytes);
        }
    }
    assert!(files.len() > 8, "{:?}", files.keys());
    files
}

/// The name of a segment of timeline 1 or 2.
pub fn segment(timeline: u32, number: u32) -> String {
    format!("{timeline:08X}00000000{number:08X}")
}

/// A directory for a test, in which the command runs.
pub struct Place(tempfile::TempDir);

/// What the command answered.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Verdict, LSN and reason of a file.
    pub fn file(&self, path: &str) -> (String, String, String) {
        let json = self.json();
        let files = json["files"].as_array().unwrap();
        let file = files.iter().find(|file| file["file"] == path);
        let file = file.unwrap_or_else(|| panic!("no file {path}: {}", self.out));
        let text = |name: &str| file[name].as_str().unwrap_or_default().to_owned();
        (text("verdict"), text("lsn"), text("reason"))
    }

    /// The gaps as `timeline: from to to, segments`.
    pub fn gaps(&self) -> Vec<String> {
        let json = self.json();
        let timelines = json["timelines"].as_array().unwrap();
        let gaps = timelines.iter().flat_map(|timeline| {
            let gaps = timeline["gaps"].as_array().unwrap().iter();
            gaps.map(|gap| {
                let text = |name: &str| gap[name].as_str().unwrap().to_owned();
                format!("{}: {} to {}, {}", timeline["timeline"], text("from"), text("to"), gap["segments"])
            })
        });
        gaps.collect()
    }

    /// The parts that can be restored as `timeline: from to to`.
    pub fn restorable(&self) -> Vec<String> {
        let json = self.json();
        let parts = json["restorable"].as_array().unwrap().iter();
        let text = |part: &Value, name: &str| part[name].as_str().unwrap().to_owned();
        parts.map(|part| format!("{}: {} to {}", part["timeline"], text(part, "from"), text(part, "to"))).collect()
    }
}

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A directory `wal` with these files.
    pub fn with(files: &BTreeMap<String, Vec<u8>>) -> Self {
        let place = Self::new();
        for (name, bytes) in files {
            place.write(&format!("wal/{name}"), bytes);
        }
        place
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// Writes a file that is an hour old.
    pub fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = fs::File::create(path).unwrap();
        file.write_all(bytes).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)).unwrap();
    }

    /// Runs `warden archive verify` with these arguments.
    pub fn verify(&self, arguments: &[&str]) -> Answer {
        self.warden(&[&["archive", "verify"], arguments].concat())
    }

    /// The same for the directory `wal`, with its answer in JSON.
    pub fn judge(&self) -> Answer {
        self.verify(&["-f", "json", "wal"])
    }

    pub fn warden(&self, arguments: &[&str]) -> Answer {
        let mut command = Command::new(env!("CARGO_BIN_EXE_warden"));
        let output = command.args(arguments).current_dir(self.0.path()).env_remove("WARDEN_CONFIG").output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Answer { code: output.status.code().unwrap(), out: text(&output.stdout), err: text(&output.stderr) }
    }
}

/// The suffixes of the compressions that the command reads.
pub const COMPRESSIONS: [&str; 4] = ["gz", "lz4", "zst", "bz2"];

pub fn compress(suffix: &str, bytes: &[u8]) -> Vec<u8> {
    match suffix {
        "gz" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        "lz4" => {
            let mut encoder = lz4_flex::frame::FrameEncoder::new(Vec::new());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        "zst" => zstd::encode_all(bytes, 1).unwrap(),
        "bz2" => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(bytes).unwrap();
            encoder.finish().unwrap()
        }
        other => panic!("{other}"),
    }
}

pub fn sha1(bytes: &[u8]) -> String {
    sha1::Sha1::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
