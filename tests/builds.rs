//! Ring three: whatever way a program is built, it is replaced, and no client is refused.
//!
//! Each test builds a small server with the flags of its name, which takes its time:
//!
//!     cargo test --test builds -- --ignored

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use harness::{Client, Start, until};
use nix::sys::signal::Signal;

const UPGRADES: u64 = 8;
const CLIENTS: usize = 3;
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// A static program has no symbol that is looked up when it starts: what the C library has and nobody
/// needs for sure is null (`posix_spawn_file_actions_addchdir_np` was).
#[test]
#[ignore = "builds a server"]
fn a_program_that_is_linked_statically_is_replaced() {
    let server = build("static", &["--target", TARGET], "-C target-feature=+crt-static");
    let description = Command::new("readelf").arg("-l").arg(&server).output();
    // Without binutils, the flags are believed.
    if let Ok(description) = description {
        let description = String::from_utf8_lossy(&description.stdout);
        assert!(!description.contains("INTERP"), "it is not static:\n{description}");
    }
    let missing = symbols(&server, "w");
    for library in files_of(&server.with_file_name("deps"), "libtablecloth-", ".rlib") {
        let called = symbols(&library, "U");
        let null: Vec<_> = called.iter().filter(|name| missing.contains(name)).collect();
        assert!(null.is_empty(), "the library calls what is not there: {null:?}");
    }
    is_replaced_under_load(server);
}

#[test]
#[ignore = "builds a server"]
fn a_program_that_aborts_when_it_panics_is_replaced() {
    is_replaced_under_load(build("abort", &[], "-C panic=abort"));
}

#[test]
#[ignore = "builds a server"]
fn an_optimised_program_is_replaced() {
    is_replaced_under_load(build("release", &["--release"], ""));
}

#[test]
#[ignore = "builds a server"]
fn a_program_of_another_linker_is_replaced() {
    if Command::new("ld.lld").arg("--version").output().is_err() {
        eprintln!("not tried: lld is not installed");
        return;
    }
    is_replaced_under_load(build("lld", &[], "-C link-arg=-fuse-ld=lld"));
}

#[test]
#[ignore = "builds a server"]
fn a_program_of_another_c_library_is_replaced() {
    let target = "x86_64-unknown-linux-musl";
    let root = Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc runs");
    let root = String::from_utf8(root.stdout).expect("a path");
    if !Path::new(root.trim()).join("lib/rustlib").join(target).exists() {
        eprintln!("not tried: there is no standard library for {target}");
        return;
    }
    is_replaced_under_load(build("musl", &["--target", target], ""));
}

/// The last build that spoke version 2 of the handoff's protocol, before the upgrader was a type of its own.
const BEFORE: &str = "c1d792b9d99dd58b2464d69fdbe3dbbc5cbabad7";

/// A rollout, and its rollback, over and over: sessions move each time.
#[test]
#[ignore = "builds a server"]
fn a_build_of_an_older_protocol_and_this_one_replace_each_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("before");
    fs::create_dir_all(&place).expect("a directory");
    let archive = Command::new("git").args(["archive", BEFORE]).current_dir(root).output();
    let Some(archive) = archive.ok().filter(|archive| archive.status.success()) else {
        eprintln!("not tried: the history of the repository is not here");
        return;
    };
    fs::write(place.join("it.tar"), archive.stdout).expect("written");
    let unpacked = Command::new("tar").args(["-xf", "it.tar"]).current_dir(&place).status();
    assert!(unpacked.expect("tar runs").success());
    let target = place.join("target");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline", "--example", "demo"])
        .current_dir(&place)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .status();
    assert!(built.expect("cargo runs").success(), "the older build is not built");
    let builds = [target.join("debug/examples/demo"), harness::example("demo")];
    for first in [0, 1] {
        replace_each_other([&builds[first], &builds[1 - first]]);
    }
}

fn replace_each_other(builds: [&Path; 2]) {
    const SESSIONS: usize = 100;
    let place = harness::place();
    let link = place.path().join("demo");
    let point = |build: &Path| {
        let new = place.path().join("new");
        std::os::unix::fs::symlink(build, &new).expect("linked");
        fs::rename(new, &link).expect("renamed");
    };
    point(builds[0]);
    let start = Start::path(link.clone()).args(&["--listen", "127.0.0.1:0", "--probation", "0.1"]);
    let pid_file = start.path_of("pid");
    let mut demo = start.pid_file().spawn();
    demo.wait_for("listening on ");
    let mut clients: Vec<_> = (0..SESSIONS).map(|_| demo.connect()).collect();
    let named = || fs::read_to_string(&pid_file).ok()?.trim().parse::<u32>().ok();
    until("it serves", || named().is_some());
    for upgrade in 1..=10 {
        point(builds[upgrade % 2]);
        let pid = named().expect("it serves");
        demo.signal(pid, Signal::SIGHUP);
        demo.wait_for(&format!("moved {SESSIONS} sessions in "));
        until("the old one is gone", || !harness::is_alive(pid));
        let exe = fs::read_link(format!("/proc/{}/exe", named().expect("it serves")));
        assert_eq!(exe.ok().as_deref(), fs::canonicalize(builds[upgrade % 2]).ok().as_deref());
        for client in &mut clients {
            assert_eq!(client.ask("still here\n"), "still here");
        }
    }
    assert!(!demo.has("failed in"));
    let last = named().expect("it serves");
    demo.signal(last, Signal::SIGINT);
    until("it ends", || !harness::is_alive(last));
}

/// Builds the server, one at a time, with no debug information.
fn build(name: &str, arguments: &[&str], flags: &str) -> PathBuf {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("builds");
    fs::create_dir_all(&place).expect("a directory");
    let manifest = format!(
        "[package]\nname = \"server\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\
         [[bin]]\nname = \"server\"\npath = {:?}\n\
         [dependencies]\nlog = \"0.4\"\ntablecloth = {{ path = {root:?} }}\n[workspace]\n",
        root.join("tests/builds/server.rs"),
    );
    fs::write(place.join("Cargo.toml"), manifest).expect("written");
    // The versions that everything else is tested with.
    fs::copy(root.join("Cargo.lock"), place.join("Cargo.lock")).expect("copied");
    let target = place.join(name);
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--offline"])
        .args(arguments)
        .current_dir(&place)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("RUSTFLAGS", flags)
        .status()
        .expect("cargo runs");
    assert!(built.success(), "{name} is not built");
    let profile = if arguments.contains(&"--release") { "release" } else { "debug" };
    let triple = arguments.iter().find(|argument| argument.contains("linux"));
    let place = triple.map_or(target.clone(), |triple| target.join(triple));
    place.join(profile).join("server")
}

/// The symbols of that kind in nm(1)'s words: `U` is undefined, and `w` null if nothing defines it.
fn symbols(object: &Path, kind: &str) -> Vec<String> {
    // Without binutils there is nothing to be learnt.
    let Ok(listed) = Command::new("nm").arg(object).output() else { return Vec::new() };
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let words = listed.lines().map(|line| line.split_whitespace());
    let symbol = words.filter_map(|mut words| (words.next()? == kind).then(|| words.next())?);
    symbol.map(str::to_owned).collect()
}

fn files_of(directory: &Path, start: &str, end: &str) -> Vec<PathBuf> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(start) && name.ends_with(end))
    };
    let entries = fs::read_dir(directory).expect("a directory").flatten();
    entries.map(|entry| entry.path()).filter(is_one).collect()
}

fn is_replaced_under_load(server: PathBuf) {
    let start = Start::path(server);
    let pid_file = start.path_of("pid");
    let mut actor = start.args(&[&pid_file]).serve();
    let (address, over, served) = (actor.address(), AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // Panics if it is refused, or not answered.
                    Client::connect(&address).who();
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // However it ends, the clients end too.
        let upgraded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for generation in 1..=UPGRADES {
                let before = served.load(Ordering::Relaxed);
                until("clients are served", || served.load(Ordering::Relaxed) > before + 20);
                let (serving, _) = actor.who();
                actor.signal(serving, Signal::SIGHUP);
                actor.wait_for("predecessor gone");
                assert_eq!(actor.who().1, generation);
            }
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(panic) = upgraded {
            std::panic::resume_unwind(panic);
        }
    });
    assert_eq!(actor.count("failed in"), 0, "each upgrade was the first try");
    let (last, _) = actor.who();
    actor.signal(last, Signal::SIGQUIT);
    until("the pid file is removed", || !Path::new(&pid_file).exists());
}
