//! What runs next: the program that this process was started as.

use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

use crate::error::Error;
use crate::sys::Command;
use crate::wire::VARIABLE;

/// Variables that were meant for this process alone and would mislead another: who may take
/// systemd's sockets, and whose watchdog it is (sd_listen_fds(3), sd_watchdog_enabled(3)).
const PERSONAL: [&str; 6] = [
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The program as it was started: executable, arguments, directory, environment less what was
/// meant for this process alone.
///
/// The path of the executable is made absolute and its links are not resolved, so that a replaced
/// binary, or a link that was moved to another one, is what runs next.
pub(crate) fn of_this_process() -> Result<Command, Error> {
    let failed = Error::system("find the program of this process");
    let directory = env::current_dir().map_err(Error::system("find the working directory"))?;
    let mut arguments: Vec<OsString> = env::args_os().collect();
    let running = env::current_exe().map_err(failed)?;
    let named = arguments.first().and_then(|name| locate(name, &directory));
    // A program may be started under any name (execve(2)): then the file itself is what counts.
    let executable = match named.filter(|path| same_file(path, &running)) {
        Some(path) => path,
        None => running,
    };
    match arguments.first_mut() {
        Some(name) => *name = executable.clone().into(),
        None => arguments.push(executable.clone().into()),
    }
    let environment = env::vars_os()
        .filter(|(name, _)| name != VARIABLE && !PERSONAL.iter().any(|own| name == own))
        .map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            variable
        });
    let text = |text: OsString| CString::new(text.into_vec()).map_err(io::Error::from);
    let texts = |texts: &mut dyn Iterator<Item = OsString>| {
        texts.map(text).collect::<io::Result<Vec<_>>>().map_err(failed)
    };
    Ok(Command {
        executable: text(executable.into()).map_err(failed)?,
        arguments: texts(&mut arguments.into_iter())?,
        environment: texts(&mut environment.into_iter())?,
        directory: text(directory.into()).map_err(failed)?,
    })
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
        return Some(directory.join(name)).filter(runs);
    }
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|place| directory.join(place).join(name)).find(runs)
}

/// How many descriptors this process has open, and how many it may have (RLIMIT_NOFILE, getrlimit(2)).
///
/// Counts the entries of `/proc/self/fd` (proc(5)), which takes its time where there are many: not for
/// the loop.
pub(crate) fn descriptors() -> io::Result<(u64, u64)> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // The directory itself is open while it is read.
    let used = std::fs::read_dir("/proc/self/fd")?.count().saturating_sub(1);
    Ok((used as u64, limit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_again_with_its_arguments_and_without_systemd_s_variables() {
        let command = of_this_process().expect("a test is a program");
        assert!(command.executable.as_bytes().starts_with(b"/"));
        assert_eq!(command.arguments[0], command.executable);
        assert_eq!(command.arguments.len(), env::args_os().count());
        for variable in &command.environment {
            assert!(!variable.as_bytes().starts_with(b"LISTEN_"), "{variable:?}");
        }
    }

    #[test]
    fn a_name_without_a_slash_is_searched_in_the_path_and_a_link_stays_a_link() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let link = place.path().join("sh-by-another-name");
        std::os::unix::fs::symlink("/bin/sh", &link).expect("a link");
        assert_eq!(locate(link.as_os_str(), Path::new("/")), Some(link.clone()));
        assert_eq!(locate(OsStr::new("./sh-by-another-name"), place.path()), {
            Some(place.path().join("./sh-by-another-name"))
        });
        assert!(locate(OsStr::new("sh"), Path::new("/")).is_some());
        assert_eq!(locate(OsStr::new("no such program"), Path::new("/")), None);
    }
}
