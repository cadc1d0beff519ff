//! Ring three: what runs next is what was deployed, by the path that the first process was started by.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use harness::{Actor, Start, copy_program, example, place, until};

const LISTEN: [&str; 2] = ["--listen", "main=127.0.0.1:0"];

/// What a process executes.
fn runs(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).expect("the process is there")
}

fn inode(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).expect("there").ino()
}

/// Two releases of the actor, and a link to the first.
fn releases(place: &Path) -> PathBuf {
    for release in ["releases/1", "releases/2"] {
        fs::create_dir_all(place.join(release)).expect("a directory");
        copy_program(&example("actor"), &place.join(release).join("server"));
    }
    symlink("releases/1", place.join("current")).expect("a link");
    place.join("current/server")
}

/// Moves the link to the second release.
fn deploy_the_second(place: &Path) {
    symlink("releases/2", place.join("new")).expect("a link");
    fs::rename(place.join("new"), place.join("current")).expect("renamed");
}

#[test]
fn a_link_that_was_moved_is_what_runs_next_whatever_name_the_program_was_given() {
    let place = place();
    let server = releases(place.path());
    let mut actor = Start::path(server.clone()).named("a server").args(&LISTEN).serve();
    assert!(runs(actor.pid()).ends_with("releases/1/server"));
    deploy_the_second(place.path());
    let pid = actor.upgrade();
    assert!(runs(pid).ends_with("releases/2/server"));
    assert!(actor.has(&format!("; program {}.", server.display())), "the report names the path");
    // The arguments are the same, the name included.
    let line = fs::read(format!("/proc/{pid}/cmdline")).expect("there");
    assert!(line.starts_with(b"a server\0--listen\0"));
}

#[test]
fn an_old_release_that_was_removed_is_not_missed() {
    let place = place();
    let mut actor = Start::path(releases(place.path())).args(&LISTEN).serve();
    deploy_the_second(place.path());
    fs::remove_dir_all(place.path().join("releases/1")).expect("removed");
    for _ in 0..2 {
        let pid = actor.upgrade();
        assert!(runs(pid).ends_with("releases/2/server"));
    }
}

/// The kernel calls a file that was renamed over "(deleted)", and a process can find that of itself at
/// any moment, its first one included.
#[test]
fn a_file_that_is_renamed_over_again_and_again_is_what_runs_in_the_end() {
    let place = place();
    let [one, other, server] = ["one", "other", "server"].map(|name| place.path().join(name));
    copy_program(&example("actor"), &one);
    copy_program(&one, &other);
    let deploy = |release: &Path| {
        let new = place.path().join("new");
        fs::hard_link(release, &new).expect("linked");
        fs::rename(new, &server).expect("renamed");
    };
    deploy(&one);
    let mut actor = Start::path(server.clone()).args(&LISTEN).serve();
    let (over, deploys) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                deploy(&other);
                deploy(&one);
                deploys.fetch_add(2, Ordering::Relaxed);
            }
        });
        // However it ends, the deploys end too.
        let upgraded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..20 {
                let before = deploys.load(Ordering::Relaxed);
                until("it is deployed", || deploys.load(Ordering::Relaxed) > before);
                actor.upgrade();
            }
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = upgraded {
            std::panic::resume_unwind(panic);
        }
    });
    for release in [&other, &one, &other] {
        deploy(release);
        let pid = actor.upgrade();
        assert_eq!(inode(format!("/proc/{pid}/exe")), inode(&server));
        assert_eq!(inode(&server), inode(release));
    }
}

#[test]
fn a_relative_path_is_found_from_the_first_directory_whoever_has_left_it_since() {
    for start in ["exec ./server", "exec .//bin/../server", "PATH=.:$PATH; exec server"] {
        let place = place();
        let server = place.path().join("server");
        fs::create_dir(place.path().join("bin")).expect("a directory");
        copy_program(&example("actor"), &server);
        let script = format!("cd {}; {start} \"$@\"", place.path().display());
        let shell = Start::path("/bin/sh".into()).args(&["-c", &script, "sh"]).args(&LISTEN);
        let mut actor = shell.at(0, "chdir:/").at(1, "chdir:/").serve();
        let before = inode(&server);
        fs::remove_file(&server).expect("removed");
        copy_program(&example("actor"), &server);
        for _ in 0..2 {
            let pid = actor.upgrade();
            let running = inode(format!("/proc/{pid}/exe"));
            assert_eq!(running, inode(&server), "{start}");
            assert_ne!(running, before, "{start}");
        }
    }
}

/// Who executes a descriptor tells no path: the file's own is the next best thing (fexecve(3)).
#[test]
fn a_program_that_was_started_by_a_descriptor_is_found_by_its_file() {
    let place = place();
    let server = place.path().join("server");
    copy_program(&example("actor"), &server);
    let script = format!("exec 9<{}; exec /dev/fd/9 \"$@\"", server.display());
    let shell = Start::path("/bin/sh".into()).args(&["-c", &script, "sh"]).args(&LISTEN);
    let mut actor = shell.serve();
    for _ in 0..2 {
        let pid = actor.upgrade();
        assert_eq!(runs(pid), server);
    }
    replaced(&mut actor, &server);
}

/// A deploy of the simplest kind.
fn replaced(actor: &mut Actor, server: &Path) {
    fs::remove_file(server).expect("removed");
    copy_program(&example("actor"), server);
    let pid = actor.upgrade();
    assert_eq!(inode(format!("/proc/{pid}/exe")), inode(server));
}
