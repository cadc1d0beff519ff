//! HTTP by tokio and hyper, on an [`Upgrader`]: replaced on HUP without a failed request. At a TERM
//! whoever waits in the accept queue is reset; `own_loop` shows how to let them in.
//!
//!     cargo run --release --example hyper
//!     curl localhost:8080

mod common;

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{convert::Infallible, process::ExitCode, sync::Arc, time::Duration, time::Instant};

use common::program::{Options, Program, words};
use http_body_util::Full;
use hyper::{Request, Response, body, header, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo as Io;
use tablecloth::{Phase, Upgrader};
use tokio::net::{TcpListener, TcpStream};
use tokio::{io::Interest, io::unix::AsyncFd, time::sleep, time::sleep_until};

const PROGRAM: Program = Program {
    name: "hyper",
    help: "An HTTP server that is replaced on HUP.\n\nusage: hyper [flags]",
    listen: "127.0.0.1:8080",
};

/// When the process drains, the next answer says that it is the last one: a request may be on its way.
async fn serve_client(stream: TcpStream, drains: Arc<AtomicBool>) {
    let answer = service_fn(|_: Request<body::Incoming>| async {
        let mut response = Response::new(Full::new(body::Bytes::from("hello\n")));
        let close = (header::CONNECTION, header::HeaderValue::from_static("close"));
        response.headers_mut().extend(drains.load(Relaxed).then_some(close));
        Ok::<_, Infallible>(response)
    });
    let _ = http1::Builder::new().serve_connection(Io::new(stream), answer).await;
}

async fn serve_all(upgrader: Upgrader, listener: TcpListener) -> Result<(), String> {
    #[allow(deprecated, reason = "what came after it is unsafe; an upgrader keeps its descriptor")]
    let mut upgrader = AsyncFd::with_interest(upgrader, Interest::READABLE).map_err(words)?;
    let (drains, mut clients) = (Arc::new(AtomicBool::new(false)), tokio::task::JoinSet::new());
    let mut pauses = false; // Accepting does, after a failure: no descriptor is left, or no memory.
    loop {
        let deadline = upgrader.get_ref().next_deadline();
        tokio::select! {
            ready = upgrader.readable() => ready.map_err(words)?.clear_ready(),
            () = sleep_until(deadline.unwrap_or_else(Instant::now).into()), if deadline.is_some() => {}
            () = sleep(Duration::from_millis(50)), if pauses => pauses = false,
            client = listener.accept(), if !pauses && upgrader.get_ref().is_serving() => match client {
                Ok((stream, _)) => drop(clients.spawn_local(serve_client(stream, Arc::clone(&drains)))),
                Err(error) => {
                    log::warn!("accept: {error}");
                    pauses = true;
                }
            },
            Some(_) = clients.join_next() => pauses = false,
        }
        let phase = upgrader.get_mut().turn(Some(Duration::ZERO)).map_err(words)?;
        drains.store(phase == Phase::Draining, Relaxed);
        match phase {
            Phase::Draining if clients.is_empty() => upgrader.get_mut().drained(),
            Phase::Exited(_) => return Ok(()),
            Phase::Waiting | Phase::Serving | Phase::Draining => {}
        }
    }
}

fn main() -> ExitCode {
    PROGRAM.run(|Options { listen, common }| {
        let mut upgrader = Upgrader::new(common.config).map_err(words)?;
        common::logging::go();
        let web = upgrader.tcp("web", &listen).map_err(words)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        tokio::task::LocalSet::new().block_on(&runtime.map_err(words)?, async {
            let listener = TcpListener::from_std(web).map_err(words)?;
            common::logging::finish();
            upgrader.ready().map_err(words)?;
            serve_all(upgrader, listener).await
        })
    })
}
