//! Connecting a session to the upstream whose turn it is, or to the one after it, and so on.

use std::io;
use std::rc::Rc;

use nix::errno::Errno;
use tablecloth::{Context, Stream};

use super::routes::Route;
use super::upstreams::Upstream;

/// Begins to connect to the first of the upstreams whose turn it is that does not fail at once, and has
/// what there is sent to it if it is connected by then. What is not connected to is named; it is one
/// without an address if none is left.
pub(crate) fn connect(
    cx: &mut Context<'_>,
    route: &Route,
    tried: &mut Vec<u16>,
    to_send: bool,
    mut send: impl FnMut(&mut Stream) -> io::Result<()>,
) -> Result<(Rc<Upstream>, Stream), (Rc<Upstream>, io::Error)> {
    let mut failed = None;
    while let Some(upstream) = route.upstreams.next(tried, cx.now()) {
        // Every one of a route has an address.
        let Some(address) = &upstream.address else { break };
        let connected = match to_send {
            true => cx.connect_to_send(address, 1),
            false => cx.connect(address, 1),
        };
        let sent = connected.and_then(|mut stream| send(&mut stream).map(|()| stream));
        match sent {
            Ok(stream) => return Ok((Rc::clone(upstream), stream)),
            Err(error) if is_our_own(&error) => {
                upstream.was_left();
                return Err((Rc::clone(upstream), error));
            }
            Err(error) => {
                upstream.failed(cx.now());
                tried.push(upstream.place());
                failed = Some((Rc::clone(upstream), error));
            }
        }
    }
    Err(failed.unwrap_or_else(|| {
        let nowhere = Upstream::new("(none)", None, 1, false);
        (Rc::new(nowhere), io::ErrorKind::NotFound.into())
    }))
}

/// Whether this process has not got what it needs to connect, wherever that would lead.
fn is_our_own(error: &io::Error) -> bool {
    let ours = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| ours.contains(&Errno::from_raw(code)))
}
