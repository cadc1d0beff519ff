//! What a client of the admin endpoint asks for, and how it is answered.

use std::fmt::Write;

use httparse::{EMPTY_HEADER, Status};

use crate::limits;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// How the process stands; in words, or for a program.
    Status { json: bool },
    /// What is counted, in the text format of Prometheus.
    Metrics,
    /// Whether the process turns.
    Live,
    /// Whether the service serves.
    Ready,
    /// An upgrade. The answer waits until the successor serves, or until it is proven, too.
    Upgrade { proven: bool },
    /// The set-up of the program that would be next, and no more.
    Check,
    /// A shutdown, as the signal does.
    Shutdown,
    /// The end at once, as the signal does.
    Exit,
}

/// A request that is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) ask: Ask,
    /// The head of the answer is enough (HEAD).
    pub(crate) head_only: bool,
    /// Pieces of unknown number are understood (HTTP/1.1).
    pub(crate) chunked: bool,
}

/// What has come so far.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// It is not whole yet.
    More,
    Request(Request),
    /// It is answered by that, and goes no further.
    Refused(Answer),
}

/// A whole answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) body: String,
    allow: Option<&'static str>,
}

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// The paths, what they stand for, and whether they take commands.
const PATHS: [(&str, Ask, bool); 7] = [
    ("/status", Ask::Status { json: true }, false),
    ("/metrics", Ask::Metrics, false),
    ("/live", Ask::Live, false),
    ("/ready", Ask::Ready, false),
    ("/upgrade", Ask::Upgrade { proven: false }, true),
    ("/shutdown", Ask::Shutdown, true),
    ("/exit", Ask::Exit, true),
];

/// Reads a request. Over the internet nobody may command.
pub(crate) fn parse(bytes: &[u8], may_command: bool) -> Parsed {
    let mut headers = [EMPTY_HEADER; limits::ADMIN_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(Status::Complete(_)) => {}
        Ok(Status::Partial) if bytes.len() < limits::ADMIN_HEAD_BYTES => return Parsed::More,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Parsed::Refused(Answer::text(431, "the head of the request is too long"));
        }
        Err(error) => {
            return Parsed::Refused(Answer::text(
                400,
                &format!("this is no HTTP request: {error}"),
            ));
        }
    }
    let (method, target) = (request.method.unwrap_or(""), request.path.unwrap_or(""));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Some((_, ask, commands)) = PATHS.into_iter().find(|(known, ..)| *known == path) else {
        let known: Vec<_> = PATHS.iter().map(|(path, ..)| *path).collect();
        let body = format!("there is nothing at this path; there is {}", known.join(", "));
        return Parsed::Refused(Answer::text(404, &body));
    };
    let head_only = method == "HEAD";
    let (method_fits, allow) = match commands {
        true => (method == "POST", "POST"),
        false => (method == "GET" || head_only, "GET, HEAD"),
    };
    if !method_fits {
        let mut answer = Answer::text(405, &format!("{path} takes {allow}"));
        answer.allow = Some(allow);
        return Parsed::Refused(answer);
    }
    if commands && !may_command {
        let body = "commands are taken on a Unix socket only: let the admin address be one";
        return Parsed::Refused(Answer::text(403, body));
    }
    let accepts = request.headers.iter().filter(|it| it.name.eq_ignore_ascii_case("accept"));
    let wants_text = accepts
        .filter_map(|header| std::str::from_utf8(header.value).ok())
        .any(|value| value.contains("text/plain") && !value.contains("application/json"));
    let ask = match ask {
        Ask::Status { .. } => Ask::Status { json: !wants_text },
        Ask::Upgrade { .. } => match query {
            "" => ask,
            "wait=proven" => Ask::Upgrade { proven: true },
            "check" | "check=" | "check=1" => Ask::Check,
            _ => {
                let body = "/upgrade takes ?wait=proven or ?check, one of them, or nothing";
                return Parsed::Refused(Answer::text(400, body));
            }
        },
        Ask::Metrics | Ask::Live | Ask::Ready | Ask::Check | Ask::Shutdown | Ask::Exit => ask,
    };
    Parsed::Request(Request { ask, head_only, chunked: request.version == Some(1) })
}

impl Answer {
    /// A line for people.
    pub(crate) fn text(status: u16, line: &str) -> Self {
        Self::of(status, TEXT, format!("{line}\n"))
    }

    pub(crate) fn of(status: u16, kind: &'static str, body: String) -> Self {
        Self { status, kind, body, allow: None }
    }

    /// As it is sent; without its body, where only the head was asked for.
    pub(crate) fn bytes(&self, head_only: bool) -> Vec<u8> {
        let mut head = head_of(self.status, self.kind);
        if let Some(allow) = self.allow {
            // Writing to a string does not fail.
            let _ = write!(head, "Allow: {allow}\r\n");
        }
        let _ = write!(head, "Content-Length: {}\r\n\r\n", self.body.len());
        if !head_only {
            head.push_str(&self.body);
        }
        head.into_bytes()
    }
}

/// The head of an answer whose end is not known yet.
pub(crate) fn head_of_stream(chunked: bool) -> Vec<u8> {
    let mut head = head_of(200, TEXT);
    if chunked {
        head.push_str("Transfer-Encoding: chunked\r\n");
    }
    head.push_str("\r\n");
    head.into_bytes()
}

fn head_of(status: u16, kind: &str) -> String {
    let words = match status {
        200 => "OK",
        202 => "Accepted",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    };
    format!(
        "HTTP/1.1 {status} {words}\r\nContent-Type: {kind}\r\nCache-Control: no-store\r\n\
         Connection: close\r\n"
    )
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn ask(request: &str) -> Result<Request, u16> {
        match parse(request.as_bytes(), true) {
            Parsed::Request(request) => Ok(request),
            Parsed::Refused(answer) => Err(answer.status),
            Parsed::More => Err(0),
        }
    }

    #[test]
    fn requests_are_read_as_curl_and_prometheus_send_them() {
        let request = ask("GET /status HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n").expect("whole");
        assert_eq!(request.ask, Ask::Status { json: true });
        let request = ask("GET /status HTTP/1.1\r\nAccept: text/plain\r\n\r\n").expect("whole");
        assert_eq!(request.ask, Ask::Status { json: false });
        let head = ask("HEAD /ready HTTP/1.0\r\n\r\n").expect("whole");
        assert!(head.head_only && !head.chunked && head.ask == Ask::Ready);
        let upgrade = |query: &str| ask(&format!("POST /upgrade{query} HTTP/1.1\r\n\r\n"));
        assert_eq!(upgrade("").map(|it| it.ask), Ok(Ask::Upgrade { proven: false }));
        assert_eq!(upgrade("?wait=proven").map(|it| it.ask), Ok(Ask::Upgrade { proven: true }));
        assert_eq!(upgrade("?check").map(|it| it.ask), Ok(Ask::Check));
        assert_eq!(upgrade("?chekc").map(|it| it.ask), Err(400));
    }

    #[test]
    fn whatever_is_wrong_has_its_answer() {
        assert_eq!(ask("GET /nothing HTTP/1.1\r\n\r\n"), Err(404));
        assert_eq!(ask("GET /upgrade HTTP/1.1\r\n\r\n"), Err(405));
        assert_eq!(ask("POST /metrics HTTP/1.1\r\n\r\n"), Err(405));
        assert_eq!(ask("\0\0\0\r\n\r\n"), Err(400));
        assert_eq!(ask("GET /status HTT"), Err(0));
        assert_eq!(ask(&format!("GET /{}", "x".repeat(limits::ADMIN_HEAD_BYTES))), Err(431));
        let many = "a: b\r\n".repeat(limits::ADMIN_HEADERS + 1);
        assert_eq!(ask(&format!("GET /live HTTP/1.1\r\n{many}\r\n")), Err(431));
        let answer = parse(b"POST /exit HTTP/1.1\r\n\r\n", false);
        assert!(matches!(answer, Parsed::Refused(Answer { status: 403, .. })), "{answer:?}");
    }

    /// Whatever a client sends, in whatever pieces, it is read or refused, and nothing panics. `FUZZ_SECONDS`
    /// has it go on for so long.
    #[test]
    fn no_bytes_are_too_odd() {
        let seed = fastrand::u64(..);
        let mut dice = fastrand::Rng::with_seed(seed);
        let whole: [&[u8]; 3] = [
            b"POST /upgrade?wait=proven HTTP/1.1\r\nHost: a\r\nAccept: text/plain\r\n\r\n",
            b"GET /status HTTP/1.0\r\nAccept: application/json, text/plain\r\n\r\n",
            b"HEAD http://a/metrics?x=%00 HTTP/1.1\r\nA:\t\xff\r\n\r\nmore behind it",
        ];
        let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
        let (mut rounds, mut refused) = (0, 0);
        while rounds < 20_000 || Instant::now() < until {
            let mut bytes = whole[dice.usize(0..whole.len())].to_vec();
            for _ in 0..dice.usize(0..6) {
                let at = dice.usize(0..bytes.len());
                match dice.u8(0..4) {
                    0 => bytes.insert(at, dice.u8(..)),
                    1 if bytes.len() > 1 => drop(bytes.remove(at)),
                    2 => bytes.extend_from_within(at..),
                    _ => bytes[at] = dice.u8(..),
                }
            }
            bytes.truncate(dice.usize(0..=bytes.len()));
            let may_command = dice.bool();
            match std::panic::catch_unwind(|| parse(&bytes, may_command)) {
                Ok(Parsed::Refused(answer)) => {
                    assert!((400..=431).contains(&answer.status), "seed {seed}: {bytes:?}");
                    refused += 1;
                }
                Ok(Parsed::More | Parsed::Request(_)) => {}
                Err(_) => panic!("seed {seed}: {bytes:?}"),
            }
            rounds += 1;
        }
        println!("{rounds} requests, {refused} of them refused");
    }
}
