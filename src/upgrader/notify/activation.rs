//! Sockets that a service manager has opened before the first process was there (sd_listen_fds(3)).

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::{OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::error::Error;
use crate::limits;
use crate::socket::{Found, listens};
use crate::sys;
use crate::upgrader::predecessor::Inheritance;
use crate::wire::{Entry, FileId, Kind};

/// The number of the first of them (SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;

/// What one without a usable name is called.
const UNKNOWN: &str = "unknown";

/// What the manager passes on, if it is meant for this process. The variables are taken out of the
/// environment in any case.
///
/// A successor has its sockets from its predecessor: what is still there is meant for somebody else.
pub(in crate::upgrader) fn sockets(is_first: bool) -> Result<Inheritance, Error> {
    let [pid, fds, names, _] =
        ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"].map(sys::take_variable);
    if !is_first {
        return Ok(Vec::new());
    }
    let own = std::process::id();
    let names = names_of(own, pid.as_deref(), fds.as_deref(), names.as_deref())
        .map_err(|reason| Error::Activation { reason })?;
    (FIRST..).zip(names).map(|(number, name)| adopt(number, name)).collect()
}

fn adopt(number: RawFd, name: String) -> Result<(Entry, OwnedFd), Error> {
    let failed = |step: &str, error: &dyn std::fmt::Display| Error::Activation {
        reason: format!("descriptor {number} ({name:?}) {step}: {error}"),
    };
    let fd =
        sys::adopt(number).map_err(|error| failed("was not passed to this process", &error))?;
    let found = Found::at(&fd).map_err(|error| failed("cannot be looked at", &error))?;
    // A connection, for one, is a file that somebody may ask for.
    let kind = if found.listening == listens(found.kind) { found.kind } else { Kind::File };
    if kind != Kind::File && !found.nonblocking {
        // The flag is shared with the manager, which has a copy and neither reads nor accepts by it. It
        // sets the flag itself, as NonBlocking= says, whenever it starts the service (systemd.service(5)).
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain);
        flags
            .and_then(|flags| fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)))
            .map_err(|error| failed("cannot be made non-blocking", &error))?;
    }
    let entry = Entry { name, kind, asked: String::new(), file: Some(FileId::MANAGERS) };
    Ok((entry, fd))
}

/// A name for each descriptor, no two the same. None if they are not meant for the process `own`. An
/// error says what is wrong with the variables.
fn names_of(
    own: u32,
    pid: Option<&OsStr>,
    fds: Option<&OsStr>,
    names: Option<&OsStr>,
) -> Result<Vec<String>, String> {
    let (Some(pid), Some(fds)) = (pid, fds) else { return Ok(Vec::new()) };
    let number = |text: &OsStr| text.to_str().and_then(|text| text.parse::<u32>().ok());
    match number(pid) {
        Some(pid) if pid == own => {}
        Some(_) => return Ok(Vec::new()),
        None => return Err(format!("LISTEN_PID is {:?}, and no process id", cut(pid))),
    }
    let count = number(fds)
        .ok_or_else(|| format!("LISTEN_FDS is {:?}, and no number of descriptors", cut(fds)))?;
    let count = usize::try_from(count).ok().filter(|count| *count <= limits::NAMED);
    let count = count.ok_or_else(|| {
        format!("LISTEN_FDS is {:?}: at most {} can be passed on", cut(fds), limits::NAMED)
    })?;
    let said = names.filter(|names| !names.is_empty()).map(|names| names.to_string_lossy());
    let said: Vec<&str> = said.iter().flat_map(|names| names.split(':')).collect();
    if said.len() > count {
        let said = said.len();
        return Err(format!("LISTEN_FDNAMES has {said} names, and LISTEN_FDS {count} descriptors"));
    }
    let mut found: Vec<String> = Vec::with_capacity(count);
    // A thousand sockets may have one name: none of them is to be compared with all others.
    let (mut taken, mut next) = (HashSet::with_capacity(count), HashMap::new());
    for place in 0..count {
        let usable = |name: &&str| {
            !name.is_empty() && name.len() <= limits::NAME_BYTES && !name.contains(is_odd)
        };
        let name = said.get(place).copied().filter(usable).unwrap_or(UNKNOWN);
        // A manager gives several sockets of one unit the same name.
        let mut own = name.to_owned();
        while !taken.insert(own.clone()) {
            let next = next.entry(name).or_insert(2);
            own = format!("{name} {next}");
            *next += 1;
        }
        found.push(own);
    }
    Ok(found)
}

fn is_odd(char: char) -> bool {
    char.is_control() || char == char::REPLACEMENT_CHARACTER
}

/// The beginning of a value that may be long, for one line of an error.
fn cut(value: &OsStr) -> String {
    value.to_string_lossy().chars().take(limits::NAME_BYTES).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    fn of(pid: &str, fds: &str, names: Option<&str>) -> Result<Vec<String>, String> {
        let [pid, fds] = [pid, fds].map(OsStr::new);
        names_of(7, Some(pid), Some(fds), names.map(OsStr::new))
    }

    #[test]
    fn each_descriptor_has_a_name_of_its_own() {
        assert_eq!(of("7", "2", Some("web:admin")), Ok(vec!["web".into(), "admin".into()]));
        let same = ["web", "web 2", "web 3"].map(str::to_owned).to_vec();
        assert_eq!(of("7", "3", Some("web:web:web")), Ok(same));
        let unknown = ["unknown", "unknown 2", "unknown 3"].map(str::to_owned).to_vec();
        assert_eq!(of("7", "3", None), Ok(unknown.clone()));
        assert_eq!(of("7", "3", Some("")), Ok(unknown.clone()));
        assert_eq!(of("7", "3", Some("unknown:\u{7}:")), Ok(unknown));
        let some = ["web 2", "web", "web 3"].map(str::to_owned).to_vec();
        assert_eq!(of("7", "3", Some("web 2:web:web")), Ok(some));
        assert_eq!(of("7", "2", Some("web")), Ok(vec!["web".into(), "unknown".into()]));
        assert_eq!(of("7", "1", Some(&"x".repeat(101))), Ok(vec!["unknown".into()]));
        // As many as can be passed on, of one name.
        let most = limits::NAMED.to_string();
        let names = of("7", &most, Some("web")).expect("names");
        assert_eq!(names.last(), Some(&format!("unknown {}", limits::NAMED - 1)));
    }

    #[test]
    fn what_is_meant_for_somebody_else_is_left_alone() {
        assert_eq!(of("8", "1", Some("web")), Ok(Vec::new()));
        assert_eq!(of("8", "-1", Some("a:b:c")), Ok(Vec::new()));
        assert_eq!(of("7", "0", None), Ok(Vec::new()));
        assert_eq!(names_of(7, None, Some(OsStr::new("x")), None), Ok(Vec::new()));
        assert_eq!(names_of(7, Some(OsStr::new("7")), None, None), Ok(Vec::new()));
    }

    #[test]
    fn hostile_values_are_refused_in_words() {
        for (pid, fds, names, word) in [
            ("7", "-1", None, "LISTEN_FDS is \"-1\""),
            ("7", "three", None, "LISTEN_FDS is \"three\""),
            ("7", "", None, "LISTEN_FDS"),
            ("7", "999999", None, "at most 1012"),
            ("7", "99999999999999999999", None, "no number"),
            ("seven", "1", None, "LISTEN_PID is \"seven\""),
            ("", "1", None, "LISTEN_PID"),
            ("7", "1", Some("a:b"), "has 2 names"),
            ("7", "0", Some("a"), "has 1 names"),
        ] {
            let error = of(pid, fds, names).expect_err(fds);
            assert!(error.contains(word), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_values_are_names_or_words(
            pid in "7|[0-9]{0,4}|.*",
            fds in "[0-9]{0,5}|.*",
            names in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let names = OsStr::from_bytes(&names);
            if let Ok(found) = names_of(7, Some(OsStr::new(&pid)), Some(OsStr::new(&fds)), Some(names)) {
                let unique: std::collections::HashSet<_> = found.iter().collect();
                prop_assert_eq!(unique.len(), found.len());
                prop_assert!(found.len() <= limits::NAMED);
            }
        }
    }
}
