//! The file of routes: its lines, and what is wrong with them.
//!
//! A line is a route, `LISTEN -> UPSTREAM[, UPSTREAM...]`, or a setting, a flag's name and its value.
//! What follows a `#` is a comment. A setting before the first route is for all of them, and one that is
//! indented is for the route above it. `examples/proxy/README.md` has it with examples.

use std::fs;

use lexopt::Parser;

use super::options::Options;
use super::settings::Settings;

/// More than the longest host name with a port, or Unix path, has.
const ADDRESS_BYTES: usize = 300;

/// A route as it was written.
pub(crate) struct Written {
    /// Where: a file, a line and a column, or a flag.
    pub(crate) place: String,
    pub(crate) listen: String,
    pub(crate) upstreams: Vec<WrittenUpstream>,
    pub(crate) settings: Settings,
}

/// An upstream as it was written.
pub(crate) struct WrittenUpstream {
    pub(crate) place: String,
    pub(crate) address: String,
    pub(crate) weight: u16,
    pub(crate) is_backup: bool,
}

/// The flags that name the file, or stand in it as routes, or are about the process that reads it.
const NOT_HERE: [&str; 7] = ["routes", "listen", "to", "help", "check", "init", "workers"];

/// Reads the file. What it sets for all is in the options then.
pub(crate) fn read(file: &str, options: &mut Options) -> Result<Vec<Written>, String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let mut routes: Vec<Written> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let place = Place { text: line, before: format!("{file}:{number}") };
        let content = line.split('#').next().unwrap_or_default();
        if content.trim().is_empty() {
            continue;
        }
        if let Some((listen, upstreams)) = content.split_once("->") {
            let settings = options.settings.for_route();
            routes.push(route(&place, listen, upstreams, settings)?);
            continue;
        }
        let is_indented = content.starts_with([' ', '\t']);
        match routes.last_mut() {
            None => set(&place, content, |flag, parser| options.take(flag, parser))?,
            Some(route) if is_indented => {
                set(&place, content, |flag, parser| route.settings.take(flag, parser))?;
            }
            Some(_) => {
                return Err(place.error(
                    content,
                    "a setting for all routes stands before the first one, and one for the route \
                     above it is indented",
                ));
            }
        }
    }
    if routes.is_empty() {
        return Err(format!("{file}: there is no route in it"));
    }
    Ok(routes)
}

/// What the flags `--listen` and `--to` say.
pub(crate) fn of_flags(options: &Options) -> Result<Vec<Written>, String> {
    let pair = |(listen, to): &(String, String)| {
        let before = format!("--listen {listen} --to {to}");
        route(&Place { text: "", before }, listen, to, options.settings.for_route())
    };
    options.pairs.iter().map(pair).collect()
}

/// A line, of which a mistake is named by its column.
struct Place<'a> {
    text: &'a str,
    /// The file and the line, or a flag.
    before: String,
}

impl Place<'_> {
    /// Where in the line this part of it stands; where it stands nowhere, the line.
    fn of(&self, part: &str) -> String {
        let start = (part.as_ptr() as usize).checked_sub(self.text.as_ptr() as usize);
        let start = start.filter(|start| *start + part.len() <= self.text.len());
        match start.and_then(|start| self.text.get(..start)) {
            Some(before) if !self.text.is_empty() => {
                format!("{}:{}", self.before, before.chars().count() + 1)
            }
            Some(_) | None => self.before.clone(),
        }
    }

    fn error(&self, part: &str, problem: &str) -> String {
        let part = part.trim_start();
        format!("{}: {problem}", self.of(part))
    }
}

fn route(
    place: &Place<'_>,
    listen: &str,
    upstreams: &str,
    settings: Settings,
) -> Result<Written, String> {
    let name = listen.trim();
    let is_no_address = |char: char| char.is_whitespace() || char.is_control();
    if name.is_empty() || name.contains(is_no_address) {
        return Err(place.error(listen, "expected LISTEN -> UPSTREAM[, UPSTREAM...]"));
    }
    let upstreams = upstreams.split(',').map(|text| upstream(place, text));
    Ok(Written {
        place: place.of(name),
        listen: name.into(),
        upstreams: upstreams.collect::<Result<_, _>>()?,
        settings,
    })
}

fn upstream(place: &Place<'_>, text: &str) -> Result<WrittenUpstream, String> {
    let mut words = text.split_whitespace();
    let Some(address) = words.next() else {
        return Err(place.error(text, "an upstream is missing"));
    };
    // What a session says of it when it moves has to fit.
    if address.len() > ADDRESS_BYTES {
        return Err(place.error(address, "an address of more than 300 bytes"));
    }
    let mut upstream = WrittenUpstream {
        place: place.of(address),
        address: address.into(),
        weight: 1,
        is_backup: false,
    };
    for word in words {
        let weight = word.strip_prefix("weight=").and_then(|weight| weight.parse().ok());
        match weight.filter(|weight| (1..=super::upstreams::WEIGHT).contains(weight)) {
            Some(weight) => upstream.weight = weight,
            None if word == "backup" => upstream.is_backup = true,
            None => {
                let problem = format!("{word:?}: expected weight=N, of 1 to 100, or backup");
                return Err(place.error(word, &problem));
            }
        }
    }
    Ok(upstream)
}

/// Takes a setting as the flag of that name is taken.
fn set(
    place: &Place<'_>,
    content: &str,
    take: impl FnOnce(&str, &mut Parser) -> Result<bool, String>,
) -> Result<(), String> {
    let content = content.trim();
    let (name, value) = match content.split_once(char::is_whitespace) {
        Some((name, value)) => (name, value.trim()),
        None => (content, ""),
    };
    let flag = format!("--{name}");
    let mut parser = Parser::from_args([format!("{flag}={value}")]);
    let is_flag = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let taken = match parser.next() {
        Ok(Some(_)) if is_flag && !NOT_HERE.contains(&name) => take(&flag, &mut parser),
        Ok(_) | Err(_) => Ok(false),
    };
    match taken {
        Ok(true) => Ok(()),
        Ok(false) => Err(place.error(
            content,
            &format!(
                "expected LISTEN -> UPSTREAM[, UPSTREAM...], or a setting that this place has; \
                 {name:?} is none"
            ),
        )),
        // As it is written here.
        Err(problem) => {
            let at = if value.is_empty() { name } else { value };
            Err(place.error(at, problem.trim_start_matches("--")))
        }
    }
}
