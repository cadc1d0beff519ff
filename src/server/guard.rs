//! Panics in a handler's methods are caught, and slow ones are noticed.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::Wing;
use crate::config::OnPanic;
use crate::handler::{Context, Handler};
use crate::limits;
use crate::machine::Event;
use crate::throttle::Throttle;
use crate::upgrader::Upgrader;

/// What a panic was raised with.
pub(super) type Payload = Box<dyn Any + Send>;

/// Calls a method of the handler. Its own state may be half changed by a panic: what becomes of the
/// process then is [`OnPanic`]'s to say.
pub(super) fn caught<T>(method: impl FnOnce() -> T) -> Result<T, Payload> {
    catch_unwind(AssertUnwindSafe(method))
}

/// What is known of panics in the handler's methods.
pub(super) struct Panics {
    /// What becomes of one.
    pub(super) policy: OnPanic,
    /// The session whose method has panicked, until it is closed.
    pub(super) session: Option<u32>,
    /// The method that has panicked last.
    pub(super) method: &'static str,
    complaints: Throttle,
}

impl Panics {
    pub(super) fn new(policy: OnPanic) -> Self {
        Self { policy, session: None, method: "", complaints: Throttle::default() }
    }
}

impl<H: Handler> Wing<H> {
    /// Calls a method of the handler, for that session if it is for one. `None` if it panicked, or if there
    /// is no such session.
    pub(super) fn guarded<T>(
        &mut self,
        upgrader: &mut Upgrader,
        method: &'static str,
        session: Option<u32>,
        call: impl FnOnce(&mut H, &mut Context<'_>, Option<&mut H::Session>) -> T,
    ) -> Option<T> {
        let crew = &mut self.crew;
        let found = match session {
            Some(index) => Some(crew.sessions.get_mut(index)?),
            None => None,
        };
        let (standing, handler) = (&mut upgrader.standing, &mut crew.handler);
        let result = match found {
            Some((token, session)) => {
                let mut cx = Context::of(standing, &mut crew.desk, token);
                caught(|| call(handler, &mut cx, Some(session)))
            }
            None => {
                let mut cx = Context::of_none(standing, &mut crew.desk);
                caught(|| call(handler, &mut cx, None))
            }
        };
        let answer = match result {
            Ok(answer) => Some(answer),
            Err(payload) => {
                self.note_panic(upgrader, method, session, payload);
                None
            }
        };
        self.note_slow(method);
        answer
    }

    /// A method has panicked: one line, and then what the machine says.
    pub(super) fn note_panic(
        &mut self,
        upgrader: &mut Upgrader,
        method: &'static str,
        session: Option<u32>,
        payload: Payload,
    ) {
        let (panics, text) = (&mut self.crew.panics, words(payload.as_ref()));
        if let Some(more) = panics.complaints.line(upgrader.standing.now) {
            log::error!("the handler's method `{method}` panicked: {text}{more}");
        }
        self.crew.desk.session = None;
        panics.method = method;
        // A panic on the way out of another one would abort the process.
        if panics.policy == OnPanic::End && !std::thread::panicking() {
            resume_unwind(payload);
        }
        panics.session = session;
        upgrader.feed(Event::HandlerPanicked, self);
    }

    /// Names a method that has kept everybody else waiting. Answers how long it took.
    pub(super) fn note_slow(&mut self, method: &'static str) -> Duration {
        let took = self.crew.pace.look();
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
