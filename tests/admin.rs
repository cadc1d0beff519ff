//! Ring three: whoever asks the admin endpoint is told how the process stands, and what became of an upgrade.

#![allow(clippy::expect_used, reason = "a test says what it expects")]
#![cfg(feature = "admin")]

mod harness;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use harness::{Actor, PATIENCE, Start, example, until};
use nix::sys::signal::Signal;
use tablecloth::fault::Point;
use tablecloth::{Control, Controlled, control};

/// An actor with an admin endpoint in its place, and where that is.
fn start() -> (Start, String) {
    with_endpoint(Start::actor())
}

fn with_endpoint(start: Start) -> (Start, String) {
    let path = start.path_of("admin");
    (start.args(&["--admin", &format!("unix:{path}")]), path)
}

/// Starts it, and waits until its loop turns: until then nobody is told more than that it lives.
fn serve(start: Start) -> Actor {
    let mut actor = start.serve();
    actor.wait_for("Running: set up");
    actor
}

/// Sends a request as it is, and reads the answer to its end.
fn raw(path: &str, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).expect("somebody is there");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request).expect("written");
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => answer.clear(),
        Err(error) => panic!("{error}"),
    }
    String::from_utf8_lossy(&answer).into()
}

fn get(path: &str, target: &str) -> String {
    raw(path, format!("GET {target} HTTP/1.1\r\nHost: x\r\nAccept: text/plain\r\n\r\n").as_bytes())
}

/// The status of an answer.
fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

/// Asks for something as `ctl` does: what became of it, and what was printed.
fn ask(path: &str, what: Control) -> (Controlled, String) {
    let mut printed = Vec::new();
    let controlled =
        control(&format!("unix:{path}"), what, &mut printed).expect("somebody is there");
    (controlled, String::from_utf8_lossy(&printed).into())
}

/// The counters, and what histograms have counted.
fn counters(path: &str) -> BTreeMap<String, f64> {
    // Who has come to a process that is killed then has no answer.
    let mut answer = String::new();
    while answer.is_empty() {
        answer = get(path, "/metrics");
    }
    let text = body(&answer);
    let counts = |series: &str| {
        ["_total", "_bucket", "_sum", "_count"]
            .iter()
            .any(|end| series.split('{').next().is_some_and(|family| family.ends_with(end)))
    };
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(series, _)| counts(series))
        .map(|(series, value)| (series.to_owned(), value.parse().expect("a number")))
        .collect()
}

#[test]
fn who_asks_is_told_how_the_process_stands() {
    let (start, path) = start();
    let mut actor = serve(start);
    let pid = actor.pid();
    let mode = fs::metadata(&path).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut session = actor.connect();
    assert_eq!(session.who(), (pid, 0));

    let answer = raw(&path, b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.contains("Content-Type: application/json"), "{answer}");
    let status_now: serde_json::Value = serde_json::from_str(body(&answer)).expect("JSON");
    assert_eq!(status_now["state"], "Running");
    assert_eq!(status_now["generation"], 0);
    assert_eq!(status_now["pid"], pid);
    assert_eq!(status_now["predecessor"], serde_json::Value::Null);
    assert_eq!(status_now["sessions"], 1);
    assert_eq!(status_now["listeners"][0]["name"], "main");
    assert_eq!(status_now["listeners"][0]["sessions"], 1);
    assert_eq!(status_now["upgrades"]["done"], 0);

    let text = get(&path, "/status");
    assert!(text.contains("Content-Type: text/plain"), "{text}");
    assert!(body(&text).contains("generation     0\n"), "{text}");
    for target in ["/live", "/ready"] {
        assert_eq!(status(&get(&path, target)), "200");
        let head = raw(&path, format!("HEAD {target} HTTP/1.1\r\n\r\n").as_bytes());
        assert_eq!((status(&head), body(&head)), ("200", ""));
    }
    assert_eq!(status(&get(&path, "/nothing")), "404");
    let refused = raw(&path, b"DELETE /status HTTP/1.1\r\n\r\n");
    assert!(status(&refused) == "405" && refused.contains("\r\nAllow: GET, HEAD\r\n"), "{refused}");
}

#[test]
fn an_upgrade_is_told_step_by_step_and_its_end_is_the_last_line() {
    let (start, path) = start();
    let mut actor = serve(start.args(&["--probation-ms", "300", "--schema", "1"]));
    let first = actor.pid();
    let mut session = actor.connect();
    session.who();
    let (done, told) = ask(&path, Control::UpgradeProven);
    assert_eq!(done, Controlled::Done, "{told}");
    for line in ["a successor is started", "is ready", "serves", "is proven"] {
        assert!(told.contains(line), "{line:?} in {told}");
    }
    let last = told.lines().last().expect("a line");
    assert!(last.starts_with("done: ") && last.contains("which is proven"), "{told}");
    // The session has moved, and is still known for one of that listener.
    let (second, generation) = session.who();
    assert!(second != first && generation == 1);
    until("the first process is gone", || {
        !get(&path, "/status").contains(&first.to_string()) || {
            let status: serde_json::Value =
                serde_json::from_str(body(&raw(&path, b"GET /status HTTP/1.1\r\n\r\n")))
                    .expect("JSON");
            status["predecessor"].is_null()
        }
    });
    let text = get(&path, "/status");
    assert!(body(&text).contains("main on ") && body(&text).contains(", 1 sessions\n"), "{text}");
    assert!(body(&text).contains("upgrades       1 done, 0 failed, 0 rolled back, 0 checked\n"));
    assert!(
        body(&text).contains(&format!("last report    upgrade {first} -> {second} ")),
        "{text}"
    );

    // In pieces of HTTP/1.1, for who understands them.
    let answer = raw(&path, b"POST /upgrade HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
    assert!(answer.contains("Transfer-Encoding: chunked"), "{answer}");
    assert!(answer.ends_with("\r\n0\r\n\r\n") && answer.contains("\ndone: "), "{answer}");
}

/// Whoever was answered, and does not go, makes room for a probe.
#[test]
fn a_probe_is_answered_in_a_flood_of_those_who_were_answered() {
    let (start, path) = start();
    let actor = serve(start);
    let mut crowd = Vec::new();
    for round in 0..20 {
        for _ in 0..10 {
            let mut stream = UnixStream::connect(&path).expect("somebody is there");
            stream.write_all(b"GET /live HTTP/1.1\r\n\r\n").expect("written");
            crowd.push(stream);
        }
        assert_eq!(status(&get(&path, "/live")), "200", "{round}");
    }
    drop(crowd);
    drop(actor);
}

#[test]
fn two_at_a_time_share_what_becomes_of_it() {
    let (start, path) = start();
    let actor = serve(start.gate(1));
    let mut first = UnixStream::connect(&path).expect("there");
    first.write_all(b"POST /upgrade HTTP/1.0\r\n\r\n").expect("written");
    until("it is under way", || get(&path, "/status").contains("state          Upgrading"));
    let mut second = UnixStream::connect(&path).expect("there");
    second.write_all(b"POST /upgrade HTTP/1.0\r\n\r\n").expect("written");
    let mut heard = [0; 512];
    let mut told = String::new();
    while !told.contains("under way already") {
        let read = second.read(&mut heard).expect("a line");
        assert!(read > 0, "{told}");
        told.push_str(&String::from_utf8_lossy(&heard[..read]));
    }
    actor.open_gate();
    second.read_to_string(&mut told).expect("the rest");
    let mut other = String::new();
    first.read_to_string(&mut other).expect("everything");
    let last = |text: &str| text.lines().last().map(str::to_owned);
    assert!(last(&told).is_some_and(|line| line.starts_with("done: ")), "{told}");
    assert_eq!(last(&told), last(&other));
    // It was one upgrade, and no second one follows.
    assert_eq!(counters(&path)["tablecloth_upgrades_total{outcome=\"done\"}"], 1.0);
}

#[test]
fn a_failure_is_told_with_the_last_words_of_the_successor() {
    let place = harness::place();
    let program = place.path().join("server");
    harness::copy_program(&example("actor"), &program);
    let (start, path) = with_endpoint(Start::path(program.clone()));
    let mut actor = serve(start.args(&["--listen", "main=127.0.0.1:0"]));
    let script = place.path().join("script");
    fs::write(
        &script,
        "#!/bin/sh\necho first words >&2\nprintf 'out of \\033[1mcheese' >&2\nexit 3\n",
    )
    .expect("written");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::rename(&script, &program).expect("deployed");
    let (done, told) = ask(&path, Control::Upgrade);
    assert_eq!(done, Controlled::Failed);
    let lines: Vec<_> = told.lines().rev().take(3).collect();
    assert!(
        lines[0].starts_with("failed: ") && lines[0].contains("exited with status 3"),
        "{told}"
    );
    assert_eq!(lines[1..], ["stderr: out of [1mcheese", "stderr: first words"]);
    // They have gone where they would have gone, too, as they were.
    actor.wait_for("first words");
    assert_eq!(actor.who(), (actor.pid(), 0));
    let counted = counters(&path);
    assert_eq!(counted["tablecloth_upgrades_total{outcome=\"failed\"}"], 1.0);
}

#[test]
fn a_timeout_a_refusal_and_a_rollback_are_told_for_what_they_are() {
    let (start, path) = start();
    let mut actor = serve(start.at(1, "exit:4").args(&[
        "--upgrade-ms",
        "300",
        "--probation-ms",
        "60000",
        "--pid-file",
        "/dev/null",
    ]));
    let (done, told) = ask(&path, Control::Upgrade);
    assert!(done == Controlled::Failed && told.contains("failed: "), "{told}");
    assert!(told.contains("exited with status 4"), "{told}");
    drop(actor);

    let (start, path) = with_endpoint(Start::actor());
    actor = serve(start.gate(1).args(&["--upgrade-ms", "200"]));
    let (done, told) = ask(&path, Control::Upgrade);
    assert!(done == Controlled::Failed && told.contains("was not ready within 200ms"), "{told}");
    drop(actor);

    let (start, path) = with_endpoint(Start::actor());
    actor = serve(start.args(&["--probation-ms", "60000"]));
    let asking = thread::spawn({
        let path = path.clone();
        move || ask(&path, Control::UpgradeProven)
    });
    actor.wait_for("done; spawn");
    let (successor, generation) = actor.who();
    assert_eq!(generation, 1);
    actor.signal(successor, Signal::SIGKILL);
    let (done, told) = asking.join().expect("an answer");
    let last = told.lines().last().expect("a line");
    assert!(done == Controlled::Failed && last.starts_with("rolled back: "), "{told}");
    assert!(last.contains("killed by SIGKILL"), "{told}");
    assert_eq!(actor.who(), (actor.pid(), 0));
    assert_eq!(status(&get(&path, "/ready")), "200");
}

#[test]
fn a_check_runs_the_set_up_and_changes_nothing() {
    let (start, path) = start();
    let mut actor = serve(start.pid_file());
    let (done, told) = ask(&path, Control::Check);
    assert_eq!(done, Controlled::Done);
    assert!(told.lines().last().is_some_and(|line| line.starts_with("checked: ")), "{told}");
    assert_eq!(actor.who(), (actor.pid(), 0));
    actor.is_named(actor.pid());
    let counted = counters(&path);
    assert_eq!(counted["tablecloth_upgrades_total{outcome=\"checked\"}"], 1.0);
    assert_eq!(counted["tablecloth_upgrades_total{outcome=\"failed\"}"], 0.0);
    // What is asked for behind it is carried out.
    until("nothing is under way", || ask(&path, Control::Check).0 == Controlled::Done);
    assert_ne!(actor.upgrade(), actor.pid());
}

#[test]
fn a_hup_in_the_middle_of_a_check_is_no_check() {
    let (start, path) = start();
    let mut actor = serve(start.gate(1));
    let asking = thread::spawn(move || ask(&path, Control::Check));
    actor.wait_for("Running -> Upgrading");
    actor.signal(actor.pid(), Signal::SIGHUP);
    actor.wait_for("carried out as soon as it can be");
    actor.open_gate();
    let (done, told) = asking.join().expect("an answer");
    assert!(done == Controlled::Done && told.contains("checked: "), "{told}");
    actor.wait_for("done; spawn");
    assert_eq!(actor.who().1, 1);
}

/// The endpoint's path is the service's, as those of its listeners are: it does not end with a successor that never
/// served.
#[test]
fn a_successor_that_gives_way_leaves_the_endpoint_where_it_is() {
    let (start, path) = start();
    let mut actor = serve(start.faults());
    let pid = actor.pid();
    actor.fault(Point::ReadyHeard, "stop");
    let successor = actor.give_birth(pid);
    let state = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next())
    };
    until("the predecessor has heard it", || state(pid) == Some('T'));
    actor.signal(successor, Signal::SIGTERM);
    until("the successor has ended", || state(successor) == Some('Z'));
    assert_eq!(fs::metadata(&path).map(|_| ()).map_err(|error| error.kind()), Ok(()));
    actor.signal(pid, Signal::SIGCONT);
    actor.wait_for("failed");
    assert_eq!(status(&get(&path, "/ready")), "200");
    let (done, told) = ask(&path, Control::Upgrade);
    assert_eq!(done, Controlled::Done, "{told}");
    assert_eq!(status(&get(&path, "/ready")), "200");
}

#[test]
fn a_shutdown_is_asked_for_and_ready_says_so_until_the_end() {
    let (start, path) = start();
    let mut actor = serve(start);
    let mut session = actor.connect();
    session.who();
    let (done, _) = ask(&path, Control::Shutdown);
    assert_eq!(done, Controlled::Done);
    actor.wait_for("Running -> Draining");
    assert_eq!(status(&get(&path, "/ready")), "503");
    assert_eq!(status(&get(&path, "/live")), "200");
    let (done, told) = ask(&path, Control::Upgrade);
    assert!(done == Controlled::Failed && told.contains("refused: "), "{told}");
    drop(session);
    assert!(actor.first_exits().success());
    assert!(!fs::exists(&path).expect("looked at"), "nothing is left of it");
    let nobody = control(&format!("unix:{path}"), Control::Status, &mut Vec::new());
    assert!(nobody.is_err());
}

/// Who polls it is who serves; and standard error is a successor's own again.
#[test]
fn the_endpoint_and_standard_error_go_from_process_to_process() {
    let (start, path) = start();
    let mut actor = serve(start.args(&["--probation-ms", "60000"]));
    let stderr = |pid: u32| fs::read_link(format!("/proc/{pid}/fd/2")).expect("open");
    let own = stderr(actor.pid());
    let (done, told) = ask(&path, Control::Upgrade);
    assert_eq!(done, Controlled::Done, "{told}");
    let (second, _) = actor.who();
    assert_eq!(stderr(second), own);
    let text = get(&path, "/status");
    assert!(text.contains(&format!("pid            {second}\n")), "{text}");
    assert!(text.contains(&format!("predecessor    {}\n", actor.pid())), "{text}");
    // Rolled back, the first one answers again.
    actor.signal(second, Signal::SIGKILL);
    actor.wait_for("Draining -> Running");
    let text = get(&path, "/status");
    assert!(text.contains(&format!("pid            {}\n", actor.pid())), "{text}");
    let in_proc = fs::read_dir(format!("/proc/{}/fd", actor.pid())).expect("there");
    assert!(in_proc.count() < 40, "nothing of the successors is left open");
}

/// A build that does not know of the pipe would keep it: it is started again without one.
#[test]
fn a_successor_of_another_build_keeps_its_standard_error() {
    let (start, path) = start();
    // It plays a successor up to its probation, and no further.
    let start = start.at(1, "raw-speaks:1-3").args(&["--probation-ms", "20000"]);
    let mut actor = serve(start);
    let stderr = |pid: u32| fs::read_link(format!("/proc/{pid}/fd/2")).expect("open");
    let own = stderr(actor.pid());
    let (done, told) = ask(&path, Control::Upgrade);
    assert_eq!(done, Controlled::Done, "{told}");
    actor.wait_for("does not take its standard error back");
    let line = actor.log.iter().find(|line| line.contains("another build serves"));
    let line = line.cloned().unwrap_or_else(|| actor.wait_for("another build serves"));
    let successor = harness::pid_of(&line).expect("a line of the log");
    assert_eq!(stderr(successor), own);
}

#[test]
fn no_counter_goes_back_and_every_connection_is_counted_once() {
    let (start, path) = start();
    let mut actor = serve(start.args(&["--probation-ms", "150"]));
    let address = actor.address();
    let over = Arc::new(AtomicBool::new(false));
    let watching = thread::spawn({
        let (path, over) = (path.clone(), Arc::clone(&over));
        move || {
            let (mut before, mut looks) = (counters(&path), 0);
            while !over.load(Ordering::Relaxed) {
                let now = counters(&path);
                for (series, value) in &before {
                    let after = now.get(series).copied().unwrap_or(-1.0);
                    assert!(after >= *value, "{series} was {value} and is {after}");
                }
                (before, looks) = (now, looks + 1);
            }
            looks
        }
    });
    let mut made = 0;
    for round in 0..10 {
        let (pid, generation) = harness::Client::connect(&address).who();
        actor.signal(pid, Signal::SIGHUP);
        actor.wait_for("done; spawn");
        made += 1;
        for _ in 0..5 {
            harness::Client::connect(&address).who();
            made += 1;
        }
        if round % 3 == 0 {
            let (successor, next) = harness::Client::connect(&address).who();
            made += 1;
            assert_eq!(next, generation + 1);
            actor.signal(successor, Signal::SIGKILL);
            actor.wait_for("Draining -> Running");
        } else {
            actor.wait_for("alone");
        }
    }
    over.store(true, Ordering::Relaxed);
    assert!(watching.join().expect("no counter went back") > 0);
    let counted = counters(&path);
    assert_eq!(counted["tablecloth_accepted_total{listener=\"main\"}"], f64::from(made));
    assert_eq!(counted["tablecloth_upgrades_total{outcome=\"done\"}"], 10.0);
    assert_eq!(counted["tablecloth_upgrades_total{outcome=\"rolled_back\"}"], 4.0);
    assert_eq!(counted["tablecloth_takeover_seconds_count"], 10.0);
}

/// A client that says nothing, or garbage, or no end, or reads nothing, or comes a thousand times.
#[test]
fn odd_clients_harm_nobody() {
    let (start, path) = start();
    let mut actor = serve(start);
    let connect = || UnixStream::connect(&path);
    let silent: Vec<_> = (0..1000).map_while(|_| connect().ok()).collect();
    assert!(silent.len() > 100, "{} came in", silent.len());
    assert_eq!(status(&get(&path, "/live")), "200");
    assert_eq!(actor.who(), (actor.pid(), 0));
    let open = fs::read_dir(format!("/proc/{}/fd", actor.pid())).expect("there").count();
    assert!(open < 100, "{open} descriptors");

    assert_eq!(status(&raw(&path, b"\x16\x03\x01\x02\x00\x01\xfc\x03\r\n\r\n")), "400");
    let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(10_000));
    assert_eq!(status(&raw(&path, endless.as_bytes())), "431");
    // It reads nothing of what it asks for.
    let deaf: Vec<_> = (0..20)
        .filter_map(|_| {
            let mut stream = connect().ok()?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").ok()?;
            Some(stream)
        })
        .collect();
    assert_eq!(status(&get(&path, "/live")), "200");
    let began = Instant::now();
    assert_ne!(actor.upgrade(), actor.pid());
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(status(&get(&path, "/live")), "200");
    drop((silent, deaf));
}

#[test]
fn over_the_internet_nobody_commands() {
    let actor = Start::actor().args(&["--admin", "127.0.0.1:0"]);
    let mut actor = serve(actor);
    let line = actor.log.iter().find(|line| line.contains("the admin endpoint is"));
    let admin = line.and_then(|line| line.rsplit(' ').next()).expect("an address").to_owned();
    let ask = |request: &str| {
        let mut stream = TcpStream::connect(&admin).expect("there");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(request.as_bytes()).expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer
    };
    assert_eq!(status(&ask("GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")), "200");
    assert_eq!(status(&ask("POST /upgrade HTTP/1.1\r\nHost: x\r\n\r\n")), "403");
    assert_eq!(status(&ask("POST /exit HTTP/1.1\r\nHost: x\r\n\r\n")), "403");
    assert_ne!(actor.upgrade(), actor.pid());
    assert_eq!(status(&ask("GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")), "200");
}

#[test]
fn before_it_is_ready_a_process_lives_and_is_not_ready() {
    let (start, path) = start();
    let gate = start.path_of("gate");
    let mut actor = start.at(0, &format!("gate:{gate}")).spawn();
    until("somebody answers", || UnixStream::connect(&path).is_ok());
    assert_eq!(status(&get(&path, "/live")), "200");
    assert_eq!(status(&get(&path, "/ready")), "503");
    // Who says nothing does not keep the others waiting, nor the process.
    let silent: Vec<_> = (0..5).filter_map(|_| UnixStream::connect(&path).ok()).collect();
    assert_eq!(status(&get(&path, "/ready")), "503");
    let asking = thread::spawn({
        let path = path.clone();
        move || ask(&path, Control::Upgrade)
    });
    actor.open_gate();
    actor.wait_for("Running: set up");
    assert_eq!(status(&get(&path, "/ready")), "200");
    let (done, told) = asking.join().expect("an answer");
    assert_eq!(done, Controlled::Done, "{told}");
    drop(silent);
}

/// As an operator has it: exit status and text.
#[test]
fn ctl_says_by_its_exit_status_what_became_of_it() {
    let start = Start::program("demo");
    let path = start.path_of("admin");
    let mut demo =
        start.args(&["--listen", "127.0.0.1:0", "--probation", "0", "--admin", &path]).spawn();
    demo.wait_for("listening on");
    let ctl = |arguments: &[&str]| {
        let output = std::process::Command::new(example("demo"))
            .args(["ctl", "--admin", &path])
            .args(arguments)
            .output()
            .expect("it runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    until("it answers", || ctl(&["status"]).0 == Some(0));
    let (code, told) = ctl(&["upgrade"]);
    assert!(code == Some(0) && told.contains("\ndone: upgrade "), "{told}");
    let (code, told) = ctl(&["status"]);
    assert!(code == Some(0) && told.contains("generation     1\n"), "{told}");
    assert_eq!(ctl(&["check"]).0, Some(0));
    let (code, told) = ctl(&["upgarde"]);
    assert!(code == Some(2) && told.contains("unknown command"), "{told}");
    assert_eq!(ctl(&["shutdown"]).0, Some(0));
    demo.wait_for("finish the process.");
    let (code, told) = ctl(&["status"]);
    assert!(code == Some(2) && told.contains(&path), "{told}");
}
