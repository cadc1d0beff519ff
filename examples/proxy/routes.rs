//! The routes: who listens, and where it leads.

use std::cell::{Cell, RefCell};
use std::fs;
use std::rc::Rc;

use tablecloth::limits::NAME_BYTES;
use tablecloth::{Address, Throttle};

use super::options::Options;

/// The longest line of a file of routes, in bytes, and the most lines.
const LINE_BYTES: usize = 4096;
const LINES: usize = 10_000;

/// One listener and its upstreams.
#[derive(Debug)]
pub(crate) struct Route {
    /// The listener's name, by which a successor inherits it: its address as it was written.
    pub(crate) name: Rc<str>,
    pub(crate) listen: String,
    /// Where it was written: a file and a line, or a flag.
    pub(crate) place: String,
    pub(crate) upstreams: Vec<Rc<Upstream>>,
    /// Which upstream is next.
    next: Cell<usize>,
    /// So many lines a second its failures cost.
    pub(crate) complaints: RefCell<Throttle>,
}

/// Where a session may lead.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) text: Rc<str>,
    /// `None` for one that only its session knows: it is connected, and no other one will be.
    pub(crate) address: Option<Address>,
}

impl Route {
    fn parse(place: String, listen: &str, upstreams: &str) -> Result<Self, String> {
        let error = |error: &dyn std::fmt::Display| format!("{place}: {error}");
        if listen.len().max(upstreams.len()) > LINE_BYTES {
            return Err(error(&format!("more than {LINE_BYTES} bytes")));
        }
        // Found out now and here, and not when it is listened on.
        listen.parse::<Address>().map_err(|problem| error(&problem))?;
        let upstreams = upstreams
            .split(',')
            .map(|text| match text.trim() {
                "" => Err(error(&"an upstream is missing")),
                text => Ok(Rc::new(Upstream {
                    text: text.into(),
                    address: Some(text.parse().map_err(|problem| error(&problem))?),
                })),
            })
            .collect::<Result<_, _>>()?;
        let (name, listen) = (name_of(listen).into(), listen.to_owned());
        let (next, complaints) = (Cell::new(0), RefCell::default());
        Ok(Self { name, listen, place, upstreams, next, complaints })
    }

    /// A route that there is no longer, for a session that came by it.
    pub(crate) fn removed(name: &str) -> Self {
        Self {
            name: name.into(),
            listen: name.into(),
            place: String::new(),
            upstreams: Vec::new(),
            next: Cell::new(0),
            complaints: RefCell::default(),
        }
    }

    /// The number of the upstream whose turn it is.
    pub(crate) fn next(&self) -> usize {
        let next = self.next.get() % self.upstreams.len().max(1);
        self.next.set(next + 1);
        next
    }
}

/// Everything that the flags and the file say.
pub(crate) fn load(options: &Options) -> Result<Vec<Route>, String> {
    let mut routes = match &options.file {
        Some(file) => read(file)?,
        None => Vec::new(),
    };
    for (listen, to) in &options.pairs {
        routes.push(Route::parse(format!("--listen {listen}"), listen, to)?);
    }
    for (index, route) in routes.iter().enumerate() {
        if let Some(first) = routes[..index].iter().find(|first| first.name == route.name) {
            let Route { place, listen, .. } = route;
            return Err(format!("{place}: {listen} is listened on already, by {}", first.place));
        }
    }
    Ok(routes)
}

fn read(file: &str) -> Result<Vec<Route>, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let mut routes = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let place = format!("{file}:{number}");
        if line.len() > LINE_BYTES || number > LINES {
            return Err(format!("{place}: more than {LINE_BYTES} bytes, or {LINES} lines"));
        }
        let route = line.split('#').next().unwrap_or_default().trim();
        if route.is_empty() {
            continue;
        }
        let Some((listen, upstreams)) = route.split_once("->") else {
            return Err(format!("{place}: expected LISTEN -> UPSTREAM[, UPSTREAM...]"));
        };
        routes.push(Route::parse(place, listen.trim(), upstreams)?);
    }
    if routes.is_empty() {
        return Err(format!("{file}: there is no route in it"));
    }
    Ok(routes)
}

/// A name that fits: of a long path its end, which is where paths differ.
fn name_of(listen: &str) -> &str {
    let mut start = listen.len().saturating_sub(NAME_BYTES);
    while !listen.is_char_boundary(start) {
        start += 1;
    }
    &listen[start..]
}
