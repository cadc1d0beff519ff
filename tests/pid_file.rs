//! Ring three: the pid file names who serves, and does no harm.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use harness::{Start, copy_program, example, is_alive, place, until};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::mkfifo;

/// Some user of no other use, who need not have a name.
const SOMEBODY: u32 = 54321;

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

fn pid_file_at(start: Start, path: &Path) -> Start {
    start.args(&["--pid-file", path.to_str().expect("text")])
}

/// Starts a server that is to be refused, and answers with what it says.
fn refused(path: &Path) -> String {
    let (status, said) = pid_file_at(Start::actor(), path).run();
    assert_eq!(status.code(), Some(1), "{said}");
    let line = said.lines().find(|line| line.contains("pid file ")).unwrap_or_default();
    assert!(line.contains(path.to_str().expect("text")), "it names the file: {said}");
    assert!(!said.contains("generation 0"), "it serves nobody: {said}");
    line.to_owned()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

#[test]
fn the_null_device_means_none_and_stays_a_device() {
    let place = place();
    let null = place.path().join("null");
    let mode = Mode::from_bits_truncate(0o666);
    if mknod(&null, SFlag::S_IFCHR, mode, makedev(1, 3)).is_err() {
        return eprintln!("skipped: a device can be made by root only");
    }
    let mut actor = pid_file_at(Start::actor(), &null).serve();
    let second = actor.upgrade();
    actor.signal(second, Signal::SIGQUIT);
    until("it is gone", || !is_alive(second));
    let found = fs::symlink_metadata(&null).expect("it is there");
    assert!(found.file_type().is_char_device());
    assert_eq!(names_in(place.path()), ["null"]);
    // Another device is nothing that a number could be written to.
    let zero = place.path().join("zero");
    mknod(&zero, SFlag::S_IFCHR, mode, makedev(1, 5)).expect("made");
    assert!(refused(&zero).contains("a character device"));
    assert!(fs::symlink_metadata(&zero).expect("it is there").file_type().is_char_device());
}

#[test]
fn what_is_no_regular_file_is_left_alone_and_refused_in_words() {
    let place = place();
    let fifo = place.path().join("fifo");
    mkfifo(&fifo, Mode::from_bits_truncate(0o600)).expect("made");
    let said = refused(&fifo);
    assert!(said.contains("it is a FIFO, and only a regular file is replaced"), "{said}");
    assert!(fs::symlink_metadata(&fifo).expect("it is there").file_type().is_fifo());
    assert_eq!(names_in(place.path()), ["fifo"]);
}

#[test]
fn a_link_is_followed_and_both_names_name_the_process() {
    let place = place();
    let (data, link) = (place.path().join("data"), place.path().join("link"));
    fs::create_dir(&data).expect("made");
    // It leads to where nothing is yet.
    symlink("data/real", &link).expect("linked");
    let real = data.join("real");
    let mut actor = pid_file_at(Start::actor(), &link).serve();
    let first = actor.who().0;
    assert_eq!((names(&link), names(&real)), (Some(first), Some(first)));
    let second = actor.upgrade();
    assert_eq!((names(&link), names(&real)), (Some(second), Some(second)));
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    assert_eq!(names_in(&data), ["real"], "nothing is left beside it");
    actor.signal(second, Signal::SIGQUIT);
    until("it is gone", || !is_alive(second));
    assert_eq!(names_in(&data), [""; 0]);
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink(), "the link stays");
}

#[test]
fn below_a_link_that_moves_every_process_removes_what_it_has_written() {
    let place = place();
    let release = |name: &str| place.path().join(name);
    for name in ["a", "b"] {
        fs::create_dir(release(name)).expect("made");
    }
    let current = release("current");
    symlink("a", &current).expect("linked");
    let mut actor = pid_file_at(Start::actor(), &current.join("pid")).serve();
    let first = actor.who().0;
    assert_eq!(names(&release("a").join("pid")), Some(first));

    fs::remove_file(&current).expect("removed");
    symlink("b", &current).expect("linked");
    // Lost while the predecessor is there: what it has written goes with it.
    let (session, _) = actor.upgrade_around_a_session();
    let (lost, _) = actor.who();
    assert_eq!(names(&current.join("pid")), Some(lost));
    actor.signal(lost, Signal::SIGKILL);
    actor.wait_for("failed in");
    until("nothing of it is left", || names_in(&release("b")).is_empty());
    until("it is restored", || names_in(&release("a")) == ["pid"]);
    assert_eq!(names(&release("a").join("pid")), Some(first));
    drop(session);

    let second = actor.upgrade();
    assert_eq!(names(&current.join("pid")), Some(second));
    assert_eq!(names_in(&release("a")), [""; 0], "the predecessor has removed its own");
    actor.signal(second, Signal::SIGQUIT);
    until("it is gone", || !is_alive(second));
    assert_eq!(names_in(&release("b")), [""; 0]);
}

#[test]
fn a_second_service_with_the_same_pid_file_is_refused_by_the_name_of_the_first() {
    let mut actor = Start::actor().pid_file().serve();
    let path = actor.place.path().join("pid");
    for _ in 0..2 {
        let serving = actor.who().0;
        let said = refused(&path);
        assert!(said.contains(&format!("process {serving} serves and holds it")), "{said}");
        assert_eq!(names(&path), Some(serving));
        // The next one holds it, too.
        actor.upgrade();
    }
    // After a rollback it is held again.
    let (session, second) = actor.upgrade_around_a_session();
    let lost = actor.who().0;
    actor.signal(lost, Signal::SIGKILL);
    actor.wait_for("failed in");
    until("it is restored", || names(&path) == Some(second));
    assert!(refused(&path).contains(&format!("process {second} serves and holds it")));
    drop(session);
    // What a dead process has left is taken.
    actor.signal(second, Signal::SIGKILL);
    until("it is dead", || !is_alive(second));
    let mut next = pid_file_at(Start::actor(), &path).serve();
    let serving = next.who().0;
    assert_eq!(names(&path), Some(serving));
}

#[test]
fn in_a_sticky_directory_nobody_elses_file_is_replaced_by_anybody() {
    if !is_root() {
        return eprintln!("skipped: only root can give a file to somebody else");
    }
    let place = place();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    };
    mode(place.path(), 0o755);
    let tmp = place.path().join("tmp");
    fs::create_dir(&tmp).expect("made");
    mode(&tmp, 0o1777);
    let path = tmp.join("pid");

    // Somebody's file, and root, whom the kernel lets do it.
    fs::write(&path, "1\n").expect("written");
    chown(&path, Some(SOMEBODY), Some(SOMEBODY)).expect("given");
    let said = refused(&path);
    assert!(said.contains(&format!("it belongs to user {SOMEBODY}")), "{said}");

    // Somebody's link, which leads root where it should not go.
    let (link, secret) = (tmp.join("link"), place.path().join("secret"));
    fs::write(&secret, "a secret\n").expect("written");
    symlink(&secret, &link).expect("linked");
    std::os::unix::fs::lchown(&link, Some(SOMEBODY), Some(SOMEBODY)).expect("given");
    let said = refused(&link);
    assert!(said.contains(&format!("a link that belongs to user {SOMEBODY}")), "{said}");
    assert_eq!(fs::read_to_string(&secret).expect("it is there"), "a secret\n");

    // Root's file, and somebody.
    chown(&path, Some(0), Some(0)).expect("taken back");
    let program = place.path().join("actor");
    copy_program(&example("actor"), &program);
    let start = Start::path(program).args(&["--listen", "main=127.0.0.1:0"]);
    let mut command = pid_file_at(start, &path).command();
    let output = command.uid(SOMEBODY).gid(SOMEBODY).current_dir("/").output().expect("it starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("it belongs to user 0"), "{said}");

    assert_eq!(names(&path), Some(1));
    assert_eq!(names_in(&tmp), ["link", "pid"]);
}

/// A shell that does something, and becomes the actor then.
fn behind_a_shell(script: &str, path: &Path, words: &[&OsStr]) -> Start {
    let mut args = vec!["-c".to_owned(), format!("{script}; exec \"$@\""), "sh".into()];
    args.extend(words.iter().map(|word| word.to_str().expect("text").to_owned()));
    args.push(example("actor").to_str().expect("text").into());
    args.extend(["--listen", "main=127.0.0.1:0"].map(str::to_owned));
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    pid_file_at(Start::path("/bin/sh".into()).args(&args), path)
}

#[test]
fn everybody_may_read_it_whatever_the_umask() {
    let place = place();
    let path = place.path().join("pid");
    let mut actor = behind_a_shell("umask 077", &path, &[]).serve();
    actor.who();
    let mode = || fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777;
    assert_eq!(mode(), 0o644);
    actor.upgrade();
    assert_eq!(mode(), 0o644);
}

#[test]
fn a_mounted_file_is_written_in_place() {
    let mounts = || {
        let test = ["-m", "mount", "--bind", "/dev/null", "/dev/null"];
        Command::new("unshare").args(test).output().is_ok_and(|output| output.status.success())
    };
    if !is_root() || !mounts() {
        return eprintln!("skipped: nothing can be mounted here");
    }
    let place = place();
    // The file of the host, and where the container has it.
    let (host, path) = (place.path().join("host"), place.path().join("pid"));
    fs::write(&host, "123456789\n").expect("written");
    fs::write(&path, "").expect("written");
    let script = "mount --bind \"$1\" \"$2\" && shift 2";
    let inner = behind_a_shell(script, &path, &[host.as_os_str(), path.as_os_str()]).command();
    let start = Start::path("unshare".into()).args(&["-m", "/bin/sh"]);
    let args: Vec<_> = inner.get_args().map(|arg| arg.to_str().expect("text")).collect();
    let mut actor = start.args(&args).serve();
    let first = actor.who().0;
    assert_eq!(names(&host), Some(first));
    let second = actor.upgrade();
    until("the host's file names the new process", || names(&host) == Some(second));
    // Restored in place, too.
    let (session, _) = actor.upgrade_around_a_session();
    let lost = actor.who().0;
    assert_eq!(names(&host), Some(lost));
    actor.signal(lost, Signal::SIGKILL);
    actor.wait_for("failed in");
    until("it is restored", || names(&host) == Some(second));
    drop(session);
    actor.signal(second, Signal::SIGQUIT);
    until("it is gone", || !is_alive(second));
    assert_eq!(fs::read_to_string(&host).expect("it is there"), "", "it names nobody");
    assert_eq!(names_in(place.path()), ["host", "pid"]);
}

#[test]
fn a_file_in_a_directory_of_somebody_elses_is_written_in_place() {
    let user = |option: &str| format!("--{option}={SOMEBODY}");
    let options = [user("reuid"), user("regid"), "--clear-groups".into()];
    let lowers = || Command::new("setpriv").args(&options).arg("true").output();
    if !is_root() || !lowers().is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: this process cannot become another user");
    }
    let place = place();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(place.path(), open).expect("it is ours");
    let (program, path) = (place.path().join("actor"), place.path().join("pid"));
    copy_program(&example("actor"), &program);
    fs::write(&path, "").expect("written");
    chown(&path, Some(SOMEBODY), Some(SOMEBODY)).expect("given");
    let words = [program.to_str().expect("text"), "--listen", "main=127.0.0.1:0"];
    let start = Start::path("setpriv".into()).args(&options.each_ref().map(String::as_str));
    let mut actor = pid_file_at(start.args(&words), &path).serve();
    let first = actor.who().0;
    assert_eq!(names(&path), Some(first));
    let second = actor.upgrade();
    assert_eq!(names(&path), Some(second));
    assert_eq!(fs::metadata(&path).expect("it is there").uid(), SOMEBODY);
    actor.signal(second, Signal::SIGQUIT);
    until("it is gone", || !is_alive(second));
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "");
    // Where it may not write either, it says so.
    chown(&path, Some(0), Some(0)).expect("taken back");
    let start = Start::path("setpriv".into()).args(&options.each_ref().map(String::as_str));
    let (status, said) = pid_file_at(start.args(&words), &path).run();
    assert_eq!(status.code(), Some(1));
    assert!(said.contains("write: Permission denied"), "{said}");
}

#[test]
fn a_pid_file_that_cannot_be_published_is_an_error_of_the_start() {
    let start = Start::actor();
    let socket = start.path_of("echo.sock");
    let listen = format!("path=unix:{socket}");
    let mut actor = start.pid_file().args(&["--listen", &listen]).gate(0).spawn();
    let directory = actor.place.path().to_owned();
    let (path, spare) = (directory.join("pid"), directory.join(format!(".pid.{}", actor.pid())));
    until("its place was tried out", || spare.exists());
    // Something comes in its way that cannot be renamed over.
    fs::create_dir_all(path.join("full")).expect("made");
    actor.open_gate();
    let line = actor.wait_for("pid file ");
    assert!(line.contains(&format!("pid file {}: rename: ", path.display())), "{line}");
    assert_eq!(actor.first_exits().code(), Some(1));
    assert_eq!(names_in(&directory), ["gate", "pid"], "no spare, no socket");
}

/// `kill -QUIT $(cat pid); start`, without a wait for sessions that take their time.
#[test]
fn a_service_that_drains_for_its_end_leaves_the_file_to_the_next_one() {
    let place = place();
    let path = place.path().join("pid");
    let mut old = pid_file_at(Start::actor(), &path).serve();
    let mut session = old.connect();
    session.who();
    old.signal(old.pid(), Signal::SIGQUIT);
    old.wait_for("stop listening.");
    // The lock is given back beside the loop.
    let mut new = None;
    until("the next one serves", || {
        let mut next = pid_file_at(Start::actor(), &path).spawn();
        match next.wait_for_any(&["generation 0", "serves and holds it"]).contains("generation 0") {
            true => new.insert(next).pid() > 0,
            false => false,
        }
    });
    let mut new = new.expect("it serves");
    until("the file names it", || names(&path) == Some(new.pid()));
    drop(session);
    assert!(old.first_exits().success());
    assert_eq!(names(&path), Some(new.pid()), "the old one removes what is its own");
    new.upgrade();
}

/// Whether that process has the thread by which it waits for disks.
fn has_worker(pid: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").flatten();
    let mut names = threads.map(|thread| fs::read_to_string(thread.path().join("comm")));
    names.any(|name| name.is_ok_and(|name| name.trim() == "tablecloth-disk"))
}

#[test]
fn in_memory_it_needs_no_thread() {
    let place = place();
    if !statfs(place.path()).is_ok_and(|it| it.filesystem_type() == TMPFS_MAGIC) {
        return eprintln!("skipped: there is no directory in memory");
    }
    let link = place.path().join("link");
    symlink("pid", &link).expect("a link");
    for (memory, name, has_one) in
        [("yes", "pid", false), ("no", "pid", true), ("yes", "link", true)]
    {
        let start = Start::actor().args(&["--memory", memory]);
        let mut actor = pid_file_at(start, &place.path().join(name)).serve();
        let first = actor.who().0;
        actor.signal(first, Signal::SIGHUP);
        // A job was given a moment ago, and a thread for it would stay for a while.
        actor.wait_for("done; spawn");
        assert_eq!(has_worker(first), has_one, "{memory} {name}");
        actor.wait_for("alone");
        let second = actor.who().0;
        assert_eq!(names(&place.path().join("pid")), Some(second));
        until("nothing is left beside it", || names_in(place.path()) == ["link", "pid"]);
        actor.signal(second, Signal::SIGTERM);
        until("the file is gone", || names_in(place.path()) == ["link"]);
    }
}

#[test]
fn in_memory_it_is_restored_by_a_rollback() {
    let start = Start::actor().faults().pid_file().args(&["--memory", "yes"]);
    let mut actor = start.args(&["--probation-ms", "10000"]).serve();
    let first = actor.who().0;
    actor.signal(first, Signal::SIGHUP);
    actor.wait_for("done; spawn");
    let successor = actor.alive().into_iter().find(|pid| *pid != first).expect("a successor");
    actor.is_named(successor);
    actor.signal(successor, Signal::SIGKILL);
    actor.wait_for("Draining -> Running");
    actor.is_named(first);
}
