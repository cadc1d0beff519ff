//! What runs next: the program that this process was started as.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

use crate::error::Error;
use crate::kinship::ancestors;
use crate::sys::{self, Command};
use crate::wire::{
    INIT_VARIABLE, MAY_LEAVE, SHARED_VARIABLE, STDERR_VARIABLE, VARIABLE, WORKER_VARIABLE,
};

/// The file that this process executes, wherever its name has gone (proc(5)).
const RUNNING: &str = "/proc/self/exe";

/// What names the working directory by the links that its user has followed (POSIX, cd and pwd).
const DIRECTORY: &str = "PWD";

/// Variables that were meant for this process alone and would mislead another: who may take
/// systemd's sockets, or what the init has opened, and whose watchdog it is (sd_listen_fds(3), sd_watchdog_enabled(3)).
///
/// How often the watchdog is to hear of the service ([`WATCHDOG`]) is true of every process of it, if it
/// is true of this one.
const PERSONAL: [&str; 6] =
    ["LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID", "LISTEN_PIDFDID", WATCHED, SHARED_VARIABLE];

/// Of whom systemd's watchdog wants to hear, and how often.
const WATCHED: &str = "WATCHDOG_PID";
const WATCHDOG: &str = "WATCHDOG_USEC";

/// Which of several servers below an [`Init`](crate::Init) this process is, by
/// [`Init::workers`](crate::Init::workers): 1 is the first. `None` if there is one only.
#[must_use]
pub fn worker() -> Option<u32> {
    let text = env::var(WORKER_VARIABLE).ok()?;
    let number = text.strip_suffix(MAY_LEAVE).unwrap_or(&text);
    number.parse().ok().filter(|number| *number > 0)
}

/// Whether there may be fewer workers some day, or more.
pub(crate) fn may_leave() -> bool {
    env::var(WORKER_VARIABLE).is_ok_and(|text| text.ends_with(MAY_LEAVE))
}

/// How many workers stay on when this one leaves: those before it. `None` if it leaves with the service only.
pub(crate) fn who_stays() -> Option<u32> {
    worker().filter(|_| may_leave()).map(|number| number - 1).filter(|before| *before > 0)
}

/// The init below which this process lives, if it does, by a descriptor that is readable when that is dead. The
/// variable may have been inherited by somebody else: only an ancestor counts.
pub(crate) fn init_process() -> Option<(u32, OwnedFd)> {
    let init: u32 = env::var(INIT_VARIABLE).ok()?.parse().ok()?;
    let process = sys::process_descriptor(init).ok()?;
    ancestors(std::process::id()).any(|pid| pid == init).then_some((init, process))
}

/// The program as it was started: executable, arguments, directory, environment less what was
/// meant for this process alone.
///
/// The executable is a path and no file: whatever the path leads to when a successor starts is what
/// was deployed. The path is made absolute, and its links are not resolved. The same is true of the
/// directory, which a successor finds again in the environment.
pub(crate) fn of_this_process() -> Result<Command, Error> {
    let failed = Error::system("find the program of this process");
    let directory = match working_directory() {
        Ok(directory) => Some(directory),
        // A server can live in a directory that has no name any more.
        Err(error) => {
            log::warn!(
                "the working directory cannot be found: {error}; a successor stays in the directory \
                 that it inherits",
            );
            None
        }
    };
    let mut arguments: Vec<OsString> = env::args_os().collect();
    let name = arguments.first().map(OsString::as_os_str);
    let executable = executable(sys::executed_path(), name, directory.as_deref());
    let executable = executable.map_err(failed)?;
    if arguments.is_empty() {
        arguments.push(executable.clone().into());
    }
    let assignment = |name: &OsStr, value: &OsStr| {
        let mut assignment = name.to_owned();
        assignment.push("=");
        assignment.push(value);
        assignment
    };
    let is_watched = env::var_os(WATCHED).is_none_or(|pid| pid == *std::process::id().to_string());
    let personal =
        |name: &OsString| PERSONAL.iter().any(|own| name == own) || name == WATCHDOG && !is_watched;
    let environment = env::vars_os()
        .filter(|(name, _)| name != VARIABLE && name != STDERR_VARIABLE && !personal(name))
        .filter(|(name, _)| name != DIRECTORY || directory.is_none())
        .map(|(name, value)| assignment(&name, &value))
        .chain(directory.iter().map(|path| assignment(DIRECTORY.as_ref(), path.as_ref())));
    let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
    let texts = |texts: &mut dyn Iterator<Item = OsString>| {
        texts.map(text).collect::<io::Result<Vec<_>>>().map_err(failed)
    };
    Ok(Command {
        executable: text(executable.into()).map_err(failed)?,
        arguments: texts(&mut arguments.into_iter())?,
        environment: texts(&mut environment.into_iter())?,
        directory: directory.map(|path| text(path.into())).transpose().map_err(failed)?,
    })
}

/// The working directory as it was reached: a link in its path may lead elsewhere tomorrow, and that
/// is where a successor belongs.
fn working_directory() -> io::Result<PathBuf> {
    let told = env::var_os(DIRECTORY).map(PathBuf::from).filter(|path| path.is_absolute());
    match (told, env::current_dir()) {
        (Some(told), Ok(_)) if same_file(&told, Path::new(".")) => Ok(told),
        (_, Ok(found)) => Ok(found),
        // Removed (getcwd(2), ENOENT), or below a directory that may not be read: what it was called
        // is all that there is, and there may be one of that name again.
        (Some(told), Err(_)) => Ok(told),
        (None, Err(error)) => Err(error),
    }
}

/// The path that a successor executes.
///
/// `executed` is the path that the kernel was given: whatever has become of that file since, and
/// under whatever name the program was started, the next release is found by that path. In a
/// successor it is the very path that its predecessor has executed.
fn executable(
    executed: Option<OsString>,
    name: Option<&OsStr>,
    directory: Option<&Path>,
) -> io::Result<PathBuf> {
    let executed = executed.map(PathBuf::from).filter(|path| !leads_to_a_process(path));
    let running = Path::new(RUNNING);
    if let Some(path) = executed.filter(|path| !path.as_os_str().is_empty()) {
        if path.is_absolute() {
            return Ok(path);
        }
        // Relative to where the program was started. If it has gone elsewhere since, the environment
        // may still tell.
        let told = env::var_os(DIRECTORY).map(PathBuf::from).filter(|path| path.is_absolute());
        let places = directory.map(Path::to_owned).into_iter().chain(told);
        let candidates: Vec<PathBuf> = places.map(|place| join(&place, &path)).collect();
        let found = candidates.iter().find(|path| same_file(path, running));
        if let Some(path) = found.or(candidates.first()) {
            return Ok(path.clone());
        }
    }
    // Executed by a descriptor (fexecve(3)), so that nobody has told the path. The name may be it; but
    // a program may be started under any name (execve(2)).
    let named = name.and_then(|name| locate(name, directory?));
    match named.filter(|path| !leads_to_a_process(path) && same_file(path, running)) {
        Some(path) => Ok(path),
        None => running_path(&fs::read_link(running)?),
    }
}

/// Whether a path names something of the process that uses it: a successor would find another file
/// there, or none, or for ever the same (fexecve(3), proc(5)).
fn leads_to_a_process(path: &Path) -> bool {
    let text = path.as_os_str().as_bytes();
    let in_proc = text.strip_prefix(b"/proc/").is_some_and(|rest| {
        let mut parts = rest.split(|byte| *byte == b'/').skip(1);
        matches!(parts.next(), Some(b"fd" | b"exe"))
    });
    in_proc || text.starts_with(b"/dev/fd/")
}

/// The path of a file that is executed, by what the kernel says of it: a file that was removed or
/// replaced has " (deleted)" behind its name (proc(5)).
fn running_path(link: &Path) -> io::Result<PathBuf> {
    let text = link.as_os_str().as_bytes();
    Ok(match text.strip_suffix(b" (deleted)") {
        Some(_) if link.exists() => link.to_owned(),
        // It never had a path (memfd_create(2)). The child of this process can execute it all the
        // same, because it still shares this process's memory then.
        Some(path) if path.starts_with(b"/memfd:") => RUNNING.into(),
        Some(path) => OsStr::from_bytes(path).into(),
        None => link.to_owned(),
    })
}

/// A relative path in a directory, without what says "here".
fn join(directory: &Path, path: &Path) -> PathBuf {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    directory.components().chain(parts).collect()
}

/// Whether both paths lead to one file, by whatever links.
fn same_file(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| path.metadata().map(|file| (file.dev(), file.ino()));
    matches!((file(one), file(other)), (Ok(one), Ok(other)) if one == other)
}

/// The file that a shell in `directory` would run for `name`.
fn locate(name: &OsStr, directory: &Path) -> Option<PathBuf> {
    let runs = |path: &PathBuf| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if name.as_bytes().contains(&b'/') {
        return Some(join(directory, Path::new(name))).filter(runs);
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|place| join(&directory.join(place), Path::new(name))).find(runs)
}

/// How many descriptors this process has open, and how many it may have (RLIMIT_NOFILE, getrlimit(2)).
///
/// Since Linux 6.2 the size of `/proc/self/fd` is their number (proc(5)). Before that it is 0, and the entries are
/// counted, which takes a microsecond for each: not for the loop.
pub(crate) fn descriptors() -> io::Result<(u64, u64)> {
    const OPEN: &str = "/proc/self/fd";
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let used = match fs::metadata(OPEN)?.len() {
        // The directory itself is open while it is read.
        0 => fs::read_dir(OPEN)?.count().saturating_sub(1) as u64,
        used => used,
    };
    Ok((used, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_again_with_its_arguments_and_without_systemd_s_variables() {
        let command = of_this_process().expect("a test is a program");
        assert!(command.executable.as_bytes().starts_with(b"/"));
        let arguments: Vec<_> = env::args_os().map(OsString::into_vec).collect();
        let passed: Vec<_> = command.arguments.iter().map(|text| text.as_bytes()).collect();
        assert_eq!(passed, arguments);
        for variable in &command.environment {
            assert!(!variable.as_bytes().starts_with(b"LISTEN_"), "{variable:?}");
            assert!(!variable.as_bytes().starts_with(b"WATCHDOG_PID="), "{variable:?}");
        }
        let directory = command.directory.expect("known");
        let told = [b"PWD=".as_slice(), directory.as_bytes()].concat();
        let told = |variable: &&CString| variable.as_bytes() == told;
        assert_eq!(command.environment.iter().filter(told).count(), 1);
    }

    #[test]
    fn the_path_that_was_executed_is_taken_as_it_is_whether_there_is_such_a_file_or_not() {
        let of = |executed: &str| {
            let name = Some(OsStr::new("a name"));
            executable(Some(executed.into()), name, Some(Path::new("/srv/app"))).expect("a path")
        };
        assert_eq!(of("/gone/../current/server"), Path::new("/gone/../current/server"));
        assert_eq!(of("./bin/server"), Path::new("/srv/app/bin/server"));
        assert_eq!(of("../server"), Path::new("/srv/app/../server"));
    }

    #[test]
    fn a_program_that_was_executed_by_a_descriptor_is_found_by_its_name_or_by_its_file() {
        let running = env::current_exe().expect("a test is a file");
        let unknown = Some(OsStr::new("a name that nobody has"));
        let directory = Some(Path::new("/"));
        for executed in ["/dev/fd/5", "/proc/self/fd/5", "/proc/1234/fd/5", "/proc/self/exe", ""] {
            let executed = Some(executed.into());
            let found = executable(executed.clone(), unknown, directory).expect("a path");
            assert_eq!(found, running);
            let place = tempfile::tempdir().expect("a temporary directory");
            let link = place.path().join("current");
            std::os::unix::fs::symlink(&running, &link).expect("a link");
            let found = executable(executed, Some(link.as_os_str()), directory).expect("a path");
            assert_eq!(found, link, "the link stays a link");
        }
        assert_eq!(executable(None, None, None).expect("a path"), running);
        let name = Some(OsStr::new("/proc/self/exe"));
        assert_eq!(executable(None, name, directory).expect("a path"), running);
    }

    #[test]
    fn a_file_that_was_removed_or_never_had_a_path_is_still_a_program() {
        let of = |link: &str| running_path(Path::new(link)).expect("a path");
        assert_eq!(of("/srv/server (deleted)"), Path::new("/srv/server"));
        assert_eq!(of("/memfd:server (deleted)"), Path::new("/proc/self/exe"));
        let place = tempfile::tempdir().expect("a temporary directory");
        let odd = place.path().join("server (deleted)");
        fs::write(&odd, "").expect("written");
        assert_eq!(of(odd.to_str().expect("text")), odd);
    }

    #[test]
    fn a_name_without_a_slash_is_searched_in_the_path_and_a_link_stays_a_link() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let link = place.path().join("sh-by-another-name");
        std::os::unix::fs::symlink("/bin/sh", &link).expect("a link");
        assert_eq!(locate(link.as_os_str(), Path::new("/")), Some(link.clone()));
        assert_eq!(locate(OsStr::new("./sh-by-another-name"), place.path()), {
            Some(link.clone())
        });
        assert!(locate(OsStr::new("sh"), Path::new("/")).is_some());
        assert_eq!(locate(OsStr::new("no such program"), Path::new("/")), None);
    }
}
