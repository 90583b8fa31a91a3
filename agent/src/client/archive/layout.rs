//! The files of an archive, in the layouts of PostgreSQL itself, pgBackRest, WAL-G and Barman. Nothing is opened but
//! directories.
//!
//! | layout | recognized by | the files are in |
//! |---|---|---|
//! | pgBackRest's repository | `archive/<stanza>/archive.info` | `archive/<stanza>/<version>-<id>/<16 digits>/` |
//! | WAL-G's storage | `wal_005/` | `wal_005/` |
//! | Barman's server | `wals/` | `wals/<16 digits>/` |
//! | any other directory | | itself, and `<16 digits>/` |

use super::name::StoredName;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use warden_wal::FileName;

/// A file of an archive.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub path: PathBuf,
    pub stored: StoredName,
    pub place: Place,
}

/// What there is under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A regular file, or a symbolic link to one.
    File,
    /// It is no file, or not PostgreSQL's, and nothing is missed without it.
    Ignored(String),
    /// It cannot be read, and something may be missed.
    Unreadable(String),
}

const ELSEWHERE: &str = "not read: name it as a directory of its own";

/// The files of the archive in this directory, by their paths.
pub(super) fn list(directory: &Path) -> Vec<Entry> {
    let mut entries = Vec::new();
    if let Err(error) = fs::read_dir(directory) {
        add(&mut entries, directory, Place::Unreadable(describe(&error)));
        return entries;
    }
    if directory.join("wal_005").is_dir() {
        read(&directory.join("wal_005"), &mut entries);
    } else if directory.join("wals").is_dir() {
        read(&directory.join("wals"), &mut entries);
    } else if has_stanza(&directory.join("archive")) {
        stanzas(&directory.join("archive"), &mut entries);
    } else if has_stanza(directory) {
        stanzas(directory, &mut entries);
    } else if directory.join("archive.info").is_file() {
        stanza(directory, &mut entries);
    } else {
        read(directory, &mut entries);
    }
    entries
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such directory".to_owned(),
        io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => format!("cannot be read: {error}"),
    }
}

fn add(entries: &mut Vec<Entry>, path: &Path, place: Place) {
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let stored = match &place {
        Place::File | Place::Unreadable(_) => StoredName::parse(&name),
        Place::Ignored(_) => StoredName { name: FileName::Other(name.into_owned()), suffix: None, sha1: None },
    };
    entries.push(Entry { path: path.to_owned(), stored, place });
}

/// The names in a directory, in order. An error becomes an entry.
fn names(directory: &Path, entries: &mut Vec<Entry>) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    match fs::read_dir(directory) {
        Ok(found) => {
            for entry in found {
                match entry {
                    Ok(entry) => paths.push(entry.path()),
                    Err(error) => add(entries, directory, Place::Unreadable(describe(&error))),
                }
            }
        }
        Err(error) => add(entries, directory, Place::Unreadable(describe(&error))),
    }
    paths.sort();
    paths
}

/// Whether a directory has pgBackRest's stanzas.
fn has_stanza(directory: &Path) -> bool {
    names(directory, &mut Vec::new()).iter().any(|path| is_stanza(path))
}

fn is_stanza(path: &Path) -> bool {
    // A directory may have a hundred thousand segments.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    StoredName::parse(&name).is_other() && path.join("archive.info").is_file()
}

fn stanzas(directory: &Path, entries: &mut Vec<Entry>) {
    let stanzas: Vec<PathBuf> = names(directory, entries).into_iter().filter(|path| is_stanza(path)).collect();
    match stanzas.as_slice() {
        [only] => stanza(only, entries),
        several => several.iter().for_each(|path| {
            add(entries, path, Place::Unreadable(format!("one of several stanzas, {ELSEWHERE}")));
        }),
    }
}

/// A stanza has a directory for each cluster that it had, as `15-2`. The one with the highest number is the present.
fn stanza(directory: &Path, entries: &mut Vec<Entry>) {
    let number = |path: &Path| -> Option<u32> {
        let (version, number) = path.file_name()?.to_str()?.split_once('-')?;
        version.starts_with(|first: char| first.is_ascii_digit()).then(|| number.parse().ok())?
    };
    let paths = names(directory, entries);
    let newest = paths.iter().filter(|path| path.is_dir()).filter_map(|path| number(path)).max();
    for path in paths {
        match number(&path).filter(|_| path.is_dir()) {
            Some(id) if Some(id) == newest => read(&path, entries),
            Some(_) => add(entries, &path, Place::Ignored(format!("an older cluster's directory, {ELSEWHERE}"))),
            None => inspect(&path, false, entries),
        }
    }
}

/// A directory with files, and with directories of 16 digits.
fn read(directory: &Path, entries: &mut Vec<Entry>) {
    for path in names(directory, entries) {
        inspect(&path, true, entries);
    }
}

/// Whether the name is the first 16 digits of segments' names.
fn is_group(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| {
        name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte))
    })
}

fn inspect(path: &Path, is_top: bool, entries: &mut Vec<Entry>) {
    let name = path.file_name().unwrap_or_default();
    let is_known = !StoredName::parse(&name.to_string_lossy()).is_other();
    let (kind, is_link) = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => match fs::metadata(path) {
            Ok(metadata) => (metadata.file_type(), true),
            Err(error) if is_known => {
                return add(entries, path, Place::Unreadable(format!("a symbolic link that leads nowhere: {error}")));
            }
            Err(_) => return add(entries, path, Place::Ignored("a symbolic link that leads nowhere".to_owned())),
        },
        Ok(metadata) => (metadata.file_type(), false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return, // removed since it was listed
        Err(error) => return add(entries, path, Place::Unreadable(describe(&error))),
    };
    if kind.is_file() {
        add(entries, path, Place::File);
    } else if kind.is_dir() && is_group(name) && is_top && !is_link {
        for path in names(path, entries) {
            inspect(&path, false, entries);
        }
    } else if kind.is_dir() {
        let is_postgres = matches!(name.to_str(), Some("archive_status" | "summaries"));
        let place = match (is_known || is_group(name), is_link) {
            (_, true) => Place::Unreadable(format!("a symbolic link to a directory, {ELSEWHERE}")),
            (true, false) => Place::Unreadable("a directory, not a file".to_owned()),
            (false, false) if is_postgres => Place::Ignored("a directory of PostgreSQL's own".to_owned()),
            (false, false) => Place::Ignored(format!("a directory, {ELSEWHERE}")),
        };
        add(entries, path, place);
    } else {
        let what = "a FIFO, a socket or a device, not opened".to_owned();
        add(entries, path, if is_known { Place::Unreadable(what) } else { Place::Ignored(what) });
    }
}
