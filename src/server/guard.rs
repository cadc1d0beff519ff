//! Panics in a handler's methods are caught, and slow ones are noticed.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::Server;
use crate::config::OnPanic;
use crate::handler::Handler;
use crate::limits;
use crate::machine::Event;

/// What a panic was raised with.
pub(super) type Payload = Box<dyn Any + Send>;

/// Calls a method of the handler. Its own state may be half changed by a panic: what becomes of the
/// process then is [`OnPanic`]'s to say.
pub(super) fn caught<T>(method: impl FnOnce() -> T) -> Result<T, Payload> {
    catch_unwind(AssertUnwindSafe(method))
}

impl<H: Handler> Server<H> {
    /// Calls a method of the handler, of that session if it is one's. `None` if it panicked; the
    /// session is gone then.
    pub(super) fn guarded<T>(
        &mut self,
        method: &'static str,
        session: Option<u32>,
        call: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let result = match caught(|| call(self)) {
            Ok(answer) => Some(answer),
            Err(payload) => {
                self.note_panic(method, session, payload);
                None
            }
        };
        self.note_slow(method);
        result
    }

    /// A method has panicked: one line, and then what the machine says.
    pub(super) fn note_panic(
        &mut self,
        method: &'static str,
        session: Option<u32>,
        payload: Payload,
    ) {
        let text = words(payload.as_ref());
        if let Some(more) = self.complaints.panicked.line(self.shared.now) {
            log::error!("the handler's method `{method}` panicked: {text}{more}");
        }
        self.shared.session = None;
        self.panicked_in = method;
        // A panic on the way out of another one would abort the process.
        if self.config.on_panic == OnPanic::End && !std::thread::panicking() {
            resume_unwind(payload);
        }
        self.panicked = session;
        self.feed(Event::HandlerPanicked);
    }

    /// Names a method that has kept everybody else waiting. Answers how long it took.
    pub(super) fn note_slow(&mut self, method: &'static str) -> Duration {
        let took = self.pace.look();
        if took >= limits::SLOW_HANDLER {
            log::warn!("the handler's method `{method}` took {took:?}: nobody else was served.");
        }
        took
    }
}

/// What the panic says, if it says it in words.
fn words(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}
