//! A route with what TLS needs: its certificates, what is told to new connections, and what is counted.

use std::cell::RefCell;
use std::rc::Rc;

use s2n_tls::config::Config;
use s2n_tls::error::Error;
use tablecloth::{Counter, Server};

use super::certificates::{self, Chains, Shelf};
use super::channel::words;
use super::routes::Route;
use super::settings::Settings;
use super::tickets::Key;

/// A route, and the TLS of its clients.
pub(crate) struct Front {
    pub(crate) route: Rc<Route>,
    chains: Chains,
    /// `None` for a route that is there no longer: nobody comes by it.
    config: RefCell<Option<Config>>,
    told: Option<Told>,
}

/// What `/metrics` tells of it, if there is an admin endpoint.
struct Told {
    handshakes: Counter,
    resumed: Counter,
    failures: Counter,
}

impl Front {
    /// Takes the certificates of a route. An error says where the route stands.
    pub(crate) fn new(
        server: &mut Server,
        route: Rc<Route>,
        shelf: &mut Shelf,
        keys: &[Key],
    ) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", route.place);
        let extra = &route.settings.extra;
        let chains = shelf.load(extra).map_err(|error| failed(&error))?;
        let config = certificates::config(extra, &chains, keys);
        let config = config.map_err(|error| failed(&words(&error)))?;
        let mut counter = |what: &str, help: &str| {
            let counter = format!("tls_{what}_total");
            let counter = server.counter(&counter, &[("route", &route.name)], help);
            counter.map_err(|error| failed(&error))
        };
        let told = Told {
            handshakes: counter("handshakes", "Handshakes that were done.")?,
            resumed: counter("resumed", "Of them, those of clients that came back.")?,
            failures: counter("failures", "Handshakes that have failed.")?,
        };
        let config = RefCell::new(Some(config));
        Ok(Self { route, chains, config, told: Some(told) })
    }

    /// A route that is there no longer, for the sessions that it had.
    pub(crate) fn removed(name: &str, settings: Settings) -> Self {
        let route = Rc::new(Route::removed(name, settings));
        Self { route, chains: Chains::new(), config: RefCell::default(), told: None }
    }

    pub(crate) fn config(&self) -> Option<Config> {
        self.config.borrow().clone()
    }

    /// New connections get tickets by these keys from here on. The certificates stay as they were read.
    pub(crate) fn renew(&self, keys: &[Key]) -> Result<(), Error> {
        let config = certificates::config(&self.route.settings.extra, &self.chains, keys)?;
        *self.config.borrow_mut() = Some(config);
        Ok(())
    }

    /// A handshake is done.
    pub(crate) fn shaken(&self, resumed: bool) {
        if let Some(told) = &self.told {
            told.handshakes.add(1);
            told.resumed.add(u64::from(resumed));
        }
    }

    pub(crate) fn failed(&self) {
        self.told.iter().for_each(|told| told.failures.add(1));
    }
}
