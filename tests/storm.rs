//! Ring three: the storm (`examples/hups.rs`) tells what clients noticed, of whatever server.
//!
//! The servers are threads of the test, each with one habit, and the demo.

#![allow(clippy::expect_used, reason = "a test says what it expects")]

mod harness;

// The storm's protocols, and their tests.
#[allow(dead_code, reason = "the storm uses all of it")]
#[path = "../examples/hups/drops.rs"]
mod drops;
#[allow(dead_code, reason = "the storm uses all of it")]
#[path = "../examples/hups/payload.rs"]
mod payload;
#[allow(dead_code, reason = "the storm uses all of it")]
#[path = "../examples/hups/protocol.rs"]
mod protocol;
#[path = "storm/protocols.rs"]
mod protocols;
#[path = "storm/report.rs"]
mod report;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use harness::{Start, example, is_alive, place, until};
use report::{assert_in_order, number, report_of};
use rustix::net::{SendFlags, send};
use serde_json::Value;

/// A short run with a light load.
const SHORT: [&str; 16] = [
    "--hups",
    "3",
    "--interval-ms",
    "100",
    "--calm-seconds",
    "0.2",
    "--settle-ms",
    "100",
    "--short-rate",
    "50",
    "--long-conns",
    "2",
    "--long-rate",
    "100",
    "--seed",
    "7",
];

fn hups(args: &[&str]) -> Output {
    Command::new(example("hups")).args(args).output().expect("hups starts")
}

/// The report of a short run with these flags, too, and the exit status.
fn storm(args: &[&str]) -> (Value, Option<i32>) {
    report_of(&hups(&[&SHORT[..], &["--json"], args].concat()))
}

/// A server with this habit: it meets every connection with a thread of its own.
fn server(habit: fn(TcpStream)) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address").to_string();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || habit(stream));
        }
    });
    address
}

/// Reads the head of a request. Returns whether it asks for the connection to be kept; `None` at
/// its end.
fn request(reader: &mut impl BufRead) -> Option<bool> {
    let (mut keeps, mut is_first) = (true, true);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => return Some(keeps),
            "Connection: close" => keeps = false,
            text => assert!(!is_first || text == "GET /path HTTP/1.1", "{text}"),
        }
        is_first = false;
    }
}

const HTTP: [&str; 4] = ["--protocol", "http", "--send", "/path"];
/// An upgrade of a server that needs none.
const NOTHING: [&str; 2] = ["--upgrade-command", "true"];

#[test]
fn an_echo_server_is_replaced_by_a_signal_and_nothing_is_dropped() {
    let (address, pid_file, _demo) = demo(&[]);
    let place = place();
    let picture = place.path().join("storm.svg");
    let picture = picture.to_str().expect("text");
    // A machine that stalls may take long to start what was asked for last.
    let quiet = ["--settle-ms", "1000"];
    let args = ["--addr", &address, "--pid-file", &pid_file, "--svg", picture];
    let (report, status) = storm(&[&args[..], &quiet].concat());
    assert_in_order(&report, status);
    assert_eq!(report["protocol"], "echo");
    assert_eq!(report["signal"], "HUP");
    assert_eq!(report["commands_failed"], Value::Null);
    assert_eq!(number(&report, &["processes_left"]), 1);
    assert!(number(&report, &["upgrades_started_after_last_signal"]) > 0);
    // Each of them was late by something.
    assert!(number(&report, &["generator_late", "max_us"]) > 0);
    let picture = fs::read_to_string(picture).expect("a picture");
    for text in ["worst latency", "seconds", "99.9 %", "upgrade asked for (3)", "dropped (0)"] {
        assert!(picture.contains(text), "{text}");
    }
    assert!(picture.trim_end().ends_with("</svg>"));
}

#[test]
fn a_server_of_this_library_is_replaced_at_its_endpoint() {
    let place = place();
    let admin = place.path().join("admin");
    let admin = admin.to_str().expect("text");
    let (address, pid_file, _demo) = demo(&["--admin", admin]);
    let args = ["--addr", &address, "--pid-file", &pid_file, "--upgrade-admin", admin];
    let (report, status) = storm(&args);
    assert_in_order(&report, status);
    assert_eq!(report["upgrade_by"], "admin");
    assert_eq!(number(&report, &["command_statuses", "done"]), 3);
    // The pid file may name two new processes between two looks at it.
    assert!((1..=3).contains(&number(&report, &["upgrades_seen"])));
    // Where nobody answers, every upgrade has failed.
    let nowhere = format!("{admin}.not");
    let (report, status) = storm(&["--addr", &address, "--upgrade-admin", &nowhere]);
    assert_eq!(status, Some(1));
    assert_eq!(number(&report, &["commands_failed"]), 3);
    assert_eq!(number(&report, &["dropped", "total"]), 0, "{report:#}");
}

/// The demo, its pid file, and what keeps it alive.
fn demo(args: &[&str]) -> (String, String, harness::Actor) {
    let start = Start::program("demo").args(&["--listen", "127.0.0.1:0", "--probation", "0"]);
    let start = start.args(args).pid_file();
    let pid_file = start.path_of("pid");
    let mut demo = start.spawn();
    demo.wait_for("listening on 127.0.0.1:");
    until("its pid file", || Path::new(&pid_file).exists());
    (demo.address(), pid_file, demo)
}

#[test]
fn an_http_server_that_says_close_has_closed_in_order() {
    let address = server(|stream| {
        let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
        let mut writer = stream;
        // Every fifth answer is the last one.
        for count in 1.. {
            let Some(keeps) = request(&mut reader) else { return };
            let keeps = keeps && count % 5 != 0;
            let connection = if keeps { "keep-alive" } else { "close" };
            let answer = match count % 2 {
                0 => "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
                _ => "Content-Length: 5\r\n\r\nhello",
            };
            let answer = format!("HTTP/1.1 200 OK\r\nConnection: {connection}\r\n{answer}");
            if writer.write_all(answer.as_bytes()).is_err() || !keeps {
                return;
            }
        }
    });
    let (report, status) =
        storm(&[&HTTP[..], &NOTHING, &["--addr", &address, "--expect", "hello"]].concat());
    assert_in_order(&report, status);
    assert!(number(&report, &["closed_in_order"]) > 0);
    assert_eq!(report["processes_left"], Value::Null, "no process was named");
}

#[test]
fn a_long_connection_that_an_http_server_closes_while_it_owes_nothing_is_no_drop() {
    let address = server(|stream| {
        let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
        if request(&mut reader).is_some() {
            // In one segment with the end: no request can come between the two.
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
            let _ = send(&stream, answer, SendFlags::MORE);
            let _ = stream.shutdown(Shutdown::Write);
            // Until the client has closed it, too.
            let _ = request(&mut reader);
        }
    });
    let (report, status) = storm(&[&HTTP[..], &NOTHING, &["--addr", &address]].concat());
    assert_in_order(&report, status);
    assert!(number(&report, &["closed_in_order"]) > 0);
    assert_eq!(number(&report, &["long_messages_lost"]), 0);
}

#[test]
fn a_request_that_an_http_server_does_not_answer_is_a_drop() {
    let address = server(|stream| {
        let mut reader = BufReader::new(stream);
        let _ = request(&mut reader);
    });
    let (report, status) = storm(&[&HTTP[..], &NOTHING, &["--addr", &address]].concat());
    assert_eq!(status, Some(1));
    let dropped = number(&report, &["dropped", "total"]);
    assert!(dropped > 0);
    assert_eq!(number(&report, &["dropped_unanswered"]), dropped, "{report:#}");
    assert_eq!(number(&report, &["closed_in_order"]), 0);
    assert!(number(&report, &["long_messages_lost"]) > 0);
}

#[test]
fn another_answer_than_the_one_expected_is_a_drop_of_its_own_kind() {
    let address = server(|stream| {
        let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
        let mut writer = stream;
        while request(&mut reader).is_some() {
            let answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";
            let _ = writer.write_all(answer);
        }
    });
    let (report, status) = storm(&[&HTTP[..], &NOTHING, &["--addr", &address]].concat());
    assert_eq!(status, Some(1));
    let dropped = number(&report, &["dropped", "total"]);
    assert_eq!(number(&report, &["dropped", "wrong_answer"]), dropped, "{report:#}");
    let expected = [&HTTP[..], &NOTHING, &["--addr", &address, "--expect", "503"]].concat();
    let (report, status) = storm(&expected);
    assert_in_order(&report, status);
}

/// Answers each line with a line that this makes of it.
fn answer_lines(stream: TcpStream, answer: impl Fn(&str) -> Option<String>) {
    let mut writer = stream.try_clone().expect("a copy");
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        if let Some(answer) = answer(&line) {
            if writer.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }
}

#[test]
fn a_server_that_speaks_as_redis_does_is_asked_for_a_pong() {
    let address = server(|stream| {
        // A command comes as an array of strings; its last line is its name.
        answer_lines(stream, |line| match line {
            "PING" => Some("+PONG\r\n".to_owned()),
            "HGETALL" | "*1" | "*2" | "$4" | "$7" | "$3" => None,
            "key" => Some("*2\r\n$4\r\nname\r\n$-1\r\n".to_owned()),
            other => Some(format!("-ERR {other}\r\n")),
        });
    });
    let redis = [&NOTHING[..], &["--protocol", "redis", "--addr", &address]].concat();
    let (report, status) = storm(&redis);
    assert_in_order(&report, status);
    let (report, status) = storm(&[&redis[..], &["--send", "HGETALL key"]].concat());
    assert_in_order(&report, status);
    let (report, status) = storm(&[&redis[..], &["--expect", "+OK"]].concat());
    assert_eq!(status, Some(1));
    assert!(number(&report, &["dropped", "wrong_answer"]) > 0);
}

fn line_server() -> String {
    server(|stream| answer_lines(stream, |line| Some(format!("{line}\n"))))
}

#[test]
fn each_server_has_a_run_and_the_runs_can_be_compared() {
    let (first, second) = (line_server(), line_server());
    let (report, status) = storm(
        &[
            &NOTHING[..],
            &["--protocol", "line", "--send", "hello", "--addr", &first, "--name", "one"],
            &["--then", "--addr", &second, "--upgrade-command", "exit 3"],
        ]
        .concat(),
    );
    assert_eq!(status, Some(1), "the command of the second one fails");
    let [one, two] = &report.as_array().expect("an array")[..] else { panic!("{report:#}") };
    assert_in_order(one, Some(0));
    assert_eq!((&one["name"], &two["name"]), (&Value::from("one"), &Value::from(&*second)));
    assert_eq!(two["protocol"], "line", "what was said of the load goes on");
    assert_eq!(number(two, &["dropped", "total"]), 0);
    assert_eq!(number(two, &["command_statuses", "3"]), 3);

    let place = place();
    let file = place.path().join("both.json");
    fs::write(&file, report.to_string()).expect("written");
    let file = file.to_str().expect("text");
    let output = hups(&["--compare", file]);
    assert!(output.status.success());
    let table = String::from_utf8(output.stdout).expect("text");
    let failed = table.lines().find(|line| line.starts_with("commands failed")).expect("a line");
    let cells: Vec<_> = failed.split_whitespace().collect();
    assert_eq!(cells, ["commands", "failed", "0", "3"], "{table}");
    let p99 = table.lines().find(|line| line.starts_with("short latency p99,")).expect("a line");
    assert!(p99.ends_with(')'), "a ratio: {table}");
}

#[test]
fn a_command_that_does_not_end_is_killed_with_the_run() {
    let place = place();
    let pid_file = place.path().join("pid");
    let command = format!("sleep 1000 & echo $! >{}; wait", pid_file.display());
    let address = line_server();
    let args = ["--protocol", "line", "--addr", &address, "--upgrade-command", &command];
    let args = [&args[..], &["--max-seconds", "1", "--hups", "1"]].concat();
    let (report, status) = storm(&args);
    assert_eq!(status, Some(1));
    assert_eq!(report["end"], "max_seconds");
    assert_eq!(number(&report, &["commands_unfinished"]), 1);
    let pid = fs::read_to_string(&pid_file).expect("it ran");
    let pid = pid.trim().parse().expect("a number");
    until("what the command had started is gone", || !is_alive(pid));
}

/// The command stops the storm itself: what was due meanwhile is sent late, and no server is to blame.
#[test]
fn a_run_in_which_the_generator_stood_still_is_marked() {
    let address = line_server();
    let command = "kill -s STOP $PPID; sleep 0.3; kill -s CONT $PPID";
    let args = ["--protocol", "line", "--addr", &address, "--upgrade-command", command];
    let (report, status) = storm(&args);
    assert_in_order(&report, status);
    assert_eq!(report["generator_was_late"], true, "{report:#}");
    assert!(number(&report, &["generator_late", "max_us"]) > 100_000);
    let output = hups(&[&SHORT[..], &args].concat());
    let table = String::from_utf8(output.stdout).expect("text");
    assert!(table.lines().any(|line| line.starts_with("MARKED")), "{table}");
}

#[test]
fn bad_flags_are_named() {
    let line = ["--protocol", "line", "--upgrade-command", "true"];
    let addr = ["--addr", "127.0.0.1:1"];
    for (args, expected) in [
        (vec!["--addr", "127.0.0.1:1"], "--upgrade-command"),
        (vec!["--pid", "1"], "--addr is missing"),
        ([&addr[..], &["--protocol", "smtp", "--pid", "1"]].concat(), "--protocol smtp"),
        ([&addr[..], &["--send", "x", "--pid", "1"]].concat(), "--send and --expect are for"),
        ([&addr[..], &line, &["--bytes", "3"]].concat(), "--bytes is for --protocol echo"),
        ([&addr[..], &line, &["--signal", "HUP"]].concat(), "--upgrade-command and --signal"),
        ([&addr[..], &line, &["--upgrade-admin", "/x"]].concat(), "--upgrade-admin exclude"),
        ([&addr[..], &line, &["--send", "a\nb"]].concat(), "--send is more than one line"),
        ([&addr[..], &line].concat(), "--addr 127.0.0.1:1: Connection refused"),
        ([&addr[..], &line, &["--then"]].concat(), "--addr is missing"),
        ([&addr[..], &line, &["--tls-name", "x"]].concat(), "--tls-name x is for --tls"),
        (vec!["--compare"], "--compare needs files"),
        (vec!["--compare", "a.json", "--json"], "--compare takes files"),
        (vec!["--json", "--compare", "a.json"], "--compare runs nothing"),
    ] {
        refused(&args, expected);
    }
    refused(&[&addr[..], &line, &["--tls"]].concat(), "--tls: this build has no TLS; examples/tls");
    let address = line_server();
    let args = [&line[..], &["--addr", &address, "--svg", "/nowhere/at-all.svg"]].concat();
    refused(&args, "--svg /nowhere/at-all.svg: No such file");
}

/// It ends with status 2, and says why in a line.
fn refused(args: &[&str], expected: &str) {
    let output = hups(args);
    let error = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert!(error.starts_with("hups: ") && error.contains(expected), "{args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn a_file_that_is_no_report_is_named() {
    let place = place();
    let write = |name: &str, text: &str| {
        let path = place.path().join(name);
        fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let good = write("good.json", r#"{"addr": "a", "dropped": {}, "short_latency_us": null}"#);
    for (file, expected) in [
        (place.path().join("none.json").to_str().expect("text").to_owned(), "No such file"),
        (write("half.json", "{\"addr\": "), "it is not JSON"),
        (write("other.json", "{\"addr\": \"a\"}"), "dropped is missing"),
        (write("empty.json", "[]"), "it holds no report"),
    ] {
        refused(&["--compare", &good, &file], &file);
        refused(&["--compare", &file, &good], expected);
    }
    refused(&["--compare", &good], "--compare needs two reports");
}
