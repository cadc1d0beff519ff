//! Ring three: a disk that hangs below the pid file stops nobody.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use harness::{Actor, Client, Start, is_alive, place, until};
use nix::sys::signal::Signal;

fn names(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The names in a directory, in order.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names.iter().map(|name| name.to_string_lossy().into()).collect()
}

/// A disk whose rename(2) and unlink(2) hang for as long as a file is there, and which makes no file
/// for as long as another one is there.
struct Disk {
    library: PathBuf,
    hangs: PathBuf,
    _place: tempfile::TempDir,
}

impl Disk {
    /// `None` where there is no compiler.
    fn make() -> Option<Self> {
        let place = place();
        let (source, library) = (place.path().join("disk.c"), place.path().join("disk.so"));
        fs::write(
            &source,
            r#"
            #include <fcntl.h>
            #include <stdarg.h>
            #include <stdio.h>
            #include <stdlib.h>
            #include <sys/syscall.h>
            #include <sys/vfs.h>
            #include <unistd.h>
            static void hang(const char *how) {
                char path[4096];
                snprintf(path, sizeof path, "%s%s", getenv("DISK_HANGS"), how);
                while (access(path, F_OK) == 0) usleep(1000);
            }
            int rename(const char *from, const char *to) {
                hang("");
                return renameat(AT_FDCWD, from, AT_FDCWD, to);
            }
            int unlink(const char *path) {
                hang("");
                return unlinkat(AT_FDCWD, path, 0);
            }
            int open64(const char *path, int flags, ...) {
                va_list rest;
                va_start(rest, flags);
                mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
                va_end(rest);
                if (flags & O_CREAT) hang(".making");
                return openat(AT_FDCWD, path, flags, mode);
            }
            /* Wherever this is tried: it is a disk (ext4), and no memory. */
            int statfs(const char *path, struct statfs *found) {
                int result = syscall(SYS_statfs, path, found);
                found->f_type = 0xEF53;
                return result;
            }
            int statfs64(const char *path, struct statfs64 *found) {
                return statfs(path, (struct statfs *)found);
            }
            "#,
        )
        .expect("written");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .is_ok_and(|output| output.status.success());
        if !compiled {
            eprintln!("skipped: there is no compiler");
        }
        let hangs = place.path().join("hangs");
        compiled.then_some(Self { library, hangs, _place: place })
    }

    fn under(&self, start: Start) -> Start {
        let text = |path: &Path| path.to_str().expect("text").to_owned();
        start.env("LD_PRELOAD", &text(&self.library)).env("DISK_HANGS", &text(&self.hangs))
    }

    fn hang(&self) {
        fs::write(&self.hangs, "").expect("a file");
    }

    fn answer(&self) {
        fs::remove_file(&self.hangs).expect("it hangs");
    }
}

#[test]
fn a_spawn_does_not_wait_for_a_disk_that_makes_no_spare() {
    let Some(disk) = Disk::make() else { return };
    // A quarter of the upgrade timeout is the disk's.
    let start = Start::actor().pid_file().args(&["--upgrade-ms", "10000"]);
    let mut actor = disk.under(start).serve();
    let first = actor.who().0;
    let making = disk.hangs.with_extension("making");
    fs::write(&making, "").expect("a file");
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("the spawn goes on without a spare of the pid file");
    assert_eq!(actor.who(), (first, 0));
    // The successor cannot set itself up either, as long as that lasts.
    fs::remove_file(&making).expect("it hangs");
    actor.wait_for("done; spawn");
    actor.wait_for("alone");
    let (second, generation) = actor.who();
    assert_eq!(generation, 1);
    actor.is_named(second);
    until("nothing is left beside it", || names_in(actor.place.path()) == ["pid"]);
}

/// New clients, one after another, while something else is done: the longest time that one of them
/// waited for its answer.
fn longest_gap_during(address: &str, deed: impl FnOnce()) -> Duration {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = scope.spawn(|| {
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                Client::connect(address).who();
                longest = longest.max(asked.elapsed());
                thread::yield_now();
            }
            longest
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(deed));
        over.store(true, Ordering::Relaxed);
        let longest = clients.join().expect("every client is answered");
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        longest
    })
}

#[test]
fn ten_upgrades_on_a_disk_that_hangs_kill_nobody_and_keep_no_client_waiting() {
    let Some(disk) = Disk::make() else { return };
    // A quarter of the takeover timeout is the disk's.
    let start = Start::actor().pid_file().args(&["--takeover-ms", "2000"]);
    let mut actor = disk.under(start).serve();
    let (address, path) = (actor.address(), actor.place.path().join("pid"));
    let first = actor.who().0;
    let mut last = first;
    disk.hang();
    let begun = Instant::now();
    let longest = longest_gap_during(&address, || {
        for _ in 0..10 {
            last = actor.upgrade();
        }
    });
    let hung = begun.elapsed();
    eprintln!("the disk hung for {hung:.1?}, the longest that a client waited is {longest:.1?}");
    assert!(longest * 10 < hung, "a client waited {longest:?} of {hung:?}");
    for trouble in ["failed in", "killing", "did not"] {
        assert!(!actor.has(trouble), "{trouble}");
    }
    assert!(actor.has("to name this process in it in"), "that it is late is said");
    // Nobody could write it, and nobody could remove it.
    assert_eq!(names(&path), Some(first));
    disk.answer();
    until("it names who serves", || names(&path) == Some(last));
    let left = || names_in(actor.place.path());
    until("what the others left is gone", || left() == ["pid"]);
    actor.signal(last, Signal::SIGQUIT);
    until("it is gone", || !is_alive(last));
    assert_eq!(names_in(actor.place.path()), [""; 0]);
}

#[test]
fn an_upgrade_that_fails_on_a_disk_that_hangs_stops_nobody() {
    let Some(disk) = Disk::make() else { return };
    let start = Start::actor().pid_file().at(1, "hang").args(&["--upgrade-ms", "300"]);
    let mut actor = disk.under(start).serve();
    let first = actor.who().0;
    disk.hang();
    // The spare of the first attempt cannot be removed while the disk hangs.
    for _ in 0..3 {
        actor.signal(first, Signal::SIGHUP);
        actor.wait_for("the successor was not ready within 300ms");
        assert_eq!(actor.who(), (first, 0));
    }
    let path = actor.place.path().join("pid");
    assert_eq!(names(&path), Some(first));
    disk.answer();
    until("nothing is left beside it", || names_in(actor.place.path()) == ["pid"]);
    assert_eq!(names(&path), Some(first));
}

/// The predecessor is committed and the successor accepts; its rename hangs. Answers with both.
fn in_the_middle_of_a_takeover(disk: &Disk) -> (Actor, u32, u32) {
    let mut actor = disk.under(Start::actor().pid_file()).serve();
    let first = actor.who().0;
    disk.hang();
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("quit the listening");
    let (second, generation) = actor.who();
    assert_eq!(generation, 1);
    (actor, first, second)
}

#[test]
fn a_successor_that_is_told_to_end_in_the_middle_of_its_rename_leaves_no_file() {
    let Some(disk) = Disk::make() else { return };
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let (mut actor, _, second) = in_the_middle_of_a_takeover(&disk);
        // It has served, and with it the service is told to stop.
        actor.signal(second, signal);
        actor.wait_for(&format!("got message {signal}"));
        disk.answer();
        until("it is gone", || !is_alive(second));
        assert!(actor.first_exits().success());
        leaves_nothing(&mut actor);
    }
}

/// Neither a file that names a dead process, nor anything beside it; unless it was said that the disk
/// was not waited for any longer.
fn leaves_nothing(actor: &mut Actor) {
    if actor.has("the process ends all the same") {
        return eprintln!("skipped: this machine stood still for longer than a process waits");
    }
    assert_eq!(names_in(actor.place.path()), [""; 0]);
}

#[test]
fn an_owner_that_is_told_to_end_in_the_middle_of_its_rename_leaves_no_file() {
    let Some(disk) = Disk::make() else { return };
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let (mut actor, first, second) = in_the_middle_of_a_takeover(&disk);
        // Nobody is left who could put it right.
        actor.signal(first, Signal::SIGKILL);
        actor.wait_for("alone");
        actor.signal(second, signal);
        actor.wait_for(&format!("got message {signal}"));
        disk.answer();
        until("it is gone", || !is_alive(second));
        leaves_nothing(&mut actor);
    }
}

#[test]
fn a_predecessor_that_is_told_to_end_while_its_successor_renames_leaves_no_file() {
    let Some(disk) = Disk::make() else { return };
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let (mut actor, first, second) = in_the_middle_of_a_takeover(&disk);
        actor.signal(first, signal);
        actor.wait_for("failed in takeover: this process was told to stop");
        disk.answer();
        until("the successor is dead", || !is_alive(second));
        assert!(actor.first_exits().success());
        leaves_nothing(&mut actor);
    }
}
