//! What the storm takes for an answer, and what not: every protocol, however an answer is cut.

use crate::drops::{Class, DropKind};
use crate::protocol::http::Http;
use crate::protocol::line::Line;
use crate::protocol::redis::Redis;
use crate::protocol::{Answer, Protocol, Taken};

type Took = Result<Taken, DropKind>;

fn take(answer: &mut Answer, bytes: &[u8]) -> Took {
    answer.take(bytes, usize::MAX).map_err(|wrong| wrong.kind)
}

/// What becomes of an answer that comes at once, or byte by byte; and then of the end of the
/// connection.
fn whole_and_end(protocol: &Protocol, text: &str) -> [Took; 2] {
    let mut answer = protocol.answer(1);
    let whole = take(&mut answer, text.as_bytes());
    let mut pieces = protocol.answer(1);
    let mut last = Ok(Taken::Part);
    for byte in text.as_bytes() {
        last = take(&mut pieces, &[*byte]);
        if last.is_err() {
            break;
        }
    }
    assert_eq!(whole, last, "{text:?}");
    [whole, answer.take_end()]
}

fn whole(protocol: &Protocol, text: &str) -> Took {
    let [whole, _] = whole_and_end(protocol, text);
    whole
}

/// How many KiB of the same byte are taken after this.
fn kibibytes_taken(protocol: &Protocol, begin: &[u8]) -> Option<usize> {
    let mut answer = protocol.answer(1);
    assert_eq!(take(&mut answer, begin), Ok(Taken::Part));
    (0..1000).find(|_| take(&mut answer, &[b'x'; 1024]).is_err())
}

fn request(protocol: &Protocol, class: Class) -> String {
    let mut bytes = vec![0; protocol.request_bytes(class)];
    protocol.fill(class, 1, 0, &mut bytes);
    String::from_utf8(bytes).expect("text")
}

fn http(expect: Option<&str>) -> Protocol {
    Http::new("localhost", None, expect).map(Protocol::Http).expect("good flags")
}

#[test]
fn a_long_http_connection_asks_to_be_kept_and_a_short_one_to_be_closed() {
    let http = Http::new("127.0.0.1:80", Some("/health?deep"), None).expect("good flags");
    let http = Protocol::Http(http);
    assert_eq!(
        request(&http, Class::Long),
        "GET /health?deep HTTP/1.1\r\nHost: 127.0.0.1:80\r\nUser-Agent: hups\r\n\
         Connection: keep-alive\r\n\r\n"
    );
    assert!(request(&http, Class::Short).contains("\r\nConnection: close\r\n"));
}

#[test]
fn the_length_that_the_head_says_is_the_body_s() {
    let response = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let half = &response[..response.len() - 1];
    assert_eq!(whole(&http(None), response), Ok(Taken::Whole));
    assert_eq!(whole(&http(None), &format!("{response}!")), Err(DropKind::WrongBytes));
    assert_eq!(whole_and_end(&http(None), half), [Ok(Taken::Part), Err(DropKind::EndOfFile)]);
    let empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(whole(&http(None), empty), Ok(Taken::Whole));
    assert_eq!(whole(&http(Some("204")), "HTTP/1.1 204 No Content\r\n\r\n"), Ok(Taken::Whole));
}

#[test]
fn chunks_are_put_together() {
    let take = |expect, chunks: &str| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n";
        whole(&http(expect), &format!("{head}{chunks}"))
    };
    let chunks = "5\r\nhello\r\n6;name=value\r\n world\r\n0\r\nChecksum: 1\r\n\r\n";
    assert_eq!(take(None, chunks), Ok(Taken::Whole));
    assert_eq!(take(Some("lo wor"), chunks), Ok(Taken::Whole));
    assert_eq!(take(Some("low"), chunks), Err(DropKind::WrongAnswer));
    assert_eq!(take(None, "5\r\nhello\r\n"), Ok(Taken::Part));
    assert_eq!(take(None, "x\r\n"), Err(DropKind::WrongBytes));
    assert_eq!(take(None, "5\r\nhello, world"), Err(DropKind::WrongBytes));
    assert_eq!(take(None, &format!("{}\r\n", "f".repeat(17))), Err(DropKind::WrongBytes));
    let trailers = format!("0\r\n{}\r\n", "X: y\r\n".repeat(100));
    assert_eq!(take(None, &trailers), Err(DropKind::WrongBytes));
}

#[test]
fn a_body_without_a_length_ends_with_the_connection() {
    let response = "HTTP/1.1 200 OK\r\n\r\nhello";
    let [part, end] = whole_and_end(&http(Some("hello")), response);
    assert_eq!([part, end], [Ok(Taken::Part), Ok(Taken::Last)]);
}

#[test]
fn a_server_says_that_an_answer_is_the_last_one() {
    let answer = |version: u8, connection: &str| {
        let head = format!("HTTP/1.{version} 200 OK\r\n{connection}Content-Length: 0\r\n\r\n");
        whole(&http(None), &head)
    };
    assert_eq!(answer(1, "Connection: TE, Close\r\n"), Ok(Taken::Last));
    assert_eq!(answer(1, "Connection: keep-alive\r\n"), Ok(Taken::Whole));
    assert_eq!(answer(0, ""), Ok(Taken::Last));
    assert_eq!(answer(0, "connection: Keep-Alive\r\n"), Ok(Taken::Whole));
}

#[test]
fn an_interim_answer_is_no_answer_yet() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n";
    assert_eq!(whole(&http(None), early), Ok(Taken::Part));
    let answer = format!("{early}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(whole(&http(None), &answer), Ok(Taken::Whole));
}

#[test]
fn another_status_or_a_body_without_the_text_is_a_wrong_answer() {
    let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\nno";
    assert_eq!(whole(&http(None), answer), Err(DropKind::WrongAnswer));
    assert_eq!(whole(&http(Some("503")), answer), Ok(Taken::Whole));
    assert_eq!(whole(&http(Some("no")), answer), Err(DropKind::WrongAnswer));
}

#[test]
fn garbage_is_told_from_an_http_answer() {
    for garbage in [
        "+PONG\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 two OK\r\n\r\n",
    ] {
        assert_eq!(whole(&http(None), garbage), Err(DropKind::WrongBytes), "{garbage:?}");
    }
}

#[test]
fn an_endless_head_is_not_kept_for_ever() {
    let taken = kibibytes_taken(&http(None), b"HTTP/1.1 200 OK\r\nX: ");
    assert_eq!(taken, Some(15), "16 with the beginning");
    let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(100));
    assert_eq!(whole(&http(None), &many), Err(DropKind::WrongBytes));
}

#[test]
fn what_no_http_server_can_be_asked_or_can_answer_is_refused() {
    for (send, expect) in
        [(Some("index.html"), None), (Some("/a b"), None), (None, Some("")), (None, Some("100"))]
    {
        assert!(Http::new("localhost", send, expect).is_err(), "{send:?} {expect:?}");
    }
}

fn redis(send: Option<&str>, expect: Option<&str>) -> Protocol {
    Redis::new(send, expect).map(Protocol::Redis).expect("a command")
}

#[test]
fn a_ping_is_answered_with_a_pong() {
    let ping = redis(None, None);
    assert_eq!(request(&ping, Class::Short), "*1\r\n$4\r\nPING\r\n");
    assert_eq!(whole(&ping, "+PONG\r\n"), Ok(Taken::Whole));
    assert_eq!(whole(&ping, "+PON"), Ok(Taken::Part));
    assert_eq!(whole(&ping, "-LOADING it reads its file\r\n"), Err(DropKind::WrongAnswer));
}

#[test]
fn a_reply_is_whole_with_the_last_of_its_values() {
    let get = redis(Some("GET key"), None);
    for reply in [
        "$5\r\nva\nue\r\n",
        "$-1\r\n",
        "*0\r\n",
        "*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
        "%1\r\n+name\r\n#t\r\n",
    ] {
        assert_eq!(whole(&get, reply), Ok(Taken::Whole), "{reply:?}");
        assert_eq!(whole(&get, &reply[..reply.len() - 1]), Ok(Taken::Part), "{reply:?}");
    }
    assert_eq!(whole(&get, "*2\r\n*1\r\n:1\r\n"), Ok(Taken::Part));
    assert_eq!(whole(&get, "-ERR no\r\n"), Err(DropKind::WrongAnswer));
    let long = redis(Some("GET key"), Some("$5"));
    assert_eq!(whole(&long, "$-1\r\n"), Err(DropKind::WrongAnswer));
}

#[test]
fn garbage_is_told_from_a_reply() {
    let ping = redis(None, None);
    for garbage in [
        "HTTP/1.1 400 Bad Request\r\n",
        "\r\n",
        "$x\r\n",
        "*-2\r\n",
        "+PONG\n",
        "*99999999999\r\n",
        "$99999999999\r\n",
    ] {
        assert_eq!(whole(&ping, garbage), Err(DropKind::WrongBytes), "{garbage:?}");
    }
    let twice = take(&mut ping.answer(1), b"+PONG\r\n+PONG\r\n");
    assert_eq!(twice, Err(DropKind::WrongBytes));
    assert_eq!(kibibytes_taken(&ping, b"+"), Some(15), "16 with the beginning");
}

fn line(send: Option<&str>, expect: Option<&str>) -> Protocol {
    Line::new(send, expect).map(Protocol::Line).expect("a line")
}

#[test]
fn the_same_line_is_expected_unless_another_is_named() {
    let hello = line(Some("hello"), None);
    assert_eq!(request(&hello, Class::Long), "hello\n");
    assert_eq!(whole(&hello, "hel"), Ok(Taken::Part));
    assert_eq!(whole(&hello, "hello\r\n"), Ok(Taken::Whole));
    let other = line(Some("hello"), Some("good day"));
    assert_eq!(whole(&other, "good day\n"), Ok(Taken::Whole));
    assert_eq!(whole(&other, "hello\n"), Err(DropKind::WrongAnswer));
    assert!(Line::new(Some("a\nb"), None).is_err());
}

#[test]
fn a_second_line_was_not_asked_for_and_an_endless_one_is_not_kept() {
    let hups = line(None, None);
    assert_eq!(take(&mut hups.answer(1), b"hups\nhups\n"), Err(DropKind::WrongBytes));
    assert_eq!(kibibytes_taken(&hups, b"h"), Some(64));
}

#[test]
fn an_echo_is_compared_byte_by_byte() {
    let echo = Protocol::Echo(crate::protocol::echo::Echo::new(7, 100));
    let mut bytes = vec![0; echo.request_bytes(Class::Short)];
    echo.fill(Class::Short, 1, 0, &mut bytes);
    let mut answer = echo.answer(1);
    assert_eq!(answer.take(&bytes[..60], 100), Ok(Taken::Part));
    assert_eq!(answer.take(&bytes[60..], 100), Ok(Taken::Whole));
    assert_eq!(take(&mut echo.answer(2), &bytes), Err(DropKind::WrongBytes), "another message's");
    bytes[70] ^= 1;
    let wrong = echo.answer(1).take(&bytes, 100).expect_err("a byte is another one");
    assert_eq!((wrong.kind, wrong.good), (DropKind::WrongBytes, 70));
    assert!(echo.answer(1).take(&bytes[..60], 50).is_err(), "before it was sent");
}
